"""A service with OpenAI's interface: questions in, answers in a given form out; prompts in, images out.

Every answer is bounded: to `MAX_ANSWER_BYTES`, or `MAX_TEXT_ANSWER_BYTES` of the language model, and as a whole to the
seconds of ``generation.timeout``. The package `openai` repeats a request after a temporary failure, and waits for as
long as ``Retry-After`` says, up to two minutes; ``generation.deadline`` bounds the repetitions. The bodies of responses
are checked in `responses`. A `Declined` request is a result; every other failure is an error of zsvec.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import httpx2
import openai
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation.access import KEY_VARIABLE, URL_VARIABLE, Key, base_url, check_allowed, host_of
from zsvec.generation.prices import Usage
from zsvec.generation.prompts import Form, Question
from zsvec.generation.responses import Answer, Declined, Picture, UnusableError, read_answer, read_image
from zsvec.inputs.answers import AnswerError, hooks
from zsvec.inputs.deadline import LateError, in_time
from zsvec.inputs.sockets import Sockets
from zsvec.settings.settings import GenerationSettings

MOST_UNUSABLE = 3
"""Unusable responses in a row, each of them paid for, until a request is given up."""

MAX_IMAGE_BYTES = 4 * 4096 * 4096 + 2**20
"""Of an image: as many as 4096 x 4096 pixels with four channels take without compression, and the headers of a file."""

MAX_ANSWER_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 2**20
"""Of an answer of the service: an image in base64, and the text around it."""

MAX_TEXT_ANSWER_BYTES = 2**22
"""Of an answer of the language model, which has no image."""

_log = logging.getLogger(__name__)

_MAX_RETRIES = 10**6  # the deadline comes first
_MIN_WAIT_S = 0.1  # before a repetition, however soon a service asks for it
_LONG_WAIT_S = 5.0  # from which on a wait is logged
_TEMPORARY = (408, 409, 429)
_NO_CREDIT = "insufficient_quota"
_POLICY = ("content_policy", "moderation", "content_filter", "contentfilter", "safety")

_give_up_at: ContextVar[float] = ContextVar("give_up_at")  # of the request that is made, in `time.monotonic`

Outcome = TypeVar("Outcome", bound="Answer[Any] | Picture | Declined")


class Client:
    """Asks and draws. Safe to use from several threads.

    Args:
        settings: Of the service and its models.

    Raises:
        GenerationError: There is no key in the environment, or none that can be sent, or no address to send it to.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings
        self._key = Key.from_environment()
        self._http = _ServiceHttp(settings.timeout)
        self._openai = openai.OpenAI(
            api_key=self._key.value,
            base_url=base_url(settings.base_url, self._key, allow_http=settings.allow_http),
            max_retries=_MAX_RETRIES,
            http_client=self._http,
            default_headers={"Connection": "close"},  # a late request ends with its connection, and ends no other
        )
        self._url = str(self._openai.base_url)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._openai.close()

    def stop(self) -> None:
        """Repeat nothing from now on: calls that wait for their next attempt end with an error."""
        self._http.stopping.set()

    def ask(self, question: Question[Form], idempotency_key: str) -> Answer[Form] | Declined:
        """Ask the language model.

        Args:
            question: What to ask.
            idempotency_key: The same for the same request at each attempt, also in a later run. Services that honour
                ``Idempotency-Key`` bill once.

        Raises:
            GenerationError: The service refuses the key or the model, or does not understand the request.
            GenerationUnavailableError: It cannot be reached, or is too slow or too busy.
        """

        def request(headers: dict[str, str]) -> Any:
            return self._openai.chat.completions.with_raw_response.create(
                model=self._settings.language_model,
                messages=[
                    {"role": "system", "content": question.instructions},
                    {"role": "user", "content": json.dumps(question.data, ensure_ascii=False)},
                ],
                response_format={
                    "type": "json_schema",
                    "json_schema": {
                        "name": question.step,
                        "schema": question.form.model_json_schema(),
                        "strict": True,
                    },
                },
                extra_headers=headers,
            )

        def read(body: str, request_id: str) -> Answer[Form] | Declined:
            return read_answer(body, request_id, question.form, self._key)

        return self._until_usable(request, read, idempotency_key)

    def draw(self, prompt: str, idempotency_key: str) -> Picture | Declined:
        """Draw one image.

        Args:
            prompt: What to draw.
            idempotency_key: As `ask`.

        Raises:
            GenerationError: As `ask`.
        """
        settings = self._settings
        options: dict[str, Any] = {"quality": settings.image_quality} if settings.image_quality else {}
        if settings.image_model.startswith("dall-e"):
            options["response_format"] = "b64_json"  # other models know nothing else, and refuse the word

        def request(headers: dict[str, str]) -> Any:
            return self._openai.images.with_raw_response.generate(
                model=settings.image_model,
                prompt=prompt,
                n=1,
                size=settings.image_size,
                extra_headers=headers,
                **options,
            )

        def read(body: str, request_id: str) -> Picture | Declined:
            return read_image(body, request_id, self._key, self._downloaded)

        return self._until_usable(request, read, idempotency_key)

    def _until_usable(
        self, request: Callable[[dict[str, str]], Any], read: Callable[[str, str], Outcome], idempotency_key: str
    ) -> Outcome | Declined:
        """Makes a request until its response can be used, at most `MOST_UNUSABLE` times.

        Args:
            request: Makes the request with more headers, and returns the raw response of `openai`.
            read: Makes an outcome of the body of the response and the id of the request.
            idempotency_key: Of the first request.

        Returns:
            The outcome, with the tokens of all requests.
        """
        check_allowed(self._url)
        spent, problem = Usage(), ""
        for number in range(MOST_UNUSABLE):
            if number and self._http.stopping.is_set():
                break
            # With the same key, a service may answer with the same unusable response.
            key = f"{idempotency_key}-{number}" if number else idempotency_key
            _give_up_at.set(time.monotonic() + self._settings.deadline)
            try:
                response = request({"Idempotency-Key": key})
                outcome: Outcome | Declined = read(response.text, response.headers.get("x-request-id", ""))
            except openai.OpenAIError as exc:
                outcome = self._declined(exc)
            except UnusableError as exc:
                spent += exc.usage
                problem = str(exc)
                continue
            return outcome if outcome.usage is None else replace(outcome, usage=spent + outcome.usage)
        return Declined("unusable", f"none of {MOST_UNUSABLE} responses could be used: {problem}", spent)

    def _declined(self, exc: openai.OpenAIError) -> Declined:
        """Returns why the service declines a request, if the error says so; raises an error of zsvec otherwise.

        No error has the original as its cause, which may quote the key.
        """
        if isinstance(exc.__cause__, AnswerError):
            raise GenerationError(
                self._key.quoted(f"{self._url}: {exc.__cause__}")
                + f"; set generation.base_url or {URL_VARIABLE} to a service with OpenAI's interface"
            ) from None
        if isinstance(exc, openai.APIConnectionError):
            raise self._unavailable(str(exc)) from None
        if not isinstance(exc, openai.APIStatusError):
            raise GenerationError(self._key.quoted(f"{self._url}: the request cannot be made: {exc}")) from None
        status = exc.status_code
        message = self._key.quoted(exc.message)
        if status in (400, 403, 422) and any(word in f"{exc.code or ''} {exc.type or ''}".lower() for word in _POLICY):
            return Declined("policy", message)
        if exc.code != _NO_CREDIT and (status in (408, 409, 429) or status >= 500):
            raise self._unavailable(f"HTTP {status}: {message}") from None
        raise GenerationError(
            self._key.scrubbed(f"{self._url} (HTTP {status}): {self._advice(exc, message)}")
        ) from None

    def _advice(self, exc: openai.APIStatusError, message: str) -> str:
        """What is wrong, and what to do about it."""
        if exc.code == _NO_CREDIT:
            return "the account is out of credit: add some, and run it again"
        if exc.status_code < 400:
            where = self._key.quoted(exc.response.headers.get("location", "somewhere else"))
            return f"it redirects to {where}, where the key is not sent: set generation.base_url if it should be"
        if exc.status_code == 401:
            return f"it refuses the key in {KEY_VARIABLE}: set one that it knows"
        if exc.status_code == 403:
            return f"it does not let the key in {KEY_VARIABLE} do this: {message}"
        if exc.status_code == 404:
            return (
                f"there is no such model or address ({message}); generation.language_model is "
                f"{self._settings.language_model!r}, generation.image_model {self._settings.image_model!r}"
            )
        return f"it does not take the request: {message}; check the models, the size and the quality in the settings"

    def _unavailable(self, problem: str) -> GenerationUnavailableError:
        return GenerationUnavailableError(
            self._key.quoted(f"{self._url} is not available: {problem}")
            + "; what is done is kept: run it again later, or raise generation.timeout and generation.deadline"
        )

    def _downloaded(self, url: str) -> bytes:
        """Download an image from the address that the service gave, without the key; empty if it is not there."""
        host = host_of(url)
        if host is None:
            place = self._key.scrubbed(url)[:200]
            raise GenerationError(f"{self._url}: the image is at {place!r}, which is no address")
        check_allowed(url)
        retrying = Retrying(
            retry=retry_if_exception_type(httpx2.HTTPError),
            wait=wait_random_exponential(multiplier=0.5, max=8),
            stop=stop_before_delay(self._settings.deadline) | stop_when_event_set(self._http.stopping),
            sleep=self._http.pause,
            reraise=True,
        )
        try:
            with _BoundedHttp(lambda path: MAX_IMAGE_BYTES, self._settings.timeout) as http:
                return retrying(_image_at, http, url)
        except AnswerError as exc:
            raise GenerationError(
                self._key.quoted(f"{self._url}: the image at {host} cannot be read: {exc}")
                + "; choose another generation.image_size or generation.image_model"
            ) from None
        except httpx2.HTTPError as exc:
            raise self._unavailable(f"the image cannot be downloaded from {host}: {exc}") from None


