"""Setting ``cascade``: a fast encoder classifies what it settles alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import zsvec
from tests.support import isolated
from zsvec.encoders import EncoderSet
from zsvec.encoders.base import BatchEncoder
from zsvec.types import Fingerprint, Modality

__all__ = ["isolated"]

NAMES = ("ant", "bee", "cat")
STRANGER = len(NAMES)


class Planted(BatchEncoder):
    """Sees the category in the first pixel, and errs by as much as the image is blurred, times its own weakness."""

    def __init__(self, name: str, weakness: float, seconds: float) -> None:
        super().__init__(name, Fingerprint(model=name, revision="1", dim=64, preprocessing=""), modalities=("image",))
        self.weakness = weakness
        self.seconds = seconds
        self.seen = 0
        self.backbone = self

    side = None

    def preprocess(self, image: Image.Image) -> Image.Image:
        return image

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        time.sleep(self.seconds * len(inputs))
        self.seen += len(inputs)
        return inputs

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[np.float64]:
        return np.stack([self._vector(np.asarray(image)) for image in batch])

    def _vector(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        category, blur, *seed = pixels[0, 0].tolist()
        noise = np.random.default_rng([*seed, *pixels[0, 1].tolist(), len(self.name)]).normal(size=64)
        return np.eye(64)[category] + (0.6 + self.weakness * blur / 255) * noise / np.sqrt(64)


def image(category: int, seed: int) -> Image.Image:
    """An image of a category; one in four is hard for the fast encoder."""
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 0] = category, 255 if seed % 4 == 0 else 0, seed % 256
    pixels[0, 1, 0] = seed // 256
    return Image.fromarray(pixels)


PHOTOS = [image(category, 1000 + seed) for seed in range(64) for category in range(len(NAMES))]


def store(**settings: Any) -> tuple[zsvec.Classifier, Planted, Planted]:
    fast, slow = Planted("fast", 3.0, 0.0), Planted("slower", 0.3, 0.001)
    clf = zsvec.open(":memory:", encoders=[fast, slow], **settings)
    clf.add_categories(
        zsvec.CategoryInput(name=name, images=[image(category, seed) for seed in range(70)])
        for category, name in enumerate(NAMES)
    )
    clf.classify(PHOTOS[:3])  # measures the encoders
    fast.seen = slow.seen = 0
    return clf, fast, slow


@pytest.fixture
def cascade() -> Iterator[tuple[zsvec.Classifier, Planted, Planted]]:
    opened = store(cascade="auto")
    with opened[0]:
        yield opened


def test_a_stream_runs_the_slow_encoder_for_doubtful_images_only(
    cascade: tuple[zsvec.Classifier, Planted, Planted],
) -> None:
    clf, fast, slow = cascade
    with clf.classify_stream(PHOTOS, batch_size=16) as stream:
        found = list(stream)
        stats = stream.stats
    with store()[0] as whole:
        wanted = whole.classify(PHOTOS)
    settled = [one for one in found if one.experts.keys() == {"fast:image"}]
    assert len(PHOTOS) / 4 < len(settled) < len(PHOTOS)
    assert stats.settled == {"fast": len(settled)} == clf.stats.settled
    assert (fast.seen, slow.seen) == (len(PHOTOS), len(PHOTOS) - len(settled))
    assert [one.source for one in found] == [one.source for one in wanted]
    assert sum(one.label != other.label for one, other in zip(found, wanted, strict=True)) <= 0.02 * len(PHOTOS)
    for one, other in zip(found, wanted, strict=True):
        if one.experts.keys() == other.experts.keys():
            assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)
        assert one.novelty is not None
        assert one.hash == other.hash
    assert clf.info()["cascade"].keys() == {"fast", "slower"}


def test_the_slower_encoder_first_changes_no_more_answers(
    cascade: tuple[zsvec.Classifier, Planted, Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, fast, slow = cascade
    clf.classify(PHOTOS[:3])
    fast.seen = slow.seen = 0
    monkeypatch.setattr(EncoderSet, "first", lambda encoders, settled: "slower")
    found = clf.classify(PHOTOS)
    with store()[0] as whole:
        wanted = whole.classify(PHOTOS)
    settled = [one.experts.keys() == {"slower:image"} for one in found]
    assert (fast.seen, slow.seen) == (len(PHOTOS) - sum(settled), len(PHOTOS))
    assert 0 < sum(settled) < len(PHOTOS)
    assert sum(one.label != other.label for one, other in zip(found, wanted, strict=True)) <= 0.02 * len(PHOTOS)
    for one, other, alone in zip(found, wanted, settled, strict=True):
        if not alone:
            assert dict(one.ranking) == pytest.approx(dict(other.ranking), abs=1e-5)


def test_single_images_are_cascaded_too(cascade: tuple[zsvec.Classifier, Planted, Planted]) -> None:
    clf, _, slow = cascade
    found = [clf.classify(photo) for photo in PHOTOS[:24]]
    assert slow.seen == sum("slower:image" in one.experts for one in found) < 24


def test_images_of_no_category_reach_every_encoder(cascade: tuple[zsvec.Classifier, Planted, Planted]) -> None:
    clf, _, slow = cascade
    strangers = [image(STRANGER, seed) for seed in range(40)]
    assert sum(one.unknown for one in clf.classify(strangers)) > 20
    assert slow.seen >= 38


def test_every_encoder_runs_where_all_vectors_are_needed(cascade: tuple[zsvec.Classifier, Planted, Planted]) -> None:
    clf, _, slow = cascade
    clf.classify_together(PHOTOS[:16])
    assert slow.seen == 16
    clf.classify(PHOTOS[16:32], keep="all")
    assert slow.seen == 32
    settled = next(one for one in clf.classify(PHOTOS[32:]) if "slower:image" not in one.experts)
    before = slow.seen
    clf.add_category("dog", images=[PHOTOS[[one.hash for one in clf.classify(PHOTOS)].index(settled.hash)]])
    assert slow.seen > before
    assert clf.category("dog").references == {"fast:image": 1, "slower:image": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cascade": "auto", "fusion": "inverse_entropy"},
        {"cascade": "auto", "unknown_above": 0.4},
        {"cascade": "auto", "unknown_per_category": True},
        {"cascade": "auto", "calibration": "off"},
        {"cascade": "auto", "labels": "many"},
    ],
)
def test_every_encoder_runs_under_other_settings(settings: dict[str, Any]) -> None:
    clf, _, slow = store(**settings)
    with clf:
        clf.classify(PHOTOS[:16])
        assert slow.seen == 16
        assert clf.stats.settled == {}
        assert bool(clf.stats.no_cascade) == bool(clf.info().get("no_cascade")) == bool(settings)


def test_nothing_is_settled_while_the_calibration_is_stale(
    cascade: tuple[zsvec.Classifier, Planted, Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, _, slow = cascade
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)
    clf.add_category("dog", images=[image(5, seed) for seed in range(3)])
    assert all(one.calibration == "stale" for one in clf.classify(PHOTOS[:16]))
    assert slow.seen == 16 + 3


@pytest.mark.usefixtures("patient")
def test_a_batch_is_searched_once_while_the_calibration_is_stale(
    cascade: tuple[zsvec.Classifier, Planted, Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, fast, slow = cascade
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)
    clf.add_category("dog", images=[image(5, seed) for seed in range(3)])
    with clf.classify_stream(PHOTOS[:48], batch_size=16) as stream:
        list(stream)
        stats = stream.stats
    assert stats.runs["encode"] - stats.batches[16] == 1  # the first batch finds that the calibration is stale
    assert stats.runs["search"] == 3 + 1
    assert "stale" in (stats.no_cascade or "")
    clf.calibrate()
    clf.classify(PHOTOS[:16])  # the search of this batch finds the new calibration
    fast.seen = slow.seen = 0
    clf.classify(PHOTOS)
    assert slow.seen < fast.seen == len(PHOTOS)
    assert clf.stats.no_cascade == ""


def test_a_classifier_tells_why_all_encoders_run(cascade: tuple[zsvec.Classifier, Planted, Planted]) -> None:
    clf, fast, slow = cascade
    assert "no_cascade" not in clf.info()
    clf.classify(PHOTOS[:4], keep="all")
    assert "keep" in (clf.stats.no_cascade or "")
    clf.classify(PHOTOS[:4])
    assert clf.stats.no_cascade == ""
    fast.seconds, slow.seconds = 0.001, 0.0
    with zsvec.open(":memory:", encoders=[fast, slow], cascade="auto") as other:
        other.add_categories(zsvec.CategoryInput(name=name, images=[image(i, i)]) for i, name in enumerate(NAMES))
        other.classify(PHOTOS[:4])
        assert "99 scenes" in other.info()["no_cascade"]
        assert other.stats.no_cascade == other.info()["no_cascade"]


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({"fusion": "log_linear_views"}, "log_linear_views"),
        ({"index": "qdrant", "neighbors": 20}, "log_linear"),  # calibration reads all references, a search does not
        ({"index_budget": 10}, "log_linear_gda"),  # calibration samples, but a search returns all references
        ({"index": "qdrant"}, ""),
        ({"index_budget": 10, "neighbors": 20}, ""),
    ],
)
def test_limits_for_another_fusion_settle_nothing(
    settings: dict[str, Any], runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EncoderSet, "first", lambda encoders, settled: "fast")  # whatever the times are
    fast, slow = Planted("fast", 3.0, 0.0), Planted("slower", 0.3, 0.001)
    calibrates = {name: value for name, value in settings.items() if name != "fusion"}
    with zsvec.open(tmp_path, encoders=[fast, slow], cascade="auto", **calibrates) as clf:
        clf.add_categories(
            zsvec.CategoryInput(name=name, images=[image(category, seed) for seed in range(70)])
            for category, name in enumerate(NAMES)
        )
        clf.calibrate()
    with zsvec.open(tmp_path, encoders=[fast, slow], cascade="auto", **settings) as clf:
        for photo in PHOTOS[:2]:
            clf.classify(photo)
        fast.seen = slow.seen = 0
        clf.classify(PHOTOS[:48])
        found = clf.info().get("no_cascade", "")
        assert found == clf.stats.no_cascade
        assert fast.seen == 48
        assert (slow.seen == 48) == bool(runs)
        assert runs in found if runs else not found


def test_there_is_no_cascade_of_encoders_that_share_a_model() -> None:
    one, other = Planted("one", 3.0, 0.0), Planted("other", 0.3, 0.0)
    other.backbone = one.backbone
    with zsvec.open(":memory:", encoders=[one, other], cascade="auto") as clf:
        clf.add_categories(
            zsvec.CategoryInput(name=name, images=[image(category, seed) for seed in range(70)])
            for category, name in enumerate(NAMES)
        )
        clf.classify(PHOTOS[:3])
        found = clf.info()
        assert "cascade" not in found
        assert "one image model" in found["no_cascade"]
        assert clf.stats.no_cascade == found["no_cascade"]
