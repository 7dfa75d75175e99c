from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageFile, features

from zsvec.errors import ImageError, InvalidInputError
from zsvec.inputs import images
from zsvec.inputs.images import SUFFIXES, content_hash, find_images, load_image, read_image, source_of

LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("BMP", {}),
    ("PPM", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
]
if features.check("jpg_2000"):
    LOSSLESS.append(("JPEG2000", {}))
ALL_FORMATS = [*LOSSLESS, ("JPEG", {}), ("GIF", {})]
Image.init()
if "AVIF" in Image.SAVE:
    ALL_FORMATS.append(("AVIF", {}))


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, colour: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG written by hand: one row of samples, whatever the header says."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def pixels(image: Any, **options: Any) -> list[Any]:
    """RGB values of an image of one row."""
    loaded = load_image(image, **options)
    assert loaded.mode == "RGB"
    assert loaded.height == 1
    return [tuple(int(value) for value in pixel) for pixel in np.asarray(loaded)[0]]


def greys(image: Any) -> list[int]:
    values = pixels(image)
    assert all(red == green == blue for red, green, blue in values)
    return [red for red, _, _ in values]


def row(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))


class TestKindsOfInput:
    @settings(max_examples=60, deadline=None)
    @given(
        array=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
        choice=st.sampled_from(LOSSLESS),
    )
    def test_path_bytes_file_image_and_array_give_the_same_pixels(
        self, tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, choice: tuple[str, dict[str, Any]]
    ) -> None:
        data = encode(Image.fromarray(array), choice[0], **choice[1])
        path = tmp_path_factory.mktemp("images") / "image"
        path.write_bytes(data)
        lazy = Image.open(io.BytesIO(data))
        for given_ in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), lazy, array):
            loaded = load_image(given_)
            assert loaded.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(loaded), array)

    @pytest.mark.parametrize("encoding", ALL_FORMATS, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
    def test_every_format_decodes_as_pillow_does(
        self, photo: Image.Image, encoding: tuple[str, dict[str, Any]]
    ) -> None:
        data = encode(photo, encoding[0], **encoding[1])
        with Image.open(io.BytesIO(data)) as expected:
            np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(expected.convert("RGB")))

    def test_mpo_gives_its_first_picture(self) -> None:
        red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
        data = encode(red, "MPO", save_all=True, append_images=[blue])
        assert load_image(data).getpixel((8, 8)) == (254, 0, 0)

    def test_an_rgb_image_is_returned_as_it_is(self, photo: Image.Image) -> None:
        assert load_image(photo) is photo

    def test_the_image_of_the_caller_is_not_changed(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image = Image.open(io.BytesIO(encode(row("L", 10, 200), "PNG", exif=exif)))
        assert load_image(image).size == (1, 2)
        assert (image.mode, image.size) == ("L", (2, 1))
        assert image.getexif()[ExifTags.Base.Orientation] == 6

    def test_a_decoded_image_does_not_need_its_file(self, tmp_path: Path, photo: Image.Image) -> None:
        path = tmp_path / "a.png"
        photo.save(path)
        loaded = load_image(path)
        path.unlink()
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(photo))

    def test_a_file_is_read_from_its_position_and_put_back(self, photo: Image.Image) -> None:
        data = encode(photo, "PNG")
        file = io.BytesIO(b"header" + data)
        file.seek(6)
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(load_image(file)), np.asarray(photo))
            assert content_hash(file) == hashlib.sha256(data).hexdigest()
            assert file.tell() == 6
        assert not file.closed

    def test_a_pipe_is_read_once_for_image_and_hash(self, photo: Image.Image) -> None:
        data = encode(photo, "PNG")
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as file:
            with_close = os.fdopen(writing, "wb")
            written = pool.submit(lambda: (with_close.write(data), with_close.close()))
            loaded = read_image(file)
            written.result()
        np.testing.assert_array_equal(np.asarray(loaded.image), np.asarray(photo))
        assert loaded.content_hash == hashlib.sha256(data).hexdigest()

    def test_a_raw_file_that_reads_little_at_a_time(self, photo: Image.Image) -> None:
        class Trickle(io.RawIOBase):
            def __init__(self) -> None:
                self.rest = encode(photo, "PNG")

            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                part, self.rest = self.rest[:100], self.rest[100:]
                buffer[: len(part)] = part
                return len(part)

        np.testing.assert_array_equal(np.asarray(load_image(Trickle())), np.asarray(photo))


