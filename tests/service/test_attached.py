"""Points of another collection, in the API and on the pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from qdrant_client import models
from starlette.testclient import TestClient

from tests.service.support import files, listed, page_of, red, visitor
from tests.store.support import LocalDeployment
from tests.support import classifier_over, coloured
from zsvec.classifier import Classifier
from zsvec.inputs.images import content_hash
from zsvec.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Blue pictures of our own, and a shop with red and blue ones, of which two are the same and one is mislabelled."""
    deployment = LocalDeployment()
    with classifier_over(Store(deployment.backend(), "ours")) as opened:
        opened.add_category("blue", images=[coloured("blue", i) for i in range(4)])
        space = models.VectorParams(size=32, distance=models.Distance.COSINE)
        deployment.client.create_collection("shop", vectors_config=space)
        pictures = [coloured("red" if i % 2 else "blue", 10 + i) for i in range(12)]
        points = [
            models.PointStruct(
                id=i, vector=one.vectors["clip"].tolist(), payload={"colour": "red" if i % 2 or i == 4 else "blue"}
            )
            for i, one in enumerate(opened.embed_stream([*pictures, pictures[1]]))
        ]
        deployment.client.upsert("shop", points, wait=True)
        opened.attach("shop", label="colour", expert="clip:image")
        yield opened
    deployment.close()


@pytest.fixture
def browser(classifier: Classifier) -> Iterator[TestClient]:
    with visitor(classifier) as client:
        yield client


def test_categories_in_the_api(browser: TestClient) -> None:
    there = {found["category"]: found for found in listed(browser, "/v1/categories")}
    assert {name: found["attached"] for name, found in there.items()} == {
        "blue": {"clip:image": 6},
        "red": {"clip:image": 7},
    }
    red_one = browser.get("/v1/categories/red").json()
    assert (red_one["updated"], red_one["stored"], red_one["references"]) == (None, [], {"clip:image": 7})
    assert listed(browser, "/v1/categories/red/references") == []
    assert browser.put("/v1/categories/red", files=[("images", ("a.png", red()))]).status_code == 201


def test_the_pages_tell_own_pictures_from_others(browser: TestClient) -> None:
    page = browser.get("/categories").text
    assert "4 photos, 1 text, 6 items of other collections" in page
    assert "0 photos, 0 texts, 7 items of other collections" in page
    assert "collection “shop”" in page
    ours, theirs = browser.get("/categories/blue").text, browser.get("/categories/red").text
    assert ('id="rename"' in ours, 'id="rename"' in theirs) == (True, False)
    answer = browser.post("/categories", files=files(red()), data={"name": "red"})
    assert answer.status_code == 200
    assert "1 photo" in browser.get("/categories").text


def test_evidence_and_audit_name_points_and_offer_no_change(browser: TestClient, classifier: Classifier) -> None:
    classifier.remove_category("blue")  # beside pictures of two encoders, points of one are not judged
    answer = browser.post("/classify", files=files(red(7)))
    assert "shop#" in answer.text
    assert "references/shop" not in answer.text
    findings = browser.get("/audit/findings", headers={"HX-Request": "true"}).text
    assert "shop#4" in findings
    assert "shop#12" in findings
    assert "references/shop" not in findings
    assert "data-act" not in findings
    page_of(browser.get("/audit"))


def test_an_own_photo_that_equals_a_point_is_removed_or_kept(browser: TestClient, classifier: Classifier) -> None:
    own = coloured("red", 11)
    classifier.add_category("red", images=[own])
    key = f"{content_hash(own)}:red"
    part = {"HX-Request": "true"}

    def offered(act: str) -> list[str]:
        page = page_of(browser.get("/audit/findings?kind=duplicates", headers=part))
        return [str(one["data-keys"]) for one in page.all("button", **{"data-act": act})]

    assert f'["{key}"]' in offered("remove")
    assert f'["{key}"]' in offered("keep")
    assert "shop#" not in "".join(offered("remove") + offered("keep"))
    assert browser.post("/audit/keep", data={"reference": key, "value": "duplicates"}, headers=part).status_code == 200
    assert f'["{key}"]' not in offered("keep")
    assert browser.post("/audit/remove", data={"reference": key}, headers=part).status_code == 200
    assert classifier.category("red").own_images == 0
