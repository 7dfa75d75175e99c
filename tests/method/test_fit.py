from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.method.material import METHODS, Vectors, calibrated, clusters, pools, references, stores, texts
from zsvec.method.calibrate import leave_one_out
from zsvec.method.calibrate.fit import expected_calibration_error, fit_calibration, quality
from zsvec.method.calibrate.leave_one_out import largest_sample
from zsvec.method.calibration import Calibration, ExpertCalibration, other_aggregation
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear

NAN = np.nan

prop = settings(deadline=None, max_examples=40)


# ---- weights


def test_a_good_expert_weighs_more_than_noise() -> None:
    for aggregation in METHODS:
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
        shares = [sum(by_name.values()) for by_name in double.coefficients.values()]
        assert shares[0] == pytest.approx(shares[1], rel=1e-3)
        assert sum(shares) == pytest.approx(sum(single.coefficients["clip:image"].values()), rel=0.1)
        assert single.learned
        assert double.learned


def test_the_other_aggregation_is_used_where_it_differs() -> None:
    rng = np.random.default_rng(5)
    made, _ = calibrated({"clip:image": clusters(rng, {"a": 4, "b": 4}, 1.0), "clip:text": texts(rng, "ab")})
    assert made.plain.coefficients["clip:image"].keys() == {"top_mean"}
    assert made.aggregations.coefficients["clip:image"].keys() == {"top_mean", "prototype"}
    assert made.aggregations.coefficients["clip:text"].keys() == {"top_mean"}
    assert other_aggregation("prototype") == "top_mean"


# ---- the sample


def test_coefficients_are_learned_from_images_of_two_categories_at_least() -> None:
    for others in [0, 1]:
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


def test_the_more_categories_the_fewer_images_are_left_out() -> None:
    for categories, expected in [
        (0, 2048),
        (10, 2048),
        (976, 2048),  # 2,000,000 / 976 = 2049.2
        (1000, 2000),
        (4000, 500),
        (10**5, 256),
    ]:
        assert largest_sample(categories) == expected


def test_as_many_images_are_left_out_as_the_sample_has(monkeypatch: pytest.MonkeyPatch) -> None:
    images = clusters(np.random.default_rng(17), dict.fromkeys("abcd", 10), 1.0)
    monkeypatch.setattr(leave_one_out, "_LARGEST_TABLE", 100)
    monkeypatch.setattr(leave_one_out, "_SMALLEST_SAMPLE", 8)
    made, sample = calibrated({"clip:image": images})
    assert made.images == len(sample.labels) == 25


# ---- experts of few categories


# ---- backgrounds


def sized(sizes: Mapping[str, int], *more: str) -> dict[str, Vectors]:
    images = {name: clusters(np.random.default_rng(i), sizes, 1.0) for i, name in enumerate(("a:image", "b:image"))}
    return images | {name: texts(np.random.default_rng(6), list(sizes)) for name in more}


def again(experts: Mapping[str, Vectors], former: Calibration | None) -> Calibration:
    """Calibrate after another calibration."""
    stored = {expert: references(vectors) for expert, vectors in experts.items()}
    made = fit_calibration(
        stored,
        dict.fromkeys(stored, 0.05),
        revision=2,
        aggregation="top_mean",
        top_m=5,
        false_unknown_rate=0.05,
        former=former,
    )
    assert made
    return made[0]


def test_backgrounds_stay_while_there_are_about_as_many_references() -> None:
    former = calibrated(sized(dict.fromkeys("abcd", 10)))[0]
    assert former.classwise

    little_more, more = dict.fromkeys("abcd", 10) | {"e": 4}, dict.fromkeys("abcd", 10) | {"e": 5}
    kept = again(sized(little_more), former)
    assert kept.classwise is former.classwise
    assert kept.backgrounds is former.backgrounds
    assert kept.aggregations != former.aggregations  # all else is learned anew
    anew = [(sized(more), former), (sized(little_more), None), (sized(little_more, "a:text"), former)]
    for (experts, before), n in zip(anew, (45, 44, 44), strict=True):
        made = again(experts, before)
        assert made.classwise not in (None, former.classwise)
        assert made.backgrounds["a:image"].references == n