UPRIGHT = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 0, 0], [90, 90, 90]]], np.uint8)
# How a camera stores the upright picture (EXIF 2.32, tag 274), as the inverse of what a viewer has to do.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "JPEG", "PIL"])
    def test_exif_orientation_is_applied(self, orientation: int, format_name: str) -> None:
        side = 16  # blocks that survive JPEG
        upright = np.kron(UPRIGHT, np.ones((side, side, 1), np.uint8))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(format_name, {})
        data = encode(stored, "PNG" if format_name == "PIL" else format_name, exif=exif, **options)
        loaded = load_image(Image.open(io.BytesIO(data)) if format_name == "PIL" else data)
        np.testing.assert_allclose(np.asarray(loaded, int), upright.astype(int), atol=4 if format_name == "JPEG" else 0)

    @pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0", b"x"])
    @pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
    def test_broken_metadata_takes_nothing_from_the_pixels(self, exif: bytes, format_name: str) -> None:
        assert load_image(encode(Image.new("RGB", (8, 8), "white"), format_name, exif=exif)).getpixel((0, 0)) == (
            255,
            255,
            255,
        )

    def test_metadata_that_pillow_warns_about(self) -> None:
        cut = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"  # announces 65,535 entries, has none
        assert greys(encode(row("L", 1, 2), "PNG", exif=cut)) == [1, 2]

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_an_unknown_orientation_is_upright(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        assert load_image(encode(row("L", 1, 2), "PNG", exif=exif)).size == (2, 1)


class TestSide:
    """JPEG files that are much larger than what they will be scaled to."""

    @staticmethod
    def gradient(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
        x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
        return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).convert(mode)

    @pytest.mark.parametrize(
        ("size", "side", "expected"),
        [
            ((400, 400), 25, (50, 50)),  # 1/8 is exactly twice the side
            ((397, 397), 25, (100, 100)),
            ((300, 400), 25, (75, 100)),
            ((1000, 400), 25, (125, 50)),
            ((1000, 800), 25, (125, 100)),  # 1/8 is the least that there is
            ((100, 100), 25, (50, 50)),
            ((99, 125), 25, (99, 125)),
            ((50, 50), 25, (50, 50)),
            ((25, 225), 25, (25, 225)),
            ((10, 8), 25, (10, 8)),
            ((64, 64), 1, (8, 8)),
        ],
    )
    def test_they_are_decoded_smaller_but_twice_as_large_as_the_side_or_more(
        self, size: tuple[int, int], side: int, expected: tuple[int, int]
    ) -> None:
        data = encode(self.gradient(size), "JPEG")
        assert load_image(data, side=side).size == expected
        assert load_image(data).size == size

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 400))
    def test_any_size(self, width: int, height: int, side: int) -> None:
        loaded = load_image(encode(self.gradient((width, height)), "JPEG"), side=side)
        shorter = min(width, height)
        if loaded.size != (width, height):
            scale = next(scale for scale in (2, 4, 8) if loaded.size == (-(-width // scale), -(-height // scale)))
            assert min(loaded.size) >= 2 * side
            assert scale == 8 or shorter / (2 * scale) < 2 * side + 1  # not larger than it has to be
        else:
            assert shorter < 4 * side + 2

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
    def test_it_is_the_same_picture(self, mode: str, options: dict[str, Any]) -> None:
        data = encode(self.gradient((800, 640), mode), "JPEG", quality=95, **options)
        loaded = load_image(data, side=80)
        assert (loaded.size, loaded.mode) == ((200, 160), "RGB")
        expected = load_image(data).resize((200, 160), Image.Resampling.BOX)
        np.testing.assert_allclose(np.asarray(loaded, int), np.asarray(expected, int), atol=6)

    @pytest.mark.parametrize(("format_name", "options"), [of for of in ALL_FORMATS if of[0] != "JPEG"])
    def test_other_formats_are_not(self, format_name: str, options: dict[str, Any]) -> None:
        data = encode(self.gradient((400, 300)), format_name, **options)
        np.testing.assert_array_equal(np.asarray(load_image(data, side=10)), np.asarray(load_image(data)))

    def test_images_that_are_decoded_are_not(self) -> None:
        image = self.gradient((400, 300))
        assert load_image(image, side=10) is image
        assert load_image(np.asarray(image), side=10).size == (400, 300)
        opened = Image.open(io.BytesIO(encode(image, "JPEG")))
        assert load_image(opened, side=10).size == opened.size == (400, 300)

    @pytest.mark.parametrize("kind", ["path", "bytes", "file"])
    def test_every_kind_of_file(self, kind: str, tmp_path: Path) -> None:
        data = encode(self.gradient((400, 300)), "JPEG")
        (tmp_path / "a.jpg").write_bytes(data)
        image = {"path": tmp_path / "a.jpg", "bytes": data, "file": io.BytesIO(data)}[kind]
        assert load_image(image, side=10).size == (50, 38)

    def test_of_several_pictures_the_first(self) -> None:
        first, second = self.gradient((400, 300)), Image.new("RGB", (400, 300))
        data = encode(first, "MPO", save_all=True, append_images=[second])
        assert load_image(data, side=10).size == (50, 38)

    @pytest.mark.parametrize("orientation", STORED)
    def test_they_are_turned_upright(self, orientation: int) -> None:
        upright = np.kron(UPRIGHT, np.ones((128, 128, 1), np.uint8))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
        loaded = load_image(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0), side=16)
        expected = np.kron(UPRIGHT, np.ones((16, 16, 1), np.uint8)).astype(int)
        np.testing.assert_allclose(np.asarray(loaded, int), expected, atol=4)

    @pytest.mark.parametrize("side", [1, 10, 1000])
    def test_the_hash_is_of_the_file(self, side: int) -> None:
        data = encode(self.gradient((400, 300)), "JPEG")
        loaded = read_image(data, side=side)
        assert loaded.content_hash == read_image(data).content_hash == content_hash(data)
        assert loaded.image.tobytes() == load_image(data, side=side).tobytes()

    def test_limits_are_of_the_file(self) -> None:
        data = encode(self.gradient((400, 300)), "JPEG")
        with pytest.raises(ImageError, match="400 × 300 pixels are more than max_pixels=100000"):
            load_image(data, side=10, max_pixels=100_000)

    @pytest.mark.parametrize("allowed", [False, True])
    def test_truncated_files_are_refused(self, monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
        data = encode(self.gradient((400, 300)), "JPEG", quality=95)
        for cut in (len(data) // 2, len(data) - 100):
            with pytest.raises(ImageError, match="truncated"):
                load_image(data[:cut], side=10)


def palette_png(*, transparency: int | bytes) -> bytes:
    image = row("P", 0, 1, 2)
    image.putpalette([0, 0, 0, 200, 100, 0, 50, 50, 50])
    return encode(image, "PNG", transparency=transparency)


class TestAlpha:
    # By hand: value * alpha/255 + 255 * (1 - alpha/255); alpha 51 is one fifth.
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (row("RGBA", (200, 100, 0, 51)), [(244, 224, 204)]),
            (row("RGBA", (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 128)), [(255,) * 3, (0,) * 3, (127,) * 3]),
            (row("RGBa", (40, 20, 0, 51)), [(244, 224, 204)]),
            (row("LA", (100, 51), (7, 0)), [(224,) * 3, (255,) * 3]),
            (row("La", (20, 51)), [(224,) * 3]),
        ],
    )
    def test_pil_images(self, image: Image.Image, expected: list[Any]) -> None:
        assert pixels(image) == expected

    def test_palette_with_alpha(self) -> None:
        image = row("PA", (0, 51), (1, 0))
        image.putpalette([200, 100, 0, 1, 2, 3])
        assert pixels(image) == [(244, 224, 204), (255, 255, 255)]

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (palette_png(transparency=1), [(0, 0, 0), (255, 255, 255), (50, 50, 50)]),
            (palette_png(transparency=bytes([255, 51, 0])), [(0, 0, 0), (244, 224, 204), (255, 255, 255)]),
            (encode(row("RGB", (1, 2, 3), (1, 2, 4)), "PNG", transparency=(1, 2, 3)), [(255,) * 3, (1, 2, 4)]),
            (encode(row("L", 7, 8), "PNG", transparency=7), [(255,) * 3, (8,) * 3]),
            (encode(row("1", 0, 255), "PNG", transparency=0), [(255,) * 3, (255,) * 3]),
            (encode(row("RGBA", (200, 100, 0, 51)), "PNG"), [(244, 224, 204)]),
            (encode(row("RGBA", (200, 100, 0, 51)), "WEBP", lossless=True, exact=True), [(244, 224, 204)]),
            (encode(row("RGBA", (200, 100, 0, 51)), "TIFF"), [(244, 224, 204)]),
        ],
    )
    def test_files(self, data: bytes, expected: list[Any]) -> None:
        assert pixels(data) == expected

    @pytest.mark.parametrize(
        ("depth", "colour", "samples", "transparent", "expected"),
        [
            (2, 0, bytes([0b01100000]), (1,), [255, 170]),
            (4, 0, bytes([0x59]), (5,), [255, 153]),
            (16, 0, struct.pack(">2H", 0x1234, 0x8000), (0x1234,), [255, 128]),
            (16, 2, struct.pack(">6H", *[0x1234] * 3, *[0x8000] * 3), (0x1234,) * 3, [255, 128]),
        ],
    )
    def test_transparent_colour_of_png_at_other_depths(
        self, depth: int, colour: int, samples: bytes, transparent: tuple[int, ...], expected: list[int]
    ) -> None:
        trns = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
        assert greys(png((2, 1), depth, colour, samples, trns)) == expected

    def test_transparent_gif(self) -> None:
        image = row("P", 0, 1)
        image.putpalette([10, 20, 30, 40, 50, 60])
        assert pixels(encode(image, "GIF", transparency=0)) == [(255, 255, 255), (40, 50, 60)]

    def test_arrays(self) -> None:
        assert pixels(np.array([[[200, 100, 0, 51]]], np.uint8)) == [(244, 224, 204)]
        assert pixels(np.array([[[100, 51]]], np.uint8)) == [(224, 224, 224)]
        assert pixels(np.array([[[1.0, 0.0, 0.0, 0.2]]])) == [(255, 204, 204)]


