"""The table of strategies, and the choice of the one that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.method.material import Vectors, calibrated, clusters, searched, texts
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.calibration import CENTRED, GDA, Calibration
from zsvec.method.predict.fusion import STRATEGIES, limit
from zsvec.method.predict.scoring import Scoring

PAPERS = ("max_confidence", "inverse_entropy", "neg_exp_entropy", "fixed")
NAMES = (*PAPERS, "log_linear", "log_linear_views", "log_linear_gda", "transductive")
UNCALIBRATED = {"log_linear_views": "log_linear", "log_linear_gda": "log_linear"}


def test_strategies_by_name() -> None:
    assert tuple(STRATEGIES) == NAMES
    assert DEFAULT_STRATEGY in STRATEGIES
    summaries = [strategy.summary for strategy in STRATEGIES.values()]
    assert len(set(summaries)) == len(summaries)
    assert all(summary and "\n" not in summary for summary in summaries)


def fallbacks(name: str) -> Iterator[str]:
    while fallback := STRATEGIES[name].fallback:
        yield fallback
        name = fallback


def test_every_strategy_that_needs_something_falls_back_to_one_that_needs_nothing() -> None:
    for name in NAMES:
        *_, last = (name, *fallbacks(name))
        strategy = STRATEGIES[last]
        assert not any([strategy.needs_exact, strategy.needs_calibration, strategy.needs_images])


def test_requirements_of_strategies() -> None:
    assert {name for name, strategy in STRATEGIES.items() if strategy.needs_exact} == {
        "log_linear_views",
        "log_linear_gda",
    }
    assert {name for name, strategy in STRATEGIES.items() if strategy.needs_calibration} == {
        "log_linear_views",
        "log_linear_gda",
    }
    assert {name for name, strategy in STRATEGIES.items() if strategy.classwise} == {"log_linear_gda", "transductive"}
    assert {name for name, strategy in STRATEGIES.items() if strategy.needs_classwise} == {"log_linear_gda"}
    assert {name for name, strategy in STRATEGIES.items() if strategy.needs_images} == {
        "log_linear_gda",
        "transductive",
    }
    assert {name for name, strategy in STRATEGIES.items() if not strategy.several_aggregations} == {"log_linear"}


# ---- which one runs

TEMPERATURES = {"clip:text": 0.05, "clip:image": 0.07, "dino:image": 0.07}


@pytest.fixture(scope="module")
def experts() -> Mapping[str, Vectors]:
    rng = np.random.default_rng(0)
    sizes = {"a": 4, "b": 3, "c": 6}
    return {
        "clip:text": texts(rng, "abc"),
        "clip:image": clusters(rng, sizes, 0.8),
        "dino:image": clusters(rng, sizes, 0.8),
    }


@pytest.fixture(scope="module")
def calibration(experts: Mapping[str, Vectors]) -> Calibration:
    return calibrated(experts)[0]


@pytest.fixture(scope="module")
def queries(experts: Mapping[str, Vectors]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    images = {expert.removesuffix(":image"): vectors for expert, vectors in experts.items() if "image" in expert}
    near = {
        encoder: np.array([next(iter(of_category.values())) for of_category in vectors.values()])
        for encoder, vectors in images.items()
    }
    vectors = {encoder: rows + 0.1 * rng.normal(size=rows.shape) for encoder, rows in near.items()}
    return {encoder: rows / np.linalg.norm(rows, axis=1, keepdims=True) for encoder, rows in vectors.items()}


def unchanged(*names: str) -> dict[str, str]:
    return {name: name for name in names}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, unchanged(*NAMES)),
        ({"bound": 0.2}, unchanged(*PAPERS, "log_linear", "transductive") | UNCALIBRATED),
        ({"calibration": None}, unchanged(*PAPERS, "log_linear", "transductive") | UNCALIBRATED),
        ({"calibrated": False}, unchanged(*PAPERS, "log_linear", "transductive") | UNCALIBRATED),
        # The calibration is of another way of scoring.
        ({"top_m": 4}, unchanged(*PAPERS, "log_linear", "transductive") | UNCALIBRATED),
        ({"calibration": None, "bound": 0.2}, unchanged(*PAPERS, "log_linear", "transductive") | UNCALIBRATED),
        (
            {"only": "text"},
            unchanged(*NAMES) | {"log_linear_gda": "log_linear_views", "transductive": "log_linear_views"},
        ),
        (
            {"only": "text", "calibration": None},
            unchanged(*PAPERS, "log_linear") | dict.fromkeys(NAMES[-3:], "log_linear"),
        ),
        ({"only": "image"}, unchanged(*NAMES)),
    ],
)
def test_the_strategy_that_runs_is_named_and_is_the_one_that_runs(
    case: dict[str, Any],
    expected: dict[str, str],
    experts: Mapping[str, Vectors],
    calibration: Calibration,
    queries: dict[str, np.ndarray],
) -> None:
    options = dict(case)
    kept = {name: vectors for name, vectors in experts.items() if options.get("only", "") in name}
    options.pop("only", None)
    found = searched(
        kept, queries, calibration=options.pop("calibration", calibration), bound=options.pop("bound", None)
    )
    assert found.exact == ("bound" not in case)
    scores = {name: Scoring(temperatures=TEMPERATURES, fusion=name, **options).scores(found) for name in STRATEGIES}
    assert {name: of_name.fusion for name, of_name in scores.items()} == expected
    for name, ran in expected.items():
        np.testing.assert_array_equal(scores[name].fused, scores[ran].fused)
        np.testing.assert_array_equal(scores[name].confidence, scores[ran].confidence)
        for prediction in Scoring(temperatures=TEMPERATURES, fusion=name, **options).predict(found, "xyz", 2):
            assert prediction.fusion == ran
    # Strategies without fallback differ from each other.
    distinct = [scores[name].fused for name, ran in expected.items() if name == ran]
    if len(kept) > 1:
        assert len({fused.tobytes() for fused in distinct}) == len(distinct)


@pytest.mark.parametrize(
    "arrived",
    [
        {"clip:image": 1, "dino:image": 1, "clip:text": 1},
        {"clip:image": 2, "dino:image": 2},
        {"clip:text": 1},
        {"dino:image": 4},
        {"clip:image": 1, "clip:text": 1},
    ],
    ids=" and ".join,
)
def test_a_new_category_of_any_evidence_leaves_the_order_of_the_others(
    arrived: Mapping[str, int],
    experts: Mapping[str, Vectors],
    calibration: Calibration,
    queries: dict[str, np.ndarray],
) -> None:
    rng = np.random.default_rng(2)
    more = {name: {**vectors, **clusters(rng, {"b2": arrived.get(name, 0)}, 0.8)} for name, vectors in experts.items()}
    more = {name: {category: one for category, one in vectors.items() if one} for name, vectors in more.items()}
    scoring = Scoring(temperatures=TEMPERATURES)
    before = scoring.scores(searched(experts, queries, calibration=calibration))
    after = scoring.scores(searched(more, queries, calibration=calibration))
    assert before.fusion == after.fusion == "log_linear_gda"
    assert (after.fused[:, 2] > 0).all()  # a, b, b2, c
    np.testing.assert_array_equal(after.fused[:, [0, 1, 3]].argsort(axis=1), before.fused.argsort(axis=1))


def test_one_category_of_an_encoder_leaves_category_means_to_the_other_encoders(
    experts: Mapping[str, Vectors], queries: dict[str, np.ndarray]
) -> None:
    some = {**experts, "dino:image": {"b": experts["dino:image"]["b"]}}
    made = calibrated(some)[0]
    assert made.classwise is not None
    assert made.backgrounds.keys() == {"clip:image"}
    assert made.classwise.coefficients["clip:image"].keys() >= {CENTRED, GDA}
    assert made.classwise.coefficients["dino:image"].keys() == {"top_mean"}
    read = Calibration.from_dict(made.to_dict())
    scores = Scoring(temperatures=TEMPERATURES).scores(searched(some, queries, calibration=read))
    assert scores.fusion == "log_linear_gda"


@pytest.mark.parametrize("change", ["none", "short"])
def test_backgrounds_of_other_encoders_are_not_used(
    change: str, experts: Mapping[str, Vectors], calibration: Calibration, queries: dict[str, np.ndarray]
) -> None:
    backgrounds = dict(calibration.backgrounds)
    clip = backgrounds.pop("clip:image")
    if change == "short":
        backgrounds["clip:image"] = replace(clip, mean=clip.mean[:3], basis=clip.basis[:, :3])
    found = searched(experts, queries, calibration=replace(calibration, backgrounds=backgrounds))
    assert Scoring(temperatures=TEMPERATURES, fusion="log_linear_gda").scores(found).fusion == "log_linear_views"


def test_a_limit_of_probabilities_by_hand() -> None:
    given = np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1 / 3] * 3])
    # 0.9 to 0.5: 12/17 of the way to one third. A limit of one third makes a distribution uniform.
    expected = [[0.9, 0.1, 0.0], [0.5, 9 / 34, 4 / 17], [0.5, 0.3, 0.2], [1 / 3] * 3, [1 / 3] * 3]
    np.testing.assert_allclose(
        limit(given, np.array([0.9, 0.5, 0.6, 1 / 3, 1.0]), np.full(3, True)), expected, atol=1e-12
    )


def test_a_category_without_references_keeps_the_probability_0() -> None:
    got = limit(np.array([[0.9, 0.1, 0.0]]), np.array([0.6]), np.array([True, True, False]))
    np.testing.assert_allclose(got, [[0.6, 0.4, 0.0]])


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n, max_size=n)), st.floats(0, 1))
def test_a_limit_keeps_the_order_and_the_sum(weights: list[float], doubt: float) -> None:
    assume(sum(weights) > 1e-6)
    row = np.array([weights]) / sum(weights)
    largest = 1 - doubt * (1 - 1 / len(weights))
    got = limit(row, np.array([largest]), np.full(len(weights), True))
    assert got.sum() == pytest.approx(1)
    assert got.max() <= max(largest, 1 / len(weights)) + 1e-9
    order = np.argsort(row[0], kind="stable")
    assert (np.diff(got[0][order]) >= -1e-12).all()
    if row.max() <= largest:
        np.testing.assert_array_equal(got, row)


def test_equal_probabilities_are_never_limited() -> None:
    equal = np.full((1, 3), 1 / 3)
    np.testing.assert_array_equal(limit(equal, np.array([1 - (1 - 1 / 3)]), np.full(3, True)), equal)
