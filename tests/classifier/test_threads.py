"""Threads with one image each share batches, without any effect on predictions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import zsvec
from tests.streams.test_stream import DEADLINE, eventually
from tests.support import COLOURS, coloured, isolated
from zsvec.classifier import Classifier
from zsvec.errors import EncoderError, ImageError
from zsvec.inputs.categories import CategoryInput
from zsvec.testing import HashEncoder
from zsvec.types import Modality, Prediction

__all__ = ["isolated"]

PHOTOS = [coloured(colour, seed) for seed in range(500, 504) for colour in COLOURS]


class Gated(HashEncoder):
    """Records the sizes of batches of images, and blocks in the first batch while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.fails = False

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[np.float64]:
        if modality == "image":
            self.batches.append(len(batch))
            assert self.gate.wait(DEADLINE)
            if self.fails and len(batch) > 1:
                return super().embed(batch, modality) * np.nan
        return super().embed(batch, modality)


def opened(encoder: HashEncoder, **settings: Any) -> Classifier:
    classifier = zsvec.open(":memory:", encoders=[encoder], **settings)
    classifier.add_categories(
        CategoryInput(name=colour, texts=[colour], images=[coloured(colour, 1000 * i + seed) for seed in range(5)])
        for i, colour in enumerate(COLOURS)
    )
    return classifier


def together(classifier: Any, encoder: Gated, images: Sequence[Any], **options: Any) -> list[Future[Prediction]]:
    """Classify images in a thread each: the first is encoded while the others queue."""
    encoder.batches.clear()
    encoder.gate.clear()
    pool = ThreadPoolExecutor(len(images))
    calls = [pool.submit(classifier.classify, images[0], **options)]
    assert eventually(lambda: encoder.batches == [1])
    calls += [pool.submit(classifier.classify, image, **options) for image in images[1:]]
    readable = sum(isinstance(image, Image.Image) for image in images)
    assert eventually(lambda: waiting(classifier) == readable - 1)
    encoder.gate.set()
    pool.shutdown()
    return calls


def waiting(classifier: Classifier) -> int:
    """Images of the batch that waits for its turn."""
    last = classifier.encoders.shared._last
    return len(last._items) if last is not None else 0


@pytest.mark.parametrize("fusion", ["log_linear_gda", "max_confidence", "transductive"])
def test_answers_are_those_of_images_alone(fusion: str) -> None:
    encoder = Gated()
    with opened(encoder, fusion=fusion) as classifier:
        alone = [classifier.classify(photo) for photo in PHOTOS]
        calls = together(classifier, encoder, PHOTOS)
        assert encoder.batches == [1, len(PHOTOS) - 1]
        for call, prediction in zip(calls, alone, strict=True):
            assert_alike(call.result(), prediction)


def assert_alike(one: Prediction, other: Prediction) -> None:
    """But for the last digits, which depend on the size of a batch."""
    for name in ("source", "label", "nearest", "unknown", "fusion", "calibration"):
        assert getattr(one, name) == getattr(other, name)
    assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)
    assert [one.novelty, one.distance] == pytest.approx([other.novelty, other.distance], abs=1e-5)
    assert one.experts.keys() == other.experts.keys()
    for name, expert in one.experts.items():
        assert dict(expert.ranking) == pytest.approx(dict(other.experts[name].ranking), abs=1e-5)
        similarities = [[neighbor.similarity for neighbor in e.neighbors] for e in (expert, other.experts[name])]
        assert similarities[0] == pytest.approx(similarities[1], abs=1e-5)


def test_batches_are_as_large_as_the_setting_allows() -> None:
    encoder = Gated()
    with opened(encoder, batch_size=4) as classifier:
        encoder.batches.clear()
        encoder.gate.clear()
        with ThreadPoolExecutor(9) as pool:
            calls = [pool.submit(classifier.classify, photo) for photo in PHOTOS[:9]]
            assert eventually(lambda: waiting(classifier) == 4)
            encoder.gate.set()
        assert max(encoder.batches) == 4
        assert [call.result().nearest for call in calls] == [COLOURS[i % 3] for i in range(9)]


def test_an_image_that_cannot_be_read_is_its_callers_alone() -> None:
    encoder = Gated()
    images = [PHOTOS[0], b"no image", *PHOTOS[1:3]]
    with opened(encoder) as classifier:
        first, broken, *others = together(classifier, encoder, images)
        assert isinstance(broken.exception(), ImageError)
        assert [call.result().nearest for call in (first, *others)] == list(COLOURS)
        reported = together(classifier, encoder, images, errors="report", top_k=1)
        assert [call.result().error is None for call in reported] == [True, False, True, True]
        assert [len(call.result().ranking) for call in reported] == [1, 0, 1, 1]


def test_a_failing_encoder_fails_the_whole_batch() -> None:
    encoder = Gated()
    with opened(encoder) as classifier:
        encoder.fails = True
        first, *others = together(classifier, encoder, PHOTOS[:4])
        assert first.result().nearest == COLOURS[0]
        assert all(isinstance(call.exception(), EncoderError) for call in others)
        assert classifier.classify(PHOTOS[1]).nearest == COLOURS[1]


def test_a_waiting_batch_sees_later_commits() -> None:
    encoder = Gated()
    white = coloured("white", 1)
    with opened(encoder, calibration="off") as classifier:
        vectors = encoder.embed([coloured("white", 2)], "image")
        encoder.batches.clear()
        encoder.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(classifier.classify, white) for _ in range(2)]
            assert eventually(lambda: bool(encoder.batches))
            classifier.add_category("white", vectors={"hash:image": vectors})
            encoder.gate.set()
        assert [call.result().nearest for call in calls] == ["white", "white"]


def test_coroutines_share_batches() -> None:
    encoder = Gated()

    async def main(classifier: Classifier) -> list[Prediction]:
        encoder.batches.clear()
        encoder.gate.clear()
        tasks = [asyncio.create_task(classifier.aclassify(PHOTOS[0]))]
        while not encoder.batches:  # with others, the first would wait for them
            await asyncio.sleep(0.002)
        tasks += [asyncio.create_task(classifier.aclassify(photo)) for photo in PHOTOS[1:4]]
        while waiting(classifier) < 3:
            await asyncio.sleep(0.002)
        tasks[1].cancel()  # the thread goes on
        encoder.gate.set()
        return [
            found for found in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(found, Prediction)
        ]

    with opened(encoder) as classifier:
        found = asyncio.run(main(classifier))
        assert encoder.batches == [1, 3]
        assert [prediction.nearest for prediction in found] == [COLOURS[0], COLOURS[2], COLOURS[0]]


def test_images_alone_are_counted() -> None:
    encoder = Gated()
    with opened(encoder) as classifier:
        together(classifier, encoder, [*PHOTOS[:4], b"no image"], errors="report")
        found = classifier.stats
        assert (found.images, found.failed, found.batches) == (5, 1, {1: 1, 3: 1})
        assert found.runs == {"decode": 5, "preprocess": 4, "encode": 2, "search": 2, "fuse": 2}
        assert found.busy.keys() == found.runs.keys()
        assert 0 < found.seconds < DEADLINE
        assert classifier.stats.seconds == found.seconds  # the clock stands without work


def test_an_image_alone_is_kept_where_that_is_asked_for() -> None:
    with opened(Gated()) as classifier:
        strange = coloured("yellow", 1)
        classifier.classify(strange)
        kept = classifier.classify(strange, keep="all")
        classifier._predictor.close()
        assert classifier.inbox.hashes() == [kept.hash]
