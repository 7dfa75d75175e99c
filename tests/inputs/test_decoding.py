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

from tests.inputs.pictures import ALL_FORMATS, chunk, claims, encode, greys, pixels, png, read_image, row
from zsvec.errors import ImageError
from zsvec.inputs import images
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import content_hash, load_image

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
        options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
        file_format = "PNG" if format_name == "PIL" else format_name
        data = encode(stored, file_format, exif=exif, **options.get(format_name, {}))
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
    @pytest.mark.parametrize("behind", [False, True])
    @pytest.mark.parametrize("kind", ANY_TEXT)
    def test_none_takes_anything_from_the_pixels(self, kind: str, behind: bool) -> None:
        data = png((2, 1), 8, 0, bytes([1, 2]), *([] if behind else ANY_TEXT[kind]))
        if behind:
            end = len(chunk(b"IEND", b""))
            data = data[:-end] + b"".join(ANY_TEXT[kind]) + data[-end:]
        assert greys(data) == [1, 2]
        assert load_image(data, image_memory=len(data) + 2 * 2**20).size == (2, 1)
        assert read_image(data).content_hash == content_hash(data) == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize("keyword", ["exif", "Raw profile type exif", "XML:com.adobe.xmp"])
    def test_one_of_the_orientation_is_read_among_others(self, keyword: str) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        text = {
            "exif": chunk(b"tEXt", b"exif\0" + exif.tobytes()),
            "Raw profile type exif": chunk(
                b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n9\n{exif.tobytes().hex()}".encode())
            ),
            "XML:com.adobe.xmp": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        }[keyword]
        data = png((2, 1), 8, 0, bytes([1, 2]), *ANY_TEXT["zTXt"], text, *ANY_TEXT["iCCP"])
        assert load_image(data).size == (1, 2)


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

    @pytest.mark.parametrize(("format_name", "options"), [case for case in ALL_FORMATS if case[0] != "JPEG"])
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
        image: Any = {"path": tmp_path / "a.jpg", "bytes": data, "file": io.BytesIO(data)}[kind]
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
        with cast("Any", Image.open(io.BytesIO(data))) as image:
            assert image.n_frames == 3
        np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(frames[0]))


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
        data = encode(row("L", 1, 2), "TIFF", tiffinfo={270: "a row"})
        data = data.replace(struct.pack("<HHI", 270, 2, 6), struct.pack("<HHI", 270, 2, 10_000))
        with pytest.raises(ImageError, match="larger than file"):
            load_image(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert greys(data) == [1, 2]


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
