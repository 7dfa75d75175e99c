"""Lays out the references of a store by expert and category, and updates them after commits."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from typing import cast

import numpy as np

from zsvec.method.arrays import Floats
from zsvec.method.similarities import References
from zsvec.search.base import Change, Incomplete
from zsvec.store import Points, Store
from zsvec.store.attached.parts import PartsChanged, is_attached_write
from zsvec.store.catalog.schema import text_from
from zsvec.types import Modality, encoder_and_modality, expert_name

_Texts = tuple[str, str, str, str | None]
"""Category, hash, source and group of a reference."""
_FEW = 1000
"""Number of references that are read without looking how many are stored."""
_MOST = 0.75
"""Share of the stored references from which on all are read, since a filter of many write ids takes longer."""
_NONE = References((), np.empty((0, 0), np.float32), np.zeros(1, np.intp), np.empty(0, np.float32), (), ())


def read(store: Store, changes: Collection[Change], *, keep: bool = False) -> Iterator[tuple[str, References]]:
    """Yields expert name and new references, for each expert of which categories have gained references.

    Args:
        store: The store to read from.
        changes: Changes of the categories.
        keep: Whether the store keeps the points of attached collections for the next change.

    Raises:
        Incomplete: Points of attached collections have changed.
    """
    new = [write_id for change in changes for write_id in change.new_write_ids]
    write_ids = [write_id for write_id in new if not is_attached_write(write_id)]
    attached = [write_id for write_id in new if is_attached_write(write_id)]
    gained: dict[str, dict[str, int]] = {}
    own: Counter[str] = Counter()
    for change in changes:
        own.update(change.gained_own)
        for expert, more in change.gained.items():
            gained.setdefault(expert, {})[change.after.name] = more
    for encoder in store.encoders() if new else ():
        number = sum(n for expert, n in own.items() if encoder_and_modality(expert)[0] == encoder)
        stored = store.count(encoder) if number > _FEW else number
        arrived: dict[str, _Arrived] = {}
        own_pages = store.references(encoder, write_ids, all_writes=_FEW < number > _MOST * stored)
        for page in chain(own_pages, _attached_pages(store, encoder, attached, keep=keep)):
            of_each: dict[Modality, list[int]] = {}
            for row, payload in enumerate(page.payloads):
                of_each.setdefault(payload["modality"], []).append(row)
            for modality, rows in of_each.items():
                expert = expert_name(encoder, modality)
                some = page.chosen(rows)
                if expert not in arrived:
                    counts = gained.get(expert, {})
                    believed = number <= stored and all(n >= 0 for n in counts.values())  # a manifest may be forged
                    arrived[expert] = _Arrived(counts if believed else {}, some.vectors.shape[1])
                arrived[expert].add(some)
        for expert, found in sorted(arrived.items()):
            yield expert, found.references()


def _attached_pages(store: Store, encoder: str, write_ids: Sequence[str], *, keep: bool) -> Iterator[Points]:
    if not write_ids:
        return
    try:
        yield from store.attached_pages(encoder, write_ids, keep=keep)
    except PartsChanged as exc:
        raise Incomplete([]) from exc


class _Arrived:
    """References of one expert, each copied to its final row on arrival. A second copy would take time and memory.

    Args:
        counts: Number of references to expect, by category.
        dim: Dimension of the vectors.
    """

    def __init__(self, counts: Mapping[str, int], dim: int) -> None:
        self._names = sorted(counts)
        self._starts = [0, *accumulate(counts[name] for name in self._names)]
        self._next = dict(zip(self._names, self._starts, strict=False))  # free row of each category
        self._end = dict(zip(self._names, self._starts[1:], strict=True))
        self._vectors = np.empty((self._starts[-1], dim), dtype=np.float32)
        self._texts: list[_Texts | None] = [None] * self._starts[-1]
        self._surplus: list[tuple[Floats, _Texts]] = []  # references that nothing in `counts` announced

    def add(self, page: Points) -> None:
        """Adds a page of references."""
        vectors, rows, kept = page.vectors, [], []
        for i, payload in enumerate(page.payloads):
            name = payload["category"]
            texts = (name, payload["hash"], payload["source"], text_from(payload, "group"))
            row = self._next.get(name)
            if row is None or row == self._end[name]:
                self._surplus.append((vectors[i], texts))
                continue
            self._next[name] = row + 1
            self._texts[row] = texts
            rows.append(row)
            kept.append(i)
        self._vectors[rows] = vectors if len(kept) == len(vectors) else vectors[kept]

    def references(self) -> References:
        """Returns all references, ordered by category and arrival."""
        if self._surplus or self._next != self._end:
            return self._differing()
        return _references(tuple(self._names), self._starts, self._vectors, cast("list[_Texts]", self._texts))

    def _differing(self) -> References:
        """Returns references that are more or fewer than expected, for instance of a replaced category."""
        found = [(self._vectors[row], texts) for row, texts in enumerate(self._texts) if texts] + self._surplus
        found.sort(key=lambda one: one[1][0])
        counts = Counter(texts[0] for _, texts in found)
        starts = [0, *accumulate(counts.values())]
        return _references(tuple(counts), starts, np.stack([vector for vector, _ in found]), [one for _, one in found])


def _references(names: tuple[str, ...], starts: Sequence[int], vectors: Floats, texts: Sequence[_Texts]) -> References:
    _, hashes, sources, groups = zip(*texts, strict=True)
    return References(
        names=names,
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
    store: Store, before: Mapping[str, References], changes: Sequence[Change], *, keep: bool = False
) -> tuple[dict[str, References], set[str]]:
    """Returns the references after some changes. Reads only the references of new writes.

    Args:
        store: The store to read from.
        before: The references before the changes, by expert.
        changes: Changes of the categories.
        keep: As for `read`.

    Returns:
        The references of each expert that has references (the same object as before if no change concerns the expert),
        and the names of changed categories with missing references. Such categories keep their former references.
    """
    names = {change.after.name for change in changes}
    grown = {change.after.name for change in changes if change.grew}
    kept = {expert: parts_of(references, names) for expert, references in before.items()}
    parts = {expert: {name: found[name] for name in found.keys() & grown} for expert, found in kept.items()}
    new = dict(read(store, changes, keep=keep))
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
