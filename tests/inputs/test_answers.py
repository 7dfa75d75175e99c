"""Answers are read whole within a bound."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import httpx
import pytest

from tests import endless
from tests.generation.scripted import Reply, Scripted, Sent, scripted
from zsvec.inputs.answers import AnswerError, AnswerTooLargeError, Sockets, hooks

BOUND = 1_000_000
TEXT = b"an answer" * 1000


def client(bound: int = BOUND) -> httpx.Client:
    return httpx.Client(event_hooks=hooks(lambda path: bound, Sockets().watch), timeout=60)


def answering(body: bytes, **headers: str) -> Callable[[Scripted, Sent], Reply]:
    return lambda server, sent: Reply(body, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    "reply",
    [
        endless.whole(TEXT),
        endless.whole(b""),
        endless.whole(gzip.compress(TEXT), b"Content-Encoding: GZip"),
        endless.whole(zlib.compress(TEXT), b"content-encoding: deflate"),
        lambda *_: iter([endless.CHUNKED + b"\r\n", *[endless.chunk(TEXT)] * 3, b"0\r\n\r\n"]),
        lambda *_: iter([endless.OK + b"\r\n", TEXT]),
    ],
    ids=["length", "empty", "gzip", "deflate", "chunks", "until it ends"],
)
def test_an_answer_within_its_bound_is_as_it_was_sent(reply: endless.Reply) -> None:
    with endless.serving(reply) as server, client() as asking:
        response = asking.get(server.url)
    assert response.status_code == 200
    assert response.content in (TEXT, 3 * TEXT, b"")
    assert response.text == response.content.decode()
    assert response.elapsed.total_seconds() > 0


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_bound_is_of_the_unpacked_answer(pack: Callable[[bytes], bytes]) -> None:
    encoding = b"content-encoding: " + (b"gzip" if pack is not bytes else b"identity")
    for size in (BOUND, BOUND + 1):
        with endless.serving(endless.whole(pack(bytes(size)), encoding)) as server, client() as asking:
            if size > BOUND:
                with pytest.raises(AnswerTooLargeError, match="1,000,000 bytes"):
                    asking.get(server.url)
            else:
                assert asking.get(server.url).content == bytes(size)


def test_each_path_has_a_bound() -> None:
    bounds = {"/small": 10, "/large": 20}
    with (
        scripted(answering(bytes(15))) as server,
        httpx.Client(event_hooks=hooks(bounds.__getitem__, Sockets().watch)) as asking,
    ):
        assert asking.get(f"{server.base}/large?more=1").content == bytes(15)
        with pytest.raises(AnswerTooLargeError):
            asking.get(f"{server.base}/small")


@pytest.mark.parametrize("flood", endless.FLOODS)
def test_no_more_is_read_than_the_bound(flood: str) -> None:
    with endless.serving(endless.FLOODS[flood]) as server, client() as asking:
        with endless.bounded_memory(20 * BOUND), pytest.raises(AnswerError):
            asking.get(server.url)
        assert server.sent < 20 * BOUND


def test_an_answer_of_small_parts_takes_no_more_memory() -> None:
    reply = endless.repeated(endless.CHUNKED + b"\r\n", endless.chunk(b"  ") * 10_000)
    with (
        endless.serving(reply) as server,
        client(100_000) as asking,
        endless.bounded_memory(2_000_000),
        pytest.raises(AnswerTooLargeError),
    ):
        asking.get(server.url)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("br", b"x"), ("zstd", b"x"), ("gzip, gzip", gzip.compress(gzip.compress(TEXT))), ("gzip", TEXT)],
    ids=["brotli", "zstandard", "twice", "text"],  # the bytes of gzip tell the time, and names of tests must not
)
def test_an_answer_that_cannot_be_unpacked_is_refused(encoding: str, body: bytes) -> None:
    with scripted(answering(body, content_encoding=encoding)) as server, client() as asking:
        with pytest.raises(AnswerError) as caught:
            asking.get(server.base)
        assert "compressed" in str(caught.value)
        assert server.seen[0].headers["accept-encoding"] == "identity"


def test_text_is_decoded_as_utf_8_and_not_by_the_charset_of_the_header() -> None:
    text = '{"größe": "x-y"}'
    for charset in ("punycode", "zlib", "utf-16", "latin-1", "none"):
        with (
            scripted(answering(text.encode(), content_type=f"application/json; charset={charset}")) as server,
            client() as asking,
        ):
            response = asking.get(server.base)
        assert response.text == text
        assert response.json() == {"größe": "x-y"}
