from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.method.material import calibrated, clusters, logits, pools, references, searched, texts
from zsvec.method.calibrate.coefficients import scaled
from zsvec.method.calibrate.fit import fit_calibration
from zsvec.method.calibrate.thresholds import odds_quantiles, quantile, right_labels
from zsvec.method.calibration import COVERAGES, Calibration, LogLinear
from zsvec.method.predict.candidates import MOST, candidate_sets, log_odds
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear
from zsvec.method.predict.scoring import Scoring
from zsvec.types import CandidateSets

AT = {coverage: position for position, coverage in enumerate(COVERAGES)}


def pairs(evidence: Any) -> np.ndarray:
    """Log odds of every category of every image."""
    rows, columns = np.indices(np.shape(evidence))
    return log_odds(np.array(evidence), rows.ravel(), columns.ravel()).reshape(rows.shape)


# ---- log odds


def test_log_odds_compare_a_category_with_all_others() -> None:
    got = pairs(np.log([[6.0, 3.0, 1.0], [1.0, 1.0, 2.0]]))
    np.testing.assert_allclose(np.exp(got), [[6 / 4, 3 / 7, 1 / 9], [1 / 3, 1 / 3, 1]])


def test_log_odds_stay_finite_and_keep_their_order_for_strong_evidence() -> None:
    got = pairs([[900.0, 0.0], [60.0, 0.0], [61.0, 0.0], [0.0, -np.inf]])
    np.testing.assert_allclose(got[:, 0], [-np.log(np.finfo(float).tiny), 60, 61, -np.log(np.finfo(float).tiny)])
    np.testing.assert_allclose(got[:, 1], [-900, -60, -61, -np.inf])


# ---- quantiles


def test_quantiles_of_right_labels_are_those_of_a_new_image() -> None:
    odds = np.random.default_rng(3).normal(size=40)
    got = odds_quantiles(odds, np.ones(40))
    assert len(got) == AT[0.97] + 1  # at 0.98, 0.82 of 41 places would be below
    np.testing.assert_allclose(got, [quantile(odds, 1 - coverage) for coverage in COVERAGES[: len(got)]])


def test_how_many_images_a_coverage_takes() -> None:
    for n, largest in [(1, 0.5), (4, 0.8), (9, 0.9), (18, 0.94), (19, 0.95), (99, 0.99), (500, 0.99)]:
        assert len(odds_quantiles(np.arange(float(n)), np.ones(n))) == AT[largest] + 1
    assert odds_quantiles(np.zeros(5), np.full(5, 0.1)) == []


