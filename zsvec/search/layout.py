"""Lays out the references of a store by expert and category, and updates them after commits."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise

import numpy as np

from zsvec.method.arrays import Floats
from zsvec.method.similarities import References
from zsvec.search.base import Change
from zsvec.store import Store
from zsvec.store.catalog.schema import text_from
from zsvec.types import Modality, expert_name

_Arrived = tuple[list[Floats], list[tuple[str, str, str, str | None]]]
"""Pages of vectors, and the category, hash, source and group of each reference."""
_NONE = References((), np.empty((0, 0), np.float32), np.zeros(1, np.intp), np.empty(0, np.float32), (), ())


def read(store: Store, changes: Collection[Change]) -> Iterator[tuple[str, References]]:
    """Yields expert name and new references, for each expert of which categories have gained references.

    Args:
        store: The store to read from.
        changes: Changes of the categories.
    """
    write_ids = [write_id for change in changes for write_id in change.new_write_ids]
    for encoder in store.encoders() if write_ids else ():
        arrived: dict[str, _Arrived] = {}
        for page in store.references(encoder, write_ids):
            of_each: dict[Modality, list[int]] = {}
            for row, payload in enumerate(page.payloads):
                of_each.setdefault(payload["modality"], []).append(row)
            for modality, rows in of_each.items():
                pages, texts = arrived.setdefault(expert_name(encoder, modality), ([], []))
                some = page.chosen(rows)
                pages.append(some.vectors)
                texts += [(p["category"], p["hash"], p["source"], text_from(p, "group")) for p in some.payloads]
        for expert, found in sorted(arrived.items()):
            yield expert, _by_category(*found)


def _by_category(pages: list[Floats], texts: Sequence[tuple[str, str, str, str | None]]) -> References:
    """Returns references in order of category and arrival. Empties the list of pages."""
    order = sorted(range(len(texts)), key=lambda i: texts[i][0])
    row = np.argsort(order)  # row in `vectors` of each reference, in order of arrival
    vectors = np.empty((len(order), pages[0].shape[1]), dtype=np.float32)
    first = 0
    while pages:  # each page is freed after it is copied
        page = pages.pop(0)
        vectors[row[first : first + len(page)]] = page
        first += len(page)
    labels, hashes, sources, groups = zip(*(texts[i] for i in order), strict=True)
    counts = Counter(labels)
    starts = [0, *accumulate(counts.values())]
    return References(
        names=tuple(counts),
        vectors=vectors,
        starts=np.array(starts, dtype=np.intp),
        norms=np.array([_norm_of_mean(vectors[slice(*bounds)]) for bounds in pairwise(starts)], dtype=np.float32),
        hashes=hashes,
        sources=sources,
        groups=groups if any(groups) else (),
    )


def _norm_of_mean(vectors: Floats) -> float:
    """Returns the length of the mean of vectors, float32 ``(n, dim)``; 0 to 1 for unit vectors."""
    return float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64)))


def renewed(
    store: Store, before: Mapping[str, References], changes: Sequence[Change]
) -> tuple[dict[str, References], set[str]]:
    """Returns the references after some changes. Reads only the references of new writes.

    Args:
        store: The store to read from.
        before: The references before the changes, by expert.
        changes: Changes of the categories.

    Returns:
        The references of each expert that has references (the same object as before if no change concerns the expert),
        and the names of changed categories with missing references. Such categories keep their former references.
    """
    names = {change.after.name for change in changes}
    grown = {change.after.name for change in changes if change.grew}
    kept = {expert: parts_of(references, names) for expert, references in before.items()}
    parts = {expert: {name: found[name] for name in found.keys() & grown} for expert, found in kept.items()}
    new = dict(read(store, changes))
    for expert, references in new.items():
        categories = parts.setdefault(expert, {})
        for name, part in parts_of(references, references.names).items():
            categories[name] = _grown(categories[name], part) if name in categories else part
    torn = _take_back(parts, kept, changes)
    after = dict(before)
    for expert, categories in parts.items():
        if expert not in before and not torn and names.issuperset(new[expert].names):
            after[expert] = new[expert]  # already laid out
            continue
        was = kept.get(expert, {})
        changed = {name: categories.get(name) for name in names if categories.get(name) is not was.get(name)}
        if not changed:
            continue
        laid_out = _changed(after.pop(expert, _NONE), changed)
        if laid_out is not None:
            after[expert] = laid_out
            if expert in before:
                laid_out.succeed(before[expert], names)
    return after, torn


def _take_back(
    parts: Mapping[str, dict[str, References]], kept: Mapping[str, Mapping[str, References]], changes: Sequence[Change]
) -> set[str]:
    """Restores the former references of categories with missing references. Returns the names of these categories."""
    torn = set()
    for change in changes:
        name = change.after.name
        counts = {expert: len(found[name].hashes) for expert, found in parts.items() if name in found}
        if counts != dict(change.after.references):
            torn.add(name)
            for expert, categories in parts.items():
                categories.pop(name, None)
                if name in kept.get(expert, {}):
                    categories[name] = kept[expert][name]
    return torn


def parts_of(references: References, names: Collection[str]) -> dict[str, References]:
    """Returns the references of given categories, by category. Leaves out categories without references."""
    found = {}
    for name in names:
        at = bisect_left(references.names, name)
        if references.names[at : at + 1] == (name,):
            found[name] = _between(references, at, at + 1)
    return found


def _between(references: References, first: int, last: int) -> References:
    """Returns the references of the categories at positions `first` to `last`, without `last`."""
    rows = slice(int(references.starts[first]), int(references.starts[last]))
    return References(
        names=references.names[first:last],
        vectors=references.vectors[rows],
        starts=references.starts[first : last + 1] - references.starts[first],
        norms=references.norms[first:last],
        hashes=references.hashes[rows],
        sources=references.sources[rows],
        groups=references.groups[rows],
    )


def _grown(part: References, more: References) -> References:
    """Returns the references of one category, followed by more references of the category."""
    vectors = np.concatenate([part.vectors, more.vectors])
    return replace(
        part,
        vectors=vectors,
        starts=np.array([0, len(vectors)], dtype=np.intp),
        norms=np.array([_norm_of_mean(vectors)], dtype=np.float32),
        hashes=part.hashes + more.hashes,
        sources=part.sources + more.sources,
        groups=_groups(part) + _groups(more),
    )


def _groups(references: References) -> tuple[str | None, ...]:
    return references.groups or (None,) * len(references.hashes)


def _changed(before: References, changed: Mapping[str, References | None]) -> References | None:
    """Returns the references with the categories in `changed` replaced or added. The value ``None`` removes a category.

    Returns ``None`` if no category is left.
    """
    pieces = []
    end = 0
    for name in sorted(changed):
        start = bisect_left(before.names, name)
        pieces.append(_between(before, end, start))
        end = start + (before.names[start : start + 1] == (name,))
        if (part := changed[name]) is not None:
            pieces.append(part)
    pieces.append(_between(before, end, len(before.names)))
    pieces = [piece for piece in pieces if piece.names]
    if not pieces:
        return None
    groups = tuple(chain.from_iterable(map(_groups, pieces)))
    counts = np.concatenate([np.diff(piece.starts) for piece in pieces])
    return References(
        names=tuple(chain.from_iterable(piece.names for piece in pieces)),
        vectors=np.concatenate([piece.vectors for piece in pieces]),
        starts=np.concatenate([np.zeros(1, dtype=np.intp), np.cumsum(counts, dtype=np.intp)]),
        norms=np.concatenate([piece.norms for piece in pieces]),
        hashes=tuple(chain.from_iterable(piece.hashes for piece in pieces)),
        sources=tuple(chain.from_iterable(piece.sources for piece in pieces)),
        groups=groups if any(groups) else (),
    )
