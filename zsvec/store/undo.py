"""Taking changes back: categories become again what they were before.

What a change has replaced is written again under a new write id, as references that move are, unless the category still
has those writes. So no write that was replaced is ever named again, and the collector may delete it without asking who
is about to. Whether it has begun to, the record of the change says: it is made final first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from zsvec.errors import InvalidInputError, shown
from zsvec.store.catalog import Catalog
from zsvec.store.collector import Collector
from zsvec.store.commit import publish
from zsvec.store.history import Cause, History, Record, state_before
from zsvec.store.references import ReferenceCollections
from zsvec.store.schema import Reference, new_write_id
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
    if name is not None:
        record: Record | None = history.last_of(name)
        taken: list[tuple[Record, str]] = []
        while record and (not taken or record["change"] == taken[0][0]["change"]):
            names = record.get("moved") or [name]
            _take_back(catalog, references, collector, history, record, names)
            taken += [(record, one) for one in names]
            record = next(history.done(name), None)
        return replace(history.changed_by(taken), undone=True)
    found = _chosen(history, identifier)
    for record, names in history.to_take_back(found):
        _take_back(catalog, references, collector, history, record, names)
    return replace(found, undone=True)


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

    def attempt() -> bool:
        before = settled(catalog, names)
        history.catch_up(before)
        done = [name for name in pending if _is_taken_back(history, record, name, cause)]
        pending[:] = [] if done and moved else [name for name in pending if name not in done]
        if not pending:
            return True
        for name in pending:
            if not _is_last(history, record, name):
                raise InvalidInputError(
                    f"{name!r} has been changed while a change of it was taken back: `zsvec history` shows by what"
                )
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


def _is_last(history: History, record: Record, name: str) -> bool:
    """Whether nothing of a category has been changed since, but for what was taken back."""
    last = next(history.done(name), None), next(history.chain(name), None)
    return record["id"] in {found["id"] for found in last if found}


def _is_taken_back(history: History, record: Record, name: str, cause: Cause) -> bool:
    """Whether somebody else has carried it out."""
    last = next(history.chain(name), None)
    return last is not None and last.get("undoes") == record["id"] and last["change"] == cause.id


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