WIDE = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
WIDE_AS_8_BITS = [0, 0, 1, 1, 128, 254, 255, 255]  # value / 257, rounded


class TestDepths:
    @pytest.mark.parametrize(
        "image",
        [
            WIDE,
            WIDE.astype(">u2"),
            WIDE[..., None],
            np.repeat(WIDE[..., None], 3, axis=2),
            Image.fromarray(WIDE),
            Image.frombytes("I;16B", (8, 1), WIDE.astype(">u2").tobytes()),
            Image.fromarray(WIDE.astype(np.int32)),
            encode(Image.fromarray(WIDE), "PNG"),
            encode(Image.fromarray(WIDE), "TIFF"),
            b"P5 8 1 65535\n" + WIDE.astype(">u2").tobytes(),
        ],
        ids=["u2", ">u2", "hw1", "rgb", "I;16", "I;16B", "I", "png", "tiff", "pgm"],
    )
    def test_16_bits_are_scaled_not_clipped(self, image: Any) -> None:
        assert greys(image) == WIDE_AS_8_BITS

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.0, 20.0, 200.0], [0, 20, 200]),
            ([0.0, 257.0, 65535.0], [0, 1, 255]),
            ([0.0, 257.0, 25700.0], [0, 1, 100]),
            ([0.0, 50_000.0, 100_000.0], [0, 128, 255]),
            ([-1.0, 0.0, 1.0], [0, 128, 255]),
            ([-3e38, 0.0, 3e38], [0, 128, 255]),
            ([0.0, 0.0, 0.0], [0, 0, 0]),
            ([-5.0, -5.0, -5.0], [0, 0, 0]),
        ],
    )
    def test_float_images_by_their_range(self, values: list[float], expected: list[int]) -> None:
        image = Image.fromarray(np.array([values], np.float32))
        assert greys(image) == expected
        assert greys(encode(image, "TIFF")) == expected

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0, 1, 0], [0, 255, 0]),
            ([0, 20, 200], [0, 20, 200]),
            ([0, 2570, 65535], [0, 10, 255]),
            ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
        ],
    )
    def test_32_bit_integer_images_by_their_range(self, values: list[int], expected: list[int]) -> None:
        assert greys(Image.fromarray(np.array([values], np.int32))) == expected

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.dtype(">f4")])
    def test_float_arrays(self, dtype: Any) -> None:
        assert greys(np.array([[0, 0.25, 0.5, 1]], dtype)) == [0, 64, 128, 255]

    def test_bool_arrays(self) -> None:
        assert greys(np.array([[False, True]])) == [0, 255]

    def test_an_array_need_not_be_contiguous(self) -> None:
        array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(3, 4, 2).transpose(1, 0, 2)[::-1, :, :1]
        np.testing.assert_array_equal(np.asarray(load_image(array)), np.repeat(array, 3, axis=2))


