"""Writing categories: plan, intent, references, commit, and publication.

1. The new state of a category is planned from its last commit.
2. An intent declares the garbage that the write may leave (`zsvec.store.collector`).
3. New references go to the collection of every encoder under a new write id, with small copies of images
   (`zsvec.store.collections.images`).
4. The manifest is replaced by compare-and-set (`zsvec.store.catalog.commit`), and the commit is published to all
   readers.

The collector deletes references that the new manifest no longer names. If a commit is lost, the writer plans again from
the newer commit, under a new write id.

A manifest names whole writes. So moved references are written again under a new write id. If references are removed,
the remaining references of the category are written again as well.

References that are moved or removed are marked as withdrawn in the same commit (`zsvec.store.catalog.marks`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeAlias

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_attempt,
    wait_random_exponential,
)

from zsvec.errors import (
    ConflictError,
    InvalidInputError,
    LastReferenceError,
    StoreError,
    StoreUnavailableError,
    VersionConflictError,
)
from zsvec.store.catalog.catalog import Catalog, State
from zsvec.store.catalog.commit import commit, commit_calibration, publish
from zsvec.store.catalog.history import concerned, concerned_of_each
from zsvec.store.catalog.marks import kept_mark, kept_of, marked, unmarked, with_kept, without_kept
from zsvec.store.catalog.schema import Reference, category_from
from zsvec.store.collections.inbox import InboxCollection
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.names import new_write_id
from zsvec.store.transfer import settled, transfer
from zsvec.types import Category, encoder_and_modality, expert_name

_WRITES_KEPT = 32  # write ids of a category, at most; the next addition copies all references into one write
_ATTEMPTS = 12
_ROUNDING = 1e-6  # of a component of a vector that a server has normalised again
_ALL = frozenset({"text", "image", "metadata"})  # parts of a category

Plan: TypeAlias = tuple[Category, Sequence[Reference]]
"""A category to commit, and the references to write before the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """References to commit to one category.

    Attributes:
        name: Name of the category.
        references: References to add.
        texts: Definition texts to add.
        metadata: JSON to store with the category; ``None`` if there is no new metadata.
        parent: Parent of the category; ``None`` keeps the present parent.
        replace: Whether to drop the present references, texts and metadata, except the parts in `keeps`.
        keeps: Parts that stay despite `replace`: ``"image"`` (image references), ``"text"`` (text references and
            `texts`) and ``"metadata"``.
        needs: Content hashes of references that the category must still have at the commit. An empty set requires only
            that the category exists, and ``None`` requires nothing.
        made_from: State of another namespace that the category then has with other encoders
            (`zsvec.store.reembedding`).
    """

    name: str
    references: Sequence[Reference]
    texts: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    parent: str | None = None
    replace: bool = False
    keeps: frozenset[str] = frozenset()
    needs: frozenset[str] | None = None
    made_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """References to move from one category to another.

    Attributes:
        source: The category that loses the references.
        target: The category that gains the references; created if missing.
        hashes: Content hashes of the references. ``None`` moves all references and the metadata, and removes the
            source.
        new: Whether the target must not exist yet.
        renamed: A definition text to replace during the move.
    """

    source: str
    target: str
    hashes: Collection[str] | None = None
    new: bool = False
    renamed: Renamed | None = None


