"""References from the store, laid out by expert and category to be compared with images."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from operator import itemgetter

import numpy as np

from zsvec.method.rows import Rows
from zsvec.method.similarities import References
from zsvec.search.base import Change, Vectors
from zsvec.store import Store
from zsvec.store.base import Points
from zsvec.store.schema import group_from
from zsvec.types import Modality, expert_name

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

    vectors: Vectors
    hashes: tuple[str, ...]
    sources: tuple[str, ...]
    groups: Groups
    norm: float

    @classmethod
    def of(cls, vectors: Vectors, hashes: tuple[str, ...], sources: tuple[str, ...], groups: Groups) -> Part:
        """References with the norm of their mean."""
        return cls(vectors, hashes, sources, groups, _norm(vectors))

    def __add__(self, other: Part) -> Part:
        vectors = np.concatenate([self.vectors, other.vectors])
        return Part.of(vectors, self.hashes + other.hashes, self.sources + other.sources, self.groups + other.groups)

    def __len__(self) -> int:
        return len(self.hashes)


def _norm(vectors: Vectors) -> float:
    return float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64)))


class _Gathered:
    """References of one encoder as their pages arrive: the next one is on its way meanwhile."""

    def __init__(self) -> None:
        self._pages: deque[Vectors] = deque()
        self._hashes: list[str] = []
        self._sources: list[str] = []
        self._groups: list[str | None] = []
        self._rows: dict[tuple[Modality, str], list[int]] = {}  # by modality and category

    def add(self, page: Points) -> None:
        """Take a page, which may be empty."""
        if not page.ids:
            return
        for row, payload in enumerate(page.payloads, start=len(self._hashes)):
            self._rows.setdefault((payload["modality"], payload["category"]), []).append(row)
        self._hashes += [payload["hash"] for payload in page.payloads]
        self._sources += [payload["source"] for payload in page.payloads]
        self._groups += map(group_from, page.payloads)
        self._pages.append(page.vectors)

    def references(self) -> Iterator[tuple[Modality, References]]:
        """All of each modality."""
        keys = sorted(self._rows)
        rows = list(chain.from_iterable(self._rows[key] for key in keys))
        vectors = self._vectors(rows)
        end = 0
        for modality, of_modality in groupby(keys, key=itemgetter(0)):
            names = tuple(name for _, name in of_modality)
            starts = np.cumsum([0, *(len(self._rows[modality, name]) for name in names)], dtype=np.intp)
            start, end = end, end + int(starts[-1])
            mine, in_order = vectors[start:end], rows[start:end]
            norms = [_norm(mine[first:last]) for first, last in pairwise(starts.tolist())]
            groups = tuple(map(self._groups.__getitem__, in_order))
            yield (
                modality,
                References(
                    names=names,
                    rows=Rows([mine]),
                    starts=starts,
                    norms=np.array(norms, dtype=np.float32),
                    hashes=tuple(map(self._hashes.__getitem__, in_order)),
                    sources=tuple(map(self._sources.__getitem__, in_order)),
                    groups=groups if any(groups) else (),
                ),
            )

    def _vectors(self, order: Sequence[int]) -> Vectors:
        """The vectors in this order."""
        places = np.empty(len(order), dtype=np.intp)
        places[order] = np.arange(len(order))
        vectors = np.empty((len(order), self._pages[0].shape[1] if self._pages else 0), dtype=np.float32)
        first = 0
        while self._pages:
            page = self._pages.popleft()  # so that nothing is kept twice
            vectors[places[first : first + len(page)]] = page
            first += len(page)
        return vectors


def read(store: Store, write_ids: Sequence[str]) -> Iterator[tuple[str, References]]:
    """The references of some writes, by expert; of those that have any."""
    for encoder in store.encoders() if write_ids else ():
        gathered = _Gathered()
        for page in store.references(encoder, write_ids):
            gathered.add(page)
        for modality, references in gathered.references():
            yield expert_name(encoder, modality), references


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
    new = dict(read(store, [write_id for change in changes for write_id in change.new_write_ids]))
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
            found[name] = Part(references.rows.take(rows.start, rows.stop), *texts, float(references.norms[at]))
    return found


def _changed(before: References | None, changed: Mapping[str, Part | None]) -> References | None:
    """References with other parts of some categories, ``None`` for none of it; ``None`` if nothing is left.

    The vectors of all that is between these categories are not copied.
    """
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
            pieces.append(References((name,), Rows([part.vectors]), starts, norms, *texts))
    if before is not None:
        pieces += _piece(before, end, len(before.names))
    if not pieces:
        return None
    groups = tuple(chain.from_iterable(piece.groups or (None,) * len(piece.hashes) for piece in pieces))
    counts = np.concatenate([np.diff(piece.starts) for piece in pieces])
    return References(
        names=tuple(chain.from_iterable(piece.names for piece in pieces)),
        rows=Rows.of_pieces(chain.from_iterable(piece.rows.blocks for piece in pieces)),
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
            rows=Rows(references.rows.between(rows.start, rows.stop)),
            starts=references.starts[first : last + 1],
            norms=references.norms[first:last],
            hashes=references.hashes[rows],
            sources=references.sources[rows],
            groups=references.groups[rows],
        )
    ]
