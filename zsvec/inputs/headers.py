"""What the header of an encoded image says: its size, and the memory that decoding takes.

Known before Pillow opens the file, because its readers of WebP, GIF and TIFF allocate what the file says. A file that
ends early is none of this module's business, unless it ends before its size: Pillow says so. The figures are those
of Pillow 13 and its codecs, measured on damaged files (`zsvec/docs/limits.md`).
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import PpmImagePlugin

from zsvec.errors import ImageError

LONGEST_SIDE = 1_000_000
"""Pixels. Decoders of raw rows take time that grows with the square of a row."""

_BLOCKS = 2**17  # parts of a file that are looked at, one by one: a file of many millions takes minutes
_SLOW_VALUES = 2**22  # that a decoder written in Python is given: some seconds
_INFLATED = 1032  # what deflate makes of a byte at most
_TEXT = 2**20, 64 * 2**20  # Pillow's limits of one text in a PNG, and of all
_TEXTS = frozenset({b"zTXt", b"iTXt", b"tEXt"})
_ORIENTING = frozenset({b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"})  # keywords of texts of PNGs
_SPAN = 256  # bytes that the place of a chunk takes
_SCANS = 100  # of a JPEG: each takes the time of a decoding
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a segment or the end: no escaped byte, no restart
_METADATA = 4 * 2**20  # bytes of all values of a directory of metadata, together


@dataclass(frozen=True, slots=True)
class Header:
    """Of one image.

    Attributes:
        size: Width and height in pixels, as they are in the file.
        depth: Bytes that Pillow takes a pixel, at its most.
        rgb: Whether the decoded image is the result, and no other is made of it.
        extra: Bytes that decoding takes beside the pixels.
    """

    size: tuple[int, int]
    depth: int
    rgb: bool = False
    extra: int = 0

    def memory(self, scale: int = 1) -> int:
        """Bytes that decoding takes.

        Args:
            scale: Of a JPEG that is decoded at a fraction.
        """
        width, height = self.size
        pixels = math.ceil(width / scale) * math.ceil(height / scale)
        return pixels * (self.depth if self.rgb else self.depth + 4) + self.extra + 2**20


class Reader:
    """Parts of a file by their position, from where the image begins."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._start = file, file.tell()
        self.size = size

    def at(self, position: int, size: int) -> bytes:
        """Bytes from a position on; fewer where the file ends."""
        self._file.seek(self._start + position)
        data = self._file.read(size)
        while 0 < len(data) < size and (more := self._file.read(size - len(data))):  # a raw file gives what it has
            data += more
        return data


def read_header(data: Reader, format_name: str) -> Header:
    """The header of an image.

    Raises:
        ImageError: It is damaged, or says of the memory too little or too much.
        struct.error: The file ends before its size.
    """
    return _HEADERS[format_name](data)


def directory_bytes(data: Reader, offset: int, order: str, *, big: bool = False) -> int:
    """Bytes that Pillow takes for the values of a directory of TIFF or Exif tags, read and then unpacked.

    Many tags may share one value: 64 KiB of Exif can claim some 300 MiB.
    """
    return sum(_value_bytes(kind, count) for _, kind, count, _ in _entries(data, offset, order, big=big))


