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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import dropwhile, takewhile
from typing import Any, TypeAlias

from zsvec.errors import InvalidInputError
from zsvec.store.backends.base import Where
from zsvec.store.catalog.catalog import Catalog, State
from zsvec.store.catalog.records import is_told
from zsvec.store.catalog.schema import PAST, WRITE_KINDS, category_from
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
        until: How long it is kept at least, in microseconds since 1970, by a process that keeps no history, too.
    """

    what: str
    by: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    undoes: str | None = None
    until: int = 0


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
        "until": max(at + round(seconds * 1e6), cause.until),
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
    return {**intent, **reduced, **PAST, "kind": "change", "version": intent["version"] + 1, "rev": at}


def final_payload(record: Record) -> dict[str, Any]:
    """The intent that a change becomes again that nobody can take back any more: its references are to be deleted."""
    kept = {key: record[key] for key in ("id", "store", "replaced", "rev")}
    return {**kept, "kind": "intent", "version": record["version"] + 1, "writes": {}}


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
        self._manifests: dict[str, Record] = {}
        self._won: dict[str, set[str]] = {}
        self._add(catalog.scroll(Where(match={"kind": list(WRITE_KINDS)})))
        self.catch_up(catalog.state({name for record in self.records.values() for name in record["before"]}))

    def catch_up(self, state: State) -> None:
        """Take over what categories are now, and the changes that have made them so, if these are new.

        Args:
            state: Their manifests.
        """
        self._manifests |= state.manifests
        known = {None, *self.records}
        new = {_text(manifest, "change") for manifest in state.manifests.values()} - known
        while new:
            found = self._catalog.retrieve(sorted(map(str, new)))
            self._add(found.values())
            known |= new
            added = [self.records[identifier] for identifier in found if identifier in self.records]
            new = {_change_before(record, name) for record in added for name in record["before"]} - known
        for name in state.manifests:
            for record in self._walk(name, _change_before):
                self._won.setdefault(record["id"], set()).add(name)

    def latest(self, record: Record) -> Record | None:
        """A change as it is told now; ``None`` if it is final, so that somebody may have deleted what it replaced."""
        return next(filter(is_told, self._catalog.retrieve([record["id"]]).values()), None)

    def won(self, record: Record) -> set[str]:
        """The categories that a write has changed, as far as their history reaches."""
        return self._won.get(record["id"], set())

    def needed(self) -> set[str]:
        """The write ids that the changes have to have, to be taken back."""
        states = (was for record in self.records.values() for was in record["before"].values() if was)
        return {write_id for was in states for write_id in was["writes"]}

    def chain(self, name: str) -> Iterator[Record]:
        """The changes of a category, newest first."""
        return self._whole(self._walk(name, _change_before))

    def in_effect(self, name: str) -> Iterator[Record]:
        """The changes of a category that were not taken back, newest first, with those that take back others."""

        def before(record: Record, name: str) -> str | None:
            undone = self._record(record["undoes"], name) if record.get("undoes") else record
            return _change_before(undone, name) if undone else None

        return self._whole(self._walk(name, before))

    def done(self, name: str) -> Iterator[Record]:
        """The changes of a category that can be taken back one after the other, newest first."""
        return (r for r in self.in_effect(name) if not r.get("undoes") and r["what"] != FORGET)

    def _walk(self, name: str, before: Callable[[Record, str], str | None]) -> Iterator[Record]:
        identifier = _text(self._manifests.get(name, {}), "change")
        seen: set[str] = set()  # whoever may write to the store can make a ring of them
        while (record := self._record(identifier, name)) and record["id"] not in seen:
            seen.add(record["id"])
            yield record
            identifier = before(record, name)

    def _whole(self, records: Iterator[Record]) -> Iterator[Record]:
        """Those up to a move of which only one category still has the history."""
        return takewhile(lambda record: self.won(record) >= set(record.get("moved", ())), records)

    def changes(self) -> list[Change]:
        """All of them, newest first."""
        writes: dict[str, list[tuple[Record, str]]] = {}
        for name in self._manifests:
            for record in self.chain(name):
                writes.setdefault(record["change"], []).append((record, name))
        effective = {(record["id"], name) for name in self._manifests for record in self.in_effect(name)}
        found = [
            replace(self.changed_by(some), undone=all(self._is_undone(*one, effective) for one in some))
            for some in writes.values()
        ]
        return sorted(found, key=lambda change: (change.at, change.id), reverse=True)

    def _is_undone(self, record: Record, name: str, effective: Collection[tuple[str, str]]) -> bool:
        if record["what"] == FORGET:
            return False
        if record.get("undoes"):  # one that was made before what is in effect now is still no mistake
            return any(other.get("undoes") == record["id"] for other in self.chain(name))
        return (record["id"], name) not in effective

    def changed_by(self, writes: Sequence[tuple[Record, str]]) -> Change:
        """The change that some writes of categories are together."""
        last = max((record for record, _ in writes), key=lambda record: record["rev"])
        return Change(
            id=last["change"],
            what=last["what"],
            at=datetime.fromtimestamp(last["rev"] / 1e6, tz=UTC),
            by=last.get("by"),
            categories=tuple(sorted({name for _, name in writes})),
        )

    def last_of(self, name: str) -> list[tuple[Record, list[str]]]:
        """The writes of the last change of a category, newest first, each with the categories that it is taken back of.

        Raises:
            InvalidInputError: There is none that can be taken back; or a write has moved references between this
                category and another one, which has been changed since.
        """
        done = list(self.done(name))
        if not done:
            raise InvalidInputError(
                f"there is no change of {name!r} that can be taken back: `zsvec history` lists those there are"
            )
        ours = list(takewhile(lambda record: record["change"] == done[0]["change"], done))
        taken: set[str] = set()
        for record in ours:
            for other in record.get("moved", ()):
                before = dropwhile(lambda one: one["id"] in taken, self.done(other))
                if (since := next(before, record))["id"] != record["id"]:
                    raise _changed_since(other, since)
            taken.add(record["id"])
        return [(record, list(record.get("moved", [name]))) for record in ours]

    def last(self) -> Change | None:
        """The newest change that is the last one of all categories where it is in effect; ``None`` without one."""
        heads = {name: next(self.done(name), None) for name in self._manifests}
        for change in self.changes():
            left = [n for n in change.categories if any(record["change"] == change.id for record in self.done(n))]
            if left and all((heads[name] or {}).get("change") == change.id for name in left):
                return replace(change, categories=tuple(left))
        return None

    def to_take_back(self, change: Change) -> list[tuple[Record, list[str]]]:
        """The writes of a change, newest first, each with its categories.

        Raises:
            InvalidInputError: A category has been changed since; or all of it is taken back already, or cannot be.
        """
        if change.what == FORGET:
            raise InvalidInputError(f"the change {change.id[:8]} has forgotten an image: that cannot be taken back")
        is_undo = any(record.get("undoes") for record in self.records.values() if record["change"] == change.id)
        left: dict[str, list[Record]] = {}
        for name in change.categories:
            found = list(self.chain(name) if is_undo else self.done(name))
            ours = list(takewhile(lambda record: record["change"] == change.id, found))
            if not ours and any(record["change"] == change.id for record in found):
                raise _changed_since(name, found[0])
            left[name] = ours
        ordered: list[tuple[Record, list[str]]] = []
        while heads := {records[0]["id"]: records[0] for records in left.values() if records}:
            for record in sorted(heads.values(), key=lambda record: record["rev"], reverse=True):
                names = [name for name in left if any(other["id"] == record["id"] for other in left[name])]
                if all(left[name][0]["id"] == record["id"] for name in names):
                    break
            if not set(names) >= set(record.get("moved", ())):
                raise InvalidInputError(
                    f"the change {change.id[:8]} ({change.what}) has moved references, and only {names[0]!r} tells of "
                    "it any more: look again with `zsvec history`"
                )
            ordered.append((record, names))
            for name in names:
                left[name] = [other for other in left[name] if other["id"] != record["id"]]
        if not ordered:
            raise InvalidInputError(f"the change {change.id[:8]} ({change.what}) is taken back already")
        return ordered

    def _add(self, found: Iterable[Record]) -> None:
        self.records |= {r["id"]: r for r in found if r.get("store") == self._store and is_told(r)}

    def _record(self, identifier: str | None, name: str) -> Record | None:
        record = self.records.get(identifier or "")
        return record if record and name in record["before"] else None


def _changed_since(name: str, since: Record) -> InvalidInputError:
    return InvalidInputError(
        f"{name!r} has been changed since by another change ({since['what']}, {since['change'][:8]}): take that back "
        "first, or take changes back by category"
    )


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
    return _text(record["before"][name] or {}, "change")


def _text(record: Record, key: str) -> str | None:
    found = record.get(key)
    return found if isinstance(found, str) else None
