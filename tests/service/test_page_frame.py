"""The frame of all pages, static files, problems, and sign-in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise

import pytest
from starlette.testclient import TestClient

from tests.service.support import PART, SECRETS, Page, page_of, picture, visitor
from tests.support import coloured_store
from zsvec.classifier import Classifier

PAGES = ("/", "/categories", "/inbox", "/audit", "/live")
EVIL = "<script>alert(1)</script>"
WRONG = "wrong-0123456789abcdef"


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    """A store that no test of this module changes."""
    with coloured_store(2) as classifier:
        yield classifier


def test_each_page_has_a_heading_the_tabs_and_existing_files(browser: TestClient) -> None:
    for path in PAGES:
        page = page_of(browser.get(path))
        assert [len(page.all(tag)) for tag in ("h1", "main")] == [1, 1], path
        assert len(page.all("a", **{"aria-current": "page"})) == 1
        brand, *tabs = [found["href"] for found in page.all("a") if found.get("href") in PAGES][:6]
        assert (brand, tabs) == ("/", list(PAGES))
        used = [found.get("src") or found["href"] for tag in ("script", "link") for found in page.all(tag)]
        assert len(used) >= 4
        assert {browser.get(str(address)).status_code for address in used} == {200}


def test_headings_are_in_order_and_one_action_is_primary(browser: TestClient) -> None:
    digest = browser.get("/v1/categories/red/references").json()["items"][0]["hash"]
    for path in (*PAGES, "/map", "/overview", "/changes", "/docs", "/categories/red", f"/similar/{digest}"):
        text = re.sub(r"(?s)<dialog.*?</dialog>", "", browser.get(path).text)
        levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
        assert levels[0] == 1, path
        assert all(later <= level + 1 for level, later in pairwise(levels)), path
        assert len(re.findall(r'<(?:button|a)[^>]*class="[^"]*\bprimary\b', text)) <= 1, path


def test_every_page_has_a_link_to_the_api_and_no_commands(browser: TestClient) -> None:
    for path in (*PAGES, "/map", "/overview", "/changes", "/categories/red"):
        page = page_of(browser.get(path))
        assert [found["href"] for found in page.all("a") if found.get("href") == "/docs"] == ["/docs"], path
        assert not re.search(r"ZSVEC_|zsvec [a-z]+ ?-|--[a-z]", page.text), path
        assert not page.all("code"), path


def test_static_files_are_cached_until_one_changes(browser: TestClient) -> None:
    style, *_ = Page(browser.get("/").text).all("link", rel="stylesheet")
    answer = browser.get(str(style["href"]))
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    old = browser.get("/static/000000000000/zsvec.css")
    assert (old.content, old.headers["cache-control"]) == (answer.content, "no-store")
    for name in ("nothing.js", "..%2Fapp.py", "%2e%2e%2fapp.py", "zsvec.css%00"):
        assert browser.get(f"/static/x/{name}").status_code == 404


def test_htmx_is_the_file_that_its_note_names() -> None:
    folder = files("zsvec.service") / "static"
    note = (folder / "htmx.txt").read_text()
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", note)
    assert sha256((folder / "htmx.min.js").read_bytes()).hexdigest() == digest
    assert re.search(r'version:"([\d.]+)"', (folder / "htmx.min.js").read_text()).group(1) in note  # type: ignore[union-attr]


def test_problems_are_pages_toasts_or_json(browser: TestClient) -> None:
    page = page_of(browser.get("/nothing"), 404)
    assert "Not found." in page.text
    assert "openapi" not in page.text
    page = page_of(browser.get("/categories/nothing"), 404)
    assert "nothing" in page.text
    assert page.all("nav")
    part = page_of(browser.get("/categories/nothing", headers=PART), 404)
    assert (len(part.all("nav")), len(part.all("div", role="alert"))) == (0, 1)
    for path, headers in (
        ("/categories/nothing", {"Accept": "*/*"}),
        ("/nothing", {"Accept": "*/*"}),
        ("/v1/categories/nothing", {}),
        ("/v1/categories/nothing", PART),
    ):
        answer = browser.get(path, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_problem_has_no_html_of_a_request(browser: TestClient) -> None:
    for headers in ({}, PART):
        page = page_of(browser.get("/categories/%3Cscript%3Ealert(1)%3C%2Fscript%3E", headers=headers), 404)
        assert EVIL in page.text
        assert not [found for found in page.all("script") if not found.get("src")]


def test_sign_in_is_required_with_keys_only(browser: TestClient, classifier: Classifier) -> None:
    answer = browser.get("/login")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    with visitor(classifier, "write") as client:
        client.cookies.clear()
        for path in PAGES:
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert page_of(client.get("/login")).all("input", type="password", name="key")
        assert "Invalid key" in page_of(client.post("/login", data={"key": WRONG}), 401).text
        assert not client.cookies


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie_is_hidden_from_scripts_and_other_origins(classifier: Classifier, scheme: str) -> None:
    with visitor(classifier, "write") as client:
        answer = client.post("/login", data={"key": SECRETS["write"]}, headers={"X-Forwarded-Proto": scheme})
        cookie = answer.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.split("; "))
        assert ("secure" in cookie.split("; ")) == (scheme == "https")
        assert SECRETS["write"] not in answer.headers["location"]
        answer = client.post("/logout")
        assert answer.headers["location"] == "/login"
        assert answer.headers["clear-site-data"] == '"cache", "storage"'
        assert client.get("/").headers["location"] == "/login"


def test_each_key_and_store_has_a_list_of_photos_of_its_own(classifier: Classifier, browser: TestClient) -> None:
    def list_of(client: TestClient, path: str = "/") -> str | None:
        (body,) = page_of(client.get(path)).all("body")
        return body.get("data-list")

    lists = [list_of(browser)]
    for right in SECRETS:
        with visitor(classifier, right) as client:
            lists += [list_of(client)]
            assert list_of(client, "/categories") == lists[-1]
            client.cookies.clear()
            assert list_of(client, "/login") is None
    assert None not in lists
    assert len(set(lists)) == 3
    with coloured_store(2) as other, visitor(other) as client:
        assert (list_of(client) == lists[0]) == (other.location == classifier.location)


def test_a_link_with_a_key_asks_for_confirmation(classifier: Classifier, browser: TestClient) -> None:
    assert not page_of(browser.get("/")).all("dialog", id="sign-in")
    with visitor(classifier, "write") as client:
        for path in PAGES:
            page = page_of(client.get(path))
            assert page.all("dialog", id="sign-in")
            assert page.all("form", method="post", action="/login")
            assert page.all("input", type="hidden", name="key", value="")


def test_the_key_is_in_no_log(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), visitor(classifier, "write") as client:
        client.get("/")
        client.post("/login", data={"key": WRONG})
        client.get("/categories/nothing")
    assert "POST /login 401" in caplog.text
    assert "0123456789abcdef" not in caplog.text


def test_a_key_to_read_classifies_and_sees_no_change_buttons(classifier: Classifier) -> None:
    changing = (
        r'hx-post="(?!/undo)|data-opens="(?!clear-dialog)|data-shows="teach"|name="category"'
        r'|data-picks="(?!chosen|taken)|data-reference\b'
    )
    red = [picture("red", 7)]
    with visitor(classifier, "write") as writer:
        seen = {path: writer.get(path).text for path in ("/", "/categories", "/categories/red")}
        seen["/classify"] = writer.post("/classify", files=red).text
    with visitor(classifier, "read") as reader:
        for path, writers in seen.items():
            answer = reader.post(path, files=red) if path == "/classify" else reader.get(path)
            page = page_of(answer)
            assert not re.search(changing, answer.text), path
            assert re.search(changing, writers), path
            assert "/live" not in [found.get("href") for found in page.all("a")]


def test_cross_origin_requests_are_refused(browser: TestClient) -> None:
    for headers in ({"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert browser.post("/categories/red/remove", headers=headers).status_code == 403
