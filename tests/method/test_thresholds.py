from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.method.material import calibrated, clusters, pools, texts
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibrate.thresholds import balanced_neutral, enough, fewest, quantile
from zsvec.method.calibration import Calibration
from zsvec.method.predict.novelty import novelty
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear
from zsvec.types import MAX_IMAGES, ThresholdProgress

NAN = np.nan

prop = settings(deadline=None, max_examples=100)


def test_the_wanted_fraction_of_left_out_images_is_beyond_the_threshold() -> None:
    for false_unknown_rate, beyond in [(0.05, 3), (0.1, 7), (0.5, 37), (1 / 76, 0)]:
        # The thresholds are at ranks 3.8, 7.6, 38 and 1 of 75: as many are below, except at a whole rank.
        rng = np.random.default_rng(9)
        experts = {"clip:image": clusters(rng, dict.fromkeys("abc", 25), 0.7), "clip:text": texts(rng, "abc")}
        made, sample = calibrated(experts, false_unknown_rate=false_unknown_rate)
        for pool in pools(made):
            said = log_linear(
                expert_evidence(pool.coefficients, sample.aggregations), list(sample.aggregations), pool.neutral
            ).max(axis=1)
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
            evidence = expert_evidence(pool.coefficients, sample.aggregations)[:, [i]]
            evidence[0, 0, label] = NAN
            scores = log_linear(evidence, list(sample.aggregations), pool.neutral)
            beyond += int(scores.max() < pool.thresholds["clip:text"])
        assert beyond == 7  # rank 7.6 of 75


def test_quantiles_part_the_left_out_images_evenly() -> None:
    rng = np.random.default_rng(12)
    images = clusters(rng, {"a": 33, "b": 33, "c": 32}, 0.7)
    made, sample = calibrated({"clip:image": images, "clip:text": texts(rng, "abcd")})
    for pool in pools(made):
        said = log_linear(
            expert_evidence(pool.coefficients, sample.aggregations), list(sample.aggregations), pool.neutral
        ).max(axis=1)
        quantiles = pool.quantiles["clip:image+clip:text"]
        assert pool.quantiles.keys() == pool.thresholds.keys() == {"clip:image+clip:text", "clip:text"}
        assert [np.count_nonzero(said < quantile) for quantile in quantiles] == [
            int(4.95 * k)
            for k in range(1, 20)  # of 98, at ranks of 99
        ]
        assert quantiles[0] == pytest.approx(pool.thresholds["clip:image+clip:text"])


def test_quantiles_take_nineteen_images() -> None:
    rng = np.random.default_rng(11)
    for n, told in ((19, True), (16, False)):
        made, _ = calibrated({"clip:image": clusters(rng, {"a": n, "b": 2}, 1.0)}, false_unknown_rate=0.3)
        assert all(bool(pool.quantiles) == told for pool in pools(made))


def test_a_threshold_takes_nineteen_images_where_one_in_twenty_may_be_unknown() -> None:
    rng = np.random.default_rng(11)
    for sizes, everyone, own in [
        ({"a": 19, "b": 18}, True, {"a"}),
        ({"a": 17, "b": 2}, True, set()),
        ({"a": 16, "b": 2}, False, set()),
        ({"a": 18, "b": 1}, False, set()),  # the only one of b is not found by another
    ]:
        made, _ = calibrated({"clip:image": clusters(rng, sizes, 1.0)})
        for pool in pools(made):
            assert ("clip:image" in pool.thresholds) == everyone
            assert pool.category_thresholds.keys() == own


