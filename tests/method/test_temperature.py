from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import settings

from tests.method.material import METHODS, Vectors, calibrated, clusters, pools, references, unit
from zsvec.method.calibrate.fit import fit_calibration

NAN = np.nan

prop = settings(deadline=None, max_examples=100)


def drawn(spread: float, pairs: int, profile: float = 0.07) -> float:
    """A spread of so many pairs of categories, drawn towards the profile's temperature."""
    return float(spread ** (pairs / (pairs + 20)) * profile ** (20 / (pairs + 20)))


def test_with_one_reference_a_category_the_temperature_is_the_drawn_spread() -> None:
    for aggregation in METHODS:
        # Of wrong categories, a: 0.6, 0; b: 0.6, 0.48; c: 0, 0.48. Variances 0.09, 0.0036 and 0.0576, of mean 0.0504.
        clip: Vectors = {"a": {"1": (1, 0, 0)}, "b": {"2": (0.6, 0.8, 0)}, "c": {"3": (0, 0.6, 0.8)}}
        # 0.8, 0; 0.8, 0.6; 0, 0.6. Variances 0.16, 0.01 and 0.09, of mean 0.26 / 3.
        dino: Vectors = {"a": {"1": (1, 0, 0)}, "b": {"2": (0.8, 0.6, 0)}, "c": {"3": (0, 1, 0)}}
        words: Vectors = {"a": {"t": (1, 0, 0)}, "b": {"t": (0, 1, 0)}, "c": {"t": (0, 0, 1)}}
        made, _ = calibrated({"clip:image": clip, "clip:text": words, "dino:image": dino}, aggregation)
        for expert, of_wrong in (("clip:image", np.sqrt(0.0504)), ("dino:image", np.sqrt(0.26 / 3))):
            fitted, spread = made.experts[expert], drawn(of_wrong, 6)
            assert (fitted.temperature, fitted.spread) == pytest.approx((spread, spread), abs=1e-6)
            assert (fitted.images, fitted.accuracy) == (0, None)
        assert (made.experts["clip:text"].images, made.experts["clip:text"].accuracy) == (3, 1.0)
        for pool in pools(made):
            for expert, coefficients in pool.coefficients.items():
                assert sum(coefficients.values()) * made.experts[expert].spread == pytest.approx(1 / np.sqrt(3))
            assert pool.thresholds == pool.category_thresholds == {}
            assert not pool.learned
        assert (made.revision, made.aggregation, made.images) == (3, aggregation, 3)


def test_wrong_labels_do_not_make_an_expert_diffident() -> None:
    for aggregation in METHODS:
        # Without noise in the fit, wrong labels multiply the temperature.
        rng = np.random.default_rng(3)
        truth = clusters(rng, dict.fromkeys("abcd", 60), 1.2)
        mixed: dict[str, dict[str, Sequence[float]]] = {name: {} for name in truth}
        for name, vectors in truth.items():
            for digest, vector in vectors.items():
                mixed[name if rng.random() > 0.3 else str(rng.choice(list(truth)))][digest] = vector
        clean, noisy = (calibrated({"clip:image": images}, aggregation)[0] for images in (truth, mixed))
        assert noisy.experts["clip:image"].temperature < 2 * clean.experts["clip:image"].temperature
        for before, after in zip(pools(clean), pools(noisy), strict=True):
            assert before.noise < 0.02
            assert after.noise == pytest.approx(0.3, abs=0.1)


def test_with_two_categories_the_spread_is_over_all_images() -> None:
    images: Vectors = {"a": {"1": (1, 0), "2": (0.8, 0.6)}, "b": {"3": (0, 1), "4": (0.6, 0.8)}}
    made, _ = calibrated({"clip:image": images}, "max")  # wrong: 0.6, 0.96, 0.6 and 0.96
    assert made.experts["clip:image"].spread == pytest.approx(drawn(0.18, 2), abs=1e-6)
    assert made.experts["clip:image"].images == 4
    assert made.experts["clip:image"].accuracy == 0.5  # right: 0.8, 0.8, 0.8, 0.8


def test_two_categories_of_one_reference_have_no_spread() -> None:
    for aggregation in METHODS:
        rng = np.random.default_rng(2)
        for _ in range(100):
            made, _ = calibrated({"clip:image": {"a": unit(rng, 1, 3), "b": unit(rng, 1, 3)}}, aggregation)
            assert made.experts["clip:image"].temperature == 0.07


def test_rounding_is_no_spread() -> None:
    # Two pictures, each in both categories: every similarity to the wrong one is 1 up to rounding.
    pictures = {"1": (0, 1), "2": (np.sqrt(0.5), np.sqrt(0.5))}
    made, _ = calibrated({"clip:image": {"a": pictures, "b": pictures}}, "max")
    assert made.experts["clip:image"].spread == 0.07


