"""The protocol of the source of a copy: a store, or an archive."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from zsvec.errors import CategoryNotFoundError, shown
from zsvec.store.backends.base import Points
from zsvec.store.catalog.changefeed import Cursor, Look
from zsvec.store.collections.inbox import InboxImage
from zsvec.types import Fingerprint, Labels, SmallImage


class Source(Protocol):
    """The source of a copy. Its records are untrusted."""

    @property
    def location(self) -> str:
        """Name of the source in messages."""

    @property
    def way_out(self) -> str:
        """What to do about damage, for messages."""

    def encoders(self) -> dict[str, Fingerprint]:
        """Returns the fingerprints of the encoders, by name."""

    def profile(self) -> str | None:
        """Returns the name of the profile that the encoders come from, if known."""

    def labels(self) -> Labels:
        """Returns whether an image belongs to ``one`` category or may belong to ``many``."""

    def keeps_images(self) -> bool:
        """Returns whether the source has small copies of images."""

    def look(self, cursor: Cursor, known: Mapping[str, int]) -> Look:
        """As `zsvec.store.store.Store.look`."""

    def references(self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True) -> Iterator[Points]:
        """As `zsvec.store.store.Store.references`."""

    def small_images(self, write_ids: Sequence[str], hashes: Sequence[str]) -> Iterator[SmallImage]:
        """Yields the readable small copy of each image with one of these hashes in these writes, once."""

    def inbox_images(self, without: Collection[str], *, small: bool) -> Iterator[InboxImage]:
        """Yields the readable images of the inbox, with vectors, except labelled images.

        A dismissed image has a removal that cannot be undone, and no small copy.

        Args:
            without: Content hashes of images to leave out.
            small: Whether to read small copies.
        """


def chosen(found: Look, names: Collection[str] | None) -> Look:
    """Returns a look at these categories alone, without the calibration, which is of all categories.

    ``None`` stands for all categories.
    """
    if names is None:
        return found
    categories = [category for category in found.categories if category.name in names]
    unreadable = [name for name in found.unreadable if name in names]
    return replace(found, categories=categories, unreadable=unreadable, calibration=None)


def check_names(found: Look, names: Collection[str] | None, source: Source) -> None:
    """Raises CategoryNotFoundError if a look at a source lacks one of these categories."""
    there = {*found.unreadable, *(category.name for category in found.categories if category.write_ids)}
    for name in sorted(set(names or ()) - there):
        error = CategoryNotFoundError(
            f"there is no category {name!r} in {source.location}: choose one of {shown(sorted(there))}"
        )
        error.name = name
        raise error