def test_images_count_with_the_probability_that_their_label_is_right() -> None:
    odds, right = np.array([-9.0, -8.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(odds_quantiles(odds, right), odds_quantiles(odds[2:], right[2:]))
    # Half an image at 1, two at 2: the quarter of 3.5 that is below 0.75 lies between them.
    got = odds_quantiles(np.array([1.0, 2.0]), np.array([0.5, 2.0]))
    assert got[AT[0.7]] == pytest.approx(np.interp(0.3, [0.5 / 3.5, 2.5 / 3.5], [1, 2]))


def test_probability_that_a_label_is_right() -> None:
    # Odds of 1 to 1 and of 3 to 1; of four labels without information, one is that of the image.
    got = right_labels(np.log([1.0, 3.0]), 0.2, 4)
    np.testing.assert_allclose(got, [0.4 / 0.45, 0.6 / 0.65])
    np.testing.assert_allclose(right_labels(np.array([-800.0, 800.0]), 0.2, 4), [0, 0.8 / 0.85], atol=1e-12)
    np.testing.assert_array_equal(right_labels(np.array([-800.0, 0.0]), 0.0, 4), [1, 1])


def test_of_the_left_out_images_the_promised_fraction_has_its_category_in_the_set() -> None:
    rng = np.random.default_rng(9)
    made, sample = calibrated({"clip:image": clusters(rng, dict.fromkeys("abc", 18), 0.3)})
    for pool in pools(made):
        assert pool.category_odds == {}
        evidence = expert_evidence(pool.coefficients, sample.aggregations)
        own = log_odds(log_linear(evidence, ["clip:image"], pool.neutral), np.arange(54), sample.labels)
        for coverage in (0.8, 0.9, 0.95):
            expected = int(55 * (1 - coverage) + 1e-9)  # ranks 11, 5.5 and 2.75 of 55
            below = np.count_nonzero(own < pool.odds["clip:image"][AT[coverage]] - 1e-9)
            assert below == pytest.approx(expected, abs=1 if pool.noise > 1e-3 else expected == 11)


def test_a_category_with_nineteen_images_has_separate_quantiles() -> None:
    rng = np.random.default_rng(9)
    made, _ = calibrated({"clip:image": clusters(rng, {"a": 40, "b": 19, "c": 17}, 1.5)})
    for pool in pools(made):
        assert pool.category_odds.keys() == {"a", "b"}
        (everyone,) = pool.odds.values()
        for table in pool.category_odds.values():
            assert len(table) == len(everyone)
            assert sorted(table, reverse=True) == table


def test_the_images_of_a_scene_count_as_one() -> None:
    rng = np.random.default_rng(9)
    images = clusters(rng, dict.fromkeys("abc", 25), 0.3)
    groups = {digest: f"scene {int(digest[1:]) // 5}" for name in images for digest in images[name]}
    made = fit_calibration(
        {"clip:image": references(images, groups)},
        {"clip:image": 0.07},
        revision=1,
        aggregation="top_mean",
        top_m=5,
        false_unknown_rate=0.05,
    )
    assert made
    assert made[1].shares.sum() == pytest.approx(15)
    for pool in pools(made[0]):
        assert pool.category_odds == {}
        assert len(pool.odds["clip:image"]) == AT[0.93] + 1  # at 0.94, 0.96 of 16 places would be below


def test_wrong_labels_do_not_widen_the_sets() -> None:
    rng = np.random.default_rng(4)
    whole = clusters(rng, dict.fromkeys("abcd", 40), 1.5)
    swapped: dict[str, Any] = {name: {} for name in whole}
    for name, images in whole.items():
        for i, (digest, vector) in enumerate(images.items()):
            others = [other for other in whole if other != name]
            swapped[str(rng.choice(others)) if i % 5 == 0 else name][digest] = vector
    clean, noisy = (calibrated({"clip:image": given})[0] for given in (whole, swapped))
    assert noisy.plain.noise > 0.1
    (tight,), (wide,) = clean.plain.odds.values(), noisy.plain.odds.values()
    assert wide[AT[0.9]] > 0 < tight[AT[0.9]]  # a single category each, although a fifth of labels contradict


def test_nothing_can_be_promised_with_one_image_a_category() -> None:
    rng = np.random.default_rng(9)
    experts = {"clip:image": clusters(rng, dict.fromkeys("abcdefgh", 1), 1.0), "clip:text": texts(rng, "abcdefgh")}
    made, _ = calibrated(experts)
    assert all(pool.odds == {} for pool in pools(made))
    (one,) = predicted(experts, made, np.eye(16)[:1])
    assert one is None


def predicted(experts: Any, made: Calibration, queries: Any) -> list[CandidateSets | None]:
    found = searched(experts, {"clip": queries}, calibration=made)
    answers = Scoring(temperatures=dict.fromkeys(made.experts, 0.07)).predict(found, [""] * len(queries), 3)
    return [answer.candidate_sets for answer in answers]


def test_the_scale_of_evidence_does_not_change_sets() -> None:
    rng = np.random.default_rng(9)
    experts = {"clip:image": clusters(rng, dict.fromkeys("abc", 20), 0.5), "clip:text": texts(rng, "abc")}
    made, _ = calibrated(experts)
    queries = rng.normal(size=(20, 16))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    before = predicted(experts, made, queries)
    assert any(one and len(one.entries) > 1 for one in before)
    assert predicted(experts, scaled(made, 0.25), queries) == before


# ---- sets

BOTH, TEXT = "x:image+x:text", "x:text"


def sets(pooled: Any, names: Any = "abc", scale: float = 1.0, coverage: Any = None, **pool: Any) -> Any:
    experts = ["x:image", "x:text"]
    covered = np.ones((2, len(names)), dtype=bool) if coverage is None else np.array(coverage, dtype=bool)
    found: Any = SimpleNamespace(experts=[SimpleNamespace(name=name) for name in experts], categories=tuple(names))
    made = logits(covered, found=found, pooled=np.log(np.array(pooled)), pool=LogLinear({}, **pool))
    return candidate_sets(made, scale)


def table(quantiles: dict[float, float]) -> list[float]:
    """Quantiles from odds by coverage. A coverage between two has the odds of the larger one."""
    larger = [min(given for given in quantiles if given >= c) for c in COVERAGES if c <= max(quantiles)]
    return [float(np.log(quantiles[coverage])) for coverage in larger]


def test_a_category_enters_at_the_first_quantile_that_it_reaches() -> None:
    # Odds of the first image: 6/4, 3/7 and 1/9; of the second: 18/2, 1/19 and 1/19.
    quantiles = table({0.5: 8, 0.8: 1, 0.9: 0.4, 0.95: 0.2, 0.97: 0.1})
    got = sets([[6, 3, 1], [18, 1, 1]], odds={BOTH: quantiles})
    assert got[0] == CandidateSets(entries=(("a", 0.51), ("b", 0.81), ("c", 0.96)), up_to=0.97)
    assert got[1] == CandidateSets(entries=(("a", 0.5),), up_to=0.97)


def test_every_set_has_the_most_probable_category() -> None:
    (got,) = sets([[4, 3, 3]], odds={BOTH: table({0.5: 8, 0.9: 2})})
    assert got == CandidateSets(entries=(("a", 0.9),), up_to=0.9)
    # b has the smaller odds, but reaches the quantile of its category earlier.
    (got,) = sets([[4, 3, 3]], odds={BOTH: table({0.5: 8, 0.9: 2})}, category_odds={"b": table({0.6: 0.4, 0.9: 0.1})})
    assert got == CandidateSets(entries=(("a", 0.5), ("b", 0.5)), up_to=0.9)


def test_categories_have_the_quantiles_of_their_experts() -> None:
    given: dict[str, Any] = {
        "odds": {BOTH: table({0.9: 1}), TEXT: table({0.9: 0.2})},
        "coverage": [[1, 0, 0], [1, 1, 0]],
    }
    (got,) = sets([[6, 3, 1e-300]], **given)
    assert got.entries == (("a", 0.5), ("b", 0.5))
    (got,) = sets([[6, 3, 1e-300]], **{**given, "odds": {BOTH: table({0.9: 1}), TEXT: table({0.8: 0.2})}})
    assert got.up_to == 0.8  # what can be promised of all categories
    assert sets([[6, 3, 1e-300]], **{**given, "odds": {BOTH: table({0.9: 1})}}) == [None]
    assert sets([[6, 3, 1]]) == [None]


def test_quantiles_of_categories_that_are_gone_do_not_matter() -> None:
    given: dict[str, Any] = {
        "odds": {BOTH: table({0.9: 1})},
        "category_odds": {"": table({0.5: 3}), "bb": table({0.5: 3}), "z": table({0.5: 3})},
    }
    (got,) = sets([[6, 3, 1]], **given)
    assert got == CandidateSets(entries=(("a", 0.5),), up_to=0.9)


def test_a_set_is_bounded() -> None:
    names = [f"c{i:03d}" for i in range(MOST + 20)]
    quantiles = table({0.8: 0.5 / len(names), 0.9: 0.05 / len(names)})
    (got,) = sets([[2] * MOST + [0.3] * 20], names, odds={BOTH: quantiles})
    assert len(got.entries) == MOST
    assert got.up_to == 0.8
    assert sets([[1] * len(names)], names, odds={BOTH: quantiles}) == [None]


# ---- record


def test_quantiles_that_ascend_or_are_too_many_are_not_read() -> None:
    rng = np.random.default_rng(9)
    made, _ = calibrated({"clip:image": clusters(rng, dict.fromkeys("abc", 20), 0.5)})
    assert made.plain.category_odds
    record = json.loads(json.dumps(made.to_dict()))
    assert Calibration.from_dict(record) == made
    for wrong in ([0.0, 1.0], [], [0.0] * (len(COVERAGES) + 1), [None], "x"):
        for field in ("odds", "category_odds"):
            changed = {**record, "plain": {**record["plain"], field: {"clip:image": wrong}}}
            assert Calibration.from_dict(changed) is None
