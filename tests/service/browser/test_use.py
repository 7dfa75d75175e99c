"""Classify and Categories in a browser, with real photographs."""

from __future__ import annotations

import base64
import json
import re
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest

from tests.service.browser.support import (
    BLANK,
    HeldAnswer,
    Opened,
    Service,
    Services,
    drop,
    drop_on,
    needs_a_browser,
    needs_photos,
    photo_of,
    violations,
)
from tests.support import coloured, encode

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Dialog, JSHandle, Locator, Page, expect

pytestmark = [needs_a_browser, needs_photos]


def card(page: Page, name: str) -> Locator:
    return page.locator(".category-card").filter(has=page.get_by_role("link", name=name, exact=True))


def test_a_category_is_added_and_a_photo_is_corrected(
    chromium: Browser,
    services: Services,
    photo_store: Path,
    tmp_path: Path,
) -> None:
    store = shutil.copytree(photo_store, tmp_path / "store")
    with ExitStack() as stack:
        served = services.start(store, stack)
        page = (opened := Opened(chromium, served))("/categories")
        page.get_by_role("button", name="Add a category").click()
        page.get_by_label("Name", exact=True).fill("red/panda? 🐼")
        page.get_by_label("Texts that describe it").fill("a small reddish animal\na bushy tail")
        page.set_input_files("#add-files", [str(photo_of("beaver", n)) for n in range(2)])
        page.get_by_role("button", name="Add", exact=True).click()
        expect(card(page, "red/panda? 🐼")).to_contain_text("2 photos, 2 texts")

        page.goto("/")
        shown = drop(page, photo_of("brain"))
        expect(shown).not_to_contain_text("Almost certainly brain")
        shown.locator("[data-shows=teach]").click()
        shown.get_by_label("Another category").fill("brain")
        shown.get_by_role("button", name="Label").click()
        expect(shown.locator(".before")).to_contain_text("Now: brain, over 99 %")
        expect(page.locator("#toasts")).to_contain_text("Learned that this is “brain”")
        page.get_by_role("button", name="Undo").click()
        expect(shown.locator(".before")).not_to_contain_text("Now: brain")
        page.get_by_role("button", name="Redo").click()
        expect(shown.locator(".before")).to_contain_text("Now: brain")

        page.reload()
        expect(drop(page, photo_of("brain"))).to_contain_text("Almost certainly brain")
        assert opened.said == []
        page.context.close()
    (reference,) = [one for one in shown_by(served, "brain") if one["modality"] == "image"]
    assert reference["source"] == photo_of("brain").name
    assert {one["source"] for one in shown_by(served, "red/panda? 🐼") if one["modality"] == "text"} == {
        "a small reddish animal",
        "a bushy tail",
    }


def shown_by(served: Service, name: str) -> list[dict[str, str]]:
    """References by ``zsvec show``, after the service has ended."""
    return json.loads(served.zsvec("show", name, "--json"))["stored"]


def test_each_photo_has_a_prediction_or_an_error(opened: Opened, tmp_path: Path) -> None:
    text = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    text.write_bytes(b"no image")
    page = opened()
    rows = drop(page, photo_of("ketch"), text, photo_of("ant"), photo_of("pagoda"), photo_of("ketch", 1))
    expect(rows.nth(1)).to_contain_text("This could not be read as a photo")
    expect(rows.nth(1)).to_contain_text("<img src=x onerror=alert(1)>.jpg")
    for number in (0, 2, 3, 4):
        rows.nth(number).get_by_role("button", name="Why?").click()
        expect(rows.nth(number).locator(".ranking li").first).to_be_visible()
        picture = rows.nth(number).locator(".pictures img").first
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") > 0
    expect(page.locator("#busy")).to_be_hidden()


