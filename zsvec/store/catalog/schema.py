"""Payloads of the points of a store: the format of stores on disk.

A store owns the collections of one namespace: the references of each encoder, the small copies of images
(`zsvec.store.collections.images`), the inbox, and the catalog. The points of the catalog are records:

- one record of the store: the version of this schema, an id, the fingerprint of each encoder, the name of the profile
  that the encoders came from, if any, whether small copies of images are kept (``images``: ``small`` or ``none``),
  whether an image may belong to several categories (``labels``: ``many``, else ``one``), how a server searches
  (``search``, if not exact), the last ``measurement`` of that search, if any, and the ``attachments``: collections of
  others whose points are references;
- one manifest per category, which names the committed writes. The manifest of a removed category is a *tombstone*;
- one record of the calibration;
- one intent per write that is in progress or has left garbage to delete;
- one change per recent write that can be undone (`zsvec.store.catalog.history`): the intent with the replaced
  manifests; and one per recent change without a write, such as a dismissal of images of the inbox;
- one record per undo or erasure in progress (`zsvec.store.undo`, `zsvec.store.erasure`).

Every record has a version and the id of its store. The version is 1 for a new record and grows by 1 with each
replacement. Records are replaced by compare-and-set of the version and the store's id (`zsvec.store.catalog.commit`).

A manifest may have the ``parent`` of its category, a chain of names (`zsvec.method.predict.tree`). It is only text: no
record depends on it, and a reader ends a cycle.

A manifest also remembers which references were withdrawn from its category, and which findings of an audit were kept
(`zsvec.store.catalog.marks`). In a store that follows another one (`zsvec.store.following`), the manifest tells which
state of the source it has (``followed``), and the record of the store tells which store is followed (``follows``). In a
copy with other encoders (`zsvec.store.reembedding`), the manifest tells from which state of the source the category was
made (``made_from``).

The ``rev`` of a manifest orders the commits for readers. A manifest can get a new ``rev`` although its category has not
changed, so ``changed`` has the ``rev`` of the last change. Marks do not count as a change: they leave answers as they
are, so a calibration stays current.

Records are validated when read: files can be damaged, and a server may have untrusted writers.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from zsvec.errors import CONTROLS, SURROGATES, InvalidInputError, StoreError, shown
from zsvec.store.catalog.marks import marks_from
from zsvec.store.names import record_id
from zsvec.types import (
    CALIBRATION_FORMAT,
    LONGEST_NAME,
    MAX_LEVELS,
    Attachment,
    Category,
    Fingerprint,
    KeepImages,
    Labels,
    Modality,
    SearchMeasurement,
    SearchParams,
    SmallImage,
    ThresholdProgress,
    names_of_parent,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 3
REFERENCE_INDEXES: Mapping[str, str] = dict.fromkeys(("category", "modality", "gen", "hash"), "keyword")
IMAGE_INDEXES: Mapping[str, str] = {"gen": "keyword", "hash": "keyword"}
CATALOG_INDEXES: Mapping[str, str] = {"kind": "keyword", "rev": "integer"}

LONGEST_SOURCE = 2**20
"""Maximum number of characters in all texts of a point that is copied from another store."""

LEAST_REFRESH = 1.0
"""Shortest time between two reads of the labels of an attached collection, in seconds."""

_CONTENT_HASH = re.compile("[0-9a-f]{64}")
_LARGEST_DIM = 65_536  # Qdrant's
_REFERENCE = ("category", "modality", "gen", "hash", "source")
_REQUIRED = 32  # a manifest keeps this many requirements, the newest, and all of the last transfer
_WRITERS_KEPT = 8  # tokens in a manifest, so that a writer finds its token after later writes
_COLLECTION = re.compile(r'[^<>:"/\\|?*\x00-\x1f]{1,255}')  # as Qdrant allows
_PROFILE = re.compile(r"\w[\w .-]{0,99}")  # no path, and no control characters


# References


@dataclass(frozen=True, slots=True)
class Reference:
    """A text or an image of a category, embedded by one encoder.

    Attributes:
        encoder: Name of the encoder.
        modality: Text or image.
        hash: Content hash of the text or image. A category has one reference per content and encoder.
        source: The text itself, or the origin of the image.
        vector: float32 ``(dim,)``, unit norm.
        prompt: Prompt of a generated image.
        group: Name of a group of near-duplicate images in the category, such as a burst.
        added: Time of addition (UTC), if known.
        by: Author of the addition, if known.
        cut_from: Content hash of the image that this image was cut from, if it is a box.
        small: Small copy of the image to write with the reference; ``None`` for a stored reference.
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
    cut_from: str | None = None
    small: SmallImage | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Encoder, modality and content hash, unique in a category."""
        return self.encoder, self.modality, self.hash


def reference_payload(reference: Reference, category: str, write_id: str) -> dict[str, Any]:
    """Returns the payload of a reference."""
    payload = {
        "category": category,
        "modality": reference.modality,
        "gen": write_id,
        "hash": reference.hash,
        "source": reference.source,
    }
    added = reference.added and reference.added.isoformat(timespec="milliseconds")
    optional = {
        "prompt": reference.prompt,
        "group": reference.group,
        "added": added,
        "by": reference.by,
        "cut_from": reference.cut_from,
    }
    return payload | {name: value for name, value in optional.items() if value is not None}


def reference_from(encoder: str, payload: Mapping[str, Any], vector: NDArray[np.float32]) -> Reference:
    """Returns the reference of a payload."""
    always = (payload["modality"], payload["hash"], payload["source"])
    prompt, group, by = (text_from(payload, key) for key in ("prompt", "group", "by"))
    return Reference(encoder, *always, vector, prompt, group, time_from(payload), by, cut_from_of(payload))


def text_from(payload: Mapping[str, Any], key: str) -> str | None:
    """Returns a field of a payload if it is a string, else ``None``."""
    text = payload.get(key)
    return text if isinstance(text, str) else None


def cut_from_of(payload: Mapping[str, Any]) -> str | None:
    """Returns the content hash of the image that the image of a payload was cut from; ``None`` without a valid one."""
    digest = text_from(payload, "cut_from")
    return digest if digest and is_content_hash(digest) else None


def time_from(payload: Mapping[str, Any]) -> datetime | None:
    """Returns the time of addition in a payload, with a time zone; ``None`` if missing or invalid."""
    try:
        added = datetime.fromisoformat(payload["added"])
    except (KeyError, TypeError, ValueError):
        return None
    return added if added.tzinfo and 1970 <= added.year < 9999 else None  # other years overflow in some time zone


def is_content_hash(text: str) -> bool:
    """Returns whether a text has the form of a content hash."""
    return _CONTENT_HASH.fullmatch(text) is not None


def is_reference(payload: Mapping[str, Any], fields: Iterable[str] = _REFERENCE) -> bool:
    """Returns whether these fields of a payload are strings."""
    return all(isinstance(payload.get(name), str) for name in fields)


# Records


WRITE_KINDS = ("intent", "change")
UNDO = "undo"
"""Kind of the record of an undo in progress."""
ERASURE = "erasure"
"""Kind of the record of an erasure in progress."""
OWN_KINDS = (*WRITE_KINDS, UNDO, ERASURE)
"""Kinds of records with random ids."""
PAST: Mapping[str, str] = {"past": "yes"}
"""Field that marks the records of changes, of which there may be many, so that other reads can exclude them."""
REMOVED: Mapping[str, str] = {"removed": "yes"}
"""Field that marks the tombstones, so that a reader of the present categories can exclude them."""
NO_CALIBRATION: Mapping[str, Any] = {}
LATEST = 2**53
"""Exclusive upper bound of versions and ``rev``: Qdrant compares numbers as float64, which is exact below 2⁵³."""
LOOK_FIELDS = (
    *("kind", "category", "version", "rev", "store", "schema", "id"),
    *("search", "attachments", "encoders", "dropped"),
)
"""Fields that tell whether a record has changed, how a server searches, what is attached, and what was deleted."""


def store_payload(
    fingerprints: Mapping[str, Fingerprint], images: KeepImages, profile: str | None = None, labels: Labels = "one"
) -> dict[str, Any]:
    """Returns the record of a new store."""
    encoders = {name: asdict(fingerprint) for name, fingerprint in fingerprints.items()}
    identity = {"kind": "store", "schema": SCHEMA, "version": 1, "id": uuid.uuid4().hex}
    named = {"profile": profile} if profile else {}
    return {**identity, "encoders": encoders, "images": images, "labels": labels, **named}


def fingerprints_from(store: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Returns the fingerprints of the encoders of a store, by name, according to its record.

    Raises:
        KeyError, TypeError, AttributeError: The record is damaged.
    """
    found = {name: Fingerprint(**fields) for name, fields in store["encoders"].items()}
    for name, one in found.items():
        texts = (one.model, one.revision or "", one.preprocessing)
        if not (all(map(_is_text, texts)) and is_number(one.dim) and 0 < one.dim <= _LARGEST_DIM):
            raise TypeError(f"the fingerprint of {name!r} is invalid")
    return found


