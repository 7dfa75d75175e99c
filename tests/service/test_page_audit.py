"""The page *Audit*, and the changes on that page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, Page, audits_held_back, done, images_of, page_of, undo, visitor
from tests.support import coloured, coloured_store, photo, state
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import ConflictError, StoreUnavailableError
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


def findings(client: TestClient, **view: Any) -> Page:
    return page_of(client.get("/audit/findings", headers=PART, params=view))


def named(page: Page, kind: str) -> list[str]:
    found = [str(found["data-finding"]) for found in page.all("article")]
    return [one.partition(":")[2] for one in found if one.startswith(f"{kind}:")]


def key(image: Any, category: str) -> str:
    return f"{content_hash(image)}:{category}"


def offered(page: Page, act: str) -> list[dict[str, Any]]:
    """The forms that the buttons of an act send."""
    return [
        form(json.loads(str(one["data-keys"])), one["data-value"]) for one in page.all("button", **{"data-act": act})
    ]


def form(keys: Sequence[str], value: str | None) -> dict[str, Any]:
    return {"reference": list(keys), "value": [value or ""] * len(keys)}


def decide(client: TestClient, act: str, data: Mapping[str, Any], status: int = 200) -> Any:
    answer = client.post(f"/audit/{act}", data=data, headers=PART)
    assert answer.status_code == status, answer.text
    return answer


def total(page: Page, kind: str) -> int:
    found = page.all("section", **{"data-kind": kind})
    return int(str(found[0]["data-total"])) if found else 0


def test_the_page_loads_findings_or_waits_for_a_click(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(browser.get("/audit"))
    assert page.all("p", **{"hx-get": "/audit/findings"})
    monkeypatch.setattr("zsvec.service.pages.comparisons._MAX_AUTOMATIC", 32)
    page = page_of(browser.get("/audit"))
    assert not page.all("p", **{"hx-get": "/audit/findings"})
    assert "Compare 33 photos" in page.text


def test_an_audit_without_pictures_or_a_calibration() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        assert "There are no photos to compare" in page_of(client.get("/audit")).text
        assert "0 photos compared" in findings(client).text
        classifier.add_categories([CategoryInput(name="red", images=[coloured("red", seed) for seed in range(3)])])
        assert not classifier.references.audit().calibrated
        assert findings(client).all("p", **{"class": "note"})


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


def test_findings_are_shown_page_by_page(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.service.pages.audit._SHOWN", 1)
    classifier.add_category("thin", images=[photo(6)])
    found = classifier.references.audit()
    expected = [one.category for one in found.thin]
    assert len(expected) > 1
    page = findings(browser)
    (of,) = page.all("input", name="of")
    assert total(page, "thin") == len(expected)
    shown = named(page, "thin")
    assert len(shown) == 1
    for after in range(1, len(expected) + 1):
        view = {"of": of["value"], "more": "thin", "after": after}
        shown += named(page_of(browser.get("/audit/more", params=view, headers=PART)), "thin")
    assert shown == expected


def test_findings_are_sorted_and_filtered(browser: TestClient, classifier: Classifier) -> None:
    classifier.add_category("blue", images=[ReferenceImage(image=coloured("green", 901), source="g.png")])
    labels = [f"{one.hash}:{one.category}" for one in classifier.references.audit().labels]
    assert {key(WRONG, "red"), key(coloured("green", 901), "blue")} <= set(labels)
    page = findings(browser, kind="labels", sort="category")
    assert named(page, "label") == sorted(labels, key=lambda one: one.partition(":")[2])
    assert {str(one["data-kind"]) for one in page.all("section")} == {"labels"}
    page = findings(browser, category="red")
    assert named(page, "label") == [key(WRONG, "red")]
    assert not named(page, "duplicates")
    assert named(findings(browser, category="green"), "duplicates")
    assert not findings(browser, category="nothing").all("article")
    for wrong in ({"kind": "x"}, {"sort": "x"}, {"of": "0" * 17}, {"category": "x" * 501}, {"kept": "x"}):
        assert browser.get("/audit/findings", params=wrong, headers=PART).status_code == 422
    for part in ("more=x&after=0", "more=thin&after=-1", "more=thin"):
        assert browser.get(f"/audit/more?{part}", headers=PART).status_code == 422
    (of,) = page.all("input", name="of")
    view = {"of": of["value"], "more": "thin", "after": "999"}
    assert not page_of(browser.get("/audit/more", params=view, headers=PART)).all("article")
    assert browser.get("/audit/more", params={**view, "of": "0" * 16}, headers=PART).status_code == 409


def test_a_comparison_is_shared_until_the_references_change(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits = Mock(side_effect=classifier.references.audit)
    monkeypatch.setattr(classifier.references, "audit", audits)
    (of,) = findings(browser).all("input", name="of")
    findings(browser, sort="category")
    assert audits.call_count == 1
    move = {"reference": [key(WRONG, "red")], "value": ["blue"]}
    change = done(decide(browser, "move", move))
    page = findings(browser, of=of["value"])
    assert key(WRONG, "red") not in named(page, "label")
    assert page.all("input", name="of") == [of]
    assert audits.call_count == 1
    done(undo(browser, change))
    assert key(WRONG, "red") in named(findings(browser, of=of["value"]), "label")
    assert audits.call_count == 1
    findings(browser, of=of["value"], again="true")
    findings(browser, of="f" * 16)
    assert audits.call_count == 2


def test_a_page_that_waits_asks_again(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with audits_held_back(classifier, monkeypatch) as audits:
        (poll,) = findings(browser).all("p", role="status")
        assert str(poll["hx-get"]).startswith("/audit/findings?of=")
        classifier.add_category("red", images=[coloured("red", 902)])  # a colleague works on
        (again,) = page_of(browser.get(str(poll["hx-get"]), headers=PART)).all("p", role="status")
        assert again == poll
        assert browser.get("/audit/more?more=thin&after=0", headers=PART).status_code == 409
    assert named(page_of(browser.get(str(poll["hx-get"]), headers=PART)), "label")
    assert audits.call_count == 1


def test_a_remembered_comparison_shows_no_erased_photo(browser: TestClient, classifier: Classifier) -> None:
    page = findings(browser)
    (of,) = page.all("input", name="of")
    assert key(WRONG, "red") in named(page, "label")
    assert SOURCE in page.text
    classifier.references.forget(content_hash(WRONG))
    for answer in (
        browser.get("/audit/findings", headers=PART, params={"of": of["value"]}),
        browser.get("/audit/more", headers=PART, params={"of": of["value"], "more": "labels", "after": 0}),
        browser.get("/overview/findings", headers=PART, params={"of": of["value"]}),
    ):
        shown = page_of(answer)
        assert content_hash(WRONG) not in answer.text
        assert SOURCE not in shown.text


def test_an_audit_that_nobody_can_wait_for_is_not_begun(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with audits_held_back(classifier, monkeypatch) as audits:
        (_,) = findings(browser).all("p", role="status")
        for seed in range(902, 910):
            classifier.add_category("red", images=[coloured("red", seed)])
            findings(browser)
    assert named(findings(browser), "label")
    assert audits.call_count == 5  # the one in progress, and as many as are remembered


def test_a_comparison_that_fails_is_made_again(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(classifier.references, "audit", Mock(side_effect=StoreUnavailableError("the store is away")))
        page_of(browser.get("/audit/findings", headers=PART), 503)
    assert named(findings(browser), "label")


def test_a_picture_is_moved_and_moved_back(browser: TestClient, classifier: Classifier) -> None:
    move = {"reference": [key(WRONG, "red")], "value": ["blue"]}
    assert move in offered(findings(browser), "move")
    change = done(decide(browser, "move", move), "1 photo moved to “blue”.")
    assert content_hash(WRONG) in set(images_of(classifier, "blue")) - set(images_of(classifier, "red"))
    assert key(WRONG, "red") not in named(findings(browser), "label")
    done(undo(browser, change))
    assert content_hash(WRONG) in set(images_of(classifier, "red")) - set(images_of(classifier, "blue"))
    assert key(WRONG, "red") in named(findings(browser), "label")


def test_a_picture_of_an_awkward_category_is_moved(browser: TestClient, classifier: Classifier) -> None:
    classifier.add_category(EVIL, images=[coloured("blue", seed) for seed in (77, 78)], texts=["a thing"])
    keys = [one["reference"] for one in offered(findings(browser), "move") if one["reference"][0].endswith(f":{EVIL}")]
    keys += [one["reference"] for one in offered(findings(browser), "keep") if one["reference"][0].endswith(f":{EVIL}")]
    done(decide(browser, "move", form(keys[0], "red & <b>'x'</b>")))
    assert images_of(classifier, "red & <b>'x'</b>") == [keys[0][0].partition(":")[0]]


def test_copies_are_removed_and_restored(browser: TestClient, classifier: Classifier) -> None:
    removals = [one["reference"] for one in offered(findings(browser), "remove")]
    (copies,) = classifier.references.audit().duplicates
    one, other = [f"{image.hash}:{image.category}" for image in copies.images]
    assert [removal for removal in removals if removal in ([one], [other])] == [[other], [one]]
    change = done(decide(browser, "remove", {"reference": other}), "1 photo removed.")
    assert len(images_of(classifier, "green")) == 10
    assert not named(findings(browser), "duplicates")
    done(undo(browser, change))
    assert len(images_of(classifier, "green")) == 11


@pytest.mark.parametrize("kind", ["label", "duplicates"])
def test_a_kept_finding_is_hidden_until_it_is_doubted_again(browser: TestClient, kind: str) -> None:
    before = named(findings(browser), kind)
    keep = next(one for one in offered(findings(browser), "keep") if one["value"][0] == kind)
    change = done(decide(browser, "keep", keep), "ignored")
    assert named(findings(browser), kind) == before[1:]
    assert "1 finding that you ignored is hidden" in findings(browser).text
    page = findings(browser, kept="true")
    assert named(page, kind) == before[:1]
    assert not offered(page, "move")
    assert offered(page, "unkeep") == [keep]
    done(undo(browser, change))
    assert named(findings(browser), kind) == before
    decide(browser, "keep", keep)
    done(decide(browser, "unkeep", keep))
    assert named(findings(browser), kind) == before


def test_references_of_several_categories_are_one_change(browser: TestClient, classifier: Classifier) -> None:
    images = [key(WRONG, "red"), f"{images_of(classifier, 'blue')[0]}:blue"]
    change = done(decide(browser, "move", form(images, EVIL)), f"2 photos moved to “{EVIL}”.")
    assert {image.partition(":")[0] for image in images} <= set(images_of(classifier, EVIL))
    done(undo(browser, change))
    assert len(classifier.references.of(EVIL)) == 1


def test_a_change_of_several_requests_is_undone_at_once(browser: TestClient, classifier: Classifier) -> None:
    before = {name: sorted(images_of(classifier, name)) for name in ("red", "green", "blue")}
    first = decide(browser, "move", form([key(WRONG, "red")], "blue"))
    change = done(first)
    so_far = page_of(first).all("div", **{"class": "toast"})[0]["data-so-far"]
    greens = [f"{one}:green" for one in images_of(classifier, "green")[:2]]
    more = {**form(greens, "red"), "change": change, "so_far": so_far}
    assert done(decide(browser, "move", more), "3 photos moved.") == change
    assert len(images_of(classifier, "red")) == 12
    bad = {**form([f"{NONE}:red"], "green"), "change": change, "so_far": "{"}
    decide(browser, "move", bad, 409)  # undoes all
    assert {name: sorted(images_of(classifier, name)) for name in before} == before


def test_a_photo_of_two_findings_counts_once(browser: TestClient, classifier: Classifier) -> None:
    images = [key(WRONG, "red")] * 2
    change = done(decide(browser, "keep", {"reference": images, "value": ["label", "outlier"]}), "1 photo ignored")
    assert len(classifier.category("red").kept) == 2
    done(undo(browser, change))
    done(decide(browser, "remove", form(images, "")), "1 photo removed.")


def test_copies_are_not_removed_in_bulk(browser: TestClient) -> None:
    page = findings(browser, kind="duplicates")
    assert offered(page, "remove")
    assert not [one for one in page.all("button", **{"data-act": "remove"}) if "data-bulks" in one]


def test_a_form_may_have_hundreds_of_photos(browser: TestClient, classifier: Classifier) -> None:
    classifier.add_category("many", images=[photo(seed) for seed in range(100, 400)])
    keys = [f"{one}:many" for one in images_of(classifier, "many")]
    change = done(decide(browser, "keep", form(keys, "outlier")), "300 photos ignored")
    assert len(classifier.category("many").kept) == 300
    done(undo(browser, change))
    decide(browser, "keep", form(keys * 2, "outlier"), 400)  # more fields than a form may have


@pytest.mark.parametrize("what", ["move", "remove", "keep", "unkeep"])
def test_all_references_are_changed_or_none(browser: TestClient, classifier: Classifier, what: str) -> None:
    before, changes = state(classifier._store), list(classifier.history)
    wrong = [
        ([], 422),
        (["x"], 409),
        ([f"{NONE}:red"], 409),
        ([f"{NONE}:nothing"], 409),
        ([f"{EVIL}:red"], 409),
    ]
    if what in ("move", "remove"):
        wrong.append(([key(STRANGE, EVIL)], 409))  # the last one of a category
    if what == "move":
        wrong.append(([key(coloured("green", 0), "green")], 409))  # where it is
    value = "green" if what == "move" else "label"
    for references, status in wrong:
        for first in ([], [key(WRONG, "red")]) if references else ([],):
            data = form([*first, *references], value)
            page = page_of(browser.post(f"/audit/{what}", data=data, headers=PART), status)
            assert page.all("div", role="alert")
            assert (state(classifier._store), list(classifier.history)) == (before, changes), references
    decide(browser, what, {"reference": "", "value": value}, 422)
    if what != "remove":
        for values in ([], ["label"] * 2, [""], ["\n"], ["thin"] if what != "move" else ["x" * 501]):
            decide(browser, what, {"reference": key(WRONG, "red"), "value": values}, 422)
    assert (state(classifier._store), list(classifier.history)) == (before, changes)
    assert browser.post("/audit/drop", headers=PART).status_code == 422


def test_a_change_that_fails_halfway_is_undone(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    blue = images_of(classifier, "blue")[0]
    before = {name: images_of(classifier, name) for name in ("red", "blue", "green")}
    once = classifier.references.remove

    def then_conflict(name: str, hashes: Any) -> Any:
        if name == "blue":
            raise ConflictError("others changed it")
        return once(name, hashes)

    monkeypatch.setattr(classifier.references, "remove", then_conflict)
    decide(browser, "remove", form([key(WRONG, "red"), f"{blue}:blue"], ""), 409)
    assert {name: sorted(images_of(classifier, name)) for name in before} == {n: sorted(h) for n, h in before.items()}
    assert [change.what for change in list(classifier.history)[:2]] == ["undo", "remove"]


def test_a_move_that_fails_leaves_no_new_category(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(_: Any) -> Any:
        raise ConflictError("others changed it")

    before = state(classifier._store)
    monkeypatch.setattr(classifier.references, "move_many", conflict)
    decide(browser, "move", form([key(WRONG, "red")], "made for it"), 409)
    assert state(classifier._store) == before


def test_a_key_to_read_sees_no_buttons(classifier: Classifier) -> None:
    with visitor(classifier, "read") as client:
        page = findings(client)
        assert page.all("article")
        assert all("data-act" not in button for button in page.all("button"))
        assert not page.all("form")
        assert not page.all("input", type="checkbox")
