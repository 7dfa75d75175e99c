"""The page *Map*."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.support import PART, images_of, page_of, visitor
from tests.support import coloured, coloured_store
from zsvec.classifier import Classifier
from zsvec.errors import StoreUnavailableError
from zsvec.inputs.images import content_hash
from zsvec.testing import HashEncoder

WAITS = coloured("yellow", 7)


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    with coloured_store(5) as classifier:
        classifier.keep(WAITS)
        yield classifier


def drawn(client: TestClient, query: str = "") -> Any:
    while (answer := client.get(f"/map/points{query}")).status_code == 202:
        query = ""
        time.sleep(0.01)
    assert answer.status_code == 200, answer.text
    return answer.json()


def owners(found: Any) -> dict[str, str | None]:
    return {digest: None if number < 0 else found["names"][number] for _, _, number, digest in found["points"]}


def test_points_have_categories_or_wait(classifier: Classifier) -> None:
    with visitor(classifier, "read") as client:
        found = drawn(client)
    expected = {digest: name for name in found["names"] for digest in images_of(classifier, name)}
    assert owners(found) == {**expected, content_hash(WAITS): None}
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y, _, _ in found["points"])


def test_a_moved_photo_keeps_its_place(classifier: Classifier) -> None:
    moved = images_of(classifier, "red")[0]
    with visitor(classifier) as client:
        before = drawn(client)
        form = {"reference": f"{moved}:red", "category": "blue"}
        assert client.post("/references/move", data=form, headers=PART).status_code == 200
        client.post("/inbox/label", data={"hash": content_hash(WAITS), "category": "lynx"}, headers=PART)
        after = drawn(client)
    assert owners(after) == {**owners(before), moved: "blue", content_hash(WAITS): "lynx"}
    place = {digest: (x, y) for x, y, _, digest in before["points"]}
    assert place == {digest: (x, y) for x, y, _, digest in after["points"]}


def test_new_photos_are_on_the_next_map(classifier: Classifier) -> None:
    new = coloured("red", 99)
    with visitor(classifier) as client:
        drawn(client)
        classifier.add_category("red", images=[new])
        assert content_hash(new) not in owners(drawn(client))
        assert owners(drawn(client, "?again=true"))[content_hash(new)] == "red"


def test_an_unchanged_store_is_not_drawn_again(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Mock(side_effect=classifier.image_map)
    monkeypatch.setattr(classifier, "image_map", draw)
    with visitor(classifier, "read") as client:
        before = drawn(client)
        assert drawn(client, "?again=true") == before
        assert draw.call_count == 1
        classifier.inbox.dismiss(content_hash(WAITS))
        drawn(client, "?again=true")
        assert draw.call_count == 2
        classifier.references.move(images_of(classifier, "red")[0], source="red", target="blue")
        drawn(client, "?again=true")
        assert draw.call_count == 3


def test_a_failed_map_is_drawn_again(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise StoreUnavailableError("away")

    with visitor(classifier) as client:
        with monkeypatch.context() as patch:
            patch.setattr(classifier, "image_map", fail)
            while (answer := client.get("/map/points")).status_code == 202:
                time.sleep(0.01)
            assert answer.status_code == 503
        assert drawn(client)["points"]


@pytest.mark.parametrize("right", ["read", "write"])
def test_only_writers_have_buttons(classifier: Classifier, right: str) -> None:
    with visitor(classifier, right) as client:
        page = page_of(client.get("/map"))
    assert bool(page.all("form", id="put")) == (right == "write")
    assert page.all("canvas", id="plane")


def test_an_empty_store() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as empty, visitor(empty) as client:
        assert not page_of(client.get("/map")).all("canvas")
        assert drawn(client) == {"names": [], "points": []}
