"""Follows a store: keeps an embedded store in step with another store, the source, which is only read.

A copy (`zsvec.store.copying`) has the same core: the target gets each changed category by one commit, without an
encoder, and records of the source are validated. The changefeed finds the changes (`zsvec.store.catalog.changefeed`):
the source sends the names and versions of changed categories, then their manifests, then missing references.

The manifest of each followed category tells which state of the source it has (`zsvec.store.catalog.schema.Followed`).
So an interrupted run needs no other record to go on. A category with further writes gets the references of these alone.
A category that was changed in the target, or removed there, is copied again. A category without such a state belongs to
the target, and stays.

The record of the target names the source by its store id, and has the cursor of the last run, so that the next run asks
for the commits since, and the categories that the last run left out. Without a cursor, and every hour, a run compares
the names and versions of all categories. This also finds commits of writers that were killed before publishing.

The target must be embedded, so that no other process writes to it. Its replaced references are deleted at once: an
undo belongs to the source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from zsvec.errors import StoreError
from zsvec.store.catalog.catalog import Catalog, State, readable
from zsvec.store.catalog.changefeed import Cursor, Look, look
from zsvec.store.catalog.marks import newest
from zsvec.store.catalog.schema import (
    Followed,
    calibrated_revision,
    calibration_from,
    followed_from,
    is_damaged,
    is_number,
)
from zsvec.store.catalog.successor import is_dropped
from zsvec.store.copying import Copying, Track, check_encoders
from zsvec.store.names import new_write_id
from zsvec.store.source import Source
from zsvec.store.switching import is_beside
from zsvec.store.writing import Writer, emptied
from zsvec.types import Category, Synced

WHOLE_EVERY_S = 3600.0
"""Seconds between two comparisons of all names and versions."""

Prepare: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Prepares the target for writes with the encoders and options in the record of the source."""

_RETRY_S = 60.0  # until damaged categories are tried again: replicas of the source may have differed
_ROUNDS = 3  # looks of one run at most, if others write to the source meanwhile
_CURSOR = ("store", "newest", "before", "calibration")  # the fields of a cursor that last
_MOST_LEFT = 100  # names of categories that were left out, in the record of the target
_MOST_WRITES, _LONGEST_WRITE_ID = 256, 64  # of a state in a manifest; a category of other writes is copied as a whole


