"""One answer for each track, from the predictions of its frames.

A tracker of objects follows an object through a video, and gives the boxes of the object one id, the track. `Tracker`
combines the evidence of the frames of a track, locks the answer once it is certain, and tells which frames need no
classification.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from numbers import Real
from typing import Any, overload

import numpy as np

from zsvec.errors import InvalidInputError, shown
from zsvec.ingest.validation import checked_count
from zsvec.inputs.boxes import Boxes, Detections, is_detections, track_ids, with_predictions
from zsvec.inputs.images import ImageInput, Region
from zsvec.method.predict.novelty import HALFWAY
from zsvec.method.predict.tracks import combined
from zsvec.types import Prediction, Ranking, TrackId, TrackPrediction

TOP_K = 10
"""Number of categories of a frame that count one by one."""
FEWEST_FRAMES = 2
"""Number of classified frames without which an answer is not locked, because a single frame may mislead."""
_REMEMBERED_FRAMES = 30  # the last frames of a track count, because an id may pass to another object
_LONGEST_GAP = 30  # frames from one classification of a settled track to the next, a second of video


@dataclass(slots=True)
class _Track:
    """A track.

    Attributes:
        answer: The present answer.
        frames: Ranking and novelty of the frames that count, oldest first.
        seen: Time of the last frame, in seconds of `time.monotonic`.
        gap: Number of frames from one classification to the next.
        passed: Number of frames since the last classification.
    """

    answer: TrackPrediction
    seen: float = 0.0
    frames: deque[tuple[Ranking, float | None]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_FRAMES))
    gap: int = 1
    passed: int = 0


class Tracker:
    """Gives each track of a video one answer; `Classifier.tracker` makes it.

    The answer of a track is locked when the probability of a category reaches 1 - `error_rate`, after two frames at the
    earliest. It is unlocked when another category becomes more probable, or the track becomes unknown; then the
    evidence is collected anew. The last 30 classified frames count. A track is never locked as unknown, because a later
    frame may be clear.

    A tracker is thread-safe, but the frames of a track must come in order. Use one tracker for each video or camera,
    because ids are unique within a video only.

    Args:
        regions: Returns the regions of an image, from the image and boxes.
        classify: Returns the predictions of regions, in order.
        error_rate: Fraction of locked answers that may be wrong, above 0, at most 0.5.
        max_tracks: Maximum number of tracks. Beyond this, the track without frames for the longest time ends.
        max_age: Seconds without a frame after which a track ends. A later frame of the same id begins a new track.

    Raises:
        InvalidInputError: An argument is not in its range.
    """

    def __init__(
        self,
        regions: Callable[[ImageInput, object], list[Region]],
        classify: Callable[[Sequence[Region]], list[Prediction]],
        *,
        error_rate: float,
        max_tracks: int,
        max_age: float,
    ) -> None:
        self._regions = regions
        self._classify = classify
        self._error_rate = _checked_number("error_rate", error_rate, 0.5)
        self._max_tracks = checked_count("max_tracks", max_tracks)
        self._max_age = _checked_number("max_age", max_age, math.inf)
        self._tracks: OrderedDict[TrackId, _Track] = OrderedDict()  # the track with the latest frame last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of tracks that have not ended."""
        with self._lock:
            self._end_old(time.monotonic())
            return len(self._tracks)

    def answer(self, track_id: TrackId) -> TrackPrediction:
        """Returns the present answer of a track; one without frames for an unknown id."""
        track_id = _checked_id(track_id)
        with self._lock:
            self._end_old(time.monotonic())
            track = self._tracks.get(track_id)
            return track.answer if track else TrackPrediction(track=track_id)

    def wants(self, track_id: TrackId) -> bool:
        """Counts a frame of a track, and returns whether the frame needs to be classified.

        Every frame needs to be classified until the answer is locked, or until 30 frames did not lock it. Then the gaps
        between classified frames grow to 30 frames, as long as these frames agree with the answer.
        """
        track_id = _checked_id(track_id)
        with self._lock:
            track = self._seen(track_id)
            track.passed += 1
            return track.passed >= track.gap

    def update(self, track_id: TrackId, prediction: Prediction) -> TrackPrediction:
        """Adds the prediction of a frame to a track, and returns the answer of the track.

        Of the prediction, `ranking`, `unknown`, `novelty` and `error` are used. Longer rankings (``top_k=10``) are more
        precise. An unreadable frame is no evidence.

        Raises:
            InvalidInputError: The ranking is no ranking, a probability is not from 0 to 1, or the id is neither a text
                nor an integer from 0 on.
        """
        track_id = _checked_id(track_id)
        if prediction.error is None:
            _check(prediction)
        with self._lock:
            track = self._seen(track_id)
            if prediction.error is None:
                self._add(track, prediction)
            track.answer = with_changes(track.answer, error=prediction.error)
            return track.answer

    def combine(self, predictions: Iterable[Prediction]) -> TrackPrediction:
        """Returns one answer for several images of one object, which belong to no track.

        ```python
        answer = clf.tracker(error_rate=0.05).combine(clf.classify(["front.jpg", "back.jpg"], top_k=10))
        ```

        All images count, in any order. The answer is locked if it is certain enough, and from two images at least.

        Args:
            predictions: Predictions of the images, as for `update`. Unreadable images are no evidence.

        Returns:
            The answer, without the id of a track. `error` is set only if no image is readable.

        Raises:
            InvalidInputError: As `update`.
        """
        frames: list[tuple[Ranking, float | None]] = []
        error = None
        for prediction in predictions:
            if prediction.error is None:
                _check(prediction)
                frames.append(_evidence(prediction))
            else:
                error = prediction.error
        if not frames:
            return TrackPrediction(track=None, error=error)
        answer = _answer(frames, TrackPrediction(track=None, frames=len(frames)))
        return self._locked_if_certain(answer, len(frames))

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, image: ImageInput, boxes: Detections, ids: object = None
    ) -> Detections: ...
    @overload
    def classify(self, image: ImageInput, boxes: Boxes, ids: object = None) -> list[TrackPrediction]: ...
    def classify(self, image: ImageInput, boxes: Any, ids: object = None) -> Any:
        """Classifies those boxes of a frame whose tracks want it, and returns the answers of all tracks of the frame.

        ```python
        detections = tracker.classify(frame, detections)  # detections with tracker_id
        ```

        Args:
            image: The frame, as for `Classifier.classify`. It is decoded only if a track wants it.
            boxes: As for `Classifier.classify_regions`.
            ids: Id of the track of each box, an integer or a text; by default, the ``tracker_id`` of the detections. A
                box with a negative id has no track yet, and is not classified.

        Returns:
            The answer of the track of each box, in order. For detections, a copy as from `Classifier.classify_regions`,
            with the answers as ``data["zsvec"]``. Boxes whose answer is not locked, or is unknown, have the name and
            the confidence of the detector.

        Raises:
            InvalidInputError: A box has no id, two boxes have the same id, or an argument is unusable.
            ZSVecError: As `Classifier.classify`.
        """
        regions = self._regions(image, boxes)
        tracks = track_ids(boxes, ids, len(regions))
        wanted = [i for i, track in enumerate(tracks) if track is not None and self.wants(track)]
        found = dict(zip(wanted, self._classify([regions[i] for i in wanted]), strict=True))
        answers = [self._answer_of(track, found.get(i)) for i, track in enumerate(tracks)]
        return with_predictions(boxes, answers) if is_detections(boxes) else answers

    @overload
    async def aclassify(  # type: ignore[overload-overlap]
        self, image: ImageInput, boxes: Detections, ids: object = None
    ) -> Detections: ...
    @overload
    async def aclassify(self, image: ImageInput, boxes: Boxes, ids: object = None) -> list[TrackPrediction]: ...
    async def aclassify(self, image: ImageInput, boxes: Any, ids: object = None) -> Any:
        """Runs `classify` in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.classify, image, boxes, ids)

    def _add(self, track: _Track, prediction: Prediction) -> None:
        old = with_changes(track.answer, frames=track.answer.frames + 1)
        track.frames.append(_evidence(prediction))
        answer = _answer(track.frames, old)
        if old.locked and (answer.nearest != old.nearest or answer.unknown):
            while len(track.frames) > 1:
                track.frames.popleft()
            answer = with_changes(_answer(track.frames, old), label=None, decided_after=None)
        else:
            answer = self._locked_if_certain(answer, len(track.frames))
        track.answer, track.passed = answer, 0
        agrees = (prediction.ranking[0][0], prediction.unknown) == (answer.nearest, answer.unknown)
        settled = answer.locked or len(track.frames) == _REMEMBERED_FRAMES
        track.gap = min(2 * track.gap, _LONGEST_GAP) if settled and agrees else 1

    def _locked_if_certain(self, answer: TrackPrediction, n_frames: int) -> TrackPrediction:
        if n_frames < FEWEST_FRAMES or (answer.probability or 0.0) < 1 - self._error_rate:
            return answer
        return with_changes(answer, label=answer.nearest, decided_after=answer.decided_after or answer.frames)

    def _answer_of(self, track: TrackId | None, prediction: Prediction | None) -> TrackPrediction:
        if track is None:
            return TrackPrediction(track=None)
        return self.answer(track) if prediction is None else self.update(track, prediction)

    def _seen(self, track_id: TrackId) -> _Track:
        """Returns a track, new if there is none, and ends tracks that are too old or too many."""
        now = time.monotonic()
        self._end_old(now)
        track = self._tracks.setdefault(track_id, _Track(TrackPrediction(track=track_id)))
        track.seen = now
        self._tracks.move_to_end(track_id)
        if len(self._tracks) > self._max_tracks:
            self._tracks.popitem(last=False)
        return track

    def _end_old(self, now: float) -> None:
        while self._tracks and next(iter(self._tracks.values())).seen < now - self._max_age:
            self._tracks.popitem(last=False)


def _answer(frames: Sequence[tuple[Ranking, float | None]], old: TrackPrediction) -> TrackPrediction:
    """Returns the answer of a track with these frames, locked or not as before."""
    names = list(dict.fromkeys(name for ranking, _ in frames for name, _ in ranking))
    column = {name: i for i, name in enumerate(names)}
    probabilities = np.empty((len(frames), len(names) + 1))  # the last column is for a category of no ranking
    for row, (ranking, _) in zip(probabilities, frames, strict=True):
        rest = 1 - sum(probability for _, probability in ranking)
        row[:] = max(0.0, min(rest, ranking[-1][1]))  # the most that a category beyond the ranking may have
        for name, probability in ranking:
            row[column[name]] = probability
    told = any(novelty is not None for _, novelty in frames)
    distribution, novelty = combined(probabilities, np.array([novelty or 0.0 for _, novelty in frames]))
    best = np.argsort(-distribution[:-1], kind="stable")[:TOP_K]
    ranking = tuple((names[i], float(distribution[i])) for i in best)
    return with_changes(
        old,
        nearest=ranking[0][0],
        probability=ranking[0][1],
        novelty=novelty if told else None,
        unknown=round(novelty, 9) > HALFWAY,  # the mean of halves may be rounded up
        ranking=ranking,
    )


def _evidence(prediction: Prediction) -> tuple[Ranking, float | None]:
    """Returns ranking and novelty of a frame, as they count."""
    return prediction.ranking[:TOP_K], _novelty(prediction)


def _novelty(prediction: Prediction) -> float | None:
    """Returns the novelty of a frame; halfway where the setting ``unknown_above`` decides otherwise."""
    novelty = prediction.novelty
    if novelty is None or (novelty > HALFWAY) == prediction.unknown:
        return novelty
    return HALFWAY


def _check(prediction: Prediction) -> None:
    try:
        ranking = dict(prediction.ranking)
    except (TypeError, ValueError):  # a prediction from elsewhere may have anything
        ranking = {}
    numbers = [*ranking.values(), *([] if prediction.novelty is None else [prediction.novelty])]
    sound = all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers)  # false for NaN
    if not ranking or not sound or not all(isinstance(name, str) for name in ranking):
        raise InvalidInputError(
            f"a prediction must have a ranking with probabilities from 0 to 1. Got {shown(prediction.ranking)} and the "
            f"novelty {shown(prediction.novelty)}; give a prediction of this store"
        )


def _checked_id(track_id: object) -> TrackId:
    """Returns the id of a track as an int or str; raises InvalidInputError for any other value, and below 0."""
    (found,) = track_ids((), [track_id], 1)
    if found is None:
        raise InvalidInputError(
            f"the id of a track must be a text or an integer from 0 on. Got {shown(track_id)}; leave out boxes without "
            "a track"
        )
    return found


def _checked_number(name: str, value: object, most: float) -> float:
    number = float(value) if isinstance(value, Real) else math.nan
    if not 0 < number <= most:
        raise InvalidInputError(f"{name} must be a number above 0, at most {most:g}. Got {shown(value)} instead")
    return number