class TestColours:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (row("1", 0, 255), [(0, 0, 0), (255, 255, 255)]),
            (row("L", 3, 200), [(3, 3, 3), (200, 200, 200)]),
            (row("CMYK", (255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0)), [(0, 255, 255), (0,) * 3, (255,) * 3]),
            (row("YCbCr", (128, 128, 128), (76, 85, 255)), [(128, 128, 128), (254, 0, 0)]),
            (row("HSV", (0, 255, 255), (85, 255, 255)), [(255, 0, 0), (0, 255, 0)]),
            (row("RGBX", (1, 2, 3, 0)), [(1, 2, 3)]),
        ],
        ids=lambda value: getattr(value, "mode", ""),
    )
    def test_modes(self, image: Image.Image, expected: list[Any]) -> None:
        assert pixels(image) == expected

    def test_palette(self) -> None:
        image = row("P", 1, 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        for data in (image, encode(image, "PNG"), encode(image, "GIF"), encode(image, "BMP")):
            assert pixels(data) == [(40, 50, 60), (10, 20, 30)]

    def test_lab(self) -> None:
        # L* 53.24 a* 80.09 b* 67.20 is sRGB red; LAB stores 2.55 L*, a* + 128 and b* + 128.
        red = np.asarray(load_image(row("LAB", (136, 208, 195))), int)[0, 0]
        np.testing.assert_allclose(red, [255, 0, 0], atol=12)  # 8 bits of Lab are coarse

    def test_cmyk_jpeg_is_not_inverted(self) -> None:
        cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (255, 0, 0, 0)])
        data = encode(cmyk, "JPEG", quality=95)
        assert b"Adobe" in data  # such files hold inverted values
        np.testing.assert_allclose(np.asarray(load_image(data), int)[8, 8], [0, 255, 255], atol=3)


