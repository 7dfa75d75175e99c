"""Estimators of scikit-learn. The transformer has tests of its own, since scikit-learn's checks give it no images."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import zsvec
from tests.support import COLOURS, coloured, encode, isolated, photos, two_encoders, write_photos  # noqa: F401
from zsvec.errors import ImageError, InvalidInputError
from zsvec.integrations import estimators
from zsvec.integrations.estimators import ImageEmbedder, ReferenceClassifier

NAMES = ("ant", "bee", "cat")
DIMS = (32, 16)


@pytest.fixture(autouse=True)
def own_encoders(isolated: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: F811
    """``clip`` and ``dino``, from the settings."""
    monkeypatch.setenv("ZSVEC_ENCODERS", "tests.support:two_encoders")
    yield
    estimators._opened.cache_clear()
    estimators._with_one_encoder.cache_clear()


def drawn(each: int, seed: int = 0, dims: tuple[int, ...] = DIMS, noise: float = 1.0) -> tuple[Any, Any]:
    """So many vectors of each name, around a direction of the name under each encoder."""
    directions = np.random.default_rng(99).normal(size=(len(NAMES), sum(dims)))
    random = np.random.default_rng(seed)
    rows = np.repeat(directions, each, axis=0) + noise * random.normal(size=(each * len(NAMES), sum(dims)))
    return rows, np.repeat(NAMES, each)


def blocks(rows: Any) -> dict[str, Any]:
    return {"clip": rows[:, : DIMS[0]], "dino": rows[:, DIMS[0] :]}


@parametrize_with_checks([ReferenceClassifier()])
def test_the_classifier_keeps_the_contract_of_scikit_learn(
    estimator: ReferenceClassifier, check: Callable[[ReferenceClassifier], None]
) -> None:
    check(estimator)


@pytest.mark.parametrize("each", [1, 2, 6])
@pytest.mark.parametrize(
    ("aggregation", "settings"),
    [("gda", {}), ("prototype", {"aggregation": "prototype", "fusion": "log_linear"})],
)
def test_probabilities_are_those_of_a_store(each: int, aggregation: str, settings: dict[str, Any]) -> None:
    rows, labels = drawn(each, noise=2)
    queries, _ = drawn(20, seed=1, noise=2)
    made = ReferenceClassifier(aggregation, dims=DIMS).fit(rows, labels)
    with zsvec.open(":memory:", **settings) as store:
        store.add_categories(
            zsvec.CategoryInput(
                name=name, texts=(), vectors={f"{e}:image": v for e, v in blocks(rows[labels == name]).items()}
            )
            for name in NAMES
        )
        predictions = store.classify_vectors(blocks(queries))
    by_store = [[dict(one.ranking)[name] for name in NAMES] for one in predictions]
    np.testing.assert_allclose(made.predict_proba(queries), by_store, atol=1e-3)
    np.testing.assert_allclose(
        made.novelty(queries), [np.nan if one.novelty is None else one.novelty for one in predictions], atol=1e-3
    )


def test_references_are_added_without_the_old_ones() -> None:
    rows, labels = drawn(2)
    old, new = np.isin(labels, NAMES[:2]), labels == NAMES[2]
    grown = ReferenceClassifier(dims=DIMS).partial_fit(rows[old], labels[old])
    assert grown.classes_.tolist() == ["ant", "bee"]
    grown.partial_fit(rows[new], labels[new])
    assert grown.classes_.tolist() == ["ant", "bee", "cat"]
    at_once = ReferenceClassifier(dims=DIMS).fit(rows, labels)
    queries, truth = drawn(20, seed=1)
    np.testing.assert_allclose(grown.predict_proba(queries), at_once.predict_proba(queries), atol=1e-6)
    assert grown.score(queries, truth) > 0.9


def test_a_few_references_more_keep_what_was_learned_of_the_others() -> None:
    rows, labels = drawn(20)
    made = ReferenceClassifier().fit(rows, labels)
    assert made.calibration_ is not None
    before = made.calibration_.backgrounds
    made.partial_fit(*drawn(1, seed=2))
    assert made.calibration_.backgrounds is before
    made.fit(rows, labels)
    assert made.calibration_.backgrounds is not before


def test_a_class_may_be_named_before_it_has_references() -> None:
    rows, labels = drawn(3)
    made = ReferenceClassifier().partial_fit(rows, labels, classes=["aardvark", *NAMES])
    assert made.classes_.tolist() == ["aardvark", *NAMES]
    probabilities = made.predict_proba(rows)
    assert probabilities[:, 0].tolist() == [0] * len(rows)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_columns_follow_the_classes_and_not_their_names() -> None:
    rows, labels = drawn(3)
    numbers = np.array([{"ant": 2, "bee": 10, "cat": 1}[label] for label in labels.tolist()])
    by_name, by_number = (ReferenceClassifier().fit(rows, y).predict_proba(rows) for y in (labels, numbers))
    np.testing.assert_allclose(by_number, by_name[:, [2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-323, 1e-200, 1e-30, 1e30, 1e200, 1e307])
def test_rows_may_have_any_norm(scale: float) -> None:
    rows = np.array([[1, 0, 0], [2, 1, 0], [0, 1, 1], [0, 2, 1], [1, 0, 2], [0, 0, 1]], dtype=float)
    labels = np.repeat(NAMES, 2)
    made, scaled = ReferenceClassifier().fit(rows, labels), ReferenceClassifier().fit(scale * rows, labels)
    queries = np.array([[1, 1, 0], [3, 0, 1], [0, 1, 3], [0, 0, 0]], dtype=float)
    np.testing.assert_allclose(scaled.predict_proba(queries), made.predict_proba(queries), atol=1e-6)
    np.testing.assert_allclose(made.predict_proba(scale * queries), made.predict_proba(queries), atol=1e-6)


def test_equal_rows_of_a_class_count_once() -> None:
    rows, labels = drawn(4, noise=3)
    queries, _ = drawn(20, seed=1, noise=3)
    made = ReferenceClassifier(dims=DIMS).fit(rows, labels)
    expected = made.predict_proba(queries)
    again = [0, 0, 5]
    repeated = ReferenceClassifier(dims=DIMS).fit(np.concatenate([rows[again], rows]), [*labels[again], *labels])
    np.testing.assert_array_equal(repeated.predict_proba(queries), expected)
    made.partial_fit(rows, labels).partial_fit(rows[again].astype(object), labels[again])
    np.testing.assert_array_equal(made.predict_proba(queries), expected)
    made.partial_fit(rows[:1], ["cat"])  # of another class
    assert [len(one.vectors) for one in made.references_.values()] == [13, 13]


def test_the_order_of_references_does_not_matter() -> None:
    rows, labels = drawn(4, noise=3)
    one, other = (
        ReferenceClassifier().fit(rows[order], labels[order]) for order in (slice(None), slice(None, None, -1))
    )
    np.testing.assert_array_equal(one.predict_proba(rows), other.predict_proba(rows))


@pytest.mark.parametrize("types", [(float, int), (int, float), (bool, int), (str, object), (object, str)])
def test_equal_classes_of_other_types_are_the_same(types: tuple[Any, Any]) -> None:
    rows, labels = drawn(3)
    old = labels != "cat"
    texts = object in types
    values = {name: name if texts else number for number, name in enumerate(("bee", "ant", "cat"))}
    y = np.array([values[label] for label in labels.tolist()], dtype=object if texts else int)
    grown = ReferenceClassifier().fit(rows[old], y[old].astype(types[0]))
    grown.partial_fit(rows[~old], y[~old].astype(types[1])).partial_fit(rows[:1] * 2, y[:1].astype(types[1]))
    assert grown.classes_.tolist() == sorted(values.values())
    queries, truth = drawn(20, seed=1)
    assert np.mean(grown.predict(queries) == [values[name] for name in truth.tolist()]) > 0.9


def test_a_class_between_the_known_ones_moves_them() -> None:
    rows, labels = drawn(3)
    middle = labels == "bee"
    grown = ReferenceClassifier().fit(rows[~middle], labels[~middle]).partial_fit(rows[middle], labels[middle])
    queries, _ = drawn(20, seed=1)
    at_once = ReferenceClassifier().fit(rows, labels)
    np.testing.assert_allclose(grown.predict_proba(queries), at_once.predict_proba(queries), atol=1e-6)


@pytest.mark.parametrize("classes", [None, ["x", "y"]])
def test_texts_among_numbers_are_refused_before_a_change(classes: list[str] | None) -> None:
    rows, labels = drawn(3)
    numbers = np.unique(labels, return_inverse=True)[1]
    made = ReferenceClassifier().fit(rows, numbers)
    before = made.predict_proba(rows)
    with pytest.raises(ValueError, match="classes"):
        made.partial_fit(rows, numbers if classes else labels, classes=classes)
    assert made.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(made.predict_proba(rows), before)


def test_each_encoder_counts_by_what_its_references_say() -> None:
    rows, labels = drawn(20)
    rows[:, : DIMS[0]] = np.random.default_rng(5).normal(size=(len(rows), DIMS[0]))  # noise, of the larger part
    queries, truth = drawn(100, seed=1, noise=1.5)
    queries[:, : DIMS[0]] = np.random.default_rng(6).normal(size=(len(queries), DIMS[0]))
    apart, together = (ReferenceClassifier(dims=dims).fit(rows, labels).score(queries, truth) for dims in (DIMS, None))
    assert apart > together


def test_strange_vectors_are_novel() -> None:
    made = ReferenceClassifier().fit(*drawn(20))
    known, strange = drawn(50, seed=1)[0], np.random.default_rng(3).normal(size=(50, sum(DIMS)))
    assert np.mean(made.novelty(known) > 0.5) < 0.2
    assert np.mean(made.novelty(strange) > 0.5) > 0.8


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_answer_alike_and_learn_apart(copied: Callable[[Any], Any]) -> None:
    made = ReferenceClassifier(dims=DIMS).fit(*drawn(5))
    queries, _ = drawn(5, seed=1)
    before = made.predict_proba(queries)
    other = copied(made)
    np.testing.assert_array_equal(other.predict_proba(queries), before)
    other.partial_fit(*drawn(5, seed=2))
    np.testing.assert_array_equal(made.predict_proba(queries), before)
    assert not np.array_equal(other.predict_proba(queries), before)


@pytest.mark.parametrize(
    "wrong",
    [{"aggregation": "median"}, {"top_m": 0}, {"top_m": 1.5}, {"dims": (3, 3)}, {"dims": ()}, {"dims": (48, 0)}],
)
def test_unusable_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ReferenceClassifier(**wrong).fit(*drawn(2))


def test_a_grid_search_compares_aggregations() -> None:
    search = GridSearchCV(ReferenceClassifier(), {"aggregation": list(estimators._AGGREGATIONS)}, cv=3)
    search.fit(*drawn(6, noise=3))
    assert len(search.cv_results_["params"]) == 5
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    assert search.best_estimator_.aggregation in estimators._AGGREGATIONS


def pictures(each: int) -> tuple[list[Any], list[str]]:
    return [coloured(name, 10 * i + seed) for i, name in enumerate(COLOURS) for seed in range(each)], [
        name for name in COLOURS for _ in range(each)
    ]


def test_a_pipeline_of_both_is_validated() -> None:
    images, labels = pictures(4)
    embedder = ImageEmbedder()
    pipeline = make_pipeline(embedder, ReferenceClassifier(dims=embedder.dims))
    assert cross_val_score(pipeline, images, labels, cv=2).tolist() == [1, 1]
    fitted = pickle.loads(pickle.dumps(clone(pipeline).fit(images, labels)))
    assert isinstance(fitted, Pipeline)
    assert fitted.predict([coloured("red", 500)]).tolist() == ["red"]


def test_columns_are_the_vectors_of_the_encoders() -> None:
    images = photos(1, 2, 3)
    rows = ImageEmbedder().fit_transform(images)
    assert (rows.dtype, rows.shape) == (np.float32, (3, 48))
    with zsvec.open(":memory:", encoders=two_encoders()) as classifier:
        embedded = list(classifier.embed_stream(images))
    for row, one in zip(rows, embedded, strict=True):
        np.testing.assert_array_equal(row[:32], one.vectors["clip"])
        np.testing.assert_array_equal(row[32:], one.vectors["dino"])


def test_one_encoder_may_be_chosen() -> None:
    images = photos(1, 2)
    embedder = ImageEmbedder(encoder="dino")
    np.testing.assert_array_equal(embedder.transform(images), ImageEmbedder().transform(images)[:, 32:])
    assert embedder.dims == (16,)
    assert embedder.get_feature_names_out().tolist() == [f"dino_{i}" for i in range(16)]
    with pytest.raises(InvalidInputError):
        ImageEmbedder(encoder="clop").transform(images)


def test_paths_pixels_and_arrays_are_images(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", [1, 2])
    images = photos(1, 2)
    arrays = np.stack([np.asarray(image) for image in images])
    every = [paths, [str(path) for path in paths], np.array([str(path) for path in paths]), pd.Series(paths), images]
    expected = ImageEmbedder().transform(images)
    for given in [*every, list(arrays), arrays, [encode(image) for image in images]]:
        np.testing.assert_array_equal(ImageEmbedder(batch_size=1).transform(given), expected)
    assert ImageEmbedder().transform([]).shape == (0, 48)


def test_names_of_columns_reach_a_data_frame(tmp_path: Path) -> None:
    paths = pd.Series(write_photos(tmp_path / "photos", [1, 2]), index=["x", "y"])
    frame = ImageEmbedder().set_output(transform="pandas").fit_transform(paths)
    assert frame.index.tolist() == ["x", "y"]
    assert frame.columns.tolist() == [f"clip_{i}" for i in range(32)] + [f"dino_{i}" for i in range(16)]


def test_bad_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        ImageEmbedder().transform([photos(1)[0], tmp_path / "missing.jpg"])
    with pytest.raises(InvalidInputError):
        ImageEmbedder().transform("photo.jpg")


def test_clones_share_loaded_encoders() -> None:
    embedder = ImageEmbedder(encoder="clip")
    other = clone(embedder)
    assert other.get_params() == embedder.get_params() == {**other.get_params(), "encoder": "clip", "profile": None}
    assert embedder._classifier() is other._classifier()
    every, one = ImageEmbedder()._classifier(), embedder._classifier()
    assert every is not one
    assert every.encoders["clip"] is one.encoders["clip"]
