"""From content to RGB: orientation, size, alpha, depth, colours, limits and damage."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from tests.inputs.pictures import ALL_FORMATS, chunk, claims, encode, format_id, greys, pixels, png, read_image, row
from zsvec.errors import ImageError
from zsvec.inputs import images
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import content_hash, load_image

UPRIGHT = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 0, 0], [90, 90, 90]]], np.uint8)
ENLARGED = np.kron(UPRIGHT, np.ones((16, 16, 1), np.uint8)).astype(int)
# The pixels that a camera stores for the upright picture (EXIF 2.32, tag 274): the inverse of a viewer's turn.
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


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def stored(orientation: int, scale: int) -> Image.Image:
    return Image.fromarray(
        np.ascontiguousarray(STORED[orientation](np.kron(UPRIGHT, np.ones((scale, scale, 1), np.uint8))))
    )


class TestOrientation:
    @pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "JPEG", "PIL"])
    def test_exif_orientation_is_applied(self, format_name: str) -> None:
        options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
        file_format = "PNG" if format_name == "PIL" else format_name
        for orientation in STORED:
            picture = stored(orientation, 16)
            data = encode(picture, file_format, exif=oriented(orientation), **options.get(format_name, {}))
            loaded = load_image(Image.open(io.BytesIO(data)) if format_name == "PIL" else data)
            np.testing.assert_allclose(np.asarray(loaded, int), ENLARGED, atol=4 if format_name == "JPEG" else 0)

    def test_a_jpeg_at_a_fraction_is_turned(self) -> None:
        for orientation in STORED:
            data = encode(stored(orientation, 128), "JPEG", exif=oriented(orientation), quality=95, subsampling=0)
            np.testing.assert_allclose(np.asarray(load_image(data, side=16), int), ENLARGED, atol=4)

    @pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
    def test_broken_metadata_takes_nothing_from_the_pixels(self, format_name: str) -> None:
        white = Image.new("RGB", (8, 8), "white")
        cut = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"  # announces 65,535 entries, has none; Pillow warns
        for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0", b"x", cut):
            assert load_image(encode(white, format_name, exif=exif)).getpixel((0, 0)) == (255, 255, 255)

    def test_an_unknown_orientation_is_upright(self) -> None:
        for orientation in (0, 9, 65535):
            assert load_image(encode(row("L", 1, 2), "PNG", exif=oriented(orientation))).size == (2, 1)


LARGE = b"text " * 3_000_000
ANY_TEXT = {
    "zTXt": [chunk(b"zTXt", b"k\0\0" + zlib.compress(LARGE))],
    "iTXt": [chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(LARGE))],
    "many": [chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(LARGE[:900_000])) for number in range(100)],
    "tEXt": [chunk(b"tEXt", b"k\0" + LARGE * 5)],
    "iCCP": [chunk(b"iCCP", b"k\0\0" + zlib.compress(LARGE))],
    "unknown compression": [chunk(b"zTXt", b"k\0\7x"), chunk(b"iCCP", b"k\0\7x")],
    "no keyword": [chunk(b"tEXt", b""), chunk(b"zTXt", b"\0"), chunk(b"iCCP", b"")],
}


class TestTextsOfPNG:
    @pytest.mark.parametrize("kind", ANY_TEXT)
    def test_no_text_takes_anything_from_the_pixels(self, kind: str) -> None:
        bare, end = png((2, 1), 8, 0, bytes([1, 2])), len(chunk(b"IEND", b""))
        before = png((2, 1), 8, 0, bytes([1, 2]), *ANY_TEXT[kind])
        for data in (before, bare[:-end] + b"".join(ANY_TEXT[kind]) + bare[-end:]):
            assert greys(data) == [1, 2]
            assert load_image(data, image_memory=len(data) + 2 * 2**20).size == (2, 1)
            assert read_image(data).content_hash == content_hash(data) == hashlib.sha256(data).hexdigest()

    def test_an_orientation_is_read_among_other_texts(self) -> None:
        exif = oriented(6).tobytes()
        for text in (
            chunk(b"tEXt", b"exif\0" + exif),
            chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n9\n{exif.hex()}".encode())),
            chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        ):
            data = png((2, 1), 8, 0, bytes([1, 2]), *ANY_TEXT["zTXt"], text, *ANY_TEXT["iCCP"])
            assert load_image(data).size == (1, 2)


class TestSide:
    """JPEG files that are much larger than `side`."""

    @staticmethod
    def gradient(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
        x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
        return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).convert(mode)

    def test_they_are_decoded_smaller_but_at_least_twice_as_large_as_the_side(self) -> None:
        for size, side, expected in (
            ((400, 400), 25, (50, 50)),  # 1/8 is exactly twice the side
            ((397, 397), 25, (100, 100)),
            ((300, 400), 25, (75, 100)),
            ((1000, 400), 25, (125, 50)),
            ((1000, 800), 25, (125, 100)),  # 1/8 is the smallest fraction
            ((100, 100), 25, (50, 50)),
            ((99, 125), 25, (99, 125)),
            ((25, 225), 25, (25, 225)),
            ((10, 8), 25, (10, 8)),
            ((64, 64), 1, (8, 8)),
        ):
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
            assert scale == 8 or shorter / (2 * scale) < 2 * side + 1  # not larger than necessary
        else:
            assert shorter < 4 * side + 2

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_it_is_the_same_picture(self, mode: str) -> None:
        for options in ({}, {"progressive": True}, {"subsampling": 0}):
            data = encode(self.gradient((800, 640), mode), "JPEG", quality=95, **options)
            loaded = load_image(data, side=80)
            assert (loaded.size, loaded.mode) == ((200, 160), "RGB")
            expected = load_image(data).resize((200, 160), Image.Resampling.BOX)
            np.testing.assert_allclose(np.asarray(loaded, int), np.asarray(expected, int), atol=6)

    def test_other_formats_and_decoded_images_keep_their_size(self) -> None:
        image = self.gradient((400, 300))
        for format_name, options in ALL_FORMATS:
            if format_name != "JPEG":
                data = encode(image, format_name, **options)
                np.testing.assert_array_equal(np.asarray(load_image(data, side=10)), np.asarray(load_image(data)))
        assert load_image(image, side=10) is image
        assert load_image(np.asarray(image), side=10).size == (400, 300)
        opened = Image.open(io.BytesIO(encode(image, "JPEG")))
        assert load_image(opened, side=10).size == opened.size == (400, 300)

    def test_every_kind_of_file_and_its_hash(self, tmp_path: Path) -> None:
        data = encode(self.gradient((400, 300)), "JPEG")
        (tmp_path / "a.jpg").write_bytes(data)
        several = encode(self.gradient((400, 300)), "MPO", save_all=True, append_images=[Image.new("RGB", (400, 300))])
        for image in (tmp_path / "a.jpg", data, io.BytesIO(data), several):
            assert load_image(image, side=10).size == (50, 38)
        for side in (1, 10, 1000):
            loaded = read_image(data, side=side)
            assert loaded.content_hash == read_image(data).content_hash == content_hash(data)
            assert loaded.image.tobytes() == load_image(data, side=side).tobytes()

    def test_limits_apply_to_the_file(self) -> None:
        data = encode(self.gradient((400, 300)), "JPEG")
        with pytest.raises(ImageError, match="400 × 300 pixels are more than max_pixels=100000"):
            load_image(data, side=10, max_pixels=100_000)

    def test_truncated_files_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode(self.gradient((400, 300)), "JPEG", quality=95)
        for allowed in (False, True):
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
            for cut in (len(data) // 2, len(data) - 100):
                with pytest.raises(ImageError, match="truncated"):
                    load_image(data[:cut], side=10)


def palette_png(*, transparency: int | bytes) -> bytes:
    image = row("P", 0, 1, 2)
    image.putpalette([0, 0, 0, 200, 100, 0, 50, 50, 50])
    return encode(image, "PNG", transparency=transparency)


class TestAlpha:
    """Expected values by hand: value * alpha/255 + 255 * (1 - alpha/255); alpha 51 is one fifth."""

    def test_pil_images(self) -> None:
        palette = row("PA", (0, 51), (1, 0))
        palette.putpalette([200, 100, 0, 1, 2, 3])
        expected: list[tuple[Image.Image, list[Any]]] = [
            (row("RGBA", (200, 100, 0, 51)), [(244, 224, 204)]),
            (row("RGBA", (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 128)), [(255,) * 3, (0,) * 3, (127,) * 3]),
            (row("RGBa", (40, 20, 0, 51)), [(244, 224, 204)]),
            (row("LA", (100, 51), (7, 0)), [(224,) * 3, (255,) * 3]),
            (row("La", (20, 51)), [(224,) * 3]),
            (palette, [(244, 224, 204), (255, 255, 255)]),
        ]
        for image, colours in expected:
            assert pixels(image) == colours

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
        ids=["palette colour", "palette alpha", "RGB", "L", "1", "PNG", "WebP", "TIFF"],
    )
    def test_files(self, data: bytes, expected: list[Any]) -> None:
        assert pixels(data) == expected

    def test_transparent_colour_of_png_at_other_depths(self) -> None:
        deep = (0x1234, 0x8000)
        for depth, colour, samples, transparent, expected in (
            (2, 0, bytes([0b01100000]), [1], [255, 170]),
            (4, 0, bytes([0x59]), [5], [255, 153]),
            (16, 0, struct.pack(">2H", *deep), [0x1234], [255, 128]),
            (16, 2, struct.pack(">6H", *np.repeat(deep, 3)), [0x1234] * 3, [255, 128]),
        ):
            trns = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
            assert greys(png((2, 1), depth, colour, samples, trns)) == expected

    def test_transparent_gif(self) -> None:
        image = row("P", 0, 1)
        image.putpalette([10, 20, 30, 40, 50, 60])
        assert pixels(encode(image, "GIF", transparency=0)) == [(255, 255, 255), (40, 50, 60)]

    def test_arrays(self) -> None:
        assert pixels(tall([[200, 100, 0, 51]], np.uint8)) == [(244, 224, 204)]
        assert pixels(tall([[100, 51]], np.uint8)) == [(224, 224, 224)]
        assert pixels(tall([[1.0, 0.0, 0.0, 0.2]], np.float64)) == [(255, 204, 204)]


def tall(row: Any, dtype: type) -> np.ndarray:
    """An array of five equal rows: the first dimension is too large for channels."""
    return np.array([row] * 5, dtype)


WIDE = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
WIDE_AS_8_BITS = [0, 0, 1, 1, 128, 254, 255, 255]  # value / 257, rounded


class TestDepths:
    @pytest.mark.parametrize(
        "image",
        [
            WIDE,
            WIDE.astype(">u2"),
            tall(WIDE[0, :, None], np.uint16),
            tall(np.repeat(WIDE[0, :, None], 3, axis=1), np.uint16),
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

    def test_32_bit_images_by_their_range(self) -> None:
        for values, expected in (
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.0, 20.0, 200.0], [0, 20, 200]),
            ([0.0, 257.0, 65535.0], [0, 1, 255]),
            ([0.0, 257.0, 25700.0], [0, 1, 100]),
            ([0.0, 50_000.0, 100_000.0], [0, 128, 255]),
            ([-1.0, 0.0, 1.0], [0, 128, 255]),
            ([-3e38, 0.0, 3e38], [0, 128, 255]),
            ([0.0, 0.0, 0.0], [0, 0, 0]),
            ([-5.0, -5.0, -5.0], [0, 0, 0]),
        ):
            image = Image.fromarray(np.array([values], np.float32))
            assert greys(image) == greys(encode(image, "TIFF")) == expected
        for integers, expected in (
            ([0, 1, 0], [0, 255, 0]),
            ([0, 20, 200], [0, 20, 200]),
            ([0, 2570, 65535], [0, 10, 255]),
            ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
        ):
            assert greys(Image.fromarray(np.array([integers], np.int32))) == expected

    def test_float_and_bool_arrays(self) -> None:
        for dtype in (np.float16, np.float32, np.float64, np.dtype(">f4")):
            assert greys(np.array([[0, 0.25, 0.5, 1]], dtype)) == [0, 64, 128, 255]
        assert greys(np.array([[False, True]])) == [0, 255]

    def test_an_array_need_not_be_contiguous(self) -> None:
        array = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(3, 5, 2).transpose(1, 0, 2)[::-1, :, :1]
        np.testing.assert_array_equal(np.asarray(load_image(array)), np.repeat(array, 3, axis=2))


class TestColours:
    def test_modes(self) -> None:
        expected: list[tuple[Image.Image, list[Any]]] = [
            (row("1", 0, 255), [(0, 0, 0), (255, 255, 255)]),
            (row("L", 3, 200), [(3, 3, 3), (200, 200, 200)]),
            (row("CMYK", (255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0)), [(0, 255, 255), (0,) * 3, (255,) * 3]),
            (row("YCbCr", (128, 128, 128), (76, 85, 255)), [(128, 128, 128), (254, 0, 0)]),
            (row("HSV", (0, 255, 255), (85, 255, 255)), [(255, 0, 0), (0, 255, 0)]),
            (row("RGBX", (1, 2, 3, 0)), [(1, 2, 3)]),
        ]
        for image, colours in expected:
            assert pixels(image) == colours

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

    def test_the_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue", "lime")]
        for format_name in ("GIF", "PNG", "WEBP", "TIFF"):
            options = {"lossless": True} if format_name == "WEBP" else {}
            data = encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
            with cast("Any", Image.open(io.BytesIO(data))) as image:
                assert image.n_frames == 3
            np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(frames[0]))


class TestSizeLimit:
    @pytest.mark.parametrize("format_name", claims(1, 1))
    def test_a_bomb_is_refused_by_its_header(self, monkeypatch: pytest.MonkeyPatch, format_name: str) -> None:
        decoded: list[str] = []
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(str(image.format)))
        for size in ((60_000, 60_000), (10_001, 10_000)):
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

    def test_pillows_own_limit_applies_to_tiff_alone(self, monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
        for limit in (1500, 100):  # above half of its limit, Pillow warns; above, it raises
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            for format_name in ("PNG", "JPEG", "GIF", "BMP", "PPM"):
                assert load_image(encode(photo, format_name)).size == photo.size
        with pytest.raises(ImageError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS=100"):
            load_image(encode(photo, "TIFF"))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert load_image(encode(photo, "TIFF")).size == photo.size

    def test_an_endless_stream_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Endless(io.RawIOBase):
            def __init__(self, beginning: bytes) -> None:
                self._beginning = beginning

            def read(self, size: int = -1) -> bytes:
                data, self._beginning = self._beginning, b""
                return data or bytes(size)

        monkeypatch.setattr(images, "MAX_BYTES", 10 * 2**20)
        with pytest.raises(ImageError, match="more than 10,485,760 bytes"):
            load_image(cast("BinaryIO", Endless(png((1, 1), 8, 0, b"\0"))))
        with pytest.raises(ImageError, match="unknown format"):
            load_image(cast("BinaryIO", Endless(b"")))


class TestDamage:
    @pytest.mark.parametrize("encoding", ALL_FORMATS, ids=format_id)
    def test_truncated_files_are_refused_even_if_the_application_allows_them(
        self, monkeypatch: pytest.MonkeyPatch, photo: Image.Image, encoding: tuple[str, dict[str, Any]]
    ) -> None:
        data = encode(photo, encoding[0], **encoding[1])
        for allowed in (False, True):
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
            assert load_image(data).size == photo.size
            for end in (10, 30, len(data) // 4, len(data) // 2, len(data) * 7 // 8):
                with pytest.raises(ImageError, match="cannot read bytes: "):
                    load_image(data[:end])

    def test_the_reason_is_given(self, photo: Image.Image) -> None:
        for format_name in ("JPEG", "PNG"):
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
        data = encode(row("L", 1, 2), "TIFF", tiffinfo={270: "a row"})
        data = data.replace(struct.pack("<HHI", 270, 2, 6), struct.pack("<HHI", 270, 2, 10_000))
        with pytest.raises(ImageError, match="larger than file"):
            load_image(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert greys(data) == [1, 2]


def test_photographs_of_scikit_image() -> None:
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
