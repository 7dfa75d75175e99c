"""Finds vectors that a store already has, by content hash, so that a text or an image is not embedded again.

Only vectors of the store's own commits are used: present references, and replaced references that are kept for undo.
Other points of a collection, such as those of a dropped store, may have been made by another encoder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from zsvec.store.catalog.catalog import Catalog, readable
from zsvec.store.catalog.history import History
from zsvec.store.collections.references import ReferenceCollections
from zsvec.types import Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class StoredVectors:
    """The vectors of one store, for the lookups of one ingestion. Keeps the history that it has read."""

    def __init__(self, catalog: Catalog, references: ReferenceCollections) -> None:
        self._catalog = catalog
        self._references = references
        self._history: History | None = None

    def find(
        self, encoders: Iterable[str], modality: Modality, hashes: Collection[str]
    ) -> dict[str, Mapping[str, NDArray[np.float32]]]:
        """Returns the vectors of contents that have a vector of each of these encoders.

        Args:
            encoders: Names of the encoders, which must have the fingerprints of the store.
            modality: Modality of the references.
            hashes: Content hashes.

        Returns:
            By content hash, the vector by encoder: float32 ``(dim,)``, unit norm.

        Raises:
            StoreError: The store cannot be read.
        """
        found: dict[str, dict[str, NDArray[np.float32]]] = {digest: {} for digest in hashes}
        for encoder in encoders:
            rows = self._of_encoder(encoder, modality, found.keys())
            found = {digest: {**found[digest], encoder: row} for digest, row in rows.items()}
        return dict(found)

    def _of_encoder(self, encoder: str, modality: Modality, hashes: Collection[str]) -> dict[str, NDArray[np.float32]]:
        import numpy as np  # slow to import, and not needed to list categories

        found: dict[str, NDArray[np.float32]] = {}
        for page in self._references.with_hashes(encoder, modality, hashes, vectors=True):
            writes = [(payload["category"], payload["gen"]) for payload in page.payloads]
            committed = self._committed(set(writes)) if writes else set()
            for payload, write, row in zip(page.payloads, writes, page.vectors, strict=True):
                # Untrusted writers and damaged files may give any vector.
                if write in committed and 0.5 < float(np.linalg.norm(row)) < 2:
                    found.setdefault(payload["hash"], row.copy())
            if len(found) == len(hashes):  # many categories may have the same image
                break
        return found

    def _committed(self, writes: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """Returns the pairs of category and write id that a manifest names, or that undo may restore."""
        state = self._catalog.state({name for name, _ in writes})
        categories, _ = readable(state.manifests.values())
        named = {(category.name, write_id) for category in categories for write_id in category.write_ids}
        if not writes <= named:
            history = self._history = self._history or History(self._catalog)
            history.catch_up(state)
            named |= {(name, write_id) for name in state.manifests for write_id in history.replaced(name)}
        return writes & named