def test_early_thresholds_end_where_enough_images_begin() -> None:
    rng = np.random.default_rng(11)
    for rate, needed in ((0.05, 19), (0.1, 9), (0.9, 9)):
        for n in range(4, needed + 1):
            made, sample = calibrated({"clip:image": clusters(rng, {"a": n - 2, "b": 2}, 1.0)}, "mean", rate)
            assert len(sample.labels) == n
            for pool in pools(made):
                said = log_linear(
                    expert_evidence(pool.coefficients, sample.aggregations), list(sample.aggregations), pool.neutral
                ).max(axis=1)
                outermost = pytest.approx(said.max() if rate > 0.5 else said.min())
                early, learned = pool.early, pool.thresholds
                assert early == ({"clip:image": [outermost, pytest.approx(n / needed)]} if n < needed else {})
                assert learned == ({"clip:image": outermost} if n == needed else {})
            assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_the_progress_counts_the_images_that_a_threshold_is_learned_from() -> None:
    rng = np.random.default_rng(11)
    for sizes, others, counted, single in [
        ({"a": 3, "b": 3, "c": 3}, "", 9, 0),
        ({"a": 16, "b": 2}, "", 18, 0),
        ({"a": 18, "b": 1}, "", 18, 1),
        (dict.fromkeys("abcdefghijklmnopqrstuv", 1), "", 0, 22),
        (dict.fromkeys("abcdefghijklmnopqrstuv", 1), "z", 0, 22),  # has a threshold for categories without images
        ({"a": 3}, "z", 3, 0),
        ({"a": 17, "b": 2}, "", None, 0),
        ({"a": 19}, "z", None, 0),
    ]:
        experts = {"clip:image": clusters(rng, sizes, 1.0), "clip:text": texts(rng, [*sizes, *others])}
        made, _ = calibrated(experts)
        progress = None if counted is None else ThresholdProgress(counted, 19, one_scene=single)
        assert made.threshold_progress == progress
        assert ("clip:image+clip:text" in made.aggregations.thresholds) == (counted is None)
        assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_the_progress_says_why_images_do_not_count() -> None:
    rng = np.random.default_rng(11)
    images = {name: dict(found) for name, found in clusters(rng, {"a": 3, "b": 2, "c": 2, "d": 2}, 1.0).items()}
    images["b"]["b001"] = images["b"]["b000"]  # one scene
    images["c"]["c001"] = images["a"]["a002"]  # a copy in another category
    made, _ = calibrated({"clip:image": images, "clip:text": texts(rng, "abc")})
    assert made.threshold_progress == ThresholdProgress(5, 19, one_scene=2, copied=2)


def test_the_progress_of_the_smallest_rate_is_a_finite_number() -> None:
    rng = np.random.default_rng(11)
    made, _ = calibrated({"clip:image": clusters(rng, {"a": 2, "b": 2}, 1.0)}, false_unknown_rate=5e-324)
    assert made.threshold_progress == ThresholdProgress(4, MAX_IMAGES)
    assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_how_many_images_a_rate_takes() -> None:
    for false_unknown_rate, least in [(0.01, 99), (0.02, 49), (0.05, 19), (0.1, 9), (0.5, 1)]:
        assert [n for n in range(200) if enough(n, false_unknown_rate)] == list(range(least, 200))
        assert [n for n in range(200) if enough(n, 1 - false_unknown_rate)] == list(range(least, 200))
        assert fewest(false_unknown_rate) == fewest(1 - false_unknown_rate) == least
    for images in range(1, 2000):  # some quotients are rounded up, some down
        rate = 1 / (images + 1)
        assert [enough(n, rate) for n in (fewest(rate) - 1, fewest(rate))] == [False, True]


def test_how_many_images_a_tiny_rate_takes_is_told_at_once() -> None:
    assert fewest(1e-9) == pytest.approx(1e9)


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_new_image_falls_below_with_the_asked_probability(n: int, fraction: float, seed: int) -> None:
    # A new image falls into each of the n + 1 gaps of n others alike, and within a gap of uniform evidence anywhere.
    if not enough(n, fraction):
        return
    ranks = np.random.default_rng(seed).permutation(np.arange(1.0, n + 1))
    assert quantile(ranks, fraction) / (n + 1) == pytest.approx(fraction)


# ---- neutral evidence


def left_out_images(labels: list[int], coverage: list[list[bool]]) -> LeftOut:
    experts = ["a:image", "b:image", "c:text"][: len(coverage)]
    names = "xyz"[: len(coverage[0])]
    nothing = np.zeros((len(labels), len(names)), np.float32)
    scored = {expert: {"mean": nothing} for expert in experts}
    return LeftOut(tuple(names), np.array(labels), np.array(coverage), scored)


