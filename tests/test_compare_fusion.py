"""The script that compares strategies of fusion runs, on a set that is made here."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.support import coloured_set, fast_folder, isolated, run_script, two_encoders  # noqa: F401
from zsvec.encoders import EncoderSet
from zsvec.method.predict.fusion import STRATEGIES

EXPERTS = ("clip:image", "clip:text", "dino:image")
SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_fusion.py"


@pytest.fixture(autouse=True)
def fast_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts keep their stores in temporary folders. That of the test is made before."""
    with fast_folder() as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("compare_fusion", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_fusion", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    return module


@pytest.fixture
def folder() -> Path:
    return coloured_set(3, 2)


def test_a_set_is_embedded_once_and_remembered(script: ModuleType, folder: Path) -> None:
    encoders = two_encoders()
    images = script.embed(folder, EncoderSet(encoders))

    assert images.name == "colours"
    assert {name: list(numbers) for name, numbers in images.references.items()} == {
        "blue": [0, 1, 2],
        "green": [3, 4, 5],
        "red": [6, 7, 8],
    }
    assert [name for _, name in images.photos] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    assert [number for number, _ in images.photos] == list(range(9, 15))
    assert list(images.unknown) == [15, 16]
    assert {name: vectors.shape for name, vectors in images.vectors.items()} == {"clip": (17, 32), "dino": (17, 16)}
    for number in (0, 255, 256, 70_000):
        assert script.number_of(script.pixel(number)) == number
    before = [encoder.images_encoded for encoder in encoders]
    with script.opened(images, images.references) as classifier:
        for category in classifier.categories():
            assert category.references == {"clip:image": 3, "clip:text": 1, "dino:image": 3}
            stored = [
                r.vector for r in classifier.store.stored(category.name) if (r.encoder, r.modality) == ("dino", "image")
            ]
            wanted = images.vectors["dino"][images.references[category.name]]
            np.testing.assert_allclose(sorted(map(list, stored)), sorted(map(list, wanted)), atol=1e-6)
        assert classifier.store.info()["calibration"] == "current"
        found = script.results(classifier, images)
    assert [encoder.images_encoded for encoder in encoders] == before == [17, 17]
    assert found.keys() == {*EXPERTS, *(f"{name}, {how}" for name in STRATEGIES for how in ("fixed", "calibrated"))}
    assert found["dino:image"].top1 == found["transductive, calibrated"].top1 == 1
    for result in found.values():
        assert 0 <= result.top1 <= 1
        assert 0 <= result.ece <= 1
        assert 0 <= result.auroc <= 1


def test_strategies(script: ModuleType, folder: Path) -> None:
    lines = run_script(script, "strategies", folder, "--references", 1, "--references", 3, "--draws", 2, "--json")
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    rows = len(EXPERTS) + 2 * len(STRATEGIES)
    assert [(o["references"], o["draws"]) for o in found] == [(1, 2)] * rows + [(3, 1)] * rows
    assert {o["set"] for o in found} == {"colours"}
    for one in found:
        assert list(one) == ["set", "references", "draws", "name", "top1", "auroc", "ece"]
        assert 0 <= one["top1"]["mean"] <= 1
        assert one["top1"]["std"] >= 0
    best = {(o["references"], o["name"]): o["top1"]["mean"] for o in found}
    assert best[3, "log_linear_views, calibrated"] == 1


def test_strategies_for_people_without_unknown_images(script: ModuleType, folder: Path) -> None:
    for path in (folder / "unknown").iterdir():
        path.unlink()
    (folder / "unknown").rmdir()
    out = run_script(script, "strategies", folder, "--references", 2, "--references", 99, "--draws", 1)
    assert "colours: top-1 % / AUROC / ECE %" in out
    assert "2 references, 1 draw" in out
    assert "99 references" not in out
    assert "transductive, calibrated" in out
    assert "nan" not in out


def test_coverage(script: ModuleType, folder: Path) -> None:
    out = run_script(script, "coverage", folder, "--text-only", 1, "--draws", 2)
    assert "2 categories with images and a text, 1 with a text alone; mean of 2 draws" in out
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    for strategy in STRATEGIES:
        assert len(rows[strategy]) == 8
        assert rows[strategy][1::2] == ["%"] * 4
        assert float(rows[strategy][4]) == float(rows[strategy][6]) == 100
