"""Writing categories: an intent, references, the commit, and only then the acknowledgement.

A category is planned on its last commit. What the write may leave behind is declared (`zsvec.store.collector`). The
references that it lacks go to every encoder's collection under a new write id, and so do small copies of their images
(`zsvec.store.collections.images`). Its manifest is replaced by compare-and-set (`zsvec.store.catalog.commit`), and the
commit is published to all readers. References that the winner no longer names are left to the collector. A writer that
loses plans again on what is there by then, under a new write id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_attempt,
    wait_random_exponential,
)

from zsvec.errors import ConflictError, InvalidInputError, StoreError, StoreUnavailableError
from zsvec.store.catalog.catalog import Catalog, State
from zsvec.store.catalog.commit import commit, commit_calibration, publish
from zsvec.store.catalog.schema import Reference, category_from, new_write_id
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.transfer import settled, transfer
from zsvec.types import Category, encoder_and_modality, expert_name

_WRITES_KEPT = 32  # write ids of a category, beyond which an addition copies all its references into one write
_ATTEMPTS = 12
_ALL = frozenset({"text", "image", "metadata"})  # of a category

# A category as a write leaves it, and the references that have to be written first.
Plan: TypeAlias = tuple[Category, Sequence[Reference]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """References to commit to one category.

    Attributes:
        name: The category.
        references: References to add.
        texts: The definition texts among them.
        metadata: JSON to keep with the category; ``None`` keeps what is there.
        replace: Whether the references, texts and metadata that the category has are dropped …
        keeps: … but for these: ``"image"``, ``"text"`` (references of a modality, and the texts), ``"metadata"``.
        needs: Content hashes of references that the category must still have when the write is committed. An empty
            set requires the category alone, and ``None`` nothing.
    """

    name: str
    references: Sequence[Reference]
    texts: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    replace: bool = False
    keeps: frozenset[str] = frozenset()
    needs: frozenset[str] | None = None


def write_categories(
    catalog: Catalog, references: ReferenceCollections, collector: Collector, writes: Sequence[Write]
) -> list[Category]:
    """As `zsvec.store.store.Store.write`."""
    done: dict[str, Category] = {}
    pending = {write.name: write for write in writes}
    refused: list[StoreError | InvalidInputError] = []

    def attempt() -> bool:
        before = settled(catalog, pending)
        plans, errors = _planned_each(pending, before, catalog, references)
        refused.extend(errors.values())
        for name in errors:
            del pending[name]
        before = before.only(pending)
        latest = before.categories()
        complete = [category.name for category, _ in plans if category == latest.get(category.name)]
        changes = [one for one in plans if one[0].name not in complete]
        manifests = carry_out(catalog, references, collector, changes, before)
        if complete and not catalog.exclusive:  # others may have changed them since
            manifests |= catalog.state(complete).manifests
        wanted = {category.name: category.write_ids for category, _ in plans}
        there = {name: category_from(manifest) for name, manifest in publish(catalog, manifests, complete).items()}
        if catalog.exclusive:
            there |= {name: latest[name] for name in complete}
        for name, category in there.items():
            if set(wanted[name]) <= set(category.write_ids):
                done[name] = category
                del pending[name]
        return not pending

    until_won(attempt, pending, catalog.location)
    if refused:
        raise refused[0]
    return [done[write.name] for write in writes]


def _planned_each(
    writes: Mapping[str, Write], before: State, catalog: Catalog, references: ReferenceCollections
) -> tuple[list[Plan], dict[str, StoreError | InvalidInputError]]:
    """The plans of writes, and the errors of those that cannot be planned, so that the others are committed."""
    plans, errors = [], {}
    for name, write in writes.items():
        try:
            current = before.only([name]).categories().get(name)
            plans.append(planned(write, current, catalog, references))
        except StoreUnavailableError:
            raise
        except (StoreError, InvalidInputError) as exc:
            errors[name] = exc
    return plans, errors


def remove_category(catalog: Catalog, references: ReferenceCollections, collector: Collector, name: str) -> None:
    """As `zsvec.store.store.Store.remove`."""

    def attempt() -> bool:
        before = settled(catalog, [name])
        if name not in before.manifests and catalog.heal([name]):
            before = settled(catalog, [name])
        category = before.categories().get(name)
        if category is None or not category.write_ids:
            raise catalog.not_found(name)
        removed = replace(category, version=category.version + 1, write_ids=(), texts=(), references={}, metadata={})
        return bool(publish(catalog, carry_out(catalog, references, collector, [(removed, ())], before)))

    until_won(attempt, [name], catalog.location)


def keep_calibration(catalog: Catalog, calibration: Mapping[str, Any]) -> None:
    """As `zsvec.store.store.Store.keep_calibration`."""
    until_won(lambda: commit_calibration(catalog, calibration), [], catalog.location)


def planned(write: Write, current: Category | None, catalog: Catalog, references: ReferenceCollections) -> Plan:
    """The category as a write leaves it; `current` itself if it already is as the write wants it.

    Raises:
        ConflictError: Another writer has removed what the write needs.
        ChangedError: The category has been changed since.
        InvalidInputError: The category would have no reference.
    """
    there = current if current and current.write_ids else None
    kept = None if write.replace else there
    keeps = write.keeps if write.replace else _ALL
    present = references.keys(kept) if kept else set()
    if write.needs is not None:
        held = present if kept or not there else references.keys(there)
        if there is None or not write.needs <= {digest for _, _, digest in held}:
            if there and _has_changed(catalog, there):
                raise ChangedError
            raise ConflictError(
                f"another writer removed references of {write.name!r}, or the category, during this write: repeat it"
            )
    carried = read_all(catalog, there, references, keeps) if there and write.replace and keeps else []
    fresh = list({r.key: r for r in (*carried, *write.references) if r.key not in present}.values())
    if write.replace and keeps & {"text", "image"} and not fresh:  # what was to be kept has been removed
        raise InvalidInputError(f"category {write.name!r} would have no reference: give it a text or an image")
    texts = tuple(dict.fromkeys((*(there.texts if there and "text" in keeps else ()), *write.texts)))
    before = there.metadata if there and "metadata" in keeps else {}
    metadata = dict(before if write.metadata is None else write.metadata)
    if kept and not fresh and (texts, metadata) == (kept.texts, kept.metadata):
        return kept, ()
    write_ids = kept.write_ids if kept else ()
    if kept and len(write_ids) >= _WRITES_KEPT:
        fresh = [*read_all(catalog, kept, references), *fresh]
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


def read_all(
    catalog: Catalog, category: Category, references: ReferenceCollections, modalities: Container[str] = _ALL
) -> list[Reference]:
    """The references of a category that are to be written again.

    Raises:
        ChangedError: They are not all there, since the category has been changed.
        StoreError: They are not all there: those that are missing would be gone without a word.
    """
    wanted = sum(n for expert, n in category.references.items() if encoder_and_modality(expert)[1] in modalities)
    found = [reference for reference in references.read(category) if reference.modality in modalities]
    if len(found) < wanted:
        if _has_changed(catalog, category):
            raise ChangedError
        raise StoreError(
            f"category {category.name!r} has only {len(found)} of {wanted} references that it is to keep: look with "
            "`zsvec doctor`, or replace all of them"
        )
    return found


def _has_changed(catalog: Catalog, category: Category) -> bool:
    now = catalog.find(category.name)
    return now is None or now.version != category.version


class ChangedError(Exception):
    """What an attempt was planned on is no longer there."""


def carry_out(
    catalog: Catalog,
    references: ReferenceCollections,
    collector: Collector,
    plans: Sequence[Plan],
    before: State,
    stored: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Mapping[str, Any]]:
    """Write references and commit: the manifests of the commits that won, by category.

    Args:
        catalog: Of the store.
        references: Where they are written.
        collector: Is told what may be left behind.
        plans: What to commit.
        before: What they were planned on.
        stored: By category, the write ids of references that are written again; by default those it has.
    """
    if not plans:
        return {}
    writes, replaced = left_behind(plans, before.categories())
    with collector.intent(before, [category.name for category, _ in plans], writes, replaced) as intent:
        references.put(plans)
        if before.images:
            references.images.put(plans, replaced if stored is None else stored)
        intent.won.update(commit(catalog, [category for category, _ in plans], before, intent.change))
    return intent.won


def carry_out_move(
    catalog: Catalog,
    references: ReferenceCollections,
    collector: Collector,
    loses: Plan,
    gains: Plan,
    before: State,
    stored: Mapping[str, Sequence[str]],
) -> dict[str, Mapping[str, Any]]:
    """As `carry_out`, two categories of which one loses what the other gains: both, or none."""
    plans, names = [gains, loses], [loses[0].name, gains[0].name]
    writes, replaced = left_behind(plans, before.categories())
    with collector.intent(before, names, writes, replaced, moved=names) as intent:
        references.put(plans)
        if before.images:
            references.images.put(plans, stored)
        intent.won.update(transfer(catalog, loses[0], gains[0], before, intent.change))
    return intent.won


def left_behind(plans: Sequence[Plan], latest: Mapping[str, Category]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What plans may leave behind: by category, the write id of what they write, and those that they replace.

    Args:
        plans: To be carried out.
        latest: The last commit of each category that there is.
    """
    writes = {category.name: category.write_ids[-1] for category, fresh in plans if fresh}
    replaced = {
        category.name: [w for w in latest[category.name].write_ids if w not in category.write_ids]
        for category, _ in plans
        if category.name in latest
    }
    return writes, replaced


def until_won(attempt: Callable[[], bool], names: Iterable[str], location: str) -> None:
    """Try a commit again until it wins.

    Args:
        attempt: Plans and commits once, and says whether it won.
        names: The categories that are not committed yet; none for the calibration.
        location: Of the store.

    Raises:
        ConflictError: It lost `_ATTEMPTS` times.
    """
    retrying = Retrying(
        retry=retry_if_not_result(bool) | retry_if_exception_type(ChangedError),
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