class TestAnimations:
    @pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_the_first_frame_is_taken(self, format_name: str) -> None:
        frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue", "lime")]
        options = {"lossless": True} if format_name == "WEBP" else {}
        data = encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 3
        np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(frames[0]))


def claims(width: int, height: int) -> dict[str, bytes]:
    """Small files whose headers claim a size."""
    gif = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    jpeg = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", height, width)
    bitmap = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)
    tiff = bytearray(encode(Image.new("L", (8, 8)), "TIFF"))
    for tag, value in ((256, width), (257, height)):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1)) + 8 if struct.pack("<HHI", tag, 4, 1) in tiff else -1
        if at < 0:
            at = tiff.index(struct.pack("<HHI", tag, 3, 1))
            tiff[at : at + 8] = struct.pack("<HHI", tag, 4, 1)
            at += 8
        tiff[at : at + 4] = struct.pack("<I", value)
    return {
        "PNG": png((width, height), 8, 2, b"\0\0\0"),
        "GIF": gif + frame,
        "JPEG": bytes(jpeg),
        "BMP": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bitmap,
        "PPM": f"P6 {width} {height} 255\n".encode(),
        "TIFF": bytes(tiff),
    }


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Formats of the images that were decoded, and not only opened."""
    seen: list[str] = []
    load = ImageFile.ImageFile.load

    def spy(self: ImageFile.ImageFile) -> Any:
        if self.tile:
            seen.append(str(self.format))
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy)
    return seen


class TestSizeLimit:
    @pytest.mark.parametrize("format_name", claims(1, 1))
    @pytest.mark.parametrize("size", [(60_000, 60_000), (10_001, 10_000)])
    def test_a_bomb_is_refused_by_its_header(self, decoded: list[str], format_name: str, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError) as caught:
            load_image(claims(*size)[format_name])
        message = str(caught.value)
        assert f"{size[0]} × {size[1]}" in message or f"({size[0] * size[1]} pixels)" in message
        assert decoded == []

    def test_the_limit_is_of_pixels_and_inclusive(self, photo: Image.Image) -> None:
        data, array = encode(photo, "PNG"), np.asarray(photo)
        for image in (data, photo, array):
            assert load_image(image, max_pixels=37 * 53).size == (53, 37)
            with pytest.raises(ImageError, match="53 × 37 pixels are more than max_pixels=1960"):
                load_image(image, max_pixels=37 * 53 - 1)
            with pytest.raises(ImageError, match="max_pixels=1960"):
                read_image(image, max_pixels=37 * 53 - 1)
        assert content_hash(photo, max_pixels=37 * 53) == content_hash(photo)
        with pytest.raises(ImageError, match="max_pixels=1960"):
            content_hash(photo, max_pixels=37 * 53 - 1)

    @pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
    @pytest.mark.parametrize("limit", [1500, 100])
    def test_pillows_own_limit_neither_warns_nor_refuses(
        self, monkeypatch: pytest.MonkeyPatch, photo: Image.Image, format_name: str, limit: int
    ) -> None:
        data = encode(photo, format_name)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(data).size == photo.size

    def test_tiff_is_held_to_pillows_limit_too(self, monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
        data = encode(photo, "TIFF")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
        with pytest.raises(ImageError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS=1500"):
            load_image(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert load_image(data).size == photo.size

    def test_an_endless_stream_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Endless(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                return bytes(size)

        monkeypatch.setattr(images, "_MAX_BYTES", 10 * 2**20)
        with pytest.raises(ImageError, match="more than 10,485,760 bytes"):
            load_image(Endless())  # type: ignore[arg-type]


class TestTruncated:
    @pytest.mark.parametrize("allowed", [False, True])
    @pytest.mark.parametrize("encoding", ALL_FORMATS, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
    def test_truncated_files_are_refused_whatever_the_application_allows(
        self,
        monkeypatch: pytest.MonkeyPatch,
        photo: Image.Image,
        encoding: tuple[str, dict[str, Any]],
        *,
        allowed: bool,
    ) -> None:
        data = encode(photo, encoding[0], **encoding[1])
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
        assert load_image(data).size == photo.size
        for end in (10, 30, len(data) // 4, len(data) // 2, len(data) * 7 // 8):
            with pytest.raises(ImageError, match="cannot read bytes: "):
                load_image(data[:end])

    @pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
    def test_the_reason_is_given(self, photo: Image.Image, format_name: str) -> None:
        data = encode(photo, format_name)
        with pytest.raises(ImageError, match="truncated") as caught:
            load_image(data[: len(data) // 2])
        assert isinstance(caught.value.__cause__, OSError)

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_damage_gives_an_image_or_an_image_error(self, data: st.DataObject) -> None:
        image = Image.linear_gradient("L").resize((19, 13)).convert("RGB")
        format_name, options = data.draw(st.sampled_from(ALL_FORMATS))
        encoded = bytearray(encode(image, format_name, **options))
        for _ in range(data.draw(st.integers(1, 5))):
            encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
        try:
            assert load_image(bytes(encoded), max_pixels=1_000_000).mode == "RGB"
        except ImageError as error:
            assert "cannot read bytes: " in str(error)  # noqa: PT017

    def test_warnings_that_are_errors_become_image_errors(self) -> None:
        data = png((2, 1), 8, 0, bytes([1, 2]), chunk(b"acTL", bytes(8)))
        with pytest.raises(ImageError, match="Invalid APNG"):
            load_image(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert greys(data) == [1, 2]


class Unreadable(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise RuntimeError("the line is dead")


def closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def closed_image() -> Image.Image:
    image = Image.open(io.BytesIO(encode(row("L", 1), "PNG")))
    image.close()
    return image


BAD: list[tuple[Callable[[], Any], str]] = [
    # no image at all
    (lambda: None, "None"),
    (lambda: 3, "3"),
    (lambda: 2.5, "2.5"),
    (lambda: ["a.jpg"], "['a.jpg']"),
    (lambda: {"a": 1}, "{'a': 1}"),
    (lambda: object, "<class 'object'>"),
    # bytes
    (lambda: b"", "0 bytes"),
    (lambda: b"P", "cannot read bytes: "),
    (lambda: b"hello, world", "b'hello, w'"),
    (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "b'%!PS-Ado'"),
    (lambda: b"%PDF-1.7", "b'%PDF-1.7'"),
    (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "b'<svg xml'"),
    (lambda: encode(Image.new("RGB", (16, 16)), "ICO"), "b'\\x00\\x00\\x01\\x00"),
    (lambda: bytes(1000), "b'\\x00"),
    (lambda: png((0, 1), 8, 2, b""), "not identified"),
    (lambda: b"\x89PNG\r\n\x1a\n", "buffer of at least 4 bytes"),
    (lambda: b"\xff\xd8\xff", "damaged or unsupported"),
    # files
    (lambda: io.BytesIO(), "0 bytes"),
    (lambda: io.StringIO("text"), "text mode"),
    (closed, "closed file"),
    (Unreadable, "the line is dead"),
    # paths
    (lambda: "", "''"),
    (lambda: ".", "'.': it is a folder"),
    (lambda: Path("no") / "such.jpg", repr(str(Path("no") / "such.jpg"))),
    (lambda: "https://example.org/a.jpg", "'https://example.org/a.jpg'"),
    (lambda: "a\0b", "'a\\x00b'"),
    (lambda: "n" * 5000, "nnnnn"),
    # PIL images
    (lambda: Image.new("RGB", (0, 5)), "0 × 5"),
    (lambda: Image.new("L", (5, 0)), "5 × 0"),
    (lambda: Image.fromarray(np.array([[np.nan, 1]], np.float32)), "NaN"),
    (lambda: Image.fromarray(np.array([[np.inf, 1]], np.float32)), "infinite"),
    (closed_image, "closed image"),
    (lambda: Image.open(io.BytesIO(encode(Image.effect_noise((64, 64), 9), "PNG")[:2000])), "truncated"),
    # arrays
    (lambda: np.zeros((), np.uint8), "()"),
    (lambda: np.zeros(7, np.uint8), "(7,)"),
    (lambda: np.zeros((0, 4), np.uint8), "(0, 4)"),
    (lambda: np.zeros((4, 0, 3), np.uint8), "(4, 0, 3)"),
    (lambda: np.zeros((4, 4, 0), np.uint8), "(4, 4, 0)"),
    (lambda: np.zeros((4, 4, 5), np.uint8), "(4, 4, 5)"),
    (lambda: np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
    (lambda: np.zeros((1, 8, 8, 3), np.uint8), "(1, 8, 8, 3)"),
    (lambda: np.zeros((4, 4), np.int64), "int64"),
    (lambda: np.zeros((4, 4), np.int8), "int8"),
    (lambda: np.zeros((4, 4), np.uint32), "uint32"),
    (lambda: np.zeros((4, 4), complex), "complex128"),
    (lambda: np.full((4, 4), "a"), "<U1"),
    (lambda: np.full((4, 4), None), "object"),
    (lambda: np.zeros((4, 4), "datetime64[s]"), "datetime64[s]"),
    (lambda: np.full((4, 4), 1.5), "1.5"),
    (lambda: np.array([[-0.25, 1.0]]), "-0.25"),
    (lambda: np.array([[0.0, np.nan]], np.float32), "nan"),
    (lambda: np.array([[0.0, np.inf]]), "inf"),
]


class TestBadInput:
    @pytest.mark.parametrize(("make", "value"), BAD, ids=[value for _, value in BAD])
    def test_only_image_errors_that_name_the_value(self, make: Callable[[], Any], value: str) -> None:
        for function in (load_image, read_image):
            with pytest.raises(ImageError) as caught:
                function(make())
            assert str(caught.value).startswith("cannot read ")
            assert value in str(caught.value)
            assert len(str(caught.value)) < 5300

    @pytest.mark.parametrize(
        "make", [lambda: None, lambda: io.StringIO("a"), lambda: "no-such", lambda: np.zeros(3), closed_image]
    )
    def test_content_hash_refuses_the_unreadable_alike(self, make: Callable[[], Any]) -> None:
        with pytest.raises(ImageError, match=r"^cannot read "):
            content_hash(make())

    def test_a_format_that_this_build_of_pillow_lacks(
        self, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
    ) -> None:
        data = encode(photo, "WEBP")
        monkeypatch.setitem(Image.OPEN, "WEBP", (Image.OPEN["WEBP"][0], lambda prefix: "WEBP is not installed"))
        with pytest.raises(ImageError, match="WEBP is not installed; convert it to PNG or JPEG"):
            load_image(data)
        monkeypatch.delitem(Image.OPEN, "WEBP")
        with pytest.raises(ImageError, match="unknown format, it begins with b'RIFF"):
            load_image(data)

    def test_a_text_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("text")
        with path.open() as file, pytest.raises(ImageError, match=r"a\.txt: .*mode 'rb'"):
            load_image(file)  # type: ignore[arg-type]

    def test_a_reader_of_text_that_hides_it(self) -> None:
        class Reader:
            def read(self, size: int) -> str:
                return "text"

        with pytest.raises(ImageError, match=r"read\(\) gives str, not bytes"):
            load_image(Reader())  # type: ignore[arg-type]

    def test_a_missing_file_keeps_its_cause(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="No such file") as caught:
            load_image(tmp_path / "a.jpg")
        assert isinstance(caught.value.__cause__, FileNotFoundError)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="it is a folder") as caught:
            load_image(tmp_path)
        assert repr(str(tmp_path)) in str(caught.value)

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"x")

        def refuse(self: Path, *args: Any) -> Any:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(ImageError, match=r"a\.png': Permission denied; check the path and its permissions"):
            load_image(path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
    def test_a_pipe_on_disk_does_not_block(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        os.mkfifo(path)
        with pytest.raises(ImageError, match="device, pipe or socket"):
            load_image(path)

    @pytest.mark.skipif(sys.platform == "win32", reason="devices are files elsewhere")
    def test_a_device(self) -> None:
        with pytest.raises(ImageError, match=r"'/dev/zero': it is a device"):
            load_image("/dev/zero")


class TestThreads:
    def test_many_threads_and_no_trace_in_the_process(self, photo: Image.Image) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        good = [encode(photo, name, **options) for name, options in ALL_FORMATS]
        good += [encode(photo, "JPEG", exif=exif), encode(photo.convert("LA"), "PNG"), encode(photo, "GIF")]
        bad = [good[0][:500], claims(60_000, 60_000)["PNG"], claims(9_500, 9_500)["TIFF"], b"text"]
        expected = [load_image(data).tobytes() for data in good]
        filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS

        def work(number: int) -> bool:
            with pytest.raises(ImageError):
                load_image(bad[number % len(bad)])
            return load_image(good[number % len(good)]).tobytes() == expected[number % len(good)]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(400)))
        assert (warnings.filters, Image.MAX_IMAGE_PIXELS) == (filters, limit)


class TestContentHash:
    def test_encoded_bytes_for_path_bytes_and_file(self, tmp_path: Path, photo: Image.Image) -> None:
        data = encode(photo, "JPEG")
        path = tmp_path / "a.jpg"
        path.write_bytes(data)
        with path.open("rb") as file:
            for image in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file):
                assert content_hash(image) == hashlib.sha256(data).hexdigest()
                assert read_image(image).content_hash == hashlib.sha256(data).hexdigest()

    def test_pixels_for_pil_images(self, photo: Image.Image) -> None:
        assert content_hash(photo) == content_hash(photo.copy()) == read_image(photo).content_hash
        assert len(content_hash(photo)) == 64
        other = photo.copy()
        other.putpixel((5, 5), (1, 2, 3))
        wide = Image.frombytes("RGB", (37, 53), photo.tobytes())
        palettes = [row("P", 0) for _ in range(2)]
        palettes[0].putpalette([1, 2, 3])
        palettes[1].putpalette([3, 2, 1])
        different = [photo, other, wide, *palettes]
        assert len({content_hash(image) for image in different}) == len(different)

    def test_dtype_shape_and_values_for_arrays(self) -> None:
        zeros = np.zeros((2, 3), np.uint8)
        different = [
            zeros,
            zeros.reshape(3, 2),
            zeros.astype(bool),
            zeros.astype(np.uint16),
            zeros.astype(np.float32),
            zeros + 1,
        ]
        assert len({content_hash(array) for array in different}) == len(different)
        assert content_hash(zeros) == content_hash(zeros.copy(order="F")) == read_image(zeros).content_hash

    def test_it_is_one_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Image.Image) -> None:
        path = tmp_path / "a.png"
        photo.save(path)
        opened = []
        original = Path.open

        def spy(self: Path, *args: Any) -> Any:
            opened.append(self)
            return original(self, *args)

        monkeypatch.setattr(Path, "open", spy)
        read_image(path)
        assert opened == [path]


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("a/b.jpg", "a/b.jpg"),
        (Path("a") / "b.jpg", str(Path("a") / "b.jpg")),
        (b"x", "bytes"),
        (bytearray(b"x"), "bytes"),
        (memoryview(b"x"), "bytes"),
        (io.BytesIO(b"x"), "file"),
        (Image.new("L", (1, 1)), "image"),
        (np.zeros((1, 1)), "array"),
        (None, "NoneType"),
    ],
)
def test_source_of(image: Any, source: str) -> None:
    assert source_of(image) == source


def test_source_of_a_file_is_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert source_of(file) == str(path)
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as numbered:
        assert source_of(numbered) == "file"


class TestFindImages:
    def test_recursive_sorted_by_suffix(self, tmp_path: Path) -> None:
        wanted = ["a.jpg", "b.PNG", "c d.JpEg", "deep/er/e.webp", "ünï.tif"]
        others = [".hidden.jpg", "._a.jpg", ".git/x.png", "notes.txt", "jpg", "a.jpg.txt", "deep/.x/y.png", "i.ico"]
        for name in wanted + others:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        (tmp_path / "folder.png").mkdir()
        assert find_images(tmp_path) == sorted(tmp_path / name for name in wanted)

    def test_links_are_followed_and_loops_end(self, tmp_path: Path) -> None:
        photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
        (photos / "cat").mkdir(parents=True)
        elsewhere.mkdir()
        (photos / "cat" / "a.jpg").write_bytes(b"")
        (elsewhere / "b.jpg").write_bytes(b"")
        try:
            (photos / "dog").symlink_to(elsewhere, target_is_directory=True)
        except OSError:
            pytest.skip("links cannot be made here")
        (photos / "cat" / "up").symlink_to(photos, target_is_directory=True)
        (elsewhere / "itself").symlink_to(elsewhere, target_is_directory=True)
        (photos / "link.jpg").symlink_to(elsewhere / "b.jpg")
        assert find_images(photos) == [photos / "cat" / "a.jpg", photos / "dog" / "b.jpg", photos / "link.jpg"]

    def test_nothing_found(self, tmp_path: Path) -> None:
        assert find_images(tmp_path) == []

    @pytest.mark.parametrize("name", ["missing", "file.jpg"])
    def test_what_is_no_folder_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file.jpg").write_bytes(b"")
        with pytest.raises(InvalidInputError, match="give an existing folder") as caught:
            find_images(tmp_path / name)
        assert name in str(caught.value)

    def test_suffixes_are_lower_case_with_their_dot(self) -> None:
        assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"} <= SUFFIXES
        assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in SUFFIXES)


class TestRealFiles:
    def test_photographs_of_scikit_image(self) -> None:
        skimage = pytest.importorskip("skimage")
        found = find_images(Path(skimage.__file__).parent / "data")
        assert len(found) > 20
        for path in found:
            if path.name == "multipage_rgb.tif":  # 64-bit floats in three bands
                with pytest.raises(ImageError, match="unknown pixel mode; damaged or unsupported"):
                    load_image(path)
                continue
            loaded = load_image(path)
            with Image.open(path) as expected:
                assert (loaded.mode, loaded.size) == ("RGB", expected.size)
                if expected.mode == "RGB" and not expected.has_transparency_data:
                    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))