def test_balanced_neutral_evidence_by_hand() -> None:
    # Without b, the odds of an image's own category are 2 nats and the intercept, those of the other category -3 nats
    # and the intercept. Both probabilities sum to 1 if 2 + intercept = 3 - intercept. Without a: 1 and -3 nats.
    evidence = np.array([[[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]])
    sample = left_out_images([0, 1], [[True, True], [True, True]])
    got = balanced_neutral(evidence, sample, {})
    assert got == pytest.approx({"a:image": 1.0, "b:image": 0.5}, abs=1e-5)


def test_balanced_neutral_evidence_of_experts_that_cover_some_categories() -> None:
    # The third category has a text alone, and none of the images; its evidence is 0 nats. Without a and b, the odds of
    # an image's own category are the intercept less ln 2, those of the other the intercept less ln (e⁴ + 1).
    of_images = [[2.0, 0.0, NAN], [0.0, 2.0, NAN]]
    sample = left_out_images([0, 1], [[True, True, False], [True, True, False], [True, True, True]])
    evidence = np.array([of_images, of_images, [[0.0] * 3] * 2])
    got = balanced_neutral(evidence, sample, {"a:image+b:image": 0.0})
    assert got.keys() == {"a:image", "b:image", "c:text", "a:image+b:image"}
    assert got["a:image+b:image"] == pytest.approx((np.log(2) + np.log(np.exp(4) + 1)) / 2, abs=1e-5)


def test_images_without_complete_evidence_balance_nothing() -> None:
    sample = left_out_images([0, 1], [[True, True], [True, True]])
    evidence = np.array([[[NAN, 0.0], [0.0, NAN]]] * 2)
    assert balanced_neutral(evidence, sample, {}) == {}


def test_equal_evidence_is_balanced() -> None:
    # Each category has a third of the weight, and this probability if the intercept replaces the missing evidence.
    labels = [0, 1, 2, 0, 0, 0, 0]
    for value in np.random.default_rng(0).uniform(-5, 5, 20):
        got = balanced_neutral(np.full((2, 7, 3), value), left_out_images(labels, [[True] * 3] * 2), {})
        assert got == pytest.approx(dict.fromkeys(("a:image", "b:image"), value), abs=1e-5)


@prop
@given(st.integers(0, 10**6))
def test_balanced_probabilities_sum_to_the_number_of_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [0, 1, 2, *rng.integers(0, 3, 4).tolist()]
    evidence = 5 * rng.normal(size=(2, 7, 3))
    got = balanced_neutral(evidence, left_out_images(labels, [[True] * 3] * 2), {})
    for without, neutral in enumerate((got["a:image"], got["b:image"])):
        total = 0.0
        for image, label in enumerate(labels):
            for category in range(3):  # as if the expert did not cover this category
                said = evidence[:, image].copy()
                said[without, category] = neutral
                weights = np.exp(said.sum(axis=0))
                total += weights[category] / weights.sum() / labels.count(label)
        assert total == pytest.approx(3, abs=1e-4)  # categories have equal weight


def test_the_likelihood_ratio_of_a_wrong_category_is_one_on_average() -> None:
    for covered in ["abcd", "ab"]:
        rng = np.random.default_rng(12)
        clip = clusters(rng, dict.fromkeys("abcd", 6), 0.7)
        dino = clusters(rng, dict.fromkeys(covered, 6), 0.7)
        made, sample = calibrated({"clip:image": clip, "clip:text": texts(rng, "abcd"), "dino:image": dino})
        for pool in pools(made):
            assert {"clip:image", "clip:text", "dino:image", "clip:image+clip:text+dino:image"} == pool.neutral.keys()
            evidence = dict(
                zip(sample.aggregations, expert_evidence(pool.coefficients, sample.aggregations), strict=True)
            )
            for name, neutral in pool.neutral.items():
                ratios = []
                for i, label in enumerate(sample.labels):
                    for c in range(len(sample.categories)):
                        said = sum(evidence[expert][i, c] for expert in name.split("+"))
                        if c != label and not np.isnan(said):
                            ratios.append(np.exp(said - neutral))
                assert len(ratios) == (72 if "dino" not in name or covered == "abcd" else 12)
                assert np.mean(ratios) == pytest.approx(1.0)
