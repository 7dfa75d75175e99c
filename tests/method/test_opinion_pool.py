from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsvec.method.predict.logits import softmax
from zsvec.method.predict.opinion_pool import covering_sets, expert_evidence, log_linear, neutral_evidence, pattern

NAN = np.nan

prop = settings(deadline=None, max_examples=50)

Pool = tuple[np.ndarray, tuple[str, ...], dict[str, float]]  # evidence, experts, neutral

TWO = ("a:image", "a:text")


def pooled(
    evidence: Sequence[Sequence[float]] | np.ndarray, neutral: Mapping[str, float], experts: Sequence[str] = TWO
) -> np.ndarray:
    """Of one image."""
    return log_linear(np.array(evidence, dtype=np.float64)[:, None, :], experts, neutral)[0]


def test_evidence_of_an_expert_adds_up_its_aggregations() -> None:
    similarities = {
        "a:image": {"max": np.array([[0.5, NAN]], np.float32), "mean": np.array([[0.25, NAN]], np.float32)},
        "a:text": {"max": np.array([[0.5, -0.5]], np.float32), "mean": np.array([[1, 1]], np.float32)},
    }
    got = expert_evidence({"a:text": {"max": 10.0}, "a:image": {"max": 2.0, "mean": 4.0}}, similarities)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [[[2.0, NAN]], [[5.0, -5.0]]])


def test_evidence_of_means_has_a_lower_bound_by_hand() -> None:
    # ln(exp(0) + 1/100), ln(exp(-2) + 1/100), ln(exp(-40) + 1/100) and 30, which is far above.
    similarity = {"gda": np.array([[0, -20, -400, 300, NAN]], dtype=np.float32)}
    others = {"max": similarity["gda"]}
    coefficients = {"a:image": {"gda": 0.1}, "b:image": {"max": 0.1}}
    found = expert_evidence(coefficients, {"a:image": similarity, "b:image": others}, math.log(0.01))
    assert found[0, 0] == pytest.approx([0.00995, -1.92871, -4.60517, 30, NAN], abs=1e-5, nan_ok=True)
    assert found[1, 0] == pytest.approx([0, -2, -40, 30, NAN], abs=1e-5, nan_ok=True)


def test_pattern() -> None:
    for chosen, expected in [
        ([True, False, False], "dino:image"),
        ([True, True, False], "clip:text+dino:image"),
        ([True, True, True], "clip:image+clip:text+dino:image"),
        ([False, False, False], ""),
    ]:
        assert pattern(["dino:image", "clip:text", "clip:image"], np.array(chosen)) == expected


def test_covering_sets_are_the_different_columns() -> None:
    for n_experts in [1, 3, 8, 9, 70]:
        for n_categories in [1, 40]:
            rng = np.random.default_rng(n_experts)
            coverage = rng.random((n_experts, 5))[:, rng.integers(5, size=n_categories)] < 0.5
            sets, of_category = covering_sets(coverage)
            np.testing.assert_array_equal(sets[of_category].T, coverage)
            assert len({tuple(covering) for covering in sets.tolist()}) == len(sets) <= min(5, n_categories)


def test_log_linear_of_full_coverage_by_hand() -> None:
    # (1/2, 1/4, 1/4) · (1/8, 3/8, 1/2) = (2, 3, 4) / 32
    logs = np.log([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5]])
    got = pooled(logs, {"a:image+a:text": -1.5})
    np.testing.assert_allclose(got, np.log([2 / 32, 3 / 32, 4 / 32]) + 1.5, rtol=1e-12)
    np.testing.assert_allclose(softmax(got), [2 / 9, 3 / 9, 4 / 9], rtol=1e-12)


def test_log_linear_of_partial_coverage_by_hand() -> None:
    neutral = {"a:image": 0.5, "a:text": 0.25, "a:image+a:text": 1.0}
    got = pooled([[2.0, 3.0, NAN, NAN], [1.0, NAN, 4.0, NAN]], neutral)
    np.testing.assert_allclose(got, [2 + 1 - 1, 3 + 0.25 - 1, 4 + 0.5 - 1, -np.inf], rtol=1e-12)


def test_log_linear_without_neutral_evidence_takes_the_mean_likelihood() -> None:
    # Of the image expert (2 + 4) / 2 = 3, of the text (1 + 5 + 6) / 3 = 4, of both 12.
    got = pooled(np.log([[2.0, 4.0, NAN], [1.0, 5.0, 6.0]]), {})
    np.testing.assert_allclose(got, np.log([2 / 12, 20 / 12, 6 * 3 / 12]), rtol=1e-12)


def test_joint_neutral_evidence_precedes_single_evidence() -> None:
    evidence = np.log([[[2.0, 4.0]], [[1.0, 5.0]], [[1.0, 1.0]]])
    experts, neutral = ("x", "y", "z"), {"x+y": 7.0, "y": 2.0}
    for chosen, expected in [
        ([True, True, False], 7.0),
        ([False, True, False], 2.0),
        ([True, False, False], np.log(3)),
        ([False, True, True], 2.0),
        ([True, True, True], np.log(3) + 2.0),  # independent, though two of the three have a common name
    ]:
        got = neutral_evidence(evidence, experts, neutral, np.array(chosen))
        np.testing.assert_allclose(got, [expected], rtol=1e-12)


