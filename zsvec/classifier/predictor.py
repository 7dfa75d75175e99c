"""From the vectors of images to predictions: what the store knows now, searched and scored."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace as with_changes

from numpy.typing import ArrayLike

from zsvec.curation.retention import StreamKeeper
from zsvec.encoders import EncoderSet
from zsvec.errors import StoreError
from zsvec.ingest.embedding import Embedder, PreparedImage, Vectors, Wanted
from zsvec.ingest.validation import (
    Errors,
    check_answers,
    checked_batch_size,
    checked_count,
    checked_queries,
    checked_wait,
)
from zsvec.inputs.categories import checked_images
from zsvec.inputs.images import ImageInput
from zsvec.method.predict.scoring import Scoring
from zsvec.search.base import IndexSpec, in_memory
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.streams.flow import Flow, Totals
from zsvec.types import Fingerprint, Prediction

_NEAREST = 3  # references that a prediction shows for each expert


class Predictor:
    """Predicts by the references of a store.

    Args:
        store: Where they are.
        searcher: Compares vectors with them.
        scoring: From similarities to predictions.
        embedder: Has the encoders, which must be those of the store.
        settings: How large a batch is, and where references in memory are compared.

    Attributes:
        totals: What all streams together have done.
    """

    def __init__(
        self, store: Store, searcher: Searcher, scoring: Scoring, embedder: Embedder, settings: Settings
    ) -> None:
        self._store = store
        self._searcher = searcher
        self._scoring = scoring
        self._embedder = embedder
        self._settings = settings
        self.totals = Totals()
        self._fingerprints: Mapping[str, Fingerprint] | None = None

    def encoders_to_read(self) -> EncoderSet:
        """The encoders, checked against the store; from then on the search checks them."""
        if self._fingerprints is None:
            if not self._store.encoders():
                raise self.empty()
            self._store.check_fingerprints(self._embedder.encoders.fingerprints)
            self._fingerprints = self._embedder.encoders.fingerprints
        return self._embedder.encoders

    def empty(self) -> StoreError:
        """The error of who asks a store that has nothing to compare with."""
        return StoreError(f"{self._store.location} has no category yet: add one with `zsvec add` or `zsvec import`")

    def stream(
        self,
        images: Iterable[ImageInput],
        flow: Flow,
        batch_size: int | None,
        max_wait_ms: float | None,
        top_k: int,
        errors: Errors,
        keeper: StreamKeeper | None = None,
    ) -> Generator[Prediction, None, None]:
        """Predictions of images as they come; see `zsvec.classifier.Classifier.classify_stream`.

        Raises:
            InvalidInputError: At once, for an argument that cannot be used.
        """
        size = checked_batch_size(self._settings.batch_size if batch_size is None else batch_size)
        check_answers(top_k, errors)
        max_wait = checked_wait(max_wait_ms)
        checked = checked_images(images)

        def answers() -> Generator[Prediction, None, None]:
            self.encoders_to_read()
            wanted = Wanted(hash=keeper is not None, small=keeper is not None and self._store.keeps_images())
            batches = self._embedder.batches(checked, size, flow, max_wait=max_wait, wanted=wanted)
            self.totals.add(flow)
            with closing(batches), flow:
                for batch, vectors in batches:
                    yield from self.answers(batch, vectors, top_k, errors, flow, keeper)

        return answers()

    def answers(
        self,
        batch: Sequence[PreparedImage],
        vectors: Vectors,
        top_k: int,
        errors: Errors,
        flow: Flow | None,
        keeper: StreamKeeper | None = None,
        *,
        related: bool = True,
    ) -> Iterator[Prediction]:
        """Predictions of a batch, in order, with an error for each image that could not be read.

        Args:
            batch: All of it.
            vectors: Of those images that could be read.
            top_k: Categories in the rankings.
            errors: For the others, ``report`` or ``raise``.
            flow: Of the stream that the batch is of, if it is of one.
            keeper: Keeps some of the images for labelling, if any are to be kept.
            related: As for `predict`.
        """
        readable = [image for image in batch if image.error is None]
        sources = [image.source for image in readable]
        answered = self.predict(sources, vectors, top_k, flow, related=related) if sources else []
        if keeper is not None:
            answered = [with_changes(a, hash=image.hash) for a, image in zip(answered, readable, strict=True)]
            keeper.offer(readable, vectors, answered)
        if flow is not None:
            flow.count(len(batch), len(batch) - len(sources), sum(answer.stale_seconds > 0 for answer in answered))
        answers = iter(answered)
        for image in batch:
            if image.error is None:
                yield next(answers)
            elif errors == "raise":
                raise image.error
            else:
                yield Prediction(source=image.source, error=str(image.error))

    def predict_embedded(self, vectors: Mapping[str, ArrayLike], top_k: int) -> list[Prediction]:
        """As `zsvec.classifier.Classifier.classify_vectors`."""
        checked_count("top_k", top_k)
        fingerprints = self._store.encoders()
        if not fingerprints:
            raise self.empty()
        queries = checked_queries(vectors, fingerprints)
        sources = [f"vector {i}" for i in range(len(next(iter(queries.values()))))]
        return self.predict(sources, queries, top_k, None) if sources else []

    def predict(
        self, sources: Sequence[str], vectors: Vectors, top_k: int, flow: Flow | None, *, related: bool = True
    ) -> list[Prediction]:
        """Predictions for embedded images.

        Args:
            sources: Where the images came from.
            vectors: Of them, in the same order.
            top_k: Categories in the rankings.
            flow: Of the stream that they are of, if they are of one.
            related: Whether they were given together, so that they may help each other.

        Raises:
            StoreError: There is nothing to compare with.
        """
        with flow.stage("search") if flow else nullcontext():
            found = self._searcher.search(vectors, _NEAREST, self._index(), self._fingerprints)
        # A modality that is not in use any more may still have references.
        used = tuple(expert for expert in found.experts if expert.name in self._scoring.temperatures)
        if not used:
            raise self.empty()  # or known by other modalities alone
        with flow.stage("fuse") if flow else nullcontext():
            parts = self._scoring.predict_in_parts(with_changes(found, experts=used), sources, top_k, related=related)
            if flow:
                flow.rank([rank for scores, _ in parts for rank in scores.rank.tolist()])
            return [answer for _, answers in parts for answer in answers]

    def predict_each(self, sources: Sequence[str], vectors: Vectors, top_k: int) -> list[Prediction]:
        """`predict` for images that do not belong together, and are of no stream."""
        return self.predict(sources, vectors, top_k, None, related=False)

    def _index(self) -> IndexSpec:
        encoders = self._embedder.loaded  # until they are, numpy compares
        on = encoders.device if encoders else "cpu"
        device = on if self._settings.index_device == "auto" else self._settings.index_device
        return in_memory(device, self._settings.index_dtype, torch_encodes=bool(encoders and encoders.on_torch))
