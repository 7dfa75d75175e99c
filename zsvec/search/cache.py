"""A cache of references in the user's cache folder, for the next process that opens the same store.

Reading 10⁵ references takes seconds, from a folder and from a server alike. Mapping a file with these references takes
a tenth of a second. The cache holds the references of an earlier state of the store, and the write ids of each category
in that state. `Searcher` compares the write ids with the catalog, and reads only changed categories from the store.

Each store has one file: a line with the checksum of the rest, a line of JSON, and the vectors of each expert. A damaged
file counts as missing. A folder that other users can write to is not used; files in the user's own folder are trusted.
The file name is a hash of the place and id of the store, so two deployments never share a file.

`ReferenceCache.drop` deletes cached references. A process that read references before the drop must not cache them
again. So each drop has a random id: a process reads the id of the last drop, then the catalog, and later caches the
references only if the id is unchanged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from filelock import FileLock

from zsvec.errors import StoreUnavailableError
from zsvec.inputs.files import is_ours, open_regular, read_regular, replacing, sync
from zsvec.method.arrays import Floats
from zsvec.method.similarities import References
from zsvec.types import Category

WORTH = 20_000
"""Minimum number of references to cache. Reading fewer from a store takes no noticeable time."""
_FORMAT = 2
_ALIGNMENT = 64  # bytes
_SUFFIX = ".references"
_MAX_AGE_S = {_SUFFIX: 30 * 86_400, ".new": 3600}  # since the last use; unfinished files: since the last write
_SPARE = 4  # required free space, as a multiple of the size of the vectors
_LOCK_TIMEOUT_S = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """Cached references of an earlier state of a store.

    Attributes:
        references: References by expert. The vectors are memory-mapped, copy-on-write.
        catalog: The categories of the references, by name. A category has only write ids and numbers of references; the
            version is -1.
    """

    references: Mapping[str, References]
    catalog: Mapping[str, Category]


class ReferenceCache:
    """A cache of references, in files that only the user can read."""

    def __init__(self) -> None:
        self._folder = Path(platformdirs.user_cache_dir("zsvec")) / "references"
        self._last_drop = self._folder / "dropped"

    def load(self, store: str) -> Kept | None:
        """Returns the cached references of a store; ``None`` if missing, damaged or in another format.

        Args:
            store: Place and id of the store.
        """
        file = self._file(store)
        if not is_ours(self._folder):
            return None
        try:
            with open_regular(file) as opened:
                kept = _read(opened)
        except FileNotFoundError:
            return None
        except (AttributeError, LookupError, OSError, OverflowError, TypeError, ValueError) as exc:
            _log.info("cached references in %s cannot be used: %s", file, exc)
            return None
        with suppress(OSError):
            os.utime(file)
        return kept

    def dropped(self) -> bytes:
        """Returns the id of the last `drop` of any store; empty before the first drop."""
        try:
            return read_regular(self._last_drop)
        except OSError:
            return b""

    def drop(self, store: str) -> None:
        """Deletes the cached references of a store. Processes that have mapped the file can still use it.

        Args:
            store: Place and id of the store.

        Raises:
            StoreUnavailableError: The file cannot be deleted.
        """
        with suppress(OSError):  # a folder that cannot be created has no files
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if is_ours(self._folder) or self._file(store).exists():
                with self._locked():
                    self._drop(self._file(store))
        except OSError as exc:
            raise StoreUnavailableError(
                f"cached references in {self._folder} cannot be deleted: {exc}; delete that folder"
            ) from exc

    def _drop(self, file: Path) -> None:
        with self._replacing(self._last_drop) as opened:
            opened.write(uuid.uuid4().bytes)
        file.unlink(missing_ok=True)
        # Files that other processes are writing are deleted too; these processes notice the drop.
        for partial in self._folder.glob("*.new"):
            partial.unlink(missing_ok=True)
        sync(self._folder)  # so that the files do not reappear after a power loss

    def save(
        self, store: str, references: Mapping[str, References], catalog: Mapping[str, Category], dropped: bytes
    ) -> None:
        """Replaces the cached references of a store if there is enough free space.

        Args:
            store: Place and id of the store.
            references: References by expert.
            catalog: The categories of the references, by name.
            dropped: Result of the method `dropped` before the catalog was read. If a drop followed, nothing is cached.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_ours(self._folder):
                _log.info("references are not cached in %s, where other users may write", self._folder)
                return
            size = sum(expert.vectors.nbytes for expert in references.values())
            if shutil.disk_usage(self._folder).free >= _SPARE * size and self.dropped() == dropped:
                self._write(self._file(store), references, catalog, dropped)
        except OSError as exc:
            _log.info("references cannot be cached in %s: %s", self._folder, exc)

    def _write(
        self, file: Path, references: Mapping[str, References], catalog: Mapping[str, Category], dropped: bytes
    ) -> None:
        parts: list[bytes | memoryview] = [
            _header(references, catalog),
            *(_bytes(expert.vectors) for expert in references.values()),
        ]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        lock = self._locked()
        try:
            with self._replacing(file) as opened:
                opened.write(digest.hexdigest().encode() + b"\n")
                opened.writelines(parts)
                lock.acquire()  # held until the file is in place, so that no drop comes between
                if self.dropped() != dropped:
                    raise BlockingIOError("references were dropped meanwhile")
            self._tidy()
        finally:
            lock.release()

    def _file(self, store: str) -> Path:
        return self._folder / f"{hashlib.sha256(store.encode()).hexdigest()}{_SUFFIX}"

    def _locked(self) -> FileLock:
        if not is_ours(self._folder):
            raise PermissionError(f"others may write to {self._folder}")
        return FileLock(self._folder / ".lock", timeout=_LOCK_TIMEOUT_S, mode=0o600)

    def _replacing(self, file: Path) -> AbstractContextManager[BinaryIO]:
        return replacing(file, mode=0o600, durable=False)  # a damaged file counts as missing

    def _tidy(self) -> None:
        for file in self._folder.iterdir():
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _MAX_AGE_S.get(file.suffix, float("inf")):
                    file.unlink()


