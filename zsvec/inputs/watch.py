"""The images that appear in a folder: each is yielded once, even if files change or processes are killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import NamedTuple, Self

from filelock import FileLock, Timeout

from zsvec.errors import InvalidInputError
from zsvec.inputs.folders import find_images, inside


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

    A file is complete when it has not changed for `settle` seconds; a file that is replaced later is a new one.
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
        poll: Seconds between two looks at the folder.

    Raises:
        InvalidInputError: The folder or the state file cannot be used, or another watch uses this state file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, state: Path | None = None, settle: float = 1.0, poll: float = 0.5
    ) -> None:
        self.folder = Path(folder)
        self._settle = settle
        self._poll = poll
        self._closed = Event()
        self._given: dict[str, list[_File]] = {}
        self._giving = Lock()
        find_images(self.folder)
        file = state or inside(self.folder, self.folder / ".zsvec-watch.jsonl")
        lock = file.with_name(f"{file.name}.lock")
        self._lock = FileLock(lock if state else inside(self.folder, lock))
        try:
            self._lock.acquire(blocking=False)
            content = file.read_bytes() if file.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line short
            self._done = {_file(line) for line in whole.splitlines()}
            self._state = file.open("r+b" if file.exists() else "w+b")
            self._state.truncate(len(whole))
            self._state.seek(0, os.SEEK_END)
        except Timeout as exc:
            raise InvalidInputError(f"another process watches with {file}: give each its own state file") from exc
        except (OSError, ValueError, TypeError) as exc:
            self._lock.release()
            raise InvalidInputError(f"{file} cannot be used as the state of a watch: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Path]:
        """Paths of complete files, until the watch is closed."""
        waiting: dict[_File, float] = {}
        given = {file for files in self._given.values() for file in files} | self._done
        while not self._closed.is_set():
            now = time.monotonic()
            waiting = {file: waiting.get(file, now) for file in self._look() if file not in given}
            for file in sorted(waiting, key=lambda file: file.changed):
                if now - waiting[file] >= self._settle and not self._closed.is_set():
                    given.add(file)
                    path = self.folder / file.path
                    with self._giving:
                        self._given.setdefault(str(path), []).append(file)
                    yield path
            self._closed.wait(self._poll)

    def done(self, source: str) -> None:
        """Record on disk that an image has been processed: no watch with this state file gives it again.

        Args:
            source: The path that was given. A file that was replaced and given again is recorded by a second call.
        """
        with self._giving:
            given = self._given.pop(source, [])
            if given[1:]:
                self._given[source] = given[1:]
        for file in given[:1]:
            self._state.write(json.dumps(file).encode() + b"\n")
            self._done.add(file)
        self._state.flush()
        os.fsync(self._state.fileno())

    def close(self) -> None:
        """End the iteration and release the state file."""
        self._closed.set()
        if not self._state.closed:
            self._state.close()
            self._lock.release()

    def _look(self) -> Iterator[_File]:
        for path in self._find():
            try:
                status = path.stat()
            except OSError:  # the file has just been removed
                continue
            yield _File(str(path.relative_to(self.folder)), status.st_size, status.st_mtime_ns)

    def _find(self) -> list[Path]:
        try:
            return find_images(self.folder)
        except (InvalidInputError, OSError) as exc:
            if not isinstance(exc.__cause__ or exc, FileNotFoundError):
                raise
        # A sub-folder was removed while it was listed: the next look lists the rest. If the folder is gone, raise.
        return [] if self.folder.is_dir() else find_images(self.folder)


def _file(line: bytes) -> _File:
    path, size, changed = json.loads(line)
    return _File(str(path), int(size), int(changed))