class Follower:
    """Reads a source for a target, and remembers the position in its commits. Thread-safe.

    Args:
        source: The source.
        catalog: Catalog of the source.
    """

    def __init__(self, source: Source, catalog: Catalog) -> None:
        self._source = source
        self._catalog = catalog
        self._lock = threading.RLock()
        self._target: Catalog | None = None
        self._newest = 0  # `rev` of the target after the last run; not its number of writes, since the inbox has some
        self._record = ("", 0)  # id and version of the record of the source that the target was prepared for
        self._cursor = Cursor()
        self._whole_due = self._retry_due = 0.0  # on the clock of time.monotonic
        self._there = _There()
        self._left: dict[str, int] = {}  # versions that were left out; other versions are tried at once
        self._damaged: dict[str, str] = {}
        self._different: set[str] = set()
        self._calibration: bool | None = None

    def has_news(self) -> bool:
        """Returns whether the source may have something that the last target lacks. Asks the source alone.

        Raises:
            StoreError: The record of the source is damaged.
            StoreUnavailableError: The source cannot be reached, or refuses access.
        """
        with self._lock:
            due = min(self._whole_due, self._retry_due) if self._damaged else self._whole_due
            if self._target is None or time.monotonic() >= due:  # none after a failed run, whose looks are lost
                self._catalog.store()  # raises while the source is away, so that the target stays closed meanwhile
                return True
            found = self._look()
            return bool(
                found.reset or found.categories or found.calibration is not None or found.record != self._record
            )

    def is_in_step(self, target: Catalog) -> bool:
        """Returns whether the target has not been written since the last run, and the source has no news."""
        with self._lock:
            return self._target is target and self._newest == target.newest() and not self.has_news()

    def sync(self, writer: Writer, prepare: Prepare, on_commit: Callable[[Category], None], track: Track) -> Synced:
        """As `zsvec.store.store.Store.sync_from`."""
        with self._lock:
            target = writer.catalog
            is_first = self._target is not target
            self._target = None  # until the end, so that the run after an error begins anew
            if is_first:
                self._resume(target)
            self._prepare(target, prepare)
            if is_first or self._newest != target.newest():
                self._there = _There.of(target)
            run = _Run(
                self._source,
                writer,
                True,
                on_commit,
                target.encoders(),
                damaged=self._damaged,
            )
            is_whole = time.monotonic() >= self._whole_due
            calibrated = self._rounds(run, track, is_whole=is_whole)
            if is_first or calibrated or self._newest != target.newest():
                self._there = _There.of(target)
                run.different = sorted(self._different)
                self._calibration = self._copy_calibration(run)
            self._retry_due = time.monotonic() + _RETRY_S
            if is_whole:
                self._whole_due = time.monotonic() + WHOLE_EVERY_S
            self._keep_cursor(target, is_whole=is_whole)
            self._target, self._newest = target, target.newest()
            return replace(self.unchanged(), categories=tuple(run.committed), removed=tuple(run.removed), size=run.size)

    def unchanged(self) -> Synced:
        """Returns the result of a run that has changed nothing."""
        return Synced(
            different=tuple(sorted(self._different)),
            damaged=dict(sorted(self._damaged.items())),
            own=tuple(sorted(self._there.own)),
            calibration=self._calibration,
        )

    def _resume(self, target: Catalog) -> None:
        """Goes on where the last run stopped, in this process or another one."""
        follows = _follows_from(target.store())
        self._left = dict.fromkeys(follows.left, 0)
        self._damaged, self._different, self._record = {}, set(), ("", 0)
        self._cursor, since = follows.cursor, time.time() - follows.compared
        is_recent = follows.cursor.newest > 0 and 0 <= since < WHOLE_EVERY_S
        self._whole_due = time.monotonic() + (WHOLE_EVERY_S - since) if is_recent else 0.0

    def _prepare(self, target: Catalog, prepare: Prepare) -> None:
        record = self._catalog.store()
        if record is None:
            raise StoreError(
                f"there is no store in {self._catalog.location}: check the URL and the namespace. {target.location} "
                "stays as it is"
            )
        present = _follows_from(target.store()).cursor.store
        if present not in (None, record["id"]):
            raise self._is_switched(target) if is_beside(self._catalog, present) else self._is_another(target)
        if self._record != (record["id"], record["version"]):
            successor = self._catalog.successor()
            if is_dropped(record) or (successor is not None and successor.done):
                raise self._is_switched(target)
            check_encoders(self._source, target)
            prepare(record)
            if present is None:
                target.set_in_store(follows={"store": record["id"]})
            self._record = (record["id"], record["version"])
        self._cursor = replace(self._cursor, store=record["id"])

    def _is_switched(self, target: Catalog) -> StoreError:
        base = self._catalog.beside(0).location
        return StoreError(
            f"the store {base} was switched to other encoders (`zsvec reembed`), and {target.location} has vectors of "
            "the former ones: sync to a new folder, and classify from there. The old folder stays as it is"
        )

    def _is_another(self, target: Catalog) -> StoreError:
        return StoreError(
            f"{target.location} follows another store than {self._catalog.location}, by the ids of the stores: choose "
            "another folder, or another namespace there. To follow the other store in this place, delete the folder"
        )

    def _look(self, *, whole: bool = False) -> Look:
        return look(self._catalog, self._cursor, {**self._there.known, **self._left}, whole=whole)

    def _rounds(self, run: _Run, track: Track, *, is_whole: bool) -> bool:
        """Copies what has changed, until a look shows nothing new. Returns whether the calibration has changed."""
        calibrated = False
        if is_whole:
            self._left.clear()
            self._damaged.clear()
            self._different.clear()
        again = {*self._there.touched, *self._left}
        for number in range(_ROUNDS):
            found = self._look(whole=is_whole and number == 0)
            if found.reset:
                raise self._is_another(run.writer.catalog)
            calibrated = calibrated or found.calibration is not None
            changed = {category.name: category for category in found.categories}
            unreadable = list(found.unreadable)
            if number == 0 and again:
                present, others = readable(self._catalog.state(again).manifests.values())
                changed |= {category.name: category for category in present}
                unreadable += others
            self._leave(unreadable)
            if changed:
                self._copy(run, changed, track)
            self._cursor = found.cursor
            if not changed:
                break
        return calibrated

    def _leave(self, unreadable: Iterable[str]) -> None:
        for name in unreadable:
            self._damaged[name], self._left[name] = "its manifest cannot be read: look with `zsvec doctor`", 0

    def _copy(self, run: _Run, changed: Mapping[str, Category], track: Track) -> None:
        for name in changed:
            self._damaged.pop(name, None)
            self._left.pop(name, None)
        self._different -= changed.keys()
        run.different.clear()
        run.copy_all(track(list(changed.values())))
        self._different |= set(run.different)
        for name, category in changed.items():
            there = self._left if name in self._damaged or name in self._different else self._there.known
            there[name] = category.version

    def _copy_calibration(self, run: _Run) -> bool | None:
        store, record = self._catalog.calibration_record()
        if store != self._cursor.store:
            raise self._is_another(run.writer.catalog)
        given = calibration_from(record) if record else {}
        revision = calibrated_revision(given)
        if revision is None:
            return None
        return run.keep_calibration(given, self._there.live, is_stale=self._there.changed > revision)

    def _keep_cursor(self, target: Catalog, *, is_whole: bool) -> None:
        before = _follows_from(target.store())
        now = _Follows(self._cursor, int(time.time()) if is_whole else before.compared, sorted(self._left))
        if len(self._left) > _MOST_LEFT:  # the next process compares all categories
            now = _Follows(Cursor(self._cursor.store))
        if now.fields() != before.fields():
            target.set_in_store(follows=now.fields())


