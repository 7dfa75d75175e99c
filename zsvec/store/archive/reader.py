"""Reads an archive as the source of a copy.

Archives are untrusted. The directory of the zip is checked before any entry but the manifest is read: sizes,
names and compression. An entry is read up to the size that the directory declares, and verified by its checksum before
it is parsed. Records are validated as those of a store are.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, get_args
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from zsvec.errors import SURROGATES, ImageError, InvalidInputError, StoreError, shown
from zsvec.inputs.categories import depth_of
from zsvec.inputs.files import open_regular
from zsvec.inputs.small import open_small
from zsvec.store.archive.layout import (
    CALIBRATION,
    CATEGORIES,
    ENTRY,
    FOLDER,
    FORMAT,
    IMAGES,
    INBOX,
    LARGEST_DIRECTORY,
    LARGEST_LIST,
    LARGEST_PART,
    LARGEST_RECORD,
    MANIFEST,
    MOST_CATEGORIES,
    MOST_IN_TABLE,
    MOST_MARKS,
    VERSION,
    WAITING,
    checksum,
    part_of,
)
from zsvec.store.backends.base import Points
from zsvec.store.catalog.changefeed import Cursor, Look
from zsvec.store.catalog.marks import number_of_marks
from zsvec.store.catalog.schema import (
    LONGEST_SOURCE,
    category_from,
    fingerprints_from,
    is_content_hash,
    is_reference,
    keeps_images,
    labels_from,
    profile_from,
    text_from,
    time_from,
)
from zsvec.store.collections.inbox import FOR_GOOD, InboxImage, image_from
from zsvec.types import Category, Fingerprint, KeepImages, Labels, SmallImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"  # of the directory of a zip
_END_BYTES, _ENDS_BYTES = 22, 98  # without and with the end in the format of large files, without a comment
_MOST_VALUES = 8_000_000  # in the list of categories; a value takes about 64 bytes of memory
_DEEPEST = 40  # nested levels of a record: metadata have up to 32; the embedded engine cannot read its log beyond 128
_LEAST_UNPACKED = 64 * 2**20  # bytes that any archive may have unpacked,
_MOST_UNPACKED = 50  # and more bytes for each byte of the file
_ENCRYPTED = 0x1
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # linear also without the last quotation mark
_SURROGATE = re.compile(f"[{SURROGATES}]")


def is_archive(path: Path) -> bool:
    """Returns whether a file is an archive of any version, by its content."""
    try:
        with ExitStack() as opened:
            _opened(path, opened)
    except InvalidInputError:
        return False
    except StoreError:  # an archive that is damaged or unsafe
        return True
    return True


@dataclass(frozen=True, slots=True)
class _Folder:
    """The folder of a category: name of the category, and checksum of each entry."""

    category: str
    checksums: Mapping[str, str]


class ArchiveReader:
    """An archive as a `zsvec.store.source.Source`. The write id of a category is its folder in the zip.

    Args:
        path: The archive.

    Raises:
        InvalidInputError: There is no such file, or the file is no archive.
        StoreError: The archive is damaged, unsafe to read, or made by a later version of zsvec.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as opened:
            self._zip, self._manifest = _opened(path, opened)
            try:
                self._encoders = fingerprints_from(self._manifest)
                self._checksums = _checksums(self._manifest)
                _check_options(self._manifest)
            except (AttributeError, KeyError, TypeError, ValueError) as exc:
                raise self._damaged(MANIFEST, exc) from exc
            if not self._encoders:
                raise self._damaged(MANIFEST, "it names no encoders")
            self._folders: dict[str, _Folder] = {}
            self._unreadable: list[str] = []
            self._categories = sorted(self._read_categories(), key=lambda category: category.name)
            self._calibration = self._read_calibration()
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def location(self) -> str:
        """Path of the archive."""
        return str(self._path)

    @property
    def way_out(self) -> str:
        """What to do about damage, for messages."""
        return "export the store again"

    def encoders(self) -> dict[str, Fingerprint]:
        """Returns the fingerprints of the encoders, by name."""
        return self._encoders

    def profile(self) -> str | None:
        """Returns the name of the profile that the encoders come from, if known."""
        return profile_from(self._manifest)

    def labels(self) -> Labels:
        """Returns whether an image belongs to ``one`` category or may belong to ``many``."""
        return labels_from(self._manifest)

    def keeps_images(self) -> bool:
        """Returns whether the archive has small copies of images."""
        return keeps_images(self._manifest)

    def look(self, cursor: Cursor, known: Mapping[str, int]) -> Look:
        """Returns everything at the first look, and nothing later: an archive does not change."""
        if cursor.store is not None:
            return Look(cursor)
        return Look(
            Cursor(store=self.location),
            self._categories,
            self._calibration,
            unreadable=self._unreadable,
        )

    def references(self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True) -> Iterator[Points]:
        """Yields the readable references of these folders, in pages.

        Raises:
            StoreError: A part is damaged.
        """
        dim = self._encoders[encoder].dim
        for write_id in write_ids:
            belongs = {"category": self._folders[write_id].category, "gen": write_id}
            for lines, tensors in self._parts(write_id, encoder, self._folders[write_id].checksums, tensors=vectors):
                rows: Any = [None] * len(lines)
                if vectors:
                    rows = self._rows(tensors, encoder, (len(lines), dim), write_id)
                payloads = [{**line, **belongs} for line in lines]
                readable = [i for i, payload in enumerate(payloads) if is_reference(payload)]
                yield Points([""] * len(lines), rows, payloads).chosen(readable)

    def small_images(self, write_ids: Sequence[str], hashes: Sequence[str]) -> Iterator[SmallImage]:
        """Yields the readable small copy of each image with one of these hashes in these folders, once.

        Raises:
            StoreError: A part is damaged.
        """
        wanted = set(hashes)
        for write_id in write_ids:
            for lines, tensors in self._parts(write_id, IMAGES, self._folders[write_id].checksums):
                for line in lines:
                    digest, source = text_from(line, "hash"), text_from(line, "source") or ""
                    if digest not in wanted or len(source) > LONGEST_SOURCE:
                        continue
                    if content := _small(tensors, digest):
                        wanted.remove(digest)
                        sides = {side: _side(line, side) for side in ("width", "height")}
                        yield SmallImage(hash=digest, content=content, source=source, added=time_from(line), **sides)

    def inbox_images(self, without: Collection[str], *, small: bool) -> Iterator[InboxImage]:
        """Yields the readable images of the inbox; see `zsvec.store.source.Source`.

        Raises:
            StoreError: A part is damaged.
        """
        dims = {name: fingerprint.dim for name, fingerprint in self._encoders.items()}
        done = set(without)
        checksums = {name.removeprefix(f"{INBOX}/"): digest for name, digest in self._checksums.items()}
        for lines, tensors in self._parts(INBOX, WAITING, checksums):
            rows = {name: self._rows(tensors, name, (len(lines), dim), INBOX) for name, dim in dims.items()}
            for i, line in enumerate(lines):
                fields = {name: value for name, value in line.items() if name not in ("removals", "small")}
                image = image_from(fields, {name: rows[name][i] for name in dims}, dims)
                if image is None or image.hash in done or not is_content_hash(image.hash):
                    continue
                if len(image.source) > LONGEST_SOURCE:
                    continue
                done.add(image.hash)
                if line.get("dismissed") is True:
                    yield replace(image, removals=(FOR_GOOD,))
                else:
                    yield replace(image, content=_small(tensors, image.hash) if small else None)

    def _read_categories(self) -> Iterator[Category]:
        """Yields the readable categories of the list, and notes their folders and the unreadable categories."""
        digest, values, marks, names = sha256(), 0, 0, set[str]()
        if self._zip.getinfo(CATEGORIES).file_size > LARGEST_LIST:
            raise self._damaged(CATEGORIES, f"it has more than {LARGEST_LIST:,} bytes")
        with self._reading(CATEGORIES), self._zip.open(CATEGORIES) as file:
            while line := file.readline(LARGEST_RECORD):
                digest.update(line)
                values += line.count(b",") + line.count(b"[") + line.count(b"{")
                if values > _MOST_VALUES:
                    raise ValueError(f"it has more than {_MOST_VALUES:,} values")
                record = _parsed(line)
                marks += number_of_marks(record)
                if len(names) == MOST_CATEGORIES or marks > MOST_MARKS:
                    raise ValueError(f"it has more than {MOST_CATEGORIES:,} categories, or {MOST_MARKS:,} marks")
                name = record["category"]
                if not isinstance(name, str) or name in names:
                    raise ValueError(f"the name {shown(name)} is no text, or is there twice")
                names.add(name)
                try:
                    yield self._category(record)
                except (KeyError, StoreError, TypeError, ValueError):
                    self._unreadable.append(name)
            if digest.hexdigest() != self._checksums.get(CATEGORIES):
                raise ValueError("its checksum is another")

    def _category(self, record: Mapping[str, Any]) -> Category:
        folder = record.get("folder")
        if folder is not None:
            if not isinstance(folder, str) or not FOLDER.fullmatch(folder) or folder in self._folders:
                raise ValueError(f"the folder {shown(folder)} is invalid, or of another category")
            self._folders[folder] = _Folder(record["category"], _checksums(record))
        absent: dict[str, Any] = {"texts": [], "metadata": {}, "references": {}}
        return category_from({**absent, **record, "writes": [] if folder is None else [folder]})

    def _read_calibration(self) -> Mapping[str, Any] | None:
        if CALIBRATION not in self._checksums:
            return None
        try:
            return _parsed(self._read(CALIBRATION, self._checksums[CALIBRATION], LARGEST_RECORD))
        except _UNREADABLE as exc:  # the references, of which another can be learned, may be whole
            _log.warning(
                "%s of the archive %s cannot be used (%s), and is left out: run `zsvec calibrate` after the import",
                *(CALIBRATION, self._path, exc),
            )
            return None

    def _parts(
        self, folder: str, kind: str, checksums: Mapping[str, str], *, tensors: bool = True
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]]:
        """Yields the lines and, if wanted, the tensors of each part; raises StoreError for a damaged part."""
        for number in count(1):
            name = part_of(kind, number)
            if f"{name}.jsonl" not in checksums:
                return
            with self._reading(f"{folder}/{name}"):
                table = self._read(f"{folder}/{name}.jsonl", checksums[f"{name}.jsonl"], LARGEST_PART)
                lines = _lines(table)
                arrays: dict[str, NDArray[Any]] = {}
                if tensors:
                    content = self._read(f"{folder}/{name}.safetensors", checksums[f"{name}.safetensors"], LARGEST_PART)
                    arrays = load(content)
            yield lines, arrays

    def _rows(
        self, tensors: Mapping[str, NDArray[Any]], encoder: str, shape: tuple[int, int], folder: str
    ) -> NDArray[np.float32]:
        found = tensors.get(encoder)
        if found is None or found.shape != shape or found.dtype != np.float32:
            got = "none" if found is None else f"{found.dtype} {found.shape}"
            raise self._damaged(folder, f"the vectors of {encoder!r} must be float32 {shape}, got {got}")
        return found

    def _read(self, name: str, digest: str, largest: int) -> bytes:
        """Returns the content of an entry, after comparing the checksum."""
        entry = self._zip.getinfo(name)
        if entry.file_size > largest:
            raise ValueError(f"{name} has {entry.file_size:,} bytes, more than {largest:,}")
        content = _content(self._zip, name, largest)
        if checksum(content) != digest:
            raise ValueError("its checksum is another")
        return content

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as exc:
            raise self._damaged(name, exc) from exc

    def _damaged(self, name: str, reason: object) -> StoreError:
        return StoreError(f"{name} of the archive {self._path} cannot be used ({reason}): {self.way_out}")


