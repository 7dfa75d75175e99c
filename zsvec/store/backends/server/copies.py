"""How collections with several copies are read and written.

When a request is slow, or a node does not answer, the cluster is made to notice who is away (`notice`). Until it has,
nothing else is written: each write would wait for that node anew.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from zsvec.errors import StoreError
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.failures import FAILURES, is_missing, is_refusal
from zsvec.store.backends.server.node import Node
from zsvec.store.backends.server.notice import LONGEST, Notice
from zsvec.store.backends.server.replicas import UNKNOWN, Consistency, Replicas

_MAJORITY = models.ReadConsistencyType.MAJORITY
_SLOW = 0.15  # seconds after which a request may be waiting for a node that stands still
_AWAY = 10.0  # seconds for which a node that has not answered is taken for away, whatever the consensus says
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
        self._store: set[str] = set()  # its collections, as far as they were met
        self._lock = threading.Lock()
        self._notices: dict[str, Notice] = {}  # of collections whose copies are being tried
        self._calm = 0.0  # until when nobody is looked for where a request is slow

    def meet(self, collection: str) -> None:
        """Remember a collection of the store, of which something will be asked."""
        self._store.add(collection)
        if self._notices:
            threading.Thread(target=self._meet_siblings, daemon=True).start()

    def write(self, collection: str, request: Callable[[QdrantClient, int | None, Replicas], _T]) -> _T:
        """Ask for what all copies have to do.

        Args:
            collection: Its name.
            request: As `Connection.call` has it, with where the copies are.

        Raises:
            StoreUnavailableError: As `Connection.call`.
            StoreError: Likewise.
        """

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
        """Ask for what copies agree on.

        Args:
            collection: Its name.
            request: As `Connection.call` has it, with how many copies have to agree.
            missing: As `Connection.call`.

        Raises:
            StoreUnavailableError: As `Connection.call`.
            StoreError: Likewise.
        """

        def prepare(until: float) -> None:
            self.look(collection, until)
            if self.known(collection).paired:  # both are needed, until one is known to be away
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
        """Find out where the copies of a collection are, as far as the node says, unless that is known.

        Args:
            collection: Its name.
            until: The deadline, in seconds of `time.monotonic`.
        """
        if time.monotonic() >= self._replicas.get(collection, (0.0, UNKNOWN))[0]:
            self._look(self._connection.node, collection, until)

    def known(self, collection: str) -> Replicas:
        """Where the copies of a collection are, as it was found last."""
        return self._replicas.get(collection, (0.0, UNKNOWN))[1]

    def _look(self, node: Node, collection: str, until: float = math.inf) -> None:
        try:
            found = node.ask(
                lambda client, _: client.collection_cluster_info(collection), left=until - time.monotonic()
            )
        except FAILURES as exc:
            if is_missing(exc):  # it may be made at any moment
                return
            if not is_refusal(exc):
                raise
            self._believe(collection, UNKNOWN)
        else:
            self._believe(collection, Replicas.of(found))

    def _believe(self, collection: str, copies: Replicas) -> None:
        seconds = _CONSENSUS if copies.copied else 60 * _CONSENSUS
        self._replicas[collection] = time.monotonic() + seconds, copies

    # Who is away

    @contextmanager
    def _watched(self, watched: bool) -> Iterator[None]:
        """Find out who is away where a request takes long; those of three copies go on by themselves."""
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
        if now < self._calm:  # requests can be slow for other reasons, again and again
            return
        peers = {peer for _, copies in list(self._replicas.values()) for shard in copies.shards for peer in shard}
        well = self._connection.all_well(len(peers))
        self._calm = now + (_CONSENSUS if well else _AWAY)
        if not well:
            self._find_out_who_is_away()

    def _find_out_who_is_away(self) -> None:
        """Let the cluster notice, in the background, which copies do not answer."""
        if self._begin_notices(list(self._replicas)):
            threading.Thread(target=self._meet_siblings, daemon=True).start()

    def _meet_siblings(self) -> None:
        """Do the same for collections of the store that nothing was asked of yet."""
        new = self._store - self._replicas.keys()
        try:
            for name in new:
                self._look(self._connection.another(), name)
            self._begin_notices(new)
        except (*FAILURES, StoreError):  # they are noticed when they are asked for
            pass

    def _begin_notices(self, collections: Iterable[str]) -> bool:
        """Whether one of these is to be noticed that was not yet."""
        with self._lock:
            copied = [name for name in collections if self.known(name).copied and name not in self._notices]
            random.shuffle(copied)  # other processes do the same, and a node takes few writes at once
            for name in copied:
                self._notices[name] = Notice(self._connection, name, self.known(name), self._end_notice)
        return bool(copied)

    def _end_notice(self, collection: str, refused: bool) -> None:
        with self._lock:
            del self._notices[collection]
        copies = self.known(collection)
        if refused and copies.paired:  # who may not write goes on with one copy
            self._believe(collection, Replicas([{0: True, 1: False}]))
        else:
            self._replicas[collection] = 0.0, copies  # to be looked at again

    def _once_noticed(self, collection: str, until: float) -> None:
        """Wait while a cluster is noticing who is away."""
        notice = self._notices.get(collection)
        if notice is not None and not notice.wait(min(LONGEST, until - time.monotonic())):
            raise ResponseHandlingException(TimeoutError("a node of the cluster stands still"))
