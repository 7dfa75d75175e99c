"""What one image teaches: kept for a label, or made a reference of the right category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from zsvec.curation.inbox import Inbox
from zsvec.curation.retention import Keeper, inbox_image, is_a_reference
from zsvec.errors import ImageError, InvalidInputError
from zsvec.ingest.embedding import Embedder, Vectors, Wanted
from zsvec.ingest.validation import checked_hash
from zsvec.inputs.categories import ReferenceImage, checked_name
from zsvec.inputs.images import ImageInput, ImageLimits, content_hash, source_of, taken
from zsvec.store import Store
from zsvec.types import Category, Prediction


class Teaching:
    """Keeps and corrects single images. A prediction can stand for its image, by the hash of its content.

    Args:
        store: Where categories and inbox are.
        inbox: Of the store.
        keeper: Of the inbox.
        embedder: Embeds images that are new.
        limits: What an image may be and take.
        create: Makes the store ready to be written.
        predict: From sources, vectors and the number of categories in the rankings to predictions.
        add: Adds an image to a category, embedded.
    """

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        keeper: Keeper,
        embedder: Embedder,
        limits: ImageLimits,
        *,
        create: Callable[[], None],
        predict: Callable[[Sequence[str], Vectors, int], list[Prediction]],
        add: Callable[[str, ReferenceImage], Category],
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._keeper = keeper
        self._embedder = embedder
        self._limits = limits
        self._create = create
        self._predict = predict
        self._add = add

    def keep(self, image: ImageInput | Prediction) -> str | None:
        """As `zsvec.classifier.Classifier.keep`."""
        if isinstance(image, Prediction):
            known = _hash_of(image)
            if self._keeper.ask(known):
                return known
            image = self._unchanged(image)
        self._create()
        wanted = Wanted(hash=True, small=self._store.keeps_images())
        prepared = self._embedder.prepare(image, wanted=wanted)
        if prepared.error is not None:
            raise prepared.error
        vectors = self._embedder.encoders.encode_images([prepared.inputs])
        if self._store.categories():
            (prediction,) = self._predict([prepared.source], vectors, 1)
            if is_a_reference(prediction):
                return None
        row = {name: rows[0] for name, rows in vectors.items()}
        if self._keeper.ask(prepared.hash):
            return prepared.hash
        kept = self._keeper.keep([inbox_image(prepared, row, "asked", datetime.now(UTC))])
        return prepared.hash if prepared.hash in kept else None

    def correct(self, image: ImageInput | Prediction, name: str) -> Category:
        """As `zsvec.classifier.Classifier.correct`."""
        with self._store.one_change("correct"):
            return self._correct(image, checked_name(name))

    def _correct(self, image: ImageInput | Prediction, target: str) -> Category:
        if isinstance(image, Prediction):
            known = _hash_of(image)
        else:
            image = taken(image, **self._limits)  # it is read twice
            known = content_hash(image, **self._limits)
        if self._store.inbox.read([known], vectors=True):
            return self._inbox.label(known, target)
        if holders := self._store.holders({known}):
            category = self._inbox._gathered(holders, target)
            self._store.inbox.delete({known})
            return category
        if isinstance(image, Prediction):
            image = self._unchanged(image)
        return self._add(target, ReferenceImage(image=image, source=source_of(image)))

    def _unchanged(self, prediction: Prediction) -> str:
        """The path of a prediction's image, which has not changed since.

        Raises:
            ImageError: It cannot be read, or it has changed.
        """
        if content_hash(prediction.source, **self._limits) != prediction.hash:
            raise ImageError(f"{prediction.source}: it has changed since it was classified; classify it again")
        return prediction.source


def _hash_of(prediction: Prediction) -> str:
    """The content hash of a prediction's image.

    Raises:
        InvalidInputError: The prediction has none.
    """
    if prediction.hash is None:
        raise InvalidInputError(
            f"the prediction of {prediction.source!r} cannot stand for its image, because it has no hash: give the "
            "image itself, or classify a path alone, or a stream with keep"
        )
    return checked_hash(prediction.hash)
