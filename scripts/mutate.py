#!/usr/bin/env python
"""Mutates images, and checks that zsvec reads or refuses every image.

    python -m scripts.mutate --images 100000 --seed 1 --threads 4      from the root of the repository

The images have every format, and 1 pixel to 100 megapixels. Threads of one process read them as a stream does, under
the settings of the command line. Each image must be read, or refused with an `ImageError`, in at most 5 seconds of CPU.
The process may grow by `image_memory` and a fixed allowance per thread. The same seed gives the same images.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import struct
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

import typer
from PIL import Image, features
from rich.console import Console
from rich.table import Table

from tests.inputs.pictures import chunk, encode
from zsvec.cli.process import prepare_process
from zsvec.errors import ImageError
from zsvec.inputs.images import reading
from zsvec.inputs.memory import DEFAULT

SECONDS = 5.0  # maximum CPU time for one image
# MiB per thread by which the process may grow beyond `image_memory`. A thread needs the bytes of an image, and two
# heaps of 64 MiB, because the GNU C library keeps the free end of a heap after `malloc_trim`.
REST = 128
ADDRESSES = 8 * 2**30  # bytes: limit of the address space of the process
STUCK = 600  # seconds to wait for an image before the process counts as stuck
WAITING = 1000  # maximum number of images in the queue; 100,000 would take 190 MiB

# Relative frequency of each size. Large images have one colour, so that the files are small.
SIZES = {
    (1, 1): 60,
    (19, 13): 400,
    (300, 200): 400,
    (9000, 3): 40,
    (1200, 900): 80,
    (5000, 4000): 25,
    (10**4, 10**4): 10,
}
NOISY, LARGEST = 100_000, 100_000_000  # maximum pixels of an image with noise, and of any image
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 10_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 400  # number of bytes at the beginning that are mutated more often than the rest

Size = tuple[int, int]
Choice = tuple[str, Size]
"""Kind and size in pixels of an image before mutation."""


class Kind(NamedTuple):
    """A kind of image file: a function that makes a file, and the maximum number of pixels."""

    encode: Callable[[Size], bytes]
    most: int = LARGEST


def saved(format_name: str, mode: str = "RGB", *, most: int = LARGEST, frames: int = 1, **options: Any) -> Kind:
    """Returns a kind that Pillow writes."""

    def save(size: Size) -> bytes:
        if size[0] * size[1] <= NOISY:
            image = Image.effect_noise(size, 60).convert("RGB")
            image.putalpha(Image.linear_gradient("L").resize(size))
        else:
            image = Image.new("RGB", size, (90, 160, 20))
        image = (image.convert("L") if mode == "I;16" else image).convert(mode)  # Pillow cannot convert RGBA directly
        more = {"save_all": True, "append_images": [image.rotate(180)] * (frames - 1)} if frames > 1 else {}
        return encode(image, format_name, **more, **options)

    return Kind(save, most)


def black_png(depth: int, colour: int, *, interlaced: bool = False) -> Kind:
    """Returns a kind of PNG that Pillow does not write. All samples are 0."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    passes = [(8, 8, 0, 0), (8, 8, 4, 0), (4, 8, 0, 4), (4, 4, 2, 0), (2, 4, 0, 2), (2, 2, 1, 0), (1, 2, 0, 1)]

    def write(size: Size) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced))
        length = 0
        for across, down, left, top in passes if interlaced else [(1, 1, 0, 0)]:
            columns, rows = -(-(size[0] - left) // across), -(-(size[1] - top) // down)
            length += rows * (1 + -(-columns * channels * depth // 8)) if columns > 0 else 0
        data = chunk(b"IDAT", zlib.compress(bytes(length), 9))
        return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")

    return Kind(write)


SMALL, MEDIUM = 60_000, 2_000_000  # maximum pixels of refused or slow formats, and of uncompressed formats

KINDS: dict[str, Kind] = {
    "JPEG": saved("JPEG"),
    "JPEG, progressive": saved("JPEG", progressive=True),
    "JPEG, grey": saved("JPEG", "L", optimize=True),
    "JPEG, CMYK": saved("JPEG", "CMYK"),
    "JPEG, turned": saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "PNG": saved("PNG"),
    "PNG, alpha": saved("PNG", "RGBA"),
    "PNG, palette": saved("PNG", "P", transparency=3),
    "PNG, 16 bits": saved("PNG", "I;16"),
    "PNG, 1 bit": saved("PNG", "1"),
    "PNG, 48 bits": black_png(16, 2),
    "PNG, interlaced": black_png(8, 2, interlaced=True),
    "PNG, animated": saved("PNG", most=MEDIUM, frames=3),
    "GIF": saved("GIF", "P"),
    "GIF, animated": saved("GIF", "P", most=MEDIUM, frames=3),
    "BMP": saved("BMP", most=MEDIUM),
    "BMP, palette": saved("BMP", "P", most=MEDIUM),
    "BMP, alpha": saved("BMP", "RGBA", most=MEDIUM),
    "TIFF": saved("TIFF", most=MEDIUM),
    "TIFF, 16 bits": saved("TIFF", "I;16", most=MEDIUM),
    "TIFF, floats": saved("TIFF", "F", compression="tiff_adobe_deflate"),
    "TIFF, LZW": saved("TIFF", compression="tiff_lzw"),
    "TIFF, deflate": saved("TIFF", "RGBA", compression="tiff_adobe_deflate"),
    "TIFF, PackBits": saved("TIFF", "P", compression="packbits"),
    "TIFF, JPEG": saved("TIFF", compression="jpeg"),
    "TIFF, fax": saved("TIFF", "1", compression="group4"),
    "TIFF, CMYK": saved("TIFF", "CMYK", compression="tiff_lzw"),
    "WEBP": saved("WEBP", most=20_000_000, method=0),
    "WEBP, lossless": saved("WEBP", most=20_000_000, lossless=True, method=0),
    "WEBP, alpha": saved("WEBP", "RGBA", most=20_000_000, method=0),
    "WEBP, animated": saved("WEBP", "RGBA", most=MEDIUM, frames=3, method=0),
    "PPM": saved("PPM", most=MEDIUM),
    "PPM, grey": saved("PPM", "L", most=MEDIUM),
    "PPM, 1 bit": saved("PPM", "1", most=MEDIUM),
    "PPM, text": Kind(lambda size: b"P2 %d %d 99\n" % size + b"7 " * (size[0] * size[1]), MEDIUM),
    "PPM, floats": saved("PPM", "F", most=MEDIUM),
    "ICO": saved("ICO", most=SMALL, sizes=[(1, 1)]),
    "JPEG 2000": saved("JPEG2000", most=SMALL),
    "AVIF": saved("AVIF", most=SMALL),
}
_NEEDED = {"WEBP": "webp", "JPEG 2000": "jpg_2000", "AVIF": "avif"}  # features that the build of Pillow needs
KINDS = {name: kind for name, kind in KINDS.items() if features.check(_NEEDED.get(name.partition(",")[0], "zlib"))}


# Mutations. Each changes `data` in place; `other` is another image, and `draw` a random generator.


def flip_bits(data: bytearray, other: bytes, draw: Random) -> None:
    """Flips 1 to 20 bits, either in the header or anywhere."""
    end = min(len(data), draw.choice((HEADER, len(data))))
    for _ in range(draw.choice((1, 1, 3, 20))):
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)


def put_extreme(data: bytearray, other: bytes, draw: Random) -> None:
    """Overwrites 1, 2 or 4 bytes of the header with an extreme number."""
    at, size = draw.randrange(min(len(data), HEADER)), draw.choice((1, 2, 4))
    value = draw.choice(EXTREMES) & (256**size - 1)
    data[at : at + size] = value.to_bytes(size, draw.choice(("big", "little")))


def cut(data: bytearray, other: bytes, draw: Random) -> None:
    """Removes the end of the file."""
    del data[draw.randrange(len(data)) :]


def splice(data: bytearray, other: bytes, draw: Random) -> None:
    """Inserts a part of another image, or overwrites bytes with the part."""
    start, at = draw.randrange(len(other)), draw.randrange(len(data))
    part = other[start : start + draw.choice((10, 100, 1000))]
    data[at : at + draw.choice((0, len(part)))] = part


def repeat(data: bytearray, other: bytes, draw: Random) -> None:
    """Repeats a segment, or a part that begins anywhere, up to 150 times."""
    marks = [found.start() for found in _SEGMENTS.finditer(data, 0, 100_000)] or [0]
    start = draw.choice((draw.choice(marks), draw.randrange(len(data))))
    end = draw.choice([mark for mark in marks if mark > start] or [start + draw.choice((8, 64, 512))])
    data[end:end] = data[start:end] * draw.choice((1, 1, 10, 150)) if end - start < 10_000 else data[start:end]


MUTATIONS = (flip_bits, flip_bits, put_extreme, put_extreme, cut, splice, repeat)
# Matches where a segment of a JPEG, a chunk of a PNG or WebP, or a block of a GIF may begin.
_SEGMENTS = re.compile(
    rb"\xff[\xc0-\xcf\xda-\xfe]|....(?=IHDR|IDAT|PLTE|tRNS|acTL|fcTL|fdAT)|VP8|ANMF|ALPH|[,!][\0-\xff]", re.DOTALL
)


def drawn(seed: int, number: int) -> tuple[Choice, Choice, Random]:
    """Returns an image to mutate, another image to splice in, and the random generator for the mutations."""
    draw = Random(f"{seed} {number}")  # noqa: S311 - no secret

    def choose() -> Choice:
        name = draw.choice(list(KINDS))
        sizes = {size: often for size, often in SIZES.items() if size[0] * size[1] <= KINDS[name].most}
        return name, draw.choices(list(sizes), list(sizes.values()))[0]

    return choose(), choose(), draw


def mutated(data: bytes, other: bytes, draw: Random) -> bytes:
    """Returns a mutated image. Half of the time, the checksums of a PNG are corrected afterwards."""
    changed = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 2, 3, 6))):
        if changed:
            draw.choice(MUTATIONS)(changed, other, draw)
    return with_checksums(bytes(changed)) if draw.random() < 0.5 else bytes(changed)


