"""Reading images of any kind, the hash of their content, and bad input."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image

from tests.inputs.pictures import ALL_FORMATS, LOSSLESS, claims, encode, format_id, png, read_image, row
from zsvec.errors import ImageError
from zsvec.inputs import images
from zsvec.inputs.files import open_regular
from zsvec.inputs.images import content_hash, load_image, source_of, taken


class Convertible:
    """An array of a library that zsvec does not know."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


class TestKindsOfInput:
    @settings(max_examples=60, deadline=None)
    @given(
        array=hnp.arrays(np.uint8, st.tuples(st.integers(5, 9), st.integers(1, 9), st.just(3))),
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

    @settings(max_examples=60, deadline=None)
    @given(array=hnp.arrays(np.uint8, st.tuples(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4]))))
    def test_channels_may_be_first_or_last_in_arrays_and_tensors(self, array: np.ndarray) -> None:
        first = np.ascontiguousarray(array.transpose(2, 0, 1))
        fraction = array.astype(np.float32) / 255
        tensor = torch.from_numpy(first)
        alike: list[tuple[Any, ...]] = [
            (array, first, tensor, torch.from_numpy(array), Convertible(array)),
            (
                fraction,
                fraction.transpose(2, 0, 1),
                torch.from_numpy(fraction).permute(2, 0, 1),
                torch.from_numpy(fraction).requires_grad_(),
            ),
        ]
        for images_ in alike:
            for image in images_:
                np.testing.assert_array_equal(np.asarray(load_image(image)), np.asarray(load_image(array)))
                assert source_of(image) == source_of(taken(image)) == "array"
            hashes = {content_hash(image) for image in images_} | {content_hash(taken(image)) for image in images_}
            assert len(hashes) == 1  # one picture is one reference, whatever holds it

    def test_tensors_of_half_precision(self, photo: Image.Image) -> None:
        tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
        for dtype in (torch.float16, torch.bfloat16):
            values = np.asarray(load_image(tensor.to(dtype)), int)
            np.testing.assert_allclose(values, np.asarray(photo), atol=1 if dtype == torch.float16 else 3)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_tensors_on_a_gpu(self, photo: Image.Image) -> None:
        tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
        np.testing.assert_array_equal(np.asarray(load_image(tensor.cuda())), np.asarray(photo))

    @pytest.mark.parametrize("encoding", ALL_FORMATS, ids=format_id)
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

    def test_an_image_of_a_file_is_not_returned_itself(self, photo: Image.Image) -> None:
        second = photo.transpose(Image.Transpose.ROTATE_180)
        image = Image.open(io.BytesIO(encode(photo, "TIFF", save_all=True, append_images=[second])))
        first = load_image(image)
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(first), np.asarray(photo))

    def test_an_image_is_turned_upright_once(self, photo: Image.Image) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        upright = load_image(encode(photo, "PNG", exif=exif))
        assert upright.size == photo.size[::-1]
        np.testing.assert_array_equal(np.asarray(load_image(upright)), np.asarray(upright))

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

            def write() -> None:
                with os.fdopen(writing, "wb") as pipe:
                    pipe.write(data)

            written = pool.submit(write)
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

        np.testing.assert_array_equal(np.asarray(load_image(cast("BinaryIO", Trickle()))), np.asarray(photo))


