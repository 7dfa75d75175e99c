"""API keys: their names, what each right allows, and the environment variable or file that holds the keys."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias

import platformdirs

from zsvec.errors import InvalidInputError
from zsvec.inputs.files import is_ours, open_regular, write_new

Right: TypeAlias = Literal["read", "write"]

VARIABLE = "ZSVEC_SERVE_KEYS"
"""Environment variable with the keys."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""
FOR_WRITERS = ("/live",)
"""Paths that need a key to write: they show images of other clients."""

_READING = ("/v1/classify", "/classify")  # by POST
_MIN_LENGTH = 16  # characters of a key
_MAX_FILE_BYTES = 100  # read of a file with a digest
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_SECRET = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # visible ASCII without the comma
_FORMAT = f"{VARIABLE} must be NAME:RIGHT:KEY entries with commas between them, such as ann:write:…,camera:read:…"


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret, which therefore appears in no message and no log.

    Attributes:
        name: Recorded as the author of changes (``by``).
        right: ``read``: classify and view; ``write``: also change.
        digest: SHA-256 of the secret, in hexadecimal.
    """

    name: str
    right: Right
    digest: str = field(repr=False)

    def allows(self, method: str, path: str) -> bool:
        """Returns whether a client with the key may send a request.

        A key to read allows safe methods and classification. A new route is therefore closed to it until the route is
        listed here.
        """
        reads = method in SAFE_METHODS or (method == "POST" and path in _READING)
        return self.right == "write" or (reads and not path.startswith(FOR_WRITERS))


class Keys:
    """The keys of a service; without any, clients need no key.

    Args:
        keys: Keys with different secrets. A name may have several, for rotation.

    Raises:
        InvalidInputError: Two keys have the same secret.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)
        names: dict[str, str] = {}
        for key in self._keys:
            if key.digest in names:
                raise InvalidInputError(f"keys must differ, got one key for {names[key.digest]!r} and {key.name!r}")
            names[key.digest] = key.name

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, secret: str) -> Key | None:
        """Returns the key with a secret, or ``None``, in constant time."""
        digest = _digest(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Keys:
        """Reads the keys of ``ZSVEC_SERVE_KEYS``.

        Raises:
            InvalidInputError: An entry is invalid; the message has its number but no secret.
        """
        entries = [entry.strip() for entry in variables.get(VARIABLE, "").split(",")]
        return cls(_key(number, entry) for number, entry in enumerate(entries, 1) if entry)


def _key(number: int, entry: str) -> Key:
    name, _, rest = entry.partition(":")
    right, _, secret = rest.partition(":")
    if not _NAME.fullmatch(name) or right not in ("read", "write"):
        raise InvalidInputError(f"entry {number} of {VARIABLE} cannot be read. {_FORMAT}; RIGHT is read or write")
    if len(secret) < _MIN_LENGTH or not _SECRET.fullmatch(secret):
        raise InvalidInputError(
            f"the key in entry {number} of {VARIABLE} must have at least {_MIN_LENGTH} characters, all visible ASCII: "
            "create one with `openssl rand -hex 32`"
        )
    return Key(name, "write" if right == "write" else "read", _digest(secret))


def first_key(folder: Path | None = None) -> tuple[Keys, str | None]:
    """Creates a key at the first start of this user, for a service without ``ZSVEC_SERVE_KEYS``.

    Only the digest is stored, in a file that only this user can read, so the secret can be shown once.

    Args:
        folder: Folder of the file; by default in the state folder of the user.

    Returns:
        The keys, and the new secret; ``None`` if the key was created before.

    Raises:
        InvalidInputError: The file cannot be read or written, or other users may write to its folder.
    """
    file = key_file(folder)
    secret = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_ours(file.parent):
            raise PermissionError(f"others may write to {file.parent}")
        made = write_new(file, _digest(secret).encode(), mode=0o600)
        with open_regular(file, follow_links=False) as opened:
            digest = opened.read(_MAX_FILE_BYTES).decode("latin-1").strip()
    except OSError as exc:
        raise InvalidInputError(f"no key can be kept in {file}: {exc}; set {VARIABLE} instead. {_FORMAT}") from exc
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InvalidInputError(f"{file} must have the digest of a key: delete the file, and start again")
    return Keys([Key("owner", "write", digest)]), secret if made else None


def key_file(folder: Path | None = None) -> Path:
    """Returns the path of the file of `first_key`."""
    return (folder or Path(platformdirs.user_state_dir("zsvec"))) / "serve.key"


def _digest(secret: str) -> str:
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()
