"""A snapshot whose references are all in this process, or on the device of the encoders: every reference is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module

from zsvec.method.arrays import Floats
from zsvec.method.similarities import ExpertSimilarities, References
from zsvec.search.base import Change, Expert, Index, IndexSpec, Snapshot
from zsvec.search.layout import renewed
from zsvec.store import Store
from zsvec.types import Category

_MODULES = {"numpy": "zsvec.search.numpy_index", "torch": "zsvec.search.torch_index"}  # imported when asked for


def build(references: References, spec: IndexSpec) -> Index:
    """Index references of one expert.

    Raises:
        InvalidInputError: The device is not there.
        StoreError: The references do not fit its memory.
    """
    index: Index = import_module(_MODULES[spec.kind]).build(references, spec)
    return index


@dataclass(frozen=True, slots=True)
class InProcess:
    """Implements `zsvec.search.base.Snapshot`.

    Attributes:
        store: Where the references come from.
        spec: How they are indexed.
        catalog: The categories, by name.
        names: Their names, ascending.
        indexes: The index of each expert that has references, ascending by name.
    """

    store: Store
    spec: IndexSpec
    catalog: Mapping[str, Category] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    indexes: Sequence[tuple[Expert, Index]] = ()

    def references(self) -> Mapping[str, References]:
        """See `Snapshot`."""
        return {expert.name: index.references for expert, index in self.indexes}

    def holding(self, catalog: Mapping[str, Category], references: Mapping[str, References]) -> InProcess:
        """A state of which all references are at hand, indexed as this one.

        Args:
            catalog: The categories, by name.
            references: Theirs, by expert.
        """
        return self._with(catalog, references, lambda _, found: build(found, self.spec))

    def moved(self, spec: IndexSpec) -> InProcess:
        """The same state, indexed otherwise.

        Raises:
            InvalidInputError: The device is not there.
            StoreError: The references do not fit its memory.
        """
        indexes = [(expert, build(index.references, spec)) for expert, index in self.indexes]
        return replace(self, spec=spec, indexes=indexes)

    def updated(self, catalog: Mapping[str, Category], changes: Sequence[Change]) -> tuple[InProcess, set[str]]:
        """See `Snapshot`: the references of new writes are read, and those of every concerned expert laid out again."""
        before = {expert.name: index for expert, index in self.indexes}
        after, torn = renewed(self.store, self.references(), changes)
        changed = {change.after.name for change in changes}

        def indexed(name: str, references: References) -> Index:
            index = before.get(name)
            if index is None:
                return build(references, self.spec)
            return index if index.references is references else index.updated(references, changed)

        if torn:
            was = {name: self.catalog[name] for name in torn & self.catalog.keys()}
            catalog = {name: category for name, category in catalog.items() if name not in torn} | was
        return self._with(catalog, after, indexed), torn

    def _with(
        self,
        catalog: Mapping[str, Category],
        references: Mapping[str, References],
        indexed: Callable[[str, References], Index],
    ) -> InProcess:
        names = tuple(sorted(catalog))
        position = {name: i for i, name in enumerate(names)}
        indexes = [
            (Expert.of(name, found.names, position), indexed(name, found)) for name, found in sorted(references.items())
        ]
        return replace(self, catalog=catalog, names=names, indexes=indexes)

    def search(
        self, queries: Mapping[str, Floats], nearest: int, newest: Callable[[], Snapshot]
    ) -> tuple[tuple[str, ...], tuple[ExpertSimilarities, ...]]:
        """See `Snapshot`."""
        found = [index.search(queries[expert.encoder], nearest, expert) for expert, index in self.indexes]
        return self.names, tuple(found)
