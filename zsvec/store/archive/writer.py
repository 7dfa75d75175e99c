"""Writes an archive, category by category, in bounded memory. A former archive stays until the new one is complete."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from pydantic_core import to_json
from safetensors.numpy import save

from zsvec.errors import InvalidInputError, StoreError, StoreLockedError, StoreUnavailableError
from zsvec.inputs.files import remove_leftovers, replacing, sync
from zsvec.store.archive.layout import (
    CALIBRATION,
    CATEGORIES,
    FORMAT,
    IMAGES,
    INBOX,
    LARGEST_DIRECTORY,
    LARGEST_LIST,
    LARGEST_RECORD,
    MANIFEST,
    MOST_CATEGORIES,
    MOST_MARKS,
    PART_BYTES,
    VERSION,
    WAITING,
    checksum,
    folder_of,
    part_of,
)
from zsvec.store.catalog.changefeed import Cursor
from zsvec.store.catalog.schema import reference_payload
from zsvec.store.copying import Track, Written, problem_of, usable
from zsvec.store.source import Source, check_names, chosen
from zsvec.types import Category, Copied, Fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Row: TypeAlias = "tuple[Mapping[str, Any], Mapping[str, NDArray[np.float32]], bytes | None]"
"""A line of a table, vectors by encoder, and the small copy of the image with the hash of the line, if any."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_UNIX_FILE = 0o644 << 16  # permissions of an entry that another program unpacks
_COMPRESSION = 1  # about as small as 6 for hashes and paths, and three times as fast
_DIRECTORY_ENTRY = 46 + 28  # bytes of an entry in the directory of a zip, without the name


def write_archive(
    source: Source,
    path: Path,
    *,
    names: Collection[str] | None,
    on_commit: Callable[[Category], None],
    track: Track,
) -> Copied:
    """As `zsvec.curation.archive.Archive.export`."""
    if not (encoders := source.encoders()):
        raise StoreError(f"there is no store in {source.location}: check the path, or the URL, and the namespace")
    every = source.look(Cursor(), {})
    seen = chosen(every, names)
    check_names(every, names, source)
    live = [category for category in seen.categories if category.write_ids]
    marked = (one for one in seen.categories if not one.write_ids and (one.withdrawn or one.retired))
    removed = [category for category in marked if not problem_of(category)]
    _check_number(source, [*live, *removed])
    with _replacing(path) as file, ZipFile(file, "w") as zipped:
        archive = _Writer(source, zipped, encoders, small=source.keeps_images())
        archive.damaged.update(dict.fromkeys(seen.unreadable, "its manifest cannot be read: look with `zsvec doctor`"))
        for category in track(live):
            if archive.add(category):
                on_commit(category)
        for category in removed:
            archive.add_removed(category)
        later = chosen(source.look(seen.cursor, {one.name: one.version for one in every.categories}), names)
        changed = tuple(category.name for category in later.categories)
        for name in changed:  # references that another writer removed meanwhile are no damage
            archive.damaged.pop(name, None)
        calibration = seen.calibration or None
        is_whole = not (changed or archive.damaged)
        number = archive.add_inbox() if names is None else 0
        archive.end(calibration if is_whole else None)
    return Copied(
        categories=tuple(archive.written),
        damaged=dict(sorted(archive.damaged.items())),
        changed=changed,
        inbox=number,
        calibration=None if calibration is None else is_whole,
        size=archive.size,
    )


def _check_number(source: Source, categories: Sequence[Category]) -> None:
    """Raises InvalidInputError if an import would refuse the number of these categories, or of their marks."""
    number, marks = len(categories), sum(len(one.withdrawn) + len(one.kept) for one in categories)
    if number > MOST_CATEGORIES or marks > MOST_MARKS:
        raise InvalidInputError(
            f"an archive must have at most {MOST_CATEGORIES:,} categories, including removed ones, and {MOST_MARKS:,} "
            f"marks, got {number:,} categories and {marks:,} marks in {source.location}. Export them to several "
            "archives (--categories)"
        )


@contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """As `replacing`, with errors of this package. Removes what killed exports have left in the folder."""
    try:
        remove_leftovers(path.parent)
        with replacing(path) as file:
            yield file
        sync(path.parent)
    except OSError as exc:
        if exc.errno == errno.EPIPE:  # of a caller that prints
            raise
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreUnavailableError(f"{path} cannot be written: {exc.strerror}. Free some space") from exc
        raise InvalidInputError(f"{path} cannot be written: {exc.strerror or exc}. Choose another place") from exc


@dataclass(slots=True)
class _Writer:
    """An archive that is being written, and the result so far."""

    source: Source
    zip: ZipFile
    encoders: Mapping[str, Fingerprint]
    small: bool
    written: list[Category] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    size: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)  # of the categories
    checksums: dict[str, str] = field(default_factory=dict)  # by entry, without those in folders of categories
    folders: int = 0
    directory: int = 0  # bytes

    def add(self, category: Category) -> bool:
        """Adds a category; returns False, and records the reason, if the category is unusable or cannot be read."""
        try:
            problem = problem_of(category) or self._add_category(category)
        except (StoreUnavailableError, StoreLockedError):
            raise
        except StoreError as exc:
            problem = str(exc)
        if problem:
            self.damaged[category.name] = problem
        return not problem

    def _add_category(self, category: Category) -> str:
        """Adds a category; returns the reason if references are unusable. Then no list names the entries."""
        self.folders += 1
        folder = folder_of(self.folders, category.name)
        checksums: dict[str, str] = {}
        written = Written()
        for encoder in self.encoders:
            self._add_parts(folder, encoder, self._references(encoder, category, written), checksums)
        expected = {expert: number for expert, number in category.references.items() if number}
        if written.counts != expected:
            usable_ones, all_ones = sum(written.counts.values()), sum(expected.values())
            return f"{usable_ones} of its {all_ones} references can be used: look with `zsvec doctor`"
        if self.small:
            self._add_parts(folder, IMAGES, self._small_images(category, written), checksums)
        self.size += written.size
        self.lines.append({**_line(category), "folder": folder, "checksums": checksums})
        self.written.append(category)
        return ""

    def add_removed(self, category: Category) -> None:
        """Adds the marks of a removed category."""
        self.lines.append(_line(category))

    def add_inbox(self) -> int:
        """Adds the inbox, and returns the number of its images."""
        checksums: dict[str, str] = {}
        number = 0

        def rows() -> Iterator[_Row]:
            nonlocal number
            for image in self.source.inbox_images((), small=self.small):
                number += 1
                line = {
                    "hash": image.hash,
                    "source": image.source,
                    "added": image.added.isoformat(timespec="milliseconds"),
                    "width": image.width,
                    "height": image.height,
                    "why": image.why,
                    **({"cut_from": image.cut_from} if image.cut_from else {}),
                    "dismissed": image.state == "dismissed",
                }
                yield line, image.vectors, image.content

        self._add_parts(INBOX, WAITING, rows(), checksums)
        self.checksums.update({f"{INBOX}/{name}": digest for name, digest in checksums.items()})
        return number

    def end(self, calibration: Mapping[str, Any] | None) -> None:
        """Adds the list of categories, the calibration and the manifest."""
        self.checksums[CATEGORIES] = self._add_list()
        if calibration:
            self.checksums[CALIBRATION] = self._add(CALIBRATION, _json(calibration))
        profile = self.source.profile()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "encoders": {name: asdict(fingerprint) for name, fingerprint in self.source.encoders().items()},
            **({"profile": profile} if profile else {}),
            "labels": self.source.labels(),
            "images": "small" if self.small else "none",
            "categories": len(self.written),
            "checksums": self.checksums,
        }
        self._add(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())

    def _references(self, encoder: str, category: Category, written: Written) -> Iterator[_Row]:
        for page in self.source.references(encoder, category.write_ids):
            for reference, write_id in usable(encoder, self.encoders[encoder].dim, page):
                if written.add(reference):
                    line = reference_payload(reference, category.name, write_id)
                    del line["category"], line["gen"]
                    yield line, {encoder: reference.vector}, None

    def _small_images(self, category: Category, written: Written) -> Iterator[_Row]:
        for small in self.source.small_images(category.write_ids, written.images()):
            line = {"hash": small.hash, "width": small.width, "height": small.height, "source": small.source}
            if small.added is not None:
                line["added"] = small.added.isoformat(timespec="milliseconds")
            self.size += len(small.content)
            yield line, {}, small.content

    def _add_parts(self, folder: str, kind: str, rows: Iterable[_Row], checksums: dict[str, str]) -> None:
        """Adds rows in parts, and the checksum of each entry by its name in the folder."""
        for number, (lines, tensors) in enumerate(_parts(rows), start=1):
            name = part_of(kind, number)
            table, arrays = f"{name}.jsonl", f"{name}.safetensors"
            checksums[table] = self._add(f"{folder}/{table}", b"".join(lines))
            checksums[arrays] = self._add(f"{folder}/{arrays}", save(tensors), compressed=False)

    def _add(self, name: str, content: bytes, *, compressed: bool = True) -> str:
        """Adds an entry, and returns its checksum."""
        self.zip.writestr(self._entry(name, compressed=compressed), content, compresslevel=_COMPRESSION)
        return checksum(content)

    def _add_list(self) -> str:
        """Adds the list of categories line by line, and returns its checksum."""
        digest, size = sha256(), 0
        with self.zip.open(self._entry(CATEGORIES), "w") as file:
            for line in self.lines:
                content = _json(line)
                size += len(content)
                if len(content) > LARGEST_RECORD or size > LARGEST_LIST:
                    raise self._too_large()
                digest.update(content)
                file.write(content)
        return digest.hexdigest()

    def _entry(self, name: str, *, compressed: bool = True) -> ZipInfo:
        self.directory += _DIRECTORY_ENTRY + len(name)
        if self.directory > LARGEST_DIRECTORY:
            raise self._too_large()
        entry = ZipInfo(name)  # without the time, so that equal stores give equal entries
        entry.compress_type = ZIP_DEFLATED if compressed else ZIP_STORED
        entry.external_attr = _UNIX_FILE
        return entry

    def _too_large(self) -> InvalidInputError:
        return InvalidInputError(
            f"an archive must have fewer categories, or less text, than {self.source.location}: export some of the "
            "categories to one archive, and the others to another (--categories)"
        )


