"""When a request is tried again: after a temporary failure, until the deadline, at growing intervals.

`failures` says which failures may pass. A service that says when to come back (``Retry-After``) is asked again then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from zsvec.errors import GenerationUnavailableError
from zsvec.generation.access import Key

_log = logging.getLogger(__name__)

_BACK_OFF = wait_random_exponential(multiplier=0.5, max=60)  # seconds
_LEAST_WAIT_S = 0.1  # a service that asks for less is asked again after `_BACK_OFF`
_LONG_WAIT = 5.0  # seconds; a longer one is logged

Result = TypeVar("Result")


class PassingError(Exception):
    """A temporary failure.

    Attributes:
        retry_after: Seconds to wait, if the service says so.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Retries:
    """Tries requests again. Safe to use from several threads.

    Args:
        url: Address of the service, for messages.
        deadline: Seconds from which a request that fails is not tried again.
        key: Taken out of errors.
    """

    def __init__(self, url: str, deadline: float, key: Key) -> None:
        self._url = url
        self._deadline = deadline
        self._key = key
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Retry nothing from now on: requests that wait for their next attempt end with an error."""
        self._stopping.set()

    def run(self, attempt: Callable[[], Result]) -> Result:
        """Call until no `PassingError` is raised.

        Raises:
            GenerationUnavailableError: The deadline has come, or `stop` was called.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(PassingError),
            wait=_wait,
            stop=stop_before_delay(self._deadline) | stop_when_event_set(self._stopping),
            before_sleep=_log_long_wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except PassingError as exc:
            raise GenerationUnavailableError(
                f"{self._url} did not do it within {self._deadline:g} s: {exc}; what is done is kept, "
                "run it again later, or raise generation.timeout and generation.deadline"
            ) from self._key.quotable(exc.__cause__)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise GenerationUnavailableError(f"{self._url} did not do it, and was not asked again: the run has ended")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until the time in a ``Retry-After`` header, which is a number of seconds or a date.

    ``None`` stands for no header, and for one that is neither.
    """
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the year, the hour or the time zone may be any number
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    wanted = error.retry_after if isinstance(error, PassingError) else None
    return _BACK_OFF(state) if wanted is None or wanted < _LEAST_WAIT_S else wanted


def _log_long_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if state.upcoming_sleep >= _LONG_WAIT:
        _log.warning("%s; trying again in %.0f s", error, state.upcoming_sleep)
