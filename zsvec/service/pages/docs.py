"""The page *API*: the OpenAPI description, rendered on the server, because the usual pages load scripts from a CDN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.pages.rendering import render

router = APIRouter()


@router.get("/docs")
async def show(request: Request) -> Response:
    """Shows every operation and every model of the API."""
    description = request.app.openapi()
    models = description["components"]["schemas"]
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "tag": operation["tags"][0],
            "name": operation["operationId"],
            "description": operation["description"],
            "parameters": operation.get("parameters", ()),
            "bodies": {kind: _kind(one["schema"]) for kind, one in _content(operation.get("requestBody"))},
            "answers": {
                status: [one["description"], *(_kind(part["schema"]) for _, part in _content(one))]
                for status, one in operation["responses"].items()
            },
        }
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return render(request, "docs.html", about=description["info"], operations=operations, models=models, kind=_kind)


def _content(part: Mapping[str, Any] | None) -> Any:
    return (part or {}).get("content", {}).items()


def _kind(schema: Mapping[str, Any]) -> str:
    """Returns the type of a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(_kind, choices)))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"“{value}”" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    return f"{kind} ({schema['format']})" if "format" in schema else kind
