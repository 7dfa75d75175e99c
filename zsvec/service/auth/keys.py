"""Who may ask the service, and what: keys, each with a name and a right."""

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
"""Variable of the environment that has the keys."""

_SHORTEST = 16  # characters of a key
_LONGEST_FILE = 100  # bytes that are read of a file with a digest
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_SECRET = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # what a header can have, without the comma
_HOW = f"{VARIABLE} has keys as NAME:RIGHT:KEY with commas between them, such as ann:write:…,camera:read:…"


@dataclass(frozen=True, slots=True)
class Key:
    """A key that somebody has. The key itself is not in it, so that no message and no log can have it.

    Attributes:
        name: Whose it is; what it changes says so (``by``).
        right: ``read``: to classify and to look; ``write``: also to change.
        digest: SHA-256 of the key, in hexadecimal.
    """

    name: str
    right: Right
    digest: str = field(repr=False)


class Keys:
    """The keys that there are.

    Args:
        keys: Any number. Without one nobody is asked for a key. A name may have several, so that one can take the
            place of another.

    Raises:
        InvalidInputError: Two are the same key, so that nobody could say whose it is.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)
        owners: dict[str, str] = {}
        for key in self._keys:
            if key.digest in owners:
                raise InvalidInputError(
                    f"{owners[key.digest]!r} and {key.name!r} have the same key: give each a key of its own"
                )
            owners[key.digest] = key.name

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, given: str) -> Key | None:
        """The key that was given; ``None`` if there is none such. Takes the same time wherever they differ."""
        digest = _digest(given)
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Keys:
        """The keys of ``ZSVEC_SERVE_KEYS``.

        Raises:
            InvalidInputError: It cannot be read; the message names the entry, and no key.
        """
        entries = [entry.strip() for entry in variables.get(VARIABLE, "").split(",")]
        return cls(_key(number, entry) for number, entry in enumerate(entries, 1) if entry)


def _key(number: int, entry: str) -> Key:
    name, _, rest = entry.partition(":")
    right, _, secret = rest.partition(":")
    if not _NAME.fullmatch(name) or right not in ("read", "write"):
        raise InvalidInputError(f"entry {number} of {VARIABLE} cannot be read. {_HOW}; RIGHT is read or write")
    if len(secret) < _SHORTEST or not _SECRET.fullmatch(secret):
        raise InvalidInputError(
            f"the key of entry {number} of {VARIABLE} must have {_SHORTEST} characters or more, all of them visible "
            "ASCII: make one with `openssl rand -hex 32`"
        )
    return Key(name, "write" if right == "write" else "read", _digest(secret))


def first_key(folder: Path | None = None) -> tuple[Keys, str | None]:
    """The key that is made at the first start of this user, where the environment has none.

    Only its digest is kept, in a file that nobody else can read: it can be shown once.

    Args:
        folder: Where the file is; by default the user's folder for such.

    Returns:
        The keys, and the new key itself; ``None`` if it was made before.

    Raises:
        InvalidInputError: The file cannot be read or written, or others may write to its folder.
    """
    file = key_file(folder)
    secret = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_ours(file.parent):
            raise PermissionError(f"others may write to {file.parent}")
        made = write_new(file, _digest(secret).encode(), mode=0o600)
        with open_regular(file, follow_links=False) as opened:
            digest = opened.read(_LONGEST_FILE).decode("latin-1").strip()
    except OSError as exc:
        raise InvalidInputError(f"no key can be kept in {file}: {exc}; set {VARIABLE} instead. {_HOW}") from exc
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InvalidInputError(f"{file} has no digest of a key: delete it, and start again")
    return Keys([Key("owner", "write", digest)]), secret if made else None


def key_file(folder: Path | None = None) -> Path:
    """Where the digest of the key of `first_key` is."""
    return (folder or Path(platformdirs.user_state_dir("zsvec"))) / "serve.key"


def _digest(secret: str) -> str:
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()
