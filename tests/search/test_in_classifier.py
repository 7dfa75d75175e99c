"""A classifier indexes references on the device of the encoders, with the same predictions on every device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.support import needs_gpu
from tests.support import coloured, fast_folder, isolated, open_classifier  # noqa: F401 - a fixture
from zsvec.classifier import Classifier
from zsvec.encoders import load_encoders
from zsvec.encoders.spec import EncoderSpec
from zsvec.errors import InvalidInputError
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.method.similarities import References
from zsvec.search import torch_index
from zsvec.search.base import Index, IndexSpec
from zsvec.search.torch_index import TorchIndex

COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
VECTORS = {"clip": np.ones((1, 32)), "dino": np.ones((1, 16))}


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, EncoderSpec]:
    weights = tiny.save_vit(tmp_path / "vit.pth")
    return {"vit": EncoderSpec(family="vision", model=tiny.VIT, weights=str(weights), modalities=("image",))}


def test_the_device_of_encoders_is_known(specs: dict[str, EncoderSpec]) -> None:
    assert load_encoders(specs, device="cpu").device == "cpu"


@needs_gpu
def test_encoders_run_on_the_gpu(specs: dict[str, EncoderSpec]) -> None:
    device = load_encoders(specs).device
    vectors = np.full((1, 4), 0.5, dtype=np.float32)
    references = References(("a",), vectors, np.array([0, 1]), np.ones(1, dtype=np.float32), ("1",), ("1",))
    index = torch_index.build(references, IndexSpec("torch", device))
    assert isinstance(index, TorchIndex)
    assert device == index.vectors.device.type != "cpu"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[IndexSpec]:
    """How classifiers had references indexed by torch; the CPU stands for all devices."""
    seen: list[IndexSpec] = []

    def on_the_cpu(references: References, spec: IndexSpec) -> Index:
        seen.append(spec)
        dtype: Any = getattr(torch, spec.dtype)
        return TorchIndex.of(references, device=torch.device("cpu"), dtype=dtype)

    monkeypatch.setattr(torch_index, "build", on_the_cpu)
    return seen


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as opened:
        yield opened


def fill(clf: Classifier) -> None:
    for name in COLOURS:
        clf.add_category(name, texts=[name], images=[coloured(name, seed) for seed in range(3)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_references_are_where_the_encoders_are(built: list[IndexSpec], folder: Path, dtype: Any) -> None:
    with open_classifier(folder, index_dtype=dtype) as clf:
        fill(clf)
        clf.classify(coloured("red", 9))
        clf.encoders.device = "cuda"  # by onnxruntime, where torch may be missing
        clf.classify(coloured("red", 9))
        assert built == []
        clf.encoders.on_torch = True
        clf.classify(coloured("red", 9))
        assert set(built) == {IndexSpec("torch", "cuda", dtype)}


def test_encoders_are_not_loaded_to_know_where_they_run(built: list[IndexSpec], folder: Path) -> None:
    with open_classifier(folder) as clf:
        fill(clf)
    with open_classifier(folder) as clf:
        clf.classify_vectors(VECTORS)
        assert clf._embedder.loaded is None
    assert built == []


def test_the_setting_says_where_references_are(built: list[IndexSpec], folder: Path) -> None:
    with open_classifier(folder, index_device="cpu") as clf:
        fill(clf)
        clf.encoders.device, clf.encoders.on_torch = "cuda", True
        clf.classify(coloured("red", 9))
    assert {spec.device for spec in built} == {"cpu"}
    built.clear()
    with open_classifier(folder, index_device="cuda") as clf:
        clf.classify_vectors(VECTORS)
    assert set(built) == {IndexSpec("torch", "cuda", "float32")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(folder: Path) -> None:
    with open_classifier(folder) as clf:
        fill(clf)
    with open_classifier(folder, index_device="cuda") as clf, pytest.raises(InvalidInputError, match="'cuda'"):
        clf.classify(coloured("red", 9))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_predictions_are_those_of_numpy(folder: Path, aggregation: Any) -> None:
    images = [coloured(name, seed) for name in COLOURS for seed in (20, 21)]
    with open_classifier(folder, aggregation=aggregation) as clf:
        fill(clf)
    for fusion in ("log_linear_views", "transductive", "inverse_entropy"):
        said = []
        for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "float16")):
            chosen = {"index_device": device, "index_dtype": dtype, "fusion": fusion, "aggregation": aggregation}
            with open_classifier(folder, **chosen) as clf:
                said.append(clf.classify(images))
        for plain, *others in zip(*said, strict=True):
            for on_torch in others:
                assert plain.label == on_torch.label
                assert plain.probability == pytest.approx(on_torch.probability, abs=1e-4)
                assert plain.novelty == pytest.approx(on_torch.novelty, abs=1e-4)
                for expert, output in plain.experts.items():
                    got = on_torch.experts[expert]
                    assert [n.source for n in output.neighbors] == [n.source for n in got.neighbors]
                    assert [n.similarity for n in output.neighbors] == pytest.approx(
                        [n.similarity for n in got.neighbors], abs=3e-6
                    )