def profile_from(store: Mapping[str, Any] | None) -> str | None:
    """Returns the name of the profile that a store was made with, according to its record.

    ``None`` without a name, and for text that could be a path: anyone who may write to the store may have written it.
    """
    name = text_from(store or {}, "profile")
    return name if name and _PROFILE.fullmatch(name) else None


def keeps_images(store: Mapping[str, Any] | None) -> bool:
    """Returns whether a store keeps small copies of images, according to its record."""
    return store is not None and store.get("images") == "small"


def labels_from(store: Mapping[str, Any] | None) -> Labels:
    """Returns to how many categories an image of a store may belong, according to its record."""
    return "many" if store is not None and store.get("labels") == "many" else "one"


def search_params_from(store: Mapping[str, Any] | None) -> SearchParams:
    """Returns how a server searches the references of a store, according to its record; exact search by default."""
    return SearchParams.from_dict((store or {}).get("search"))


def check_attachment(attachment: Attachment) -> None:
    """Raises InvalidInputError if a value of an attachment is out of its range."""
    if not _COLLECTION.fullmatch(attachment.collection):
        raise InvalidInputError(f"collection must be the name of a collection, got {shown(attachment.collection)}")
    if not attachment.label:
        raise InvalidInputError("label must be the name of a payload field, got an empty text")
    for name, value in attachment.where.items():
        if not isinstance(value, str | int):
            raise InvalidInputError(f"where must have texts, integers or booleans, got {shown(value)} for {name!r}")
    if not LEAST_REFRESH <= attachment.refresh < float("inf"):
        raise InvalidInputError(f"refresh must be at least {LEAST_REFRESH:g} second, got {shown(attachment.refresh)}")


