"""The points of attached collections, as readers of a store see them: one more write of their category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from zsvec.types import Category

PREFIX = "attached:"
"""Beginning of the write ids of points of attached collections."""


class PartsChanged(Exception):  # noqa: N818 - a signal to read `AttachedCollections.current` again, not an error
    """Signals that points of attached collections have changed, or can no longer be read."""


def is_attached_write(write_id: str) -> bool:
    """Returns whether a write id is that of points of an attached collection."""
    return write_id.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class Part:
    """The points of one attached collection that belong to the same category.

    Attributes:
        write_id: Differs whenever the points differ.
        expert: Expert of the points.
        points: Number of the points.
    """

    write_id: str
    expert: str
    points: int


@dataclass(frozen=True, slots=True)
class Parts:
    """The points of all attached collections.

    Attributes:
        by_category: The points of each category.
        digest: Differs whenever the points differ; empty without any.
        unreadable: Names of the collections that could not be read at the last attempt.
    """

    by_category: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    digest: str = ""
    unreadable: tuple[str, ...] = ()


def with_parts(category: Category | None, name: str, parts: Sequence[Part]) -> Category:
    """Returns a category with the points of attached collections, in place of those that it had.

    Args:
        category: The category; ``None`` if the store has none of this name.
        name: Name of the category.
        parts: The points. Without any, and without a category, the result has no write ids.
    """
    if category is not None and not parts and not category.attached:
        return category
    own = category or Category(name=name, version=0, rev=0, write_ids=(), texts=(), references={})
    attached: Counter[str] = Counter()
    for part in parts:
        attached[part.expert] += part.points
    return replace(
        own,
        write_ids=(*own_writes(own), *(part.write_id for part in parts)),
        references=dict(Counter(own.own) + attached),
        attached=dict(attached),
    )


def own_writes(category: Category) -> tuple[str, ...]:
    """Returns the ids of the writes of a category that are in the collections of the store."""
    if not category.attached:
        return category.write_ids
    return tuple(write_id for write_id in category.write_ids if not is_attached_write(write_id))
