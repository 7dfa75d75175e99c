"""The script that measures labels runs, on a small set."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.support import COLOURS, coloured_set, isolated, run_script, two_encoders  # noqa: F401
from zsvec.encoders import EncoderSet


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    script = importlib.import_module("several_labels")
    monkeypatch.setattr(script, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    return script


def test_several_labels(script: object) -> None:
    options = ("--profile", "base", "--references", 5, "--images", 60, "--draws", 2)
    printed = run_script(script, coloured_set(6, 6), *options)  # type: ignore[arg-type]
    assert "colours, 2 draws" in printed
    assert printed.count("±") == 4 * 5 + 1
    assert "nan" not in printed


def test_composites_have_their_categories(script: object) -> None:
    folder = coloured_set(6, 6) / "references"
    made = script.composed(folder, EncoderSet(two_encoders()), 60, 0)  # type: ignore[attr-defined]
    assert made.names == list(COLOURS)
    assert set(made.belongs.sum(axis=1).tolist()) == {1, 2, 3}
    chosen = script.drawn(made, 5, 0)  # type: ignore[attr-defined]
    assert chosen.belongs.sum(axis=0).min() >= 5
    assert all(np.isclose(np.linalg.norm(vectors, axis=1), 1).all() for vectors in chosen.vectors.values())