def attachments_from(store: Mapping[str, Any] | None) -> list[Attachment]:
    """Returns what is attached to a store, according to its record, which any writer may have made.

    Invalid entries are left out.
    """
    found: dict[tuple[str, str], Attachment] = {}
    entries = (store or {}).get("attachments")
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {
                "collection": str(),
                "expert": str(),
                "label": str(),
                "vector": str(),
                "where": {**where},
                "source": None | str(),
                "refresh": float() | int(),
                "compared": int(),
                "id": str(),
            } if len(entry) == 9 and all(isinstance(name, str) for name in where):
                try:
                    check_attachment(attachment := Attachment(**entry))
                except InvalidInputError:
                    continue
                if all(attachment.id != other.id for other in found.values()):
                    found.setdefault((attachment.collection, attachment.expert), attachment)
    return list(found.values())


def dims_from(store: Mapping[str, Any]) -> dict[str, int]:
    """Returns the dimension of the vectors of each encoder of a store, in its record. Raises as `fingerprints_from`."""
    return {name: fingerprint.dim for name, fingerprint in fingerprints_from(store).items()}


def measurement_from(store: Mapping[str, Any] | None) -> SearchMeasurement | None:
    """Returns the last measurement of the search of a store, according to its record."""
    return SearchMeasurement.from_dict((store or {}).get("measurement"))


def expected(record: Mapping[str, Any]) -> dict[str, str | int]:
    """Returns the condition of a compare-and-set that replaces this record."""
    version: int = record["version"]
    return {"version": version, "store": record["store"]} if "store" in record else {"version": version}


