"""What zsvec keeps in Qdrant: the names of its collections, the ids of its points, and their payloads.

A store owns the collections of one namespace: one per encoder, whose points are references, one of small copies of
images (`zsvec.store.collections.images`), if it keeps any, and the catalog, whose points are records:

- one record for the store: the version of this schema, an id of its own, the fingerprint of each encoder, and whether
  it keeps small copies of images (``images``: ``small`` or ``none``; without it none, and no collection for them);
- one manifest per category, which names the writes whose references are live;
- one record for the calibration;
- one intent per write that is under way, or has left something to be deleted: whatever it may leave behind;
- one change per write of the last time (`zsvec.store.catalog.history`), which can be taken back: what its intent was,
  and what the manifests were before.

Every record has a version, 1 when it is new and one more for each replacement, and the id of its store; it is written
by compare-and-set of both (`zsvec.store.catalog.commit`). What orders the commits for readers is their ``rev``; a
manifest also keeps the one of its last change (``changed``), for it may get another without a change. The keys of the
payloads are the format of stores on disk.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from zsvec.errors import StoreError
from zsvec.types import CALIBRATION_FORMAT, Category, Fingerprint, KeepImages, Modality, SmallImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 3
CATALOG = "catalog"
IMAGES = "images"
REFERENCE_INDEXES: Mapping[str, str] = {"category": "keyword", "modality": "keyword", "gen": "keyword"}
IMAGE_INDEXES: Mapping[str, str] = {"gen": "keyword", "hash": "keyword"}
CATALOG_INDEXES: Mapping[str, str] = {"kind": "keyword", "rev": "integer"}

_REFERENCE = ("category", "modality", "gen", "hash", "source")
_NAMESPACE = uuid.UUID("6b1f3c80-7a0c-5a52-9d0e-2f6f3a1f5b7e")
_REQUIRED = 32  # categories that a manifest requires
_WRITERS_KEPT = 8  # tokens in a manifest, so that a writer finds its own after others have written


# Names and ids


def collection_name(namespace: str, encoder: str) -> str:
    """Name of the collection of an encoder's references; of the catalog or the images, for `CATALOG` or `IMAGES`."""
    return f"{namespace}__{encoder}"


def point_id(encoder: str, category: str, modality: str, write_id: str, content_hash: str) -> str:
    """Id of a reference: the same content in the same write is the same point."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((encoder, category, modality, write_id, content_hash))))


def record_id(kind: str, name: str = "") -> str:
    """Id of a record of the catalog.

    Args:
        kind: ``store``, ``category`` or ``calibration``.
        name: Of the category.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{kind}\0{name}"))


def new_write_id() -> str:
    """A unique write id, which tells when the write began."""
    return f"{time.time_ns() // 1000:014x}-{uuid.uuid4().hex[:12]}"


def write_time(write_id: str) -> int:
    """When a write began, in microseconds since 1970 by the clock of its writer; 0 for an id that zsvec never made."""
    try:
        return int(write_id.split("-")[0], 16)
    except ValueError:
        return 0


# References


