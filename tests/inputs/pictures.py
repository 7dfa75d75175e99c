"""Encoded pictures of every format, from Pillow or by hand, and their expected pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from zsvec.inputs.images import ImageInput, LoadedImage, load_image, reading

LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("BMP", {}),
    ("PPM", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
]
ALL_FORMATS = [*LOSSLESS, ("JPEG", {}), ("GIF", {})]


def format_id(encoding: tuple[str, dict[str, Any]]) -> str:
    """Name of a format and its options, for tests with one case for each."""
    return "-".join([encoding[0], *map(str, encoding[1].values())])


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def read_image(image: ImageInput, **options: Any) -> LoadedImage:
    with reading(image, **options) as loaded:
        return loaded


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, colour: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG written by hand: one row of samples, for any size in the header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def pixels(image: Any, **options: Any) -> list[Any]:
    """RGB values of an image of one row, or of equal rows."""
    loaded = load_image(image, **options)
    assert loaded.mode == "RGB"
    values = np.asarray(loaded)
    assert (values == values[0]).all()
    return [tuple(int(value) for value in pixel) for pixel in values[0]]


def greys(image: Any) -> list[int]:
    values = pixels(image)
    assert all(red == green == blue for red, green, blue in values)
    return [red for red, _, _ in values]


def row(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def claims(width: int, height: int) -> dict[str, bytes]:
    """Small files with a size in the header that is not true."""
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