@dataclass(frozen=True, slots=True)
class Renamed:
    """A definition text that replaces another.

    Attributes:
        old: The text to replace.
        new: The new text.
        hashes: Content hashes that references of the old text may have.
        references: References of the new text.
    """

    old: str
    new: str
    hashes: Collection[str] = ()
    references: Sequence[Reference] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The part of a move that takes references from categories.

    Attributes:
        plans: Plans of the categories that lose references.
        gaining: By losing category, the names of the categories that gain its references.
        pair: Source and target, if references move between these two alone and in this direction.
    """

    plans: Sequence[Plan]
    gaining: Mapping[str, Collection[str]]
    pair: Sequence[str] = ()


@dataclass(slots=True)
class Expected:
    """The versions that a category may have when a block first commits this category (`Store.expecting`).

    Attributes:
        catalog: Catalog of the store. The block may write to other stores, too.
        name: Name of the category.
        versions: The versions; 0 stands for a missing category.
        committed: Whether the block has committed the category. Then any version is accepted.
    """

    catalog: Catalog
    name: str
    versions: Container[int]
    committed: bool = False

    def check(self, category: Category | None) -> None:
        """Raises VersionConflictError if the category has another version."""
        version = category.version if category and category.write_ids else 0
        if not self.committed and version not in self.versions:
            found = f"has version {version}" if version else "does not exist"
            raise VersionConflictError(
                f"category {self.name!r} must have the expected version, but {found}. Read the category again, and "
                "repeat the change"
            )


EXPECTED: ContextVar[Expected | None] = ContextVar("expected", default=None)
"""The expectation of the present block, per thread or asyncio task."""


class ChangedError(Exception):
    """The state from which an attempt was planned has changed."""


class Writer:
    """Writes the categories of one store."""

    def __init__(
        self, catalog: Catalog, references: ReferenceCollections, collector: Collector, inbox: InboxCollection
    ) -> None:
        self.catalog = catalog
        self.references = references
        self.collector = collector
        self.inbox = inbox

    def write(self, writes: Sequence[Write]) -> list[Category]:
        """As `zsvec.store.store.Store.write`."""
        done: dict[str, Category] = {}
        pending = {write.name: write for write in writes}
        refused: list[StoreError | InvalidInputError] = []
        committed: dict[str, Category] = {}  # as planned and committed here, but perhaps not published

        def attempt() -> bool:
            before = settled(self.catalog, pending)
            manifests = {
                name: before.manifests[name] for name in committed if name in pending.keys() & before.manifests
            }
            left = {name: write for name, write in pending.items() if name not in committed}
            self._check_expected(before, left)
            plans, errors = self._planned_each(left, before)
            refused.extend(errors.values())
            for name in errors:
                del pending[name]
            complete = {category.name: category for category, _ in plans if category == before.category(category.name)}
            new = [plan for plan in plans if plan[0].name not in complete]
            given = {category.name: {r.key for r in left[category.name].references} for category, _ in new}
            images = concerned_of_each(
                {
                    category.name: [r.hash for r in fresh if r.modality == "image" and r.key in given[category.name]]
                    for category, fresh in new
                }
            )
            made_from = {name: write.made_from for name, write in left.items() if write.made_from}
            won = self.carry_out(new, before, images=images, made_from=made_from)
            committed.update((category.name, category) for category, _ in new if category.name in won)
            manifests |= won
            if complete and not self.catalog.exclusive:  # others may have changed the categories since
                manifests |= self.catalog.state(complete).manifests
            published = publish(self.catalog, manifests, complete)
            there = {name: category_from(manifest) for name, manifest in published.items()}
            if self.catalog.exclusive:
                there |= complete
            for name, category in there.items():
                if name not in committed:
                    if not set(complete[name].write_ids) <= set(category.write_ids):
                        continue
                    done[name] = category
                elif has_same_content(category, committed[name]):
                    done[name] = category
                else:  # another writer has changed the category since; the caller has not seen that version
                    done[name] = replace(committed[name], rev=category.rev)
                del pending[name]
            return not pending

        self.until_won(attempt, pending)
        self._meet_expected(committed)
        if refused:
            raise refused[0]
        return [done[write.name] for write in writes]

    def remove(self, name: str, *, withdraw: bool = True) -> None:
        """As `zsvec.store.store.Store.remove`. Unless `withdraw` is set, nothing is marked as withdrawn."""
        committed: set[str] = set()

        def attempt() -> bool:
            if committed:  # but perhaps not published
                return bool(publish(self.catalog, self.catalog.state([name]).manifests))
            before = settled(self.catalog, [name])
            if name not in before.manifests and self.catalog.heal([name]):
                before = settled(self.catalog, [name])
            self._check_expected(before, [name])
            category = self.catalog.existing(name, before.category(name))
            gone, images = emptied(category), None
            if withdraw:
                every = list(self.references.read(category, vectors=False))
                gone, images = replace(marked(gone, {one.hash for one in every}), retired=True), _images(every)
            won = self.carry_out([(gone, ())], before, images=images)
            committed.update(won)
            return bool(publish(self.catalog, won))

        self.until_won(attempt, [name])
        self._meet_expected([name])

    def remove_references(self, name: str, hashes: Collection[str], *, withdraw: bool = True) -> Category:
        """As `zsvec.store.store.Store.remove_references`. Unless `withdraw` is set, nothing is marked as withdrawn."""
        left: list[Category] = []

        def attempt() -> bool:
            if left:  # committed, but perhaps not published
                return bool(publish(self.catalog, self.catalog.state([name]).manifests))
            before = settled(self.catalog, [name])
            self._check_expected(before, [name])
            category = self.catalog.existing(name, before.category(name))
            every = self._read_all(category)
            _check_known(hashes, {reference.hash for reference in every}, name)
            kept, references = _without(category, every, hashes)
            plan = marked(kept, hashes) if withdraw else kept, references
            images = _images(one for one in every if one.hash in hashes) if withdraw else None  # erased without a trace
            won = self.carry_out([plan], before, images=images)
            left.extend(map(category_from, won.values()))
            published = publish(self.catalog, won)
            left[:] = map(category_from, published.values() or won.values())  # publishing may raise the version
            return bool(published)

        self.until_won(attempt, [name])
        self._meet_expected([name])
        return left[0]

    def keep(self, name: str, hashes: Collection[str], finding: str, *, kept: bool = True) -> Category:
        """As `zsvec.store.store.Store.keep`."""
        done: list[Category] = []
        committed: set[str] = set()

        def attempt() -> bool:
            if committed:  # but perhaps not published
                done.extend(
                    map(category_from, publish(self.catalog, self.catalog.state([name]).manifests, [name]).values())
                )
                return bool(done)
            before = settled(self.catalog, [name])
            self._check_expected(before, [name])
            category = self.catalog.existing(name, before.category(name))
            _check_known(hashes, {digest for _, _, digest in self.references.keys(category)}, name)
            marks = sorted(kept_mark(finding, digest) for digest in hashes)
            now = with_kept(category, marks) if kept else without_kept(category, marks)
            won: Mapping[str, Mapping[str, Any]] = before.manifests
            if now.kept != category.kept:
                plan = replace(now, version=category.version + 1, rev=0), ()
                won = self.carry_out([plan], before, images=concerned(sorted(hashes)))
                committed.update(won)
            done.extend(map(category_from, publish(self.catalog, won, [name]).values()))
            return bool(done)

        self.until_won(attempt, [name])
        self._meet_expected(committed)
        return done[0]

    def move(self, moves: Sequence[Move]) -> list[Category]:
        """As `zsvec.store.store.Store.move_many`."""
        names = list(dict.fromkeys(name for move in moves for name in (move.source, move.target)))
        moved: dict[str, Category] = {}
        leaving: list[list[Reference]] = []  # references that the last attempt moves, by move
        planned: dict[str, Category] = {}  # the targets after the last attempt

        def attempt() -> bool:
            before = settled(self.catalog, names)
            latest = before.categories()
            if leaving and self._are_moved(moves, leaving, latest):  # another writer finished the last attempt
                moved.update({name: _seen(latest[name], plan) for name, plan in planned.items()})
                return True
            self._check_expected(before, names)
            every = {
                move.source: self._read_all(self.catalog.existing(move.source, latest.get(move.source)))
                for move in {move.source: move for move in moves}.values()
            }
            leaving[:] = [_leaving(move, every[move.source]) for move in moves]
            gains = self._gains(moves, leaving, latest)
            losses = Losses(
                plans=_losses(moves, every, latest, gains),
                gaining={name: {move.target for move in moves if move.source == name} for name in every},
                pair=names if len(moves) == 1 else (),
            )
            planned.update({plan.name: plan for plan, _ in (*gains.values(), *losses.plans) if plan.name in gains})
            stored = {name: list(latest[name].write_ids) if name in latest else [] for name in names}
            for move in moves:
                stored[move.target] += latest[move.source].write_ids
            images = _images(chain.from_iterable(leaving))
            won = self.carry_out(list(gains.values()), before, stored, losses=losses, images=images)
            moved.update({name: _seen(category_from(won[name]), plan) for name, plan in planned.items() if won})
            return bool(won)

        self.until_won(attempt, names)
        self._meet_expected(names)
        return [moved[name] for name in dict.fromkeys(move.target for move in moves)]

    def _gains(
        self, moves: Sequence[Move], leaving: Sequence[Sequence[Reference]], latest: Mapping[str, Category]
    ) -> dict[str, Plan]:
        """Returns the plans by which the targets of moves gain the leaving references, by name."""
        plans: dict[str, Plan] = {}
        for name in dict.fromkeys(move.target for move in moves):
            target = latest.get(name)
            own = [(move, some) for move, some in zip(moves, leaving, strict=True) if move.target == name]
            whole = [latest[move.source] for move, _ in own if move.hashes is None]
            if target and target.write_ids and any(move.new for move, _ in own):
                raise InvalidInputError(f"there is a category {name!r} already: merge {whole[0].name!r} into it")
            metadata = {key: value for source in whole for key, value in source.metadata.items()}
            write = Write(
                name=name,
                references=[reference for _, some in own for reference in some],
                texts=[text for move, some in own for text in _leaving_texts(move, latest[move.source], some)],
                metadata={**metadata, **(target.metadata if target and target.write_ids else {})} if whole else None,
                parent=None if target and target.write_ids else next((source.parent for source in whole), None),
            )
            plan = self._planned(write, target)
            if target and plan[0] is target:  # has all references; the new version makes concurrent removals lose
                plan = replace(target, version=target.version + 1, rev=0), ()
            plans[name] = with_kept(plan[0], chain.from_iterable(source.kept for source in whole)), plan[1]
        return plans

    def _are_moved(
        self, moves: Sequence[Move], leaving: Sequence[Sequence[Reference]], latest: Mapping[str, Category]
    ) -> bool:
        """Returns whether no source has references left to lose, and each target has all references of its moves.

        A missing source alone proves nothing: another writer may have removed the source.
        """
        keys = {
            name: self.references.keys(latest[name]) if name in latest else set[tuple[str, str, str]]()
            for move in moves
            for name in (move.source, move.target)
        }
        return all(
            not {
                digest
                for _, _, digest in keys[move.source]
                if move.hashes is None or digest in _lost(moves, move.source)
            }
            and {reference.key for reference in some} <= keys[move.target]
            and bool(latest[move.target].write_ids)
            for move, some in zip(moves, leaving, strict=True)
        )

    def _check_expected(self, before: State, names: Collection[str]) -> None:
        """Raises VersionConflictError if one of these categories does not have the version that the block expects."""
        if expected := self._expected(names):
            expected.check(before.category(expected.name))

    def _meet_expected(self, committed: Collection[str]) -> None:
        if expected := self._expected(committed):
            expected.committed = True

    def _expected(self, names: Collection[str]) -> Expected | None:
        expected = EXPECTED.get()
        return expected if expected and expected.catalog is self.catalog and expected.name in names else None

    def keep_calibration(self, calibration: Mapping[str, Any]) -> None:
        """As `zsvec.store.store.Store.keep_calibration`."""
        self.until_won(lambda: commit_calibration(self.catalog, calibration), [])

    def _planned_each(
        self, writes: Mapping[str, Write], before: State
    ) -> tuple[list[Plan], dict[str, StoreError | InvalidInputError]]:
        """Returns the plans of writes and, by category, the errors of writes that cannot be planned."""
        plans, errors = [], {}
        for name, write in writes.items():
            try:
                plans.append(self._planned(write, before.category(name)))
            except StoreUnavailableError:
                raise
            except (StoreError, InvalidInputError) as exc:
                errors[name] = exc
        return plans, errors

    def _planned(self, write: Write, current: Category | None) -> Plan:
        """Returns the plan of a write. If the write changes nothing, the planned category is `current` itself.

        Raises:
            ConflictError: The category would have no reference, or another writer removed references that the write
                needs.
            ChangedError: The category has been changed since.
        """
        there = current if current and current.write_ids else None
        kept = None if write.replace else there
        keeps = write.keeps if write.replace else _ALL
        present = self.references.keys(kept) if kept else set()
        if write.needs is not None:
            held = present if kept or not there else self.references.keys(there)
            if there is None or not write.needs <= {digest for _, _, digest in held}:
                if there and self._has_changed(there):
                    raise ChangedError
                raise ConflictError(
                    f"another writer removed references of {write.name!r}, or the category, during this write: "
                    "repeat it"
                )
        carried = self._read_all(there, keeps) if there and write.replace and keeps else []
        fresh = list({r.key: r for r in (*carried, *write.references) if r.key not in present}.values())
        if write.replace and keeps & {"text", "image"} and not fresh:  # another writer removed the kept references
            raise LastReferenceError(f"category {write.name!r} would have no reference: give it a text or an image")
        texts = tuple(dict.fromkeys((*(there.texts if there and "text" in keeps else ()), *write.texts)))
        before = there.metadata if there and "metadata" in keeps else {}
        metadata = dict(before if write.metadata is None else write.metadata)
        parent = (there.parent if there else "") if write.parent is None else write.parent
        if there and (texts, parent, _as_json(metadata)) == (there.texts, there.parent, _as_json(there.metadata)):
            unchanged = self._are_stored(fresh, there) if write.replace else not fresh
            if unchanged:
                return there, ()
        write_ids = kept.write_ids if kept else ()
        if kept and len(write_ids) >= _WRITES_KEPT:
            fresh = [*self._read_all(kept), *fresh]
            write_ids = ()
        counts = Counter(kept.references if kept and write_ids else {})
        counts.update(counted_by_expert(fresh))
        written = {reference.hash for reference in fresh}
        findings = current.kept if current else ()
        if current and write.replace:
            findings = kept_of(current, written)
        category = Category(
            name=write.name,
            version=current.version + 1 if current else 1,
            rev=0,
            write_ids=(*write_ids, new_write_id()),
            texts=texts,
            references=dict(counts),
            metadata=metadata,
            parent=parent,
            withdrawn=unmarked(current, written) if current else (),
            kept=findings,
        )
        return category, fresh

    def _are_stored(self, references: Sequence[Reference], category: Category) -> bool:
        """Returns whether a category has exactly these references, with the same vectors and sources."""
        if counted_by_expert(references) != category.references:
            return False
        stored = {reference.key: reference for reference in self.references.read(category)}
        return len(stored) == len(references) and all(
            (there := stored.get(one.key)) is not None
            and (one.source, one.prompt, one.group) == (there.source, there.prompt, there.group)
            and bool((abs(one.vector - there.vector) <= _ROUNDING).all())
            for one in references
        )

    def _read_all(self, category: Category, modalities: Container[str] = _ALL) -> list[Reference]:
        """Returns the references of a category, to be written again.

        Raises:
            ChangedError: References are missing, because the category has been changed.
            StoreError: References are missing, although the category has not been changed.
        """
        wanted = sum(n for expert, n in category.references.items() if encoder_and_modality(expert)[1] in modalities)
        found = [reference for reference in self.references.read(category) if reference.modality in modalities]
        if len(found) < wanted:
            if self._has_changed(category):
                raise ChangedError
            raise StoreError(
                f"category {category.name!r} has only {len(found)} of {wanted} references that it is to keep: look "
                "with `zsvec doctor`, or replace all of them"
            )
        return found

    def _has_changed(self, category: Category) -> bool:
        now = self.catalog.find(category.name)
        return now is None or now.version != category.version

    def carry_out(
        self,
        plans: Sequence[Plan],
        before: State,
        stored: Mapping[str, Sequence[str]] | None = None,
        *,
        losses: Losses | None = None,
        images: Mapping[str, Any] | None = None,
        made_from: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Mapping[str, Any]]:
        """Writes references, commits the plans, and returns the manifests of the commits that won, by category.

        Args:
            plans: The plans.
            before: State of the catalog from which the plans were made.
            stored: By category, the write ids whose small copies of images can be written again; by default, the
                replaced write ids.
            losses: For a move, the plans of the categories that lose the references that `plans` gain. Then all commits
                win, or none does.
            images: The images that the write concerns (`zsvec.store.catalog.history.concerned`), for the history.
            made_from: By category, the state of another namespace, as `Write.made_from`.
        """
        every = [*plans, *(losses.plans if losses else ())]
        if not every:
            return {}
        writes: dict[str, list[str]] = {}
        for category, fresh in every:
            if fresh:
                writes.setdefault(category.name, []).append(category.write_ids[-1])
        last = {category.name: category for category, _ in every}
        replaced = {
            name: [w for w in (*was.write_ids, *writes.get(name, ())) if w not in category.write_ids]
            for name, category in last.items()
            if (was := before.category(name))
        }
        moved = losses.pair if losses else None
        with self.collector.intent(before, last, writes, replaced, moved=moved, images=images) as intent:
            self.references.put(every)
            if before.images:
                self.references.images.put(every, replaced if stored is None else stored)
            categories = [category for category, _ in plans]
            if losses:
                losing = [category for category, _ in losses.plans]
                won = transfer(self.catalog, categories, losing, losses.gaining, before, intent.change)
            else:
                won = commit(self.catalog, categories, before, intent.change, made_from=made_from)
            intent.won.update(won)
        return intent.won

    def until_won(self, attempt: Callable[[], bool], names: Iterable[str]) -> None:
        """Repeats an attempt, as the function `until_won`.

        The error message mentions the categories in `names`; without names, the calibration.
        """

        def message() -> str:
            changed = ", ".join(map(repr, names)) or "the calibration"
            return (
                f"others changed {changed} in {self.catalog.location} at each of {_ATTEMPTS} attempts: try again when "
                "they are done"
            )

        until_won(attempt, message)


def until_won(attempt: Callable[[], bool], message: Callable[[], str]) -> None:
    """Repeats an attempt until it returns True.

    Raises:
        ConflictError: All attempts were lost. `message` returns the text of the error.
    """
    retrying = Retrying(
        retry=retry_if_not_result(bool) | retry_if_exception_type(ChangedError),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.01, max=1.0),
    )
    try:
        retrying(attempt)
    except RetryError as exc:
        raise ConflictError(message()) from exc


def _as_json(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)  # unlike Python, tells 1 from True


def emptied(category: Category) -> Category:
    """Returns the next version of a category, without references. A commit of this version removes the category."""
    return replace(
        category,
        version=category.version + 1,
        rev=0,
        write_ids=(),
        texts=(),
        references={},
        metadata={},
        parent="",
        retired=False,
        kept=(),
    )


def has_same_content(one: Category, other: Category) -> bool:
    """Returns whether two versions of a category differ in marks at most."""
    return (one.write_ids, one.references, one.texts, one.metadata, one.parent) == (
        other.write_ids,
        other.references,
        other.texts,
        other.metadata,
        other.parent,
    )


def _seen(category: Category, planned: Category) -> Category:
    """Returns the category after a move; without the changes of a later writer, which the caller has not seen."""
    if has_same_content(category, planned):
        return category
    # The mark of the transfer has the version of the plan. A category that has more steps has a later version.
    return replace(planned, version=planned.version + 1, rev=category.rev)


def counted_by_expert(references: Iterable[Reference]) -> dict[str, int]:
    """Returns the number of references by expert."""
    return dict(Counter(expert_name(reference.encoder, reference.modality) for reference in references))


def _images(references: Iterable[Reference]) -> Mapping[str, Any]:
    return concerned(reference.hash for reference in references if reference.modality == "image")


def _leaving(move: Move, every: Sequence[Reference]) -> list[Reference]:
    """Returns the references that a move takes from all references of its source."""
    _check_known(move.hashes or (), {reference.hash for reference in every}, move.source)
    leaving = [r for r in every if move.hashes is None or r.hash in move.hashes]
    if move.renamed:
        leaving = [*(r for r in leaving if r.hash not in move.renamed.hashes), *move.renamed.references]
    return leaving


def _leaving_texts(move: Move, source: Category, leaving: Sequence[Reference]) -> list[str]:
    if move.hashes is not None:
        moved = {reference.source for reference in leaving}
        return [text for text in source.texts if text in moved]
    renamed = {move.renamed.old: move.renamed.new} if move.renamed else {}
    return [renamed.get(text, text) for text in source.texts]


def _losses(
    moves: Sequence[Move],
    every: Mapping[str, Sequence[Reference]],
    latest: Mapping[str, Category],
    gains: Mapping[str, Plan],
) -> list[Plan]:
    """Returns the plans by which the sources of moves lose references, except those that they gain.

    `every` has all references of each source.
    """
    plans: list[Plan] = []
    for name, references in every.items():
        category, fresh = gains.get(name, (latest[name], ()))
        if any(move.hashes is None for move in moves if move.source == name):
            retired = replace(emptied(category), retired=True)
            plans.append((marked(retired, {reference.hash for reference in references}), ()))
        elif hashes := _lost(moves, name):
            left, kept = _without(category, list({r.key: r for r in (*references, *fresh)}.values()), hashes)
            plans.append((marked(left, hashes), kept))
    return plans


def _lost(moves: Sequence[Move], name: str) -> set[str]:
    """Returns the content hashes that moves take from a category and do not give to it."""
    given = {digest for move in moves if move.target == name for digest in move.hashes or ()}
    return {digest for move in moves if move.source == name for digest in move.hashes or ()} - given


def _without(category: Category, every: Sequence[Reference], hashes: Collection[str]) -> Plan:
    kept = [reference for reference in every if reference.hash not in hashes]
    if not kept:
        raise LastReferenceError(
            f"category {category.name!r} would have no reference: remove it, or merge it into another"
        )
    removed = {reference.source for reference in every if reference.hash in hashes and reference.modality == "text"}
    texts = [text for text in category.texts if text not in removed]
    return replace(
        category,
        version=category.version + 1,
        rev=0,
        write_ids=(new_write_id(),),
        texts=tuple(texts) if any(reference.modality == "text" for reference in kept) else (),
        references=counted_by_expert(kept),
    ), kept


def _check_known(hashes: Collection[str], there: Collection[str], name: str) -> None:
    unknown = sorted(set(hashes).difference(there))
    if unknown:
        raise InvalidInputError(
            f"category {name!r} has no reference {unknown[0]!r}: `zsvec show` lists those it has, by hash"
        )
