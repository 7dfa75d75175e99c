"""The page *Inbox*: images that wait, labels, and groups."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, Page, done, images_of, page_of, picture, undo, visitor
from tests.support import coloured, coloured_store, encode, photo
from zsvec import Unlabelled
from zsvec.classifier import Classifier
from zsvec.errors import ConflictError, WeightsUnavailableError
from zsvec.inputs.images import content_hash
from zsvec.service.api.schemas import MAX_ALSO
from zsvec.service.pages.inbox import _described
from zsvec.service.pages.rendering import verdict
from zsvec.testing import HashEncoder
from zsvec.types import ExpertOutput, Prediction

EVIL = "<script>alert(1)</script>\u200d'\""
NONE = "0" * 64


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Three classifier, and six images that wait."""
    with coloured_store(3) as classifier:
        for seed in range(6):
            classifier.keep(photo(seed))
        yield classifier


def shown(client: TestClient, **query: str) -> Page:
    return page_of(client.get("/inbox/next", params=query, headers=PART))


def hashes(page: Page) -> list[str]:
    return [str(found["data-hash"]) for found in page.all("li", role="option")]


# What waits


def test_an_empty_inbox_tells_which_photos_come() -> None:
    expected: dict[Any, str] = {"none": "No photos come here", "uncertain": "come here when", "all": "All"}
    for keep, said in expected.items():
        with zsvec.open(":memory:", encoders=[HashEncoder()], keep=keep) as classifier, visitor(classifier) as client:
            page = page_of(client.get("/inbox"))
            assert "Nothing waits" in page.text
            assert said in page.text
            assert not page.all("ul", id="images")


