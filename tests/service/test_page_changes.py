"""The page of the last changes, from which each can be taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.page_support import PART, page_of, visitor
from tests.service.test_page_categories import EVIL, names, path_of, picture
from tests.support import coloured_store
from zsvec.classifier import Classifier


@pytest.fixture
def colours() -> Iterator[Classifier]:
    with coloured_store(3) as classifier:
        yield classifier


def test_each_change_can_be_taken_back_later(colours: Classifier) -> None:
    with visitor(colours, "write") as client:
        client.post("/categories", data={"name": EVIL}, files=[picture("red", 77)], headers=PART)
        client.post(f"{path_of(EVIL)}/rename", data={"new": "evil"}, headers=PART)
        page = page_of(client.get("/changes"))
        assert "<script>alert(1)" not in client.get("/changes").text
        renamed, added, *_ = [str(found["value"]) for found in page.all("input", name="change")]
        assert all(word in page.text for word in ("Renamed", "Added to", "evil", "by", "write"))
        assert client.post("/undo", data={"change": renamed}, headers=PART).status_code == 200
        assert EVIL in names(colours)
        assert client.post("/undo", data={"change": added}, headers=PART).status_code == 200
        assert EVIL not in names(colours)
        page = page_of(client.get("/changes", headers=PART))
        assert page.text.count("taken back") == 2
        assert page.all("h1") == []


def test_a_taken_back_change_is_done_again_and_taken_back_again(colours: Classifier) -> None:
    """Each line says what was done, however often."""
    with visitor(colours) as client:
        answer = client.post(f"{path_of('red')}/remove", headers=PART)
        for said, button in (("Taken back", "Redo"), ("Done again", "Undo"), ("Taken back", "Redo")):
            fields = {str(found["name"]): str(found["value"]) for found in page_of(answer).all("input")}
            answer = client.post("/undo", data=fields, headers=PART)
            assert (said in answer.text, button in answer.text) == (True, True)
            assert ("red" in names(colours)) == (said == "Taken back")


def test_who_may_only_read_is_offered_no_undo(colours: Classifier) -> None:
    colours.remove_category("red")
    with visitor(colours, "read") as client:
        page = page_of(client.get("/changes"))
        assert "Removed" in page.text
        assert page.all("input", name="change") == []


def test_a_page_that_is_older_than_a_removal_adds_nothing(colours: Classifier) -> None:
    with visitor(colours) as client:
        colours.remove_category("red")
        answer = client.post(f"{path_of('red')}/references", data={"texts": "a boat"}, headers=PART)
        assert (answer.status_code, "red" in names(colours)) == (404, False)


def test_no_category_is_made_of_pictures_that_cannot_be_read(colours: Classifier) -> None:
    with visitor(colours) as client:
        answer = client.post(
            "/categories", data={"name": "heic"}, files=[("images", ("a.heic", b"no image at all"))], headers=PART
        )
        assert (answer.status_code, "heic" in names(colours)) == (422, False)
