"""The list of the page *Classify* in a browser: totals, filters, downloads and long lists."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.browser.support import (
    BLANK,
    CATEGORIES,
    DATA,
    HeldAnswer,
    Opened,
    Service,
    Services,
    drop,
    drop_on,
    needs_a_browser,
    needs_photos,
    numbers,
    photo_of,
    until,
    violations,
)
from tests.service.support import SECRETS
from tests.support import coloured, encode
from zsvec.cli.spreadsheet import PREDICTION, row

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = [needs_a_browser, needs_photos]

NASTY = (
    "=1+1", "+1", "-1", "@a", "−1", "＝1", "'=1", '"=1"', " =1", "\t=1", "\u200b=1", "a;=1", "a\n=1", "a\r\n+1",
    "=\u0338", "“=1”", "a,b", 'a"b', "plain", "", "a\u2028-1", "1-1", "🦓=1", "\xad=1",
)  # fmt: skip


def small_photos(folder: Path, names: list[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.write_bytes(encode(coloured("red", number)))
    return paths


def answer_all(page: Page, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Answers each photo by its name with a verdict, a label and other fields of the prediction; else, as sure."""
    photo: Any = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo_of("ketch").read_bytes()}
    headers = {"HX-Request": "true", "Accept": "text/html", "Origin": page.evaluate("origin")}
    template = page.request.post("/classify", multipart={"images": photo}, headers=headers).text()

    def answer(route: Route) -> None:
        name = re.findall(rb'filename="([^"]+)"', route.request.post_data_buffer or b"")[0].decode()
        given = {"verdict": "sure", "label": "ant", "source": name, **answers.get(name, {})}
        prediction = json.dumps({**dict.fromkeys(PREDICTION), **given}).replace("'", "&#39;").replace('"', "&quot;")
        html = re.sub(r"data-prediction='[^']*'", lambda _: f"data-prediction='{prediction}'", template)
        for field in ("verdict", "label"):
            html = re.sub(rf'data-{field}="[^"]*"', f'data-{field}="{given[field]}"', html, count=1)
        route.fulfill(body=html, content_type="text/html")

    page.route("**/classify", answer)
    page.reload()


_NUMBER_KEPT = """() => new Promise((resolve) => {
    const asked = indexedDB.open("zsvec-photos-" + document.body.dataset.list);
    asked.onsuccess = () => {
        const counted = asked.result.transaction("photos").objectStore("photos").count();
        counted.onsuccess = () => resolve(counted.result);
    };
})"""


def until_kept(page: Page, number: int) -> None:
    """Waits until the browser has written the list; who leaves the page before that may abort the writing."""
    until(page, lambda: page.evaluate(_NUMBER_KEPT) == number)


@pytest.mark.parametrize("width", [360, 390, 700, 1280])
def test_the_buttons_of_a_photo_are_on_one_line(opened: Opened, tmp_path: Path, width: int) -> None:
    page = opened(width=width)
    drop_on(page.locator(".dropzone"), *small_photos(tmp_path, ["a.png"]), photo_of("ketch"))
    rows = page.locator(".answer")
    expect(rows.locator(".actions")).to_have_count(2)
    for answer in rows.all():
        boxes = [box for button in answer.locator(".actions button").all() if (box := button.bounding_box())]
        assert len(boxes) >= 2
        assert len({round(box["y"]) for box in boxes}) == 1
        thumb, name = answer.locator(".thumb").first.bounding_box(), answer.locator(".file").bounding_box()
        assert thumb
        assert name
        assert name["x"] > thumb["x"] + thumb["width"]
        assert width > 704 or boxes[0]["y"] >= thumb["y"] + thumb["height"]  # below the photo, with the whole width


