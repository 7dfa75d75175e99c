"""The first morning of a colleague with an empty store, from the first folder to the last undo, in a browser."""

from __future__ import annotations

import csv
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.service.browser.support import (
    DATA,
    Opened,
    Services,
    drop_on,
    needs_a_browser,
    needs_photos,
    numbers,
    violations,
)

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect

pytestmark = [needs_a_browser, needs_photos]

_NAMES = ("ant", "beaver", "brain", "ketch", "pagoda", "starfish")
_REFERENCES = 8  # of each category
_WRONG = 2  # photos of ketches in the folder of the ants
_TAKEN = 3  # photos of each category to classify
_STRANGERS = 4


def photos_of(part: str, category: str) -> list[Path]:
    return sorted((DATA / part / category).iterdir())


def copied(photos: list[Path], folder: Path, prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        shutil.copy(photo, folder / f"{prefix}{photo.name}")


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """A folder for each category, with two ketches among the ants, and a folder of photos to classify."""
    for name in _NAMES:
        copied(photos_of("references", name)[:_REFERENCES], tmp_path / "collected" / name)
        copied(photos_of("photos", name)[:_TAKEN], tmp_path / "camera", f"{name}-")
    copied(photos_of("references", "ketch")[_REFERENCES:][:_WRONG], tmp_path / "collected" / "ant", "boat-")
    copied(photos_of("unknown", "")[:_STRANGERS], tmp_path / "camera", "stranger-")
    return tmp_path


class Looks:
    """Checks what each page looks like in both themes, and saves a picture of it."""

    def __init__(self, page: Page, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._number = 0

    def __call__(self, name: str) -> None:
        self._number += 1
        for theme in ("dark", "light"):
            self._page.emulate_media(color_scheme=theme)
            assert violations(self._page) == [], (name, theme)
            self._page.screenshot(path=self._folder / f"{self._number:02} {name} {theme}.png")


@pytest.mark.parametrize("width", [1280, 390])
def test_first_morning(chromium: Browser, services: Services, collected: Path, width: int) -> None:
    with ExitStack() as stack:
        served = services.start(collected / "store", stack, keep="uncertain")
        page = (opened := Opened(chromium, served))("/", width=width)
        stack.callback(page.context.close)
        looks = Looks(page, collected)

        # A dropped folder becomes categories, one of them with another name.
        looks("empty")
        page.get_by_role("link", name="Add categories").click()
        page.wait_for_url("**/categories")  # with its scripts, for the drop
        drop_on(page.locator("h1"), collected / "collected")
        page.get_by_label("Category of the folder ketch").fill("sailing boat")
        looks("folders")
        page.get_by_role("dialog").get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".category-card")).to_have_count(len(_NAMES))
        looks("categories")
        first = dict.fromkeys(("beaver", "brain", "pagoda", "sailing boat", "starfish"), _REFERENCES)
        assert numbers(served) == first | {"ant": _REFERENCES + _WRONG}

        # The photos of the camera are classified; one answer is looked into and corrected.
        page.get_by_role("link", name="Classify").click()
        page.wait_for_url(served.address)
        drop_on(page.locator(".dropzone"), collected / "camera")
        expect(page.locator(".answer .actions")).to_have_count(len(_NAMES) * _TAKEN + _STRANGERS)
        beaver = page.locator(".answer", has_text="beaver-image_0001.jpg")
        expect(beaver).to_have_attribute("data-verdict", "unsure")
        beaver.locator("[data-shows=why]").click()
        expect(beaver.locator(".evidence .ranking li").first).to_be_visible()
        looks("evidence")
        beaver.locator("[data-shows=teach]").click()
        beaver.get_by_role("button", name="beaver", exact=True).click()
        expect(page.locator(".toast")).to_be_visible()
        looks("corrected")
        assert numbers(served) == first | {"ant": _REFERENCES + _WRONG, "beaver": _REFERENCES + 1}
        page.locator("#filters [data-verdict=unknown]").click()
        with page.expect_download() as download:
            page.locator("[data-downloads=csv]").click()
        rows = list(csv.DictReader(download.value.path().read_text(encoding="utf-8-sig").splitlines()))
        assert {row["unknown"] for row in rows} == {"true"}
        unknown = [row["source"] for row in rows]
        assert len(unknown) >= _STRANGERS - 1
        assert all(source.startswith("stranger-") for source in unknown)

        # The overview counts, and the list is still there afterwards.
        page.goto("/overview")
        expect(page.locator("#recognized-title")).to_be_visible()
        looks("overview")
        page.get_by_role("link", name="Classify").click()
        expect(page.locator(".answer .actions")).to_have_count(len(_NAMES) * _TAKEN + _STRANGERS)

        # Unknown photos wait in the inbox: one is labelled, one dismissed.
        page.get_by_role("link", name="Inbox").click()
        expect(page.locator(".tile").first).to_be_visible()
        waiting = page.locator(".tile").count()
        page.locator(".tile").first.click()
        looks("inbox")
        page.get_by_label("Another category").fill("menu")
        page.locator("#other button").click()
        expect(page.locator(".tile")).to_have_count(waiting - 1)
        page.locator("#dismiss").click()
        expect(page.locator(".tile")).to_have_count(waiting - 2)
        expect(page.locator("#toasts")).to_contain_text("1 photo dismissed")  # photos leave the page before
        assert numbers(served)["menu"] == 1

        # The audit finds the ketches among the ants.
        page.get_by_role("link", name="Audit").click()
        found = page.locator(".finding.doubt", has_text="boat-")
        expect(found).to_have_count(_WRONG)
        for number in range(_WRONG):
            found.locator(".select").nth(number).check()
        looks("audit")
        page.locator("#bar [data-bulk=move]").click()
        expect(found).to_have_count(0)
        expect(page.locator("#toasts")).to_contain_text("moved")
        assert numbers(served)["ant"] == _REFERENCES
        assert numbers(served)["sailing boat"] == _REFERENCES + _WRONG

        # On the map, a category is selected and moved; the change is undone in the list of changes.
        page.get_by_role("link", name="Map").click()
        page.locator("#legend button", has_text="menu").click()
        looks("map")
        page.locator("#put-name").fill("paper")
        page.locator("#put button[value=move]").click()
        expect(page.locator("#legend button", has_text="paper")).to_be_visible()
        page.goto("/changes")
        expect(page.locator(".change").first).to_contain_text("paper")
        looks("changes")
        page.locator(".change button").first.click()
        expect(page.locator(".change").nth(1)).to_contain_text("undone")
        assert numbers(served)["menu"] == 1
        page.goto("/categories/menu")
        expect(page.locator(".gallery [data-reference]")).to_have_count(1)
        looks("category")
        assert opened.said == []
