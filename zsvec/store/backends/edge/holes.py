"""Cuts off the holes at the end of the files of a closed collection.

The engine reserves space: each collection has files of 32 MiB that are nearly empty. On disk they are holes, but in an
archive, or after a copy by a tool that reads holes, a store of 31 MB takes 600 MB. So the files of a closed collection
end with their last data. Before the cut, ``sizes.json`` durably records the full sizes, which are restored before the
engine loads the collection again. A process may be killed between any two steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from zsvec.inputs.files import open_regular, sync, write_whole

SIZES = "sizes.json"
"""Name of the file in the folder of a collection."""

_LEAST = 2**16  # bytes; shorter holes stay
_PAGE = 4096  # bytes; files are cut at multiples of this
_BLOCK = 2**16  # bytes to read at once
_LARGEST = 2**40  # bytes of a file; the record may come from elsewhere
_MAX_SIZE = 2**24  # bytes of the record


def cut(collection: Path, files: Mapping[str, Path]) -> None:
    """Cuts off the holes at the end of files that the engine has closed.

    Args:
        collection: Folder of the collection.
        files: Path of each regular file, by the name within the collection.

    Raises:
        OSError: A file cannot be written. All files that were cut are recorded.
    """
    if not hasattr(os, "SEEK_DATA"):  # Windows
        return
    sizes: dict[str, int] = {}
    ends: dict[str, int] = {}
    for name, path in files.items():
        size = path.stat().st_size
        if size >= _LEAST and size - (end := _data_end(path, size)) >= _LEAST:
            sizes[name], ends[name] = size, end
    if not sizes:
        return
    if _recorded(collection) != sizes:
        write_whole(collection / SIZES, json.dumps(sizes).encode())
        sync(collection)
    for name, end in ends.items():
        os.truncate(files[name], end)


def restore(collection: Path, files: Mapping[str, Path]) -> None:
    """Restores the recorded sizes of files that were cut; arguments as for `cut`.

    Raises:
        OSError: The record or a file cannot be used.
    """
    for name, size in _recorded(collection).items():
        if name in files and files[name].stat().st_size < size:
            os.truncate(files[name], size)


def _recorded(collection: Path) -> dict[str, int]:
    """Returns the recorded sizes, without invalid entries."""
    try:
        with open_regular(collection / SIZES, follow_links=False) as file:
            found = json.loads(file.read(_MAX_SIZE))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        found = None
    entries = found.items() if isinstance(found, dict) else ()
    return {name: size for name, size in entries if type(size) is int and 0 <= size <= _LARGEST}


def _data_end(path: Path, size: int) -> int:
    """Returns the end of the last page of a file that is not all zeros."""
    with open_regular(path) as file:
        for start, stop in reversed(list(_extents(file.fileno(), size))):
            for position in range(stop - (stop - start - 1) % _BLOCK - 1, start - 1, -_BLOCK):
                block = os.pread(file.fileno(), min(_BLOCK, stop - position), position)
                if block != bytes(len(block)):
                    return min(size, -(-(position + len(block.rstrip(b"\0"))) // _PAGE) * _PAGE)
    return 0


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields the start and the end of each part of a file that is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # only a hole follows
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
