"""Inbox, Audit and Live in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.service.browser.support import (
    BLANK,
    DATA,
    SERVE_KEYS,
    HeldAnswer,
    Opened,
    Service,
    Services,
    needs_a_browser,
    needs_photos,
    photo_of,
    violations,
)
from tests.service.support import SECRETS

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, Route, expect

pytestmark = [needs_a_browser, needs_photos]

_WAITING = 12


@pytest.fixture(scope="module")
def desk(services: Services, photo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with images that wait, a mislabelled reference, and a duplicate."""
    store = shutil.copytree(photo_store, tmp_path_factory.mktemp("desk") / "desk")
    with ExitStack() as stack:
        served = services.start(store, stack, key=SECRETS["write"], keys=SERVE_KEYS)
        with httpx.Client(base_url=served.address, headers=bearer(served), timeout=60) as client:
            wrong = sorted((DATA / "references" / "ketch").iterdir())[5]
            for category, photo in (("ant", wrong), ("pagoda", photo_of("pagoda")), ("pagoda", photo_of("pagoda", 1))):
                added = client.post(f"/v1/categories/{category}/references", files=[file(photo)])
                assert added.status_code == 200
            unknown = sorted((DATA / "unknown").iterdir())[:_WAITING]
            assert client.post("/v1/inbox", files=[file(photo) for photo in unknown]).status_code == 200
        yield served


def bearer(served: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.key}"}


def file(photo: Path) -> tuple[str, tuple[str, bytes]]:
    return "images", (photo.name, photo.read_bytes())


@pytest.fixture
def at_desk(chromium: Browser, desk: Service) -> Iterator[Opened]:
    opened = Opened(chromium, desk)
    yield opened
    for context in chromium.contexts:
        context.close()
    assert opened.said == []


def current(page: Page) -> str:
    return str(page.locator(".tile.current").get_attribute("data-hash"))


def pictures(served: Service, category: str) -> set[str]:
    answer = httpx.get(f"{served.address}v1/categories/{category}/references", headers=bearer(served))
    return {one["hash"] for one in answer.json()["items"] if one["modality"] == "image"}


def test_images_are_labelled_by_keys(at_desk: Opened, desk: Service) -> None:
    page = at_desk("/inbox")
    tiles = page.locator(".tile")
    expect(page.locator(".tile:focus")).to_have_count(1)
    waiting = tiles.count()
    first = current(page)
    page.keyboard.press("ArrowRight")
    assert current(page) != first
    page.keyboard.press("ArrowLeft")
    assert current(page) == first
    name = page.locator("#choices button .name").first.inner_text()
    page.keyboard.press("1")
    expect(page.locator("#toasts")).to_contain_text(f"1 photo labelled “{name}”")
    expect(tiles).to_have_count(waiting - 1)
    expect(page.locator(".tile:focus")).to_have_count(1)
    assert first in pictures(desk, name)

    second = current(page)
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#panel-text")).to_contain_text("2 photos selected")
    page.keyboard.type("zebra 🦓")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("2 photos labelled “zebra 🦓”")
    page.keyboard.press("Delete")
    expect(page.locator("#toasts")).to_contain_text("1 photo dismissed")
    expect(page.locator("#waiting")).to_have_text(f"{waiting - 4} photos wait")

    page.reload()
    expect(page.locator("#waiting")).to_have_text(f"{waiting - 4} photos wait")
    expect(tiles).to_have_count(waiting - 4)
    page.goto("/categories/zebra%20%F0%9F%A6%93")
    expect(page.locator("[data-reference]")).to_have_count(2)
    assert second in [item.get_attribute("data-hash") for item in page.locator("[data-reference]").all()]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_buttons_of_a_photo_are_on_the_screen(at_desk: Opened, width: int) -> None:
    page = at_desk("/inbox", width=width)
    expect(page.locator(".tile:focus")).to_have_count(1)
    for name in ("Dismiss", "Label"):
        expect(page.locator("#panel").get_by_role("button", name=name, exact=True)).to_be_in_viewport(ratio=1)
    mark, dismiss = page.locator("#panel .mark").bounding_box(), page.locator("#dismiss").bounding_box()
    assert mark
    assert dismiss
    assert mark["x"] + mark["width"] <= dismiss["x"]


