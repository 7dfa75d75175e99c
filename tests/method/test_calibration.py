from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.method.test_leave_one_out import METHODS, Vectors, references, stores, unit
from zsvec import calibration as module
from zsvec.method.calibration import Calibration, LogLinear, expert_evidence
from zsvec.method.fit import expected_calibration_error, quality
from zsvec.method.fusion import log_linear, pattern
from zsvec.method.leave_one_out import LeftOut
from zsvec.method.novelty import novelty
from zsvec.method.scoring import Scoring

NAN = np.nan

prop = settings(deadline=None, max_examples=100)


def calibrated(
    experts: Mapping[str, Vectors], aggregation: str = "top_mean", false_unknown_rate: float = 0.05, top_m: int = 5
) -> tuple[Calibration, LeftOut]:
    made = module.calibrate(
        {name: references(of) for name, of in experts.items()},
        dict.fromkeys(experts, 0.07),
        revision=3,
        aggregation=aggregation,
        top_m=top_m,
        false_unknown_rate=false_unknown_rate,
    )
    assert made is not None
    return made


def clusters(rng: np.random.Generator, sizes: Mapping[str, int], signal: float, dim: int = 16) -> Vectors:
    """Unit vectors about a random centre for each category; a signal of 0 is noise alone."""
    out: dict[str, Mapping[str, Sequence[float]]] = {}
    for name, n in sizes.items():
        vectors = signal * rng.normal(size=dim) + rng.normal(size=(n, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        out[name] = {f"{name}{i:03d}": list(vector) for i, vector in enumerate(vectors)}
    return out


def texts(rng: np.random.Generator, names: str, dim: int = 16) -> Vectors:
    return {name: unit(rng, 1, dim) for name in names}


def drawn(spread: float, pairs: int, profile: float = 0.07) -> float:
    """A spread of so many pairs of categories, drawn towards the profile's temperature."""
    return float(spread ** (pairs / (pairs + 20)) * profile ** (20 / (pairs + 20)))


def pools(made: Calibration) -> tuple[LogLinear, LogLinear]:
    return made.plain, made.views


# ---- temperature


@pytest.mark.parametrize("aggregation", METHODS)
def test_with_one_reference_a_category_the_temperature_is_the_drawn_spread(aggregation: str) -> None:
    # Of wrong categories, a: 0.6, 0; b: 0.6, 0.48; c: 0, 0.48. Variances 0.09, 0.0036 and 0.0576, of mean 0.0504.
    clip: Vectors = {"a": {"1": (1, 0, 0)}, "b": {"2": (0.6, 0.8, 0)}, "c": {"3": (0, 0.6, 0.8)}}
    # 0.8, 0; 0.8, 0.6; 0, 0.6. Variances 0.16, 0.01 and 0.09, of mean 0.26 / 3.
    dino: Vectors = {"a": {"1": (1, 0, 0)}, "b": {"2": (0.8, 0.6, 0)}, "c": {"3": (0, 1, 0)}}
    words: Vectors = {"a": {"t": (1, 0, 0)}, "b": {"t": (0, 1, 0)}, "c": {"t": (0, 0, 1)}}
    made, _ = calibrated({"clip:image": clip, "clip:text": words, "dino:image": dino}, aggregation)
    for expert, of_wrong in (("clip:image", np.sqrt(0.0504)), ("dino:image", np.sqrt(0.26 / 3))):
        of, spread = made.experts[expert], drawn(of_wrong, 6)
        assert (of.temperature, of.spread) == pytest.approx((spread, spread), abs=1e-6)
        assert (of.images, of.accuracy) == (0, None)
    assert (made.experts["clip:text"].images, made.experts["clip:text"].accuracy) == (3, 1.0)
    for pool in pools(made):
        for expert, coefficients in pool.coefficients.items():
            assert sum(coefficients.values()) * made.experts[expert].temperature == pytest.approx(1 / np.sqrt(3))
        assert pool.thresholds == pool.category_thresholds == {}
        assert not pool.learned
    assert (made.revision, made.aggregation, made.images) == (3, aggregation, 3)


def test_with_two_categories_the_spread_is_over_all_images() -> None:
    images: Vectors = {"a": {"1": (1, 0), "2": (0.8, 0.6)}, "b": {"3": (0, 1), "4": (0.6, 0.8)}}
    made, _ = calibrated({"clip:image": images}, "max")  # wrong: 0.6, 0.96, 0.6 and 0.96
    assert made.experts["clip:image"].spread == pytest.approx(drawn(0.18, 2), abs=1e-6)
    assert made.experts["clip:image"].images == 4
    assert made.experts["clip:image"].accuracy == 0.5  # right: 0.8, 0.8, 0.8, 0.8


@pytest.mark.parametrize("aggregation", METHODS)
def test_two_categories_of_one_reference_have_no_spread(aggregation: str) -> None:
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
    # Of its logarithm, the standard error is about 1 / sqrt(1500).
    assert made.experts["clip:text"].temperature == pytest.approx(temperature, rel=0.1)
    assert made.experts["clip:text"].accuracy == pytest.approx(np.mean(similarity.argmax(axis=1) == labels))
    wrong = [np.delete(row, label) for row, label in zip(similarity, labels, strict=True)]
    # Of five categories, 20 pairs: the spread counts as much as the profile.
    expected = np.sqrt(np.sqrt(np.var(wrong, axis=1).mean()) * 0.07)
    assert made.experts["clip:text"].spread == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [3, 5, 12, 40])
def test_the_more_pairs_of_categories_the_less_the_profile_says(n: int) -> None:
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
        # The two images are nearly as near to the text of the red panda: their spread is next to nothing.
        near = 0.2 + rng.normal(scale=1e-4, size=2)
        clip = {str(i): (0.25, x, np.sqrt(1 - 0.25**2 - x**2)) for i, x in enumerate(near)}
        experts: dict[str, Vectors] = {
            "clip:text": {"cat": {"t": (1, 0, 0)}, "red panda": {"t": (0, 1, 0)}},
            "clip:image": {"cat": clip},
            "dino:image": {"cat": unit(rng, 2, 8)},
        }
        experts["dino:image"] = {"cat": dict(zip(clip, experts["dino:image"]["cat"].values(), strict=True))}
        made = module.calibrate(
            {name: references(of) for name, of in experts.items()},
            profile,
            revision=1,
            aggregation="top_mean",
            top_m=5,
            false_unknown_rate=0.05,
        )
        assert made is not None
        of = made[0].experts["clip:text"]
        assert 0.01 / 3 <= of.temperature <= 0.01 * 3
        for pool in pools(made[0]):
            assert not pool.learned
            assert pool.coefficients["clip:text"]["top_mean"] == pytest.approx(1 / of.temperature / np.sqrt(3))


@pytest.mark.parametrize("others", [0, 1])
def test_slopes_are_learned_from_images_of_two_categories_at_least(others: int) -> None:
    # The one or two images of b: with one, nothing but images of a can be left out.
    rng = np.random.default_rng(16)
    images = clusters(rng, {"a": 10, "b": 1 + others}, 1.0)
    made, _ = calibrated({"clip:image": images})
    for pool in pools(made):
        assert pool.learned == bool(others)
    if not others:
        assert sum(made.plain.coefficients["clip:image"].values()) == pytest.approx(
            1 / made.experts["clip:image"].temperature
        )


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (0, 2048),
        (10, 2048),
        (976, 2048),  # 2,000,000 / 976 = 2049.2
        (1000, 2000),
        (4000, 500),
        (10**5, 256),
    ],
)
def test_the_more_categories_the_fewer_images_are_left_out(categories: int, expected: int) -> None:
    assert module.largest_sample(categories) == expected


