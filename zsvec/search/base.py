"""What the modules of the search agree on: how references are indexed, an index, a snapshot of the store, a change."""

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
"""How often references that are counted and not there are looked for."""


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """How references are indexed. Compared by value.

    Attributes:
        kind: Who compares them with images: numpy or torch in this process, or Qdrant.
        device: Where torch keeps them: a name that `zsvec.encoders.torch.device.choose_runtime` knows. On ``cpu`` numpy
            keeps them, and the threads of the encoders compute the products.
        dtype: Their number format on a GPU, ``float32`` or ``float16``.
    """

    kind: Literal["numpy", "torch", "qdrant"]
    device: str = "cpu"
    dtype: str = "float32"


NUMPY = IndexSpec("numpy")
QDRANT = IndexSpec("qdrant")


def in_memory(device: str, dtype: str, *, torch_encodes: bool) -> IndexSpec:
    """Which engine compares images with references in memory.

    Args:
        device: Where the references are.
        dtype: Their number format on a GPU.
        torch_encodes: Whether encoders run on torch in this process, whose threads then compute the products.
    """
    if device != "cpu":
        return IndexSpec("torch", device, dtype)
    return IndexSpec("torch") if torch_encodes else NUMPY


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """An expert in a snapshot.

    Attributes:
        name: Such as ``clip:image``.
        encoder: The encoder in its name.
        modality: The modality in its name.
        coverage: int ``(n_covered,)``, ascending: the categories that it has references of, as positions among all.
    """

    name: str
    encoder: str
    modality: Modality
    coverage: NDArray[np.intp]

    @classmethod
    def of(cls, name: str, covered: Sequence[str], position: Mapping[str, int]) -> Expert:
        """An expert by name.

        Args:
            name: Such as ``clip:image``.
            covered: The categories that it has references of, ascending.
            position: Of each category among all.
        """
        coverage = np.fromiter(map(position.__getitem__, covered), dtype=np.intp, count=len(covered))
        return cls(name, *encoder_and_modality(name), coverage)


class Index(Protocol):
    """The references of one expert in this process, ready to be compared with images. Immutable."""

    @property
    def references(self) -> References:
        """The indexed references, in the memory of the host."""
        ...

    def updated(self, references: References, changed: Collection[str]) -> Self:
        """An index of other references, which differ from these in no category but those that are named."""
        ...

    def search(self, queries: Floats, nearest: int, expert: Expert) -> ExpertSimilarities:
        """Compare images with all references.

        Args:
            queries: float32 ``(n_images, dim)``, unit rows.
            nearest: How many nearest references to find for each image.
            expert: Whose references these are.
        """
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A category before a commit (``None``: it was not there) and after it; a removed one has no write ids."""

    before: Category | None
    after: Category

    @property
    def grew(self) -> bool:
        """Whether the category kept all references that it had."""
        return self.before is not None and set(self.before.write_ids) <= set(self.after.write_ids)

    @property
    def new_write_ids(self) -> set[str]:
        """The writes whose references the category has gained; all, where it has not kept those that it had."""
        return set(self.after.write_ids) - set(self.before.write_ids if self.before and self.grew else ())

    @property
    def gained(self) -> Counter[str]:
        """How many references those are, by expert."""
        before = self.before.references if self.before and self.grew else {}
        return Counter(self.after.references) - Counter(before)


class Incomplete(Exception):  # noqa: N818 - a signal within the search, not an error
    """References that a manifest counts are not there, most likely because it has just been replaced.

    Args:
        names: The categories.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(", ".join(map(repr, sorted(names))))
        self.names = set(names)


class Snapshot(Protocol):
    """A state of the catalog with its references, ready to be searched. Immutable."""

    @property
    def spec(self) -> IndexSpec:
        """How the references are indexed."""
        ...

    @property
    def catalog(self) -> Mapping[str, Category]:
        """The categories, by name."""
        ...

    def references(self) -> Mapping[str, References]:
        """All references, by expert.

        Raises:
            Incomplete: Some are not there.
        """
        ...

    def updated(self, catalog: Mapping[str, Category], changes: Sequence[Change]) -> tuple[Snapshot, set[str]]:
        """The state after some changes; and the names of categories of which not all references are there.

        These are in it as they were before, or not at all.

        Args:
            catalog: All categories, after the changes.
            changes: How it differs from the catalog of this snapshot.
        """
        ...

    def search(
        self, queries: Mapping[str, Floats], nearest: int, newest: Callable[[], Snapshot]
    ) -> tuple[tuple[str, ...], tuple[ExpertSimilarities, ...]]:
        """Compare images with all references.

        Args:
            queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
            nearest: How many nearest references to find for each image and expert.
            newest: Gives the store as it is then.

        Returns:
            The categories, by name, and the answer of each expert, by name.

        Raises:
            Incomplete: References are not there.
        """
        ...