@dataclass(frozen=True, slots=True)
class Reference:
    """A text or an image of a category, embedded by one encoder.

    Attributes:
        encoder: Name of the encoder.
        modality: What was embedded.
        hash: Content hash of the text or image; one content is one reference of a category.
        source: The text itself, or where the image came from.
        vector: float32 ``(dim,)``, unit norm.
        prompt: What a generated image was drawn from.
        group: Names the images of the category that it belongs together with, such as those of a burst.
        added: When it was added (UTC); ``None`` if it was by a version that did not keep that.
        by: Who added it, if that was said.
        small: A copy of the image to keep with it. It is kept elsewhere, so a stored reference has none.
    """

    encoder: str
    modality: Modality
    hash: str
    source: str
    vector: NDArray[np.float32]
    prompt: str | None = None
    group: str | None = None
    added: datetime | None = None
    by: str | None = None
    small: SmallImage | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Encoder, modality and content hash: equal for the same reference of a category."""
        return self.encoder, self.modality, self.hash


def reference_payload(reference: Reference, category: str, write_id: str) -> dict[str, Any]:
    """The payload of a reference."""
    payload = {
        "category": category,
        "modality": reference.modality,
        "gen": write_id,
        "hash": reference.hash,
        "source": reference.source,
    }
    added = reference.added and reference.added.isoformat(timespec="milliseconds")
    optional = {"prompt": reference.prompt, "group": reference.group, "added": added, "by": reference.by}
    return payload | {name: value for name, value in optional.items() if value is not None}


def reference_from(encoder: str, payload: Mapping[str, Any], vector: NDArray[np.float32]) -> Reference:
    """The reference of a payload."""
    always = (payload["modality"], payload["hash"], payload["source"])
    prompt, group, by = (text_from(payload, key) for key in ("prompt", "group", "by"))
    return Reference(encoder, *always, vector, prompt, group, time_from(payload), by)


def text_from(payload: Mapping[str, Any], key: str) -> str | None:
    """A text that a payload may have."""
    text = payload.get(key)
    return text if isinstance(text, str) else None


def time_from(payload: Mapping[str, Any]) -> datetime | None:
    """When the reference or the image of a payload was added, if it says so, with the zone."""
    try:
        added = datetime.fromisoformat(payload["added"])
    except (KeyError, TypeError, ValueError):
        return None
    return added if added.tzinfo and 1970 <= added.year < 9999 else None  # in every zone


def is_reference(payload: Mapping[str, Any], fields: Iterable[str] = _REFERENCE) -> bool:
    """Whether a payload has these fields, which that of every reference has."""
    return all(isinstance(payload.get(name), str) for name in fields)


# Records


WRITE_KINDS = ("intent", "change")
UNDO = "undo"
"""The kind of the record that says what an undo under way takes back."""
OWN_KINDS = (*WRITE_KINDS, UNDO)
"""Kinds of records that choose their ids themselves."""
PAST: Mapping[str, str] = {"past": "yes"}
"""What changes have, which may be many, and no other record."""
NO_CALIBRATION: Mapping[str, Any] = {}
LATEST = 2**53
"""Above every version and ``rev``. Qdrant compares numbers as floats, which are exact below it."""
LOOK_FIELDS = ("kind", "category", "version", "rev", "store", "schema", "id")
"""What tells whether a record has changed."""


def store_payload(fingerprints: Mapping[str, Fingerprint], images: KeepImages) -> dict[str, Any]:
    """The record of a new store: one for all encoders, so that it is there whole or not at all."""
    encoders = {name: asdict(fingerprint) for name, fingerprint in fingerprints.items()}
    identity = {"kind": "store", "schema": SCHEMA, "version": 1, "id": uuid.uuid4().hex}
    return {**identity, "encoders": encoders, "images": images}


def keeps_images(store: Mapping[str, Any] | None) -> bool:
    """Whether a store keeps small copies of images, by its record."""
    return store is not None and store.get("images") == "small"


def expected(record: Mapping[str, Any]) -> dict[str, str | int]:
    """What a record must match to be the one that was read."""
    version: int = record["version"]
    return {"version": version, "store": record["store"]} if "store" in record else {"version": version}


def manifest_payload(
    category: Category, store: str, writer: str, before: Mapping[str, Any] | None, change: str | None = None
) -> dict[str, Any]:
    """The manifest that commits a category; without write ids, the category is removed.

    Args:
        category: The category to commit.
        store: Id of the store.
        writer: Token by which the writer recognises its own commit.
        before: The manifest that is replaced, if there is one.
        change: Id of the change that it is of, if that is kept.
    """
    required = requirements(before) if before else {}
    return {
        "kind": "manifest",
        "store": store,
        "category": category.name,
        "version": category.version,
        "rev": category.rev,
        "changed": category.rev,
        "writes": list(category.write_ids),
        "references": dict(category.references),
        "texts": list(category.texts),
        "metadata": dict(category.metadata),
        "writers": with_writer(writer, before),
        "removed": not category.write_ids,
        **({"requires": dict(required)} if required else {}),
        **({"change": change} if change else {}),
    }


def with_requirement(record: Mapping[str, Any], name: str, version: int) -> dict[str, int]:
    """The last requirements of a record, with another one: readers whose look began before it go by them.

    Args:
        record: The record.
        name: The category that is required.
        version: The least version of it.
    """
    others = [(other, least) for other, least in requirements(record).items() if other != name]
    return dict([*others, (name, version)][-_REQUIRED:])


def with_writer(writer: str, before: Mapping[str, Any] | None) -> list[str]:
    """The last writers of a record, newest first.

    Args:
        writer: Token of the newest.
        before: The record that it replaces, if there is one.
    """
    return [writer, *(writers(before) if before else ())][:_WRITERS_KEPT]


def writers(record: Mapping[str, Any]) -> list[str]:
    """The tokens of the last writers of a record, newest first."""
    found = record.get("writers")
    return [token for token in found if isinstance(token, str)] if isinstance(found, list) else []


def category_from(manifest: Mapping[str, Any]) -> Category:
    """The category that a manifest commits.

    Raises:
        StoreError: It is not as this version of zsvec writes it.
    """
    writes: Any = manifest.get("writes")
    references: Any = manifest.get("references")
    metadata: Any = manifest.get("metadata")
    texts: Any = manifest.get("texts")
    changed = manifest.get("changed", manifest["rev"])
    fields = {
        "version": is_number(manifest["version"]),
        "changed": is_number(changed),
        "writes": are_texts(writes),
        "texts": are_texts(texts),
        "references": isinstance(references, dict) and all(map(is_number, references.values())),
        "metadata": isinstance(metadata, dict),
    }
    if unreadable := [name for name, fits in fields.items() if not fits]:
        raise StoreError(
            f"the manifest of {manifest['category']!r} cannot be read ({', '.join(unreadable)}): it is damaged, or a "
            "newer version of zsvec wrote it; upgrade zsvec, or restore the store from a copy"
        )
    return Category(
        name=manifest["category"],
        version=manifest["version"],
        rev=changed,
        write_ids=tuple(writes),
        texts=tuple(texts),
        references=references,
        metadata=metadata,
    )


def is_number(value: object) -> bool:
    """Whether a value is a count, a version or a ``rev``: at least 0, and below 2⁵³, so that conditions are exact."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LATEST


