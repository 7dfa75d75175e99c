"""Inbox and Classify in a browser, for a store whose photos may belong to several categories."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.service.browser.support import (
    BLANK,
    DATA,
    Opened,
    Service,
    Services,
    drop,
    needs_a_browser,
    needs_photos,
    photo_of,
    violations,
)
from zsvec.cli.spreadsheet import PREDICTION

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = [needs_a_browser, needs_photos]


@pytest.fixture(scope="module")
def many(services: Services, photo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without keys, with photos that wait."""
    folder = tmp_path_factory.mktemp("many")
    store = shutil.copytree(photo_store, folder / "several")
    more = folder / "more" / "ketch"
    more.mkdir(parents=True)
    shutil.copy(photo_of("ketch", 3), more)
    services.run(store, "import", str(more.parent), "--labels", "many")
    with ExitStack() as stack:
        served = services.start(store, stack)
        photos = [("images", (photo.name, photo.read_bytes())) for photo in sorted((DATA / "unknown").iterdir())[:8]]
        assert httpx.post(f"{served.address}v1/inbox", files=photos, timeout=60).status_code == 200
        yield served


@pytest.fixture
def opens(chromium: Browser, many: Service) -> Iterator[Opened]:
    opened = Opened(chromium, many)
    yield opened
    for context in chromium.contexts:
        context.close()
    many.restore()
    assert opened.said == []


def holders(served: Service, digest: str) -> set[str]:
    """Names of the categories that have a photo."""
    names = [one["category"] for one in httpx.get(f"{served.address}v1/categories").json()["items"]]
    return {
        name
        for name in names
        if any(one["hash"] == digest for one in httpx.get(f"{served.address}v1/categories/{name}").json()["stored"])
    }


def inbox(page: Page) -> str:
    """Waits for the photos of the inbox, and returns the hash of the first."""
    expect(page.locator(".tile:focus")).to_have_count(1)
    return str(page.locator(".tile.current").get_attribute("data-hash"))


def test_a_photo_gets_several_categories_by_keys(opens: Opened, many: Service) -> None:
    page = opens("/inbox")
    digest = inbox(page)
    waiting = page.locator(".tile").count()
    first, second, third = page.locator("#choices .name").all_inner_texts()[:3]
    pressed = page.locator("#choices [aria-pressed=true] .name")
    for key in "123":
        page.keyboard.press(key)
    expect(pressed).to_have_text([first, second, third])
    page.keyboard.press("2")
    expect(pressed).to_have_text([first, third])
    page.keyboard.type("zebra, striped")
    page.keyboard.press("Enter")
    expect(page.locator(".chip:visible")).to_have_text("zebra, striped×")
    for expected in ([first, second, third], [first, third]):  # in the empty field
        page.keyboard.press("2")
        expect(pressed).to_have_text(expected)
    assert violations(page) == []
    assert holders(many, digest) == set()
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text(f"1 photo labelled “{first}” and “{third}” and “zebra, striped”.")
    expect(page.locator(".tile")).to_have_count(waiting - 1)
    expect(page.locator(".tile:focus")).to_have_count(1)
    expect(page.locator(".chip, #choices [aria-pressed=true]")).to_have_count(0)
    assert holders(many, digest) == {first, third, "zebra, striped"}
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tile")).to_have_count(waiting)
    assert holders(many, digest) == set()


def test_enter_labels_with_what_is_chosen(opens: Opened, many: Service) -> None:
    page = opens("/inbox")
    digest = inbox(page)
    name = page.locator("#choices .name").first.inner_text()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text(f"1 photo labelled “{name}”.")
    assert holders(many, digest) == {name}
    page.keyboard.press("Enter")
    field = page.get_by_label("Another category")
    expect(field).to_be_focused()
    page.keyboard.press("Enter")  # nothing is chosen
    expect(field).to_be_focused()


def test_a_suggestion_is_chosen_and_left_out(opens: Opened) -> None:
    page = opens("/inbox")
    inbox(page)
    page.evaluate("document.querySelectorAll('.tile').forEach(tile => (tile.dataset.choices = '[]'))")
    page.keyboard.press("ArrowRight")
    page.keyboard.type("ke")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".chip")).to_have_text("ketch×")
    expect(page.locator("#suggestions")).to_have_count(0)
    expect(page.get_by_label("Another category")).to_have_value("")
    page.get_by_role("button", name="ketch: leave it out").click()
    expect(page.locator(".chip")).to_have_count(0)
    expect(page.get_by_label("Another category")).to_be_focused()


