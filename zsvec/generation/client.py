"""Client of a service with OpenAI's interface: sends questions and image prompts, and checks the responses.

The size of a response is limited: to `MAX_TEXT_ANSWER_BYTES` from the language model, `MAX_ANSWER_BYTES` from the image
model, and `MAX_IMAGE_BYTES` for a downloaded image. The whole response must arrive within ``generation.timeout``. After
a temporary failure, a request is retried until ``generation.deadline``. The client waits as long as the ``Retry-After``
header says. Without this header, and for image downloads, the client uses exponential backoff.

This module parses the response bodies itself. The response classes of `openai` do not validate anything, and `parse` of
`openai` builds all objects of a response, even a million, before a check fails. Reasons, ids and revised prompts are
cut to `zsvec.generation.access.MAX_TEXT_CHARS`.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

import httpx2
import openai
from pydantic import BaseModel, FailFast, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation.access import KEY_VARIABLE, URL_VARIABLE, Key, base_url, check_allowed, host_of
from zsvec.generation.prices import Usage
from zsvec.generation.prompts import Form, Items, Question
from zsvec.inputs.answers import AnswerError, LateError, Sockets, hooks, in_time
from zsvec.settings.settings import GenerationSettings

MAX_UNUSABLE = 3
"""A request is given up after this number of unusable responses, each of which is billed."""

MAX_IMAGE_BYTES = 4 * 4096 * 4096 + 2**20
"""Maximum size of a downloaded image: 4096 x 4096 pixels with four uncompressed channels, and file headers."""

MAX_ANSWER_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 2**20
"""Maximum size of a response of the image model: an image in base64 and the JSON around the image."""

MAX_TEXT_ANSWER_BYTES = 2**22
"""Maximum size of a response of the language model."""

MAX_TOKENS = 10**12
"""Largest accepted count of input or output tokens. Counts in a response are clipped to 0 … `MAX_TOKENS`."""

_log = logging.getLogger(__name__)

_MIN_WAIT_S = 0.1  # minimum wait before a retry, even if Retry-After is shorter
_BACK_OFF = wait_random_exponential(multiplier=0.5, max=8, min=_MIN_WAIT_S)  # seconds
_LOGGED_WAIT_S = 5.0
_NO_CREDIT = "insufficient_quota"
_POLICY = ("content_policy", "moderation", "content_filter", "contentfilter", "safety")

T = TypeVar("T")
Outcome = TypeVar("Outcome", bound="Answer[Any] | Picture | Declined")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Form]):
    """An answer of the language model.

    Attributes:
        value: Parsed content.
        response: Id of the response.
        usage: Tokens of this response and of earlier unusable responses.
    """

    value: Form
    response: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the image model.

    Attributes:
        data: The encoded image.
        response: Id of the response.
        usage: Tokens of this response and of earlier unusable responses; ``None`` if the service does not count tokens.
        revised_prompt: Prompt that the service used instead of the requested one, if any.
        unusable: Number of earlier unusable responses, each of which is billed.
    """

    data: bytes
    response: str
    usage: Usage | None
    revised_prompt: str | None = None
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class Declined:
    """The outcome of a request that returned no answer or image.

    Attributes:
        code: ``refusal`` (the model refused), ``policy`` (the service refused), ``length`` (the answer was cut off) or
            ``unusable`` (no response had the requested form).
        reason: Message of the service or of the check.
        usage: Tokens of all responses, which are billed nevertheless.
        unusable: Number of unusable responses, each of which is billed.
    """

    code: str
    reason: str
    usage: Usage = field(default_factory=Usage)
    unusable: int = 0


class _UnusableError(Exception):
    """A response does not have the requested form. The tokens are billed."""

    def __init__(self, problem: str, usage: Usage | None = None) -> None:
        super().__init__(problem)
        self.usage = usage or Usage()


