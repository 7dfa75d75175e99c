"""Folders of an embedded store: disk space, presence, and atomic replacement.

The engine writes through memory maps of sparse files, which are mostly holes. If a write to a hole finds the disk full,
the system reports no error, but ends the process (SIGBUS). So the free space is checked before each write. A memory map
also outlives the file, so that a write to a deleted folder succeeds and is lost.

The folder of a new collection has a temporary name until complete. A folder that is to replace a collection is first
renamed to ``.next-`` plus the name of the collection, and counts as the collection from then on. `settle` finishes the
replacement and deletes incomplete folders, under the lock of the collection. If a process is killed before `settle`,
the next process that opens the collection calls `settle`.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

from zsvec.errors import StoreUnavailableError
from zsvec.inputs.files import inside, open_regular, open_to_append, sync
from zsvec.store.backends.edge.checksums import Checksums, DamagedError

ROOM = 16 * 2**20
"""Bytes that must stay free after a write. Creating a collection takes at most 8 MiB."""
POINT = 128
"""Maximum number of bytes that a flush writes per point."""

_COPIES = 4  # bytes on disk (log, storage, indexes) per byte of vectors and payloads; measured: 2.9
_MIB = 2**20
_MOUNTS = Path("/proc/self/mountinfo")
_NEVER_READ_AHEAD = "payload_storage"
_READ_AT_ONCE = 2**17  # bytes; the default read-ahead of Linux for one request


def room_for(size: int) -> int:
    """Returns the bytes that must be free to write vectors and payloads of `size` bytes."""
    return ROOM + _COPIES * size


def room_to_open(collection: Path, closed: bool) -> int:
    """Returns the bytes that must be free to open a collection.

    Args:
        collection: Folder of the collection.
        closed: Whether the collection was closed. If not, the engine may write the content of the log again.
    """
    needed = 0 if closed else ROOM + log_size(collection)
    if _in_memory(collection):  # in a tmpfs, even reading a hole takes memory
        files = [path for path in (collection / "segments").rglob("*") if _NEVER_READ_AHEAD not in path.parts]
        needed += sum(max(0, path.stat().st_size - _taken(path)) for path in files)
    return needed


def room_to_rewrite(collection: Path) -> int:
    """Returns the bytes that must be free before a collection is rewritten, for the copy and a new log."""
    return ROOM + 2 * sum(_taken(path) for path in (collection / "segments").rglob("*") if path.is_file())


def log_size(collection: Path) -> int:
    """Returns the size of a collection's write-ahead log on disk, in bytes."""
    return sum(_taken(path) for path in (collection / "wal").glob("open-*"))


def read_ahead(collection: Path) -> None:
    """Asks the system to load the vectors of a collection sequentially, since the engine reads in random order.

    This reads 100,000 uncached vectors of 512 dimensions in 0.8 s instead of 4.6 s.
    """
    if sys.platform != "linux":  # posix_fadvise is missing on other systems
        return
    for path in sorted(collection.glob("segments/*/vector_storage/vectors/*.mmap")):
        with suppress(OSError), open_regular(path) as file:  # a failure only costs time
            written = os.lseek(file.fileno(), 0, os.SEEK_HOLE)  # the rest is a hole for future vectors
            for position in range(0, written, _READ_AT_ONCE):
                os.posix_fadvise(file.fileno(), position, _READ_AT_ONCE, os.POSIX_FADV_WILLNEED)


def check_room(folder: Path, needed: int) -> None:
    """Checks the free space of a disk.

    Raises:
        StoreUnavailableError: Fewer bytes are free than needed.
        OSError: The folder does not exist.
    """
    usage = shutil.disk_usage(folder)
    if usage.free < needed and usage.total:  # some file systems report no size
        raise StoreUnavailableError(
            f"the disk of the embedded store {folder} has {usage.free / _MIB:.1f} MiB free, and "
            f"{needed / _MIB:.1f} MiB are needed for this: make room, or move the store to a larger disk, and "
            "repeat the command; acknowledged writes are kept"
        )


