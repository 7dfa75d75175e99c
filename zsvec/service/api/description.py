"""The description of the API (OpenAPI), from which clients are generated: what FastAPI says of it, made complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import models_json_schema

from zsvec.service.api import examples, schemas

ABOUT = """\
The categories of a classifier and its answers, as JSON. The objects are those that the command line prints with
`--json`.

Every error is a problem as RFC 9457 has it, `application/problem+json`, and says what happened, with which value, and
what to do. Every answer has an `X-Request-ID`, which is in the log of the service.
"""
_READ = (
    schemas.Images,
    schemas.CategoryGiven,
    schemas.CategoryChange,
    schemas.ReferenceChange,
    schemas.LabelGiven,
    schemas.Hashes,
    schemas.UndoGiven,
)  # by routes themselves, so that FastAPI does not know of them
_SECURITY = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `ZSVEC_SERVE_KEYS`, with the right to read or to write. A service without keys, which "
        "serves its own machine alone, asks for none.",
    }
}


def completed(found: dict[str, Any], images: int) -> dict[str, Any]:
    """A description with what routes read, problems, keys and examples.

    Args:
        found: As FastAPI makes it; it is changed.
        images: How many one request may have.
    """
    _, read = models_json_schema(
        [(model, "validation") for model in _READ] + [(schemas.Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    sent = [operation.get("requestBody") for operations in found["paths"].values() for operation in operations.values()]
    for part in _parts([read["$defs"], sent]):
        if "images" in part.get("properties", ()):
            part["properties"]["images"]["maxItems"] = images
    known = {**found["components"]["schemas"], **read["$defs"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    found["components"] = {"schemas": dict(sorted(known.items())), "securitySchemes": _SECURITY}
    found["security"] = [{"key": []}]
    for part in _parts([found["paths"], found["components"]]):
        if isinstance(part.get("title"), str):  # the name of a field, said once more
            del part["title"]
    for (path, method), (request, response) in examples.EXAMPLES.items():
        operation = found["paths"][path][method]
        if request is not None:
            operation["requestBody"]["content"]["application/json"]["example"] = request
        if response is not None:
            operation["responses"]["200"]["content"]["application/json"]["example"] = response
    return found


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a description."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(one)
