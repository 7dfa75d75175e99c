"""The page *Inbox*, and the parts that it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.page_support import PART, Page, page_of, visitor
from tests.support import coloured, coloured_store, encode, photo
from zsvec import Unlabelled
from zsvec.classifier import Classifier
from zsvec.errors import ConflictError, WeightsUnavailableError
from zsvec.inputs.images import content_hash
from zsvec.service.pages.inbox import _in_words
from zsvec.testing import HashEncoder
from zsvec.types import ExpertOutput, Prediction

EVIL = "<script>alert(1)</script>\u200d'\""
NONE = "0" * 64


@pytest.fixture
def colours() -> Iterator[Classifier]:
    """Three colours, and six images that wait."""
    with coloured_store(3) as classifier:
        for seed in range(6):
            classifier.keep(photo(seed))
        yield classifier


@pytest.fixture
def anybody(colours: Classifier) -> Iterator[TestClient]:
    with visitor(colours) as client:
        yield client


def shown(client: TestClient, **query: str) -> Page:
    return page_of(client.get("/inbox/next", params=query, headers=PART))


def hashes(page: Page) -> list[str]:
    return [str(found["data-hash"]) for found in page.all("li", role="option")]


def images(classifier: Classifier, name: str) -> set[str]:
    return {one.hash for one in classifier.references.of(name) if one.modality == "image"}


def done(answer: Any, *said: str) -> str | None:
    """The change that an answer says was made, if it can be taken back."""
    page = page_of(answer)
    for part in said:
        assert part in page.text
    assert "zsvec:changed" in json.loads(answer.headers["hx-trigger"])
    changes = [found["value"] for found in page.all("input", name="change")]
    return changes[0] if changes else None


# What waits


@pytest.mark.parametrize(
    ("keep", "said"),
    [("none", "zsvec serve --keep uncertain"), ("uncertain", "come here by themselves"), ("all", "All")],
)
def test_nothing_waits(keep: Any, said: str) -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()], keep=keep) as classifier, visitor(classifier) as client:
        page = page_of(client.get("/inbox"))
        assert "Nothing waits" in page.text
        assert said in page.text
        assert not page.all("ul", id="images")


def test_what_waits_is_shown_a_few_at_a_time(
    anybody: TestClient, colours: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.service.pages.inbox._AT_ONCE", 4)
    assert "6 images wait" in page_of(anybody.get("/inbox")).text
    first = hashes(shown(anybody))
    assert first == [one.hash for one in colours.inbox.rank(4)]
    rest = hashes(shown(anybody, shown=",".join([*first, NONE, EVIL])))
    assert {*first, *rest} == set(colours.inbox.hashes())
    assert len(rest) == 2
    for address in first:
        assert anybody.get(f"/v1/inbox/{address}/image").headers["content-type"] == "image/jpeg"
    assert anybody.get("/inbox/next", params={"shown": "x" * 20_000}).status_code == 422


def test_each_image_says_what_it_would_be_called(anybody: TestClient, colours: Classifier) -> None:
    page = shown(anybody)
    for found, image in zip(page.all("li", role="option"), colours.inbox.rank(), strict=True):
        assert image.prediction
        choices = json.loads(str(found["data-choices"]))
        assert [name for name, _, _ in choices] == [name for name, _ in image.prediction.ranking]
        assert str(found["aria-label"]).startswith(choices[0][0])  # none of so few is unknown


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
    ("prediction", "said"),
    [
        (Prediction(source="", unknown=True, nearest="a", ranking=(("a", 0.9), ("b", 0.1))), "The nearest is “a”"),
        (Prediction(source="", nearest="a", ranking=(("a", 0.5), ("b", 0.4))), "A close call: “a” or “b”."),
        (
            Prediction(
                source="", nearest="a", ranking=(("a", 0.8), ("b", 0.1)), experts=outputs(("a", 0.4), ("b", 0.6))
            ),
            "Disputed: one comparison says “a”, others say “b”.",
        ),
        (Prediction(source="", nearest="a", ranking=(("a", 0.9), ("b", 0.1))), "made it clearer"),
        (Prediction(source="", nearest="a", ranking=(("a", 1.0),)), "made it clearer"),
    ],
)
def test_why_an_image_waits(prediction: Prediction, said: str) -> None:
    image = Unlabelled(hash="", source="", added=datetime.now(UTC), width=0, height=0, prediction=prediction, urgency=1)
    assert said in _in_words(image).why


# Labels


def test_a_label_makes_a_reference_and_undo_does_not_bring_the_image_back(
    anybody: TestClient, colours: Classifier
) -> None:
    first, *rest = hashes(shown(anybody))
    answer = anybody.post("/inbox/label", data={"hash": first, "category": " red "}, headers=PART)
    change = done(answer, "1 image labelled “red”.", "does not put it back here")
    assert first in images(colours, "red")
    assert set(hashes(shown(anybody))) == set(rest)
    assert change
    done(anybody.post("/undo", data={"change": change}, headers=PART), "the label")
    assert first not in images(colours, "red")
    assert set(hashes(shown(anybody))) == set(rest)


def test_a_label_that_fails_at_the_end_loses_no_image(anybody: TestClient, colours: Classifier) -> None:
    first, *_ = hashes(shown(anybody))

    def conflict() -> None:
        raise ConflictError("others changed it")

    colours._store.after_changes(conflict)
    page_of(anybody.post("/inbox/label", data={"hash": first, "category": "red"}, headers=PART), 409)
    assert first in images(colours, "red").union(colours.inbox.hashes())


def test_several_images_make_a_new_category_of_any_name(anybody: TestClient, colours: Classifier) -> None:
    some = hashes(shown(anybody))[:3]
    anybody.post("/inbox/label", data={"hash": some[0], "category": "blue"}, headers=PART)
    answer = anybody.post("/inbox/label", data={"hash": [*some, NONE], "category": EVIL}, headers=PART)
    change = done(answer, f"2 images labelled “{EVIL}”", "2 images had been labelled or dismissed meanwhile")
    assert images(colours, EVIL) == set(some[1:])
    assert not Page(answer.text).all("script")
    assert EVIL in page_of(anybody.get("/inbox")).text or Page(anybody.get("/inbox").text).all("option", value=EVIL)
    done(anybody.post("/undo", data={"change": str(change)}, headers=PART))
    assert EVIL not in {category.name for category in colours.categories()}


def test_what_waits_no_more_is_said_and_changes_nothing(anybody: TestClient, colours: Classifier) -> None:
    for path in ("/inbox/label", "/inbox/dismiss"):
        answer = anybody.post(path, data={"hash": [NONE, EVIL], "category": "new"}, headers=PART)
        assert done(answer, "2 images had been labelled or dismissed meanwhile") is None
    assert len(colours.inbox) == 6
    assert len(colours.categories()) == 3


def test_images_are_dismissed(anybody: TestClient, colours: Classifier) -> None:
    some = hashes(shown(anybody))[:2]
    answer = anybody.post("/inbox/dismiss", data={"hash": some}, headers=PART)
    assert done(answer, "2 images dismissed", "for 30 days") is None
    assert not set(some) & set(colours.inbox.hashes())
    assert [colours.keep(photo(seed)) for seed in range(6)].count(None) == 2


@pytest.mark.parametrize("given", [{"category": "red"}, {"hash": [], "category": "red"}])
def test_no_image_is_refused(anybody: TestClient, given: dict[str, Any]) -> None:
    assert "No image is chosen" in page_of(anybody.post("/inbox/label", data=given, headers=PART), 422).text
    assert "No image is chosen" in page_of(anybody.post("/inbox/dismiss", data=given, headers=PART), 422).text


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 501])
def test_a_name_that_is_none_is_refused(anybody: TestClient, colours: Classifier, name: str) -> None:
    first = hashes(shown(anybody))[0]
    page_of(anybody.post("/inbox/label", data={"hash": first, "category": name}, headers=PART), 422)
    assert len(colours.inbox) == 6


def test_a_key_that_may_read_sees_no_buttons_and_labels_nothing(colours: Classifier) -> None:
    with visitor(colours, "read") as client:
        page = page_of(client.get("/inbox"))
        assert not page.all("form", id="choices")
        assert not page.all("button", id="several")
        found = hashes(shown(client))
        for path in ("/inbox/label", "/inbox/dismiss"):
            data = {"hash": found[0], "category": "red"}
            assert client.post(path, data=data, headers=PART).status_code == 403
        assert len(colours.inbox) == 6
    with visitor(colours, "write") as client:
        done(client.post("/inbox/label", data={"hash": found[0], "category": "red"}, headers=PART))
        assert next(iter(colours.history)).by == "write"


def test_a_name_of_a_file_is_only_text(colours: Classifier, tmp_path: Path) -> None:
    file = tmp_path / f"{'x' * 100}<img src=x onerror=alert(1)>\u202e.png"
    file.write_bytes(encode(photo(77)))
    digest = colours.keep(file)
    with visitor(colours) as client:
        page = shown(client)
        assert file.name in page.text
        assert digest in hashes(page)
        assert not page.all("img", src="x")


# Groups


@pytest.fixture
def grouped() -> Iterator[Classifier]:
    """No categories, and two times five images that look alike."""
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
    assert images(grouped, "dark") == set(some)
    assert group.images[-1].hash in grouped.inbox.hashes()


def test_a_few_images_make_no_group(anybody: TestClient) -> None:
    page = page_of(anybody.get("/inbox/groups", headers=PART))
    assert "no five unknown images" in page.text
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
        monkeypatch.setattr(grouped.inbox, "_encoders", away)
        page = page_of(client.get("/inbox/names", headers=PART))
        assert page.all("div")
        assert not page.all("button")


def test_who_may_read_makes_no_encoder_run(grouped: Classifier) -> None:
    (encoder,) = grouped.encoders
    with visitor(grouped, "read") as client:
        page = page_of(client.get("/inbox/groups", headers=PART))
        assert page.all("img")
        assert not page.all("button")
        page_of(client.get("/inbox/names", headers=PART))
    assert encoder.texts_encoded == 0  # type: ignore[attr-defined]
    assert content_hash(coloured("navy", 0)) in grouped.inbox.hashes()
