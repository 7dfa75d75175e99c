"""Collections with several replicas: consistency of reads, failure detection, and repair.

The consensus of a cluster regards a replica as active until a write to that replica fails. The server needs nine
seconds per shard and collection to notice such a failure, and a node runs only one write per core at a time. So when a
request is slow or a node does not answer, failure detection sends an empty write to all shards of all collections at
once. The client soon stops waiting, but the server continues until the consensus knows which node is away. Other writes
are held back meanwhile, since each of them would wait for the same node.

If the node that leads a conditional write dies between two sends, the write reaches a single replica. Until `heal`
repairs the record, reads of several replicas omit the record.
"""

from __future__ import annotations

import math
import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client import grpc as protocol
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_client.http.exceptions import ResponseHandlingException

from zsvec.errors import StoreError
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.conversion import Consistency, by_grpc
from zsvec.store.backends.server.endpoint import Node
from zsvec.store.backends.server.failures import FAILURES, is_busy, is_missing, is_refusal, is_transient

LONGEST = 15.0
"""Maximum duration of failure detection in seconds. A failure that is not noticed by then stays unnoticed."""

_MAJORITY = models.ReadConsistencyType.MAJORITY
_SLOW = 0.15  # seconds after which a request counts as slow
_AWAY = 10.0  # seconds for which a node that did not answer counts as away, whatever the consensus says
_CONSENSUS = 1.0  # seconds for which known replica states are valid
_ANSWERED = 0.4  # first time-out of an empty write in seconds; a healthy cluster answers by then …
_PATIENCE = 1.0  # … and longest time-out; until then, the write occupies a core of the node
_LOOK = 0.1  # seconds between reads of the replica states

_T = TypeVar("_T")


# Replicas


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas of each shard of a collection.

    Attributes:
        shards: One mapping per shard, from the id of a peer to whether the replica on that peer is active.
    """

    shards: Sequence[Mapping[int, bool]]

    @classmethod
    def of(cls, info: models.CollectionClusterInfo) -> Replicas:
        """Returns the replicas that a node reports."""
        shards: dict[int, dict[int, bool]] = defaultdict(dict)
        for local in info.local_shards:
            shards[local.shard_id][info.peer_id] = local.state == models.ReplicaState.ACTIVE
        for remote in info.remote_shards:
            shards[remote.shard_id][remote.peer_id] = remote.state == models.ReplicaState.ACTIVE
        return cls([shards[number] for number in sorted(shards)])

    @property
    def copied(self) -> bool:
        """Whether any shard has several replicas."""
        return any(len(peers) > 1 for peers in self.shards)

    @property
    def settled(self) -> bool:
        """Whether each peer is active either in all of the peer's shards or in none."""
        away = {peer for peers in self.shards for peer, active in peers.items() if not active}
        return not any(active for peers in self.shards for peer, active in peers.items() if peer in away)

    @property
    def paired(self) -> bool:
        """Whether any shard has exactly two replicas. A quorum of two needs both."""
        return any(len(peers) == 2 for peers in self.shards)

    @property
    def whole(self) -> bool:
        """Whether all replicas are known to be active."""
        return bool(self.shards) and all(all(peers.values()) for peers in self.shards)

    @property
    def consistency(self) -> Consistency:
        """Consistency of reads.

        - One, if one of two replicas is known to be inactive, since the active replica has acknowledged all writes.
        - Majority, if a shard has three or more replicas and all replicas are active. Then all replicas answer, and the
          majority decides.
        - Quorum otherwise. A quorum omits records on which the replicas differ.
        """
        if any(len(peers) == 2 and sum(peers.values()) == 1 for peers in self.shards):
            return 1
        if any(len(peers) > 2 for peers in self.shards) and all(all(peers.values()) for peers in self.shards):
            return _MAJORITY
        return models.ReadConsistencyType.QUORUM

    @property
    def ordering(self) -> models.WriteOrdering:
        """Ordering of conditional writes.

        With strong ordering, the peer with the highest id leads the writes of a shard. So the ordering is strong if the
        leading peer of each shard is active, and medium otherwise.
        """
        led = all(peers[max(peers)] for peers in self.shards if peers)
        return models.WriteOrdering.STRONG if led else models.WriteOrdering.MEDIUM


