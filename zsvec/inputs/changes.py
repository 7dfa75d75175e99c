"""Which images of a folder may have changed, as the system says it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Event

from watchfiles import Change, watch

from zsvec.inputs.encoded import SUFFIXES
from zsvec.inputs.folders import OnOutside, find_images

_log = logging.getLogger(__name__)


class Changes:
    """What changes in a folder and its sub-folders.

    Args:
        folder: The folder.
        poll: Seconds to wait for a change.
        stop: Ends the waiting.
        on_error: As in `zsvec.inputs.folders.find_images`.
        on_outside: As in `zsvec.inputs.folders.find_images`, for a whole sub-folder that changes.

    Attributes:
        are_told: Whether the system says what changes, as far as is known. It does not for what other machines write.
    """

    def __init__(
        self,
        folder: Path,
        poll: float,
        stop: Event,
        *,
        on_error: Callable[[OSError], object],
        on_outside: OnOutside,
    ) -> None:
        self.are_told = True
        self._folder = folder
        self._root = folder.absolute()
        self._poll = poll
        self._stop = stop
        self._on_error = on_error
        self._on_outside = on_outside
        self._told = self._tell()

    def wait(self) -> list[Path]:
        """Wait until something changes, or `poll` seconds, and give the images that may have changed."""
        told: set[tuple[Change, str]] = set()
        try:
            if self.are_told:
                told = next(self._told, told)
        except (OSError, RuntimeError) as error:  # there are too many folders, or it is no such file system
            _log.info(
                "what changes in %s is not told (%s): all of it is looked at again and again", self._folder, error
            )
            self.are_told = False
        if not self.are_told:
            self._stop.wait(self._poll)
        return [path for _, changed in told for path in self._images_at(Path(changed))]

    def _tell(self) -> Generator[set[tuple[Change, str]]]:
        moment = max(1, round(1000 * self._poll))
        return watch(
            self._folder,
            watch_filter=None,
            stop_event=self._stop,
            debounce=4 * min(moment, 50),
            step=min(moment, 50),
            rust_timeout=moment,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )

    def _images_at(self, changed: Path) -> list[Path]:
        inside = changed.relative_to(self._root) if changed.is_relative_to(self._root) else Path(".elsewhere")
        if any(part.startswith(".") for part in inside.parts):
            return []
        path = self._folder / inside
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder may not be entered
            return find_images(path, root=self._folder, on_error=self._on_error, on_outside=self._on_outside)
        return [path] if path.suffix.lower() in SUFFIXES else []
