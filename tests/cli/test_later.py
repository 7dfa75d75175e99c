"""What the command line does after the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zsvec.cli import later
from zsvec.config import Settings
from zsvec.encoders import cache
from zsvec.encoders.cache import place, read_record

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of Linux")
def test_encoders_are_exported_in_the_background(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: F401 - it has computed the encoders

    specs = settings.encoder_specs()
    process = later._export(settings)
    assert process is not None
    assert "in the background" in capfd.readouterr().err
    assert process.wait(timeout=300) == 0
    assert read_record(specs) is not None
    assert later._export(settings) is None
    assert capfd.readouterr().err == ""
    assert place(specs).is_dir()


def test_nothing_is_started_where_torch_was_not_needed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    later._export(settings)
    assert not cache.cache_folder().exists()


OPENS = """
from zsvec.cli import later
later._export = lambda _: print("exports")
from zsvec.cli.app import Target
import zsvec
zsvec.open = lambda *_, **__: None
Target("./store", None, "offline").open()
"""


def test_a_script_starts_nothing() -> None:
    """Whose stderr is no terminal, whatever colours it asks for."""
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OPENS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals here")
def test_a_person_at_a_terminal_gets_an_export() -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", OPENS], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.stdout == "exports\n"
