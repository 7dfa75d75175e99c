"""Sign-in in a browser: a link with a key asks for confirmation, and the key is in no address and no log."""

from __future__ import annotations

import pytest

from tests.service.browser.support import Opened, Service, needs_a_browser, needs_photos, photo_of
from tests.service.support import SECRETS

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import expect

pytestmark = [needs_a_browser, needs_photos]

ASKED = "Sign in with the key from this link?"


def test_a_link_with_a_key_signs_in_by_one_click(opened: Opened, service: Service) -> None:
    page = opened("/login", stranger=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
    page.goto(f"/#key={SECRETS['write']}")
    expect(page.get_by_role("dialog", name=ASKED)).to_be_visible()
    expect(page).to_have_url(f"{service.address}login")
    assert not [request for request in asked if request.startswith("POST")]
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="Categories")).to_be_visible()
    expect(page).to_have_url(service.address)
    assert page.evaluate("document.cookie") == ""
    assert len(asked) > 5
    assert not [address for address in asked if SECRETS["write"] in address]
    page.reload()
    expect(page.get_by_text("write", exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.goto("/categories")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert SECRETS["write"] not in service.log.read_text()


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_link_with_another_key_changes_nothing_before_it_is_confirmed(opened: Opened, how: str) -> None:
    """Otherwise the sender of a link could see what the browser classifies and changes with the key."""
    page = opened("/categories")
    expect(page.get_by_text("write", exact=True)).to_be_visible()
    page.goto(f"/#key={SECRETS['read']}")
    dialog = page.get_by_role("dialog", name=ASKED)
    expect(dialog).to_contain_text("This browser has the key “write”")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    if how == "button":
        page.keyboard.press("Enter")
    else:
        page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#sign-in-key")).to_have_value("")  # "close" is dispatched after the dialog is hidden
    page.reload()
    expect(page.get_by_text("write", exact=True)).to_be_visible()
    page.goto(f"/#key={SECRETS['read']}")
    page.get_by_role("dialog", name=ASKED).get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("read", exact=True)).to_be_visible()


def test_a_link_on_an_open_page_asks_for_confirmation(opened: Opened, service: Service) -> None:
    page = opened("/login", stranger=True)
    page.evaluate(f"location.hash = 'key={SECRETS['write']}'")
    expect(page.get_by_role("dialog", name=ASKED)).to_be_visible()
    expect(page).to_have_url(f"{service.address}login")


def test_a_wrong_key_is_refused(opened: Opened) -> None:
    page = opened("/#key=wrong-0123456789abcdef", stranger=True)
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Invalid key")
    page.get_by_label("Key", exact=True).fill("another-0123456789abcdef")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Invalid key")
    opened.forget_refusals()


def test_without_its_cookie_a_page_leads_to_sign_in(opened: Opened) -> None:
    page = opened("/login", stranger=True)
    page.get_by_label("Key", exact=True).fill(SECRETS["write"])
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("#chosen")).to_be_attached()
    page.context.clear_cookies()
    page.set_input_files("#chosen", str(photo_of("ketch")))
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    opened.forget_refusals()
