"""The seal of a collection that was closed: how many points it has, by which a loss is told when it is opened again.

From damaged files the engine may read fewer points, without an error. It changes its files when it only reads them, so
checksums would tell nothing. A seal is broken before the first write: a store whose writer was killed has none, and is
recovered from its log.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from zsvec.errors import StoreError

_EVERY = ("wal/open-*", "segments/*/segment.json")  # what the engine makes anew, empty, where it is missing


def seal(file: Path, points: int) -> None:
    """Write a seal.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = file.with_name(f"{file.name}.new")
    unfinished.write_text(json.dumps({"points": points}))
    unfinished.replace(file)


def break_seal(file: Path) -> None:
    """Remove a seal, before what it seals is changed.

    Raises:
        OSError: It cannot be removed.
    """
    file.unlink(missing_ok=True)
    if os.name == "posix":  # after a loss of power, it must not be there again
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_files(collection: Path) -> None:
    """Refuse a collection that has lost what every collection has.

    Raises:
        StoreError: It has no log, or no segment.
    """
    missing = [files for files in _EVERY if not any(collection.glob(files))]
    if missing:
        raise damaged(collection, f"there is no {' and no '.join(missing)}")


def check_seal(collection: Path, file: Path, points: int) -> None:
    """Refuse a collection that has other points than when it was closed.

    Raises:
        StoreError: It is so, or the seal itself is damaged.
        OSError: The seal cannot be read.
    """
    try:
        sealed = json.loads(file.read_bytes())["points"]
    except (ValueError, KeyError, TypeError):
        raise damaged(collection, f"{file} cannot be read (delete it if nothing else is damaged)") from None
    if points != sealed:
        raise damaged(collection, f"it was closed with {sealed} points and has {points} now")


def damaged(collection: Path, how: str) -> StoreError:
    """The error of who opens a collection whose files are damaged."""
    return StoreError(
        f"the files of the embedded store in {collection} are damaged: {how}; put a copy of {collection.parent} in "
        "its place, or import again into another folder"
    )
