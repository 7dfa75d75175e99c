"""Active learning: images that wait for a label (`Inbox`), and feedback on single images (`Feedback`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.curation.retention import Keeper, inbox_image, is_a_reference, matrices
from zsvec.encoders import EncoderSet
from zsvec.encoders.vocabulary import common_words
from zsvec.errors import ImageError, InvalidInputError, needs_extra
from zsvec.ingest.embedding import Embedder, Vectors
from zsvec.ingest.validation import checked_count, checked_flag, checked_hash, checked_hashes
from zsvec.inputs.categories import CategoryInput, ReferenceImage, checked_name
from zsvec.inputs.images import ImageInput, content_hash, read_file, source_of, taken
from zsvec.method.quality.inbox_ranking import most_useful, urgency
from zsvec.store import InboxImage, Move, Reference, Store, Write
from zsvec.types import Category, Prediction, SmallImage, Uncertainty, fields_of

_FEWEST = 5  # images of the smallest group
_PROPOSED = 3  # names proposed for a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlabelled:
    """An image that waits for a label.

    Attributes:
        hash: Content hash, for `Inbox.label` and `Classifier.image`.
        source: Path or name of the image.
        added: Time at which the image was kept (UTC).
        width: Width of the image, upright, in pixels; 0 if unknown.
        height: Height of the image, upright, in pixels; 0 if unknown.
        urgency: How informative a label of the image is, 0 to 1.
        prediction: Prediction from the present categories; ``None`` if the store has no category.
    """

    hash: str
    source: str
    added: datetime
    width: int
    height: int
    urgency: float
    prediction: Prediction | None

    @property
    def uncertainty(self) -> Uncertainty | None:
        """`Prediction.uncertainty` of the prediction; ``None`` without a prediction."""
        return self.prediction.uncertainty if self.prediction else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that ``zsvec inbox --json`` prints."""
        added = self.added.isoformat(timespec="seconds")
        return {**fields_of(self), "added": added, "prediction": self.prediction and self.prediction.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Similar unknown images, which may show a missing category.

    Attributes:
        images: The images, the most typical first.
        likeness: Mean cosine over all pairs of images of the group, averaged over the encoders, -1 to 1.
        names: Proposed names, the most likely first. Empty if not requested, without timm, or without an encoder that
            embeds both texts and images.
    """

    images: Sequence[Unlabelled]
    likeness: float
    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that ``zsvec inbox groups --json`` prints."""
        images = [image.to_dict() for image in self.images]
        return {"names": list(self.names), "likeness": self.likeness, "images": images}


class Inbox:
    """The images that wait for a label: ``clf.inbox`` of a classifier.

    Iterating yields the images, the most useful first (`rank`). Only the proposed names of groups need an encoder.
    """

    def __init__(
        self,
        store: Store,
        keeper: Keeper,
        predict: Callable[[Sequence[str], Vectors, int], list[Prediction]],
        image_encoders: Sequence[str],
        encoders: Callable[[], EncoderSet],
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._predict = predict
        self._image_encoders = image_encoders
        self._encoders = encoders
        self._words: dict[str, NDArray[np.float32]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting())

    def __iter__(self) -> Iterator[Unlabelled]:
        return iter(self.rank())

    def hashes(self) -> list[str]:
        """Returns the content hashes of the waiting images, in no particular order."""
        return [image.hash for image in self._waiting()]

    def small(self, content_hash: str) -> SmallImage | None:
        """Returns the small copy of an image that waits; ``None`` without a readable copy."""
        return self._store.inbox.small(checked_hash(content_hash))

    def rank(self, number: int | None = None) -> list[Unlabelled]:
        """Returns the images to label next: informative images that differ from each other.

        The images are classified from their stored vectors, into the present categories.

        Args:
            number: Maximum number of images; by default, all.

        Raises:
            InvalidInputError: `number` is not a positive integer.
            StoreError: The store cannot be read.
        """
        waiting = self._waiting()
        wanted = len(waiting) if number is None else min(checked_count("number", number), len(waiting))
        found = self._described(waiting)
        if not found:
            return []
        urgencies, nearness = (np.array(values) for values in zip(*map(_usefulness, found), strict=True))
        return [found[row] for row in most_useful(urgencies, nearness, matrices(waiting), wanted)]

    def groups(self, *, names: bool = True) -> list[Group]:
        """Returns groups of five or more similar unknown images, the largest first. Each may be a missing category.

        In a store without categories, all images are unknown.

        Args:
            names: Whether to propose names, which loads the encoders. The names are the ImageNet labels with the text
                vectors nearest to the mean of the images.

        Raises:
            InvalidInputError: `names` is not a bool.
            MissingExtraError: scikit-learn is not installed.
            StoreError: The store cannot be read.
            WeightsUnavailableError: The encoders cannot be loaded.
        """
        names = checked_flag("names", names)
        waiting = self._waiting()
        described = self._described(waiting)
        rows = [i for i, one in enumerate(described) if one.prediction is None or one.prediction.unknown]
        if not rows:
            return []
        unknown = matrices([waiting[row] for row in rows])
        found = _similar(unknown)
        proposed = self._names(unknown, [group for group, _ in found]) if names and found else [()] * len(found)
        return [
            Group(images=[described[rows[i]] for i in group], likeness=likeness, names=words)
            for (group, likeness), words in zip(found, proposed, strict=True)
        ]

    def _names(self, vectors: Vectors, groups: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
        """Returns proposed names of groups of images, from the encoders that embed both texts and images."""
        words = common_words()
        both = [encoder for encoder in self._encoders() if {"text", "image"} <= set(encoder.modalities)]
        if not (words and both):
            return [()] * len(groups)
        scores = np.zeros((len(groups), len(words)))
        for encoder in both:
            means = np.array([vectors[encoder.name][list(rows)].mean(axis=0) for rows in groups])
            with self._lock:  # embedding a thousand words takes long, so it is done once
                if encoder.name not in self._words:
                    self._words[encoder.name] = encoder.encode_texts(words)
            cosines = means @ self._words[encoder.name].T
            scores += (cosines - cosines.mean(axis=1, keepdims=True)) / cosines.std(axis=1, keepdims=True)
        best = np.argsort(-scores, axis=1)[:, :_PROPOSED]
        return [tuple(words[word].split(",")[0] for word in row) for row in best]

    def label(self, hashes: str | Collection[str], name: str | Sequence[str]) -> Category:
        """Makes images of the inbox references of a category, or of several. No encoder runs.

        The images leave the inbox, and every process uses the references from its next batch on. If another category
        has an image as a reference, the reference is moved: an image is a reference of the named categories alone. A
        missing category is created without definition texts; `StoredReferences.update` adds texts. Labelling is
        idempotent: after a kill, repeat the call. An undo puts the images back into the inbox.

        Args:
            hashes: Content hash of an image, or several.
            name: Name of the category. In a store whose images may belong to several categories (`labels`), one or
                several names.

        Returns:
            The category as committed; the first of several.

        Raises:
            InvalidInputError: An image does not wait in the inbox, a name is unusable, or several names are given and
                an image belongs to one category.
            ConflictError: Another category would lose its last reference, or other writers changed a category at every
                attempt.
        """
        wanted, targets = checked_hashes(hashes), self._targets(name)
        images = {image.hash: image for image in self._store.inbox.read(sorted(wanted), vectors=True)}
        holders = self._store.holders(wanted)
        missing = wanted - images.keys()
        _check_waiting({one for one in missing if not holders.get(one, set()).issuperset(targets)})
        with self._store.one_change("label"):
            category = self._relabel(holders, targets, [images[one] for one in sorted(wanted) if one in images])
            # Last: after a kill, the images are references and still wait.
            self._store.remove_from_inbox(images.keys(), targets[0])
        return category

    def _targets(self, name: str | Sequence[str]) -> list[str]:
        """Returns the names of categories for an image, each once; raises InvalidInputError for unusable names."""
        if not isinstance(name, list | tuple):  # sets and mappings have no first name
            return [checked_name(name)]
        targets = list(dict.fromkeys(map(checked_name, name)))
        if not targets:
            raise InvalidInputError("name must be a category, or several, got none: give one")
        if len(targets) > 1 and self._store.labels() == "one":
            raise InvalidInputError(
                f"name must be one category, got {len(targets)}. To give an image several, add or import references "
                "with labels='many' first (--labels many)"
            )
        return targets

    def _relabel(
        self, holders: Mapping[str, Collection[str]], targets: Sequence[str], images: Sequence[InboxImage] = ()
    ) -> Category:
        """Makes inbox images, and the images in `holders`, references of the targets alone. Returns the first target.

        `holders` has, by content hash, the names of the categories that already have an image. Raises a ConflictError
        if another writer has removed a reference.
        """
        moves: dict[tuple[str, str], set[str]] = {}
        for digest, names in holders.items():
            if set(names) != set(targets):
                # Without a category to leave, one that has the image gives it to all targets, and so to itself.
                for source in set(names).difference(targets) or {min(names)}:
                    for target in targets:
                        moves.setdefault((source, target), set()).add(digest)
        # All categories in one transfer, which the next writer finishes if this process is killed.
        self._store.move_many(
            [Move(source=source, target=target, hashes=hashes) for (source, target), hashes in sorted(moves.items())]
        )
        references = [reference for image in images for reference in self._references(image)]
        needs = frozenset(holders) - {image.hash for image in images}
        writes = [Write(name=target, references=references, needs=needs or None) for target in targets]
        category, *_ = self._store.write(writes)
        return category

    def dismiss(self, hashes: str | Collection[str]) -> None:
        """Takes images out of the inbox. Until they expire, neither these images nor near-duplicates are kept again.

        An undo puts the images back.

        Raises:
            InvalidInputError: An image does not wait in the inbox.
            StoreError: The store cannot be written.
        """
        wanted = checked_hashes(hashes)
        images = self._store.inbox.read(sorted(wanted))
        _check_waiting(wanted - {image.hash for image in images})
        self._store.remove_from_inbox([image.hash for image in images if image.state == "waiting"])

    def clear(self) -> None:
        """Deletes all images of the inbox, dismissed ones included."""
        self._store.inbox.clear()

    def _waiting(self) -> list[InboxImage]:
        return [image for image in self._keeper.present() if image.state == "waiting"]

    def _described(self, images: Sequence[InboxImage]) -> list[Unlabelled]:
        """Returns the images with their predictions from the present categories."""
        if not images:
            return []
        predictions: Sequence[Prediction | None] = [None] * len(images)
        if self._store.all_categories():
            predictions = self._predict([image.source for image in images], matrices(images), 5)
        return [
            Unlabelled(
                hash=image.hash,
                source=image.source,
                added=image.added,
                width=image.width,
                height=image.height,
                prediction=prediction and with_changes(prediction, hash=image.hash),
                urgency=1.0 if prediction is None else urgency(prediction),
            )
            for image, prediction in zip(images, predictions, strict=True)
        ]

    def _references(self, image: InboxImage) -> list[Reference]:
        small, added = self._store.inbox.small(image.hash), datetime.now(UTC)
        return [
            Reference(
                encoder=encoder,
                modality="image",
                hash=image.hash,
                source=image.source,
                vector=image.vectors[encoder],
                added=added,
                by=self._store.by,
                cut_from=image.cut_from,
                small=small and with_changes(small, added=added),
            )
            for encoder in self._image_encoders
        ]


def _check_waiting(missing: Collection[str]) -> None:
    if missing:
        raise InvalidInputError(f"no image {min(missing)!r} waits in the inbox: `zsvec inbox` lists those that do")


def _usefulness(one: Unlabelled) -> tuple[float, float]:
    """Returns the urgency of an image, and the cosine to the nearest reference or 0 without a reference."""
    distance = one.prediction.distance if one.prediction else None
    return one.urgency, 0.0 if distance is None else 1 - distance


def _similar(vectors: Vectors) -> list[tuple[list[int], float]]:
    """Returns the rows and the mean cosine of each group of similar images: larger groups first, then closer groups.

    Groups are dense regions between sparse ones (HDBSCAN: Campello, Moulavi & Sander, "Density-based clustering based
    on hierarchical density estimates", 2013). So neither a number of groups nor a threshold of similarity is needed,
    and most images may belong to no group.
    """
    cosines: NDArray[np.float64] = np.mean([rows @ rows.T for rows in vectors.values()], axis=0, dtype=np.float64)
    if len(cosines) < _FEWEST:
        return []
    with needs_extra("groups", "groups of images"):
        from sklearn.cluster import HDBSCAN  # slow to import

    distances = np.clip(1 - cosines, 0, 2)
    found = HDBSCAN(_FEWEST, metric="precomputed", copy=True).fit(distances).labels_
    if found.max() < 0:  # there may be one group; always allowing one would include many more images
        found = HDBSCAN(_FEWEST, metric="precomputed", copy=True, allow_single_cluster=True).fit(distances).labels_
    groups = []
    for label in range(found.max() + 1):
        rows = np.flatnonzero(found == label)
        inner = cosines[np.ix_(rows, rows)]
        typical = (inner.sum(axis=1) - inner.diagonal()) / (len(rows) - 1)
        groups.append((rows[np.argsort(-typical, kind="stable")].tolist(), float(typical.mean())))
    return sorted(groups, key=lambda group: (-len(group[0]), -group[1]))


class Feedback:
    """Keeps and corrects single images. A prediction with a content hash can stand for its image."""

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        keeper: Keeper,
        embedder: Embedder,
        *,
        create: Callable[[], None],
        predict: Callable[[Sequence[str], Vectors, int], list[Prediction]],
        add: Callable[[Iterable[CategoryInput]], list[Category]],
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._keeper = keeper
        self._embedder = embedder
        self._create = create
        self._predict = predict
        self._add = add

    def keep(self, image: ImageInput | Prediction) -> str | None:
        """As `zsvec.classifier.Classifier.keep`."""
        if isinstance(image, Prediction):
            digest = _hash_of(image)
            if self._keeper.ask(digest):
                return digest
            image = self._unchanged(image)
        is_new = not self._store.encoders()
        if not is_new:
            self._create()
        prepared = self._embedder.prepare(image, small=is_new or self._store.keeps_images())
        if prepared.error is not None:
            raise prepared.error
        encoders = self._embedder.encoders.fingerprints
        stored = self._store.stored_vectors().find(encoders, "image", [prepared.hash])
        known = {digest: one.vectors for digest, one in stored.items()}
        row = self._embedder.encode([prepared], known)[prepared.hash]
        if is_new:  # encoders that fail make no store
            self._create()
            prepared = prepared if self._store.keeps_images() else with_changes(prepared, small=None)
        if self._store.all_categories():
            vectors = {name: vector[np.newaxis] for name, vector in row.items()}
            (prediction,) = self._predict([prepared.source], vectors, 1)
            if is_a_reference(prediction):
                return None
        if self._keeper.ask(prepared.hash):
            return prepared.hash
        kept = self._keeper.keep([inbox_image(prepared, row, "asked", datetime.now(UTC))])
        return prepared.hash if prepared.hash in kept else None

    def correct(self, image: ImageInput | Prediction, name: str | Sequence[str]) -> Category:
        """As `zsvec.classifier.Classifier.correct`."""
        targets = self._inbox._targets(name)
        with self._store.one_change("correct"):
            if isinstance(image, Prediction):
                known = _hash_of(image)
            else:
                image = taken(image, **self._embedder.limits)  # since the image is read twice
                known = content_hash(image, **self._embedder.limits)
            if self._store.inbox.read([known], vectors=True):
                return self._inbox.label(known, targets)
            if holders := self._store.holders({known}):
                return self._inbox._relabel(holders, targets)
            if isinstance(image, Prediction):
                image = self._unchanged(image)
            reference = ReferenceImage(image=image, source=source_of(image))
            category, *_ = self._add([CategoryInput(name=target, images=[reference]) for target in targets])
            return category

    def _unchanged(self, prediction: Prediction) -> ImageInput:
        """Returns the content of the classified file, read once; raises ImageError if it is not what was classified."""
        try:
            content = read_file(prediction.source, **self._embedder.limits)
        except ImageError as exc:
            raise ImageError(f"{exc}; or give the image itself instead of its prediction") from exc
        if content_hash(content, **self._embedder.limits) != prediction.hash:
            raise ImageError(
                f"{prediction.source}: the file has changed since its classification, or the image was given as "
                "pixels. Give the image itself, or classify the file"
            )
        return content


def _hash_of(prediction: Prediction) -> str:
    if prediction.hash is None:
        raise InvalidInputError(
            f"the prediction of {prediction.source!r} cannot stand for its image, because it has no hash: give the "
            "image itself"
        )
    return checked_hash(prediction.hash)
