"""The contract of encoders of all families and formats: values, not only shapes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import BatchEncoder, Encoder, EncoderSet
from zsvec.errors import InvalidInputError

ENCODERS = (
    "hash",
    "clip",
    "sentence-clip",
    "older-sentence-clip",
    "vit",
    "vit-96",
    "tiny-conse",
    "conse",
    "conse on torch",
    "efficientnet",
)
READERS = ("hash", "clip", "sentence-clip", "older-sentence-clip", "tiny-conse", "conse", "conse on torch")
IMAGES = [photo(seed, size) for seed, size in enumerate([(48, 40), (40, 48), (300, 30), (17, 90), (224, 224)])]
TEXTS = ["a cat", "a red panda on a tree", "x", "小熊猫", "a dog that sleeps in the sun"]
ORDER = [3, 0, 4, 1, 2]
FLOAT32 = 1e-5


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, encoder_named: Callable[[str], Encoder]) -> Any:
    return encoder_named(request.param)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, encoder_named: Callable[[str], Encoder]) -> Any:
    return encoder_named(request.param)


@cache
def image_vectors(encoder: BatchEncoder) -> np.ndarray:
    return encoder.encode_images(IMAGES)


@cache
def text_vectors(encoder: BatchEncoder) -> np.ndarray:
    return encoder.encode_texts(TEXTS)


def check(vectors: np.ndarray, number: int, encoder: Encoder) -> None:
    assert vectors.shape == (number, encoder.fingerprint.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=FLOAT32)


def check_distinct(vectors: np.ndarray) -> None:
    assert np.max(vectors @ vectors.T - np.eye(len(vectors))) < 1 - 1e-4


def test_images_are_distinct_unit_rows_in_order(encoder: BatchEncoder) -> None:
    vectors = image_vectors(encoder)
    check(vectors, len(IMAGES), encoder)
    check_distinct(vectors)
    moved = encoder.encode_images([IMAGES[index] for index in ORDER])
    np.testing.assert_allclose(moved, vectors[ORDER], atol=FLOAT32)
    first, second = encoder.encode_images([IMAGES[0], IMAGES[0].copy()])
    np.testing.assert_allclose(first, second, atol=1e-6)
    check(encoder.encode_images([]), 0, encoder)


def test_texts_are_distinct_unit_rows_in_order(reader: BatchEncoder) -> None:
    vectors = text_vectors(reader)
    check(vectors, len(TEXTS), reader)
    check_distinct(vectors)
    moved = reader.encode_texts([TEXTS[index] for index in ORDER])
    np.testing.assert_allclose(moved, vectors[ORDER], atol=FLOAT32)
    check(reader.encode_texts(["a small reddish mammal " * 400, "", " \n\t"]), 3, reader)


def test_batches_and_sets_make_no_difference(encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = image_vectors(encoder), text_vectors(encoder) if "text" in encoder.modalities else None
    encoders = EncoderSet([encoder], batch_size=2)
    vectors = encoders.encode_images([encoders.preprocess(image) for image in IMAGES])
    np.testing.assert_allclose(vectors[encoder.name], images, atol=FLOAT32)
    for size in (1, 3):
        monkeypatch.setattr(encoder, "batch_size", size)
        np.testing.assert_allclose(encoder.encode_images(IMAGES), images, atol=FLOAT32)
        if texts is not None:
            np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=FLOAT32)


def test_threads_make_no_difference(encoder: BatchEncoder) -> None:
    encoders = EncoderSet([encoder])
    expected = image_vectors(encoder)
    expected_texts = text_vectors(encoder) if "text" in encoder.modalities else None

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(IMAGES))
        prepared = [encoders.preprocess(IMAGES[index]) for index in order]
        np.testing.assert_allclose(encoders.encode_images(prepared)[encoder.name], expected[order], atol=FLOAT32)
        if expected_texts is not None:
            chosen = order[: 1 + seed % len(TEXTS)]
            got = encoder.encode_texts([TEXTS[index] for index in chosen])
            np.testing.assert_allclose(got, expected_texts[chosen], atol=FLOAT32)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


# not of `tiny-conse`: random label probabilities jump
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "tiny-conse"])
def test_similar_images_are_near(name: str, encoder_named: Callable[[str], Encoder]) -> None:
    image = photo(7, (200, 150))
    brighter = image.point(lambda value: min(255, value + 2))
    same, near, other = encoder_named(name).encode_images([image, brighter, photo(8, (200, 150))])
    assert same @ near > same @ other


def test_images_of_any_size_and_mode(encoder: Encoder) -> None:
    images = [
        Image.new("RGB", size, (200, 90, 30)).convert(mode)
        for size in ((1, 1), (1, 2), (3, 3), (2, 700), (5000, 1))
        for mode in ("RGB", "L", "RGBA")
    ]
    check(encoder.encode_images([*images, IMAGES[0]]), len(images) + 1, encoder)


def test_image_models_refuse_texts(encoder_named: Callable[[str], Encoder]) -> None:
    for name in set(ENCODERS) - set(READERS):
        with pytest.raises(InvalidInputError, match="embeds no texts"):
            encoder_named(name).encode_texts(["a cat"])


def test_texts_are_never_opened_as_images(reader: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    IMAGES[0].save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    texts = ["cat.png", "https://localhost:1/cat.jpg", "data:image/png;base64,AAAA"]
    vectors = reader.encode_texts(texts)
    check(vectors, 3, reader)
    (tmp_path / "cat.png").unlink()
    np.testing.assert_allclose(reader.encode_texts(texts), vectors, atol=FLOAT32)
