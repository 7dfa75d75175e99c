"""Archives of a store: `Archive`, which exports to one file and imports from one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zsvec.errors import EncoderMismatchError, InvalidInputError, shown
from zsvec.inputs.categories import checked_name, checked_path, is_several
from zsvec.store import Store
from zsvec.types import LONGEST_NAME, Category, Copied, Fingerprint, KeepImages

if TYPE_CHECKING:
    from zsvec.store.archive.reader import ArchiveReader

SUFFIX = ".zsvec"
"""Ending of the name of an archive, by convention."""


class Archive:
    """Exports the store to an archive, and imports archives: ``clf.archive`` of a classifier.

    An archive is one file, with vectors, texts, metadata, small images, the inbox and the calibration. The format is
    documented (``zsvec docs archive``). No encoder runs.

    ```python
    clf.archive.export("birds.zsvec")
    other.archive.import_("birds.zsvec")
    ```
    """

    def __init__(
        self,
        store: Store,
        encoders: Collection[str] = (),
        keep_images: KeepImages | None = None,
        fingerprints: Callable[[], Mapping[str, Fingerprint]] | None = None,
    ) -> None:
        self._store = store
        self._encoders = encoders
        self._keep_images = keep_images
        self._fingerprints = fingerprints

    def export(
        self,
        file: str | os.PathLike[str],
        *,
        categories: Iterable[str] | None = None,
        on_commit: Callable[[Category], None] = lambda category: None,
        track: Callable[[Sequence[Category]], Iterable[Category]] = iter,
    ) -> Copied:
        """Writes an archive. A former archive of the same name is replaced at the end, when the new one is complete.

        The history, attached collections and uncommitted references are left out.

        Args:
            file: Path of the archive, such as ``birds.zsvec``.
            categories: Names of the categories to export, without calibration and inbox. By default, the whole store.
            on_commit: Called with each category once it is written.
            track: Called with the categories; must yield all of them. Shows progress.

        Returns:
            The exported categories, and those that could not be exported. `Copied.complete` tells whether nothing is
            missing.

        Raises:
            InvalidInputError: A name is unusable, or the file cannot be written, or is no archive.
            CategoryNotFoundError: There is no category of one of the names.
            StoreError: There is no store, or the store cannot be read.
            StoreUnavailableError: The server cannot be reached, or the disk is full.
        """
        from zsvec.store.archive.reader import is_archive  # imports numpy, which listing categories does not need
        from zsvec.store.archive.writer import write_archive

        path, names = checked_path("file", file), _checked_names(categories)
        if os.path.lexists(path) and not is_archive(path):
            raise InvalidInputError(f"{path} is there, and is no archive of zsvec: choose another name")
        return write_archive(self._store, path, names=names, on_commit=on_commit, track=track)

    def import_(
        self,
        file: str | os.PathLike[str],
        *,
        categories: Iterable[str] | None = None,
        replace: bool = False,
        on_commit: Callable[[Category], None] = lambda category: None,
        track: Callable[[Sequence[Category]], Iterable[Category]] = iter,
    ) -> Copied:
        """Copies the categories of an archive to the store, each by one commit, as `zsvec.copy` copies a store.

        An interrupted import continues when it is repeated. A classifier with a new store loads the encoders, to
        compare them with those of the archive. The archive is untrusted: a category with a damaged or forged record is
        named, and the others are imported.

        Args:
            file: Path of the archive.
            categories: Names of the categories to import, without calibration and inbox. By default, everything.
            replace: Whether to replace categories and the calibration of the store that have other content.
            on_commit: Called with each category once it is committed.
            track: Called with the categories of the archive; must yield all of them. Shows progress.

        Returns:
            The imported categories, and those that could not be imported.

        Raises:
            InvalidInputError: A name is unusable, or the file is missing or no archive.
            CategoryNotFoundError: The archive has no category of one of the names.
            EncoderMismatchError: The archive has vectors of other encoders than the store or the classifier.
            StoreError: The archive is damaged, unsafe to read, or made by a later version of zsvec.
            StoreUnavailableError: The server cannot be reached, or the disk is full.
        """
        from zsvec.store.archive.reader import ArchiveReader

        names = _checked_names(categories)
        with ArchiveReader(checked_path("file", file)) as archive:
            self._check_encoders(archive)
            return self._store.copy_from(
                archive, names=names, replaces=replace, images=self._keep_images, on_commit=on_commit, track=track
            )

    def _check_encoders(self, archive: ArchiveReader) -> None:
        stored = archive.encoders()
        way_out = "open the store with the profile of the archive"
        if profile := archive.profile():
            way_out += f", {profile!r}"
        if self._encoders and set(self._encoders) != stored.keys():
            raise EncoderMismatchError(
                f"{archive.location} has vectors of the encoders {shown(sorted(stored))}, and "
                f"{', '.join(sorted(self._encoders))} are in use: {way_out}"
            )
        if self._fingerprints is None or self._store.encoders():  # the copy compares the encoders of a store
            return
        used = self._fingerprints()
        for name in sorted(stored):
            if stored[name] != used[name]:
                raise EncoderMismatchError(
                    f"the vectors of {name!r} in {archive.location} were made by {str(stored[name])[:LONGEST_NAME]}, "
                    f"and {used[name]} is in use: {way_out}"
                )


def is_archive(path: Path) -> bool:
    """Returns whether a file is an archive: by its content, or a damaged one by its name."""
    from zsvec.store.archive.reader import is_archive

    is_file = os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name that is too long
    return is_file and (path.suffix.lower() == SUFFIX or is_archive(path))


def _checked_names(categories: Iterable[str] | None) -> frozenset[str] | None:
    if categories is None:
        return None
    if not is_several(categories):
        raise InvalidInputError(f"categories must be a list of names, got {shown(categories)}")
    if not (names := frozenset(map(checked_name, categories))):
        raise InvalidInputError("categories must have at least one name, got none. Leave it out for the whole store")
    return names
