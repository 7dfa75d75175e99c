"""What a record of a write must be, to be believed: whoever may write to a store may have put it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

_LATEST = 2**55  # microseconds since 1970

_Types: TypeAlias = Mapping[str, type | tuple[type, ...]]

_WRITE: _Types = {"id": str, "version": int, "rev": int, "store": str, "writes": dict, "replaced": dict}
_TOLD: _Types = {"what": str, "change": str, "until": int, "before": dict}
_MAYBE: _Types = {"by": (str, type(None)), "undoes": (str, type(None)), "moved": list, "forgotten": list}
_UNDO: _Types = {"id": str, "version": int, "rev": int, "store": str, "change": str, "until": int, "takes": list}
_BEFORE: _Types = {"version": int, "writes": list, "references": dict, "texts": list, "metadata": dict}


def is_write(record: Mapping[str, Any]) -> bool:
    """Whether a record says what a write may leave behind: an intent, or a change."""
    return (
        _has(record, _WRITE)
        and 0 <= record["rev"] < _LATEST
        and all(isinstance(write_id, str) for write_id in record["writes"].values())
        and all(_are_texts(write_ids) for write_ids in record["replaced"].values())
    )


def is_told(record: Mapping[str, Any]) -> bool:
    """Whether it tells of a change that can be taken back, too."""
    if not (is_write(record) and _has(record, _TOLD) and 0 <= record["until"] < _LATEST):
        return False
    if not all(isinstance(record.get(key, ([] if kinds is list else None)), kinds) for key, kinds in _MAYBE.items()):
        return False
    moved = record.get("moved", [])
    return (
        _are_texts(moved)
        and _are_texts(record.get("forgotten", []))
        and len(moved) == len(set(moved))
        and len(moved) in (0, 2)
        and set(moved) <= record["before"].keys()
        and all(was is None or _is_state(was) for was in record["before"].values())
    )


def is_undo(record: Mapping[str, Any]) -> bool:
    """Whether a record says what an undo takes back: ids of changes, each with its categories."""
    return (
        _has(record, _UNDO)
        and 0 <= record["until"] < _LATEST
        and isinstance(record.get("by"), str | None)
        and all(
            isinstance(step, dict) and isinstance(step.get("id"), str) and _are_texts(step.get("categories"))
            for step in record["takes"]
        )
    )


def _is_state(was: Any) -> bool:
    """Whether it says what a category was."""
    return (
        isinstance(was, dict)
        and _has(was, _BEFORE)
        and _are_texts(was["writes"])
        and _are_texts(was["texts"])
        and all(isinstance(number, int) for number in was["references"].values())
        and isinstance(was.get("change"), str | None)
    )


def _has(record: Mapping[str, Any], types: _Types) -> bool:
    return all(isinstance(record.get(key), kinds) for key, kinds in types.items())


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
