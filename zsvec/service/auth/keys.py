"""API keys: names, rights, and the environment variable or file that stores the keys."""

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
"""HTTP methods that change nothing."""
FOR_WRITERS = ("/live",)
"""Paths that need the right ``write``, because they show images of other clients."""

FOR_LABEL_STUDIO = ("/health", "/setup", "/versions", "/predict", "/webhook")
"""Paths that take basic authentication as well, with the name of a key as the user and the key as the password."""

_CLASSIFYING = (
    *("/v1/classify", "/v1/classify/regions", "/v1/classify/track", "/classify", "/classify/combined"),
    *("/setup", "/predict"),
)
_MIN_LENGTH = 16  # characters of a key
_MAX_FILE_BYTES = 100  # of the key file to read
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_SECRET = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # visible ASCII without the comma
_FORMAT = f"{VARIABLE} must be NAME:RIGHT:KEY entries with commas between them, such as ann:write:…,camera:read:…"


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, stored without the secret, so that no message or log can contain the secret.

    Attributes:
        name: Name of the key, recorded as the author of changes (``by``).
        right: ``read`` allows classification and viewing. ``write`` also allows changes and the page *Live*.
        digest: SHA-256 of the secret, in hexadecimal.
    """

    name: str
    right: Right
    digest: str = field(repr=False)

    def allows(self, method: str, path: str) -> bool:
        """Returns whether the right of this key allows a request.

        The right ``read`` allows safe methods, except at `FOR_WRITERS`, and allows POST only to classify. A new POST
        route therefore needs ``write``, unless `_CLASSIFYING` lists the route.
        """
        reads = method in SAFE_METHODS or (method == "POST" and path in _CLASSIFYING)
        return self.right == "write" or (reads and not path.startswith(FOR_WRITERS))


class Keys:
    """The API keys of a service. If there are none, clients need no key.

    Args:
        keys: Keys with different secrets. Several keys may have the same name, for rotation.

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
        """Returns the key with this secret, or ``None``. The comparison takes constant time."""
        digest = _digest(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Keys:
        """Reads the keys from ``ZSVEC_SERVE_KEYS``.

        Raises:
            InvalidInputError: An entry is invalid, or two keys have the same secret. The message contains no secret.
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
    """Returns the key of a service without ``ZSVEC_SERVE_KEYS``, and creates the key at the first start.

    The key belongs to this user. Only a digest of the secret is stored, in a file that only this user can read, so the
    secret can be shown only once.

    Args:
        folder: Folder of the key file. By default, the user's state folder for zsvec.

    Returns:
        The keys, and the secret. The secret is ``None`` if the key was created earlier.

    Raises:
        InvalidInputError: The file cannot be read or written, has no digest, or is in a folder that other users may
            write to.
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
    """Returns the path of the file that `first_key` writes."""
    return (folder or Path(platformdirs.user_state_dir("zsvec"))) / "serve.key"


def _digest(secret: str) -> str:
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()
