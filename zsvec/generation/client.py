"""A service with OpenAI's interface: questions in, answers in a given form out; prompts in, images out.

What may pass (rate limits, timeouts, cut connections, failures of the server) is tried again until the
deadline. What the service declines is a result, a `Declined`. Everything else is an error of zsvec. The key
is read from the environment alone, and taken out of every text that comes back.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx
import openai
from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from zsvec.config import GenerationSettings
from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation.prices import Usage
from zsvec.generation.prompts import Form, Question

_log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
SWITCH_VARIABLE = "ZSVEC_ALLOW_REQUESTS"

ALLOW_REQUESTS = os.environ.get(SWITCH_VARIABLE, "").strip().lower() not in ("0", "false", "no", "off")
"""Whether services beyond this machine may be asked. Tests turn it off."""

_POLICY = ("content_policy", "moderation", "content_filter", "contentfilter", "safety")
_DEFAULT_URL = "https://api.openai.com/v1"
_LONG_WAIT = 5.0  # seconds
_SHORTEST_KEY = 8  # what is shorter keeps nobody out, and may be a word of an answer
SPOILED = 3  # answers of no use in a row, each of them paid for, until a question is given up

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Form]):
    """An answer of the language model.

    Attributes:
        value: In the form that was asked for.
        response: Id of the response.
        usage: Tokens, those of attempts that were of no use included.
    """

    value: Form
    response: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it came.

    Attributes:
        data: The encoded image.
        response: Id of the response.
        usage: Tokens; ``None`` if the service does not count them.
        revised_prompt: What the service made of the prompt, if it says so.
    """

    data: bytes
    response: str
    usage: Usage | None
    revised_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Declined:
    """Why there is no answer, or no image.

    Attributes:
        code: ``refusal`` by the model, ``policy`` of the service, ``length``: too long an answer, or
            ``unusable``: not in the form that was asked for, again and again.
        reason: In words.
        usage: Tokens that it cost all the same.
    """

    code: str
    reason: str
    usage: Usage


