"""The nodes of a cluster as it knows them itself, whether or not their URLs were given."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from qdrant_client import QdrantClient, models

from zsvec.errors import StoreUnavailableError
from zsvec.inputs.deadline import in_time
from zsvec.store.backends.server.connection import Connection, check_version
from zsvec.store.backends.server.failures import FAILURES, is_missing, is_refusal

_PATIENCE = 2.0  # seconds


def versions(connection: Connection) -> Mapping[str, str]:
    """Version of each peer that answers, by its address; none for a server alone, and for a key that may not ask.

    Raises:
        StoreUnavailableError: The node that is asked waits for others.
    """

    def ask(client: QdrantClient, _: int | None) -> Mapping[str, str]:
        try:
            return in_time(partial(_versions, client), _PATIENCE)  # it is all REST's alone
        except FAILURES as exc:
            if is_refusal(exc) or is_missing(exc):  # a key that may not ask, or a server that cannot answer
                return {}
            raise

    with connection.within(_PATIENCE):
        return connection.call(ask)


def _versions(client: QdrantClient) -> Mapping[str, str]:
    if not isinstance(client.cluster_status(), models.ClusterStatusOneOf1):
        return {}
    found = client.http.distributed_api.cluster_telemetry()
    peers = found.result.cluster.peers if found.result and found.result.cluster else {}
    return {peer.uri: peer.details.version for peer in peers.values() if peer.details}


def check(connection: Connection) -> None:
    """Refuse a cluster of which a peer takes conditional writes for plain ones.

    Raises:
        StoreUnavailableError: One is too old.
    """
    try:
        found = versions(connection)
    except StoreUnavailableError:  # one is away, and what is away takes no writes
        return
    for uri, version in found.items():
        check_version(uri, version)