class _BoundedHttp(openai.DefaultHttpxClient):
    """Bounds answers in bytes, and in seconds from looking up the host until the last byte.

    Args:
        most: From the path of a request to the most bytes of its answer.
        seconds: For a whole answer.
    """

    def __init__(self, most: Callable[[str], int], seconds: float) -> None:
        # A redirection would take the key to another place.
        reading: Any = hooks(most, lambda request: None)
        super().__init__(follow_redirects=False, timeout=seconds, event_hooks=reading, headers={"Connection": "close"})
        self._seconds = seconds

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Returns the answer, read whole.

        Raises:
            httpx2.HTTPError: There is none, or not in time.
            AnswerError: It is too large, or cannot be unpacked.
        """
        sockets = Sockets()
        sockets.watch(request)
        act = partial(super().send, request, **options)
        try:
            return in_time(act, self._seconds, when_late=lambda _: sockets.shut_down())
        except LateError as exc:
            raise httpx2.ReadTimeout(str(exc), request=request) from exc


class _ServiceHttp(_BoundedHttp):
    """Tells `openai` when to repeat no request: after the deadline, after `stopping`, or without credit.

    Args:
        seconds: For a whole answer.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(_answer_bytes, seconds)
        self.stopping = threading.Event()

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """As `_BoundedHttp`. An error of openai is not followed by a repetition, unlike one of httpx2."""
        if request.headers.get("x-stainless-retry-count") != "0" and self.stopping.wait(_MIN_WAIT_S):
            raise openai.APIConnectionError(message="the run has ended", request=request)
        try:
            response = super().send(request, **options)
        except AnswerError as exc:
            raise openai.OpenAIError(str(exc)) from exc
        except httpx2.RequestError as exc:
            if self._is_last():
                raise openai.APIConnectionError(message=f"{type(exc).__name__}: {exc}", request=request) from exc
            raise
        if response.is_error:
            response.headers["x-should-retry"] = "true" if self._may_repeat(response) else "false"
        return response

    def _may_repeat(self, response: httpx2.Response) -> bool:
        """Whether a response is followed by a repetition; waits for as long as it asks, where `openai` would sleep."""
        if not (response.status_code in _TEMPORARY or response.status_code >= 500) or _NO_CREDIT in response.text:
            return False
        seconds = 0.0
        with suppress(ValueError):  # a date counts as none
            seconds = float(response.headers.pop("retry-after", "0"))
        response.headers["retry-after-ms"] = "1" if seconds > 0 else ""  # else its own pause, of 8 s at most
        left = _give_up_at.get() - time.monotonic()
        if not 0 <= seconds <= left:
            return False
        if seconds >= _LONG_WAIT_S:
            _log.warning("%s answers %d: trying again in %.0f s", response.url.host, response.status_code, seconds)
        return not self.stopping.wait(seconds)

    def pause(self, seconds: float) -> None:
        """Waits; raises ReadError once the run has ended."""
        if self.stopping.wait(seconds):
            raise httpx2.ReadError("the run has ended")

    def _is_last(self) -> bool:
        return self.stopping.is_set() or time.monotonic() >= _give_up_at.get()


def _answer_bytes(path: str) -> int:
    return MAX_TEXT_ANSWER_BYTES if path.endswith("/chat/completions") else MAX_ANSWER_BYTES


def _image_at(http: _BoundedHttp, url: str) -> bytes:
    response = http.get(url)
    if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
        return b""  # nor will it be there later
    response.raise_for_status()
    return response.content
