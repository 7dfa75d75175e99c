"""Counts of the categories and references of a store, which each update brings up to date."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from zsvec.store.catalog.changefeed import Cursor
from zsvec.store.store import Store


class Census:
    """Counts categories and references. Each `update` after the first reads only the changes.

    Args:
        store: The store to count.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._cursor = Cursor()
        self._versions: dict[str, int] = {}
        self._live: dict[str, Mapping[str, int]] = {}
        self._total: Counter[str] = Counter()
        self._revision = 0

    def update(self) -> tuple[int, dict[str, int], int]:
        """Returns the number of categories, the number of references by expert, and the largest ``rev`` of a commit.

        The points of attached collections count.
        """
        with self._lock:
            look = self._store.look(self._cursor, self._versions, removed=False)
            if look.reset:
                self._begin()
            for category in look.categories:
                self._versions[category.name] = category.version
                self._total.subtract(self._live.pop(category.name, {}))
                if category.write_ids:
                    self._live[category.name] = category.references
                    self._total.update(category.references)
            self._cursor = look.cursor
            self._revision = max(self._revision, look.revision)
            attached = self._store.attached_parts().by_category
            points = Counter[str]()
            for parts in attached.values():
                for part in parts:
                    points[part.expert] += part.points
            return len(self._live.keys() | attached.keys()), dict(self._total + points), self._revision
