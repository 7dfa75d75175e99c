"""References that were read from a store, kept in the user's cache for the next process that opens it.

To read 10⁵ references takes seconds, from a folder and from a server alike; to map a file of them takes a tenth. They
are kept as they were in some state of the store, with the writes that each category had then. The catalog of the store
says what has changed since: that is read anew, and no more (`Searcher`).

A table says what there is, and names the files of vectors. Each file begins with, or is named by, the checksum of what
is in it: what is damaged counts as not there. A folder that others can write to is not used; in that of the user, files
are as much trusted as all that the user keeps. A store is known by its place and its id, so that no other deployment's
vectors are taken for its own.

What is dropped is not kept again by a process that read it before: such a process was told of an earlier drop, or none,
before it last looked at the catalog.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
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
"""References that take longer to read from a store than a person notices."""
_FORMAT = 1
_UNUSED = 30 * 86_400  # seconds from which on what nobody has opened is deleted
_AT_WORK = 3600  # seconds that a process has from writing vectors to writing the table that names them
_SPARE = 4  # times as much room as it takes must be free
_PATIENCE = 10  # seconds that another process has to put its table in place, or to drop one

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """References of some state of a store.

    Attributes:
        references: By expert; the vectors are mapped, and a page of them is copied when somebody writes to it.
        catalog: The categories that they belong to, by name: how many references of which writes each had. Nothing
            else of them is kept, and their version is -1.
    """

    references: Mapping[str, References]
    catalog: Mapping[str, Category]


class ReferenceCache:
    """The references of stores that this user has opened.

    They are in the user's cache folder, and for the user alone.
    """

    def __init__(self) -> None:
        self._folder = Path(platformdirs.user_cache_dir("zsvec")) / "references"
        self._last_drop = self._folder / "dropped"

    def load(self, store: str) -> Kept | None:
        """What is kept of a store; ``None`` if there is nothing, or it is damaged or from another version.

        Args:
            store: Place and id.
        """
        table = self._table(store)
        if not is_ours(self._folder):
            return None
        try:
            checksum, _, content = read_regular(table).partition(b"\n")
            if checksum != _checksum(content).encode():
                return None
            values = json.loads(content)
            if values["format"] != _FORMAT:
                return None
            references = {name: self._read(expert) for name, expert in values["experts"].items()}
            catalog = {name: _category(name, *kept) for name, kept in values["categories"].items()}
            with suppress(OSError):
                os.utime(table)
            return Kept(references, catalog)
        except FileNotFoundError:
            return None
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as exc:
            _log.info("references kept in %s cannot be used: %s", table, exc)
            return None

    def dropped(self) -> bytes:
        """Name of the last `drop`, of whichever store; empty if there was none."""
        try:
            return read_regular(self._last_drop)
        except OSError:
            return b""

    def drop(self, store: str) -> None:
        """Delete what is kept of a store, and files that no table names. A process that has them mapped goes on.

        Args:
            store: Place and id.

        Raises:
            StoreUnavailableError: They cannot be deleted.
        """
        with suppress(OSError):  # there is nothing in a folder that cannot be made
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if is_ours(self._folder) or self._table(store).exists():
                with self._locked():
                    self._drop(self._table(store))
        except OSError as exc:
            raise StoreUnavailableError(
                f"references that were kept in {self._folder} cannot be deleted: {exc}; delete that folder"
            ) from exc

    def _drop(self, table: Path) -> None:
        with self._replacing(self._last_drop) as file:
            file.write(uuid.uuid4().bytes)
        table.unlink(missing_ok=True)
        named = set[str]().union(*map(_named, self._folder.glob("*.json")))
        # What others are just writing, too: they find that they cannot keep it.
        for left in (*self._folder.glob("*.npy"), *self._folder.glob("*.new")):
            if left.name not in named:
                left.unlink(missing_ok=True)
        sync(self._folder)  # else a loss of power could bring them back

    def save(
        self, store: str, references: Mapping[str, References], catalog: Mapping[str, Category], dropped: bytes
    ) -> None:
        """Keep references in the place of those that were kept of this store, if there is room.

        Args:
            store: Place and id.
            references: By expert.
            catalog: The categories that they belong to, by name.
            dropped: What `dropped` was before the catalog was looked at; after another drop nothing is kept.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_ours(self._folder):
                _log.info("references are not kept in %s, where others may write", self._folder)
                return
            size = sum(expert.vectors.nbytes for expert in references.values())
            if shutil.disk_usage(self._folder).free < _SPARE * size or self.dropped() != dropped:
                return
            values: dict[str, Any] = {
                "format": _FORMAT,
                "experts": {name: self._write(expert) for name, expert in references.items()},
                "categories": {name: [one.write_ids, dict(one.references)] for name, one in catalog.items()},
            }
            content = json.dumps(values).encode()
            table = self._table(store)
            with self._locked():
                if self.dropped() != dropped:
                    self._tidy({expert["vectors"] for expert in values["experts"].values()})
                    return
                replaced = _named(table)
                with self._replacing(table) as file:
                    file.write(_checksum(content).encode() + b"\n" + content)
                self._tidy(replaced)
        except OSError as exc:
            _log.info("references cannot be kept in %s: %s", self._folder, exc)

    def _table(self, store: str) -> Path:
        return self._folder / f"{_checksum(store.encode())}.json"

    def _read(self, expert: Mapping[str, Any]) -> References:
        file = self._folder / Path(expert["vectors"]).name
        if _file_checksum(file) != file.stem:
            raise ValueError(f"{file} is damaged")
        vectors = np.load(file, mmap_mode="c", allow_pickle=False)
        found = References(
            names=tuple(expert["names"]),
            vectors=vectors,
            starts=np.array(expert["starts"], dtype=np.intp),
            norms=np.array(expert["norms"], dtype=np.float32),
            hashes=tuple(expert["hashes"]),
            sources=tuple(expert["sources"]),
            groups=tuple(expert["groups"]),
        )
        n = len(found.hashes)
        if (
            vectors.dtype.name != "float32"
            or (vectors.ndim, len(vectors)) != (2, n)
            or {len(found.sources), len(found.groups) or n} != {n}
            or {len(found.names), len(found.norms)} != {len(found.starts) - 1}
            or (found.starts[0], found.starts[-1]) != (0, n)
            or not (np.diff(found.starts) > 0).all()
            or list(found.names) != sorted(set(found.names))
        ):
            raise ValueError(f"{file} and its table are not of one size")
        return found

    def _write(self, expert: References) -> dict[str, Any]:
        return {
            "vectors": self._write_vectors(expert.vectors),
            "names": expert.names,
            "starts": expert.starts.tolist(),
            "norms": expert.norms.tolist(),
            "hashes": expert.hashes,
            "sources": expert.sources,
            "groups": expert.groups,
        }

    def _write_vectors(self, vectors: Floats) -> str:
        """Writes vectors under the name that it returns: their checksum."""
        digest = hashlib.sha256()
        for part in _as_file(vectors):
            digest.update(part)
        file = self._folder / f"{digest.hexdigest()}.npy"
        try:
            with self._replacing(file) as opened:
                opened.writelines(_as_file(vectors))
        except PermissionError:
            if not file.exists():
                raise
            # On Windows, a process has this very file mapped.
        return file.name

    def _locked(self) -> FileLock:
        if not is_ours(self._folder):
            raise PermissionError(f"others may write to {self._folder}")
        return FileLock(self._folder / ".lock", timeout=_PATIENCE, mode=0o600)

    def _replacing(self, file: Path) -> AbstractContextManager[BinaryIO]:
        return replacing(file, mode=0o600, durable=False)  # a damaged file counts as missing

    def _tidy(self, replaced: set[str]) -> None:
        """Delete what nobody has used for long, and vectors that no table names: those of a replaced one at once."""
        now, named = time.time(), set()
        for table in self._folder.glob("*.json"):
            with suppress(OSError):
                if now - table.stat().st_mtime > _UNUSED:
                    table.unlink()
                else:
                    named |= _named(table)
        for file in (*self._folder.glob("*.npy"), *self._folder.glob("*.new")):
            with suppress(OSError):
                unused = file.name in replaced or now - file.stat().st_mtime > _AT_WORK
                if unused and file.name not in named:
                    file.unlink()


def _named(table: Path) -> set[str]:
    """The files of vectors that a table names; none, if it is not there or no table."""
    with suppress(AttributeError, LookupError, OSError, TypeError, ValueError):
        experts = json.loads(read_regular(table).partition(b"\n")[2])["experts"]
        return {expert["vectors"] for expert in experts.values()}
    return set()


def _as_file(vectors: Floats) -> Iterator[bytes | memoryview]:
    """The parts of a file of vectors in numpy's format."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": vectors.shape}
    )
    yield header.getvalue()
    yield np.ascontiguousarray(vectors).data


def _category(name: str, write_ids: Sequence[str], references: Mapping[str, int]) -> Category:
    return Category(name=name, version=-1, rev=0, write_ids=tuple(write_ids), texts=(), references=dict(references))


def _file_checksum(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
