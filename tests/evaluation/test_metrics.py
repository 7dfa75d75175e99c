"""Every metric against a table of 12 images and 4 categories worked by hand, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from zsvec.evaluation.metrics import (
    Accuracy,
    CategoryScore,
    LabelScore,
    auroc,
    average_precision,
    brier_score,
    by_category,
    confusion,
    interval_of_auroc,
    interval_of_difference,
    interval_of_share,
    mean_label_score,
    mean_score,
    paper_unknown_score,
    ranks,
    true_probability,
)
from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.fit import calibration_floor, expected_calibration_error
from zsvec.method.predict.scoring import rankings

prop = settings(deadline=None, max_examples=50)

A, B, C, D = range(4)
KNOWN = np.array([True, True, False, False])  # C and D are the open set

# truth, probabilities in sixteenths, novelty; then their consequences:
#                             answer  rank of truth  score of the paper: the shares of C + D in (p - min)
TABLE = [
    (A, (16, 0, 0, 0), 0.1),  # A  0  0
    (A, (8, 4, 2, 2), 0.2),  # A   0  (6, 2, 0, 0) / 8: 0
    (A, (4, 4, 4, 4), 0.3),  # A   0  all alike, 1/4 each: 1/2
    (B, (6, 6, 2, 2), 0.1),  # A   1  (A ties and comes first)   (4, 4, 0, 0) / 8: 0
    (B, (0, 12, 4, 0), 0.4),  # B  0  4/16: 1/4
    (B, (4, 4, 4, 4), 0.5),  # A   1  1/2
    (C, (4, 4, 4, 4), 0.5),  # A   2  1/2
    (C, (2, 2, 10, 2), 0.9),  # C  0  (0, 0, 8, 0) / 8: 1
    (C, (8, 4, 2, 2), 0.1),  # A   2  (C ties and comes first)   0
    (D, (4, 4, 4, 4), 0.6),  # A   3  1/2
    (D, (0, 0, 4, 12), 0.3),  # D  0  1
    (D, (6, 6, 2, 2), 0.8),  # A   3  (behind C)   0
]
TRUTH = np.array([truth for truth, _, _ in TABLE])
P = np.array([p for _, p, _ in TABLE], dtype=np.float64) / 16
NOVELTY = np.array([novelty for _, _, novelty in TABLE])
SCORES = [0, 0, 1 / 2, 0, 1 / 4, 1 / 2, 1 / 2, 1, 0, 1 / 2, 1, 0]


# ---- accuracy


def test_ranks() -> None:
    assert ranks(P, TRUTH).tolist() == [0, 0, 0, 1, 0, 1, 2, 0, 2, 3, 0, 3]
    # the truth at each rank, among 6 categories of falling probability
    rows = np.tile(np.array([6, 5, 4, 3, 2, 1]) / 21, (6, 1))
    assert ranks(rows, np.arange(6)).tolist() == list(range(6))


def test_a_category_without_a_column_is_missed() -> None:
    truth = np.array([-1, A, -1])
    assert (ranks(P[:3], truth) < 9).tolist() == [False, True, False]
    assert true_probability(P[:3], truth).tolist() == [0, 0.5, 0]
    assert brier_score(P[:3], truth)[0] == 2


@prop
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_ranks_equal_the_output_of_classify(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [chr(97 + position) for position in range(n)]
    probabilities = rng.integers(0, 3, (8, n)) / 4  # many ties
    truth = rng.integers(0, n, 8)
    printed = [[name for name, _ in ranking] for ranking in rankings(probabilities, np.arange(n), names, k)]
    assert (ranks(probabilities, truth) < k).tolist() == [
        names[t] in ranking for t, ranking in zip(truth, printed, strict=True)
    ]


# ---- quality of probabilities


def test_accuracy() -> None:
    own = np.array([16, 8, 4, 6, 12, 4, 4, 10, 2, 4, 12, 2]) / 16
    np.testing.assert_array_equal(true_probability(P, TRUTH), own)
    found = Accuracy.of(ranks(P, TRUTH), own, P.max(axis=1), brier_score(P, TRUTH))
    assert (found.top1, found.top3, found.top5) == (6 / 12, 10 / 12, 1)
    assert found.nll == pytest.approx(-np.log(own).mean())
    assert found.brier == pytest.approx(1664 / 256 / 12)
    # Answers of 1/4: 4, one right, as it should be; 3/8: 2, none, off by 0.75 together; 1/2: 2, one right;
    # 5/8: 1, right, off by 0.375; 3/4: 2, both right, off by 0.5; 1: 1, right. Each value has another bin.
    assert found.ece == pytest.approx((0.75 + 0.375 + 0.5) / 12)
    assert Accuracy.of([0, 9], [1, 0], [1, 1], [0, 2]).nll is None


def test_brier_score() -> None:
    # In 256ths; the second row is (16 - 8)² + 4² + 2² + 2².
    expected = [0, 88, 192, 144, 32, 192, 192, 48, 280, 192, 32, 272]
    np.testing.assert_allclose(brier_score(P, TRUTH), np.array(expected) / 256)


@pytest.mark.parametrize(
    ("confidence", "floor"),
    [
        ([1.0], 0),
        ([0.0, 1.0], 0),
        ([0.5], 1 / 2),  # off by a half, right or wrong
        ([0.9], 2 * 0.9 * 0.1),  # off by 0.1 in nine draws of ten, by 0.9 in one
        ([0.5, 0.5], 1 / 4),  # both right or both wrong half of the time
        ([0.5, 0.9], (1 / 2 + 2 * 0.9 * 0.1) / 2),  # in two bins
        ([0.5, 1.0, 1.0, 1.0], 1 / 8),
    ],
)
def test_floor_of_the_calibration_error(confidence: list[float], floor: float) -> None:
    assert calibration_floor(np.array(confidence), simulations=10_000) == pytest.approx(floor, abs=0.01)
    assert calibration_floor(np.array(confidence), seed=1) == calibration_floor(np.array(confidence[::-1]), seed=1)


def test_floor_is_lower_the_more_images_there_are() -> None:
    few, many = (calibration_floor(np.full(n, 0.8)) for n in (100, 10_000))
    assert few == pytest.approx(10 * many, rel=0.2)
    # The mean absolute deviation of a normal distribution is √(2/π) of its standard one.
    assert few == pytest.approx(np.sqrt(2 / np.pi * 0.8 * 0.2 / 100), rel=0.1)


@prop
@given(st.integers(0, 2**32 - 1), st.integers(2, 10), st.sampled_from([1.0, 5.0]))
def test_answers_as_right_as_they_are_confident_have_an_error_near_the_floor(
    seed: int, n_categories: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    p = np.exp(scale * rng.normal(size=(5000, n_categories)))
    p /= p.sum(axis=1, keepdims=True)
    truth = (rng.random((5000, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    error = expected_calibration_error(p.max(axis=1), ranks(p, truth) == 0)
    floor = calibration_floor(p.max(axis=1))
    assert abs(error - floor) < 0.02
    distorted = p**4 / (p**4).sum(axis=1, keepdims=True)
    assert brier_score(p, truth).mean() < brier_score(distorted, truth).mean()


# ---- the unknown


def test_the_score_of_the_paper() -> None:
    np.testing.assert_allclose(paper_unknown_score(P, KNOWN), SCORES, atol=1e-15)
    np.testing.assert_allclose(paper_unknown_score(P, ~KNOWN), 1 - np.array(SCORES), atol=1e-15)
    assert paper_unknown_score(P, np.ones(4, dtype=bool)).tolist() == [0.0] * 12
    assert paper_unknown_score(P, np.zeros(4, dtype=bool)).tolist() == [1.0] * 12


def test_auroc_as_in_the_paper() -> None:
    # Of the 6 known 0, 0, 1/2, 0, 1/4, 1/2 there are below an unknown one, ties counting half:
    # 1/2: 4 + 2/2; 1: 6; 0: 3/2; 1/2: 5; 1: 6; 0: 3/2. Together 25 of 36.
    assert auroc(paper_unknown_score(P, KNOWN), ~KNOWN[TRUTH]) == pytest.approx(25 / 36)


def test_auroc_of_novelty() -> None:
    # Of the known 0.1, 0.2, 0.3, 0.1, 0.4, 0.5 there are below an unknown one, ties counting half:
    # 0.5: 5 + 1/2; 0.9: 6; 0.1: 2/2; 0.6: 6; 0.3: 3 + 1/2; 0.8: 6. Together 28 of 36.
    assert auroc(NOVELTY, ~KNOWN[TRUTH]) == pytest.approx(28 / 36)


@prop
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32))
def test_auroc_equals_scikit_learn(known: int, unknown: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    novelty = rng.choice(rng.normal(size=values), known + unknown)  # with ties within and across
    is_unknown = rng.permutation(np.repeat([False, True], [known, unknown]))
    assert auroc(novelty, is_unknown) == pytest.approx(roc_auc_score(is_unknown, novelty), rel=1e-13, abs=1e-15)


# ---- intervals


def test_interval_of_a_share() -> None:
    assert interval_of_share(np.ones(7, dtype=bool)) == (1.0, 1.0)
    assert interval_of_share(np.zeros(3, dtype=bool)) == (0.0, 0.0)
    # Of one hit and one miss, a sample has none or both a quarter of the time each.
    assert interval_of_share(np.array([False, True])) == (0.0, 1.0)


def test_interval_of_a_share_equals_resampling() -> None:
    hits = np.repeat([False, True], [100, 300])
    wide = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    expected = pytest.approx((0.75 - wide, 0.75 + wide), abs=0.004)
    assert interval_of_share(hits) == expected
    shares = np.random.default_rng(0).choice(hits, (4000, 400)).mean(axis=1)
    assert interval_of_share(hits) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.004)


def test_interval_of_a_difference() -> None:
    hits, others = np.repeat([True, False], [60, 40]), np.repeat([True, False, True], [50, 10, 40])
    # 40 of 100 images are gained, and 10 are lost: the variance of a difference is .4 + .1 - .3².
    wide = 1.96 * np.sqrt((0.5 - 0.09) / 100)
    assert interval_of_difference(hits, others) == pytest.approx((0.3 - wide, 0.3 + wide), abs=0.011)
    assert interval_of_difference(hits, hits) == (0.0, 0.0)
    assert interval_of_difference(~hits | hits, hits & ~hits) == (-1.0, -1.0)


def test_interval_of_the_auroc() -> None:
    is_unknown = np.repeat([False, True], 5)
    assert interval_of_auroc(np.arange(10.0), is_unknown) == (1.0, 1.0)
    assert interval_of_auroc(-np.arange(10.0), is_unknown) == (0.0, 0.0)
    assert interval_of_auroc(np.zeros(10), is_unknown) == (0.5, 0.5)
    assert interval_of_auroc(np.arange(2.0), np.array([False, True]), draws=3) == (1.0, 1.0)


def test_interval_of_the_auroc_equals_resampling() -> None:
    rng = np.random.default_rng(5)
    is_unknown = np.repeat([False, True], [40, 25])
    score = np.round(rng.normal(size=65) + is_unknown, 1)
    known = rng.choice(score[~is_unknown], (2000, 40))
    unknown = rng.choice(score[is_unknown], (2000, 25))
    pairs = unknown[:, :, None] - known[:, None]
    areas = ((pairs > 0) + (pairs == 0) / 2).mean(axis=(1, 2))
    assert areas[0] == pytest.approx(roc_auc_score(is_unknown, np.concatenate([known[0], unknown[0]])))
    expected = np.quantile(areas, [0.025, 0.975])
    np.testing.assert_allclose(interval_of_auroc(score, is_unknown, draws=2000), expected, atol=0.015)


# ---- invariants


@st.composite
def images(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """Probabilities of 4 categories with many ties, truth with both known and unknown ones, novelty, and an order."""
    n = draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(0, 4, (n, 4)) + np.eye(4)[rng.integers(0, 4, n)]
    truth = np.concatenate([[A, D], rng.integers(0, 4, n - 2)]).astype(np.intp)
    return counts / counts.sum(axis=1, keepdims=True), truth, rng.integers(0, 6, n) / 5, rng.permutation(n)


@prop
@given(images())
def test_the_order_of_the_images_changes_nothing(
    drawn: tuple[Doubles, NDArray[np.intp], Doubles, NDArray[np.intp]],
) -> None:
    p, truth, novelty, order = drawn

    def measured(p: Doubles, truth: NDArray[np.intp], novelty: Doubles) -> list[float]:
        hits, is_unknown = ranks(p, truth) == 0, ~KNOWN[truth]
        return [
            *((ranks(p, truth) < k).mean() for k in (1, 3, 5)),
            expected_calibration_error(p.max(axis=1), hits),
            calibration_floor(p.max(axis=1)),
            true_probability(p, truth).mean(),
            brier_score(p, truth).mean(),
            auroc(paper_unknown_score(p, KNOWN), is_unknown),
            auroc(novelty, is_unknown),
            *interval_of_share(hits),
            *interval_of_auroc(novelty, is_unknown, draws=20),
        ]

    np.testing.assert_allclose(measured(p[order], truth[order], novelty[order]), measured(p, truth, novelty))


@prop
@given(images())
def test_areas(drawn: tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]) -> None:
    p, truth, novelty, _ = drawn
    is_unknown = ~KNOWN[truth]
    area = auroc(novelty, is_unknown)
    assert auroc(-novelty, is_unknown) == pytest.approx(1 - area)
    assert auroc(novelty, ~is_unknown) == pytest.approx(1 - area)
    above = novelty[is_unknown][:, None] - novelty[~is_unknown]
    assert area == pytest.approx(((above > 0) + (above == 0) / 2).mean())
    score = paper_unknown_score(p, KNOWN)
    assert ((score >= 0) & (score <= 1)).all()
    # A row counts by its shape: neither its scale nor its offset matters.
    np.testing.assert_allclose(paper_unknown_score(3 * p + 1, KNOWN), score, atol=1e-12)


# ---- by category, against a table worked by hand and against scikit-learn

TRUE = ["cat", "cat", "cat", "dog", "dog", "fox", "cat"]
ANSWERED = ["cat", "dog", "cat", "dog", "cow", "cat", "dog"]
UNKNOWN = [False, True, False, False, False, True, False]


def test_scores_by_hand() -> None:
    found = by_category(TRUE, ANSWERED, UNKNOWN)
    assert list(found) == ["cat", "cow", "dog", "fox"]
    assert found["cat"] == CategoryScore(4, 2 / 3, 1 / 2, 4 / 7, 1 / 4)
    assert found["cow"] == CategoryScore(0, 0.0, None, 0.0, None)  # answered, and nothing is one
    assert found["dog"] == CategoryScore(2, 1 / 3, 1 / 2, 2 / 5, 0.0)
    assert found["fox"] == CategoryScore(1, None, 0.0, 0.0, 1.0)  # never answered
    mean = mean_score(found)
    assert (mean.images, mean.precision, mean.recall) == (7, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (mean.f1, mean.called_unknown) == (pytest.approx((4 / 7 + 2 / 5) / 3), pytest.approx(5 / 12))


def test_confusions_by_hand() -> None:
    names = ["cat", "cow", "dog", "fox", "owl"]
    assert confusion(TRUE, ANSWERED, names[:4]).tolist() == [[2, 0, 2, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert confusion(TRUE, ANSWERED, names)[4].tolist() == [0] * 5


def test_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    truth, answers = ([f"c{i}" for i in rng.integers(5, size=200)] for _ in range(2))
    expected = classification_report(truth, answers, output_dict=True)
    found = by_category(truth, answers, [False] * 200)
    for name, score in {**found, "macro avg": mean_score(found)}.items():
        assert expected[name] == {
            "precision": pytest.approx(score.precision),
            "recall": pytest.approx(score.recall),
            "f1-score": pytest.approx(score.f1),
            "support": score.images,
        }
    assert np.array_equal(confusion(truth, answers, sorted(found)), confusion_matrix(truth, answers))


# ---- several labels an image


def test_average_precision_by_hand() -> None:
    score, yes = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(score, yes) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(np.full(4, 0.5), yes) == 0.5  # all of one rank
    assert average_precision(-score, yes) == pytest.approx((1 / 2 + 2 / 4) / 2)


@prop
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1).filter(lambda rows: any(yes for _, yes in rows))
)
def test_scores_of_a_label_are_those_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    probability, yes = np.array([p / 8 for p, _ in rows]), np.array([yes for _, yes in rows])
    given = probability >= 0.5
    found = LabelScore.of(probability, given, yes)
    assert found.images == yes.sum()
    assert found.average_precision == pytest.approx(average_precision_score(yes, probability))
    precision, recall, f1, _ = precision_recall_fscore_support(yes, given, average="binary", zero_division=0)
    assert (found.precision or 0, found.recall, found.f1) == pytest.approx((precision, recall, f1))
    assert (found.precision is None) == (not given.any())
    assert (found.false_positives is None) == yes.all()
    assert found.ece == expected_calibration_error(probability, yes)


def test_the_mean_over_labels() -> None:
    one = LabelScore.of(np.array([0.9, 0.1]), np.array([True, False]), np.array([True, False]))
    other = LabelScore.of(np.array([0.1, 0.1]), np.array([False, False]), np.array([True, True]))
    mean = mean_label_score({"one": one, "other": other}, 2)
    assert (mean.images, mean.precision, mean.recall, mean.f1, mean.false_positives) == (2, 0.5, 0.5, 0.5, 0)
    assert mean_label_score({"other": other}, 2).false_positives is None
    wrong = LabelScore.of(np.array([0.9, 0.9]), np.array([True, True]), np.array([True, False]))
    assert mean_label_score({"other": other, "wrong": wrong}, 2).false_positives == 1  # every image has the other