def with_checksums(data: bytes) -> bytes:
    """Returns a PNG with correct checksums of all chunks, and other files unchanged."""
    at, right = 8, bytearray(data)
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 <= len(data):
            right[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(right)


# The reading process


class Outcome(NamedTuple):
    """Result for one image: its kind, the outcome (`read`, `refused` or another error), and seconds of CPU."""

    kind: str
    outcome: str
    seconds: float


def read_all(folder: Path, seed: int, images: int, threads: int) -> tuple[list[Outcome], int]:
    """Mutates and reads the images in threads of this process, which does nothing else.

    Args:
        folder: Folder with the images to mutate.
        seed: Seed of the mutations.
        images: Number of images to read.
        threads: Number of threads that read.

    Returns:
        The outcome of each image, and the MiB by which the process grew.
    """
    import resource  # not on Windows

    prepare_process()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    warnings.simplefilter("ignore")  # Pillow warns about damaged files
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff reports damage on stderr
    originals = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(number: int) -> Outcome:
        choice, other, draw = drawn(seed, number)
        data = mutated(originals[str(choice)], originals[str(other)], draw)
        given = draw.choice((bytes, io.BytesIO))(data)
        side = draw.choice((None, 224))
        start = time.thread_time()
        try:
            with reading(given, side=side, hashed=False):  # as in a stream, the memory counts until the block ends
                outcome = "read"
        except ImageError:
            outcome = "refused"
        except BaseException as exc:  # noqa: BLE001 - the error is counted
            outcome = repr(exc)[:300]
        return Outcome(choice[0], outcome, time.thread_time() - start)

    read(0)
    start = _resident("VmRSS")
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, images, WAITING):
            numbers = range(first, min(first + WAITING, images))
            for number, future in [(number, pool.submit(read, number)) for number in numbers]:
                try:
                    found.append(future.result(timeout=STUCK))
                except TimeoutError:
                    os.write(stderr, f"image {number} is not read after {STUCK} s\n".encode())
                    os._exit(1)
    return found, _resident("VmHWM") - start


