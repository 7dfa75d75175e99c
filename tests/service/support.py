"""Services to ask, whose every answer is held against the description of the API, and what to send them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import jsonschema_rs
from starlette.testclient import TestClient

from tests.support import coloured, encode
from zsvec.classifier import Classifier
from zsvec.service import Key, Keys, Limits, create_app

ALWAYS = {"x-request-id", "x-content-type-options", "content-security-policy", "referrer-policy", "x-frame-options"}
READ = "read-0123456789abcdef"
WRITE = "write-0123456789abcdef"
KEYS = Keys.from_environment({"ZSVEC_SERVE_KEYS": f"camera:read:{READ},ann:write:{WRITE}"})

__all__ = ["KEYS", "READ", "WRITE", "Key", "Keys", "Limits", "asked", "bearer", "files", "path_to", "problem", "red"]


@contextmanager
def asked(classifier: Classifier, *, keys: Keys | None = None, limits: Limits | None = None) -> Iterator[TestClient]:
    """What asks a service of a classifier, on the loopback. Each answer is one that the description has."""
    app = create_app(classifier, keys=keys, limits=limits)
    described = _Described(app.openapi())
    with TestClient(app, base_url="http://localhost") as client:
        client.event_hooks = {"response": [described.check]}
        yield client


class _Described:
    """Holds answers against a description."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._components = description["components"]
        self._paths = [
            (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), operations)
            for path, operations in description["paths"].items()
        ]

    def check(self, answer: Any) -> None:
        answer.read()
        assert answer.headers.keys() >= ALWAYS
        assert answer.status_code != 500, answer.text
        kind = answer.headers.get("content-type", "")
        path = answer.request.url.raw_path.partition(b"?")[0].decode()
        is_page = kind.startswith("text/html") and not path.startswith("/v1/")
        if answer.status_code >= 400 and answer.request.method != "HEAD" and not is_page:
            assert kind == "application/problem+json"
            said = answer.json()
            assert said["status"] == answer.status_code
            assert said["detail"] not in ("", said["title"])
            assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
        operations = next((found for pattern, found in self._paths if pattern.fullmatch(path)), None)
        operation = operations and operations.get(answer.request.method.lower())
        if operation:
            described = operation["responses"][str(answer.status_code)].get("content", {})
            assert kind in described or not (described or answer.content)
            if kind.endswith("json"):
                schema = {**described[kind]["schema"], "components": self._components}
                jsonschema_rs.validate(schema, answer.json())


def path_to(name: str, *more: str) -> str:
    """The path of a category, or of something below it."""
    return "/".join(["/v1/categories", quote(name, safe=""), *more])


def red(seed: int = 0) -> bytes:
    """A picture that is red, more or less."""
    return encode(coloured("red", seed))


def files(*images: bytes, name: str = "photo.png") -> list[tuple[str, tuple[str, bytes]]]:
    """Images as a form has them."""
    return [("images", (name, image)) for image in images]


def bearer(key: str) -> dict[str, str]:
    """The header that has a key."""
    return {"Authorization": f"Bearer {key}"}


def problem(answer: Any, status: int, *words: str) -> None:
    """Check that an answer is a problem, whose detail has these words."""
    assert answer.status_code == status, answer.text
    assert all(word in answer.json()["detail"] for word in words), answer.text


def names(client: TestClient, **options: Any) -> Sequence[str]:
    """The categories that there are."""
    return [category["category"] for category in client.get("/v1/categories", **options).json()]
