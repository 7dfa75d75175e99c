"""Answers over HTTP, read whole within a bound.

An HTTP client reads as many bytes as a server sends, and decompresses them to as many as they become. It decodes
text by any codec that a ``charset`` names; punycode takes minutes for a few MB. The hooks of this module ask for
answers as they are, stop reading at a bound, and have text decoded as UTF-8. They fit `httpx` and `httpx2`, which
replaces it in newer versions of `openai`.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # by the first bytes
_ENCODINGS = ("gzip", "deflate")


class AnswerError(Exception):
    """An answer cannot be read within its bound."""


class AnswerTooLargeError(AnswerError):
    """An answer has more bytes than its bound."""


def hooks(most: Callable[[str], int], watch: Callable[[Any], None]) -> Mapping[str, list[Callable[..., Any]]]:
    """Returns ``event_hooks`` of a client, which read each answer whole before the client sees it.

    The client raises `AnswerError` in the place of an answer that is too large. The head of an answer is bounded by
    `httpcore`, to 100 KiB.

    Args:
        most: From the path of a request to the most bytes of its answer, compressed or not.
        watch: Is called with each request, as `zsvec.inputs.sockets.Sockets.watch`.
    """
    return {"request": [_ask_for_identity, watch], "response": [partial(_read_whole, most)]}


def _ask_for_identity(request: Any) -> None:
    request.headers["accept-encoding"] = "identity"


def _read_whole(most: Callable[[str], int], response: Any) -> None:
    bound = most(response.request.url.path)
    announced = response.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > bound:
        raise _too_large(bound)
    unpack = _unpacker(response.headers.get("content-encoding", "identity").strip().lower())
    body = bytearray()  # grows by what arrives: a list of small parts would take many times as much memory
    received = 0
    for part in response.stream:
        received += len(part)
        body += unpack(part, bound - len(body) + 1)
        if max(received, len(body)) > bound:
            del body, part  # the traceback of the error keeps this frame
            raise _too_large(bound)
    response.stream.close()
    response.headers.pop("content-encoding", None)
    package = sys.modules[type(response).__module__.partition(".")[0]]  # httpx or httpx2
    response.stream = package.ByteStream(bytes(body))
    response.encoding = "utf-8"  # never the charset of the header


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """Returns a function of some bytes and the most that it may make of them."""
    if encoding in ("identity", ""):
        return lambda part, most: part
    if encoding not in _ENCODINGS:
        raise AnswerError(f"the answer is compressed as {encoding[:40]!r}, and was asked for as it is")
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)

    def unpack(part: bytes, most: int) -> bytes:
        if unpacker.eof:
            raise AnswerError("the compressed answer goes on after its end")
        try:
            return unpacker.decompress(part, most)
        except zlib.error as exc:
            raise AnswerError(f"the compressed answer cannot be read: {exc}") from exc

    return unpack


def _too_large(bound: int) -> AnswerTooLargeError:
    return AnswerTooLargeError(f"the answer has more than {bound:,} bytes")
