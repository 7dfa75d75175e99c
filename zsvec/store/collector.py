"""The collector of garbage: it deletes what no manifest names and no writer can commit any more.

What a change has replaced that can be taken back (`zsvec.store.history`) is kept until that is *final*.

A write declares first what it may leave behind: its *intent*. So the collector need not look through the references.
It *fences* a category before it deletes references that a writer may still be about to commit: it raises the version of
the manifest, so that every commit that was planned before is lost. No clock decides that: how old an intent is only
says whether it is polite to end the attempt of a writer, or to take from a reader what it may be reading.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from zsvec.errors import StoreError
from zsvec.store.base import Put, Where
from zsvec.store.catalog import Catalog, State, id_of
from zsvec.store.history import Cause, History, change_payload, final_payload, is_told, told
from zsvec.store.references import ReferenceCollections
from zsvec.store.schema import category_from, expected, intent_payload, manifest_payload, record_id, write_time
from zsvec.store.transfer import settled
from zsvec.types import Category, Change

READERS = 60.0
"""Seconds that replaced references stay for readers that have just read the manifest that named them."""
WRITERS = 3600.0
"""Seconds that a writer has from its intent to its commit, before a collector makes it begin anew."""

_AT_ONCE = 100  # intents that are settled after one write


@dataclass(slots=True)
class Intent:
    """What a write has declared.

    Attributes:
        id: Of the record.
        change: Id by which manifests name the change; ``None`` where no history is kept.
        won: The manifests of the commits that have won, by category.
    """

    id: str
    change: str | None = None
    won: dict[str, Mapping[str, Any]] = field(default_factory=dict)


class Collector:
    """The garbage of one store.

    Args:
        catalog: Its manifests name the writes that are live.
        references: What to delete from.
        history: Seconds for which changes can be taken back.

    Attributes:
        cause: What the writes of this moment are together.
    """

    def __init__(self, catalog: Catalog, references: ReferenceCollections, history: float = 0.0) -> None:
        self.cause = Cause(what="change")
        self._history = history
        self._catalog = catalog
        self._references = references
        # Where no other process can write, every writer is gone but this one, which is not writing now.
        self._readers, self._writers = (0.0, 0.0) if catalog.exclusive else (READERS, WRITERS)
        self._open: set[str] = set()  # intents of writes of this process
        self._due = 0.0  # when to look for intents: at first, for those that others have left

    @contextmanager
    def intent(
        self,
        before: State,
        names: Iterable[str],
        writes: Mapping[str, str],
        replaced: Mapping[str, Sequence[str]],
        *,
        moved: Sequence[str] = (),
    ) -> Iterator[Intent]:
        """Say what a write may leave behind, before it does; and delete what may go, after it.

        Args:
            before: What it is planned on.
            names: The categories that it is to change.
            writes: The write id under which references of each category are to be written.
            replaced: The write ids that each category loses by the commit.
            moved: The source and the target of a transfer. If it did not win, others may carry it out yet, and what it
                wrote is collected as if its writer were gone. Any other commit that did not win has lost for good.

        Yields:
            For the commits that won.
        """
        identifier, now = str(uuid.uuid4()), time.time_ns() // 1000
        tells = told(self.cause, names, before, now, self._history, moved) if self._history else None
        payload = intent_payload(identifier, before.store, now, writes, replaced, tells)
        leaves = bool(tells or writes or payload["replaced"])
        if leaves:
            self._catalog.put([Put(identifier, payload)])
        intent = Intent(identifier, identifier if tells else None)
        self._open.add(identifier)
        try:
            yield intent
        finally:
            self._open.remove(identifier)
        lost = [write_id for name, write_id in writes.items() if name not in intent.won]
        if lost and not moved:
            self._references.delete(self._catalog.collections(), lost)
        if tells and intent.won:
            change = change_payload(payload, intent.won, _at(intent, now))
            self._catalog.put([Put(identifier, change, expected(payload))])
        elif leaves and not any(replaced.get(name) for name in intent.won) and (intent.won or not moved):
            self._catalog.drop([identifier])
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._readers
            self._finalize(None)
            self._settle(self._oldest(), self._readers, self._writers)

    def collect(self, grace: float | None = None) -> tuple[int, list[Change]]:
        """As `zsvec.store.store.Store.gc`, and the changes that nobody can take back any more."""
        readers, writers = (self._readers, self._writers) if grace is None else (grace, grace)
        could = {change.id: change for change in History(self._catalog).changes()}
        self._finalize(grace)
        found = set(self._references.writes(self._catalog.collections()))
        at_work = {w for record in self._all("intent", "change") for w in _write_ids(record)}
        deleted = self._settle(self._intents(), readers, writers, final=grace is not None) + self._sweep(found, at_work)
        can = {change.id for change in History(self._catalog).changes()}
        return deleted, [change for identifier, change in could.items() if identifier not in can]

    def _finalize(self, grace: float | None) -> None:
        """Let changes be taken back no longer: those that were kept long enough, or of this age in seconds."""
        now = time.time_ns() // 1000
        due = Where(match={"kind": "change"}, until=now if grace is None else None)
        records = [r for r in self._catalog.scroll(due) if grace is None or (now - r["at"]) / 1e6 >= grace]
        for first in range(0, len(records), _AT_ONCE):
            some = records[first : first + _AT_ONCE]
            if puts := [Put(r["id"], final_payload(r), expected(r)) for r in some if r["replaced"]]:
                self._catalog.put(puts)
            if done := [record["id"] for record in some if not record["replaced"]]:
                self._catalog.drop(done)

    def _all(self, *kinds: str) -> list[Mapping[str, Any]]:
        store = self._catalog.state([]).store
        found = self._catalog.scroll(Where(match={"kind": list(kinds)}))
        return sorted((record for record in found if record["store"] == store), key=lambda record: record["rev"])

    def _intents(self) -> list[Mapping[str, Any]]:
        """Those that no write of this process is at, oldest first."""
        return [intent for intent in self._all("intent") if intent["id"] not in self._open]

    def _oldest(self) -> list[Mapping[str, Any]]:
        """As many as are settled after one write."""
        intents = self._intents()
        if len(intents) > _AT_ONCE:  # those whose manifests were lost, which never can be, must keep no others waiting
            there = self._catalog.state({name for intent in intents for name in intent["replaced"]}).manifests
            intents = [intent for intent in intents if intent["replaced"].keys() <= there.keys()]
        return intents[:_AT_ONCE]

    def _settle(
        self, intents: Sequence[Mapping[str, Any]], readers: float, writers: float, *, final: bool = False
    ) -> int:
        """Delete what old intents have left behind, and say how many references that were.

        Args:
            intents: Of no write of this process that is under way.
            readers: Age in seconds from which what was replaced may go.
            writers: Age from which what was not committed may go.
            final: Whether what was replaced goes even if the change can still be taken back.
        """
        deleted = 0
        now = time.time_ns() // 1000
        # What somebody has replaced was committed, and nobody is about to.
        replaced = _replaced(intents)
        for intent in intents:
            age = (now - intent["rev"]) / 1e6
            if age < readers:
                continue
            names = {*intent["writes"], *intent["replaced"], *(intent["before"] if is_told(intent) else ())}
            now_there = settled(self._catalog, names).manifests
            # Its writer has died, or others have carried it out. It is read after the manifests.
            history = History(self._catalog) if is_told(intent) else None
            committed = replaced | _replaced(history.changes_kept()) if history else replaced
            open_writes = {
                name: write_id
                for name, write_id in intent["writes"].items()
                if write_id not in committed and write_id not in _named(now_there.get(name))
            }
            undecided = {*open_writes, *(set(intent["before"]) - history.won(intent) if history else ())}
            if (undecided and age < writers) or not intent["replaced"].keys() <= now_there.keys():
                continue
            fenced = self.fence(undecided, now_there)
            if fenced is None:
                continue
            named = {name: _named(manifest) for name, manifest in {**now_there, **fenced}.items()}
            dead = [w for name, w in open_writes.items() if w not in named[name]]
            kept = (
                history is not None and not final and intent["until"] > now and self._has_become_change(intent, history)
            )
            if not kept:
                needed = history.needed(intent) if history else set[str]()
                if history:
                    self._catalog.put([Put(intent["id"], final_payload(intent), expected(intent))])
                gone = [(name, w) for name, old in intent["replaced"].items() for w in old if w not in needed]
                dead += [w for name, w in gone if w not in named[name]]
            deleted += self._references.delete(self._catalog.collections(), dead) if dead else 0
            if not kept:
                self._catalog.drop([intent["id"]])
        return deleted

    def _has_become_change(self, intent: Mapping[str, Any], history: History) -> bool:
        """Keep what a writer did that died before it said so; False if it has changed nothing."""
        history.catch_up(self._catalog.state(intent["before"]))
        won = history.won(intent)
        if won:
            self._catalog.put([Put(intent["id"], change_payload(intent, won, intent["at"]), expected(intent))])
        return bool(won)

    def fence(
        self, names: Iterable[str], manifests: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """Raise the versions of categories, so that commits which were planned before are lost.

        Args:
            names: The categories.
            manifests: Theirs, if they have any.

        Returns:
            Their manifests then; ``None`` if that does not show.
        """
        names = list(names)
        if not names:
            return {}
        store, rev = self._catalog.state([]).store, self._catalog.next_rev()
        puts = [
            _raised(manifests[name]) if name in manifests else _tombstone(name, store, rev + i)
            for i, name in enumerate(names)
        ]
        self._catalog.put(puts)
        now = settled(self._catalog, names).manifests  # a transfer that had begun names writes, too
        high = all(name in now and now[name]["version"] > _version(manifests.get(name)) for name in names)
        return now if high else None

    def _manifests(self) -> list[Mapping[str, Any]]:
        """All of them, without transfers that have begun."""
        found = self._catalog.manifests()
        if begun := [manifest["category"] for manifest in found if "transfer" in manifest]:
            settled(self._catalog, begun)
            return self._catalog.manifests()
        return found

    def _sweep(self, found: Iterable[tuple[str, str]], at_work: Container[str]) -> int:
        """Delete references of writes that nothing speaks of.

        Args:
            found: Category and write id of all references that there were before the intents were read.
            at_work: The write ids of all intents.

        Raises:
            StoreError: Categories have no manifest, or one from before. Commits may have been lost, so nothing of them
                is deleted.
        """
        manifests = {manifest["category"]: manifest for manifest in self._manifests()}
        live = {name: set(category_from(manifest).write_ids) for name, manifest in manifests.items()}
        unnamed = [(name, w) for name, w in found if w not in at_work and w not in live.get(name, ())]
        orphans = {name for name, _ in unnamed} - live.keys()
        orphans -= self._catalog.state(orphans).manifests.keys()  # where replicas differ, one look shows too little
        if self._catalog.exclusive:  # every write had an intent, so the catalog has lost those after its manifests
            orphans |= {name for name, w in unnamed if name in live and write_time(w) > manifests[name]["rev"]}
        dead = [w for name, w in unnamed if name in live.keys() - orphans]
        deleted = self._references.delete(self._catalog.collections(), dead) if dead else 0
        if orphans:
            raise StoreError(
                f"references of {', '.join(map(repr, sorted(orphans)))} in {self._catalog.location} belong to no "
                "category, and no writer was about to commit them: the catalog may have lost them, so nothing of them "
                "was deleted. Add these categories again, or add and remove them, and collect then"
            )
        return deleted


def _named(manifest: Mapping[str, Any] | None) -> tuple[str, ...]:
    return category_from(manifest).write_ids if manifest else ()


def _at(intent: Intent, begun: int) -> int:
    """When a change was made, by the order of the commits."""
    revs: list[int] = [manifest["rev"] for manifest in intent.won.values()]
    return max([begun, *revs])


def _replaced(records: Iterable[Mapping[str, Any]]) -> set[str]:
    return {write_id for record in records for old in record["replaced"].values() for write_id in old}


def _write_ids(intent: Mapping[str, Any]) -> list[str]:
    return [*intent["writes"].values(), *(w for old in intent["replaced"].values() for w in old)]


def _version(manifest: Mapping[str, Any] | None) -> int:
    return manifest["version"] if manifest else 0


def _raised(manifest: Mapping[str, Any]) -> Put:
    return Put(id_of(manifest), {**manifest, "version": manifest["version"] + 1}, expected(manifest))


def _tombstone(name: str, store: str, rev: int) -> Put:
    category = Category(name=name, version=1, rev=rev, write_ids=(), texts=(), references={})
    manifest = manifest_payload(category, store, uuid.uuid4().hex, None)
    return Put(record_id("category", name), {**manifest, "changed": 0})  # it was nothing and is nothing
