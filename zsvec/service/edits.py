"""Changes of categories that the API and the pages make alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from zsvec import Category, Classifier
from zsvec.service.api.common import of_state
from zsvec.service.problems import Problem
from zsvec.types import PARENT_MARK


def check_rename(classifier: Classifier, name: str, new: str, parent: str | None = None) -> None:
    """Raises a Problem if another category has the new name of a category, or a parent of it.

    Args:
        classifier: The classifier.
        name: Name of the category.
        new: New name.
        parent: New parent; ``None`` if the parent stays.
    """
    above = classifier.category(name).parent if parent is None else parent
    if new in map(str.strip, above.split(PARENT_MARK.strip())):
        said = f"The category is below “{new}”: take another name"
        raise Problem(422, f"{name!r} must not get the name of its parent {above!r}: take another name", said=said)
    if new != name and new in {category.name for category in classifier.categories()}:
        detail = f"there is a category {new!r} already: merge, or take another name"
        said = f"There is a category “{new}” already: merge the two, or take another name"
        raise Problem(409, detail, error="name_taken", said=said)


def check_merge(classifier: Classifier, name: str, target: str) -> None:
    """Raises a Problem if a category cannot be merged into the target, or CategoryNotFoundError without the target."""
    if name == target:
        said = "A category cannot be merged into itself. Choose another category"
        raise Problem(422, f"{name!r} would be merged with itself, the same category: name another one", said=said)
    classifier.category(target)


def create_missing(classifier: Classifier, *names: str) -> None:
    """Creates missing categories with their names as texts, so that all new categories have the same texts.

    Creates none if no encoder embeds texts: the first image then makes the category.
    """
    missing = set(names) - {category.name for category in classifier.categories()}
    if missing and any("text" in encoder.modalities for encoder in classifier.encoders):
        for name in sorted(missing):
            classifier.add_category(name)


def move(classifier: Classifier, chosen: Mapping[str, Collection[str]], target: str) -> Category:
    """Moves references, given as hashes by category, to another category, which is created if missing."""
    create_missing(classifier, target)
    with of_state():
        (moved,) = classifier.references.move_many({(source, target): hashes for source, hashes in chosen.items()})
    return moved


def remove(classifier: Classifier, chosen: Mapping[str, Collection[str]]) -> None:
    """Removes references, given as hashes by category."""
    with of_state():
        for source, hashes in chosen.items():
            classifier.references.remove(source, hashes)
