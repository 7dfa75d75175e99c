"""`Classifier.tracker`: one answer for each track."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zsvec
from tests.support import COLOURS, coloured, coloured_store, isolated, photo
from zsvec.errors import InvalidInputError
from zsvec.types import Prediction

__all__ = ["isolated"]


@pytest.fixture
def clf() -> Iterator[zsvec.Classifier]:
    with coloured_store(8) as opened:
        yield opened


@pytest.fixture
def tracker(clf: zsvec.Classifier) -> zsvec.Tracker:
    return clf.tracker()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.seconds)
    return clock


def frame(first: str = "cat", probability: float = 0.9, novelty: float | None = 0.0, second: str = "dog") -> Prediction:
    ranking = sorted([(first, probability), (second, 1 - probability)], key=lambda pair: -pair[1])
    unknown = novelty is not None and novelty > 0.5
    return Prediction(source="", nearest=ranking[0][0], ranking=tuple(ranking), novelty=novelty, unknown=unknown)


def test_an_answer_is_locked_at_the_error_rate(clf: zsvec.Classifier) -> None:
    for error_rate, probability, locked in ((0.01, 0.991, True), (0.01, 0.989, False), (0.05, 0.951, True)):
        tracker = clf.tracker(error_rate=error_rate)
        assert not tracker.update(1, frame(probability=probability)).locked  # one frame is never enough
        answer = tracker.update(1, frame(probability=probability))
        assert (answer.label, answer.locked) == (("cat", True) if locked else (None, False))
        assert answer.nearest == "cat"
        assert answer.probability == pytest.approx(probability, abs=1e-5)


def test_a_clear_frame_decides_after_unclear_ones(tracker: zsvec.Tracker) -> None:
    answers = [tracker.update(7, frame(probability=p)) for p in (0.6, 0.6, 0.9999, 0.9999)]
    assert [one.locked for one in answers] == [False, False, False, True]
    answer = tracker.update(7, frame(probability=0.9))
    assert (answer.label, answer.frames, answer.decided_after) == ("cat", 5, 4)
    assert tracker.answer(7) == answer


def test_votes_alone_do_not_lock_an_answer(tracker: zsvec.Tracker) -> None:
    assert not any(tracker.update(7, frame(probability=0.9)).locked for _ in range(100))


def test_an_unknown_object_is_not_locked(tracker: zsvec.Tracker) -> None:
    for _ in range(40):
        answer = tracker.update(7, frame(probability=0.999999, novelty=0.9))
        assert (answer.label, answer.unknown, answer.locked) == (None, True, False)
    assert answer.novelty == pytest.approx(0.9)
    assert answer.probability == pytest.approx(0.1, abs=1e-6)
    for _ in range(3):
        answer = tracker.update(7, frame(probability=0.999999, novelty=1e-6))
    assert not answer.unknown  # clear frames count more than blurred ones


def test_blurred_frames_do_not_unlock_an_answer(tracker: zsvec.Tracker) -> None:
    for _ in range(2):
        tracker.update(7, frame(probability=0.9999, novelty=1e-6))
    for _ in range(20):
        answer = tracker.update(7, frame("dog", probability=0.9999, novelty=0.99))
    assert (answer.label, answer.decided_after) == ("cat", 2)


@pytest.mark.parametrize("turned", [frame("dog", 0.9999), frame("dog", 0.9999, novelty=0.999)])
def test_an_answer_is_unlocked_when_the_evidence_turns(tracker: zsvec.Tracker, turned: Prediction) -> None:
    before = [tracker.update(7, frame(probability=0.9999, novelty=0.001)) for _ in range(30)]
    assert [one.label for one in before[1:]] == ["cat"] * 29
    answers = [tracker.update(7, turned) for _ in range(31)]
    assert "cat" in {one.label for one in answers[:5]}
    assert answers[-1].label == (None if turned.unknown else "dog")
    assert answers[-1].unknown == turned.unknown
    if not turned.unknown:
        assert answers[-1].decided_after is not None
        assert answers[-1].decided_after > 30


def test_which_frames_need_a_classification(tracker: zsvec.Tracker) -> None:
    wanted = []
    for _ in range(120):
        wanted.append(tracker.wants(7))
        if wanted[-1]:
            tracker.update(7, frame(probability=0.999))
    assert [i for i, one in enumerate(wanted) if one] == [0, 1, 3, 7, 15, 31, 61, 91]
    tracker.update(7, frame("dog", probability=0.999))
    assert tracker.wants(7)
    for _ in range(40):
        tracker.update(8, frame(probability=0.8))
    assert [tracker.wants(8) for _ in range(3)].count(True) == 0  # another frame hardly helps
    tracker.update(8, frame("dog", probability=0.8))
    assert tracker.wants(8)


def test_unreadable_frames_are_no_evidence(tracker: zsvec.Tracker) -> None:
    before = [tracker.update(7, frame(probability=0.999)) for _ in range(2)][1]
    answer = tracker.update(7, Prediction(source="", error="broken"))
    assert (answer.label, answer.frames, answer.error) == ("cat", before.frames, "broken")
    assert [tracker.wants(7) for _ in range(2)] == [False, True]
    tracker.update(7, Prediction(source="", error="broken"))
    assert tracker.wants(7)
    assert tracker.update(7, frame(probability=0.999)).error is None


def test_categories_beyond_a_ranking_have_at_most_the_rest(tracker: zsvec.Tracker) -> None:
    short = Prediction(source="", nearest="cat", ranking=(("cat", 0.9),))
    answer = tracker.update(7, short)
    assert (answer.probability, answer.novelty) == (pytest.approx(0.9), None)
    answer = tracker.update(7, Prediction(source="", nearest="dog", ranking=(("dog", 0.5),)))
    assert dict(answer.ranking) == pytest.approx({"cat": 0.9**0.5 / total(), "dog": 0.1**0.5 / total()})


def total() -> float:
    """Weights of cat (√(.9 · .5)), dog and any other (√(.1 · .5)), relative to √.5."""
    return float(0.9**0.5 + 2 * 0.1**0.5)


def test_images_of_one_object_have_one_answer_in_any_order(clf: zsvec.Classifier) -> None:
    shorts = [("cat", 0.9), ("dog", 0.5)]
    predictions = [Prediction(source="", nearest=name, ranking=((name, p),)) for name, p in shorts]
    broken = Prediction(source="", error="broken")
    cat = 0.9**0.5 / total()
    for given in ([broken, *predictions], [*reversed(predictions), broken]):
        answer = clf.tracker(error_rate=0.5).combine(given)
        assert dict(answer.ranking) == pytest.approx({"cat": cat, "dog": 0.1**0.5 / total()})
        assert (answer.label, answer.track, answer.frames, answer.decided_after) == ("cat", None, 2, 2)
        assert (answer.probability, answer.novelty, answer.error) == (pytest.approx(cat), None, None)
    assert clf.tracker(error_rate=0.99 * (1 - cat)).combine(predictions).label is None


def test_all_images_of_one_object_count(tracker: zsvec.Tracker) -> None:
    """Of a track, only the last 30 frames count, and only the last one when the answer is unlocked."""
    cats, dogs = [frame("cat", 0.9999)] * 50, [frame("dog", 0.9999, second="cat")] * 31
    for prediction in [*cats, *dogs]:
        followed = tracker.update(7, prediction)
    answer = tracker.combine([*cats, *dogs])
    assert (followed.nearest, answer.nearest, answer.frames) == ("dog", "cat", 81)
    assert answer.probability == pytest.approx(1 / (1 + (0.0001 / 0.9999) ** (19 / 81)), abs=1e-4)
    assert len(tracker) == 1


def test_one_answer_from_one_image_unknown_ones_and_none(tracker: zsvec.Tracker) -> None:
    alone = tracker.combine([frame(probability=0.9999)])
    assert (alone.nearest, alone.label, alone.frames) == ("cat", None, 1)
    unknown = tracker.combine([frame(probability=0.9999, novelty=0.9)] * 2)
    assert (unknown.unknown, unknown.label, unknown.novelty) == (True, None, pytest.approx(0.9))
    assert tracker.combine([]) == zsvec.TrackPrediction(track=None)
    broken = [Prediction(source="", error=error) for error in ("first", "last")]
    assert tracker.combine(broken) == zsvec.TrackPrediction(track=None, error="last")


def test_predictions_from_json(clf: zsvec.Classifier) -> None:
    found = clf.classify(coloured("red", 100), top_k=3)
    values = json.loads(json.dumps(found.to_dict()))
    ranking = tuple((one["label"], one["probability"]) for one in values["ranking"])
    read = Prediction(**{**values, "ranking": ranking, "experts": {}})
    assert clf.tracker().update("a", read) == clf.tracker().update("a", found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranking": ()},
        {"ranking": (("cat", float("nan")),)},
        {"ranking": (("cat", 2.0),)},
        {"ranking": (("cat", "1"),)},
        {"ranking": ((["cat"], 1.0),)},
        {"ranking": ((3, 1.0),)},
        {"ranking": (("cat",),)},
        {"ranking": None},
        {"novelty": float("nan")},
        {"novelty": -1.0},
    ],
)
def test_predictions_that_are_none(tracker: zsvec.Tracker, wrong: dict[str, Any]) -> None:
    prediction = Prediction(**{"source": "", "ranking": (("cat", 1.0),), **wrong})
    with pytest.raises(InvalidInputError):
        tracker.update(7, prediction)
    with pytest.raises(InvalidInputError):
        tracker.combine([frame(), prediction])
    assert len(tracker) == 0


def test_arguments(clf: zsvec.Classifier) -> None:
    wrong: list[dict[str, Any]] = [{"error_rate": 0}, {"error_rate": 0.6}, {"error_rate": "1"}, {"max_tracks": 0}]
    for options in [*wrong, {"max_age": 0}, {"max_age": float("nan")}, {"margin": -1}, {"keep": "x"}]:
        with pytest.raises(InvalidInputError):
            clf.tracker(**options)


def test_the_novelty_setting_decides_which_frames_are_unknown(tracker: zsvec.Tracker) -> None:
    strict = Prediction(source="", nearest="cat", ranking=(("cat", 1.0),), novelty=0.3, unknown=True)
    lax = Prediction(source="", nearest="cat", ranking=(("cat", 1.0),), novelty=0.999)
    for given in (strict, lax):
        for _ in range(7):
            answer = tracker.update(str(given.novelty), given)
        assert (answer.novelty, answer.unknown, answer.label) == (pytest.approx(0.5), False, None)


# ---- bounds


def test_tracks_end_without_frames(clf: zsvec.Classifier, now: SimpleNamespace) -> None:
    tracker = clf.tracker(max_age=10)
    for _ in range(2):
        tracker.update(1, frame(probability=0.999))
    now.seconds = 9
    tracker.wants(1)
    now.seconds = 18
    assert tracker.answer(1).label == "cat"
    now.seconds = 20
    assert (len(tracker), tracker.answer(1).label) == (0, None)
    assert tracker.update(1, frame(probability=0.6)).frames == 1


def test_the_track_that_was_seen_first_ends_beyond_the_maximum(clf: zsvec.Classifier) -> None:
    tracker = clf.tracker(max_tracks=2)
    for track in ("a", "b", "a", "c"):
        tracker.update(track, frame())
    assert [tracker.answer(track).frames for track in ("a", "b", "c")] == [2, 0, 1]
    assert len(tracker) == 2


def test_threads(clf: zsvec.Classifier) -> None:
    tracker = clf.tracker(max_tracks=3)

    def work(track: int) -> None:
        for _ in range(100):
            tracker.wants(track)
            tracker.update(track, frame())

    threads = [threading.Thread(target=work, args=(track,)) for track in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tracker.answer(track).frames for track in range(3)] == [100] * 3


# ---- frames with boxes


BOXES = [(0, 0, 8, 6), (8, 0, 16, 6), (16, 0, 24, 6), (24, 0, 32, 6)]


def scene() -> Image.Image:
    """A blue, a green and a red picture side by side, and noise that is unlike them."""
    whole = Image.new("RGB", (32, 6))
    for i, colour in enumerate(COLOURS):
        whole.paste(coloured(colour, 100), (8 * i, 0))
    whole.paste(photo(9), (24, 0))
    return whole


@pytest.mark.parametrize("ids", [[3, 1, 2, 9], np.array([3, 1, 2, 9]), torch.tensor([3.0, 1.0, 2.0, 9.0])])
def test_a_frame_with_ids(clf: zsvec.Classifier, ids: Any) -> None:
    tracker = clf.tracker(error_rate=0.5)
    first = tracker.classify(scene(), BOXES, ids)
    assert [one.label for one in first] == [None] * 4
    found = tracker.classify(scene(), BOXES, ids)
    assert [(one.track, one.label) for one in found] == [*zip([3, 1, 2], COLOURS, strict=True), (9, None)]
    assert found[3].unknown
    assert asyncio.run(tracker.aclassify(scene(), BOXES, ids))[0].label == COLOURS[0]


def test_an_id_of_numpy_is_that_of_the_number(tracker: zsvec.Tracker) -> None:
    prediction = Prediction(source="", ranking=(("cat", 1.0),))
    for number in (np.int64(7), np.float32(7), 7.0, 7):
        found = tracker.update(number, prediction)  # type: ignore[arg-type]
        assert json.loads(json.dumps(found.to_dict()))["track"] == 7
    assert (len(tracker), tracker.answer(np.int32(7)).frames, found.frames) == (1, 4, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("track", [None, -1, float("nan"), float("inf"), 1.5, True, b"x", [1], {}])
def test_an_id_that_is_none(tracker: zsvec.Tracker, track: Any) -> None:
    prediction = Prediction(source="", ranking=(("cat", 1.0),))
    for call in (
        lambda: tracker.update(track, prediction),
        lambda: tracker.wants(track),
        lambda: tracker.answer(track),
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert len(tracker) == 0


def test_a_frame_is_not_decoded_if_no_track_wants_it(clf: zsvec.Classifier) -> None:
    tracker = clf.tracker(error_rate=0.5)
    before = [tracker.classify(scene(), BOXES[:1], ["a"]) for _ in range(2)][1]
    assert tracker.classify("missing.png", BOXES[:1], ["a"]) == before
    (after,) = tracker.classify("missing.png", BOXES[:1], ["a"])
    assert (before[0].label, after.label, after.frames) == ("blue", "blue", 2)
    assert "No such file" in str(after.error)


def test_a_box_that_is_unusable_or_has_no_track(clf: zsvec.Classifier) -> None:
    tracker = clf.tracker(error_rate=0.5)
    found = [tracker.classify(scene(), [*BOXES[:2], (40, 0, 50, 6)], [1, -1, 2]) for _ in range(2)][1]
    assert [(one.track, one.label, one.error is None) for one in found] == [
        (1, "blue", True),
        (None, None, True),
        (2, None, False),
    ]
    assert tracker.classify(scene(), [], []) == []


def detections(**changed: Any) -> Any:
    of = {"xyxy": np.array(BOXES, np.float32), "confidence": np.full(4, 0.25, np.float32), "class_id": np.arange(4)}
    data = {"class_name": np.array(["bird", "dog", "dog", "cat"])}
    return SimpleNamespace(**{**of, "data": data, "tracker_id": np.array([5, 6, 7, 8]), **changed})


def test_detections_have_the_answers_of_their_tracks(clf: zsvec.Classifier) -> None:
    tracker = clf.tracker(error_rate=0.5)
    given = detections(tracker_id=np.array([5, 6, -1, 8]))
    found = [tracker.classify(scene(), given) for _ in range(2)][1]
    assert found.data["class_name"].tolist() == ["blue", "green", "dog", "cat"]
    assert [one.track for one in found.data["zsvec"]] == [5, 6, None, 8]
    assert found.confidence[2:].tolist() == [0.25, 0.25]
    assert found.confidence[0] == pytest.approx(tracker.answer(5).probability)
    assert given.data["class_name"][0] == "bird"


@pytest.mark.filterwarnings("ignore:OpenCV")  # supervision draws without it, too
def test_detections_of_supervision(clf: zsvec.Classifier) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    given = sv.Detections(**vars(detections()))
    tracker = clf.tracker(error_rate=0.5)
    found = [tracker.classify(scene(), given) for _ in range(2)][1]
    assert isinstance(found, sv.Detections)
    assert found.data["class_name"].tolist() == [*COLOURS, "cat"]
    canvas = np.zeros((60, 320, 3), np.uint8)
    large = sv.Detections(xyxy=found.xyxy * 10, class_id=found.class_id, data=found.data)
    named = sv.LabelAnnotator().annotate(canvas.copy(), large, labels=[*COLOURS, "cat"])
    assert np.array_equal(sv.LabelAnnotator().annotate(canvas.copy(), large), named)


@pytest.mark.parametrize(
    "ids", [None, [1, 2], [1, 1, 2, 3], [1, 2, 3, 1.5], [1, 2, 3, b"x"], [True, 1, 2, 3], 7, np.ones((4, 1)), "abcd "]
)
def test_ids_that_are_none(tracker: zsvec.Tracker, ids: Any) -> None:
    with pytest.raises(InvalidInputError):
        tracker.classify(scene(), BOXES, ids)
    assert len(tracker) == 0
    with pytest.raises(InvalidInputError):
        tracker.classify(scene(), detections(tracker_id=None))
