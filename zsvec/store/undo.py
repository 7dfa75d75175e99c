"""Taking changes back: categories become again what they were before.

What a change has replaced is written again under a new write id, as references that move are, unless the category still
has those writes. So no write that was replaced is ever named again, and the collector may delete it without asking who
is about to. Whether it has begun to, the record of the change says: it is made final first.

An undo of several writes, or of a write of several categories, takes several commits. A record of the undo is written
before the first commit, and each commit has the id of its change. So any process can finish the undo, and each process
does so before a write, whether the process of the undo still runs or was killed. The history of a category shows the
commits of other processes, and of two equal commits compare-and-set lets one through.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from zsvec.errors import InvalidInputError, ZSVecError, shown
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.commit import publish
from zsvec.store.catalog.history import Cause, History, Record, state_before
from zsvec.store.catalog.records import is_undo
from zsvec.store.catalog.schema import UNDO, Reference, new_write_id
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.transfer import settled
from zsvec.store.writing import ChangedError, Plan, carry_out, carry_out_move, until_won
from zsvec.types import Category, Change, expert_name


def undo(
    catalog: Catalog,
    references: ReferenceCollections,
    collector: Collector,
    name: str | None,
    identifier: str | None,
) -> Change:
    """As `zsvec.store.store.Store.undo`."""
    if name is not None and identifier is not None:
        raise InvalidInputError("give a category or a change, not both")
    history = History(catalog)
    found, steps = _planned(history, name, identifier)
    if len(steps) == 1 and len(steps[0][1]) == 1:
        _take_back(catalog, references, collector, history, *steps[0])
        return replace(found, undone=True)
    undo_record = _undo_payload(collector.cause, steps, catalog.state([]).store)
    catalog.put([Put(undo_record["id"], undo_record)])
    history = History(catalog)
    try:  # a writer that came before the record may have changed a category; one that comes after it finishes the undo
        _planned(history, name, found.id if name is None else None)
    except InvalidInputError:
        if not _has_begun(history, undo_record):
            catalog.drop([undo_record["id"]])
            raise
    _carry_out(catalog, references, collector, history, undo_record)
    return replace(found, undone=True)


def _planned(
    history: History, name: str | None, identifier: str | None
) -> tuple[Change, list[tuple[Record, list[str]]]]:
    """The change that is to be taken back, and its writes, newest first, each with its categories.

    Raises:
        InvalidInputError: There is no such change, or a category has been changed since.
    """
    if name is None:
        found = _chosen(history, identifier)
        return found, history.to_take_back(found)
    steps = history.last_of(name)
    return history.changed_by([(record, one) for record, names in steps for one in names]), steps


def _has_begun(history: History, undo_record: Record) -> bool:
    """Whether another process has found the record of an undo, and begun to carry it out."""
    ours = (record for record in history.records.values() if record["change"] == undo_record["change"])
    return not {step["id"] for step in undo_record["takes"]}.isdisjoint(record.get("undoes") for record in ours)


def finish_undos(catalog: Catalog, references: ReferenceCollections, collector: Collector) -> None:
    """Finishes the undos of all processes. An undo that fails is left to the next write."""
    with suppress(ZSVecError):
        found = catalog.scroll(Where(match={"kind": UNDO}))
        if not found:
            return
        store = catalog.state([]).store
        for record in sorted(filter(is_undo, found), key=lambda record: record["rev"]):
            if record["store"] == store:
                collector.cause = Cause(what=UNDO, by=record.get("by"), id=record["change"])
                with suppress(InvalidInputError):  # a category has been changed since, and stays as it is
                    _carry_out(catalog, references, collector, History(catalog), record)


def _undo_payload(cause: Cause, steps: Sequence[tuple[Record, Sequence[str]]], store: str) -> dict[str, Any]:
    """The record of an undo.

    Args:
        cause: Of its commits.
        steps: The writes that are taken back, in order, each with its categories.
        store: Id of the store.
    """
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


def _carry_out(
    catalog: Catalog, references: ReferenceCollections, collector: Collector, history: History, undo_record: Record
) -> None:
    """Takes back the steps of an undo that are not taken back yet, and deletes the record of the undo.

    Raises:
        InvalidInputError: A category has been changed since, or a change has been made final. The rest is taken back.
        ConflictError: Others changed a category at each attempt. The record stays.
    """
    refused: list[InvalidInputError] = []
    # A commit that no change tells of would end the history of its category, in which the next step is found.
    collector.cause = replace(collector.cause, until=undo_record["until"])
    for step in undo_record["takes"]:
        record = history.records.get(step["id"])
        names = [name for name in step["categories"] if record and name in record["before"]]
        if record and names:
            try:
                _take_back(catalog, references, collector, history, record, names)
            except InvalidInputError as exc:
                refused.append(exc)
    catalog.drop([undo_record["id"]])
    if refused:
        raise refused[0]


def _chosen(history: History, identifier: str | None) -> Change:
    """The change that is to be taken back.

    Args:
        history: Of the store.
        identifier: Of the change, or its first characters; by default the last one.

    Raises:
        InvalidInputError: There is no such change.
    """
    changes = history.changes()
    if identifier is not None:
        found = [change for change in changes if identifier and change.id.startswith(identifier)]
        if len(found) != 1:
            several = "several changes begin" if found else "no change that can be taken back begins"
            raise InvalidInputError(f"{several} with {shown(identifier)}: `zsvec history` lists those there are")
        return found[0]
    if last := history.last():
        return last
    if any(next(history.done(name), None) for change in changes for name in change.categories):
        raise InvalidInputError(
            "there is no last change: several were made at once over the same categories; take them back by category "
            "(`zsvec undo --category`)"
        )
    raise InvalidInputError("there is no change that can be taken back: `zsvec history` lists those there are")


def _take_back(
    catalog: Catalog,
    references: ReferenceCollections,
    collector: Collector,
    history: History,
    record: Record,
    names: Sequence[str],
) -> None:
    """Take one write back.

    Args:
        catalog: Of the store.
        references: Of the store.
        collector: Of the store.
        history: Of the store; is brought up to date.
        record: The change.
        names: Its categories, each as the change left it.

    Raises:
        InvalidInputError: A category has been changed since, or the change has been made final.
        ConflictError: Others changed a category at each attempt.
    """
    cause = collector.cause = replace(collector.cause, undoes=record["id"])
    pending = list(names)
    moved = record.get("moved", ())[::-1]  # what had gained loses
    late: list[str] = []

    def attempt() -> bool:
        before = settled(catalog, names)
        history.catch_up(before)
        done = [name for name in pending if _is_taken_back(history, record, name, cause)]
        pending[:] = [] if done and moved else [name for name in pending if name not in done]
        if not pending:
            return True
        changed = [name for name in pending if not _is_last(history, record, name, cause)]
        if changed and (moved or len(pending) == len(names)):  # nothing is taken back yet
            raise _changed_meanwhile(changed[0])
        late.extend(changed)
        pending[:] = [name for name in pending if name not in changed]
        if not pending:
            return True
        latest = before.categories()
        if not latest.keys() >= set(pending):  # replicas differ
            raise ChangedError
        read = [(latest[name], _references_before(record, name, references)) for name in pending]
        told = history.latest(record)  # it may count fewer, if an image was forgotten
        if told is None:
            raise InvalidInputError(f"the change {record['change'][:8]} has been made final, and cannot be taken back")
        plans = [_as_before(told, now, found) for now, found in read]
        stored = {name: [*latest[name].write_ids, *_writes_before(record, name)] for name in pending}
        if moved:
            loses, gains = sorted(plans, key=lambda plan: moved.index(plan[0].name))
            won = carry_out_move(catalog, references, collector, loses, gains, before, stored)
        else:
            won = dict(publish(catalog, carry_out(catalog, references, collector, plans, before, stored)))
        pending[:] = [name for name in pending if name not in won]
        return not pending

    until_won(attempt, pending, catalog.location)
    history.catch_up(settled(catalog, names))
    if late:
        raise _changed_meanwhile(late[0])


def _changed_meanwhile(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name!r} has been changed while a change of it was taken back: `zsvec history` shows by what"
    )


def _is_last(history: History, record: Record, name: str, cause: Cause) -> bool:
    """Whether nothing of a category has been changed since, but for what was taken back."""
    taken: set[str] = set()  # by this undo, which may take back what has taken back another change

    def is_left(other: Record) -> bool:
        if other["change"] == cause.id and (undone := other.get("undoes")):
            taken.add(undone)
            return False
        return other["id"] not in taken

    last = next(history.done(name), None), next(filter(is_left, history.chain(name)), None)
    return record["id"] in {found["id"] for found in last if found}


def _is_taken_back(history: History, record: Record, name: str, cause: Cause) -> bool:
    """Returns whether any process has taken a write back by this undo, even if the undo was undone since."""
    return any(other.get("undoes") == record["id"] and other["change"] == cause.id for other in history.chain(name))


def _references_before(record: Record, name: str, references: ReferenceCollections) -> Sequence[Reference]:
    """What a category had before a change, as far as it is there."""
    was = state_before(record, name)
    return list(references.read(was)) if was else []


def _as_before(record: Record, now: Category, found: Sequence[Reference]) -> Plan:
    """A category as it was before a change, and the references to be written for it.

    Raises:
        InvalidInputError: They are not all there.
    """
    was = state_before(record, now.name)
    if was and len(found) < sum(was.references.values()):
        raise InvalidInputError(
            f"{now.name!r} cannot be as it was before the change {record['change'][:8]}: only {len(found)} of "
            f"{sum(was.references.values())} references of then are left"
        )
    if was and set(was.write_ids) <= set(now.write_ids):
        return replace(was, version=now.version + 1), ()
    if not (was and found):
        return Category(name=now.name, version=now.version + 1, rev=0, write_ids=(), texts=(), references={}), ()
    counts = dict(Counter(expert_name(reference.encoder, reference.modality) for reference in found))
    return replace(was, version=now.version + 1, write_ids=(new_write_id(),), references=counts), found


def _writes_before(record: Record, name: str) -> Sequence[str]:
    was = state_before(record, name)
    return was.write_ids if was else ()
