"""`Classifier.classify_together`: a whole set of images, whose similar images help each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.store.support import ServerDeployment
from tests.support import COLOURS, coloured, coloured_store, fast_folder, isolated
from zsvec.errors import ImageError, InvalidInputError, StoreError
from zsvec.testing import HashEncoder
from zsvec.types import Prediction

__all__ = ["isolated"]


@pytest.fixture
def clf() -> Iterator[zsvec.Classifier]:
    with coloured_store(8) as opened:
        yield opened


def mixed(colour: int, seed: int) -> Image.Image:
    """A picture between a colour and the next, whose category is in doubt."""
    other = coloured(COLOURS[(colour + 1) % 3], 500 + seed)
    return Image.blend(coloured(COLOURS[colour], 100 + seed), other, 0.4 + seed / 80)


IMAGES = [mixed(colour, seed) for seed in range(8) for colour in range(3)]


def change(one: Prediction, other: Prediction) -> float:
    return max(abs(p - dict(other.ranking)[name]) for name, p in one.ranking)


def mean_probability(predictions: list[Prediction]) -> float:
    return float(np.mean([one.probability for one in predictions if one.probability is not None]))


def equal(one: Prediction, other: Prediction) -> None:
    assert (one.source, one.label, one.hash) == (other.source, other.label, other.hash)
    assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)


def test_a_set_changes_probabilities_and_nothing_else(clf: zsvec.Classifier) -> None:
    alone, found = clf.classify(IMAGES), clf.classify_together(iter(IMAGES))
    for one, before in zip(found, alone, strict=True):
        assert one.novelty == pytest.approx(before.novelty, abs=1e-5)
        assert (one.unknown, one.hash, one.fusion) == (before.unknown, before.hash, before.fusion)
        assert one.label == (None if one.unknown else one.nearest)
        assert one.experts.keys() == before.experts.keys()
    assert max(map(change, found, alone)) > 0.01


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"top_k": 2}])
def test_batches_of_the_encoders_do_not_matter(clf: zsvec.Classifier, options: dict[str, Any]) -> None:
    whole = clf.classify_together(IMAGES)
    for one, other in zip(clf.classify_together(IMAGES, **options), whole, strict=True):
        equal(one, replace(other, ranking=other.ranking[: options.get("top_k")]))


def test_an_unreadable_image_does_not_stop_the_others(clf: zsvec.Classifier) -> None:
    found = clf.classify_together([b"no image", *IMAGES[:12], "missing.png", *IMAGES[12:], b""])
    assert [i for i, one in enumerate(found) if one.error is not None] == [0, 13, 26]
    for one, other in zip((one for one in found if one.error is None), clf.classify_together(IMAGES), strict=True):
        equal(one, other)
    assert [one.error is None for one in clf.classify_together([b"no image"])] == [False]
    with pytest.raises(ImageError):
        clf.classify_together([IMAGES[0], b"no image"], errors="raise")


def test_arguments(clf: zsvec.Classifier) -> None:
    assert clf.classify_together([]) == clf.classify_together(iter([])) == []
    for images in ("image.png", IMAGES[0], np.zeros((6, 8, 3), dtype=np.uint8)):
        with pytest.raises(InvalidInputError):
            clf.classify_together(images)  # type: ignore[arg-type]
    wrong: list[dict[str, Any]] = [{"batch_size": 0}, {"top_k": 0}, {"errors": "return"}, {"keep": "x"}]
    for options in wrong:
        with pytest.raises(InvalidInputError):
            clf.classify_together(IMAGES, **options)
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as empty, pytest.raises(StoreError):
        empty.classify_together(IMAGES)


def test_in_an_event_loop(clf: zsvec.Classifier) -> None:
    found = asyncio.run(clf.aclassify_together(IMAGES, batch_size=5, top_k=2))
    for one, other in zip(found, clf.classify_together(IMAGES, batch_size=5, top_k=2), strict=True):
        equal(one, other)


def test_texts_alone_are_no_reason_to_change(clf: zsvec.Classifier) -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as texts:
        for colour in COLOURS:
            texts.add_category(colour, texts=[colour])
        for one, other in zip(texts.classify_together(IMAGES), texts.classify(IMAGES), strict=True):
            equal(one, other)


def test_images_are_kept_as_by_a_stream(clf: zsvec.Classifier) -> None:
    clf.classify_together(IMAGES, keep="all", batch_size=4)
    with coloured_store(8) as other:
        with other.classify_stream(IMAGES, keep="all", batch_size=4) as stream:
            list(stream)
        assert len(other.inbox.hashes()) > 5
        assert set(clf.inbox.hashes()) == set(other.inbox.hashes())


def test_a_joint_strategy_does_not_count_similar_images_twice() -> None:
    with fast_folder() as folder:
        path = str(folder / "store")
        found = []
        for fusion in ("log_linear_gda", "transductive"):
            with zsvec.open(path, encoders=[HashEncoder()], fusion=fusion) as clf:
                if not clf.categories():
                    fill(clf)
                found.append(clf.classify_together(IMAGES))
    for one, other in zip(*found, strict=True):
        equal(one, other)


def fill(clf: zsvec.Classifier) -> None:
    for i, colour in enumerate(COLOURS):
        clf.add_category(colour, images=[coloured(colour, 1000 * i + seed) for seed in range(8)])


@pytest.fixture(params=["memory", "folder", "server"])
def place(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        if request.param == "server":
            server: ServerDeployment = request.getfixturevalue("server")
            yield {"path": server.url, "namespace": server.namespace}
        elif request.param == "folder":
            yield {"path": str(stack.enter_context(fast_folder()) / "store")}
        else:
            yield {"path": ":memory:"}


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_every_store_and_search(place: dict[str, Any], index: Any) -> None:
    """Qdrant returns the nearest references only, and the set changes the predictions as well."""
    path = place.pop("path")
    with zsvec.open(path, encoders=[HashEncoder()], index=index, neighbors=5, **place) as clf:
        fill(clf)
        alone, found = clf.classify(IMAGES), clf.classify_together(IMAGES)
    assert {one.fusion for one in found} == {"log_linear_gda" if index == "memory" else "log_linear"}
    assert max(map(change, found, alone)) > 0.01
    assert mean_probability(found) == pytest.approx(mean_probability(alone), abs=1e-5)
