"""The images that appear in a folder, each once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Lock
from types import TracebackType

from filelock import FileLock, Timeout

from zsvec.errors import InvalidInputError
from zsvec.inputs.images import find_images

_Seen = tuple[str, int, int]  # path relative to the folder, bytes, nanoseconds since 1970 of the last change


class Watch:
    """The images that appear in a folder, each once, in the order in which they are complete.

    A file is complete when it has not changed for a while; one that is replaced later is a new one. What has
    been dealt with is told by `done` and written to a file, so that a later watch goes on where this one ended:

    ```python
    with Watch("incoming/") as watch:
        for prediction in clf.classify_stream(watch):
            print(prediction)
            watch.done(prediction.source)
    ```

    Args:
        folder: With its sub-folders; hidden files are left out.
        state: File that says what has been dealt with; by default ``.zsvec-watch.jsonl`` in the folder.
        settle: Seconds without a change after which a file is complete.
        poll: Seconds between two looks at the folder.

    Raises:
        InvalidInputError: The folder or the file cannot be used, or another process watches with this file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, state: Path | None = None, settle: float = 1.0, poll: float = 0.5
    ) -> None:
        self.folder = Path(folder)
        self._settle = settle
        self._poll = poll
        self._closed = Event()
        self._given: dict[str, list[_Seen]] = {}
        self._giving = Lock()
        find_images(self.folder)
        file = state or self.folder / ".zsvec-watch.jsonl"
        self._lock = FileLock(f"{file}.lock")
        try:
            self._lock.acquire(blocking=False)
            content = file.read_bytes() if file.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line short
            self._done = {_seen(line) for line in whole.splitlines()}
            self._state = file.open("r+b" if file.exists() else "w+b")
            self._state.truncate(len(whole))
            self._state.seek(0, os.SEEK_END)
        except Timeout as exc:
            raise InvalidInputError(f"another process watches with {file}: give each its own state file") from exc
        except (OSError, ValueError, TypeError) as exc:
            self._lock.release()
            raise InvalidInputError(f"{file} cannot be used as the state of a watch: {exc}") from exc

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Path]:
        """Paths, as they are complete, until it is closed."""
        waiting: dict[_Seen, float] = {}
        given = {seen for of in self._given.values() for seen in of} | self._done
        while not self._closed.is_set():
            now = time.monotonic()
            waiting = {seen: waiting.get(seen, now) for seen in self._look() if seen not in given}
            for seen in sorted(waiting, key=lambda seen: seen[2]):
                if now - waiting[seen] >= self._settle and not self._closed.is_set():
                    given.add(seen)
                    path = self.folder / seen[0]
                    with self._giving:
                        self._given.setdefault(str(path), []).append(seen)
                    yield path
            self._closed.wait(self._poll)

    def done(self, source: str) -> None:
        """Remember that an image has been dealt with; it is not given again, whatever happens from now on.

        Args:
            source: Its path, as it was given; once for each time that it was.
        """
        with self._giving:
            given = self._given.pop(source, [])
            if given[1:]:  # it was replaced meanwhile, and given again
                self._given[source] = given[1:]
        for seen in given[:1]:
            self._state.write(json.dumps(seen).encode() + b"\n")
            self._done.add(seen)
        self._state.flush()
        os.fsync(self._state.fileno())

    def close(self) -> None:
        """End the iteration, and let go of the state file."""
        self._closed.set()
        if not self._state.closed:
            self._state.close()
            self._lock.release()

    def _look(self) -> Iterator[_Seen]:
        for path in self._find():
            try:
                status = path.stat()
            except OSError:  # it has just been taken away
                continue
            yield str(path.relative_to(self.folder)), status.st_size, status.st_mtime_ns

    def _find(self) -> list[Path]:
        try:
            return find_images(self.folder)
        except (InvalidInputError, OSError) as exc:
            if not isinstance(exc.__cause__ or exc, FileNotFoundError):
                raise
        # A sub-folder was taken away while it was looked at: the next look will tell. Or the folder itself was.
        return [] if self.folder.is_dir() else find_images(self.folder)


def _seen(line: bytes) -> _Seen:
    path, size, changed = json.loads(line)
    return str(path), int(size), int(changed)
