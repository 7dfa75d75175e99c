"""References from the store, laid out by expert and category to be compared with images."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from zsvec.method.arrays import Floats
from zsvec.method.similarities import References
from zsvec.search.arrivals import norm_of_mean, read
from zsvec.search.base import Change
from zsvec.store import Store

Groups = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The references of one category to one expert.

    Attributes:
        vectors: float32 ``(n, dim)``, unit rows; at least one.
        hashes: Content hash of each.
        sources: Where each comes from.
        groups: What each belongs together with.
        norm: Length of the mean vector, 0 to 1.
    """

    vectors: Floats
    hashes: tuple[str, ...]
    sources: tuple[str, ...]
    groups: Groups
    norm: float

    @classmethod
    def of(cls, vectors: Floats, hashes: tuple[str, ...], sources: tuple[str, ...], groups: Groups) -> Part:
        """References with the norm of their mean."""
        return cls(vectors, hashes, sources, groups, norm_of_mean(vectors))

    def __add__(self, other: Part) -> Part:
        vectors = np.concatenate([self.vectors, other.vectors])
        return Part.of(vectors, self.hashes + other.hashes, self.sources + other.sources, self.groups + other.groups)

    def __len__(self) -> int:
        return len(self.hashes)


def renewed(
    store: Store, before: Mapping[str, References], changes: Sequence[Change]
) -> tuple[dict[str, References], set[str]]:
    """References after some changes: only those of new writes are read.

    Args:
        store: Where they are.
        before: The references before the changes, by expert.
        changes: What was committed.

    Returns:
        The references of each expert that has any: the same object, where the changes do not concern it. And the names
        of the changed categories of which not all references are there; they are as they were before.
    """
    names = {change.after.name for change in changes}
    grown = {change.after.name for change in changes if change.grew}
    kept = {expert: parts_of(references, names) for expert, references in before.items()}
    parts = {expert: {name: found[name] for name in found.keys() & grown} for expert, found in kept.items()}
    new = dict(read(store, changes))
    for expert, references in new.items():
        categories = parts.setdefault(expert, {})
        for name, part in parts_of(references, references.names).items():
            categories[name] = categories[name] + part if name in categories else part
    torn = _take_back(parts, kept, changes)
    after = dict(before)
    for expert, categories in parts.items():
        if expert not in before and not torn and names.issuperset(new[expert].names):
            after[expert] = new[expert]  # laid out already
            continue
        was = kept.get(expert, {})
        changed = {name: categories.get(name) for name in names if categories.get(name) is not was.get(name)}
        if not changed:
            continue
        laid_out = _changed(after.pop(expert, None), changed)
        if laid_out is not None:
            after[expert] = laid_out
            if expert in before:
                laid_out.succeed(before[expert], names)
    return after, torn


def _take_back(
    parts: Mapping[str, dict[str, Part]], kept: Mapping[str, Mapping[str, Part]], changes: Sequence[Change]
) -> set[str]:
    """Put back what there was of the categories of which not all references are there; these are named."""
    torn = set()
    for change in changes:
        name = change.after.name
        counts = {expert: len(categories[name]) for expert, categories in parts.items() if name in categories}
        if counts != dict(change.after.references):
            torn.add(name)
            for expert, categories in parts.items():
                categories.pop(name, None)
                if name in kept.get(expert, {}):
                    categories[name] = kept[expert][name]
    return torn


def parts_of(references: References, names: Collection[str]) -> dict[str, Part]:
    """The parts of some categories, of those that there are."""
    found = {}
    for name in names:
        at = bisect_left(references.names, name)
        if at < len(references.names) and references.names[at] == name:
            rows = slice(int(references.starts[at]), int(references.starts[at + 1]))
            groups = references.groups[rows] or (None,) * (rows.stop - rows.start)
            texts = references.hashes[rows], references.sources[rows], groups
            found[name] = Part(references.vectors[rows], *texts, float(references.norms[at]))
    return found


def _changed(before: References | None, changed: Mapping[str, Part | None]) -> References | None:
    """References with other parts of some categories, ``None`` for none of it; ``None`` if nothing is left."""
    pieces: list[References] = []
    end = 0
    for name in sorted(changed):
        if before is not None:
            start = bisect_left(before.names, name)
            pieces += _piece(before, end, start)
            end = start + (before.names[start : start + 1] == (name,))
        if (part := changed[name]) is not None:
            n, norms = len(part), np.array([part.norm], dtype=np.float32)
            starts = np.array([0, n], dtype=np.intp)
            texts = part.hashes, part.sources, part.groups
            pieces.append(References((name,), part.vectors, starts, norms, *texts))
    if before is not None:
        pieces += _piece(before, end, len(before.names))
    if not pieces:
        return None
    groups = tuple(chain.from_iterable(piece.groups or (None,) * len(piece.hashes) for piece in pieces))
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


def _piece(references: References, first: int, last: int) -> list[References]:
    """The categories from one to before another; nothing where there is none between."""
    if first == last:
        return []
    rows = slice(int(references.starts[first]), int(references.starts[last]))
    return [
        References(
            names=references.names[first:last],
            vectors=references.vectors[rows],
            starts=references.starts[first : last + 1],
            norms=references.norms[first:last],
            hashes=references.hashes[rows],
            sources=references.sources[rows],
            groups=references.groups[rows],
        )
    ]
