"""The history of a store: recent changes, and the order in which they can be undone.

An intent (`zsvec.store.collector`) has the manifests that a write replaces. When the write has won, the intent becomes
a record of kind ``change``. The record and the replaced references are kept for the undo window, the time during which
a change can be undone.

A manifest names the change that committed it. A change names the previous change of each category. So the changes of a
category form a chain that does not depend on clocks. A change outside this chain has not won in the category. A commit
without a change record, such as the commit of a writer that keeps no history, ends the chain.

A change without a category, such as a dismissal of images of the inbox, is in no chain. Its record stands alone:
``before`` is empty, and ``inbox`` has the id of the record of the removals (`zsvec.store.collections.inbox`) that the
change makes or undoes. A label has such a record, too, beside the records of its writes.

An undo is a change as well. The chain of changes *in effect* leaves out undone changes: from an undo, the chain goes on
to the change before the undone change.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, dropwhile, takewhile
from typing import Any, TypeAlias

from zsvec.errors import InvalidInputError
from zsvec.store.backends.base import Where
from zsvec.store.catalog.catalog import Catalog, State
from zsvec.store.catalog.schema import (
    PAST,
    WRITE_KINDS,
    category_from,
    intent_payload,
    is_content_hash,
    is_told,
    moved_together,
    text_from,
)
from zsvec.types import Category, Change

Record: TypeAlias = Mapping[str, Any]

Keys: TypeAlias = Callable[[Category], Collection[Any]]
"""Returns the keys of the references that a state of a category has."""

FORGET = "forget"
"""Kind of a change that erases an image, and therefore cannot be undone."""

_EXAMPLES = 6  # images of a write that its record names

_STATE = ("version", "writes", "references", "texts", "metadata", "parent", "withdrawn", "retired", "kept", "change")
_CONTENT = ("references", "texts", "metadata", "parent")  # fields of a state that an undo compares first


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Description that all writes of one change share.

    Attributes:
        what: Kind of the change, in one word.
        by: Author of the change, if known.
        id: Id of the change.
        undoes: Id of the record of the write that this write undoes; ``None`` if the write is not an undo.
        until: Time until which the change must be kept, in microseconds since 1970, even by a process that keeps no
            history; 0 without such a time.
    """

    what: str
    by: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    undoes: str | None = None
    until: int = 0


def concerned(hashes: Iterable[str]) -> Record:
    """Returns the part of a record about the images that a write adds, moves or removes: number and examples."""
    images = list(dict.fromkeys(hashes))
    return {"number": len(images), "hashes": images[:_EXAMPLES]}


def concerned_of_each(hashes: Mapping[str, Iterable[str]]) -> Record:
    """As `concerned`, with the number of images of each category: some categories may lose, and are written again."""
    of_each = {name: list(some) for name, some in hashes.items()}
    numbers = {name: len(set(some)) for name, some in of_each.items()}
    return {**concerned(chain.from_iterable(of_each.values())), "of": numbers}


def told(
    cause: Cause,
    names: Iterable[str],
    before: State,
    at: int,
    seconds: float,
    moved: Sequence[str] | None = None,
    images: Record | None = None,
) -> Record:
    """Returns the description of a change, which becomes part of an intent.

    Args:
        cause: The cause of the write.
        names: Categories that the write may change.
        before: State of the catalog from which the write was planned.
        at: Start of the write, in microseconds since 1970.
        seconds: Undo window in seconds.
        moved: Source and target of a transfer; empty for a transfer between several pairs, ``None`` for another write.
        images: The images that the write concerns, from `concerned`.
    """
    optional = {
        "by": cause.by,
        "undoes": cause.undoes,
        "moved": None if moved is None else list(moved),
        "images": images,
    }
    return {
        "what": cause.what,
        "change": cause.id,
        "until": max(at + round(seconds * 1e6), cause.until),
        "before": {name: _kept(before.manifests.get(name)) for name in names},
        **{name: value for name, value in optional.items() if value is not None},
    }


