"""References as they arrive from a store: each is put where it belongs, so that no vector is copied a second time.

The catalog says how many references each category has, and so where each of them belongs before the first one is
there. It need not be right: room is made when something arrives for it, and what is too much, or lacks, is laid out
anew at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from zsvec.method.rows import Rows
from zsvec.method.similarities import References
from zsvec.search.base import Change, Vectors
from zsvec.store import Store
from zsvec.store.backends.base import Points
from zsvec.store.catalog.schema import text_from
from zsvec.types import Modality, expert_name

_ROWS = 8192  # of a block


def read(store: Store, changes: Collection[Change]) -> Iterator[tuple[str, References]]:
    """The references that categories have gained, by expert; of those that have any.

    Args:
        store: Where they are.
        changes: Of the categories.
    """
    write_ids = [write_id for change in changes for write_id in change.new_write_ids]
    for encoder in store.encoders() if write_ids else ():
        arrived: dict[str, _Arrived] = {}
        for page in store.references(encoder, write_ids):
            of_each: dict[Modality, list[int]] = {}
            for row, payload in enumerate(page.payloads):
                of_each.setdefault(payload["modality"], []).append(row)
            for modality, rows in of_each.items():
                expert = expert_name(encoder, modality)
                if expert not in arrived:
                    arrived[expert] = _Arrived({change.after.name: change.gained[expert] for change in changes})
                arrived[expert].add(page.chosen(rows))
        for expert, found in sorted(arrived.items()):
            yield expert, found.references()


def norm_of_mean(vectors: Vectors) -> float:
    """Length of the mean of vectors, 0 to 1 of unit ones.

    Args:
        vectors: float32 ``(n, dim)``, at least one.
    """
    return float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64)))


class _Arrived:
    """References of one expert.

    Args:
        counts: How many each category should have.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        names = sorted(counts)
        ends = list(accumulate(counts[name] for name in names))
        self._size = ends[-1] if ends else 0
        self._room = {name: range(*bounds) for name, bounds in zip(names, pairwise([0, *ends]), strict=True)}
        self._beyond = -(-self._size // _ROWS) * _ROWS  # where what nobody counts is put
        self._rows: dict[str, list[int]] = {}
        self._texts: dict[int, tuple[str, str, str | None]] = {}  # hash, source and group, by row
        self._blocks: dict[int, Vectors] = {}

    def add(self, page: Points) -> None:
        """Take references, at least one."""
        numbers, places = np.divmod([self._row(payload) for payload in page.payloads], _ROWS)
        vectors = page.vectors
        for number in np.unique(numbers).tolist():
            here = numbers == number
            self._block(number, vectors.shape[1])[places[here]] = vectors[here]

    def _row(self, payload: Mapping[str, Any]) -> int:
        rows = self._rows.setdefault(payload["category"], [])
        room = self._room.get(payload["category"], range(0))
        if len(rows) < len(room):
            row = room[len(rows)]
        else:
            row, self._beyond = self._beyond, self._beyond + 1
        rows.append(row)
        self._texts[row] = payload["hash"], payload["source"], text_from(payload, "group")
        return row

    def _block(self, number: int, dim: int) -> Vectors:
        if number not in self._blocks:
            left = self._size - number * _ROWS
            self._blocks[number] = np.empty((min(left, _ROWS) if left > 0 else _ROWS, dim), dtype=np.float32)
        return self._blocks[number]

    def references(self) -> References:
        """All that have arrived."""
        names = tuple(sorted(self._rows))
        order = list(chain.from_iterable(self._rows[name] for name in names))
        rows = Rows(self._blocks[number] for number in sorted(self._blocks))
        if len(order) != self._size or order != list(range(self._size)):
            rows = Rows([np.stack([self._blocks[row // _ROWS][row % _ROWS] for row in order])])
        starts = [0, *accumulate(len(self._rows[name]) for name in names)]
        hashes, sources, groups = zip(*map(self._texts.__getitem__, order), strict=True)
        return References(
            names=names,
            rows=rows,
            starts=np.array(starts, dtype=np.intp),
            norms=np.array([norm_of_mean(rows.take(*bounds)) for bounds in pairwise(starts)], dtype=np.float32),
            hashes=hashes,
            sources=sources,
            groups=groups if any(groups) else (),
        )
