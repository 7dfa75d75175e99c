"""Types of the search: the specification of an index, the index, the snapshot of a store, the change of a category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.similarities import ExpertSimilarities, References
from zsvec.types import Category, Modality, encoder_and_modality

ATTEMPTS = 10
"""Number of retries while references are missing. A search then goes on without the missing references."""


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """Specification of an index. Compared by value.

    Attributes:
        kind: The engine that compares references with images: numpy or torch in this process, or Qdrant.
        device: Device of torch, named as for `zsvec.encoders.torch.device.choose_device`. On ``cpu``, references are
            numpy arrays, and torch computes the products with the threads of the encoders.
        dtype: Number format of the references on a GPU, ``float32`` or ``float16``.
    """

    kind: Literal["numpy", "torch", "qdrant"]
    device: str = "cpu"
    dtype: str = "float32"


NUMPY = IndexSpec("numpy")
QDRANT = IndexSpec("qdrant")


def in_memory(device: str, dtype: str, *, torch_encodes: bool) -> IndexSpec:
    """Returns the specification of an index in memory.

    Args:
        device: Device of the references.
        dtype: Number format of the references on a GPU.
        torch_encodes: Whether encoders run on torch in this process. If so, the threads of torch compute the products.
    """
    if device != "cpu":
        return IndexSpec("torch", device, dtype)
    return IndexSpec("torch") if torch_encodes else NUMPY


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """An expert in a snapshot.

    Attributes:
        name: Such as ``clip:image``.
        encoder: Encoder part of the name.
        modality: Modality part of the name.
        coverage: int ``(n_covered,)``, ascending positions of the categories that the expert has references of.
    """

    name: str
    encoder: str
    modality: Modality
    coverage: NDArray[np.intp]

    @classmethod
    def of(cls, name: str, covered: Sequence[str], position: Mapping[str, int]) -> Expert:
        """Returns the expert of a name.

        Args:
            name: Such as ``clip:image``.
            covered: The categories that the expert has references of, ascending.
            position: Position of each category among all categories.
        """
        coverage = np.fromiter(map(position.__getitem__, covered), dtype=np.intp, count=len(covered))
        return cls(name, *encoder_and_modality(name), coverage)


class Index(Protocol):
    """Searchable references of one expert in this process. Immutable."""

    @property
    def references(self) -> References:
        """The indexed references, in the memory of the host."""
        ...

    def updated(self, references: References, changed: Collection[str]) -> Self:
        """Returns an index of `references`, which differ from the indexed references only in `changed` categories."""
        ...

    def search(self, queries: Floats, nearest: int, expert: Expert) -> ExpertSimilarities:
        """Compares images with all references.

        Args:
            queries: float32 ``(n_images, dim)``, unit rows.
            nearest: Number of nearest references to find for each image.
            expert: The expert of the references.
        """
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A category before and after a commit.

    For a new category, `before` is ``None``. For a removed category, `after` has no write ids.
    """

    before: Category | None
    after: Category

    @property
    def grew(self) -> bool:
        """Whether an existing category kept all its former references; false for a new category."""
        return self.before is not None and set(self.before.write_ids) <= set(self.after.write_ids)

    @property
    def new_write_ids(self) -> set[str]:
        """Ids of the writes that added references. If the category lost references, ids of all its writes."""
        return set(self.after.write_ids) - set(self.before.write_ids if self.before and self.grew else ())

    @property
    def gained(self) -> Counter[str]:
        """Number of references in the new writes, by expert."""
        before = self.before.references if self.before and self.grew else {}
        return Counter(self.after.references) - Counter(before)

    @property
    def gained_own(self) -> Counter[str]:
        """Number of references in the new writes, by expert, without those of attached collections."""
        before = self.before.own if self.before and self.grew else {}
        return Counter(self.after.own) - Counter(before)


class Incomplete(Exception):  # noqa: N818 - a signal within the search, not an error
    """Signals that committed references are missing, most likely because their category was just replaced.

    Args:
        names: Names of the categories.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(", ".join(map(repr, sorted(names))))
        self.names = set(names)


class Snapshot(Protocol):
    """A searchable state of the catalog with its references. Immutable."""

    @property
    def spec(self) -> IndexSpec:
        """The kind of index."""
        ...

    @property
    def catalog(self) -> Mapping[str, Category]:
        """The categories, by name."""
        ...

    def references(self) -> Mapping[str, References]:
        """Returns all references, by expert.

        Raises:
            Incomplete: References are missing.
        """
        ...

    def updated(self, catalog: Mapping[str, Category], changes: Sequence[Change]) -> tuple[Snapshot, set[str]]:
        """Returns the snapshot after some changes, and the names of categories with missing references.

        The snapshot has the former state of such a category, or leaves the category out.

        Args:
            catalog: All categories after the changes.
            changes: Differences from the catalog of this snapshot.
        """
        ...

    def search(
        self, queries: Mapping[str, Floats], nearest: int, newest: Callable[[], Snapshot]
    ) -> tuple[tuple[str, ...], tuple[ExpertSimilarities, ...]]:
        """Compares images with all references of the encoders of the queries.

        Args:
            queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
            nearest: Number of nearest references to find for each image and expert.
            newest: Returns the newest snapshot of the store.

        Returns:
            The names of the categories, and the similarities of each expert; both sorted by name.

        Raises:
            Incomplete: References are missing.
        """
        ...
