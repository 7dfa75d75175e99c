"""The images that appear in a folder: each is yielded once, even if files change or processes are killed."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Lock
from time import perf_counter, thread_time
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from filelock import FileLock, Timeout
from watchfiles import watch

from zsvec.errors import InvalidInputError
from zsvec.inputs.categories import checked_path
from zsvec.inputs.encoded import SUFFIXES
from zsvec.inputs.files import inside, open_regular, open_to_append, write_whole
from zsvec.inputs.folders import find_images, unlisted

_log = logging.getLogger(__name__)
_SHARE = 0.05  # of a core that looks at the whole folder take at most, where the system says what changes
# The beginning of a line, as a kill leaves it. A state whose last line has another form is refused, and stays as it is.
_TORN = re.compile(rb'(\[("([^"\\]|\\.)*(\\|"(,( (\d+(,( \d*)?)?)?)?)?)?)?)?')


class _File(NamedTuple):
    """One state of a file: a file that is replaced or changed is another one.

    Attributes:
        path: Path relative to the folder.
        size: Bytes.
        changed: Nanoseconds since 1970 of the last change.
    """

    path: str
    size: int
    changed: int


class Watch:
    """The images that appear in a folder, each once, in the order in which they are complete.

    A file is complete when it has not changed for `settle` seconds, and can be opened; a file that is replaced later is
    a new one. What cannot be opened, or listed, is looked at again, and named in the log. Links that lead out of the
    folder are left out, and named in the log.
    `done` writes to a state file that an image has been processed, so that a later watch goes on from there:

    ```python
    with Watch("incoming/") as watch:
        for prediction in clf.classify_stream(watch):
            print(prediction)
            watch.done(prediction.source)
    ```

    Args:
        folder: Folder to watch, with its sub-folders; hidden files are left out.
        state: File of the images that are done; by default ``.zsvec-watch.jsonl`` in the folder.
        settle: Seconds without a change after which a file is complete.
        poll: Seconds between two looks at the folder. One of very many files is looked at as a whole less often: the
            system says what changes in it. Where it does not, as for what other machines write, that takes longer.

    Raises:
        InvalidInputError: The folder or the state file cannot be used, or another watch uses this state file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, state: Path | None = None, settle: float = 1.0, poll: float = 0.5
    ) -> None:
        self.folder = checked_path("folder", folder)
        self._settle = settle
        self._poll = poll
        self._closed = Event()
        self._given: dict[str, list[_File]] = {}
        self._giving = Lock()
        self._writing = Lock()
        self._logged: set[str] = set()
        self._find()
        self._file = file = state or inside(self.folder, self.folder / ".zsvec-watch.jsonl")
        lock = file.with_name(f"{file.name}.lock")
        # Any thread may close it.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Path]:
        """Paths of complete files that are not done, until the watch is closed."""
        waiting: dict[_File, float] = {}
        given = set(self._done)
        with self._giving:
            self._given.clear()  # by an iteration that has ended, and that may have lost some on their way
        changes = self._changes()
        changed: list[Path] | None = []
        due = 0.0
        while not self._closed.is_set():
            now = time.monotonic()
            if changed is None or perf_counter() >= due:
                spent = thread_time()
                found = set(self._look(self._find()))
                due = perf_counter() + (thread_time() - spent) / _SHARE
            else:
                looked_at = [*changed, *(self.folder / file.path for file in waiting)]
                found = set(self._look(path for path in looked_at if self._stays_inside(path)))
            waiting = {file: waiting.get(file, now) for file in found - given}
            for file in sorted(waiting, key=lambda file: file.changed):
                path = self.folder / file.path
                if now - waiting[file] >= self._settle and not self._closed.is_set() and self._opens(path):
                    given.add(file)
                    with self._giving:
                        files = self._given.setdefault(str(path), [])
                        if file not in files:
                            files.append(file)
                    yield path
            changed = next(changes)

    def done(self, source: str) -> None:
        """Record on disk that an image has been processed: no watch with this state file gives it again.

        What cannot be opened at the moment is not recorded: the next watch gives it again.

        Args:
            source: The path that was given. A file that was replaced and given again is recorded by a second call.
        """
        with self._giving:
            given = self._given.pop(source, [])
            if given[1:]:
                self._given[source] = given[1:]
        for file in given[:1] if self._opens(Path(source)) else ():
            with self._writing:
                self._write(_line(file))
            self._done.add(file)

    def close(self) -> None:
        """End the iteration and release the state file."""
        self._closed.set()
        if not self._state.closed:
            self._state.close()
            self._lock.release()

    def _write(self, line: bytes) -> None:
        """Appends a line, durably. The first one is written whole or not at all, because a state is known by it."""
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
            try:
                status = path.stat()
            except OSError:  # the file has just been removed
                continue
            yield _File(str(path.relative_to(self.folder)), status.st_size, status.st_mtime_ns)

    def _find(self, folder: Path | None = None) -> list[Path]:
        return find_images(
            folder or self.folder, root=self.folder, on_error=self._leave_out, on_outside=self._leave_link_out
        )

    def _changes(self) -> Iterator[list[Path] | None]:
        """Waits for a change, or `poll` seconds, and yields the images that may have changed.

        Yields ``None`` where the system does not say what changes: there are too many folders, or its file system is
        none that does. It never says what other machines write.
        """
        moment = max(1, round(1000 * self._poll))
        told = watch(
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
            for changed in told:
                yield [path for _, name in changed for path in self._images_at(Path(name))]
        except (OSError, RuntimeError) as error:
            _log.info("what changes in %s is not told (%s): all of it is looked at again and again", self.folder, error)
        while True:
            self._closed.wait(self._poll)
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
        """Leave out a sub-folder that cannot be listed now."""
        if Path(error.filename) == self.folder:
            unlisted(error)
        if not isinstance(error, FileNotFoundError):  # it has just been removed
            self._log_unread(error)

    def _stays_inside(self, path: Path) -> bool:
        """Returns whether a path leads out of the folder by none of its parts, which may have become links."""
        try:
            inside(self.folder, path)
        except InvalidInputError as error:
            self._leave_link_out(error)
            return False
        return True

    def _leave_link_out(self, error: InvalidInputError) -> None:
        """Says once which link leads out of the folder."""
        self._log(str(error))

    def _opens(self, path: Path) -> bool:
        try:
            if path.is_file():  # to open a pipe may take for ever
                open_regular(path).close()
        except OSError as error:
            self._log_unread(error)
            return False
        return True

    def _log_unread(self, error: OSError) -> None:
        self._log(f"{error.filename!r} cannot be read: {error.strerror}; it is looked at again")

    def _log(self, message: str) -> None:
        """Warns once."""
        if message not in self._logged:
            self._logged.add(message)
            _log.warning("%s", message)


def _opened(file: Path) -> tuple[BinaryIO, set[_File]]:
    """Opens a state to append lines, and returns the files in it. Removes a last line that a kill has cut short.

    Raises:
        OSError: It cannot be read and written.
        ValueError: A line is of no state. The file stays as it is.
    """
    with ExitStack() as unusable:
        state = unusable.enter_context(open_to_append(file))
        *lines, last = state.read().split(b"\n")
        done = {_checked(line) for line in lines}
        if lines and _TORN.fullmatch(last):
            state.truncate(sum(len(line) + 1 for line in lines))
        elif last:
            done.add(_checked(last))
            state.write(b"\n")
            state.flush()
        unusable.pop_all()
    return state, done


def _checked(line: bytes) -> _File:
    """Returns the file in a line without its end; ValueError unless the line is as a watch writes it."""
    with suppress(OverflowError, RecursionError, TypeError, ValueError):
        if _line(file := _file(line)) == line + b"\n":
            return file
    raise ValueError(f"a line must be as a watch writes it, got {line[:40]!r}. Give another file")


def _line(file: _File) -> bytes:
    return json.dumps(file).encode() + b"\n"


def _file(line: bytes) -> _File:
    path, size, changed = json.loads(line)
    return _File(str(path), int(size), int(changed))