class Client:
    """Sends requests to the service. Thread-safe.

    Args:
        settings: Address and models of the service.

    Raises:
        GenerationError: The environment has no usable key, or the address of the service is invalid.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings
        self._key = Key.from_environment()
        self._stopping = threading.Event()
        self._openai = openai.OpenAI(
            api_key=self._key.value,
            base_url=base_url(settings.base_url, self._key, allow_http=settings.allow_http),
            max_retries=0,  # retries of openai can neither be interrupted nor bounded by the deadline
            http_client=_BoundedHttp(_answer_bytes, settings.timeout),
        )
        self._url = str(self._openai.base_url)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._openai.close()

    def stop(self) -> None:
        """Makes each wait before a retry raise an error. Requests that were already sent are not interrupted."""
        self._stopping.set()

    def ask(self, question: Question[Form], idempotency_key: str) -> Answer[Form] | Declined:
        """Returns an answer of the language model, or `Declined`.

        Args:
            question: Instructions, data and form of the answer.
            idempotency_key: Identifies the request in retries and later runs. Services that honour ``Idempotency-Key``
                bill the request once. After an unusable response, the key changes.

        Raises:
            GenerationError: The service refuses the key, the model or the request, or the response cannot be read.
            GenerationUnavailableError: The service cannot be reached, or is too slow or too busy.
        """
        form = {"name": question.step, "schema": question.form.model_json_schema(), "strict": True}
        options = {
            "model": self._settings.language_model,
            "messages": [
                {"role": "system", "content": question.instructions},
                {"role": "user", "content": json.dumps(question.data, ensure_ascii=False)},
            ],
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        send = self._openai.chat.completions.with_raw_response.create
        read = partial(_read_answer, form=question.form, key=self._key)
        return self._until_usable(send, options, read, idempotency_key)

    def draw(self, prompt: str, idempotency_key: str) -> Picture | Declined:
        """Returns an image of the image model, or `Declined`.

        Args:
            prompt: Prompt of the image model.
            idempotency_key: As in `ask`.

        Raises:
            GenerationError: As in `ask`, or the address of the image is invalid.
        """
        settings = self._settings
        options = {"model": settings.image_model, "prompt": prompt, "n": 1, "size": settings.image_size}
        if settings.image_quality:
            options["quality"] = settings.image_quality
        if settings.image_model.startswith("dall-e"):
            options["response_format"] = "b64_json"  # other models refuse the parameter
        send = self._openai.images.with_raw_response.generate
        read = partial(_read_image, key=self._key, download=self._downloaded)
        return self._until_usable(send, options, read, idempotency_key)

    def _until_usable(
        self,
        send: Callable[..., Any],
        options: Mapping[str, Any],
        read: Callable[[str, str], Outcome],
        idempotency_key: str,
    ) -> Outcome | Declined:
        """Sends a request until a response is usable, at most `MAX_UNUSABLE` times, and adds up the tokens."""
        check_allowed(self._url)
        spent, unusable = Usage(), 0
        while True:
            # With the same key, a service may return the same unusable response again.
            key = f"{idempotency_key}-{unusable}" if unusable else idempotency_key
            try:
                headers = {"Idempotency-Key": key}
                response = self._repeated(partial(send, **options, extra_headers=headers), host_of(self._url))
                outcome: Outcome | Declined = read(response.text, response.headers.get("x-request-id", ""))
            except (openai.OpenAIError, AnswerError) as exc:
                outcome = self._declined(exc)
            except _UnusableError as exc:
                spent += exc.usage
                unusable += 1
                if unusable < MAX_UNUSABLE and not self._stopping.is_set():
                    continue
                return Declined("unusable", f"none of {unusable} responses could be used: {exc}", spent, unusable)
            if isinstance(outcome, Declined):
                return replace(outcome, usage=spent + outcome.usage, unusable=unusable)
            if isinstance(outcome, Picture):
                outcome = replace(outcome, unusable=unusable)
            return outcome if outcome.usage is None else replace(outcome, usage=spent + outcome.usage)

    def _repeated(self, attempt: Callable[[], T], host: str | None) -> T:
        """Returns the result of `attempt`. Temporary failures are retried until the deadline or `stop`, then raised."""

        def log_long_wait(state: RetryCallState) -> None:
            if state.upcoming_sleep >= _LOGGED_WAIT_S:
                name = self._key.scrubbed(str(host))
                _log.warning("%s is not available: trying again in %.0f s", name, state.upcoming_sleep)

        retrying = Retrying(
            retry=retry_if_exception(_is_temporary),
            wait=_seconds_to_wait,
            stop=stop_before_delay(self._settings.deadline) | stop_when_event_set(self._stopping),
            before_sleep=log_long_wait,
            sleep=self._pause,
            reraise=True,
        )
        return retrying(attempt)

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise self._unavailable("the run has ended")

    def _declined(self, exc: Exception) -> Declined:
        """Returns a refusal by policy; raises a `GenerationError` for anything else.

        The raised error hides the original one, which may quote the key.
        """
        if isinstance(exc, AnswerError):
            raise GenerationError(
                self._key.quoted(f"{self._url}: {exc}")
                + f"; set generation.base_url or {URL_VARIABLE} to a service with OpenAI's interface"
            ) from None
        if isinstance(exc, openai.APIConnectionError):
            raise self._unavailable(f"{type(exc.__cause__).__name__}: {exc.__cause__}") from None
        if not isinstance(exc, openai.APIStatusError):
            raise GenerationError(self._key.quoted(f"{self._url}: the request cannot be made: {exc}")) from None
        status, message = exc.status_code, self._key.quoted(exc.message)
        if status in (400, 403, 422) and any(word in f"{exc.code or ''} {exc.type or ''}".lower() for word in _POLICY):
            return Declined("policy", message)
        if _is_temporary(exc):
            raise self._unavailable(f"HTTP {status}: {message}") from None
        raise GenerationError(
            self._key.scrubbed(f"{self._url} (HTTP {status}): {self._advice(exc, message)}")
        ) from None

    def _advice(self, exc: openai.APIStatusError, message: str) -> str:
        if _is_out_of_credit(exc):
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
            + "; finished work is kept: run it again later, or raise generation.timeout and generation.deadline"
        )

    def _downloaded(self, url: str) -> bytes:
        """Downloads an image from the address that the service gave. The request does not send the API key.

        Returns empty bytes if the address answers with a permanent 4xx.
        """
        host = host_of(url)
        if host is None:
            place = self._key.scrubbed(url)[:200]
            raise GenerationError(f"{self._url}: the image is at {place!r}, which is no address")
        check_allowed(url)
        try:
            with _BoundedHttp(lambda path: MAX_IMAGE_BYTES, self._settings.timeout) as http:
                return self._repeated(partial(_image_at, http, url), host)
        except AnswerError as exc:
            raise GenerationError(
                self._key.quoted(f"{self._url}: the image at {host} cannot be read: {exc}")
                + "; choose another generation.image_size or generation.image_model"
            ) from None
        except httpx2.HTTPError as exc:
            raise self._unavailable(f"the image cannot be downloaded from {host}: {exc}") from None


class _BoundedHttp(openai.DefaultHttpxClient):
    """Limits the size of each response, depending on the path, and the time from host lookup to the last byte."""

    def __init__(self, most: Callable[[str], int], seconds: float) -> None:
        reading: Any = hooks(most, lambda request: None)
        super().__init__(
            follow_redirects=False,  # a redirect would send the key to another address
            timeout=seconds,
            event_hooks=reading,
            headers={"Connection": "close"},  # one request per connection, which is shut down if the request is late
        )
        self._seconds = seconds

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Returns the response after reading all of it; raises httpx2.HTTPError or AnswerError."""
        sockets = Sockets()
        sockets.watch(request)
        act = partial(super().send, request, **options)
        try:
            return in_time(act, self._seconds, when_late=lambda _: sockets.shut_down())
        except LateError as exc:
            raise httpx2.ReadTimeout(str(exc), request=request) from exc


