"""The process of a service: listening and shutdown."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import pytest

from tests.qdrant import DEADLINE
from tests.service.support import red
from tests.streams.test_stream import eventually
from zsvec.errors import InvalidInputError
from zsvec.service.admission.bodies import PART_BYTES
from zsvec.service.server import NOT_READY_NOTICE_S, JsonLines, listening

ROOT = Path(__file__).parents[2]


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A ready service in its own process, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.slow_service", str(folder), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # an unread pipe would fill up
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        until = time.monotonic() + DEADLINE
        while status(port, "/health/ready") != 200:
            assert time.monotonic() < until
        yield process, port
    finally:
        process.kill()
        process.communicate()


def status(port: int, path: str, body: bytes | None = None) -> int:
    """Status code; 0 for a refused connection."""
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return 0
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_shutdown_loses_no_request(tmp_path: Path) -> None:
    image = red(7)
    with running(tmp_path / "store") as (process, port):
        found: Counter[int | str] = Counter()
        lock = threading.Lock()
        begun = threading.Barrier(9)

        def ask() -> None:
            begun.wait()
            answered: int | str = 1
            while answered:
                try:
                    answered = status(port, "/v1/classify", image)
                except (OSError, HTTPException) as exc:
                    answered = type(exc).__name__
                with lock:
                    found[answered] += 1

        clients = [threading.Thread(target=ask) for _ in range(8)]
        for client in clients:
            client.start()
        begun.wait()
        while found[200] < 20:
            assert process.poll() is None
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ready = []
        while (answered := status(port, "/health/ready")) != 0:
            ready.append(answered)
        closed = time.monotonic() - told
        for client in clients:
            client.join(DEADLINE)
        assert process.wait(DEADLINE) == 0
        assert 503 in ready
        assert 200 not in ready[ready.index(503) :]
        assert closed >= NOT_READY_NOTICE_S
        assert found.keys() == {200, 0}
        assert found[0] == 8


HALF = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"


def test_shutdown_closes_open_connections(tmp_path: Path) -> None:
    """Used, silent and half-sent ones."""
    with (
        running(tmp_path / "store") as (process, port),
        socket.create_connection(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)) as half,
    ):
        half.sendall(HALF)
        connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        for end in (False, True):
            if end:
                process.send_signal(signal.SIGTERM)
                while status(port, "/health/ready") == 200:
                    pass
            connection.request("POST", "/v1/classify", red(7), {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, answer.getheader("Connection") == "close") == (200, end)
        assert process.wait(DEADLINE) == 0


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with (
        running(tmp_path / "store", "20", "4096", str(10 * DEADLINE)) as (process, port),
        socket.create_connection(("127.0.0.1", port)) as half,
    ):
        half.sendall(HALF)
        process.send_signal(signal.SIGINT)
        while status(port, "/health/ready") == 200:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0


def test_endless_work_is_abandoned(tmp_path: Path) -> None:
    with running(tmp_path / "store") as (process, port), socket.create_connection(("127.0.0.1", port)) as stuck:
        (tmp_path / "store.stuck").touch()
        image = red(7)
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(image)}"
        )
        stuck.sendall(f"{head}\r\n\r\n".encode() + image)
        assert eventually(lambda: metric(port, "zsvec_queue_size") == "1.0")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        answer = HTTPResponse(stuck)
        answer.begin()
        assert (answer.status, answer.getheader("Content-Type")) == (503, "application/problem+json")


def is_closed(connection: socket.socket) -> bool:
    """Whether the service closes a connection without a response."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_connections_without_a_complete_head_are_closed(tmp_path: Path) -> None:
    image = red(7)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(image)}"
    with running(tmp_path / "store", "0.5") as (_, port):
        address = ("127.0.0.1", port)
        kept = HTTPConnection(*address, timeout=DEADLINE)
        kept.request("GET", "/health/live")
        kept.getresponse().read()
        with (
            socket.create_connection(address, DEADLINE) as silent,
            socket.create_connection(address, DEADLINE) as half,
            socket.create_connection(address, DEADLINE) as slow,
        ):
            half.sendall(head.encode())
            slow.sendall(f"{head}\r\n\r\n".encode() + image[:10])
            assert is_closed(silent)
            assert is_closed(half)
            slow.sendall(image[10:])  # a body may take longer than a head
            answer = HTTPResponse(slow)
            answer.begin()
            assert answer.status == 200
        kept.request("GET", "/health/live")  # so may an idle connection
        assert kept.getresponse().status == 200
        kept.close()


def test_connections_are_bounded(tmp_path: Path) -> None:
    with running(tmp_path / "store", "1", "4") as (_, port):
        silent = [socket.create_connection(("127.0.0.1", port), DEADLINE) for _ in range(12)]
        assert all(map(is_closed, silent))
        assert status(port, "/health/live") == 200
        for connection in silent:
            connection.close()


def metric(port: int, name: str) -> str:
    """Value of a metric without labels."""
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(line.split()[1] for line in lines if line.startswith(f"{name} "))


def test_connections_inherit_the_options_of_the_listener() -> None:
    with listening("localhost", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 2 * PART_BYTES


def test_invalid_addresses_are_refused() -> None:
    for host in ("no.such.host.invalid", "203.0.113.1", "\0", "a" * 300):
        with pytest.raises(InvalidInputError, match="cannot listen"):
            listening(host, 0)
    with listening("127.0.0.1", 0) as listener, pytest.raises(InvalidInputError, match="Choose another"):
        listening("127.0.0.1", listener.getsockname()[1])


def test_a_log_line_is_one_json_object() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 1, "two\nlines %s", ("\u2028\x1b[31m",), None)
    record.request = {"id": "x", "code": 200}
    line = JsonLines().format(record)
    assert line.isascii()
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["id"], found["code"]) == ("two\nlines \u2028\x1b[31m", "x", 200)
