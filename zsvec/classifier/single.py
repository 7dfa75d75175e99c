"""Images that come one at a time: threads that bring one each share the encoders' batches."""

from __future__ import annotations

import os
from dataclasses import replace as with_changes

from zsvec.classifier.predictor import Predictor
from zsvec.curation.retention import Keeper, StreamKeeper
from zsvec.ingest.embedding import Embedder, Wanted
from zsvec.ingest.validation import Errors, check_answers, checked_keep
from zsvec.inputs.images import ImageInput
from zsvec.store import Store
from zsvec.streams.flow import Flow
from zsvec.types import Keep, Prediction


class SingleImages:
    """Classifies one image in the calling thread.

    Args:
        predictor: From vectors to predictions.
        embedder: Embeds images.
        keeper: Keeps images in the inbox.
        store: Theirs.
        max_wait: Seconds that a batch waits for the images of other threads.
    """

    def __init__(self, predictor: Predictor, embedder: Embedder, keeper: Keeper, store: Store, max_wait: float) -> None:
        self._predictor = predictor
        self._embedder = embedder
        self._keeper = keeper
        self._store = store
        self._max_wait = max_wait
        self._flow = Flow()
        predictor.totals.add(self._flow)
        self._keepers: dict[Keep, StreamKeeper | None] = {}

    def classify(self, image: ImageInput, top_k: int, errors: Errors, keep: Keep | None) -> Prediction:
        """As `zsvec.classifier.Classifier.classify` with one image."""
        check_answers(top_k, errors)
        chosen = checked_keep("none" if keep is None else keep)
        if chosen not in self._keepers:
            self._keepers[chosen] = self._keeper.of_stream(chosen, self._flow)
        keeper = self._keepers[chosen]
        encoders = self._predictor.encoders_to_read()
        wanted = Wanted(
            hash=keeper is not None or isinstance(image, str | os.PathLike),
            small=keeper is not None and self._store.keeps_images(),
        )
        flow = self._flow
        with flow.at_work():
            with encoders.shared.coming():
                prepared = self._embedder.prepare(image, wanted=wanted, flow=flow)
            if prepared.error is not None:
                return next(self._predictor.answers([prepared], {}, top_k, errors, flow))
            with encoders.shared.turn(prepared, (top_k, chosen), max_wait=self._max_wait) as turn:
                if turn.items:
                    with flow.encoding(len(turn.items)):
                        vectors = encoders.encode_images([image.inputs for image in turn.items])
                    answers = self._predictor.answers(turn.items, vectors, top_k, errors, flow, keeper, related=False)
                    turn.results = list(answers)
        prediction: Prediction = turn.result
        return with_changes(prediction, hash=prepared.hash) if prepared.hash else prediction

    def close(self) -> None:
        """Wait until what is to be kept is written."""
        self._flow.end()
        self._flow.wait()