def manifest_payload(
    category: Category,
    store: str,
    writer: str,
    before: Mapping[str, Any] | None,
    change: str | None = None,
    followed: Followed | None = None,
    made_from: str | None = None,
) -> dict[str, Any]:
    """Returns the manifest that commits a category. Without write ids, the manifest removes the category.

    Args:
        category: The category to commit.
        store: Id of the store.
        writer: Token by which the writer recognises its own commit.
        before: The manifest to replace, if any.
        change: Id of the change record, if a history is kept.
        followed: State of a followed store that the category gets; ``None`` for any other write.
        made_from: State of another namespace that the category now has with other encoders
            (`zsvec.store.reembedding`); ``None`` for any other write.
    """
    required = requirements(before) if before else {}
    followed = followed or (_changed_here(before) if before else None)
    content = {
        "writes": list(category.write_ids),
        "references": dict(category.references),
        "texts": list(category.texts),
        "metadata": dict(category.metadata),
    }
    is_same = before is not None and content.items() <= before.items() and parent_from(before) == category.parent
    return {
        "kind": "manifest",
        "store": store,
        "category": category.name,
        "version": category.version,
        "rev": category.rev,
        "changed": before["changed"] if before and is_same else category.rev,
        **content,
        "writers": with_writer(writer, before),
        **({} if category.write_ids else REMOVED),
        **({"parent": category.parent} if category.parent else {}),
        **({"withdrawn": "".join(category.withdrawn)} if category.withdrawn else {}),
        **({"retired": True} if category.retired else {}),
        **({"kept": "".join(category.kept)} if category.kept else {}),
        **({"requires": dict(required)} if required else {}),
        **({"change": change} if change else {}),
        **({"followed": asdict(followed)} if followed else {}),
        **({"made_from": made_from} if made_from else {}),
    }


@dataclass(frozen=True, slots=True)
class Followed:
    """The state of a followed store that a category has, as its manifest tells (`zsvec.store.following`).

    Attributes:
        version: Version of the category in the followed store; 0 if the category was changed here since.
        writes: Ids of the writes of the followed store that the references come from.
        changed: ``rev`` of the last change of the category in the followed store.
    """

    version: int = 0
    writes: Sequence[str] = ()
    changed: int = 0


def followed_from(manifest: Mapping[str, Any]) -> Followed | None:
    """Returns the followed state in a manifest; ``None`` if the category does not come from a followed store.

    A state with an invalid field counts as changed here, so that the category is copied again.
    """
    match manifest.get("followed"):
        case None:
            return None
        case {"version": version, "writes": [*writes], "changed": changed} if (
            is_number(version) and is_number(changed) and all(map(_is_text, writes))
        ):
            return Followed(version, writes, changed)
    return Followed()


def _changed_here(before: Mapping[str, Any]) -> Followed | None:
    """Returns the followed state after a local write. A category that the followed store has removed starts anew."""
    followed = followed_from(before)
    is_gone = followed is not None and followed.version > 0 and not before.get("writes")
    return None if followed is None or is_gone else Followed()


def with_requirements(record: Mapping[str, Any], new: Mapping[str, int]) -> dict[str, int]:
    """Returns the latest requirements of a record, plus new ones: the least version of each category, by name."""
    others = [(name, least) for name, least in requirements(record).items() if name not in new]
    return dict([*others, *new.items()][-max(_REQUIRED, len(new)) :])


def with_writer(writer: str, before: Mapping[str, Any] | None) -> list[str]:
    """Returns the tokens of the last writers, newest first, for a record that replaces `before`."""
    return [writer, *(writers(before) if before else ())][:_WRITERS_KEPT]


def writers(record: Mapping[str, Any]) -> list[str]:
    """Returns the tokens of the last writers of a record, newest first."""
    found = record.get("writers")
    return [token for token in found if isinstance(token, str)] if isinstance(found, list) else []


def category_from(manifest: Mapping[str, Any]) -> Category:
    """Returns the category that a manifest commits.

    Raises:
        StoreError: A field is damaged, or a newer version of zsvec wrote it.
    """
    if unreadable := [name for name, fits in _MANIFEST.items() if not fits(manifest.get(name))]:
        raise StoreError(
            f"the manifest of {manifest['category']!r} cannot be read ({', '.join(unreadable)}): it is damaged, or a "
            "newer version of zsvec wrote it; upgrade zsvec, or restore the store from a copy"
        )
    return Category(
        name=manifest["category"],
        version=manifest["version"],
        rev=manifest["changed"],
        write_ids=tuple(manifest["writes"]),
        texts=tuple(manifest["texts"]),
        references=manifest["references"],
        metadata=manifest["metadata"],
        parent=parent_from(manifest),
        withdrawn=marks_from(manifest, "withdrawn"),
        retired=manifest.get("retired") is True,
        kept=marks_from(manifest, "kept"),
    )