def test_the_temperature_that_labels_were_drawn_with_is_found() -> None:
    rng = np.random.default_rng(0)
    n, names, temperature = 1500, "abcde", 0.05
    similarity = rng.normal(scale=0.1, size=(n, len(names))).clip(-0.4, 0.4)
    p = np.exp(similarity / temperature)
    labels = [rng.choice(len(names), p=row) for row in p / p.sum(axis=1, keepdims=True)]
    rest = np.eye(n) * np.sqrt(1 - (similarity**2).sum(axis=1, keepdims=True))
    images: dict[str, dict[str, Sequence[float]]] = {name: {} for name in names}
    for i, (label, row) in enumerate(zip(labels, np.hstack([similarity, rest]), strict=True)):
        images[names[label]][f"{i:04d}"] = list(row)
    words: Vectors = {name: {"t": list(row)} for name, row in zip(names, np.eye(n + 5), strict=False)}
    made, _ = calibrated({"clip:image": images, "clip:text": words})
    # The standard error of the log temperature is about 1 / sqrt(1500).
    assert made.experts["clip:text"].temperature == pytest.approx(temperature, rel=0.1)
    assert made.experts["clip:text"].accuracy == pytest.approx(np.mean(similarity.argmax(axis=1) == labels))
    wrong = [np.delete(row, label) for row, label in zip(similarity, labels, strict=True)]
    # Of five categories, 20 pairs: the spread counts as much as the profile.
    expected = np.sqrt(np.sqrt(np.var(wrong, axis=1).mean()) * 0.07)
    assert made.experts["clip:text"].spread == pytest.approx(expected, rel=1e-4)


def test_the_more_pairs_of_categories_the_less_the_profile_says() -> None:
    for n in [3, 5, 12, 40]:
        # Orthogonal images, and texts of which each image is at 0.3 to half of the others and at -0.3 to the rest.
        names = [f"{i:02d}" for i in range(n)]
        rng = np.random.default_rng(n)
        signs = np.where(rng.random((n, n)) < 0.5, 0.1, -0.1) * np.sqrt(4 / n)
        images: Vectors = {name: {name: list(row)} for name, row in zip(names, np.eye(2 * n), strict=False)}
        rest = np.eye(n) * np.sqrt(1 - (signs**2).sum(axis=0))
        words: Vectors = {name: {"t": list(row)} for name, row in zip(names, np.hstack([signs.T, rest]), strict=True)}
        made, _ = calibrated({"clip:image": images, "clip:text": words})
        variances = [np.var(np.delete(signs[i], i)) for i in range(n)]
        expected = drawn(float(np.sqrt(np.mean(variances))), n * (n - 1))
        assert made.experts["clip:text"].spread == pytest.approx(expected, rel=1e-4)


def test_pairs_are_those_that_the_expert_has_seen() -> None:
    # Images of a, b and c; texts of a, b and d. Pairs: a with b and d, b with a and d, c with a, b and d.
    images: Vectors = {name: {f"{name}{i}": list(np.eye(4)[j]) for i in range(4)} for j, name in enumerate("abc")}
    words: Vectors = {"a": {"t": (0.6, 0, 0.8, 0)}, "b": {"t": (0, 0.8, 0, 0.6)}, "d": {"t": (0.8, 0.6, 0, 0)}}
    made, _ = calibrated({"clip:image": images, "clip:text": words})
    # Of wrong texts, a: 0, 0.8; b: 0, 0.6; c: 0.8, 0, 0. However many images there are, the pairs are seven.
    spread = np.sqrt((0.16 + 0.09 + np.var([0.8, 0, 0])) / 3)
    assert made.experts["clip:text"].spread == pytest.approx(drawn(spread, 7), rel=1e-5)


def test_the_quick_start_is_not_overconfident() -> None:
    """'cat' with a text and two images, 'red panda' with a text alone."""
    rng = np.random.default_rng(15)
    profile = {"clip:text": 0.01, "clip:image": 0.07, "dino:image": 0.07}
    for _ in range(20):
        # Both images are about equally near to the text of the red panda: the spread is negligible.
        near = 0.2 + rng.normal(scale=1e-4, size=2)
        clip = {str(i): (0.25, x, np.sqrt(1 - 0.25**2 - x**2)) for i, x in enumerate(near)}
        experts: dict[str, Vectors] = {
            "clip:text": {"cat": {"t": (1, 0, 0)}, "red panda": {"t": (0, 1, 0)}},
            "clip:image": {"cat": clip},
            "dino:image": {"cat": unit(rng, 2, 8)},
        }
        experts["dino:image"] = {"cat": dict(zip(clip, experts["dino:image"]["cat"].values(), strict=True))}
        made = fit_calibration(
            {name: references(vectors) for name, vectors in experts.items()},
            profile,
            revision=1,
            aggregation="top_mean",
            top_m=5,
            false_unknown_rate=0.05,
        )
        assert made is not None
        text = made[0].experts["clip:text"]
        assert 0.01 / 3 <= text.temperature <= 0.01 * 3
        for pool in pools(made[0]):
            assert not pool.learned
            assert pool.coefficients["clip:text"]["top_mean"] == pytest.approx(1 / text.spread / np.sqrt(3))
