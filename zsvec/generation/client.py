"""A service with OpenAI's interface: questions in, answers in a given form out; prompts in, images out.

Every answer is bounded: to `MAX_ANSWER_BYTES`, or `MAX_TEXT_ANSWER_BYTES` of the language model, and as a whole to the
seconds of ``generation.timeout``. A failure that may pass is tried again (`retries`). What the service declines is a
result, a `Declined`. Every other failure is an error of zsvec (`failures`). A response that cannot be used
(`responses`) is asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import httpx
import openai

from zsvec.errors import GenerationError
from zsvec.generation.access import Key, base_url, check_allowed, host_of
from zsvec.generation.failures import declined_or_raise
from zsvec.generation.prices import Usage
from zsvec.generation.prompts import Form, Question
from zsvec.generation.responses import NO_IMAGE, Answer, Declined, Picture, Unusable, read_answer, read_image
from zsvec.generation.retries import PassingError, Retries
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

_sockets: ContextVar[Sockets] = ContextVar("sockets")  # of the request that is made

Result = TypeVar("Result")
Outcome = TypeVar("Outcome", bound="Answer[Any] | Picture | Declined")
Body = tuple[str, str]  # of a response, and the id of its request


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
        url = base_url(settings.base_url, self._key, allow_http=settings.allow_http)
        # A redirection would take the key to another place.
        transport = openai.DefaultHttpxClient(
            follow_redirects=False, timeout=settings.timeout, event_hooks=_hooks(_answer_bytes)
        )
        self._openai = openai.OpenAI(
            api_key=self._key.value,
            base_url=url,
            max_retries=0,
            http_client=transport,
            default_headers={"Connection": "close"},  # a late request ends with its connection, and ends no other
        )
        self._url = str(self._openai.base_url)
        self._retries = Retries(self._url, settings.deadline, self._key)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._openai.close()

    def stop(self) -> None:
        """Retry nothing from now on: calls that wait for their next attempt end with an error."""
        self._retries.stop()

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

        def attempt(key: str) -> Answer[Form] | Declined | Unusable:
            response = self._request(lambda: self._request_answer(question, key))
            return response if isinstance(response, Declined) else read_answer(*response, question.form, self._key)

        return _until_usable(attempt, idempotency_key)

    def draw(self, prompt: str, idempotency_key: str) -> Picture | Declined:
        """Draw one image.

        Args:
            prompt: What to draw.
            idempotency_key: As `ask`.

        Raises:
            GenerationError: As `ask`.
        """

        def attempt(key: str) -> Picture | Declined | Unusable:
            response = self._request(lambda: self._request_image(prompt, key))
            if isinstance(response, Declined):
                return response
            body, request = response
            image = read_image(body, self._key)
            if isinstance(image, Unusable):
                return image
            data = image.data or self._downloaded(image.url or "")
            if not data:
                return Unusable(NO_IMAGE, image.usage or Usage())
            return Picture(data, self._key.quoted(request), image.usage, image.revised_prompt)

        return _until_usable(attempt, idempotency_key)

    def _request(self, attempt: Callable[[], Body]) -> Body | Declined:
        """Make a request until it succeeds, is declined, or cannot be made."""
        check_allowed(self._url)

        def mapped() -> Body | Declined:
            try:
                return self._in_time(attempt)
            except (openai.OpenAIError, AnswerError) as exc:
                return declined_or_raise(exc, self._url, self._settings, self._key)

        return self._retries.run(mapped)

    def _in_time(self, attempt: Callable[[], Result]) -> Result:
        """Makes an attempt, and ends its connections if there is no whole answer in time."""
        sockets = Sockets()

        def act() -> Result:
            _sockets.set(sockets)
            return attempt()

        try:
            return in_time(act, self._settings.timeout, when_late=lambda _: sockets.shut_down())
        except LateError as exc:
            raise PassingError(str(exc)) from exc

    def _request_answer(self, question: Question[Any], idempotency_key: str) -> Body:
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
            extra_headers={"Idempotency-Key": idempotency_key},
        )
        return response.text, response.headers.get("x-request-id", "")

    def _request_image(self, prompt: str, idempotency_key: str) -> Body:
        model = self._settings.image_model
        options: dict[str, Any] = {"quality": self._settings.image_quality} if self._settings.image_quality else {}
        if model.startswith("dall-e"):
            options["response_format"] = "b64_json"  # other models know nothing else, and refuse the word
        response = self._openai.images.with_raw_response.generate(
            model=model,
            prompt=prompt,
            n=1,
            size=self._settings.image_size,
            extra_headers={"Idempotency-Key": idempotency_key},
            **options,
        )
        return response.text, response.headers.get("x-request-id", "")

    def _downloaded(self, url: str) -> bytes:
        """Download an image from the address that the service gave, without the key; empty if it is not there."""
        host = host_of(url)
        if host is None:
            place = self._key.scrubbed(url)[:200]
            raise GenerationError(self._key.scrubbed(f"{self._url}: the image is at {place!r}, which is no address"))
        check_allowed(url)

        def attempt() -> bytes:
            try:
                response = self._in_time(partial(_get, url, self._settings.timeout))
                if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
                    return b""  # nor will it be there later
                response.raise_for_status()
            except AnswerError as exc:
                raise GenerationError(
                    self._key.scrubbed(f"{self._url}: the image at {host} cannot be read: {exc}; choose another ")
                    + "generation.image_size or generation.image_model"
                ) from self._key.quotable(exc)
            except httpx.HTTPError as exc:
                raise PassingError(self._key.quoted(f"the image cannot be downloaded from {host}: {exc}")) from exc
            return response.content

        return self._retries.run(attempt)


def _answer_bytes(path: str) -> int:
    return MAX_TEXT_ANSWER_BYTES if path.endswith("/chat/completions") else MAX_ANSWER_BYTES


def _hooks(most: Callable[[str], int]) -> Any:
    return hooks(most, lambda request: _sockets.get().watch(request))


def _get(url: str, timeout: float) -> httpx.Response:
    reading = _hooks(lambda path: MAX_IMAGE_BYTES)
    with httpx.Client(timeout=timeout, follow_redirects=False, event_hooks=reading) as client:
        return client.get(url)


def _until_usable(attempt: Callable[[str], Outcome | Unusable], idempotency_key: str) -> Outcome | Declined:
    """Make a request until its response can be used, at most `MOST_UNUSABLE` times.

    Args:
        attempt: Makes the request with an idempotency key.
        idempotency_key: Of the first request.

    Returns:
        The outcome, with the tokens of all requests.
    """
    spent = Usage()
    problem = ""
    for key in _keys(idempotency_key):
        outcome = attempt(key)
        if not isinstance(outcome, Unusable):
            return outcome if outcome.usage is None else replace(outcome, usage=spent + outcome.usage)
        spent += outcome.usage
        problem = outcome.problem
    return Declined("unusable", f"none of {MOST_UNUSABLE} responses could be used: {problem}", spent)


def _keys(idempotency_key: str) -> Iterator[str]:
    """A key for each response: a request whose response was unusable must not be answered by the same again."""
    yield idempotency_key
    yield from (f"{idempotency_key}-{attempt}" for attempt in range(1, MOST_UNUSABLE))
