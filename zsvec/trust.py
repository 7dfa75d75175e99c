"""Whom a user trusts: settings files of working directories, addresses that keys are sent to, paths in folders.

Anybody may have put a ``zsvec.toml`` into the working directory: with a clone, an archive, a shared folder. What it
says of places, keys, weights and services has no effect until the user has said that this file may. A mark says so, in
the user's configuration folder. It is named by the digest of path and content: a changed or moved file has none.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zsvec.errors import InvalidInputError

_DECIDING = {
    "store",
    "api_key",
    "allow_http",
    "ca_certificate",
    "profiles",
    "generation",
    "max_pixels",
    "image_memory",
    "inbox_size",
    "inbox_days",
}


def read_if_trusted(file: Path, marks: Path) -> dict[str, Any]:
    """The settings in a file of the working directory.

    Args:
        file: Anybody's.
        marks: Folder of the user's marks.

    Raises:
        InvalidInputError: It decides what only a trusted file may.
        OSError: It cannot be read.
        ValueError: It is no TOML.
    """
    content = file.read_bytes()
    values = tomllib.loads(content.decode())
    deciding = decisions(file, values)
    if deciding and not _mark(file, content, marks).exists():
        raise InvalidInputError(
            f"{file.resolve()} sets {', '.join(deciding)}, which only a file that you trust may: look at it, and run "
            "`zsvec trust` in its folder if it is yours, else delete it"
        )
    return values


def decisions(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a file's settings needs trust.

    They name a place beyond the file's folder, a key or where it goes, whose certificates are believed, weights, a
    service and what it costs, how much memory an image may take, what is deleted of the inbox, or that images of
    streams, or copies of references, are kept.
    """
    return {
        name: value
        for name, value in values.items()
        if (name in _DECIDING and not (name == "store" and _is_within(value, file.resolve().parent)))
        or (name == "profile" and names_folder(str(value)))
        or (name in ("keep_images", "keep") and value != "none")
    }


def names_folder(profile: str) -> bool:
    """Whether a profile is no name but the path of a folder: it has a separator, or begins with ``.`` or ``~``."""
    return profile.startswith((".", "~")) or any(separator in profile for separator in {"/", os.sep})


def trust(file: Path, marks: Path) -> dict[str, Any]:
    """Trust a file as it is now.

    Returns:
        What it decides.

    Raises:
        InvalidInputError: It cannot be read, or is no TOML, or the mark cannot be kept.
    """
    content, values = _read(file)
    with _writable(marks):
        marks.mkdir(parents=True, exist_ok=True)
        _mark(file, content, marks).write_text(f"{file.resolve()}\n", encoding="utf-8", errors="surrogateescape")
    return decisions(file, values)


def distrust(file: Path, marks: Path) -> None:
    """Trust a file no more.

    Raises:
        InvalidInputError: It cannot be read, or the mark cannot be taken away.
    """
    content, _ = _read(file)
    with _writable(marks):
        _mark(file, content, marks).unlink(missing_ok=True)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent to an address: it speaks TLS, or is on this machine."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" or parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name of another machine, or no address at all
        return False


def is_ours(folder: Path) -> bool:
    """Whether only this user can have written into a folder; on Windows, whether it is there."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def inside(folder: Path, path: Path) -> Path:
    """A path below a folder, as it is given; whoever made the folder does not decide which other files are written.

    Raises:
        InvalidInputError: It leads out of the folder, by ``..`` or by a symbolic link, or to nowhere.
    """
    try:
        target = path.resolve()
        if target.is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError) as exc:  # a NUL in it, or a link to itself
        raise InvalidInputError(f"{str(path)!r} cannot be a path in {folder}: {exc}; take another folder") from exc
    raise InvalidInputError(
        f"{str(path)!r} leads out of {folder}, to {target}: remove it, or take a folder that you trust"
    )


def _read(file: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        content = file.read_bytes()
        return content, tomllib.loads(content.decode())
    except (OSError, ValueError) as exc:
        raise InvalidInputError(f"{file.absolute()} cannot be trusted: {exc}") from exc


@contextmanager
def _writable(marks: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInputError(f"what you trust cannot be kept in {marks}: {exc}; make that folder writable") from exc


def _mark(file: Path, content: bytes, marks: Path) -> Path:
    path = bytes(file.resolve())
    return marks / hashlib.sha256(hashlib.sha256(path).digest() + content).hexdigest()


def _is_within(store: Any, folder: Path) -> bool:
    """Whether a store is a folder in this one, wherever links lead; what is no text is refused later."""
    if not isinstance(store, str):
        return True
    if "://" in store:
        return False
    try:
        inside(folder, folder / Path(store).expanduser())
    except (InvalidInputError, RuntimeError):  # it leads elsewhere, or to the home of an unknown user
        return False
    return True
