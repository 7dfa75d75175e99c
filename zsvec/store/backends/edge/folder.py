"""What an embedded store needs of its file system: room before it writes, and that its folder stays the one it opened.

The engine writes through memory maps of files that are mostly holes. Where the disk has no block left for a hole, the
system reports no error: it ends the process (SIGBUS). So the free space is looked at before each write. And a map
outlives its file: what is written to a folder that was deleted succeeds, and is lost.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from contextlib import suppress
from pathlib import Path

from zsvec.errors import StoreUnavailableError
from zsvec.inputs.files import open_regular

ROOM = 16 * 2**20
"""Bytes that stay free after a write. A new collection takes 8 MiB of them, or less."""
POINT = 128
"""Bytes that the engine writes for a point when it flushes, at most."""

_COPIES = (
    4  # bytes on disk for a byte of vectors and payloads: in the log, in their place, in the indexes; 2.9 measured
)
_MIB = 2**20
_MOUNTS = Path("/proc/self/mountinfo")
_NEVER_READ_AHEAD = "payload_storage"
_READ_AT_ONCE = 2**17  # bytes; Linux by default reads no more for one request


def room_for(size: int) -> int:
    """Bytes that must be free to write vectors and payloads of a size."""
    return ROOM + _COPIES * size


def room_to_open(collection: Path, closed: bool) -> int:
    """Bytes that must be free to open a collection, which is nothing if it was closed and is on a disk.

    Args:
        collection: Its folder.
        closed: Whether it is known to have been: else the engine may write again what is in the log.
    """
    needed = 0 if closed else ROOM + log_size(collection)
    if _in_memory(collection):  # there, a hole that is read takes as much as one that is written
        files = [path for path in (collection / "segments").rglob("*") if _NEVER_READ_AHEAD not in path.parts]
        needed += sum(max(0, path.stat().st_size - _taken(path)) for path in files)
    return needed


def room_to_rewrite(collection: Path) -> int:
    """Bytes that must be free to begin to write a collection anew: it takes as much again, and so does its log."""
    return ROOM + 2 * sum(_taken(path) for path in (collection / "segments").rglob("*") if path.is_file())


def log_size(collection: Path) -> int:
    """Bytes that the log of a collection takes."""
    return sum(_taken(path) for path in (collection / "wal").glob("open-*"))


def read_ahead(collection: Path) -> None:
    """Have the system read the vectors of a collection in their order: the engine will read them in any.

    In 100,000 of 512 dimensions that no process has read since the machine was started, this is 0.8 s instead of 4.6 s.
    """
    if sys.platform != "linux":  # others have no such call
        return
    for path in sorted(collection.glob("segments/*/vector_storage/vectors/*.mmap")):
        with suppress(OSError), open_regular(path) as file:  # without it, the same is slower
            written = os.lseek(file.fileno(), 0, os.SEEK_HOLE)  # the rest is a hole, for vectors to come
            for position in range(0, written, _READ_AT_ONCE):
                os.posix_fadvise(file.fileno(), position, _READ_AT_ONCE, os.POSIX_FADV_WILLNEED)


def check_room(folder: Path, needed: int) -> None:
    """Refuse what would fill the disk.

    Raises:
        StoreUnavailableError: Less is free.
        OSError: There is no such folder.
    """
    usage = shutil.disk_usage(folder)
    if usage.free < needed and usage.total:  # there are file systems that do not say
        raise StoreUnavailableError(
            f"the disk of the embedded store {folder} has {usage.free / _MIB:.1f} MiB free, and "
            f"{needed / _MIB:.1f} MiB are needed for this: make room, or move the store to a larger disk, and do it "
            "again; what was acknowledged is kept"
        )


class OpenedFolder:
    """A folder, with a way to tell whether its path still leads to it.

    Args:
        path: Absolute.

    Raises:
        OSError: There is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat = path.stat()
        # The number of a file is not given to another one while it is open. Windows deletes no folder of open files.
        file = os.open(path if os.name == "posix" else os.devnull, os.O_RDONLY)
        self._let_go = weakref.finalize(self, os.close, file)

    def is_there(self) -> bool:
        """Whether it has been neither deleted, nor moved, nor replaced, and can be looked at."""
        try:
            return os.path.samestat(self._path.stat(), self._stat)
        except OSError:
            return False

    def close(self) -> None:
        """Let go of it."""
        self._let_go()


def _in_memory(path: Path) -> bool:
    """Whether a path is in a tmpfs."""
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(mount.split()[2] == number and " - tmpfs " in mount for mount in mounts)


def _taken(path: Path) -> int:
    """Bytes of a file that are no holes."""
    stat = path.stat()
    return 512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size
