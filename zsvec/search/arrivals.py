"""References as they arrive from a store, in pages, laid out by category."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import accumulate, pairwise

import numpy as np

from zsvec.method.arrays import Floats
from zsvec.method.similarities import References
from zsvec.search.base import Change
from zsvec.store import Store
from zsvec.store.backends.base import Points
from zsvec.store.catalog.schema import text_from
from zsvec.types import Modality, expert_name


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
                arrived.setdefault(expert, _Arrived()).add(page.chosen(rows))
        for expert, found in sorted(arrived.items()):
            yield expert, found.references()


def norm_of_mean(vectors: Floats) -> float:
    """Length of the mean of vectors, 0 to 1 of unit ones.

    Args:
        vectors: float32 ``(n, dim)``, at least one.
    """
    return float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64)))


class _Arrived:
    """References of one expert, in the order in which they have arrived."""

    def __init__(self) -> None:
        self._pages: list[Floats] = []
        self._texts: list[tuple[str, str, str | None]] = []  # hash, source and group of each
        self._of: dict[str, list[int]] = {}  # by category, which of them

    def add(self, page: Points) -> None:
        """Take references, at least one."""
        for payload in page.payloads:
            self._of.setdefault(payload["category"], []).append(len(self._texts))
            self._texts.append((payload["hash"], payload["source"], text_from(payload, "group")))
        self._pages.append(page.vectors)

    def references(self) -> References:
        """All that have arrived, laid out by category; nothing is left here."""
        names = tuple(sorted(self._of))
        order = np.concatenate([self._of[name] for name in names])
        row = np.argsort(order)  # of each in the order of arrival
        vectors = np.empty((len(order), self._pages[0].shape[1]), dtype=np.float32)
        first = 0
        while self._pages:  # a page is freed when it is copied
            page = self._pages.pop(0)
            vectors[row[first : first + len(page)]] = page
            first += len(page)
        starts = [0, *accumulate(len(self._of[name]) for name in names)]
        hashes, sources, groups = zip(*(self._texts[i] for i in order), strict=True)
        return References(
            names=names,
            vectors=vectors,
            starts=np.array(starts, dtype=np.intp),
            norms=np.array([norm_of_mean(vectors[slice(*bounds)]) for bounds in pairwise(starts)], dtype=np.float32),
            hashes=hashes,
            sources=sources,
            groups=groups if any(groups) else (),
        )