UNKNOWN = Replicas(())
"""Unknown replicas, as before the first answer of a node, or if the key lacks the right to ask."""


class Reads(Protocol):
    """Makes the reads of collections."""

    def read(
        self,
        collection: str,
        request: Callable[[QdrantClient, int | None, Consistency], _T],
        *,
        missing: Any,
    ) -> _T:
        """Returns the answer to a read. See `Connection.call`."""

    def known(self, collection: str) -> Replicas:
        """Returns the last known replicas of a collection."""


class AnyReplica:
    """Makes reads that any replica may answer, for collections of others: an empty write must never reach them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(
        self,
        collection: str,
        request: Callable[[QdrantClient, int | None, Consistency], _T],
        *,
        missing: Any,
    ) -> _T:
        """See `Reads`."""
        return self._connection.call(lambda client, patience: request(client, patience, 1), missing=missing)

    def known(self, collection: str) -> Replicas:
        """Returns `UNKNOWN`."""
        return UNKNOWN


class Copies:
    """Tracks the replicas of all collections, and makes requests that depend on the replicas."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.when_away = self._find_out_who_is_away
        self._without_majority = 0.0  # monotonic time until which reads need no majority
        self._replicas: dict[str, tuple[float, Replicas]] = {}  # each with the end of validity
        self._store: set[str] = set()  # collections of the store that are known so far
        self._lock = threading.Lock()
        self._notices: dict[str, Notice] = {}  # running failure detections, by collection
        self._calm = 0.0  # monotonic time until which slow requests start no failure detection

    def meet(self, collection: str) -> None:
        """Registers a collection for failure detection, before the first request to that collection."""
        self._store.add(collection)
        if self._notices:
            threading.Thread(target=self._meet_siblings, daemon=True).start()

    def write(self, collection: str, request: Callable[[QdrantClient, int | None, Replicas], _T]) -> _T:
        """Returns the answer to a request that all replicas execute. See `Connection.call`."""

        def prepare(until: float) -> None:
            self._once_noticed(collection, until)
            self.look(collection, until)

        def ask(client: QdrantClient, patience: int | None) -> _T:
            copies = self.known(collection)
            with self._watched(copies.copied):
                return request(client, patience, copies)

        return self._connection.call(ask, before=prepare)

    def read(
        self,
        collection: str,
        request: Callable[[QdrantClient, int | None, Consistency], _T],
        *,
        missing: Any,
    ) -> _T:
        """Returns the answer to a read, with a consistency that fits the replicas. See `Connection.call`."""

        def prepare(until: float) -> None:
            self.look(collection, until)
            if self.known(collection).paired:  # a read needs both replicas, until one is known to be inactive
                self._once_noticed(collection, until)
                self.look(collection, until)

        def ask(client: QdrantClient, patience: int | None) -> _T:
            copies = self.known(collection)
            consistency = copies.consistency
            if consistency == _MAJORITY and time.monotonic() < self._without_majority:
                consistency = models.ReadConsistencyType.QUORUM
            try:
                with self._watched(copies.paired):
                    return request(client, patience, consistency)
            except FAILURES:
                if consistency == _MAJORITY:
                    self._without_majority = time.monotonic() + _AWAY
                raise

        return self._connection.call(ask, missing=missing, before=prepare)

    def look(self, collection: str, until: float) -> None:
        """Asks the present node for the replicas of a collection, unless the last answer is still valid.

        Args:
            collection: Name of the collection.
            until: Deadline on the clock of `time.monotonic`, in seconds.
        """
        if time.monotonic() >= self._replicas.get(collection, (0.0, UNKNOWN))[0]:
            self._look(self._connection.node, collection, until)

    def known(self, collection: str) -> Replicas:
        """Returns the last known replicas of a collection."""
        return self._replicas.get(collection, (0.0, UNKNOWN))[1]

    def _look(self, node: Node, collection: str, until: float = math.inf) -> None:
        try:
            found = node.ask(
                lambda client, _: client.collection_cluster_info(collection), left=until - time.monotonic()
            )
        except FAILURES as exc:
            if is_missing(exc):  # the collection may be created at any moment
                return
            if not is_refusal(exc):
                raise
            self._believe(collection, UNKNOWN)
        else:
            self._believe(collection, Replicas.of(found))

    def _believe(self, collection: str, copies: Replicas) -> None:
        seconds = _CONSENSUS if copies.copied else 60 * _CONSENSUS
        self._replicas[collection] = time.monotonic() + seconds, copies

    # Failure detection

    @contextmanager
    def _watched(self, watched: bool) -> Iterator[None]:
        """Starts failure detection if `watched` is true and the request in the block takes longer than `_SLOW`."""
        if not watched:
            yield
            return
        watch = threading.Timer(_SLOW, self._suspect)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _suspect(self) -> None:
        now = time.monotonic()
        if now < self._calm:  # requests may repeatedly be slow for other reasons
            return
        peers = {peer for _, copies in list(self._replicas.values()) for shard in copies.shards for peer in shard}
        well = self._connection.all_well(len(peers))
        self._calm = now + (_CONSENSUS if well else _AWAY)
        if not well:
            self._find_out_who_is_away()

    def _find_out_who_is_away(self) -> None:
        if self._begin_notices(list(self._replicas)):
            threading.Thread(target=self._meet_siblings, daemon=True).start()

    def _meet_siblings(self) -> None:
        """Starts failure detection for collections of the store that had no request so far."""
        new = self._store - self._replicas.keys()
        try:
            for name in new:
                self._look(self._connection.another(), name)
            self._begin_notices(new)
        except (*FAILURES, StoreError):  # the first request to the collection reports the failure
            pass

    def _begin_notices(self, collections: Iterable[str]) -> bool:
        """Starts failure detection for each given collection with replicas, and returns whether any was started."""
        with self._lock:
            copied = [name for name in collections if self.known(name).copied and name not in self._notices]
            random.shuffle(copied)  # other processes send the same writes, and a node runs few at a time
            for name in copied:
                self._notices[name] = Notice(self._connection, name, self.known(name), self._end_notice)
        return bool(copied)

    def _end_notice(self, collection: str, refused: bool) -> None:
        with self._lock:
            del self._notices[collection]
        copies = self.known(collection)
        if refused and copies.paired:  # without the right to write, read one replica
            self._believe(collection, Replicas([{0: True, 1: False}]))
        else:
            self._replicas[collection] = 0.0, copies  # expired, so that the next request asks again

    def _once_noticed(self, collection: str, until: float) -> None:
        """Waits for running failure detection. Raises ResponseHandlingException if the detection takes too long."""
        notice = self._notices.get(collection)
        if notice is not None and not notice.wait(min(LONGEST, until - time.monotonic())):
            raise ResponseHandlingException(TimeoutError("a node of the cluster stands still"))


