from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from tests.method.material import Vectors, clusters, references, searched, unit
from zsvec.method.calibrate.coefficients import scaled
from zsvec.method.calibrate.fit import LabelSettings, fit_calibration
from zsvec.method.calibrate.labels import best_f1_threshold, learn_labels
from zsvec.method.calibrate.leave_one_out import LeftOut, leave_one_out
from zsvec.method.calibration import Calibration, LabelModel
from zsvec.method.predict.labels import chosen_labels, label_features, label_probabilities, label_thresholds
from zsvec.method.predict.scoring import Scoring
from zsvec.method.quality.label_errors import judge, verdicts
from zsvec.method.quality.scenes import image_rows, scenes

NAN = np.nan
MODEL = LabelModel(intercept=-1.0, own=1.0, mean=-0.5, largest=0.25, threshold=0.5)


def sigmoid(odds: float) -> float:
    return float(1 / (1 + np.exp(-odds)))


# ---- prediction


def test_probabilities_by_hand() -> None:
    evidence = np.array([[4.0, 0.0, -np.inf]])  # mean 2 and maximum 4 of the two covered categories
    np.testing.assert_allclose(label_probabilities(evidence, MODEL), [[sigmoid(3), sigmoid(-1), 0]])


def test_extreme_evidence_is_no_error() -> None:
    found = label_probabilities(np.array([[1e6, -1e6]]), replace(MODEL, mean=0.0, largest=0.0))
    np.testing.assert_allclose(found, [[1, 0]], atol=1e-9)


def test_a_category_can_have_its_own_threshold() -> None:
    model = replace(MODEL, category_thresholds={"b": 0.9})
    assert label_thresholds(["a", "b"], model).tolist() == [0.5, 0.9]
    probabilities = np.array([[0.5, 0.89], [0.6, 0.95], [0.4, 0.1]])
    chosen = chosen_labels(probabilities, label_thresholds(["a", "b"], model), ["a", "b"])
    assert chosen == [(("a", 0.5),), (("b", 0.95), ("a", 0.6)), ()]


def test_a_category_that_nothing_covers_is_never_a_label() -> None:
    assert chosen_labels(np.array([[0.0]]), np.array([0.0]), ["a"]) == [()]


# ---- learning


