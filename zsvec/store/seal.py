"""What a collection has, kept beside it, by which damage is told when it is opened again.

From damaged files the engine may read fewer points, without an error; and where the ids of points are damaged, it ends
the process. It changes most files even when it only reads, so that checksums of them would tell nothing; it only
appends to those of the ids.

A collection that was closed has a *seal*, which is broken before the first write. While records are written, a *claim*
is in its place: a collection whose writer was killed is recovered from its log, of which the engine leaves out, without
an error, all that follows on a damaged entry. Collections of references need no claim: the records count their points.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from zsvec.trust import inside

_EVERY = ("wal/open-*", "segments/*/segment.json")  # what the engine makes anew, empty, where it is missing
_IDS = "segments/*/mutable_id_tracker.mappings"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CLAIM = 128  # bytes of a claim, at least


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
        """Keep it in a file: whole or not at all, also after a loss of power.

        Raises:
            OSError: It cannot be written.
        """
        unfinished = file.with_name(f"{file.name}.new")
        with unfinished.open("wb") as opened:
            opened.write(json.dumps(asdict(self)).encode())
            opened.flush()
            os.fsync(opened.fileno())
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


@dataclass(frozen=True)
class Claim:
    """What a collection of records had after its last write.

    Attributes:
        points: How many.
        newest: The largest ``rev``; 0 if there is none.
    """

    points: int
    newest: int

    @classmethod
    def read(cls, file: Path) -> Claim | None:
        """The one in a file, if it is there and can be believed.

        It cannot be after a loss of power, when writes may be missing that were not flushed: so it says of which boot
        of the machine it is. Where boots have no names, it never is believed.

        Raises:
            DamagedError: It is damaged.
            OSError: It cannot be read.
        """
        try:
            content = file.read_bytes().strip(b" \0")
            if not content:  # its writer was killed in a write, or it was lost with the power
                return None
            found = json.loads(content)
            claim = cls(int(found["points"]), int(found["newest"]))
            return claim if found["boot"] == _boot() != "" else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise DamagedError(f"{file} cannot be read (delete it if nothing else is damaged)") from None

    def check(self, found: Claim, file: Path) -> None:
        """Refuse a collection that has other records.

        Raises:
            DamagedError: It is so.
        """
        if found != self:
            raise DamagedError(
                f"its writer was killed when it had {self.points} points up to revision {self.newest}, and it has "
                f"{found.points} up to {found.newest} now (delete {file} to go on with what is left)"
            )


class ClaimFile:
    """The file of a claim, while its collection is written. It is kept open: made anew, it would slow every write.

    Args:
        path: Of the file, which is made.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._boot = _boot()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._let_go = weakref.finalize(self, os.close, self._file)

    def clear(self) -> None:
        """Claim nothing, before the collection is changed.

        Raises:
            OSError: It cannot be written.
        """
        self._write(b"")

    def write(self, claim: Claim) -> None:
        """Claim what the collection has now.

        Raises:
            OSError: It cannot be written.
        """
        self._write(json.dumps({**asdict(claim), "boot": self._boot}).encode())

    def _write(self, content: bytes) -> None:
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, content.ljust(_CLAIM))  # in one piece: whoever is killed leaves it as it was, or as it is

    def close(self) -> None:
        """Let go of it; the claim stays."""
        self._let_go()


def _boot() -> str:
    """Name of this boot of the machine; empty where boots have none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return ""


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
