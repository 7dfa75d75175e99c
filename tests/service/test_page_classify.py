"""The page *Classify*: predictions with evidence, and corrections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, done, images_of, page_of, picture, undo, visitor
from tests.support import coloured, coloured_store, encode
from zsvec.classifier import Classifier
from zsvec.errors import StoreUnavailableError
from zsvec.inputs.images import content_hash
from zsvec.service.pages.rendering import certainty, choices, doubt, percent, verdict
from zsvec.testing import HashEncoder
from zsvec.types import CandidateSets, ExpertOutput, Prediction, Ranking

EVIL = "<script>alert(1)</script>"
COMPARES: dict[str, Any] = {"data-compares": None}


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Enough images for a calibration."""
    with coloured_store(8) as classifier:
        yield classifier


def test_an_unsure_photo_gets_the_group_that_surely_has_it(browser: TestClient, classifier: Classifier) -> None:
    assert "Some colour" not in page_of(browser.post("/classify", files=[picture("red")], headers=PART)).text
    with classifier.history.one_change("set"):
        for name in ("red", "blue", "green"):
            classifier.references.update(name, parent="colour")
    page = page_of(browser.post("/classify", files=[picture("red")], headers=PART))
    (said,) = (one for one in page.all("div") if "data-prediction" in one)
    prediction = json.loads(said["data-prediction"] or "")
    assert [node["label"] for node in prediction["path"]] == ["colour", "red"]
    assert ("Some colour, over 99 %" in page.text) == (prediction["probability"] < 0.9)


def test_a_prediction_has_its_probability_and_pictures_as_evidence(browser: TestClient) -> None:
    page = page_of(browser.post("/classify", files=[picture("red")], headers=PART))
    assert all(words in page.text for words in ("Almost certainly red", "over 99 %"))
    shown = [found["src"] for found in page.all("img")]
    assert len(shown) == 3
    for address in shown:
        assert browser.get(str(address)).headers["content-type"] == "image/jpeg"
    assert page.all("button", name="category")[0]["value"] == "red"
    assert [found["data-headline"] for found in page.all("div") if "data-headline" in found] == ["red, over 99 %"]


def test_an_unknown_image_and_an_unreadable_one(browser: TestClient) -> None:
    page = page_of(browser.post("/classify", files=[picture("white")], headers=PART))
    assert all(words in page.text for words in ("This looks like none of your categories", "The nearest is"))
    assert all(words in page.text for words in ("If it were one of your categories", "Among your categories “"))
    assert "Says" not in page.text
    page = page_of(browser.post("/classify", files=[("images", (f"{EVIL}.png", b"nothing"))], headers=PART))
    assert page.all("div", **{"data-verdict": "unread"})
    assert not page.all("script")


def test_evidence_has_similarities_and_the_answer_of_each_expert(browser: TestClient) -> None:
    (expected,) = browser.post("/v1/classify?explain=true", files=[picture("red")]).json()
    (expert,) = [one for name, one in expected["experts"].items() if name.endswith(":image")]
    page = page_of(browser.post("/classify", files=[picture("red")], headers=PART))
    buttons = page.all("button", **COMPARES)
    shown = [(found["data-category"], found["data-similarity"]) for found in buttons]
    assert shown == [(one["category"], f"{one['similarity']:.2f}") for one in expert["neighbors"]]
    assert "Says “red”, over 99 %" in page.text


@pytest.mark.parametrize("colour", ["red", "white"])
def test_the_novelty_is_shown_beside_the_limit(browser: TestClient, classifier: Classifier, colour: str) -> None:
    (expected,) = browser.post("/v1/classify", files=[picture(colour)]).json()
    page = page_of(browser.post("/classify", files=[picture(colour)], headers=PART))
    labels = [found.get("aria-label") for found in page.all("svg", role="img")]
    assert f"{expected['novelty']:.2f} of 1; the limit is 0.50" in labels
    assert ("Why unknown?" in page.text) == expected["unknown"] == (colour == "white")


def test_the_evidence_of_the_novelty_is_named(browser: TestClient, classifier: Classifier) -> None:
    def named() -> tuple[str, bool, bool]:
        (expected,) = browser.post("/v1/classify", files=[picture("red")]).json()
        page = page_of(browser.post("/classify", files=[picture("red")], headers=PART)).text
        return expected["novelty_basis"], "words for everyday things" in page, "Your photos" in page

    assert named() == ("references", False, True)
    for category in classifier.categories():
        few = [coloured(category.name, seed) for seed in range(2)]
        classifier.add_category(category.name, images=few, replace=True)
    assert named() == ("both", True, True)
    for category in classifier.categories():
        classifier.remove_category(category.name)
    for name in ("red", "blue"):
        classifier.add_category(name)
    assert named() == ("words", True, False)


