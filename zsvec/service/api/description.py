"""Completes FastAPI's OpenAPI description: adds keys, problem details, and bodies that FastAPI does not parse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from zsvec.service.api import schemas

ABOUT = """\
The categories of a classifier and its predictions, as JSON. The objects are those that the commands print with
`--json`.

An error is a problem (RFC 9457), `application/problem+json`. `error` has a code for programs, `type` the address of its
description, and `detail` the cause, the value and the fix for people. With 429 and 503, `Retry-After` has the seconds
until the next attempt.

Every response has an `X-Request-ID`, which is in the log of the service.
"""
PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "The request was not done",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "headers": {"Retry-After": {"description": "Seconds; of 429 and 503.", "schema": {"type": "string"}}},
    }
}
"""``responses`` of every route, for errors as problem details."""
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The copy of this `ETag` is current"},
}
"""``responses`` of a route that returns the small copy of an image."""
_IMAGE = {"type": "string", "format": "binary"}
_SECURITY = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `ZSVEC_SERVE_KEYS`, with the right to read or to write. A service without keys "
        "serves its own machine only and needs none.",
    }
}


def body_of(model: type[BaseModel], *, form: bool = False, raw: bool = False) -> dict[str, Any]:
    """Returns the ``openapi_extra`` of a route that parses the request body without FastAPI.

    Args:
        model: Model of the JSON body.
        form: Whether a multipart form with the same fields is accepted.
        raw: Whether a single image as the body is accepted.
    """
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    if form:
        fields = {
            "images": {"type": "array", "items": _IMAGE, "minItems": 1},
            "texts": {"type": "array", "items": schemas.TEXT},
            "metadata": {"type": "object"},  # as JSON
            "parent": schemas.PARENT,
            "image": _IMAGE,
            "boxes": TypeAdapter(schemas.Boxes).json_schema(),  # as JSON
            "margin": TypeAdapter(schemas.Margin).json_schema(),
        }
        schema = {
            "type": "object",
            "properties": {name: fields[name] for name in model.model_fields},
            "required": [name for name, field in model.model_fields.items() if field.is_required()],
            "additionalProperties": False,
        }
        content["multipart/form-data"] = {"schema": schema}
    if raw:
        content |= {"image/*": {"schema": _IMAGE}, "application/octet-stream": {"schema": _IMAGE}}
    return {"requestBody": {"required": True, "content": content}}


def completed(description: dict[str, Any], max_images: int, *, keys: bool) -> dict[str, Any]:
    """Returns FastAPI's description with models of bodies and problems, API keys, and the maximum number of images.

    Without `keys`, a key is optional.
    """
    _, sent = models_json_schema(
        [(model, "validation") for model in schemas.Given.__subclasses__()] + [(schemas.Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    models = {**description["components"]["schemas"], **sent["$defs"]}
    description["components"] = {"schemas": dict(sorted(models.items())), "securitySchemes": _SECURITY}
    description["security"] = [{"key": []}] if keys else [{}, {"key": []}]
    bodies = [operation.get("requestBody") for path in description["paths"].values() for operation in path.values()]
    for part in _objects([bodies, sent["$defs"]]):
        for name in ("images", "boxes"):
            field = part.get("properties", {}).get(name, {})
            for one in field.get("anyOf", [field]):
                if one.get("type") == "array":
                    one["maxItems"] = max_images
    for part in _objects([description["paths"], description["components"]]):
        if isinstance(part.get("title"), str):  # repeats the name of the field
            del part["title"]
    return description


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(one)