def test_as_many_images_are_left_out_as_the_sample_has(monkeypatch: pytest.MonkeyPatch) -> None:
    images = clusters(np.random.default_rng(17), dict.fromkeys("abcd", 10), 1.0)
    monkeypatch.setattr(module, "_LARGEST_TABLE", 100)
    monkeypatch.setattr(module, "_SMALLEST_SAMPLE", 8)
    made, sample = calibrated({"clip:image": images})
    assert made.images == len(sample.labels) == 25


# ---- weights


@pytest.mark.parametrize("aggregation", METHODS)
def test_a_good_expert_weighs_more_than_noise(aggregation: str) -> None:
    rng = np.random.default_rng(4)
    sizes = dict.fromkeys("abcd", 15)
    experts = {"good:image": clusters(rng, sizes, 1.0), "noise:image": clusters(rng, sizes, 0.0)}
    made, sample = calibrated(experts, aggregation)
    for pool in pools(made):
        weight = {e: sum(pool.coefficients[e].values()) * made.experts[e].spread for e in experts}
        assert weight["good:image"] > 2 * weight["noise:image"] > 0
        found = quality(pool, sample)
        assert found is not None
        assert found.top1 > 0.9
    assert (made.experts["good:image"].accuracy or 0) > 0.9 > 0.6 > (made.experts["noise:image"].accuracy or 0)


