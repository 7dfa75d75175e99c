"""The script that measures the inbox: how it divides, what it counts, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.support import COLOURS, coloured_set, isolated, run_script, two_encoders  # noqa: F401
from zsvec.encoders import EncoderSet

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import teaching

    monkeypatch.setattr(teaching, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    return teaching


def test_nothing_is_asked_about_that_measures(script: ModuleType, tmp_path: Path) -> None:
    images = script.embedded(coloured_set(6, 6), EncoderSet(two_encoders()), "offline", tmp_path / "vectors")
    begin, pool, held_out = script.divided(images, 2, draw=0)
    assert sorted(begin + pool + held_out) == list(range(12 * len(COLOURS)))
    assert [len(begin), len(held_out), len(pool)] == [2 * len(COLOURS), 4 * len(COLOURS), 6 * len(COLOURS)]
    assert script.divided(images, 2, draw=0) == (begin, pool, held_out)
    assert script.divided(images, 2, draw=1) != (begin, pool, held_out)


def test_every_recipe_chooses_so_many_different_images(script: ModuleType, tmp_path: Path) -> None:
    encoders = EncoderSet(two_encoders())
    images = script.embedded(coloured_set(6, 6), encoders, "offline", tmp_path / "vectors")
    begin, pool, _ = script.divided(images, 2, draw=0)
    with script._store(encoders) as classifier:
        classifier.add_categories(images.categories(begin, texts=True))
        predictions = classifier.classify_vectors(images.rows(pool))
    asked = script.Asked(predictions, images.rows(pool), images.rows(begin), np.random.default_rng(0))
    for recipe in script.RECIPES.values():
        chosen = recipe(asked, 4)
        assert len(chosen) == len(set(chosen)) == 4
        assert set(chosen) <= set(range(len(pool)))


def test_order(script: ModuleType, tmp_path: Path) -> None:
    folder = coloured_set(6, 6)
    given = ("order", folder, "--references", 1, "--rounds", 6, "--budget", 2, "--draws", 2)
    found = json.loads(run_script(script, *given, "--json", "--out", tmp_path / "a.png"))
    assert found.keys() == {"set", script.RANDOM, "inbox"}
    assert np.shape(found["inbox"]) == np.shape(found[script.RANDOM]) == (2, 7)
    assert [values[0] for values in found["inbox"]] == [values[0] for values in found[script.RANDOM]]
    assert (tmp_path / f"a-{folder.name}.png").stat().st_size > 5000
    assert "least gain from round 5 on" in run_script(script, *given)


def test_groups(script: ModuleType) -> None:
    given = ("groups", coloured_set(8, 8), "--left-out", 1, "--draws", 2)
    [one, other] = json.loads(run_script(script, *given, "--json"))["draws"]
    assert one.keys() == other.keys()
    assert all(0 <= one[name] <= 1 for name in one if name not in ("groups", "left-out categories with a group"))
    assert "purity of the first groups" in run_script(script, *given)