def test_images_are_shown_a_few_at_a_time(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.service.pages.inbox._BATCH", 4)
    assert "6 photos wait" in page_of(browser.get("/inbox")).text
    first = hashes(shown(browser))
    assert first == [one.hash for one in classifier.inbox.rank(4)]
    rest = hashes(shown(browser, shown=",".join([*first, NONE, EVIL])))
    assert {*first, *rest} == set(classifier.inbox.hashes())
    assert len(rest) == 2
    for address in first:
        assert browser.get(f"/v1/inbox/{address}/image").headers["content-type"] == "image/jpeg"
    assert browser.get("/inbox/next", params={"shown": "x" * 20_000}).status_code == 422


def waiting(prediction: Prediction) -> Unlabelled:
    return Unlabelled(hash="", source="", added=datetime.now(UTC), width=0, height=0, prediction=prediction, urgency=1)


def test_each_image_has_its_likely_categories(browser: TestClient, classifier: Classifier) -> None:
    page = shown(browser)
    for found, image in zip(page.all("li", role="option"), classifier.inbox.rank(), strict=True):
        assert image.prediction
        choices = json.loads(str(found["data-choices"]))
        assert [name for name, _, _ in choices] == [name for name, _ in image.prediction.ranking]
        assert found["data-verdict"] == verdict(image.prediction)
        assert ("Unknown" if image.prediction.unknown else choices[0][0]) in str(found["aria-label"])


def test_an_image_is_asked_by_its_candidates(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.service.pages.inbox.choices", lambda _: ("red", "rare"))
    page = shown(browser)
    for found in page.all("li", role="option"):
        (red, _, share), (rare, _, none) = json.loads(str(found["data-choices"]))
        assert (red, 0 <= share <= 1) == ("red", True)
        assert (rare, none) == ("rare", 0.0)  # not in the ranking
    assert "One of these two: red, rare" in page.text
    prediction = Prediction(source="", label="red", nearest="red", ranking=(("red", 0.9),))
    assert _described(waiting(prediction))["choices"] == [("red", "90 %", 0.9), ("rare", "under 1 %", 0.0)]


def test_labels_are_shown_where_an_image_may_have_several() -> None:
    settings: Any = {"labels": "many", "label_false_positive_rate": 0.9}  # so that any photo has a label
    with zsvec.open(":memory:", encoders=[HashEncoder()], **settings) as several, visitor(several) as client:
        for colour in ("red", "blue"):
            several.add_category(colour, images=[coloured(colour, seed) for seed in range(6)])
        several.keep(photo(1))
        assert "Labels: " in shown(client).text
        page = page_of(client.post("/classify", files=[picture("red")], headers=PART))
        assert "Labels: red" in page.text
        confirmed = str(page.all("button", name="category")[0]["value"])
        assert confirmed.splitlines() == [name for name, _ in several.classify(coloured("red", 100)).labels]
        answer = client.post("/correct", data={"category": "red\nblue"}, files=[picture("red")], headers=PART)
        done(answer, "Learned that this is “red” and “blue”.")


def test_without_categories_nothing_is_proposed() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        digest = classifier.keep(photo(1))
        (found,) = shown(client).all("li", role="option")
        assert (found["data-hash"], found["data-choices"]) == (digest, "[]")
        done(client.post("/inbox/label", data={"hash": str(digest), "category": "noise"}, headers=PART))
        assert [category.name for category in classifier.categories()] == ["noise"]


def outputs(*ranked: tuple[str, float]) -> dict[str, ExpertOutput]:
    return {
        f"e{i}:image": ExpertOutput(weight=weight, entropy=0, ranking=((name, 1.0),), neighbors=())
        for i, (name, weight) in enumerate(ranked)
    }


@pytest.mark.parametrize(
    ("ranking", "more", "said"),
    [
        ((("a", 0.9), ("b", 0.1)), {"unknown": True}, "The nearest is “a”"),
        ((("a", 0.5), ("b", 0.4)), {}, "A close call: “a” or “b”."),
        (
            (("a", 0.8), ("b", 0.1)),
            {"experts": outputs(("a", 0.4), ("b", 0.6))},
            "Disputed: one comparison says “a”, others say “b”.",
        ),
        ((("a", 0.9), ("b", 0.1)), {}, "made it clearer"),
        ((("a", 1.0),), {}, "made it clearer"),
    ],
)
def test_the_reason_why_an_image_waits(ranking: Any, more: dict[str, Any], said: str) -> None:
    prediction = Prediction(source="", nearest="a", ranking=ranking, **more)
    assert said in _described(waiting(prediction))["why"]


def test_the_choices_of_an_unknown_image_have_no_percentages() -> None:
    prediction = Prediction(source="", nearest="a", ranking=(("a", 0.9), ("b", 0.1)), unknown=True)
    assert _described(waiting(prediction))["choices"] == [("a", "", 0.9), ("b", "", 0.1)]


# Labels


def test_a_label_makes_a_reference_and_undo_puts_the_image_back(browser: TestClient, classifier: Classifier) -> None:
    first, *rest = hashes(shown(browser))
    answer = browser.post("/inbox/label", data={"hash": first, "category": " red "}, headers=PART)
    change = done(answer, "1 photo labelled “red”.")
    assert first in images_of(classifier, "red")
    assert set(hashes(shown(browser))) == set(rest)
    done(undo(browser, change), "Undone: label")
    assert first not in images_of(classifier, "red")
    assert set(hashes(shown(browser))) == {first, *rest}


@pytest.fixture
def several() -> Iterator[Classifier]:
    """Two categories, and an image that waits, where an image may belong to several categories."""
    with zsvec.open(":memory:", encoders=[HashEncoder()], labels="many") as classifier:
        for colour in ("red", "blue"):
            classifier.add_category(colour, images=[coloured(colour, seed) for seed in range(3)])
        classifier.keep(photo(1))
        yield classifier


def test_several_categories_are_one_change(several: Classifier) -> None:
    with visitor(several) as client:
        (digest,) = hashes(shown(client))
        data = {"hash": digest, "category": "red\nstripes\n red"}
        change = done(client.post("/inbox/label", data=data, headers=PART), "1 photo labelled “red” and “stripes”.")
        assert several.references.holders([digest]) == {digest: ("red", "stripes")}
        assert several.category("stripes").texts == ("stripes",)
        done(undo(client, change))
        assert [category.name for category in several.categories()] == ["blue", "red"]
        assert hashes(shown(client)) == [digest]


def test_several_categories_need_a_store_that_allows_them(browser: TestClient, classifier: Classifier) -> None:
    first, *_ = hashes(shown(browser))
    sent = {"/inbox/label": ({"hash": first}, None), "/correct": ({}, [picture("red")])}
    for path, (fields, photos) in sent.items():
        data = {**fields, "category": "red\nnew"}
        page = page_of(browser.post(path, data=data, files=photos, headers=PART), 422)
        assert "one category" in page.text
    assert first in classifier.inbox.hashes()
    assert len(classifier.categories()) == 3


def test_the_number_of_categories_of_a_photo_is_bounded(several: Classifier) -> None:
    with visitor(several) as client:
        (digest,) = hashes(shown(client))
        data = {"hash": digest, "category": "\n".join(f"name {number}" for number in range(MAX_ALSO + 2))}
        page_of(client.post("/inbox/label", data=data, headers=PART), 422)
    assert len(several.categories()) == 2


def test_a_label_that_fails_at_the_end_loses_no_image(browser: TestClient, classifier: Classifier) -> None:
    first, *_ = hashes(shown(browser))

    def conflict() -> None:
        raise ConflictError("others changed it")

    classifier._store.after_changes(conflict)
    page_of(browser.post("/inbox/label", data={"hash": first, "category": "red"}, headers=PART), 409)
    assert first in {*images_of(classifier, "red"), *classifier.inbox.hashes()}


def test_several_images_make_a_new_category_of_any_name(browser: TestClient, classifier: Classifier) -> None:
    some = hashes(shown(browser))[:3]
    browser.post("/inbox/label", data={"hash": some[0], "category": "blue"}, headers=PART)
    answer = browser.post("/inbox/label", data={"hash": [*some, NONE], "category": EVIL}, headers=PART)
    change = done(answer, f"2 photos labelled “{EVIL}”", "2 photos had been labelled or dismissed meanwhile")
    assert set(images_of(classifier, EVIL)) == set(some[1:])
    assert not Page(answer.text).all("script")
    assert page_of(browser.get("/inbox")).all("option", value=EVIL)
    done(undo(browser, change))
    assert EVIL not in {category.name for category in classifier.categories()}


def test_new_categories_have_the_same_texts_from_each_page(browser: TestClient, classifier: Classifier) -> None:
    first, second, *_ = hashes(shown(browser))
    one = images_of(classifier, "red")[0]
    waiting = {content_hash(photo(seed)): encode(photo(seed)) for seed in range(6)}
    for number, (path, data, sent) in enumerate(
        (
            ("/categories", {}, None),
            ("/inbox/label", {"hash": first}, None),
            ("/correct", {}, [picture("white")]),
            ("/correct", {}, [("images", ("waiting.png", waiting[second]))]),
            ("/correct", {}, [("images", ("a.png", encode(coloured("blue", 0))))]),
            ("/references/move", {"reference": f"{one}:red"}, None),
        )
    ):
        name = f"big_cat {number}"
        fields = {**data, "name" if path == "/categories" else "category": name}
        change = done(browser.post(path, data=fields, files=sent, headers=PART))
        assert classifier.category(name).texts == (f"big cat {number}",), path
        done(undo(browser, change))
        assert name not in {category.name for category in classifier.categories()}
    assert len(classifier.inbox) == 6


def test_each_page_makes_a_category_of_images_alone_if_no_encoder_embeds_texts() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder(modalities=("image",))]) as own, visitor(own) as client:
        own.add_category("red", images=[coloured("red", seed) for seed in range(3)])
        own.add_category("blue", images=[coloured("blue", seed) for seed in range(3)])
        assert own.keep(photo(1))
        (waiting,) = hashes(shown(client))
        one = images_of(own, "red")[0]
        requests: list[tuple[str, dict[str, str], Any]] = [
            ("/inbox/label", {"hash": waiting}, None),
            ("/correct", {}, [picture("white")]),
            ("/references/move", {"reference": f"{one}:red"}, None),
        ]
        for path, data, sent in requests:
            name = path.strip("/")
            done(client.post(path, data={**data, "category": name}, files=sent, headers=PART))
            assert own.category(name).references == {"hash:image": 1}


