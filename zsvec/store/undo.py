"""Undo: makes categories as they were before a change.

Replaced references are written again under a new write id, as moved references are, unless the category still has the
old writes. So no manifest names a replaced write again, and the collector may delete such a write without further
checks. Before the collector deletes the references of a change, it makes the record of the change final.

An undo of several writes, or of one write of several categories, takes several commits. Before the first commit, a
record of the undo is written, and each commit has the change id of the undo. So any process can finish the undo. Every
process does so before it writes, whether the process that began the undo still runs or was killed. The history of a
category shows the commits of all processes, and compare-and-set lets only one of two equal commits win.

An undo of a change of the inbox commits no category. It has a record as well, and is idempotent.
"""

from __future__ import annotations

import shlex
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zsvec.errors import ChangeIdNeededError, InvalidInputError, shown
from zsvec.store import erasure
from zsvec.store.backends.base import Put
from zsvec.store.catalog.commit import publish
from zsvec.store.catalog.history import Cause, History, Record, is_final, state_before
from zsvec.store.catalog.schema import UNDO, Reference, moved_together
from zsvec.store.names import new_write_id
from zsvec.store.transfer import settled
from zsvec.store.writing import ChangedError, Losses, Plan, Writer, counted_by_expert, emptied, has_same_content
from zsvec.types import Category, Change, counted

MOST_IMAGES = 100
"""Largest number of images of a change that is undone without its id."""


def undo(writer: Writer, name: str | None, identifier: str | None, needs_id: Callable[[Change], bool]) -> Change:
    """As `zsvec.store.store.Store.undo`. `needs_id` is the method of the store."""
    catalog = writer.catalog
    history = History(catalog)
    found, steps = _planned(writer, history, name, identifier)
    if identifier is None and needs_id(found):
        raise id_needed(found, name)
    if len(steps) == 1 and len(steps[0][1]) == 1:
        _take_back(writer, history, *steps[0])
        return replace(found, undone=True)
    undo_record = _undo_payload(writer.collector.cause, steps, catalog.state([]).store)
    catalog.put([Put(undo_record["id"], undo_record)])
    history = History(catalog)
    try:  # another writer may have changed a category before this record; later writers finish the undo first
        _planned(writer, history, name, found.id)
    except InvalidInputError:
        if not _has_begun(history, undo_record):
            catalog.drop([undo_record["id"]])
            raise
    _carry_out(writer, history, undo_record)
    return replace(found, undone=True)


def _planned(
    writer: Writer, history: History, name: str | None, identifier: str | None
) -> tuple[Change, list[tuple[Record, list[str]]]]:
    """Returns the change to undo and its writes, newest first, each with the categories to undo.

    Raises:
        InvalidInputError: There is no such change, the change cannot be undone, or a category has been changed since.
    """
    if name is None:
        found = _chosen(history, identifier)
        steps = history.to_take_back(found, writer.references.keys)
        if history.is_undo(found):
            again = {one for _, names in steps for one in names}
            left_out = tuple(one for one in found.categories if one not in again)
            found = replace(found, categories=tuple(sorted(again)), left_out=left_out)
        return found, steps
    if identifier is None:
        history.check_not_final(name)
    elif history.is_undo(chosen := _chosen(history, identifier)):
        raise InvalidInputError(f"an undo is undone by its id alone, {chosen.id[:8]}: leave out the category {name!r}")
    steps = history.last_of(name)
    found = history.changed_by([(record, one) for record, names in steps for one in names])
    if identifier is not None and found.id != chosen.id:
        raise InvalidInputError(
            f"the change to undo must be the last one of {name!r}, {found.id[:8]} ({found.what}), got "
            f"{shown(identifier)}: `zsvec history` lists the changes"
        )
    return found, steps


def _has_begun(history: History, undo_record: Record) -> bool:
    """Returns whether another process has found the record of an undo, and has begun to carry it out."""
    own = (record for record in history.records.values() if record["change"] == undo_record["change"])
    return not {step["id"] for step in undo_record["takes"]}.isdisjoint(record.get("undoes") for record in own)


def finish(writer: Writer, record: Record) -> None:
    """Carries out a recorded undo, or the rest of it, and deletes the record. Raises as `_carry_out`."""
    writer.collector.cause = Cause(what=UNDO, by=record.get("by"), id=record["change"])
    _carry_out(writer, History(writer.catalog), record)


