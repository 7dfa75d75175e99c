"""How a cluster notices that a node stands still, so that it leaves the copies of that node out.

The consensus takes a copy for active until a write to it has failed, which takes the server nine seconds for each shard
of each collection, and a node takes as many writes at once as it has cores. So a write of nothing goes to all shards of
all collections at once, gives its place up soon, and the server goes on with it by itself.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from qdrant_client import grpc as protocol
from qdrant_client import models
from qdrant_client.conversions.conversion import RestToGrpc

from zsvec.errors import StoreError
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.failures import FAILURES, is_busy, is_refusal, is_transient
from zsvec.store.backends.server.node import Node
from zsvec.store.backends.server.replicas import Replicas

LONGEST = 15.0
"""Seconds after which a cluster has noticed that a node stands still, or will not."""

_ANSWERED = 0.4  # seconds within which a write is answered, at first, where no node stands still …
_PATIENCE = 1.0  # … and later; the node takes no other write in its place meanwhile
_LOOK = 0.1  # seconds between looks whether it has noticed


class Notice:
    """That a cluster is to notice which copies of a collection do not answer.

    Args:
        connection: To the cluster.
        collection: Its name.
        before: Where its copies are, as far as is known.
        end: Is called once, when the cluster has noticed, or nobody is away, or the key may not write (then True).
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
        """Whether it is over in time."""
        return self._over.wait(seconds)

    def _write(self) -> None:
        """Write nothing until all copies do it, or are known not to be active."""
        patience = _ANSWERED
        refused = False
        try:
            # Not by the node that is asked, where writes wait that have not been given up yet.
            while not self._over.is_set():
                begun = time.monotonic()
                if _write_nothing(self._connection.another(), self._collection, patience):
                    break
                self._over.wait(begun + patience - time.monotonic())  # it may have failed at once
                patience = min(2 * patience, _PATIENCE)
        except FAILURES as exc:
            refused = is_refusal(exc)
        except StoreError:  # the connection was closed
            pass
        self._end(refused)

    def _look(self) -> None:
        """Ask until the node that is asked knows who is away: others may learn it later."""
        until = time.monotonic() + LONGEST
        while not self._over.wait(_LOOK) and time.monotonic() < until:
            try:
                node = self._connection.node
                found = node.ask(lambda client, _: client.collection_cluster_info(self._collection), left=LONGEST)
            except FAILURES:  # it may be the one that is away
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
    """Whether all copies have done it in time; or the server is too busy, and so not away."""
    nobody = models.HasIdCondition(has_id=[str(uuid.uuid4())])
    nothing = models.FilterSelector(filter=models.Filter(must=[nobody]))
    try:
        client = node.client
        if node.speaks_grpc:  # the client's own method waits for whole seconds, and as long as for all it asks
            points = RestToGrpc.convert_points_selector(nothing)
            request = protocol.DeletePoints(collection_name=collection, wait=True, points=points)
            client.grpc_points.Delete(request, timeout=seconds)
        else:
            node.ask(lambda client, _: client.delete(collection, nothing, wait=True), left=LONGEST)
    except FAILURES as exc:
        if not is_transient(exc):
            raise
        return is_busy(exc)
    return True
