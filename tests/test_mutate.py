"""The script that mutates images, on a few."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.support import isolated  # noqa: F401

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_mutated_images_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)  # for the process that the script starts, too
    mutate = importlib.import_module("mutate")
    app = typer.Typer()
    app.command()(mutate.main)
    result = CliRunner().invoke(app, ["--images", "200", "--seed", "1", "--threads", "4"])
    assert result.exit_code == 0, result.output
    (row,) = (line.split("│") for line in result.output.splitlines() if " all " in line)
    images, read, refused, other = map(int, row[2:6])
    assert (images, read + refused, other) == (200, 200, 0)
    assert min(read, refused) > 50
