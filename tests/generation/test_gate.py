"""Flags of the gate, against cases worked by hand: vectors in the plane, and simple pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.support import encode
from zsvec.encoders.everyday import EVERYDAY
from zsvec.generation import gate
from zsvec.generation.gate import blank, copies, far

Floats = NDArray[np.float32]


def rows(*vectors: Sequence[float]) -> Floats:
    return np.array(vectors, dtype=np.float32).reshape(-1, 2)


def at(*degrees: float) -> Floats:
    """Unit vectors of the plane: 8 degrees apart they are one picture (cosine 0.9903), 9 degrees apart (0.9877) two."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


NONE = at()

# ---- far


def test_far_images_are_no_nearer_to_their_texts_than_to_everyday_words_on_average() -> None:
    cases: list[tuple[Sequence[float], list[Sequence[float]], list[Sequence[float]], bool]] = [
        ((1, 0), [(1, 0)], [(0, 1)], False),
        ((0, 1), [(1, 0)], [(0, 1)], True),
        ((0.6, 0.8), [(1, 0)], [(0, 1)], True),  # 0.6 and 0.8
        ((0.8, 0.6), [(1, 0)], [(0, 1)], False),
        ((0, 1), [(1, 0)], [(-1, 0)], True),  # 0 and 0: no nearer
        ((0, 1), [(0.6, -0.8)], [(0, -1)], False),  # -0.8 and -1
        ((1, 0), [(0.6, 0.8)], [(1, 0), (0, 1)], False),  # 0.6 and (1 + 0) / 2: one word that is nearer is none
        ((1, 0), [(0.6, 0.8)], [(1, 0), (1, 0), (0, 1)], True),  # 0.6 and 2 / 3
        ((1, 0), [(1, 0), (0, 1)], [(0.6, 0.8)], True),  # (1 + 0) / 2 and 0.6: all texts count
        ((1, 0), [(1, 0), (0.6, 0.8)], [(0.6, 0.8)], False),  # 0.8 and 0.6
    ]
    for image, texts, everyday, expected in cases:
        assert far(rows(image), rows(*texts), rows(*everyday)).tolist() == [expected], (image, texts, everyday)


def test_each_image_is_far_by_itself() -> None:
    found = far(at(0, 90, 50, 40), at(0), at(90, 90))
    assert found.dtype == np.bool_
    assert found.tolist() == [False, True, True, False]
    assert far(NONE, at(0), at(90)).tolist() == []


def test_everyday_words_are_many_and_differ() -> None:
    assert len(set(EVERYDAY)) == len(EVERYDAY) == 40
    assert all(word == word.strip().lower() and word for word in EVERYDAY)


# ---- copies


def test_copies_of_one_encoder() -> None:
    cases: list[tuple[list[float], list[float], list[int]]] = [
        ([], [], []),
        ([], [0, 90], []),
        ([0], [], [-1]),
        ([0, 90], [], [-1, -1]),
        ([0, 8], [], [-1, 0]),
        ([0, 9], [], [-1, -1]),
        ([0, 5, 10], [], [-1, 0, 1]),  # the third is like the second, not like the first
        ([0, 5, 3], [], [-1, 0, 0]),  # like both: the first counts
        ([3, 0, 5], [], [-1, 0, 0]),
        ([0, 180], [], [-1, -1]),
        ([5], [90, 10], [1]),
        ([5, 90, 200], [90, 10], [1, 0, -1]),
        ([5], [10, 0], [0]),
        ([0, 45, 2], [90, 180], [-1, -1, 2]),  # like the first image, which comes after two references
        ([0, 2], [1], [0, 0]),  # like the reference and like each other: the reference counts
    ]
    for images, references, expected in cases:
        found = copies({"a": at(*images)}, {"a": at(*references)})
        assert found.dtype == np.intp
        assert found.tolist() == expected, (images, references)
    assert copies({}, {}).tolist() == []


def test_a_copy_is_as_near_as_a_twin_of_calibration() -> None:
    for cosine, expected in ((0.99, 0), (0.9899, -1), (1.0, 0)):
        other = (cosine, (1 - cosine**2) ** 0.5)
        assert copies({"a": rows(other)}, {"a": rows((1, 0))}).tolist() == [expected], cosine


