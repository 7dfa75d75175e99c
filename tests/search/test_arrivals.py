"""References that arrive from a store in pages, laid out regardless of the counts in the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from zsvec.method.similarities import References
from zsvec.search.base import Change
from zsvec.search.layout import read
from zsvec.store import Store
from zsvec.store.backends.base import Points
from zsvec.types import Category

Stored = Sequence[tuple[str, str, float]]
"""Category, modality and the one number that tells a reference from others."""


class Pages:
    """A store of one encoder that gives references in this order, some a page."""

    def __init__(self, stored: Stored, a_page: int) -> None:
        self._stored, self._a_page = stored, a_page

    def encoders(self) -> Mapping[str, None]:
        return {"clip": None}

    def count(self, encoder: str) -> int:
        return len(self._stored)

    def references(self, encoder: str, write_ids: Sequence[str], *, all_writes: bool) -> Iterator[Points]:
        for first in range(0, len(self._stored), self._a_page):
            some = self._stored[first : first + self._a_page]
            yield Points(
                [str(first + i) for i in range(len(some))],
                np.array([[number, 1] for _, _, number in some], dtype=np.float32),
                [
                    {"category": name, "modality": modality, "hash": f"{number:g}", "source": f"{number:g}.jpg"}
                    for name, modality, number in some
                ],
            )


def arrived(stored: Stored, counts: Mapping[str, Mapping[str, int]], a_page: int = 2) -> dict[str, References]:
    changes = [
        Change(None, Category(name=name, version=1, rev=1, write_ids=("w",), texts=(), references=dict(experts)))
        for name, experts in counts.items()
    ]
    return dict(read(cast("Store", Pages(stored, a_page)), changes))


def by_category(references: References) -> dict[str, list[float]]:
    starts = references.starts.tolist()
    rows = references.vectors
    for row, digest, source in zip(rows, references.hashes, references.sources, strict=True):
        assert (f"{row[0]:g}", f"{row[0]:g}.jpg") == (digest, source)
    return {
        name: rows[start:end, 0].tolist()
        for name, start, end in zip(references.names, starts[:-1], starts[1:], strict=True)
    }


STORED = [("b", "image", 1), ("a", "image", 2), ("b", "text", 3), ("b", "image", 4), ("c", "image", 5)]


def test_each_is_where_it_belongs() -> None:
    for a_page in [1, 2, 5]:
        for counts in [
            {"a": {"clip:image": 1}, "b": {"clip:image": 2, "clip:text": 1}, "c": {"clip:image": 1}},
            {},
            {"a": {"clip:image": 3}, "b": {"clip:image": 1}, "c": {"clip:text": 7}, "d": {"clip:image": 2}},
            {"b": {"clip:image": 10**15, "clip:text": 1}, "c": {"clip:image": 1}},
            {"a": {"clip:image": 1}, "b": {"clip:image": -4}},
        ]:
            counts = counts or {"nobody": {}}
            found = arrived(STORED, counts, a_page)
            assert {expert: by_category(references) for expert, references in found.items()} == {
                "clip:image": {"a": [2], "b": [1, 4], "c": [5]},
                "clip:text": {"b": [3]},
            }
            means = [np.array([2, 1]), np.array([2.5, 1]), np.array([5, 1])]
            np.testing.assert_allclose(found["clip:image"].norms, [np.linalg.norm(mean) for mean in means], rtol=1e-6)
