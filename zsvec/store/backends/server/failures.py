"""What the client of Qdrant raises, and what it means: to be tried again, refused, missing, or nonsense."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator

import grpc
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from zsvec.inputs.answers import AnswerError, AnswerTooLargeError
from zsvec.inputs.deadline import LateError

_REFUSED = {401, 403, 405, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_MISSING = {404, grpc.StatusCode.NOT_FOUND}
_TRANSIENT = {
    *(408, 429, 500, 502, 503, 504),
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN),  # of a node that has not noticed yet that another is away
    grpc.StatusCode.CANCELLED,  # by the server, after the time that the request gave it
}
_GRPC_TOO_LARGE = "message larger than max"  # gRPC itself says so, with the status of a busy server
_NONSENSE = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    AssertionError,
    RecursionError,
    AnswerError,
)  # raised by the client for an answer of no Qdrant
_MAX_REASON_CHARS = 300

UNANSWERED = (ApiException, QdrantException, grpc.RpcError, LateError)
"""Failures of a request to a server."""

FAILURES = (*UNANSWERED, RuntimeError, ValueError, *_NONSENSE)
"""All failures of the client: of requests, and of answers that it cannot read.

The client raises a plain ``ValueError`` for a number with more digits than Python reads, and gRPC raises one after
another thread has closed the connection.
"""


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.source if isinstance(exc, ResponseHandlingException) else exc.__cause__ or exc.__context__


def tls_problem(exc: BaseException) -> str | None:
    """What is wrong with the private connection, and what to do; ``None`` if that is not what failed."""
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
    """The status of REST or gRPC that a failure came with."""
    if isinstance(exc, UnexpectedResponse):
        return exc.status_code
    return exc.code() if isinstance(exc, grpc.RpcError) and isinstance(exc, grpc.Call) else None


def is_refusal(exc: BaseException | None) -> bool:
    """Whether the key may not do what was asked."""
    return _code_of(exc) in _REFUSED


def is_missing(exc: BaseException | None) -> bool:
    """Whether there is no such collection."""
    return _code_of(exc) in _MISSING


def is_nonsense(exc: BaseException) -> bool:
    """Whether the answer cannot be read: it is of no Qdrant."""
    return isinstance(exc, ValueError) or isinstance(_source(exc), (*_NONSENSE, ValidationError))


def is_too_large(exc: BaseException) -> bool:
    """Returns whether the answer has more bytes than its bound."""
    if _code_of(exc) == grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(exc, grpc.Call):
        return _GRPC_TOO_LARGE in (exc.details() or "")
    return isinstance(_source(exc), AnswerTooLargeError)


def _source(exc: BaseException) -> BaseException:
    return exc.source if isinstance(exc, ResponseHandlingException) else exc


def is_busy(exc: BaseException) -> bool:
    """Whether the server asks to be asked less."""
    if is_too_large(exc):
        return False
    # A QdrantException that is no ResourceExhaustedResponse: the seconds of its Retry-After are no whole number.
    return isinstance(exc, QdrantException) or _code_of(exc) in {429, grpc.StatusCode.RESOURCE_EXHAUSTED}


def is_transient(exc: BaseException) -> bool:
    """Whether the same request may succeed later, or at another node."""
    if isinstance(exc, ResponseHandlingException):
        return not is_nonsense(exc) and tls_problem(exc) is None
    if is_too_large(exc):
        return False
    return isinstance(exc, LateError) or is_busy(exc) or _code_of(exc) in _TRANSIENT


def reason_of(exc: BaseException) -> str:
    """Returns what the server, or the package underneath, says, in at most 300 characters."""
    if isinstance(exc, UnexpectedResponse):
        said = f"HTTP {exc.status_code}: {exc.content.decode(errors='replace')}"
    elif isinstance(exc, ResponseHandlingException):
        said = str(exc.source) or type(exc.source).__name__
    elif isinstance(exc, ResourceExhaustedResponse):
        said = str(exc.message)  # any JSON, of which the error itself makes no text
    else:
        details = exc.details() if isinstance(exc, grpc.Call) else None
        said = details or str(exc) or type(exc).__name__
    return said[:_MAX_REASON_CHARS]