def _answer_bytes(path: str) -> int:
    return MAX_TEXT_ANSWER_BYTES if path.endswith("/chat/completions") else MAX_ANSWER_BYTES


def _image_at(http: _BoundedHttp, url: str) -> bytes:
    response = http.get(url)
    if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
        return b""  # a retry would not help
    response.raise_for_status()
    return response.content


# ---- retries


def _is_temporary(exc: BaseException) -> bool:
    if isinstance(exc, openai.APIStatusError):
        return not _is_out_of_credit(exc) and (exc.status_code in (408, 409, 429) or exc.status_code >= 500)
    return isinstance(exc, openai.APIConnectionError | httpx2.HTTPError)


def _is_out_of_credit(exc: openai.APIStatusError) -> bool:
    return _NO_CREDIT in (exc.code, exc.type)  # some services set only one of the two


def _seconds_to_wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    wanted = _retry_after(error.response.headers) if isinstance(error, openai.APIStatusError) else 0.0
    return wanted if wanted >= _MIN_WAIT_S else _BACK_OFF(state)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Returns the wait in seconds that ``Retry-After`` requests; 0 or less for a missing, invalid or past value."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))  # 0 for NaN
    with suppress(ValueError, OverflowError):  # the year or the time zone may be any number
        date = parsedate_tz(value)
        return mktime_tz(date) - time.time() if date else 0.0
    return 0.0


