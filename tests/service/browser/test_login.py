"""Keys in a browser: the address with a key logs in, and nothing that anybody reads has it."""

from __future__ import annotations

import pytest

from tests.service.browser.support import Opened, Service, needs_a_browser, needs_photos, photo_of
from tests.service.page_support import SECRETS

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import expect

pytestmark = [needs_a_browser, needs_photos]


def test_the_address_with_a_key_logs_in_and_no_log_and_no_request_has_it(opened: Opened, service: Service) -> None:
    page = opened("/login", stranger=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"/#key={SECRETS['write']}")
    expect(page.get_by_role("link", name="Categories")).to_be_visible()
    expect(page).to_have_url(service.address)
    assert page.evaluate("document.cookie") == ""
    assert len(asked) > 5
    assert not [address for address in asked if SECRETS["write"] in address]
    page.reload()
    expect(page.get_by_text("write", exact=True)).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Key")).to_be_focused()
    page.goto("/categories")
    expect(page.get_by_label("Key")).to_be_visible()
    assert SECRETS["write"] not in service.log.read_text()


def test_a_wrong_key_is_said(opened: Opened) -> None:
    page = opened("/#key=wrong-0123456789abcdef", stranger=True)
    expect(page.locator("#toasts")).to_contain_text("This is no key of this service")
    page.get_by_label("Key").fill("another-0123456789abcdef")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("This is no key of this service")
    opened.forget_refusals()


def test_a_key_that_may_read_classifies_and_is_offered_no_change(opened: Opened) -> None:
    page = opened("/login", stranger=True)
    page.get_by_label("Key").fill(SECRETS["read"])
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.set_input_files("#chosen", str(photo_of("ketch")))
    expect(page.locator(".ranking li").first).to_be_visible()
    expect(page.get_by_text("That is a")).to_have_count(0)
    for path, buttons in (("/categories", 0), ("/categories/ant", 0)):
        page.goto(path)
        expect(page.locator("main").get_by_role("button")).to_have_count(buttons)


def test_a_key_that_is_taken_away_leads_to_the_login(opened: Opened) -> None:
    page = opened("/login", stranger=True)
    page.get_by_label("Key").fill(SECRETS["write"])
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("#chosen")).to_be_attached()
    page.context.clear_cookies()
    page.set_input_files("#chosen", str(photo_of("ketch")))
    expect(page.get_by_label("Key")).to_be_visible()
    opened.forget_refusals()
