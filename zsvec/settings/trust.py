"""Trust in settings files of the working directory, and the check for private addresses.

A ``zsvec.toml`` in the working directory may come from a clone, an archive or a shared folder. Such a file may change
harmless settings only. Every other setting is refused until the user trusts the file. A mark, which is a small file in
the user's configuration folder, records the trust. The name of the mark is a digest of path and content, so that a
changed or moved settings file has no mark.
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
from zsvec.inputs.files import inside, open_regular

# Settings that change only the predictions of this process. They take no memory, delete nothing, make no requests, and
# leave no trace in the store. Every other setting, including a future setting, needs trust.
HARMLESS = frozenset(
    {
        "device",
        "dtype",
        "fusion",
        "index_device",
        "index_dtype",
        "runtime",
        "temperatures",
        "unknown_above",
        "unknown_per_category",
        "weights",
    }
)

MAX_BYTES = 2**20
"""Maximum size of a settings file in bytes."""


def read_settings(file: Path) -> tuple[bytes, dict[str, Any]]:
    """Returns the content of a settings file, and the parsed TOML.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        ValueError: The content is not valid TOML, or is larger than `MAX_BYTES`.
    """
    with open_regular(file) as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        size = file.stat().st_size
        raise ValueError(f"{file} must have at most {MAX_BYTES:,} bytes, got {size:,}. Remove other content from it")
    try:
        return content, tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError(f"{file} has too many tables or lists within each other") from None


def require_trust(file: Path, content: bytes, values: Mapping[str, Any], marks: Path) -> None:
    """Refuses a file of the working directory that sets more than harmless settings, unless the user trusts the file.

    Args:
        file: The settings file.
        content: Content of the file.
        values: Settings in the file.
        marks: Folder of the user's marks of trust.

    Raises:
        InvalidInputError: The file needs trust, and the user has not trusted the file.
    """
    refused = needing_trust(file, values)
    if refused and not _mark(file, content, marks).exists():
        raise InvalidInputError(
            f"{_location(file)} sets {', '.join(refused)}, which only a file that you trust may: look at it, and run "
            "`zsvec trust` in its folder if it is yours, else delete it"
        )


def needing_trust(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in a file that are not harmless.

    A ``profile`` is harmless if given by name. A ``store`` is harmless if the path has no colon and is inside the
    folder of the file. Other settings are harmless only if `HARMLESS` contains the name.
    """
    folder = _location(file).parent
    return {
        name: value
        for name, value in values.items()
        if not (
            name in HARMLESS
            or (name == "store" and _is_within(value, folder))
            or (name == "profile" and not names_folder(str(value)))
        )
    }


def names_folder(profile: str) -> bool:
    """Returns whether a profile is the path of a folder, which contains a separator or begins with ``.`` or ``~``."""
    return profile.startswith((".", "~")) or any(separator in profile for separator in {"/", os.sep})


def trust(file: Path, marks: Path) -> dict[str, Any]:
    """Trusts the present content of a file, and returns the settings that need this trust.

    Raises:
        InvalidInputError: The file cannot be read or is not valid TOML, or the mark cannot be written.
    """
    content, values = _read(file)
    with _writable(marks):
        marks.mkdir(parents=True, exist_ok=True)
        _mark(file, content, marks).write_text(f"{_location(file)}\n", encoding="utf-8", errors="surrogateescape")
    return needing_trust(file, values)


def distrust(file: Path, marks: Path) -> None:
    """Withdraws the trust in the present content of a file. Raises the same errors as `trust`."""
    content, _ = _read(file)
    with _writable(marks):
        _mark(file, content, marks).unlink(missing_ok=True)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields pairs of dotted name and value from nested tables."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_private(url: str) -> bool:
    """Returns whether requests to a URL are encrypted (``https``) or stay on this machine."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" or parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:  # the host is another name, or the URL is invalid
        return False


def _read(file: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        return read_settings(file)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise InvalidInputError(
            f"{file.absolute()} cannot be trusted: {reason}. Run `zsvec trust` in the folder of a valid zsvec.toml"
        ) from exc


@contextmanager
def _writable(marks: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInputError(f"marks of trust cannot be kept in {marks}: {exc}; make that folder writable") from exc


def _location(file: Path) -> Path:
    """Returns the absolute path of a file or link. Links are kept, since paths in the file are relative to the link."""
    return file.parent.resolve() / file.name


def _mark(file: Path, content: bytes, marks: Path) -> Path:
    path = bytes(_location(file))
    return marks / hashlib.sha256(hashlib.sha256(path).digest() + content).hexdigest()


def _is_within(store: Any, folder: Path) -> bool:
    """Returns whether a store is in a folder, after links are resolved.

    A value that is not a string passes, since validation refuses it later. A store with a colon fails, since it may be
    the address of a server, or ``:memory:``.
    """
    if not isinstance(store, str):
        return True
    if ":" in store:
        return False
    try:
        inside(folder, folder / Path(store).expanduser())
    except (InvalidInputError, RuntimeError):  # the path leads outside, or `~user` is unknown
        return False
    return True
