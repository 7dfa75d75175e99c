"""Checked responses of the service: answers, images, and reasons why there is none.

The classes of the package `openai` take whatever comes without a check, and its `parse` makes an object of each of a
million items before a check fails, so that bodies are read here. Reasons, ids and revised prompts are cut to
`zsvec.generation.access.MAX_TEXT_CHARS`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Generic

from pydantic import BaseModel, FailFast, ValidationError

from zsvec.generation.access import Key
from zsvec.generation.prices import Usage
from zsvec.generation.prompts import Form, Items

MAX_TOKENS = 10**12
"""Of one request; a service that counts more, or less than none, is taken to mean the nearest possible count."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Form]):
    """An answer of the language model.

    Attributes:
        value: In the form that was asked for.
        response: Id of the response.
        usage: Tokens, those of unusable responses before it included.
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
        usage: Tokens, those of unusable responses before it included; ``None`` if the service does not count them.
        revised_prompt: The prompt that the service made of the one sent, if it says so.
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
        usage: Tokens that were paid for all the same.
    """

    code: str
    reason: str
    usage: Usage = field(default_factory=Usage)


class UnusableError(Exception):
    """A response cannot be used.

    Attributes:
        usage: Tokens that were paid for all the same.
    """

    def __init__(self, problem: str, usage: Usage | None = None) -> None:
        super().__init__(problem)
        self.usage = usage or Usage()


def read_answer(body: str, request: str, form: type[Form], key: Key) -> Answer[Form] | Declined:
    """An answer of the language model.

    Args:
        body: Of the response.
        request: Its id, where the body has none.
        form: What the content must be.
        key: Removed from all texts.

    Raises:
        UnusableError: The body is no chat completion, or its content has another form.
    """
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError as exc:
        raise UnusableError(_first_problem(exc)) from None
    usage = reply.usage.as_usage() if reply.usage else Usage()
    choice = reply.choices[0] if reply.choices else _Choice()
    if choice.finish_reason == "length":
        return Declined("length", "the answer was cut off at the longest that the model gives", usage)
    if choice.finish_reason == "content_filter":
        return Declined("policy", "the answer was withheld by the content filter of the service", usage)
    if choice.message.refusal:
        return Declined("refusal", key.quoted(choice.message.refusal), usage)
    try:
        value = form.model_validate_json(key.scrubbed(choice.message.content or ""))
    except ValidationError as exc:
        raise UnusableError(key.quoted(_first_problem(exc)), usage) from None  # names a field that was not asked for
    return Answer(value, key.quoted(reply.id or request), usage)


def read_image(body: str, request: str, key: Key, download: Callable[[str], bytes]) -> Picture:
    """An image of the image model.

    Args:
        body: Of the response.
        request: Its id.
        key: Removed from all texts.
        download: Returns the image at an address; empty if there is none.

    Raises:
        UnusableError: The body is no list of images, has none, or one that is not in base64.
    """
    try:
        reply = _Images.model_validate_json(body)
    except ValidationError as exc:
        raise UnusableError(_first_problem(exc)) from None
    usage = reply.usage.as_usage() if reply.usage else None
    image = reply.data[0] if reply.data else _Image()
    try:
        data = base64.b64decode(image.b64_json or "", validate=True)
    except ValueError:
        raise UnusableError("the image is not in base64", usage) from None
    if not data and image.url:
        data = download(image.url)
    if not data:
        raise UnusableError("there was no image in the response", usage)
    return Picture(data, key.quoted(request), usage, key.quoted(image.revised_prompt) if image.revised_prompt else None)


def _first_problem(exc: ValidationError) -> str:
    """The first validation error, without the values, which may be long."""
    error = exc.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, error['loc'])) or 'the response'}: {error['msg']}"


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