def _undo_payload(cause: Cause, steps: Sequence[tuple[Record, Sequence[str]]], store: str) -> dict[str, Any]:
    return {
        "kind": UNDO,
        "id": str(uuid.uuid4()),
        "store": store,
        "version": 1,
        "rev": time.time_ns() // 1000,
        "change": cause.id,
        "until": max(record["until"] for record, _ in steps),
        "takes": [{"id": record["id"], "categories": list(names)} for record, names in steps],
        **({"by": cause.by} if cause.by else {}),
    }


def _carry_out(writer: Writer, history: History, undo_record: Record) -> None:
    """Undoes the steps that are not undone yet, and deletes the record of the undo.

    Raises:
        InvalidInputError: A category has been changed since, or a change is final. The other steps are undone.
        ConflictError: Other writers changed a category at every attempt. The record stays.
    """
    refused: list[InvalidInputError] = []
    # A commit without a change would end the history of its category, and hide the next step.
    writer.collector.cause = replace(writer.collector.cause, until=undo_record["until"])
    for step in undo_record["takes"]:
        record = history.records.get(step["id"])
        names = [name for name in step["categories"] if record and name in record["before"]]
        if record and not record["before"]:
            _switch_removals(writer, history, record)
        elif record and names:
            try:
                _take_back(writer, history, record, names)
            except InvalidInputError as exc:
                refused.append(exc)
    writer.catalog.drop([undo_record["id"]])
    if refused:
        raise refused[0]


def _switch_removals(writer: Writer, history: History, record: Record) -> None:
    """Undoes a change of the inbox: puts images back, or removes them again if the change is an undo."""
    inbox = record.get("inbox")
    undone_by = {one["change"] for one in history.records.values() if one.get("undoes") == record["id"]}
    if not inbox or writer.collector.cause.id in undone_by:
        return
    writer.collector.cause = replace(writer.collector.cause, undoes=record["id"])
    undone = not inbox["undone"]
    writer.inbox.switch(inbox["removal"], undone=undone)
    images = record.get("images")
    writer.collector.note(str(uuid.uuid4()), {**inbox, "undone": undone}, after=record["rev"], images=images)


def one_of(changes: Iterable[Change], identifier: str) -> Change:
    """Returns the change whose id begins with `identifier`.

    Raises:
        InvalidInputError: No change or several changes match.
    """
    found = [change for change in changes if identifier and change.id.startswith(identifier)]
    if len(found) != 1:
        several = "several changes begin" if found else "no change that can be taken back begins"
        raise InvalidInputError(f"{several} with {shown(identifier)}: `zsvec history` lists those there are")
    return found[0]


def _chosen(history: History, identifier: str | None) -> Change:
    """Returns the change whose id begins with `identifier`; by default, the last change.

    Raises:
        InvalidInputError: No change or several changes match.
    """
    changes = history.changes()
    if identifier is not None:
        return one_of(changes, identifier)
    if newest := history.last():
        if newest.final:
            raise is_final(newest.id)
        return newest
    if any(next(history.done(name), None) for change in changes for name in change.categories):
        raise InvalidInputError(
            "there is no last change: several were made at once over the same categories; take them back by category "
            "(`zsvec undo --category`)"
        )
    raise InvalidInputError("there is no change that can be taken back: `zsvec history` lists those there are")


def _take_back(writer: Writer, history: History, record: Record, names: Sequence[str]) -> None:
    """Undoes one write for some categories, and brings `history` up to date.

    Raises:
        InvalidInputError: A category has been changed since, or the change is final.
        ConflictError: Other writers changed a category at every attempt.
    """
    catalog = writer.catalog
    cause = writer.collector.cause = replace(writer.collector.cause, undoes=record["id"])
    pending = list(names)
    moved = bool(moved_together(record))
    late: list[str] = []

    def attempt() -> bool:
        before = settled(catalog, names)
        history.catch_up(before)
        done = [name for name in pending if _is_taken_back(history, record, name, cause)]
        pending[:] = [] if done and moved else [name for name in pending if name not in done]
        changed = [name for name in pending if not history.is_last(record, name, writer.references.keys)]
        if changed and (moved or len(pending) == len(names)):  # nothing is undone yet
            raise _changed_meanwhile(changed[0])
        late.extend(changed)
        pending[:] = [name for name in pending if name not in changed]
        if not pending:
            return True
        latest = before.categories()
        if not latest.keys() >= set(pending):  # replicas differ
            raise ChangedError
        was = {name: state_before(record, name) for name in pending}
        is_erased = erasure.in_progress(catalog)  # after the state, and before the references
        read = {name: list(writer.references.read(state)) if state else [] for name, state in was.items()}
        told = history.latest(record)  # may count fewer references, if an image was forgotten
        if told is None:
            raise InvalidInputError(f"the change {record['change'][:8]} has been made final, and cannot be taken back")
        for name, found in read.items():
            _check_complete(told, name, found)
            found[:] = [reference for reference in found if not is_erased(reference)]
        plans = {name: _as_before(told, latest[name], found) for name, found in read.items()}
        stored = {name: [*latest[name].write_ids, *(state.write_ids if state else ())] for name, state in was.items()}
        images = told.get("images")
        if moved:
            there = {name: writer.references.keys(latest[name]) for name in plans}
            gains, losses = _moved_back(latest, there, read, plans)
            losses = replace(losses, pair=record["moved"][::-1])  # the category that gained now loses
            won = writer.carry_out(gains, before, stored, losses=losses, images=images)
        else:
            same = [name for name, plan in plans.items() if has_same_content(plan[0], latest[name])]
            won = dict(publish(catalog, writer.carry_out(list(plans.values()), before, stored, images=images), same))
        pending[:] = [name for name in pending if name not in won]
        return not pending

    writer.until_won(attempt, pending)
    history.catch_up(settled(catalog, names))
    if late:
        raise _changed_meanwhile(late[0])


