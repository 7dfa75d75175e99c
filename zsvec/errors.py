"""Every error that zsvec raises.

```
ZSVecError
├── InvalidInputError          a value that the caller gave cannot be used
│   └── CategoryNotFoundError  no such category in the store
├── ImageError                 one image cannot be read
├── MissingExtraError          an optional package is not installed
├── GenerationError            a service that describes or draws cannot do what was asked
│   └── GenerationUnavailableError  it cannot be reached, or is too slow or too busy
├── EncoderError               an encoder broke its contract
│   └── WeightsUnavailableError    its weights cannot be loaded here
└── StoreError                 the store cannot do what was asked
    ├── LargeAnswerError       a server's answer has more bytes than its bound
    ├── StoreUnavailableError  away, slow, full, read-only, or refusing the key
    ├── StoreLockedError       an embedded store that another process has open
    ├── EncoderMismatchError   its vectors come from other encoders
    └── ConflictError          another writer changed the category first
```

Each message says what happened, with which value, and what to do next. Errors of the libraries
underneath are mapped where they are called and kept as `__cause__`. No message has a password of a URL.
"""

from __future__ import annotations

import re
import reprlib

# A name and a password before an @.
_USER_INFO = re.compile(
    r"""(?<=://)[^\s/?#]*@"""  # of a URL: up to the last @ before its path
    r"""|(?<=://)[^\s/?#:@\[]*:(?!\d*[/?#,])\S*@"""  # with a / in it, which a port would not have before it
    r"""|(?<![^\s'",])[^\s'"/:,]+:(?!/)\S+@(?=[\w.-]+:\d)"""  # of a host that lacks its scheme
)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 100  # characters


def without_password(text: str) -> str:
    """A text whose URLs do not say who logs in, and by which password.

    A password may have apostrophes and quotes. A URL must have it encoded where it has a space, ``/``, ``?`` or ``#``.
    If it is not, it is left out nevertheless, but for three kinds that cannot be told from a host and its path: with
    a space, without a name and a colon before it, or with nothing but digits, or an ``@``, before its first ``/``.
    """
    return _USER_INFO.sub("***@", text)


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
    """A value that the caller gave cannot be used."""


class CategoryNotFoundError(InvalidInputError):
    """The store holds no category of this name.

    Attributes:
        name: The name.
    """

    name = ""


class ImageError(ZSVecError):
    """An image cannot be read: missing, empty, truncated, too large, or no image at all."""


class MissingExtraError(ZSVecError):
    """An optional package is needed and not installed."""


class GenerationError(ZSVecError):
    """A service that describes categories or draws references cannot do what was asked.

    Attributes:
        generated: The `zsvec.generation.facet.Generated` of the run that this error ended: what had arrived by
            then, and is stored.
    """

    generated: object = None


class GenerationUnavailableError(GenerationError):
    """The service cannot be reached, answers too late, or is too busy, until the deadline or for over two minutes."""


class EncoderError(ZSVecError):
    """An encoder returned vectors that break its contract."""


class WeightsUnavailableError(EncoderError):
    """The weights of an encoder can be loaded neither from disk nor from a hub."""


class StoreError(ZSVecError):
    """The store cannot do what was asked."""


class LargeAnswerError(StoreError):
    """An answer of a server has more bytes than its bound."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached, answers too late, has no room left, or refuses access."""


class StoreLockedError(StoreError):
    """An embedded store is already open."""


class EncoderMismatchError(StoreError):
    """The vectors of the store come from other encoders than those in use."""


class ConflictError(StoreError):
    """Another writer changed the category first, again and again."""
