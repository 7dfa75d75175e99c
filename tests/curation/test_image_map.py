"""The map of images: `clf.image_map`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

import zsvec
from tests.method.material import clusters
from tests.support import coloured, photo, photos
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.curation import image_map
from zsvec.curation.image_map import positions
from zsvec.inputs.images import content_hash
from zsvec.testing import HashEncoder


def unit(*numbers: float) -> NDArray[np.float32]:
    vector = np.array(numbers, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def of_clusters(prefix: str, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Ten vectors of each of three separate clusters, by a key that begins with the name of the cluster."""
    found = clusters(np.random.default_rng(seed), dict.fromkeys("abc", 10), signal=8.0)
    return {
        f"{name}{prefix}{i}": np.asarray(row, dtype=np.float32)
        for name, rows in found.items()
        for i, row in enumerate(rows.values())
    }


def neighbours_of_the_same_cluster(placed: Mapping[str, tuple[float, float]]) -> float:
    names, points = list(placed), np.array(list(placed.values()))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(len(points))
    return float(np.mean([names[i][0] == names[j][0] for i, j in enumerate(distances.argmin(axis=1))]))


def test_similar_images_are_near_each_other() -> None:
    placed = positions({"x:image": of_clusters("-")}, {"x:image": 1.0})
    assert len(placed) == 30
    assert neighbours_of_the_same_cluster(placed) == 1.0
    points = np.array(list(placed.values()))
    assert points.min() == 0.0
    assert points.max() == 1.0


def test_experts_count_by_their_weights() -> None:
    one, other = of_clusters("-"), of_clusters("-", 1)
    mixed = dict(zip(one, np.random.default_rng(0).permutation(list(other.values())), strict=True))
    both = {"x:image": one, "y:image": mixed}
    assert positions(both, {"x:image": 1.0, "y:image": 0.0}) == positions({"x:image": one}, {"x:image": 1.0})
    assert positions(both, {"y:image": 2.0}) == positions({"y:image": mixed}, {"y:image": 2.0})
    assert neighbours_of_the_same_cluster(positions(both, {"x:image": 50.0, "y:image": 1.0})) == 1.0


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5])
def test_few_images(number: int) -> None:
    rows = {f"{i}": unit(1.0, i, -i) for i in range(number)}
    placed = positions({"x:image": rows}, {"x:image": 1.0})
    assert placed.keys() == rows.keys()
    assert np.isfinite(list(placed.values())).all() if number else placed == {}


def test_equal_images() -> None:
    placed = positions({"x:image": {f"{i}": unit(1.0, 2.0) for i in range(9)}}, {"x:image": 1.0})
    assert np.isfinite(list(placed.values())).all()


def test_an_image_of_one_expert_is_placed() -> None:
    rows = of_clusters("-")
    some = {name: row for name, row in rows.items() if not name.endswith("9")}
    placed = positions({"x:image": rows, "y:image": some}, {"x:image": 1.0, "y:image": 1.0, "z:image": 1.0})
    assert placed.keys() == rows.keys()


def test_of_too_many_images_the_lowest_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_map, "MAX_IMAGES", 12)
    rows = of_clusters("-")
    assert list(positions({"x:image": rows}, {"x:image": 1.0})) == sorted(rows)[:12]


@pytest.mark.parametrize("aggregation", ["top_mean", "prototype"])
def test_references_and_waiting_images_of_a_store(aggregation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"index_budget": 10, "aggregation": aggregation}
    with zsvec.open(":memory:", encoders=[HashEncoder(dim=16)], **settings) as classifier:
        assert classifier.image_map() == {}
        references = {colour: [coloured(colour, seed) for seed in range(4)] for colour in ("red", "blue")}
        classifier.add_categories(CategoryInput(name=name, images=images) for name, images in references.items())
        waits, dismissed = photo(7), photo(8)
        for image in (waits, dismissed):
            classifier.keep(image)
        classifier.inbox.dismiss(content_hash(dismissed))
        hashes = {content_hash(image) for images in references.values() for image in images}
        assert classifier.image_map().keys() == hashes | {content_hash(waits)}
        classifier.add_category("green", images=photos(*range(20, 26)))
        monkeypatch.setattr(classifier._calibrator, "references", Mock(side_effect=AssertionError("all are read")))
        assert len(classifier.image_map()) == 15  # now of a sample, since the store exceeds the budget
