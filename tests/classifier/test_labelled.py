"""`clf.calibrate(labelled=…)`: confidence learned from labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

import zsvec
from tests.support import COLOURS, coloured, coloured_store, isolated, photo  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.errors import ImageError, InvalidInputError, StoreError
from zsvec.method.calibrate.fit import fit_calibration
from zsvec.method.calibration import Calibration
from zsvec.testing import HashEncoder


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with coloured_store(10) as classifier:
        yield classifier


def kept(clf: Classifier) -> Calibration:
    made = Calibration.from_dict(clf._store.calibration())
    assert made is not None
    return made


def confusing(n: int) -> list[tuple[Image.Image, str]]:
    """Noise under any category."""
    return [(photo(seed), COLOURS[seed % 3]) for seed in range(n)]


def test_evidence_is_scaled_by_labelled_images(clf: Classifier) -> None:
    image = photo(500)
    before = clf.classify(image)
    report = clf.calibrate(labelled=iter(confusing(60)))
    assert report.calibration == kept(clf)
    assert report.calibration.scale < 0.6
    assert report.labelled_before is not None
    assert report.labelled_after is not None
    assert report.labelled_after.cross_entropy < report.labelled_before.cross_entropy
    assert report.labelled_after.ece < report.labelled_before.ece
    assert report.labelled_after.top1 == report.labelled_before.top1
    after = clf.classify(image)
    assert before.probability is not None
    assert after.probability is not None
    assert after.probability < before.probability
    assert (after.nearest, after.unknown) == (before.nearest, before.unknown)
    printed = report.to_dict()
    assert printed["scale"] == report.calibration.scale
    assert printed["labelled_after"]["ece"] == report.labelled_after.ece


def test_confident_right_images_change_little(clf: Classifier) -> None:
    report = clf.calibrate(labelled=[(coloured(colour, 7000 + i), colour) for i, colour in enumerate(COLOURS)])
    assert 0.9 < report.calibration.scale < 1.5


def test_the_scale_stays_until_a_calibration_without_labelled_images(clf: Classifier) -> None:
    scale = clf.calibrate(labelled=confusing(60)).calibration.scale
    plain = kept(clf)
    clf.add_category("grey", images=[coloured("grey", seed) for seed in range(5)])
    assert kept(clf).revision > plain.revision
    assert kept(clf).scale == scale
    report = clf.calibrate()
    assert (report.calibration.scale, kept(clf).scale) == (1.0, 1.0)
    assert (report.labelled_before, report.labelled_after) == (None, None)


def test_suspects_do_not_depend_on_the_scale(clf: Classifier) -> None:
    clf.add_category("red", images=[coloured("blue", 1)])
    before = clf.calibrate().suspects
    assert [(suspect.category, suspect.copied) for suspect in before] == [("red", True)]
    after = clf.calibrate(labelled=confusing(60)).suspects
    assert [suspect.hash for suspect in after] == [suspect.hash for suspect in before]
    assert after[0].probability == pytest.approx(before[0].probability)


def test_unknown_categories_and_unreadable_images_are_named(clf: Classifier) -> None:
    before = clf._store.calibration()
    with pytest.raises(InvalidInputError, match="does not have: 'mauve', 'puce'; add these"):
        clf.calibrate(labelled=[(photo(1), "puce"), ("missing.png", " mauve "), (photo(3), "red")])
    with pytest.raises(ImageError, match=r"missing\.png"):
        clf.calibrate(labelled=[(photo(1), "red"), ("missing.png", "red")])
    assert clf._store.calibration() == before


def test_labelled_images_are_pairs(clf: Classifier) -> None:
    values: list[Any] = [[], "red", 7, [photo(1)], [(photo(1),)], {"red": [photo(1)]}]
    for labelled in values:
        with pytest.raises(InvalidInputError, match="labelled must be pairs of an image and the name of its category"):
            clf.calibrate(labelled=labelled)


def test_an_empty_store_cannot_be_calibrated() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as clf, pytest.raises(StoreError, match="no category yet"):
        clf.calibrate(labelled=[(photo(1), "red")])


def test_a_scale_learned_while_a_write_calibrates_is_kept(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*arguments: Any, **options: Any) -> Any:
        made = fit_calibration(*arguments, **options)
        monkeypatch.undo()
        clf.calibrate(labelled=confusing(60))
        return made

    monkeypatch.setattr("zsvec.ingest.recalibration.fit_calibration", fit)
    clf.add_category("grey", images=[coloured("grey", seed) for seed in range(5)])
    assert kept(clf).scale < 0.6
