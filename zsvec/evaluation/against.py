"""Compares a store with its copy of other encoders, by leave-one-out on the reference images of both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zsvec.curation.reembedding import judged_by_leave_one_out
from zsvec.errors import StoreError
from zsvec.evaluation.metrics import interval_of_difference
from zsvec.settings.settings import Settings
from zsvec.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Accuracy by leave-one-out of a store and of its copy, on the images that both judge.

    Attributes:
        namespace: Namespace of the store.
        against: Namespace of the copy.
        images: Number of reference images that both judge.
        accuracy: Fraction of these images that the other references of the store put into their category.
        accuracy_against: The same fraction in the copy.
        gained: Number of images that only the copy puts into their category.
        lost: Number of images that only the store puts into their category.
        difference: ``accuracy_against - accuracy``.
        interval: 95 % interval of the difference: lower and upper end.
    """

    namespace: str
    against: str
    images: int
    accuracy: float
    accuracy_against: float
    gained: int
    lost: int
    difference: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that ``zsvec evaluate --against NAMESPACE --json`` prints."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(store: Store, namespace: str, settings: Settings) -> Comparison:
    """Compares a store with another of its namespaces. No encoder runs, and nothing is stored.

    Each reference image is classified by all other references. Both are calibrated for this, each from its own
    references. Wrong labels count as mistakes of both. An image is not judged if the other images of
    the category are near-duplicates for one of the two.

    Raises:
        InvalidInputError: The store has no other namespace of this name.
        StoreError: One of them has fewer than two categories, or both have no image in common.
    """
    other = store.named(namespace)
    ours, theirs = (judged_by_leave_one_out(one, settings) for one in (store, other))
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        raise StoreError(
            f"{store.location} and {namespace} must have images that both can judge, and have none: give categories "
            "several images that do not look alike to the encoders of either, and repeat `zsvec reembed` if it was "
            "interrupted"
        )
    right = np.array([(ours[key], theirs[key]) for key in keys])
    here, there = right[:, 0], right[:, 1]
    gained, lost = int((there & ~here).sum()), int((here & ~there).sum())
    return Comparison(
        namespace=store.namespace,
        against=namespace,
        images=len(keys),
        accuracy=float(here.mean()),
        accuracy_against=float(there.mean()),
        gained=gained,
        lost=lost,
        difference=(gained - lost) / len(keys),
        interval=interval_of_difference(here, there),
    )