def test_texts_are_evidence_if_they_say_more_than_a_name(browser: TestClient, classifier: Classifier) -> None:
    def said() -> str:
        return page_of(browser.post("/classify", files=[picture("red")], headers=PART)).text

    assert "Compared with your texts" not in said()
    classifier.add_category("snow")
    assert "Compared with your texts" not in said()
    classifier.references.update("snow", texts=["snow", "cold and white"])
    assert "Compared with your texts" in said()
    assert "cold and white" in said()


def test_probabilities_in_words() -> None:
    assert [certainty(p) for p in (0.95, 0.6, 0.3)] == ["Almost certainly", "Probably", "Perhaps"]


def answered(*shares: float, weight: float = 1.0, unknown: bool = False) -> Prediction:
    """A prediction for categories a, b, …; an expert with the rest of the weight prefers b."""
    ranking = tuple(zip("abc", shares, strict=False))
    first = ExpertOutput(weight=weight, entropy=0, ranking=ranking, neighbors=())
    other = ExpertOutput(weight=1 - weight, entropy=0, ranking=(("b", 1.0),), neighbors=())
    return Prediction(
        source="",
        nearest="a",
        probability=shares[0],
        ranking=ranking,
        experts={"x": first, "y": other},
        unknown=unknown,
    )


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (answered(0.97, 0.02), "sure"),
        (answered(0.8, 0.2), "sure"),
        (answered(0.79, 0.1), "unsure"),  # "Probably"
        (answered(0.5, 0.1), "unsure"),  # "Perhaps", though no category is close
        (answered(0.55, 0.45), "unsure"),
        (answered(0.97, 0.02, weight=0.4), "unsure"),  # disputed
        (answered(0.5), "unsure"),
        (answered(0.97, 0.02, unknown=True), "unknown"),
        (replace(answered(0.5, 0.5), labels=(("a", 0.9), ("b", 0.85))), "sure"),
        (replace(answered(0.97, 0.02), labels=(("a", 0.9), ("b", 0.7))), "unsure"),
    ],
)
def test_a_prediction_is_sure_unsure_or_unknown(prediction: Prediction, expected: str) -> None:
    assert verdict(prediction) == expected
    assert bool(doubt(prediction)) == (expected != "sure")
    if prediction.uncertainty:  # kept by keep="uncertain"
        assert verdict(prediction) != "sure"


@pytest.mark.parametrize(
    ("prediction", "entries", "expected"),
    [
        (answered(0.55, 0.45), (("a", 0.5), ("b", 0.95)), ("a", "b")),
        (answered(0.55, 0.45), (("a", 0.5), ("b", 0.96)), ()),
        (answered(0.5, 0.1), tuple((name, 0.9) for name in "abcd"), tuple("abcd")),
        (answered(0.5, 0.1), tuple((name, 0.9) for name in "abcde"), ()),
        (answered(0.97, 0.02), (("a", 0.5), ("b", 0.9)), ()),  # sure
        (answered(0.55, 0.45, unknown=True), (("a", 0.5), ("b", 0.9)), ()),
        (answered(0.55, 0.45), (("b", 0.5), ("c", 0.9)), ()),  # the fusion does not agree
    ],
)
def test_two_to_four_candidates_are_asked_for_in_the_place_of_a_guess(
    prediction: Prediction, entries: Ranking, expected: tuple[str, ...]
) -> None:
    assert choices(prediction) == ()
    for up_to, found in ((0.95, expected), (0.94, ())):
        assert choices(replace(prediction, candidate_sets=CandidateSets(entries=entries, up_to=up_to))) == found


def test_candidates_have_a_button_each(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prediction, "uncertainty", "close")
    monkeypatch.setattr(Prediction, "candidates", lambda *_: ("red", EVIL, "blue"))
    page = page_of(browser.post("/classify", files=[picture("red")], headers=PART))
    assert "One of these three:" in page.text
    assert "95 of 100" in page.text
    assert [found["value"] for found in page.all("button", name="category")][:3] == ["red", EVIL, "blue"]
    assert [found["data-headline"] for found in page.all("div") if "data-headline" in found] == [
        f"one of red, {EVIL}, blue"
    ]
    assert not page.all("script")


