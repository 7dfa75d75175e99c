"""The script that measures audits: what it puts in, what it counts, and what it prints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support import COLOURS, coloured_set, isolated, run_script, two_encoders  # noqa: F401
from zsvec.curation.audit import Audit, Duplicates, StoredImage
from zsvec.encoders import EncoderSet
from zsvec.method.quality.suspects import Suspect

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import audits

    monkeypatch.setattr(audits, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    return audits


@pytest.mark.usefixtures("script")
def test_what_is_put_in() -> None:
    from standing.sets import embed
    from standing.trials import doubtful

    images = embed(coloured_set(10, 6), EncoderSet(two_encoders()), {})
    trial = doubtful(images, 10, 0.2, 0.2, seed=0)
    rows = [(number, name) for number, name in trial.rows if number not in images.copies.values()]
    copies = [row for row in trial.rows if row not in rows]
    assert len(rows) == 10 * len(COLOURS)
    assert 1 <= sum(trial.truth[number] != name for number, name in rows) <= 12
    assert len(copies) == 6
    original = {copy: number for number, copy in images.copies.items()}
    placed = dict(rows)
    assert [name == placed[original[number]] for number, name in copies] == [True, False] * 3
    assert all(trial.truth[number] == trial.truth[original[number]] for number, _ in copies)
    assert doubtful(images, 10, 0.2, 0.2, seed=0).rows == trial.rows
    assert doubtful(images, 10, 0.2, 0.2, seed=1).rows != trial.rows
    clean = doubtful(images, 10, 0, 0, seed=0)
    assert Counter(name for _, name in clean.rows) == dict.fromkeys(COLOURS, 10)
    assert all(clean.truth[number] == name for number, name in clean.rows)


def found(accused: list[tuple[int, str]], *pictures: list[int]) -> Audit:
    labels = [
        Suspect(category=name, hash=f"{number:08d}", source="", probability=0.9, instead="x", copied=False)
        for number, name in accused
    ]
    duplicates = [
        Duplicates(
            images=[StoredImage(category="", hash=f"{number:08d}", source="") for number in numbers],
            across=False,
            likeness=1.0,
        )
        for numbers in pictures
    ]
    return Audit(images=8, judged=8, calibrated=True, labels=labels, duplicates=duplicates)


# Of eight references two are wrong, 11 is a copy of 1 and 12 of 2.
TRIAL = SimpleNamespace(
    rows=[(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "b"), (6, "b"), (11, "a"), (12, "b")],
    truth={1: "a", 2: "a", 3: "a", 4: "b", 5: "b", 6: "b", 11: "a", 12: "a"},
)
IMAGES = SimpleNamespace(copies={1: 11, 2: 12})


def test_accusations_by_hand(script: ModuleType) -> None:
    figures = script.accusations(IMAGES, TRIAL, found([(3, "b"), (1, "a")], [1, 11], [2, 4], [5, 6, 12]))
    assert figures == {
        "accused, % of all": 25.0,
        "precision, %": 50.0,
        "recall, %": 50.0,
        "right ones accused, %": pytest.approx(100 / 6),
        "copies found, %": 50.0,
        "no copies, taken for some": 5.0,
        "outliers": 0.0,
        "thin categories": 0.0,
        "confused pairs": 0.0,
    }


def test_what_remains_by_hand(script: ModuleType) -> None:
    every = [*((number, "a") for number in range(20)), (20, "b")]
    trial = SimpleNamespace(rows=every, truth=dict.fromkeys(range(21), "a") | {9: "b"})
    remains = script.remaining(trial, found([(5, "a"), (9, "a"), (3, "a"), (20, "b")]))
    assert all((20, "b") in rows for rows in remains.values())  # the only one of its category
    gone = {name: [number for number in range(20) if (number, "a") not in rows] for name, rows in remains.items()}
    assert gone == {
        "without the first tenth": [5, 9],
        "without all accused": [3, 5, 9],
        "without the wrong ones": [9],
    }


def test_audits(script: ModuleType) -> None:
    lines = [json.loads(line) for line in run_script(script, coloured_set(10, 6), "--draws", 2, "--json").splitlines()]
    assert [line["condition"] for line in lines] == [
        "colours, 20% wrong, 5% copied, 2 draws",
        "colours, 0% wrong, 0% copied, 2 draws",
    ]
    for line in lines:
        assert all(list(figure) == ["mean", "error"] for figure in line["audit"].values())
        assert list(line["fusion"]) == [script.ALL, script.FIRST, script.ACCUSED, script.RIGHT]
        assert all(list(figures) == ["top1", "nll", "ece", "floor"] for figures in line["fusion"].values())
    assert lines[0]["audit"]["precision, %"]["mean"] > 90
    assert lines[0]["audit"]["recall, %"]["mean"] > 80
    assert "recall, %" not in lines[1]["audit"]
    assert lines[1]["audit"]["accused, % of all"]["mean"] <= 1


def test_audits_for_people(script: ModuleType) -> None:
    out: Any = run_script(script, coloured_set(10, 6), "--draws", 1)
    assert "colours, 20% wrong, 5% copied, 1 draws; ± is a standard error" in out
    assert "without the first tenth" in out
    assert "recall, %: " in out
    assert "nan" not in out
