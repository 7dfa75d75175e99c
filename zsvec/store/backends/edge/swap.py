"""How the folder of a collection comes, is replaced and goes: whole or not at all, at whatever instant a process ends.

A folder is made under a name that no collection has, and gets its own by being renamed when it is complete. One that is
to replace another is first called the next: from then on it is the collection. Whoever opens that finishes what is left
to do, or deletes what was not complete (`settle`); nobody does without the lock of the collection.
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from zsvec.inputs.files import inside, open_to_append, sync
from zsvec.store.backends.edge.checksums import Checksums, DamagedError


def exists(folder: Path, collection: str) -> bool:
    """Returns whether there is a collection in the folder of a store, one that is just being replaced included.

    Raises:
        DamagedError: The folder of a collection is gone, and no call removed the collection.
    """
    place = folder / collection
    looks = (place, _next(folder, collection), place)  # the last, in case the next has just become the collection
    if any(os.path.isdir(path) for path in looks):  # noqa: PTH112 - Path.is_dir raises where no folder may be entered
        return True
    file = _mark(folder, collection)
    if not os.path.lexists(file):
        return False
    if not os.path.isdir(place):  # noqa: PTH112 - else another process has just made it
        raise DamagedError(f"{place} is gone (delete {file} if that is as it should be)")
    return True


def mark(folder: Path, collection: str) -> None:
    """Notes that there is a collection, so that a deleted folder is told from one that never was."""
    file = _mark(folder, collection)
    if not os.path.lexists(file):
        with suppress(OSError):  # the folder of the store may be read-only, if that of the collection is not
            open_to_append(file).close()


def begin(folder: Path, collection: str) -> Path:
    """Make an empty folder for what is to become a collection.

    Raises:
        OSError: It cannot be made.
    """
    made = _unnamed(folder, collection)
    made.mkdir()
    return made


def replace(folder: Path, collection: str, complete: Path) -> None:
    """Have a folder take the place of a collection; neither is open. `settle` does it.

    Args:
        folder: Of the store.
        collection: Its name.
        complete: What `begin` made, with all that it shall have.

    Raises:
        OSError: It cannot be written, and the collection is as it was.
    """
    for path in (*complete.rglob("*"), complete):
        sync(path)
    Checksums(folder, complete).write()
    complete.rename(_next(folder, collection))
    sync(folder)


def settle(folder: Path, collection: str) -> None:
    """Finish what `replace` began, and delete what was not complete, or was replaced. The collection is not open.

    Raises:
        InvalidInputError: A link leads out of the folder.
        OSError: It cannot be done; what is left is done the next time.
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
    """Delete the files of a collection that is not open; killed at any instant, it is there or not.

    Raises:
        OSError: They cannot be deleted.
    """
    _mark(folder, collection).unlink(missing_ok=True)  # else it would be missed
    removed = _unnamed(folder, collection)
    (folder / collection).rename(removed)
    shutil.rmtree(removed)


def _mark(folder: Path, collection: str) -> Path:
    return folder / f".collection-{collection}"


def _next(folder: Path, collection: str) -> Path:
    return folder / f".next-{collection}"


def _unnamed(folder: Path, collection: str) -> Path:
    return folder / f".{collection}.{uuid.uuid4().hex[:8]}"