def _header(references: Mapping[str, References], catalog: Mapping[str, Category]) -> bytes:
    """Returns a line of JSON, padded so that the vectors after it are aligned."""
    experts = {
        name: {
            "dim": expert.vectors.shape[1],
            "names": expert.names,
            "starts": expert.starts.tolist(),
            "norms": expert.norms.tolist(),
            "hashes": expert.hashes,
            "sources": expert.sources,
            "groups": expert.groups,
        }
        for name, expert in references.items()
    }
    categories = {name: [one.write_ids, dict(one.references)] for name, one in catalog.items()}
    header = json.dumps({"format": _FORMAT, "experts": experts, "categories": categories}).encode()
    checksum = hashlib.sha256().digest_size * 2 + 1
    return header + b" " * (-(checksum + len(header) + 1) % _ALIGNMENT) + b"\n"


def _bytes(vectors: Floats) -> memoryview:
    return np.ascontiguousarray(vectors, dtype="<f4").data


def _read(opened: BufferedReader) -> Kept:
    checksum = opened.readline()
    begin = opened.tell()
    if hashlib.file_digest(opened, "sha256").hexdigest().encode() + b"\n" != checksum:
        raise ValueError("the checksum is wrong")
    opened.seek(begin)
    values = json.loads(opened.readline())
    if values["format"] != _FORMAT:
        raise ValueError(f"the format must be {_FORMAT}, got {values['format']!r}")
    references, offset = {}, opened.tell()
    for name, expert in values["experts"].items():
        shape = len(expert["hashes"]), expert["dim"]
        vectors = np.memmap(opened, "<f4", "c", offset, shape)
        offset += vectors.nbytes
        references[name] = _checked(vectors, expert)
    return Kept(references, {name: _category(name, *kept) for name, kept in values["categories"].items()})


def _checked(vectors: Floats, expert: Mapping[str, Any]) -> References:
    found = References(
        names=tuple(expert["names"]),
        vectors=vectors.view(np.ndarray),
        starts=np.array(expert["starts"], dtype=np.intp),
        norms=np.array(expert["norms"], dtype=np.float32),
        hashes=tuple(expert["hashes"]),
        sources=tuple(expert["sources"]),
        groups=tuple(expert["groups"]),
    )
    n = len(found.hashes)
    if (
        {len(found.sources), len(found.groups) or n} != {n}
        or {len(found.names), len(found.norms)} != {len(found.starts) - 1}
        or (found.starts[0], found.starts[-1]) != (0, n)
        or not (np.diff(found.starts) > 0).all()
        or list(found.names) != sorted(set(found.names))
    ):
        raise ValueError("the numbers of references do not agree")
    return found


def _category(name: str, write_ids: Sequence[str], references: Mapping[str, int]) -> Category:
    return Category(name=name, version=-1, rev=0, write_ids=tuple(write_ids), texts=(), references=dict(references))
