from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from zsvec.method.calibrate.coefficients import WIDEST, least_cross_entropy


def drawn(rng: np.random.Generator, logits: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """A category for each row, drawn by softmax, or evenly with the probability of noise."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = (1 - noise) * p / p.sum(axis=1, keepdims=True) + noise / p.shape[1]
    return np.array([rng.choice(len(row), p=row) for row in p])


def test_weights_offset_and_noise_that_labels_were_drawn_with_are_found() -> None:
    for noise in [0.0, 0.2, 0.5]:
        rng = np.random.default_rng(1)
        features = rng.normal(size=(3, 20_000, 5)) * np.array([2.0, 3.0, 1.0])[:, None, None]
        truth = drawn(rng, np.tensordot([1.5, 0.5, -0.8], features, axes=1), noise)
        positive, free, found = least_cross_entropy(features, truth, np.ones(2), 8.0)
        assert positive == pytest.approx([1.5, 0.5], rel=0.1)
        assert free == pytest.approx([-0.8], rel=0.15)
        assert found == pytest.approx(noise, abs=0.02)


def test_the_slopes_are_those_of_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    features, truth = rng.normal(size=(3, 30, 4)), rng.integers(4, size=30)
    tried = 0

    def checked(cost, first, **options):  # type: ignore[no-untyped-def]
        nonlocal tried
        for _ in range(20):
            at = first + rng.normal(size=len(first))
            np.testing.assert_allclose(cost(at)[1], approx_fprime(at, lambda x: cost(x)[0]), rtol=1e-4, atol=1e-4)
            tried += 1
        return minimize(cost, first, **options)

    monkeypatch.setattr("scipy.optimize.minimize", checked)
    least_cross_entropy(features, truth, np.ones(2), 8.0)
    assert tried == 60


def test_many_wrong_labels_are_not_taken_for_weak_evidence() -> None:
    # Two explanations; a search that begins without noise ends at small weights for 4 of these 10 seeds.
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shown = rng.integers(24, size=240)
        evidence = rng.normal(size=(1, 240, 24))
        evidence[0, np.arange(240), shown] += 8
        labels = np.where(rng.random(240) < 0.6, rng.integers(24, size=240), shown)
        (weight,), _, noise = least_cross_entropy(evidence, labels, np.ones(1), 8.0)
        assert noise > 0.4
        assert weight > 0.7


def test_categories_weigh_the_same_however_many_images_they_have() -> None:
    # Of a, 900 images with right evidence; of b, 100 with wrong evidence: half of the weight each.
    evidence = np.zeros((1, 1000, 2))
    evidence[0, :, 0] = 1.0
    truth = np.repeat([0, 1], [900, 100])
    (uneven,), _, _ = least_cross_entropy(evidence, truth, np.ones(1), 8.0)
    (even,), _, _ = least_cross_entropy(evidence[:, :1000], np.repeat([0, 1], 500), np.ones(1), 8.0)
    assert uneven == pytest.approx(even, rel=1e-2)
    assert uneven < 0.5


def test_few_difficult_images_are_not_taken_for_wrong_labels() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        evidence = rng.normal(size=(1, 100, 10))
        _, _, noise = least_cross_entropy(evidence, drawn(rng, evidence[0]), np.ones(1), 8.0)
        assert noise < 1e-3, seed


def test_difficult_images_of_rare_categories_are_few_however_much_each_weighs() -> None:
    # If each image of a rare category counted as twenty, five of these stores would have wrong labels.
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        evidence = rng.normal(size=(1, 600, 6))
        truth = drawn(rng, evidence[0])
        kept = np.concatenate([np.flatnonzero(truth == c)[: 60 if c < 3 else 3] for c in range(6)])
        found.append(least_cross_entropy(evidence[:, kept], truth[kept], np.ones(1), 8.0)[2])
    assert np.count_nonzero(np.array(found) > 1e-3) <= 2


def test_nothing_to_learn_leaves_the_priors() -> None:
    positive, free, noise = least_cross_entropy(np.zeros((3, 50, 4)), np.arange(50) % 4, np.array([0.3, 2.0]), 8.0)
    assert positive == pytest.approx([0.3, 2.0])
    assert free == pytest.approx([0.0])
    assert noise < 1e-3


def test_a_weight_stays_within_its_bounds() -> None:
    evidence = np.eye(2)[np.arange(400) % 2][None]
    (weight,), _, _ = least_cross_entropy(evidence, np.arange(400) % 2, np.array([1e-3]), 8.0)
    assert weight <= 1e-3 * WIDEST * (1 + 1e-9)