def pairs(images: int, categories: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    evidence = 2 * rng.normal(size=(images, categories))
    return evidence, rng.random(evidence.shape) < 1 / (1 + np.exp(2 - 1.5 * evidence))


def test_the_regression_is_that_of_scikit_learn() -> None:
    evidence, yes = pairs(60)
    model = learn_labels(evidence, yes, "abcdef", None)
    assert model is not None
    assert (model.images, model.false_positive_rate, model.category_thresholds) == (60, None, {})
    features = label_features(evidence).reshape(3, -1).T
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(standard, yes.ravel()).predict_proba(standard)[:, 1]
    np.testing.assert_allclose(label_probabilities(evidence, model).ravel(), theirs, atol=2e-3)


def test_the_threshold_has_the_largest_f1() -> None:
    evidence, yes = pairs(60)
    model = learn_labels(evidence, yes, "abcdef", None)
    assert model is not None
    said = label_probabilities(evidence, model)
    scores = [f1_score(yes.ravel(), (said >= threshold).ravel()) for threshold in np.linspace(0.01, 0.99, 99)]
    assert f1_score(yes.ravel(), (said >= model.threshold).ravel()) >= max(scores)


def test_thresholds_by_hand() -> None:
    # F1 with 1, 2, 3 and 4 answers: 2/3, 1/2, 4/5, 2/3
    assert best_f1_threshold(np.array([0.6, 0.9, 0.4, 0.8]), np.array([True, True, False, False])) == 0.5
    assert best_f1_threshold(np.array([0.7, 0.7]), np.array([True, False])) == 0.7  # equal numbers are decided alike


def test_a_false_positive_rate_is_kept_by_category() -> None:
    evidence, yes = pairs(200)
    model = learn_labels(evidence, yes, "abcdef", 0.1)
    assert model is not None
    assert model.category_thresholds.keys() == set("abcdef")
    given = label_probabilities(evidence, model) >= label_thresholds("abcdef", model)
    for column in range(6):
        assert given[~yes[:, column], column].mean() == pytest.approx(0.1, abs=0.011)


def test_few_images_share_a_threshold() -> None:
    evidence, yes = pairs(12)
    model = learn_labels(evidence, yes, "abcdef", 0.05)  # a category alone would need 19 images without it
    assert model is not None
    assert model.category_thresholds == {}
    given = label_probabilities(evidence, model) >= model.threshold
    assert given[~yes].mean() <= 0.05


def test_nothing_is_learned_without_a_yes_or_without_a_no() -> None:
    evidence, yes = pairs(12)
    assert learn_labels(evidence, np.zeros_like(yes), "abcdef", None) is None
    assert learn_labels(evidence, np.ones_like(yes), "abcdef", None) is None


# ---- leave-one-out

SHARED: Vectors = {
    "a": {"1": (1.0, 0.0), "2": (0.6, 0.8)},
    "b": {"1": (1.0, 0.0), "3": (0.0, 1.0)},
    "c": {"4": (-1.0, 0.0), "5": (0.0, -1.0)},
}


def left_out(vectors: Vectors, most: int = 100) -> LeftOut:
    found = leave_one_out({"clip:image": references(vectors)}, ["mean"], 5, most, {}, multilabel=True)
    assert found is not None
    return found


def test_an_image_is_left_out_of_all_its_categories() -> None:
    found = left_out(SHARED)
    assert found.hashes == ("1", "2", "1", "3", "4", "5")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    shared, second, third = [0.6, 0.0, -0.5], [0.6, 0.7, -0.7], [0.4, 0.0, -0.5]
    fourth, fifth = [-0.8, -0.5, 0.0], [-0.4, -0.5, 0.0]
    expected = [shared, second, shared, third, fourth, fifth]
    np.testing.assert_allclose(found.aggregations["clip:image"]["mean"], expected, atol=1e-6)
    both, one = [True, True, False], np.eye(3, dtype=bool).tolist()
    assert found.belongs().tolist() == [both, one[0], both, one[1], one[2], one[2]]


def test_a_sample_has_all_categories_of_an_image() -> None:
    found = left_out(SHARED, most=3)
    names = [(found.categories[c], digest) for c, digest in zip(found.labels, found.hashes, strict=True)]
    assert ("a", "1") in names
    assert ("b", "1") in names
    assert not np.isnan(found.aggregations["clip:image"]["mean"][[name[1] == "1" for name in names]]).any()


def test_a_burst_is_left_out_of_all_its_categories() -> None:
    rng = np.random.default_rng(0)
    first, *others = [np.array(vector) for vector in unit(rng, 21, 16).values()]
    second = first + 0.2 * others[0]
    burst = {"x1": tuple(first), "x2": tuple(second / np.linalg.norm(second))}
    vectors: Vectors = {
        name: {**burst, **{f"{name}{i}": tuple(other) for i, other in enumerate(others[start : start + 10])}}
        for name, start in (("a", 0), ("b", 10))
    }
    stored = {"clip:image": references(vectors)}
    for multilabel, expected in ((True, {"x1", "x2"}), (False, set())):
        together = scenes(stored, image_rows(stored), [("a", "x1"), ("b", "x1")], multilabel=multilabel)
        assert [together.get((name, "x1"), set()) for name in "ab"] == [expected] * 2


def test_a_copy_counts_as_the_image() -> None:
    near = (np.cos(0.01), np.sin(0.01))
    found = left_out({**SHARED, "b": {"other": near, "3": (0.0, 1.0)}})
    assert found.belongs()[0].tolist() == [True, True, False]
    assert found.aggregations["clip:image"]["mean"][0] == pytest.approx([0.6, 0.01, -0.5], abs=1e-3)


# ---- calibration


def several(rng: np.random.Generator, images: int) -> Vectors:
    """Images near the centre of one category, or between the centres of two, which both have them."""
    centres = {name: next(iter(own.values())) for name, own in clusters(rng, dict.fromkeys("abcd", 1), 5.0).items()}
    found: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in centres}
    for number in range(images):
        own = rng.choice(list(centres), 1 + number % 2, replace=False)
        vector = np.mean([centres[name] for name in own], axis=0) + 0.1 * rng.normal(size=16)
        for name in own:
            found[name][f"{number:03d}"] = tuple(vector / np.linalg.norm(vector))
    return found


