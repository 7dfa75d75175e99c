"""Bodies of requests: bounded before anything of them is read, each and all at once; what is too slow is let go."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from zsvec.service.problems import Problem, answer
from zsvec.service.work import Limits


class Bodies:
    """Lets bodies in while there is room for them.

    Args:
        app: What gets the requests.
        limits: Bytes of one body, of all, and the seconds that its next part may take.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, or answer why its body is not."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        size = _size(headers, self._limits.bytes)
        if not size:
            await self._app(scope, receive, send)
            return
        if size > self._limits.bytes:
            await answer(_too_large(self._limits.bytes))(scope, receive, send)
            return
        if self._held + size > self._limits.held:
            await answer(Problem(429, "too much is being sent at once: try again soon"))(scope, receive, send)
            return
        self._held += size
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self._held -= size

    def _bounded(self, receive: Receive) -> Receive:
        """Parts of a body as they come; raises a Problem for one that is too large, or too slow."""
        got, ended = 0, False

        async def part() -> MutableMapping[str, Any]:
            nonlocal got, ended
            if ended:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._limits.patience)
            except TimeoutError:
                raise Problem(408, f"nothing of the body came for {self._limits.patience:g} s", _LAST) from None
            got += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if got > self._limits.bytes:
                raise _too_large(self._limits.bytes)
            return message

        return part


_LAST = {"Connection": "close"}


def _size(headers: Headers, most: int) -> int:
    """Bytes that a body may take: what it says, or the most where it does not say."""
    if "transfer-encoding" in headers:
        return most
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else most


def _too_large(most: int) -> Problem:
    return Problem(413, f"the body has more than {most:,} bytes: send fewer images at once, or smaller ones", _LAST)