def test_images_that_no_longer_wait_change_nothing(browser: TestClient, classifier: Classifier) -> None:
    for path in ("/inbox/label", "/inbox/dismiss"):
        answer = browser.post(path, data={"hash": [NONE, EVIL], "category": "new"}, headers=PART)
        assert done(answer, "2 photos had been labelled or dismissed meanwhile") == ""
    assert len(classifier.inbox) == 6
    assert len(classifier.categories()) == 3


def test_images_are_dismissed(browser: TestClient, classifier: Classifier) -> None:
    some = hashes(shown(browser))[:2]
    answer = browser.post("/inbox/dismiss", data={"hash": some}, headers=PART)
    change = done(answer, "2 photos dismissed", "for 30 days")
    assert not set(some) & set(classifier.inbox.hashes())
    assert [classifier.keep(photo(seed)) for seed in range(6)].count(None) == 2
    again = done(undo(browser, change), "Undone: dismiss")
    assert set(some) <= set(classifier.inbox.hashes())
    done(undo(browser, again))
    assert not set(some) & set(classifier.inbox.hashes())


def test_invalid_forms_are_refused(browser: TestClient, classifier: Classifier) -> None:
    for path in ("/inbox/label", "/inbox/dismiss"):
        for given in ({"category": "red"}, {"hash": [], "category": "red"}):
            assert "No photo is chosen" in page_of(browser.post(path, data=given, headers=PART), 422).text
    for name in ("", " ", "a\nb", "x" * 501):
        data = {"hash": NONE, "category": name}
        page_of(browser.post("/inbox/label", data=data, headers=PART), 422)
    assert len(classifier.inbox) == 6


