"""The page *Audit*, and the changes on that page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, Page, done, images_of, page_of, undo, visitor
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
NONE = "0" * 64


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """A blue image among the red ones, a green image twice, and a category of a single unusual image."""
    with coloured_store(10) as classifier:
        classifier.add_category("red", images=[ReferenceImage(image=WRONG, source=f"/photos/{SOURCE}")])
        nearly = np.clip(np.asarray(coloured("green", 1000)).astype(int) + 1, 0, 255).astype(np.uint8)
        classifier.add_category("green", images=[Image.fromarray(nearly)])
        classifier.add_category(EVIL, images=[STRANGE])
        texts = [one.hash for one in classifier.references.of(EVIL) if one.modality == "text"]
        classifier.references.remove(EVIL, texts)
        classifier.calibrate()
        yield classifier


def findings(client: TestClient) -> Page:
    return page_of(client.get("/audit/findings", headers=PART))


def named(page: Page, kind: str) -> list[str]:
    found = [str(found["data-finding"]) for found in page.all("article")]
    return [one.partition(":")[2] for one in found if one.startswith(f"{kind}:")]


def key(image: Any, category: str) -> str:
    return f"{content_hash(image)}:{category}"


def offered(page: Page, path: str) -> list[Any]:
    return [json.loads(str(found["hx-vals"])) for found in page.all("button", **{"hx-post": path})]


def test_the_page_loads_findings_or_waits_for_a_click(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(browser.get("/audit"))
    assert "Comparing 33 pictures" in page.text
    assert page.all("div", **{"hx-trigger": "load"})
    monkeypatch.setattr("zsvec.service.pages.audit._MAX_AUTOMATIC", 32)
    page = page_of(browser.get("/audit"))
    assert not page.all("div", **{"hx-trigger": "load"})
    assert "Compare 33 pictures" in page.text


def test_an_audit_without_pictures_or_a_calibration() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        assert "There are no pictures to compare" in page_of(client.get("/audit")).text
        assert "0 pictures compared" in findings(client).text
        classifier.add_categories([CategoryInput(name="red", images=[coloured("red", seed) for seed in range(3)])])
        assert not classifier.references.audit().calibrated
        assert "zsvec calibrate" in findings(client).text


def test_findings_are_shown(browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    found = classifier.references.audit()
    assert key(WRONG, "red") in [f"{one.hash}:{one.category}" for one in found.labels]
    page = findings(browser)
    assert named(page, "label") == [f"{one.hash}:{one.category}" for one in found.labels]
    assert len(named(page, "duplicates")) == len(found.duplicates) == 1
    assert named(page, "outlier") == [f"{one.image.hash}:{one.image.category}" for one in found.outliers]
    assert EVIL in named(page, "thin")
    assert len(named(page, "confusion")) == len(found.confusions)
    assert not page.all("script")
    assert SOURCE in page.text
    for shown in page.all("img"):
        assert browser.get(str(shown["src"])).status_code == 200
    monkeypatch.setattr("zsvec.service.pages.audit._SHOWN", 0)
    page = findings(browser)
    assert not page.all("article")
    assert "the 0 most doubtful" in page.text


def test_a_picture_is_moved_and_moved_back(browser: TestClient, classifier: Classifier) -> None:
    move = {"reference": [key(WRONG, "red")], "category": "blue"}
    assert move in offered(findings(browser), "/references/move")
    answer = browser.post("/references/move", data=move, headers=PART)
    change = done(answer, "1 reference of “red” moved to “blue”.")
    assert content_hash(WRONG) in set(images_of(classifier, "blue")) - set(images_of(classifier, "red"))
    assert key(WRONG, "red") not in named(findings(browser), "label")
    done(undo(browser, change))
    assert content_hash(WRONG) in set(images_of(classifier, "red")) - set(images_of(classifier, "blue"))
    assert key(WRONG, "red") in named(findings(browser), "label")


def test_copies_are_removed_and_restored(browser: TestClient, classifier: Classifier) -> None:
    removals = [values["reference"] for values in offered(findings(browser), "/references/remove")]
    (copies,) = classifier.references.audit().duplicates
    one, other = [f"{image.hash}:{image.category}" for image in copies.images]
    assert [removal for removal in removals if removal in ([one], [other])] == [[other], [one]]
    answer = browser.post("/references/remove", data={"reference": other}, headers=PART)
    change = done(answer, "1 reference of “green” removed.")
    assert len(images_of(classifier, "green")) == 10
    assert not named(findings(browser), "duplicates")
    done(undo(browser, change))
    assert len(images_of(classifier, "green")) == 11


@pytest.mark.parametrize("kind", ["label", "duplicates"])
def test_a_kept_finding_is_not_shown_again(browser: TestClient, kind: str) -> None:
    before = named(findings(browser), kind)
    keep = next(values for values in offered(findings(browser), "/references/keep") if values["finding"] == kind)
    change = done(browser.post("/references/keep", data=keep, headers=PART), "Kept")
    page = findings(browser)
    assert named(page, kind) == before[1:]
    assert "1 kept finding not shown" in page.text
    (show,) = page.all("button", **{"hx-target": "#findings"})
    assert named(page_of(browser.get(str(show["hx-get"]), headers=PART)), kind) == before
    done(undo(browser, change))
    assert named(findings(browser), kind) == before


def test_references_of_several_categories_are_one_change(browser: TestClient, classifier: Classifier) -> None:
    blue = classifier.references.of("blue")[0].hash
    data = {"reference": [key(WRONG, "red"), f"{blue}:blue"], "category": EVIL}
    answer = browser.post("/references/move", data=data, headers=PART)
    change = done(answer, f"2 references of “blue”, “red” moved to “{EVIL}”.")
    assert {blue, content_hash(WRONG)} <= {one.hash for one in classifier.references.of(EVIL)}
    done(undo(browser, change))
    assert len(classifier.references.of(EVIL)) == 1


@pytest.mark.parametrize("what", ["move", "remove"])
def test_all_references_are_changed_or_none(browser: TestClient, classifier: Classifier, what: str) -> None:
    before, changes = state(classifier._store), list(classifier.history)
    wrong = [
        ([], 422),
        ([""], 422),
        (["x"], 422),
        ([f"{NONE}:red"], 409),
        ([f"{NONE}:nothing"], 404),
        ([f"{EVIL}:red"], 409),
        ([key(STRANGE, EVIL)], 409),  # the last one of a category
    ]
    if what == "move":
        wrong.append(([key(coloured("green", 0), "green")], 409))  # where it is
    for references, status in wrong:
        for first in ([], [key(WRONG, "red")]) if references else ([],):
            data = {"reference": [*first, *references], "category": "green"}
            page = page_of(browser.post(f"/references/{what}", data=data, headers=PART), status)
            assert page.all("div", role="alert")
            assert (state(classifier._store), list(classifier.history)) == (before, changes), references


@pytest.mark.parametrize("what", ["move", "remove"])
def test_a_change_that_fails_halfway_is_undone(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    blue = classifier.references.of("blue")[0].hash
    before = {name: images_of(classifier, name) for name in ("red", "blue", "green")}
    once = getattr(classifier.references, what)

    def then_conflict(*given: Any, **named: Any) -> Any:
        if "blue" in (*given, *named.values()):
            raise ConflictError("others changed it")
        return once(*given, **named)

    monkeypatch.setattr(classifier.references, what, then_conflict)
    data = {"reference": [key(WRONG, "red"), f"{blue}:blue"], "category": "green"}
    page_of(browser.post(f"/references/{what}", data=data, headers=PART), 409)
    assert {name: sorted(images_of(classifier, name)) for name in before} == {n: sorted(h) for n, h in before.items()}
    assert [change.what for change in list(classifier.history)[:2]] == ["undo", what]


def test_a_key_to_read_sees_no_buttons(classifier: Classifier) -> None:
    with visitor(classifier, "read") as client:
        page = findings(client)
        assert page.all("article")
        assert not page.all("button")