# ---- responses


def _read_answer(body: str, request: str, form: type[Form], key: Key) -> Answer[Form] | Declined:
    reply = _parsed(_Reply, body)
    usage = reply.usage.as_usage() if reply.usage else Usage()
    choice = reply.choices[0] if reply.choices else _Choice()
    if choice.finish_reason == "length":
        return Declined("length", "the answer was cut off at the longest that the model gives", usage)
    if choice.finish_reason == "content_filter":
        return Declined("policy", "the answer was withheld by the content filter of the service", usage)
    if choice.message.refusal:
        return Declined("refusal", key.quoted(choice.message.refusal), usage)
    try:
        value = _parsed(form, key.scrubbed(choice.message.content or ""))
    except _UnusableError as exc:
        raise _UnusableError(key.quoted(str(exc)), usage) from None  # `exc` may quote a field name of the response
    return Answer(value, key.quoted(reply.id or request), usage)


def _read_image(body: str, request: str, key: Key, download: Callable[[str], bytes]) -> Picture:
    reply = _parsed(_Images, body)
    usage = reply.usage.as_usage() if reply.usage else None
    image = reply.data[0] if reply.data else _Image()
    try:
        data = base64.b64decode(image.b64_json or "", validate=True)
    except ValueError:
        raise _UnusableError("the image is not in base64", usage) from None
    if not data and image.url:
        data = download(image.url)
    if not data:
        raise _UnusableError("there was no image in the response", usage)
    return Picture(data, key.quoted(request), usage, key.quoted(image.revised_prompt) if image.revised_prompt else None)


Model = TypeVar("Model", bound=BaseModel)


def _parsed(form: type[Model], text: str) -> Model:
    try:
        return form.model_validate_json(text)
    except ValidationError as exc:
        error = exc.errors(include_input=False, include_url=False)[0]  # without values, which may be long
        raise _UnusableError(f"{'.'.join(map(str, error['loc'])) or 'the response'}: {error['msg']}") from None


class _Counted(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def as_usage(self) -> Usage:
        read, written = self.prompt_tokens + self.input_tokens, self.completion_tokens + self.output_tokens
        return Usage(min(max(read, 0), MAX_TOKENS), min(max(written, 0), MAX_TOKENS))


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Message = _Message()


class _Reply(BaseModel):
    id: str = ""
    choices: Items[_Choice] = []
    usage: _Counted | None = None


class _Image(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Images(BaseModel):
    data: Annotated[list[_Image] | None, FailFast()] = None
    usage: _Counted | None = None
