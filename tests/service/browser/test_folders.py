"""Folders become categories, categories are found by typing, and changes that run are cancelled, in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.service.browser.support import (
    BLANK,
    DATA,
    HeldAnswer,
    Opened,
    Service,
    Services,
    drop_on,
    needs_a_browser,
    needs_photos,
    numbers,
    photo_of,
    until,
    violations,
)
from tests.support import coloured, encode

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, Route, expect

pytestmark = [needs_a_browser, needs_photos]


def folder_of(folder: Path, number: int, colour: str = "red", seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / f"{i}.png").write_bytes(encode(coloured(colour, seed + i)))
    return folder


def row(page: Page, name: str) -> Locator:
    return page.locator("#folders-rows tr").filter(has=page.get_by_label(name, exact=True))


def answer_first(status: int) -> Callable[[Route], None]:
    """Answers the first POST with a status, and lets the service answer the other requests."""
    answered: list[Route] = []

    def answer(route: Route) -> None:
        if route.request.method == "POST" and not answered:
            answered.append(route)
            route.fulfill(status=status)
        else:
            route.continue_()

    return answer


def add(page: Page) -> None:
    page.get_by_role("dialog").get_by_role("button", name="Add", exact=True).click()


def test_folders_become_categories_as_one_change(opened: Opened, service: Service, tmp_path: Path) -> None:
    before = numbers(service)
    photos = tmp_path / "photos"
    folder_of(photos / "reds", 70)
    folder_of(photos / "Ant", 2, "blue")
    shutil.copy(photo_of("ant"), photos / "Ant" / "known.jpg")
    folder_of(photos / "pagodas" / "deep", 1, "green")
    (photos / "pagodas" / "known.jpg").write_bytes(known := photo_of("ketch", 5).read_bytes())
    headers = {"Authorization": f"Bearer {service.key}"}
    path = f"{service.address}v1/categories/ketch/references"
    httpx.post(path, headers=headers, files={"images": ("k.jpg", known)}, timeout=60).raise_for_status()
    before["ketch"] += 1

    page = opened("/categories")
    drop_on(page.locator("h1"), photos)
    dialog = page.get_by_role("dialog")
    expect(page.locator("#folders-rows tr")).to_have_count(3)
    ant, pagodas, reds = (row(page, f"Category of the folder {name}") for name in ("Ant", "pagodas", "reds"))
    expect(ant.get_by_role("combobox")).to_have_value("ant")
    expect(ant.locator(".state")).to_contain_text("adds to the existing category of 4 photos")
    expect(reds.locator(".number")).to_have_text("70 photos")
    expect(reds.locator(".state")).to_contain_text("new")
    expect(pagodas.locator(".state")).to_contain_text("1 photo also in “ketch”")
    expect(reds.locator(".previews img")).to_have_count(3)
    expect(page.locator("#folders-note")).to_be_empty()
    assert numbers(service) == before
    assert violations(page) == []
    reds.get_by_role("combobox").fill("all reds")
    dialog.get_by_label("Leave out the 1 photo").check()
    add(page)
    expect(page.locator(".toast")).to_contain_text("74 photos added to 3 categories, of which 2 are new")
    assert numbers(service) == {**before, "all reds": 70, "ant": before["ant"] + 3, "pagodas": 1}
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".toast")).to_contain_text("Undone")
    assert numbers(service) == before


def test_a_folder_is_chosen_by_keyboard_and_rows_are_left_out(opened: Opened, service: Service, tmp_path: Path) -> None:
    folder_of(tmp_path / "many" / "greens", 2, "green")
    folder_of(tmp_path / "many" / "blues", 1, "blue")
    folder_of(tmp_path / "many", 1)  # beside several folders
    (tmp_path / "many" / "greens" / ".hidden.png").write_bytes(b"of the system")
    page = opened("/categories", width=390)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add a folder").press("Enter")
    chooser.value.set_files(tmp_path / "many")
    expect(page.locator("#folders-rows .number")).to_have_text(["1 photo", "2 photos", "1 photo"])
    assert violations(page) == []
    for name in ("blues", "many"):
        page.get_by_role("button", name=f"Leave out {name}").click()
    expect(page.locator("#folders-rows tr")).to_have_count(1)
    add(page)
    expect(page.locator(".toast")).to_contain_text("“greens” is a new category with 2 photos")
    assert "blues" not in numbers(service)


def test_one_folder_on_a_card_adds_to_the_card_after_a_look(opened: Opened, service: Service, tmp_path: Path) -> None:
    before = numbers(service)
    page = opened("/categories")
    drop_on(page.locator("[data-drop=ant]"), folder_of(tmp_path / "reds", 2))
    expect(page.get_by_role("dialog").get_by_role("combobox")).to_have_value("ant")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert numbers(service) == before


def test_a_second_folder_is_appended_and_a_failed_addition_keeps_the_table(
    opened: Opened, service: Service, tmp_path: Path
) -> None:
    before = numbers(service)
    page = opened(BLANK)
    page.route("**/categories", answer_first(409))
    page.goto("/categories")
    drop_on(page.locator("h1"), folder_of(tmp_path / "reds", 2))
    row(page, "Category of the folder reds").get_by_role("combobox").fill("all reds")
    known_photo = min((DATA / "references" / "ant").iterdir())
    shutil.copy(known_photo, folder_of(tmp_path / "blues", 1, "blue") / "known.jpg")
    drop_on(page.get_by_role("dialog").get_by_role("heading"), tmp_path / "blues")
    expect(page.locator("#folders-rows .number")).to_have_text(["2 photos", "2 photos"])
    expect(row(page, "Category of the folder reds").get_by_role("combobox")).to_have_value("all reds")
    known = row(page, "Category of the folder blues").locator(".state")
    expect(known).to_contain_text("1 photo also in “ant”")
    add(page)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()
    expect(page.locator("#folders-note")).to_be_empty()
    add(page)
    expect(page.locator("#toasts .toast")).to_contain_text("2 new categories with 4")
    assert numbers(service) == {**before, "all reds": 2, "blues": 2}
    opened.forget_refusals()


def test_several_folders_on_the_page_of_a_category_say_where_to_drop_them(opened: Opened, tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder_of(tmp_path / "many" / name, 1)
    page = opened("/categories/ant")
    drop_on(page.locator("#pictures-title"), tmp_path / "many")
    expect(page.locator("#toasts").get_by_role("alert")).to_contain_text("several folders")
    expect(page.locator("#pictures-title")).to_have_text("4 photos")


def test_a_page_that_takes_no_photos_stays(opened: Opened, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "reds", 1)
    page = opened("/changes")
    for dropped, said in ((folder, "This is a folder"), (folder / "0.png", "takes no photos")):
        drop_on(page.locator("h1"), dropped)
        expect(page.locator("#toasts").get_by_role("alert")).to_contain_text(said)
    assert page.url.endswith("/changes")


@pytest.mark.parametrize("by", ["Escape", "Cancel"])
def test_an_addition_of_folders_is_cancelled_as_a_whole(
    opened: Opened, service: Service, tmp_path: Path, by: str
) -> None:
    before = numbers(service)
    page = opened(BLANK)
    held: list[Route] = []
    sent = 0

    def hold(route: Route) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            held.append(route)
        else:
            route.continue_()

    page.route("**/categories", lambda route: hold(route) if route.request.method == "POST" else route.continue_())
    page.goto("/categories")
    for name in ("a", "b"):
        folder_of(tmp_path / "many" / name, 70, seed=100 if name == "b" else 0)
    drop_on(page.locator("h1"), tmp_path / "many")
    add(page)
    until(page, lambda: held)
    assert numbers(service) != before
    if by == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    held[0].continue_()
    expect(page.locator(".toast")).to_contain_text("Nothing was changed")
    assert numbers(service) == before
    opened.forget_refusals()


def test_a_busy_service_is_asked_again(opened: Opened, service: Service, tmp_path: Path) -> None:
    page = opened(BLANK)
    page.route("**/categories", answer_first(429))
    page.goto("/categories")
    drop_on(page.locator("h1"), folder_of(tmp_path / "reds", 1))
    add(page)
    expect(page.locator(".toast")).to_contain_text("“reds” is a new category")
    assert numbers(service)["reds"] == 1
    opened.forget_refusals()


@pytest.mark.parametrize("what", ["rename", "merge", "remove", "move"])
def test_a_cancelled_change_is_undone(opened: Opened, service: Service, what: str) -> None:
    before = numbers(service)
    page = opened(BLANK)
    held = HeldAnswer(page, "/references/move" if what == "move" else f"/categories/pagoda/{what}")
    page.goto("/categories/pagoda")
    dialog = page.get_by_role("dialog")
    if what == "move":
        page.locator("[data-reference]").first.click()
        page.get_by_label("Move to").fill("ketch")
    else:
        page.get_by_role("button", name=what.capitalize(), exact=True).click()
        if what != "remove":
            dialog.get_by_role("textbox").or_(dialog.get_by_role("combobox")).fill("ketch" if what == "merge" else "x")
    dialog.get_by_role("button", name=what.capitalize(), exact=True).click()
    held.wait()
    assert numbers(service) != before
    dialog.get_by_role("button", name="Cancel").click()
    held.release()
    expect(page.locator(".toast")).to_contain_text("Nothing was changed")
    assert numbers(service) == before


def test_a_category_is_found_by_typing(opened: Opened, service: Service) -> None:
    page = opened("/categories/pagoda")
    page.locator("[data-reference]").first.click()
    field, options = page.get_by_label("Move to"), page.get_by_role("option")
    field.press_sequentially("KÉ")
    expect(options).to_have_count(1)
    expect(options).to_have_text("ketch4 photos")
    expect(options.locator("img")).to_have_js_property("complete", True)
    assert options.locator("img").evaluate("image => image.naturalWidth") > 0
    expect(field).to_have_attribute("aria-expanded", "true")
    assert violations(page) == []
    field.press("ArrowDown")
    expect(field).to_have_attribute("aria-activedescendant", "suggestion-0")
    field.press("Escape")
    expect(options).to_have_count(0)
    expect(page.get_by_role("dialog")).to_be_visible()
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("ketch")
    field.fill("")
    field.press_sequentially("t")  # within names; the category of the photo is not among them
    expect(options.locator("bdi")).to_have_text(["ant", "ketch"])
    field.fill("lynx")
    expect(page.locator("#move-target-said")).to_have_text("New category: lynx")
    field.fill("pagoda")
    page.get_by_role("dialog").get_by_role("button", name="Move", exact=True).click()
    assert field.evaluate("field => field.validity.customError")
    field.fill("ketch")
    field.press("Enter")
    expect(page.locator("#pictures-title")).to_have_text("3 photos")
    assert numbers(service)["ketch"] == 5


def test_a_merge_needs_an_existing_category(opened: Opened, service: Service) -> None:
    before = numbers(service)
    page = opened("/categories/pagoda", width=390, has_touch=True)
    page.get_by_role("button", name="Merge").tap()
    field = page.get_by_label("The other category")
    field.fill("Ketch")
    expect(page.locator("#merge-target-said")).to_contain_text("“ketch”")
    page.get_by_role("dialog").get_by_role("button", name="Merge").tap()
    assert field.evaluate("field => field.validity.customError")
    assert numbers(service) == before
    field.tap()
    page.get_by_role("option", name="ketch").tap()
    page.get_by_role("dialog").get_by_role("button", name="Merge").tap()
    expect(page.get_by_role("heading", level=1)).to_have_text("ketch")


def test_thousands_of_categories_are_searched(chromium: Browser, services: Services, tmp_path: Path) -> None:
    with ExitStack() as stack:
        served = services.start(tmp_path / "large", stack)
        opened = Opened(chromium, served)
        page = opened("/categories")
        names = [f"species {number}" for number in range(5000)]
        page.evaluate(
            """names => {
                const list = document.getElementById("category-names");
                list.replaceChildren(...names.map((name) => new Option("", name)));
                for (const option of list.options) option.dataset.photos = 0;
            }""",
            names,
        )
        page.locator("h1").evaluate(
            "at => at.insertAdjacentHTML('afterend', '<input id=many role=combobox data-category=any aria-label=Many>')"
        )
        page.get_by_label("Many").press_sequentially("49")
        expect(page.get_by_role("option")).to_have_count(50)
        page.get_by_label("Many").press_sequentially("99")
        expect(page.get_by_role("option").locator("bdi")).to_have_text(["species 4999"])
        page.context.close()
        assert opened.said == []


@pytest.mark.parametrize("width", [390, 1280])
def test_times_are_shown_in_the_zone_of_the_browser(opened: Opened, width: int) -> None:
    page = opened("/categories/ant", width=width, timezone_id="Pacific/Kiritimati")  # UTC+14
    page.get_by_label("Another text").fill("an insect")
    page.get_by_role("button", name="Add text").click()
    expect(page.locator(".texts")).to_contain_text("an insect")
    page.goto("/changes")
    expect(page.locator("time").first).not_to_contain_text("UTC")
    hours = page.locator("time").first.evaluate(
        "time => (new Date(`${time.textContent} UTC`) - new Date(time.dateTime)) / 3600000"
    )
    assert round(hours) == 14
    assert violations(page) == []
