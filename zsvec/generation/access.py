"""Access to the service: its address, its key, and whether requests may be made at all.

The key comes from the environment alone, and is taken out of every text that comes back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import httpx

from zsvec.errors import GenerationError
from zsvec.settings.trust import is_private

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
SWITCH_VARIABLE = "ZSVEC_ALLOW_REQUESTS"

ALLOW_REQUESTS = os.environ.get(SWITCH_VARIABLE, "").strip().lower() not in ("0", "false", "no", "off")
"""Whether requests may leave this machine. Tests turn it off."""

_DEFAULT_URL = "https://api.openai.com/v1"
MAX_TEXT_CHARS = 4000
"""Of a text in an answer that goes into an error or a record, such as a message or a revised prompt."""

_MAX_HOST_CHARS = 253  # the longest name that DNS can look up
_SHORTEST_KEY = 8  # a shorter key keeps nobody out, and may be a word of an answer


@dataclass(frozen=True, slots=True)
class Key:
    """The key of the service; no message shows it.

    Attributes:
        value: What is sent.
    """

    value: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Key:
        """The key in ``OPENAI_API_KEY``.

        Raises:
            GenerationError: There is none, or it cannot be sent.
        """
        value = os.environ.get(KEY_VARIABLE, "").strip()
        if not value:
            raise GenerationError(
                f"there is no key for the service that describes and draws: set {KEY_VARIABLE} in the environment "
                "(to anything, if your own service needs none)"
            )
        if not (value.isascii() and value.isprintable()):  # errors of the packages underneath would quote it
            raise GenerationError(f"the value of {KEY_VARIABLE} is no key: it has characters that cannot be sent")
        return cls(value)

    def scrubbed(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self.value, "***") if len(self.value) >= _SHORTEST_KEY else text

    def quoted(self, text: str) -> str:
        """Returns a text of an answer without the key, of at most `MAX_TEXT_CHARS` characters."""
        text = self.scrubbed(text).encode(errors="replace").decode()  # no lone surrogate can be written to a file
        return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1]}…"


def base_url(configured: str | None, key: Key, *, allow_http: bool) -> str:
    """The address of the service: as configured, that of ``OPENAI_BASE_URL``, or OpenAI's own.

    Args:
        configured: By the settings.
        key: What is sent there.
        allow_http: Whether others on the way may read it.

    Raises:
        GenerationError: No request can be made to it, or others could read the key.
    """
    url = configured or os.environ.get(URL_VARIABLE, "").strip() or _DEFAULT_URL
    if host_of(url) is None:
        raise GenerationError(
            key.scrubbed(
                f"{url!r} is not the address of a service: correct generation.base_url or {URL_VARIABLE}, "
                "which begins with http:// or https://"
            )
        )
    if not (allow_http or is_private(url)):
        raise GenerationError(
            key.scrubbed(
                f"others on the way to {url!r} could read {KEY_VARIABLE}: use https://, or set generation.allow_http "
                "where the network is private"
            )
        )
    # A name or a password before an @ would be sent in the place of the key, and be in the logs of every request.
    address = httpx.URL(url)
    return str(address.copy_with(userinfo=b"")) if address.userinfo else url


def host_of(url: str) -> str | None:
    """The host of an address, read as it is when a request is made; ``None`` if no request can be made to it."""
    try:
        address = httpx.URL(url)
        host = address.host
        address.raw_host.decode("ascii").encode("idna")  # as the resolver does: no label may be empty or too long
    except (httpx.InvalidURL, UnicodeError):
        return None
    return host if address.scheme in ("http", "https") and 0 < len(host) <= _MAX_HOST_CHARS else None


def check_allowed(url: str) -> None:
    """Refuse requests beyond this machine where they are turned off.

    Raises:
        GenerationError: They are.
    """
    host = host_of(url)
    if not ALLOW_REQUESTS and host not in ("127.0.0.1", "localhost", "::1"):
        raise GenerationError(f"requests to {host} are forbidden here by {SWITCH_VARIABLE} in the environment")
