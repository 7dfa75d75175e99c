"""Learns which images an encoder settles alone, and applies the rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.method.material import Vectors, references
from zsvec.method.calibrate.cascade import DISAGREEMENT, least_odds
from zsvec.method.calibrate.coefficients import scaled
from zsvec.method.calibrate.fit import fit_calibration
from zsvec.method.calibration import Calibration
from zsvec.method.predict.cascade import CASCADED, fractions, settled
from zsvec.method.predict.fusion import strategy_to_run
from zsvec.method.predict.scoring import Scores, Scoring
from zsvec.search.in_process import compare

NAMES = ("ant", "bee", "cat", "dog")
WEAKNESS = {"fast:image": 1.6, "slow:image": 0.2}
ENCODERS = ("fast", "slow")


def vectors(rng: np.random.Generator, categories: np.ndarray[Any, Any], weakness: float) -> np.ndarray[Any, Any]:
    """Unit vectors around one axis for each category; a third of the images is hard."""
    hard = rng.random(len(categories)) < 1 / 3
    noise = rng.normal(size=(len(categories), 16)) / 4
    found = np.eye(16)[categories] + (0.2 + weakness * hard)[:, None] * noise
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def stored(rng: np.random.Generator, count: int) -> dict[str, Vectors]:
    return {
        expert: {
            name: {f"{name}{i:03d}": row.tolist() for i, row in enumerate(vectors(rng, np.full(count, c), weakness))}
            for c, name in enumerate(NAMES)
        }
        for expert, weakness in WEAKNESS.items()
    }


def fitted(store: Mapping[str, Vectors], **options: Any) -> Calibration:
    made = fit_calibration(
        {expert: references(found) for expert, found in store.items()},
        dict.fromkeys(store, 0.05),
        revision=1,
        aggregation="top_mean",
        top_m=5,
        **{"cascade": "log_linear_gda", "false_unknown_rate": 0.05, **options},
    )
    assert made is not None
    return made[0]


def scores(store: Mapping[str, Vectors], queries: Mapping[str, Any], calibration: Calibration) -> Scores:
    some = {expert: references(found) for expert, found in store.items() if expert.partition(":")[0] in queries}
    found = replace(compare(some, NAMES, queries, nearest=1), calibration=calibration)
    return Scoring(temperatures=dict.fromkeys(some, 0.05)).scores(found)


@pytest.mark.parametrize(
    ("odds", "differs", "total", "least"),
    [
        # floor(0.01 · 100) - 1 = 0 may differ: the first above the largest that differs.
        ([1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0], 99, 4.0),
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 0], 99, 1.0),
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 1], 99, None),
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 0], 98, None),  # too few images to promise 1 %
        # floor(0.01 · 200) - 1 = 1 may differ.
        ([1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0], 199, 2.0),
        ([1.0, 2.0, 2.0, 4.0], [1, 0, 1, 1], 199, 4.0),  # the tie at 2 is not divided
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1], 299, 3.0),
        ([1.0, 2.0, 3.0, 4.0], [0, 0.5, 0.5, 0.5], 199, 3.0),  # images of scenes of two
        ([4.0, 1.0, 3.0, 2.0], [0, 0, 1, 0], 99, 4.0),
        ([], [], 500, None),
    ],
)
def test_limits_by_hand(odds: list[float], differs: list[float], total: float, least: float | None) -> None:
    assert least_odds(np.array(odds), np.array(differs, dtype=float), total) == least


def test_new_images_keep_their_answers() -> None:
    changed, alone, times = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        store = stored(rng, 30)
        calibration = fitted(store)
        rule = calibration.cascade["fast"]
        categories = rng.integers(len(NAMES), size=400)
        queries = {encoder: vectors(rng, categories, WEAKNESS[f"{encoder}:image"]) for encoder in ENCODERS}
        every = scores(store, queries, calibration)
        fast = scores(store, {"fast": queries["fast"]}, rule.calibration)
        stops = settled(fast, rule)
        differs = (fast.fused.argmax(axis=1) != every.fused.argmax(axis=1)) | (fast.unknown != every.unknown)
        changed.append((stops & differs).mean())
        alone.append(differs.mean())
        times.append(abs(stops.mean() - rule.settled))
    assert np.mean(changed) <= DISAGREEMENT < 0.04 < np.mean(alone)
    assert np.mean(times) < 0.1


def test_images_far_from_every_category_are_never_settled() -> None:
    rng = np.random.default_rng(0)
    store = stored(rng, 40)
    rule = fitted(store).cascade["fast"]
    strange = vectors(rng, np.full(50, 9), 0.2)
    assert not settled(scores(store, {"fast": strange}, rule.calibration), rule).any()


def test_a_rule_applies_to_the_strategy_and_the_categories_that_it_was_learned_for() -> None:
    rng = np.random.default_rng(1)
    store = stored(rng, 40)
    rule = fitted(store).cascade["fast"]
    found = scores(store, {"fast": vectors(rng, np.arange(100) % 4, 0.2)}, rule.calibration)
    assert settled(found, rule).any()
    assert not settled(replace(found, calibration="stale"), rule).any()
    assert not settled(replace(found, fusion="log_linear"), rule).any()


def test_rules_for_another_strategy_have_no_fraction() -> None:
    rules = fitted(stored(np.random.default_rng(1), 40)).cascade
    both = {name: rule.settled for name, rule in rules.items()}
    assert both.keys() == set(ENCODERS)
    without_means = {name: replace(rule.calibration, classwise=None) for name, rule in rules.items()}
    views = {name: replace(rule, fusion="log_linear_views") for name, rule in rules.items()}
    of_views = {name: replace(rule, calibration=without_means[name]) for name, rule in views.items()}
    cases = [
        (rules, "log_linear_gda", True, both),
        (rules, "log_linear_views", True, {}),
        (rules, "log_linear_gda", False, {}),
        (views, "log_linear_gda", True, {}),
        (of_views, "log_linear_gda", True, both),
        (of_views, "log_linear_views", True, both),
        (of_views, "log_linear", True, {}),
        ({"fast": views["fast"], "slow": rules["slow"]}, "log_linear_views", True, {"fast": both["fast"]}),
        ({name: replace(rule, fusion="log_linear") for name, rule in rules.items()}, "log_linear_views", False, both),
        ({}, "log_linear", True, {}),
    ]
    for some, fusion, exact, found in cases:
        assert fractions(some, fusion, exact=exact) == found


@pytest.mark.parametrize("fusion", CASCADED)
@pytest.mark.parametrize("classwise", [True, False])
def test_the_strategy_of_one_encoder_is_the_one_that_runs(fusion: str, classwise: bool) -> None:
    store = stored(np.random.default_rng(1), 40)
    made = fitted(store).cascade["fast"].calibration
    made = made if classwise else replace(made, classwise=None, backgrounds={})
    some = {"fast:image": references(store["fast:image"])}
    queries = {"fast": vectors(np.random.default_rng(2), np.arange(8) % 4, 0.2)}
    found = replace(compare(some, NAMES, queries, nearest=1), calibration=made)
    ran = Scoring(temperatures={"fast:image": 0.05}, fusion=fusion).scores(found).fusion
    assert strategy_to_run(fusion, classwise=classwise) == ran


def test_a_scale_changes_no_decision() -> None:
    rng = np.random.default_rng(2)
    store = stored(rng, 40)
    calibration = fitted(store)
    doubled = scaled(calibration, 2.0)
    queries = {"fast": vectors(rng, np.arange(200) % 4, 1.6)}
    stops = [
        settled(scores(store, queries, rule.calibration), rule)
        for rule in (calibration.cascade["fast"], doubled.cascade["fast"])
    ]
    assert 0 < stops[0].mean() < 1
    np.testing.assert_array_equal(stops[0], stops[1])


def test_nothing_is_learned_without_need_or_with_too_few_images() -> None:
    store = stored(np.random.default_rng(3), 30)
    assert fitted(store, cascade=None).cascade == {}
    assert fitted({"fast:image": store["fast:image"]}).cascade == {}
    assert fitted(stored(np.random.default_rng(3), 24)).cascade == {}  # 96 images
    partly = {**store, "slow:image": {name: store["slow:image"][name] for name in NAMES[:3]}}
    assert fitted(partly).cascade == {}


def test_the_rule_of_unchanged_backgrounds_is_reused() -> None:
    store = stored(np.random.default_rng(4), 30)
    former = fitted(store)
    again = fitted(store, former=former)
    assert again.classwise is former.classwise
    assert again.cascade == former.cascade
    assert fitted(store, former=former, cascade=None).cascade == {}
    other_rate = fitted(store, former=former, false_unknown_rate=0.3)
    assert other_rate.cascade == fitted(store, false_unknown_rate=0.3).cascade


def test_a_category_that_an_encoder_lacks_ends_the_rule() -> None:
    store = stored(np.random.default_rng(4), 30)
    former = fitted(store)
    (some, *_) = store["slow:image"].values()
    wider = {
        **store,
        "slow:image": {**store["slow:image"], "zebra": {f"z{digest}": row for digest, row in some.items()}},
    }
    assert former.cascade
    assert fitted(wider, former=former).cascade == {}


def test_images_that_an_encoder_lacks_say_nothing_of_the_rule() -> None:
    store = stored(np.random.default_rng(6), 40)
    found = []
    for c, name in enumerate(NAMES[:2]):
        rows = vectors(np.random.default_rng(7), np.full(30, c), 0.2)
        more = {f"more{i}": row.tolist() for i, row in enumerate(rows)}
        partly = {**store, "fast:image": {**store["fast:image"], name: {**store["fast:image"][name], **more}}}
        found.append(fitted(partly).cascade["fast"].settled)
    assert found == [pytest.approx(found[0], abs=0.05)] * 2


def test_the_place_of_a_category_of_one_image_does_not_matter() -> None:
    store = stored(np.random.default_rng(0), 60)
    one = {expert: np.eye(16)[15 - i].tolist() for i, expert in enumerate(store)}
    first, last = (
        fitted({expert: {**found, name: {"alone": one[expert]}} for expert, found in store.items()}).cascade
        for name in ("aardvark", "zebra")
    )
    assert first.keys() == last.keys() == set(ENCODERS)
    for encoder, rule in first.items():
        assert rule.settled == pytest.approx(last[encoder].settled)
        assert rule.odds == pytest.approx(last[encoder].odds, rel=1e-4)


def test_a_record_round_trips() -> None:
    calibration = fitted(stored(np.random.default_rng(5), 30))
    record = calibration.to_dict()
    assert "backgrounds" in record
    read = Calibration.from_dict(json.loads(json.dumps(record)))
    assert read is not None
    assert read.cascade.keys() == {"fast", "slow"}
    for encoder, rule in read.cascade.items():
        before = calibration.cascade[encoder]
        assert (rule.fusion, rule.odds, rule.above, rule.settled) == (
            *(before.fusion, before.odds, before.above, before.settled),
        )
        assert rule.calibration.classwise == before.calibration.classwise
        assert rule.calibration.backgrounds.keys() == {f"{encoder}:image"}
    assert "cascade" not in replace(calibration, cascade={}).to_dict()


DAMAGE: list[dict[str, Any]] = [
    {"odds": np.nan},
    {"odds": "1"},
    {"odds": 1e12},
    {"above": 0.0},
    {"above": None},
    {"settled": 1.5},
    {"settled": -0.1},
    {"fusion": 3},
    {"more": 1},
    {"calibration": None},
    {"calibration": {}},
]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(fitted(stored(np.random.default_rng(6), 25)).to_dict()))
    return made


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_rule_is_refused(record: dict[str, Any], damage: dict[str, Any]) -> None:
    assert Calibration.from_dict(record) is not None
    alone = {**record["cascade"], "fast": {**record["cascade"]["fast"], **damage}}
    assert Calibration.from_dict({**record, "cascade": alone}) is None


def test_a_rule_with_the_calibration_of_other_experts_is_refused(record: dict[str, Any]) -> None:
    rule = record["cascade"]["fast"]
    for inner in (record["cascade"]["slow"]["calibration"], record, {**rule["calibration"], "cascade": {}}):
        assert Calibration.from_dict({**record, "cascade": {"fast": {**rule, "calibration": inner}}}) is None
    assert Calibration.from_dict({**record, "cascade": {"other": rule}}) is None
    assert Calibration.from_dict({**record, "cascade": [rule]}) is None