def test_all_encoders_must_agree() -> None:
    cases: list[tuple[list[float], list[float], list[int]]] = [
        # Two references, then three images, by the vectors of two encoders.
        ([0, 90, 1, 91, 200], [0, 90, 1, 91, 200], [0, 1, -1]),
        ([0, 90, 1, 91, 200], [0, 90, 45, 91, 200], [-1, 1, -1]),  # the second encoder sees a difference
        ([0, 90, 1, 91, 200], [90, 0, 1, 91, 200], [-1, -1, -1]),  # each is like another
        ([0, 2, 1, 91, 200], [90, 0, 1, 91, 200], [1, -1, -1]),  # like both, like the second
        ([0, 90, 200, 201, 202], [0, 90, 200, 300, 201], [-1, -1, 2]),  # the third image like the first
        ([0, 90, 200, 201, 202], [0, 90, 200, 201, 203], [-1, 2, 2]),
    ]
    for a, b, expected in cases:
        images, references = {"a": at(*a[2:]), "b": at(*b[2:])}, {"a": at(*a[:2]), "b": at(*b[:2])}
        assert copies(images, references).tolist() == expected, (a, b)
        swapped = {"b": images["b"], "a": images["a"]}
        assert copies(swapped, references).tolist() == expected, (a, b)
    wide = np.eye(5, dtype=np.float32)[[0, 1, 1]]
    assert copies({"a": at(0, 90, 91), "b": wide}, {"a": NONE, "b": wide[:0]}).tolist() == [-1, -1, 1]


@pytest.mark.parametrize("block", [1, 149, 10_000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    a, b = np.random.default_rng(0).integers(0, [[360], [20]], (2, 50))
    expected = []
    for i in range(20, 50):
        apart = np.abs(a[:i] - a[i])
        like = (np.minimum(apart, 360 - apart) <= 8) & (np.abs(b[:i] - b[i]) <= 8)
        expected.append(int(like.argmax()) if like.any() else -1)
    images, references = {"a": at(*a[20:]), "b": at(*b[20:])}, {"a": at(*a[:20]), "b": at(*b[:20])}
    monkeypatch.setattr(gate, "_BLOCK", block)
    assert copies(images, references).tolist() == expected
    assert -1 in expected
    assert any(0 <= other < 20 for other in expected)
    assert any(other >= 20 for other in expected)


# ---- blank

SIDE = 1024


def grained(colour: tuple[int, int, int], deviation: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, deviation, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality))).convert("RGB")


def shaded(darkest: int, brightest: int) -> Image.Image:
    row = np.linspace(darkest, brightest, SIDE).round().astype(np.uint8)
    return Image.fromarray(np.repeat(np.tile(row, (SIDE, 1))[:, :, None], 3, axis=2))


def test_an_image_of_one_colour_is_blank() -> None:
    images = {colour: Image.new("RGB", (SIDE, SIDE), colour) for colour in ("white", "black", "red", "#777")} | {
        "one pixel": Image.new("RGB", (1, 1), "white"),
        "strip": Image.new("RGB", (1, 3000), "white"),
        "small": Image.new("RGB", (33, 71), "teal"),
        "noise on white": grained((255, 255, 255), 10),
        "noise on blue": grained((90, 120, 200), 30),
        "JPEG": as_jpeg(Image.new("RGB", (SIDE, SIDE), (180, 20, 90)), 75),
        "bad JPEG of noise": as_jpeg(grained((180, 20, 90), 20), 10),
        "vignette": shaded(240, 250),
    }
    assert [kind for kind, image in images.items() if not blank(image)] == []


def drawing(draw: Callable[[ImageDraw.ImageDraw], object], ground: str = "white") -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw(ImageDraw.Draw(image))
    return image


def test_an_image_with_something_in_it_is_not_blank() -> None:
    images = {
        "circle": drawing(lambda d: d.ellipse((200, 200, 824, 824), outline="black", width=3)),
        "line": drawing(lambda d: d.line((100, 900, 900, 100), fill="black", width=4)),
        "horizon": drawing(lambda d: d.line((0, 512, 1024, 512), fill="white", width=4), "black"),
        "something small": drawing(lambda d: d.rectangle((500, 500, 530, 530), fill="navy")),
        "pale": drawing(lambda d: d.rectangle((0, 0, 1024, 512), fill="#f0f0f0")),
        "blue only": drawing(lambda d: d.rectangle((0, 0, 512, 1024), fill=(120, 120, 160)), "#787878"),
        "JPEG": as_jpeg(drawing(lambda d: d.ellipse((300, 300, 700, 700), outline="red", width=5)), 20),
        "shade": shaded(200, 255),
        "few pixels": drawing(lambda d: d.rectangle((0, 0, 512, 1024), fill="black")).resize((2, 3)),
    }
    assert [kind for kind, image in images.items() if blank(image)] == []
