"""The collector of garbage: it deletes what no manifest names and no writer can commit any more.

What a change has replaced that can be taken back (`zsvec.store.catalog.history`) is kept until that is *final*.

A write declares first what it may leave behind: its *intent*. So the collector need not look through the references.
It *fences* a category before it deletes references that a writer may still be about to commit: it raises the version of
the manifest, so that every commit that was planned before is lost. No clock decides that: how old an intent is only
says whether it is polite to end the attempt of a writer, or to take from a reader what it may be reading.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from zsvec.errors import StoreError
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog, State, id_of, readable
from zsvec.store.catalog.history import Cause, History, change_payload, final_payload, told
from zsvec.store.catalog.records import is_told, is_write
from zsvec.store.catalog.schema import category_from, expected, intent_payload, manifest_payload, record_id, write_time
from zsvec.store.collections.references import ReferenceCollections
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
        is_kept = self._history or self.cause.until
        tells = told(self.cause, names, before, now, self._history, moved) if is_kept else None
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
            if self._history:  # who keeps none leaves it to those that do
                self._finalize(None)
            self._settle(self._oldest(), self._readers, self._writers)

    def collect(self, grace: float | None = None) -> tuple[int, list[Change]]:
        """As `zsvec.store.store.Store.gc`, and the changes that nobody can take back any more."""
        readers, writers = (self._readers, self._writers) if grace is None else (grace, grace)
        could = History(self._catalog).changes()
        self._finalize(grace)
        found = set(self._references.writes(self._catalog.collections()))
        at_work = self._at_work()
        deleted = self._settle(self._intents(), readers, writers, final=grace is not None) + self._sweep(found, at_work)
        can = {change.id for change in History(self._catalog).changes()}
        return deleted, [change for change in could if change.id not in can]

    def _finalize(self, grace: float | None) -> None:
        """Let changes be taken back no longer: those that were kept long enough, or of this age in seconds."""
        now = time.time_ns() // 1000
        age = self._history if grace is None else grace
        records = self._catalog.scroll(Where(match={"kind": "change"}, until=now - _microseconds(age)))
        due = [r for r in filter(is_write, records) if grace is not None or not is_told(r) or r["until"] <= now]
        for first in range(0, len(due), _AT_ONCE):
            some = due[first : first + _AT_ONCE]
            if puts := [Put(r["id"], final_payload(r), expected(r)) for r in some if r["replaced"]]:
                self._catalog.put(puts)
            if done := [record["id"] for record in some if not record["replaced"]]:
                self._catalog.drop(done)

    def _all(self, *kinds: str) -> list[Mapping[str, Any]]:
        store = self._catalog.state([]).store
        found = self._catalog.scroll(Where(match={"kind": list(kinds)}))
        kept = (record for record in found if record["store"] == store and is_write(record))
        return sorted(kept, key=lambda record: record["rev"])

    def _at_work(self) -> set[str]:
        """The write ids that intents and changes speak of."""
        return {w for record in self._all("intent", "change") for w in _write_ids(record)}

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
        now = time.time_ns() // 1000
        old = [intent for intent in intents if (now - intent["rev"]) / 1e6 >= readers]
        if not old:
            return 0
        replaced = _replaced(intents)  # that was committed, and nobody is about to
        history = History(self._catalog) if any(map(is_told, old)) else None
        left: list[tuple[str | None, set[str]]] = []
        for intent in old:
            names = {*intent["writes"], *intent["replaced"], *(intent["before"] if is_told(intent) else ())}
            state = settled(self._catalog, names)
            if readable(state.manifests.values())[1]:
                continue  # what a damaged manifest names is not known
            open_writes = {
                (name, write_id)
                for name, write_id in intent["writes"].items()
                if write_id not in replaced and write_id not in _named(state.manifests.get(name))
            }
            undecided = {name for name, _ in open_writes}
            if history and is_told(intent):  # its writer has died, or others have carried it out
                history.catch_up(state)
                undecided |= set(intent["before"]) - history.won(intent)
            young = (now - intent["rev"]) / 1e6 < writers
            if (undecided and young) or not intent["replaced"].keys() <= state.manifests.keys():
                continue
            fenced = self.fence(undecided, state.manifests)
            if fenced is None:
                continue
            manifests = {**state.manifests, **fenced}
            kept = False
            if history and is_told(intent):
                history.catch_up(replace(state, manifests=manifests))
                kept = self._has_become_change(intent, history, now, final=final)
            gone = set() if kept else {(name, w) for name, some in intent["replaced"].items() for w in some}
            dead = {write_id for name, write_id in open_writes | gone if write_id not in _named(manifests.get(name))}
            left.append((None if kept else intent["id"], dead))
        return self._delete(left)

    def _has_become_change(self, intent: Mapping[str, Any], history: History, now: int, *, final: bool) -> bool:
        """Keep what a writer has changed that died before it said so, if it can still be taken back."""
        won = set() if final or intent["until"] <= now else history.won(intent)
        if not won >= set(intent.get("moved", ())):
            won = set()  # of half a move, nothing can be taken back
        after = change_payload(intent, won, intent["rev"]) if won else final_payload(intent)
        self._catalog.put([Put(intent["id"], after, expected(intent))])
        return bool(won)

    def _delete(self, left: Sequence[tuple[str | None, set[str]]]) -> int:
        """Delete writes that intents have left, but none that a change needs; say how many references there were.

        Args:
            left: Ids of writes that no manifest named a moment ago, with that of the intent, which goes with them.
        """
        if not left:
            return 0
        needed = History(self._catalog).needed()  # after the manifests: what is of a change by now was named then
        dead = sorted(set[str]().union(*(some for _, some in left)) - needed)
        deleted = self._references.delete(self._catalog.collections(), dead) if dead else 0
        done = [identifier for identifier, some in left if identifier and needed.isdisjoint(some)]
        if done:
            self._catalog.drop(done)
        return deleted

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

    def _sweep(self, found: Iterable[tuple[str, str]], at_work: set[str]) -> int:
        """Delete references of writes that nothing speaks of.

        Args:
            found: Category and write id of all references that there were before the intents were read.
            at_work: The write ids of which intents and changes spoke then.

        Raises:
            StoreError: Categories have no manifest, or one from before. Commits may have been lost, so nothing of them
                is deleted.
        """
        manifests = {manifest["category"]: manifest for manifest in self._manifests()}
        live = {name: set(category_from(manifest).write_ids) for name, manifest in manifests.items()}
        at_work = at_work | self._at_work()  # of what was replaced since, too
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


def _microseconds(seconds: float) -> int:
    return round(max(min(seconds, 1e9), -1e9) * 1e6)


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
