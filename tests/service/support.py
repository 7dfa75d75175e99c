"""Clients of services, for the API and for pages. API responses are checked against the OpenAPI description."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote

import jsonschema_rs
import pytest
from starlette.testclient import TestClient

from tests.support import coloured, encode
from zsvec.classifier import Classifier
from zsvec.service import Key, Keys, Limits, create_app
from zsvec.service.problems import CODES, TYPES

ALWAYS = {"x-request-id", "x-content-type-options", "content-security-policy", "referrer-policy", "x-frame-options"}
READ = "read-0123456789abcdef"
WRITE = "write-0123456789abcdef"
SECRETS = {"read": READ, "write": WRITE}
KEYS_VALUE = f"camera:read:{READ},ann:write:{WRITE}"
KEYS = Keys.from_environment({"ZSVEC_SERVE_KEYS": KEYS_VALUE})
PART = {"HX-Request": "true", "Accept": "text/html"}
"""Headers of a request of htmx for a part of a page."""

__all__ = ["KEYS", "READ", "WRITE", "Key", "Keys", "Limits", "asked", "bearer", "files", "path_to", "problem", "red"]


@contextmanager
def asked(classifier: Classifier, *, keys: Keys | None = None, limits: Limits | None = None) -> Iterator[TestClient]:
    """A client of a service on the loopback, which checks every response against the description."""
    app = create_app(classifier, keys=keys, limits=limits)
    described = _Described(app.openapi())
    with TestClient(app, base_url="http://localhost") as client:
        client.event_hooks = {"response": [described.check]}
        yield client


class _Described:
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
            assert CODES[said["error"]][0] == answer.status_code
            assert said["type"] == f"{TYPES}#{said['error']}"
            assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
        operations = next((found for pattern, found in self._paths if pattern.fullmatch(path)), None)
        operation = operations and operations.get(answer.request.method.lower())
        if operation:
            responses = operation["responses"]
            described = responses[str(answer.status_code) if answer.status_code < 400 else "default"].get("content", {})
            assert kind in described or not (described or answer.content)
            if kind.endswith("json"):
                schema = {**described[kind]["schema"], "components": self._components}
                jsonschema_rs.validate(schema, answer.json())


def path_to(name: str, *more: str) -> str:
    """The path of a category, or a path below."""
    return "/".join(["/v1/categories", quote(name, safe=""), *more])


def red(seed: int = 0) -> bytes:
    """A reddish picture."""
    return encode(coloured("red", seed))


def files(*images: bytes, name: str = "photo.png") -> list[tuple[str, tuple[str, bytes]]]:
    """Images as files of a form."""
    return [("images", (name, image)) for image in images]


def picture(colour: str, seed: int = 50, name: str = "photo.png") -> tuple[str, tuple[str, bytes]]:
    """A picture as a file of a form."""
    return "images", (name, encode(coloured(colour, seed)))


def bearer(key: str) -> dict[str, str]:
    """The Authorization header of a key."""
    return {"Authorization": f"Bearer {key}"}


def problem(answer: Any, status: int, *words: str) -> None:
    """Asserts that an answer is a problem with these words in the detail."""
    assert answer.status_code == status, answer.text
    assert all(word in answer.json()["detail"] for word in words), answer.text


def names(client: TestClient, **options: Any) -> Sequence[str]:
    """Names of all categories."""
    return [category["category"] for category in listed(client, "/v1/categories", **options)]


def listed(client: TestClient, path: str, **options: Any) -> list[dict[str, Any]]:
    """The items of the first page of a list."""
    answer = client.get(path, **options).raise_for_status().json()
    assert answer.keys() == {"items", "next"}
    items: list[dict[str, Any]] = answer["items"]
    return items


def images_of(classifier: Classifier, name: str) -> list[str]:
    """Hashes of the reference images of a category."""
    return [one.hash for one in classifier.references.of(name) if one.modality == "image"]


# Pages


@contextmanager
def visitor(classifier: Classifier, right: str | None = None) -> Iterator[TestClient]:
    """A browser; with a right, one that is signed in to a service with keys."""
    app = create_app(classifier, keys=None if right is None else KEYS)
    headers = {"Accept": "text/html", "Origin": "http://localhost"}
    with TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        if right is not None:
            assert client.post("/login", data={"key": SECRETS[right]}).status_code == 303
        yield client


@contextmanager
def audits_held_back(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """Holds audits back in the block, where pages hardly wait for them. After the block, pages wait for the result.

    Yields the function that makes the audits.
    """
    wait = "zsvec.service.pages.comparisons._RESPONSE_WAIT_S"
    ready, audit = threading.Event(), classifier.references.audit
    audits = Mock(side_effect=lambda **options: ready.wait(60) and audit(**options))
    monkeypatch.setattr(classifier.references, "audit", audits)
    monkeypatch.setattr(wait, 0.01)
    try:
        yield audits
    finally:
        ready.set()
        monkeypatch.setattr(wait, 60)


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        elements: Each tag with its attributes, in order.
        text: All text.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Attributes of all elements with a tag and these attributes."""
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def page_of(answer: Any, status: int = 200) -> Page:
    """Parses an answer as a page without anything that the Content-Security-Policy forbids."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    for tag, attributes in page.elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith(("on", "hx-on"))]
        assert tag not in ("script", "style", "link") or attributes.get("src") or attributes.get("href")
    return page


def done(answer: Any, *words: str) -> str:
    """Asserts that an answer reports a change with these words. Returns the id of the undo button, if any."""
    page = page_of(answer)
    assert all(word in page.text for word in words), page.text
    assert "zsvec:changed" in answer.headers["hx-trigger"]
    changes = page.all("input", name="change")
    assert len(changes) <= 1
    return str(changes[0]["value"]) if changes else ""


def undo(client: TestClient, change: str) -> Any:
    """Presses an undo button."""
    assert change
    return client.post("/undo", data={"change": change}, headers=PART)
