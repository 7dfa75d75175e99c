"""References from the store, laid out by expert and category to be compared with images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from zsvec.method.similarities import References
from zsvec.search.base import Change, Vectors
from zsvec.store import Store
from zsvec.store.schema import group_from
from zsvec.types import Modality, expert_name

Groups = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The references of one category to one expert.

    Attributes:
        vectors: float32 ``(n, dim)``, unit rows; at least one.
        hashes: Content hash of each.
        sources: Where each comes from.
        groups: What each belongs together with.
        norm: Length of the mean vector, 0 to 1.
    """

    vectors: Vectors
    hashes: tuple[str, ...]
    sources: tuple[str, ...]
    groups: Groups
    norm: float

    @classmethod
    def of(cls, vectors: Vectors, hashes: tuple[str, ...], sources: tuple[str, ...], groups: Groups) -> Part:
        """References with the norm of their mean."""
        return cls(vectors, hashes, sources, groups, float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64))))

    def __add__(self, other: Part) -> Part:
        vectors = np.concatenate([self.vectors, other.vectors])
        return Part.of(vectors, self.hashes + other.hashes, self.sources + other.sources, self.groups + other.groups)

    def __len__(self) -> int:
        return len(self.hashes)


def read(store: Store, write_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Part]]]:
    """The references of some writes: each expert, and its part of each category."""
    for encoder in store.encoders() if write_ids else ():
        pages = [page for page in store.references(encoder, write_ids) if page.ids]
        if not pages:
            continue
        payloads = [payload for page in pages for payload in page.payloads]
        rows: dict[Modality, dict[str, list[int]]] = {}
        for row, payload in enumerate(payloads):
            rows.setdefault(payload["modality"], {}).setdefault(payload["category"], []).append(row)
        vectors = np.concatenate([page.vectors for page in pages])
        del pages
        for modality, categories in rows.items():
            parts = {}
            for name, of_category in categories.items():
                found = [payloads[row] for row in of_category]
                parts[name] = Part.of(
                    vectors[of_category],
                    tuple(payload["hash"] for payload in found),
                    tuple(payload["source"] for payload in found),
                    tuple(map(group_from, found)),
                )
            yield expert_name(encoder, modality), parts


def renewed(
    store: Store, before: Mapping[str, References], changes: Sequence[Change]
) -> tuple[dict[str, References], set[str]]:
    """References after some changes: only those of new writes are read.

    Args:
        store: Where they are.
        before: The references before the changes, by expert.
        changes: What was committed.

    Returns:
        The references of each expert that has any: the same object, where the changes do not concern it. And the names
        of the changed categories of which not all references are there; they are as they were before.
    """
    parts = {expert: _split(references) for expert, references in before.items()}
    kept = {change.after.name: _pick(parts, change.after.name) for change in changes}
    touched = set()
    dropped = {change.after.name for change in changes if not change.grew}
    for expert, categories in parts.items():
        for name in dropped & categories.keys():
            del categories[name]
            touched.add(expert)
    for expert, found in read(store, [write_id for change in changes for write_id in change.new_write_ids]):
        categories = parts.setdefault(expert, {})
        for name, part in found.items():
            categories[name] = categories[name] + part if name in categories else part
        touched.add(expert)
    torn = set()
    for change in changes:
        name = change.after.name
        counts = {expert: len(categories[name]) for expert, categories in parts.items() if name in categories}
        if counts != dict(change.after.references):
            torn.add(name)
            for expert in counts:
                del parts[expert][name]
                touched.add(expert)
            for expert, part in kept[name].items():
                parts[expert][name] = part
                touched.add(expert)
    after = {
        expert: _joined(categories) if expert in touched else before[expert]
        for expert, categories in parts.items()
        if categories
    }
    changed = {change.after.name for change in changes}
    for expert in touched & before.keys() & after.keys():
        after[expert].succeed(before[expert], changed)
    return after, torn


def _pick(parts: Mapping[str, Mapping[str, Part]], name: str) -> dict[str, Part]:
    return {expert: categories[name] for expert, categories in parts.items() if name in categories}


def _joined(parts: Mapping[str, Part]) -> References:
    names = tuple(sorted(parts))
    groups = tuple(chain.from_iterable(parts[name].groups for name in names))
    return References(
        names=names,
        vectors=np.concatenate([parts[name].vectors for name in names]),
        starts=np.cumsum([0, *(len(parts[name]) for name in names)], dtype=np.intp),
        norms=np.array([parts[name].norm for name in names], dtype=np.float32),
        hashes=tuple(chain.from_iterable(parts[name].hashes for name in names)),
        sources=tuple(chain.from_iterable(parts[name].sources for name in names)),
        groups=groups if any(groups) else (),
    )


def _split(references: References) -> dict[str, Part]:
    hashes, sources, starts = references.hashes, references.sources, references.starts
    groups = references.groups or (None,) * len(hashes)
    return {
        name: Part(references.vectors[start:end], hashes[start:end], sources[start:end], groups[start:end], float(norm))
        for name, start, end, norm in zip(references.names, starts, starts[1:], references.norms, strict=False)
    }
