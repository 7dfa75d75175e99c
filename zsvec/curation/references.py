"""Changes, label errors and audit of stored references: `StoredReferences`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from zsvec.curation.audit import Audit, audited, split_kept
from zsvec.errors import ConflictError, InvalidInputError, StoreError, shown
from zsvec.ingest.embedding import RecentVectors
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.recalibration import Calibrator
from zsvec.ingest.validation import checked_count, checked_hash, checked_hashes
from zsvec.inputs.categories import CategoryInput, as_words, checked_category, checked_name, checked_parent
from zsvec.method.predict.tree import ancestors, carried
from zsvec.method.quality.label_errors import Suspect
from zsvec.search.searcher import Searcher
from zsvec.store import Move, Renamed, Store, Write
from zsvec.store.catalog.schema import is_content_hash
from zsvec.types import Category, Forgotten, SmallImage, StoredReference, encoder_and_modality

_Kept = Literal["label", "duplicates", "outlier", "confusion"]
_First: TypeAlias = tuple[tuple[str, ...], int, list[StoredReference]]
"""Ids of the writes of a category, the number of images asked for, and these images."""
_NONE: _First = ((), 0, [])
_MAX_REMEMBERED = 20_000  # categories with remembered first images


class StoredReferences:
    """The references of a store: ``clf.references`` of a classifier.

    No method embeds an image again. A change is visible in the next batch of every process.
    """

    def __init__(
        self,
        store: Store,
        searcher: Searcher,
        calibrator: Calibrator,
        builder: Callable[[], Builder],
        recent: RecentVectors,
    ) -> None:
        self._store = store
        self._searcher = searcher
        self._calibrator = calibrator
        self._builder = builder
        self._recent = recent
        self._first: dict[str, _First] = {}  # the oldest first
        self._lock = threading.Lock()

    def remove(self, name: str, hashes: str | Collection[str]) -> Category:
        """Removes references from a category.

        Args:
            name: Name of the category.
            hashes: Content hash of a text or an image, or several.

        Returns:
            The category as committed.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: The category has no such reference.
            ConflictError: The category would have no reference, or other writers changed the category at every attempt.
        """
        return self._store.remove_references(checked_name(name), checked_hashes(hashes))

    def move(self, hashes: str | Collection[str], *, source: str, target: str) -> Category:
        """Moves references from one category to another, which is created if missing.

        For an instant, the references are in both categories. If the process is killed, each reference is still in at
        least one of them.

        Args:
            hashes: Content hash of a text or an image, or several.
            source: The category that has the references.
            target: The category that gets the references.

        Returns:
            The target as committed.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: The source has no such reference, or source and target are the same.
            ConflictError: The source would have no reference, or other writers changed source or target at every
                attempt.
        """
        return self._moved(
            Move(source=checked_name(source), target=checked_name(target), hashes=checked_hashes(hashes))
        )

    def move_many(self, moves: Mapping[tuple[str, str], str | Collection[str]]) -> list[Category]:
        """Moves references between many pairs of categories as one change: all or none.

        This is much faster than a call of `move` for each pair. An undo of one of the categories undoes the whole move.

        Args:
            moves: Content hashes by pair of source and target. A category may be the source of some pairs and the
                target of others. Such a category passes on the references of before, and keeps the new ones.

        Returns:
            The targets as committed.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: `moves` is not such a mapping, a source has no such reference, source and target are the
                same, or a reference is moved to several targets.
            ConflictError: As for `move`.
        """
        if not isinstance(moves, Mapping):
            raise _no_moves(moves)
        wanted: list[Move] = []
        moved: set[tuple[str, str]] = set()
        for pair, hashes in moves.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise _no_moves(moves)
            source, target = pair
            move = Move(source=checked_name(source), target=checked_name(target), hashes=checked_hashes(hashes))
            _check_different(move)
            own = {(move.source, content_hash) for content_hash in move.hashes or ()}
            if twice := sorted(own & moved):
                raise InvalidInputError(
                    f"a reference must be moved to one category. Got several for {twice[0][1]!r} of {move.source!r}"
                )
            moved |= own
            wanted.append(move)
        return self._store.move_many(wanted)

    def keep(
        self,
        name: str,
        hashes: str | Collection[str],
        *,
        finding: _Kept,
    ) -> Category:
        """Keeps images as they are, although an audit doubts them. The references stay the same.

        Later audits leave out each finding of this kind of which all images are kept. Points of attached collections
        do not count: if all other images are kept, the finding is. If an image is moved or removed, it is no longer
        kept. A renamed or merged category passes its kept images on. A category remembers the newest 10,000.

        Args:
            name: Name of the category.
            hashes: Content hash of an image, or several.
            finding: Kind of the finding: a label error, near-duplicates, an outlier or confused categories.

        Returns:
            The category as committed.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: The category has no such reference, or the kind is unknown.
            ConflictError: Other writers changed the category at every attempt.
        """
        return self._store.keep(checked_name(name), checked_hashes(hashes), _checked_kind(finding))

    def unkeep(self, name: str, hashes: str | Collection[str], *, finding: _Kept) -> Category:
        """Reverts `keep`: later audits show the findings again. Arguments and errors are those of `keep`."""
        return self._store.keep(checked_name(name), checked_hashes(hashes), _checked_kind(finding), kept=False)

    def split_kept(self, found: Audit) -> tuple[Audit, Audit]:
        """Splits an audit into the findings that wait for a decision, and the findings that were kept (`keep`).

        Args:
            found: An audit with the kept findings (``audit(kept=True)``). The audit may be older than the decisions.
        """
        return split_kept(found, self._store.kept())

    def rename(self, name: str, new: str) -> Category:
        """Renames a category. If a definition text is the old name, the new name replaces it.

        The parents of the categories below name the new category, in the same change.

        Raises:
            CategoryNotFoundError: There is no category of the old name.
            InvalidInputError: There is already a category of the new name, both names are the same, or the parent of
                the category has the new name.
            ConflictError: Other writers changed one of the two categories at every attempt.
        """
        old, wanted = checked_name(name), checked_name(new)
        category = self._store.category(old)
        renamed = None
        if as_words(old) in category.texts:
            embedded = any(encoder_and_modality(expert)[1] == "text" for expert in category.references)
            renamed = self._builder().renamed(old, wanted) if embedded else Renamed(as_words(old), as_words(wanted))
        checked_parent(category.parent, wanted)
        parents = self._parents()
        below = _checked_each(carried(parents, old, (*ancestors(old, parents), wanted)))
        with self._store.one_change("rename"):
            moved = self._moved(Move(source=old, target=wanted, new=True, renamed=renamed))
            self._carry(below)
            return moved

    def merge(self, source: str, target: str) -> Category:
        """Moves all references of the source to the target, and removes the source.

        The metadata is merged as well. If both categories have a key, the value of the target stays. The target keeps
        its parent. In the same change, the categories below the source get the target as parent, unless the target is
        one of them.

        Raises:
            CategoryNotFoundError: One of the categories does not exist.
            InvalidInputError: Source and target are the same.
            ConflictError: Other writers changed source or target at every attempt.
        """
        old, kept = checked_name(source), checked_name(target)
        self._store.category(kept)
        parents = self._parents()
        below = _checked_each(carried(parents, old, (*ancestors(kept, parents), kept)))
        with self._store.one_change("merge"):
            merged = self._moved(Move(source=old, target=kept))
            self._carry(below)
            return merged

    def _parents(self) -> dict[str, str]:
        return {category.name: category.parent for category in self._store.categories() if category.parent}

    def _carry(self, parents: Mapping[str, str]) -> None:
        """Gives categories new parents, by name, in the present change. A category that is gone needs none."""
        writes = [Write(name=name, references=(), parent=new, needs=frozenset()) for name, new in parents.items()]
        try:
            self._store.write(writes)
        except ConflictError:
            there = {category.name for category in self._store.categories()}
            if parents.keys() <= there:
                raise
            self._carry({name: new for name, new in parents.items() if name in there})

    def update(
        self,
        name: str,
        *,
        texts: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> Category:
        """Replaces the definition texts, the metadata or the parent of a category in one change. Images stay.

        Args:
            name: Name of the category.
            texts: New definition texts. Texts that the category already has are not embedded again. ``None`` keeps the
                texts.
            metadata: New metadata, JSON; ``None`` keeps the metadata.
            parent: New parent, such as ``animal > bird``. An empty text removes the parent, and ``None`` keeps it.

        Returns:
            The category as committed.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: A text, the metadata or the parent is unusable, or the parent is below the category.
            ConflictError: The category would have no reference, or other writers changed the category at every attempt.
        """
        if texts is None and metadata is None and parent is None:
            raise InvalidInputError("update must be given texts, metadata or a parent. Got none of them")
        given = checked_category(CategoryInput(name=name, texts=texts, metadata=metadata, parent=parent))
        self._store.category(given.name)
        with self._store.one_change("set"):
            if texts is None:
                if given.parent:
                    self._store.check_parent(given.name, given.parent)
                write = Write(
                    name=given.name,
                    references=(),
                    metadata=given.metadata,
                    parent=given.parent,
                    needs=frozenset(),
                )
                (category,) = self._store.write([write])
            else:
                (category,) = self._builder().build([given], replace=True, create=False)
        return category

    def forget(self, content_hash: str) -> Forgotten:
        """Erases an image from every category, the inbox, the small copies and the history. No undo restores the image.

        The boxes that were cut from the image (`Region`) are erased with it. A later write may add the image again. A
        category that has no other reference is removed. An embedded store rewrites the files of all references, so that
        no trace of the image remains. A server deletes the points, and rewrites its files on its own schedule. The
        reference cache of the present user is deleted. The caches of other users are renewed when they open the store
        again. A service drops the lists that it keeps between pages, if a history is kept. Another process that has
        classified the image keeps the vectors in memory until it has classified 1,000 more images. If this process is
        killed, the next write of any process finishes the erasure.

        Args:
            content_hash: Content hash of the image.

        Returns:
            The number of erased points, the categories that had the image or a box of it, and the number of boxes. The
            number of points is 0 for an unknown hash, for instance if the file of the image has changed.

        Raises:
            InvalidInputError: The value is not a content hash of 64 characters.
            StoreError: There is no store.
            StoreUnavailableError: The disk has no room to rewrite the files. The references are deleted nevertheless.
            ConflictError: Other writers added the image again at every attempt.
        """
        digest = checked_hash(content_hash).lower()
        if not is_content_hash(digest):
            raise InvalidInputError(
                f"hash must be a whole hash of 64 characters. Got {digest!r} instead: `zsvec show --json` has it"
            )
        found = self._store.forget(digest)
        self._searcher.forget()
        self._recent.forget(digest)
        with self._lock:
            self._first.clear()
        return found

    def _moved(self, move: Move) -> Category:
        _check_different(move)
        return self._store.move(move)

    def of(self, name: str) -> list[StoredReference]:
        """Returns each text and image of a category once: first texts, then images, oldest first.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        return self._store.stored_references(checked_name(name))

    def first_images(self, categories: Iterable[Category], most: int) -> dict[str, list[StoredReference]]:
        """Returns, by name, at most `most` images of each category, oldest first, as one encoder has them.

        Reads the store for the categories that have changed since the last call. A larger category is not read whole,
        so the images are not always its oldest. Categories without stored images are missing in the result.
        """
        wanted, most = list(categories), checked_count("most", most)
        with self._lock:
            first = {one.name: self._first.get(one.name, _NONE) for one in wanted}
        changed = [one for one in wanted if first[one.name][:2] != (one.write_ids, most)]
        if changed:
            found = self._store.first_images(changed, most)
            first |= {one.name: (one.write_ids, most, found.get(one.name, [])) for one in changed}
            with self._lock:
                self._first |= {one.name: first[one.name] for one in changed}
                for name in list(self._first)[:-_MAX_REMEMBERED]:
                    del self._first[name]
        return {one.name: images for one in wanted if (images := first[one.name][2])}

    def holders(self, hashes: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Returns, by content hash, the sorted names of the categories that have the image.

        Hashes that no category has are missing in the result.
        """
        found = self._store.holders(frozenset(hashes))
        return {digest: tuple(sorted(names)) for digest, names in found.items()}

    def small(self, content_hash: str) -> SmallImage | None:
        """Returns the small copy of a reference image; ``None`` without a readable copy."""
        return self._store.image(checked_hash(content_hash))

    def suspects(self) -> list[Suspect]:
        """Returns probable label errors among the reference images, without kept ones (`keep`). Nothing is changed.

        The stored calibration decides how much each similarity to the other images counts. All vectors are read into
        the process; other memory is bounded. (The report of `Classifier.calibrate` also names suspects, but only among
        the images that it leaves out.)

        Texts are not judged, nor is the only image of a category. A picture in several categories is judged only if
        each of these categories has an image of another scene.

        Returns:
            The suspects, most doubtful first. Each has the probability, above 0.5, that its category is wrong, and the
            category that the other references make most probable.

        Raises:
            StoreError: There is no calibration for the experts and the aggregation in use.
        """
        references = self._calibrator.references()
        verdicts = self._calibrator.verdicts(references)
        if verdicts is None:
            raise StoreError(
                f"{self._store.location} has no calibration that says how often a label is wrong: calibrate it with "
                "`zsvec calibrate` or clf.calibrate()"
            )
        return self._calibrator.suspects(references, verdicts)

    def audit(self, *, kept: bool = False) -> Audit:
        """Audits the reference images. Nothing is changed.

        The findings are label errors, as `suspects` returns them; near-duplicates; outliers; categories with too few
        different images; and pairs of confused categories. Each kind begins with the most doubtful. Label errors and
        confusions need a calibration. All vectors are read into the process once. Other memory grows with the number of
        images, and the time with the square of this number.

        Args:
            kept: Whether to show also the findings that were kept (`keep`).

        Raises:
            StoreError: References cannot be read.
        """
        references = self._calibrator.references()
        multilabel = self._store.labels() == "many"
        found = audited(references, self._calibrator.verdicts(references), multilabel=multilabel)
        return found if kept else self.split_kept(found)[0]


def _checked_each(parents: Mapping[str, str]) -> dict[str, str]:
    return {name: checked_parent(parent, name) for name, parent in parents.items()}


def _no_moves(given: object) -> InvalidInputError:
    return InvalidInputError(
        f"moves must be a mapping of pairs (source, target) to content hashes. Got {shown(given)} instead"
    )


def _check_different(move: Move) -> None:
    if move.source == move.target:
        raise InvalidInputError(f"{move.source!r} and {move.target!r} are the same category: give two")


def _checked_kind(finding: str) -> str:
    if finding not in get_args(_Kept):
        raise InvalidInputError(f"finding must be one of {', '.join(get_args(_Kept))}. Got {shown(finding)} instead")
    return finding
