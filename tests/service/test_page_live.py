"""The page *Live*: events, cost and shutdown."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import anyio.from_thread
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.qdrant import DEADLINE
from tests.service.support import KEYS, PART, READ, bearer, files, page_of, visitor
from tests.support import coloured, encode, photo
from zsvec.classifier import Classifier
from zsvec.errors import StoreUnavailableError
from zsvec.inputs.images import load_image
from zsvec.service import create_app
from zsvec.service.pages import live
from zsvec.service.pages.live import SHOWN


class Served:
    """A service in the event loop of a client, and tasks that watch events."""

    def __init__(self, app: FastAPI, client: TestClient) -> None:
        assert client.portal
        self.app, self.client, self._portal = app, client, client.portal

    def start(self, run: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return self._portal.start_task_soon(run, *arguments)

    def wait(self, run: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return self.start(run, *arguments).result(DEADLINE)

    def call(self, function: Callable[[], None]) -> None:
        self._portal.call(function)

    def classify(self, *images: bytes, name: str = "photo.png") -> None:
        assert self.client.post("/v1/classify", files=files(*images, name=name)).status_code == 200

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with aclosing(self.app.state.live.events()) as told:
            async for event in told:
                if holds(found := json.loads(event)):
                    return found
        raise AssertionError("the events have ended")

    async def nobody(self) -> None:
        if self.app.state.live._task is not None:
            await asyncio.wait({self.app.state.live._task})


@pytest.fixture
def served(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(live, "_EVENT_INTERVAL_S", 0.01)
    app = create_app(classifier)
    with TestClient(app, base_url="http://localhost") as client:
        yield Served(app, client)


class Connection:
    """A connection to the events, which stops reading after some parts of the response."""

    def __init__(self, app: FastAPI, reads: int) -> None:
        self._app = app
        self._reads = reads
        self.leaves = asyncio.Event()
        self.full = asyncio.Event()
        self.got: list[Any] = []

    async def open(self) -> None:
        headers = [(b"host", b"localhost"), (b"accept", b"text/event-stream")]
        path = "/live/events"
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "method": "GET",
            "path": path,
            "headers": headers,
        }
        scope |= {"raw_path": path.encode(), "query_string": b"", "http_version": "1.1", "scheme": "http"}
        await asyncio.wait_for(self._app(scope, self._receive, self._send), DEADLINE)

    async def _receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if len(self.got) == self._reads:
            self.full.set()
            await asyncio.Event().wait()
        self.got.append(message)


# Events


def test_an_event_has_the_figures_of_the_metrics(served: Served) -> None:
    served.classify(encode(coloured("red", 70)), encode(coloured("blue", 71)), b"nothing")
    event = served.wait(served.until, lambda event: True)
    metrics = text_string_to_metric_families(served.client.get("/metrics").text)
    samples = {(s.name, *s.labels.values()): s.value for family in metrics for s in family.samples}
    assert event["outcomes"] == {"known": 2, "unknown": 0, "failed": 1}
    for outcome, number in event["outcomes"].items():
        assert samples["zsvec_images_total", outcome] == number
    assert event["references"] == {"text": 3, "image": 9}
    for modality, number in event["references"].items():
        assert samples["zsvec_references", modality] == number
    assert event["queue"] == samples["zsvec_queue_size",] == 0
    assert event["settled"] == 0
    assert event["no_cascade"] == ""
    assert event["codes"] == {"200": 1}
    images = samples["zsvec_batch_size_sum",]
    assert event["batch"] == images / samples["zsvec_batch_size_count",]
    for stage in ("decode", "preprocess", "encode", "search", "fuse"):
        assert event["stages"][stage] == pytest.approx(samples["zsvec_stage_seconds_sum", stage] / images)


def test_rates_are_those_of_the_last_events(served: Served) -> None:
    idle = served.wait(served.until, lambda event: True)
    assert (idle["rate"], idle["mean_rate"], idle["batch"]) == (0, 0, None)
    assert set(idle["stages"].values()) == {None}
    busy = served.start(served.until, lambda event: event["rate"] > 0)
    while not busy.done():
        served.classify(encode(coloured("red", 70)))
    assert busy.result()["mean_rate"] > 0


def test_the_last_images_are_shown_with_their_answers(served: Served) -> None:
    both = served.start(served.until, lambda event: {one["verdict"] for one in event["images"]} == {"sure", "unread"})
    while not both.done():
        served.classify(encode(coloured("red", 70)), b"nothing", name="<b>\u202e.png")
    images = both.result()["images"]
    assert len(images) <= SHOWN
    good = next(one for one in images if one["verdict"] != "unread")
    assert (good["nearest"], good["verdict"], good["picture"]) == ("red", "sure", True)
    assert good["name"] == "<b>.png"
    bad = next(one for one in images if one["verdict"] == "unread")
    assert (bad["picture"], bad["probability"]) == (False, None)


def test_pictures_are_small_and_there_while_they_are_shown(served: Served) -> None:
    large, seen = encode(photo(1, (900, 600))), threading.Event()

    async def look() -> None:
        async with aclosing(served.app.state.live.events()) as told:
            async for event in told:
                if images := json.loads(event)["images"]:
                    identity = images[0]["id"]
                    seen.set()  # other images would take its place
                    break
            picture = await anyio.to_thread.run_sync(served.client.get, f"/live/images/{identity}")
            assert picture.headers["content-type"] == "image/jpeg"
            assert min(load_image(picture.content).size) == 256
            unknown = await anyio.to_thread.run_sync(served.client.get, "/live/images/nothing")
            assert unknown.status_code == 404
        await served.nobody()
        gone = await anyio.to_thread.run_sync(served.client.get, f"/live/images/{identity}")
        assert gone.status_code == 404

    looking = served.start(look)
    while not (seen.is_set() or looking.done()):
        served.classify(large)
    looking.result(DEADLINE)


def test_a_store_that_is_away_stops_no_event(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(served.app.state.work.classifier._store, "categories", away)
    assert served.wait(served.until, lambda event: True)["references"] is None


# Cost


def copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    copied: list[Any] = []

    def copy(_: Classifier, image: Any) -> bytes:
        copied.append(image)
        return b""

    monkeypatch.setattr(Classifier, "thumbnail", copy)
    return copied


def test_without_watchers_no_image_is_copied(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = copies(monkeypatch)
    served.classify(*[encode(coloured("red", seed)) for seed in range(20)])
    served.wait(served.until, lambda event: True)
    served.wait(served.nobody)
    served.classify(encode(coloured("red", 70)))
    assert copied == []


def test_of_many_images_few_are_copied(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = copies(monkeypatch)
    seen = served.app.state.live
    first, second = asyncio.Event(), asyncio.Event()

    async def watch() -> None:
        async with aclosing(seen.events()) as told:
            await anext(told)
            monkeypatch.setattr(live, "_EVENT_INTERVAL_S", DEADLINE)
            await anext(told)  # followed by no event for long
            first.set()
            await second.wait()

    watching = served.start(watch)
    served.wait(first.wait)
    before = len(copied)
    served.classify(*[encode(coloured("red", seed)) for seed in range(20)])
    assert len(seen._waiting) == 4
    assert len(copied) == before
    served.call(second.set)
    watching.result(DEADLINE)


def test_copying_ends_when_it_takes_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_COPY_TIME_S", 0.0)
    event = served.start(served.until, lambda event: event["outcomes"]["known"] >= 3)
    for seed in range(3):
        served.classify(encode(coloured("red", seed)))
    assert event.result(DEADLINE)["images"] == []


def test_watchers_share_one_computation(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    once = live.Live._read

    def counted(self: Any, past: Any) -> str:
        read.append(event := once(self, past))
        return event

    monkeypatch.setattr(live.Live, "_read", counted)

    async def together() -> list[str]:
        async with aclosing(served.app.state.live.events()) as one, aclosing(served.app.state.live.events()) as other:
            return list(await asyncio.gather(anext(one), anext(other)))

    one, other = served.wait(together)
    assert one is other
    assert one in read


# End


def test_a_client_that_disconnects_watches_no_more(served: Served) -> None:
    async def visit() -> Connection:
        connection = Connection(served.app, 3)
        opened = asyncio.ensure_future(connection.open())
        await connection.full.wait()  # it reads no more; others still get events
        await served.until(lambda event: True)
        connection.leaves.set()
        await opened
        await served.nobody()
        return connection

    got = served.wait(visit).got
    assert got[0]["status"] == 200
    assert dict(got[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert dict(got[0]["headers"])[b"x-accel-buffering"] == b"no"
    assert got[1]["body"].startswith(b"retry: ")
    assert json.loads(got[2]["body"].removeprefix(b"data: "))["outcomes"]
    assert got[2]["body"].endswith(b"\n\n")


def test_the_end_of_the_service_ends_all_events_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_EVENT_INTERVAL_S", 100 * DEADLINE)

    async def end() -> list[Connection]:
        connections = [Connection(served.app, 100) for _ in range(3)]
        opened = [asyncio.ensure_future(connection.open()) for connection in connections]
        await served.until(lambda event: True)
        served.app.state.health.ending.set()
        await asyncio.gather(*opened)
        await served.nobody()
        return connections

    for connection in served.wait(end):
        assert connection.got[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert served.client.get("/live/events").status_code == 503


def test_a_slow_client_does_not_outlive_the_last_event(served: Served) -> None:
    async def read_late() -> None:
        async with aclosing(served.app.state.live.events()) as told:
            await anext(told)
            served.app.state.health.ending.set()
            await served.nobody()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(anext(told), 2)

    served.wait(read_late)


# The page


def test_only_a_key_to_write_watches(classifier: Classifier) -> None:
    with TestClient(create_app(classifier, keys=KEYS), base_url="http://localhost") as client:
        for path in ("/live", "/live/events", "/live/images/x"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=bearer(READ)).status_code == 403


def test_a_refused_key_to_read_gets_a_page(classifier: Classifier) -> None:
    with visitor(classifier, "read") as client:
        page = page_of(client.get("/live"), 403)
        assert len(page.all("h1")) == 1
        links = [found["href"] for found in page.all("a")]
        assert "/categories" in links
        assert "/live" not in links
        assert page_of(client.get("/live", headers=PART), 403).all("div", role="alert")


def test_the_page_has_a_place_for_each_figure(classifier: Classifier) -> None:
    with visitor(classifier, "write") as client:
        page = page_of(client.get("/live"))
        names = {str(found["data-meter"]) for found in page.all("div") if "data-meter" in found}
        assert names == {"known", "unknown", "failed", "decode", "preprocess", "encode", "search", "fuse", "queue"}
        assert "/live" in [found["href"] for found in page.all("a")]