_UNREADABLE = (
    BadZipFile,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
    zlib.error,
)
"""Errors of a damaged or forged entry."""


def _opened(path: Path, opened: ExitStack) -> tuple[ZipFile, dict[str, Any]]:
    """Opens an archive, and returns the zip and the manifest, after checks of all that the directory declares."""
    try:
        file = opened.enter_context(open_regular(path))
    except OSError as exc:
        raise InvalidInputError(f"{path} cannot be read: {exc.strerror or exc}. Give an archive") from exc
    not_ours = f"{path} is no archive of zsvec, or is damaged or incomplete"
    try:
        if _directory_bytes(file) > LARGEST_DIRECTORY:
            raise InvalidInputError(f"{not_ours}: it has too many entries")
        zipped = opened.enter_context(ZipFile(file))
        manifest = _parsed(_content(zipped, MANIFEST, LARGEST_RECORD))
    except KeyError:  # a zip without a manifest
        manifest = {}
    except _UNREADABLE as exc:
        raise InvalidInputError(f"{not_ours} ({exc}): `zsvec export` writes archives") from exc
    if manifest.get("format") != FORMAT:
        raise InvalidInputError(f"{not_ours}: `zsvec export` writes archives")
    if manifest.get("version") != VERSION:
        raise StoreError(
            f"the archive {path} has version {shown(manifest.get('version'))}, and this version of zsvec reads "
            f"{VERSION}: upgrade zsvec"
        )
    if problem := _problem_of(zipped, os.fstat(file.fileno()).st_size):
        raise StoreError(
            f"the archive {path} is not as zsvec writes archives, and is not imported: {problem}. Export the store "
            "again"
        )
    return zipped, manifest


