"""Images that are similar to a known image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.support import coloured, encode, two_encoders
from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.testing import HashEncoder


def noise(seed: int) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)))


@pytest.fixture
def encoders() -> tuple[HashEncoder, HashEncoder]:
    return two_encoders()


@pytest.fixture
def clf(encoders: tuple[HashEncoder, HashEncoder]) -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=encoders) as classifier:
        for colour in ("red", "green", "blue"):
            classifier.add_category(colour, images=[coloured(colour, seed) for seed in range(4)])
        for seed in range(2):
            assert classifier.keep(noise(seed))
        yield classifier


def encoded(encoders: tuple[HashEncoder, HashEncoder]) -> int:
    return sum(encoder.images_encoded for encoder in encoders)


def test_references_and_waiting_images_by_similarity(
    clf: Classifier, encoders: tuple[HashEncoder, HashEncoder]
) -> None:
    photo = coloured("red", 50)
    prediction = clf.classify(photo)
    waiting = zsvec.content_hash(noise(0))
    reference = clf.references.of("red")[-1].hash
    before = encoded(encoders)
    for digest in (prediction.hash, waiting, reference):
        found = clf.similar(str(digest), number=3)
        if digest != waiting:
            assert [one.category for one in found.references] == ["red"] * 3
        assert {one.category for one in found.waiting} == {""}
        for images in (found.references, found.waiting):
            cosines = [one.similarity for one in images]
            assert cosines == sorted(cosines, reverse=True)
            assert digest not in [one.hash for one in images]
    assert encoded(encoders) == before  # nothing is embedded again
    found = clf.similar(str(prediction.hash), number=50)
    assert (len(found.references), len(found.waiting)) == (12, 2)
    one, *others = [embedded.vectors for embedded in clf.embed_stream([photo, noise(0), noise(1)])]
    expected = [np.mean([one[name] @ other[name] for name in one]) for other in others]
    assert sorted(image.similarity for image in found.waiting) == pytest.approx(sorted(expected), abs=1e-5)


def test_an_image_that_is_not_known_is_refused(clf: Classifier) -> None:
    for digest in ("0" * 64, "x"):
        with pytest.raises(InvalidInputError, match="hash"):
            clf.similar(digest)
    with pytest.raises(InvalidInputError, match="number"):
        clf.similar("0" * 64, number=0)
