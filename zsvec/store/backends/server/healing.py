"""Records of a catalog whose copies differ, and how they are made to agree again.

A conditional write can reach one copy alone, where the node that leads it dies between two sends. What copies differ in
is left out of what they agree on, so such a record does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from qdrant_client import QdrantClient, models

from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.replicas import Consistency

Records: TypeAlias = dict[str, Mapping[str, Any]]  # by id
Read: TypeAlias = Callable[[QdrantClient, Consistency], Records]


def differing(clients: Sequence[QdrantClient], read: Read) -> Records:
    """The newest of each record on which not all copies agree, as far as these nodes have it.

    Args:
        clients: Of the nodes that can be asked.
        read: Gives the records as a node has them, with a consistency.
    """
    agreed = read(clients[0], models.ReadConsistencyType.ALL)
    found = [read(clients[0], models.ReadConsistencyType.QUORUM)]
    found += [read(client, 1) for client in clients]  # its own copy, where it has one
    newest: Records = {}
    for records in found:
        for place, record in records.items():
            if "version" in record and record["version"] > newest.get(place, {"version": 0})["version"]:
                newest[place] = record
    return {place: record for place, record in newest.items() if agreed.get(place) != record}


def heal(connection: Connection, catalog: str, records: Records) -> None:
    """Write records above all versions that were seen, wherever there is none above them."""
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
