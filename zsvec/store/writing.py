"""Writing categories: references first, then the commit, then what nobody sees any more is deleted.

A category is planned on its last commit. The references that it lacks go to every encoder's collection
under a new write id, its manifest is replaced by compare-and-set (`Catalog.commit`), and the references of
writes that the winner no longer names are deleted. A writer that loses plans again on what is there by then; one that
dies leaves references that no manifest names, for the collector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_attempt, wait_random_exponential

from zsvec.errors import ConflictError
from zsvec.store.catalog import Catalog
from zsvec.store.collector import collect
from zsvec.store.references import ReferenceCollections
from zsvec.store.schema import Reference, new_write_id
from zsvec.types import Category, expert_name

_WRITES_KEPT = 32  # write ids of a category, beyond which an addition copies all its references into one write
_ATTEMPTS = 12

# A category as a write leaves it, and the references that have to be written first.
_Plan: TypeAlias = tuple[Category, Sequence[Reference]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """References to commit to one category.

    Attributes:
        name: The category.
        references: References to add.
        texts: The definition texts among them.
        metadata: JSON to keep with the category; ``None`` keeps what is there.
        replace: Whether the references, texts and metadata that the category has are dropped.
    """

    name: str
    references: Sequence[Reference]
    texts: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    replace: bool = False


def write_categories(catalog: Catalog, references: ReferenceCollections, writes: Sequence[Write]) -> list[Category]:
    """As `zsvec.store.store.Store.write`."""
    done: dict[str, Category] = {}
    pending = {write.name: write for write in writes}

    def attempt() -> bool:
        latest = catalog.latest(pending)
        plans = [_plan(write, latest.get(name), references) for name, write in pending.items()]
        complete = {category.name: category for category, _ in plans if category is latest.get(category.name)}
        won = _carry_out(catalog, references, [plan for plan in plans if plan[0].name not in complete], latest)
        for name, category in {**complete, **won}.items():
            done[name] = category
            del pending[name]
        return not pending

    _until_won(attempt, pending, catalog.location)
    return [done[write.name] for write in writes]


def remove_category(catalog: Catalog, references: ReferenceCollections, name: str) -> None:
    """As `zsvec.store.store.Store.remove`."""

    def attempt() -> bool:
        category = catalog.category(name)
        removed = replace(category, version=category.version + 1, write_ids=(), texts=(), references={}, metadata={})
        return bool(_carry_out(catalog, references, [(removed, ())], {name: category}))

    _until_won(attempt, [name], catalog.location)


def keep_calibration(catalog: Catalog, calibration: Mapping[str, Any]) -> None:
    """As `zsvec.store.store.Store.keep_calibration`."""
    _until_won(lambda: catalog.commit_calibration(calibration), [], catalog.location)


def _plan(write: Write, current: Category | None, references: ReferenceCollections) -> _Plan:
    """The category as a write leaves it; `current` itself if it already is as the write wants it."""
    kept = current if current and current.write_ids and not write.replace else None
    present = references.keys(kept) if kept else set()
    fresh = list({r.key: r for r in write.references if r.key not in present}.values())
    texts = tuple(dict.fromkeys((*(kept.texts if kept else ()), *write.texts)))
    metadata = dict(write.metadata if write.metadata is not None else kept.metadata if kept else {})
    if kept and not fresh and (texts, metadata) == (kept.texts, kept.metadata):
        return kept, ()
    write_ids = kept.write_ids if kept else ()
    if kept and len(write_ids) >= _WRITES_KEPT:
        fresh = [*references.read(kept), *fresh]
        write_ids = ()
    counts = Counter(kept.references if kept and write_ids else {})
    counts.update(expert_name(reference.encoder, reference.modality) for reference in fresh)
    category = Category(
        name=write.name,
        version=current.version + 1 if current else 1,
        rev=0,
        write_ids=(*write_ids, new_write_id()),
        texts=texts,
        references=dict(counts),
        metadata=metadata,
    )
    return category, fresh


def _carry_out(
    catalog: Catalog, references: ReferenceCollections, plans: Sequence[_Plan], latest: Mapping[str, Category]
) -> dict[str, Category]:
    """Write references, commit, and delete what no manifest names any more: the commits that won, by name."""
    references.put(plans)
    won = catalog.commit([category for category, _ in plans])
    dead: list[str] = []
    for category, _ in plans:
        before = latest[category.name].write_ids if category.name in latest else ()
        kept, other = (category.write_ids, before) if category.name in won else (before, category.write_ids)
        dead.extend(write_id for write_id in other if write_id not in kept)
    if dead:
        references.delete(catalog.encoders(), dead)
    if won:
        collect(catalog, references, among=won)
    return won


def _until_won(attempt: Callable[[], bool], names: Iterable[str], location: str) -> None:
    """Try a commit again until it wins.

    Args:
        attempt: Plans and commits once, and says whether it won.
        names: The categories that are not committed yet; none for the calibration.
        location: Of the store.

    Raises:
        ConflictError: It lost `_ATTEMPTS` times.
    """
    retrying = Retrying(
        retry=retry_if_not_result(bool),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.01, max=1.0),
    )
    try:
        retrying(attempt)
    except RetryError as exc:
        changed = ", ".join(map(repr, names)) or "the calibration"
        raise ConflictError(
            f"others changed {changed} in {location} at each of {_ATTEMPTS} attempts: try again when they are done"
        ) from exc
