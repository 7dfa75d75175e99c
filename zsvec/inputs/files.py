"""Reads and writes files in untrusted folders: reads never block, and writes do not follow links.

A folder from an untrusted source (a clone, an archive, a shared disk) may contain a named pipe, which would block a
reader forever, or a symbolic or hard link, through which a writer would change any file of the user. `inside` checks
the parent folders of a path.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from zsvec.errors import InvalidInputError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not on Windows
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # not on Windows
_BINARY = getattr(os, "O_BINARY", 0)
_LEFTOVER_AGE_S = 3600


def open_regular(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """Opens a regular file for reading; if `follow_links` is false, a symbolic link raises OSError.

    Raises:
        OSError: The file cannot be opened, or is a folder, a named pipe, a socket or a device.
    """
    return os.fdopen(_regular(path, os.O_RDONLY | (0 if follow_links else _NO_FOLLOW)), "rb")


def read_regular(path: Path) -> bytes:
    """Returns the content of a regular file; raises the errors of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def open_to_append(path: Path) -> BinaryIO:
    """Opens or creates a regular file for reading and appending, without following a link.

    Raises:
        OSError: The file cannot be opened, has hard links, or is a link, a named pipe, a socket or a device.
    """
    descriptor = _regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_FOLLOW)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "hard links would change with this file; replace it by a copy", str(path))
    return os.fdopen(descriptor, "r+b")


def read_named(path: Path) -> bytes:
    """Returns the content of a regular file, or of a pipe that the shell has opened, such as `/dev/stdin`."""
    return path.read_bytes() if _is_of_shell(path) else read_regular(path)


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, durable: bool = True) -> Iterator[BinaryIO]:
    """Replaces a file atomically: yields a temporary file, which is moved to the path if the block succeeds.

    An existing link or file is replaced, never written to.

    Args:
        path: Path of the file.
        mode: Permissions of the new file, before the umask is applied.
        durable: Whether to sync the content to disk. The file survives a power loss once its folder is synced too
            (`sync`).
    """
    with _beside(path, mode) as (file, partial):
        yield file
        _finish(file, durable)
        partial.replace(path)


@contextmanager
def replacing_named(path: Path) -> Iterator[BinaryIO]:
    """Replaces a file like `replacing`, but writes directly into a pipe or device in `/dev`, such as `/dev/stdout`."""
    with path.open("wb") if _is_of_shell(path) else replacing(path) as file:
        yield file


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replaces a file atomically and syncs the content to disk; see `replacing`."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def write_new(path: Path, content: bytes, *, mode: int = 0o666) -> bool:
    """Creates a file atomically, unless a file or a link already exists at the path.

    Returns:
        Whether this call created the file. Among concurrent calls, only one returns True.
    """
    with _beside(path, mode) as (file, partial):
        file.write(content)
        _finish(file)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
    return True


def is_ours(folder: Path) -> bool:
    """Returns whether only the current user may write to a folder; on Windows, whether the folder exists."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def inside(folder: Path, path: Path, *, otherwise: str = "remove it, or copy the file into the folder") -> Path:
    """Returns a path unchanged if it lies in a folder after symbolic links are resolved.

    Args:
        folder: The folder.
        path: The path.
        otherwise: What to do about a path that leads out of the folder, for the error.

    Raises:
        InvalidInputError: The path leads out of the folder, by ``..`` or by a symbolic link, or cannot be resolved.
    """
    try:
        target = _target(path)
        if target.is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError) as exc:  # a NUL, or a link to itself
        raise InvalidInputError(f"{str(path)!r} cannot be a path in {folder}: {exc}; take another folder") from exc
    raise InvalidInputError(f"{str(path)!r} leads out of {folder}, to {target}: {otherwise}")


def _target(path: Path) -> Path:
    """Resolves a path. A link to itself raises RuntimeError before Python 3.13, and OSError from 3.13 on."""
    target = path.resolve()
    if os.path.islink(target):  # noqa: PTH114 - Path.is_symlink raises an error for a name that is too long
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


@contextmanager
def _beside(path: Path, mode: int) -> Iterator[tuple[BinaryIO, Path]]:
    """Yields a temporary file in the folder of a path, and deletes the file at the end unless it was moved."""
    if not path.name:  # as of Path(".")
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(f".zsvec-{uuid.uuid4().hex}.new")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | _NO_FOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file, partial
    finally:
        partial.unlink(missing_ok=True)


def _finish(file: BinaryIO, durable: bool = True) -> None:
    file.flush()
    if durable:
        os.fsync(file.fileno())
    file.close()


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files of `replacing` that killed processes have left in a folder.

    A file to which a process has written in the last hour stays, and so does one that cannot be deleted, such as a file
    of another user in a shared folder.
    """
    for path in folder.glob(".zsvec-*.new"):
        with suppress(OSError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > _LEFTOVER_AGE_S:
                path.unlink()


def sync(path: Path) -> None:
    """Syncs the content of a file or the entries of a folder to disk, so that they survive a power loss."""
    if path.is_dir() and os.name != "posix":  # Windows cannot open a folder
        return
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _is_of_shell(path: Path) -> bool:
    """Returns whether a path may be an open pipe from a shell, such as `/dev/fd/63` or `/dev/stdin`."""
    return path.parent.resolve() in (Path("/dev"), Path("/dev/fd").resolve())


def _regular(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | _BINARY | _NO_WAIT, 0o666)
    except OSError as exc:
        if exc.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from exc
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))