def test_an_expert_that_is_there_twice_counts_once() -> None:
    images = clusters(np.random.default_rng(14), dict.fromkeys("abc", 200), 0.5)
    once, _ = calibrated({"clip:image": images})
    twice, _ = calibrated({"clip:image": images, "copy:image": images})
    for single, double in zip(pools(once), pools(twice), strict=True):
        shares = [sum(of.values()) for of in double.coefficients.values()]
        assert shares[0] == pytest.approx(shares[1], rel=1e-3)
        assert sum(shares) == pytest.approx(sum(single.coefficients["clip:image"].values()), rel=0.1)
        assert single.learned
        assert double.learned


def test_the_other_view_is_used_where_it_differs() -> None:
    rng = np.random.default_rng(5)
    made, _ = calibrated({"clip:image": clusters(rng, {"a": 4, "b": 4}, 1.0), "clip:text": texts(rng, "ab")})
    assert made.plain.coefficients["clip:image"].keys() == {"top_mean"}
    assert made.views.coefficients["clip:image"].keys() == {"top_mean", "prototype"}
    assert made.views.coefficients["clip:text"].keys() == {"top_mean"}
    assert module.other_view("prototype") == "top_mean"


def test_uncalibrated_experts_have_equal_shares() -> None:
    pool = module.uncalibrated({"a:image": 0.05, "a:text": 0.01, "b:image": 0.1, "c:image": 0.5}, "mean")
    assert [of["mean"] for of in pool.coefficients.values()] == pytest.approx([10, 50, 5, 1])


# ---- experts of few categories


def test_an_expert_of_one_category_has_nothing_to_be_tried_on() -> None:
    rng = np.random.default_rng(6)
    clip = clusters(rng, {"a": 5, "b": 5}, 1.0)
    made, _ = calibrated({"clip:image": clip, "dino:image": {"a": clip["a"]}})
    assert made.experts["dino:image"] == module.ExpertCalibration(0.07, 0.07, 0, None)
    assert made.experts["clip:image"].images == 10


@pytest.mark.parametrize("alone", ["image", "text"])
def test_the_threshold_of_a_category_that_alone_has_an_expert(alone: str) -> None:
    rng = np.random.default_rng(7)
    clip = clusters(rng, dict.fromkeys("abc", 25), 1.0)
    experts: dict[str, Vectors] = {"clip:image": clip, "dino:image": {"a": clip["a"]}}
    if alone == "text":
        experts = {"clip:image": {"a": clip["a"]}, "clip:text": texts(rng, "abc")}
    made, sample = calibrated(experts, false_unknown_rate=0.1)
    for pool in pools(made):
        said = log_linear(
            expert_evidence(pool.coefficients, sample.views)[:, sample.labels == 0], list(sample.views), pool.neutral
        )
        for threshold in (pool.thresholds["+".join(sorted(experts))], pool.category_thresholds["a"]):
            assert np.count_nonzero(said.max(axis=1) < threshold) == 3  # position 2.4 of 0 to 24


def test_texts_of_an_encoder_without_images_keep_their_temperature() -> None:
    rng = np.random.default_rng(8)
    images = clusters(rng, dict.fromkeys("ab", 5), 1.0)
    made, sample = calibrated({"siglip:text": texts(rng, "ab"), "dino:image": images})
    assert made.experts["siglip:text"] == module.ExpertCalibration(0.07, 0.07, 0, None)
    assert made.experts["dino:image"].images == 10
    assert quality(made.plain, sample) is None


@pytest.mark.parametrize(
    "experts",
    [
        {},
        {"clip:text": {"a": {"t": (1, 0)}, "b": {"t": (0, 1)}}},
        {"clip:image": {"a": {"1": (1, 0), "2": (0, 1)}}, "clip:text": {"a": {"t": (0, 1)}}},
    ],
)
def test_no_images_or_one_category(experts: dict[str, Vectors]) -> None:
    of = {name: references(vectors) for name, vectors in experts.items()}
    options: dict[str, Any] = {"revision": 1, "aggregation": "mean", "top_m": 5, "false_unknown_rate": 0.05}
    assert module.calibrate(of, dict.fromkeys(experts, 0.07), **options) is None