@dataclass(slots=True)
class _There:
    """The categories of a target.

    Attributes:
        known: Versions of the source, by category.
        touched: Categories of the source that were changed in the target since.
        live: Categories of the source that the target has.
        own: Categories that only the target has.
        changed: Largest ``rev`` of a change of a category in the source.
    """

    known: dict[str, int] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    changed: int = 0

    @classmethod
    def of(cls, target: Catalog) -> _There:
        there = cls()
        for manifest in target.manifests():
            if is_damaged(manifest):
                continue
            name, followed, is_live = manifest["category"], followed_from(manifest), bool(manifest.get("writes"))
            if is_live:
                (there.own if followed is None else there.live).add(name)
            if followed is None:
                continue
            there.changed = max(there.changed, followed.changed)
            if followed.version:
                there.known[name] = followed.version
            else:
                there.touched.append(name)
        return there


@dataclass(slots=True)
class _Run(Copying):
    """One run in progress, and its result so far.

    Attributes:
        removed: Categories that were removed.
        effects: Effect of the run on each committed category.
    """

    removed: list[str] = field(default_factory=list)
    effects: dict[str, Literal["changed", "removed", "same"]] = field(default_factory=dict)

    def _note(self, category: Category, given: Category, *, is_new: bool) -> None:
        match self.effects[category.name]:
            case "changed":
                self.committed.append(category)
                self.on_commit(category)
            case "removed":
                self.removed.append(category.name)

    def _plans(self, pending: dict[str, Category], before: State) -> tuple[dict[str, Category], dict[str, Category]]:
        """As `Copying._plans`. A category to write names only the writes that the target lacks."""
        plans, new = {}, {}
        for name, category in list(pending.items()):
            there = before.category(name)
            has = followed_from(before.manifests[name]) if there else None
            if there and there.write_ids and has is None:  # made in the target
                if not category.write_ids or not self._is_same(category, there):
                    if category.write_ids:
                        self.different.append(name)
                    del pending[name]
                    continue
                has = Followed(1, category.write_ids)
            lacking = self._lacking(category, there, has)
            kept = there if there and len(lacking) < len(category.write_ids) else None
            self.held[name] = list(self.writer.references.read(kept, vectors=False)) if kept and lacking else []
            if kept and lacking and len(self.held[name]) < sum(kept.references.values()):  # the target lost some
                kept, lacking, self.held[name] = None, category.write_ids, []
            plans[name] = _planned(category, there, kept, is_written=bool(lacking))
            if lacking:
                new[name] = replace(category, write_ids=lacking)
            self.followed[name] = _state_of(category)
            self.effects[name] = _effect(plans[name], there)
        return plans, new

    def _lacking(self, category: Category, there: Category | None, has: Followed | None) -> tuple[str, ...]:
        """Returns the write ids of a category of the source that the target lacks."""
        if not (there and there.write_ids and has):
            return category.write_ids
        if not has.version:  # changed in the target
            return () if category.write_ids and self._is_same(category, there) else category.write_ids
        writes = tuple(has.writes)
        is_part = bool(writes) and category.write_ids[: len(writes)] == writes
        return category.write_ids[len(writes) :] if is_part else category.write_ids


