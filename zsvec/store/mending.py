"""Changes of the references that a category has: some are taken away, or moved to another. No encoder is needed.

References that stay, and those that move, are written again under a new write id, since a manifest names whole writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from zsvec.errors import InvalidInputError
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.commit import publish
from zsvec.store.catalog.schema import Reference, category_from, new_write_id
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.transfer import settled
from zsvec.store.writing import Plan, Write, carry_out, carry_out_move, planned, read_all, until_won
from zsvec.types import Category, expert_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """References of one category that become those of another.

    Attributes:
        source: The category that has them.
        target: The category that gets them; made, if there is none.
        hashes: Which, by content; ``None``: all, so that the source is removed, and its metadata move as well.
        new: Whether there must be no target yet.
        renamed: A definition text that takes the place of another on the way.
    """

    source: str
    target: str
    hashes: Collection[str] | None = None
    new: bool = False
    renamed: Renamed | None = None


@dataclass(frozen=True, slots=True)
class Renamed:
    """A name that defines a category, and is another one from now on.

    Attributes:
        old: The definition text that it was.
        new: The one that takes its place.
        hashes: Content hashes of the references of the old one, whether they are there or not.
        references: Those of the new one.
    """

    old: str
    new: str
    hashes: Collection[str] = ()
    references: Sequence[Reference] = ()


def remove_references(
    catalog: Catalog, references: ReferenceCollections, collector: Collector, name: str, hashes: Collection[str]
) -> Category:
    """As `zsvec.store.store.Store.remove_references`."""
    left: list[Category] = []

    def attempt() -> bool:
        if left:  # it is done, and every reader's next look must find it
            return bool(publish(catalog, catalog.state([name]).manifests))
        before = settled(catalog, [name])
        category = _there(catalog, before.categories().get(name), name)
        every = read_all(catalog, category, references)
        _check_known(hashes, every, name)
        won = carry_out(catalog, references, collector, [_without(category, every, hashes)], before)
        left.extend(map(category_from, won.values()))
        return bool(won and publish(catalog, won))

    until_won(attempt, [name], catalog.location)
    return left[0]


def move_references(catalog: Catalog, references: ReferenceCollections, collector: Collector, move: Move) -> Category:
    """As `zsvec.store.store.Store.move_references`."""
    names = [move.source, move.target]
    moved: list[Category] = []
    leaving: list[Reference] = []  # of the last attempt

    def attempt() -> bool:
        before = settled(catalog, names)
        latest = before.categories()
        if leaving and _is_done(move, leaving, latest, references):  # another writer carried the last attempt out
            moved.append(latest[move.target])
            return True
        source, target = _there(catalog, latest.get(move.source), move.source), latest.get(move.target)
        if move.new and target and target.write_ids:
            raise InvalidInputError(f"there is a category {move.target!r} already: merge {move.source!r} into it")
        every = read_all(catalog, source, references)
        _check_known(move.hashes or (), every, move.source)
        leaving[:], texts = _leaving(move, source, every)
        loses, gains = _both(move, source, target, (every, leaving, texts), catalog, references)
        stored = {
            move.source: source.write_ids,
            move.target: [*(target.write_ids if target else ()), *source.write_ids],
        }
        won = carry_out_move(catalog, references, collector, loses, gains, before, stored)
        moved.extend([category_from(won[move.target])] if won else [])
        return bool(won)

    until_won(attempt, names, catalog.location)
    return moved[0]


def _leaving(move: Move, source: Category, every: Sequence[Reference]) -> tuple[list[Reference], list[str]]:
    """The references and the definition texts that a move brings to the target."""
    leaving = [r for r in every if move.hashes is None or r.hash in move.hashes]
    texts = [text for text in source.texts if move.hashes is None or text in {r.source for r in leaving}]
    if move.renamed:
        leaving = [*(r for r in leaving if r.hash not in move.renamed.hashes), *move.renamed.references]
        texts = [move.renamed.new if text == move.renamed.old else text for text in texts]
    return leaving, texts


def _both(
    move: Move,
    source: Category,
    target: Category | None,
    moving: tuple[Sequence[Reference], Sequence[Reference], Sequence[str]],
    catalog: Catalog,
    references: ReferenceCollections,
) -> tuple[Plan, Plan]:
    """The source as a move leaves it, and the target.

    Args:
        move: What is asked for.
        source: As it is.
        target: As it is, if there is one.
        moving: All references of the source; those that move, and the definition texts that do.
        catalog: Of the store.
        references: Of the store.
    """
    (every, leaving, texts), whole = moving, move.hashes is None
    metadata = None
    if whole:
        metadata = {**source.metadata, **(target.metadata if target and target.write_ids else {})}
    gains = planned(
        Write(name=move.target, references=leaving, texts=texts, metadata=metadata), target, catalog, references
    )
    if target and gains[0] is target:  # it has them all; but nobody may take them from it meanwhile
        gains = replace(target, version=target.version + 1, rev=0), ()
    gone = Category(name=source.name, version=source.version + 1, rev=0, write_ids=(), texts=(), references={})
    return (gone, ()) if whole else _without(source, every, move.hashes or ()), gains


def _without(category: Category, every: Sequence[Reference], hashes: Collection[str]) -> Plan:
    """A category without some of its references.

    Raises:
        InvalidInputError: It would have none.
    """
    kept = [reference for reference in every if reference.hash not in hashes]
    if not kept:
        raise InvalidInputError(
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
        references=dict(Counter(expert_name(reference.encoder, reference.modality) for reference in kept)),
    ), kept


def _is_done(
    move: Move, leaving: Sequence[Reference], latest: Mapping[str, Category], references: ReferenceCollections
) -> bool:
    """Whether nothing is left to move, and the target has all references that were to move.

    A source that is gone says nothing alone: another writer may have removed it.
    """
    source, target = latest.get(move.source), latest.get(move.target)
    if target is None or not target.write_ids:
        return False
    left = {key[2] for key in references.keys(source)} if source and source.write_ids else set()
    if not left.isdisjoint(left if move.hashes is None else move.hashes):
        return False
    return {reference.key for reference in leaving} <= references.keys(target)


def _check_known(hashes: Collection[str], every: Sequence[Reference], name: str) -> None:
    unknown = sorted(set(hashes) - {reference.hash for reference in every})
    if unknown:
        raise InvalidInputError(
            f"category {name!r} has no reference {unknown[0]!r}: `zsvec show` lists those it has, by hash"
        )


def _there(catalog: Catalog, category: Category | None, name: str) -> Category:
    if category is None or not category.write_ids:
        raise catalog.not_found(name)
    return category
