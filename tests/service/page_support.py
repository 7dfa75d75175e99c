"""Asks for pages in process, and reads their HTML."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

from starlette.testclient import TestClient

from zsvec.classifier import Classifier
from zsvec.service import Key, Keys, create_app

SECRETS = {"read": "read-0123456789abcdef", "write": "write-0123456789abcdef"}
KEYS = Keys.from_environment({"ZSVEC_SERVE_KEYS": ",".join(f"{name}:{name}:{key}" for name, key in SECRETS.items())})
PART = {"HX-Request": "true", "Accept": "text/html"}
"""Headers by which a script of a page asks."""

__all__ = ["KEYS", "PART", "SECRETS", "Key", "Page", "page_of", "visitor"]


@contextmanager
def visitor(classifier: Classifier, key: str | None = None) -> Iterator[TestClient]:
    """A browser that looks at the pages of a classifier; with a key of this right, one that has logged in."""
    app = create_app(classifier, keys=None if key is None else KEYS)
    headers = {"Accept": "text/html", "Origin": "http://localhost"}
    with TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        if key is not None:
            assert client.post("/login", data={"key": SECRETS[key]}).status_code == 303
        yield client


class Page(HTMLParser):
    """The elements of a page.

    Attributes:
        elements: Each tag with its attributes, in order.
        text: All that is no tag.
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
        """Attributes of all elements with a tag, that have these among them."""
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def page_of(answer: Any, status: int = 200) -> Page:
    """The page that an answer is: HTML, and nothing in it that its policy of contents forbids."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    for tag, attributes in page.elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith(("on", "hx-on"))]
        assert tag not in ("script", "style", "link") or attributes.get("src") or attributes.get("href")
    return page
