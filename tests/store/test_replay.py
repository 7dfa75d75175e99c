"""A server that is killed replays its log over files from which deleted points were removed."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from tests.qdrant import Node, running_server, wait_until
from zsvec.store.backends.base import Points, Put, Where
from zsvec.store.backends.server.backend import connect

COLLECTION = "replayed"
SETTINGS = {
    "QDRANT__STORAGE__OPTIMIZERS__DEFAULT_SEGMENT_NUMBER": "1",
    "QDRANT__STORAGE__OPTIMIZERS__DELETED_THRESHOLD": "0.01",
    "QDRANT__STORAGE__OPTIMIZERS__FLUSH_INTERVAL_SEC": "10",  # compaction and kill come before the next flush
    "QDRANT__STORAGE__OPTIMIZERS__VACUUM_MIN_VECTOR_NUMBER": "100",
}


def test_a_rejected_put_does_not_return(tmp_path: Path) -> None:
    by_filter, by_id = str(uuid.uuid4()), str(uuid.uuid4())
    with running_server(tmp_path, **SETTINGS) as node:
        backend = connect([node.url])
        backend.create(COLLECTION, 1, {"version": "integer"}, ordered=True)
        others = [str(uuid.uuid4()) for _ in range(1000)]
        backend.put(COLLECTION, [Put(by_filter, {"by": "first"}), Put(by_id, {"by": "first"})])
        backend.upsert(COLLECTION, Points(others, [[1.0]] * len(others), [{}] * len(others)))
        wait_until(lambda: _first_in_log(node) > 2, node.log)  # the log no longer has the first puts
        backend.put(COLLECTION, [Put(by_filter, {"by": "second"}), Put(by_id, {"by": "second"})])  # rejected
        backend.delete(COLLECTION, Where(match={"by": "first"}))
        backend.drop(COLLECTION, [by_id, *others[:900]])
        wait_until(lambda: _is_compacted(node), node.log)
        node.restart()
        assert connect([node.url]).retrieve(COLLECTION, [by_filter, by_id]) == {}


def _first_in_log(node: Node) -> int:
    """Number of the first operation that the server would replay."""
    return max((json.loads(file.read_text())["ack_index"] for file in node.folder.rglob("first-index")), default=0)


def _is_compacted(node: Node) -> bool:
    (found,) = node.get("/telemetry?details_level=10")["collections"]["collections"]
    segments = [segment["info"] for segment in found["shards"][0]["local"]["segments"]]
    return sum(one["num_points"] for one in segments) == 100 and not any(one["num_deleted_vectors"] for one in segments)