def are_texts(values: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def requirements(record: Mapping[str, Any]) -> Mapping[str, int]:
    """By category, the least version of it that has what the category of this record has lost to it."""
    required = record.get("requires")
    found = required.items() if isinstance(required, dict) else ()
    return {name: version for name, version in found if is_number(version)}


def calibration_payload(
    calibration: Mapping[str, Any], store: str, writer: str, rev: int, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The record that commits a calibration.

    Args:
        calibration: JSON.
        store: Id of the store.
        writer: Token by which the writer recognises its own commit.
        rev: Of this commit.
        before: The record that is replaced, if there is one.
    """
    return {
        "kind": "calibration",
        "store": store,
        "version": before["version"] + 1 if before else 1,
        "rev": rev,
        "writers": with_writer(writer, before),
        "fitted": dict(calibration),
    }


def calibration_from(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The calibration of a record, which may be empty; `NO_CALIBRATION` if it is damaged."""
    calibration = record.get("fitted")
    return calibration if isinstance(calibration, dict) else NO_CALIBRATION


def intent_payload(
    identifier: str,
    store: str,
    rev: int,
    writes: Mapping[str, str],
    replaced: Mapping[str, Sequence[str]],
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of what a write may leave behind.

    Args:
        identifier: Of the record.
        store: Id of the store.
        rev: When the write began.
        writes: The write id under which references of each category are written.
        replaced: The write ids that each category loses by the commit.
        told: What is told of a change that can be taken back; see `zsvec.store.catalog.history`.
    """
    return {
        "kind": "intent",
        "id": identifier,
        "store": store,
        "version": 1,
        "rev": rev,
        "writes": dict(writes),
        "replaced": {name: list(write_ids) for name, write_ids in replaced.items() if write_ids},
        **(told or {}),
    }


def calibrated_revision(calibration: Mapping[str, Any] | None) -> int | None:
    """Largest ``rev`` that a calibration was made from; ``None`` for none, one of another format, or damaged."""
    if not calibration or calibration.get("format") != CALIBRATION_FORMAT:
        return None
    revision = calibration.get("revision")
    return revision if isinstance(revision, int) and is_number(revision) else None
