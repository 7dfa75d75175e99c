"""A backend for tests, which holds collections in memory as dicts and numpy arrays until the store is closed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import StoreError
from zsvec.store.backends.base import EXACT, Dims, Hit, InProcess, Memory, Points, Put, Where
from zsvec.types import SearchParams

# Vector and payload of each point, by id. Instead of a vector, a point with several vectors has a mapping of names to
# vectors, and a record of the catalog has None.
_Collection: TypeAlias = dict[str, tuple[Any, Mapping[str, Any]]]


class MemoryBackend(InProcess):
    """A backend of dicts. A filter tests every point, and a search is one matrix product."""

    location = ":memory:"
    place = ""

    def __init__(self) -> None:
        super().__init__(self.location)
        self._collections: dict[str, _Collection] = {}
        self._lock = threading.Lock()

    def exists(self, collection: str) -> bool:
        self.check()
        return collection in self._collections

    def create(
        self,
        collection: str,
        dim: Dims,
        indexes: Mapping[str, str],
        *,
        ordered: bool = False,
        memory: Memory = "cached",
    ) -> None:
        self.check()
        self._collections.setdefault(collection, {})

    def remove(self, collection: str) -> None:
        self.check()
        with self._lock:
            self._collections.pop(collection, None)
            self.writes += 1

    def rewrite(self, collection: str) -> None:
        """Does nothing, since deleted points leave no trace."""
        self.check()

    def upsert(self, collection: str, points: Points) -> None:
        with self._write(collection) as stored:
            rows = points.rows if points.named else points.vectors
            for identifier, row, payload in zip(points.ids, rows, points.payloads, strict=True):
                stored[identifier] = deepcopy(row), _copy(payload)

    def set_payload(self, collection: str, where: Where, fields: Mapping[str, Any], key: str = "") -> None:
        with self._write(collection) as stored:
            for identifier, (row, payload) in _matching(stored, where).items():
                after = {**payload, key: _merged(payload.get(key), fields)} if key else _merged(payload, fields)
                stored[identifier] = row, after

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        with self._write(collection) as stored:
            for put in puts:
                before = stored[put.id][1] if put.id in stored else None
                if (before is None) if put.expected is None else before and _test(Where(match=put.expected))(before):
                    stored[put.id] = None, _copy(put.payload)

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        if not self.exists(collection):
            return {}
        with self._open(collection) as stored:
            return {identifier: _copy(stored[identifier][1]) for identifier in ids if identifier in stored}

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
        with self._open(collection) as stored:
            found = dict(islice(_matching(stored, where).items(), limit))
            points = Points(
                ids=list(found),
                rows=[vector if vectors else None for vector, _ in found.values()],
                payloads=[_copy(payload, fields) for _, payload in found.values()],
            )
        yield points

    def newest(self, collection: str, where: Where) -> int:
        with self._open(collection) as stored:
            return max((_rev(payload) for _, payload in _matching(stored, where).values()), default=0)

    def query(
        self,
        collection: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
        params: SearchParams = EXACT,
    ) -> list[list[Hit]]:
        with self._open(collection) as stored:
            found = _matching(stored, where)
            ids = list(found)
            references = np.array([vector for vector, _ in found.values()]).reshape(len(found), vectors.shape[1])
            cosines = vectors @ references.T
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :limit]
            return [
                [Hit(ids[i], float(row[i]), _copy(found[ids[i]][1], fields)) for i in order]
                for row, order in zip(cosines, nearest, strict=True)
            ]

    def delete(self, collection: str, where: Where) -> None:
        with self._write(collection) as stored:
            for identifier in _matching(stored, where):
                del stored[identifier]

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        with self._write(collection) as stored:
            for identifier in ids:
                stored.pop(identifier, None)

    def count(self, collection: str, where: Where) -> int:
        if not self.exists(collection):
            return 0
        with self._open(collection) as stored:
            return len(_matching(stored, where))

    def versions(self) -> Mapping[str, str]:
        self.check()
        return {}

    def flush(self) -> None:
        """Does nothing, since nothing is on disk."""

    def close(self) -> None:
        super().close()
        self._collections = {}

    @contextmanager
    def _write(self, collection: str) -> Iterator[_Collection]:
        with self._open(collection) as stored:
            try:
                yield stored
            finally:
                self.writes += 1

    @contextmanager
    def _open(self, collection: str) -> Iterator[_Collection]:
        self.check()  # before the lock, which may be held forever in a forked process
        with self._lock:
            if collection not in self._collections:
                raise StoreError(f"the store {self.location} has no collection {collection!r}")
            yield self._collections[collection]


def _copy(payload: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
    # Payloads pass through JSON, so that values have the same types as in other backends.
    kept = payload if fields is None else {field: payload[field] for field in fields if field in payload}
    copied: dict[str, Any] = json.loads(json.dumps(kept)) if kept else {}
    return copied


def _merged(before: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {field: value for field, value in before.items() if field not in fields} if isinstance(before, dict) else {}
    return kept | _copy({field: value for field, value in fields.items() if value is not None})


def _matching(stored: _Collection, where: Where) -> _Collection:
    matches = _test(where)
    return {identifier: point for identifier, point in stored.items() if matches(point[1])}


def _test(where: Where) -> Callable[[Mapping[str, Any]], bool]:
    # Sets of wanted values are built once, not per payload.
    wanted = [(field, _values(values)) for field, values in where.match.items()]
    since, until, without = where.since, where.until, where.without.items()
    otherwise = None if where.or_match is None else _test(Where(match=where.or_match))

    def chosen(payload: Mapping[str, Any]) -> bool:
        for field, values in wanted:
            value = payload.get(field)
            if not isinstance(value, str | int) or value not in values:
                return False
        if any(payload.get(field) == value for field, value in without):
            return False
        rev = _rev(payload)
        return (since is None or rev >= since) and (until is None or 0 <= rev <= until)

    return chosen if otherwise is None else lambda payload: chosen(payload) or otherwise(payload)


def _rev(payload: Mapping[str, Any]) -> int:
    # -1 for a value that an integer index would not contain.
    rev = payload.get("rev")
    return rev if isinstance(rev, int) and abs(rev) < 2**63 else -1


def _values(wanted: str | int | Sequence[str]) -> Container[str | int]:
    return {wanted} if isinstance(wanted, str | int) else set(wanted)
