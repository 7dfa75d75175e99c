from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest

from tests.method.material import Vectors, calibrated, clusters, references, searched, texts
from zsvec.method.calibration import Calibration
from zsvec.method.predict import opinion_pool as module
from zsvec.method.predict.opinion_pool import pooled_evidence
from zsvec.method.predict.scoring import Scoring

NAMES = "abcdef"


@pytest.fixture(scope="module")
def experts() -> Mapping[str, Vectors]:
    rng = np.random.default_rng(1)
    return {"clip:image": clusters(rng, dict.fromkeys(NAMES, 200), 1.0), "clip:text": texts(rng, NAMES)}


@pytest.fixture(scope="module")
def made(experts: Mapping[str, Vectors]) -> Calibration:
    return calibrated(experts)[0]


def evidence(experts: Mapping[str, Vectors], made: Calibration, queries: np.ndarray) -> np.ndarray:
    assert made.classwise
    stored = {name: references(vectors) for name, vectors in experts.items()}
    names, found = pooled_evidence(stored, {"clip": queries}, made.classwise, made)
    assert names == list(NAMES)
    return found


def images(n: int) -> np.ndarray:
    rows = np.random.default_rng(2).normal(size=(n, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 5000, 10**9])
def test_pooled_evidence_equals_a_search(
    experts: Mapping[str, Vectors], made: Calibration, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    said = np.exp(evidence(experts, made, images(9)))
    scores = Scoring(temperatures=dict.fromkeys(experts, 0.07)).scores(
        searched(experts, {"clip": images(9)}, calibration=made)
    )
    np.testing.assert_allclose(said / said.sum(axis=1, keepdims=True), scores.fused, rtol=1e-3)


def test_memory_does_not_grow_with_images_times_references(
    experts: Mapping[str, Vectors], made: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2**16)
    queries = images(4000)
    tracemalloc.start()
    evidence(experts, made, queries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6  # 4,000 times 1,200 cosines take 19e6 bytes