class Client:
    """Asks and draws. Safe to use from several threads.

    Args:
        settings: Of the service and its models.

    Raises:
        GenerationError: There is no key in the environment, or none that can be sent, or no address to send it to.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key:
            raise GenerationError(
                f"there is no key for the service that describes and draws: set {KEY_VARIABLE} in the environment "
                "(to anything, if your own service needs none)"
            )
        if not (self._key.isascii() and self._key.isprintable()):  # errors of the packages underneath would quote it
            raise GenerationError(f"what {KEY_VARIABLE} holds is no key: it has characters that cannot be sent")
        base_url = settings.base_url or os.environ.get(URL_VARIABLE, "").strip() or _DEFAULT_URL
        if _host(base_url) is None:
            raise GenerationError(
                self._scrubbed(
                    f"{base_url!r} is not the address of a service: correct generation.base_url or {URL_VARIABLE}, "
                    "which begins with http:// or https://"
                )
            )
        # A redirection would take the key to another place.
        transport = openai.DefaultHttpxClient(follow_redirects=False, timeout=settings.timeout)
        self._openai = openai.OpenAI(api_key=self._key, base_url=base_url, max_retries=0, http_client=transport)
        self._url = str(self._openai.base_url)
        self._stopping = threading.Event()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._openai.close()

    def stop(self) -> None:
        """Try nothing again from now on: calls that wait for that end with an error."""
        self._stopping.set()

    def ask(self, question: Question[Form], idempotency_key: str) -> Answer[Form] | Declined:
        """Ask the language model.

        Args:
            question: What to ask.
            idempotency_key: The same for the same request at each attempt, that of a later run included: a
                service that minds it is paid once.

        Raises:
            GenerationError: The service refuses the key or the model, or does not understand the request.
            GenerationUnavailableError: It cannot be reached, or is too slow or too busy.
        """
        usage = Usage()
        problem = ""
        for key in _keys(idempotency_key):
            raw = self._call(lambda key=key: self._request_answer(question, key))  # type: ignore[misc]
            if isinstance(raw, Declined):
                return Declined(raw.code, raw.reason, usage)
            content, request = raw
            try:
                reply = _Reply.model_validate_json(content)
            except ValidationError as exc:
                problem = _first(exc)
                continue
            usage += reply.usage.as_usage() if reply.usage else Usage()
            choice = reply.choices[0] if reply.choices else _Choice()
            if choice.finish_reason == "length":
                return Declined("length", "the answer was cut off at the longest that the model gives", usage)
            if choice.finish_reason == "content_filter":
                return Declined("policy", "the answer was withheld by the content filter of the service", usage)
            if choice.message.refusal:
                return Declined("refusal", self._scrubbed(choice.message.refusal), usage)
            try:
                value = question.form.model_validate_json(self._scrubbed(choice.message.content or ""))
            except ValidationError as exc:
                problem = _first(exc)
                continue
            return Answer(value, self._scrubbed(reply.id or request), usage)
        return Declined("unusable", f"no answer of {SPOILED} had the form that was asked for: {problem}", usage)

    def draw(self, prompt: str, idempotency_key: str) -> Picture | Declined:
        """Draw one image.

        Args:
            prompt: What to draw.
            idempotency_key: As `ask`.

        Raises:
            GenerationError: As `ask`.
        """
        usage = Usage()
        problem = ""
        for key in _keys(idempotency_key):
            raw = self._call(lambda key=key: self._request_image(prompt, key))  # type: ignore[misc]
            if isinstance(raw, Declined):
                return Declined(raw.code, raw.reason, usage)
            content, request = raw
            try:
                reply = _Images.model_validate_json(content)
                image = reply.data[0] if reply.data else _Image()
                data = base64.b64decode(image.b64_json, validate=True) if image.b64_json else b""
            except (ValidationError, binascii.Error) as exc:
                problem = _first(exc) if isinstance(exc, ValidationError) else "the image is not in base64"
                continue
            counted = reply.usage.as_usage() if reply.usage else None
            usage += counted or Usage()
            if not data and image.url:
                data = self._retried(lambda url=image.url: self._download(url))  # type: ignore[misc]
            if data:
                revised = self._scrubbed(image.revised_prompt) if image.revised_prompt else None
                return Picture(data, self._scrubbed(request), usage if counted else None, revised)
            problem = "there was no image in the response"
        return Declined("unusable", f"none of {SPOILED} responses could be used: {problem}", usage)

    def _request_answer(self, question: Question[Form], key: str) -> tuple[str, str]:
        response = self._openai.chat.completions.with_raw_response.create(
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
            extra_headers={"Idempotency-Key": key},
        )
        return response.text, response.headers.get("x-request-id", "")

    def _request_image(self, prompt: str, key: str) -> tuple[str, str]:
        model = self._settings.image_model
        options: dict[str, Any] = {"quality": self._settings.image_quality} if self._settings.image_quality else {}
        if model.startswith("dall-e"):
            options["response_format"] = "b64_json"  # the others know nothing else, and refuse the word
        response = self._openai.images.with_raw_response.generate(
            model=model,
            prompt=prompt,
            n=1,
            size=self._settings.image_size,
            extra_headers={"Idempotency-Key": key},
            **options,
        )
        return response.text, response.headers.get("x-request-id", "")

    def _download(self, url: str) -> bytes:
        """An image that the service has put somewhere; the key stays here."""
        host = _host(url)
        if host is None:
            raise GenerationError(self._scrubbed(f"{self._url}: the image is at {url[:200]!r}, which is no address"))
        _check_allowed(url)
        try:
            response = httpx.get(url, timeout=self._settings.timeout, follow_redirects=False)
            if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
                return b""  # nor will it be there later
            response.raise_for_status()
        except httpx.HTTPError as exc:
            raise _PassingError(self._scrubbed(f"the image cannot be downloaded from {host}: {exc}")) from exc
        return response.content

    def _call(self, attempt: Callable[[], Result]) -> Result | Declined:
        """Make a request until it succeeds, is declined, or cannot be made."""
        _check_allowed(self._url)
        return self._retried(lambda: self._mapped(attempt))

    def _retried(self, attempt: Callable[[], Result]) -> Result:
        retrying = Retrying(
            retry=retry_if_exception_type(_PassingError),
            wait=_wait,
            stop=stop_before_delay(self._settings.deadline) | stop_when_event_set(self._stopping),
            before_sleep=_say,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _PassingError as exc:
            raise GenerationUnavailableError(
                f"{self._url} did not do it within {self._settings.deadline:g} s: {exc}; what is done is kept, "
                "run it again later, or raise generation.timeout and generation.deadline"
            ) from self._quotable(exc.__cause__)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise GenerationUnavailableError(f"{self._url} did not do it, and was not asked again: the run has ended")

    def _mapped(self, attempt: Callable[[], Result]) -> Result | Declined:
        """Make a request once; failures as `Declined`, as what passes, or as an error of zsvec."""
        try:
            return attempt()
        except openai.APIStatusError as exc:
            return self._mapped_status(exc)
        except openai.APIConnectionError as exc:  # a timeout is one
            raise _PassingError(f"{exc} ({type(exc.__cause__).__name__})") from exc
        except openai.OpenAIError as exc:
            raise self._error(f"the request cannot be made: {exc}", exc) from self._quotable(exc)

    def _mapped_status(self, exc: openai.APIStatusError) -> Declined:
        said = self._scrubbed(exc.message)
        settings = self._settings
        code = f"{exc.code or ''} {exc.type or ''}".lower()
        if exc.status_code in (400, 403, 422) and any(word in code for word in _POLICY):
            return Declined("policy", said, Usage())
        if exc.code == "insufficient_quota":
            raise self._error("the account is out of credit: add some, and run it again", exc) from self._quotable(exc)
        if exc.status_code in (408, 409, 429) or exc.status_code >= 500:
            raise _PassingError(f"HTTP {exc.status_code}: {said}", _retry_after(exc.response.headers)) from exc
        if exc.status_code == 401:  # what the service says may quote the key in part
            raise self._error(f"it refuses the key in {KEY_VARIABLE}: set one that it knows", exc) from None
        if exc.status_code == 403:
            advice = f"it does not let the key in {KEY_VARIABLE} do this: {said}"
            raise self._error(advice, exc) from self._quotable(exc)
        if exc.status_code < 400:
            where = exc.response.headers.get("location", "somewhere else")
            advice = f"it redirects to {where}, where the key is not sent: set generation.base_url if it should be"
            raise self._error(advice, exc) from self._quotable(exc)
        if exc.status_code == 404:
            advice = (
                f"there is no such model or address ({said}); generation.language_model is "
                f"{settings.language_model!r}, generation.image_model {settings.image_model!r}"
            )
            raise self._error(advice, exc) from self._quotable(exc)
        advice = f"it does not take the request: {said}; check the models, the size and the quality in the settings"
        raise self._error(advice, exc) from self._quotable(exc)

    def _error(self, message: str, exc: openai.OpenAIError) -> GenerationError:
        status = f" (HTTP {exc.status_code})" if isinstance(exc, openai.APIStatusError) else ""
        return GenerationError(self._scrubbed(f"{self._url}{status}: {message}"))

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_KEY else text

    def _quotable(self, exc: BaseException | None) -> BaseException | None:
        """An error that may be shown as the cause of another: neither it nor its own causes quote the key."""
        cause = exc
        while cause is not None:
            said = f"{cause!s} {cause!r}"
            if self._scrubbed(said) != said:
                return None
            cause = cause.__cause__ or cause.__context__
        return exc


def _keys(idempotency_key: str) -> Iterator[str]:
    """A key for each answer: what is asked for again because it was of no use must not be the same again."""
    yield idempotency_key
    yield from (f"{idempotency_key}-{attempt}" for attempt in range(1, SPOILED))


class _PassingError(Exception):
    """What may pass; seconds to wait, if the service says so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def _say(state: RetryCallState) -> None:
    """Tell whoever watches why nothing happens."""
    error = state.outcome.exception() if state.outcome else None
    if state.upcoming_sleep >= _LONG_WAIT:
        _log.warning("%s; trying again in %.0f s", error, state.upcoming_sleep)


_BACK_OFF = wait_random_exponential(multiplier=0.5, max=60)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _PassingError) else None
    return asked or _BACK_OFF(state)  # what is asked for may be no wait at all, again and again


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header, which has them or a date."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _host(url: str) -> str | None:
    """The host of an address, read as it is when a request is made; ``None`` if no request can be made to it."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        return None
    return address.host if address.scheme in ("http", "https") and address.host else None


def _check_allowed(url: str) -> None:
    host = _host(url)
    if not ALLOW_REQUESTS and host not in ("127.0.0.1", "localhost", "::1"):
        raise GenerationError(f"requests to {host} are forbidden here by {SWITCH_VARIABLE} in the environment")


def _first(exc: ValidationError) -> str:
    """What is wrong first, without the values, which may be long."""
    error = exc.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, error['loc'])) or 'the response'}: {error['msg']}"


# What is read of the responses. The package's own classes take whatever comes without a check.


class _Counted(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def as_usage(self) -> Usage:
        return Usage(self.prompt_tokens + self.input_tokens, self.completion_tokens + self.output_tokens)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Message = _Message()


class _Reply(BaseModel):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Counted | None = None


class _Image(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Images(BaseModel):
    data: list[_Image] | None = None
    usage: _Counted | None = None
