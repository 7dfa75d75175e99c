"""`Classifier.classify_regions`: the boxes of a detector, as answers and as detections."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import zsvec
from tests.store.support import Hooked
from tests.support import COLOURS, classifier_over, coloured, coloured_store, encode, isolated, photo, two_encoders
from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, InvalidInputError
from zsvec.inputs import images as module
from zsvec.inputs.decoding import decode
from zsvec.inputs.memory import ACCOUNT
from zsvec.store import Store
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.catalog.schema import reference_from
from zsvec.types import Prediction

__all__ = ["isolated"]

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[3] / "shared" / "data") / "caltech24"
SUBJECTS = ("airplanes", "bonsai", "dalmatian", "sunflower")


@pytest.fixture
def clf() -> Iterator[zsvec.Classifier]:
    with coloured_store(8) as opened:
        yield opened


def scene() -> Image.Image:
    """A blue, a green and a red picture side by side, and noise that is unlike them."""
    whole = Image.new("RGB", (32, 6))
    for i, colour in enumerate(COLOURS):
        whole.paste(coloured(colour, 100), (8 * i, 0))
    whole.paste(photo(9), (24, 0))
    return whole


BOXES = [(0, 0, 8, 6), (8, 0, 16, 6), (16, 0, 24, 6), (24, 0, 32, 6)]


FORMS = pytest.mark.parametrize(
    "of",
    [
        lambda image, folder: image,
        lambda image, folder: np.asarray(image),
        lambda image, folder: encode(image),
        lambda image, folder: bytearray(encode(image, "BMP")),
        lambda image, folder: io.BytesIO(encode(image)),
        lambda image, folder: Image.open(io.BytesIO(encode(image))),
        lambda image, folder: saved(image, folder),
    ],
)


@FORMS
def test_an_image_is_decoded_once_for_all_boxes(
    clf: zsvec.Classifier, of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [clf.classify(scene().crop(box)) for box in BOXES]
    decoded: list[object] = []

    def counted(*given: Any) -> Image.Image:
        decoded.append(given)
        return decode(*given)

    monkeypatch.setattr(module, "decode", counted)
    found = clf.classify_regions(of(scene(), tmp_path), BOXES * 50)
    assert len(decoded) == 1
    assert [one.label for one in found[:3]] == list(COLOURS)
    assert [one.hash for one in found] == [one.hash for one in expected] * 50
    for one, other in zip(found, expected * 50, strict=True):
        assert (one.label, one.unknown) == (other.label, other.unknown)
        assert (one.probability, one.novelty) == pytest.approx((other.probability, other.novelty), abs=1e-5)
        assert one.source.endswith(f"#{other_fragment(found.index(one))}")
    assert ACCOUNT.taken == 0


def saved(image: Image.Image, folder: Path) -> Path:
    (folder / "scene.png").write_bytes(encode(image))
    return folder / "scene.png"


def other_fragment(number: int) -> str:
    left, top, right, bottom = BOXES[number % 4]
    return f"xywh={left},{top},{right - left},{bottom - top}"


def test_unusable_boxes_are_reported_and_the_rest_is_answered(clf: zsvec.Classifier) -> None:
    bad = [(40, 0, 50, 6), (3, 3, 3, 3), (8, 0, 0, 6), (np.nan, 0, 8, 6), (0, 0, np.inf, 6), (0, 0, 1e300, 6)]
    found = clf.classify_regions(scene(), [*bad, *BOXES])
    assert [one.error is None for one in found] == [False] * 6 + [True] * 4
    assert [one.label for one in found[6:9]] == list(COLOURS)
    with pytest.raises(ImageError, match="empty"):
        clf.classify_regions(scene(), bad[1:2], errors="raise")
    found = clf.classify_regions("missing.png", BOXES)
    assert all("No such file" in str(one.error) for one in found)


def test_arguments(clf: zsvec.Classifier) -> None:
    assert clf.classify_regions("missing.png", []) == []
    (found,) = clf.classify_regions(scene(), BOXES[:1], top_k=2, margin=0.5)
    assert len(found.ranking) == 2
    assert found.hash == clf.classify(scene().crop((0, 0, 12, 6))).hash
    wrong: list[dict[str, Any]] = [{"margin": -1}, {"margin": "1"}, {"top_k": 0}, {"errors": "return"}, {"keep": "x"}]
    for options in wrong:
        with pytest.raises(InvalidInputError):
            clf.classify_regions(scene(), BOXES, **options)
    for boxes in (None, [1, 2, 3, 4], np.zeros((10**6, 4))):
        with pytest.raises(InvalidInputError):
            clf.classify_regions(scene(), boxes)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="one image"):
        clf.classify_regions([scene()], BOXES)  # type: ignore[call-overload]


@pytest.mark.usefixtures("patient")
def test_in_an_event_loop(clf: zsvec.Classifier) -> None:
    async def found() -> list[Prediction]:
        return await clf.aclassify_regions(scene(), np.array(BOXES))

    assert asyncio.run(found()) == clf.classify_regions(scene(), BOXES)


def test_regions_are_kept_corrected_and_referenced(clf: zsvec.Classifier, tmp_path: Path) -> None:
    (found,) = clf.classify_regions(saved(scene(), tmp_path), BOXES[3:])
    assert found.unknown
    category = clf.correct(zsvec.Region(tmp_path / "scene.png", BOXES[3]), "noise")
    assert category.images == 1
    (found,) = clf.classify_regions(saved(scene(), tmp_path), BOXES[3:])
    assert (found.label, found.distance) == ("noise", pytest.approx(0, abs=1e-6))


# ---- detections


class Detections(SimpleNamespace):
    """As of supervision: another library may have no more than this."""


def detections(**changed: Any) -> Any:
    names = np.array(["bird", "dog", "dog", "cat"])
    of = {"xyxy": np.array(BOXES, np.float32), "confidence": np.full(4, 0.25, np.float32), "class_id": np.arange(4)}
    return Detections(
        **{**of, "data": {"class_name": names, "size": [1, 2, 3, 4]}, "tracker_id": np.arange(4), **changed}
    )


def test_a_copy_of_detections_has_the_answers(clf: zsvec.Classifier) -> None:
    given = detections()
    found = clf.classify_regions(scene(), given)
    assert type(found) is Detections
    assert given.data.keys() == {"class_name", "size"}
    assert given.data["class_name"].tolist() == ["bird", "dog", "dog", "cat"]
    assert found.data["class_name"].tolist() == [*COLOURS, "cat"]
    assert found.data["detector_class_name"].tolist() == ["bird", "dog", "dog", "cat"]
    assert found.data["size"] == [1, 2, 3, 4]
    assert (found.class_id is given.class_id, found.tracker_id is given.tracker_id) == (True, True)
    predictions = found.data["zsvec"]
    assert [one.label for one in predictions] == [*COLOURS, None]
    assert found.confidence.tolist() == pytest.approx([*(one.probability for one in predictions[:3]), 0.25])
    again = clf.classify_regions(scene(), found)
    assert again.data["detector_class_name"].tolist() == ["bird", "dog", "dog", "cat"]
    assert again.data["class_name"].tolist() == [*COLOURS, "cat"]


def test_detections_without_names_or_confidence(clf: zsvec.Classifier) -> None:
    found = clf.classify_regions(scene(), detections(data={}))
    assert found.data["class_name"].tolist() == [*COLOURS, "3"]
    found = clf.classify_regions(scene(), detections(data={}, class_id=None, confidence=None))
    assert found.data["class_name"].tolist() == [*COLOURS, "unknown"]
    assert np.isnan(found.confidence).tolist() == [False] * 3 + [True]
    none: Any = {"xyxy": np.empty((0, 4)), "class_id": np.empty(0), "confidence": np.empty(0), "data": {}}
    found = clf.classify_regions(scene(), detections(**none))
    assert {len(values) for values in found.data.values()} == {0}


@pytest.mark.filterwarnings("ignore:OpenCV")  # supervision draws without it, too
def test_annotators_of_supervision_draw_the_answers(clf: zsvec.Classifier) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    given = sv.Detections(**{name: value for name, value in vars(detections()).items() if name != "size"})
    found = clf.classify_regions(scene(), given)
    assert isinstance(found, sv.Detections)
    canvas = np.zeros((200, 400, 3), np.uint8)
    large = sv.Detections(
        xyxy=found.xyxy * 10 + 20, confidence=found.confidence, class_id=found.class_id, data=found.data
    )
    named = sv.LabelAnnotator().annotate(canvas.copy(), large, labels=[*COLOURS, "cat"])
    assert np.array_equal(sv.LabelAnnotator().annotate(canvas.copy(), large), named)
    assert not np.array_equal(sv.LabelAnnotator().annotate(canvas.copy(), large, labels=["dog"] * 4), named)
    assert sv.BoxAnnotator().annotate(canvas.copy(), large).any()
    red = found[found.data["class_name"] == "red"]
    assert red.xyxy.tolist() == [[16, 0, 24, 6]]
    assert red.data["zsvec"][0].label == "red"
    assert len(sv.Detections.merge([found, found]).data["zsvec"]) == 8


# ---- with real encoders and photographs


@pytest.fixture(scope="module")
def real(load_once: Callable[..., EncoderSet]) -> Iterator[zsvec.Classifier]:
    if not DATA.is_dir():
        pytest.skip(f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zsvec.encoders.load_encoders", load_once)
        with zsvec.open(":memory:", profile="offline") as opened:
            for subject in SUBJECTS:
                opened.add_category(subject, images=sorted((DATA / "references" / subject).iterdir())[:6])
            yield opened


def test_photographs_in_a_photograph(real: zsvec.Classifier, tmp_path: Path) -> None:
    whole, boxes, subjects = Image.new("RGB", (1600, 1200), "grey"), [], []
    for number, subject in enumerate(SUBJECTS):
        part = Image.open(sorted((DATA / "photos" / subject).iterdir())[0]).convert("RGB")
        left, top = 800 * (number % 2) + 40, 600 * (number // 2) + 30
        whole.paste(part, (left, top))
        boxes.append((left, top, left + part.width, top + part.height))
        subjects.append(subject)
    whole.save(tmp_path / "whole.png")
    found = real.classify_regions(tmp_path / "whole.png", boxes)
    assert [one.label for one in found] == subjects
    assert [one.error for one in real.classify_regions(tmp_path / "whole.png", boxes, margin=0.1)] == [None] * 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.integers(0, 9),
    left=st.floats(0, 0.9),
    top=st.floats(0, 0.9),
    width=st.floats(0.05, 1.2),
    height=st.floats(0.05, 1.2),
    margin=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_a_region_is_answered_as_its_crop_saved_without_loss(
    real: zsvec.Classifier, number: int, left: float, top: float, width: float, height: float, margin: float
) -> None:
    path = sorted((DATA / "photos" / SUBJECTS[number % 4]).iterdir())[number]
    whole = Image.open(path).convert("RGB")
    box = (left * whole.width, top * whole.height, (left + width) * whole.width, (top + height) * whole.height)
    region = zsvec.Region(path, box, margin=margin)
    crop = encode(whole.crop(region.pixels(whole.size)))
    (found,) = real.classify_regions(path, [box], margin=margin)
    expected = real.classify(crop)
    assert found.error is None
    assert (found.label, found.nearest) == (expected.label, expected.nearest)
    assert (found.probability, found.novelty) == pytest.approx((expected.probability, expected.novelty), abs=1e-4)
    assert found.hash == zsvec.content_hash(Image.open(io.BytesIO(crop)))


# ---- forgetting a photo with its boxes


def sizes(clf: zsvec.Classifier) -> dict[str, int]:
    return {category.name: category.images for category in clf.categories()}


@FORMS
def test_a_forgotten_photo_is_forgotten_with_its_boxes(
    clf: zsvec.Classifier, of: Callable[..., Any], tmp_path: Path
) -> None:
    before, whole = sizes(clf), of(scene(), tmp_path)
    blue, green, red, noise = (zsvec.Region(whole, box) for box in BOXES)
    digest = zsvec.content_hash(whole)
    clf.add_category(
        "blue", images=[blue, zsvec.Region(zsvec.Region(whole, (4, 0, 20, 6)), (0, 0, 4, 6)), coloured("blue", 500)]
    )
    clf.correct(red, "red")
    clf.correct(green, "red")
    assert clf.keep(noise) is not None
    clf.classify_regions(whole, BOXES)
    assert clf._embedder.recent.find([zsvec.content_hash(green)])
    found = clf.references.forget(digest)
    assert (found.categories, found.boxes) == (("blue", "red"), 5)
    assert sizes(clf) == {**before, "blue": before["blue"] + 1}
    assert len(clf.inbox) == 0
    for region in (blue, green, red, noise):
        assert clf.image(zsvec.content_hash(region)) is None
        assert not clf._embedder.recent.find([zsvec.content_hash(region)])
    assert clf.references.forget(digest).points == 0


def test_a_photo_is_forgotten_with_its_boxes_if_both_are_references(clf: zsvec.Classifier, tmp_path: Path) -> None:
    before, whole = sizes(clf), saved(scene(), tmp_path)
    region = zsvec.Region(whole, BOXES[0])
    clf.add_category("new", images=[whole, region])
    assert clf.references.forget(zsvec.content_hash(region)).boxes == 0  # the photo stays
    assert sizes(clf) == {**before, "new": 1}
    clf.add_category("new", images=[region])
    forgotten = clf.references.forget(zsvec.content_hash(whole))
    assert (forgotten.categories, forgotten.boxes) == (("new",), 1)
    assert sizes(clf) == {**before, "new": 0}  # its text is left


def test_a_box_that_waited_and_was_labelled_is_forgotten_with_its_photo(clf: zsvec.Classifier, tmp_path: Path) -> None:
    before, whole = sizes(clf), saved(scene(), tmp_path)
    digest = clf.keep(zsvec.Region(whole, BOXES[3]))
    assert digest is not None
    clf.inbox.label(digest, "noise")
    assert clf.references.forget(zsvec.content_hash(whole)).categories == ("noise",)
    assert sizes(clf) == before
    with pytest.raises(InvalidInputError):
        clf.history.undo("noise")


def test_a_box_of_a_box_is_forgotten_with_the_photo(clf: zsvec.Classifier, tmp_path: Path) -> None:
    before, whole = sizes(clf), scene()
    clf.add_category("red", images=[zsvec.Region(whole, BOXES[2])])
    clf.add_category("blue", images=[zsvec.Region(whole.crop(BOXES[2]), (0, 0, 4, 6))])
    assert clf.references.forget(zsvec.content_hash(whole)).boxes == 2
    assert sizes(clf) == before


def test_a_box_that_is_kept_during_the_forget_is_forgotten() -> None:
    whole, backend = scene(), Hooked(MemoryBackend())

    def opened(inner: Any) -> zsvec.Classifier:
        return classifier_over(Store(inner, "zsvec"), calibration="off")

    def keeps(*_: object, **__: object) -> None:
        opened(backend.inner).keep(zsvec.Region(whole, BOXES[1]))

    clf = opened(backend)
    clf.add_category("cat", images=[whole, coloured("blue", 1)])
    backend.hooks["drop"] = keeps
    clf.references.forget(zsvec.content_hash(whole))
    assert len(clf.inbox) == 0


@pytest.mark.parametrize("how", ["copy", "archive"])
def test_a_box_in_a_copy_of_a_store_is_forgotten_with_its_photo(tmp_path: Path, how: str) -> None:
    whole = saved(scene(), tmp_path)
    with zsvec.open(tmp_path / "one", encoders=two_encoders()) as clf:
        clf.add_category("cat", images=[zsvec.Region(whole, BOXES[0]), coloured("red", 1)])
        assert clf.keep(zsvec.Region(whole, BOXES[3])) is not None
        if how == "archive":
            clf.archive.export(tmp_path / "one.zsvec")
    if how == "copy":
        zsvec.copy(tmp_path / "one", tmp_path / "other")
    with zsvec.open(tmp_path / "other", encoders=two_encoders()) as clf:
        if how == "archive":
            clf.archive.import_(tmp_path / "one.zsvec")
        assert (sizes(clf), len(clf.inbox)) == ({"cat": 2}, 1)
        assert clf.references.forget(zsvec.content_hash(whole)).boxes == 2
        assert (sizes(clf), len(clf.inbox)) == ({"cat": 1}, 0)


@pytest.mark.parametrize("odd", ["", "short", "Z" * 64, 7, None, ["x"]])
def test_an_odd_origin_of_a_box_is_none(clf: zsvec.Classifier, odd: object) -> None:
    """Any writer of a shared store may have written it."""
    payload = {"modality": "image", "hash": "0" * 64, "source": "x", "cut_from": odd}
    assert reference_from("clip", payload, np.ones(1, np.float32)).cut_from is None
