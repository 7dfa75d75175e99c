"""Deadlines that hold for a whole answer.

A timeout of an HTTP client begins anew with every byte that arrives, and the system may look up a name for as long as
it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

_T = TypeVar("_T")


class LateError(Exception):
    """There was no whole answer by the deadline."""


def in_time(
    act: Callable[[], _T], seconds: float, *, when_late: Callable[[Future[_T]], None] = lambda future: None
) -> _T:
    """Returns or raises what a function does, unless the function takes too long.

    Args:
        act: Runs in a thread of its own, with the context variables of the caller. After the deadline, nothing waits
            for that thread.
        seconds: Until the deadline.
        when_late: Is called at the deadline with the future outcome of the thread, such as to shut down the socket that
            the thread waits for.

    Raises:
        LateError: The function took too long.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            future.set_exception(exc)

    threading.Thread(target=copy_context().run, args=(run,), name="zsvec-in-time", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # at the last moment; or the error is the function's own
            return future.result()
        when_late(future)
        raise LateError(f"timed out: no whole answer within {seconds:.3g} s") from None
