"""The page *Audit*, and the parts that it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import zsvec
from tests.service.page_support import PART, Page, page_of, visitor
from tests.support import coloured, coloured_store, photo, state
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import ConflictError
from zsvec.inputs.categories import ReferenceImage
from zsvec.inputs.images import content_hash
from zsvec.testing import HashEncoder

EVIL = "<script>alert(1)</script>\u200d'\""
SOURCE = "<img src=x>\u202e'\".jpg"
WRONG = coloured("blue", 900)
STRANGE = photo(5)
ALONE = content_hash(STRANGE)


def nearly(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image).astype(int) + 1, 0, 255).astype(np.uint8))


@pytest.fixture
def doubtful() -> Iterator[Classifier]:
    """Three colours: a blue image among the red ones, a green one twice, and one of its own name and kind."""
    with coloured_store(10) as classifier:
        classifier.add_category("red", images=[ReferenceImage(image=WRONG, source=f"/photos/{SOURCE}")])
        classifier.add_category("green", images=[nearly(coloured("green", 1000))])
        classifier.add_category(EVIL, images=[STRANGE])
        classifier.references.remove(EVIL, [one.hash for one in classifier.references.of(EVIL) if one.hash != ALONE])
        classifier.calibrate()
        yield classifier


@pytest.fixture
def anybody(doubtful: Classifier) -> Iterator[TestClient]:
    with visitor(doubtful) as client:
        yield client


def findings(client: TestClient) -> Page:
    return page_of(client.get("/audit/findings", headers=PART))


def named(page: Page, kind: str) -> list[str]:
    found = [str(found["data-finding"]) for found in page.all("article")]
    return [one.partition(":")[2] for one in found if one.startswith(f"{kind}:")]


def key(image: Any, category: str) -> str:
    return f"{content_hash(image)}:{category}"


def images(classifier: Classifier, name: str) -> set[str]:
    return {one.hash for one in classifier.references.of(name) if one.modality == "image"}


def done(answer: Any, *said: str) -> str:
    """The change that an answer says was made."""
    page = page_of(answer)
    for part in said:
        assert part in page.text
    assert "zsvec:changed" in json.loads(answer.headers["hx-trigger"])
    (change,) = page.all("input", name="change")
    return str(change["value"])


def test_the_page_says_what_it_compares_and_asks_for_it(anybody: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(anybody.get("/audit"))
    assert "Comparing 33 pictures" in page.text
    assert page.all("div", **{"hx-trigger": "load"})
    monkeypatch.setattr("zsvec.service.pages.audit._AT_ONCE", 32)
    page = page_of(anybody.get("/audit"))
    assert not page.all("div", **{"hx-trigger": "load"})
    assert "Compare 33 pictures" in page.text


def test_without_pictures_there_is_nothing_to_compare() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        assert "There are no pictures to compare" in page_of(client.get("/audit")).text
        assert "0 pictures compared" in findings(client).text


def test_what_is_doubtful_is_shown(anybody: TestClient, doubtful: Classifier) -> None:
    found = doubtful.references.audit()
    assert key(WRONG, "red") in [f"{one.hash}:{one.category}" for one in found.labels]
    page = findings(anybody)
    assert named(page, "label") == [f"{one.hash}:{one.category}" for one in found.labels]
    assert len(named(page, "duplicates")) == len(found.duplicates) == 1
    assert named(page, "outlier") == [f"{one.image.hash}:{one.image.category}" for one in found.outliers]
    assert EVIL in named(page, "thin")
    assert len(named(page, "confusion")) == len(found.confusions)
    assert not page.all("script")
    assert SOURCE in page.text
    for shown in page.all("img"):
        assert anybody.get(str(shown["src"])).status_code == 200


def test_only_the_most_doubtful_are_shown(anybody: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = len(named(findings(anybody), "thin")) + 1
    monkeypatch.setattr("zsvec.service.pages.audit._SHOWN", 0)
    page = findings(anybody)
    assert doubtful > 1
    assert not page.all("article")
    assert "the 0 most doubtful" in page.text


def test_a_picture_is_moved_and_moved_back(anybody: TestClient, doubtful: Classifier) -> None:
    move = {"reference": key(WRONG, "red"), "category": "blue"}
    values = [
        json.loads(str(found["hx-vals"])) for found in findings(anybody).all("button", **{"hx-post": "/audit/move"})
    ]
    assert {"reference": [key(WRONG, "red")], "category": "blue"} in values
    change = done(anybody.post("/audit/move", data=move, headers=PART), "1 picture of “red” moved to “blue”.")
    assert content_hash(WRONG) in images(doubtful, "blue") - images(doubtful, "red")
    assert key(WRONG, "red") not in named(findings(anybody), "label")
    done(anybody.post("/undo", data={"change": change}, headers=PART), "the moving")
    assert content_hash(WRONG) in images(doubtful, "red") - images(doubtful, "blue")
    assert key(WRONG, "red") in named(findings(anybody), "label")


def test_copies_are_removed_and_come_back(anybody: TestClient, doubtful: Classifier) -> None:
    page = findings(anybody)
    removals = [
        json.loads(str(found["hx-vals"]))["reference"] for found in page.all("button", **{"hx-post": "/audit/remove"})
    ]
    (copies,) = doubtful.references.audit().duplicates
    one, other = [f"{image.hash}:{image.category}" for image in copies.images]
    assert [removal for removal in removals if removal in ([one], [other])] == [[other], [one]]
    change = done(
        anybody.post("/audit/remove", data={"reference": other}, headers=PART), "1 picture of “green” removed."
    )
    assert len(images(doubtful, "green")) == 10
    assert not named(findings(anybody), "duplicates")
    done(anybody.post("/undo", data={"change": change}, headers=PART), "the removal")
    assert len(images(doubtful, "green")) == 11


def test_several_categories_are_one_change(anybody: TestClient, doubtful: Classifier) -> None:
    blue = doubtful.references.of("blue")[0].hash
    data = {"reference": [key(WRONG, "red"), f"{blue}:blue"], "category": EVIL}
    change = done(
        anybody.post("/audit/move", data=data, headers=PART), f"2 pictures of “blue”, “red” moved to “{EVIL}”."
    )
    assert {blue, content_hash(WRONG)} <= {one.hash for one in doubtful.references.of(EVIL)}
    done(anybody.post("/undo", data={"change": change}, headers=PART))
    assert len(doubtful.references.of(EVIL)) == 1


@pytest.mark.parametrize("what", ["move", "remove"])
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 422),
        ({"reference": ""}, 422),
        ({"reference": "x"}, 422),
        ({"reference": f"{'0' * 64}:red"}, 422),
        ({"reference": f"{'0' * 64}:nothing"}, 404),
        ({"reference": f"{EVIL}:red"}, 422),
        ({"reference": f"{content_hash(STRANGE)}:red"}, 422),
    ],
)
def test_what_is_not_there_is_not_changed(
    anybody: TestClient, doubtful: Classifier, what: str, given: dict[str, str], status: int
) -> None:
    before = [category.to_dict() for category in doubtful.categories()]
    page = page_of(anybody.post(f"/audit/{what}", data={**given, "category": "blue"}, headers=PART), status)
    assert page.all("div", role="alert")
    assert [category.to_dict() for category in doubtful.categories()] == before


@pytest.mark.parametrize(
    ("what", "second", "category", "status"),
    [
        *(
            (what, second, "green", status)
            for what in ("move", "remove")
            for second, status in (
                (f"{'0' * 64}:blue", 422),
                (f"{'0' * 64}:nothing", 404),
                (key(STRANGE, EVIL), 422),
            )
        ),
        ("move", key(coloured("blue", 0), "blue"), "blue", 422),
    ],
)
def test_of_several_pictures_all_are_changed_or_none(
    anybody: TestClient, doubtful: Classifier, what: str, second: str, category: str, status: int
) -> None:
    before, changes = state(doubtful._store), list(doubtful.history)
    data = {"reference": [key(WRONG, "red"), second], "category": category}
    page_of(anybody.post(f"/audit/{what}", data=data, headers=PART), status)
    assert (state(doubtful._store), list(doubtful.history)) == (before, changes)


@pytest.mark.parametrize("what", ["move", "remove"])
def test_what_fails_on_the_way_is_taken_back(
    anybody: TestClient, doubtful: Classifier, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    blue = doubtful.references.of("blue")[0].hash
    before = {name: images(doubtful, name) for name in ("red", "blue", "green")}
    once = getattr(doubtful.references, what)

    def then_conflict(*given: Any, **named: Any) -> Any:
        if "blue" in (*given, *named.values()):
            raise ConflictError("others changed it")
        return once(*given, **named)

    monkeypatch.setattr(doubtful.references, what, then_conflict)
    data = {"reference": [key(WRONG, "red"), f"{blue}:blue"], "category": "green"}
    page_of(anybody.post(f"/audit/{what}", data=data, headers=PART), 409)
    assert {name: images(doubtful, name) for name in before} == before
    assert [change.what for change in list(doubtful.history)[:2]] == ["undo", what]


def test_the_last_reference_of_a_category_stays(doubtful: Classifier) -> None:
    with visitor(doubtful) as client:
        page_of(client.post("/audit/remove", data={"reference": key(STRANGE, EVIL)}, headers=PART), 422)
    assert len(doubtful.references.of(EVIL)) == 1


def test_without_a_calibration_it_says_what_to_do() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        classifier.add_categories([CategoryInput(name="red", images=[coloured("red", seed) for seed in range(3)])])
        assert not classifier.references.audit().calibrated
        with visitor(classifier) as client:
            assert "zsvec calibrate" in findings(client).text


def test_a_key_that_may_read_sees_no_buttons_and_changes_nothing(doubtful: Classifier) -> None:
    with visitor(doubtful, "read") as client:
        page = findings(client)
        assert page.all("article")
        assert not page.all("button")
        for what in ("move", "remove"):
            data = {"reference": key(WRONG, "red"), "category": "blue"}
            assert client.post(f"/audit/{what}", data=data, headers=PART).status_code == 403
    assert content_hash(WRONG) in images(doubtful, "red")
