"""Finds stored vectors by content hash, so that a text or an image is not embedded again.

Only vectors of the store itself are used: present references, replaced references that are kept for undo, and images of
the inbox. Other points of a collection, such as those of a dropped store, may have been made by another encoder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from zsvec.errors import StoreUnavailableError
from zsvec.store.catalog.catalog import Catalog, readable
from zsvec.store.catalog.history import History
from zsvec.store.collections.inbox import InboxCollection
from zsvec.store.collections.references import ReferenceCollections
from zsvec.types import Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A content that has vectors in the store.

    Attributes:
        vectors: Vector by encoder, float32 ``(dim,)``, unit norm.
        categories: Names of categories that have the content now; if there are many, some of them.
    """

    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    categories: frozenset[str] = frozenset()


class StoredVectors:
    """The vectors of one store, for the lookups of one ingestion. Keeps the history that it has read."""

    def __init__(self, catalog: Catalog, references: ReferenceCollections, inbox: InboxCollection) -> None:
        self._catalog = catalog
        self._references = references
        self._inbox = inbox
        self._history: History | None = None

    def find(self, encoders: Collection[str], modality: Modality, hashes: Collection[str]) -> dict[str, StoredContent]:
        """Returns the contents that have a vector of each of these encoders, by content hash.

        Args:
            encoders: Names of the encoders, which must have the fingerprints of the store.
            modality: Modality of the references.
            hashes: Content hashes.

        Raises:
            StoreError: The store cannot be read.
        """
        found = dict.fromkeys(hashes, StoredContent())
        for encoder in encoders:
            rows = self._of_encoder(encoder, modality, found.keys())
            found = {
                digest: StoredContent({**found[digest].vectors, encoder: row}, found[digest].categories | names)
                for digest, (row, names) in rows.items()
            }
        missing = sorted(set(hashes) - found.keys())
        if modality == "image" and missing and self._has_inbox:
            for image in self._inbox.read(missing, vectors=True):
                found[image.hash] = StoredContent({encoder: image.vectors[encoder] for encoder in encoders})
        return found

    @cached_property
    def _has_inbox(self) -> bool:
        try:
            return self._catalog.backend.exists(self._inbox.name)
        except StoreUnavailableError:  # the key may have no rights on the inbox, which writes of categories do not need
            return False

    def _of_encoder(
        self, encoder: str, modality: Modality, hashes: Collection[str]
    ) -> dict[str, tuple[NDArray[np.float32], set[str]]]:
        """Returns a vector of each content, and names of categories that have the content."""
        import numpy as np  # slow to import, and not needed to list categories

        found: dict[str, tuple[NDArray[np.float32], set[str]]] = {}
        for page in self._references.with_hashes(encoder, modality, hashes, vectors=True):
            writes = [(payload["category"], payload["gen"]) for payload in page.payloads]
            present, restorable = self._committed(set(writes)) if writes else (set(), set())
            for payload, write, row in zip(page.payloads, writes, page.vectors, strict=True):
                # Untrusted writers and damaged files may give any vector.
                if (write in present or write in restorable) and 0.5 < float(np.linalg.norm(row)) < 2:
                    _, categories = found.setdefault(payload["hash"], (row.copy(), set()))
                    if write in present:
                        categories.add(payload["category"])
            if len(found) == len(hashes):  # many categories may have the same image
                break
        return found

    def _committed(self, writes: set[tuple[str, str]]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """Returns the pairs of category and write id that a manifest names, and the pairs that undo may restore."""
        state = self._catalog.state({name for name, _ in writes})
        categories, _ = readable(state.manifests.values())
        present = writes & {(category.name, write_id) for category in categories for write_id in category.write_ids}
        if present == writes:
            return present, set()
        history = self._history = self._history or History(self._catalog)
        history.catch_up(state)
        return present, writes & {(name, one) for name in state.manifests for one in history.replaced(name)}
