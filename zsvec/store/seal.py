"""The seal of a collection that was closed: what it has, by which damage is told when it is opened again.

From damaged files the engine may read fewer points, without an error; and where the ids of points are damaged, it ends
the process. It changes most files even when it only reads, so that checksums of them would tell nothing; it only
appends to those of the ids. A seal is broken before the first write: a store whose writer was killed has none, and is
recovered from its log.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from zsvec.trust import inside

_EVERY = ("wal/open-*", "segments/*/segment.json")  # what the engine makes anew, empty, where it is missing
_IDS = "segments/*/mutable_id_tracker.mappings"


class DamagedError(Exception):
    """Files are not as they were."""


@dataclass(frozen=True)
class Seal:
    """What a collection had when it was closed.

    Attributes:
        points: How many.
        ids: Size and checksum of each file of ids, by its path in the folder of the collection.
    """

    points: int
    ids: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, collection: Path, points: int) -> Seal:
        """That of a folder.

        Raises:
            OSError: It cannot be read.
        """
        files = {path: path.read_bytes() for path in collection.glob(_IDS)}
        checksums = {p.relative_to(collection).as_posix(): (len(ids), zlib.crc32(ids)) for p, ids in files.items()}
        return cls(points, checksums)

    @classmethod
    def read(cls, file: Path) -> Seal | None:
        """The one in a file, if it is there.

        Raises:
            DamagedError: It is damaged.
            OSError: It cannot be read.
        """
        try:
            found = json.loads(file.read_bytes())
            return cls(int(found["points"]), {str(path): (int(n), int(crc)) for path, (n, crc) in found["ids"].items()})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedError(f"{file} cannot be read (delete it if nothing else is damaged)") from None

    def write(self, file: Path) -> None:
        """Keep it in a file.

        Raises:
            OSError: It cannot be written.
        """
        unfinished = file.with_name(f"{file.name}.new")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(file)

    def check_ids(self, collection: Path) -> None:
        """Refuse a collection whose ids are others, before the engine reads them.

        Raises:
            DamagedError: It is so.
            OSError: They cannot be read.
        """
        for path, (size, checksum) in self.ids.items():
            file = inside(collection, collection / path)
            ids = file.read_bytes()[:size] if file.exists() else b""
            if (len(ids), zlib.crc32(ids)) != (size, checksum):
                raise DamagedError(f"{path} is not as it was closed")

    def check_points(self, points: int) -> None:
        """Refuse a collection that has more points, or fewer.

        Raises:
            DamagedError: It is so.
        """
        if points != self.points:
            raise DamagedError(f"it was closed with {self.points} points and has {points} now")


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
        DamagedError: It has no log, or no segment.
    """
    missing = [files for files in _EVERY if not any(collection.glob(files))]
    if missing:
        raise DamagedError(f"there is no {' and no '.join(missing)}")
