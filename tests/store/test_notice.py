"""Notices on clusters that answer in odd ways."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from qdrant_client.grpc.points_service_pb2_grpc import PointsStub
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.qdrant import wait_until
from zsvec.store.backends.server import replication as module
from zsvec.store.backends.server.backend import ServerBackend
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.replication import Notice, Replicas

BEFORE = Replicas([{1: True, 2: True}])
AWAY = Replicas([{1: True, 2: False}])


class Cluster:
    """A connection to nodes that answer a write of nothing, and where copies are, as told."""

    def __init__(self, write: Any) -> None:
        self.copies = BEFORE
        self.written = 0
        self._write = write
        self.grpc_points: Any = None
        self.seconds: list[float] = []  # time-outs of the writes
        self.node = SimpleNamespace(client=self, ask=self.ask)
        self.init_options = {"prefer_grpc": False}

    def ask(self, request: Any, *, left: float, seconds: float = math.inf) -> Any:
        if seconds < math.inf:
            self.seconds.append(seconds)
        return request(self, None)

    def another(self) -> Any:
        return self.node

    def turn(self) -> None:
        pass

    def delete(self, *arguments: Any, **options: Any) -> None:
        self.written += 1
        self._write()

    def collection_cluster_info(self, collection: str) -> Any:
        return self.copies


@pytest.fixture(autouse=True)
def copies_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replicas, "of", staticmethod(lambda info: info))
    monkeypatch.setattr(module, "LONGEST", 600.0)  # seconds: longer than a test waits


def notice(cluster: Cluster) -> tuple[Notice, list[bool]]:
    ends: list[bool] = []
    return Notice(cluster, "a", BEFORE, lambda _, refused: ends.append(refused)), ends  # type: ignore[arg-type]


def refused() -> None:
    raise UnexpectedResponse(403, "Forbidden", b"", httpx.Headers())


def busy() -> None:
    raise UnexpectedResponse(429, "Too Many Requests", b"", httpx.Headers())


def nobody() -> None:
    raise ResponseHandlingException(httpx.ConnectError("refused"))


@pytest.mark.parametrize(("write", "expected"), [(lambda: None, False), (busy, False), (refused, True)])
def test_it_ends_when_the_write_is_answered(write: Any, *, expected: bool) -> None:
    one, ends = notice(Cluster(write))
    assert one.wait(60)
    assert ends == [expected]


def test_a_notice_ends_when_the_asked_node_knows_of_the_failure() -> None:
    stuck = threading.Event()
    cluster = Cluster(lambda: stuck.wait())
    one, ends = notice(cluster)
    assert not one.wait(0.3)
    cluster.copies = AWAY
    assert one.wait(60)
    assert ends == [False]
    stuck.set()


def test_it_ends_when_the_connection_is_closed_during_the_write() -> None:
    """gRPC raises a ValueError then; the thread raised the error after the store was closed."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    cluster = Cluster(lambda: None)
    cluster.init_options["prefer_grpc"] = True
    cluster.grpc_points = PointsStub(channel)  # type: ignore[no-untyped-call]
    channel.close()
    one, ends = notice(cluster)
    assert one.wait(60)
    assert ends == [False]


def test_without_answers_a_notice_tries_again_slowly() -> None:
    cluster = Cluster(nobody)
    one, _ = notice(cluster)
    begun = time.monotonic()
    wait_until(lambda: cluster.written > 2)
    assert cluster.written <= 2 + (time.monotonic() - begun) / 0.4
    assert cluster.seconds[1] == 2 * cluster.seconds[0]
    cluster.copies = AWAY
    assert one.wait(60)


@pytest.mark.parametrize(
    ("shards", "settled"),
    [
        ([{1: True, 2: True}], True),
        ([{1: True, 2: False}, {1: True, 2: False}], True),
        ([{1: True, 2: False}, {1: True, 2: True}], False),
        ([{1: True, 2: False}, {1: True, 3: True}], True),
    ],
)
def test_it_is_settled_when_a_peer_is_away_from_all_shards_or_none(
    shards: list[dict[int, bool]], *, settled: bool
) -> None:
    assert Replicas(shards).settled == settled


@pytest.mark.parametrize(
    ("shards", "whole"),
    [
        ([{1: True}], True),
        ([{1: True, 2: True}, {1: True, 3: True}], True),
        ([{1: True, 2: True}, {1: True, 2: False}], False),
        ([], False),
    ],
)
def test_a_collection_is_whole_when_all_replicas_are_known_to_be_active(
    shards: list[dict[int, bool]], *, whole: bool
) -> None:
    assert Replicas(shards).whole == whole


def test_a_slow_node_alone_can_be_asked_for_differing_records() -> None:
    asked: list[Any] = []

    def retrieve(*_: Any, consistency: Any, **__: Any) -> list[Any]:
        asked.append(consistency)
        return []

    client: Any = SimpleNamespace(collection_cluster_info=lambda _: BEFORE, retrieve=retrieve)
    node: Any = SimpleNamespace(client=client, is_well=lambda: False, ask=lambda request, **_: request(client, None))
    assert ServerBackend(Connection("http://slow", 5.0, [node])).heal("catalog", ["one"]) == 0
    assert len(asked) == 3