def transfer(page: Page, *photos: Path) -> JSHandle:
    """Files as in a drag or on the clipboard."""
    return page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            return transfer;
        }""",
        [[photo.name, base64.b64encode(photo.read_bytes()).decode()] for photo in photos],
    )


def test_photos_are_dropped_anywhere_and_pasted(opened: Opened) -> None:
    page = opened()
    page.locator("body").dispatch_event("drop", {"dataTransfer": transfer(page, photo_of("ketch"), photo_of("ant"))})
    expect(page.locator(".answer .actions")).to_have_count(2)
    page.evaluate(
        "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))",
        transfer(page, photo_of("pagoda")),
    )
    expect(page.locator(".answer .actions")).to_have_count(3)

    page.goto("/categories")
    card(page, "ant").dispatch_event("drop", {"dataTransfer": transfer(page, photo_of("ant"))})
    expect(card(page, "ant")).to_contain_text("5 photos")
    page.locator("h1").dispatch_event("drop", {"dataTransfer": transfer(page, photo_of("brain"), photo_of("brain", 1))})
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=f"Leave out {photo_of('brain').name}").click()
    dialog.get_by_label("Name", exact=True).fill("brain")
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(card(page, "brain")).to_contain_text("1 photo, 1 text")


def small_pictures(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / f"{i}.png").write_bytes(encode(coloured("red", i)))
    return folder


def test_dropped_folders_are_read_with_their_subfolders(opened: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for category, below in (("ant", folder), ("pagoda", folder / "more" / "deep")):
        below.mkdir(parents=True)
        shutil.copy(photo_of(category), below / f"{category}.jpg")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").write_text("of the system")

    page = opened()
    drop_on(page.locator(".dropzone"), folder, photo_of("ketch"))
    expect(page.locator(".answer .actions")).to_have_count(3)
    names = page.locator(".answer .file").all_inner_texts()
    assert sorted(names) == sorted([photo_of("ketch").name, "ant.jpg", "pagoda.jpg"])

    page.goto("/categories")
    drop_on(card(page, "ketch"), folder)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(card(page, "ketch")).to_contain_text("6 photos")
    page.goto("/categories/pagoda")
    drop_on(page.locator("#pictures-title"), folder, photo_of("pagoda", 1))
    expect(page.locator("#pictures-title")).to_have_text("7 photos")

    page.goto("/categories")
    many = small_pictures(tmp_path / "many" / "below", 101)  # a browser lists a hundred at once
    drop_on(page.locator("h1"), many.parent, photo_of("ketch"))
    expect(page.locator("#folders-rows .number")).to_have_text(["1 photo", "101 photos"])


def test_a_folder_without_pictures_adds_nothing(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for path in ("/", "/categories", "/categories/ant"):
        page = opened(path)
        drop_on(page.locator("#main"), tmp_path)
        expect(page.locator("#toasts")).to_contain_text("There is no photo in the folder")
        expect(page.locator(".answer, dialog[open]")).to_have_count(0)
        expect(page.locator("#busy")).to_be_hidden()


def test_the_number_of_pictures_of_folders_is_limited(opened: Opened, tmp_path: Path) -> None:
    page = opened(BLANK)
    page.route("**/classify", lambda route: route.fulfill(body="<div class='verdict' data-headline=''></div>"))
    page.goto("/")
    drop_on(page.locator(".dropzone"), small_pictures(tmp_path / "a", 1990), small_pictures(tmp_path / "b", 20))
    expect(page.locator("#toasts").get_by_role("alert")).to_contain_text("Only 2,000 photos")
    expect(page.locator(".answer")).to_have_count(2000)
    page.set_input_files("#chosen", [str(tmp_path / "b" / f"{i}.png") for i in (17, 18, 19)])
    expect(page.locator("#toasts").get_by_role("alert")).to_contain_text("3 photos left the list")
    expect(page.locator(".answer")).to_have_count(2000)


# Notes whether the bar was shown, however short.
_WATCH_BAR = """() => new MutationObserver(() => {
    window.barWasShown ||= document.getElementById("busy-bar").checkVisibility();
}).observe(document.getElementById("busy"), { attributes: true, subtree: true })"""


def test_more_pictures_than_one_request_takes_are_one_change(opened: Opened, tmp_path: Path) -> None:
    page = opened("/categories")
    page.evaluate(_WATCH_BAR)
    drop_on(card(page, "ant"), small_pictures(tmp_path / "red", 70))
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator(".toast")).to_contain_text("70 photos added to “ant”")
    assert page.evaluate("window.barWasShown")
    expect(card(page, "ant")).to_contain_text("74 photos")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".toast")).to_contain_text("Undone")
    expect(card(page, "ant")).not_to_contain_text("74 photos")
    drop_on(page.locator("h1"), tmp_path / "red")
    page.get_by_label("Category of the folder red").fill("reds")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator(".toast")).to_contain_text("“reds” is a new category with 70 photos")
    page.get_by_role("button", name="Undo").click()
    expect(card(page, "ant")).to_be_visible()
    expect(card(page, "reds")).to_have_count(0)


def test_an_upload_is_cancelled(opened: Opened, tmp_path: Path) -> None:
    page = opened("/categories/ant")
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2000}
    network.send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#more-files", str(photo_of("ant")))
    expect(page.locator("#busy")).to_contain_text("Sending 1 photo")
    page.locator("#busy").get_by_role("button", name="Cancel").click()
    expect(page.locator(".toast")).to_contain_text("Nothing was changed")
    expect(page.locator("#busy")).to_be_hidden()
    network.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    page.reload()
    expect(page.locator("#pictures-title")).to_have_text("4 photos")


@pytest.mark.parametrize("by", ["Escape", "Cancel"])
def test_a_category_that_is_cancelled_once_it_was_made_is_undone(opened: Opened, by: str) -> None:
    page = opened(BLANK)
    held = HeldAnswer(page, "/categories")
    page.goto("/categories")
    page.get_by_role("button", name="Add a category").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("beaver")
    page.set_input_files("#add-files", str(photo_of("beaver")))
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#busy")).to_contain_text("Looking at 1 photo")
    held.wait()
    if by == "Escape":
        page.keyboard.press("Escape")
    else:
        dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("#busy")).to_contain_text("Cancelling")
    held.release()
    expect(page.locator(".toast")).to_contain_text("Nothing was changed")
    page.goto("/categories")
    expect(card(page, "ant")).to_be_visible()
    expect(card(page, "beaver")).to_have_count(0)
    page.goto("/changes")
    expect(page.locator(".change").first).to_contain_text("beaver")


def boxes(found: Locator) -> list[dict[str, float]]:
    """Boxes of all elements, in pixels of the page."""
    return found.evaluate_all("found => found.map(one => one.getBoundingClientRect().toJSON())")


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    wide = min(one["right"], other["right"]) - max(one["left"], other["left"])
    high = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return wide > 0.5 and high > 0.5


@pytest.mark.parametrize("width", [390, 1280])
def test_previews_do_not_overlap(opened: Opened, tmp_path: Path, width: int) -> None:
    page = opened("/categories", width=width)
    page.get_by_role("button", name="Add a category").click()
    page.set_input_files("#add-files", [*small_pictures(tmp_path, 20).glob("*.png")])
    expect(page.locator("#add-pictures li")).to_have_count(20)
    found = boxes(page.locator("#add-pictures li"))
    assert not [pair for pair in combinations(found, 2) if overlap(*pair)]
    assert all(abs(one["width"] - one["height"]) < 1 for one in found)


def test_the_undo_of_a_change_of_another_asks_first(
    chromium: Browser, services: Services, photo_store: Path, tmp_path: Path
) -> None:
    asked: list[str] = []

    def accepts_the_second(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept() if len(asked) == 2 else dialog.dismiss()

    with ExitStack() as stack:
        served = services.start(shutil.copytree(photo_store, tmp_path / "asks"), stack)
        page = Opened(chromium, served)("/changes")
        page.on("dialog", accepts_the_second)
        button = page.locator(".change").get_by_role("button", name="Undo")
        button.click()
        expect(page.locator(".toast")).to_have_count(0)
        button.click()
        expect(page.locator(".toast")).to_contain_text("Undone: import")
        page.locator(".toast").get_by_role("button", name="Redo").click()
        expect(page.locator(".toast").last).to_contain_text("Redone")
    assert len(asked) == 2
    assert re.fullmatch(r"Undo: import 12 photos ant, ketch, pagoda, \d\d \w+ 20\d\d, \d\d:\d\d UTC\?", asked[0])


@pytest.mark.parametrize("width", [390, 1280])
def test_recent_changes_fit_their_cards(opened: Opened, width: int) -> None:
    names = [f"a long name of a category {number}" for number in range(3)]
    page = opened("/categories/ant", width=width)
    for name in names:
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("New name").fill(name)
        page.get_by_role("dialog").get_by_role("button", name="Rename").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
    page.goto("/changes")
    for found in page.locator(".change").all():
        (row,), (text,) = boxes(found), boxes(found.locator("strong"))
        assert text["left"] - row["left"] >= 8
        for button in boxes(found.locator("button")):
            assert row["right"] - button["right"] >= 8
            assert button["height"] < 48  # one line


def test_a_full_queue_is_retried(opened: Opened) -> None:
    page = opened(BLANK)
    page.route("**/classify", lambda route: route.fulfill(status=429, headers={"Retry-After": "0"}), times=2)
    page.goto("/")
    expect(drop(page, photo_of("ant")).locator("[data-shows=why]")).to_be_visible()
    opened.forget_refusals()


def test_a_failed_request_can_be_retried(opened: Opened) -> None:
    page = opened()
    page.context.set_offline(True)
    page.set_input_files("#chosen", str(photo_of("ant")))
    rows = page.locator(".answer")
    expect(rows).to_contain_text("The service cannot be reached")
    page.context.set_offline(False)
    rows.get_by_role("button", name="Try again").click()
    expect(rows.locator("[data-shows=why]")).to_be_visible()
    opened.forget_refusals()


def test_a_reference_is_moved_by_dragging_and_undone(opened: Opened) -> None:
    page = opened("/categories")
    card(page, "ant").locator("[data-reference]").first.drag_to(card(page, "ketch"))
    expect(card(page, "ketch")).to_contain_text("5 photos")
    expect(card(page, "ant")).to_contain_text("3 photos")
    page.reload()
    expect(card(page, "ketch")).to_contain_text("5 photos")
    page.goto("/categories/ketch")
    page.locator(".gallery .select").last.check()
    page.locator(".gallery [data-reference]").last.hover()
    page.mouse.down()
    page.mouse.move(300, 300)
    page.locator(".targets").get_by_text("ant", exact=True).hover()
    page.mouse.up()
    expect(page.locator("#pictures-title")).to_have_text("4 photos")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#pictures-title")).to_have_text("5 photos")
    page.get_by_role("button", name="Redo").click()
    expect(page.locator("#pictures-title")).to_have_text("4 photos")


def test_a_reference_is_moved_by_a_long_press(opened: Opened) -> None:
    page = opened("/categories", width=390, has_touch=True, is_mobile=True)
    source, target = card(page, "ant").locator("[data-reference]").first, card(page, "ketch")
    target.scroll_into_view_if_needed()
    box, end = source.bounding_box(), target.bounding_box()
    assert box
    assert end
    touch = page.context.new_cdp_session(page)
    points = [(box["x"] + 20, box["y"] + 20), (end["x"] + 100, end["y"] + 60)]

    def send(kind: str, *at: tuple[float, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in at]})

    send("touchStart", points[0])
    expect(page.locator(".ghost")).to_be_visible()
    send("touchMove", points[1])
    send("touchEnd")
    expect(card(page, "ketch")).to_contain_text("5 photos")
    page.get_by_role("button", name="Undo").click()
    expect(card(page, "ketch")).to_contain_text("4 photos")


def test_references_are_moved_and_removed_by_keyboard(opened: Opened) -> None:
    page = opened("/categories/pagoda")
    pictures = page.locator(".gallery [data-reference]")
    pictures.first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("A photo of “pagoda”")
    expect(dialog.get_by_label("Move to")).to_be_focused()
    page.keyboard.type("ketch")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#pictures-title")).to_have_text("3 photos")
    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.locator("#pictures-title")).to_have_text("4 photos")

    boxes = page.locator(".gallery .select")
    for number in range(2):
        boxes.nth(number).focus()
        page.keyboard.press("Space")
    page.get_by_role("button", name="Move or remove …").press("Enter")
    expect(dialog).to_contain_text("2 photos")
    dialog.get_by_role("button", name="Remove").press("Enter")
    expect(page.locator("#pictures-title")).to_have_text("2 photos")
    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.locator("#pictures-title")).to_have_text("4 photos")


def test_a_category_is_renamed_merged_and_removed_and_each_is_undone(opened: Opened) -> None:
    page = opened("/categories/pagoda")
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("ketch")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("dialog")).to_contain_text("There is a category “ketch” already")
    page.get_by_label("New name").fill("tower/a?b")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("tower/a?b")
    expect(page).to_have_url(f"{page.url.partition('/categories')[0]}/categories/tower%2Fa%3Fb")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("tower/a?b")
    page.goto("/categories/tower%2Fa%3Fb")
    page.get_by_role("button", name="Merge").click()
    page.get_by_label("The other category").fill("ketch")
    page.get_by_role("dialog").get_by_role("button", name="Merge").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("ketch")
    expect(page.locator("#pictures-title")).to_have_text("8 photos")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#pictures-title")).to_have_text("4 photos")
    page.goto("/categories/tower%2Fa%3Fb")
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator(".category-card")).to_have_count(2)
    expect(page.get_by_role("heading", level=1)).to_have_text("Categories")
    expect(page.get_by_role("button", name="Add a category")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(card(page, "tower/a?b")).to_be_visible()
    page.goto("/categories/tower%2Fa%3Fb")
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("pagoda")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("pagoda")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("tower/a?b")
    page.get_by_role("button", name="Redo").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("pagoda")
    opened.forget_refusals()


def test_a_category_is_placed_in_the_tree_and_it_is_undone(opened: Opened) -> None:
    page = opened("/categories/pagoda")
    page.get_by_role("button", name="Place", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Below, topmost first").fill("artefact>building")
    assert violations(page) == []
    dialog.get_by_role("button", name="Place", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text("“pagoda” is now below “artefact > building”.")
    expect(page.locator("#content")).to_contain_text("Below artefact > building")
    page.get_by_role("button", name="Place", exact=True).click()
    expect(dialog.get_by_label("Below, topmost first")).to_have_value("artefact > building")
    dialog.get_by_label("Below, topmost first").fill("pagoda")
    dialog.get_by_role("button", name="Place", exact=True).click()
    expect(page.locator("body")).to_contain_text("cannot be below itself")
    dialog.get_by_role("button", name="Cancel").click()
    page.goto("/categories")
    expect(card(page, "pagoda")).to_contain_text("artefact > building")
    page.goto("/")
    row = drop(page, photo_of("pagoda")).first
    row.get_by_role("button", name="Why?").click()
    expect(row).to_contain_text("pagoda")
    page.goto("/categories/pagoda")
    page.get_by_role("button", name="Place", exact=True).click()
    dialog.get_by_label("Below, topmost first").fill("")
    dialog.get_by_role("button", name="Place", exact=True).click()
    expect(page.locator("#content")).not_to_contain_text("Below artefact")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#content")).to_contain_text("Below artefact > building")
    opened.forget_refusals()


def test_two_browsers_see_each_others_changes(opened: Opened) -> None:
    first, second = opened("/categories/ant"), opened("/categories/ant")
    first.set_input_files("#more-files", [str(photo_of("ant", n)) for n in range(2)])
    expect(first.locator("#pictures-title")).to_have_text("6 photos")
    second.get_by_label("Another text").fill("an insect")
    second.get_by_role("button", name="Add text").click()
    expect(second.locator("#pictures-title")).to_have_text("6 photos")
    expect(second.locator("#texts-title")).to_have_text("2 texts")
    first.get_by_role("button", name="Undo").click()  # of a category that the other browser has changed
    expect(first.locator("#toasts")).to_contain_text("changed since")
    second.get_by_role("button", name="Undo").click()
    expect(second.locator("#texts-title")).to_have_text("1 text")
    first.goto("/changes")
    first.locator("summary").filter(has_text="Add").first.click()
    first.get_by_role("button", name="Undo: add ant").first.click()
    expect(first.locator("#toasts")).to_contain_text("Undone: add “ant”")
    opened.forget_refusals()


def add_text(page: Page, text: str) -> None:
    page.get_by_label("Another text").fill(text)
    page.get_by_role("button", name="Add text").click()
    expect(page.locator(".texts")).to_contain_text(text)


def test_one_message_is_shown_and_leaves(opened: Opened) -> None:
    page = opened("/categories/ant", lasting=False)
    page.clock.install()
    page.reload()
    page.clock.pause_at(datetime.now(UTC) + timedelta(hours=1))  # else the clock goes on beside `run_for`
    toasts = page.locator(".toast")
    for text in ("an insect", "a small insect"):
        add_text(page, text)
        expect(toasts).to_have_count(1)
    page.clock.run_for(7000)
    expect(toasts).to_have_count(1)
    toasts.hover()
    page.clock.run_for(20_000)
    expect(toasts).to_have_count(1)
    page.mouse.move(5, 5)
    page.get_by_role("button", name="Undo").focus()
    page.clock.run_for(20_000)
    expect(toasts).to_have_count(1)
    page.get_by_label("Another text").focus()
    page.clock.run_for(7000)
    expect(toasts).to_have_count(1)
    page.clock.run_for(2000)
    expect(toasts).to_have_count(0)
    page.goto("/changes")
    page.get_by_role("button", name="Undo: add ant").first.click()
    expect(toasts).to_contain_text("Undone: add “ant”")
    assert "a small insect" not in page.request.get("/categories/ant").text()


@pytest.mark.parametrize("width", [390, 1280])
def test_messages_cover_no_field_and_no_button(opened: Opened, width: int) -> None:
    page = opened("/categories/ant", width=width)
    add_text(page, "an insect")
    fields = page.locator("input:visible:not(.select), button:visible:not(.reference):not(.toast button)")
    page.set_viewport_size({"width": width, "height": 420})
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height - 420, 40):
        page.evaluate(
            "top => new Promise(done => { onscrollend = done; scrollTo(0, top); setTimeout(done, 300) })", top
        )
        (message,) = boxes(page.locator(".toast"))
        assert not [box for box in boxes(fields) if overlap(message, box)], top
        assert message["top"] >= 0
        assert message["bottom"] <= 420


def test_every_tab_is_visible_at_any_width(opened: Opened) -> None:
    page = opened("/live")
    for width in (320, 360, 390, 480, 576, 580, 640, 768, 1024, 1280):
        page.set_viewport_size({"width": width, "height": 860})
        (menu,) = boxes(page.locator(".tabs"))
        tabs = boxes(page.locator(".tabs a"))
        assert len(tabs) == 6
        assert max(tab["right"] for tab in tabs) <= min(menu["right"], width), width
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible(opened: Opened, theme: str) -> None:
    for width in (390, 1440):
        page = opened("/", width=width, color_scheme=theme)
        assert violations(page) == [], width
        rows = drop(page, photo_of("ketch"), photo_of("brain"))
        assert violations(page) == [], width
        for shows in ("teach", "why"):
            rows.first.locator(f"[data-shows={shows}]").click()
        assert violations(page) == [], (width, "open")
        for path in ("/categories", "/categories/ant", "/nothing"):
            page.goto(path)
            assert violations(page) == [], (width, path)
        page.goto("/categories/ant")
        page.locator(".gallery .select").first.check()
        page.locator("[data-reference]").first.click()
        assert violations(page) == [], (width, "dialog")
        page.context.close()
    opened.forget_refusals()