def change_payload(intent: Record, won: Collection[str], at: int) -> dict[str, Any]:
    """Returns the record of the change that an intent becomes.

    Args:
        intent: The intent.
        won: Categories with a won commit.
        at: Time of the commits, in microseconds since 1970.
    """
    reduced = {key: {n: v for n, v in intent[key].items() if n in won} for key in ("writes", "replaced", "before")}
    images = intent.get("images") or {}
    if not set(images.get("of") or ()) <= set(won):  # the images of the others are written again, as another record
        numbers = {name: number for name, number in images["of"].items() if name in won}
        reduced["images"] = {**images, "of": numbers, "number": sum(numbers.values())}
    return {**intent, **reduced, **PAST, "kind": "change", "version": intent["version"] + 1, "rev": at}


def noted_payload(
    identifier: str, store: str, at: int, tells: Record, inbox: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the record of a change that commits no category.

    Args:
        identifier: Id of the record.
        store: Id of the store.
        at: Time of the change, in microseconds since 1970.
        tells: Description of the change, from `told`.
        inbox: ``removal``, the id of the record that made the removals from the inbox; ``undone``, whether the change
            undoes them; and ``label``, the category of labelled images. ``None`` for another change.
    """
    noted = {**intent_payload(identifier, store, at, {}, {}, tells), **PAST, "kind": "change"}
    return noted if inbox is None else {**noted, "inbox": dict(inbox)}


def final_payload(record: Record) -> dict[str, Any]:
    """Returns the intent that replaces a final change, so that the collector deletes the replaced references."""
    kept = {key: record[key] for key in ("id", "store", "replaced", "rev")}
    return {**kept, "kind": "intent", "version": record["version"] + 1, "writes": {}}


class History:
    """The recent changes, as last read from the catalog.

    Attributes:
        records: By id, records of changes, and intents of writes that may have won.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._store = catalog.state([]).store
        self.records: dict[str, Record] = {}
        self._manifests: dict[str, Record] = {}
        self._won: dict[str, set[str]] = {}
        self._revs: dict[str, int] = {}  # largest rev of the present manifests, by id of the change record
        self._add(catalog.scroll(Where(match={"kind": list(WRITE_KINDS)})))
        self.catch_up(catalog.state({name for record in self.records.values() for name in record["before"]}))

    def catch_up(self, state: State) -> None:
        """Adds the manifests of a later state, and the records of the changes that led to them."""
        self._manifests |= state.manifests
        for manifest in state.manifests.values():
            change = text_from(manifest, "change") or ""
            self._revs[change] = max(manifest["rev"], self._revs.get(change, 0))
        known = {None, *self.records}
        new = {text_from(manifest, "change") for manifest in state.manifests.values()} - known
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
        """Returns the present record of a change; ``None`` if the change is final and references may be gone."""
        return next(filter(is_told, self._catalog.retrieve([record["id"]]).values()), None)

    def won(self, record: Record) -> set[str]:
        """Returns the categories in which a write has won, as far as the history reaches."""
        return self._won.get(record["id"], set())

    def needed(self) -> set[str]:
        """Returns the write ids without which the changes cannot be undone."""
        states = (was for record in self.records.values() for was in record["before"].values() if was)
        return {write_id for was in states for write_id in was["writes"]}

    def replaced(self, name: str) -> set[str]:
        """Returns the write ids of the earlier states of a category that undo may restore."""
        states = (record["before"][name] for record in self.chain(name))
        return {write_id for was in states if was for write_id in was["writes"]}

    def chain(self, name: str) -> Iterator[Record]:
        """Yields the changes of a category, newest first."""
        return self._whole(self._walk(name, _change_before))

    def in_effect(self, name: str, undo: str | None = None) -> Iterator[Record]:
        """Yields the changes of a category that are in effect, newest first, including undos but not undone changes.

        The undo with the id `undo` hides nothing: the changes that it has undone follow.
        """

        def before(record: Record, name: str) -> str | None:
            skips = record.get("undoes") and record["change"] != undo
            undone = self._record(record["undoes"], name) if skips else record
            return _change_before(undone, name) if undone else None

        return self._whole(self._walk(name, before))

    def done(self, name: str, undo: str | None = None) -> Iterator[Record]:
        """Yields the changes of a category that can be undone one after the other, newest first.

        Among the undos, only the one with the id `undo` is such a change.
        """
        found = (record for record in self.in_effect(name, undo) if record["what"] != FORGET)
        return (record for record in found if not record.get("undoes") or record["change"] == undo)

    def is_last(self, record: Record, name: str, keys: Keys) -> bool:
        """Returns whether a write is the last one in effect of a category.

        A write of an undo also counts as the last one if the category is as the undo left it, whatever happened since.
        """
        last = next(self.done(name, record["change"]), None)
        if last and last["id"] == record["id"]:
            return True
        later = next((one for one in self.chain(name) if _change_before(one, name) == record["id"]), None)
        if not record.get("undoes") or later is None:
            return False
        now, left = self._manifests[name], later["before"][name]
        if any(now.get(field) != left.get(field) for field in _CONTENT):
            return False
        was = state_before(later, name)
        return now["writes"] == left["writes"] or (was is not None and keys(category_from(now)) == keys(was))

    def _walk(self, name: str, before: Callable[[Record, str], str | None]) -> Iterator[Record]:
        identifier = text_from(self._manifests.get(name, {}), "change")
        seen: set[str] = set()  # untrusted records can form a cycle
        while (record := self._record(identifier, name)) and record["id"] not in seen:
            seen.add(record["id"])
            yield record
            identifier = before(record, name)

    def _whole(self, records: Iterator[Record]) -> Iterator[Record]:
        # Ends at a move that only some of the categories still have in their history.
        return takewhile(lambda record: self.won(record) >= set(moved_together(record)), records)

    def changes(self) -> list[Change]:
        """Returns all changes, newest first."""
        writes: dict[str, list[tuple[Record, str | None]]] = {}
        for name in self._manifests:
            for record in self.chain(name):
                writes.setdefault(record["change"], []).append((record, name))
        for record in self._alone():
            writes.setdefault(record["change"], []).append((record, _label(record)))
        effective: set[tuple[str, str | None]]
        effective = {(record["id"], name) for name in self._manifests for record in self.in_effect(name)}
        effective |= {(record["id"], _label(record)) for record in self._alone(in_effect=True)}
        found = []
        for some in writes.values():
            can_be_undone = [one for one in some if one[0]["what"] != FORGET]
            over = all(self._is_undone(*one, effective) for one in can_be_undone)
            final = over and len(can_be_undone) < len(some)
            found.append(replace(self.changed_by(some), undone=over and not final, final=final))
        return sorted(found, key=lambda change: (change.at, change.id), reverse=True)

    def _alone(self, *, in_effect: bool = False) -> list[Record]:
        """Returns the records without a category, newest first; with `in_effect`, without undone records."""
        every = (record for record in self.records.values() if record["kind"] == "change" and not record["before"])
        found, undone = [], set()
        for record in sorted(every, key=lambda record: (record["rev"], record["id"]), reverse=True):
            if record["id"] not in undone:
                undone.add(record.get("undoes"))
            elif in_effect:
                continue
            found.append(record)
        return found

    def _is_undone(self, record: Record, name: str | None, effective: Collection[tuple[str, str | None]]) -> bool:
        if name and record["before"] and record.get("undoes"):  # `in_effect` also skips undos that were not undone
            return any(other.get("undoes") == record["id"] for other in self.chain(name))
        return (record["id"], name) not in effective

    def at(self, record: Record) -> int:
        """Returns the time of a change, in microseconds since 1970. Times follow the order of the commits.

        The intent of a killed writer has only the start of the write, which may be below the ``rev`` of earlier
        commits. Then the ``rev`` of the manifest counts.
        """
        rev: int = record["rev"]
        return rev if record["kind"] == "change" else max(rev, self._revs.get(record["id"], 0))

    def changed_by(self, writes: Sequence[tuple[Record, str | None]]) -> Change:
        """Returns the change to which these writes belong.

        A write is a pair of a record and the name of a category, or ``None`` for a change without a category.
        """
        records = {record["id"]: record for record, _ in writes}
        last = max(records.values(), key=self.at)
        images = [told for record in records.values() if (told := record.get("images"))]
        examples = filter(is_content_hash, chain.from_iterable(told["hashes"] for told in images))
        moved = {tuple(record["moved"]) for record in records.values() if record.get("moved")}
        return Change(
            id=last["change"],
            what=last["what"],
            at=_time(self.at(last)),
            begun=_time(min(map(self.at, records.values()))),
            by=last.get("by"),
            categories=tuple(sorted({name for _, name in writes if name is not None})),
            moved=next(iter(moved)) if len(moved) == 1 else (),
            images=sum(told["number"] for told in images),
            examples=tuple(dict.fromkeys(examples))[:_EXAMPLES],
        )

    def check_not_final(self, name: str) -> None:
        """Raises InvalidInputError if the last change of a category, undone ones aside, erased an image."""
        last = next((record for record in self.in_effect(name) if not record.get("undoes")), None)
        if last and last["what"] == FORGET:
            raise is_final(last["change"])

    def last_of(self, name: str) -> list[tuple[Record, list[str]]]:
        """Returns the writes of the last change of a category, newest first, each with the categories to undo.

        Raises:
            InvalidInputError: The category has no change that can be undone, or a write moved references between this
                category and another that has been changed since.
        """
        done = list(self.done(name))
        if not done:
            raise InvalidInputError(
                f"there is no change of {name!r} that can be taken back: `zsvec history` lists those there are"
            )
        ours = list(takewhile(lambda record: record["change"] == done[0]["change"], done))
        taken: set[str] = set()
        for record in ours:
            for other in moved_together(record):
                before = dropwhile(lambda one: one["id"] in taken, self.done(other))
                if (since := next(before, record))["id"] != record["id"]:
                    raise _changed_since(other, since)
            taken.add(record["id"])
        change = done[0]["change"]
        alone = [one for one in self._alone(in_effect=True) if one["change"] == change and _label(one) == name]
        return [*((one, []) for one in alone), *((record, list(moved_together(record)) or [name]) for record in ours)]

    def last(self) -> Change | None:
        """Returns the newest change that is final, or that is the last one in effect in all of its categories.

        Categories in which the change is undone already do not count, and the returned change lacks them. Concurrent
        changes of overlapping categories can leave no such change. Then the result is ``None``.
        """
        heads = {name: next(self.done(name), None) for name in self._manifests}
        alone = {record["change"] for record in self._alone(in_effect=True) if not record.get("undoes")}
        for change in self.changes():
            if change.final:
                return change
            left = [n for n in change.categories if any(record["change"] == change.id for record in self.done(n))]
            if (left or change.id in alone) and all((heads[name] or {}).get("change") == change.id for name in left):
                return replace(change, categories=tuple(left) or change.categories)
        return None

    def to_take_back(self, change: Change, keys: Keys) -> list[tuple[Record, list[str]]]:
        """Returns the writes of a change, newest first, each with the categories to undo.

        If the change is an undo, categories that are not as the undo left them are left out. A write that moved
        references is left out as a whole.

        Raises:
            InvalidInputError: A category has been changed since, the change is undone already, or the change cannot be
                undone. Of an undo, all categories have been changed since.
        """
        left, since = self._left(change, keys)
        is_undo = self.is_undo(change)
        if since and not is_undo:
            raise since[0]
        ordered: list[tuple[Record, list[str]]] = []
        while heads := {records[0]["id"]: records[0] for records in left.values() if records}:
            for record in sorted(heads.values(), key=self.at, reverse=True):
                names = [name for name in left if any(other["id"] == record["id"] for other in left[name])]
                if all(left[name][0]["id"] == record["id"] for name in names):
                    break
            if is_whole := set(names) >= set(moved_together(record)):
                ordered.append((record, names))
            elif not is_undo:
                raise InvalidInputError(
                    f"the change {change.id[:8]} ({change.what}) has moved references, and only {names[0]!r} tells of "
                    "it any more: look again with `zsvec history`"
                )
            for name in names:
                left[name] = [other for other in left[name] if is_whole and other["id"] != record["id"]]
        alone = self._of_inbox(change)
        if not (alone or ordered):
            taken = InvalidInputError(f"the change {change.id[:8]} ({change.what}) is taken back already")
            raise next(iter(since), taken)
        return [*alone, *ordered]

    def _left(self, change: Change, keys: Keys) -> tuple[dict[str, list[Record]], list[InvalidInputError]]:
        """Returns the writes of a change that are in effect, by category, newest first.

        A category that has been changed since has none, and an error. Raises InvalidInputError for a final change.
        """
        if change.final:
            raise is_final(change.id)
        left: dict[str, list[Record]] = {}
        since = []
        for name in change.categories:
            done = list(self.done(name, change.id))
            ours = dropwhile(lambda record: record["change"] != change.id, done)
            left[name] = list(takewhile(lambda record: record["change"] == change.id, ours))
            if left[name] and not self.is_last(left[name][0], name, keys):
                left[name] = []
                since.append(_changed_since(name, done[0]))
        return left, since

    def _of_inbox(self, change: Change) -> list[tuple[Record, list[str]]]:
        """Returns the records of a change that concern the inbox and are in effect, with no category."""
        alone = self._alone(in_effect=True)
        return [(record, []) for record in alone if record["change"] == change.id and record.get("inbox")]

    def is_undo(self, change: Change) -> bool:
        """Returns whether a change has undone another."""
        return any(record.get("undoes") for record in self.records.values() if record["change"] == change.id)

    def can_be_undone(self, change: Change, keys: Keys) -> bool:
        """Returns whether a change is in effect, and `to_take_back` finds writes to undo."""
        try:
            left, since = self._left(change, keys)
        except InvalidInputError:
            return False
        if change.undone or (since and not self.is_undo(change)):
            return False
        heads = {name: records[0] for name, records in left.items() if records}
        return bool(self._of_inbox(change)) or any(
            all(other in heads and heads[other]["id"] == record["id"] for other in moved_together(record))
            for record in heads.values()
        )

    def _add(self, found: Iterable[Record]) -> None:
        self.records |= {r["id"]: r for r in found if r.get("store") == self._store and is_told(r)}

    def _record(self, identifier: str | None, name: str) -> Record | None:
        record = self.records.get(identifier or "")
        return record if record and name in record["before"] else None


def is_final(change: str) -> InvalidInputError:
    """Returns the error for an undo of a change that erased an image."""
    return InvalidInputError(
        f"the change {change[:8]} has forgotten an image, and a forget cannot be undone: to undo an older change, give "
        "its id (`zsvec undo ID`; `zsvec history` lists the ids)"
    )


def _changed_since(name: str, since: Record) -> InvalidInputError:
    return InvalidInputError(
        f"{name!r} has been changed since by another change ({since['what']}, {since['change'][:8]}): take that back "
        "first, or take changes back by category"
    )


def state_before(record: Record, name: str) -> Category | None:
    """Returns a category as it was before a change, without write ids if it was removed; ``None`` without a manifest.

    Raises:
        StoreError: The record cannot be read.
    """
    before = record["before"][name]
    if not before:
        return None
    return category_from({**before, "kind": "manifest", "category": name, "changed": 0})


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, tz=UTC)


def _label(record: Record) -> str | None:
    """Returns the category of images that a change without a category labelled; ``None`` for another record."""
    return text_from(record.get("inbox") or {}, "label")


def _kept(manifest: Record | None) -> dict[str, Any] | None:
    return {key: manifest[key] for key in _STATE if key in manifest} if manifest else None


def _change_before(record: Record, name: str) -> str | None:
    return text_from(record["before"][name] or {}, "change")
