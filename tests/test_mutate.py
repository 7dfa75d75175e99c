"""The script that mutates images, on a few; all that is not as it must be is a failure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.inputs.pictures import encode
from tests.support import isolated, photo  # noqa: F401
from zsvec.inputs.decoding import FORMATS

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)  # for the process that the script starts, too
    return importlib.import_module("mutate")


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_a_run_prints_a_row_for_each_kind_and_succeeds(mutate: ModuleType) -> None:
    app = typer.Typer()
    app.command()(mutate.main)
    result = CliRunner().invoke(app, ["--images", "200", "--seed", "1", "--threads", "4"])
    assert result.exit_code == 0, result.output
    assert {kind.format for kind in mutate.KINDS.values()} >= set(FORMATS)
    assert all(f" {name} " in result.output for name in [*mutate.KINDS, "all"])
    (row,) = (line.split("│") for line in result.output.splitlines() if " all " in line)
    images, read, refused, other = map(int, row[2:6])
    assert (images, read + refused, other) == (200, 200, 0)
    assert read > 50
    assert refused > 50


def test_the_same_seed_gives_the_same_images(mutate: ModuleType) -> None:
    data = encode(photo(1), "PNG"), encode(photo(2), "JPEG")
    made = [[mutate.mutated(*data, mutate.drawn(seed, number)[2]) for number in range(50)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert len(set(made[0])) > 25


@pytest.mark.parametrize(
    ("outcome", "seconds", "beyond", "expected"),
    [
        ("read", 4.9, 0, []),
        ("refused", 0.1, 1, ["the process grew by"]),
        ("refused", 5.1, 0, ["image 7 (GIF): 5.1 s"]),
        ("KeyError(1)", 0.1, 0, ["image 7 (GIF): KeyError(1)"]),
    ],
)
def test_failures(mutate: ModuleType, outcome: str, seconds: float, beyond: int, expected: list[str]) -> None:
    read = mutate.Read(7, "GIF", outcome, seconds)
    found: list[Any] = mutate.Report([read], 700 + beyond, 700).failures
    assert len(found) == len(expected)
    assert all(one.startswith(begin) for one, begin in zip(found, expected, strict=True))


def test_checksums_of_a_damaged_png_are_right_again(mutate: ModuleType) -> None:
    data = encode(photo(1), "PNG")
    damaged = bytearray(data)
    damaged[30:33] = b"abc"
    assert mutate.with_checksums(bytes(damaged)) == data
    assert mutate.with_checksums(b"GIF89a") == b"GIF89a"
