"""Names of the collections of a store, and ids of points, records and writes."""

from __future__ import annotations

import time
import uuid

CATALOG = "catalog"
IMAGES = "images"
INBOX = "inbox"

_NAMESPACE = uuid.UUID("6b1f3c80-7a0c-5a52-9d0e-2f6f3a1f5b7e")


def collection_name(namespace: str, encoder: str) -> str:
    """Returns the full name of the collection of an encoder, or of `CATALOG`, `IMAGES` or `INBOX`."""
    return f"{namespace}__{encoder}"


def point_id(encoder: str, category: str, modality: str, write_id: str, content_hash: str) -> str:
    """Returns the id of a reference. Writes are idempotent, since the same content in one write gives the same id."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((encoder, category, modality, write_id, content_hash))))


def record_id(kind: str, name: str = "") -> str:
    """Returns the id of a record of the catalog.

    Args:
        kind: ``store``, ``calibration`` or ``category``.
        name: Name of the category; otherwise empty.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{kind}\0{name}"))


def new_write_id() -> str:
    """Returns a unique write id, which begins with the time."""
    return f"{time.time_ns() // 1000:014x}-{uuid.uuid4().hex[:12]}"


def write_time(write_id: str) -> int:
    """Returns when a write began by the writer's clock, in microseconds since 1970; 0 for an id of another format."""
    try:
        return int(write_id.split("-")[0], 16)
    except ValueError:
        return 0
