"""What every encoder keeps, whatever its family and format: the values, not only their number."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
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
    "efficientnet",
)
READERS = ("hash", "clip", "sentence-clip", "older-sentence-clip", "tiny-conse", "conse")
IMAGES = [photo(seed, size) for seed, size in enumerate([(48, 40), (40, 48), (300, 30), (17, 90), (224, 224)])]
TEXTS = ["a cat", "a red panda on a tree", "x", "小熊猫", "a dog that sleeps in the sun"]
FLOAT32 = 1e-5


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, encoder_named: Callable[[str], Encoder]) -> Any:
    return encoder_named(request.param)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, encoder_named: Callable[[str], Encoder]) -> Any:
    return encoder_named(request.param)


@cache
def image_vectors(encoder: BatchEncoder) -> np.ndarray:
    """Vectors of `IMAGES`, computed once."""
    return encoder.encode_images(IMAGES)


@cache
def text_vectors(encoder: BatchEncoder) -> np.ndarray:
    """Vectors of `TEXTS`, computed once."""
    return encoder.encode_texts(TEXTS)


def check(vectors: np.ndarray, number: int, encoder: Encoder) -> None:
    assert vectors.shape == (number, encoder.fingerprint.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=FLOAT32)


def test_images_are_unit_rows(encoder: BatchEncoder) -> None:
    vectors = image_vectors(encoder)
    check(vectors, len(IMAGES), encoder)
    similarities = vectors @ vectors.T
    assert np.max(similarities - np.eye(len(IMAGES))) < 1 - 1e-4  # different images, different vectors


def test_texts_are_unit_rows(reader: BatchEncoder) -> None:
    vectors = text_vectors(reader)
    check(vectors, len(TEXTS), reader)
    similarities = vectors @ vectors.T
    assert np.max(similarities - np.eye(len(TEXTS))) < 1 - 1e-4


def test_images_keep_their_order(encoder: BatchEncoder) -> None:
    order = [3, 0, 4, 1, 2]
    moved = encoder.encode_images([IMAGES[index] for index in order])
    np.testing.assert_allclose(moved, image_vectors(encoder)[order], atol=FLOAT32)


def test_texts_keep_their_order(reader: BatchEncoder) -> None:
    order = [3, 0, 4, 1, 2]
    moved = reader.encode_texts([TEXTS[index] for index in order])
    np.testing.assert_allclose(moved, text_vectors(reader)[order], atol=FLOAT32)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_make_no_difference(encoder: BatchEncoder, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = image_vectors(encoder), text_vectors(encoder) if "text" in encoder.modalities else None
    monkeypatch.setattr(encoder, "batch_size", size)
    np.testing.assert_allclose(encoder.encode_images(IMAGES), images, atol=FLOAT32)
    if texts is not None:
        np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=FLOAT32)


def test_a_set_makes_no_difference(encoder: BatchEncoder) -> None:
    encoders = EncoderSet([encoder], batch_size=2)
    vectors = encoders.encode_images([encoders.preprocess(image) for image in IMAGES])
    np.testing.assert_allclose(vectors[encoder.name], image_vectors(encoder), atol=FLOAT32)


def test_the_same_image_twice_is_the_same_vector(encoder: Encoder) -> None:
    first, second = encoder.encode_images([IMAGES[0], IMAGES[0].copy()])
    np.testing.assert_allclose(first, second, atol=1e-6)


# not of `tiny-conse`: random label probabilities jump
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "tiny-conse"])
def test_what_looks_alike_is_near(name: str, encoder_named: Callable[[str], Encoder]) -> None:
    encoder = encoder_named(name)
    image = photo(7, (200, 150))
    brighter = image.point(lambda value: min(255, value + 2))
    same, near, other = encoder.encode_images([image, brighter, photo(8, (200, 150))])
    assert same @ near > same @ other


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 3), (2, 700), (5000, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_any_size_and_mode(encoder: Encoder, size: tuple[int, int], mode: str) -> None:
    image = Image.new("RGB", size, (200, 90, 30)).convert(mode)
    check(encoder.encode_images([image, IMAGES[0]]), 2, encoder)


def test_no_input_no_rows(encoder: Encoder) -> None:
    check(encoder.encode_images([]), 0, encoder)


@pytest.mark.parametrize("name", ["vit", "efficientnet"])
def test_image_models_refuse_texts(name: str, encoder_named: Callable[[str], Encoder]) -> None:
    with pytest.raises(InvalidInputError, match="embeds no texts"):
        encoder_named(name).encode_texts(["a cat"])


def test_long_texts_are_truncated(reader: Encoder) -> None:
    vectors = reader.encode_texts(["a small reddish mammal " * 400, "", " \n\t"])
    check(vectors, 3, reader)


def test_a_text_is_never_opened_as_an_image(
    reader: Encoder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("cwd")
    IMAGES[0].save(folder / "cat.png")
    monkeypatch.chdir(folder)
    texts = ["cat.png", "https://localhost:1/cat.jpg", "data:image/png;base64,AAAA"]
    vectors = reader.encode_texts(texts)
    check(vectors, 3, reader)
    (folder / "cat.png").unlink()
    np.testing.assert_allclose(reader.encode_texts(texts), vectors, atol=FLOAT32)


def test_threads_make_no_difference(encoder: BatchEncoder) -> None:
    encoders = EncoderSet([encoder])
    expected = image_vectors(encoder)
    texts = TEXTS if "text" in encoder.modalities else []
    expected_texts = text_vectors(encoder) if texts else None

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(IMAGES))
        prepared = [encoders.preprocess(IMAGES[index]) for index in order]
        np.testing.assert_allclose(encoders.encode_images(prepared)[encoder.name], expected[order], atol=FLOAT32)
        if expected_texts is not None:
            chosen = order[: 1 + seed % len(TEXTS)]
            got = encoder.encode_texts([texts[index] for index in chosen])
            np.testing.assert_allclose(got, expected_texts[chosen], atol=FLOAT32)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
