"""A backend that holds collections in this process with Qdrant Edge, each in a folder with a write-ahead log.

A lock file gives an open collection to one process at a time. A finished write survives the end of a killed process.
After `flush`, the write also survives a loss of power. The engine holds the GIL and does not survive a fork. `optimize`
must never be called here, since every search would stop for seconds.

When Python drops a shard, the engine flushes to the path of the shard, even if another folder is there by then or the
disk is full. So a shard that must not flush is referenced until the process ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qdrant_edge as qe
from filelock import FileLock, Timeout

from zsvec.errors import StoreError, StoreLockedError, StoreUnavailableError
from zsvec.inputs.files import inside, read_regular
from zsvec.store.backends.base import EXACT, Dims, Hit, InProcess, Memory, Points, Put, Where
from zsvec.store.backends.edge import folder as folders
from zsvec.store.backends.edge.checksums import Checksums, DamagedError
from zsvec.store.backends.edge.folder import POINT, ROOM, OpenedFolder, check_room, room_for
from zsvec.types import SearchParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PAGE = 2000
_CHUNK = 500
_SCHEMAS = {"keyword": qe.PayloadSchemaType.Keyword, "integer": qe.PayloadSchemaType.Integer}


class EdgeBackend(InProcess):
    """A backend with a sub-folder for each collection.

    Args:
        folder: Folder of the store. The first write creates the folder.
        name: Name of the store in messages.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self._folder = folder.absolute()  # the process may change its working folder
        self._name = name or str(folder)
        super().__init__(self._name)
        self._shards: dict[str, qe.EdgeShard] = {}
        self._held: dict[str, FileLock] = {}
        self._opened: dict[str, OpenedFolder] = {}  # by collection; the key "" is the folder of the store
        self._owed: dict[str, int] = {}  # bytes that a flush will write, by collection
        self._checksums: dict[str, Checksums] = {}
        self._lock = threading.RLock()

    @property
    def location(self) -> str:
        """Name of the store in messages, or "the missing folder" and the path if the folder is missing."""
        there = os.path.exists(self._folder)  # noqa: PTH110 - Path.exists raises for a folder without permission
        return self._name if there else f"the missing folder {self._folder}"

    @property
    def place(self) -> str:
        return str(self._folder)

    def exists(self, collection: str) -> bool:
        with self._calls(collection):
            self._check_there(collection)
            return folders.exists(self._folder, collection)

    def create(
        self,
        collection: str,
        dim: Dims,
        indexes: Mapping[str, str],
        *,
        ordered: bool = False,
        memory: Memory = "cached",
    ) -> None:
        with self._calls(collection):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._hold(collection)
            if not self.exists(collection):
                self._create(collection, dim)
            # Indexes are created after the folder is renamed, since loading a shard with new indexes for the first time
            # takes as long as creating them. An existing collection gets missing indexes too, since an earlier process
            # may have been killed here.
            shard = self._shard(collection)
            for field in indexes.keys() - shard.info().payload_schema.keys():
                self._update(collection, qe.UpdateOperation.create_field_index(field, _SCHEMAS[indexes[field]]))

    def _create(self, collection: str, dim: Dims) -> None:
        check_room(self._folder, ROOM + sum(self._owed.values()))
        complete = folders.begin(self._folder, collection)
        _made(complete, dim).close()
        complete.rename(self._folder / collection)

    def remove(self, collection: str) -> None:
        with self._calls(collection):
            self._check_there(collection)
            if self.exists(collection):
                self._hold(collection)
                self._let_go(collection)
                folders.remove(self._folder, collection)

    def rewrite(self, collection: str) -> None:
        with self._calls(collection):
            if self.exists(collection):
                self._flush(collection, self._shard(collection))
                try:
                    copy = folders.begin(self._folder, collection)
                    _copy(self._shard(collection), self._folder / collection, copy, self._check_room)
                    self._put_away(collection)
                    folders.replace(self._folder, collection, copy)
                finally:
                    self._settle(collection)

    def _settle(self, collection: str) -> None:
        self._check_there(collection)  # the lock belongs to the folder that was opened
        folders.settle(self._folder, collection)

    def _let_go(self, collection: str) -> None:
        if collection in self._shards:
            self._shards.pop(collection).close()
            self._opened.pop(collection).close()
            self._checksums.pop(collection)
            self._owed.pop(collection, None)

    def _put_away(self, collection: str) -> None:
        """Flushes and closes a collection, and writes the checksums. The next use loads the shard again."""
        self._check_there(collection)
        self._flush(collection, self._shards[collection])
        checksums = self._checksums[collection]
        self._let_go(collection)
        checksums.write()

    def upsert(self, collection: str, points: Points) -> None:
        with self._calls(collection):
            for operation, number, size in _upserts(points):
                self._update(collection, operation, number, size)

    def set_payload(self, collection: str, where: Where, fields: Mapping[str, Any], key: str = "") -> None:
        with self._calls(collection):
            points = size = 0
            for page in self._pages(collection, where, vectors=False, fields=None, limit=None):
                points += len(page.ids)
                size += _size(page.payloads) + len(page.ids) * _size([fields])  # changed payloads are written whole
            operation = qe.UpdateOperation.set_payload_by_filter(_filter(where), dict(fields), key or None)
            self._update(collection, operation, points, size)

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        with self._calls(collection):
            for put in puts:
                operation = qe.UpdateOperation.upsert_points(
                    [qe.Point(put.id, [1.0], dict(put.payload))],
                    None if put.expected is None else _filter(Where(match=put.expected)),
                    qe.UpdateMode.InsertOnly if put.expected is None else qe.UpdateMode.UpdateOnly,
                )
                self._update(collection, operation, 1, _size([put.payload]))

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        if not self.exists(collection):
            return {}
        with self._calls(collection):
            found = self._shard(collection).retrieve(list(ids), True, False)
            return {str(record.id): record.payload or {} for record in found}

    def scroll(
        self,
        collection: str,
        where: Where,
        *,
        vectors: bool = False,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Points]:
        if not self.exists(collection):
            return
        pages = self._pages(collection, where, vectors, fields, limit)
        if vectors:
            yield from pages
            return
        with self._calls(collection):  # all pages at one instant, so that a catalog reader misses no commit
            found = list(pages)
        yield from found

    def _pages(
        self, collection: str, where: Where, vectors: bool, fields: Sequence[str] | None, limit: int | None
    ) -> Iterator[Points]:
        offset, left = None, sys.maxsize if limit is None else limit
        while left:
            with self._calls(collection):
                shard, most = self._shard(collection), min(left, _PAGE)
                points, offset = _page(shard, _filter(where), offset, vectors=vectors, fields=fields, limit=most)
            yield points
            left -= len(points.ids)
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
        self,
        collection: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
        params: SearchParams = EXACT,
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
            return _count(self._shard(collection), _filter(where))

    def versions(self) -> Mapping[str, str]:
        return {"qdrant-edge": version("qdrant-edge-py")}

    def flush(self) -> None:
        for collection in list(self._shards):
            with self._calls(collection):
                if collection in self._shards:
                    self._put_away(collection)

    def close(self) -> None:
        if self.forked:
            return  # the files belong to the parent process
        with self._lock:
            if self._shards and self._opened[""].is_there():
                with self._failures(next(iter(self._shards))):
                    self._check_room(0)  # without room the store stays open, and can be closed later
            super().close()
            held, opened, checksums, shards = self._held, self._opened, self._checksums, self._shards
            self._held, self._opened, self._checksums, self._shards = {}, {}, {}, {}
            with ExitStack() as last:  # every step runs, even after a failure
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
                _keep_for_ever(shard)
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
        """Runs an operation that changes `points` points and writes `size` bytes of vectors and payloads.

        Raises:
            StoreUnavailableError: The disk has no room, or the folder is not the one that was opened.
        """
        shard = self._shard(collection)
        self._check_room(room_for(size) + POINT * points)
        self._owed[collection] = self._owed.get(collection, 0) + POINT * points
        try:
            shard.update(operation)
        finally:
            self.writes += 1
        self._check_there(collection)

    def _check_room(self, needed: int, *closing: qe.EdgeShard) -> None:
        """Raises StoreUnavailableError if fewer bytes are free than `needed` plus the bytes of all later flushes."""
        try:
            check_room(self._folder, needed + sum(self._owed.values()))
        except StoreUnavailableError:
            for shard in (*self._shards.values(), *closing):
                _keep_for_ever(shard)
            raise

    def _shard(self, collection: str) -> qe.EdgeShard:
        self._check_there(collection)
        if collection not in self._shards:
            self._hold(collection)
            folder = self._folder / collection
            checksums = Checksums(self._folder, folder)
            checksums.check()
            check_room(folder, folders.room_to_open(folder, closed=checksums.closed))
            folders.read_ahead(folder)
            folders.mark(self._folder, collection)
            checksums.remove()
            shard = qe.EdgeShard.load(str(folder))
            if not checksums.closed:
                self._owed[collection] = folders.log_size(folder)
            self._checksums[collection] = checksums
            self._shards[collection] = shard
            self._opened[collection] = OpenedFolder(folder)
        return self._shards[collection]

    def _hold(self, collection: str) -> None:
        """Locks a collection for this process.

        The lock of the engine does not suffice, since closing a shard releases that lock before all points are written.
        A process that loaded the shard then would miss and overwrite points.
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
        """Raises StoreUnavailableError if the folder of the store or collection is not the one that was opened."""
        if not all(self._opened[name].is_there() for name in ("", collection) if name in self._opened):
            for shard in self._shards.values():
                _keep_for_ever(shard)
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
        """Lets one call run at a time, and maps failures of the engine to errors of zsvec."""
        self.check()  # before the lock, which may be held forever in a forked process
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
        except BaseException as exc:  # the engine raises plain Exception, or PanicException, which is not an Exception
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


def _made(folder: Path, dim: Dims) -> qe.EdgeShard:
    def params(dim: int) -> qe.EdgeVectorParams:
        # With the default memory, opening a shard would map every block of the files, 32 MiB each.
        return qe.EdgeVectorParams(size=dim, distance=qe.Distance.Cosine, memory=qe.Memory.Cold)

    return qe.EdgeShard.create(
        str(folder),
        qe.EdgeConfig(
            vectors=params(dim) if isinstance(dim, int) else {name: params(n) for name, n in dim.items()},
            hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        ),
    )


def _page(
    shard: qe.EdgeShard,
    found: qe.Filter,
    offset: Any,
    *,
    vectors: bool,
    fields: Sequence[str] | None,
    limit: int = _PAGE,
) -> tuple[Points, Any]:
    """Returns a page of matching points in the order of ids, and the offset of the next page or ``None``."""
    request = qe.ScrollRequest(
        offset=offset,
        limit=limit,
        filter=found,
        with_payload=True if fields is None else list(fields),
        with_vector=vectors,
    )
    records, offset = shard.scroll(request)
    points = Points(
        ids=[str(point.id) for point in records],
        rows=[_row(point.vector) for point in records],
        payloads=[point.payload or {} for point in records],
    )
    matrix = vectors and not points.named
    return (replace(points, rows=points.vectors) if matrix else points), offset  # a damaged vector fails here


def _row(vector: Any) -> Any:
    """Returns a list of floats as float32 ``(dim,)``, and any other vector of a point as it is.

    Called for each point, because the lists of a whole page do not fit into the caches of a processor.
    """
    if not isinstance(vector, list):
        return vector
    import numpy as np  # slow to import, and not needed to list categories

    return np.frombuffer(struct.pack(f"{len(vector)}f", *vector), np.float32)


def _upserts(points: Points) -> Iterator[tuple[qe.UpdateOperation, int, int]]:
    """Yields operations, each with the number of points to write and the bytes of their vectors and payloads."""
    for first in range(0, len(points.ids), _CHUNK):
        some = points.chosen(range(first, min(first + _CHUNK, len(points.ids))))
        rows = [qe.Point(i, v, dict(p)) for i, v, p in zip(some.ids, some.plain, some.payloads, strict=True)]
        yield qe.UpdateOperation.upsert_points(rows), len(rows), 4 * some.numbers + _size(some.payloads)


def _copy(shard: qe.EdgeShard, folder: Path, other: Path, check_room: Callable[[int], None]) -> None:
    """Copies points and payload indexes of the shard in `folder` to an empty folder, without traces of deleted points.

    Raises:
        DamagedError: Not all points can be read or copied.
        StoreUnavailableError: The disk has no room.
    """
    check_room(folders.room_to_rewrite(folder))
    config = json.loads(read_regular(folder / "edge_config.json"))
    dims = {name: params["size"] for name, params in config["vectors"].items()}
    copied = _made(other, dims.get("", dims))
    written, offset = 0, None
    try:
        for field, index in shard.info().payload_schema.items():
            copied.update(qe.UpdateOperation.create_field_index(field, index.data_type))
        while True:
            points, offset = _page(shard, qe.Filter(), offset, vectors=True, fields=None)
            for operation, number, taken in _upserts(points):
                written += number
                check_room(room_for(taken) + POINT * written)
                copied.update(operation)
            if offset is None:
                break
        if not written == _count(shard) == _count(copied):
            raise DamagedError(f"of {_count(shard)} points, {written} can be read")  # noqa: TRY301 - handled below
    except BaseException:
        _keep_for_ever(copied)
        with suppress(StoreUnavailableError):  # if the disk is full, a flush ends the process
            check_room(POINT * written)
            copied.close()
        raise
    copied.close()


def _count(shard: qe.EdgeShard, chosen: qe.Filter | None = None) -> int:
    return int(shard.count(qe.CountRequest(exact=True, filter=chosen)))


def _size(payloads: Sequence[Mapping[str, Any]]) -> int:
    return len(json.dumps(payloads))


def _keep_for_ever(shard: qe.EdgeShard) -> None:
    # An extra reference, so that Python never drops the shard, which would flush.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(shard))
