"""Files in folders that zsvec did not make: read without waiting, written without following links.

A folder from elsewhere (a clone, an archive, a shared disk) may hold a named pipe, which blocks its reader for good, or
a symbolic link, which leads a writer to any file of the user. `inside` of `zsvec.trust` checks the folders of a path.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of these three
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Opens a regular file to be read.

    Args:
        path: Of the file.
        follow_links: Whether the last part of the path may be a symbolic link.

    Raises:
        OSError: It cannot be opened, or is a folder, a named pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | _BINARY | _NO_WAIT | (0 if follow_links else _NO_FOLLOW))
    return os.fdopen(_checked(descriptor, path), "rb")


def read_regular(path: Path, *, follow_links: bool = True) -> bytes:
    """Returns the content of a regular file; raises as `open_regular`."""
    with open_regular(path, follow_links=follow_links) as file:
        return file.read()


def open_to_append(path: Path) -> BinaryIO:
    """Opens a regular file to be read and appended to; makes it if it is missing. No link is followed.

    Raises:
        OSError: It cannot be opened or made, or is a link, a named pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY | _NO_FOLLOW | _NO_WAIT, 0o666)
    return os.fdopen(_checked(descriptor, path), "r+b")


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Writes a new file beside a path, which takes its place once the block ends without an error.

    A link or any file of that name is replaced, never written to. The file survives a loss of power once its folder
    was synchronised.

    Args:
        path: Of the file.
        mode: Permissions of the new file, less the umask.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(f".zsvec-{uuid.uuid4().hex}.new")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | _NO_FOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Writes a file, whole or not at all; arguments and errors as `replacing`."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def _checked(descriptor: int, path: Path) -> int:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))