def check_metadata(exif: bytes) -> None:
    """Check the values of an Exif block.

    Raises:
        ImageError: They take much more memory than a camera's.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return
    data = Reader(io.BytesIO(tiff), len(tiff))
    (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
    if directory_bytes(data, offset, order) > _METADATA + 4 * len(tiff):
        raise ImageError("its metadata claim more memory than the file has; save it anew without them")


def _png(data: Reader) -> Header:
    width, height, depth, colour = 0, 0, 8, 2
    extra = texts = 0
    plain = True
    for kind, start, length in _png_chunks(data):
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", data.at(start, 13))
        elif _is_needless(data, kind, start, length):
            extra += _SPAN
        elif kind in _TEXTS:
            texts += min(_INFLATED * length, _TEXT[0]) * 4 + length
            plain = False
        elif kind != b"IDAT":
            extra += 2 * length
        plain = plain and kind not in {b"tRNS", b"eXIf"}
    channels = {0: 1, 3: 1, 4: 2, 2: 3}.get(colour, 4)
    stored = depth // 8 if channels == 1 and depth >= 8 else 1 if channels == 1 else 4
    rows = 3 * math.ceil(width * channels * depth / 8)
    return Header((width, height), stored, plain and colour == 2, extra + min(texts, 4 * _TEXT[1]) + rows)


def needless_chunks(data: Reader) -> dict[int, int]:
    """Returns the chunks of a PNG that are not decoded, from the beginning of each to its end.

    These are colour profiles, and texts that say nothing of the orientation: Pillow inflates both, and raises an error
    for large ones.
    """
    return {
        start - 8: start + length + 4
        for kind, start, length in _png_chunks(data)
        if _is_needless(data, kind, start, length)
    }


def _is_needless(data: Reader, kind: bytes, start: int, length: int) -> bool:
    if kind in _TEXTS:
        return data.at(start, min(length, 80)).partition(b"\0")[0] not in _ORIENTING
    return kind == b"iCCP"


def _png_chunks(data: Reader) -> Iterator[tuple[bytes, int, int]]:
    position = 8
    for _ in _counted():
        head = data.at(position, 8)
        if position > 8 and len(head) < 8:
            return
        (length,) = struct.unpack_from(">I", head)
        yield head[4:], position + 8, min(length, data.size)
        position += length + 12


def _jpeg(data: Reader) -> Header:
    """Up to the first scan, as Pillow reads it: anything between segments is skipped."""
    frame: tuple[int, int, list[tuple[int, int]]] | None = None
    progressive = False
    exif, turned = b"", False
    for marker, start, length in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            if frame or marker not in {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}:
                raise ImageError(f"JPEGs of the kind {marker:#x}, or of several frames, are not read; save it anew")
            progressive = marker in {0xC2, 0xCA}
            body = data.at(start, length)
            height, width, count = struct.unpack_from(">HHB", body, 1)
            factors = [(body[at] >> 4, body[at] & 15) for at in range(7, 6 + 3 * count, 3)]
            frame = width, height, factors
        elif marker == 0xE1:
            body = data.at(start, length)
            turned = True  # Exif and XMP may say so
            if body.startswith(b"Exif\0\0"):
                exif += body if not exif else body[6:]
        elif marker == 0xDA:
            if frame is None:
                break
            check_metadata(exif)
            width, height, factors = frame
            several = progressive or data.at(start, 1) != bytes([len(factors)])
            grey = len(factors) == 1
            rows = width * len(factors) * 64
            whole = 2 * _coefficients(width, height, factors) if several else 0
            return Header((width, height), 1 if grey else 4, len(factors) == 3 and not turned, rows + whole + start)
    raise ImageError(
        "it ends before its first scan, or has no frame; damaged or unsupported, save it anew as PNG or JPEG"
    )


def _jpeg_segments(data: Reader) -> Iterator[tuple[int, int, int]]:
    """Marker, start and length of the segments up to the first scan."""
    position = 2
    for _ in _counted():
        byte = data.at(position, 2)
        if len(byte) < 2:
            return
        marker = byte[1]
        if byte[0] != 0xFF or marker == 0:
            position += 1 + (byte[0] == 0xFF)
        elif marker == 0xFF:
            position += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 1:
            position += 2
        else:
            (length,) = struct.unpack_from(">H", data.at(position + 2, 2))
            yield marker, position + 4, length - 2
            if marker in {0xDA, 0xD9}:
                return
            position += 2 + max(length, 2)


def _coefficients(width: int, height: int, factors: list[tuple[int, int]]) -> int:
    """Those of all blocks of a JPEG, which is kept in memory if it has several scans."""
    widest, highest = max(h for h, _ in factors) or 1, max(v for _, v in factors) or 1
    return sum(
        math.ceil(width / (8 * widest)) * (h or 1) * math.ceil(height / (8 * highest)) * (v or 1) * 64
        for h, v in factors
    )


def check_scans(data: bytes) -> None:
    """Check how often a JPEG draws over itself.

    The segments are walked as libjpeg does, to the end of the picture. What is behind it, such as the video of a motion
    photo, may have any bytes; and so may a comment, which could else hide scans behind an end of its own.

    Raises:
        ImageError: So often that it takes minutes.
    """
    scans, position = 0, 2
    for _ in _counted():
        marker = _MARKER.search(data, position)
        if marker is None or marker[0] == b"\xff\xd9":
            break
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    if scans > _SCANS:
        raise ImageError(f"it has {scans} scans, and more than {_SCANS} take too long; save it anew")


def _gif(data: Reader) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data.at(6, 7))
    position = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    for _ in _counted():
        kind = data.at(position, 1)
        if kind == b"!":
            position += 2
        elif kind == b",":
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data.at(position + 1, 8))
            size = max(width, left + frame_width), max(height, top + frame_height)
            return Header(size, 2, extra=3 * position)  # and the picture that clears the frame after it was shown
        elif kind in {b"", b";"}:
            return Header((width, height), 2, extra=3 * position)
        else:
            position += 1
            continue
        while length := data.at(position, 1):
            position += 1 + length[0]
            if not length[0]:
                break
    return Header((width, height), 2)


def _bmp(data: Reader) -> Header:
    head = data.at(14, 24)
    (length,) = struct.unpack_from("<I", head)
    if length == 12:
        width, height, _, bits = struct.unpack_from("<4H", head, 4)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", head, 4)
    if compression in {1, 2}:  # a jump of 255 rows is two bytes, and Pillow's decoder makes the rows
        raise ImageError("run-length encoded BMPs are not read; save it as PNG")
    return Header((width, abs(height)), 1 if bits <= 8 else 4, bits in {16, 24})


def _ppm(data: Reader) -> Header:
    image = PpmImagePlugin.PpmImageFile(io.BytesIO(data.at(0, 2**16)))  # reads only its header
    values = image.width * image.height * len(image.getbands())
    depth = 1 if image.mode in {"1", "L"} else 4
    if image.tile[0].codec_name == "raw":
        return Header(image.size, depth, image.mode == "RGB")
    if values > _SLOW_VALUES or data.size > 64 * _SLOW_VALUES:
        raise ImageError(f"of a PNM that is text or has an uncommon white, at most {_SLOW_VALUES:,} values are read")
    return Header(image.size, depth, image.mode == "RGB", 12 * values + data.size)


def _webp(data: Reader) -> Header:
    first, start, _ = next(_webp_chunks(data), (b"", 0, 0))
    head = data.at(start, 10)
    if first == b"VP8X":
        size = int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    elif first == b"VP8L":
        (packed,) = struct.unpack_from("<I", head, 1)
        size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    elif first == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 6)
        size = width & 0x3FFF, height & 0x3FFF
    else:
        raise ImageError("it has no picture; it is damaged or no WebP")
    # Two canvases, the pixels, and Pillow's copy of them. Lossless pictures, and the transparency of others, have
    # tables for each of their groups of 16 pixels and more, each of two and a half bytes and more. One is decoded at
    # a time.
    lossless = max((length for kind, _, length in _webp_chunks(data) if kind in {b"VP8L", b"ALPH"}), default=0)
    blocks = math.ceil(size[0] / 4) * math.ceil(size[1] / 4)
    tables = min(2**16, blocks, math.ceil(lossless * 2 / 5)) * 6 * 2**10
    return Header(size, 16, first == b"VP8 ", 3 * data.size + tables)


def _webp_chunks(data: Reader) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of the chunks; those of a frame of an animation follow its own, as for libwebp."""
    position = 12
    for _ in _counted():
        head = data.at(position, 8)
        if len(head) < 8:
            return
        (length,) = struct.unpack_from("<I", head, 4)
        yield head[:4], position + 8, min(length, data.size)
        position += 24 if head[:4] == b"ANMF" else 8 + length + length % 2