def _parts(rows: Iterable[_Row]) -> Iterator[tuple[list[bytes], dict[str, NDArray[Any]]]]:
    """Yields the lines and tensors of parts of about `PART_BYTES`.

    The vectors of each encoder are one tensor, float32 ``(n, dim)``. Each small copy is a tensor, uint8 ``(bytes,)``,
    with the hash of the image as its name.
    """
    lines: list[bytes] = []
    vectors: dict[str, list[NDArray[np.float32]]] = {}
    copies: dict[str, NDArray[np.uint8]] = {}
    length = size = 0
    for line, row, copy in rows:
        # `to_json` is four times as fast as `json`. It would write NaN, but a line has no floats.
        lines.append(to_json(line) + b"\n")
        length += len(lines[-1])
        for encoder, vector in row.items():
            vectors.setdefault(encoder, []).append(vector)
            size += vector.nbytes
        if copy is not None:
            copies[line["hash"]] = np.frombuffer(copy, np.uint8)
            size += len(copy)
        if max(length, size) >= PART_BYTES:
            yield lines, {encoder: np.stack(found) for encoder, found in vectors.items()} | copies
            lines, vectors, copies, length, size = [], {}, {}, 0, 0
    if lines:
        yield lines, {encoder: np.stack(found) for encoder, found in vectors.items()} | copies


def _line(category: Category) -> dict[str, Any]:
    """Returns a category as a line of the list. Fields that are empty are left out."""
    fields = {
        "category": category.name,
        "version": category.version,
        "changed": category.rev,
        "texts": list(category.texts),
        "metadata": dict(category.metadata),
        "parent": category.parent,
        "references": {expert: number for expert, number in category.references.items() if number},
        "withdrawn": "".join(category.withdrawn),
        "kept": "".join(category.kept),
        "retired": category.retired,
    }
    return {name: value for name, value in fields.items() if value}


def _json(value: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode() + b"\n"
