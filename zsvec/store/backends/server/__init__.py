"""Stores on a Qdrant server: `connect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zsvec.store.backends.base import FIRST_CONTACT, Placement
from zsvec.store.backends.server import connection
from zsvec.store.backends.server.backend import ServerBackend


def connect(
    urls: Sequence[str],
    *,
    api_key: str | None = None,
    ca_certificate: Path | None = None,
    timeout: float = 60.0,
    first_contact: float = FIRST_CONTACT,
    placement: Placement | None = None,
) -> ServerBackend:
    """Reach a deployment: the first of its nodes that answers.

    Args:
        urls: Of its nodes, ``http://`` or ``https://``; without a port, 6333.
        api_key: Key that the servers ask for.
        ca_certificate: PEM file of the authorities to trust, in the place of the usual ones.
        timeout: Deadline of one request, in seconds.
        first_contact: The same of the first one, by which the deployment is found, if it is shorter.
        placement: Of the collections that are made.

    Raises:
        InvalidInputError: A URL names no host and port, or the file of certificates cannot be read.
        StoreUnavailableError: No server can be reached, or it refuses the key, or is too old.
    """
    found = connection.connect(
        urls,
        api_key=api_key,
        ca_certificate=ca_certificate,
        timeout=timeout,
        first_contact=min(first_contact, timeout),
    )
    return ServerBackend(found, placement)
