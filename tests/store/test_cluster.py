"""A store in a cluster of three: nodes that are killed, paused and lost, copies that differ."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as protocol
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.qdrant import Node, wait_until
from tests.search.support import assert_answers, searcher
from tests.store.material import FINGERPRINTS, add, references, write_of
from zsvec.errors import StoreUnavailableError
from zsvec.store import Placement, Store, open_store
from zsvec.store.backends.base import Put
from zsvec.store.backends.server.replication import Replicas
from zsvec.store.catalog.schema import expected
from zsvec.store.names import record_id

BUSY = 20  # allowed factor of the usual time, beside the seconds for a quiet machine
STATE = {name: references(images=[name]) for name in ("lynx", "red panda", "wolf")}


@pytest.fixture
def nodes(qdrant_cluster: list[Node]) -> Iterator[list[Node]]:
    """The cluster, restored and emptied after each test."""
    yield qdrant_cluster
    for node in qdrant_cluster:
        if node.process.poll() is not None:
            node.restart()
        node.resume()
        node.wait_until_ready()
    wait_until(lambda: is_cleared(qdrant_cluster[0]), lambda: "\n".join(node.log() for node in qdrant_cluster))


def is_cleared(node: Node) -> bool:
    """Deletes all collections; returns whether that is done, which takes time after a node stood still."""
    with closing(QdrantClient(node.url, check_compatibility=False, timeout=60)) as client:
        try:
            for collection in client.get_collections().collections:
                client.delete_collection(collection.name)
            return not client.get_collections().collections
        except (UnexpectedResponse, ResponseHandlingException):
            return False


def seconds(act: Callable[[], object]) -> float:
    """Returns how long an act takes."""
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


@pytest.fixture
def namespace() -> str:
    return f"zsvec-test-{uuid.uuid4().hex[:12]}"


def opened(nodes: list[Node], namespace: str, replicas: int | None = None) -> Store:
    urls = ",".join(node.url for node in nodes)
    return open_store(urls, namespace=namespace, timeout=120, placement=Placement(replicas=replicas))


def filled(nodes: list[Node], namespace: str, replicas: int | None = None) -> Store:
    store = opened(nodes, namespace, replicas)
    store.bind(FINGERPRINTS)
    store.write([write_of(name, [name]) for name in STATE])
    return store


def peer(node: Node) -> int:
    return int(node.get("/cluster")["peer_id"])


def test_placement_of_a_store_is_as_asked(nodes: list[Node], namespace: str) -> None:
    urls = nodes[0].url
    placement = Placement(replicas=2, shards=3, write_consistency=2)
    with open_store(urls, namespace=namespace, placement=placement) as store:
        store.bind(FINGERPRINTS)
        catalog, clip = (store.info()["collections"][store.collection(name)] for name in ("catalog", "clip"))
        with closing(QdrantClient(urls, check_compatibility=False)) as client:
            params = client.get_collection(store.collection("clip")).config.params
    assert clip == {"replicas": 2, "shards": 3, "write_consistency": 2}
    assert catalog == {"replicas": 2, "shards": 1, "write_consistency": 2}  # one order of commits
    assert params.read_fan_out_delay_ms  # a copy that stands still does not hold a read that has another one


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_store_goes_on_without_any_one_node(nodes: list[Node], namespace: str, replicas: int, which: int) -> None:
    with filled(nodes, namespace, replicas) as store:
        reader = searcher(store, "numpy")
        usual = seconds(lambda: assert_answers(reader, STATE))
        nodes[which].kill()
        begun = time.monotonic()
        add(store, "fox", ["fox"])
        store.remove("wolf")
        state = {"fox": references(images=["fox"]), **{name: STATE[name] for name in ("lynx", "red panda")}}
        for way in (reader, searcher(store, "numpy"), searcher(store, "qdrant")):
            assert_answers(way, state)
        assert time.monotonic() - begun < 30 + BUSY * usual
        nodes[which].restart()
        if replicas == 2:  # a node that comes back may give readers an old state for a moment
            wait_until(lambda: len({node.get("/cluster")["raft_info"]["commit"] for node in nodes}) == 1)
        for node in nodes:  # by whichever is asked
            with opened([node], namespace) as alone:
                assert_answers(searcher(alone, "numpy"), state)


def test_a_mark_of_later_means_nothing_when_all_replicas_are_active(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 3) as store:
        mark = {"id": "x", "at": "wolf", "since": 2**52, "needs": [], "gains": None, "loses": None}
        record = store._catalog.state(["lynx"]).manifests["lynx"]
        marked = {**record, "version": record["version"] + 1, "transfer": mark}
        store._catalog.put([Put(record_id("category", "lynx"), marked, expected(record))])
        catalog = store.collection("catalog")
        assert store._backend.is_whole(catalog)
        nodes[0].kill()
        add(store, "fox", ["fox"])  # by a write, the cluster notices
        wait_until(lambda: not store._backend.is_whole(catalog))
        with pytest.raises(StoreUnavailableError, match="'wolf'"):
            add(store, "lynx", ["another"])
        nodes[0].restart()
        wait_until(lambda: store._backend.is_whole(catalog))
        add(store, "lynx", ["another"])
        assert len(store.keys("lynx")) == 4


def test_writes_do_not_wait_for_a_leader_that_is_lost(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 3) as store:
        usual = seconds(lambda: add(store, "while all are there", ["1"]))
        max(nodes, key=peer).kill()
        add(store, "before it is known", ["1"])
        spent = sum(seconds(lambda: add(store, f"number {number}", ["1"])) for number in range(5))  # noqa: B023
        assert spent < 10 + BUSY * usual
        assert len(store.categories()) == len(STATE) + 7


def test_a_node_that_is_paused_is_left_for_another(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 3) as store:
        reader = searcher(store, "numpy")
        usual = max(seconds(lambda: assert_answers(reader, STATE)) for _ in range(2))
        nodes[0].pause()
        try:
            # The cluster itself takes 9.4 s to notice a node that stands still, with each request that goes there.
            assert seconds(lambda: assert_answers(reader, STATE)) < 30 + BUSY * usual
        finally:
            nodes[0].resume()


@pytest.mark.parametrize("replicas", [2, 3])
def test_one_commit_makes_the_cluster_leave_out_a_node_that_is_paused(
    nodes: list[Node], namespace: str, replicas: int
) -> None:
    with filled(nodes, namespace, replicas) as store:
        others = [store.collection(encoder) for encoder in FINGERPRINTS]
        catalog = next(name for name in collections(nodes[0]) if name not in others)
    paused = next(node for node in nodes[1:] if peer(node) in active(nodes[0], catalog))
    away = peer(paused)
    with opened(nodes, namespace) as store:
        store.bind(FINGERPRINTS)
        paused.pause()
        try:
            store.remove("wolf")  # a commit that asks for the catalog alone
            wait_until(lambda: all(away not in active(nodes[0], name) for name in [catalog, *others]))
        finally:
            paused.resume()


def collections(node: Node) -> list[str]:
    return [found["name"] for found in node.get("/collections")["collections"]]


def active(node: Node, collection: str) -> set[int]:
    """The peers that have an active copy of a shard of a collection, as a node says."""
    with closing(QdrantClient(node.url, check_compatibility=False)) as client:
        shards = Replicas.of(client.collection_cluster_info(collection)).shards
    return {peer for peers in shards for peer, is_active in peers.items() if is_active}


# Copies that differ


def test_copies_that_agree(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 3) as store:
        found = {finding.what: finding for finding in store.check_up()}
    assert found["catalog"].detail == "its copies agree"
    assert found["copies"].detail == "3 nodes, 3 copies of each shard"
    assert [what for what in found if what.startswith("node")] == [f"node {node.url}" for node in nodes]


def test_copies_are_compared_within_strict_limits(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 3) as store:
        mode = models.StrictModeConfig(enabled=True, max_query_limit=1)
        with closing(QdrantClient(nodes[0].url, check_compatibility=False, timeout=60)) as client:
            client.update_collection(store.collection("catalog"), strict_mode_config=mode)
        found = {finding.what: finding for finding in store.check_up()}
    assert found["catalog"].detail == "its copies agree"


def test_one_copy_is_said(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 1) as store:
        found = {finding.what: finding for finding in store.check_up()}
    assert not found["copies"].ok
    assert "replication_factor" in found["copies"].advice


def copies_of(nodes: list[Node], collection: str) -> list[Node]:
    """The nodes that have a copy of a collection of one shard."""
    found = nodes[0].get(f"/collections/{collection}/cluster")
    peers = {shard["peer_id"] for shard in found["remote_shards"]}
    peers |= {found["peer_id"]} if found["local_shards"] else set()
    return [node for node in nodes if peer(node) in peers]


def written_to_one_copy(nodes: list[Node], catalog: str, name: str) -> None:
    """The next version of a category in one copy: as after a leader that dies before asking the others."""
    place = record_id("category", name)
    chosen = copies_of(nodes, catalog)[0]
    with closing(QdrantClient(chosen.url, check_compatibility=False, timeout=30)) as client:
        (manifest,) = client.retrieve(catalog, [place])
    payload = {**(manifest.payload or {}), "version": 2, "metadata": {"seen": "by one"}}
    point = RestToGrpc.convert_point_struct(models.PointStruct(id=place, vector=[1.0], payload=payload))
    upsert = protocol.UpsertPoints(collection_name=catalog, wait=True, points=[point])
    # UpsertPointsInternal of points_internal_service.proto, which the client does not have: the upsert, and shard 0.
    message = BytesValue(value=upsert.SerializeToString()).SerializeToString() + b"\x10\x00"
    with grpc.insecure_channel(chosen.peer.removeprefix("http://")) as channel:
        channel.unary_unary("/qdrant.PointsInternal/Upsert")(message, timeout=30)


def test_copies_that_differ_are_named_and_healed(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 3) as store:
        written_to_one_copy(nodes, store.collection("catalog"), "lynx")
        found = {finding.what: finding for finding in store.check_up()}
        assert "lynx" in found["catalog"].detail
        assert "--repair" in found["catalog"].advice
        assert_answers(searcher(store, "numpy"), STATE)
        assert store.category("lynx").version == 1  # as in most copies
        assert {finding.what: finding.ok for finding in store.check_up(repair=True)}["catalog"]
        assert all(finding.ok for finding in store.check_up())
        assert (store.category("lynx").version, store.category("lynx").metadata) == (3, {"seen": "by one"})
        assert_answers(searcher(store, "numpy"), STATE)


def test_a_write_makes_two_differing_copies_agree(nodes: list[Node], namespace: str) -> None:
    with filled(nodes, namespace, 2) as store:
        written_to_one_copy(nodes, store.collection("catalog"), "lynx")
        assert "lynx" not in {category.name for category in store.categories()}
        add(store, "lynx", ["new"])
        assert store.stats()["healed_records"] == 1
        assert_answers(searcher(store, "numpy"), {**STATE, "lynx": references(images=["lynx", "new"])})
        assert store.category("lynx").metadata == {"seen": "by one"}
        assert all(finding.ok for finding in store.check_up())
