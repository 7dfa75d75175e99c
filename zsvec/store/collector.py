"""The collector of garbage: it deletes what no manifest names and no writer can commit any more.

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
from typing import Any

from zsvec.errors import StoreError
from zsvec.store.base import Put, Where
from zsvec.store.catalog import Catalog, id_of
from zsvec.store.references import ReferenceCollections
from zsvec.store.schema import category_from, expected, intent_payload, manifest_payload, record_id, write_time
from zsvec.store.transfer import settled
from zsvec.types import Category

READERS = 60.0
"""Seconds that replaced references stay for readers that have just read the manifest that named them."""
WRITERS = 3600.0
"""Seconds that a writer has from its intent to its commit, before a collector makes it begin anew."""

_AT_ONCE = 100  # intents that are settled after one write


class Collector:
    """The garbage of one store.

    Args:
        catalog: Its manifests name the writes that are live.
        references: What to delete from.
    """

    def __init__(self, catalog: Catalog, references: ReferenceCollections) -> None:
        self._catalog = catalog
        self._references = references
        # Where no other process can write, every writer is gone but this one, which is not writing now.
        self._readers, self._writers = (0.0, 0.0) if catalog.exclusive else (READERS, WRITERS)
        self._open: set[str] = set()  # intents of writes of this process
        self._due = 0.0  # when to look for intents: at first, for those that others have left

    @contextmanager
    def intent(
        self,
        store: str,
        writes: Mapping[str, str],
        replaced: Mapping[str, Sequence[str]],
        *,
        lost_at_once: bool = True,
    ) -> Iterator[set[str]]:
        """Say what a write may leave behind, before it does; and delete what may go, after it.

        Args:
            store: Id of the store.
            writes: The write id under which references of each category are to be written.
            replaced: The write ids that each category loses by the commit.
            lost_at_once: Whether a commit that did not win has lost for good. Else others may carry it out yet, and
                what it wrote is collected as if its writer were gone.

        Yields:
            For the names of the categories whose commits won.
        """
        identifier, won = str(uuid.uuid4()), set[str]()
        leaves = bool(writes) or any(replaced.values())
        if leaves:
            payload = intent_payload(identifier, store, time.time_ns() // 1000, writes, replaced)
            self._catalog.put([Put(identifier, payload)])
        self._open.add(identifier)
        try:
            yield won
        finally:
            self._open.remove(identifier)
        lost = [write_id for name, write_id in writes.items() if name not in won]
        if lost and lost_at_once:
            self._references.delete(self._catalog.collections(), lost)
        if leaves and (lost_at_once or not lost) and not any(replaced.get(name) for name in won):
            self._catalog.drop([identifier])
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._readers
            self._settle(self._oldest(), self._readers, self._writers)

    def collect(self, grace: float | None = None) -> int:
        """As `zsvec.store.store.Store.gc`."""
        readers, writers = (self._readers, self._writers) if grace is None else (grace, grace)
        found = set(self._references.writes(self._catalog.collections()))
        at_work = {w for intent in self._all_intents() for w in _write_ids(intent)}
        return self._settle(self._intents(), readers, writers) + self._sweep(found, at_work)

    def _all_intents(self) -> list[Mapping[str, Any]]:
        store = self._catalog.state([]).store
        found = self._catalog.scroll(Where(match={"kind": "intent"}))
        return sorted((intent for intent in found if intent["store"] == store), key=lambda intent: intent["rev"])

    def _intents(self) -> list[Mapping[str, Any]]:
        """Those that no write of this process is at, oldest first."""
        return [intent for intent in self._all_intents() if intent["id"] not in self._open]

    def _oldest(self) -> list[Mapping[str, Any]]:
        """As many as are settled after one write."""
        intents = self._intents()
        if len(intents) > _AT_ONCE:  # those whose manifests were lost, which never can be, must keep no others waiting
            there = self._catalog.state({name for intent in intents for name in intent["replaced"]}).manifests
            intents = [intent for intent in intents if intent["replaced"].keys() <= there.keys()]
        return intents[:_AT_ONCE]

    def _settle(self, intents: Sequence[Mapping[str, Any]], readers: float, writers: float) -> int:
        """Delete what old intents have left behind, and say how many references that were."""
        deleted = 0
        now = time.time_ns() // 1000
        # What somebody has replaced was committed, and nobody is about to.
        replaced = {write_id for intent in intents for old in intent["replaced"].values() for write_id in old}
        for intent in intents:
            age = (now - intent["rev"]) / 1e6
            if age < readers:
                continue
            now_there = settled(self._catalog, {*intent["writes"], *intent["replaced"]}).manifests
            open_writes = {
                name: write_id
                for name, write_id in intent["writes"].items()
                if write_id not in replaced and write_id not in _named(now_there.get(name))
            }
            if (open_writes and age < writers) or not intent["replaced"].keys() <= now_there.keys():
                continue
            fenced = self._fence(open_writes, now_there)
            if fenced is None:
                continue
            named = {name: _named(manifest) for name, manifest in {**now_there, **fenced}.items()}
            dead = [w for name, w in open_writes.items() if w not in named[name]]
            dead += [w for name, old in intent["replaced"].items() for w in old if w not in named[name]]
            deleted += self._references.delete(self._catalog.collections(), dead) if dead else 0
            self._catalog.drop([intent["id"]])
        return deleted

    def _fence(
        self, names: Iterable[str], manifests: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """Raise the versions of categories, and give their manifests; ``None`` if that does not show."""
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