@prop
@given(stores(), st.sampled_from(METHODS), st.integers(1, 3))
def test_any_store_gives_finite_numbers(experts: dict[str, Vectors], aggregation: str, top_m: int) -> None:
    made, sample = calibrated(experts, aggregation, top_m=top_m)
    json.dumps(made.to_dict(), allow_nan=False)
    assert made.experts.keys() == made.plain.coefficients.keys() == made.views.coefficients.keys() == experts.keys()
    for expert, of in made.experts.items():
        assert of.temperature > 1e-4
        for pool in pools(made):
            assert 0 < sum(pool.coefficients[expert].values()) < 1e5
    for pool in pools(made):
        found = quality(pool, sample)
        assert found is None or (0 <= found.top1 <= 1 and 0 <= found.ece <= 1 and found.cross_entropy >= 0)


@prop
@given(stores(), st.sampled_from(METHODS))
def test_order_of_experts_does_not_matter(experts: dict[str, Vectors], aggregation: str) -> None:
    before, after = (calibrated(of, aggregation)[0] for of in (experts, dict(reversed(experts.items()))))
    for expert in experts:
        assert after.experts[expert].temperature == pytest.approx(before.experts[expert].temperature, rel=1e-3)
        for was, now in zip(pools(before), pools(after), strict=True):
            assert now.coefficients[expert] == pytest.approx(was.coefficients[expert], rel=1e-2)
            assert now.neutral.keys() == was.neutral.keys()


# ---- thresholds


@pytest.mark.parametrize(("false_unknown_rate", "beyond"), [(0.05, 4), (0.1, 8), (0.5, 37), (0.001, 1)])
def test_the_wanted_fraction_of_left_out_images_is_beyond_the_threshold(false_unknown_rate: float, beyond: int) -> None:
    # Positions 3.7, 7.4, 37 and 0.074 of 0 to 74.
    rng = np.random.default_rng(9)
    experts = {"clip:image": clusters(rng, dict.fromkeys("abc", 25), 0.7), "clip:text": texts(rng, "abc")}
    made, sample = calibrated(experts, false_unknown_rate=false_unknown_rate)
    for pool in pools(made):
        said = log_linear(expert_evidence(pool.coefficients, sample.views), list(sample.views), pool.neutral).max(
            axis=1
        )
        (threshold,) = pool.thresholds.values()
        assert np.count_nonzero(novelty(said, np.full(75, threshold)) > 0.5) == beyond


def test_the_threshold_of_categories_without_images_is_as_if_others_had_none_either() -> None:
    rng = np.random.default_rng(10)
    images = clusters(rng, dict.fromkeys("abc", 25), 0.7)
    made, sample = calibrated({"clip:image": images, "clip:text": texts(rng, "abcd")}, false_unknown_rate=0.1)
    for pool in pools(made):
        assert pool.thresholds.keys() == {"clip:image+clip:text", "clip:text"}
        beyond = 0
        for i, label in enumerate(sample.labels):
            evidence = expert_evidence(pool.coefficients, sample.views)[:, [i]]
            evidence[0, 0, label] = NAN
            beyond += log_linear(evidence, list(sample.views), pool.neutral).max() < pool.thresholds["clip:text"]
        assert beyond == 8  # position 7.4 of 0 to 74


def test_a_threshold_takes_twenty_images() -> None:
    rng = np.random.default_rng(11)
    for sizes, everyone, own in [
        ({"a": 20, "b": 19}, True, {"a"}),
        ({"a": 18, "b": 2}, True, set()),
        ({"a": 18, "b": 1}, False, set()),
        ({"a": 19, "b": 1}, False, set()),  # the only one of b is not found by another
    ]:
        made, _ = calibrated({"clip:image": clusters(rng, sizes, 1.0)})
        for pool in pools(made):
            assert ("clip:image" in pool.thresholds) == everyone
            assert pool.category_thresholds.keys() == own


def test_novelty_is_one_half_at_the_threshold_and_falls_with_evidence() -> None:
    got = novelty(np.array([2.0, 2.0 + np.log(3), 2.0 - np.log(3), -1e4, 1e4]), np.full(5, 2.0))
    np.testing.assert_allclose(got, [0.5, 0.25, 0.75, 1.0, 0.0], atol=1e-12)


# ---- neutral evidence


