"""The pages of categories, and every change on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from tests.service.page_support import PART, Page, page_of, visitor
from tests.support import coloured, coloured_store, encode
from zsvec.classifier import Classifier
from zsvec.inputs.categories import CategoryInput
from zsvec.service import Limits

EVIL = "<script>alert(1)</script>\"'/?#%2F 🐼"


def picture(colour: str, seed: int = 50, name: str = "photo.png") -> tuple[str, tuple[str, bytes]]:
    return "images", (name, encode(coloured(colour, seed)))


def path_of(name: str) -> str:
    return f"/categories/{quote(name, safe='')}"


@pytest.fixture
def colours() -> Iterator[Classifier]:
    with coloured_store(3) as classifier:
        yield classifier


@pytest.fixture
def anybody(colours: Classifier) -> Iterator[TestClient]:
    with visitor(colours) as client:
        yield client


def names(classifier: Classifier) -> list[str]:
    return [category.name for category in classifier.categories()]


def images(classifier: Classifier, name: str) -> list[str]:
    """Hashes of the reference images of a category."""
    return [one.hash for one in classifier.references.of(name) if one.modality == "image"]


def done(answer: Any, *words: str) -> str:
    """The id of the change that an answer says was made."""
    page = page_of(answer)
    assert all(word in page.text for word in words), page.text
    assert "zsvec:changed" in json.loads(answer.headers["hx-trigger"])
    (change,) = page.all("input", name="change")
    return str(change["value"])


def test_each_category_has_a_card_with_its_pictures(anybody: TestClient) -> None:
    page = page_of(anybody.get("/categories"))
    assert [found["data-drop"] for found in page.all("li") if "data-drop" in found] == ["blue", "green", "red"]
    assert page.text.count("3 pictures, 1 text") == 3
    assert len(page.all("img", loading="lazy")) == 9


def test_a_filter_leaves_those_with_a_text_in_their_name(anybody: TestClient) -> None:
    page = page_of(anybody.get("/categories", params={"filter": "E"}, headers=PART))
    assert not page.all("nav")
    assert "2 categories" not in page.text
    page = page_of(anybody.get("/categories", params={"filter": "RE"}, headers=PART))
    assert [found["data-drop"] for found in page.all("li") if "data-drop" in found] == ["green", "red"]
    page = page_of(anybody.get("/categories", params={"filter": EVIL}))
    assert f"No category has “{EVIL}” in its name" in page.text
    assert page.all("input", type="search")[0]["value"] == EVIL


def test_of_many_categories_some_are_shown_and_more_when_asked_for(anybody: TestClient, colours: Classifier) -> None:
    colours.add_categories(CategoryInput(name=f"n{number:03}", texts=["a text"]) for number in range(70))
    page = page_of(anybody.get("/categories"))
    assert len([found for found in page.all("li") if "data-drop" in found]) == 60
    (more,) = page.all("a", id="more")
    page = page_of(anybody.get(str(more["href"]), headers=PART))
    assert len([found for found in page.all("li") if "data-drop" in found]) == 73
    assert not page.all("a", id="more")


@pytest.mark.parametrize("shown", ["0", "-1", "x", "999999999"])
def test_a_number_of_cards_that_is_none_is_refused(anybody: TestClient, shown: str) -> None:
    page_of(anybody.get("/categories", params={"shown": shown}), 422)


def test_a_category_is_added_with_texts_and_pictures(anybody: TestClient, colours: Classifier) -> None:
    fields = {"name": EVIL, "texts": " a first text \n\n a second text "}
    broken = "images", ("<b>.png", b"nothing")
    answer = anybody.post("/categories", data=fields, files=[picture("white"), broken], headers=PART)
    change = done(answer, f"“{EVIL}” is a new category with 1 picture.", "1 picture could not be read: ", "<b>.png")
    assert not Page(answer.text).all("b")
    category = colours.category(EVIL)
    assert category.texts == ("a first text", "a second text")
    for path in ("/categories", path_of(EVIL)):
        page = page_of(anybody.get(path))
        assert EVIL in page.text
        assert not [found for found in page.all("script") if not found.get("src")]
        for shown in page.all("img", loading="lazy"):
            assert anybody.get(str(shown["src"])).status_code == 200
    done(anybody.post("/undo", data={"change": change}, headers=PART))
    assert names(colours) == ["blue", "green", "red"]


def test_a_category_that_is_there_is_not_added(anybody: TestClient, colours: Classifier) -> None:
    page = page_of(anybody.post("/categories", data={"name": " red "}, files=[picture("white")], headers=PART), 409)
    assert "There is a category “red” already" in page.text
    assert len(images(colours, "red")) == 3


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 501])
def test_a_name_that_is_none_is_refused(anybody: TestClient, name: str) -> None:
    page_of(anybody.post("/categories", data={"name": name}, headers=PART), 422)


def test_a_page_has_all_of_a_category(anybody: TestClient, colours: Classifier) -> None:
    page = page_of(anybody.get("/categories/red"))
    assert [found["data-hash"] for found in page.all("button") if "data-reference" in found] == images(colours, "red")
    part = page_of(anybody.get("/categories/red", headers=PART))
    assert not part.all("nav")
    assert part.all("h1")
    assert page_of(anybody.get("/categories/red", headers={**PART, "HX-Boosted": "true"})).all("nav")


def test_texts_and_pictures_are_added(anybody: TestClient, colours: Classifier) -> None:
    done(
        anybody.post("/categories/red/references", data={"texts": "like blood"}, files=[picture("red")], headers=PART),
        "1 picture and 1 text added to “red”.",
    )
    assert colours.category("red").texts == ("red", "like blood")
    again = page_of(anybody.post("/categories/red/references", files=[picture("red")], headers=PART))
    assert "has all of that already" in again.text
    assert not again.all("input", name="change")


def test_pictures_that_cannot_be_read_are_named(anybody: TestClient, colours: Classifier) -> None:
    broken = [("images", (f"{n}.png", b"nothing")) for n in range(2)]
    page = page_of(anybody.post("/categories/red/references", files=broken, headers=PART), 422)
    assert "2 pictures could not be read" in page.text
    assert "1.png" in page.text
    answer = anybody.post("/categories/red/references", files=[*broken, picture("red")], headers=PART)
    done(answer, "1 picture added to “red”.", "2 pictures could not be read")


def test_nothing_to_add_is_said(anybody: TestClient) -> None:
    page_of(anybody.post("/categories/red/references", data={"texts": " \n "}, headers=PART), 422)


def test_more_pictures_than_are_taken_at_once_are_refused(colours: Classifier) -> None:
    with visitor(colours) as client:
        many = [picture("red", seed) for seed in range(Limits().images + 1)]
        page_of(client.post("/categories/red/references", files=many, headers=PART), 413)


def test_references_are_moved_and_moved_back(anybody: TestClient, colours: Classifier) -> None:
    moved = images(colours, "red")[:2]
    answer = anybody.post("/categories/red/move", data={"hash": moved, "category": "blue"}, headers=PART)
    change = done(answer, "2 references moved from “red” to “blue”.")
    assert (len(images(colours, "red")), len(images(colours, "blue"))) == (1, 5)
    done(anybody.post("/undo", data={"change": change}, headers=PART), "the moving")
    assert (len(images(colours, "red")), len(images(colours, "blue"))) == (3, 3)


def test_references_are_removed(anybody: TestClient, colours: Classifier) -> None:
    hashes = [one.hash for one in colours.references.of("red")]
    done(
        anybody.post("/categories/red/references/remove", data={"hash": hashes[0]}, headers=PART), "1 reference removed"
    )
    page = page_of(anybody.post("/categories/red/references/remove", data={"hash": hashes[1:]}, headers=PART), 422)
    assert page.all("div", role="alert")
    assert len(images(colours, "red")) == 3


def test_a_category_is_renamed(anybody: TestClient, colours: Classifier) -> None:
    answer = anybody.post("/categories/red/rename", data={"new": EVIL}, headers=PART)
    change = done(answer, f"“red” is called “{EVIL}” now.")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": path_of(EVIL)}
    assert names(colours) == sorted([EVIL, "blue", "green"])
    here = {**PART, "HX-Current-URL": f"http://localhost{path_of(EVIL)}"}
    answer = anybody.post("/undo", data={"change": change}, headers=here)
    done(answer, "the renaming")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": "/categories/red"}
    page_of(anybody.post("/categories/red/rename", data={"new": "blue"}, headers=PART), 409)


def test_a_category_is_merged_into_another(anybody: TestClient, colours: Classifier) -> None:
    answer = anybody.post("/categories/red/merge", data={"category": "blue"}, headers=PART)
    change = done(answer, "“red” is part of “blue” now.")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": "/categories/blue"}
    assert names(colours) == ["blue", "green"]
    here = {**PART, "HX-Current-URL": "http://localhost/categories/blue"}
    answer = anybody.post("/undo", data={"change": change}, headers=here)
    done(answer, "the merging")
    assert "zsvec:went" not in json.loads(answer.headers["hx-trigger"])
    page_of(anybody.post("/categories/red/merge", data={"category": "nothing"}, headers=PART), 404)
    page_of(anybody.post("/categories/red/merge", data={"category": "red"}, headers=PART), 422)


def test_a_category_is_removed(anybody: TestClient, colours: Classifier) -> None:
    answer = anybody.post("/categories/red/remove", headers=PART)
    change = done(answer, "“red” is removed.")
    assert json.loads(answer.headers["hx-trigger"])["zsvec:went"] == {"path": "/categories"}
    page_of(anybody.post("/categories/red/remove", headers=PART), 404)
    done(anybody.post("/undo", data={"change": change}, headers=PART), "the removal")
    assert names(colours) == ["blue", "green", "red"]


@pytest.mark.parametrize("given", [{}, {"change": ["a", "b"]}, {"change": "nothing"}, {"change": ""}])
def test_a_change_that_is_none_is_not_taken_back(anybody: TestClient, given: dict[str, Any]) -> None:
    page_of(anybody.post("/undo", data=given, headers=PART), 422)


@pytest.mark.parametrize(
    "address", ["http://[", "http://[/categories/red", "", "\\", "http://localhost/categories/%FF"]
)
def test_a_page_that_is_nowhere_is_left_as_it_is(anybody: TestClient, colours: Classifier, address: str) -> None:
    change = done(anybody.post("/categories/red/remove", headers=PART))
    answer = anybody.post("/undo", data={"change": change}, headers={**PART, "HX-Current-URL": address})
    done(answer, "the removal")
    assert names(colours) == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/categories", "name"),
        ("/categories/%2E%2E/references", "texts"),
        ("/categories/red/move", "category"),
        ("/categories/red/rename", "new"),
        ("/categories/red/merge", "category"),
        ("/audit/move", "category"),
        ("/inbox/label", "category"),
        ("/correct", "category"),
    ],
)
def test_no_page_makes_a_category_that_no_page_shows(
    anybody: TestClient, colours: Classifier, path: str, field: str
) -> None:
    one = images(colours, "red")[0]
    data = {"hash": one, field: ".."} | ({"reference": f"{one}:red"} if path == "/audit/move" else {})
    sent = [picture("red")] if path == "/correct" else None
    page = page_of(anybody.post(path, data=data, files=sent, headers=PART), 422)
    assert "folder" in page.text
    assert names(colours) == ["blue", "green", "red"]


@pytest.mark.parametrize("what", ["references", "move", "references/remove", "rename", "merge", "remove"])
def test_every_change_needs_a_category_that_is_there(anybody: TestClient, colours: Classifier, what: str) -> None:
    data = {"hash": "0" * 64, "category": "red", "new": "white"}
    answer = anybody.post(f"/categories/nothing/{what}", data=data, headers=PART)
    assert answer.status_code in (404, 422)
    assert names(colours) == ["blue", "green", "red"]


def test_without_a_history_there_is_no_button_that_takes_back(
    colours: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colours._store, "changes", list)
    with visitor(colours) as client:
        page = page_of(client.post("/categories/red/remove", headers=PART))
        assert "“red” is removed." in page.text
        assert not page.all("input", name="change")