def test_totals_and_filters(opened: Opened, tmp_path: Path) -> None:
    answers = {
        "a.png": {"verdict": "sure", "label": "ant"},
        "b.png": {"verdict": "sure", "label": "ketch"},
        "c.png": {"verdict": "unsure", "label": "ant"},
        "d.png": {"verdict": "unknown", "label": ""},
    }
    page = opened()
    answer_all(page, answers)
    drop(page, *small_photos(tmp_path, [*answers]))
    expect(page.locator("#totals")).to_have_text("4 photos: 2 sure, 1 unsure, 1 unknown")
    shown = page.locator(".answer:not([hidden]) .file")
    expect(shown).to_have_text([*answers])
    for name, expected in (("Unknown", ["d.png"]), ("Unsure", ["c.png"]), ("Sure", ["a.png", "b.png"])):
        page.get_by_role("radio", name=name, exact=True).check(force=True)
        expect(shown).to_have_text(expected)
    page.get_by_label("Category", exact=True).select_option("ketch")
    expect(shown).to_have_text(["b.png"])
    page.get_by_role("radio", name="All").focus()
    page.keyboard.press("Space")
    page.get_by_label("Category", exact=True).select_option("ant")
    expect(shown).to_have_text(["a.png", "c.png"])
    page.get_by_role("button", name="Clear the list").click()
    page.get_by_role("dialog").get_by_role("button", name="Clear the list").click()
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#results")).to_be_hidden()


def test_photos_that_could_not_be_read_have_a_filter(opened: Opened, tmp_path: Path) -> None:
    unreadable = tmp_path / "a.jpg"
    unreadable.write_bytes(b"no photo")
    page = opened()
    drop(page, photo_of("ketch"))
    unread = page.get_by_role("radio", name="Not read")
    expect(unread).to_have_count(0)
    drop(page, unreadable)
    expect(page.locator("#totals")).to_contain_text("1 not read")
    unread.check(force=True)
    shown = page.locator(".answer:not([hidden])")
    expect(shown.locator(".file")).to_have_text(["a.jpg"])
    shown.get_by_role("button", name="Take off the list").click()
    expect(shown).to_have_count(0)
    page.get_by_role("radio", name="All").check(force=True)
    expect(shown).to_have_count(1)
    expect(unread).to_have_count(0)


def test_a_corrected_photo_stays_until_the_filter_changes(opened: Opened) -> None:
    page = opened()
    rows = drop(page, photo_of("brain"))
    verdict = str(rows.get_attribute("data-verdict"))
    page.get_by_role("radio", name=verdict.capitalize(), exact=True).check(force=True)
    rows.locator("[data-shows=teach]").click()
    rows.get_by_label("Another category").fill("brain")
    page.keyboard.press("Enter")
    expect(rows.locator(".before")).to_contain_text("Now: brain")
    expect(rows).to_be_visible()
    assert page.evaluate("document.activeElement.closest('.answer') !== null")
    rows.get_by_role("button", name="Confirm").click()
    expect(rows.locator(".before")).to_contain_text("the same")


def test_a_cancelled_correction_is_undone(opened: Opened, service: Service) -> None:
    page = opened(BLANK)
    held = HeldAnswer(page, "/correct")
    page.goto("/")
    rows = drop(page, photo_of("brain"))
    bearer = {"Authorization": f"Bearer {service.key}"}
    rows.locator("[data-shows=teach]").click()
    rows.get_by_label("Another category").fill("brain")
    page.keyboard.press("Enter")
    held.wait()
    assert httpx.get(f"{service.address}v1/categories/brain", headers=bearer).status_code == 200
    page.locator("#busy").get_by_role("button", name="Cancel").click()
    held.release()
    expect(page.locator("#toasts")).to_contain_text("Nothing was changed")
    assert httpx.get(f"{service.address}v1/categories/brain", headers=bearer).status_code == 404
    expect(rows.locator(".before")).to_be_hidden()
    page.keyboard.press("Enter")  # the row can be corrected again
    rows.get_by_label("Another category").press("Enter")
    expect(rows.locator(".before")).to_contain_text("Now: brain")


