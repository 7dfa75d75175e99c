"""Deadlines that hold, whatever drips.

The deadline of a gRPC call is one instant. A timeout of the REST client begins anew with every byte that arrives, and
a name is looked up for as long as the system likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

from qdrant_client.http.exceptions import ResponseHandlingException

_T = TypeVar("_T")


class LateError(ResponseHandlingException):
    """There was no whole answer by the deadline; a failure of the client as its own timeouts are."""


def in_time(
    act: Callable[[], _T], seconds: float, *, when_late: Callable[[Future[_T]], None] = lambda future: None
) -> _T:
    """What a function returns or raises, unless it takes too long.

    Args:
        act: Runs in a thread of its own, which nobody waits for any more after the deadline.
        seconds: Until the deadline.
        when_late: Is called at the deadline with what the thread will end with; it may end what that waits for.

    Raises:
        LateError: It took too long.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as exc:  # noqa: BLE001 - it is raised by who waits
            future.set_exception(exc)

    threading.Thread(target=copy_context().run, args=(run,), name="zsvec-in-time", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # at the last moment; or the error is the function's own
            return future.result()
        when_late(future)
        raise LateError(TimeoutError(f"no whole answer within {seconds:.3g} s")) from None
