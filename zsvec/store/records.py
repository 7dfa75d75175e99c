"""What a record of a write must be, to be believed: whoever may write to a store may have put it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Microseconds = Annotated[int, Field(ge=0, lt=2**55)]


class _Write(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str
    version: int
    rev: _Microseconds
    store: str
    writes: dict[str, str]
    replaced: dict[str, list[str]]


class _Before(BaseModel):
    model_config = ConfigDict(strict=True)

    version: int
    writes: list[str]
    references: dict[str, int]
    texts: list[str]
    metadata: dict[str, Any]
    change: str | None = None


class _Told(_Write):
    what: str
    change: str
    until: _Microseconds
    before: dict[str, _Before | None]
    by: str | None = None
    undoes: str | None = None
    moved: list[str] = Field(default_factory=list)
    forgotten: list[str] = Field(default_factory=list)


def is_write(record: Mapping[str, Any]) -> bool:
    """Whether a record says what a write may leave behind: an intent, or a change."""
    return _is(_Write, record)


def is_told(record: Mapping[str, Any]) -> bool:
    """Whether it tells of a change that can be taken back, too."""
    if "before" not in record or not _is(_Told, record):
        return False
    moved = record.get("moved", ())
    return len(set(moved)) == len(moved) and len(moved) in (0, 2) and set(moved) <= record["before"].keys()


def _is(model: type[BaseModel], record: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(record)
    except ValidationError:
        return False
    return True