class OpenedFolder:
    """An open folder, which can tell whether the path still leads to the same folder.

    Args:
        path: Absolute path.

    Raises:
        OSError: The folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat = path.stat()
        # While a folder is open, no new folder gets the same inode. Windows does not delete a folder with open files.
        file = os.open(path if os.name == "posix" else os.devnull, os.O_RDONLY)
        self._let_go = weakref.finalize(self, os.close, file)

    def is_there(self) -> bool:
        """Returns whether the folder is readable, and was not deleted, moved or replaced."""
        try:
            return os.path.samestat(self._path.stat(), self._stat)
        except OSError:
            return False

    def close(self) -> None:
        """Closes the folder."""
        self._let_go()


def _in_memory(path: Path) -> bool:
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(mount.split()[2] == number and " - tmpfs " in mount for mount in mounts)


def _taken(path: Path) -> int:
    # Size on disk, which excludes holes.
    stat = path.stat()
    return 512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size


# Atomic replacement


def exists(folder: Path, collection: str) -> bool:
    """Returns whether a collection exists in the folder of a store, even during a replacement.

    Raises:
        DamagedError: The folder of the collection is gone, although zsvec did not remove the collection.
    """
    place = folder / collection
    looks = (place, _next(folder, collection), place)  # between two checks, a replacement may finish
    if any(os.path.isdir(path) for path in looks):  # noqa: PTH112 - Path.is_dir raises for a folder without permission
        return True
    file = _mark(folder, collection)
    if not os.path.lexists(file):
        return False
    if not os.path.isdir(place):  # noqa: PTH112 - another process may just have created it
        raise DamagedError(f"{place} is gone (delete {file} if that is as it should be)")
    return True


def is_foreign(folder: Path) -> bool:
    """Returns whether a folder has files, but none of a store. Raises OSError for a missing or unreadable folder."""
    of_a_store = (name for pattern in (".lock-*__*", "*__catalog") for name in folder.glob(pattern))
    # Systems put hidden files and lost+found into folders that users see as empty.
    files = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "lost+found")
    return any(files) and not any(of_a_store)


def mark(folder: Path, collection: str) -> None:
    """Marks a collection as existing, so that `exists` can tell a lost folder from a collection that never existed."""
    file = _mark(folder, collection)
    if not os.path.lexists(file):
        with suppress(OSError):  # the folder of the store may be read-only
            open_to_append(file).close()


def begin(folder: Path, collection: str) -> Path:
    """Creates and returns an empty folder with a temporary name for a new collection, or raises OSError."""
    made = _unnamed(folder, collection)
    made.mkdir()
    return made


def replace(folder: Path, collection: str, complete: Path) -> None:
    """Begins to replace a closed collection by `complete`, a closed folder from `begin`. Call `settle` to finish.

    Raises:
        OSError: The folder cannot be written. The collection is unchanged, unless only the last sync failed.
    """
    for path in (*complete.rglob("*"), complete):
        sync(path)
    Checksums(folder, complete).write()
    complete.rename(_next(folder, collection))
    sync(folder)


def settle(folder: Path, collection: str) -> None:
    """Finishes a replacement that `replace` began, and deletes replaced and incomplete folders of a closed collection.

    Raises:
        InvalidInputError: A link leads out of the folder.
        OSError: A folder cannot be renamed or deleted; the next call tries again.
    """
    place, following = folder / collection, inside(folder, _next(folder, collection))
    if following.is_dir():
        if place.is_dir():
            place.rename(_unnamed(folder, collection))
        following.rename(place)
        sync(folder)
    leftovers = list(folder.glob(f".{glob.escape(collection)}.{8 * '[0-9a-f]'}"))
    for leftover in leftovers:
        shutil.rmtree(leftover)
    if leftovers:
        sync(folder)


def remove(folder: Path, collection: str) -> None:
    """Deletes the folder of a closed collection atomically, or raises OSError."""
    _mark(folder, collection).unlink(missing_ok=True)
    removed = _unnamed(folder, collection)
    (folder / collection).rename(removed)
    shutil.rmtree(removed)


def _mark(folder: Path, collection: str) -> Path:
    return folder / f".collection-{collection}"


def _next(folder: Path, collection: str) -> Path:
    return folder / f".next-{collection}"


def _unnamed(folder: Path, collection: str) -> Path:
    return folder / f".{collection}.{uuid.uuid4().hex[:8]}"
