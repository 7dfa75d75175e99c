"""The history of a store: what each change of the last time was, and in which order changes can be taken back.

An intent (`zsvec.store.collector`) tells what the manifests say that its write is to replace. When the write has won,
it becomes a record of kind ``change``, and is kept for a while with the references that were replaced. The manifest
names the change that made it, and the change what was *before*, with the change that had made that. So the changes of a
category are a chain, whatever the clocks of its writers said. A change that is not in the chain of a category has not
won there; one that no record tells of, such as that of a writer that keeps no history, ends it.

Taking back is a change as well. In effect are, from the newest on, all changes of the chain but those that were taken
back: after one that takes back another, the chain goes on with what was before that one.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from zsvec.errors import InvalidInputError, StoreError
from zsvec.store.base import Where
from zsvec.store.catalog import Catalog, State
from zsvec.store.schema import category_from
from zsvec.types import Category, Change

Record: TypeAlias = Mapping[str, Any]

FORGET = "forget"
"""What cannot be taken back: what was before it can be, without what is forgotten."""

_STATE = ("version", "writes", "references", "texts", "metadata", "change")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What several writes are together: one change, for people.

    Attributes:
        what: In one word.
        by: Who makes it, if that is said.
        id: Of the change.
        undoes: Id of the write that is taken back, by a write that takes one back.
    """

    what: str
    by: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    undoes: str | None = None


def told(
    cause: Cause, names: Iterable[str], before: State, at: int, seconds: float, moved: Sequence[str] = ()
) -> Record:
    """What an intent tells of its change.

    Args:
        cause: What it is part of.
        names: The categories that it is to change.
        before: What they are planned on.
        at: When it begins, in microseconds since 1970.
        seconds: How long it is to be kept.
        moved: The source and the target, of references that move.
    """
    optional = {"by": cause.by, "undoes": cause.undoes, "moved": list(moved) or None}
    return {
        "what": cause.what,
        "change": cause.id,
        "at": at,
        "until": at + round(seconds * 1e6),
        "before": {name: _kept(before.manifests.get(name)) for name in names},
        **{name: value for name, value in optional.items() if value is not None},
    }


def change_payload(intent: Record, won: Collection[str], at: int) -> dict[str, Any]:
    """The record of the change that an intent has become.

    Args:
        intent: It.
        won: The categories whose commits have won.
        at: When they did, in microseconds since 1970.
    """
    reduced = {key: {n: v for n, v in intent[key].items() if n in won} for key in ("writes", "replaced", "before")}
    return {**intent, **reduced, "kind": "change", "version": intent["version"] + 1, "at": at, "rev": intent["until"]}


def final_payload(record: Record) -> dict[str, Any]:
    """The intent that a change becomes again that nobody can take back any more: its references are to be deleted."""
    kept = {key: record[key] for key in ("id", "store", "replaced")}
    return {**kept, "kind": "intent", "version": record["version"] + 1, "rev": record["at"], "writes": {}}


