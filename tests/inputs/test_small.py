"""Small copies: within their limits for any image, upright, without metadata, and untrusted when opened."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.inputs.pictures import chunk, read_image
from tests.support import encode
from zsvec.errors import ImageError
from zsvec.inputs.images import load_image
from zsvec.inputs.small import LARGEST, SIDE, open_small, small_copy


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))


def test_the_size_of_a_small_copy() -> None:
    for size, expected in (
        ((4000, 3000), (341, 256)),
        ((300, 400), (256, 341)),
        ((256, 256), (256, 256)),
        ((8, 6), (8, 6)),  # not enlarged
        ((1, 1), (1, 1)),
        ((4096, 1024), (1024, 256)),
        ((8192, 1024), (1024, 128)),  # the longer side would be 2,048
        ((1, 100_000), (1, 1024)),
        ((100_000, 3), (1024, 1)),
    ):
        image = smooth(*size)
        content = small_copy(image)
        small = open_small(content)
        assert small.size == expected
        assert len(content) <= LARGEST
        assert image.size == size  # the image itself is unchanged
        if min(expected) > 100:
            assert abs(np.asarray(small, int) - np.asarray(image.resize(expected), int)).mean() < 3


def test_noise_is_small_too() -> None:
    for size in ((4000, 3000), (256, 1024), (256, 256), (640, 640)):
        content = small_copy(noise(*size))
        assert 1000 < len(content) <= LARGEST
        assert min(open_small(content).size) <= SIDE


def test_the_size_of_an_image_is_the_whole_upright_size() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = encode(smooth(1600, 1200), "JPEG", exif=exif)
    read = read_image(file, side=224)
    assert read.size == (1200, 1600)
    assert read.image.size == (600, 800)
    assert read_image(encode(smooth(1600, 1200), "JPEG")).size == (1600, 1200)
    assert read_image(np.zeros((6, 8, 3), np.uint8)).size == (8, 6)
    assert read_image(smooth(8, 6)).size == (8, 6)


def test_forged_small_copies_are_refused() -> None:
    copy = small_copy(smooth(300, 300))
    bomb = encode(Image.new("1", (10_000, 10_000)))  # 10⁸ pixels in some kilobytes
    for content in (b"", b"no image", copy[:500], bomb, encode(Image.new("L", (513, 512))), copy + bytes(LARGEST)):
        with warnings.catch_warnings(), pytest.raises(ImageError):
            warnings.simplefilter("error")
            open_small(content)


def test_a_small_copy_is_a_jpeg() -> None:
    with Image.open(io.BytesIO(small_copy(smooth(300, 300)))) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")


MARK = b"where and by whom it was taken"


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments of metadata behind its first marker."""
    plain = encode(smooth(60, 40), "JPEG")
    added = b"".join(bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data for kind, data in segments)
    return plain[:2] + added + plain[2:]


def with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks behind its header."""
    plain = encode(smooth(60, 40))
    return plain[:33] + b"".join(chunk(kind, data) for kind, data in chunks) + plain[33:]


def exif() -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.ImageDescription] = MARK.decode()
    return tags.tobytes()


METADATA: dict[str, Callable[[], bytes]] = {
    "JPEG comment": lambda: jpeg((0xFE, MARK)),
    "JPEG comment of 10 MB": lambda: jpeg(*[(0xFE, MARK * 2000)] * 170),
    "JPEG EXIF": lambda: jpeg((0xE1, exif())),
    "JPEG XMP": lambda: jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + MARK)),
    "JPEG ICC": lambda: jpeg((0xE2, b"ICC_PROFILE\0\x01\x01" + MARK)),
    "JPEG Photoshop": lambda: jpeg((0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", 30) + MARK)),
    "PNG tEXt": lambda: with_chunks((b"tEXt", b"comment\0" + MARK)),
    "PNG XMP": lambda: with_chunks((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MARK)),
    "PNG eXIf": lambda: with_chunks((b"eXIf", exif()[6:])),
    "PNG iCCP": lambda: with_chunks((b"iCCP", b"profile\0\0" + zlib.compress(MARK))),
    "WebP EXIF and XMP": lambda: encode(smooth(60, 40), "WEBP", lossless=True, exif=exif(), xmp=MARK, icc_profile=MARK),
    "GIF comment": lambda: encode(smooth(60, 40), "GIF", comment=MARK),
    "GIF comment of 10 MB": lambda: encode(smooth(60, 40), "GIF", comment=MARK * 340_000),
    "TIFF": lambda: encode(smooth(60, 40), "TIFF", description=MARK.decode(), icc_profile=MARK),
}


@pytest.mark.parametrize("kind", METADATA)
def test_a_small_copy_has_pixels_and_no_metadata(kind: str) -> None:
    image = load_image(METADATA[kind]())
    bare = Image.fromarray(np.asarray(image))
    content = small_copy(image)
    assert MARK not in content
    assert content == small_copy(bare)
    assert len(content) <= LARGEST


def test_the_image_itself_keeps_its_metadata() -> None:
    image = Image.new("RGB", (8, 6))
    image.info["comment"] = MARK
    small_copy(image)
    assert image.info == {"comment": MARK}
