"""Request bodies: too large, too slow, too many, damaged or hostile; and clients that disconnect."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import socket
import struct
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

import zsvec
from tests.inputs.pictures import claims, png
from tests.qdrant import DEADLINE, wait_until
from tests.service.servers import Running, head, read_answer, running, status
from tests.service.support import KEYS, Keys, Limits, asked, files, listed, path_to, problem, red
from tests.support import encode, photo, state
from zsvec.classifier import Classifier
from zsvec.testing import HashEncoder
from zsvec.types import Modality

MANY = 10_000


def detail(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["detail"])


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def url(service: Running, path: str = "/v1/classify") -> str:
    return f"http://127.0.0.1:{service.port}{path}"


RAW = {"Content_Type": "image/png"}
SMUGGLED = b"0\r\n\r\n" + head("GET", "/health/live")


# Size and pace


def test_a_body_with_a_large_content_length_is_refused_at_once(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(body_bytes=1000)) as service:
        for size in (1001, 10**12, 10**18):
            answer = service.ask(head("POST", "/v1/classify", Content_Length=size, **RAW))
            assert (status(answer), "1,000 bytes" in detail(answer)) == (413, True)
            assert b"connection: close" in answer.lower()
        assert status(service.ask(head("POST", "/v1/classify", Content_Length=1000, **RAW) + b"x" * 1000)) == 200


def test_a_chunked_body_is_cut_off_at_the_limit(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(body_bytes=100_000)) as service, service.connect() as connection:
        connection.sendall(head("POST", "/v1/classify", Transfer_Encoding="chunked", **RAW))
        sent = 0
        with pytest.raises(OSError):  # noqa: PT011 - the connection is closed, sooner or later
            while sent < 10**9:
                connection.sendall(chunk(bytes(50_000)))
                sent += 50_000
                time.sleep(0.01)
        assert sent < 10**9


def test_a_client_with_a_large_body_receives_the_refusal(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(body_bytes=1000)) as service:
        answer = httpx.post(url(service), content=bytes(5_000_000), headers={"Content-Type": "image/png"})
        assert answer.status_code == 413
        answer = httpx.post(url(service), content=iter([bytes(100_000)] * 50), headers={"Content-Type": "image/png"})
        assert answer.status_code == 413


def test_a_body_that_stalls(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(stall_timeout_s=0.3)) as service:
        for more in ({"Content_Length": 100}, {"Transfer_Encoding": "chunked"}):
            begun = time.monotonic()
            answer = service.ask(head("POST", "/v1/classify", **RAW, **more))
            assert (status(answer), "0 bytes" in detail(answer)) == (408, True)
            assert 0.2 < time.monotonic() - begun < Limits().stall_timeout_s


def test_a_body_that_drips(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(stall_timeout_s=0.5)) as service, service.connect() as connection:
        connection.sendall(head("POST", "/v1/classify", Transfer_Encoding="chunked", **RAW))
        connection.settimeout(0.02)
        begun, answer = time.monotonic(), b""
        while not answer:
            connection.sendall(chunk(b"x"))
            try:
                answer = read_answer(connection)
            except TimeoutError:
                continue
        assert status(answer) == 408
        assert time.monotonic() - begun < Limits().stall_timeout_s


def test_a_slow_body_is_read(classifier: Classifier) -> None:
    picture = red()
    with running(classifier, limits=Limits(stall_timeout_s=0.5)) as service, service.connect() as connection:
        connection.sendall(head("POST", "/v1/classify", Content_Length=len(picture), **RAW))
        for start in range(0, len(picture), len(picture) // 3 + 1):
            time.sleep(0.1)
            connection.sendall(picture[start : start + len(picture) // 3 + 1])
        assert status(read_answer(connection)) == 200


def test_bodies_at_once(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(receiving_bytes=1000)) as service, ExitStack() as stack:
        first = stack.enter_context(service.connect())
        first.sendall(head("POST", "/v1/classify", Content_Length=610, **RAW) + bytes(600))
        wait_until(lambda: service.receiving == 600)
        refused = service.ask(head("POST", "/v1/classify", Content_Length=500, **RAW) + bytes(500))
        assert (status(refused), b"retry-after: 1" in refused.lower()) == (429, True)
        with service.connect() as second:  # chunked
            second.sendall(head("POST", "/v1/classify", Transfer_Encoding="chunked", **RAW) + chunk(bytes(300)))
            wait_until(lambda: service.receiving == 900)
            second.sendall(chunk(bytes(300)))
            assert status(read_answer(second)) == 429
        wait_until(lambda: service.receiving == 600)
        first.sendall(bytes(10))
        assert status(read_answer(first)) == 200


def test_stalled_bodies_reserve_no_memory(classifier: Classifier) -> None:
    with running(classifier, limits=Limits(receiving_bytes=1000)) as service, ExitStack() as stack:
        for _ in range(8):
            silent = stack.enter_context(service.connect())
            silent.sendall(head("POST", "/v1/classify", Content_Length=900, **RAW) + b"x")
        wait_until(lambda: service.receiving == 8)
        assert status(service.ask(head("POST", "/v1/classify", Content_Length=900, **RAW) + bytes(900))) == 200


def test_without_a_key_bodies_are_small(classifier: Classifier) -> None:
    with running(classifier, keys=KEYS) as service:
        answer = service.ask(head("POST", "/login", Content_Length=100_000, Content_Type="multipart/form-data"))
        assert status(answer) == 413


MALFORMED = [
    b"\r\n\r\n\r\n",
    b"\x00" * 100,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    head("GET", "/", Host="localhost"),
    head("POST", "/v1/classify", Content_Length="-1", **RAW),
    head("POST", "/v1/classify", Content_Length="x", **RAW),
    head("POST", "/v1/classify", Content_Length="9" * 5000, **RAW),
    head("POST", "/v1/classify", Content_Length="1, 2", **RAW),
    head("POST", "/v1/classify", Transfer_Encoding="gzip", **RAW),
    head("POST", "/v1/classify", Transfer_Encoding="chunked", **RAW) + b"zz\r\n",
    head("GET", "/v1/info", Upgrade="websocket", Connection="Upgrade"),
    head("CONNECT", "evil.example:443"),
    head("TRACE", "/v1/info"),
]


def test_malformed_requests(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    with running(classifier) as service:
        for request in MALFORMED:
            answer = service.ask(request)
            assert not answer or status(answer) in (200, 400, 403, 404, 405, 501), request[:100]
        assert status(service.ask(head("GET", "/health/live"))) == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("keys", [Keys(), KEYS], ids=["no keys", "keys"])
def test_a_body_with_two_lengths_ends_its_connection(classifier: Classifier, keys: Keys) -> None:
    """Request smuggling: a proxy that reads the other length would pass the rest on as a request of another client."""
    framings: list[dict[str, Any]] = [
        {"Content_Length": 5, "Transfer_Encoding": "chunked"},
        {"Transfer_Encoding": "chunked", "Content_Length": 0},
        {"Transfer_Encoding": "CHUNKED", "content_length": 5},
        {"Content_Length": "5, 6"},
        {"Content_Length": "+5"},
        {"Content_Length": "0x5"},
        {"Content_Length": "5", "content_length": "6"},
        {"Transfer_Encoding": "chunked", "transfer_encoding": "chunked"},
        {"Transfer_Encoding": "gzip, chunked"},
        {"Transfer_Encoding": "identity"},
    ]
    with running(classifier, keys=keys) as service:
        for framing in framings:
            answers = exchange(service, head("POST", "/v1/classify", **framing, **RAW) + SMUGGLED)
            assert (status(answers), answers.count(b"HTTP/1.1 ")) == (400, 1), framing
            assert b"connection: close" in answers.lower()


def exchange(service: Running, request: bytes) -> bytes:
    """Returns all answers until the connection is closed."""
    with service.connect() as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_query_that_is_not_utf_8_ends_its_connection(classifier: Classifier) -> None:
    """Refused before the length of the body is checked."""
    with running(classifier) as service:
        request = head("POST", "/login?%ff", Content_Length=4, Transfer_Encoding="chunked")
        answers = exchange(service, request + SMUGGLED)
        assert (status(answers), answers.count(b"HTTP/1.1 ")) == (422, 1)


def test_http_1_0_has_no_chunks(classifier: Classifier) -> None:
    with running(classifier, keys=KEYS) as service:
        old = head("POST", "/login", Transfer_Encoding="chunked").replace(b"HTTP/1.1", b"HTTP/1.0")
        assert status(exchange(service, old + b"0\r\n\r\n")) == 400


# Parts


def test_a_full_temporary_folder_is_an_error_of_the_service(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than a MiB are spooled to the folder for temporary files."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EACCES):
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "TemporaryFile", partial(refuse, code))
            problem(client.post("/v1/classify", files=files(bytes(3_000_000))), 503, "temporary files")
            problem(client.put(path_to("x"), files=files(bytes(3_000_000))), 503, os.strerror(code))
    client.post("/v1/classify", files=files(red() + bytes(3_000_000))).raise_for_status()


def refuse(code: int, *_: Any, **__: Any) -> Any:
    raise OSError(code, os.strerror(code))


def test_many_fields_and_many_files(client: Any, classifier: Classifier) -> None:
    before = state(classifier._store)
    problem(client.post("/v1/classify", data={f"f{number}": "x" for number in range(MANY)}, files=files(red())), 400)
    problem(client.post("/v1/classify", files=files(*[b""] * 1001)), 400, "1000")
    problem(client.post("/v1/classify", data={"x": "y" * 2_000_000}, files=files(red())), 400, "form")
    too_many = {"images": [base64.b64encode(red()).decode()] * 65}
    for method, path in (("POST", "/v1/classify"), ("PUT", path_to("x"))):
        problem(client.request(method, path, files=files(*[red()] * 65)), 422, "64 images")
        problem(client.request(method, path, json=too_many), 422, "64 images")
    assert len(client.post("/v1/classify", files=files(*[red()] * 64)).json()) == 64
    with asked(classifier, limits=Limits(images=2)) as few:
        problem(few.post("/v1/classify", files=files(*[red()] * 3)), 422, "2 images")
    assert state(classifier._store) == before


def test_json_that_would_take_much_memory(client: Any) -> None:
    for body in (
        b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
        b'{"images":[{' + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}]}",
        b'{"images":["AAAA"],"metadata":{"a":[' + b",".join([b"[]"] * 1_000_000) + b"]}}",
        b'{"images":[' + b",".join([b'"!"'] * 1_000_000) + b"]}",
        b'{"images":[' + b",".join([b"{}"] * 99_000) + b"]}",
        b"{" + b",".join(b'"k%d":1' % number for number in range(99_000)) + b"}",
        b'{"' + b"k" * 1_000_000 + b'":1}',
        b'{"images":["' + b"!" * 10_000_000 + b'"]}',
    ):
        tracemalloc.start()
        try:
            answer = client.put(path_to("x"), content=body, headers={"Content-Type": "application/json"})
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answer.status_code in (413, 422), body[:50]
        assert len(answer.content) < 5000
        assert most < 10 * len(body) + 150_000_000


def test_damaged_pictures(client: Any) -> None:
    whole = encode(photo(1, (300, 200)))
    damaged = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "bomb": png((30_000, 30_000), 8, 2, bytes(90_000)),
        "text": b"hello",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x"/></svg>',
        "zip": b"PK\x03\x04" + bytes(1000),
        **claims(60_000, 60_000),
    }
    answers = client.post("/v1/classify", files=files(*damaged.values(), whole)).raise_for_status().json()
    assert [answer["error"] is None for answer in answers] == [False] * len(damaged) + [True]
    for name, content in damaged.items():
        problem(client.put(path_to("x"), files=files(content)), 422)
        [kept] = client.post("/v1/inbox", files=files(content)).json()
        assert kept["error"], name
    assert listed(client, "/v1/inbox") == []


def test_file_names_are_cleaned(client: Any) -> None:
    for given, kept in (
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\win.ini", "win.ini"),
        ("/", "upload"),
        ("..", ".."),
        ("a\x00b\x1b[31m.png", "ab[31m.png"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("x" * 10_000, "x" * 255),
        ("<script>/x.png", "x.png"),
        ("<script>.png", "<script>.png"),
        ("\u200b\u2066", "upload"),
        ("🐼.png", "🐼.png"),
        (" ", "upload"),
    ):
        sent = {"images": [{"data": base64.b64encode(red()).decode(), "name": given}]}
        [answer] = client.post("/v1/classify", json=sent).json()
        assert answer["source"] == kept
        client.put(path_to("named"), json=sent)
        [one] = [one for one in listed(client, path_to("named", "references")) if one["modality"] == "image"]
        assert one["source"] == kept
        client.delete(path_to("named"))
        disposition = b'Content-Disposition: form-data; name="images"; filename="' + given.encode() + b'"'
        body = b"--x\r\n" + disposition + b"\r\n\r\n" + red() + b"\r\n--x--\r\n"
        answer = client.post("/v1/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert answer.status_code in (200, 400)  # a header must have no control characters
        if answer.status_code == 200:
            assert answer.json()[0]["source"].isprintable()
            assert "/" not in answer.json()[0]["source"]


# Clients that disconnect, and full queues


class Waiting(HashEncoder):
    """An encoder that blocks until an event."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[np.float64]:
        self.entered.set()
        assert self.may_go_on.wait(DEADLINE)
        return super().embed(batch, modality)