class History:
    """The changes of the last time, as the records told at one moment.

    Args:
        catalog: Of the store.

    Attributes:
        records: Of the changes, by id, and of writes that may have become some.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._store = catalog.state([]).store
        self.records: dict[str, Record] = {}
        self._add(catalog.scroll(Where(match={"kind": ["change", "intent"]})))
        self._manifests: Mapping[str, Record] = {}
        self.catch_up(catalog.state({name for record in self.records.values() for name in record["before"]}))

    def catch_up(self, state: State) -> None:
        """Take over what categories are now, and their last changes, if these are new.

        Args:
            state: Their manifests.
        """
        self._manifests = {**self._manifests, **state.manifests}
        last = {manifest.get("change") for manifest in state.manifests.values()} - {None, *self.records}
        self._add(self._catalog.retrieve(sorted(map(str, last))).values())

    def changes_kept(self) -> list[Record]:
        """The records of changes, without those of writes that may have become some."""
        return [record for record in self.records.values() if record["kind"] == "change"]

    def won(self, intent: Record) -> set[str]:
        """The categories that a write has changed, as far as their history reaches."""
        return {n for n in intent["before"] if any(record["id"] == intent["id"] for record in self.chain(n))}

    def needed(self, but: Record) -> set[str]:
        """The write ids that other changes have to have, to be taken back.

        Args:
            but: The record that is no change, or is one no more.
        """
        others = (record for record in self.records.values() if record["id"] != but["id"])
        return {w for record in others for was in record["before"].values() if was for w in was.get("writes", ())}

    def is_kept(self, record: Record) -> bool:
        """Whether a change can still be taken back, so that nobody has begun to delete what it replaced."""
        return any(map(is_told, self._catalog.retrieve([record["id"]]).values()))

    def chain(self, name: str, head: str | None = None) -> Iterator[Record]:
        """The changes of a category, newest first.

        Args:
            name: The category.
            head: The change to begin with; by default its last one.
        """
        identifier = head or self._manifests.get(name, {}).get("change")
        seen: set[str] = set()  # whoever may write to the store can make a ring of them
        while (record := self._record(identifier, name)) and record["id"] not in seen:
            seen.add(record["id"])
            yield record
            identifier = _change_before(record, name)

    def in_effect(self, name: str, head: str | None = None) -> Iterator[Record]:
        """The changes of a category that were not taken back, newest first, with those that take back others."""
        identifier = head or self._manifests.get(name, {}).get("change")
        seen: set[str] = set()
        while (record := self._record(identifier, name)) and record["id"] not in seen:
            seen.add(record["id"])
            yield record
            undone = self._record(record["undoes"], name) if record.get("undoes") else record
            identifier = _change_before(undone, name) if undone else None

    def done(self, name: str) -> Iterator[Record]:
        """The changes of a category that can be taken back one after the other, newest first."""
        return (r for r in self.in_effect(name) if not r.get("undoes") and r["what"] != FORGET)

    def changes(self) -> list[Change]:
        """All of them, newest first."""
        writes: dict[str, list[tuple[Record, str]]] = {}
        for name in self._manifests:
            for record in self.chain(name):
                writes.setdefault(record["change"], []).append((record, name))
        effective = {(record["id"], name) for name in self._manifests for record in self.in_effect(name)}
        found = [
            _change(identifier, some, undone=not any((record["id"], name) in effective for record, name in some))
            for identifier, some in writes.items()
        ]
        return sorted(found, key=lambda change: (change.at, change.id), reverse=True)

    def to_take_back(self, change: Change) -> list[tuple[Record, list[str]]]:
        """The writes of a change, newest first, each with its categories.

        Raises:
            InvalidInputError: A category has been changed since; or all of it is taken back already, or cannot be.
        StoreError: Not all of it is there.
        """
        if change.what == FORGET:
            raise InvalidInputError(f"the change {change.id[:8]} has forgotten an image: that cannot be taken back")
        is_undo = any(record.get("undoes") for record in self.records.values() if record["change"] == change.id)
        last: dict[str, list[Record]] = {}
        for name in change.categories:
            found = list(self.chain(name) if is_undo else self.done(name))
            ours = [record for record in found if record["change"] == change.id]
            if ours and found[: len(ours)] != ours:
                since = next(record for record in found if record["change"] != change.id)
                raise InvalidInputError(
                    f"{name!r} has been changed since by another change ({since['what']}, {since['change'][:8]}): take "
                    "that back first"
                )
            last[name] = ours
        ordered: list[tuple[Record, list[str]]] = []
        while heads := {records[0]["id"]: records[0] for records in last.values() if records}:
            for record in sorted(heads.values(), key=lambda record: record["at"], reverse=True):
                names = [name for name in last if record in last[name]]
                if all(last[name][0] is record for name in names) and set(names) >= set(record.get("moved", ())):
                    ordered.append((record, names))
                    for name in names:
                        last[name].pop(0)
                    break
            else:
                raise StoreError(
                    f"the change {change.id[:8]} ({change.what}) cannot be read as a whole: try again; if that does not"
                    " help, `zsvec doctor` shows whether the copies of a cluster differ"
                )
        if not ordered:
            raise InvalidInputError(f"the change {change.id[:8]} ({change.what}) is taken back already")
        return ordered

    def _add(self, found: Iterable[Record]) -> None:
        self.records |= {r["id"]: r for r in found if r.get("store") == self._store and is_told(r)}

    def _record(self, identifier: str | None, name: str) -> Record | None:
        record = self.records.get(identifier or "")
        return record if record and name in record["before"] else None


def state_before(record: Record, name: str) -> Category | None:
    """A category as it was before a change; ``None`` if it was not there.

    Raises:
        StoreError: That cannot be read.
    """
    before = record["before"][name]
    if not before or not before.get("writes"):
        return None
    return category_from({**before, "kind": "manifest", "category": name, "rev": 0})


def _kept(manifest: Record | None) -> dict[str, Any] | None:
    return {key: manifest[key] for key in _STATE if key in manifest} if manifest else None


def _change_before(record: Record, name: str) -> str | None:
    found = (record["before"][name] or {}).get("change")
    return found if isinstance(found, str) else None


def is_told(record: Record) -> bool:
    """Whether an intent or a change tells of a change, as this version writes it."""
    before = record.get("before")
    if not isinstance(before, dict) or not all(was is None or isinstance(was, dict) for was in before.values()):
        return False
    moved = record.get("moved", [])
    if not isinstance(moved, list) or len(moved) not in (0, 2) or not set(map(str, moved)) <= before.keys():
        return False
    texts = all(isinstance(record.get(key), str) for key in ("what", "change"))
    times = all(isinstance(record.get(key), int) and 0 <= record[key] < 2**55 for key in ("at", "until"))
    return texts and times


def _change(identifier: str, writes: Sequence[tuple[Record, str]], *, undone: bool) -> Change:
    first = min((record for record, _ in writes), key=lambda record: record["at"])
    by = first.get("by")
    return Change(
        id=identifier,
        what=first["what"],
        at=datetime.fromtimestamp(first["at"] / 1e6, tz=UTC),
        by=by if isinstance(by, str) else None,
        categories=tuple(sorted({name for _, name in writes})),
        undone=undone,
    )
