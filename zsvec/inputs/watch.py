"""Yields each new image of a folder when its file is complete, and continues after a restart."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Lock
from time import perf_counter, thread_time
from typing import BinaryIO, NamedTuple, Self

from filelock import FileLock, Timeout
from watchfiles import watch

from zsvec.errors import InvalidInputError
from zsvec.inputs.categories import checked_path
from zsvec.inputs.encoded import SUFFIXES
from zsvec.inputs.files import inside, open_regular, open_to_append, write_whole
from zsvec.inputs.folders import INSTEAD_OF_A_LINK, find_images, unlisted

_log = logging.getLogger(__name__)
_MAX_SCAN_SHARE = 0.05  # largest share of a core for full scans, while the system reports changes


class _File(NamedTuple):
    """One version of a file. A changed or replaced file is a new version.

    Attributes:
        path: Path relative to the folder.
        size: Bytes.
        changed: Time of the last change in nanoseconds since 1970.
    """

    path: str
    size: int
    changed: int


class Watch:
    """Iterates over the new images of a folder. Yields each image once, ordered by the time of the last change.

    A file is complete if it can be opened and has not changed for `settle` seconds. A file that is replaced later
    counts as new and is yielded again. Unreadable files and folders are logged and tried again. Symbolic links that
    lead out of the folder are logged and skipped.

    `done` records a processed image in a state file, so that a later watch continues from there:

    ```python
    with Watch("incoming/") as watch:
        for prediction in clf.classify_stream(watch):
            print(prediction)
            watch.done(prediction.source)
    ```

    Args:
        folder: Folder to watch, with its sub-folders; hidden files are left out.
        state: File that records the processed images; by default, ``.zsvec-watch.jsonl`` in the folder.
        settle: Seconds without a change after which a file is complete.
        poll: Seconds between two scans of the folder. While the operating system reports changes, a very large folder
            is fully scanned less often. Changes by another machine, such as on a network drive, are not reported and
            are found only by a full scan.

    Raises:
        InvalidInputError: The folder or the state file is unusable, or another watch uses this state file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, state: Path | None = None, settle: float = 1.0, poll: float = 0.5
    ) -> None:
        self.folder = checked_path("folder", folder)
        self._settle = settle
        self._poll = poll
        self._closed = Event()
        self._given: dict[str, list[_File]] = {}
        self._recording = Lock()
        self._logged: set[str] = set()
        self._find()
        self._file = file = state or inside(self.folder, self.folder / ".zsvec-watch.jsonl")
        if not file.name:  # as of Path(".")
            raise InvalidInputError(f"state must be a file. Got {str(file)!r} instead")
        lock = file.with_name(f"{file.name}.lock")
        # Any thread may close the watch.
        self._lock = FileLock(lock if state else inside(self.folder, lock), thread_local=False)
        try:
            self._lock.acquire(blocking=False)
            self._state, self._done = _opened(file)
        except Timeout as exc:
            raise InvalidInputError(f"another process watches with {file}: give each its own state file") from exc
        except (OSError, ValueError) as exc:
            self._lock.release()
            raise InvalidInputError(f"{file} cannot be used as the state of a watch: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Path]:
        """Yields paths of complete files that `done` has not recorded, until the watch is closed."""
        waiting: dict[_File, float] = {}
        given = set(self._done)
        with self._recording:
            self._given.clear()  # files of an earlier iteration may not have been processed
        due = 0.0
        for changed in self._changes():
            now = time.monotonic()
            if changed is None or perf_counter() >= due:
                spent = thread_time()
                found = set(self._look(self._find()))
                due = perf_counter() + (thread_time() - spent) / _MAX_SCAN_SHARE
            else:
                looked_at = [*changed, *(self.folder / file.path for file in waiting)]
                found = set(self._look(path for path in looked_at if self._stays_inside(path)))
            waiting = {file: waiting.get(file, now) for file in found - given}
            for file in sorted(waiting, key=lambda file: file.changed):
                path = self.folder / file.path
                if now - waiting[file] >= self._settle and not self._closed.is_set() and self._opens(path):
                    given.add(file)
                    with self._recording:
                        files = self._given.setdefault(str(path), [])
                        if file not in files:
                            files.append(file)
                    yield path

    def done(self, source: str) -> None:
        """Records on disk that an image has been processed. Later watches with this state file skip the image.

        An image that cannot be opened at this moment is not recorded, so the next watch yields the image again.

        Args:
            source: A yielded path, as a string. A file that was replaced and yielded again needs a second call.
        """
        with self._recording:
            given = self._given.pop(source, [])
            if given[1:]:
                self._given[source] = given[1:]
            if given and self._opens(Path(source)):
                self._write(_line(given[0]))
                self._done.add(given[0])

    def close(self) -> None:
        """Ends the iteration and releases the state file."""
        self._closed.set()
        if not self._state.closed:
            self._state.close()
            self._lock.release()

    def _write(self, line: bytes) -> None:
        """Appends a line, durably. The first line is written atomically, because it identifies a state file."""
        if self._state.seek(0, os.SEEK_END):
            self._state.write(line)
            self._state.flush()
            os.fsync(self._state.fileno())
            return
        self._state.close()
        try:
            write_whole(self._file, line)
        finally:
            self._state = open_to_append(self._file)

    def _look(self, paths: Iterable[Path]) -> Iterator[_File]:
        for path in paths:
            with suppress(OSError):  # the file has just been removed
                status = path.stat()
                yield _File(str(path.relative_to(self.folder)), status.st_size, status.st_mtime_ns)

    def _find(self, folder: Path | None = None) -> list[Path]:
        return find_images(
            folder or self.folder, root=self.folder, on_error=self._leave_out, on_outside=self._leave_link_out
        )

    def _changes(self) -> Iterator[list[Path] | None]:
        """Yields the images that may have changed: after each change, or after `poll` seconds.

        The first list is empty. Yields ``None`` instead of a list if the operating system cannot report changes,
        because there are too many folders or the file system does not support that.
        """
        yield []
        moment = max(1, round(1000 * self._poll))
        changes = watch(
            self.folder,
            watch_filter=None,
            stop_event=self._closed,
            debounce=4 * min(moment, 50),
            step=min(moment, 50),
            rust_timeout=moment,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        try:
            for changed in changes:
                yield [path for _, name in changed for path in self._images_at(Path(name))]
        except (OSError, RuntimeError) as error:
            _log.info("changes in %s are not reported (%s): the whole folder is scanned each time", self.folder, error)
        while not self._closed.wait(self._poll):
            yield None

    def _images_at(self, changed: Path) -> list[Path]:
        root = self.folder.absolute()
        below = changed.relative_to(root) if changed.is_relative_to(root) else Path(".elsewhere")
        if any(part.startswith(".") for part in below.parts):
            return []
        path = self.folder / below
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder may not be entered
            return self._find(path)
        return [path] if path.suffix.lower() in SUFFIXES else []

    def _leave_out(self, error: OSError) -> None:
        if Path(error.filename) == self.folder:
            unlisted(error)
        if not isinstance(error, FileNotFoundError):  # else the folder has just been removed
            self._log_unread(error)

    def _stays_inside(self, path: Path) -> bool:
        """Returns whether a path stays in the folder. Any part of the path may have become a symbolic link."""
        try:
            inside(self.folder, path, otherwise=INSTEAD_OF_A_LINK)  # worded as by `find_images`, so logged once
        except InvalidInputError as error:
            self._leave_link_out(error)
            return False
        return True

    def _leave_link_out(self, error: InvalidInputError) -> None:
        self._log(str(error))

    def _opens(self, path: Path) -> bool:
        try:
            if path.is_file():  # opening a pipe may block
                open_regular(path).close()
        except OSError as error:
            self._log_unread(error)
            return False
        return True

    def _log_unread(self, error: OSError) -> None:
        self._log(f"{error.filename!r} cannot be read: {error.strerror}; it is looked at again")

    def _log(self, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning("%s", message)


def _opened(file: Path) -> tuple[BinaryIO, set[_File]]:
    """Opens a state file for appending, and returns the file and its records.

    Removes an incomplete last line, which a killed process has left. Raises ValueError for a file that is not a state
    file, and leaves that file unchanged.
    """
    with ExitStack() as unusable:
        state = unusable.enter_context(open_to_append(file))
        *lines, last = state.read().split(b"\n")
        done = {_checked(line) for line in lines}
        if last:
            try:
                done.add(_checked(last))
                state.write(b"\n")
                state.flush()
            except ValueError:
                if not (lines and last.startswith(b"[")):
                    raise
                state.truncate(sum(len(line) + 1 for line in lines))
        unusable.pop_all()
    return state, done


def _checked(line: bytes) -> _File:
    with suppress(OverflowError, RecursionError, TypeError, ValueError):
        path, size, changed = json.loads(line)
        file = _File(str(path), int(size), int(changed))
        if _line(file) == line + b"\n":
            return file
    raise ValueError(f"each line must be [path, size, time], as a watch writes it, got {line[:40]!r}. Use another file")


def _line(file: _File) -> bytes:
    return json.dumps(file).encode() + b"\n"
