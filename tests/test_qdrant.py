"""Servers that tests start: paused, killed, restarted, and in a cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from tests.qdrant import Node, answers, running_server, wait_until
from tests.store.support import fast_folder

ROOT = Path(__file__).parents[1]
STARTS_A_SERVER = """
import sys
from pathlib import Path
from tests.qdrant import running_server
with running_server(Path(sys.argv[1])) as node:
    print(node.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    with running_server(folder) as started:
        yield started


def collections(node: Node) -> set[str]:
    return {collection["name"] for collection in node.get("/collections")["collections"]}


def create(node: Node, collection: str) -> None:
    vectors = models.VectorParams(size=1, distance=models.Distance.DOT)
    with closing(QdrantClient(node.url, check_compatibility=False, timeout=60)) as client:
        client.create_collection(collection, vectors_config=vectors)


@pytest.mark.usefixtures("node")  # skips where none can be started
def test_a_server_dies_with_the_process_that_started_it(folder: Path) -> None:
    command = [sys.executable, "-c", STARTS_A_SERVER, str(folder / "another")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert answers(url)
        process.kill()
    wait_until(lambda: not answers(url))


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    with pytest.raises(AssertionError, match="nowhere"), running_server(folder, QDRANT__SERVICE__HOST="nowhere"):
        pass


def test_a_server_can_be_paused_killed_and_started_again(node: Node) -> None:
    create(node, "kept")
    node.pause()
    wait_until(lambda: not answers(node.url))  # a process that is stopped may be in the middle of an answer
    node.resume()
    assert answers(node.url)
    node.kill()
    assert not answers(node.url)
    node.restart()
    assert collections(node) == {"kept"}


def test_a_cluster_goes_on_without_one_node_and_takes_it_back(qdrant_cluster: list[Node]) -> None:
    first, *others = qdrant_cluster
    peer = first.get("/cluster")["peer_id"]

    def leaders(nodes: list[Node]) -> set[int | None]:
        return {node.get("/cluster")["raft_info"]["leader"] for node in nodes}

    first.kill()
    wait_until(lambda: not leaders(others) & {peer, None})
    first.restart()
    wait_until(lambda: len(leaders(qdrant_cluster)) == 1)
    assert first.get("/cluster")["peer_id"] == peer
