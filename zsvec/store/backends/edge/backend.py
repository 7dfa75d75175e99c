"""Collections in this process: Qdrant Edge, one folder per collection, write-ahead log on.

One process at a time: the log is locked while a collection is open. A write survives a killed process
once its method has returned, and a loss of power after `flush`. The engine keeps the GIL and does not
survive a fork. `optimize` must never be called here: it stops every search for seconds.

A shard that is dropped flushes by path, into whatever folder is there by then, and however full the disk is. So one
that must not flush is kept until the process ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qdrant_edge as qe
from filelock import FileLock, Timeout

from zsvec.errors import StoreError, StoreLockedError, StoreUnavailableError
from zsvec.inputs.files import inside
from zsvec.store.backends.base import Dims, Handle, Hit, Points, Put, Where
from zsvec.store.backends.edge import shard as shards
from zsvec.store.backends.edge import swap
from zsvec.store.backends.edge.checksums import Checksums
from zsvec.store.backends.edge.folder import (
    POINT,
    ROOM,
    OpenedFolder,
    check_room,
    log_size,
    read_ahead,
    room_for,
    room_to_open,
)
from zsvec.types import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCHEMAS = {"keyword": qe.PayloadSchemaType.Keyword, "integer": qe.PayloadSchemaType.Integer}


class EdgeBackend:
    """Collections as sub-folders of a folder.

    Args:
        folder: Made on the first write.
        name: What the user calls it, in messages.
    """

    exclusive = True

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self._folder = folder.absolute()  # so that a process can go to another working directory
        self._name = name or str(folder)
        self._shards: dict[str, qe.EdgeShard] = {}
        self._held: dict[str, FileLock] = {}
        self._opened: dict[str, OpenedFolder] = {}  # of collections, and of all under no name
        self._owed: dict[str, int] = {}  # bytes that flushing takes, of the collections that were written
        self._checksums: dict[str, Checksums] = {}
        self._lock = threading.RLock()
        self._handle = Handle(self._name)
        self.writes = 0

    @property
    def location(self) -> str:
        """What the user calls it; in full, if it is not there."""
        there = os.path.exists(self._folder)  # noqa: PTH110 - Path.exists raises where a folder may not be entered
        return self._name if there else f"the missing folder {self._folder}"

    @property
    def place(self) -> str:
        return str(self._folder)

    def check(self) -> None:
        self._handle.check()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        return nullcontext()

    def exists(self, collection: str) -> bool:
        with self._calls(collection):
            self._check_there(collection)
            return swap.exists(self._folder, collection)

    def create(self, collection: str, dim: Dims, indexes: Mapping[str, str], *, ordered: bool = False) -> None:
        with self._calls(collection):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._hold(collection)
            if not self.exists(collection):
                self._create(collection, dim)
            # After the renaming: the first load of a shard with new indexes takes as long again as making them.
            # And always: a process that was killed here has left some out.
            shard = self._shard(collection)
            for field in indexes.keys() - shard.info().payload_schema.keys():
                self._update(collection, qe.UpdateOperation.create_field_index(field, _SCHEMAS[indexes[field]]))

    def _create(self, collection: str, dim: Dims) -> None:
        check_room(self._folder, ROOM + sum(self._owed.values()))
        complete = swap.begin(self._folder, collection)
        shards.make(complete, dim).close()
        complete.rename(self._folder / collection)

    def remove(self, collection: str) -> None:
        with self._calls(collection):
            self._check_there(collection)
            if self.exists(collection):
                self._hold(collection)
                self._let_go(collection)
                swap.remove(self._folder, collection)

    def rewrite(self, collection: str) -> None:
        with self._calls(collection):
            if self.exists(collection):
                self._flush(collection, self._shard(collection))
                try:
                    copy = swap.begin(self._folder, collection)
                    shards.copy(self._shard(collection), self._folder / collection, copy, self._check_room)
                    self._put_away(collection)
                    swap.replace(self._folder, collection, copy)
                finally:
                    self._settle(collection)

    def _settle(self, collection: str) -> None:
        self._check_there(collection)  # the lock is of the folder that was opened
        swap.settle(self._folder, collection)

    def _let_go(self, collection: str) -> None:
        if collection in self._shards:
            self._shards.pop(collection).close()
            self._opened.pop(collection).close()
            self._checksums.pop(collection)
            self._owed.pop(collection, None)

    def _put_away(self, collection: str) -> None:
        """Flush and close a collection, which the next call that needs it loads again."""
        self._check_there(collection)
        self._flush(collection, self._shards[collection])
        checksums = self._checksums[collection]
        self._let_go(collection)
        checksums.write()

    def upsert(self, collection: str, points: Points) -> None:
        with self._calls(collection):
            for operation, number, size in shards.upserts(points):
                self._update(collection, operation, number, size)

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        with self._calls(collection):
            for put in puts:
                operation = qe.UpdateOperation.upsert_points(
                    [qe.Point(put.id, [1.0], dict(put.payload))],
                    None if put.expected is None else _filter(Where(match=put.expected)),
                    qe.UpdateMode.InsertOnly if put.expected is None else qe.UpdateMode.UpdateOnly,
                )
                self._update(collection, operation, 1, shards.size([put.payload]))

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        if not self.exists(collection):
            return {}
        with self._calls(collection):
            found = self._shard(collection).retrieve(list(ids), True, False)
            return {str(record.id): record.payload or {} for record in found}

    def scroll(
        self, collection: str, where: Where, *, vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[Points]:
        if not self.exists(collection):
            return
        pages = self._pages(collection, where, vectors, fields)
        if vectors:
            yield from pages
            return
        with self._calls(collection):  # at one instant: a reader of the catalog must not miss a commit between pages
            found = list(pages)
        yield from found

    def _pages(self, collection: str, where: Where, vectors: bool, fields: Sequence[str] | None) -> Iterator[Points]:
        offset = None
        while True:
            with self._calls(collection):
                shard = self._shard(collection)
                points, offset = shards.page(shard, _filter(where), offset, vectors=vectors, fields=fields)
            yield points
            if offset is None:
                return

    def newest(self, collection: str, where: Where) -> int:
        with self._calls(collection):
            request = qe.ScrollRequest(
                limit=1,
                filter=_filter(where),
                with_payload=["rev"],
                with_vector=False,
                order_by=qe.OrderBy("rev", qe.Direction.Desc),
            )
            page, _ = self._shard(collection).scroll(request)
            return int((page[0].payload or {})["rev"]) if page else 0

    def query(
        self, collection: str, vectors: NDArray[np.float32], where: Where, limit: int, fields: Sequence[str]
    ) -> list[list[Hit]]:
        requests = [
            qe.QueryRequest(
                query=qe.Query.Nearest(vector.tolist()),
                limit=limit,
                filter=_filter(where),
                params=qe.SearchParams(exact=True),
                with_payload=list(fields),
            )
            for vector in vectors
        ]
        with self._calls(collection):
            results = self._shard(collection).query_batch(qe.QueryBatchRequest(requests))
            return [[Hit(str(point.id), point.score, point.payload or {}) for point in found] for found in results]

    def delete(self, collection: str, where: Where) -> None:
        with self._calls(collection):
            self._update(collection, qe.UpdateOperation.delete_points_by_filter(_filter(where)))

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        with self._calls(collection):
            self._update(collection, qe.UpdateOperation.delete_points(list(ids)), len(ids))

    def count(self, collection: str, where: Where) -> int:
        if not self.exists(collection):
            return 0
        with self._calls(collection):
            return int(self._shard(collection).count(qe.CountRequest(exact=True, filter=_filter(where))))

    def versions(self) -> Mapping[str, str]:
        return {"qdrant-edge": version("qdrant-edge-py")}

    def placement(self, collection: str) -> None:
        self.check()

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        return iter(())

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        return 0

    def flush(self) -> None:
        for collection in list(self._shards):
            with self._calls(collection):
                if collection in self._shards:
                    self._put_away(collection)

    def close(self) -> None:
        if self._handle.forked:
            return  # the files are the parent's
        with self._lock:
            if self._shards and self._opened[""].is_there():
                with self._failures(next(iter(self._shards))):
                    self._check_room(0)  # still open, it can be closed when there is room
            self._handle.close()
            held, opened, checksums, shards = self._held, self._opened, self._checksums, self._shards
            self._held, self._opened, self._checksums, self._shards = {}, {}, {}, {}
            with ExitStack() as last:  # all of it is done, whatever fails
                for lock in held.values():
                    last.callback(lock.release)
                for folder in opened.values():
                    last.callback(folder.close)
                for collection, shard in shards.items():
                    last.callback(self._close, collection, shard, opened, checksums[collection])

    def _close(
        self, collection: str, shard: qe.EdgeShard, opened: Mapping[str, OpenedFolder], checksums: Checksums
    ) -> None:
        with self._failures(collection):
            if not (opened[""].is_there() and opened[collection].is_there()):
                shards.keep_for_ever(shard)
                if collection in self._owed:
                    raise self._gone(collection)
                return
            self._flush(collection, shard)
            shard.close()
            checksums.write()

    def _flush(self, collection: str, shard: qe.EdgeShard) -> None:
        self._check_room(0, shard)
        shard.flush()
        self._owed.pop(collection, None)

    def _update(self, collection: str, operation: qe.UpdateOperation, points: int = 1, size: int = 0) -> None:
        """Write, if there is room.

        Args:
            collection: Where to.
            operation: What to do.
            points: How many it writes.
            size: Bytes of their vectors and payloads.

        Raises:
            StoreUnavailableError: There is no room, or the folder is gone.
        """
        shard = self._shard(collection)
        self._check_room(room_for(size) + POINT * points)
        self._owed[collection] = self._owed.get(collection, 0) + POINT * points
        try:
            shard.update(operation)
        finally:
            self.writes += 1
        self._check_there(collection)  # it may have gone meanwhile

    def _check_room(self, needed: int, *closing: qe.EdgeShard) -> None:
        """Refuse what would fill the disk, with all that is to be flushed yet."""
        try:
            check_room(self._folder, needed + sum(self._owed.values()))
        except StoreUnavailableError:
            for shard in (*self._shards.values(), *closing):
                shards.keep_for_ever(shard)
            raise

    def _shard(self, collection: str) -> qe.EdgeShard:
        self._check_there(collection)
        if collection not in self._shards:
            self._hold(collection)
            folder = self._folder / collection
            checksums = Checksums(self._folder, folder)
            checksums.check()
            check_room(folder, room_to_open(folder, closed=checksums.closed))
            read_ahead(folder)
            swap.mark(self._folder, collection)
            checksums.remove()
            shard = qe.EdgeShard.load(str(folder))
            if not checksums.closed:
                self._owed[collection] = log_size(folder)
            self._checksums[collection] = checksums
            self._shards[collection] = shard
            self._opened[collection] = OpenedFolder(folder)
        return self._shards[collection]

    def _hold(self, collection: str) -> None:
        """Keep a collection for this handle: the engine's own lock is free again while a shard is still being closed.

        Who loads it then reads what the other one has not written yet, and overwrites it.
        """
        if collection not in self._held:
            file = inside(self._folder, self._folder / f".lock-{collection}")
            lock = FileLock(file, timeout=0, thread_local=False)
            try:
                lock.acquire()
            except Timeout as exc:
                raise self._locked() from exc
            self._held[collection] = lock
            if "" not in self._opened:
                self._opened[""] = OpenedFolder(self._folder)
        if collection not in self._shards:
            self._settle(collection)

    def _check_there(self, collection: str) -> None:
        """Refuse a folder that is not the one that was opened."""
        if not all(self._opened[name].is_there() for name in ("", collection) if name in self._opened):
            for shard in self._shards.values():
                shards.keep_for_ever(shard)
            raise self._gone(collection)

    def _gone(self, collection: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the folder {self._folder / collection} of an embedded store was deleted, moved, replaced or made "
            "inaccessible while it was open: nothing more can be stored there; close the store, put a copy of its "
            "folder there, and open that. The folder itself can be opened by another process, not by this one"
        )

    def _locked(self) -> StoreLockedError:
        return StoreLockedError(
            f"the embedded store {self._name} is already open, here or in another process: close it "
            "there, or share one store by running a Qdrant server and giving its URL"
        )

    @contextmanager
    def _calls(self, collection: str) -> Iterator[None]:
        """One call at a time, with the engine's failures as errors of ours."""
        self.check()  # before the lock, which a forked process might never get
        with self._lock, self._failures(collection):
            self.check()
            yield

    @contextmanager
    def _failures(self, collection: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as exc:
            raise StoreUnavailableError(
                f"the store folder {self._name} cannot be used: {exc}; give one that can be written"
            ) from exc
        except BaseException as exc:  # the engine raises nothing narrower, and where it panics, not even Exception
            if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
                raise
            if "WouldBlock" in str(exc):
                raise self._locked() from exc
            raise StoreError(
                f"collection {collection!r} of the embedded store {self._name} failed: {exc}; if its files are "
                f"damaged, put a copy of {self._folder} in its place, or import again into another folder"
            ) from exc


def _filter(where: Where) -> qe.Filter:
    must = _conditions(where.match)
    if where.ranged:
        must.append(qe.FieldCondition(key="rev", range=qe.RangeFloat(gte=where.since, lte=where.until)))
    chosen = qe.Filter(must=must, must_not=_conditions(where.without))
    return chosen if where.or_match is None else qe.Filter(should=[chosen, qe.Filter(must=_conditions(where.or_match))])


def _conditions(match: Mapping[str, str | int | Sequence[str]]) -> list[Any]:
    matches = {f: qe.MatchValue(v) if isinstance(v, str | int) else qe.MatchAny(list(v)) for f, v in match.items()}
    return [qe.FieldCondition(key=field, match=matched) for field, matched in matches.items()]
