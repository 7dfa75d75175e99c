"""What all pages share: the frame, its files, problems in plain words, and keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files

import pytest
from starlette.testclient import TestClient

from tests.service.page_support import PART, SECRETS, Page, page_of, visitor
from tests.support import coloured, coloured_store, encode
from zsvec.classifier import Classifier

PAGES = ("/", "/categories", "/inbox", "/audit", "/live")
EVIL = "<script>alert(1)</script>"
RED = encode(coloured("red", 7))


@pytest.fixture(scope="module")
def colours() -> Iterator[Classifier]:
    """A store that no test of this module changes."""
    with coloured_store(2) as classifier:
        yield classifier


@pytest.fixture
def anybody(colours: Classifier) -> Iterator[TestClient]:
    with visitor(colours) as client:
        yield client


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_one_heading_the_tabs_and_files_that_are_there(anybody: TestClient, path: str) -> None:
    page = page_of(anybody.get(path))
    assert len(page.all("h1")) == 1
    assert len(page.all("a", **{"aria-current": "page"})) == 1
    brand, *tabs = [found["href"] for found in page.all("a") if found.get("href") in PAGES][:6]
    assert (brand, tabs) == ("/", list(PAGES))
    assert len(page.all("main")) == 1
    used = [found.get("src") or found["href"] for tag in ("script", "link") for found in page.all(tag)]
    assert len(used) >= 4
    for address in used:
        assert address
        assert anybody.get(address).status_code == 200


def test_files_are_kept_by_browsers_until_one_of_them_changes(anybody: TestClient) -> None:
    (style,) = Page(anybody.get("/").text).all("link", rel="stylesheet")
    answer = anybody.get(str(style["href"]))
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    old = anybody.get("/static/000000000000/zsvec.css")
    assert old.content == answer.content
    assert old.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e%2fapp.py", "zsvec.css%00"])
def test_no_other_file_is_given(anybody: TestClient, name: str) -> None:
    assert anybody.get(f"/static/x/{name}").status_code == 404


def test_htmx_is_the_file_that_its_note_says() -> None:
    folder = files("zsvec.service") / "static"
    note = (folder / "htmx.txt").read_text()
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", note)
    assert sha256((folder / "htmx.min.js").read_bytes()).hexdigest() == digest
    assert re.search(r'version:"([\d.]+)"', (folder / "htmx.min.js").read_text()).group(1) in note  # type: ignore[union-attr]


def test_who_asks_for_a_page_is_told_problems_in_one(anybody: TestClient) -> None:
    page = page_of(anybody.get("/nothing"), 404)
    assert "This is not there." in page.text
    assert "openapi" not in page.text
    page = page_of(anybody.get("/categories/nothing"), 404)
    assert "nothing" in page.text
    assert page.all("nav")


def test_a_script_of_a_page_is_told_problems_in_a_part(anybody: TestClient) -> None:
    page = page_of(anybody.get("/categories/nothing", headers=PART), 404)
    assert not page.all("nav")
    assert page.all("div", role="alert")


@pytest.mark.parametrize("path", ["/categories/nothing", "/nothing"])
def test_a_program_is_told_problems_as_json(anybody: TestClient, path: str) -> None:
    answer = anybody.get(path, headers={"Accept": "*/*"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("headers", [{}, PART])
def test_the_api_tells_problems_as_json_to_all(anybody: TestClient, headers: dict[str, str]) -> None:
    answer = anybody.get("/v1/categories/nothing", headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_problem_cannot_smuggle_html_in(anybody: TestClient) -> None:
    for headers in ({}, PART):
        page = page_of(anybody.get("/categories/%3Cscript%3Ealert(1)%3C%2Fscript%3E", headers=headers), 404)
        assert EVIL in page.text
        assert not [found for found in page.all("script") if not found.get("src")]


def test_without_keys_nobody_is_asked_for_one(anybody: TestClient) -> None:
    answer = anybody.get("/login")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_who_has_no_key_is_asked_for_it(colours: Classifier) -> None:
    with visitor(colours, "write") as client:
        client.cookies.clear()
        for path in PAGES:
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        page = page_of(client.get("/login"))
        assert page.all("input", type="password", name="key")
        page = page_of(client.post("/login", data={"key": "wrong-0123456789abcdef"}), 401)
        assert "no key of this service" in page.text
        assert not client.cookies


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_key_is_kept_where_no_script_and_no_other_page_gets_at_it(colours: Classifier, scheme: str) -> None:
    with visitor(colours, "write") as client:
        answer = client.post("/login", data={"key": SECRETS["write"]}, headers={"X-Forwarded-Proto": scheme})
        cookie = answer.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.split("; "))
        assert ("secure" in cookie.split("; ")) == (scheme == "https")
        assert SECRETS["write"] not in answer.headers["location"]
        answer = client.post("/logout")
        assert answer.headers["location"] == "/login"
        assert answer.headers["clear-site-data"] == '"cache"'
        assert client.get("/").headers["location"] == "/login"


def test_a_link_with_a_key_is_confirmed_where_keys_are_asked_for(colours: Classifier, anybody: TestClient) -> None:
    assert not page_of(anybody.get("/")).all("dialog", id="sign-in")
    with visitor(colours, "write") as client:
        for path in PAGES:
            page = page_of(client.get(path))
            assert page.all("dialog", id="sign-in")
            assert page.all("form", method="post", action="/login")
            assert page.all("input", type="hidden", name="key", value="")


def test_the_key_is_in_no_log(colours: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), visitor(colours, "write") as client:
        client.get("/")
        client.post("/login", data={"key": "wrong-0123456789abcdef"})
        client.get("/categories/nothing")
    assert "POST /login 401" in caplog.text
    assert "0123456789abcdef" not in caplog.text


def test_a_key_that_may_read_classifies_and_sees_nothing_that_changes(colours: Classifier) -> None:
    changing = r'hx-post="(?!/undo)|data-opens|data-teaches|data-picks="(?!chosen|taken)|data-reference\b'
    with visitor(colours, "write") as writer:
        seen = {path: writer.get(path).text for path in ("/", "/categories", "/categories/red")}
        seen["/classify"] = writer.post("/classify", files={"images": ("a.png", RED)}).text
    with visitor(colours, "read") as reader:
        for path, writers in seen.items():
            answer = reader.post(path, files={"images": ("a.png", RED)}) if path == "/classify" else reader.get(path)
            page = page_of(answer)
            assert not re.search(changing, answer.text), path
            assert bool(re.search(changing, writers)) == (path != "/")
            assert "/live" not in [found.get("href") for found in page.all("a")]


@pytest.mark.parametrize(
    "path",
    [
        "/correct",
        "/undo",
        "/categories",
        *(
            f"/categories/red/{what}"
            for what in ("references", "move", "references/remove", "rename", "merge", "remove")
        ),
    ],
)
def test_a_key_that_may_read_changes_nothing(colours: Classifier, path: str) -> None:
    with visitor(colours, "read") as client:
        answer = client.post(path, data={"name": "x", "category": "green", "new": "x", "hash": "0" * 64}, headers=PART)
        assert answer.status_code == 403
        assert [category.name for category in colours.categories()] == ["blue", "green", "red"]


def test_a_page_elsewhere_can_send_nothing(anybody: TestClient) -> None:
    for headers in ({"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert anybody.post("/categories/red/remove", headers=headers).status_code == 403
