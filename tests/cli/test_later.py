"""What the command line does after the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zsvec.cli import later
from zsvec.encoders import host
from zsvec.encoders.cache import place, read_record
from zsvec.settings.settings import Settings

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
    assert not host.cache_folder().exists()


OPENS = """
from zsvec.cli import later
later._export = lambda _: print("exports")
from zsvec.cli.app import Target
import zsvec
zsvec.open = lambda *_, **__: None
Target("./store", None, "offline").open()
"""


NAMES = ("stdin", "stdout", "stderr")
no_terminals = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals here")


def printed(folder: Path, *, elsewhere: str | None = None) -> str:
    """What a program writes that opens a store at a terminal, but for one stream that is a file."""
    ours, theirs = os.openpty()
    try:
        with (folder / "stream").open("w+b") as file:
            streams = {name: file if name == elsewhere else theirs for name in NAMES}
            environment = {**os.environ, "FORCE_COLOR": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-c", OPENS], cwd=folder, env=environment, check=True, **streams)  # type: ignore[call-overload]
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 1000).decode()
        except BlockingIOError:
            shown = ""
        return shown + (folder / "stream").read_text()
    finally:
        os.close(theirs)
        os.close(ours)


@no_terminals
@pytest.mark.parametrize("elsewhere", NAMES)
def test_nothing_is_started_where_a_stream_is_no_terminal(elsewhere: str, tmp_path: Path) -> None:
    assert printed(tmp_path, elsewhere=elsewhere) == ""


@no_terminals
def test_a_person_at_a_terminal_gets_an_export(tmp_path: Path) -> None:
    assert printed(tmp_path).strip() == "exports"


def test_modules_in_the_working_directory_are_not_run(settings: Settings, tmp_path: Path) -> None:
    import torch  # noqa: F401 - it has computed the encoders

    for module in ("platformdirs", "zsvec"):
        (tmp_path / f"{module}.py").write_text(f"open('ran-{module}', 'w').close()")
    process = later._export(settings)
    assert process is not None
    assert process.wait(timeout=300) == 0
    assert list(tmp_path.glob("ran-*")) == []
