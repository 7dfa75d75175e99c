"""The pages of categories, references and recent changes."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, Page, done, images_of, page_of, picture, red, undo, visitor
from tests.support import coloured, encode
from zsvec import errors
from zsvec.classifier import Classifier
from zsvec.inputs.categories import CategoryInput
from zsvec.service import Limits
from zsvec.testing import HashEncoder


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.ZSVecError)


EVIL = "<script>alert(1)</script>\"'/?#%2F 🐼"


def path_of(name: str) -> str:
    return f"/categories/{quote(name, safe='')}"


def names(classifier: Classifier) -> list[str]:
    return [category.name for category in classifier.categories()]


def chosen(category: str, *hashes: str) -> list[str]:
    return [f"{one}:{category}" for one in hashes]


def cards(page: Page) -> list[str | None]:
    return [found["data-drop"] for found in page.all("li") if "data-drop" in found]


def test_each_category_has_a_card_with_its_pictures(browser: TestClient) -> None:
    page = page_of(browser.get("/categories"))
    assert cards(page) == ["blue", "green", "red"]
    assert page.text.count("3 photos, 1 text") == 3
    assert len(page.all("img", loading="lazy")) == 9


def test_the_page_says_how_far_the_threshold_is(browser: TestClient, classifier: Classifier) -> None:
    said = "9 of 19 photos until"
    assert said in page_of(browser.get("/categories")).text
    assert "photos until" not in page_of(browser.get("/categories", params={"filter": "re"})).text
    classifier.calibrate(false_unknown_rate=0.25)
    assert "photos until" not in page_of(browser.get("/categories")).text


def test_the_page_of_a_store_of_texts_says_what_unknown_pictures_need() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as browser:
        assert "Unknown photos" not in page_of(browser.get("/categories")).text
        classifier.add_category("cat", texts=["a feline"])
        assert "Your photos cannot tell yet which photos are unknown" in page_of(browser.get("/categories")).text


def test_cards_read_the_store_once(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    scroll = classifier._store._backend.scroll

    def counted(collection: str, *args: Any, **options: Any) -> Any:
        reads.append(collection)
        return scroll(collection, *args, **options)

    monkeypatch.setattr(classifier._store._backend, "scroll", counted)
    (collection,) = [classifier._store.collection(name) for name in classifier._store.encoders()]
    page = page_of(browser.get("/categories"))
    assert len(page.all("img", loading="lazy")) == 9
    assert reads.count(collection) == 1
    page_of(browser.get("/categories"))
    assert reads.count(collection) == 1  # no category has changed


def test_photos_are_served_by_hash_and_by_category(browser: TestClient, classifier: Classifier) -> None:
    classifier.add_category("words", texts=["no photo"])
    first = images_of(classifier, "red")[0]
    for path in (f"/photos/{first}", "/categories/red/photo"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["content-type"], answer.headers["etag"]) == (
            200,
            "image/jpeg",
            f'"{first}"',
        )
        assert browser.get(path, headers={"If-None-Match": f'"{first}"'}).status_code == 304
    for path in (f"/photos/{'0' * 64}", "/categories/words/photo", "/categories/nothing/photo"):
        assert browser.get(path).status_code == 404
    assert browser.get("/photos/..%2F..%2Fetc").status_code in (404, 422)
    assert browser.get("/photos/x").status_code == 422
    done(browser.post("/references/remove", data={"reference": chosen("red", first)}, headers=PART))
    assert browser.get(f"/photos/{first}").status_code == 200  # Recent changes shows it
    classifier.references.forget(first)
    assert browser.get(f"/photos/{first}").status_code == 404


def test_categories_are_filtered_by_name(browser: TestClient) -> None:
    page = page_of(browser.get("/categories", params={"filter": "RE"}, headers=PART))
    assert (cards(page), page.all("nav")) == (["green", "red"], [])
    page = page_of(browser.get("/categories", params={"filter": EVIL}))
    assert f"No category has “{EVIL}” in its name" in page.text
    assert page.all("input", type="search")[0]["value"] == EVIL


def test_further_cards_are_shown_on_request(browser: TestClient, classifier: Classifier) -> None:
    classifier.add_categories(CategoryInput(name=f"n{number:03}", texts=["a text"]) for number in range(70))
    page = page_of(browser.get("/categories"))
    assert len(cards(page)) == 60
    (more,) = page.all("a", id="more")
    page = page_of(browser.get(str(more["href"]), headers=PART))
    assert (len(cards(page)), page.all("a", id="more")) == (73, [])
    for shown in ("0", "-1", "x", "999999999"):
        page_of(browser.get("/categories", params={"shown": shown}), 422)


def test_a_category_is_created_with_texts_and_pictures(browser: TestClient, classifier: Classifier) -> None:
    fields = {"name": EVIL, "texts": " a first text \n\n a second text "}
    broken = "images", ("<b>.png", b"nothing")
    answer = browser.post("/categories", data=fields, files=[picture("white"), broken], headers=PART)
    change = done(answer, f"“{EVIL}” is a new category with 1 photo.", "1 photo could not be read: ", "<b>.png")
    assert not Page(answer.text).all("b")
    assert classifier.category(EVIL).texts == ("a first text", "a second text")
    for path in ("/categories", path_of(EVIL)):
        page = page_of(browser.get(path))
        assert EVIL in page.text
        assert not [found for found in page.all("script") if not found.get("src")]
        for shown in page.all("img", loading="lazy"):
            assert browser.get(str(shown["src"])).status_code == 200
    done(undo(browser, change))
    assert names(classifier) == ["blue", "green", "red"]


def test_a_category_that_cannot_be_created_changes_nothing(browser: TestClient, classifier: Classifier) -> None:
    page = page_of(browser.post("/categories", data={"name": " red "}, files=[picture("white")], headers=PART), 409)
    assert "There is a category “red” already" in page.text
    for name in ("", " ", "a\nb", "x" * 501):
        page_of(browser.post("/categories", data={"name": name}, headers=PART), 422)
    unreadable = [("images", ("a.heic", b"no image at all"))]
    page_of(browser.post("/categories", data={"name": "heic"}, files=unreadable, headers=PART), 422)
    assert names(classifier) == ["blue", "green", "red"]
    assert len(images_of(classifier, "red")) == 3


def test_the_page_of_a_category_has_all_references(browser: TestClient, classifier: Classifier) -> None:
    page = page_of(browser.get("/categories/red"))
    shown = [found["data-hash"] for found in page.all("button") if "data-reference" in found]
    assert shown == images_of(classifier, "red")
    part = page_of(browser.get("/categories/red", headers=PART))
    assert (len(part.all("nav")), len(part.all("h1"))) == (0, 1)
    assert page_of(browser.get("/categories/red", headers={**PART, "HX-Boosted": "true"})).all("nav")


def test_texts_and_pictures_are_added(browser: TestClient, classifier: Classifier) -> None:
    path = "/categories/red/references"
    added = browser.post(path, data={"texts": "like blood"}, files=[picture("red")], headers=PART)
    done(added, "1 photo and 1 text added to “red”.")
    assert classifier.category("red").texts == ("red", "like blood")
    assert done(browser.post(path, files=[picture("red")], headers=PART), "has these already") == ""
    page_of(browser.post(path, data={"texts": " \n "}, headers=PART), 422)


def test_unreadable_pictures_are_named(browser: TestClient) -> None:
    broken = [("images", (f"{n}.png", b"nothing")) for n in range(2)]
    page = page_of(browser.post("/categories/red/references", files=broken, headers=PART), 422)
    assert all(words in page.text for words in ("2 photos could not be read", "1.png"))
    answer = browser.post("/categories/red/references", files=[*broken, picture("red", 51)], headers=PART)
    done(answer, "1 photo added to “red”.", "2 photos could not be read")


def so_far(answer: Any) -> str:
    (toast,) = [found for found in page_of(answer).all("div") if "data-so-far" in found]
    return str(toast["data-so-far"])


@pytest.mark.parametrize("name", ["red", "white"])
def test_several_requests_are_one_change(browser: TestClient, classifier: Classifier, name: str) -> None:
    before = names(classifier), len(images_of(classifier, "red")), len(list(classifier.history))
    path = f"/categories/{name}/references"
    broken = "images", ("a.png", b"nothing")
    first = "/categories" if name == "white" else path
    answer = browser.post(first, data={"name": name}, files=[picture(name, 71), broken], headers=PART)
    change = done(answer)
    for seed in (72, 73):
        fields = {"change": change, "so_far": so_far(answer)}
        answer = browser.post(path, data=fields, files=[picture(name, seed)], headers=PART)
        assert done(answer, "3 photos" if seed == 73 else "2 photos", "1 photo could not be read: a.png.") == change
    answer = browser.post(path, data={"change": change, "so_far": so_far(answer)}, files=[broken], headers=PART)
    done(answer, "3 photos", "2 photos could not be read")
    assert next(iter(classifier.history)).id == change
    assert len(list(classifier.history)) == before[2] + 1
    done(undo(browser, change))
    assert before[:2] == (names(classifier), len(images_of(classifier, "red")))


def test_an_addition_of_several_requests_is_calibrated_at_the_end(browser: TestClient, classifier: Classifier) -> None:
    calibrated: list[str] = []
    classifier._store.after_changes(lambda: calibrated.append("once"))
    fields = {"name": "red", "adds": "yes", "more": "yes"}
    for seed in (71, 72, 73):
        if seed == 73:
            del fields["more"]
        assert calibrated == []
        answer = browser.post("/categories", data=fields, files=[picture("red", seed)], headers=PART)
        fields |= {"change": done(answer), "so_far": so_far(answer)}
    assert calibrated == ["once"]


@pytest.mark.parametrize("name", ["red", "white"])
def test_unreadable_photos_at_first_stop_no_addition(browser: TestClient, classifier: Classifier, name: str) -> None:
    before = names(classifier)
    broken = "images", ("a.png", b"nothing")
    fields = {"name": name, "adds": "yes"}
    answer = browser.post("/categories", data={**fields, "more": "yes"}, files=[broken], headers=PART)
    assert done(answer, "1 photo could not be read") == ""
    assert names(classifier) == before
    fields["so_far"] = so_far(answer)
    page_of(browser.post("/categories", data=fields, files=[broken], headers=PART), 422)
    answer = browser.post("/categories", data=fields, files=[picture(name, 71)], headers=PART)
    change = done(answer, "1 photo", "1 photo could not be read: a.png")
    done(undo(browser, change))
    assert names(classifier) == before


def test_several_categories_are_one_change(browser: TestClient, classifier: Classifier) -> None:
    before = {name: images_of(classifier, name) for name in names(classifier)}
    fields = {"adds": "yes", "more": "yes"}
    for i, name in enumerate(["red", "white", "white", EVIL]):
        sent = [picture(name if name != EVIL else "black", 71 + i, f"{i}.png")]
        answer = browser.post("/categories", data={**fields, "name": name}, files=sent, headers=PART)
        fields |= {"change": done(answer), "so_far": so_far(answer)}
    done(answer, "4 photos", "3 categories", "2 are new")
    assert [len(images_of(classifier, name)) for name in ("red", "white", EVIL)] == [4, 2, 1]
    done(undo(browser, fields["change"]))
    assert {name: images_of(classifier, name) for name in names(classifier)} == before


def test_added_photos_of_another_category_are_told(browser: TestClient, classifier: Classifier) -> None:
    sent = [("images", ("a.png", red())), ("images", ("b.png", red(1)))]
    done(browser.post("/categories/red/references", files=sent[:1], headers=PART))
    (shared,) = [one for one in images_of(classifier, "red") if one == zsvec.content_hash(red())]
    done(browser.post("/categories/blue/references", files=sent, headers=PART), "1 photo is in “red”")
    answer = browser.post("/references/holders", json={"hashes": [shared, "0" * 64]})
    assert answer.json() == {shared: ["blue", "red"]}


@pytest.mark.parametrize("hashes", [[], ["0" * 63], ["0" * 64] * 1001, "0" * 64, [{"a": 1}], None])
def test_a_question_about_photos_is_checked(browser: TestClient, hashes: Any) -> None:
    page_of(browser.post("/references/holders", json={"hashes": hashes}), 422)


def test_a_key_to_read_asks_nothing_about_photos(classifier: Classifier) -> None:
    with visitor(classifier, "read") as client:
        assert client.post("/references/holders", json={"hashes": ["0" * 64]}).status_code == 403


@pytest.mark.parametrize(
    "forged", ["{", '{"photos": "x"}', '{"categories": -1}', '{"name": "<b>", "unread": 9}', "x" * 9999]
)
def test_forged_results_change_no_addition(browser: TestClient, classifier: Classifier, forged: str) -> None:
    answer = browser.post(
        "/categories/red/references", data={"so_far": forged}, files=[picture("red", 71)], headers=PART
    )
    done(answer)
    assert not Page(answer.text).all("b")
    assert len(images_of(classifier, "red")) == 4


def test_a_part_that_is_added_during_the_undo_is_undone(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/categories/red/references"
    change = done(browser.post(path, files=[picture("red", 71)], headers=PART))
    began, goes_on = Event(), Event()
    add = classifier.add_categories

    def slow(*args: Any, **options: Any) -> Any:
        began.set()
        assert goes_on.wait(30)
        return add(*args, **options)

    monkeypatch.setattr(classifier, "add_categories", slow)
    with ThreadPoolExecutor() as pool:
        sent: dict[str, Any] = {"data": {"change": change}, "files": [picture("red", 72)]}
        part = pool.submit(lambda: browser.post(path, **sent, headers=PART))
        assert began.wait(30)
        undone = pool.submit(undo, browser, change)
        wait([undone], timeout=0.3)
        goes_on.set()
    assert (part.result().status_code, undone.result().status_code) == (200, 200)
    assert len(images_of(classifier, "red")) == 3


def test_a_change_is_continued_by_its_author_alone(classifier: Classifier) -> None:
    path = "/categories/red/references"
    with visitor(classifier, "write") as client:
        change = done(client.post(path, files=[picture("red", 71)], headers=PART))
        moved = done(client.post("/categories/blue/rename", data={"new": "navy"}, headers=PART))
        with classifier.history.acting("bob"):
            classifier.add_category("green", texts=["a colour"])
        other = next(iter(classifier.history)).id
        for refused in ("", "nothing", moved, other):
            page_of(client.post(path, data={"change": refused}, files=[picture("red", 72)], headers=PART), 422)
        done(client.post(path, data={"change": change, "so_far": "{"}, files=[picture("red", 73)], headers=PART))
        done(undo(client, change))
        page_of(client.post(path, data={"change": change}, files=[picture("red", 72)], headers=PART), 422)
    assert len(images_of(classifier, "red")) == 3


def test_too_many_pictures_are_refused(browser: TestClient) -> None:
    many = [picture("red", seed) for seed in range(Limits().images + 1)]
    page_of(browser.post("/categories/red/references", files=many, headers=PART), 422)


def test_references_are_moved_and_moved_back(browser: TestClient, classifier: Classifier) -> None:
    data = {"reference": chosen("red", *images_of(classifier, "red")[:2]), "category": "blue"}
    change = done(browser.post("/references/move", data=data, headers=PART), "2 photos of “red” moved to “blue”.")
    assert [len(images_of(classifier, name)) for name in ("red", "blue")] == [1, 5]
    done(undo(browser, change), "Undone: move")
    assert [len(images_of(classifier, name)) for name in ("red", "blue")] == [3, 3]


def test_references_are_removed_except_the_last(browser: TestClient, classifier: Classifier) -> None:
    first, *rest = chosen("red", *[one.hash for one in classifier.references.of("red")])
    done(browser.post("/references/remove", data={"reference": first}, headers=PART), "1 text of “red” removed")
    page = page_of(browser.post("/references/remove", data={"reference": rest}, headers=PART), 409)
    assert page.all("div", role="alert")
    assert len(images_of(classifier, "red")) == 3


def test_a_category_is_renamed(browser: TestClient, classifier: Classifier) -> None:
    answer = browser.post("/categories/red/rename", data={"new": EVIL}, headers=PART)
    change = done(answer, f"“red” is now “{EVIL}”.")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": path_of(EVIL)}
    assert names(classifier) == sorted([EVIL, "blue", "green"])
    here = {**PART, "HX-Current-URL": f"http://localhost{path_of(EVIL)}"}
    answer = browser.post("/undo", data={"change": change}, headers=here)
    done(answer, "Undone: rename")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": "/categories/red"}
    page_of(browser.post("/categories/red/rename", data={"new": "blue"}, headers=PART), 409)


def test_a_category_is_placed_in_the_tree(browser: TestClient, classifier: Classifier) -> None:
    change = done(browser.post("/categories/red/parent", data={"parent": "warm > light"}, headers=PART), "red", "warm")
    assert classifier.category("red").parent == "warm > light"
    page = page_of(browser.get("/categories/red"))
    assert "Below warm > light" in page.text
    assert {"blue", "green", "warm > light"} == {one["value"] for one in page.all("option") if "data-photos" not in one}
    assert "warm > light" in page_of(browser.get("/categories")).text
    done(undo(browser, change), "Undone: set")
    assert classifier.category("red").parent == ""
    done(browser.post("/categories/red/parent", data={"parent": "blue"}, headers=PART))
    for wrong in ("red", "a > > b"):
        page_of(browser.post("/categories/red/parent", data={"parent": wrong}, headers=PART), 422)
    page_of(browser.post("/categories/blue/parent", data={"parent": "red"}, headers=PART), 422)
    page_of(browser.post("/categories/red/rename", data={"new": "blue"}, headers=PART), 422)
    done(browser.post("/categories/red/parent", data={"parent": ""}, headers=PART), "top")
    assert classifier.category("red").parent == ""


def test_a_category_is_merged_into_another(browser: TestClient, classifier: Classifier) -> None:
    answer = browser.post("/categories/red/merge", data={"category": "blue"}, headers=PART)
    change = done(answer, "“red” is now part of “blue”.")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": "/categories/blue"}
    assert names(classifier) == ["blue", "green"]
    here = {**PART, "HX-Current-URL": "http://localhost/categories/blue"}
    answer = browser.post("/undo", data={"change": change}, headers=here)
    done(answer, "Undone: merge")
    assert "zsvec:went" not in json.loads(answer.headers["hx-trigger"])
    page_of(browser.post("/categories/red/merge", data={"category": "nothing"}, headers=PART), 404)
    page_of(browser.post("/categories/red/merge", data={"category": "red"}, headers=PART), 422)


def test_a_category_is_removed(browser: TestClient, classifier: Classifier) -> None:
    answer = browser.post("/categories/red/remove", headers=PART)
    change = done(answer, "“red” is removed.")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": "/categories"}
    page_of(browser.post("/categories/red/remove", headers=PART), 404)
    # A page that is older than the removal adds nothing.
    page_of(browser.post("/categories/red/references", data={"texts": "a boat"}, headers=PART), 404)
    assert names(classifier) == ["blue", "green"]
    done(undo(browser, change), "Undone: remove")
    assert names(classifier) == ["blue", "green", "red"]


def test_an_invalid_change_cannot_be_undone(browser: TestClient) -> None:
    for given in ({}, {"change": ["a", "b"]}):
        page_of(browser.post("/undo", data=given, headers=PART), 422)
    for unknown in ("nothing", ""):
        page_of(undo_of(browser, unknown), 409)


def undo_of(browser: TestClient, change: str) -> Any:
    return browser.post("/undo", data={"change": change}, headers=PART)


def test_the_reason_why_a_change_cannot_be_undone(browser: TestClient, classifier: Classifier) -> None:
    classifier.references.rename("red", "crimson")
    first = next(iter(classifier.history)).id
    said = {"old": page_of(undo_of(browser, "old"), 409).text}
    classifier.add_category("crimson", texts=["a dark red"])
    said["later"] = page_of(undo_of(browser, first), 409).text
    classifier.history.undo("crimson")
    done(undo(browser, first))
    said["undone"] = page_of(undo_of(browser, first), 409).text
    classifier.references.forget(images_of(classifier, "red")[0])
    said["final"] = page_of(undo_of(browser, next(iter(classifier.history)).id), 409).text
    assert len(set(said.values())) == 4


OF_PROGRAMS = re.compile(r"zsvec |ZSVEC_|`|[0-9a-f]{8}|/tmp|:memory:|b'|got ", re.IGNORECASE)


def test_no_message_for_people_has_words_of_programs(browser: TestClient, classifier: Classifier) -> None:
    one, broken = images_of(classifier, "red")[0], ("images", ("a.png", b"hello"))
    classifier.add_category("red", texts=["a later change"])
    first = list(classifier.history)[-1].id
    forms: list[tuple[str, dict[str, Any], list[Any] | None]] = [
        ("/categories", {"name": "a\nb"}, None),
        ("/categories", {"name": "x" * 501}, None),
        ("/categories", {"name": "heic"}, [broken]),
        ("/categories/red/references", {}, [broken]),
        ("/categories/nothing/references", {"texts": "a"}, None),
        ("/categories/red/merge", {"category": "red"}, None),
        ("/categories/red/merge", {"category": "nothing"}, None),
        ("/references/move", {"reference": f"{one}:nothing", "category": "red"}, None),
        ("/references/move", {"reference": f"{'0' * 64}:red", "category": "blue"}, None),
        ("/references/remove", {"reference": f"{one}"}, None),
        ("/audit/keep", {"reference": f"{one}:red", "value": "nothing"}, None),
        ("/correct", {"category": "red"}, [broken]),
        ("/correct", {"category": "red"}, None),
        ("/inbox/label", {"hash": one, "category": ""}, None),
        ("/undo", {"change": first}, None),
        ("/undo", {"change": "0123456789"}, None),
        ("/undo", {}, None),
    ]
    for path, data, files in forms:
        answer = browser.post(path, data=data, files=files, headers=PART)
        assert answer.status_code in (404, 409, 422), path
        assert not OF_PROGRAMS.search(Page(answer.text).text), (path, answer.text)


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if is_error(kind)])
def test_no_message_of_an_error_is_shown(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, kind: type[errors.ZSVecError]
) -> None:
    def fail() -> None:
        raise kind("run `zsvec list` in /srv/store")

    monkeypatch.setattr(classifier, "categories", fail)
    for headers in ({}, PART):
        text = Page(browser.get("/categories", headers=headers).text).text
        assert "zsvec list" not in text
        assert "/srv" not in text


def test_any_current_address_is_accepted(browser: TestClient, classifier: Classifier) -> None:
    for address in ("http://[", "http://[/categories/red", "", "\\", "http://localhost/categories/%FF"):
        change = done(browser.post("/categories/red/remove", headers=PART))
        headers = {**PART, "HX-Current-URL": address}
        done(browser.post("/undo", data={"change": change}, headers=headers), "Undone: remove")
        assert names(classifier) == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/categories", "name"),
        ("/categories/%2E%2E/references", "texts"),
        ("/categories/red/rename", "new"),
        ("/categories/red/merge", "category"),
        ("/references/move", "category"),
        ("/inbox/label", "category"),
        ("/correct", "category"),
    ],
)
def test_no_page_creates_a_category_that_no_page_can_show(
    browser: TestClient, classifier: Classifier, path: str, field: str
) -> None:
    one = images_of(classifier, "red")[0]
    data = {"hash": one, "reference": chosen("red", one), field: ".."}
    sent = [picture("red")] if path == "/correct" else None
    page_of(browser.post(path, data=data, files=sent, headers=PART), 422)
    assert names(classifier) == ["blue", "green", "red"]


def test_every_change_needs_an_existing_category(browser: TestClient, classifier: Classifier) -> None:
    data = {"reference": f"{'0' * 64}:nothing", "category": "red", "new": "white"}
    below = [f"/categories/nothing/{what}" for what in ("references", "rename", "merge", "remove")]
    for path in (*below, "/references/move", "/references/remove"):
        assert browser.post(path, data=data, headers=PART).status_code in (404, 422)
    assert names(classifier) == ["blue", "green", "red"]


# Recent changes


def test_each_change_can_be_undone_later(classifier: Classifier) -> None:
    with visitor(classifier, "write") as client:
        client.post("/categories", data={"name": EVIL}, files=[picture("red", 77)], headers=PART)
        client.post(f"{path_of(EVIL)}/rename", data={"new": "evil"}, headers=PART)
        page = page_of(client.get("/changes"))
        assert "<script>alert(1)" not in client.get("/changes").text
        assert all(word in page.text for word in ("Rename", "Add", "evil", "by", "ann"))
        renamed, *_ = offered(client)
        done(undo(client, renamed))
        assert EVIL in names(classifier)
        _, added, *_ = offered(client)
        done(undo(client, added))
        assert EVIL not in names(classifier)
        page = page_of(client.get("/changes", headers=PART))
        assert (page.text.count("undone"), page.all("h1")) == (2, [])


def offered(client: TestClient) -> list[str]:
    return [str(found["value"]) for found in page_of(client.get("/changes")).all("input", name="change")]


def test_changes_show_photos_number_and_direction(browser: TestClient, classifier: Classifier) -> None:
    hashes = images_of(classifier, "red")[:2]
    data = {"reference": chosen("red", *hashes), "category": "blue"}
    done(browser.post("/references/move", data=data, headers=PART))
    page = page_of(browser.get("/changes"))
    assert "2 photos" in page.text
    assert [found["href"] for found in page.all("a", **{"aria-current": "page"})] == ["/categories"]
    assert re.findall("red|blue|green", page.text)[:2] == ["red", "blue"]
    shown = [str(image["src"]) for image in page.all("img", loading="lazy")]
    assert {f"/photos/{one}" for one in hashes} == set(shown[:2])
    assert all(browser.get(path).status_code == 200 for path in shown)


def test_consecutive_changes_of_a_kind_and_person_are_grouped(classifier: Classifier) -> None:
    with visitor(classifier, "write") as client:
        for seed in (71, 72):
            done(client.post("/categories/red/references", files=[picture("red", seed)], headers=PART))
        assert len(page_of(client.get("/changes")).all("details")) == 1
        with classifier.history.acting("bob"):
            classifier.add_category("green", texts=["a colour"])
        done(client.post("/categories/red/references", files=[picture("red", 73)], headers=PART))
        page = page_of(client.get("/changes"))
        assert len(page.all("details")) == 1
        assert len(page.all("input", name="change")) == 2  # bob's, and the last one of red


def test_undo_is_offered_only_where_it_works(browser: TestClient, classifier: Classifier) -> None:
    add, old = "/categories/red/references", {change.id for change in classifier.history if "red" in change.categories}
    first, second = (done(browser.post(add, data={"texts": text}, headers=PART)) for text in ("a", "b"))
    blue = done(browser.post("/categories/blue/references", data={"texts": "a"}, headers=PART))
    assert offered(browser)[:2] == [blue, second]
    assert not {first, *old} & {*offered(browser)}
    undone = done(undo(browser, second))
    assert offered(browser)[:3] == [undone, blue, first]
    taken = done(undo(browser, first))
    assert {undone, first, second}.isdisjoint(offered(browser))
    assert offered(browser)[:2] == [taken, blue]
    done(undo(browser, blue))
    assert old <= {*offered(browser)}
    assert classifier.history.undoable(classifier.history) == {*offered(browser)}
    for change in old:
        done(undo(browser, change))


def test_the_undo_of_a_change_of_another_or_of_many_photos_asks_first(classifier: Classifier) -> None:
    with classifier.history.acting("bob"):
        classifier.add_category(EVIL, texts=["a colour"])
    with visitor(classifier, "write") as client:
        done(client.post("/categories/red/references", files=[picture("red", 71)], headers=PART))
        with classifier.history.acting("ann"):
            classifier.add_category("many", images=[encode(coloured("blue", seed)) for seed in range(900, 1001)])
        page = page_of(client.get("/changes"))
        forms = zip(page.all("form", **{"hx-post": "/undo"}), page.all("input", name="change"), strict=True)
        asked = {str(change["value"]): form.get("hx-confirm") for form, change in forms}
        many, red, of_bob = (asked[change.id] for change in list(classifier.history)[:3])
    assert re.fullmatch(r"Undo: add 101 photos many, \d\d \w+ 20\d\d, \d\d:\d\d UTC, by ann\?", str(many))
    assert red is None
    assert str(of_bob).startswith(f"Undo: add {EVIL}, ")
    assert str(of_bob).endswith(", by bob?")


def test_a_redo_names_what_stays_as_it_is(browser: TestClient, classifier: Classifier) -> None:
    with classifier.history.one_change("two"):
        for name in ("this", "that"):
            classifier.add_category(name, texts=["a colour"])
    undone = done(undo(browser, next(iter(classifier.history)).id))
    classifier.add_category("that", texts=["another colour"])
    done(undo(browser, undone), "Undone: undo “this”. Changed since, and left as they are: “that”.")
    assert classifier.category("that").texts == ("another colour",)


def test_an_undone_change_is_redone_and_undone_again(browser: TestClient, classifier: Classifier) -> None:
    answer = browser.post("/categories/red/remove", headers=PART)
    for said, button in (("Undone", "Redo"), ("Redone", "Undo"), ("Undone", "Redo")):
        fields: dict[str, Any] = {str(found["name"]): found["value"] for found in page_of(answer).all("input")}
        answer = browser.post("/undo", data=fields, headers=PART)
        assert (said in answer.text, button in answer.text) == (True, True)
        assert ("red" in names(classifier)) == (said == "Undone")


def test_a_key_to_read_is_offered_no_undo(classifier: Classifier) -> None:
    classifier.remove_category("red")
    with visitor(classifier, "read") as client:
        page = page_of(client.get("/changes"))
        assert "Remove" in page.text
        assert page.all("input", name="change") == []


def test_a_switch_to_other_encoders_is_undone_on_the_command_line(tmp_path: Path) -> None:
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder("old")]) as classifier:
        classifier.add_category("cat", texts=["a feline"])
    encoders = [HashEncoder("new")]
    change = zsvec.reembed(tmp_path / "store", encoders=encoders, switch=True).change
    assert change is not None
    with zsvec.open(tmp_path / "store", encoders=encoders) as classifier, visitor(classifier) as client:
        page = page_of(client.get("/changes"))
        assert f"zsvec undo {change.id[:8]}" in page.text
        assert page.all("input", name="change") == []
        assert "changed since" not in page.text
        for answer in (
            client.post("/undo", data={"change": change.id}, headers=PART),
            client.post("/v1/undo", json={}),
            client.post("/v1/undo", json={"change": change.id[:8]}),
        ):
            assert answer.status_code == 409
        classifier.add_category("dog", texts=["a canine"])  # the service can still write
        assert client.post("/v1/undo", json={}).json()["what"] == "add"


def test_without_a_history_there_is_no_undo_button(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier._store, "changes", list)
    assert done(browser.post("/categories/red/remove", headers=PART), "“red” is removed.") == ""
