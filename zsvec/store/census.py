"""The number of categories and references of a store, kept in step with its catalog."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from zsvec.store.store import Store


class Census:
    """How many references the committed categories have. After the first, each `update` reads only the changes.

    On a server an update also reads the last two minutes again, for late commits; a commit that is later still
    is missed.

    Args:
        store: The store to count.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_category: dict[str, Mapping[str, int]] = {}
        self._total: Counter[str] = Counter()
        self._revision = 0
        self._lock = threading.Lock()

    def update(self) -> tuple[int, dict[str, int], int]:
        """Count again.

        Returns:
            The number of categories; that of their references, by expert; the largest ``rev`` of a commit.
        """
        with self._lock:
            changed, _ = self._store.changes_after(self._revision)
            for category in changed:
                self._total.subtract(self._by_category.pop(category.name, {}))
                if category.write_ids:
                    self._by_category[category.name] = category.references
                    self._total.update(category.references)
            self._revision = max([self._revision, *(category.rev for category in changed)])
            return len(self._by_category), dict(+self._total), self._revision
