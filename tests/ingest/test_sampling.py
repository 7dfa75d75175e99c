"""Calibration of a store that is too large to be read: a sample, scored by the search that classifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import zsvec
from tests.support import coloured, coloured_store
from tests.support import isolated as isolated
from zsvec import CategoryInput, Classifier
from zsvec.errors import InvalidInputError, StoreError
from zsvec.ingest.sampling import Sample, left_out_on_server, sample
from zsvec.method.calibrate.leave_one_out import LeftOut, joined, leave_one_out
from zsvec.method.calibration import LOG_COUNT
from zsvec.search.searcher import Searcher
from zsvec.testing import HashEncoder
from zsvec.types import Category

pytestmark = pytest.mark.usefixtures("isolated")

EXPERTS = ("clip:image", "clip:text", "dino:image")
DIM = 32


def clusters(n_categories: int, n: int, spread: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Images around the direction of each category, float32 (n, DIM)."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(n_categories):
        vectors = rng.standard_normal(DIM) + spread * rng.standard_normal((n, DIM))
        found[f"category {number:03}"] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def opened(**settings: Any) -> Classifier:
    encoders = [HashEncoder("clip", dim=DIM), HashEncoder("dino", dim=DIM, modalities=("image",))]
    return zsvec.open(":memory:", encoders=encoders, **settings)


def fill(clf: Classifier, images: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray] | None = None) -> None:
    of_dino = clusters(len(images), len(next(iter(images.values()))), seed=1) if others is None else others
    clf.add_categories(
        CategoryInput(name=name, vectors={"clip:image": found, "dino:image": of_dino[name]})
        for name, found in images.items()
    )


def chosen(clf: Classifier, most: int = 1000) -> tuple[Sample, Sequence[Category]]:
    categories = clf._store.categories()
    return sample(clf._store, categories, EXPERTS, most), categories


def scored(clf: Classifier, taken: Sample, neighbors: int, aggregation: str = "top_mean") -> LeftOut:
    searching = Searcher(clf._store, kind="qdrant", budget=0, neighbors=neighbors, norms=False)
    found = left_out_on_server(searching, taken, EXPERTS, aggregation, 5, neighbors)
    assert found is not None
    return found


def test_a_sample_is_even_repeatable_and_has_the_stored_vectors() -> None:
    images = clusters(5, 20)
    with opened(calibration="off") as clf:
        fill(clf, images)
        taken, _ = chosen(clf, 12)
        again, _ = chosen(clf, 12)
        assert taken.images == again.images
        counts = [sum(name == one for name, _ in taken.images) for one in images]
        assert sorted(counts) == [2, 2, 2, 3, 3]
        for (name, _), vector in zip(taken.images, taken.vectors["clip"], strict=True):
            assert (images[name] @ vector).max() == pytest.approx(1, abs=1e-5)
        assert len(chosen(clf, 3)[0].images) == 3
        assert len(chosen(clf)[0].images) == 100


def test_images_without_a_vector_of_every_image_expert_are_not_sampled() -> None:
    images = clusters(3, 4)
    with opened(calibration="off") as clf:
        fill(clf, images)
        clf.add_category("one encoder", vectors={"clip:image": clusters(1, 4, seed=5)["category 000"]})
        clf.add_category("texts", texts=["a text"])
        taken, _ = chosen(clf)
        assert {name for name, _ in taken.images} == set(images)
        assert sample(clf._store, clf.categories(), ["clip:text"], 10).images == []


@pytest.mark.parametrize("aggregation", ["top_mean", "max", "mean"])
def test_a_search_of_all_references_gives_the_scores_of_reading_all(aggregation: str) -> None:
    with opened(calibration="off") as clf:
        fill(clf, clusters(6, 9, spread=2.0))
        clf.add_category("category 000", texts=["another text"])
        single = {"single": clusters(1, 1, seed=7)["category 000"]}
        fill(clf, single, single)
        taken, _ = chosen(clf)
        found = scored(clf, taken, 1000, aggregation)
        references, _ = clf._searcher.references()
        every = leave_one_out(references, (aggregation,), 5, 10**6, {})
    assert every is not None
    assert (found.categories, found.hashes) == (every.categories, every.hashes)
    assert (found.labels == every.labels).all()
    assert (found.coverage == every.coverage[[list(every.aggregations).index(e) for e in found.aggregations]]).all()
    for expert, by_name in found.aggregations.items():
        assert set(by_name) == set(every.aggregations[expert])
        for name, values in by_name.items():
            np.testing.assert_allclose(values, every.aggregations[expert][name], atol=2e-6)


def test_a_limited_search_gives_its_own_category_the_same_count_as_reading_all() -> None:
    with opened(calibration="off") as clf:
        fill(clf, clusters(6, 9, spread=2.0))
        taken, _ = chosen(clf)
        found, every = scored(clf, taken, 7), scored(clf, taken, 1000)
    for expert, by_name in found.aggregations.items():
        if LOG_COUNT in by_name:
            np.testing.assert_allclose(by_name[LOG_COUNT], every.aggregations[expert][LOG_COUNT])
        assert (by_name["top_mean"] >= every.aggregations[expert]["top_mean"] - 2e-6).all()  # by the bound


def test_copies_are_left_out_with_the_image_and_between_categories_skipped() -> None:
    images = clusters(3, 4)
    same = {name: np.concatenate([found, found[:1]]) for name, found in images.items()}
    same["category 001"] = np.concatenate([same["category 001"], same["category 002"][1:2]])
    # The vector of a reference is its content, so copies differ by rounding only.
    same = {name: (found + 1e-4 * np.arange(len(found))[:, None]).astype(np.float32) for name, found in same.items()}
    same = {name: found / np.linalg.norm(found, axis=1, keepdims=True) for name, found in same.items()}
    with opened(calibration="off") as clf:
        fill(clf, same, same)
        taken, _ = chosen(clf)
        found = scored(clf, taken, 1000)
        references, _ = clf._searcher.references()
        every = leave_one_out(references, ("top_mean",), 5, 10**6, {})
    assert every is not None
    assert set(found.copies) == set(every.copies) != set()
    assert found.hashes == every.hashes
    own = found.aggregations["clip:image"][LOG_COUNT][np.arange(len(found.labels)), found.labels]
    expected = every.aggregations["clip:image"][LOG_COUNT][np.arange(len(every.labels)), every.labels]
    np.testing.assert_allclose(own, expected)


def test_a_group_is_left_out_together() -> None:
    groups = ["burst"] * 3 + [None] * 2
    images = [zsvec.ReferenceImage(image=coloured("red", i), group=group) for i, group in enumerate(groups)]
    with opened(calibration="off") as clf:
        clf.add_category("red", images=images)
        clf.add_category("blue", images=[coloured("blue", seed) for seed in range(5)])
        taken, _ = chosen(clf)
    assert sorted(map(len, taken.groups.values())) == [3, 3, 3]


def test_blocks_of_a_changing_store_are_joined_on_what_all_have() -> None:
    def block(categories: Sequence[str], names: Sequence[str], covered: Sequence[bool]) -> LeftOut:
        values = np.arange(len(names) * len(categories), dtype=np.float32).reshape(len(names), -1)
        values[:, ~np.array(covered)] = np.nan
        labels = np.array([categories.index(name) for name in names])
        hashes = tuple(f"{name} {i}" for i, name in enumerate(names))
        return LeftOut(tuple(categories), labels, np.array([covered]), {"clip:image": {"max": values}}, hashes, {})

    found = joined(
        [block(["a", "b", "c"], ["a", "b"], [True] * 3), block(["b", "c", "d"], ["d", "c", "b"], [False, True, True])]
    )
    assert (found.categories, found.hashes) == (("b", "c"), ("b 1", "c 1", "b 2"))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.coverage.tolist() == [[False, True]]
    np.testing.assert_equal(found.aggregations["clip:image"]["max"], [[np.nan, 5], [np.nan, 4], [np.nan, 7]])


# The classifier


def test_a_large_store_is_calibrated_without_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(index_budget=100, neighbors=40) as clf:
        fill(clf, clusters(6, 12, spread=1.5))

        def refuses(*args: Any) -> Any:
            raise AssertionError("all references are read")

        monkeypatch.setattr(Searcher, "references", refuses)
        report = clf.calibrate()
        assert report.calibration.images == 72
        assert report.calibration.aggregations == report.calibration.plain
        assert report.calibration.classwise is None
        assert report.before is not None
        assert report.after is not None
        assert report.after.cross_entropy < report.before.cross_entropy
        assert len(report.notes) == 1
        found = clf.classify_vectors({"clip": clusters(6, 1)["category 003"], "dino": clusters(6, 1)["category 003"]})
        assert (found[0].fusion, found[0].calibration) == ("log_linear", "current")
        assert found[0].novelty is not None
        assert clf.info()["search"] == {"fusion": "log_linear"}
        again = clf.calibrate()
        assert again.before == again.after
        assert len(again.notes) == 2  # nothing has changed


@pytest.mark.parametrize(
    ("settings", "fusion"),
    [
        ({}, "log_linear_gda"),  # a query returns all references
        ({"calibration": "off"}, "log_linear"),
        ({"fusion": "inverse_entropy"}, "inverse_entropy"),
        ({"neighbors": 8}, "log_linear"),
    ],
)
def test_info_tells_which_fusion_runs_in_qdrant(settings: Mapping[str, Any], fusion: str) -> None:
    with coloured_store(3, index="qdrant", **settings) as clf:
        assert clf.info()["search"] == {"fusion": fusion}
        assert clf.classify(coloured("red", 77)).fusion == fusion


def test_a_large_store_is_not_calibrated_by_itself() -> None:
    with opened(index_budget=100) as clf:
        fill(clf, clusters(6, 12))
        assert clf.info()["calibration"] in ("none", "stale")


def test_a_small_store_in_qdrant_is_calibrated_from_all_references() -> None:
    with opened(index="qdrant") as clf:
        fill(clf, clusters(3, 5))
        assert clf.calibrate().calibration.classwise is not None


def test_a_prototype_needs_every_reference() -> None:
    with opened(index_budget=10, aggregation="prototype") as clf:
        fill(clf, clusters(3, 5))
        assert "prototype" in clf.calibrate().calibration.aggregations.coefficients["clip:image"]


def test_labelled_images_scale_a_sampled_calibration() -> None:
    with opened(index_budget=20) as clf:
        for colour in ("red", "blue", "green"):
            clf.add_category(colour, images=[coloured(colour, seed) for seed in range(6)])
        labelled = [(coloured(colour, 50 + seed), colour) for colour in ("red", "blue") for seed in range(3)]
        report = clf.calibrate(labelled=labelled)
        assert report.calibration.scale != 1
        assert report.labelled_before is not None
        assert report.labelled_after is not None
        assert report.labelled_after.cross_entropy <= report.labelled_before.cross_entropy
        with pytest.raises(InvalidInputError):
            clf.calibrate(labelled=[(coloured("red", 1), "purple")])


def test_a_large_store_that_has_one_category_or_no_image_cannot_be_calibrated() -> None:
    with opened(index_budget=2) as clf:
        for name in ("a", "b", "c"):
            clf.add_category(name, texts=[f"{name} {i}" for i in range(3)])
        with pytest.raises(StoreError):
            clf.calibrate()
    with opened(index_budget=2) as clf:
        fill(clf, clusters(1, 9))
        with pytest.raises(StoreError):
            clf.calibrate()
