"""Endless responses are bounded in memory and time."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests import endless
from tests.generation.fake_openai import KEY, noise
from tests.generation.scripted import Reply, Scripted, Sent, chat, pictures, scripted
from tests.store.support import left_behind
from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation import client as module
from zsvec.generation import prompts
from zsvec.generation.client import Answer, Client, Picture
from zsvec.settings.settings import GenerationSettings

PATIENCE_S = 60.0

Call = Callable[[Client], Any]


def ask(client: Client) -> Any:
    return client.ask(prompts.describe(["lion"]), "k")


def draw(client: Client) -> Any:
    return client.draw("a lion", "k")


def opened(url: str, **settings: Any) -> Client:
    return Client(GenerationSettings(base_url=f"{url}/v1", **settings))


@pytest.fixture
def at_a_url() -> Iterator[Callable[[endless.Reply], endless.Server]]:
    """Returns an image service with images on another server, given the reply of the latter."""
    with ExitStack() as stack:

        def serve(reply: endless.Reply) -> endless.Server:
            files = stack.enter_context(endless.serving(reply))
            answer = json.dumps({"data": [{"url": f"{files.url}/a.png"}]}).encode()
            return stack.enter_context(endless.serving(endless.whole(answer)))

        yield serve


def refused(client: Client, call: Call) -> GenerationError:
    start = time.monotonic()
    with client, endless.bounded_memory(), pytest.raises(GenerationError) as caught:
        call(client)
    assert time.monotonic() - start < PATIENCE_S
    assert not left_behind()
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("flood", endless.FLOODS)
def test_an_answer_without_end_is_refused(flood: str) -> None:
    with endless.serving(endless.FLOODS[flood]) as server:
        error = refused(opened(server.url), ask if flood != "body" else draw)
    assert not isinstance(error, GenerationUnavailableError)
    assert server.url in str(error)
    assert "generation.base_url" in str(error)


@pytest.mark.parametrize("flood", ["body", "gzip"])
def test_an_image_without_end_is_refused(flood: str, at_a_url: Callable[[endless.Reply], endless.Server]) -> None:
    error = refused(opened(at_a_url(endless.FLOODS[flood]).url), draw)
    assert not isinstance(error, GenerationUnavailableError)
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize("flood", ["header", "informational", "trailers"])
def test_a_head_without_end_is_given_up(flood: str) -> None:
    with endless.serving(endless.HEAD_FLOODS[flood]) as server:
        error = refused(opened(server.url, timeout=1, deadline=0.5), ask)
    assert isinstance(error, GenerationUnavailableError)


@pytest.mark.parametrize("drip", endless.DRIPS)
def test_an_answer_that_drips_ends_by_the_timeout(drip: str) -> None:
    with endless.serving(endless.DRIPS[drip]) as server:
        error = refused(opened(server.url, timeout=0.5, deadline=0.3), ask if drip != "head" else draw)
    assert isinstance(error, GenerationUnavailableError)
    assert "generation.timeout" in str(error)


def test_an_image_that_drips_ends_by_the_timeout(at_a_url: Callable[[endless.Reply], endless.Server]) -> None:
    error = refused(opened(at_a_url(endless.DRIPS["body"]).url, timeout=0.5, deadline=0.3), draw)
    assert isinstance(error, GenerationUnavailableError)


def test_an_answer_that_drips_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the client, and each request has another connection."""
    answer = endless.whole(json.dumps(chat({"categories": []}).body).encode())
    one_waits, go_on = threading.Event(), threading.Event()

    def slow(path: bytes, stopped: threading.Event) -> Iterator[bytes]:
        one_waits.set()
        go_on.wait(PATIENCE_S)
        yield from answer(path, stopped)

    got: list[Any] = []
    with endless.serving(slow) as server, opened(server.url, timeout=PATIENCE_S) as client:
        thread = threading.Thread(target=lambda: got.append(ask(client)))
        thread.start()
        assert one_waits.wait(PATIENCE_S)
        server.reply = endless.DRIPS["body"]
        monkeypatch.setattr(client, "_settings", client._settings.model_copy(update={"deadline": 0.1}))
        monkeypatch.setattr(client._openai._client, "_seconds", 0.3)
        with pytest.raises(GenerationUnavailableError):
            ask(client)
        assert not got
        go_on.set()
        thread.join(PATIENCE_S)
    assert isinstance(got[0], Answer)


def test_a_large_image_is_taken() -> None:
    """Of 4096 x 4096 pixels with four bytes each, not compressed, in base64."""
    image = bytes(4 * 4096 * 4096)
    body = json.dumps({"data": [{"b64_json": base64.b64encode(image).decode()}]}).encode()
    with endless.serving(endless.whole(body)) as server, opened(server.url) as client:
        drawn = draw(client)
    assert isinstance(drawn, Picture)
    assert drawn.data == image
    assert len(body) < module.MAX_ANSWER_BYTES


def test_a_large_answer_of_the_language_model_is_refused() -> None:
    look = {"name": "lion", "appearance": "A" * module.MAX_TEXT_ANSWER_BYTES, "scenes": []}
    with scripted(lambda *_: chat({"categories": [look]})) as server, opened(server.base) as client:
        error = refused(client, ask)
    assert not isinstance(error, GenerationUnavailableError)
    assert len(server.seen) == 1


def test_an_answer_is_asked_for_as_it_is_and_read_if_it_is_compressed() -> None:
    def answer(server: Scripted, sent: Sent) -> Reply:
        if sent.path == "/a.png":
            return Reply(gzip.compress(noise("lion")), headers={"content-encoding": "gzip"})
        reply = pictures({"url": f"{server.base}/a.png"})
        return Reply(gzip.compress(json.dumps(reply.body).encode()), headers={"content-encoding": "gzip"})

    with scripted(answer) as server, opened(server.base) as client:
        drawn = draw(client)
    assert isinstance(drawn, Picture)
    assert drawn.data == noise("lion")
    assert [sent.headers["accept-encoding"] for sent in server.seen] == ["identity", "identity"]
