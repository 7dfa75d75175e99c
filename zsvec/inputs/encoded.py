"""Reads the headers of encoded images, and bounds the memory that opening and decoding take.

Pillow parses the headers. This module limits how much Pillow reads for that, and computes from the header an upper
bound for the memory that decoding takes. The constants were measured with Pillow 13 and its codecs on damaged files
(`zsvec/docs/limits.md`).
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, cast

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from zsvec.errors import ImageError

_UNBOUNDED = (b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # AVIF and JPEG 2000

_MAX_HEADER_MEMORY = 2**26  # bytes that opening a file may take, except a WebP
_MAX_PARTS = 2**17  # most reads of a header (at least one per PNG chunk): many millions take minutes
_MAX_SCANS = 100  # most scans of a JPEG: each takes as long as decoding the whole image once
_MAX_SLOW_VALUES = 2**22  # most samples for a decoder that is written in Python: decoding takes some seconds

_NEEDED_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})  # chunks of a PNG
_ORIENTATION_TEXTS = frozenset({b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"})  # keywords of PNG texts
_MAX_TEXT_BYTES = 2**20  # bytes of such a text; Pillow's limit for an inflated text is the same
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # JPEG segment or end marker, not an escaped byte or a restart
_LOSSLESS_CHUNKS = (rb"(?s)VP8L(.{4})", rb"(?s)ALPH(.{4})")  # WebP chunks; the group is the length
_MAX_TAGS = 4096  # most tags of a TIFF or of Exif, as in libtiff
_MAX_NUMBERS = 2**18  # most numbers in all tags
_BITS_TAG = 258  # TIFF tag BitsPerSample
_SIZE_TAGS = frozenset({256, 257, _BITS_TAG, 259, 262, 277, 278, 322, 323})  # tags for the size of a strip or tile
_DEPTH_TAGS = frozenset({32997, 32998})  # tags of libtiff for several layers, unknown to Pillow
# TIFF compressions whose decoders take memory only for one strip or tile and for small tables. libtiff limits an
# embedded JPEG to 10 MB and 100 scans.
_COMPRESSIONS = frozenset(
    {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate", "packbits"}
)


class Encoded:
    """A file that contains one encoded image: the caller's file from its current position on.

    Args:
        file: A seekable file.
        on_disk: Whether the bytes are not in memory.

    Attributes:
        size: Size of the image in bytes.
        on_disk: Whether the bytes are not in memory.
        header: Number of bytes that were read to open the image.
        exhausted: Whether a decoder has read beyond the end.
        hidden: Byte ranges that `read` skips. The key is the position of the first byte, the value is the end.
    """

    def __init__(self, file: BinaryIO, *, on_disk: bool = False) -> None:
        self._file, self._start = file, file.tell()
        file.seek(0, io.SEEK_END)
        self.size = max(file.tell() - self._start, 0)
        self.on_disk = on_disk
        self.header = self._reads = 0
        self.exhausted = False
        self._most: int | None = None
        self.hidden: dict[int, int] = {}

    @cached_property
    def format(self) -> str:
        """The name of the format, such as ``PNG``; raises ImageError for an unsupported format."""
        return recognised(self.at(0, 16))

    @cached_property
    def metadata(self) -> tuple[bool, int]:
        """Whether PNG metadata may hold an orientation, and an estimate of the bytes that metadata takes in memory.

        The estimate covers PNG and TIFF metadata. Memory for the `header` bytes is not included.
        """
        with self.reading_header():
            if self.format == "PNG":
                return _hide_chunks(self)
            return False, 600 * count_numbers(self) if self.format == "TIFF" else 0

    def tell(self) -> int:
        """Returns the position, relative to the beginning of the image."""
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a position and returns the position, relative to the beginning of the image."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        self._file.seek(self._start + position)
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns `size` bytes, or fewer at the end of the file.

        Reads repeatedly, because a raw file may return fewer bytes at once than requested.
        """
        while (end := self.hidden.get(self.tell())) is not None:
            self.seek(end)
        wanted = self.size if size is None or size < 0 else size
        data = read_bytes(self._file, wanted)
        while 0 < len(data) < wanted and (more := read_bytes(self._file, wanted - len(data))):
            data += more
        self.exhausted = self.exhausted or (not data and wanted > 0)
        if self._most is not None:
            self.header += len(data)
            self._reads += 1
            if self.header > self._most or self._reads > _MAX_PARTS:
                raise ImageError(f"its header has more than {self._most:,} bytes or {_MAX_PARTS:,} parts; save it anew")
        return data

    def at(self, position: int, size: int) -> bytes:
        """Returns `size` bytes from a position on, or fewer at the end of the file."""
        self.seek(position)
        return self.read(size)

    @contextmanager
    def reading_header(self) -> Iterator[None]:
        """Limits the bytes and the number of reads within the block; `read` raises ImageError beyond that.

        Pillow holds in memory all metadata that precedes the pixels, and searches a damaged header byte by byte.
        """
        self._most = self.size if self.format == "WEBP" else _MAX_HEADER_MEMORY // self.copies
        self.header = self._reads = 0
        yield
        self._most, self.exhausted = None, False

    @property
    def copies(self) -> int:
        """Bytes of memory that Pillow takes per byte of `header`; half for a TIFF, whose tags count twice."""
        return 2 if self.format == "TIFF" else 4