class Notice:
    """Failure detection for one collection, in two threads. Empty writes make the cluster notice inactive replicas.

    Args:
        connection: Connection to the cluster.
        collection: Name of the collection.
        before: Last known replicas.
        end: Called once at the end with the name of the collection, and with whether the key lacks the right to write.
    """

    def __init__(
        self, connection: Connection, collection: str, before: Replicas, end: Callable[[str, bool], None]
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._before = before
        self._end_with = end
        self._lock = threading.Lock()
        self._over = threading.Event()
        for work in (self._write, self._look):
            threading.Thread(target=work, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the detection, and returns whether the detection ended in time."""
        return self._over.wait(seconds)

    def _write(self) -> None:
        """Repeats an empty write until all replicas execute it, or `_look` has seen the failure."""
        patience = _ANSWERED
        refused = False
        try:
            # Another node than the present one gets the write, since unfinished writes wait on the present node.
            while not self._over.is_set():
                begun = time.monotonic()
                if _write_nothing(self._connection.another(), self._collection, patience):
                    break
                self._over.wait(begun + patience - time.monotonic())  # the write may have failed before its time-out
                patience = min(2 * patience, _PATIENCE)
        except FAILURES as exc:
            refused = is_refusal(exc)
        except StoreError:  # the connection was closed
            pass
        self._end(refused)

    def _look(self) -> None:
        """Polls the present node until that node knows of the failure. Other nodes may learn of the failure later."""
        until = time.monotonic() + LONGEST
        while not self._over.wait(_LOOK) and time.monotonic() < until:
            try:
                node = self._connection.node
                found = node.ask(lambda client, _: client.collection_cluster_info(self._collection), left=LONGEST)
            except FAILURES:  # the present node may be away
                self._connection.turn()
            except StoreError:  # the connection was closed
                break
            else:
                copies = Replicas.of(found)
                if copies != self._before and copies.settled:
                    break
        self._end(False)

    def _end(self, refused: bool) -> None:
        with self._lock:
            if not self._over.is_set():
                self._end_with(self._collection, refused)
                self._over.set()


def _write_nothing(node: Node, collection: str, seconds: float) -> bool:
    """Sends an empty write, and returns whether all replicas answered in time. A rate limit counts as an answer."""
    none = models.HasIdCondition(has_id=[str(uuid.uuid4())])
    nothing = models.FilterSelector(filter=models.Filter(must=[none]))

    def write(client: QdrantClient, _: int | None) -> None:
        if by_grpc(client):  # the method of the client rounds to whole seconds, and adds another time-out
            points = RestToGrpc.convert_points_selector(nothing)
            request = protocol.DeletePoints(collection_name=collection, wait=True, points=points)
            client.grpc_points.Delete(request, timeout=seconds)
        else:
            client.delete(collection, nothing, wait=True)

    try:
        node.ask(write, left=seconds, seconds=seconds)
    except FAILURES as exc:
        if not is_transient(exc):
            raise
        return is_busy(exc)
    return True


# Repair

Records: TypeAlias = dict[str, Mapping[str, Any]]  # payloads by id
Read: TypeAlias = Callable[[Node, Consistency], Records]


def differing(nodes: Sequence[Node], read: Read, *, whole: bool = True) -> Records:
    """Returns the newest known version of each record on which the replicas differ.

    Args:
        nodes: The nodes that hold the replicas.
        read: Reads the records from a node with a consistency.
        whole: Whether all replicas are active. If not, the server refuses to read all, and a quorum is compared.
    """
    every = models.ReadConsistencyType.ALL if whole else models.ReadConsistencyType.QUORUM
    agreed = read(nodes[0], every)
    found = [read(nodes[0], models.ReadConsistencyType.QUORUM)]
    found += [read(node, 1) for node in nodes]  # the replica of this node, if the node has one
    newest: Records = {}
    for records in found:
        for place, record in records.items():
            if "version" in record and record["version"] > newest.get(place, {"version": 0})["version"]:
                newest[place] = record
    return {place: record for place, record in newest.items() if agreed.get(place) != record}


def heal(connection: Connection, catalog: str, records: Records) -> None:
    """Writes each record with the given version plus 1, unless the stored version is higher than the given version."""
    for place, record in records.items():
        connection.call(partial(_write, catalog, place, record))


def _write(catalog: str, place: str, record: Mapping[str, Any], client: QdrantClient, patience: int | None) -> None:
    point = models.PointStruct(id=place, vector=[1.0], payload={**record, "version": record["version"] + 1})
    seen = models.FieldCondition(key="version", range=models.Range(lte=record["version"]))
    client.upsert(
        catalog,
        [point],
        update_filter=models.Filter(must=[seen]),
        wait=True,
        ordering=models.WriteOrdering.MEDIUM,
        timeout=patience,
    )