class Unreadable(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise RuntimeError("the line is dead")


class Unconvertible:
    def __array__(self) -> np.ndarray:
        raise RuntimeError("it changed its mind")


class Letters:
    def read(self, size: int) -> str:
        return "letters"


def closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def exhausted() -> io.BytesIO:
    file = io.BytesIO(encode(row("L", 1), "PNG"))
    file.read()
    return file


def closed_image() -> Image.Image:
    image = Image.open(io.BytesIO(encode(row("L", 1), "PNG")))
    image.close()
    return image


def made(make: Callable[[Path], object]) -> Callable[[], Path]:
    """A path of something else than a readable image."""

    def path() -> Path:
        at = Path("a.png")
        if not os.path.lexists(at):
            make(at)
        return at

    return path


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


BAD: list[tuple[Callable[[], Any], str]] = [
    # no image at all
    (lambda: None, "None is no image"),
    (lambda: 3, "3 is no image"),
    (lambda: ["a.jpg"], "['a.jpg']"),
    (lambda: object, "<class 'object'>"),
    (lambda: (i for i in ()), "cannot read generator: <generator ob"),
    # bytes
    (lambda: b"", "0 bytes"),
    (lambda: b"P", "cannot read bytes: "),
    (lambda: b"hello, world", "b'hello, w'"),
    (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "b'%!PS-Ado'"),
    (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "b'<svg xml'"),
    (lambda: encode(Image.new("RGB", (16, 16)), "ICO"), "b'\\x00\\x00\\x01\\x00"),
    (lambda: png((0, 1), 8, 2, b""), "not identified"),
    (lambda: b"\x89PNG\r\n\x1a\n", "buffer of at least 4 bytes"),
    (lambda: b"\xff\xd8\xff", "damaged or unsupported"),
    # files
    (exhausted, "0 bytes"),
    (lambda: io.StringIO("text"), "text mode"),
    (Letters, "read() gives str, not bytes"),
    (closed, "closed file"),
    (Unreadable, "the line is dead"),
    # paths
    (lambda: "", "''"),
    (lambda: ".", "'.': it is a folder"),
    (lambda: Path("no") / "such.jpg", repr(str(Path("no") / "such.jpg"))),
    (lambda: "https://example.org/a.jpg", "'https://example.org/a.jpg': URLs are not fetched"),
    (lambda: "a\0b", "'a\\x00b'"),
    (lambda: "n" * 5000, "nnnnn"),
    (lambda: "/dev/zero", "'/dev/zero': it is a device, pipe or socket"),
    (made(os.mkfifo), "a.png': it is a device, pipe or socket"),
    (made(socket_at), "'a.png': it is a device, pipe or socket"),
    (lambda: made(Path.touch)() / "b.png", "a.png/b.png': Not a directory"),
    (made(lambda path: path.symlink_to("nothing")), "a.png': No such file"),
    (made(lambda path: path.symlink_to(path)), "a.png': "),
    # PIL images
    (lambda: Image.new("RGB", (0, 5)), "0 × 5"),
    (lambda: Image.fromarray(np.array([[np.nan, 1]], np.float32)), "NaN"),
    (lambda: Image.fromarray(np.array([[np.inf, 1]], np.float32)), "infinite"),
    (closed_image, "closed image"),
    (lambda: Image.open(io.BytesIO(encode(Image.effect_noise((64, 64), 9), "PNG")[:2000])), "truncated"),
    # arrays
    (lambda: np.zeros((), np.uint8), "()"),
    (lambda: np.zeros(7, np.uint8), "(7,)"),
    (lambda: np.zeros((4, 0, 3), np.uint8), "(4, 0, 3)"),
    (lambda: np.zeros((4, 4, 0), np.uint8), "(4, 4, 0)"),
    (lambda: np.zeros((5, 4, 5), np.uint8), "(5, 4, 5)"),
    (lambda: np.zeros((2, 4, 5), np.uint8), "(2, 4, 5)"),
    (lambda: np.zeros((3, 5, 4), np.uint8), "(3, 5, 4)"),
    (lambda: torch.zeros(8, 3, 8, 8), "(8, 3, 8, 8)"),
    (lambda: torch.zeros(7), "(7,)"),
    (lambda: torch.zeros(3, 8, 8, dtype=torch.complex64), "complex64"),
    (lambda: torch.full((3, 8, 8), 1.5), "1.5"),
    (lambda: torch.zeros(3, 8, 8).to_sparse(), "cannot read array"),
    (lambda: torch.empty(3, 8, 8, device="meta"), "cannot read array"),
    (Unconvertible, "cannot read array: it changed its mind"),
    (lambda: np.zeros((1, 8, 8, 3), np.uint8), "(1, 8, 8, 3)"),
    (lambda: np.zeros((4, 4), np.int64), "int64"),
    (lambda: np.zeros((4, 4), np.int8), "int8"),
    (lambda: np.zeros((4, 4), np.uint32), "uint32"),
    (lambda: np.zeros((4, 4), complex), "complex128"),
    (lambda: np.full((4, 4), None), "object"),
    (lambda: np.zeros((4, 4), "datetime64[s]"), "datetime64[s]"),
    (lambda: np.full((4, 4), 1.5), "1.5"),
    (lambda: np.array([[-0.25, 1.0]]), "-0.25"),
    (lambda: np.array([[0.0, np.nan]], np.float32), "nan"),
    (lambda: np.array([[0.0, np.inf]]), "inf"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes, sockets, links and devices of POSIX")
class TestBadInput:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(("make", "value"), BAD, ids=[value for _, value in BAD])
    def test_only_image_errors_that_name_the_value(self, make: Callable[[], Any], value: str) -> None:
        errors = []
        for function in (load_image, read_image, lambda image: load_image(taken(image))):
            with pytest.raises(ImageError) as caught:
                function(make())
            errors.append(str(caught.value))
        assert errors[0].startswith("cannot read ")
        assert value in errors[0]
        assert len(errors[0]) < 5300
        assert len({re.sub(r"0?x[0-9a-f]{6,}", "", error) for error in errors}) == 1  # addresses may differ
        assert source_of(taken(make())) == source_of(make())

    def test_content_hash_refuses_the_unreadable_alike(self) -> None:
        for image in (None, io.StringIO("a"), "no-such", np.zeros(3), closed_image()):
            with pytest.raises(ImageError, match=r"^cannot read "):
                content_hash(cast("Any", image))

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

    def test_a_missing_file_keeps_its_cause(self) -> None:
        with pytest.raises(ImageError, match="No such file") as caught:
            load_image("a.jpg")
        assert isinstance(caught.value.__cause__, FileNotFoundError)

    def test_a_file_that_may_not_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> BufferedReader:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(images, "open_regular", refuse)
        Path("a.png").write_bytes(b"x")
        with pytest.raises(ImageError, match=r"a\.png': Permission denied; check the path and its permissions"):
            load_image("a.png")


class TestTaken:
    def test_a_taken_image_stays_as_it_was(self, photo: Image.Image) -> None:
        data = encode(photo, "PNG")
        array, buffer, image = np.array(photo), bytearray(data), photo.copy()
        file, frame, tensor = io.BytesIO(data), photo.copy(), torch.from_numpy(array.transpose(2, 0, 1).copy())
        frame.filename = "clip.mp4#3"  # type: ignore[attr-defined]
        given_: list[Any] = [array, buffer, memoryview(buffer), file, image, frame, tensor]
        names = [source_of(one) for one in given_]
        hashes = [content_hash(one) for one in given_]
        copies = [taken(one) for one in given_]
        array[:] = 0
        tensor[:] = 0
        buffer[:] = bytes(len(buffer))
        file.close()
        image.paste("red", (0, 0, *image.size))
        frame.close()
        assert [source_of(one) for one in copies] == names
        assert [content_hash(one) for one in copies] == hashes
        for copy in copies:
            np.testing.assert_array_equal(np.asarray(load_image(copy)), np.asarray(photo))

    def test_an_array_that_is_too_large_is_not_copied(self) -> None:
        huge = np.broadcast_to(np.uint8(0), (10**6, 10**6, 3))
        for function in (load_image, content_hash, lambda image: load_image(taken(image))):
            with pytest.raises(ImageError, match="1000000 × 1000000 pixels are more than max_pixels=100000000"):
                function(huge)


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

        def spy(path: Path) -> BufferedReader:
            opened.append(path)
            return open_regular(path)

        monkeypatch.setattr(images, "open_regular", spy)
        read_image(path)
        assert opened == [path]


def test_source_of() -> None:
    expected: list[tuple[Any, str]] = [
        ("a/b.jpg", "a/b.jpg"),
        (Path("a") / "b.jpg", str(Path("a") / "b.jpg")),
        (b"x", "bytes"),
        (bytearray(b"x"), "bytes"),
        (memoryview(b"x"), "bytes"),
        (io.BytesIO(b"x"), "file"),
        (Image.new("L", (1, 1)), "image"),
        (np.zeros((1, 1)), "array"),
        (None, "NoneType"),
    ]
    for image, source in expected:
        assert source_of(image) == source


def test_source_of_a_file_is_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert source_of(file) == str(path)
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as numbered:
        assert source_of(numbered) == "file"
