"""Small copies: within their limits whatever the image is, upright, and opened as what anybody may have made."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.support import encode
from zsvec.errors import ImageError
from zsvec.inputs.images import read_image
from zsvec.inputs.small import LARGEST, SIDE, open_small, small_copy


def noise(width: int, height: int) -> Image.Image:
    """What a JPEG compresses least."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (341, 256)),
        ((300, 400), (256, 341)),
        ((256, 256), (256, 256)),
        ((8, 6), (8, 6)),  # not made larger
        ((1, 1), (1, 1)),
        ((4096, 1024), (1024, 256)),
        ((8192, 1024), (1024, 128)),  # its longer side would be 2,048
        ((1, 100_000), (1, 1024)),
        ((100_000, 3), (1024, 1)),
    ],
)
def test_its_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = smooth(*size)
    content = small_copy(image)
    small = open_small(content)
    assert small.size == expected
    assert len(content) <= LARGEST
    assert image.size == size  # the image itself is as it was
    if min(expected) > 100:
        assert abs(np.asarray(small, int) - np.asarray(image.resize(expected), int)).mean() < 3


@pytest.mark.parametrize("size", [(4000, 3000), (256, 1024), (1024, 256), (256, 256), (640, 640)])
def test_what_has_the_most_detail_is_small_too(size: tuple[int, int]) -> None:
    content = small_copy(noise(*size))
    assert 1000 < len(content) <= LARGEST
    assert min(open_small(content).size) <= SIDE


def test_the_size_of_the_image_is_that_of_all_of_it_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = encode(smooth(1600, 1200), "JPEG", exif=exif)
    read = read_image(file, side=224)
    assert read.size == (1200, 1600)
    assert read.image.size == (600, 800)
    assert read_image(encode(smooth(1600, 1200), "JPEG")).size == (1600, 1200)
    assert read_image(np.zeros((6, 8, 3), np.uint8)).size == (8, 6)
    assert read_image(smooth(8, 6)).size == (8, 6)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        small_copy(smooth(300, 300))[:500],
        encode(Image.new("1", (10_000, 10_000))),  # 10⁸ pixels in some kilobytes
        encode(Image.new("L", (513, 512))),
        small_copy(smooth(300, 300)) + bytes(LARGEST),
    ],
    ids=len,
)
def test_what_is_no_small_copy_is_refused(content: bytes) -> None:
    with warnings.catch_warnings(), pytest.raises(ImageError):
        warnings.simplefilter("error")
        open_small(content)


def test_a_small_copy_is_a_jpeg() -> None:
    with Image.open(io.BytesIO(small_copy(smooth(300, 300)))) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
