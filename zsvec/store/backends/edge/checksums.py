"""Checksums of a collection's files. The folder contains the checksums while the collection is closed.

From damaged files, the engine may read fewer points without an error. So the size and the CRC-32 of each file are
written when a collection is closed or flushed, and compared before the engine loads the collection again. Loading
changes files even for a reader, so the checksums are durably removed first. After a process was killed, there are no
checksums to compare.

Checksums detect damage but not forgery, since an author of files can also write checksums.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from zsvec.inputs.files import inside, open_regular, sync, write_whole
from zsvec.store.backends.edge import holes

CHECKSUMS = "checksums.json"
"""Name of the file in the folder of a collection."""

_REQUIRED = ("wal/open-*", "segments/*/segment.json")  # the engine would replace a missing file by an empty one
_MAX_SIZE = 2**24  # bytes, enough for about 100,000 files
_BLOCK = 2**16  # bytes
_ZEROS = bytes(_BLOCK)


class DamagedError(Exception):
    """Files of a collection are missing, have changed, or cannot be used."""


class Checksums:
    """The checksums of one collection.

    Args:
        store: Folder of the store.
        collection: Folder of the collection.
    """

    def __init__(self, store: Path, collection: Path) -> None:
        self._store = store
        self._collection = collection
        self._file = collection / CHECKSUMS
        self._recorded: Mapping[str, list[int]] = {}
        self.closed = False
        """Whether `check` found that the collection was closed or flushed, and not loaded since."""

    def check(self) -> None:
        """Restores the sizes of the files, and compares the files with the recorded checksums.

        Raises:
            DamagedError: A file is missing, was added, has changed, has hard links, or is not a regular file; or the
                checksums cannot be read.
            InvalidInputError: A link leads out of the folder of the store.
            OSError: The files cannot be read.
        """
        files = self._files()
        holes.restore(self._collection, files)
        if missing := [pattern for pattern in _REQUIRED if not any(self._collection.glob(pattern))]:
            raise DamagedError(f"there is no {' and no '.join(missing)} in {self._collection}")
        recorded = self._read()
        self.closed = recorded is not None
        if not recorded:
            return
        found = {name: _checksum(path) for name, path in files.items()}
        for name in sorted(recorded.keys() | found.keys()):
            if recorded.get(name) != found.get(name):
                change = "is missing" if name not in found else "has changed" if name in recorded else "was added"
                raise DamagedError(
                    f"{str(self._collection / name)!r} {change} since the collection was closed "
                    f"(delete {self._file} to open it all the same)"
                )
        self._recorded = found

    def remove(self) -> None:
        """Removes the checksums durably. Callers do this before files change.

        Raises:
            OSError: The file cannot be removed.
        """
        if self.closed:
            self._file.unlink()
            sync(self._collection)

    def write(self) -> None:
        """Writes the checksums of files that the engine has closed, and then cuts off holes.

        If writing fails, as on a full disk, an empty file marks the collection as closed. Without any file, the next
        process would assume that this process was killed, and require free space for the log.
        """
        try:
            for partial in self._collection.glob(".zsvec-*.new"):  # left by a process that was killed here
                partial.unlink()
            paths = self._files()
            files = {name: _checksum(path) for name, path in paths.items()}
            self._sync_changes(files)
            write_whole(self._file, json.dumps(files).encode())
            sync(self._collection)
        except (OSError, DamagedError):
            with suppress(OSError):
                write_whole(self._file, b"")
        else:
            with suppress(OSError):  # the files stay as they are
                holes.cut(self._collection, paths)

    def _sync_changes(self, files: Mapping[str, list[int]]) -> None:
        """Makes changed files durable, so that after a loss of power the checksums are never newer than the files."""
        before = self._recorded
        changed = {name for name in before.keys() | files.keys() if before.get(name) != files.get(name)}
        paths = {self._collection / name for name in changed}
        folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(self._collection)}
        for path in paths | folders:
            if path.exists():
                sync(path)

    def _read(self) -> dict[str, object] | None:
        """Returns the recorded checksums without validation, or ``None`` if there is no file."""
        try:
            with open_regular(self._file, follow_links=False) as file:
                content = file.read(_MAX_SIZE + 1)
            recorded = json.loads(content or b"{}") if len(content) <= _MAX_SIZE else None
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            recorded = None
        if not isinstance(recorded, dict) or (content and not recorded):
            raise DamagedError(f"{self._file} cannot be read (delete it if nothing else is damaged)")
        return recorded

    def _files(self) -> dict[str, Path]:
        return {
            path.relative_to(self._collection).as_posix(): path
            for path in _regular_files(self._store, self._collection)
            if path not in (self._file, self._collection / holes.SIZES)
        }


def _regular_files(store: Path, collection: Path) -> Iterator[Path]:
    """Yields the files of a collection. Raises DamagedError for hard links, linked folders, pipes and the like.

    The engine would wait forever for a pipe, and would write to the target of a link.
    """
    for path in (collection, *sorted(collection.rglob("*"))):
        is_link = path.is_symlink()
        if is_link:
            inside(store, path)
        status = path.stat()
        mode = status.st_mode
        if stat.S_ISREG(mode):
            if status.st_nlink > 1:
                raise DamagedError(
                    f"{str(path)!r} has hard links, which would change with it (copy the store without them, as by "
                    "cp -r, and open the copy)"
                )
            yield path
        elif not stat.S_ISDIR(mode) or (is_link and path != collection):  # rglob does not enter linked folders
            raise DamagedError(f"{str(path)!r} is neither a file nor a folder (delete it)")


def _checksum(path: Path) -> list[int]:
    """Returns the size and the CRC-32 of a file.

    The CRC-32 covers the position and content of each block that is not all zeros, so that holes need not be read.
    """
    with open_regular(path) as file:
        descriptor = file.fileno()
        size, position, crc = os.fstat(descriptor).st_size, 0, 0
        while (position := _next_data(descriptor, position, size)) < size:
            os.lseek(descriptor, position, os.SEEK_SET)
            block = os.read(descriptor, _BLOCK)
            if block != _ZEROS[: len(block)]:
                crc = zlib.crc32(block, zlib.crc32(position.to_bytes(8, "little"), crc))
            position += _BLOCK
    return [size, crc]


def _next_data(descriptor: int, position: int, size: int) -> int:
    """Returns the position of the first block at or after `position` that contains data; `size` if there is none."""
    if not hasattr(os, "SEEK_DATA"):  # Windows
        return position
    try:
        data = os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:  # only a hole follows
        return size
    return data - data % _BLOCK
