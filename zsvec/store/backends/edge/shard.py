"""A shard of the embedded engine, which is a collection in a folder: made, read, written, written anew elsewhere."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import qdrant_edge as qe

from zsvec.errors import StoreUnavailableError
from zsvec.inputs.files import read_regular
from zsvec.store.backends.base import Dims, Points
from zsvec.store.backends.edge.checksums import DamagedError
from zsvec.store.backends.edge.folder import POINT, room_for, room_to_rewrite

_PAGE = 2000
_CHUNK = 500


def make(folder: Path, dim: Dims) -> qe.EdgeShard:
    """A new one, of unit vectors, for exact search."""

    def params(dim: int) -> qe.EdgeVectorParams:
        # Not the default, which maps every block of the files, of 32 MiB each, when they are opened.
        return qe.EdgeVectorParams(size=dim, distance=qe.Distance.Cosine, memory=qe.Memory.Cold)

    return qe.EdgeShard.create(
        str(folder),
        qe.EdgeConfig(
            vectors=params(dim) if isinstance(dim, int) else {name: params(n) for name, n in dim.items()},
            hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        ),
    )


def page(
    shard: qe.EdgeShard, found: qe.Filter, offset: Any, *, vectors: bool, fields: Sequence[str] | None
) -> tuple[Points, Any]:
    """Matching points in the order of their ids, and the offset of the next page, if there is one."""
    request = qe.ScrollRequest(
        offset=offset,
        limit=_PAGE,
        filter=found,
        with_payload=True if fields is None else list(fields),
        with_vector=vectors,
    )
    records, offset = shard.scroll(request)
    points = Points(
        ids=[str(point.id) for point in records],
        rows=[point.vector for point in records],
        payloads=[point.payload or {} for point in records],
    )
    matrix = vectors and not points.named
    return (replace(points, rows=points.vectors) if matrix else points), offset  # what is damaged fails here


def upserts(points: Points) -> Iterator[tuple[qe.UpdateOperation, int, int]]:
    """What writes points, some at a time: how many, and the bytes of their vectors and payloads."""
    for first in range(0, len(points.ids), _CHUNK):
        some = points.chosen(range(first, min(first + _CHUNK, len(points.ids))))
        rows = [qe.Point(i, v, dict(p)) for i, v, p in zip(some.ids, some.plain, some.payloads, strict=True)]
        yield qe.UpdateOperation.upsert_points(rows), len(rows), 4 * some.numbers + size(some.payloads)


def copy(shard: qe.EdgeShard, folder: Path, other: Path, check_room: Callable[[int], None]) -> None:
    """Write the points and payload indexes of a shard, and nothing that was deleted, to an empty folder.

    Args:
        shard: That is read.
        folder: Of it.
        other: The empty one.
        check_room: Refuses to write what takes so many bytes, where there is no room.

    Raises:
        DamagedError: Not all can be read.
        StoreUnavailableError: There is no room.
    """
    check_room(room_to_rewrite(folder))
    config = json.loads(read_regular(folder / "edge_config.json"))
    dims = {name: params["size"] for name, params in config["vectors"].items()}
    copied = make(other, dims.get("", dims))
    written, offset = 0, None
    try:
        for field, index in shard.info().payload_schema.items():
            copied.update(qe.UpdateOperation.create_field_index(field, index.data_type))
        while True:
            points, offset = page(shard, qe.Filter(), offset, vectors=True, fields=None)
            for operation, number, taken in upserts(points):
                written += number
                check_room(room_for(taken) + POINT * written)
                copied.update(operation)
            if offset is None:
                break
        if not written == count(shard) == count(copied):
            raise DamagedError(f"of {count(shard)} points, {written} can be read")  # noqa: TRY301 - dropped as others are
    except BaseException:
        keep_for_ever(copied)
        with suppress(StoreUnavailableError):  # without room, it must not flush
            check_room(POINT * written)
            copied.close()
        raise
    copied.close()


def count(shard: qe.EdgeShard) -> int:
    """How many points there are."""
    return int(shard.count(qe.CountRequest(exact=True)))


def size(payloads: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of payloads as JSON."""
    return sum(len(json.dumps(payload)) for payload in payloads)


def keep_for_ever(shard: qe.EdgeShard) -> None:
    """Do not let a shard be dropped before the process ends: it would flush."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(shard))