def test_chosen_categories_are_of_one_photo(opens: Opened) -> None:
    page = opens("/inbox")
    inbox(page)
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#choices [aria-pressed=true]")).to_have_count(0)
    page.keyboard.press("1")
    page.keyboard.press("Space")  # selects the photo
    expect(page.locator("#choices [aria-pressed=true]")).to_have_count(1)


def test_selected_photos_get_several_categories_by_touch(opens: Opened, many: Service) -> None:
    page = opens("/inbox", width=390, has_touch=True)
    tiles = page.locator(".tile")
    expect(tiles.first).to_be_visible()
    page.get_by_role("button", name="Select several").tap()
    digests = []
    for number in (1, 2):
        tiles.nth(number).tap()
        digests.append(str(tiles.nth(number).get_attribute("data-hash")))
    choice = page.locator("#choices button").first
    name = choice.locator(".name").inner_text()
    choice.tap()
    page.get_by_label("Another category").fill("table")
    assert violations(page) == []
    page.get_by_role("button", name="Make category").tap()
    expect(page.locator("#toasts")).to_contain_text(f"2 photos labelled “{name}” and “table”.")
    for digest in digests:
        assert holders(many, digest) == {name, "table"}


def test_a_label_that_fails_brings_the_photo_back(opens: Opened, many: Service) -> None:
    page = opens(BLANK)
    failing: list[Route] = []

    def fail(route: Route) -> None:
        failing.append(route)
        route.abort()

    page.route("**/inbox/label", fail)
    page.goto("/inbox")
    digest = inbox(page)
    waiting = page.locator(".tile").count()
    for key in ("1", "2", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#toasts")).to_contain_text("cannot be reached")
    expect(page.locator(".tile")).to_have_count(waiting)
    assert failing
    assert holders(many, digest) == set()
    opens.said.clear()  # the browser's message


def test_the_downloads_have_the_labels(opens: Opened, many: Service) -> None:
    photo = photo_of("ketch", 5)
    headers = {"HX-Request": "true", "Accept": "text/html", "Origin": many.address.rstrip("/")}
    files = {"images": (photo.name, photo.read_bytes())}
    html = httpx.post(f"{many.address}classify", files=files, headers=headers, timeout=60).text
    labels = [{"label": name, "probability": 0.9} for name in ("ketch", "=1", "a, b")]
    answer, changed = re.subn(r'"labels": \[[^]]*]', f'"labels": {json.dumps(labels)}', html)
    assert changed == 1
    page = opens(BLANK)
    page.route("**/classify", lambda route: route.fulfill(body=answer, content_type="text/html"))
    page.goto("/")
    drop(page, photo)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    (found,) = json.loads(download.value.path().read_text())
    assert found["labels"] == labels
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    rows = [*csv.DictReader(download.value.path().read_text(encoding="utf-8-sig").splitlines())]
    assert [*rows[0]] == [*PREDICTION, "labels"]
    assert [(row["source"], row["labels"]) for row in rows] == [
        (found["source"], name) for name in ("ketch", "'=1", "a, b")
    ]


def test_a_correction_names_several_categories(opens: Opened, many: Service) -> None:
    page = opens()
    rows = drop(page, photo_of("ketch", 5))
    photo = photo_of("ketch", 5)
    files = [("images", (photo.name, photo.read_bytes()))]
    (answer,) = httpx.post(f"{many.address}v1/classify", files=files, timeout=60).json()
    found = {one["label"] for one in answer["labels"]}
    rows.locator("[data-shows=teach]").click()
    pressed = rows.locator(".teach [aria-pressed=true]")
    assert set(pressed.all_inner_texts()) == found  # the labels of the answer
    for name in {"ant", "ketch"} - found:
        rows.locator(f".teach button[value={name}]").click()
    for name in found - {"ant", "ketch"}:
        rows.locator(f".teach button[value={name}]").click()
    rows.get_by_label("Another category").fill("boat")
    page.keyboard.press("Enter")
    expect(rows.locator(".chip:visible")).to_have_text("boat×")
    assert violations(page) == []
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("Learned that this is")
    expect(rows.locator(".before")).to_be_visible()
    assert holders(many, answer["hash"]) == {"ant", "boat", "ketch"}
