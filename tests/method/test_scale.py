from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.method.material import calibrated, clusters, pools, searched, texts
from zsvec.method.calibrate.coefficients import fit_scale, scaled
from zsvec.method.predict.scoring import Scoring


def two(n: int, right: float, nats: float) -> tuple[np.ndarray, np.ndarray]:
    """Images of two categories, told apart by so many nats, of which a fraction is right."""
    labels = np.arange(n) % 2
    said = np.where(np.arange(n) < round(right * n), labels, 1 - labels)
    return nats * np.eye(2)[said], labels


def test_with_many_images_probabilities_equal_accuracy() -> None:
    for right in [0.6, 0.75, 0.9]:
        evidence, labels = two(20_000, right, 3.0)
        assert fit_scale(evidence, labels) == pytest.approx(np.log(right / (1 - right)) / 3, rel=0.03)


def test_few_images_change_little() -> None:
    factors = [fit_scale(*two(n, 0.6, 3.0)) for n in (5, 20, 100, 10_000)]
    assert factors == sorted(factors, reverse=True)
    assert 0.6 < factors[0] < 1
    assert factors[-1] < 0.2


def test_where_all_are_right_evidence_grows_but_not_without_end() -> None:
    assert 1 < fit_scale(*two(20, 1.0, 3.0)) < 2
    assert 1 / 20 <= fit_scale(*two(20, 0.0, 3.0)) < 0.5


def test_scale_ignores_uncovered_categories() -> None:
    evidence, labels = two(100, 0.75, 3.0)
    assert fit_scale(np.hstack([evidence, np.full((100, 1), -np.inf)]), labels) == pytest.approx(
        fit_scale(evidence, labels)
    )


def test_scaling_keeps_unknown_images_and_scales_probabilities() -> None:
    rng = np.random.default_rng(1)
    # Above 100 references, no prior limits the probabilities.
    experts = {"clip:image": clusters(rng, dict.fromkeys("abc", 34), 0.9), "clip:text": texts(rng, "abcd")}
    made, _ = calibrated(experts, false_unknown_rate=0.3)
    queries = rng.normal(size=(40, 16)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    half = scaled(made, 0.5)
    assert half.scale == 0.5
    assert scaled(half, 2.0).scale == 1.0
    for one, other in zip(pools(made), pools(half), strict=True):
        assert other.neutral == pytest.approx({name: 0.5 * value for name, value in one.neutral.items()})
        assert other.thresholds == pytest.approx({name: 0.5 * value for name, value in one.thresholds.items()})
        assert other.quantiles.keys() == one.quantiles.keys()
    early = replace(made, plain=replace(made.plain, early={"clip:text": [3.0, 0.25]}))
    assert scaled(early, 0.5).plain.early == {"clip:text": [1.5, 0.25]}
    scoring = Scoring(temperatures=dict.fromkeys(experts, 0.07))
    before, after = (
        scoring.scores(searched(experts, {"clip": queries}, calibration=made_now)) for made_now in (made, half)
    )
    assert 0 < before.unknown.sum() < 40
    np.testing.assert_array_equal(before.unknown, after.unknown)
    np.testing.assert_array_equal(before.rank, after.rank)
    logits = np.log(before.fused)
    expected = np.exp(0.5 * logits)
    np.testing.assert_allclose(after.fused, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)


def test_evidence_of_means_is_scaled_as_all_other_and_no_answer_changes() -> None:
    rng = np.random.default_rng(1)
    names = "abcdefgh"
    # Above 100 references, no prior limits the probabilities.
    images = {name: clusters(rng, dict.fromkeys(names, 13), 0.8) for name in ("clip:image", "dino:image")}
    experts = {**images, "clip:text": texts(rng, names)}
    made, _ = calibrated(experts)
    queries = {name: rng.normal(size=(300, 16)) for name in ("clip", "dino")}
    queries = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in queries.items()}
    scoring = Scoring(temperatures=dict.fromkeys(made.experts, 0.07))

    def fused(factor: float) -> np.ndarray:
        scores = scoring.scores(searched(experts, queries, calibration=scaled(made, factor)))
        assert scores.fusion == "log_linear_gda"
        return scores.fused

    for factor in (0.2, 3.0):
        expected = fused(1.0) ** factor
        np.testing.assert_allclose(fused(factor), expected / expected.sum(axis=1, keepdims=True), atol=1e-9)
