"""The page *Map* in a browser."""

from __future__ import annotations

import httpx
import pytest

from tests.service.browser.support import (
    BLANK,
    CATEGORIES,
    HeldAnswer,
    Opened,
    Service,
    needs_a_browser,
    needs_photos,
    violations,
)

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Page, expect

pytestmark = [needs_a_browser, needs_photos]


def number(service: Service, category: str) -> int:
    """Number of photos of a category; 0 without the category."""
    headers = {"Authorization": f"Bearer {service.key}"}
    answer = httpx.get(f"{service.address}v1/categories/{category}/references", headers=headers)
    return sum(one["modality"] == "image" for one in answer.json()["items"]) if answer.status_code == 200 else 0


def lasso(page: Page) -> None:
    """Draws a line around the whole map."""
    plane = page.locator("#plane")
    plane.evaluate("one => one.scrollIntoView({block: 'center'})")  # axe scrolls
    box = plane.bounding_box()
    assert box
    right, bottom = box["x"] + box["width"] - 2, box["y"] + box["height"] - 2
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 2)  # the corners are round
    page.mouse.down()
    for x, y in ((right, box["y"] + 2), (right, bottom), (box["x"] + 2, bottom), (box["x"] + 2, box["y"] + 2)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()


def test_photos_of_a_category_are_moved_and_moved_back(opened: Opened, service: Service) -> None:
    before = number(service, "ketch")
    page = opened("/map")
    page.locator("#legend button", has_text="ketch").click()
    expect(page.locator("#chosen-photos li")).to_have_count(before)
    page.locator("#chosen-photos button").first.click()
    expect(page.locator("#chosen-photos li")).to_have_count(before - 1)
    page.fill("#put-name", "boat")
    page.locator('#put button[value="move"]').click()
    expect(page.locator("#legend button", has_text="boat")).to_contain_text(str(before - 1))
    assert (number(service, "ketch"), number(service, "boat")) == (1, before - 1)
    page.locator("#toasts button", has_text="Undo").click()
    expect(page.locator("#legend button", has_text="boat")).to_have_count(0)
    assert number(service, "ketch") == before


@pytest.mark.parametrize("by", ["Escape", "Cancel"])
def test_a_cancelled_move_is_undone(opened: Opened, service: Service, by: str) -> None:
    before = number(service, "ketch")
    page = opened(BLANK)
    held = HeldAnswer(page, "/references/move")
    page.goto("/map")
    page.locator("#legend button", has_text="ketch").click()
    page.fill("#put-name", "boat")
    page.locator('#put button[value="move"]').click()
    held.wait()
    assert (number(service, "ketch"), number(service, "boat")) == (0, before)
    if by == "Escape":
        page.keyboard.press("Escape")
    else:
        page.locator("#busy").get_by_role("button", name="Cancel").click()
    held.release()
    expect(page.locator("#toasts")).to_contain_text("Nothing was changed")
    assert (number(service, "ketch"), number(service, "boat")) == (before, 0)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_lasso_selects_what_it_surrounds(opened: Opened, service: Service, width: int, scheme: str) -> None:
    page = opened("/map", width=width, color_scheme=scheme)
    expect(page.locator("#legend button")).to_have_count(len(CATEGORIES))
    assert violations(page) == []
    lasso(page)
    expect(page.locator("#chosen-title")).to_contain_text(str(sum(number(service, name) for name in CATEGORIES)))
    assert violations(page) == []
    page.keyboard.press("Tab")
    page.locator("#plane").press("Escape")
    expect(page.locator("#chosen")).to_be_hidden()


def test_the_map_is_moved_and_enlarged(opened: Opened) -> None:
    page = opened("/map")
    expect(page.locator("#legend button")).to_have_count(len(CATEGORIES))
    page.locator('[data-tool="move"]').click()
    box = page.locator("#plane").bounding_box()
    assert box
    page.mouse.move(box["x"] + 5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 50, steps=3)
    page.mouse.up()
    page.locator('[data-tool="select"]').click()
    lasso(page)
    expect(page.locator("#chosen")).to_be_hidden()  # all points are beyond the edge
    page.locator('[data-zooms="0"]').click()
    lasso(page)
    expect(page.locator("#chosen")).to_be_visible()
