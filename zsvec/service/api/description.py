"""The description of the API (OpenAPI), from which clients are generated: what FastAPI says of it, made complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import models_json_schema

from zsvec.service.api import schemas

ABOUT = """\
The categories of a classifier and its answers, as JSON. The objects are those that the command line prints with
`--json`.

Every error is a problem as RFC 9457 has it, `application/problem+json`, and says what happened, with which value, and
what to do. Every answer has an `X-Request-ID`, which is in the log of the service.
"""
_SECURITY = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `ZSVEC_SERVE_KEYS`, with the right to read or to write. A service without keys, which "
        "serves its own machine alone, asks for none.",
    }
}


def completed(found: dict[str, Any], images: int) -> dict[str, Any]:
    """A description with what routes read, problems and keys.

    Args:
        found: As FastAPI makes it; it is changed.
        images: How many one request may have.
    """
    # Routes read these by themselves, so that FastAPI does not know of them.
    read_models = schemas.Given.__subclasses__()
    _, read = models_json_schema(
        [(model, "validation") for model in read_models] + [(schemas.Problem, "serialization")],
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
    return found


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a description."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(one)
