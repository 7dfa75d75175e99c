"""What a collection has, kept beside it, by which damage is told when it is opened again.

From damaged files the engine may read fewer points, without an error; and where the ids of points are damaged, it ends
the process. It changes most files even when it only reads, so that checksums of them would tell nothing; it only
appends to those of the ids, and only when it flushes.

A collection that was closed or flushed has a *seal*. The first write breaks it: of a broken seal, the ids count still,
but not the number of points. While records are written, there is a *claim* too: a collection whose writer was killed is
recovered from its log, of which the engine leaves out, without an error, all that follows on a damaged entry.
Collections of references need no claim: the records count their points.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zsvec.store.folder import sync
from zsvec.trust import inside

_EVERY = ("wal/open-*", "segments/*/segment.json")  # what the engine makes anew, empty, where it is missing
_IDS = "segments/*/mutable_id_tracker.mappings"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CLAIM = 128  # bytes of a claim, at least
# Bytes of an entry of ids, by its first: that, the id (8 bytes or 16) and, of a new one, its number (4 bytes).
_ENTRIES = {1: 13, 2: 21, 3: 9, 4: 17}
_NEW = (1, 2)


class DamagedError(Exception):
    """Files are not as they were."""


@dataclass(frozen=True)
class Seal:
    """What a collection had when it was closed or flushed.

    Attributes:
        points: How many; ``None`` if it was written since.
        ids: Size and checksum of each file of ids, by its path in the folder of the collection.
    """

    points: int | None
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
            points = None if found["points"] is None else int(found["points"])
            return cls(points, {str(path): (int(n), int(crc)) for path, (n, crc) in found["ids"].items()})
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
        sync(file.parent)  # else the one before could be there again

    def check_ids(self, collection: Path) -> None:
        """Refuse a collection whose ids do not begin with these, before the engine reads them.

        Raises:
            DamagedError: It is so.
            OSError: They cannot be read.
        """
        for path, (size, checksum) in self.ids.items():
            file = inside(collection, collection / path)
            ids = file.read_bytes()[:size] if file.exists() else b""
            if (len(ids), zlib.crc32(ids)) != (size, checksum):
                raise DamagedError(f"{path} has changed since it was flushed")


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


class Keeper:
    """Keeps the seal and the claim of one collection.

    Args:
        folder: Of the store.
        collection: Its name.
    """

    def __init__(self, folder: Path, collection: str) -> None:
        self._folder = folder / collection
        self._seal_file = seal_file(folder, collection)
        self._claim_file = claim_file(folder, collection)
        self._seal: Seal | None = None
        self._claim: Claim | None = None
        self._claiming: ClaimFile | None = None
        self._written = False  # since it was opened or sealed

    @property
    def sealed(self) -> bool:
        """Whether it was not written since it was closed or flushed, as far as is known."""
        return self._seal is not None and self._seal.points is not None

    def check_gone(self) -> None:
        """Refuse that there is no collection, where there was one.

        Raises:
            DamagedError: It is so.
            OSError: What is kept cannot be read.
        """
        kept = [self._seal_file] if self._seal_file.exists() else []
        kept += [self._claim_file] if Claim.read(self._claim_file) else []
        if kept:
            raise DamagedError(f"it is gone (delete {' and '.join(map(str, kept))} if that is as it should be)")

    def check_files(self) -> None:
        """Refuse files that are not as they were, before the engine reads them.

        Raises:
            DamagedError: It is so.
            OSError: They cannot be read.
        """
        missing = [files for files in _EVERY if not any(self._folder.glob(files))]
        if missing:
            raise DamagedError(f"there is no {' and no '.join(missing)}")
        self._seal = Seal.read(self._seal_file)
        self._claim = None if self.sealed else Claim.read(self._claim_file)
        if self._seal:
            self._seal.check_ids(self._folder)
        if not self.sealed:
            _check_numbers(self._folder)

    def check_points(self, points: Callable[[], int], records: Callable[[], Claim]) -> None:
        """Refuse points that are not those that it had.

        Args:
            points: Counts those that the engine finds.
            records: What it finds of a collection of records.

        Raises:
            DamagedError: There are others.
        """
        if self._seal and self._seal.points is not None:
            if (found := points()) != self._seal.points:
                raise DamagedError(f"it had {self._seal.points} points when it was flushed and has {found} now")
        elif self._claim:
            self._claim.check(records(), self._claim_file)

    def before_write(self) -> None:
        """Break the seal; and claim nothing, until `claim` is called.

        Raises:
            OSError: It cannot be written.
        """
        if self._written:
            if self._claiming:
                self._claiming.clear()
            return
        self._drop_claim()
        if self._seal:
            self._seal = replace(self._seal, points=None)
            self._seal.write(self._seal_file)
        self._written = True

    def claim(self, now: Claim) -> None:
        """Keep what a collection of records has now, in case its writer is killed."""
        with suppress(OSError):  # all is stored; without a claim, damage is not told
            self._claiming = self._claiming or ClaimFile(self._claim_file)
            self._claiming.write(now)

    def seal(self, points: Callable[[], int]) -> None:
        """Seal what was flushed.

        Args:
            points: Counts them.
        """
        if not self._written:
            return
        now = points()
        self._written = False  # whatever fails: the seal that is there then is broken before the next write
        with suppress(OSError):  # all is stored; without a seal, damage is not told
            self._seal = Seal.of(self._folder, now)
            self._seal.write(self._seal_file)
            self._drop_claim()

    def _drop_claim(self) -> None:
        self.close()
        self._claim_file.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the claim, which stays."""
        if self._claiming:
            self._claiming.close()
        self._claiming = None


def seal_file(folder: Path, collection: str) -> Path:
    """Where the seal of a collection is, in the folder of its store.

    Raises:
        InvalidInputError: A link leads out of the folder.
    """
    return inside(folder, folder / f".seal-{collection}")


def claim_file(folder: Path, collection: str) -> Path:
    """Where the claim of a collection is, in the folder of its store.

    Raises:
        InvalidInputError: A link leads out of the folder.
    """
    return inside(folder, folder / f".open-{collection}")


def _boot() -> str:
    """Name of this boot of the machine; empty where boots have none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return ""


def _check_numbers(collection: Path) -> None:
    """Refuse a collection in which a point has a number that none can have: the engine takes memory for all below it.

    Raises:
        DamagedError: It is so.
        OSError: The ids cannot be read.
    """
    for file in collection.glob(_IDS):
        ids, at = file.read_bytes(), 0
        most = len(ids) // min(_ENTRIES[new] for new in _NEW)
        while at < len(ids) and (size := _ENTRIES.get(ids[at])):  # the engine itself refuses an entry of no kind
            number = int.from_bytes(ids[at + size - 4 : at + size], "little") if ids[at] in _NEW else 0
            if number > most:
                path = file.relative_to(collection).as_posix()
                raise DamagedError(f"{path} has a point of number {number}, but not so many points")
            at += size
