"""Every error that zsvec raises.

```
ZSVecError
├── InvalidInputError          an argument is unusable
│   ├── CategoryNotFoundError  no such category in the store
│   └── ChangeIdNeededError    the change to undo needs its id
├── ImageError                 one image is unreadable
├── MissingExtraError          an optional package is not installed
├── GenerationError            a service that describes or draws refuses a request
│   └── GenerationUnavailableError  the service is unreachable, too slow or too busy
├── EncoderError               an encoder failed or broke its contract
│   └── WeightsUnavailableError    the weights of an encoder cannot be loaded here
└── StoreError                 the store refuses a request
    ├── LargeAnswerError       the response of a server is too large
    ├── StoreUnavailableError  the store is unreachable, slow, full or read-only, or refuses the key
    ├── StoreLockedError       an embedded store is already open
    ├── EncoderMismatchError   the stored vectors come from other encoders
    └── ConflictError          the state of a category does not allow the change
        ├── LastReferenceError     a category would have no reference
        └── VersionConflictError   a category does not have the expected version
```

Each message names the problem, the value, and the fix. An error of a library is raised as one of these classes, with
the original error as `__cause__`. Passwords of URLs are removed from messages.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""Control characters, line breaks, and marks of the writing direction, which can make one text look like another.
Written for a character class in a regular expression of Python or ECMA 262."""
SURROGATES = r"\ud800-\udfff"
"""Surrogates, which valid Unicode text does not contain. Written for a character class, as `CONTROLS`."""

_ESCAPED = re.compile(f"[{CONTROLS}{SURROGATES}]")
# A user name and a password before an @:
_USER_INFO = re.compile(
    r"""(?<=://)(?:(?!://)\S)*@(?=(?:[\w.-]+|\[[\da-fA-F:.]+\]):\d)"""  # in a URL, before a host and a port
    r"""|(?<=://)[^\s/?#]*@"""  # in a URL, up to the last @ before the path
    r"""|(?<=://)[^\s/?#:@\[]*:(?!\d+[/?#,])(?:(?!://)\S)*@"""  # in a URL, a password with a / after more than a port
    r"""|(?<![^\s'",])[^\s'"/:,]+:(?!/)\S+@(?=[\w.-]+:\d)"""  # before a host and a port, without a scheme
)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 100  # characters


def without_password(text: str) -> str:
    """Returns a text with ``***`` instead of user names and passwords in URLs.

    A password may contain apostrophes and quotes. Valid URLs percent-encode a space, ``/``, ``?`` or ``#`` in a
    password. A password with one of these characters unencoded is also removed, except in these cases:

    - The password contains a space.
    - No port follows the host, and no user name with a colon precedes the password.
    - No port follows the host, and the password has only digits, or an ``@``, before the first ``/``, ``?`` or ``#``.
    """
    return _USER_INFO.sub("***@", text)


def harmless(text: str, *, but: str = "") -> str:
    """Returns a text with `CONTROLS` and `SURROGATES` escaped, except the characters in `but`."""
    return _ESCAPED.sub(lambda found: found[0] if found[0] in but else repr(found[0])[1:-1], text)


def shown(value: object) -> str:
    """Returns a short representation of any value, for a message."""
    try:
        return _SHORT.repr(value)
    except Exception:  # noqa: BLE001 - an int may have too many digits, and other objects may raise anything
        return f"a value of type {type(value).__name__}"


class ZSVecError(Exception):
    """Root of all errors of zsvec."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_password(arg) if isinstance(arg, str) else arg for arg in args))


class InvalidInputError(ZSVecError):
    """An argument is unusable."""


class CategoryNotFoundError(InvalidInputError):
    """The store has no category of this name.

    Attributes:
        name: Name of the missing category.
    """

    name = ""


class ChangeIdNeededError(InvalidInputError):
    """An undo without an id found a last change that is not one's own, or that concerns many images.

    Attributes:
        change: The `zsvec.types.Change`. To undo it, give its id.
    """

    change: object = None


class ImageError(ZSVecError):
    """An image is unreadable: the file is missing, empty, truncated, too large, or not an image."""


class MissingExtraError(ZSVecError):
    """An optional package is needed and not installed."""


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Names the extra to install if an import in this block fails.

    Raises:
        MissingExtraError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f'{exc.name} is needed for {purpose}: pip install "zsvec[{extra}]"') from exc


class GenerationError(ZSVecError):
    """A service that describes categories or draws references refuses a request.

    Attributes:
        generated: A `zsvec.generation.facet.Generated`, the result of the run so far, with all images that arrived
            before the failure. ``None`` if no image arrived.
    """

    generated: object = None


class GenerationUnavailableError(GenerationError):
    """A service that describes or draws stayed unreachable, too slow or too busy until the deadline."""


class EncoderError(ZSVecError):
    """An encoder failed, or returned vectors that break its contract."""


class WeightsUnavailableError(EncoderError):
    """The weights of an encoder can be loaded neither from disk nor from a hub."""


class StoreError(ZSVecError):
    """The store refuses a request."""


class LargeAnswerError(StoreError):
    """The response of a server is too large."""


class StoreUnavailableError(StoreError):
    """The store is unreachable, too slow or full, or refuses access."""


class StoreLockedError(StoreError):
    """An embedded store is already open, in this or another process."""


class EncoderMismatchError(StoreError):
    """The encoders in use differ from the encoders that made the stored vectors."""


class ConflictError(StoreError):
    """The state of a category does not allow the change.

    Other writers changed the category before every attempt to commit, unless the error is of a subclass.
    """


class LastReferenceError(ConflictError):
    """The change would leave a category without a reference."""


class VersionConflictError(ConflictError):
    """A category does not have the version that the writer expected. Nothing was written."""
