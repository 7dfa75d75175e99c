"""What a failed request means: declined, a temporary failure, or an error that says what to do."""

from __future__ import annotations

import openai

from zsvec.errors import GenerationError
from zsvec.generation.access import KEY_VARIABLE, URL_VARIABLE, Key
from zsvec.generation.responses import Declined
from zsvec.generation.retries import PassingError, retry_after
from zsvec.inputs.answers import AnswerError
from zsvec.settings.settings import GenerationSettings

_POLICY = ("content_policy", "moderation", "content_filter", "contentfilter", "safety")
_PASSING = (408, 409, 429)  # and the errors of a server, from 500 up


def declined_or_raise(
    exc: openai.OpenAIError | AnswerError, url: str, settings: GenerationSettings, key: Key
) -> Declined:
    """What a failed request means.

    Args:
        exc: The failure.
        url: Address of the service, for messages.
        settings: Its models, for messages.
        key: Taken out of texts of the service, which are cut to `zsvec.generation.access.MAX_TEXT_CHARS`.

    Returns:
        Why the service declines the request, if that is what it says.

    Raises:
        PassingError: The failure may pass.
        GenerationError: It will not.
    """
    unreadable = exc if isinstance(exc, AnswerError) else exc.__cause__  # versions of openai differ
    if isinstance(unreadable, AnswerError):
        raise GenerationError(
            key.scrubbed(
                f"{url}: {unreadable}; set generation.base_url or {URL_VARIABLE} to a service with OpenAI's interface"
            )
        ) from key.quotable(exc)
    if isinstance(exc, openai.APIConnectionError):  # a timeout is one
        raise PassingError(f"{exc} ({type(exc.__cause__).__name__})") from exc
    if not isinstance(exc, openai.APIStatusError):
        raise GenerationError(key.quoted(f"{url}: the request cannot be made: {exc}")) from key.quotable(exc)
    status = exc.status_code
    message = key.quoted(exc.message)
    if status in (400, 403, 422) and any(word in f"{exc.code or ''} {exc.type or ''}".lower() for word in _POLICY):
        return Declined("policy", message)
    if exc.code != "insufficient_quota" and (status in _PASSING or status >= 500):
        raise PassingError(f"HTTP {status}: {message}", retry_after(exc.response.headers)) from exc
    cause = key.quotable(exc) if status != 401 else None  # the service may have quoted a part of the key
    raise GenerationError(key.scrubbed(f"{url} (HTTP {status}): {_advice(exc, message, settings, key)}")) from cause


def _advice(exc: openai.APIStatusError, message: str, settings: GenerationSettings, key: Key) -> str:
    """What is wrong, and what to do about it."""
    if exc.code == "insufficient_quota":
        return "the account is out of credit: add some, and run it again"
    if exc.status_code < 400:
        where = key.quoted(exc.response.headers.get("location", "somewhere else"))
        return f"it redirects to {where}, where the key is not sent: set generation.base_url if it should be"
    if exc.status_code == 401:
        return f"it refuses the key in {KEY_VARIABLE}: set one that it knows"
    if exc.status_code == 403:
        return f"it does not let the key in {KEY_VARIABLE} do this: {message}"
    if exc.status_code == 404:
        return (
            f"there is no such model or address ({message}); generation.language_model is "
            f"{settings.language_model!r}, generation.image_model {settings.image_model!r}"
        )
    return f"it does not take the request: {message}; check the models, the size and the quality in the settings"
