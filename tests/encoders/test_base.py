"""`BatchEncoder` and `EncoderSet`: batches, checks, normalisation, shared backbones."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zsvec.encoders import BatchEncoder, EncoderSet
from zsvec.encoders.base import rgb_of_bounded_aspect
from zsvec.errors import EncoderError, InvalidInputError
from zsvec.testing import HashEncoder
from zsvec.types import Fingerprint, Modality

IMAGES = [Image.new("RGB", (4, 3), (value, 0, 0)) for value in (10, 20, 30, 40, 50)]
TEXTS = ["a", "bb", "ccc"]


class Told(BatchEncoder):
    """Returns given rows, one for each image or text."""

    def __init__(self, *rows: Any, dim: int = 2, **base: Any) -> None:
        super().__init__("told", Fingerprint(model="told", revision=None, dim=dim, preprocessing=""), **base)
        self.rows = list(rows)
        self.seen: list[int] = []

    def embed(self, batch: Any, modality: Modality) -> Any:
        self.seen.append(len(batch))
        answer, self.rows = self.rows[: len(batch)], self.rows[len(batch) :]
        return answer


def test_rows_of_any_finite_size_get_unit_norm() -> None:
    vectors = Told([3, 4], [0, -2], [1e-30, 0], [3e38, 3e38], [1e-44, 0]).encode_texts([*TEXTS, "d", "e"])
    expected = [[0.6, 0.8], [0.0, -1.0], [1.0, 0.0], [2**-0.5, 2**-0.5], [1.0, 0.0]]
    np.testing.assert_allclose(vectors, expected, rtol=1e-6, atol=1e-7)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("row", "words"), [([0, 0], "zero"), ([np.nan, 1], "not finite"), ([-np.inf, 1], "not finite")]
)
def test_unusable_rows_are_named(row: list[float], words: str) -> None:
    with pytest.raises(EncoderError, match=rf"'told' returned a vector that is {words} \(row 2, 1 of 3 rows\)"):
        Told([1, 0], [0, 1], row, batch_size=2).encode_texts(TEXTS)


class Failing(Told):
    """Raises what it was given."""

    def embed(self, batch: Any, modality: Modality) -> Any:
        raise self.rows[0]


def test_an_encoder_that_fails_is_named() -> None:
    with pytest.raises(EncoderError, match=r"'told' .*ValueError \(no such word\)") as raised:
        Failing(ValueError("no such word")).encode_texts(TEXTS)
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(InvalidInputError, match="as it is"):
        Failing(InvalidInputError("as it is")).encode_images(IMAGES)


def test_wrong_shapes_are_named() -> None:
    for rows in ([[1, 0, 0]] * 3, [[1, 0]] * 2, [1, 2, 3], [[[1, 0]]] * 3):
        with pytest.raises(EncoderError, match=r"'told' returned an array of shape .* where \(3, 2\) was expected"):
            Told(*rows).encode_texts(TEXTS)


def test_batches_are_no_larger_than_asked() -> None:
    encoder = Told(*[[1, 0]] * 5, *[[0, 1]] * 3, batch_size=2)
    assert encoder.encode_images(IMAGES).shape == (5, 2)
    assert encoder.encode_texts(TEXTS).shape == (3, 2)
    assert encoder.seen == [2, 2, 1, 2, 1]


def test_empty_input_gives_no_rows() -> None:
    encoder = Told(dim=7)
    for vectors in (encoder.encode_images([]), encoder.encode_texts([])):
        assert (vectors.shape, vectors.dtype, encoder.seen) == ((0, 7), np.float32, [])


def test_texts_must_be_strings() -> None:
    texts: Any
    for texts in ("one text", [b"bytes"], ["a", None]):
        with pytest.raises(InvalidInputError, match="must be a sequence of str"):
            Told().encode_texts(texts)


def test_an_encoder_of_images_takes_no_texts() -> None:
    with pytest.raises(InvalidInputError, match="'told' embeds no texts"):
        Told(modalities=("image",)).encode_texts(["a"])


def test_an_encoder_of_texts_alone_still_embeds_the_query() -> None:
    assert Told([1, 0], modalities=("text",)).encode_images(IMAGES[:1]).shape == (1, 2)


# ---- EncoderSet


class CountingBackbone:
    side: int | None = None

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def preprocess(self, image: Image.Image) -> Any:
        self.calls["preprocess"] += 1
        return image.getpixel((0, 0))[0]  # type: ignore[index]

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.calls["forward"] += 1
        return [[value, 1] for value in inputs]


class Head(BatchEncoder):
    def __init__(self, name: str, backbone: CountingBackbone, sign: int = 1) -> None:
        fingerprint = Fingerprint(model=name, revision=None, dim=2, preprocessing="")
        super().__init__(name, fingerprint, backbone=backbone)
        self.sign = sign

    def embed(self, batch: Any, modality: Modality) -> Any:
        return self.sign * np.array(batch)


def test_a_shared_backbone_runs_once_a_batch() -> None:
    shared, own = CountingBackbone(), CountingBackbone()
    encoders = EncoderSet([Head("a", shared), Head("b", own), Head("c", shared, -1)], batch_size=3)
    vectors = encoders.encode_images([encoders.preprocess(image) for image in IMAGES])
    assert shared.calls == own.calls == {"preprocess": 5, "forward": 2}
    expected = np.array([[value, 1] for value in (10, 20, 30, 40, 50)])
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for name, sign in {"a": 1, "b": 1, "c": -1}.items():
        np.testing.assert_allclose(vectors[name], sign * expected, rtol=1e-6)


def test_the_side_of_a_set_is_enough_for_each_backbone() -> None:
    cases: list[tuple[list[int | None], int | None]] = [
        ([], None),
        ([None], None),
        ([64], 64),
        ([64, 224, 96], 224),
        ([64, None], None),
    ]
    for sides, side in cases:
        backbones = [CountingBackbone() for _ in sides]
        for backbone, needed in zip(backbones, sides, strict=True):
            backbone.side = needed
        encoders = [Head(f"{i} {j}", backbone) for i, backbone in enumerate(backbones) for j in range(2)]
        assert EncoderSet(encoders).side == side


def test_a_set_agrees_with_its_encoders() -> None:
    encoders = EncoderSet([HashEncoder("a", dim=8), HashEncoder("b", dim=5, modalities=("image",))])
    vectors = encoders.encode_images([encoders.preprocess(image) for image in IMAGES])
    for encoder in encoders:
        np.testing.assert_array_equal(vectors[encoder.name], encoder.encode_images(IMAGES))
        assert encoders[encoder.name] is encoder
    assert encoders.fingerprints == {encoder.name: encoder.fingerprint for encoder in encoders}
    assert len(encoders) == 2
    assert not encoders.on_torch


def test_a_set_without_images_gives_no_rows() -> None:
    vectors = EncoderSet([HashEncoder("a", dim=8)]).encode_images([])
    assert (vectors["a"].shape, vectors["a"].dtype) == ((0, 8), np.float32)


def test_names_must_differ_and_be_known() -> None:
    with pytest.raises(InvalidInputError, match="two encoders are named 'a'"):
        EncoderSet([HashEncoder("a"), HashEncoder("a")])
    with pytest.raises(InvalidInputError, match="no encoder is named 'x'; there are a, b"):
        EncoderSet([HashEncoder("a"), HashEncoder("b")])["x"]


# ---- images


def test_strips_are_cut_to_their_centre() -> None:
    sizes = {(10_000, 1): (16, 1), (3, 999): (3, 49), (160, 10): (160, 10), (1, 1): (1, 1)}
    for size, kept in sizes.items():
        image = Image.new("RGB", size)
        image.putpixel((size[0] // 2, size[1] // 2), (255, 0, 0))
        cut = rgb_of_bounded_aspect(image)
        assert cut.size == kept
        assert (np.asarray(cut) == (255, 0, 0)).all(axis=-1).any()


# ---- imports


def test_importing_loads_no_libraries() -> None:
    heavy = ("torch", "timm", "sentence_transformers", "transformers", "huggingface_hub")
    code = f"import sys, zsvec.encoders, zsvec.testing; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- zsvec.testing


def test_a_hash_encoder_finds_similar_inputs_near() -> None:
    encoder = HashEncoder("h", dim=32)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    noisy = (pixels.astype(int) + np.random.default_rng(1).integers(-3, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
    image, near, far = encoder.encode_images([Image.fromarray(array) for array in (pixels, noisy, 255 - pixels)])
    assert image @ near > 0.99
    assert image @ far < 0.5
    cat, cats, truck = encoder.encode_texts(["a small cat", "A cat", "one truck"])
    assert cat @ cats > 0.5 > abs(cat @ truck)


def test_a_hash_encoder_counts_and_repeats_itself() -> None:
    first, second = HashEncoder("h", dim=32), HashEncoder("h", dim=32)
    np.testing.assert_array_equal(first.encode_images(IMAGES), second.encode_images(IMAGES))
    np.testing.assert_array_equal(first.encode_texts(TEXTS), second.encode_texts(TEXTS))
    assert (first.images_encoded, first.texts_encoded) == (len(IMAGES), len(TEXTS))
    assert first.fingerprint == second.fingerprint != HashEncoder("h", dim=16).fingerprint