def parent_from(manifest: Mapping[str, Any]) -> str:
    """Returns the parent in a manifest, which any writer may have made; empty without a valid one."""
    parent = text_from(manifest, "parent") or ""
    names = names_of_parent(parent)
    is_valid = (
        len(parent) <= LONGEST_NAME
        and len(names) <= MAX_LEVELS
        and all(map(str.strip, names))
        and manifest.get("category") not in names
        and not re.search(f"[{CONTROLS}{SURROGATES}]", parent)
    )
    return parent if is_valid else ""


def requirements(record: Mapping[str, Any]) -> Mapping[str, int]:
    """Returns the required version of each category that has gained references from the category of this record.

    Before a reader uses this record, it needs the required versions or later ones (`zsvec.store.transfer`).
    """
    required = record.get("requires")
    found = required.items() if isinstance(required, dict) else ()
    return {name: version for name, version in found if is_number(version)}


def calibration_payload(
    calibration: Mapping[str, Any], store: str, writer: str, rev: int, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the record that commits a calibration and replaces `before`. Arguments as for `manifest_payload`."""
    return {
        "kind": "calibration",
        "store": store,
        "version": before["version"] + 1 if before else 1,
        "rev": rev,
        "writers": with_writer(writer, before),
        "fitted": dict(calibration),
    }


def calibration_from(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the calibration in a record; empty if it was removed, the object `NO_CALIBRATION` if it is damaged."""
    calibration = record.get("fitted")
    return calibration if isinstance(calibration, dict) else NO_CALIBRATION


def intent_payload(
    identifier: str,
    store: str,
    rev: int,
    writes: Mapping[str, Sequence[str]],
    replaced: Mapping[str, Sequence[str]],
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns an intent: the record of the garbage that a write may leave.

    Args:
        identifier: Id of the record.
        store: Id of the store.
        rev: Start of the write, in microseconds since 1970.
        writes: New write ids by category.
        replaced: Write ids that the manifest of each category will no longer name.
        told: Description of the change, if a history is kept (`zsvec.store.catalog.history`).
    """
    return {
        "kind": "intent",
        "id": identifier,
        "store": store,
        "version": 1,
        "rev": rev,
        "writes": {name: list(write_ids) for name, write_ids in writes.items() if write_ids},
        "replaced": {name: list(write_ids) for name, write_ids in replaced.items() if write_ids},
        **(told or {}),
    }


def calibrated_revision(calibration: Mapping[str, Any] | None) -> int | None:
    """Returns the ``rev`` stored in a calibration: the largest of the categories at the time of the calibration.

    ``None`` if there is no calibration, or no readable ``rev`` in it.
    """
    if not calibration or calibration.get("format") != CALIBRATION_FORMAT:
        return None
    revision = calibration.get("revision")
    return revision if isinstance(revision, int) and is_number(revision) else None


def threshold_progress(calibration: Mapping[str, Any] | None) -> ThresholdProgress | None:
    """Returns the progress towards a threshold that a calibration has stored, if any."""
    if not calibration or calibration.get("format") != CALIBRATION_FORMAT:
        return None
    return ThresholdProgress.from_dict(calibration.get("threshold_progress"))


def settled_fractions(calibration: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns by encoder the fraction of images that it settles alone, 0 to 1, as a calibration has stored."""
    if not calibration or calibration.get("format") != CALIBRATION_FORMAT:
        return {}
    match calibration.get("cascade"):
        case dict() as rules:
            told = {name: rule.get("settled") for name, rule in rules.items() if isinstance(rule, dict)}
            return {
                name: float(part) for name, part in told.items() if isinstance(part, int | float) and 0 <= part <= 1
            }
    return {}


# Validation


_Checks: TypeAlias = Mapping[str, Callable[[Any], bool]]


def is_number(value: Any) -> bool:
    """Returns whether a value can be a count, a version or a ``rev``: an integer from 0 to below 2⁵³."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LATEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _by_text(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _with(checks: _Checks) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(check(value.get(key)) for key, check in checks.items())


_STATE: _Checks = {
    "version": is_number,
    "writes": _are_texts,
    "texts": _are_texts,
    "references": _by_text(is_number),
    "metadata": _by_text(lambda value: True),
}
_MANIFEST: _Checks = {**_STATE, "changed": is_number}
_RECORD: _Checks = {"version": is_number, "rev": is_number, "store": _is_text, "id": _is_text}
_WRITE: _Checks = {**_RECORD, "writes": _by_text(_are_texts), "replaced": _by_text(_are_texts)}
_STEP: _Checks = {"id": _is_text, "categories": _are_texts}
_KINDS: Mapping[str, _Checks] = {
    "store": {"schema": is_number, "version": is_number, "store": _is_text, "id": _is_text},
    "manifest": {**_RECORD, "category": _is_text},
    "calibration": _RECORD,
    "intent": _WRITE,
    "change": _WRITE,
    UNDO: {
        **_RECORD,
        "change": _is_text,
        "until": is_number,
        "by": _or_none(_is_text),
        "takes": lambda value: isinstance(value, list) and all(map(_with(_STEP), value)),
    },
    ERASURE: {**_RECORD, "change": _is_text, "by": _or_none(_is_text), "image": _is_text, "boxes": _are_texts},
}
_INBOX: _Checks = {
    "removal": _is_text,
    "undone": lambda value: isinstance(value, bool),
    "label": _or_none(_is_text),
}
_CHANGE: _Checks = {
    **_WRITE,
    "what": _is_text,
    "change": _is_text,
    "until": is_number,
    "by": _or_none(_is_text),
    "undoes": _or_none(_is_text),
    "inbox": _or_none(_with(_INBOX)),
    "before": _by_text(_or_none(_with({**_STATE, "change": _or_none(_is_text)}))),
    "moved": _are_texts,
    "forgotten": _are_texts,
    "images": _or_none(_with({"number": is_number, "hashes": _are_texts, "of": _or_none(_by_text(is_number))})),
}


def is_record(identifier: str | None, record: Mapping[str, Any]) -> bool:
    """Returns whether a record has the id and the required fields of its kind. `LOOK_FIELDS` suffice for a manifest."""
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        return False
    absent = {} if kind in OWN_KINDS else {"store": ""} if kind == "store" else {"store": "", "id": ""}
    if not _with(_KINDS[kind])({**absent, **record}):
        return False
    if kind in OWN_KINDS:
        return identifier is not None and identifier == record["id"] and has_own_id(identifier)
    return identifier == (place_of(record) if kind == "manifest" else record_id(kind))


def has_own_id(identifier: str) -> bool:
    """Returns whether an id can be of `OWN_KINDS`, and is not the place of a category, the store or the calibration."""
    return identifier[14:15] != "5"  # the version of a UUID: 4 is random, 5 is made by `record_id`


def place_of(record: Mapping[str, Any]) -> str | None:
    """Returns the id of the manifest for the category in a record; ``None`` without a valid name of a category."""
    name = record.get("category")
    try:
        return record_id("category", name) if isinstance(name, str) else None
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def is_believed(identifier: str, record: Mapping[str, Any]) -> bool:
    """Returns whether a record is used.

    A damaged manifest is used, because it still names its category. Any other damaged record is ignored, as is a write
    with an invalid description of its change.
    """
    if not is_record(identifier, record):
        return place_of(record) == identifier
    return record["kind"] not in WRITE_KINDS or "what" not in record or is_told(record)


def damaged_manifest(identifier: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a placeholder for an unreadable manifest, named after the category or, if unknown, after the record."""
    name = record["category"] if identifier == place_of(record) else f"record {identifier}"
    return {"kind": "manifest", "category": name, "version": -1, "rev": 0}


def is_damaged(manifest: Mapping[str, Any]) -> bool:
    """Returns whether a manifest is a `damaged_manifest`."""
    return bool(manifest["version"] < 0)


def is_told(record: Mapping[str, Any]) -> bool:
    """Returns whether an intent or a change has a valid description of a change, so that undo is possible."""
    if not _with(_CHANGE)({"moved": [], "forgotten": [], **record}):
        return False
    moved = record.get("moved", ())
    return len(moved) == len(set(moved)) in (0, 2) and set(moved) <= record["before"].keys()


def moved_together(record: Mapping[str, Any]) -> Collection[str]:
    """Returns the categories between which a write has moved references, so that all have won or none."""
    return record["before"].keys() if "moved" in record else ()