def test_neutral_evidence_is_per_image_over_covered_categories() -> None:
    evidence = np.log([[[2.0, 4.0, NAN], [1.0, 1.0, NAN]], [[NAN] * 3, [NAN] * 3]])
    np.testing.assert_allclose(neutral_evidence(evidence, TWO, {}, np.array([True, False])), np.log([3, 1]))
    np.testing.assert_array_equal(neutral_evidence(evidence, TWO, {}, np.array([False, True])), [0, 0])


@st.composite
def pools(draw: st.DrawFn, *, named: bool = False) -> Pool:
    """Evidence, the experts, and neutral evidence of some or all sets of experts."""
    n_experts, n_images, n_categories = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    experts = tuple("abcd"[:n_experts])
    nats = st.floats(-30, 30)
    evidence = np.array([[[draw(nats) for _ in range(n_categories)] for _ in range(n_images)] for _ in experts])
    for row in evidence:
        row[:, draw(st.lists(st.booleans(), min_size=n_categories, max_size=n_categories))] = NAN
    sets = [np.array([bits >> e & 1 for e in range(n_experts)], dtype=bool) for bits in range(1, 2**n_experts)]
    return evidence, experts, {pattern(experts, chosen): draw(nats) for chosen in sets if named or draw(st.booleans())}


@prop
@given(pools())
def test_log_linear_is_the_product_of_the_experts(case: Pool) -> None:
    evidence, experts, neutral = case
    evidence = np.nan_to_num(evidence)
    product = np.prod([softmax(expert) for expert in evidence], axis=0)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(log_linear(evidence, experts, neutral)), expected, rtol=1e-9, atol=1e-12)


@prop
@given(pools(), st.randoms(use_true_random=False))
def test_order_of_experts_and_categories_does_not_matter_to_log_linear(case: Pool, random: object) -> None:
    evidence, experts, neutral = case
    order, columns = list(range(len(experts))), list(range(evidence.shape[2]))
    random.shuffle(order)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    before = evidence.copy()
    got = log_linear(evidence[order][..., columns], [experts[e] for e in order], neutral)
    np.testing.assert_allclose(got, log_linear(evidence, experts, neutral)[:, columns], atol=1e-9)
    np.testing.assert_array_equal(evidence, before)


@prop
@given(pools())
def test_exactly_uncovered_categories_are_impossible(
    case: Pool,
) -> None:
    evidence, experts, neutral = case
    got = log_linear(evidence, experts, neutral)
    assert got.dtype == np.float64
    uncovered = np.isnan(evidence).all(axis=0)
    assert (got[uncovered] == -np.inf).all()
    assert np.isfinite(got[~uncovered]).all()


@prop
@given(pools(named=True), st.data())
def test_a_category_that_lacks_an_expert_leaves_the_others_as_they_are(case: Pool, data: st.DataObject) -> None:
    evidence, experts, neutral = case
    has = data.draw(st.lists(st.booleans(), min_size=len(experts), max_size=len(experts)))
    column = np.where(np.array(has)[:, None, None], data.draw(st.floats(-30, 30)), NAN)
    more = np.concatenate([evidence, np.broadcast_to(column, (*evidence.shape[:2], 1))], axis=2)
    got = log_linear(more, experts, neutral)
    np.testing.assert_allclose(got[:, :-1], log_linear(evidence, experts, neutral), atol=1e-9)


@prop
@given(pools(), st.data())
def test_neutral_evidence_is_as_good_as_none(case: Pool, data: st.DataObject) -> None:
    evidence, experts, _ = case
    neutral = {pattern(experts, one): data.draw(st.floats(-30, 30)) for one in np.eye(len(experts), dtype=bool)}
    said = np.array([neutral[expert] for expert in experts])[:, None, None]
    filled = np.where(np.isnan(evidence), said, evidence)
    covered = ~np.isnan(evidence).all(axis=(0, 1))
    got = log_linear(evidence, experts, neutral)
    np.testing.assert_allclose(got[:, covered], log_linear(filled, experts, neutral)[:, covered], atol=1e-9)


@prop
@given(pools(), st.data())
def test_a_weight_multiplies_the_evidence_of_an_expert(case: Pool, data: st.DataObject) -> None:
    evidence, experts, neutral = case
    evidence = np.nan_to_num(evidence)
    weights = 2.0 ** np.array([[data.draw(st.integers(-3, 3)) for _ in row] for row in evidence])
    weighted = softmax(log_linear(evidence, experts, neutral, weights))
    np.testing.assert_allclose(
        weighted, softmax(log_linear(evidence * weights[..., None], experts, neutral)), atol=1e-9
    )
    chosen = data.draw(st.integers(0, len(experts) - 1))
    double, louder = np.ones(weights.shape), evidence.copy()
    double[chosen] = 2
    louder[chosen] *= 2
    difference = log_linear(evidence, experts, neutral, double) - log_linear(louder, experts, neutral)
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-9)


def test_weighted_evidence_of_partial_coverage_by_hand() -> None:
    # Neutral evidence of one expert has the weight of that expert; of all experts, the mean weight.
    neutral = {"a:image": 0.5, "a:text": 0.25, "a:image+a:text": 1.0}
    evidence = np.array([[[2.0, 3.0, NAN, NAN]], [[1.0, NAN, 4.0, NAN]]])
    got = log_linear(evidence, TWO, neutral, np.array([[3.0], [0.5]]))
    np.testing.assert_allclose(got, [[6 + 0.5 - 1.75, 9 + 0.125 - 1.75, 2 + 1.5 - 1.75, -np.inf]], rtol=1e-12)