def _moved_back(
    latest: Mapping[str, Category],
    there: Mapping[str, Collection[tuple[str, str, str]]],
    was: Mapping[str, Sequence[Reference]],
    plans: Mapping[str, Plan],
) -> tuple[list[Plan], Losses]:
    """Returns the plans that undo a move.

    Args:
        latest: The categories now, by name.
        there: By category, the keys of the references now.
        was: By category, the references before the move.
        plans: By category, the plan that makes it as it was.
    """
    gains: list[Plan] = []
    losing: list[Plan] = []
    gained: dict[tuple[str, str, str], set[str]] = {}
    for name, plan in plans.items():
        back = [reference for reference in was[name] if reference.key not in there[name]]
        for reference in back:
            gained.setdefault(reference.key, set()).add(name)
        loses = len(there[name]) + len(back) > len(was[name])
        if back and loses:
            counts = Counter(latest[name].references) + Counter(counted_by_expert(back))
            write_ids = (*latest[name].write_ids, new_write_id())
            gains.append((replace(latest[name], rev=0, write_ids=write_ids, references=dict(counts)), back))
        elif back:
            gains.append(plan)
        if loses or not back:
            losing.append(plan)
    gaining = {name: set[str]().union(*(gained.get(key, ()) for key in there[name])) - {name} for name in plans}
    return gains, Losses(plans=losing, gaining=gaining)


def id_needed(change: Change, name: str | None) -> ChangeIdNeededError:
    """Returns the error for an undo without an id, if the last change needs its id."""
    whose = f"the last change of {name!r}" if name else "the last change"
    rule = f"concerns more than {MOST_IMAGES} images" if change.images > MOST_IMAGES else "is not your own"
    by = f" by {change.by!r}" if change.by else ""
    images = f" of {counted(change.images, 'image')}" if change.images else ""
    part = f" --category {shlex.quote(name)}" if name else ""
    error = ChangeIdNeededError(
        f"{whose} ({change.what}{images}{by}, {change.at:%Y-%m-%d %H:%M} UTC) {rule}, so an undo needs its id: "
        f"`zsvec undo {change.id[:8]}{part}`"
    )
    error.change = change
    return error


def _changed_meanwhile(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name!r} has been changed while a change of it was taken back: `zsvec history` shows by what"
    )


def _is_taken_back(history: History, record: Record, name: str, cause: Cause) -> bool:
    """Returns whether any process has undone a write as part of this undo, even if this undo was undone since."""
    return any(other.get("undoes") == record["id"] and other["change"] == cause.id for other in history.chain(name))


def _check_complete(record: Record, name: str, found: Sequence[Reference]) -> None:
    """Raises InvalidInputError if references that a category had before a change are missing."""
    was = state_before(record, name)
    if was and len(found) < sum(was.references.values()):
        raise InvalidInputError(
            f"{name!r} cannot be as it was before the change {record['change'][:8]}: only {len(found)} of "
            f"{sum(was.references.values())} references of then are left"
        )


def _as_before(record: Record, now: Category, found: Sequence[Reference]) -> Plan:
    """Returns the plan that makes a category as it was before a change, from the old references that were found."""
    was = state_before(record, now.name)
    if was and set(was.write_ids) <= set(now.write_ids):
        return replace(was, version=now.version + 1), ()
    if not (was and found):  # no manifest, or all references were forgotten
        return replace(emptied(now), withdrawn=was.withdrawn if was else ()), ()
    counts = counted_by_expert(found)
    return replace(was, version=now.version + 1, write_ids=(new_write_id(),), references=counts), found
