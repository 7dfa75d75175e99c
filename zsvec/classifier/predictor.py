"""Predictions: images are embedded, compared with the references of the store, and scored."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace as with_changes
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from zsvec.curation.retention import Keeper, StreamKeeper
from zsvec.encoders import EncoderSet
from zsvec.encoders.everyday import EVERYDAY
from zsvec.errors import StoreError
from zsvec.ingest.embedding import Embedder, PreparedImage, Vectors
from zsvec.ingest.validation import (
    Errors,
    check_answers,
    checked_batch_size,
    checked_count,
    checked_keep,
    checked_queries,
    checked_wait,
)
from zsvec.inputs.boxes import regions_of
from zsvec.inputs.categories import checked_images
from zsvec.inputs.images import ImageInput, Region, shared
from zsvec.method.predict.cascade import fractions, settled
from zsvec.method.predict.scoring import Scores, Scoring
from zsvec.method.predict.together import Batch, together
from zsvec.method.similarities import SearchResult
from zsvec.search.base import IndexSpec, in_memory
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.streams.flow import Flow, Totals
from zsvec.streams.stream import Stream
from zsvec.types import Fingerprint, Keep, Neighbor, Prediction

_NEIGHBORS = 3  # nearest references of each expert in a prediction


class Predictor:
    """Predicts categories from the references of a store. `totals` has the statistics of all streams together.

    `prompts` maps encoders to templates for the text of a name.
    """

    def __init__(
        self,
        store: Store,
        searcher: Searcher,
        scoring: Scoring,
        embedder: Embedder,
        keeper: Keeper,
        settings: Settings,
        prompts: Mapping[str, str],
    ) -> None:
        self._store = store
        self._searcher = searcher
        self._scoring = scoring
        self._embedder = embedder
        self._keeper = keeper
        self._settings = settings
        self._prompts = prompts
        self._words: Vectors | None = None
        self._lock = threading.Lock()
        self._fingerprints: Mapping[str, Fingerprint] | None = None
        self._exact = True  # whether the last search compared every reference
        self.totals = Totals()
        self._singles = Flow()  # of images that are classified one at a time
        self.totals.add(self._singles)
        self._keepers: dict[Keep, StreamKeeper | None] = {}

    def encoders_to_read(self) -> EncoderSet:
        """Returns the encoders. The first call checks them against the store.

        Later, the search checks them when categories change.
        """
        if self._fingerprints is None:
            if not self._store.encoders():
                raise self._empty_store()
            self._store.check_fingerprints(self._embedder.encoders.fingerprints)
            self._fingerprints = self._embedder.encoders.fingerprints
        return self._embedder.encoders

    def _empty_store(self) -> StoreError:
        return StoreError(f"{self._store.location} has no category yet: add one with `zsvec add` or `zsvec import`")

    def classify(self, image: ImageInput, top_k: int, errors: Errors, keep: Keep | None) -> Prediction:
        """As `zsvec.classifier.Classifier.classify` with one image; threads share the encoders' batches."""
        check_answers(top_k, errors)
        chosen = checked_keep("none" if keep is None else keep)
        flow = self._singles
        if chosen not in self._keepers:
            self._keepers[chosen] = self._keeper.of_stream(chosen, flow)
        keeper = self._keepers[chosen]
        encoders = self.encoders_to_read()
        small = keeper is not None and self._store.keeps_images()
        with flow.at_work():
            with encoders.shared.coming():
                prepared = self._embedder.prepare(image, flow, small=small)
            if prepared.error is not None:
                return next(self._answers([prepared], {}, top_k, errors, flow))
            max_wait = self._settings.max_wait_ms / 1000
            with encoders.shared.turn(prepared, (top_k, chosen), max_wait=max_wait) as turn:
                if turn.items:
                    with flow.encoding(len(turn.items)):
                        first = self._first(keeper)
                        vectors = encoders.encode_images([image.inputs for image in turn.items], first)
                    answers = self._answers(turn.items, vectors, top_k, errors, flow, keeper, related=False)
                    turn.results = list(answers)
        prediction: Prediction = turn.result
        return prediction

    def stream(
        self,
        images: Iterable[ImageInput],
        flow: Flow,
        batch_size: int | None,
        max_wait_ms: float | None,
        top_k: int,
        errors: Errors,
        keep: Keep | None,
        seen: list[Batch] | None = None,
    ) -> Generator[Prediction, None, None]:
        """As `zsvec.classifier.Classifier.classify_stream`; refuses invalid arguments at once.

        With `seen`, images do not influence each other's predictions, and the batches are added to the list.
        """
        keeper = self._keeper.of_stream(keep, flow)
        size = checked_batch_size(self._settings.batch_size if batch_size is None else batch_size)
        check_answers(top_k, errors)
        max_wait = checked_wait(max_wait_ms)
        checked = checked_images(images)

        def answers() -> Generator[Prediction, None, None]:
            self.encoders_to_read()
            small = keeper is not None and self._store.keeps_images()
            names = partial(self._first, keeper, seen)
            batches = self._embedder.batches(checked, size, flow, max_wait=max_wait, small=small, names=names)
            self.totals.add(flow)
            with closing(batches), flow:
                for batch, vectors in batches:
                    yield from self._answers(
                        batch, vectors, top_k, errors, flow, keeper, related=seen is None, seen=seen
                    )

        return answers()

    def together(
        self, images: Iterable[ImageInput], batch_size: int | None, top_k: int, errors: Errors, keep: Keep | None
    ) -> list[Prediction]:
        """As `zsvec.classifier.Classifier.classify_together`."""
        flow, seen = Flow(), list[Batch]()
        with Stream(self.stream(images, flow, batch_size, None, top_k, errors, keep, seen), flow) as stream:
            answers = list(stream)
        readable = [answer for answer in answers if answer.error is None]
        joint = iter(together(readable, seen, top_k) if readable else [])
        return [answer if answer.error is not None else next(joint) for answer in answers]

    def regions(self, image: ImageInput, boxes: object, margin: float) -> list[Region]:
        """Returns the regions of one image, which is decoded once for all of them, in a stream."""
        regions = regions_of(image, boxes, margin)
        whole: Any = shared(image, **self._settings.image_limits())
        return [with_changes(region, image=whole) for region in regions]

    def _answers(
        self,
        batch: Sequence[PreparedImage],
        vectors: Vectors,
        top_k: int,
        errors: Errors,
        flow: Flow,
        keeper: StreamKeeper | None = None,
        *,
        related: bool = True,
        seen: list[Batch] | None = None,
    ) -> Iterator[Prediction]:
        """Yields the predictions of a batch, in order. `vectors` has rows for the readable images only.

        In a cascade, `vectors` are those of the first encoder.
        """
        readable = [image for image in batch if image.error is None]
        sources = [image.source for image in readable]
        answered: list[Prediction] = []
        if sources:
            found: Mapping[int, Prediction] = {}
            rest = list(range(len(readable)))
            if len(vectors) < len(self._embedder.encoders):
                found = self._settle(sources, vectors, top_k, flow)
                rest = [i for i in rest if i not in found]
                vectors = self._encode_rest([readable[i].inputs for i in rest], rest, vectors, flow)
            others: list[Prediction] = []
            if rest:
                some = [sources[i] for i in rest]
                others, ranks = self._predict(some, vectors, top_k, flow, related=related, seen=seen, words=True)
                flow.rank(ranks)
                self._embedder.recent.add([readable[i] for i in rest], vectors)
            by_image = {**found, **dict(zip(rest, others, strict=True))}
            answered = [with_changes(by_image[i], hash=image.hash) for i, image in enumerate(readable)]
        if keeper is not None:
            keeper.offer(readable, vectors, answered)
        flow.count(len(batch), len(batch) - len(sources), sum(answer.stale_seconds > 0 for answer in answered))
        flow.no_cascade = self._no_cascade(keeper, seen)
        answers = iter(answered)
        for image in batch:
            if image.error is None:
                yield next(answers)
            elif errors == "raise":
                raise image.error
            else:
                yield Prediction(source=image.source, error=str(image.error))

    def _first(self, keeper: StreamKeeper | None, seen: list[Batch] | None = None) -> list[str] | None:
        """Returns the encoder that embeds the images of the next batch first; ``None`` if all encoders do."""
        if self._settings.cascade == "off" or self._no_cascade(keeper, seen):
            return None
        first = self._embedder.encoders.first(self._settled())
        return None if first is None else [first]

    def _no_cascade(self, keeper: StreamKeeper | None, seen: list[Batch] | None) -> str:
        """Returns why all encoders embed the next batch; empty if one is the first, or with ``cascade="off"``.

        Calibration learns from decisions that the settings of unknown images would change.
        """
        if self._settings.cascade == "off":
            return ""
        if keeper is not None:
            return "images to keep need the vectors of all encoders"
        if seen is not None:
            return "images that are classified together need the vectors of all encoders"
        calibration, encoders = self._searcher.calibration, self._embedder.encoders
        state = "none" if calibration is None else "stale" if self._searcher.stale else "current"
        obstacle = self._settings.no_cascade(
            calibration.cascade if calibration else {},
            state,
            exact=self._exact,
            several=calibration is not None and calibration.multilabel,
            one_model=encoders.one_model,
        )
        return obstacle or encoders.no_first(self._settled())

    def _settled(self) -> dict[str, float]:
        """Returns by encoder the fraction of images that it settles alone, by the calibration of the last batch."""
        calibration = self._searcher.calibration  # once, since another thread may drop it
        return fractions(calibration.cascade if calibration else {}, self._settings.fusion, exact=self._exact)

    def _settle(self, sources: Sequence[str], vectors: Vectors, top_k: int, flow: Flow) -> dict[int, Prediction]:
        """Returns the predictions of the images that one encoder settles alone, by position."""
        (encoder,) = vectors
        with flow.stage("search"):
            found = self._compared(vectors)
        rule = found.calibration.cascade.get(encoder) if found.calibration and not found.stale else None
        if rule is None or {expert.name for expert in found.experts} != rule.calibration.experts.keys():
            return {}
        if any(len(expert.coverage) < len(found.categories) for expert in found.experts):  # another encoder knows more
            return {}
        with flow.stage("fuse"):
            found = with_changes(found, calibration=rule.calibration)
            parts = self._scoring.predict_in_parts(found, sources, top_k)
            answers = [answer for _, some in parts for answer in some]
            ranks = np.concatenate([scores.rank for scores, _ in parts])
            chosen = np.flatnonzero(np.concatenate([settled(scores, rule) for scores, _ in parts]))
        flow.rank(ranks[chosen].tolist())
        flow.settle(encoder, len(chosen))
        return {i: answers[i] for i in chosen.tolist()}

    def _encode_rest(self, inputs: Sequence[Any], rest: Sequence[int], vectors: Vectors, flow: Flow) -> Vectors:
        """Returns the vectors of the images at the positions `rest` by all encoders; `vectors` are those of one."""
        encoders = self._embedder.encoders
        missing = [encoder.name for encoder in encoders if encoder.name not in vectors]
        with flow.stage("encode"):
            others = encoders.encode_images(inputs, missing) if inputs else {}
        return others | {name: rows[list(rest)] for name, rows in vectors.items()}

    def predict_embedded(self, vectors: Mapping[str, ArrayLike], top_k: int) -> list[Prediction]:
        """As `zsvec.classifier.Classifier.classify_vectors`."""
        checked_count("top_k", top_k)
        fingerprints = self._store.encoders()
        if not fingerprints:
            raise self._empty_store()
        queries = checked_queries(vectors, fingerprints)
        sources = [f"vector {i}" for i in range(len(next(iter(queries.values()))))]
        return self._predict(sources, queries, top_k, Flow())[0] if sources else []

    def predict_each(self, sources: Sequence[str], vectors: Vectors, top_k: int) -> list[Prediction]:
        """Returns the predictions of embedded images, each independent of the other images."""
        return self._predict(sources, vectors, top_k, Flow(), related=False)[0]

    def scores(self, vectors: Vectors) -> tuple[Sequence[str], Scores]:
        """As `zsvec.classifier.facade.scores_of`."""
        found = self._searched(vectors)
        return found.categories, self._scoring.scores(found)

    def nearest_images(self, vectors: Vectors, number: int) -> list[Neighbor]:
        """Returns the reference images nearest to one embedded image, so many of each encoder."""
        found = self._searcher.search(vectors, number, self._index(), self._fingerprints)
        return [one for expert in found.experts if expert.modality == "image" for one in expert.nearest[0]]

    def _predict(
        self,
        sources: Sequence[str],
        vectors: Vectors,
        top_k: int,
        flow: Flow,
        *,
        related: bool = True,
        seen: list[Batch] | None = None,
        words: bool = False,
    ) -> tuple[list[Prediction], list[float]]:
        """Returns the predictions of embedded images, and the rank of each image for `Flow.rank`.

        With `related`, images of a batch may influence each other's predictions. The batch is added to `seen`. With
        `words`, images of a store with few references are compared with everyday words; the encoders must be loaded.
        """
        with flow.stage("search"):
            found = self._searched(vectors)
            if words and self._scoring.compares_words(found):
                found = with_changes(found, words=self._everyday())
        with flow.stage("fuse"):
            parts = self._scoring.predict_in_parts(found, sources, top_k, related=related)
            if seen is not None:
                seen.append(Batch.of(found, [scores for scores, _ in parts]))
            ranks = [rank for scores, _ in parts for rank in scores.rank.tolist()]
            return [answer for _, answers in parts for answer in answers], ranks

    def _searched(self, vectors: Vectors) -> SearchResult:
        """Returns the result of a search with the experts in use; raises StoreError if no category can be compared."""
        found = self._compared(vectors)
        if not found.experts and found.categories:
            encoders = ", ".join(vectors)
            raise StoreError(
                f"no category of {self._store.location} has references that {encoders} can compare: add references, or "
                "give vectors of the other encoders"
            )
        if not found.experts and found.incomplete:
            raise StoreError(
                f"no category of {self._store.location} can be read now: {', '.join(found.incomplete)} cannot; see "
                "`zsvec attached` and `zsvec doctor`"
            )
        if not found.experts:
            raise self._empty_store()
        return found

    def _compared(self, vectors: Vectors) -> SearchResult:
        """Returns the result of a search with the experts in use, which may be none."""
        found = self._searcher.search(vectors, _NEIGHBORS, self._index(), self._fingerprints)
        # A modality that is no longer in use may still have references.
        used = tuple(expert for expert in found.experts if expert.name in self._scoring.temperatures)
        found = with_changes(found, experts=used)
        self._exact = found.exact
        return found

    def _everyday(self) -> Vectors:
        """Returns the vectors of `EVERYDAY` by encoder of texts. They are embedded once, for the first such image."""
        with self._lock:
            if self._words is None:
                self._words = {
                    encoder.name: encoder.encode_texts([prompt.replace("{name}", word) for word in EVERYDAY])
                    for encoder in self._embedder.encoders
                    if "text" in encoder.modalities
                    for prompt in [self._prompts.get(encoder.name, "{name}")]
                }
            return self._words

    def _index(self) -> IndexSpec:
        encoders = self._embedder.loaded  # numpy searches until encoders are loaded
        on = encoders.device if encoders and encoders.on_torch else "cpu"  # an index on a GPU needs torch
        device = on if self._settings.index_device == "auto" else self._settings.index_device
        return in_memory(device, self._settings.index_dtype, torch_encodes=bool(encoders and encoders.on_torch))

    def close(self) -> None:
        """Waits until the images to keep are written."""
        self._singles.end()
        self._singles.wait()
