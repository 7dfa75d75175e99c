"""Memory of images that are decoded, with true and with false headers."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from time import sleep
from traceback import walk_tb
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, WebPImagePlugin, features

from tests.inputs.pictures import ALL_FORMATS, chunk, encode, format_id, png
from tests.support import isolated, open_classifier
from zsvec.errors import ImageError
from zsvec.inputs.decoding import MAX_PIXELS, Limits, plan_decoded
from zsvec.inputs.encoded import Encoded, open_encoded
from zsvec.inputs.images import content_hash, load_image, reading, taken
from zsvec.inputs.memory import ACCOUNT, DEFAULT, Account
from zsvec.settings.settings import Settings, load_settings

__all__ = ["isolated"]

MIB = 2**20


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"", prefix: bytes = b"") -> bytes:
    """A little-endian TIFF, or Exif, of one directory: tag, type, count, and value or its position."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return prefix + b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + data


def two_directories() -> bytes:
    """A BigTIFF with different tags for Pillow and for libtiff, which sees a much larger tile."""
    big = [(256, 4, 1, 64 << 32), (257, 4, 1, 64 << 32), (322, 4, 1, 46_336 << 32), (323, 4, 1, 46_336 << 32)]
    small = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (273, 16), (279, 64)]
    data = b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, len(big)) + b"".join(struct.pack(">HHQQ", *tag) for tag in big)
    classic = struct.pack(">H", len(small)) + b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in small)
    return data.ljust(0x80000, b"\0") + classic + bytes(4)


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    tags = {tag for tag, *_ in more}
    own = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    start = 8 + 2 + 12 * (len([e for e in own if e[0] not in tags]) + len(more)) + 4
    entries = [entry for entry in own if entry[0] not in tags] + [
        (tag, kind, count, value if value >= 0 else start) for tag, kind, count, value in more
    ]
    return tiff(entries, data)


def exif_of_shared_values(size: int = 60_000, tags: int = 3000) -> bytes:
    return tiff([(tag, 7, size - 40_000, 8) for tag in range(1000, 1000 + tags)], bytes(size - 12 * tags - 20))


def jpeg_with(exif: bytes) -> bytes:
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    body = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def jpeg_with_long_exif(tag: int) -> bytes:
    """A JPEG with a tag of seven million numbers in Exif of many segments."""
    exif = tiff([(tag, 3, 7_000_000, 30)], bytes(14_000_100))
    parts = (b"Exif\0\0" + exif[at : at + 65_000] for at in range(0, len(exif), 65_000))
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts) + data[2:]


def tiff_with_long_exif() -> bytes:
    """A TIFF with a tag of ten million numbers in its Exif."""
    directory = struct.pack("<HHHIII", 1, 5000, 3, 10_000_000, 4200, 0)
    data = grey_tiff(64, 64, (273, 4, 1, 100), (279, 4, 1, 4096), (34665, 4, 1, 4200), data=bytes(20_010_000))
    return data[:4200] + directory + data[4200 + len(directory) :]


def jpeg_claiming(width: int, height: int, **options: Any) -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG", **options))
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jp2() -> bytes:
    return b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(1500)


