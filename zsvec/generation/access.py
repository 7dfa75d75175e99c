"""Access to the service: address, API key, and permission to send requests.

The key comes from the environment only. A key of 8 or more characters is removed from every text of the service.
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

MAX_TEXT_CHARS = 4000
"""Maximum length of a text from the service in an error or a record, such as a message or a revised prompt."""

_DEFAULT_URL = "https://api.openai.com/v1"
_MAX_HOST_CHARS = 253  # the longest name in DNS
_MIN_KEY_CHARS = 8  # a shorter key protects nothing, and may be part of a word in an answer


@dataclass(frozen=True, slots=True)
class Key:
    """The API key of the service. The `repr` does not show the value.

    Attributes:
        value: The key in clear text.
    """

    value: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Key:
        """Returns the key in ``OPENAI_API_KEY``.

        Raises:
            GenerationError: The variable is not set, or its value cannot be sent in a header.
        """
        value = os.environ.get(KEY_VARIABLE, "").strip()
        if not value:
            raise GenerationError(
                f"there is no key for the service that describes and draws: set {KEY_VARIABLE} in the environment "
                "(to anything, if your own service needs none)"
            )
        if not (value.isascii() and value.isprintable()):  # else an error of the HTTP client quotes the key
            raise GenerationError(f"the value of {KEY_VARIABLE} is no key: it has characters that cannot be sent")
        return cls(value)

    def scrubbed(self, text: str) -> str:
        """Returns a text with ``***`` in place of the key. Keys shorter than `_MIN_KEY_CHARS` are not replaced."""
        return text.replace(self.value, "***") if len(self.value) >= _MIN_KEY_CHARS else text

    def quoted(self, text: str) -> str:
        """Returns a text after `scrubbed`, cut to `MAX_TEXT_CHARS` characters."""
        text = self.scrubbed(text).encode(errors="replace").decode()  # a lone surrogate cannot be written to a file
        return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1]}…"


def base_url(configured: str | None, key: Key, *, allow_http: bool) -> str:
    """Returns the address of the service: `configured`, else ``OPENAI_BASE_URL``, else the address of OpenAI.

    Args:
        configured: Address in the settings.
        key: API key, which is removed from error messages.
        allow_http: Whether the key may be sent to other machines in clear text.

    Raises:
        GenerationError: The address is invalid, or the key would be sent in clear text without `allow_http`.
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
    # A user name and password in the address would replace the key, and would be logged with every request.
    return str(httpx.URL(url).copy_with(userinfo=b""))


def host_of(url: str) -> str | None:
    """Returns the host that the HTTP client reads from an address; ``None`` if no request can use the address."""
    try:
        address = httpx.URL(url)
        host = address.host
        address.raw_host.decode("ascii").encode("idna")  # as the resolver does: refuses empty and long labels
    except (httpx.InvalidURL, UnicodeError):
        return None
    return host if address.scheme in ("http", "https") and 0 < len(host) <= _MAX_HOST_CHARS else None


def check_allowed(url: str) -> None:
    """Checks that a request may be sent to an address.

    Raises:
        GenerationError: The address is on another machine, and ``ZSVEC_ALLOW_REQUESTS`` is off.
    """
    host = host_of(url)
    if not ALLOW_REQUESTS and host not in ("127.0.0.1", "localhost", "::1"):
        raise GenerationError(f"requests to {host} are forbidden here by {SWITCH_VARIABLE} in the environment")