@pytest.mark.parametrize("covered", ["abcd", "ab"])
def test_the_likelihood_ratio_of_a_wrong_category_is_one_on_average(covered: str) -> None:
    rng = np.random.default_rng(12)
    clip = clusters(rng, dict.fromkeys("abcd", 6), 0.7)
    dino = clusters(rng, dict.fromkeys(covered, 6), 0.7)
    made, sample = calibrated({"clip:image": clip, "clip:text": texts(rng, "abcd"), "dino:image": dino})
    for pool in pools(made):
        assert {"clip:image", "clip:text", "dino:image", "clip:image+clip:text+dino:image"} == pool.neutral.keys()
        evidence = dict(zip(sample.views, expert_evidence(pool.coefficients, sample.views), strict=True))
        for name, neutral in pool.neutral.items():
            ratios = []
            for i, label in enumerate(sample.labels):
                for c in range(len(sample.categories)):
                    said = sum(evidence[expert][i, c] for expert in name.split("+"))
                    if c != label and not np.isnan(said):
                        ratios.append(np.exp(said - neutral))
            assert len(ratios) == (72 if "dino" not in name or covered == "abcd" else 12)
            assert np.mean(ratios) == pytest.approx(1.0)


# ---- keeping it


@pytest.fixture(scope="module")
def made() -> Calibration:
    rng = np.random.default_rng(13)
    return calibrated({"clip:image": clusters(rng, {"a": 20, "b": 3}, 1.0), "clip:text": texts(rng, "abc")})[0]


def test_what_is_kept_is_read_again(made: Calibration) -> None:
    assert made.plain.thresholds
    assert made.views.category_thresholds
    assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_what_a_calibration_fits(made: Calibration) -> None:
    assert made.fits(["clip:image"], "top_mean", 5)
    assert not made.fits(["clip:image", "dino:image"], "top_mean", 5)
    assert not made.fits(["clip:image"], "mean", 5)
    assert not made.fits(["clip:image"], "top_mean", 4)


@pytest.mark.parametrize(
    ("aggregation", "any_m"), [("top_mean", False), ("prototype", False), ("max", True), ("mean", True)]
)
def test_how_many_references_are_averaged_matters_where_they_are(
    made: Calibration, aggregation: str, any_m: bool
) -> None:
    # The other view of the prototype is the mean of the nearest.
    of = replace(made, aggregation=aggregation)
    assert of.fits(["clip:image"], aggregation, 5)
    assert of.fits(["clip:image"], aggregation, 4) == any_m


def test_what_another_version_keeps_is_not_read(made: Calibration) -> None:
    values = made.to_dict()
    later = {"format": values.pop("format") + 1, "experts": 3}
    for other in ({}, values, later, {"format": None}):
        assert Calibration.from_dict(other) is None


# ---- expected calibration error


@pytest.mark.parametrize(
    ("probabilities", "right", "bins", "expected"),
    [
        ([1.0, 1.0], [True, True], 15, 0.0),
        ([1.0, 1.0], [True, False], 15, 0.5),
        ([0.75, 0.75, 0.75, 0.75], [True, True, True, False], 15, 0.0),
        # |1.7 - 1| in the last bin, |0.3 - 1| in that of 0.3
        ([0.85, 0.85, 0.3], [True, False, True], 5, 1.4 / 3),
        # A bin has its upper edge: 0.1 and 0.2 are together, 0.3 is not.
        ([0.1, 0.2], [False, True], 5, 0.35),
        ([0.3, 0.2], [False, True], 5, (0.3 + 0.8) / 2),
        ([0.0, 0.1], [False, False], 10, 0.05),
        ([0.9, 1.0], [False, True], 1, 0.45),
    ],
)
def test_expected_calibration_error_by_hand(
    probabilities: list[float], right: list[bool], bins: int, expected: float
) -> None:
    assert expected_calibration_error(probabilities, right, bins) == pytest.approx(expected, abs=1e-12)


def test_categories_that_other_experts_know_have_thresholds_of_their_own_however_many_experts() -> None:
    names = [f"e{i}:image" for i in range(70)]
    known = np.ones((70, 2), dtype=bool)
    known[64:, 1] = False
    pool = LogLinear({}, thresholds={pattern(names, known[:, 0]): 5.0, pattern(names, known[:, 1]): 1.0})
    found: Any = SimpleNamespace(experts=[SimpleNamespace(name=name) for name in names], categories=("a", "b"))
    evidence = np.array([[2.0, 0.0], [0.0, 2.0]])  # of an image of each: below the one threshold, above the other
    novel, limit = Scoring(temperatures={})._novelty(found, pool, evidence, known)
    assert novel[0] > limit[0]
    assert novel[1] < limit[1]
