"""Classifies the failures of the Qdrant client as transient, refused, missing, too large, or unreadable.

`zsvec.store.backends.server.connection` retries requests with transient failures.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator

import grpc
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from zsvec.inputs.answers import AnswerError, AnswerTooLargeError, LateError

_REFUSED = {401, 403, 405, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_MISSING = {404, grpc.StatusCode.NOT_FOUND}
_TRANSIENT = {
    *(408, 429, 500, 502, 503, 504),
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN),  # from a node that has not noticed that another node is away
    grpc.StatusCode.CANCELLED,  # from the server, after the time-out of the request
}
_BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_GRPC_TOO_LARGE = "message larger than max"  # from gRPC itself, with the same status as a busy server
# Errors that the client raises for an answer that does not come from a Qdrant.
_NONSENSE = (json.JSONDecodeError, UnicodeDecodeError, AssertionError, RecursionError, AnswerError)
_MAX_REASON_CHARS = 300

UNANSWERED = (ApiException, QdrantException, grpc.RpcError, LateError)
"""Errors that the client raises for failed requests."""

FAILURES = (*UNANSWERED, RuntimeError, ValueError, *_NONSENSE)
"""All errors of the client, for failed requests and for unreadable answers.

The client raises a plain ``ValueError`` for a number with too many digits. gRPC raises ``ValueError`` if another thread
has closed the connection.
"""


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.source if isinstance(exc, ResponseHandlingException) else exc.__cause__ or exc.__context__


def tls_problem(exc: BaseException) -> str | None:
    """Returns a description of a TLS problem, with advice if possible, or ``None`` for another failure."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}): give the file of your authority's "
                "certificates as ca_certificate, and call the server by the name that its certificate has"
            )
        if isinstance(cause, ssl.SSLError):
            return str(cause)
    return None


def _code_of(exc: BaseException | None) -> int | grpc.StatusCode | None:
    if isinstance(exc, UnexpectedResponse):
        return exc.status_code
    return exc.code() if isinstance(exc, grpc.RpcError) and isinstance(exc, grpc.Call) else None


def is_refusal(exc: BaseException | None) -> bool:
    """Returns whether the server refused the request because the key lacks a right."""
    return _code_of(exc) in _REFUSED


def is_missing(exc: BaseException | None) -> bool:
    """Returns whether the collection does not exist."""
    return _code_of(exc) in _MISSING


def is_nonsense(exc: BaseException) -> bool:
    """Returns whether the answer cannot be read, for example because the server is not a Qdrant."""
    return isinstance(exc, ValueError) or isinstance(_source(exc), (*_NONSENSE, ValidationError))


def is_too_large(exc: BaseException) -> bool:
    """Returns whether the answer has more bytes than the client allows."""
    if _code_of(exc) == grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(exc, grpc.Call):
        return _GRPC_TOO_LARGE in (exc.details() or "")
    return isinstance(_source(exc), AnswerTooLargeError)


def _source(exc: BaseException) -> BaseException:
    return exc.source if isinstance(exc, ResponseHandlingException) else exc


def is_busy(exc: BaseException) -> bool:
    """Returns whether the server refused the request because of a rate limit."""
    if is_too_large(exc):
        return False
    # For Retry-After, the client raises ResourceExhaustedResponse, or a plain QdrantException if the value is invalid.
    return isinstance(exc, QdrantException) or _code_of(exc) in {429, grpc.StatusCode.RESOURCE_EXHAUSTED}


def is_transient(exc: BaseException) -> bool:
    """Returns whether the same request may succeed later or on another node."""
    if isinstance(exc, ResponseHandlingException):
        return not is_nonsense(exc) and tls_problem(exc) is None
    if is_too_large(exc):
        return False
    return isinstance(exc, LateError) or is_busy(exc) or _code_of(exc) in _TRANSIENT


def is_broken(exc: BaseException) -> bool:
    """Returns whether the gRPC channel of the request may have no connection, or one to a server that is gone."""
    return _code_of(exc) in _BROKEN


def reason_of(exc: BaseException) -> str:
    """Returns the message of the server or of the client, cut to 300 characters."""
    if isinstance(exc, UnexpectedResponse):
        said = f"HTTP {exc.status_code}: {exc.content.decode(errors='replace')}"
    elif isinstance(exc, ResponseHandlingException):
        said = str(exc.source) or type(exc.source).__name__
    elif isinstance(exc, ResourceExhaustedResponse):
        said = str(exc.message)  # may be any JSON value
    else:
        details = exc.details() if isinstance(exc, grpc.Call) else None
        said = details or str(exc) or type(exc).__name__
    return said[:_MAX_REASON_CHARS]