# Compressions of TIFF whose decoders take no more than a strip or tile and small tables; libtiff limits a JPEG in it
# to 10 MB and 100 scans.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}
# Bytes of a value by its type, in the file and when Pillow has unpacked it.
_TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_UNPACKED = {1: 1, 2: 2, 7: 1, 5: 400, 10: 400}


def _value_bytes(kind: int, count: int) -> int:
    return count * (_TIFF_TYPES[kind] + _UNPACKED.get(kind, 40)) if kind in _TIFF_TYPES else 0


def _entries(data: Reader, offset: int, order: str, *, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """Tag, type, number of values, and value or its position, of the entries of a directory."""
    size, layout, inline = (20, f"{order}HHQ", 12) if big else (12, f"{order}HHI", 8)
    (count,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data.at(offset, 8 if big else 2).ljust(8, b"\0"))
    start = offset + (8 if big else 2)
    table = data.at(start, min(count, 2**16) * size)
    for at in range(0, len(table) - size + 1, size):
        tag, kind, number = struct.unpack_from(layout, table, at)
        if number * _TIFF_TYPES.get(kind, 1) <= data.size:  # Pillow ignores what does not fit
            yield tag, kind, number, table[at + inline : at + size]


def _tiff(data: Reader) -> Header:
    head = data.at(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in {b"+\0", b"\0+"}
    offset = struct.unpack_from(f"{order}Q", head, 8)[0] if big else struct.unpack_from(f"{order}I", head, 4)[0]
    entries = {tag: (kind, count, value) for tag, kind, count, value in _entries(data, offset, order, big=big)}
    if sum(1 for _ in _entries(data, offset, order, big=big)) > len(entries):
        raise ImageError("it has a tag twice; save it anew as PNG or TIFF")

    def largest(tag: int, default: int) -> int:
        if tag not in entries:
            return default
        kind, count, value = entries[tag]
        letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if letter is None:
            raise ImageError(f"its tag {tag} is no number; save it anew as PNG or TIFF")
        length = count * struct.calcsize(f"{order}{letter}")
        if length > len(value):
            value = data.at(struct.unpack_from(f"{order}Q" if big else f"{order}I", value)[0], min(length, 2**16))
        number = min(count, len(value) // struct.calcsize(f"{order}{letter}"))
        return max(struct.unpack_from(f"{order}{number}{letter}", value), default=default)

    if (compression := largest(259, 1)) not in _TIFF_COMPRESSIONS:
        raise ImageError(f"TIFFs of compression {compression} are not read; save it anew as PNG, or with deflate")
    width, height, bits, samples = largest(256, 0), largest(257, 0), largest(258, 1), largest(277, 1)
    samples = max(samples, 3 if largest(262, 0) in {2, 6, 8} else 1)
    strip = (largest(322, width), largest(323, 1)) if 322 in entries else (width, min(largest(278, height), height))
    strips = math.ceil(width / max(strip[0], 1)) * math.ceil(height / max(strip[1], 1)) * samples
    listed = max((entries[tag][1] for tag in (273, 324) if tag in entries), default=0)
    rows = 3 * width if compression == 1 else strip[0] * strip[1]  # a strip or tile is decoded whole
    extra = rows * (math.ceil(samples * bits / 8) + 4 * (largest(262, 0) == 6)) + 24 * strips + 500 * listed
    extra += 2 * data.size if compression != 1 else 0
    extra += 2 * sum(_value_bytes(kind, count) for kind, count, _ in entries.values())
    depth = 4 if samples > 1 or bits > 16 else max(bits // 8, 1)
    turned = entries.keys() & {274, 700}  # orientation, XMP: turned by Pillow beside the original, or by us
    return Header((width, height), 2 * depth if 274 in entries else depth, samples == 3 and not turned, extra)


def _counted() -> Iterator[int]:
    """Counts the parts of a file.

    Raises:
        ImageError: There are too many.
    """
    yield from range(_BLOCKS)
    raise ImageError(f"it has more than {_BLOCKS:,} parts; save it anew")


_HEADERS: dict[str, Callable[[Reader], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "PPM": _ppm,
}