def test_each_verdict_has_an_icon_of_its_own(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    icons = set()
    for colour, expected in (("red", "sure"), ("red", "unsure"), ("white", "unknown")):
        with monkeypatch.context() as patch:
            if expected == "unsure":
                patch.setattr(Prediction, "uncertainty", "close")
            page = page_of(browser.post("/classify", files=[picture(colour)], headers=PART))
        assert [found["data-verdict"] for found in page.all("div") if "data-verdict" in found] == [expected]
        assert expected.capitalize() in page.text
        icons.add(next(tag for tag, _ in page.elements if tag in ("circle", "path", "rect")))
    assert icons == {"circle", "path", "rect"}


def test_one_image_is_classified_at_a_time(browser: TestClient) -> None:
    page = page_of(browser.post("/classify", files=[picture("red", 1), picture("red", 2)], headers=PART), 422)
    assert "at most 1 photo" in page.text


def test_a_correction_counts_and_is_undone_and_redone(browser: TestClient, classifier: Classifier) -> None:
    name, sent = f"snow {EVIL}", [picture("white", name=f"{EVIL}.png")]
    answer = browser.post("/correct", data={"category": name}, files=sent, headers=PART)
    change = done(answer, f"Learned that this is “{name}”")
    for shown in (answer, browser.post("/classify", files=sent, headers=PART)):
        page = page_of(shown)
        assert name in page.text
        assert not page.all("script")
    stored = classifier.references.of(name)
    assert [one.source for one in stored if one.modality == "image"] == [f"{EVIL.rpartition('/')[2]}.png"]
    assert done(browser.post("/correct", data={"category": name}, files=sent, headers=PART)) == ""  # no change
    answer = undo(browser, change)
    done(answer, "Undone: correct")
    assert [category.name for category in classifier.categories()] == ["blue", "green", "red"]
    redo = {str(found["name"]): str(found["value"]) for found in page_of(answer).all("input")}
    done(browser.post("/undo", data=redo, headers=PART), "Redone")
    assert name in [category.name for category in classifier.categories()]


def test_the_author_of_a_correction_is_recorded(classifier: Classifier) -> None:
    with visitor(classifier, "write") as client:
        client.post("/correct", data={"category": "snow"}, files=[picture("white")], headers=PART)
    assert next(iter(classifier.history)).by == "ann"


def predictions_of(browser: TestClient, *colours: str) -> list[dict[str, Any]]:
    """The predictions that the page has of photos."""
    answers = [
        browser.post("/classify", files=[picture(colour, 60 + i)], headers=PART) for i, colour in enumerate(colours)
    ]
    return [
        json.loads(said["data-prediction"] or "")
        for answer in answers
        for said in page_of(answer).all("div")
        if "data-prediction" in said
    ]


def test_photos_of_one_thing_have_one_answer(browser: TestClient, classifier: Classifier) -> None:
    for colours, verdict_of_all in ((("red", "white", "red"), "unsure"), (("white", "white"), "unknown")):
        predictions = predictions_of(browser, *colours)
        expected = classifier.tracker().combine(
            classifier.classify(encode(coloured(colour, 60 + i)), top_k=5) for i, colour in enumerate(colours)
        )
        page = page_of(browser.post("/classify/combined", json={"predictions": predictions}, headers=PART))
        (said,) = page.all("div", **{"class": "said"})
        assert said["data-verdict"] == verdict_of_all
        assert expected.unknown == (verdict_of_all == "unknown")
        if not expected.unknown:
            assert expected.nearest == "red"
            assert said["data-headline"] == f"red, {percent(expected.probability or 0)}"
        buttons = [button["value"] for button in page.all("button", name="category")]
        assert buttons == ([] if expected.unknown else ["red"])
    with visitor(classifier, "read") as reader:
        answer = reader.post("/classify/combined", json={"predictions": predictions_of(reader, "red", "red")})
        assert not page_of(answer).all("button")


def test_predictions_of_one_thing_may_be_forged(browser: TestClient) -> None:
    ranking = [{"label": EVIL, "probability": 0.9}, {"label": "red", "probability": 0.1}]
    seen: dict[str, Any] = {"ranking": ranking, "unknown": False, "novelty": 0.1}
    page = page_of(browser.post("/classify/combined", json={"predictions": [seen] * 64}, headers=PART))
    assert EVIL in page.text
    assert not page.all("script")
    for wrong in (
        {"ranking": []},
        {"ranking": [{"label": f"{i}", "probability": 0.01} for i in range(11)]},
        {"ranking": [{"label": "red", "probability": 2}]},
        {"ranking": [{"label": "red", "probability": float("nan")}]},
        {"ranking": [{"label": 3, "probability": 0.5}]},
        {"ranking": None},
        {"novelty": float("nan")},
        {"novelty": -1},
        {"unknown": None},
    ):
        body = json.dumps({"predictions": [seen, {**seen, **wrong}]})
        headers = {**PART, "Content-Type": "application/json"}
        page_of(browser.post("/classify/combined", content=body, headers=headers), 422)
    for number in ([], [seen], [seen] * 65, None):
        page_of(browser.post("/classify/combined", json={"predictions": number}, headers=PART), 422)


def test_photos_of_one_thing_are_corrected_by_one_change(browser: TestClient, classifier: Classifier) -> None:
    before = images_of(classifier, "blue")
    fields = {"category": "blue"}
    first = done(browser.post("/correct", data={**fields, "more": "yes"}, files=[picture("red", 61)], headers=PART))
    last = browser.post("/correct", data={**fields, "change": first}, files=[picture("red", 62)], headers=PART)
    assert done(last, "Learned that this is “blue”") == first
    assert len(images_of(classifier, "blue")) == len(before) + 2
    done(undo(browser, first))
    assert images_of(classifier, "blue") == before


def test_a_correction_needs_an_image_and_a_category(browser: TestClient) -> None:
    for given in ({}, {"category": " "}):
        page_of(browser.post("/correct", data=given, files=[picture("white")], headers=PART), 422)
    page_of(browser.post("/correct", data={"category": "snow"}, headers=PART), 422)


def test_an_empty_store_asks_for_categories() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        page = page_of(client.get("/"))
        assert "There are no categories yet" in page.text
        assert not page.all("input", type="file")
        page_of(client.post("/classify", files=[picture("red")], headers=PART), 409)


def test_the_page_is_there_while_the_store_is_away(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailableError("it is away")

    monkeypatch.setattr(classifier, "categories", away)
    assert page_of(browser.get("/")).all("input", type="file")


def test_a_name_in_the_list_of_categories_is_no_html(browser: TestClient, classifier: Classifier) -> None:
    name = f'"><img src=x onerror=alert(1)>{EVIL}'
    classifier.add_category(name, texts=["a text"])
    assert name in [found["value"] for found in page_of(browser.get("/")).all("option")]


def test_similar_photos(browser: TestClient, classifier: Classifier) -> None:
    (answer,) = browser.post("/v1/classify", files=[picture("red")]).json()
    (kept,) = browser.post("/v1/inbox", files=[picture("white", name=f"{EVIL}.png")]).json()
    part = page_of(browser.get(f"/similar/{answer['hash']}", headers=PART))
    assert not part.all("nav")
    assert not part.all("script")
    images = [str(found["src"]) for found in part.all("img")]
    assert images[0].removeprefix("/photos/") in images_of(classifier, "red")
    assert images[-1] == f"/v1/inbox/{kept['hash']}/image"
    assert {browser.get(address).status_code for address in images} == {200}
    for found in part.all("a", **{"hx-target": "closest .similar"}):  # each leads on
        page = page_of(browser.get(str(found["href"])))
        assert page.all("nav")
        assert {
            browser.get(str(found["src"])).status_code
            for found in page.all("img")
            if not str(found["src"]).startswith("/static/")
        } == {200}


def test_similar_photos_of_an_unknown_photo_are_refused(browser: TestClient) -> None:
    page_of(browser.get(f"/similar/{'0' * 64}", headers=PART), 404)
    for wrong in ("0", "0" * 65, "..%2F..%2Fv1", "%00"):
        assert browser.get(f"/similar/{wrong}", headers=PART).status_code == 422


def test_similar_photos_lead_back_to_the_category_that_they_were_opened_from(
    browser: TestClient, classifier: Classifier
) -> None:
    image = encode(coloured("red", 500))
    for name in ("red", "blue"):
        classifier.add_category(name, images=[image])
    address = f"/similar/{content_hash(image)}"
    for name in ("red", "blue"):
        page = page_of(browser.get(address, params={"category": name}))
        assert [str(found["href"]) for found in page.all("a", **{"class": "back"})] == [f"/categories/{name}"]
        assert [found["href"] for found in page.all("a", **{"aria-current": "page"})] == ["/categories"]
    page_of(browser.get(address, params={"category": EVIL}))
    assert browser.get(address, params={"category": "x" * 501}, headers=PART).status_code == 422
