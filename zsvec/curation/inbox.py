"""`Inbox`: what a classifier offers for the images that wait for a label."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zsvec.curation.clustering import groups_of
from zsvec.curation.retention import Keeper, matrices
from zsvec.encoders import EncoderSet
from zsvec.encoders.torch.words import common_words
from zsvec.errors import InvalidInputError
from zsvec.ingest.embedding import Vectors
from zsvec.ingest.validation import checked_count, checked_flag, checked_hash, checked_hashes
from zsvec.inputs.categories import checked_name
from zsvec.method.quality.unlabelled import most_useful, uncertainty, urgency
from zsvec.store import InboxImage, Move, Reference, Store, Write
from zsvec.types import Category, Prediction, SmallImage

_PROPOSED = 3  # names of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlabelled:
    """An image that waits for a label.

    Attributes:
        hash: Content hash, by which `Inbox.label` and `Classifier.image` find it.
        source: Where it came from.
        added: When it was kept (UTC).
        width: Of the image itself, upright, in pixels; 0 if that is not known.
        height: Likewise.
        prediction: What it would be classified as now; ``None`` of a store without categories.
        urgency: How much its label would tell, 0 to 1.
    """

    hash: str
    source: str
    added: datetime
    width: int
    height: int
    prediction: Prediction | None
    urgency: float

    @property
    def uncertainty(self) -> Literal["unknown", "close", "disputed"] | None:
        """Why its label would tell much by now: no category fits, two fit about as well, or the experts are at odds."""
        return uncertainty(self.prediction) if self.prediction else None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec inbox --json`` prints."""
        return {
            "hash": self.hash,
            "source": self.source,
            "added": self.added.isoformat(timespec="seconds"),
            "width": self.width,
            "height": self.height,
            "urgency": self.urgency,
            "prediction": self.prediction and self.prediction.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Unknown images that look alike: perhaps a category that is missing.

    Attributes:
        images: The images, the most typical first.
        likeness: Mean cosine of two of them, over all encoders, -1 to 1.
        names: Words that may name it, the likeliest first; empty without an encoder of texts, or words.
    """

    images: Sequence[Unlabelled]
    likeness: float
    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec inbox groups --json`` prints."""
        images = [image.to_dict() for image in self.images]
        return {"names": list(self.names), "likeness": self.likeness, "images": images}


class Inbox:
    """The images that wait for a label. It is ``clf.inbox`` of a classifier.

    Nothing here needs an encoder, but for the names of groups. Iterated, it gives the images, the most useful first
    (`rank`).

    Args:
        store: Where they are.
        keeper: Keeps the bounds.
        predict: From sources, vectors and the number of categories in the rankings to predictions.
        image_encoders: Names of the encoders that have references of images.
        encoders: Gives the encoders.
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
        """Content hashes of the images that wait, in no order."""
        return [image.hash for image in self._waiting()]

    def small(self, content_hash: str) -> SmallImage | None:
        """The small copy of an image that waits; ``None`` without one that can be read."""
        return self._store.inbox.small(checked_hash(content_hash))

    def rank(self, number: int | None = None) -> list[Unlabelled]:
        """What to label next: images whose label would tell much, and that differ from each other.

        They are classified anew by the categories of now, from the vectors that were kept.

        Args:
            number: How many, at most; by default all.

        Raises:
            InvalidInputError: It is no number from 1 up.
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
        """Unknown images that look alike, the largest group first: each may be a category that is missing.

        Of a store without categories, all images are unknown. Five images or more make a group.

        Args:
            names: Whether to propose names, for which the encoders are loaded: of ImageNet's words, those whose
                vectors as texts are nearest to the mean of the images.

        Raises:
            InvalidInputError: `names` is no truth value.
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
        found = groups_of(unknown)
        proposed = self._names(unknown, [group.rows for group in found]) if names and found else [()] * len(found)
        return [
            Group(images=[described[rows[i]] for i in group.rows], likeness=group.likeness, names=words)
            for group, words in zip(found, proposed, strict=True)
        ]

    def _names(self, vectors: Vectors, groups: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
        """Words that may name groups of images, by the encoders of texts and images together."""
        words = common_words()
        both = [encoder for encoder in self._encoders() if {"text", "image"} <= set(encoder.modalities)]
        if not (words and both):
            return [()] * len(groups)
        scores = np.zeros((len(groups), len(words)))
        for encoder in both:
            means = np.array([vectors[encoder.name][list(rows)].mean(axis=0) for rows in groups])
            with self._lock:  # a thousand words take long: they are embedded once
                if encoder.name not in self._words:
                    self._words[encoder.name] = encoder.encode_texts(words)
            cosines = means @ self._words[encoder.name].T
            scores += (cosines - cosines.mean(axis=1, keepdims=True)) / cosines.std(axis=1, keepdims=True)
        best = np.argsort(-scores, axis=1)[:, :_PROPOSED]
        return [tuple(words[word].split(",")[0] for word in row) for row in best]

    def label(self, hashes: str | Collection[str], name: str) -> Category:
        """Make images references of a category, which is made if there is none. No encoder runs.

        They are references from the next image of every process on, with their source, and wait no more. An image
        that is a reference of another category is moved. A category that is made so has no definition text:
        `StoredReferences.update` gives it one. Killed on the way, it can be done again.

        Args:
            hashes: Content hash of an image, or several.
            name: The category.

        Returns:
            The category as committed.

        Raises:
            InvalidInputError: No such image waits, or the name cannot be used.
            ConflictError: Other writers changed the category at every attempt.
        """
        wanted, target = checked_hashes(hashes), checked_name(name)
        images = {image.hash: image for image in self._store.inbox.read(sorted(wanted), vectors=True)}
        holders = self._store.holders(wanted)
        if missing := sorted(one for one in wanted if one not in images and target not in holders.get(one, ())):
            raise InvalidInputError(f"no image {missing[0]!r} waits in the inbox: `zsvec inbox` lists those that do")
        with self._store.one_change("label"):
            category = self._gathered(holders, target, [images[one] for one in sorted(wanted) if one in images])
            self._store.inbox.delete(wanted)  # last: killed before, they wait, and are references already
        return category

    def _gathered(
        self, holders: Mapping[str, Collection[str]], target: str, images: Sequence[InboxImage] = ()
    ) -> Category:
        """Give a category images: those that wait, and those that categories have.

        Args:
            holders: By content hash, the categories that have the image.
            target: The category.
            images: That wait, with their vectors.

        Returns:
            The category as committed, which has all of them.

        Raises:
            ConflictError: Another writer has removed an image that does not wait.
        """
        by_source: dict[str, set[str]] = {}
        for content_hash, names in holders.items():
            for name in names:
                if name != target:
                    by_source.setdefault(name, set()).add(content_hash)
        for source, hashes in sorted(by_source.items()):
            self._store.move(Move(source=source, target=target, hashes=frozenset(hashes)))
        references = [reference for image in images for reference in self._references(image)]
        needs = frozenset(holders) - {image.hash for image in images}
        [category] = self._store.write([Write(name=target, references=references, needs=needs or None)])
        return category

    def dismiss(self, hashes: str | Collection[str]) -> None:
        """Let images wait no more. Until they are too old, neither they nor any nearly like them are kept again.

        Raises:
            InvalidInputError: No such image waits.
            StoreError: The store cannot be written.
        """
        wanted = checked_hashes(hashes)
        images = self._store.inbox.read(sorted(wanted), vectors=True)
        if missing := sorted(wanted - {image.hash for image in images}):
            raise InvalidInputError(f"no image {missing[0]!r} waits in the inbox: `zsvec inbox` lists those that do")
        self._store.inbox.put([with_changes(image, dismissed=True) for image in images])

    def clear(self) -> None:
        """Delete all images, and forget which were dismissed."""
        self._store.inbox.clear()

    def _waiting(self) -> list[InboxImage]:
        return [image for image in self._keeper.present() if not image.dismissed]

    def _described(self, images: Sequence[InboxImage]) -> list[Unlabelled]:
        """Images with their predictions of now."""
        if not images:
            return []
        predictions: Sequence[Prediction | None] = [None] * len(images)
        if self._store.categories():
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
        """What each encoder has of an image as a reference."""
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
                small=small and with_changes(small, added=added),
            )
            for encoder in self._image_encoders
        ]


def _usefulness(one: Unlabelled) -> tuple[float, float]:
    """How urgent an image is, and its cosine to the nearest reference; with nothing to compare with, 0."""
    distance = one.prediction.distance if one.prediction else None
    return one.urgency, 0.0 if distance is None else 1 - distance