@pytest.mark.parametrize("others", ["images", "categories"])
def test_backgrounds_are_learned_anew_where_references_are_others(others: str) -> None:
    before = sized(dict.fromkeys("abcd", 40))
    former = calibrated(before)[0]
    assert again(before, former).classwise is former.classwise
    after = dict(before)
    if others == "images":  # of one expert, as many of each category, from elsewhere
        other = clusters(np.random.default_rng(7), dict.fromkeys("abcd", 40), 1.0)
        moved = {name: {digest: np.add(v, np.eye(16)[0]) for digest, v in other[name].items()} for name in other}
        after["b:image"] = {
            name: {digest: list(v / np.linalg.norm(v)) for digest, v in vectors.items()}
            for name, vectors in moved.items()
        }
    else:  # a few more, far from all that there were
        far = clusters(np.random.default_rng(8), dict.fromkeys("efghi", 3), 5.0)
        after = {expert: {**vectors, **far} for expert, vectors in before.items()}
    made = again(after, former)
    assert made.classwise not in (None, former.classwise)
    assert made.backgrounds["a:image"].references == sum(map(len, after["a:image"].values()))


def test_an_encoder_that_covers_most_categories_by_now_is_learned_from() -> None:
    rng = np.random.default_rng(9)
    clip, dino = (clusters(rng, dict.fromkeys("abcd", 10), 1.0) for _ in range(2))
    half = {name: dino[name] for name in "ab"}
    former, _ = calibrated({"clip:image": clip, "dino:image": half})
    assert former.backgrounds.keys() == {"clip:image"}
    now = {"clip:image": clip, "dino:image": {**half, "c": dino["c"]}}
    assert again(now, former).backgrounds.keys() == {"clip:image", "dino:image"}


def test_texts_of_many_new_categories_end_the_comparison_with_category_means() -> None:
    rng = np.random.default_rng(10)
    clip, words = clusters(rng, dict.fromkeys("abcd", 10), 1.0), texts(rng, "abcdefgh")
    three = {name: words[name] for name in "abcdefg"}
    former, _ = calibrated({"clip:image": clip, "clip:text": three})
    assert former.classwise is not None
    assert again({"clip:image": clip, "clip:text": three}, former).classwise == former.classwise
    assert again({"clip:image": clip, "clip:text": words}, former).classwise is None


def test_an_expert_of_one_category_has_nothing_to_be_tried_on() -> None:
    rng = np.random.default_rng(6)
    clip = clusters(rng, {"a": 5, "b": 5}, 1.0)
    made, _ = calibrated({"clip:image": clip, "dino:image": {"a": clip["a"]}})
    assert made.experts["dino:image"] == ExpertCalibration(0.07, 0.07, 0, None, None)
    assert made.experts["clip:image"].images == 10


def test_the_threshold_of_a_category_that_alone_has_an_expert() -> None:
    for alone in ["image", "text"]:
        rng = np.random.default_rng(7)
        clip = clusters(rng, dict.fromkeys("abc", 25), 1.0)
        experts: dict[str, Vectors] = {"clip:image": clip, "dino:image": {"a": clip["a"]}}
        if alone == "text":
            experts = {"clip:image": {"a": clip["a"]}, "clip:text": texts(rng, "abc")}
        made, sample = calibrated(experts, false_unknown_rate=0.1)
        for pool in pools(made):
            said = log_linear(
                expert_evidence(pool.coefficients, sample.aggregations)[:, sample.labels == 0],
                list(sample.aggregations),
                pool.neutral,
            )
            for threshold in (pool.thresholds["+".join(sorted(experts))], pool.category_thresholds["a"]):
                assert np.count_nonzero(said.max(axis=1) < threshold) == 2  # rank 2.6 of 25


def test_texts_of_an_encoder_without_images_keep_their_temperature() -> None:
    rng = np.random.default_rng(8)
    images = clusters(rng, dict.fromkeys("ab", 5), 1.0)
    made, sample = calibrated({"siglip:text": texts(rng, "ab"), "dino:image": images})
    assert made.experts["siglip:text"] == ExpertCalibration(0.07, 0.07, 0, None, None)
    assert made.experts["dino:image"].images == 10
    assert quality(made.plain, sample) is None


