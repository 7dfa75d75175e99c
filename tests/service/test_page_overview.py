"""The page *Overview*."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, Page, audits_held_back, page_of, visitor
from tests.support import coloured, coloured_store, photo
from zsvec import Confusion, StoredImage
from zsvec.classifier import Classifier
from zsvec.testing import HashEncoder

EVIL = "<b>a & 'b'</b>"


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Ten images of each of three colours, a blue one among the red, a category of one image, and two that wait."""
    with coloured_store(10) as classifier:
        classifier.add_category("red", images=[coloured("blue", 900)])
        classifier.add_category(EVIL, images=[photo(5)])
        classifier.calibrate()
        for seed in (100, 101):
            classifier.keep(photo(seed))
        yield classifier


def findings(client: TestClient) -> Page:
    return page_of(client.get("/overview/findings", headers=PART))


def test_the_numbers_of_the_store(browser: TestClient, classifier: Classifier) -> None:
    classifier.calibrate(false_unknown_rate=0.001)
    page = page_of(browser.get("/overview"))
    for fact in ("Categories4", "Photos32", "Texts4", "Photos in the inbox2"):
        assert fact in page.text
    progress = classifier.info()["threshold_progress"]
    assert progress
    (meter,) = page.all("meter")
    assert (meter["value"], meter["max"]) == (str(progress["images"]), str(progress["needed"]))
    assert page.all("p", **{"hx-get": "/overview/findings"})
    assert "/overview" in [one.get("href") for one in page_of(browser.get("/categories")).all("a")]


def test_many_photos_are_compared_after_a_click(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.service.pages.comparisons._MAX_AUTOMATIC", 31)
    page = page_of(browser.get("/overview"))
    assert not page.all("p", **{"hx-get": "/overview/findings"})
    assert page.all("button", **{"hx-get": "/overview/findings"})
    assert "Compare 32 photos" in page.text


def test_enough_photos_and_a_stale_calibration(browser: TestClient, classifier: Classifier) -> None:
    classifier.calibrate(false_unknown_rate=0.25)
    assert not page_of(browser.get("/overview")).all("meter")
    assert "calibrated" not in page_of(browser.get("/overview")).text
    classifier._calibrator._automatic = False
    classifier.add_category("red", images=[coloured("red", 901)])
    assert "calibrated" in page_of(browser.get("/overview")).text


def test_an_empty_store_and_a_store_without_a_calibration() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier, visitor(classifier) as client:
        page = page_of(client.get("/overview"))
        assert "Categories0" in page.text
        assert not page.all("p", **{"hx-get": "/overview/findings"})
        findings(client)
        classifier.add_category("red", images=[coloured("red", 1)])
        page = findings(client)
        assert "zsvec" not in page.text
        assert "/categories/red" in [one["href"] for one in page.all("a")]


def test_recognition_and_what_to_photograph(browser: TestClient, classifier: Classifier) -> None:
    audit = classifier.references.audit()
    assert audit.thin
    page = findings(browser)
    assert f"{audit.judged - audit.mistaken} of {audit.judged}" in page.text
    assert audit.ece is not None
    assert audit.ece_floor is not None
    assert f"{100 * audit.ece:.1f} points" in page.text
    assert f"{100 * audit.ece_floor:.1f} points" in page.text
    links = [str(one["href"]) for one in page.all("a")]
    assert "/audit?kind=labels" in links
    assert all(one.category in page.text for one in audit.thin)
    assert not page.all("b")
    for address in links:
        assert browser.get(address.partition("#")[0]).status_code == 200


def test_confusions_and_groups(browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    image = StoredImage(category="red", hash="a" * 64, source="")
    audit = classifier.references.audit()
    confused = [Confusion(categories=("red", EVIL), images=[image]) for _ in range(11)]
    changed: dict[str, Any] = {"confusions": confused}
    monkeypatch.setattr(classifier.references, "audit", lambda **_: replace(audit, **changed))
    monkeypatch.setattr(classifier.inbox, "groups", lambda **_: [SimpleNamespace(images=[image] * 8)])
    page = findings(browser)
    assert page.text.count("1 of 12 photos") == 10
    assert "/audit?kind=confusions" in [one["href"] for one in page.all("a")]
    assert "8 unknown photos" in page.text


def test_a_page_that_waits_asks_again(
    browser: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with audits_held_back(classifier, monkeypatch):
        (poll,) = findings(browser).all("p", role="status")
        address = str(poll["hx-get"])
        assert address.startswith("/overview/findings?of=")
        classifier.add_category("red", images=[coloured("red", 902)])
        (again,) = page_of(browser.get(address, headers=PART)).all("p", role="status")
        assert again == poll
