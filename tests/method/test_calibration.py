from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from tests.method.material import calibrated, clusters, searched, texts
from zsvec.method.calibrate.coefficients import scaled
from zsvec.method.calibrate.fit import holds
from zsvec.method.calibration import Calibration, LabelModel, uncalibrated
from zsvec.method.predict.scoring import Scoring

NAN = np.nan

prop = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def made() -> Calibration:
    rng = np.random.default_rng(13)
    return calibrated({"clip:image": clusters(rng, {"a": 20, "b": 3}, 1.0), "clip:text": texts(rng, "ab")})[0]


def test_round_trip(made: Calibration) -> None:
    assert made.plain.thresholds
    assert made.aggregations.category_thresholds
    assert made.classwise
    assert made.backgrounds.keys() == {"clip:image"}
    read = Calibration.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read
    assert read.to_dict() == made.to_dict()
    assert replace(read, backgrounds={}) == replace(made, backgrounds={})
    assert read.backgrounds["clip:image"].references == made.backgrounds["clip:image"].references > 0


def test_fits(made: Calibration) -> None:
    assert made.fits(["clip:image"], "top_mean", 5)
    assert not made.fits(["clip:image", "dino:image"], "top_mean", 5)
    assert not made.fits(["clip:image"], "mean", 5)
    assert not made.fits(["clip:image"], "top_mean", 4)


def test_how_many_references_are_averaged_matters_where_they_are(made: Calibration) -> None:
    for aggregation, any_m in [("top_mean", False), ("prototype", False), ("max", True), ("mean", True)]:
        # The aggregation beside the prototype is the mean of the nearest.
        other = replace(made, aggregation=aggregation)
        assert other.fits(["clip:image"], aggregation, 5)
        assert other.fits(["clip:image"], aggregation, 4) == any_m


def test_another_format_is_not_read(made: Calibration) -> None:
    values = made.to_dict()
    later = {"format": values.pop("format") + 1, "experts": 3}
    for other in ({}, values, later, {"format": None}):
        assert Calibration.from_dict(other) is None


def test_a_record_of_another_shape_is_not_read(made: Calibration) -> None:
    changes: list[dict[str, Any]] = [
        {"later": 3},
        {"multilabel": 1},
        {"experts": 3},
        {"plain": {"coefficients": {}, "later": 1}},
    ]
    for change in changes:
        assert Calibration.from_dict({**made.to_dict(), **change}) is None


def test_a_number_that_would_absorb_all_evidence_is_not_read(made: Calibration) -> None:
    for large, is_read in ((1e308, False), (-1e308, False), (1e6, True)):
        neutral = dict.fromkeys(made.plain.neutral, large)
        assert made.plain.neutral
        changed = replace(made, plain=replace(made.plain, neutral=neutral)).to_dict()
        assert (Calibration.from_dict(changed) is not None) == is_read


def test_an_early_threshold_without_a_share_is_not_read(made: Calibration) -> None:
    cases: list[tuple[Any, bool]] = [
        ([2.0, 0.0], True),
        ([2.0, 0.5], True),
        ([2.0, 1.0], False),
        ([2.0, -0.1], False),
        ([2.0, NAN], False),
        ([1e308, 0.5], False),
        ([2.0], False),
        ([2.0, 0.5, 0.5], False),
        ("ab", False),
    ]
    for early, is_read in cases:
        changed = replace(made, plain=replace(made.plain, early={"clip:image": early})).to_dict()
        assert (Calibration.from_dict(changed) is not None) == is_read


def damaged(value: Any) -> Iterator[Any]:
    """JSON with one part after another in the place of which is something else."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in items:
        for other in (*OTHERS, *damaged(part)):
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = other
            yield changed


OTHERS = (None, 0, -5.0, 5e-324, 1e308, -1e308, NAN, np.inf, 10**400, True, "x", [], [1], [[]], {}, {"a": 1})


@pytest.mark.parametrize("labels", [None, LabelModel(0.1, 0.5, -0.2, -0.3, 0.5, {"a": 0.4}, 0.1, 20)])
def test_a_record_that_is_damaged_anywhere_is_none_or_of_use(made: Calibration, labels: LabelModel | None) -> None:
    if labels is not None:
        made = replace(made, aggregations=replace(made.aggregations, labels=labels), classwise=None, backgrounds={})
    scoring = Scoring(temperatures=dict.fromkeys(made.experts, 0.07))
    rng = np.random.default_rng(13)
    experts = {"clip:image": clusters(rng, {"a": 20, "b": 3}, 1.0), "clip:text": texts(rng, "ab")}
    found = searched(experts, {"clip": np.eye(16)})
    record = json.loads(json.dumps(made.to_dict()))
    records = list(damaged({name: value for name, value in record.items() if name != "format"}))
    read = [Calibration.from_dict({**values, "format": record["format"]}) for values in records]
    assert 0 < sum(one is None for one in read) < len(read)
    for one in filter(None, read):
        for calibration in (one, scaled(one, 1 / one.scale)):
            scores = scoring.scores(replace(found, calibration=calibration))
            np.testing.assert_allclose(scores.fused.sum(axis=1), 1)
            if scores.label_probabilities is not None:
                assert scores.label_probabilities.min() >= 0
                assert scores.label_probabilities.max() <= 1
        assert isinstance(holds(one, {"clip:image": 23, "clip:text": 2}), bool)


def test_uncalibrated_experts_have_equal_shares() -> None:
    pool = uncalibrated({"a:image": 0.05, "a:text": 0.01, "b:image": 0.1, "c:image": 0.5}, "mean")
    assert [by_name["mean"] for by_name in pool.coefficients.values()] == pytest.approx([10, 50, 5, 1])
