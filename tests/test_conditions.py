"""The scripts that measure strategies and audits run, on a small set."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import zsvec
from tests.support import coloured_set, isolated, run_script, two_encoders  # noqa: F401
from zsvec.encoders import EncoderSet

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(SCRIPTS)
    sets = importlib.import_module("standing.sets")
    monkeypatch.setattr(sets, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    return coloured_set(10, 6)


def test_conditions(folder: Path) -> None:
    options = (
        "--profile",
        "base",
        "--references",
        3,
        "--draws",
        2,
        "--strategy",
        "log_linear_gda",
        "--strategy",
        "transductive",
    )
    printed = run_script(importlib.import_module("conditions"), folder, *options)
    assert "colours, 2 draws" in printed
    assert "3 references, skewed batches of 64" in printed
    assert "bursts of 5" in printed
    assert printed.count("  transductive") == 5 + 4 + 2 + 4
    assert "nan" not in printed


def test_arrivals(folder: Path) -> None:
    printed = run_script(
        importlib.import_module("arrivals"), folder, "--profile", "base", "--references", 3, "--draws", 2
    )
    assert "colours, 3 references a category, 2 draws" in printed
    assert printed.count("  log_linear_gda") == printed.count("  log_linear_views") == 12
    (_, one) = [line for line in printed.splitlines() if "log_linear_gda" in line][:2]
    assert one.split("  ")[-3].strip()
    assert "nan" not in printed


def test_estimators(folder: Path) -> None:
    options = ("--profile", "base", "--references", 1, "--references", 3, "--draws", 2)
    printed = run_script(importlib.import_module("estimators"), folder, *options)
    assert "colours, 2 draws" in printed
    assert printed.count("±") == 6 * 4 - 1 + 1  # NearestCentroid has no log-loss with one reference
    assert "nan" not in printed


def test_audits(folder: Path) -> None:
    printed = run_script(importlib.import_module("audits"), folder, "--profile", "base", "--draws", 2)
    assert "colours, 20% wrong, 5% copied, 2 draws" in printed
    assert "colours, 0% wrong, 0% copied, 2 draws" in printed
    found = [
        float(line.split()[-3]) for line in printed.splitlines() if "accused, of the wrong ones" in line and "±" in line
    ]
    assert found[0] > 80
    assert "nan" not in printed


def test_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("together")
    monkeypatch.setattr(script, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    printed = run_script(script, folder, "--profile", "base", "--references", 3, "--draws", 2)
    assert "colours, 2 draws" in printed
    assert printed.count("  together") == printed.count("  alone") == 10
    assert "nan" not in printed


def test_candidate_sets(folder: Path) -> None:
    printed = run_script(importlib.import_module("candidate_sets"), folder, "--profile", "base", "--draws", 2)
    assert "colours, 2 draws" in printed
    rows = {line.strip().split("  ")[0] for line in printed.splitlines()}
    conditions = ("3 references", "10 references", "10, 20% wrong labels", "10 bursts of 5")
    assert {title for one in conditions for title in (one, f"{one}, split")} <= rows
    (ten,) = [line for line in printed.splitlines() if line.strip().startswith("10 references  ")]
    assert " 100.0 ± 0.0 " in ten  # colours are easily told apart
    assert "nan" not in printed


def test_tracks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("tracks")
    opened = zsvec.open(":memory:", encoders=two_encoders())
    monkeypatch.setattr(script, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    monkeypatch.setattr(zsvec, "open", lambda *_, **__: opened)
    cache = tmp_path / "new" / "bursts"
    options = ("--cache", cache, "--references", 10, "--frames", 4, "--draws", 2)
    printed = run_script(script, folder, *options)
    assert "colours, 10 references of a category, 2 draws" in printed
    assert "of the photos reach .99" in printed
    assert {path.name for path in cache.iterdir()} == {"colours-photos.npz", "colours-unknown.npz"}
