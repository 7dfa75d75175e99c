"""Bodies of requests: each is bounded before it is read, all of them together as they come. Slow ones are refused."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsvec.service.admission.work import Limits
from zsvec.service.auth.guard import is_open
from zsvec.service.problems import Problem, answer

_OF_STRANGERS = 2**16  # bytes of a body at paths that are open to all
_SLOWEST = 4096  # bytes a second, from when the patience is over
_LINGERING = 5.0  # seconds for which the rest of a refused body is thrown away, so that its sender reads why
_LAST = {"Connection": "close"}


class Bodies:
    """Lets bodies in while there is room for them.

    Args:
        app: What gets the requests.
        limits: Bytes of one body, of all, and the seconds that its next part may take.

    Attributes:
        held: Bytes that have come of the bodies of all requests at work.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self.limits = limits
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, or answer why its body is not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = min(self.limits.bytes, _OF_STRANGERS) if is_open(scope["path"]) else self.limits.bytes
        body = _Body(self, receive, most)

        async def sending(message: Message) -> None:
            if body.refused and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                await body.throw_away()
                message = {"type": "http.response.body"}
            await send(message)

        try:
            body.check(_said(Headers(scope=scope)))
            await self._app(scope, body.receive, sending)
        except Problem as problem:
            await answer(problem)(scope, receive, sending)
        finally:
            self.held -= body.held


class _Body:
    """One body, and its share of what is held."""

    def __init__(self, bodies: Bodies, receive: Receive, most: int) -> None:
        self._bodies = bodies
        self._most = most
        self._receive = receive
        self._ended = False
        self._got, self._waited = 0, 0.0
        self.held = 0
        self.refused = False

    def check(self, size: int) -> None:
        """Raises a Problem if a body of so many bytes is too large."""
        if size > self._most:
            self.refused = True
            hint = "send fewer images at once, or smaller ones"
            raise Problem(413, f"the body has more than {self._most:,} bytes: {hint}", _LAST)

    def _hold(self, size: int) -> None:
        """Holds the bytes that have come. A stated length holds nothing: many clients could state one and send none."""
        self.check(size)
        more = size - self.held
        if self._bodies.held + more > self._bodies.limits.held:
            self.refused = True
            raise Problem(429, "too much is being sent at once: try again soon", _LAST)
        self.held += more
        self._bodies.held += more

    async def receive(self) -> Message:
        """The next part; raises a Problem if the body is too large, or too slow."""
        if self._ended:
            return await self._receive()
        patience = self._bodies.limits.patience
        left = patience + self._got / _SLOWEST - self._waited
        begun = time.monotonic()
        try:
            async with asyncio.timeout(min(patience, left)):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                408, f"the body stopped after {self._got:,} bytes, or is too slow: send it again", _LAST
            ) from None
        self._waited += time.monotonic() - begun
        self._got += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        self._hold(self._got)
        return message

    async def throw_away(self) -> None:
        """Read the rest for a while: a connection that is closed on unread bytes is reset, and the answer lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGERING):
                while (await self._receive()).get("more_body"):
                    pass


def _said(headers: Headers) -> int:
    """Bytes that a body says it has; 0 where it does not say."""
    length = headers.get("content-length", "")
    return int(length[:19]) if length.isdecimal() and "transfer-encoding" not in headers else 0
