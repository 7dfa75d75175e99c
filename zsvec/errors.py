"""Every error that zsvec raises.

```
ZSVecError
├── InvalidInputError          an argument is unusable
│   └── CategoryNotFoundError  no such category in the store
├── ImageError                 one image is unreadable
├── MissingExtraError          an optional package is not installed
├── GenerationError            a service that describes or draws refuses a request
│   └── GenerationUnavailableError  the service is unreachable, too slow or too busy
├── EncoderError               an encoder broke its contract
│   └── WeightsUnavailableError    the weights of an encoder cannot be loaded here
└── StoreError                 the store refuses a request
    ├── LargeAnswerError       a server's answer has more bytes than its bound
    ├── StoreUnavailableError  away, slow, full, read-only, or refusing the key
    ├── StoreLockedError       an embedded store is open in another process
    ├── EncoderMismatchError   the stored vectors come from other encoders
    └── ConflictError          the state of a category does not allow the change
```

Each message names the problem, the value, and the fix. Errors of libraries are mapped at the call and kept as
`__cause__`. No message has a password of a URL.
"""

from __future__ import annotations

import re
import reprlib

CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""Control characters of a terminal or page, line breaks, and marks of the writing direction, which let one text look
like another; for a character class of a regular expression of Python or ECMA 262."""
SURROGATES = r"\ud800-\udfff"
"""Code points that valid Unicode text does not have; for a character class."""

_ESCAPED = re.compile(f"[{CONTROLS}{SURROGATES}]")
# A user name and a password before an @.
_USER_INFO = re.compile(
    r"""(?<=://)[^\s/?#]*@"""  # of a URL: up to the last @ before its path
    r"""|(?<=://)[^\s/?#:@\[]*:(?!\d*[/?#,])\S*@"""  # with a / in it, which a port would not have before it
    r"""|(?<![^\s'",])[^\s'"/:,]+:(?!/)\S+@(?=[\w.-]+:\d)"""  # of a host that lacks its scheme
)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 100  # characters


def without_password(text: str) -> str:
    """Removes user names and passwords from the URLs of a text.

    A password may have apostrophes and quotes. A space, ``/``, ``?`` or ``#`` in a password must be percent-encoded in
    a URL. An unencoded password is removed as well, except for three kinds that look like a host and a path: with a
    space, without a user name and a colon before the password, or with only digits, or an ``@``, before the first
    ``/``.
    """
    return _USER_INFO.sub("***@", text)


def harmless(text: str, *, but: str = "") -> str:
    """Returns text with control characters and bidirectional controls escaped, except those in `but`."""
    return _ESCAPED.sub(lambda found: found[0] if found[0] in but else repr(found[0])[1:-1], text)


def shown(value: object) -> str:
    """Returns a short representation of any value, for a message."""
    try:
        return _SHORT.repr(value)
    except Exception:  # noqa: BLE001 - an int with too many digits for Python, or an object that raises anything
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
        name: The name.
    """

    name = ""


class ImageError(ZSVecError):
    """An image is unreadable: missing, empty, truncated, too large, or no image at all."""


class MissingExtraError(ZSVecError):
    """An optional package is needed and not installed."""


class GenerationError(ZSVecError):
    """A service that describes categories or draws references refuses a request.

    Attributes:
        generated: The `zsvec.generation.facet.Generated` of the run that this error ended, with the images that had
            arrived and are stored.
    """

    generated: object = None


class GenerationUnavailableError(GenerationError):
    """The service is unreachable, too slow or too busy, until the deadline."""


class EncoderError(ZSVecError):
    """An encoder returned vectors that break its contract."""


class WeightsUnavailableError(EncoderError):
    """The weights of an encoder can be loaded neither from disk nor from a hub."""


class StoreError(ZSVecError):
    """The store refuses a request."""


class LargeAnswerError(StoreError):
    """An answer of a server has more bytes than its bound."""


class StoreUnavailableError(StoreError):
    """The store is unreachable, too slow or full, or refuses access."""


class StoreLockedError(StoreError):
    """An embedded store is already open."""


class EncoderMismatchError(StoreError):
    """The vectors of the store come from other encoders than those in use."""


class ConflictError(StoreError):
    """The state of a category does not allow the change.

    Other writers changed the category first at every attempt, or the category would have no reference.
    """