@pytest.fixture
def waiting() -> Iterator[tuple[Classifier, Waiting]]:
    """A classifier of two threads and batches of one, with a blocked encoder."""
    encoder = Waiting()
    with zsvec.open(":memory:", encoders=[encoder], batch_size=1) as classifier:
        classifier.add_category("red", images=[photo(0)])
        encoder.images_encoded = 0
        encoder.entered.clear()
        encoder.may_go_on.clear()
        yield classifier, encoder


def as_form(*images: bytes, path: str = "/v1/classify") -> bytes:
    """A complete request that classifies images."""
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + image + b"\r\n"
        for image in images
    )
    body = parts + b"--x--\r\n"
    kind = "multipart/form-data; boundary=x"
    return head("POST", path, Content_Length=len(body), Content_Type=kind) + body


@pytest.mark.parametrize(
    ("how", "path"), [("closed", "/v1/classify"), ("reset", "/v1/classify"), ("closed", "/v1/classify/track")]
)
def test_waiting_images_of_a_disconnected_client_are_cancelled(
    waiting: tuple[Classifier, Waiting], how: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    classifier, encoder = waiting
    caplog.set_level(logging.INFO)
    with running(classifier) as service:
        connection = service.connect()
        connection.sendall(as_form(*(encode(photo(seed)) for seed in range(20)), path=path))
        wait_until(lambda: service.work.queued == 20)
        assert encoder.entered.wait(DEADLINE)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        wait_until(lambda: service.work.queued <= 2)  # those of the two threads
        wait_until(lambda: service.receiving == 0)
        encoder.may_go_on.set()
        wait_until(lambda: service.work.queued == 0)
        assert 1 <= encoder.images_encoded <= 2
        assert status(service.ask(as_form(encode(photo(1))))) == 200
    assert f"POST {path} 499" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_set_of_a_disconnected_client_is_not_completed(waiting: tuple[Classifier, Waiting]) -> None:
    classifier, encoder = waiting
    pictures = [encode(photo(seed)) for seed in range(64)]
    with running(classifier) as service:
        with ExitStack() as stack:
            for number in range(1, 4):  # the third set waits for a thread
                connection = stack.enter_context(service.connect())
                connection.sendall(as_form(*pictures, path="/v1/classify?together=true"))
                wait_until(lambda number=number: service.work.queued == 64 * number)  # type: ignore[misc]
            assert encoder.entered.wait(DEADLINE)
        wait_until(lambda: service.work.queued == 128)
        wait_until(lambda: service.receiving == 0)
        encoder.may_go_on.set()
        wait_until(lambda: service.work.queued == 0)
        assert 2 <= encoder.images_encoded < 64
        assert status(service.ask(as_form(pictures[0], path="/v1/classify?together=true"))) == 200


def test_a_client_that_disconnects_within_its_body(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running(classifier) as service:
        for request in (
            head("POST", "/v1/classify", Content_Length=1000, **RAW) + b"x",
            as_form(red())[:-20],
            head("PUT", path_to("x"), Content_Length=1000, Content_Type="application/json") + b"{",
            head("POST", "/v1/classify", Transfer_Encoding="chunked", **RAW) + chunk(b"x"),
        ):
            with service.connect() as connection:
                connection.sendall(request)
                wait_until(lambda: service.receiving > 0)
            wait_until(lambda: service.receiving == 0)
        assert service.ask(head("GET", "/health/live"))
    assert caplog.text.count(" 499 in ") == 4
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_full_queue_refuses_before_the_body_is_read(waiting: tuple[Classifier, Waiting]) -> None:
    classifier, encoder = waiting
    with running(classifier, limits=Limits(queue=3)) as service, service.connect() as first:
        first.sendall(as_form(*(encode(photo(seed)) for seed in range(3))))
        wait_until(lambda: service.work.queued == 3)
        for path in ("/v1/classify", "/v1/classify?together=true", "/v1/classify/track"):
            refused = service.ask(head("POST", path, Content_Length=1000, **RAW))  # without a body
            assert (status(refused), b"retry-after: 1" in refused.lower(), "3 images" in detail(refused)) == (
                429,
                True,
                True,
            )
        for path in ("/health/live", "/health/ready", "/metrics", "/v1/categories"):
            assert status(service.ask(head("GET", path))) == 200
        assert b"zsvec_queue_size 3.0" in httpx.get(url(service, "/metrics")).content
        encoder.may_go_on.set()
        assert status(read_answer(first)) == 200
        for path in ("/v1/classify", "/v1/classify?together=true", "/v1/classify/track"):
            assert status(service.ask(as_form(*[encode(photo(1))] * 4, path=path))) == 429  # more than the queue
        assert status(service.ask(as_form(*[encode(photo(1))] * 3))) == 200


def test_other_requests_have_a_bounded_queue(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go_on = threading.Event(), threading.Event()
    categories = classifier.categories

    def slow() -> Any:
        entered.set()
        assert may_go_on.wait(DEADLINE)
        return categories()

    monkeypatch.setattr(classifier, "categories", slow)
    with running(classifier, limits=Limits(tasks=1)) as service, service.connect() as first:
        first.sendall(head("GET", "/v1/categories"))
        assert entered.wait(DEADLINE)
        assert status(service.ask(head("GET", "/v1/categories"))) == 429
        assert status(service.ask(head("GET", "/v1/info"))) == 429
        assert status(service.ask(as_form(red()))) == 200
        may_go_on.set()
        assert status(read_answer(first)) == 200


def test_a_defect_and_a_closed_store(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(classifier) as service:
        with monkeypatch.context() as patch:
            patch.setattr(classifier, "classify", lambda *_, **__: 1 / 0)
            answer = service.ask(as_form(red(), red(1)))
            assert status(answer) == 500
            assert "at request" in detail(answer)
        assert "ZeroDivisionError" in caplog.text
        assert status(service.ask(as_form(red()))) == 200
    with asked(classifier) as client:
        classifier.close()
        problem(client.post("/v1/classify", files=files(red())), 409, "closed")
        client.get("/metrics").raise_for_status()
        problem(client.get("/health/ready"), 503)