def test_a_key_to_read_sees_no_buttons_and_labels_nothing(classifier: Classifier) -> None:
    with visitor(classifier, "read") as client:
        page = page_of(client.get("/inbox"))
        assert not page.all("form", id="choices")
        assert not page.all("button", id="several")
        found = hashes(shown(client))
        for path in ("/inbox/label", "/inbox/dismiss"):
            data = {"hash": found[0], "category": "red"}
            assert client.post(path, data=data, headers=PART).status_code == 403
        assert len(classifier.inbox) == 6
    with visitor(classifier, "write") as client:
        done(client.post("/inbox/label", data={"hash": found[0], "category": "red"}, headers=PART))
        assert next(iter(classifier.history)).by == "ann"


def test_a_name_of_a_file_is_only_text(classifier: Classifier, tmp_path: Path) -> None:
    file = tmp_path / f"{'x' * 100}<img src=x onerror=alert(1)>\u202e.png"
    file.write_bytes(encode(photo(77)))
    digest = classifier.keep(file)
    with visitor(classifier) as client:
        page = shown(client)
        assert file.name in page.text
        assert digest in hashes(page)
        assert not page.all("img", src="x")


# Groups


@pytest.fixture
def grouped() -> Iterator[Classifier]:
    """No categories, and two groups of similar images."""
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        for colour in ("navy", "gold"):
            for seed in range(7):
                classifier.keep(coloured(colour, seed))
        yield classifier


def test_a_group_becomes_a_category(grouped: Classifier) -> None:
    (group, *_) = grouped.inbox.groups(names=False)
    with visitor(grouped) as client:
        page = page_of(client.get("/inbox/groups", headers=PART))
        offered = [str(found["value"]) for found in page.all("input", name="hash")]
        assert {image.hash for image in group.images} <= set(offered)
        some = [image.hash for image in group.images][:-1]
        done(client.post("/inbox/label", data={"hash": some, "category": "dark"}, headers=PART))
    assert set(images_of(grouped, "dark")) == set(some)
    assert group.images[-1].hash in grouped.inbox.hashes()


def test_a_few_images_make_no_group(browser: TestClient, classifier: Classifier) -> None:
    classifier.inbox.dismiss(list(classifier.inbox.hashes())[:2])  # four are left
    page = page_of(browser.get("/inbox/groups", headers=PART))
    assert "No five unknown photos" in page.text
    assert not page.all("form")


def test_groups_are_named_and_the_words_are_embedded_once(grouped: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.curation.inbox.common_words", lambda: (f"{EVIL}, a thing", "gold", "dark night"))
    (encoder,) = grouped.encoders
    with visitor(grouped) as client:
        page = page_of(client.get("/inbox/names", headers=PART))
        read = encoder.texts_encoded  # type: ignore[attr-defined]
        assert read == 3
        assert EVIL in page.text
        assert not page.all("script")
        assert page.all("button", **{"data-fills": ""}) or [b for b in page.all("button") if "data-fills" in b]
        page_of(client.get("/inbox/names", headers=PART))
        assert encoder.texts_encoded == read  # type: ignore[attr-defined]


def test_without_encoders_groups_have_no_names(grouped: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise WeightsUnavailableError("no weights")

    with visitor(grouped) as client:
        monkeypatch.setattr("zsvec.curation.inbox.common_words", lambda: ("gold",))
        monkeypatch.setattr(grouped.inbox, "_encoders", away)
        page = page_of(client.get("/inbox/names", headers=PART))
        assert page.all("div")
        assert not page.all("button")


def test_a_key_to_read_runs_no_encoder(grouped: Classifier) -> None:
    (encoder,) = grouped.encoders
    with visitor(grouped, "read") as client:
        page = page_of(client.get("/inbox/groups", headers=PART))
        assert page.all("img")
        assert not page.all("button")
        page_of(client.get("/inbox/names", headers=PART))
    assert encoder.texts_encoded == 0  # type: ignore[attr-defined]
    assert content_hash(coloured("navy", 0)) in grouped.inbox.hashes()
