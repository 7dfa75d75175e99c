"""The page *Classify*, and the parts that it asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.page_support import PART, page_of, visitor
from tests.support import coloured, coloured_store, encode
from zsvec.classifier import Classifier
from zsvec.errors import StoreUnavailableError
from zsvec.service.pages.words import how_sure
from zsvec.testing import HashEncoder

EVIL = "<script>alert(1)</script>"


def picture(colour: str, seed: int = 50) -> dict[str, tuple[str, bytes]]:
    return {"images": (f"{EVIL}.png", encode(coloured(colour, seed)))}


@pytest.fixture
def colours() -> Iterator[Classifier]:
    with coloured_store(8) as classifier:
        yield classifier


@pytest.fixture
def anybody(colours: Classifier) -> Iterator[TestClient]:
    with visitor(colours) as client:
        yield client


def test_an_answer_has_its_probability_and_its_evidence_as_pictures(anybody: TestClient, colours: Classifier) -> None:
    page = page_of(anybody.post("/classify", files=picture("red"), headers=PART))
    assert "Almost certainly red" in page.text
    assert "over 99 %" in page.text
    shown = [found["src"] for found in page.all("img")]
    assert len(shown) == 3
    for address in shown:
        assert anybody.get(str(address)).headers["content-type"] == "image/jpeg"
    assert page.all("button", name="category")[0]["value"] == "red"


def test_what_is_no_category_is_said_in_plain_words(anybody: TestClient) -> None:
    page = page_of(anybody.post("/classify", files=picture("white"), headers=PART))
    assert "This looks like none of your categories" in page.text
    assert "The nearest is" in page.text


def test_what_is_no_picture_is_said_in_plain_words(anybody: TestClient) -> None:
    page = page_of(anybody.post("/classify", files={"images": (f"{EVIL}.png", b"nothing")}, headers=PART))
    assert "This could not be read as a picture" in page.text
    assert not page.all("script")


@pytest.mark.parametrize(("probability", "words"), [(0.95, "Almost certainly"), (0.6, "Probably"), (0.3, "Perhaps")])
def test_probabilities_are_words(probability: float, words: str) -> None:
    assert how_sure(probability) == words


def test_one_image_is_asked_for_at_a_time(anybody: TestClient) -> None:
    both = [("images", ("a.png", encode(coloured("red", seed)))) for seed in (1, 2)]
    page = page_of(anybody.post("/classify", files=both, headers=PART), 413)
    assert "too much at once" in page.text


def test_what_is_taught_counts_and_is_taken_back_and_done_again(anybody: TestClient, colours: Classifier) -> None:
    teaching = {"category": f"snow {EVIL}"}
    answer = anybody.post("/correct", data=teaching, files=picture("white"), headers=PART)
    page = page_of(answer)
    assert f"It has learned that this is “snow {EVIL}”" in page.text
    assert not page.all("script")
    assert "zsvec:changed" in answer.headers["hx-trigger"]
    page = page_of(anybody.post("/classify", files=picture("white"), headers=PART))
    assert f"snow {EVIL}" in page.text
    assert not page.all("script")
    stored = colours.references.of(f"snow {EVIL}")
    assert [one.source for one in stored if one.modality == "image"] == [f"{EVIL.rpartition('/')[2]}.png"]

    undo = page_of(anybody.post("/correct", data=teaching, files=picture("white"), headers=PART))
    assert not undo.all("input", name="change")  # nothing was changed this time
    change = next(iter(colours.history))
    page = page_of(anybody.post("/undo", data={"change": change.id}, headers=PART))
    assert "Taken back: what was taught, for" in page.text
    assert [category.name for category in colours.categories()] == ["blue", "green", "red"]
    redo = {str(found["name"]): str(found["value"]) for found in page.all("input")}
    page = page_of(anybody.post("/undo", data=redo, headers=PART))
    assert "Done again, for" in page.text
    assert f"snow {EVIL}" in [category.name for category in colours.categories()]


def test_who_taught_is_kept(colours: Classifier) -> None:
    with visitor(colours, "write") as client:
        client.post("/correct", data={"category": "snow"}, files=picture("white"), headers=PART)
    assert next(iter(colours.history)).by == "write"


@pytest.mark.parametrize("given", [{}, {"category": " "}])
def test_what_is_taught_must_be_said(anybody: TestClient, given: dict[str, str]) -> None:
    page_of(anybody.post("/correct", data=given, files=picture("white"), headers=PART), 422)


def test_an_image_must_be_given_to_be_taught(anybody: TestClient) -> None:
    page_of(anybody.post("/correct", data={"category": "snow"}, headers=PART), 422)


def test_an_empty_store_says_what_to_do() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        page = page_of(client.get("/"))
        assert "There are no categories yet" in page.text
        assert not page.all("input", type="file")
        page_of(client.post("/classify", files=picture("red"), headers=PART), 409)


def test_the_page_is_there_while_the_store_is_away(
    anybody: TestClient, colours: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailableError("it is away")

    monkeypatch.setattr(colours, "categories", away)
    assert page_of(anybody.get("/")).all("input", type="file")


def test_a_name_in_the_list_of_categories_is_no_html(anybody: TestClient, colours: Classifier) -> None:
    colours.add_category(f'"><img src=x onerror=alert(1)>{EVIL}', ["a text"])
    page = page_of(anybody.get("/"))
    assert f'"><img src=x onerror=alert(1)>{EVIL}' in [found["value"] for found in page.all("option")]