def _directory_bytes(file: BinaryIO) -> int:
    """Returns the size of the directory of a zip, as its end declares; raises ValueError if it has a comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ENDS_BYTES))
    tail = file.read()
    end = tail[-_END_BYTES:]
    if not end.startswith(_END) or end[-2:] != bytes(2):
        raise ValueError("its end is no end of a zip")
    declared = int.from_bytes(end[12:16], "little")
    return max(declared, int.from_bytes(tail[40:48], "little")) if tail.startswith(_END_64) else declared


def _problem_of(zipped: ZipFile, size: int) -> str:
    """Returns why the directory of a zip of `size` bytes is not to be trusted; empty without a problem."""
    names = set()
    for entry in zipped.infolist():
        name = entry.filename
        if not ENTRY.fullmatch(entry.orig_filename):
            return f"an entry must not have the name {shown(name)}"
        if name in names:
            return f"the entry {shown(name)} is there twice"
        names.add(name)
        is_stored = entry.compress_type == ZIP_STORED and entry.file_size == entry.compress_size
        if entry.flag_bits & _ENCRYPTED or not (is_stored or entry.compress_type == ZIP_DEFLATED):
            return f"the entry {shown(name)} is encrypted, or compressed by another method than deflate"
    if CATEGORIES not in names:
        return f"it has no {CATEGORIES}"
    entries = zipped.infolist()
    if sum(entry.compress_size for entry in entries) > size:
        return "its entries overlap"
    if sum(entry.file_size for entry in entries) > _LEAST_UNPACKED + _MOST_UNPACKED * size:
        return f"it unpacks to more than {_MOST_UNPACKED} times its size"
    return ""


def _content(zipped: ZipFile, name: str, largest: int) -> bytes:
    """Returns the content of an entry; raises ValueError if it has more than `largest` bytes.

    Python inflates as much as is asked for, whatever the directory declares.
    """
    with zipped.open(name) as entry:
        content = entry.read(largest)
        if entry.read(1):
            raise ValueError(f"{name} has more than {largest:,} bytes")
    return content


def _checksums(record: Mapping[str, Any]) -> dict[str, str]:
    found = record["checksums"]
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        raise TypeError("the checksums must be texts by entry")
    return found


def _check_options(manifest: Mapping[str, Any]) -> None:
    """Raises ValueError for a value of the manifest that a store would replace by its default."""
    for name, values in (("labels", get_args(Labels)), ("images", get_args(KeepImages))):
        if manifest.get(name) not in values:
            raise ValueError(f"{name} must be {' or '.join(values)}, got {shown(manifest.get(name))}")
    if "profile" in manifest and profile_from(manifest) is None:
        raise ValueError(f"profile must be the name of a profile, got {shown(manifest['profile'])}")


def _lines(table: bytes) -> list[dict[str, Any]]:
    """Returns the lines of a table; raises ValueError before parsing if they would take much more memory than text."""
    if _values(table) > MOST_IN_TABLE and _values(_TEXT.sub(b"", table)) > MOST_IN_TABLE:
        raise ValueError(f"it has more than {MOST_IN_TABLE:,} lines and values")
    return [_parsed(line) for line in table.splitlines()]


def _values(text: bytes) -> int:
    return sum(text.count(one) for one in (b"\n", b"\r", b",", b"{", b"["))


def _parsed(text: bytes) -> dict[str, Any]:
    """Returns a JSON object; raises ValueError for numbers and texts that a store cannot keep."""
    found = _DECODER.decode(text.decode())
    if not isinstance(found, dict):
        raise TypeError(f"a record must be a JSON object, got {shown(found)}")
    if text.count(b"[") + text.count(b"{") > _DEEPEST and depth_of(found) > _DEEPEST:
        raise ValueError(f"a record must have at most {_DEEPEST} levels")
    if b"\\u" in text and _SURROGATE.search(json.dumps(found, ensure_ascii=False)):
        raise ValueError("a text must be valid Unicode")
    return found


def _number(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"a number must be finite, got {digits[:20]}")
    return number


def _integer(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"an integer must have at most 64 bits, got {digits[:20]}")
    return number


_DECODER = json.JSONDecoder(parse_constant=_number, parse_float=_number, parse_int=_integer)


def _small(tensors: Mapping[str, NDArray[Any]], digest: str) -> bytes | None:
    """Returns the small copy of an image; ``None`` without a readable one."""
    found = tensors.get(digest)
    if found is None or found.dtype != np.uint8:
        return None
    content = found.tobytes()
    try:
        open_small(content)
    except ImageError:
        return None
    return content


def _side(line: Mapping[str, Any], name: str) -> int:
    side = line.get(name)
    return side if isinstance(side, int) else 0
