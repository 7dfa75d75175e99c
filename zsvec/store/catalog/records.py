"""Validates records of the catalog. Files can be damaged, and a server may have other writers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from zsvec.store.catalog.schema import OWN_KINDS, UNDO, WRITE_KINDS, are_texts, is_number, record_id

_Types: TypeAlias = Mapping[str, type | tuple[type, ...]]

_TOLD: _Types = {"what": str, "change": str, "until": int, "before": dict}
_MAYBE: _Types = {"by": (str, type(None)), "undoes": (str, type(None)), "moved": list, "forgotten": list}
_BEFORE: _Types = {"version": int, "writes": list, "references": dict, "texts": list, "metadata": dict}


_ALWAYS: Mapping[str, _Types] = {
    "store": {"schema": int, "version": int},
    "manifest": {"category": str, "version": int, "rev": int},
    "calibration": {"version": int, "rev": int},
    "intent": {"id": str, "rev": int, "store": str, "writes": dict, "replaced": dict},
    "change": {"id": str, "version": int, "rev": int, "store": str, "replaced": dict, "before": dict},
    "undo": {"id": str, "version": int, "rev": int, "store": str, "takes": list},
}
_WRITE: _Types = {**_ALWAYS["intent"], "version": int}
_UNDO: _Types = {**_ALWAYS["undo"], "change": str, "until": int}


def is_record(identifier: str | None, record: Mapping[str, Any]) -> bool:
    """Returns whether a record has the id and the required fields of its kind. `LOOK_FIELDS` of a record suffice."""
    kind = record.get("kind")
    types = _ALWAYS.get(kind) if isinstance(kind, str) else None
    whose = (record.get("store", ""), record.get("id", ""))
    return types is not None and _has(record, types) and are_texts([*whose]) and _is_in_its_place(identifier, record)


def _is_in_its_place(identifier: str | None, record: Mapping[str, Any]) -> bool:
    """Whether a record has the id that its kind and its category make; some kinds have their own."""
    if record["kind"] in OWN_KINDS:
        return bool(identifier == record["id"])
    return identifier == (place_of(record) if record["kind"] == "manifest" else record_id(record["kind"]))


def place_of(record: Mapping[str, Any]) -> str | None:
    """Where the manifest of the category is that a record names; ``None`` if it names none."""
    name = record.get("category")
    try:
        return record_id("category", name) if isinstance(name, str) else None
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def is_believed(identifier: str, record: Mapping[str, Any]) -> bool:
    """Whether a record is used: a manifest always, if only to name its category; others if all they say fits."""
    kind = record.get("kind")
    if not is_record(identifier, record):
        return place_of(record) == identifier
    if kind in WRITE_KINDS:
        return is_told(record) if "what" in record else is_write(record)
    return kind != UNDO or is_undo(record)


def damaged_manifest(identifier: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest in the place of a record that cannot be read: it names the category, or else the record."""
    name = record["category"] if identifier == place_of(record) else f"record {identifier}"
    return {"kind": "manifest", "category": name, "version": -1, "rev": 0}


def is_damaged(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is one of `damaged_manifest`."""
    return bool(manifest["version"] < 0)


def is_write(record: Mapping[str, Any]) -> bool:
    """Whether a record says what a write may leave behind: an intent, or a change."""
    return (
        _has(record, _WRITE)
        and all(isinstance(write_id, str) for write_id in record["writes"].values())
        and all(are_texts(write_ids) for write_ids in record["replaced"].values())
    )


def is_told(record: Mapping[str, Any]) -> bool:
    """Whether it tells of a change that can be taken back, too."""
    if not (is_write(record) and _has(record, _TOLD)):
        return False
    if not all(isinstance(record.get(key, ([] if kinds is list else None)), kinds) for key, kinds in _MAYBE.items()):
        return False
    moved = record.get("moved", [])
    return (
        are_texts(moved)
        and are_texts(record.get("forgotten", []))
        and len(moved) == len(set(moved))
        and len(moved) in (0, 2)
        and set(moved) <= record["before"].keys()
        and all(was is None or _is_state(was) for was in record["before"].values())
    )


def is_undo(record: Mapping[str, Any]) -> bool:
    """Returns whether the fields of an undo are valid: each step has the id of a change and names of categories."""
    return (
        _has(record, _UNDO)
        and isinstance(record.get("by"), str | None)
        and all(
            isinstance(step, dict) and isinstance(step.get("id"), str) and are_texts(step.get("categories"))
            for step in record["takes"]
        )
    )


def _is_state(was: Any) -> bool:
    """Whether it says what a category was."""
    return (
        isinstance(was, dict)
        and _has(was, _BEFORE)
        and are_texts(was["writes"])
        and are_texts(was["texts"])
        and all(map(is_number, was["references"].values()))
        and isinstance(was.get("change"), str | None)
    )


def _has(record: Mapping[str, Any], types: _Types) -> bool:
    return all(
        is_number(record.get(key)) if kinds is int else isinstance(record.get(key), kinds)
        for key, kinds in types.items()
    )