def read_bytes(file: BinaryIO, size: int) -> bytes:
    """Returns at most `size` bytes of a file; raises ImageError if the file does not return bytes."""
    data = file.read(size)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"its read() gives {type(data).__name__}, not bytes; open it with mode 'rb'")
    return bytes(data)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Skips Exif on opening. Pillow would read the density from Exif, which may be an array of any length."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _Gif(GifImagePlugin.GifImageFile):
    """Disables frame disposal, for which Pillow would allocate a picture of the first frame's size on opening."""

    disposal_method = property(lambda self: 0, lambda self, value: None)


# Readers and suffixes of the supported formats: raster formats whose memory is known before decoding. EPS is refused
# because it is a program, and ICO because Pillow decodes it before the size is known. JPEG 2000 is refused because
# openjpeg allocates unbounded memory for tiles, precincts and blocks (2.4 GiB for a file of 1.5 KB). AVIF is refused
# because decoders allocate memory for the size in the embedded AV1 stream before they compare that size with the
# header. JPEGs are not opened by Pillow's factory function, which reads an index of further pictures of any size.
FORMATS: dict[str, tuple[type[ImageFile.ImageFile], tuple[str, ...]]] = {
    "JPEG": (_Jpeg, (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    "PNG": (PngImagePlugin.PngImageFile, (".png", ".apng")),
    "WEBP": (WebPImagePlugin.WebPImageFile, (".webp",)),
    "GIF": (_Gif, (".gif",)),
    "BMP": (BmpImagePlugin.BmpImageFile, (".bmp",)),
    "TIFF": (TiffImagePlugin.TiffImageFile, (".tif", ".tiff")),
    "PPM": (PpmImagePlugin.PpmImageFile, (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")),
}
# Suffixes of refused formats. Such files in a folder are reported as unreadable instead of ignored.
_REFUSED = (".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
SUFFIXES = frozenset([*(suffix for _, suffixes in FORMATS.values() for suffix in suffixes), *_REFUSED])


@dataclass(frozen=True, slots=True)
class Opened:
    """An image whose header was read, but not its pixels.

    Attributes:
        image: The image.
        turned: Whether metadata may hold an orientation, by which the image is rotated or flipped.
        extra: Bytes of memory that decoding takes in addition to the pixels.
    """

    image: ImageFile.ImageFile
    turned: bool
    extra: int

    def memory(self, scale: int = 1) -> int:
        """Returns an upper bound for the bytes of memory that decoding takes, without the encoded bytes.

        `scale` is the divisor of the width and height of a JPEG.
        """
        width, height = self.image.size
        pixel = 1 if self.image.mode in {"1", "L", "P"} else 2 if self.image.mode.startswith("I;16") else 4
        if self.image.format == "WEBP":
            pixel += 12  # two canvases and the bytes of the picture
        if ExifTags.Base.Orientation in getattr(self.image, "tag_v2", ()):
            pixel *= 2  # Pillow rotates the TIFF on loading
        if self.image.mode != "RGB" or self.image.has_transparency_data:
            pixel += 4
        if self.turned:
            pixel = max(pixel, 8)
        return math.ceil(width / scale) * math.ceil(height / scale) * pixel + self.extra + 2**20


def canvas_of(file: Encoded) -> tuple[int, int]:
    """Returns width and height of the canvases that libwebp allocates for a WebP; (0, 0) if the header is damaged."""
    head = file.at(12, 18)
    if head[:4] == b"VP8X" and len(head) == 18:
        return int.from_bytes(head[12:15], "little") + 1, int.from_bytes(head[15:18], "little") + 1
    if head[:4] == b"VP8L" and len(head) >= 13:
        packed = int.from_bytes(head[9:13], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if head[:4] == b"VP8 " and len(head) == 18:
        return int.from_bytes(head[14:16], "little") & 0x3FFF, int.from_bytes(head[16:18], "little") & 0x3FFF
    return 0, 0


def opening_memory(file: Encoded) -> int:
    """Returns an upper bound for the bytes of memory that `open_encoded` takes.

    Raises:
        ImageError: The format or the metadata is not supported.
        struct.error: A TIFF has no directory.
    """
    _, extra = file.metadata
    return (4 * file.size if file.format == "WEBP" else min(4 * file.size, _MAX_HEADER_MEMORY)) + extra


def open_encoded(file: Encoded) -> Opened:
    """Opens an image without decoding its pixels.

    Raises:
        ImageError: The format is not supported, or its memory cannot be bounded.
        Exception: The file is damaged. Pillow may raise any exception.
    """
    turned, extra = file.metadata
    reader, _ = FORMATS[file.format]
    file.seek(0)
    with file.reading_header():
        # Not Image.open, which warns above Pillow's own limit: a warning cannot be silenced in one thread only.
        image = reader(cast("BinaryIO", file), "")
    turned = turned or not image.info.keys().isdisjoint({"exif", "xmp"})
    extra += file.copies * file.header + 24 * image.width  # three rows of pixels of at most 64 bits
    if isinstance(image, _Jpeg):
        extra += _extra_of_jpeg(image, file)
    elif isinstance(image, WebPImagePlugin.WebPImageFile):
        extra += _extra_of_webp(image, file)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        image.is_animated = True  # else Pillow unpacks all Exif tags, of any length
        extra += _extra_of_tiff(image, file)
    elif isinstance(image, PpmImagePlugin.PpmImageFile) and image.tile[0].codec_name != "raw":
        values = image.width * image.height * len(image.getbands())
        if values > _MAX_SLOW_VALUES or file.size > 64 * _MAX_SLOW_VALUES:
            raise ImageError(f"a PNM of text, or of an uncommon white, may have at most {_MAX_SLOW_VALUES:,} values")
        extra += 12 * values + file.size
    elif isinstance(image, BmpImagePlugin.BmpImageFile) and image.tile[0].codec_name != "raw":
        # Two bytes can encode a jump over 255 rows, for which Pillow's decoder allocates memory.
        raise ImageError("run-length encoded BMPs are not read; save it as PNG")
    return Opened(image, turned, extra)


def recognised(prefix: bytes) -> str:
    """Returns the format of an image from its first bytes; raises ImageError for an unsupported format."""
    if not prefix:
        raise ImageError("it is empty (0 bytes); give an image")
    for name in FORMATS:
        _, accept = Image.OPEN.get(name, (None, None))
        accepted = accept is not None and accept(prefix)
        if isinstance(accepted, str):
            raise ImageError(f"{accepted}; convert it to PNG or JPEG")
        if accepted:
            return name
    if any(mark in prefix for mark in _UNBOUNDED):
        raise ImageError(
            "AVIF and JPEG 2000 are not read, because their memory is unbounded; convert it to PNG or JPEG"
        )
    raise ImageError(f"unknown format, it begins with {prefix[:8]!r}; convert it to one of {', '.join(FORMATS)}")


def _hide_chunks(file: Encoded) -> tuple[bool, int]:
    """Hides from `read` the chunks of a PNG that the first picture and its orientation do not need.

    Pillow would inflate colour profiles and texts, fail on large ones, and hold all unknown chunks in memory.

    Returns:
        Whether the visible chunks may hold an orientation, and an estimate of the bytes of memory for all chunks.
    """
    position, extra = 8, 0
    needed, keywords = set(_NEEDED_CHUNKS), set(_ORIENTATION_TEXTS)
    while len(head := file.at(position, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = position + length + 12
        kept = kind in needed
        if kind == b"IDAT":
            needed -= {b"PLTE", b"tRNS"}
        elif kind == b"eXIf" and kept:
            needed.discard(kind)
            extra += 4 * min(length, file.size)
        elif kind in {b"tEXt", b"zTXt", b"iTXt"} and length <= _MAX_TEXT_BYTES:
            keyword, _, _ = file.read(80).partition(b"\0")
            kept = keyword in keywords
            if kept:
                keywords.discard(keyword)
                extra += 12 * _MAX_TEXT_BYTES
        if not kept:
            file.hidden[position] = end
            extra += 256
        position = end
    return b"eXIf" not in needed or keywords != _ORIENTATION_TEXTS, extra


def _extra_of_jpeg(image: _Jpeg, file: Encoded) -> int:
    """Returns the bytes that libjpeg takes for rows and, with several scans, for 16-bit coefficients of all blocks."""
    rows = 64 * image.width * len(image.layer)
    end = file.tell()  # end of the header of the first scan
    head = file.at(max(end - 16, 0), 16)
    scanned = (n for n in (1, 2, 3, 4) if head[-2 * n - 8 :].startswith(struct.pack(">HHB", 0xFFDA, 2 * n + 6, n)))
    if "progressive" not in image.info and next(scanned, 0) == len(image.layer):
        return rows
    across = [max(h, 1) for _, h, _, _ in image.layer]
    down = [max(v, 1) for _, _, v, _ in image.layer]
    blocks = math.ceil(image.width / (8 * max(across))) * math.ceil(image.height / (8 * max(down)))
    return rows + 128 * blocks * sum(h * v for h, v in zip(across, down, strict=True))


def _extra_of_webp(image: WebPImagePlugin.WebPImageFile, file: Encoded) -> int:
    """Returns an upper bound of the bytes in memory for the tables of a lossless picture or lossless transparency.

    A table serves at least 16 pixels, and takes at least 2.5 bytes of the file. These facts limit the number of tables.
    Only the longest lossless chunk counts, because one picture is decoded at a time.
    """
    data = file.at(0, file.size)
    lengths = (int.from_bytes(length, "little") for chunk in _LOSSLESS_CHUNKS for length in re.findall(chunk, data))
    longest = min(max(lengths, default=0), file.size)
    blocks = math.ceil(image.width / 4) * math.ceil(image.height / 4)
    return min(2**16, blocks, math.ceil(longest * 2 / 5)) * 6 * 2**10


def _extra_of_tiff(image: TiffImagePlugin.TiffImageFile, file: Encoded) -> int:
    """Returns the bytes that the decoders of libtiff take for a whole strip or tile and for the encoded bytes."""
    if (compression := image.info["compression"]) not in _COMPRESSIONS:
        raise ImageError(f"TIFFs of compression {compression} are not read; save it anew as PNG, or with deflate")
    if compression == "raw":
        return 0
    tags = image.tag_v2
    colours = tags.get(262, 0)
    samples = max(tags.get(277, 1), 3 if colours in {2, 6, 8} else 1)
    width, height = tags[256], tags[257]
    across, down = tags.get(322, width), tags.get(323, min(tags.get(278, height), height))
    places = math.ceil(width / max(across, 1)) * math.ceil(height / max(down, 1)) * samples
    sample_bytes = math.ceil(samples * max(tags.get(_BITS_TAG, (1,))) / 8)
    total: int = across * down * (sample_bytes + 4 * (colours == 6)) + 24 * places + 2 * file.size
    return total


def count_numbers(file: Encoded) -> int:
    """Counts the numbers in the tags of the first directory of a TIFF or of Exif, without tags of bytes or text.

    Pillow creates an object for each of these numbers, and takes about 600 bytes for each strip offset. libtiff knows
    more number types than Pillow. The sizes of strips and tiles must have a type that Pillow and libtiff know. With
    another type, Pillow and libtiff could use different sizes.

    Raises:
        ImageError: There are too many tags or numbers, the sizes of strips or tiles have an uncommon type, or the file
            is a big-endian BigTIFF.
        struct.error: The directory is missing.
    """
    head = file.at(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:3] == b"+"
    if head.startswith(b"MM\0+"):  # Pillow and libtiff read different tags
        raise ImageError("BigTIFFs of this byte order are not read; save it anew as PNG or TIFF")
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4)
    size, entry = (8, struct.Struct(f"{order}HHQ8x")) if big else (2, struct.Struct(f"{order}HHI4x"))
    (entries,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.at(start, size))
    if entries > _MAX_TAGS:
        raise ImageError(f"it has {entries:,} tags, more than {_MAX_TAGS:,}; save it anew")
    table = file.read(entries * entry.size)
    numbers = 0
    for tag, kind, count in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        if tag in _DEPTH_TAGS or (tag in _SIZE_TAGS and (kind not in {3, 4} or (count != 1 and tag != _BITS_TAG))):
            raise ImageError("its strips or tiles have a size of an uncommon type; save it anew as PNG or TIFF")
        if kind not in {1, 2, 7} and count <= file.size:  # Pillow keeps these types as bytes, and ignores overlong tags
            numbers += count
    if numbers > _MAX_NUMBERS:
        raise ImageError(f"its tags have {numbers:,} numbers, more than {_MAX_NUMBERS:,}; save it anew")
    return numbers


def check_scans(data: bytes) -> None:
    """Raises ImageError for a JPEG with so many scans that decoding would take minutes.

    Follows the segments as libjpeg does, up to the end of the picture. The bytes after that are not checked, such as
    the video of a motion photo. Comments are skipped by their length, because a comment could contain a fake end marker
    that hides further scans.
    """
    scans, position = 0, 2
    for _ in range(_MAX_PARTS):
        marker = _MARKER.search(data, position)
        if marker is None or marker[0] == b"\xff\xd9":
            break
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    else:
        scans = _MAX_PARTS
    if scans > _MAX_SCANS:
        raise ImageError(f"it has {scans} scans, and more than {_MAX_SCANS} take too long; save it anew")