def downloaded(page: Page, name: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    assert download.value.suggested_filename == f"photos.{name.split()[-1].lower()}"
    return download.value.path().read_bytes().decode()


def test_the_downloads_are_as_the_command_and_the_api_print_them(opened: Opened, service: Service) -> None:
    page = opened()
    photos = [photo_of("ketch"), photo_of("brain")]
    drop(page, *photos)
    files = [("images", (photo.name, photo.read_bytes())) for photo in photos]
    bearer = {"Authorization": f"Bearer {service.key}"}
    expected = httpx.post(f"{service.address}v1/classify", files=files, headers=bearer, timeout=60).json()
    found = json.loads(downloaded(page, "JSON"))
    assert [[*one] for one in found] == [[*one] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert {**one, **dict.fromkeys(("ranking", "probability", "novelty", "distance"))} == {
            **other,
            **dict.fromkeys(("ranking", "probability", "novelty", "distance")),
        }
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-3)


def test_no_cell_of_the_csv_is_a_formula(opened: Opened, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(len(NASTY))]
    answers = {name: {"source": nasty, "error": nasty} for name, nasty in zip(names, NASTY, strict=True)}
    page = opened()
    answer_all(page, answers)
    drop(page, *small_photos(tmp_path, names))
    text = downloaded(page, "Download CSV")
    values = [{**dict.fromkeys(PREDICTION), "label": "ant", **answers[name]} for name in names]
    expected = [row(PREDICTION), *(row(one[column] for column in PREDICTION) for one in values)]
    assert text == "\ufeff" + "".join(expected)
    page.get_by_role("radio", name="Unknown").check(force=True)
    assert downloaded(page, "Download CSV") == f"\ufeff{row(PREDICTION)}"  # only photos that are shown


def test_a_long_list(opened: Opened, tmp_path: Path) -> None:
    """Only rows near the screen are laid out, and no photo is held in its full size."""
    small_photos(tmp_path / "photos", [f"{number}.png" for number in range(299)])
    shutil.copy(photo_of("ketch"), tmp_path / "photos" / "a.jpg")
    page = opened()
    answer_all(page, {})
    drop_on(page.locator(".dropzone"), tmp_path / "photos")
    expect(page.locator("#totals")).to_have_text("300 photos: 300 sure, 0 unsure, 0 unknown")
    rows = page.locator(".answer")
    laid_out = "rows => rows.filter(row => row.firstElementChild.checkVisibility({contentVisibilityAuto: true})).length"
    assert 0 < rows.evaluate_all(laid_out) < 100
    photo = rows.filter(has_text="a.jpg").locator("img")
    photo.scroll_into_view_if_needed()
    expect(photo).to_have_js_property("complete", True)
    assert 0 < photo.evaluate("image => Math.max(image.naturalWidth, image.naturalHeight)") <= 192
    rows.last.locator("[data-shows=why]").click()
    expect(rows.last.locator(".ranking li").first).to_be_visible()
    expect(page.locator(".ranking")).to_have_count(1)  # evidence is in the page while it is open


def test_a_photo_is_compared_with_a_reference(opened: Opened) -> None:
    page = opened()
    rows = drop(page, photo_of("ketch"))
    for kept in (False, True):
        if kept:
            until_kept(page, 1)
            page.reload()
        rows.get_by_role("button", name="Why?").click()
        rows.get_by_role("button", name="Compare with a photo").first.press("Enter")
        dialog = page.get_by_role("dialog")
        for image in dialog.get_by_role("img").all():
            expect(image).to_have_js_property("complete", True)
            assert image.evaluate("image => image.naturalWidth") > 0
        photo = dialog.get_by_role("img", name="Your photo")
        assert (photo.evaluate("image => Math.max(image.naturalWidth, image.naturalHeight)") <= 192) == kept
        expect(dialog.get_by_role("link")).to_have_attribute("href", re.compile("^/categories/"))
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(rows.get_by_role("button", name="Compare with a photo").first).to_be_focused()


def test_a_part_of_a_photo_is_classified_and_becomes_a_reference(opened: Opened, service: Service) -> None:
    page = opened()
    rows = drop(page, photo_of("ketch"))
    rows.get_by_role("button", name="Why?").click()
    rows.get_by_role("button", name="A part of it").press("Enter")
    dialog = page.get_by_role("dialog")
    photo = dialog.get_by_role("img", name="Your photo")
    expect(photo).to_have_js_property("complete", True)
    sides = {name: dialog.get_by_label(name) for name in ("Left", "Top", "Width", "Height")}
    expect(sides["Width"]).not_to_have_value("")
    width, height = photo.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    photo.hover()  # waits until it is still
    shown = photo.bounding_box()
    assert shown
    page.mouse.move(shown["x"] + shown["width"] * 0.75, shown["y"] + shown["height"] * 0.8)
    page.mouse.down()
    page.mouse.move(shown["x"] + shown["width"] * 0.25, shown["y"] + shown["height"] * 0.3)
    page.mouse.up()
    drawn = [int(field.input_value()) for field in sides.values()]
    assert drawn == pytest.approx([width * 0.25, height * 0.3, width * 0.5, height * 0.5], abs=2)
    page.mouse.move(shown["x"] + 5, shown["y"] + 5)  # the box is drawn
    assert [int(field.input_value()) for field in sides.values()] == drawn
    assert violations(page) == []
    dialog.get_by_role("button", name="Classify this part").click()
    expect(dialog).to_be_hidden()
    expect(rows).to_have_count(2)
    name = f"{photo_of('ketch').name}#xywh={','.join(map(str, drawn))}"
    expect(rows.first.locator(".file")).to_have_text(name)
    expect(rows.first.locator(".verdict")).to_be_visible()

    rows.last.get_by_role("button", name="A part of it").press("Enter")
    for side, value in (("Left", -5), ("Top", 3), ("Width", 99_999), ("Height", 20)):
        sides[side].fill(str(value))
    dialog.get_by_label("Category of this part").fill("a part")
    page.keyboard.press("Enter")
    expect(page.locator(".toast")).to_contain_text("Learned that this is “a part”")
    expect(dialog).to_be_hidden()
    bearer = {"Authorization": f"Bearer {service.key}"}
    found = httpx.get(f"{service.address}v1/categories/a%20part", headers=bearer, timeout=60).json()["stored"]
    sources = [one["source"] for one in found if one["modality"] == "image"]
    assert sources == [f"{photo_of('ketch').name}#xywh=0,3,{width},20"]


def test_similar_photos_are_shown_for_a_photo_and_for_a_reference(opened: Opened) -> None:
    page = opened()
    rows = drop(page, photo_of("ketch"))
    rows.get_by_role("button", name="Why?").click()
    rows.get_by_role("button", name="Similar photos").click()
    dialog = page.get_by_role("dialog")
    similar = dialog.get_by_role("link", name="Similar photos")
    expect(similar.first).to_be_visible()
    expect(dialog.get_by_role("img", name="The photo of the category")).to_be_hidden()
    first = str(similar.first.get_attribute("href"))
    similar.first.click()
    expect(dialog.locator(f"a[href='{first}']")).to_have_count(0)  # now those like the first
    expect(similar.first).to_be_visible()
    expect(dialog.get_by_role("heading", name="Similar to this photo of")).to_be_focused()
    expect(dialog.get_by_role("img", name="A photo of")).to_be_visible()
    expect(dialog.get_by_role("img", name="Your photo")).to_be_hidden()
    page.goto("/categories/ant")
    page.locator("[data-reference]").first.click()
    dialog.get_by_role("link", name="Similar photos").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Similar photos")
    expect(page.get_by_role("img", name="A photo of ant")).to_be_visible()
    before = page.get_by_role("img", name="A photo of ant").get_attribute("src")
    page.get_by_role("link", name="Similar photos: ant").first.click()
    expect(page.get_by_role("img", name="A photo of ant")).not_to_have_attribute("src", str(before))
    expect(page.get_by_role("heading", level=1)).to_have_text("Similar photos")


def test_a_late_answer_does_not_fill_the_dialog_of_another_photo(opened: Opened) -> None:
    page = opened(BLANK)
    held: list[Route] = []
    page.route("**/similar/*", lambda route: held.append(route), times=1)
    page.goto("/")
    rows = drop(page, photo_of("ketch"))
    rows.get_by_role("button", name="Why?").click()
    rows.get_by_role("button", name="Similar photos").click()
    page.wait_for_function("() => document.querySelector('#compare-dialog[open]')")
    until(page, lambda: held)
    page.keyboard.press("Escape")
    with page.expect_event("requestfailed"):
        rows.get_by_role("button", name="Compare with a photo").first.click()
    page.get_by_role("button", name="Similar to the photo of the category").click()
    expect(page.get_by_role("dialog").get_by_role("img", name="A photo of")).to_be_visible()
    opened.forget_refusals()


# The list in the browser


def lists(page: Page) -> list[str]:
    """Names of the lists that the browser keeps."""
    return page.evaluate("async () => (await indexedDB.databases()).map(({name}) => name)")


def test_the_list_survives_leaving_the_page(opened: Opened, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    shutil.copy(photo_of("brain"), evil)
    page = opened()
    rows = drop(page, photo_of("ketch"), evil)
    until_kept(page, 2)
    before = rows.all_inner_texts()
    for elsewhere in ("/", "/categories"):
        page.goto(elsewhere)
        page.goto("/")
        expect(rows).to_have_count(2)
        assert rows.all_inner_texts() == before
        assert (
            page.locator(".answer img").evaluate_all("found => found.map(one => one.src.slice(0, 5))") == ["blob:"] * 2
        )
    rows.first.get_by_role("button", name="Why?").click()
    expect(rows.first.locator(".ranking li").first).to_be_visible()
    rows.nth(1).locator("[data-shows=teach]").click()
    rows.nth(1).locator(".teach button").first.click()
    expect(page.locator("#toasts")).to_contain_text("Choose the photo again")
    page.set_input_files("#chosen", str(evil))
    expect(page.locator("#busy")).to_be_hidden()
    rows.nth(1).locator("[data-shows=teach]").click()
    rows.nth(1).get_by_label("Another category").fill("brain")
    page.keyboard.press("Enter")
    expect(rows.nth(1).locator(".before")).to_contain_text("Now: brain")
    expect(rows).to_have_count(2)
    rows.first.get_by_role("button", name="Take off the list").click()
    until_kept(page, 1)
    page.reload()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Now: brain")
    page.get_by_role("button", name="Clear the list").click()
    page.get_by_role("dialog").get_by_role("button", name="Clear the list").click()
    until_kept(page, 0)
    page.reload()
    expect(page.locator("#chosen")).to_be_attached()
    expect(rows).to_have_count(0)


def test_the_list_is_kept_for_a_day(opened: Opened) -> None:
    page = opened()
    drop(page, photo_of("ketch"))
    until_kept(page, 1)
    page.clock.install(time=datetime.now(UTC) + timedelta(hours=25))
    page.goto("/categories")
    until_kept(page, 0)
    page.goto("/")
    expect(page.locator(".answer")).to_have_count(0)
    assert page.evaluate("import(document.querySelector('[src*=kept]').src).then(({kept}) => kept())") == []


def test_another_key_does_not_see_the_list(opened: Opened) -> None:
    page = opened()
    drop(page, photo_of("ketch"))
    until_kept(page, 1)
    (mine,) = lists(page)
    other = page.context.new_page()  # has the list open
    other.goto("/")
    expect(other.locator(".answer")).to_have_count(1)
    page.goto(f"/categories#key={SECRETS['read']}")
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("read", exact=True)).to_be_visible()
    expect(page.locator(".answer")).to_have_count(0)
    page.wait_for_function("async mine => !(await indexedDB.databases()).some(({name}) => name === mine)", arg=mine)
    drop(page, photo_of("ant"))
    until_kept(page, 1)
    page.reload()
    expect(page.locator(".answer")).to_have_count(1)
    assert lists(page) != [mine]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    page.wait_for_function("async () => !(await indexedDB.databases()).length")


def test_photos_of_one_thing_have_one_answer(opened: Opened, service: Service, tmp_path: Path) -> None:
    page = opened(BLANK)
    held: list[Route] = []
    page.route("**/classify/combined", lambda route: held.append(route), times=1)
    page.goto("/")
    drop(page, photo_of("pagoda"))
    one, choice = page.locator("#combined"), page.get_by_role("checkbox", name="show one thing")
    expect(one).to_be_hidden()  # one photo
    (broken := tmp_path / "broken.jpg").write_bytes(b"no photo")
    photos = [photo_of("ketch", number) for number in range(3)]
    page.set_input_files("#chosen", [*map(str, photos), str(broken)])
    expect(page.get_by_text("These 3 photos show one thing")).to_be_visible()
    choice.check()
    until(page, lambda: held)
    choice.uncheck()
    choice.check()  # the answer to the first request comes after the answer to the second
    card = one.locator(".answer")
    expect(card.locator(".verdict")).to_contain_text("ketch")
    held[0].fulfill(body="<div class='said'>late</div>", content_type="text/html")
    expect(card).to_contain_text("3 photos of one thing")
    expect(card).not_to_contain_text("late")
    expect(card.locator("img")).to_have_count(3)
    assert violations(page) == []

    rows = page.locator("#answers .answer")
    card.get_by_role("button", name="Confirm for all").press("Enter")
    expect(page.locator(".toast")).to_contain_text("Learned that this is “ketch”")
    expect(rows.locator(".before:visible")).to_have_count(3)
    assert numbers(service)["ketch"] == 4 + 3
    page.locator(".toast").get_by_role("button", name="Undo").click()
    expect(page.locator(".toast")).to_contain_text("Undone")
    expect(page.locator("#busy")).to_be_hidden()  # all photos are answered again
    assert numbers(service)["ketch"] == 4

    rows.filter(has_text=photos[0].name).get_by_role("button", name="Why?").click()
    rows.filter(has_text=photos[0].name).get_by_role("button", name="Take off the list").click()
    expect(card).to_contain_text("2 photos of one thing")
    until_kept(page, 4)
    page.reload()
    expect(page.get_by_text("These 2 photos show one thing")).to_be_visible()
    expect(one.locator(".answer")).to_have_count(0)
    drop(page, photo_of("ant"))
    expect(one).to_be_hidden()


def test_close_candidates_have_a_button_each(chromium: Browser, services: Services, tmp_path: Path) -> None:
    """Two categories of ants, which nothing tells apart, with long names."""
    one, other = "ants that live in the nest below the old oak", "ants that live in the nest below the old beech"
    ant, *others = (sorted((DATA / "references" / category).iterdir()) for category in CATEGORIES)
    for name, photos in {one: ant[::2], other: ant[1::2], **dict(zip(CATEGORIES[1:], others, strict=True))}.items():
        folder = tmp_path / "references" / name
        folder.mkdir(parents=True)
        for photo in photos:
            shutil.copy(photo, folder)
    store = tmp_path / "ants"
    services.run(store, "import", str(tmp_path / "references"))
    with ExitStack() as stack:
        opened = Opened(chromium, services.start(store, stack))
        page = opened(width=390)
        rows = drop(page, *[photo_of("ant", number) for number in range(8)])
        asked = rows.filter(has_text="One of these two:").first
        assert set(asked.locator(".verdict a").all_inner_texts()) == {one, other}
        assert asked.get_attribute("data-verdict") == "unsure"
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.set_viewport_size({"width": 1280, "height": 900})
        assert (box := asked.locator(".verdict").bounding_box())
        assert box["width"] > 640  # pixels; the names need two lines or fewer
        asked.get_by_role("button", name=other, exact=True).click()
        expect(page.locator(".toast")).to_contain_text(f"Learned that this is “{other}”")
        expect(page.locator(".before:visible")).to_contain_text("one of ")
        assert opened.said == []
