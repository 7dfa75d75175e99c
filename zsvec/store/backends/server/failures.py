"""Failures of the client of Qdrant, classified: transient, refused, missing, too large, or unreadable."""

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
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN),  # of a node that has not noticed that another is away
    grpc.StatusCode.CANCELLED,  # by the server, after the time-out of the request
}
_GRPC_TOO_LARGE = "message larger than max"  # of gRPC itself, with the status of a busy server
# Raised by the client for an answer of another server than Qdrant.
_NONSENSE = (json.JSONDecodeError, UnicodeDecodeError, AssertionError, RecursionError, AnswerError)
_MAX_REASON_CHARS = 300

UNANSWERED = (ApiException, QdrantException, grpc.RpcError, LateError)
"""Failures of a request to a server."""

FAILURES = (*UNANSWERED, RuntimeError, ValueError, *_NONSENSE)
"""All failures of the client: of requests, and of unreadable answers.

The client raises a plain ``ValueError`` for a number with too many digits, and gRPC raises one after another thread has
closed the connection.
"""


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.source if isinstance(exc, ResponseHandlingException) else exc.__cause__ or exc.__context__


def tls_problem(exc: BaseException) -> str | None:
    """Returns the problem of a TLS connection with advice; ``None`` for another failure."""
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
    """Returns whether the key has no right to the request."""
    return _code_of(exc) in _REFUSED


def is_missing(exc: BaseException | None) -> bool:
    """Returns whether the collection does not exist."""
    return _code_of(exc) in _MISSING


def is_nonsense(exc: BaseException) -> bool:
    """Returns whether the answer cannot be read, as from another server than Qdrant."""
    return isinstance(exc, ValueError) or isinstance(_source(exc), (*_NONSENSE, ValidationError))


def is_too_large(exc: BaseException) -> bool:
    """Returns whether the answer has more bytes than allowed."""
    if _code_of(exc) == grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(exc, grpc.Call):
        return _GRPC_TOO_LARGE in (exc.details() or "")
    return isinstance(_source(exc), AnswerTooLargeError)


def _source(exc: BaseException) -> BaseException:
    return exc.source if isinstance(exc, ResponseHandlingException) else exc


def is_busy(exc: BaseException) -> bool:
    """Returns whether the server limits the rate of requests."""
    if is_too_large(exc):
        return False
    # A QdrantException, even without a valid Retry-After (ResourceExhaustedResponse).
    return isinstance(exc, QdrantException) or _code_of(exc) in {429, grpc.StatusCode.RESOURCE_EXHAUSTED}


def is_transient(exc: BaseException) -> bool:
    """Returns whether the same request may succeed later, or at another node."""
    if isinstance(exc, ResponseHandlingException):
        return not is_nonsense(exc) and tls_problem(exc) is None
    if is_too_large(exc):
        return False
    return isinstance(exc, LateError) or is_busy(exc) or _code_of(exc) in _TRANSIENT


def reason_of(exc: BaseException) -> str:
    """Returns the message of the server or of the client, at most 300 characters."""
    if isinstance(exc, UnexpectedResponse):
        said = f"HTTP {exc.status_code}: {exc.content.decode(errors='replace')}"
    elif isinstance(exc, ResponseHandlingException):
        said = str(exc.source) or type(exc.source).__name__
    elif isinstance(exc, ResourceExhaustedResponse):
        said = str(exc.message)  # any JSON
    else:
        details = exc.details() if isinstance(exc, grpc.Call) else None
        said = details or str(exc) or type(exc).__name__
    return said[:_MAX_REASON_CHARS]
