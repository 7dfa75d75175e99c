"""How collections with several copies are read and written, and how a copy that does not answer is left out.

The consensus takes a copy for active until a write to it has failed. One of a node that stands still fails after nine
seconds, and each write that is sent meanwhile waits as long, and holds others up. So when a request is slow, nothing is
written to all shards at once, and until the cluster has noticed who is away, nothing else is.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from zsvec.errors import StoreError
from zsvec.store.server.connection import Connection
from zsvec.store.server.failures import FAILURES, is_missing, is_refusal
from zsvec.store.server.replicas import UNKNOWN, Consistency, Replicas

_MAJORITY = models.ReadConsistencyType.MAJORITY
_SLOW = 0.15  # seconds after which a request may be waiting for a node that stands still
_AWAY = 10.0  # seconds for which a node that has not answered is taken for away, whatever the consensus says
_NOTICED = 15.0  # seconds after which a cluster has noticed that a node stands still
_CONSENSUS = 1.0  # seconds for which what it says is believed

_T = TypeVar("_T")


class Copies:
    """The copies of the collections of a deployment.

    Args:
        connection: To the deployment.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.when_away = self._find_out_who_is_away
        self._without_majority = 0.0  # until when no copy is asked that may be away
        self._replicas: dict[str, tuple[float, Replicas]] = {}  # until when they are believed
        self._lock = threading.Lock()
        self._noticing: dict[str, threading.Event] = {}  # of collections whose copies are being tried
        self._suspected = 0.0  # when a request was slow

    def write(self, collection: str, request: Callable[[QdrantClient, int | None, Replicas], _T]) -> _T:
        """Ask for what all copies have to do.

        Args:
            collection: Its name.
            request: As `Connection.call` has it, with where the copies are.

        Raises:
            StoreUnavailableError: As `Connection.call`.
            StoreError: Likewise.
        """

        def ask(client: QdrantClient, patience: int | None) -> _T:
            self._wait_until_noticed(collection)
            copies = self.of(client, collection)
            with self._watched(copies):
                return request(client, patience, copies)

        return self._connection.call(ask)

    def read(
        self,
        collection: str,
        request: Callable[[QdrantClient, int | None, Consistency], _T],
        *,
        missing: Any,
    ) -> _T:
        """Ask for what copies agree on.

        Args:
            collection: Its name.
            request: As `Connection.call` has it, with how many copies have to agree.
            missing: As `Connection.call`.

        Raises:
            StoreUnavailableError: As `Connection.call`.
            StoreError: Likewise.
        """

        def ask(client: QdrantClient, patience: int | None) -> _T:
            copies = self.of(client, collection)
            if copies.paired and collection in self._noticing:  # both are needed, until one is known to be away
                self._wait_until_noticed(collection)
                copies = self.of(client, collection)
            consistency = copies.consistency
            if consistency == _MAJORITY and time.monotonic() < self._without_majority:
                consistency = models.ReadConsistencyType.QUORUM
            try:
                with self._watched(copies):
                    return request(client, patience, consistency)
            except FAILURES:
                if consistency == _MAJORITY:
                    self._without_majority = time.monotonic() + _AWAY
                raise

        return self._connection.call(ask, missing=missing)

    def of(self, client: QdrantClient, collection: str) -> Replicas:
        """Where the copies of a collection are, as far as the node says."""
        until, copies = self._replicas.get(collection, (0.0, UNKNOWN))
        return self._look(client, collection) if time.monotonic() >= until else copies

    def known(self, collection: str) -> Replicas:
        """The same, as it was found last."""
        return self._replicas.get(collection, (0.0, UNKNOWN))[1]

    def _look(self, client: QdrantClient, collection: str) -> Replicas:
        try:
            copies = Replicas.of(client.collection_cluster_info(collection))
        except FAILURES as exc:
            if is_missing(exc):  # it may be made at any moment
                return UNKNOWN
            if not is_refusal(exc):
                raise
            copies = UNKNOWN
        self._believe(collection, copies)
        return copies

    def _believe(self, collection: str, copies: Replicas) -> None:
        seconds = _CONSENSUS if copies.copied else 60 * _CONSENSUS
        self._replicas[collection] = time.monotonic() + seconds, copies

    # Who is away

    @contextmanager
    def _watched(self, copies: Replicas) -> Iterator[None]:
        """Find out who is away where a request takes long."""
        if not copies.copied:
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
        if time.monotonic() > self._suspected + _AWAY:  # requests can be slow for other reasons, again and again
            self._suspected = time.monotonic()
            self._find_out_who_is_away()

    def _find_out_who_is_away(self) -> None:
        """Let the cluster notice, in the background, which copies do not answer."""
        with self._lock:
            for collection, (_, copies) in list(self._replicas.items()):  # other threads add to it
                if copies.copied and collection not in self._noticing:
                    self._noticing[collection] = threading.Event()
                    threading.Thread(target=self._notice, args=(collection, copies), daemon=True).start()

    def _notice(self, collection: str, before: Replicas) -> None:
        """Write nothing to all shards: when that is done, all copies have done it, or are not active any more."""
        nobody = models.HasIdCondition(has_id=[str(uuid.uuid4())])
        nothing = models.FilterSelector(filter=models.Filter(must=[nobody]))
        try:
            self._connection.turn()
            with self._connection.node.patient(_NOTICED) as client:
                client.delete(collection, nothing, wait=True)
            self._replicas[collection] = 0.0, before  # to be looked at again
        except FAILURES as exc:
            if is_refusal(exc) and before.paired:  # who may not write goes on with one copy
                self._believe(collection, Replicas([{0: True, 1: False}]))
        except StoreError:
            pass  # it was closed
        finally:
            self._noticing.pop(collection).set()

    def _wait_until_noticed(self, collection: str) -> None:
        notice = self._noticing.get(collection)
        if notice and not notice.wait(min(_NOTICED, self._connection.deadline)):
            raise ResponseHandlingException(TimeoutError("a node of the cluster stands still"))
