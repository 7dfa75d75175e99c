"""Garbage collection: deletes references that no manifest names and that no writer can still commit.

References that a change has replaced are kept for undo until the change is *final* (`zsvec.store.catalog.history`).

Before a write, an *intent* declares the garbage that the write may leave. So collection after a write need not scan all
references. Before the collector deletes references that a writer may still commit, the category is *fenced*: the
version of the manifest is raised, so that every commit that was planned before is lost. Safety does not depend on
clocks. The age of an intent only decides when to stop a slow writer, and when to delete references that a slow reader
may still be reading.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from zsvec.errors import StoreError
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog, State, id_of, readable
from zsvec.store.catalog.history import Cause, History, change_payload, final_payload, noted_payload, told
from zsvec.store.catalog.schema import (
    category_from,
    expected,
    intent_payload,
    is_told,
    manifest_payload,
    moved_together,
)
from zsvec.store.collections.inbox import InboxCollection
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.names import record_id, write_time
from zsvec.store.transfer import settled
from zsvec.types import Category, Change

READERS = 60.0
"""Seconds for which replaced references stay, for readers of the previous manifest."""
WRITERS = 3600.0
"""Minimum age in seconds of an intent whose uncommitted writer the collector may fence. The writer then plans again."""

_AT_ONCE = 100  # intents to process after one write


@dataclass(slots=True)
class Intent:
    """The intent of a write.

    Attributes:
        id: Id of the record.
        change: Id by which manifests name the change; ``None`` without a history.
        won: Manifests of the commits that have won, by category.
    """

    id: str
    change: str | None = None
    won: dict[str, Mapping[str, Any]] = field(default_factory=dict)


class Collector:
    """Collects the garbage of one store. `history` is the undo window in seconds.

    Attributes:
        cause: Cause of the present write.
    """

    def __init__(
        self, catalog: Catalog, references: ReferenceCollections, inbox: InboxCollection, history: float = 0.0
    ) -> None:
        self.cause = Cause(what="change")
        self._history = history
        self._catalog = catalog
        self._references = references
        self._inbox = inbox
        # If no other process can write, every intent belongs to this process or to a killed one.
        self._readers, self._writers = (0.0, 0.0) if catalog.exclusive else (READERS, WRITERS)
        self._open: set[str] = set()  # ids of the intents of writes in progress in this process
        self._due = 0.0  # when to process old intents again, on the clock of time.monotonic

    @contextmanager
    def intent(
        self,
        before: State,
        names: Iterable[str],
        writes: Mapping[str, Sequence[str]],
        replaced: Mapping[str, Sequence[str]],
        *,
        moved: Sequence[str] | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> Iterator[Intent]:
        """Declares the garbage that a write may leave, and collects garbage after the write.

        Args:
            before: State of the catalog from which the write was planned.
            names: Categories to change.
            writes: New write ids by category.
            replaced: Write ids that the manifest of each category will no longer name.
            moved: Source and target of a transfer; empty for a transfer between several pairs, ``None`` for any other
                write. Other processes may still finish a transfer that has not won, so the new references are collected
                later. Any other commit that has not won is lost, so the new references are deleted at once.
            images: The images that the write concerns (`zsvec.store.catalog.history.concerned`).

        Yields:
            The intent. The caller adds the manifests of the commits that won.
        """
        identifier, now = str(uuid.uuid4()), time.time_ns() // 1000
        is_kept = self._history or self.cause.until
        tells = told(self.cause, names, before, now, self._history, moved, images) if is_kept else None
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
        lost = [write_id for name, some in writes.items() if name not in intent.won for write_id in some]
        if lost and moved is None:
            self._references.delete(self._catalog.collections(), lost)
        if tells and intent.won:
            at = max([now, *(manifest["rev"] for manifest in intent.won.values())])
            change = change_payload(payload, intent.won, at)
            self._catalog.put([Put(identifier, change, expected(payload))])
        elif leaves and not any(replaced.get(name) for name in intent.won) and (intent.won or moved is None):
            self._catalog.drop([identifier])
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._readers
            if self._history:  # processes without a history leave this to the others
                self._finalize(None)
            self._settle(self._oldest(), self._readers, self._writers)

    def note(
        self,
        identifier: str,
        inbox: Mapping[str, Any] | None = None,
        *,
        after: int = 0,
        images: Mapping[str, Any] | None = None,
    ) -> bool:
        """Records a change that commits no category.

        Args:
            identifier: Id of the record.
            inbox: Images that the change has taken out of the inbox, or put back (`zsvec.store.catalog.history`).
            after: Exclusive lower bound of the time of the change, in microseconds since 1970.
            images: The images that the change concerns (`zsvec.store.catalog.history.concerned`).

        Returns:
            Whether the change is recorded. Without a history, it is not.
        """
        if not (self._history or self.cause.until):
            return False
        state, now = self._catalog.state([]), max(self._catalog.next_rev(), after + 1)
        tells = told(self.cause, (), state, now, self._history, images=images)
        self._catalog.put([Put(identifier, noted_payload(identifier, state.store, now, tells, inbox))])
        return True

    def collect(self, grace: float | None = None) -> tuple[Counter[str], list[Change]]:
        """As `zsvec.store.store.Store.gc`, but also returns the changes that became final."""
        readers, writers = (self._readers, self._writers) if grace is None else (grace, grace)
        could = History(self._catalog).changes()
        self._finalize(grace)
        found = set(self._references.writes(self._catalog.collections()))
        at_work = self._at_work()
        deleted = self._settle(self._intents(), readers, writers, final=grace is not None) + self._sweep(found, at_work)
        can = {change.id for change in History(self._catalog).changes()}
        return deleted, [change for change in could if change.id not in can]

    def _finalize(self, grace: float | None) -> None:
        """Makes old changes final: older than `grace` seconds or, without `grace`, after the undo window."""
        now = time.time_ns() // 1000
        age = self._history if grace is None else grace
        records = self._catalog.scroll(Where(match={"kind": "change"}, until=now - _microseconds(age)))
        due = [r for r in records if grace is not None or not is_told(r) or r["until"] <= now]
        for first in range(0, len(due), _AT_ONCE):
            some = due[first : first + _AT_ONCE]
            if puts := [Put(r["id"], final_payload(r), expected(r)) for r in some if r["replaced"]]:
                self._catalog.put(puts)
            if done := [record["id"] for record in some if not record["replaced"]]:
                self._catalog.drop(done)
        if any(record.get("inbox") for record in due):
            self._inbox.settle(self._inbox.read(labelled=True))

    def _all(self, *kinds: str) -> list[Mapping[str, Any]]:
        store = self._catalog.state([]).store
        found = self._catalog.scroll(Where(match={"kind": list(kinds)}))
        return sorted((record for record in found if record["store"] == store), key=lambda record: record["rev"])

    def _at_work(self) -> set[str]:
        """Returns the write ids in intents and changes."""
        return {w for record in self._all("intent", "change") for w in _write_ids(record)}

    def _intents(self) -> list[Mapping[str, Any]]:
        """Returns all intents, oldest first, except those of writes in progress in this process."""
        return [intent for intent in self._all("intent") if intent["id"] not in self._open]

    def _oldest(self) -> list[Mapping[str, Any]]:
        intents = self._intents()
        if len(intents) > _AT_ONCE:  # intents of lost manifests can never be settled, and must not block the others
            there = self._catalog.state({name for intent in intents for name in intent["replaced"]}).manifests
            intents = [intent for intent in intents if intent["replaced"].keys() <= there.keys()]
        return intents[:_AT_ONCE]

    def _settle(
        self, intents: Sequence[Mapping[str, Any]], readers: float, writers: float, *, final: bool = False
    ) -> Counter[str]:
        """Deletes the garbage of old intents, and returns the number of deleted references by expert.

        Args:
            intents: Intents of writes that are not in progress in this process.
            readers: Minimum age in seconds of an intent whose replaced references may be deleted.
            writers: Minimum age in seconds of an intent whose uncommitted references may be deleted.
            final: Whether to delete replaced references even if the change can still be undone.
        """
        now = time.time_ns() // 1000
        old = [intent for intent in intents if (now - intent["rev"]) / 1e6 >= readers]
        if not old:
            return Counter()
        replaced = _replaced(intents)  # committed once, so no writer will commit these again
        history = History(self._catalog) if any(map(is_told, old)) else None
        left: list[tuple[str | None, set[str]]] = []
        for intent in old:
            names = {*intent["writes"], *intent["replaced"], *(intent["before"] if is_told(intent) else ())}
            state = settled(self._catalog, names)
            if readable(state.manifests.values())[1]:
                continue  # the writes of a damaged manifest are unknown
            open_writes = {
                (name, write_id)
                for name, some in intent["writes"].items()
                for write_id in some
                if write_id not in replaced and write_id not in _named(state.manifests.get(name))
            }
            undecided = {name for name, _ in open_writes}
            if history and is_told(intent):  # the writer was killed, or others finished the write
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
        """Records the change of a killed writer, and returns whether undo is still possible."""
        won = set() if final or intent["until"] <= now else history.won(intent)
        if not won >= set(moved_together(intent)):
            won = set()  # half a move cannot be undone
        after = change_payload(intent, won, history.at(intent)) if won else final_payload(intent)
        self._catalog.put([Put(intent["id"], after, expected(intent))])
        return bool(won)

    def _delete(self, left: Sequence[tuple[str | None, set[str]]]) -> Counter[str]:
        """Deletes the references of writes, except writes that undo needs. Returns their number by expert.

        Args:
            left: Pairs of the id of an intent and write ids that no manifest names. The intent is deleted, too, unless
                undo needs one of the writes. The id is ``None`` if the intent has become a change, which stays.
        """
        if not left:
            return Counter()
        needed = History(self._catalog).needed()  # read after the manifests, to miss no replaced write
        dead = sorted(set[str]().union(*(some for _, some in left)) - needed)
        deleted = self._references.delete(self._catalog.collections(), dead) if dead else Counter[str]()
        done = [identifier for identifier, some in left if identifier and needed.isdisjoint(some)]
        if done:
            self._catalog.drop(done)
        return deleted

    def fence(
        self, names: Iterable[str], manifests: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """Raises the versions of categories, so that commits that were planned before are lost.

        Args:
            names: The categories. A category without a manifest gets a tombstone.
            manifests: The present manifests of these categories.

        Returns:
            The manifests with raised versions; ``None`` if a read does not show all raised versions.
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
        now = settled(self._catalog, names).manifests  # a transfer in progress names writes, too
        high = all(name in now and now[name]["version"] > _version(manifests.get(name)) for name in names)
        return now if high else None

    def _manifests(self) -> list[Mapping[str, Any]]:
        found = self._catalog.manifests()
        if begun := [manifest["category"] for manifest in found if "transfer" in manifest]:
            settled(self._catalog, begun)
            return self._catalog.manifests()
        return found

    def _sweep(self, found: Iterable[tuple[str, str]], at_work: set[str]) -> Counter[str]:
        """Deletes references of writes that no manifest, intent or change names. Returns their number by expert.

        Args:
            found: Category and write id of every reference, read before the intents.
            at_work: Write ids in intents and changes.

        Raises:
            StoreError: A category has references but no manifest, or its manifest is older than the references. The
                catalog may have lost a commit, so no reference of the category is deleted.
        """
        manifests = {manifest["category"]: manifest for manifest in self._manifests()}
        live = {name: set(category_from(manifest).write_ids) for name, manifest in manifests.items()}
        at_work = at_work | self._at_work()  # and writes that were replaced since
        unnamed = [(name, w) for name, w in found if w not in at_work and w not in live.get(name, ())]
        orphans = {name for name, _ in unnamed} - live.keys()
        orphans -= self._catalog.state(orphans).manifests.keys()  # if replicas differ, one read can miss manifests
        if self._catalog.exclusive:  # every write had an intent, so newer references prove that commits were lost
            orphans |= {name for name, w in unnamed if name in live and write_time(w) > manifests[name]["rev"]}
        dead = [w for name, w in unnamed if name in live.keys() - orphans]
        deleted = self._references.delete(self._catalog.collections(), dead) if dead else Counter[str]()
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


def _replaced(records: Iterable[Mapping[str, Any]]) -> set[str]:
    return {write_id for record in records for old in record["replaced"].values() for write_id in old}


def _write_ids(intent: Mapping[str, Any]) -> list[str]:
    return [w for key in ("writes", "replaced") for some in intent[key].values() for w in some]


def _version(manifest: Mapping[str, Any] | None) -> int:
    return manifest["version"] if manifest else 0


def _raised(manifest: Mapping[str, Any]) -> Put:
    return Put(id_of(manifest), {**manifest, "version": manifest["version"] + 1}, expected(manifest))


def _tombstone(name: str, store: str, rev: int) -> Put:
    category = Category(name=name, version=1, rev=rev, write_ids=(), texts=(), references={})
    manifest = manifest_payload(category, store, uuid.uuid4().hex, None)
    return Put(record_id("category", name), {**manifest, "changed": 0})  # readers see no change
