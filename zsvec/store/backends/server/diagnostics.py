"""Diagnostics of a deployment: nodes, versions, rights of the key, limits, and agreement of replicas."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qdrant_client import QdrantClient, models

from zsvec.errors import StoreError, StoreUnavailableError
from zsvec.inputs.answers import in_time
from zsvec.store.backends.server.connection import Connection, check_version
from zsvec.store.backends.server.conversion import Consistency
from zsvec.store.backends.server.endpoint import Node
from zsvec.store.backends.server.failures import FAILURES, is_refusal
from zsvec.store.backends.server.limits import Limits
from zsvec.store.backends.server.replication import Records, Replicas, differing, heal
from zsvec.types import Finding, counted

_ROUND_TRIPS = 5
_TELEMETRY_TIMEOUT_S = 2.0
_REFUSED = "give a key with more rights, by ZSVEC_API_KEY"


def check_up(connection: Connection, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
    """See `zsvec.store.backends.base.Backend.check_up`."""
    nodes = []
    for node in connection.nodes:
        found = _node(connection, node)
        nodes += [node] if found.ok else []
        yield found
    if not _exists(connection, catalog):
        return
    there = [name for name in references if _exists(connection, name)]
    if lost := [name for name in references if name not in there]:
        advice = "restore them from a backup, or import the categories again"
        yield Finding("collections", False, f"there is no {', '.join(lost)}", advice)
    yield _rights(connection, catalog)
    yield _limits(connection, [catalog, *there])
    copies = {
        name: Replicas.of(connection.call(lambda client, _: client.collection_cluster_info(name)))  # noqa: B023
        for name in [catalog, *there]
    }
    yield _copies(_nodes(connection), list(copies.values()))
    yield from _peers(connection)
    if not copies[catalog].copied:
        yield Finding("catalog", True, "one copy, which agrees with itself")
        return
    try:
        yield _agreement(connection, nodes or [connection.node], catalog, repair=repair)
    except FAILURES as exc:  # raised by nodes that are asked without the connection
        said = str(connection.error(exc, connection.deadline))
        yield Finding("catalog", False, said, "look again when all nodes are well")


def _exists(connection: Connection, collection: str) -> bool:
    return connection.call(lambda client, _: client.collection_exists(collection))


def _node(connection: Connection, node: Node) -> Finding:
    what = f"node {node.url}"
    try:
        version, rest, by_grpc = in_time(partial(_round_trips, node), connection.deadline)
    except StoreError as exc:  # the server is too old, or is not a Qdrant
        return Finding(what, False, str(exc), "upgrade it, or leave its URL out")
    except FAILURES as exc:
        return Finding(what, False, str(connection.error(exc, connection.deadline)), "start it, or leave its URL out")
    if node.speaks_grpc:
        return Finding(what, True, f"Qdrant {version}; REST {rest:.1f} ms, gRPC {by_grpc:.1f} ms")
    advice = "publish the port of gRPC next to that of REST: reading vectors takes less than half of the time then"
    return Finding(what, True, f"Qdrant {version}; REST {rest:.1f} ms, no gRPC on the next port", advice)


def _round_trips(node: Node) -> tuple[str, float, float]:
    version = node.client.info().version
    return version, _milliseconds(node.client.http.service_api.root), _milliseconds(node.client.info)


def _milliseconds(request: Callable[[], object]) -> float:
    spent = []
    for _ in range(_ROUND_TRIPS):
        start = time.perf_counter()
        request()
        spent.append(time.perf_counter() - start)
    return 1000 * statistics.median(spent)


def _rights(connection: Connection, catalog: str) -> Finding:
    # Each right is tested by a request that changes nothing.
    nothing = models.PointIdsList(points=[str(uuid.uuid4())])
    vectors = models.VectorParams(size=1, distance=models.Distance.COSINE)
    may = {
        "read": _may(connection, lambda client: client.scroll(catalog, limit=1, with_payload=False)),
        "write": _may(connection, lambda client: client.delete(catalog, nothing)),
        # The collection exists, so the request always fails. The failure is a refusal if the key lacks the right.
        "make collections": _may(connection, lambda client: client.create_collection(catalog, vectors)),
    }
    said = ", ".join(right if allowed else f"not {right}" for right, allowed in may.items())
    if not may["read"]:
        return Finding("rights", False, said, _REFUSED)
    if not may["write"]:
        return Finding("rights", True, said, f"this key classifies; to add and remove, {_REFUSED}")
    return Finding("rights", True, said)


def _may(connection: Connection, request: Callable[[QdrantClient], object]) -> bool:
    try:
        connection.node.ask(lambda client, _: request(client), left=connection.deadline)
    except FAILURES as exc:
        return not is_refusal(exc)
    return True


def _limits(connection: Connection, collections: Sequence[str]) -> Finding:
    limits = [
        Limits.of(connection.call(lambda client, _: client.get_collection(name)).config.strict_mode_config)  # noqa: B023
        for name in collections
    ]
    if all(one == Limits() for one in limits):
        return Finding("limits", True, "none that matters")
    names = ("page", "points", "queries", "values", "conditions")
    found = {name: [size for one in limits if (size := getattr(one, name)) is not None] for name in names}
    sizes = ", ".join(f"{name} {min(sizes)}" for name, sizes in found.items() if sizes)
    exact = all(one.exact for one in limits[1:])
    advice = "" if exact else "allow it (search_allow_exact), or compare in this process with index=memory"
    return Finding("limits", True, f"strict mode: {sizes}{'' if exact else ', no exact search'}", advice)


def _copies(nodes: int | None, collections: Sequence[Replicas]) -> Finding:
    if nodes == 1:
        return Finding("copies", True, "a server alone, one copy", "a cluster with two or three copies survives a node")
    shards = [shard for copies in collections for shard in copies.shards]
    away = sorted({peer for shard in shards for peer, active in shard.items() if not active})
    fewest = min(map(len, shards))
    said = f"{nodes or 'an unknown number of'} nodes, {counted(fewest, 'copy', 'copies')} of each shard"
    if away:
        return Finding("copies", False, f"{said}; not active on peer {', '.join(map(str, away))}", "start that node")
    advice = "" if fewest > 1 else "one node less stops the store: give its collections replication_factor 2 or 3"
    return Finding("copies", fewest > 1 or nodes is None, said, advice)


def _nodes(connection: Connection) -> int | None:
    """Returns the number of nodes, or ``None`` if the key lacks the right to ask."""

    def ask(client: QdrantClient, _: int | None) -> int | None:
        try:
            cluster = in_time(client.cluster_status, connection.deadline)  # only REST offers this
        except FAILURES as exc:
            if is_refusal(exc):
                return None
            raise
        return len(cluster.peers) if isinstance(cluster, models.ClusterStatusOneOf1) else 1

    return connection.call(ask)


def _peers(connection: Connection) -> Iterator[Finding]:
    """Yields a finding about the versions of all peers, including peers without a configured URL."""
    try:
        found = _peer_versions(connection)
        for uri, version in found.items():
            check_version(uri, version)
    except StoreError as exc:
        yield Finding("peers", False, str(exc), "upgrade all nodes, and start those that are away")
        return
    if found:
        yield Finding("peers", True, ", ".join(f"{uri} Qdrant {version}" for uri, version in sorted(found.items())))


def check_peers(connection: Connection) -> None:
    """Checks the versions of all peers of a cluster with `check_version`.

    Raises:
        StoreUnavailableError: A peer is too old.
    """
    try:
        found = _peer_versions(connection)
    except StoreUnavailableError:  # an unavailable peer takes no writes
        return
    for uri, version in found.items():
        check_version(uri, version)


def _peer_versions(connection: Connection) -> Mapping[str, str]:
    """Returns the version of each peer that answers, by address.

    The result is empty for a single server, or if the key lacks the right to ask.

    Raises:
        StoreUnavailableError: The node did not answer in time. The node may be waiting for an unavailable peer.
    """

    def ask(client: QdrantClient, _: int | None) -> Mapping[str, str]:
        try:
            return in_time(partial(_versions, client), _TELEMETRY_TIMEOUT_S)  # only REST offers this
        except FAILURES as exc:
            if is_refusal(exc):
                return {}
            raise

    with connection.within(_TELEMETRY_TIMEOUT_S):
        return connection.call(ask)


def _versions(client: QdrantClient) -> Mapping[str, str]:
    if not isinstance(client.cluster_status(), models.ClusterStatusOneOf1):
        return {}
    found = client.http.distributed_api.cluster_telemetry()
    peers = found.result.cluster.peers if found.result and found.result.cluster else {}
    return {peer.uri: peer.details.version for peer in peers.values() if peer.details}


# Replicas of the catalog


def _agreement(connection: Connection, nodes: Sequence[Node], catalog: str, *, repair: bool) -> Finding:
    strict = connection.call(lambda client, _: client.get_collection(catalog)).config.strict_mode_config
    page = Limits.of(strict).page
    read = partial(_records, catalog, page, connection.deadline)
    found = differing(nodes, read)
    if found:
        time.sleep(1.0)  # replicas differ for a moment during a write
        again = differing(nodes, read)
        found = {place: record for place, record in found.items() if again.get(place) == record}
    if not found:
        return Finding("catalog", True, "its copies agree")
    names = ", ".join(sorted(str(record.get("category", record["kind"])) for record in found.values()))
    if not repair:
        return Finding("catalog", False, f"its copies differ in {names}", "run `zsvec doctor --repair`")
    heal(connection, catalog, found)
    left = differing(nodes, read)
    return Finding("catalog", not left, f"its copies differed in {names}" + ("" if left else ", and agree again"))


def _records(catalog: str, size: int, seconds: float, node: Node, consistency: Consistency) -> Records:
    found: Records = {}
    offset: Any = None
    while True:
        read = partial(node.client.scroll, catalog, limit=size, offset=offset, consistency=consistency)
        page, following = in_time(read, seconds)
        fresh = [record for record in page if str(record.id) not in found]
        found |= {str(record.id): record.payload or {} for record in fresh}
        if not fresh and following is None:
            return found
        offset = following or page[-1].id
