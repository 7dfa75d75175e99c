"""Precision, recall and F1 by category, against a table worked by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from zsvec.evaluation.by_category import CategoryScore, by_category, confusion, mean_score, mistakes, names_in

TRUTH = ["cat", "cat", "cat", "dog", "dog", "fox", "cat"]
ANSWERS = ["cat", "dog", "cat", "dog", "cow", "cat", "dog"]
UNKNOWN = [False, True, False, False, False, True, False]


def test_scores_by_hand() -> None:
    found = by_category(TRUTH, ANSWERS, UNKNOWN)
    assert list(found) == ["cat", "cow", "dog", "fox"]
    assert found["cat"] == CategoryScore(4, 2 / 3, 1 / 2, 4 / 7, 1 / 4)
    assert found["cow"] == CategoryScore(0, 0.0, None, 0.0, None)  # answered, and nothing is one
    assert found["dog"] == CategoryScore(2, 1 / 3, 1 / 2, 2 / 5, 0.0)
    assert found["fox"] == CategoryScore(1, None, 0.0, 0.0, 1.0)  # never answered
    mean = mean_score(found)
    assert (mean.images, mean.precision, mean.recall) == (7, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (mean.f1, mean.called_unknown) == (pytest.approx((4 / 7 + 2 / 5) / 3), pytest.approx(5 / 12))


def test_confusions_by_hand() -> None:
    assert names_in(TRUTH, ANSWERS) == ("cat", "cow", "dog", "fox")
    assert confusion(TRUTH, ANSWERS).tolist() == [[2, 0, 2, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert mistakes(TRUTH, ANSWERS) == [("cat", "dog", 2), ("dog", "cow", 1), ("fox", "cat", 1)]
    assert mistakes(["cat"], ["cat"]) == []


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
    assert np.array_equal(confusion(truth, answers), confusion_matrix(truth, answers))
