"""Collections in this process: Qdrant Edge, one folder per collection, write-ahead log on.

One process at a time: the log is locked while a collection is open. A write survives a killed process
once its method has returned, and a loss of power after `flush`. The engine keeps the GIL and does not
survive a fork. `optimize` must never be called here: it stops every search for seconds.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qe
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from zsvec.errors import StoreError, StoreLockedError, StoreUnavailableError
from zsvec.store.base import Handle, Hit, Points, Put, Where, stack
from zsvec.trust import inside
from zsvec.types import Finding

_PAGE = 2000
_CHUNK = 500
_SCHEMAS = {"keyword": qe.PayloadSchemaType.Keyword, "integer": qe.PayloadSchemaType.Integer}


class EdgeBackend:
    """Collections as sub-folders of a folder.

    Args:
        folder: Made on the first write.
    """

    exclusive = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.location = str(folder)
        self._shards: dict[str, qe.EdgeShard] = {}
        self._held: dict[str, FileLock] = {}
        self._lock = threading.RLock()
        self._handle = Handle(self.location)

    def check(self) -> None:
        self._handle.check()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        return nullcontext()

    def exists(self, collection: str) -> bool:
        self.check()
        return (self._folder / collection).is_dir()

    def create(self, collection: str, dim: int, indexes: Mapping[str, str], *, ordered: bool = False) -> None:
        with self._calls(collection):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._hold(collection)
            if not self.exists(collection):
                self._create(collection, dim)
            # After the renaming: the first load of a shard with new indexes takes as long again as making them.
            # And always: a process that was killed here has left some out.
            shard = self._shard(collection)
            for field in indexes.keys() - shard.info().payload_schema.keys():
                shard.update(qe.UpdateOperation.create_field_index(field, _SCHEMAS[indexes[field]]))

    def _create(self, collection: str, dim: int) -> None:
        # It has another name until it is complete: a killed process leaves no half collection.
        unfinished = self._folder / f".{collection}.{uuid.uuid4().hex[:8]}"
        unfinished.mkdir()
        qe.EdgeShard.create(
            str(unfinished),
            qe.EdgeConfig(
                vectors=qe.EdgeVectorParams(size=dim, distance=qe.Distance.Cosine),
                hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
            ),
        ).close()
        unfinished.rename(self._folder / collection)
        for leftover in self._folder.glob(f".{collection}.*"):
            shutil.rmtree(leftover)

    def upsert(self, collection: str, points: Points) -> None:
        with self._calls(collection):
            shard = self._shard(collection)
            for first in range(0, len(points.ids), _CHUNK):
                chunk = slice(first, first + _CHUNK)
                rows = zip(points.ids[chunk], points.vectors[chunk], points.payloads[chunk], strict=True)
                shard.update(qe.UpdateOperation.upsert_points([qe.Point(i, v.tolist(), dict(p)) for i, v, p in rows]))

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        with self._calls(collection):
            shard = self._shard(collection)
            for put in puts:
                shard.update(
                    qe.UpdateOperation.upsert_points(
                        [qe.Point(put.id, [1.0], dict(put.payload))],
                        None if put.expected is None else _filter(Where(match=put.expected)),
                        qe.UpdateMode.InsertOnly if put.expected is None else qe.UpdateMode.UpdateOnly,
                    )
                )

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
            request = qe.ScrollRequest(
                offset=offset,
                limit=_PAGE,
                filter=_filter(where),
                with_payload=True if fields is None else list(fields),
                with_vector=vectors,
            )
            with self._calls(collection):
                page, offset = self._shard(collection).scroll(request)
            yield Points(
                ids=[str(point.id) for point in page],
                vectors=stack([point.vector for point in page]),
                payloads=[point.payload or {} for point in page],
            )
            if offset is None:
                return

    def newest(self, collection: str, where: Where) -> int:
        request = qe.ScrollRequest(
            limit=1,
            filter=_filter(where),
            with_payload=["rev"],
            with_vector=False,
            order_by=qe.OrderBy("rev", qe.Direction.Desc),
        )
        with self._calls(collection):
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
            self._shard(collection).update(qe.UpdateOperation.delete_points_by_filter(_filter(where)))

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        with self._calls(collection):
            self._shard(collection).update(qe.UpdateOperation.delete_points(list(ids)))

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
                self._shard(collection).flush()

    def close(self) -> None:
        if self._handle.forked:
            return  # the files are the parent's
        with self._lock:
            self._handle.close()
            try:
                while self._shards:
                    collection, shard = self._shards.popitem()
                    with self._failures(collection):
                        shard.flush()
                        shard.close()
            finally:
                while self._held:
                    self._held.popitem()[1].release()

    def _shard(self, collection: str) -> qe.EdgeShard:
        if collection not in self._shards:
            self._hold(collection)
            folder = self._folder / collection
            for path in (folder, *folder.rglob("*")):
                if path.is_symlink():
                    inside(self._folder, path)  # the engine follows it, and writes
            self._shards[collection] = qe.EdgeShard.load(str(folder))
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

    def _locked(self) -> StoreLockedError:
        return StoreLockedError(
            f"the embedded store {self.location} is already open, here or in another process: close it "
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
                f"the store folder {self.location} cannot be used: {exc}; give one that can be written"
            ) from exc
        except Exception as exc:  # the engine raises nothing narrower
            if "WouldBlock" in str(exc):
                raise self._locked() from exc
            raise StoreError(f"collection {collection!r} of the embedded store {self.location} failed: {exc}") from exc


def _filter(where: Where) -> qe.Filter:
    must = _conditions(where.match)
    if where.since is not None:
        must.append(qe.FieldCondition(key="rev", range=qe.RangeFloat(gte=float(where.since))))
    chosen = qe.Filter(must=must, must_not=_conditions(where.exclude))
    return chosen if where.or_match is None else qe.Filter(should=[chosen, qe.Filter(must=_conditions(where.or_match))])


def _conditions(match: Mapping[str, str | int | Sequence[str]]) -> list[Any]:
    return [
        qe.FieldCondition(
            key=field, match=qe.MatchValue(value) if isinstance(value, str | int) else qe.MatchAny(list(value))
        )
        for field, value in match.items()
    ]