def test_no_images_or_one_category() -> None:
    cases: list[dict[str, Vectors]] = [
        {},
        {"clip:text": {"a": {"t": (1, 0)}, "b": {"t": (0, 1)}}},
        {"clip:image": {"a": {"1": (1, 0), "2": (0, 1)}}, "clip:text": {"a": {"t": (0, 1)}}},
    ]
    for experts in cases:
        stored = {name: references(vectors) for name, vectors in experts.items()}
        options: dict[str, Any] = {"revision": 1, "aggregation": "mean", "top_m": 5, "false_unknown_rate": 0.05}
        assert fit_calibration(stored, dict.fromkeys(experts, 0.07), **options) is None


@prop
@given(stores(), st.sampled_from(METHODS), st.integers(1, 3))
def test_any_store_gives_finite_numbers(experts: dict[str, Vectors], aggregation: str, top_m: int) -> None:
    made, sample = calibrated(experts, aggregation, top_m=top_m)
    json.dumps(made.to_dict(), allow_nan=False)
    assert (
        made.experts.keys() == made.plain.coefficients.keys() == made.aggregations.coefficients.keys() == experts.keys()
    )
    for expert, fitted in made.experts.items():
        assert fitted.temperature > 1e-4
        for pool in pools(made):
            assert 0 < pool.shares[expert] < 1e5
    for pool in pools(made):
        found = quality(pool, sample)
        assert found is None or (0 <= found.top1 <= 1 and 0 <= found.ece <= 1 and found.cross_entropy >= 0)


@prop
@given(stores(), st.sampled_from(METHODS))
def test_order_of_experts_does_not_matter(experts: dict[str, Vectors], aggregation: str) -> None:
    before, after = (calibrated(order, aggregation)[0] for order in (experts, dict(reversed(experts.items()))))
    for expert in experts:
        assert after.experts[expert].temperature == pytest.approx(before.experts[expert].temperature, rel=1e-3)
        for was, now in zip(pools(before), pools(after), strict=True):
            assert now.coefficients[expert] == pytest.approx(was.coefficients[expert], rel=1e-2)
            assert now.neutral.keys() == was.neutral.keys()


# ---- expected calibration error


def test_expected_calibration_error_by_hand() -> None:
    for probabilities, right, bins, expected in [
        ([1.0, 1.0], [True, True], 15, 0.0),
        ([1.0, 1.0], [True, False], 15, 0.5),
        ([0.75, 0.75, 0.75, 0.75], [True, True, True, False], 15, 0.0),
        # |1.7 - 1| in the last bin, |0.3 - 1| in the bin of 0.3
        ([0.85, 0.85, 0.3], [True, False, True], 5, 1.4 / 3),
        # A bin includes the upper edge: 0.1 and 0.2 share a bin, 0.3 does not.
        ([0.1, 0.2], [False, True], 5, 0.35),
        ([0.3, 0.2], [False, True], 5, (0.3 + 0.8) / 2),
        ([0.0, 0.1], [False, False], 10, 0.05),
        ([0.9, 1.0], [False, True], 1, 0.45),
    ]:
        assert expected_calibration_error(probabilities, right, bins) == pytest.approx(expected, abs=1e-12)


def test_categories_that_are_one_group_each_teach_nothing_of_means() -> None:
    images = clusters(np.random.default_rng(3), dict.fromkeys("abcd", 6), 2.0)
    by_hash = {digest: name for name, vectors in images.items() for digest in vectors}
    for groups, learned in ((by_hash, False), ({k: k for k in by_hash}, True)):
        made = fit_calibration(
            {"clip:image": references(images, groups)},
            {"clip:image": 0.1},
            revision=0,
            aggregation="top_mean",
            top_m=5,
            false_unknown_rate=0.05,
        )
        assert made is not None
        calibration, _ = made
        assert (calibration.classwise is not None, bool(calibration.backgrounds)) == (learned, learned)
        assert calibration.aggregations.learned is learned