def _resident(figure: str) -> int:
    """Returns the resident memory of this process in MiB: now for `VmRSS`, the maximum so far for `VmHWM`."""
    found = re.search(rf"{figure}:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) >> 10 if found else 0


def main(
    images: Annotated[int, typer.Option(help="How many are read.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the mutations.")] = 1,
    threads: Annotated[int, typer.Option(help="That read at once.")] = 4,
) -> None:
    """Read mutated images and print a table; exit 1 if an image or the process fails."""
    with tempfile.TemporaryDirectory() as name:
        for kind, size in {choice for number in range(images) for choice in drawn(seed, number)[:2]}:
            Path(name, str((kind, size))).write_bytes(KINDS[kind].encode(size))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found, grown = pool.submit(read_all, Path(name), seed, images, threads).result()
    table = Table("", "images", "read", "ImageError", "other", "slowest, s of CPU")
    for name in [*KINDS, "all"]:
        some = [one for one in found if name in ("all", one.kind)]
        counts = Counter(one.outcome for one in some)
        other = len(some) - counts["read"] - counts["refused"]
        slowest = max((one.seconds for one in some), default=0.0)
        table.add_row(name, *map(str, (len(some), counts["read"], counts["refused"], other)), f"{slowest:.2f}")
    allowed = DEFAULT // 2**20 + REST * threads
    table.caption = f"resident memory grew by {grown} MiB, of {allowed} MiB"
    Console(width=120).print(table)
    failed = False
    for number, one in enumerate(found):
        if one.outcome not in ("read", "refused") or one.seconds > SECONDS:
            typer.echo(f"image {number} ({one.kind}): {one.outcome} after {one.seconds:.1f} s", err=True)
            failed = True
    raise typer.Exit(failed or grown > allowed)


if __name__ == "__main__":
    typer.run(main)