def _planned(category: Category, there: Category | None, kept: Category | None, *, is_written: bool) -> Category:
    """Returns the next version of a category of the target, with the content of the source.

    Args:
        category: The category of the source.
        there: The category of the target, if any.
        kept: `there`, if its references stay.
        is_written: Whether references are to be written.
    """
    if not category.write_ids:
        held = there or Category(name=category.name, version=0, rev=0, write_ids=(), texts=(), references={})
        return replace(emptied(held), withdrawn=newest(category.withdrawn), retired=category.retired)
    return replace(
        category,
        version=there.version + 1 if there else 1,
        rev=0,
        write_ids=(*(kept.write_ids if kept else ()), *((new_write_id(),) if is_written else ())),
        references=kept.references if kept else {},
        withdrawn=newest(category.withdrawn),
        kept=newest(category.kept),
        retired=False,
    )


def _state_of(category: Category) -> Followed:
    """Returns the state of the source that a manifest of the target names, of bounded size."""
    writes = category.write_ids
    is_small = len(writes) <= _MOST_WRITES and all(len(write_id) <= _LONGEST_WRITE_ID for write_id in writes)
    return Followed(category.version, writes if is_small else (), category.rev)


def _effect(plan: Category, there: Category | None) -> Literal["changed", "removed", "same"]:
    if not plan.write_ids:
        return "removed" if there and there.write_ids else "same"
    parts = ("write_ids", "texts", "metadata", "parent")
    is_same = there is not None and all(getattr(plan, part) == getattr(there, part) for part in parts)
    return "same" if is_same else "changed"


@dataclass(frozen=True, slots=True)
class _Follows:
    """The source of a target and the position in its commits, as the record of the target has them.

    Attributes:
        cursor: Cursor of the last run. Its store is ``None`` if no store is followed.
        compared: When all categories were last compared, in seconds since 1970.
        left: Categories that the last run left out.
    """

    cursor: Cursor
    compared: int = 0
    left: Sequence[str] = ()

    def fields(self) -> dict[str, Any]:
        """Returns the field of the record."""
        at = {name: getattr(self.cursor, name) for name in _CURSOR}
        return {**at, "compared": self.compared, "left": list(self.left)}


def _follows_from(record: Mapping[str, Any] | None) -> _Follows:
    """Reads `_Follows` from the record of a store. A damaged position counts as missing."""
    follows: Any = (record or {}).get("follows")
    match follows:
        case {"store": str(store), "compared": int(compared), "left": [*left]} if all(
            is_number(follows.get(name)) for name in (*_CURSOR[1:], "compared")
        ) and all(isinstance(name, str) for name in left):
            return _Follows(Cursor(**{name: follows[name] for name in _CURSOR}), compared, left)
        case {"store": str(store)}:
            return _Follows(Cursor(store))
    return _Follows(Cursor())
