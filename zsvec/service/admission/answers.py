"""Backpressure for answers: large answers go out in parts, and unread large answers have a budget.

A server buffers each piece of an answer whole, and waits for the client only before the next piece. Parts bound that
buffer. `zsvec.service.server` disconnects clients that do not take a part in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsvec.service.admission.work import Limits

ABORT = "abort"
"""Name in the ``state`` of a request of the function that ends its connection at once."""
PART_BYTES = 2**16
"""Bytes that are sent at once."""


@dataclass(eq=False, slots=True)
class _Pending:
    size: int
    abort: Callable[[], Any]


class Answers:
    """Sends large answers in parts. Beyond the budget, the connection of the oldest large answer is aborted.

    The newest answer is always sent: clients that do not read shut no other client out.

    Args:
        app: What answers.
        limits: Bytes of all answers.

    Attributes:
        held: Bytes of the large answers that are on their way.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._pending: dict[_Pending, None] = {}  # the oldest first
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        abort = scope.get("state", {}).get(ABORT, lambda: None)

        async def sending(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) > PART_BYTES:
                await self._send_parts(body, message.get("more_body", False), _Pending(len(body), abort), send)
            else:
                await send(message)

        await self._app(scope, receive, sending)

    async def _send_parts(self, body: bytes, more: bool, pending: _Pending, send: Send) -> None:
        self._hold(pending)
        try:
            for start in range(0, len(body), PART_BYTES):
                end = start + PART_BYTES
                part = {"type": "http.response.body", "body": body[start:end], "more_body": more or end < len(body)}
                await send(part)
                if pending not in self._pending:
                    return
        finally:
            self._release(pending)

    def _hold(self, pending: _Pending) -> None:
        while self._pending and self.held + pending.size > self._limits.sending:
            oldest = next(iter(self._pending))
            self._release(oldest)
            oldest.abort()
        self._pending[pending] = None
        self.held += pending.size

    def _release(self, pending: _Pending) -> None:
        if pending in self._pending:
            del self._pending[pending]
            self.held -= pending.size