def webp_canvas(width: int, height: int) -> bytes:
    body = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    lossless = encode(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    body = b"VP8X" + struct.pack("<I", 10) + body + lossless
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def gif_cleared(width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    control = b"!\xf9\x04\x08\0\0\0\0"
    return head + control + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"


def bmp_jumping(width: int) -> bytes:
    palette = bytes(1024)
    info = struct.pack("<IiiHHIIiiII", 40, width, 2, 1, 8, 1, 4, 1, 1, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54 + 1024) + info + palette + b"\0\x02\0\xff" * 8


def png_exif_text() -> bytes:
    hexadecimal = exif_of_shared_values(400_000, 20_000).hex()
    text = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(hexadecimal) // 2}\n{hexadecimal}".encode())
    return png((1, 1), 8, 2, bytes(3), chunk(b"zTXt", text))


@cache
def compressed(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "tiff-shared-values": lambda: grey_tiff(
        64, 64, *((tag, 7, 2 * MIB, 8) for tag in range(2000, 3000)), data=bytes(2 * MIB)
    ),
    "tiff-tile": lambda: grey_tiff(
        64, 64, (259, 3, 1, 8), (322, 4, 1, 46_336), (323, 4, 1, 46_336), (324, 4, 1, -1), (325, 4, 1, 2 * MIB),
        data=compressed(46_336 * 46_336 // 4),
    ),
    "tiff-lzma": lambda: grey_tiff(64, 64, (259, 3, 1, 34925), (273, 4, 1, -1), (279, 4, 1, 64), data=bytes(64)),
    "tiff-offsets": lambda: grey_tiff(64, 64, (278, 4, 1, 1), (273, 3, 10**6, -1), data=bytes(2 * 10**6)),
    "tiff-two-directories": lambda: two_directories(),
    "tiff-depth": lambda: grey_tiff(64, 64, (259, 3, 1, 5), (273, 4, 1, 8), (279, 4, 1, 64), (32997, 4, 1, 2**31)),
    "tiff-many-tags": lambda: tiff([(tag, 3, 1, 0) for tag in range(1000, 6000)]),
    "tiff-uncommon-tile": lambda: grey_tiff(
        64, 64, (259, 3, 1, 8), (322, 17, 1, 46_336), (323, 17, 1, 46_336), (324, 4, 1, -1), (325, 4, 1, 2 * MIB),
        data=compressed(46_336 * 46_336 // 4),
    ),
    "jpeg-progressive": lambda: jpeg_claiming(9_900, 9_900, progressive=True, subsampling=0),
    "jp2": jp2,
    "avif": lambda: b"\0\0\0\x20ftypavif" + bytes(500),
    "webp-canvas": lambda: webp_canvas(9_900, 9_900),
    "gif-cleared": lambda: gif_cleared(16_000, 11_000),
    "bmp-jumping": lambda: bmp_jumping(2_000_000),
    "png-row": lambda: png((100_000_000, 1), 8, 6, bytes(4)),
    "ppm-text": lambda: b"P3 9000 9000 255\n" + b"1 " * 100,
}  # fmt: skip
BOUNDED: dict[str, Callable[[], bytes]] = {
    "jpeg-density": lambda: jpeg_with_long_exif(0x011A),
    "jpeg-orientation": lambda: jpeg_with_long_exif(ExifTags.Base.Orientation),
    "jpeg-exif": lambda: jpeg_with(exif_of_shared_values()),
    "jpeg-lossless": lambda: encode(Image.new("L", (8, 8)), "JPEG").replace(b"\xff\xc0", b"\xff\xc3"),
    "png-text": png_exif_text,
    "tiff-exif": lambda: tiff_with_long_exif(),
}
"""Files that Pillow would take much memory for; read with little memory, or refused."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_before_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = HOSTILE[name]()

    def never(self: Any) -> Any:
        raise AssertionError("decoded")

    for kind in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile, WebPImagePlugin.WebPImageFile):
        monkeypatch.setattr(kind, "load", never)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, of damaged tags
        with pytest.raises(ImageError) as caught:
            load_image(data)
    assert "decoded" not in str(caught.value)
    assert ACCOUNT.taken == 0


def test_metadata_before_the_pixels_is_bounded() -> None:
    data, segment = encode(Image.new("RGB", (8, 8)), "JPEG"), b"\xff\xe5\xff\xff" + bytes(65_533)
    assert load_image(data[:2] + segment * 250 + data[2:]).size == (8, 8)
    with pytest.raises(ImageError, match="header has more than 16,777,216 bytes"):
        load_image(data[:2] + segment * 270 + data[2:])
    assert ACCOUNT.taken == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is measured in other units elsewhere")
def test_the_memory_of_a_process_stays_small(tmp_path: Path) -> None:
    for name, make in {**HOSTILE, **BOUNDED}.items():
        (tmp_path / name).write_bytes(make())
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(2**30)
    (tmp_path / "sparse-jfif.jpg").write_bytes(encode(Image.new("RGB", (8, 8)), "JPEG"))
    os.truncate(tmp_path / "sparse-jfif.jpg", 2**30)
    program = (
        "import resource, sys\nfrom zsvec.inputs.images import load_image, ImageError\n"
        "import warnings\nfrom pathlib import Path\nwarnings.simplefilter('ignore')\n"
        "load_image(Path(sys.argv[2]).read_bytes())\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\nstart = peak()\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: load_image(path)\n    except ImageError: pass\n"
        "    if peak() - start > 64: sys.exit(f'{path.name}: {peak() - start} MiB')\n"
    )
    good = tmp_path.parent / "good.png"
    good.write_bytes(encode(Image.new("RGB", (8, 8)), "PNG"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(good)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ALL_FORMATS, ids=format_id)
def test_a_header_says_the_size_and_enough_memory(encoding: tuple[str, dict[str, Any]]) -> None:
    name, options = encoding
    for mode in ("RGB", "L", "P", "RGBA"):
        if (name, mode) not in {("JPEG", "P"), ("JPEG", "RGBA"), ("PPM", "P")}:
            data = encode(Image.effect_noise((61, 47), 50).convert(mode), name, **options)
            header = open_encoded(Encoded(io.BytesIO(data)))
            assert header.image.size == (61, 47)
            assert 61 * 47 * 4 <= header.memory() - MIB <= 500 * 61 * 47 + 20 * len(data)


def test_a_jpeg_counts_as_it_is_decoded() -> None:
    data = encode(Image.effect_noise((400, 400), 50).convert("RGB"), "JPEG")
    header = open_encoded(Encoded(io.BytesIO(data)))
    for scale, side in ((8, 25), (4, 50), (2, 100), (1, None)):
        needed = header.memory(scale)
        assert load_image(data, side=side, image_memory=needed).size == (400 // scale, 400 // scale)
        with pytest.raises(ImageError, match=rf"would take {needed:,} bytes.* image_memory={needed - 1:,}"):
            load_image(data, side=side, image_memory=needed - 1)


def test_a_jpeg_of_any_megapixels_is_decoded_at_a_fraction() -> None:
    data = encode(Image.new("L", (20_000, 10_400), 77), "JPEG")  # 208 megapixels
    assert MAX_PIXELS < 20_000 * 10_400
    loaded = load_image(data, side=224)
    assert (loaded.size, loaded.getpixel((0, 0))) == ((2500, 1300), (77, 77, 77))
    with pytest.raises(ImageError, match="max_pixels=100000000"):
        load_image(data)
    with pytest.raises(ImageError, match="max_pixels=200000000"):
        load_image(data, side=224, max_pixels=200_000_000)


def test_a_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    class Watched(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.most = max(self.most, len(data))
            return data

    path = tmp_path / "a.jpg"
    for data in (bytes(10 * MIB), encode(Image.new("RGB", (900, 900)), "PNG") + bytes(10 * MIB)):
        path.write_bytes(data)
        for function in (load_image, taken, content_hash):
            file = Watched(data)
            with pytest.raises(ImageError):
                if function is taken:
                    load_image(taken(file, image_memory=5 * MIB))
                else:
                    function(file, image_memory=5 * MIB)
            assert file.most < 1000
            assert file.tell() == 0
        with pytest.raises(ImageError, match=r"a\.jpg': (unknown format|.* image_memory=5,242,880)"):
            content_hash(path, image_memory=5 * MIB)
    with pytest.raises(ImageError, match="unknown format"):
        content_hash(b"text")


def test_an_error_holds_nothing_of_its_image(tmp_path: Path) -> None:
    for format_name, options in (("PNG", {}), ("JPEG", {}), ("TIFF", {"compression": "tiff_lzw"})):
        data = encode(Image.effect_noise((1200, 1200), 50).convert("RGB"), format_name, **options)
        path = tmp_path / "a"
        path.write_bytes(data[: len(data) * 3 // 4])
        with pytest.raises(ImageError) as caught:
            load_image(path)
        held = []
        error: BaseException | None = caught.value
        while error is not None:
            for frame, _ in walk_tb(error.__traceback__):
                if frame.f_code.co_filename != __file__:
                    held += [value for value in frame.f_locals.values() if isinstance(value, Image.Image | bytes)]
            error = error.__cause__ or error.__context__
        assert held == []


class TestForgetting:
    """Errors from `read` of a caller's file."""

    @staticmethod
    def read_with(read: Callable[[], Any]) -> ImageError:
        class Source:
            def read(self, size: int) -> bytes:
                return bytes(read())

        with pytest.raises(ImageError) as caught:
            load_image(Source())  # type: ignore[arg-type]
        return caught.value

    def test_errors_that_are_the_causes_of_each_other_end(self) -> None:
        def read() -> None:
            first, second = OSError("a"), ValueError("b")
            first.__cause__, second.__cause__ = second, first
            raise first

        done: list[ImageError] = []
        thread = threading.Thread(target=lambda: done.append(self.read_with(read)), daemon=True)
        thread.start()
        thread.join(60)
        assert "cannot read file: a" in str(done[0])

    def test_generators_of_the_caller_go_on(self) -> None:
        stored: list[Exception] = []

        def generate() -> Iterator[int]:
            try:
                Path("none").read_bytes()
            except OSError as error:
                stored.append(error)
            yield 1
            yield 2

        def read() -> None:
            raise stored[0]

        numbers = generate()
        assert next(numbers) == 1
        self.read_with(read)
        assert next(numbers) == 2

    def test_an_exception_that_the_caller_handles_stays(self) -> None:
        numbers = self._handling()
        next(numbers)
        assert next(numbers) == "kept"

    def _handling(self) -> Iterator[str]:
        def fail() -> None:
            value = "kept"
            raise OSError(value)

        try:
            fail()
        except OSError as error:
            yield ""
            with pytest.raises(ImageError):
                load_image(b"text")
            frames = [frame for frame, _ in walk_tb(error.__traceback__)]
            yield frames[-1].f_locals.get("value", "gone")


def claimed(image: Image.Image | np.ndarray[Any, Any]) -> int:
    """Bytes a pixel that are taken for an image in memory."""
    size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    return (plan_decoded(image, Limits()).memory - MIB) // (size[0] * size[1])


def test_images_in_memory_count_with_their_copies(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = photo.copy()
    turned.info["exif"] = exif.tobytes()
    assert claimed(photo) == 0
    assert claimed(turned) == claimed(photo.convert("L")) == claimed(photo.convert("RGBA")) == 4
    opened = Image.open(io.BytesIO(encode(photo, "PNG")))
    assert claimed(opened) == 8
    opened.load()
    assert claimed(opened) == 4
    assert claimed(Image.open(io.BytesIO(encode(photo.convert("L"), "PNG")))) == 12
    for mode in ("L", "LA", "RGB", "RGBA"):
        assert claimed(np.asarray(photo.convert(mode))) == 4


def test_images_in_memory_of_100_megapixels_fit() -> None:
    size = (10_000, 10_000)
    for image in (Image.new("L", size), Image.new("RGB", size), np.broadcast_to(np.uint8(0), (*size, 3))):
        Account().take(plan_decoded(image, Limits()).memory, DEFAULT, ExitStack())


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is measured in other units elsewhere")
def test_an_array_takes_no_more_than_its_result() -> None:
    program = (
        "import re, sys\nfrom pathlib import Path\nimport numpy as np\nfrom zsvec.inputs.images import load_image\n"
        "load_image(np.zeros((9, 9, 3), np.uint8))\n"
        # not ru_maxrss, which begins with the value of the parent
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10\n"
        "start = peak()\n"
        "for channels in (1, 2, 3, 4):\n"
        "    load_image(np.broadcast_to(np.uint8(7), (4000, 5000, channels)))\n"
        "    print(peak() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert max(map(int, done.stdout.split())) <= 4 * 20_000_000 / MIB + 16


class TestAppended:
    """To a JPEG: the video of a motion photo, or anything."""

    def test_it_does_not_count(self, photo: Image.Image) -> None:
        for options in ({}, {"progressive": True}):
            data = encode(photo, "JPEG", **options)
            assert load_image(data + b"\xff\xda" * 200 + bytes(1000)).tobytes() == load_image(data).tobytes()

    def test_scans_that_a_comment_hides_count(self, photo: Image.Image) -> None:
        data = encode(photo, "JPEG", progressive=True)
        start = data.index(b"\xff\xda")
        scan = b"\xff\xda" + data[start + 2 : data.index(b"\xff", start + 2)]
        hidden = scan + b"\xff\xfe\x00\x04\xff\xd9" + scan * 100
        with pytest.raises(ImageError, match=r"it has 1\d\d scans"):
            load_image(data[:start] + hidden + data[start:])


def test_the_transparency_of_a_webp_counts_by_its_own_length() -> None:
    size = (1200, 1600)
    image = Image.effect_noise(size, 90).convert("RGB")
    image.putalpha(Image.new("L", size, 99))
    plain = encode(image.convert("RGB"), "WEBP", quality=90)
    lossy = encode(image, "WEBP", quality=90)
    moving = encode(image, "WEBP", quality=90, save_all=True, append_images=[image.rotate(180)])
    least = open_encoded(Encoded(io.BytesIO(plain))).memory()
    for data in (lossy, moving):
        assert b"ALPH" in data
        needed = open_encoded(Encoded(io.BytesIO(data))).memory()
        assert needed < least + size[0] * size[1] * 4 + 8 * MIB + 3 * len(data)
        assert load_image(data, image_memory=needed + len(data)).size == size
    lossless = encode(image, "WEBP", lossless=True)
    assert open_encoded(Encoded(io.BytesIO(lossless))).memory() > least + 300 * MIB


class TestAccount:
    def test_all_threads_together_take_no_more_than_there_is(self) -> None:
        account = Account()
        most = 0
        lock = threading.Lock()
        now = 0

        def work(size: int) -> None:
            nonlocal most, now
            with ExitStack() as held:
                account.take(size, 100, held)
                with lock:
                    now += size
                    most = max(most, now)
                with lock:
                    now -= size

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, [60, 10, 100, 30, 50, 1] * 200))
        assert most <= 100
        assert account.taken == 0

    def test_reservations_are_granted_in_order(self) -> None:
        account = Account()
        order: list[str] = []
        with ExitStack() as held:
            account.take(50, 100, held)
            large = threading.Thread(target=self._note, args=(account, 100, "large", order))
            large.start()
            while not account._turn.locked():
                pass
            small = threading.Thread(target=self._note, args=(account, 10, "small", order))
            small.start()
            sleep(0.05)
        large.join()
        small.join()
        assert order == ["large", "small"]

    def test_a_thread_with_a_reservation_does_not_wait(self) -> None:
        account = Account()
        order: list[str] = []

        def nested() -> None:
            with ExitStack() as outer:
                account.take(80, 100, outer)
                waiting.start()
                while not account._turn.locked():
                    pass
                self._note(account, 80, "inner", order)
                order.append("outer")

        waiting = threading.Thread(target=self._note, args=(account, 90, "other", order), daemon=True)
        thread = threading.Thread(target=nested, daemon=True)
        thread.start()
        thread.join(60)
        waiting.join(60)
        assert order == ["inner", "outer", "other"]
        assert account.taken == 0

    def test_an_encoder_may_read_images_itself(self) -> None:
        data = encode(Image.new("RGB", (900, 900)), "PNG")
        needed = open_encoded(Encoded(io.BytesIO(data))).memory()

        def read() -> None:
            with reading(data, image_memory=needed):
                sizes.append(load_image(data, image_memory=needed).size)

        sizes: list[tuple[int, int]] = []
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(60)
        assert sizes == [(900, 900)]
        assert ACCOUNT.taken == 0

    @staticmethod
    def _note(account: Account, size: int, name: str, order: list[str]) -> None:
        with ExitStack() as held:
            account.take(size, 100, held)
            order.append(name)

    def test_an_image_counts_until_the_end_of_its_block(self) -> None:
        data = encode(Image.new("RGB", (500, 500)), "PNG")
        with reading(data) as loaded:
            assert loaded.image.size == (500, 500)
            assert ACCOUNT.taken >= 500 * 500 * 4
        assert ACCOUNT.taken == 0
        with pytest.raises(KeyError), reading(data):
            raise KeyError
        assert ACCOUNT.taken == 0

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
    def test_a_fork_begins_anew(self) -> None:
        with ExitStack() as held:
            ACCOUNT.take(DEFAULT, DEFAULT, held)
            child = os.fork()
            if not child:
                os._exit(0 if load_image(np.zeros((2, 2, 3), np.uint8)).size == (2, 2) else 1)
            assert os.waitpid(child, 0)[1] == 0


class TestSettings:
    def test_a_classifier_has_its_own_limit(self, tmp_path: Path) -> None:
        with open_classifier(tmp_path, image_memory=8 * MIB) as clf:
            clf.add_category("a", images=[encode(Image.new("RGB", (60, 60)), "PNG")])
            large = encode(Image.new("RGB", (1500, 1500)), "PNG")
            prediction = next(clf.classify_stream([large]))
            assert prediction.error is not None
            assert "image_memory=8,388,608" in prediction.error
            with pytest.raises(ImageError, match="image_memory=8,388,608"):
                clf.add_category("b", images=[large])

    def test_the_file_of_the_user_sets_limits(self) -> None:
        Settings.toml_files[0].parent.mkdir(parents=True)
        Settings.toml_files[0].write_text("max_pixels = 1000000000\nimage_memory = 1000000000000")
        assert load_settings().image_limits() == {"max_pixels": 10**9, "image_memory": 10**12}


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this build of Pillow writes no JPEG 2000")
def test_formats_of_unknown_memory_are_named() -> None:
    for container in (False, True):
        data = encode(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=not container)
        with pytest.raises(ImageError, match="AVIF and JPEG 2000 are not read, because their memory is unbounded"):
            load_image(data)


MUTATIONS = """
import io, random, resource, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from zsvec.errors import ImageError
from zsvec.inputs.images import reading

warnings.simplefilter("ignore")
formats = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {}), ("PPM", {}),
           ("WEBP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_deflate"}),
           ("TIFF", {"compression": "tiff_lzw"})]
seeds = []
for name, options in formats:
    for size in ((1, 1), (19, 13), (300, 200), (1600, 1200)):
        file = io.BytesIO()
        Image.linear_gradient("L").resize(size).convert("RGB").save(file, name, **options)
        seeds.append(file.getvalue())

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def work(number):
    draw = random.Random(number)
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((0, 1, 2, 5, 20))):
        at = draw.randrange(min(len(data), draw.choice((40, 400, 10**9))))
        value = draw.choice((b"\\xff\\xff\\xff\\xff", b"\\0\\0", b"\\x7f", bytes([draw.randrange(256)])))
        data[at : at + len(value)] = value
    if draw.random() < 0.1:
        del data[draw.randrange(len(data)) :]
    try:
        with reading(bytes(data), side=draw.choice((None, 32)), image_memory=64 << 20, hashed=False):
            return 1
    except ImageError:
        return 0

work(0)
start = peak()
with ThreadPoolExecutor(4) as pool:
    read = sum(pool.map(work, range(1500)))
print(read, peak() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is measured in other units elsewhere")
def test_mutated_images_are_read_or_refused_within_the_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MUTATIONS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read, grown = map(int, done.stdout.split())
    assert 300 < read < 1400
    assert grown <= 64 + 48, f"{grown} MiB"