def calibration(vectors: Vectors, labels: LabelSettings | None, revision: int = 3) -> tuple[Calibration, LeftOut]:
    made = fit_calibration(
        {"clip:image": references(vectors)},
        {"clip:image": 0.07},
        revision=revision,
        aggregation="top_mean",
        top_m=5,
        false_unknown_rate=0.05,
        labels=labels,
    )
    assert made is not None
    return made


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibration(several(np.random.default_rng(1), 60), LabelSettings())[0]


def test_a_calibration_of_several_labels(made: Calibration) -> None:
    assert made.multilabel
    assert made.classwise is None
    assert made.backgrounds == {}
    for pool in (made.plain, made.aggregations):
        assert pool.labels is not None
        assert pool.labels.images == 60
        assert pool.labels.own > 0


def test_one_label_learns_no_labels() -> None:
    one = calibration(clusters(np.random.default_rng(1), dict.fromkeys("abc", 6), 2.0), None)[0]
    assert not one.multilabel
    assert one.aggregations.labels is None


def test_categories_of_one_image_learn_no_labels() -> None:
    one = calibration(clusters(np.random.default_rng(1), dict.fromkeys("abc", 1), 2.0), LabelSettings())[0]
    assert one.aggregations.labels is None


def test_the_record_of_several_labels(made: Calibration) -> None:
    read = Calibration.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read is not None
    assert read == made


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("own", NAN),
        ("intercept", "1"),
        ("threshold", 1.5),
        ("threshold", None),
        ("category_thresholds", {"a": -0.1}),
        ("category_thresholds", [0.5]),
        ("false_positive_rate", 2),
        ("images", [1]),
        ("more", 1),
    ],
)
def test_an_invalid_record_is_not_read(made: Calibration, field: str, value: object) -> None:
    record = made.to_dict()
    record["plain"] = {**record["plain"], "labels": {**record["plain"]["labels"], field: value}}
    assert Calibration.from_dict(record) is None
    record["plain"] = {**record["plain"], "labels": [1]}
    assert Calibration.from_dict(record) is None


def test_new_images_get_their_labels(made: Calibration) -> None:
    rng = np.random.default_rng(1)
    stored = several(rng, 60)
    scoring = Scoring(temperatures={"clip:image": 0.07})
    for model in (made, scaled(made, 3.0)):  # the scale of the evidence changes no label
        right = 0
        for own in ("a", "b", "ab", "cd"):
            centres = [np.mean(list(stored[name].values()), axis=0) for name in own]
            query = np.mean([centre / np.linalg.norm(centre) for centre in centres], axis=0)
            found = searched({"clip:image": stored}, {"clip": (query / np.linalg.norm(query))[None]})
            (answer,) = scoring.predict(replace(found, calibration=model), ["x"], 4)
            right += {name for name, _ in answer.labels} == set(own)
            assert all(0 < p <= 1 for _, p in answer.labels)
        assert right >= 3


def test_copies_in_several_categories_are_no_label_errors() -> None:
    stored = several(np.random.default_rng(1), 60)
    made, sample = calibration(stored, LabelSettings())
    by_expert = {"clip:image": references(stored)}
    in_several = {digest for a in "abcd" for b in "abcd" if a < b for digest in stored[a].keys() & stored[b].keys()}
    assert in_several
    for found in (verdicts(by_expert, made, sample), judge(by_expert, made)):
        assert found
        assert in_several.isdisjoint(verdict.key[1] for verdict in found)
