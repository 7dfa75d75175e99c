from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.method.material import Vectors, calibrated, clusters, searched, texts
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.scoring import Scoring, rankings
from zsvec.method.similarities import SearchResult

TEMPERATURES = {"clip:text": 0.05, "clip:image": 0.07, "dino:image": 0.07}


@pytest.fixture(scope="module")
def experts() -> Mapping[str, Vectors]:
    """Three; no two cover the same categories."""
    rng = np.random.default_rng(0)
    return {
        "clip:text": texts(rng, "abcd"),
        "clip:image": clusters(rng, {"a": 21, "b": 3, "c": 6}, 0.8),
        "dino:image": clusters(rng, {"a": 21, "b": 3}, 0.8),
    }


@pytest.fixture(scope="module")
def found(experts: Mapping[str, Vectors]) -> SearchResult:
    """Four images near to references of a, and four at random."""
    rng = np.random.default_rng(1)
    queries = {}
    for encoder in ("clip", "dino"):
        near = np.array(list(experts[f"{encoder}:image"]["a"].values()))[:4]
        rows = np.concatenate([near + 0.05 * rng.normal(size=near.shape), rng.normal(size=near.shape)])
        queries[encoder] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return searched(experts, queries, calibration=calibrated(experts, false_unknown_rate=0.3)[0])


# ---- temperatures and calibration


def test_a_fixed_temperature_goes_before_a_calibrated_one_and_that_before_the_default(found: SearchResult) -> None:
    scoring = Scoring(temperatures={**TEMPERATURES, "new:image": 0.2}, fixed_temperatures={"clip:image": 0.03})
    assert found.calibration is not None
    fitted = {name: expert.temperature for name, expert in found.calibration.experts.items()}
    assert scoring.chosen_temperatures(None) == {**TEMPERATURES, "new:image": 0.2, "clip:image": 0.03}
    assert scoring.chosen_temperatures(found.calibration) == {
        "clip:text": fitted["clip:text"],
        "clip:image": 0.03,
        "dino:image": fitted["dino:image"],
        "new:image": 0.2,
    }


def test_a_calibration_is_used_where_it_fits(found: SearchResult) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"calibrated": False}, False),
        ({"aggregation": "mean"}, False),
        ({"top_m": 4}, False),
    ]
    for options, used in cases:
        scoring = Scoring(temperatures=TEMPERATURES, **options)
        assert scoring.calibration(found) is (found.calibration if used else None)
        for stale in (False, True):
            for prediction in scoring.predict(replace(found, stale=stale), list("abcdefgh"), 1):
                assert prediction.calibration == ("none" if not used else "stale" if stale else "current")
                assert (prediction.novelty is not None) == used


# ---- predictions


@pytest.mark.parametrize("unknown_above", [None, 0.0])
def test_predictions_equal_the_scores(found: SearchResult, unknown_above: float | None) -> None:
    for fusion in STRATEGIES:
        scoring = Scoring(temperatures=TEMPERATURES, fusion=fusion, unknown_above=unknown_above)
        scores, predictions = scoring.scores(found), scoring.predict(found, list("abcdefgh"), 2)
        assert [p.source for p in predictions] == list("abcdefgh")
        assert {p.unknown for p in predictions} == ({True, False} if unknown_above is None else {True})
        for i, prediction in enumerate(predictions):
            best = np.argsort(-scores.fused[i], kind="stable")[:2]
            assert prediction.ranking == tuple((found.categories[c], scores.fused[i, c]) for c in best)
            assert (prediction.nearest, prediction.probability) == prediction.ranking[0]
            assert prediction.unknown == bool(scores.novelty[i] > scores.threshold[i]) == bool(scores.unknown[i])
            assert prediction.label == (None if prediction.unknown else prediction.nearest)
            assert (prediction.novelty, prediction.distance) == (scores.novelty[i], scores.distance[i])
            weights = [expert.weight for expert in prediction.experts.values()]
            np.testing.assert_allclose(weights, scores.confidence[:, i] / scores.confidence[:, i].sum())
            for expert, output in zip(found.experts, prediction.experts.values(), strict=True):
                assert output.neighbors == expert.nearest[i]
                assert {name for name, _ in output.ranking} <= {found.categories[c] for c in expert.coverage}


def test_rankings_are_of_some_categories_and_of_equal_ones_the_first_by_name() -> None:
    p = np.array([[0.1, 0.4, 0.1, 0.4], [0.7, 0.1, 0.2, 0.0]])
    assert rankings(p, np.arange(4), "abcd", 3) == [
        (("b", 0.4), ("d", 0.4), ("a", 0.1)),
        (("a", 0.7), ("c", 0.2), ("b", 0.1)),
    ]
    assert rankings(p, np.array([0, 2]), "abcd", 9) == [(("a", 0.1), ("c", 0.1)), (("a", 0.7), ("c", 0.2))]