def test_a_category_is_found_by_typing(at_desk: Opened) -> None:
    page = at_desk("/inbox")
    expect(page.locator(".tile:focus")).to_have_count(1)
    waiting = page.locator(".tile").count()
    page.keyboard.type("KE")
    expect(page.locator("#suggestions bdi")).to_have_text(["ketch"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Another category")).to_have_value("ketch")
    assert violations(page) == []
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("1 photo labelled “ketch”")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tile")).to_have_count(waiting)


def test_an_undo_puts_images_and_groups_back(chromium: Browser, services: Services, tmp_path: Path) -> None:
    with ExitStack() as stack:
        served = services.start(tmp_path / "undone", stack)
        photos = [file(photo_of("brain", n)) for n in range(8)]
        assert httpx.post(f"{served.address}v1/inbox", files=photos, timeout=60).status_code == 200
        opened = Opened(chromium, served)
        page = opened(BLANK)
        page.route("**/inbox/names", propose)
        page.goto("/inbox")
        tiles, form = page.locator(".tile"), page.locator("form.group")
        expect(form).to_have_count(1)
        expect(tiles).to_have_count(8)
        form.get_by_label("Name of the category").fill("brain")
        form.get_by_role("button", name="Make this a category").click()
        expect(form).to_have_count(0)
        page.get_by_role("button", name="Undo").click()
        expect(form).to_have_count(1)
        expect(tiles).to_have_count(8)
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        for done, undone in (("dismissed", "dismiss"), ("labelled", "label")):
            tiles.first.click()
            first = current(page)
            page.route("**/inbox/next*", hold, times=1)  # is under way during the undo
            if done == "dismissed":
                page.get_by_role("button", name="Dismiss").click()
            else:
                page.get_by_label("Another category").fill("brain")
                page.keyboard.press("Enter")
            expect(page.locator("#toasts")).to_contain_text(done)
            page.get_by_role("button", name="Undo").click()
            expect(page.locator("#toasts")).to_contain_text(f"Undone: {undone}")
            held.pop().continue_()
            expect(tiles).to_have_count(8)
            assert first in [tile.get_attribute("data-hash") for tile in tiles.all()]
        page.context.close()
        assert opened.said == []


def test_images_are_labelled_by_touch(at_desk: Opened) -> None:
    page = at_desk("/inbox", width=390, has_touch=True)
    tiles = page.locator(".tile")
    expect(tiles.first).to_be_visible()
    waiting = tiles.count()
    page.get_by_role("button", name="Select several").tap()
    tiles.nth(1).tap()
    tiles.nth(2).tap()
    page.get_by_label("Another category").fill("table")
    page.get_by_role("button", name="Make category").tap()
    expect(page.locator("#toasts")).to_contain_text("2 photos labelled “table”")
    expect(tiles).to_have_count(waiting - 2)


def test_a_label_that_fails_brings_the_image_back(at_desk: Opened) -> None:
    page = at_desk(BLANK)
    page.route("**/inbox/label", lambda route: route.abort())
    page.goto("/inbox")
    expect(page.locator(".tile:focus")).to_have_count(1)
    first, waiting = current(page), page.locator(".tile").count()
    page.keyboard.press("1")
    expect(page.locator("#toasts")).to_contain_text("cannot be reached")
    expect(page.locator(".tile")).to_have_count(waiting)
    assert current(page) == first
    at_desk.said.clear()  # the browser's message


def test_a_cancelled_label_brings_the_image_back(at_desk: Opened, desk: Service) -> None:
    page = at_desk(BLANK)
    held = HeldAnswer(page, "/inbox/label")
    page.goto("/inbox")
    expect(page.locator(".tile:focus")).to_have_count(1)
    first, waiting = current(page), page.locator(".tile").count()
    name = page.locator("#choices button .name").first.inner_text()
    page.keyboard.press("1")
    held.wait()
    assert first in pictures(desk, name)
    page.keyboard.press("Escape")
    held.release()
    expect(page.locator("#toasts")).to_contain_text("Nothing was changed")
    expect(page.locator(".tile")).to_have_count(waiting)
    assert current(page) == first
    assert first not in pictures(desk, name)


def test_a_lost_answer_is_not_called_unchanged(at_desk: Opened, desk: Service) -> None:
    page = at_desk(BLANK)
    held = HeldAnswer(page, "/audit/move")
    page.goto("/audit")
    finding = mislabelled(page)
    expect(finding).to_have_count(1)
    digest = str(finding.get_attribute("data-finding")).split(":")[1]
    finding.get_by_role("button", name="Move to “ketch”").click()
    held.wait()
    page.locator("#busy").get_by_role("button", name="Cancel").click()
    held.lose()
    expect(page.locator("#toasts")).to_contain_text("not known whether")
    assert digest in pictures(desk, "ketch")
    page.goto("/changes")
    page.get_by_role("button", name="Undo: move").first.click()
    expect(page.locator("#toasts")).to_contain_text("Undone")
    assert digest in pictures(desk, "ant")
    at_desk.said.clear()  # the browser's message


def test_more_findings_are_loaded_after_a_failure(at_desk: Opened) -> None:
    page = at_desk(BLANK)
    page.route("**/audit/more?*", lambda route: route.fulfill(status=503), times=1)
    page.goto("/audit")
    labels = page.locator("#labels [data-finding]")
    expect(labels.first).to_be_visible()
    there = labels.count()
    hide = "kind => { kind.querySelector('.list').replaceChildren(); kind.querySelector('.more').hidden = false; }"
    page.locator("#labels").evaluate(hide)
    more = page.locator("#labels").get_by_role("button", name="Show more")
    more.click()
    expect(page.locator("#toasts").get_by_role("alert")).to_be_visible()
    expect(more).to_be_visible()
    more.click()
    expect(labels).to_have_count(there)
    at_desk.forget_refusals()


def test_a_group_becomes_a_category(chromium: Browser, services: Services, tmp_path: Path) -> None:
    with ExitStack() as stack:
        served = services.start(tmp_path / "new", stack)
        photos = [photo_of("brain", n) for n in range(8)]
        answer = httpx.post(f"{served.address}v1/inbox", files=[file(photo) for photo in photos], timeout=60)
        assert answer.status_code == 200

        opened = Opened(chromium, served)
        page = opened(BLANK)
        page.route("**/inbox/names", propose)  # embedding a thousand words is slow
        page.goto("/inbox")
        form = page.locator("form.group")
        expect(form).to_have_count(1)
        form.get_by_role("button", name="walnut").click()
        expect(form.get_by_label("Name of the category")).to_have_value("walnut")
        form.get_by_label("Name of the category").fill("brain")
        form.get_by_role("checkbox").first.uncheck()
        chosen = form.get_by_role("checkbox").count() - 1
        assert chosen >= 4
        form.get_by_role("button", name="Make this a category").click()
        expect(page.locator("#toasts")).to_contain_text(f"{chosen} photos labelled “brain”")
        expect(form).to_have_count(0)
        expect(page.locator(".tile")).to_have_count(len(photos) - chosen)
        page.goto("/categories/brain")
        expect(page.locator("[data-reference]")).to_have_count(chosen)
        page.context.close()
        assert opened.said == []


def propose(route: Route) -> None:
    """Answers with one name for the group on the page."""
    digest = route.request.frame.evaluate("document.querySelector('form.group .names').id")
    names = (
        f'<div id="{digest}" class="names" hx-swap-oob="true"><button type="button" data-fills>walnut</button></div>'
    )
    route.fulfill(body=names, content_type="text/html")


def mislabelled(page: Page) -> Locator:
    return page.locator("[data-finding^='label:'][data-finding$=':ant']")


def undo(page: Page, *brings_back: Locator) -> None:
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#toasts")).to_contain_text("Undone")
    for one in brings_back:
        expect(one).to_have_count(1)


def test_a_mislabelled_picture_is_moved_and_moved_back(at_desk: Opened, desk: Service) -> None:
    page = at_desk("/audit")
    finding = mislabelled(page)
    expect(finding).to_have_count(1)
    digest = str(finding.get_attribute("data-finding")).split(":")[1]
    finding.get_by_role("button", name="Move to “ketch”").click()
    expect(page.locator("#toasts")).to_contain_text("1 photo moved to “ketch”.")
    expect(finding).to_have_count(0)
    assert digest in pictures(desk, "ketch") - pictures(desk, "ant")
    undo(page, finding)
    assert digest in pictures(desk, "ant") - pictures(desk, "ketch")


def test_the_buttons_of_a_finding_are_on_one_line(at_desk: Opened) -> None:
    page = at_desk("/audit")
    buttons = mislabelled(page).get_by_role("button")
    expect(buttons).to_have_count(3)
    assert len({round(box["y"]) for button in buttons.all() if (box := button.bounding_box())}) == 1


def test_all_label_errors_above_a_probability_are_moved(at_desk: Opened, desk: Service) -> None:
    page = at_desk("/audit")
    labels = page.locator("[data-finding^='label:']")
    expect(labels.first).to_be_visible()
    there = labels.count()
    before = pictures(desk, "ant")
    button = page.locator("#sure button")
    page.get_by_label("above").fill("50")
    expect(button).to_have_text(f"Move all {there}")
    button.click()
    expect(page.locator("#toasts")).to_contain_text("moved")
    expect(labels).to_have_count(0)
    assert pictures(desk, "ant") < before
    undo(page)
    expect(labels).to_have_count(there)
    assert pictures(desk, "ant") == before


def test_findings_are_decided_by_keys(at_desk: Opened, desk: Service) -> None:
    page = at_desk("/audit")
    finding = mislabelled(page)
    expect(finding).to_have_count(1)
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-finding]:focus")).to_have_count(1)
    said = page.locator("#toasts")
    for key, done in (("1", "moved to “ketch”"), ("2", "ignored"), ("Delete", "removed")):
        finding.focus()
        page.keyboard.press(key)
        expect(said).to_contain_text(done)
        expect(finding).to_have_count(0)
        undo(page, finding)
    finding.focus()
    page.keyboard.type("zebu 🐂")
    page.keyboard.press("Enter")
    expect(said).to_contain_text("1 photo moved to “zebu 🐂”")
    assert len(pictures(desk, "zebu 🐂")) == 1
    undo(page, finding)
    finding.focus()
    page.keyboard.type("x")
    page.keyboard.press("Escape")
    expect(finding).to_be_focused()
    expect(page.locator("#bar")).to_be_hidden()


def test_selected_findings_are_decided_at_once(at_desk: Opened) -> None:
    page = at_desk("/audit")
    finding = mislabelled(page)
    expect(finding).to_have_count(1)
    bar = page.locator("#bar")
    finding.focus()
    page.keyboard.press("Space")
    expect(bar).to_contain_text("1 selected")
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()
    finding.get_by_role("checkbox").check()
    expect(bar.get_by_role("button", name="Move 1 as proposed")).to_be_visible()
    bar.get_by_role("button", name="Select all shown").click()
    bar.get_by_role("button", name="Ignore").click()
    expect(page.locator("#toasts")).to_contain_text("ignored")
    expect(page.locator("[data-finding]:visible:has(.select)")).to_have_count(0)
    undo(page, finding)


def test_a_decision_that_fails_brings_the_finding_back(at_desk: Opened) -> None:
    page = at_desk(BLANK)
    page.route("**/audit/move", lambda route: route.abort())
    page.goto("/audit")
    finding = mislabelled(page)
    finding.get_by_role("button", name="Move to “ketch”").click()
    expect(page.locator("#toasts")).to_contain_text("cannot be reached")
    expect(finding).to_have_count(1)
    at_desk.said.clear()  # the browser's message


def test_decisions_are_sent_after_a_load_that_fails(at_desk: Opened) -> None:
    page = at_desk(BLANK)
    fails = False
    page.route("**/audit/findings?*", lambda route: route.abort() if fails else route.continue_())
    page.goto("/audit")
    finding = mislabelled(page)
    expect(finding).to_have_count(1)
    fails = True
    with page.expect_event("requestfailed"):
        page.evaluate("document.body.dispatchEvent(new CustomEvent('zsvec:changed', { detail: { undone: 'x' } }))")
    expect(page.locator("#toasts")).to_contain_text("cannot be reached")
    fails = False
    finding.get_by_role("button", name="Move to “ketch”").click()
    expect(page.locator("#toasts")).to_contain_text("1 photo moved")
    undo(page, finding)
    at_desk.said.clear()  # the browser's message


def test_findings_are_filtered(at_desk: Opened) -> None:
    page = at_desk("/audit")
    kind, category = page.locator("#view [name=kind]"), page.locator("#view [name=category]")
    expect(mislabelled(page)).to_have_count(1)
    kind.select_option(label="Near-duplicates")
    expect(mislabelled(page)).to_have_count(0)
    kind.select_option(label="All findings")
    expect(mislabelled(page)).to_have_count(1)
    category.fill("pagoda")
    page.keyboard.press("Tab")
    expect(mislabelled(page)).to_have_count(0)
    page.goto("/audit?kind=labels&category=ant")
    expect(mislabelled(page)).to_have_count(1)
    expect(category).to_have_value("ant")


def test_ignored_findings_are_hidden_until_they_are_shown_again(at_desk: Opened) -> None:
    page = at_desk("/audit")
    findings = page.locator("[data-finding]:visible:has([data-act$=keep])")
    expect(findings.first).to_be_visible()
    there = findings.count()
    findings.first.locator("[data-act=keep]").focus()
    page.keyboard.press("Enter")
    expect(findings).to_have_count(there - 1)
    undo(page)
    expect(findings).to_have_count(there)
    findings.first.locator("[data-act=keep]").click()
    expect(page.locator("#toasts")).to_contain_text("ignored")
    page.reload()
    expect(findings).to_have_count(there - 1)
    page.get_by_role("button", name="Show", exact=True).click()
    expect(findings).to_have_count(1)
    findings.get_by_role("button", name="Show again").click()
    expect(page.locator("#toasts")).to_contain_text("shown again")
    page.get_by_label("Ignored findings").uncheck()
    expect(findings).to_have_count(there)


def test_the_overview_leads_to_the_label_errors(at_desk: Opened) -> None:
    page = at_desk("/categories")
    page.get_by_role("link", name="Overview").click()
    page.get_by_role("link", name="probably in a wrong category").click()
    expect(mislabelled(page)).to_have_count(1)


def test_live_shows_classified_images(at_desk: Opened, desk: Service) -> None:
    page = at_desk(BLANK)
    is_lost = False
    page.route("**/live/events", lambda route: route.abort() if is_lost else route.continue_())
    page.goto("/live")
    expect(page.locator("#connection")).to_have_text("Connected")
    expect(page.locator("#none")).to_be_visible()
    with httpx.Client(base_url=desk.address, headers=bearer(desk), timeout=60) as client:
        for photo in (photo_of("ketch", 3), photo_of("pagoda", 3)):
            assert client.post("/v1/classify", files=[file(photo)]).status_code == 200
    expect(page.locator("#last li")).to_have_count(2)
    expect(page.locator("#last")).to_contain_text("ketch")
    expect(page.locator("#last img").first).to_have_js_property("complete", True)
    assert page.locator("#last img").first.evaluate("image => image.naturalWidth") > 0
    expect(page.locator("[data-meter=known]")).not_to_contain_text("–")
    is_lost = True
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#connection")).to_contain_text("The connection is lost")
    is_lost = False
    expect(page.locator("#connection")).to_have_text("Connected")
    at_desk.said.clear()  # the browser's messages


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible(at_desk: Opened, theme: str) -> None:
    for width in (390, 1440):
        page = at_desk("/inbox", width=width, color_scheme=theme)
        for path, shown in (
            ("/inbox", ".tile"),
            ("/audit", "[data-finding]"),
            ("/overview", "#next-title"),
            ("/live", "[data-state=on]"),
        ):
            page.goto(path)
            expect(page.locator(shown).first).to_be_visible()
            assert violations(page) == [], (width, path)
        page.goto("/audit")
        mislabelled(page).get_by_role("checkbox").check()
        assert violations(page) == [], width
        page.context.close()
