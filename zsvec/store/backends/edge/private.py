"""A private copy of an embedded store. The process may read the folder of the store, but not write to it.

The engine writes to the files of a collection even to read it. So the collections are copied to a temporary folder,
which ends with the backend. The copy does not follow later commits.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from zsvec.errors import StoreError, StoreLockedError, StoreUnavailableError
from zsvec.inputs.files import open_regular
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.folder import check_room

_log = logging.getLogger(__name__)


class PrivateCopy(EdgeBackend):
    """A backend that reads a private copy of a folder, and refuses to write.

    Args:
        folder: Folder of the store.
        name: Name of the store in messages.

    Raises:
        StoreLockedError: Another process has the store open. It could change the files during the copy.
        StoreUnavailableError: A file cannot be read, or the disk of the temporary folder is too full.
    """

    def __init__(self, folder: Path, name: str) -> None:
        with ExitStack() as stack:
            copy = TemporaryDirectory(prefix="zsvec-")
            stack.callback(copy.cleanup)
            try:
                size = _copy(folder, Path(copy.name), name)
            except OSError as exc:
                raise StoreUnavailableError(
                    f"the store folder {name} cannot be copied, and may not be written: {exc}. Make the "
                    "files readable, or let the owner copy the store with `zsvec copy`"
                ) from exc
            self._cleanup = stack.pop_all()
        super().__init__(Path(copy.name), name)
        _log.warning(
            "%s may not be written: this process reads a private copy of %.1f MB, which does not follow later commits",
            name,
            size / 1e6,
        )

    @property
    def place(self) -> str:
        """Empty, since the copy ends with the process."""
        return ""

    def close(self) -> None:
        """Closes the copy, and deletes it."""
        super().close()
        self._cleanup.close()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StoreError(
            f"the store folder {self._name} may not be written by this process: change its permissions, or copy the "
            "store with `zsvec copy` and write to the copy"
        )

    create = remove = rewrite = upsert = set_payload = put = delete = drop = _refuse


def _copy(folder: Path, copy: Path, name: str) -> int:
    """Copies the collections of a store, and returns the number of bytes. Links are copied as links."""
    found = [path for path in folder.glob("*__*") if not path.name.startswith(".lock-")]
    with ExitStack() as stack:
        for lock in folder.glob(".lock-*__*"):
            file = stack.enter_context(open_regular(lock, follow_links=False))
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise StoreLockedError(
                    f"the embedded store {name} is open in another process, so it cannot be copied: close it there"
                ) from exc
        size = sum(path.lstat().st_size for one in found for path in (one, *one.rglob("*")))
        check_room(copy, size)
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, copy / path.name, symlinks=True, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(path, copy / path.name, follow_symlinks=False)
    for one in copy.rglob("*"):
        if one.is_dir() and not one.is_symlink():
            one.chmod(0o700)  # has the mode of its original
    return size
