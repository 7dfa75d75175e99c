"""What looks after the references of a store: `clf.references`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import zsvec
from tests.method.material import clusters
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import StoreError
from zsvec.testing import HashEncoder

NAMES = "abcdef"


@pytest.fixture
def clf() -> Iterator[Classifier]:
    """A store of which two images a category are under the next one, known by vectors."""
    encoder = HashEncoder(dim=16)
    vectors = clusters(np.random.default_rng(1), dict.fromkeys(NAMES, 12), signal=3.0)
    with zsvec.open(":memory:", encoders=[encoder]) as classifier:
        of_each = {name: list(vectors[name].values()) for name in NAMES}
        moved = {name: of_each[NAMES[i - 1]][:2] + of_each[name][2:] for i, name in enumerate(NAMES)}
        classifier.add_categories(
            CategoryInput(name=name, texts=[], vectors={f"{encoder.name}:image": rows}) for name, rows in moved.items()
        )
        yield classifier


def test_all_suspects_are_those_of_a_report_that_leaves_all_out(clf: Classifier) -> None:
    told = clf.references.suspects()
    assert clf.references is clf.references
    assert [(s.category, s.instead) for s in sorted(told, key=lambda s: (s.category, s.hash))] == [
        (name, NAMES[i - 1]) for i, name in enumerate(NAMES) for _ in range(2)
    ]
    assert [suspect.probability for suspect in told] == sorted((s.probability for s in told), reverse=True)
    report = clf.calibrate()
    assert report.calibration.images == 72
    assert {(s.category, s.hash) for s in report.suspects} == {(s.category, s.hash) for s in told}


def test_suspects_stay_where_they_are(clf: Classifier) -> None:
    before = clf.categories()
    assert clf.references.suspects()
    clf.calibrate()
    assert clf.categories() == before


def test_suspects_of_a_stale_calibration(clf: Classifier) -> None:
    encoder = next(iter(clf.encoders)).name
    added = clusters(np.random.default_rng(2), {"g": 2}, signal=3.0)["g"]
    calibrated = clf.store.calibration()
    clf.add_category("g", texts=[], vectors={f"{encoder}:image": list(added.values())})
    assert calibrated is not None
    clf.store.keep_calibration(calibrated)
    told = clf.references.suspects()
    assert {suspect.category for suspect in told} >= set(NAMES)


def test_without_a_calibration_nobody_knows_how_often_a_label_is_wrong() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()], calibration="off") as clf:
        clf.add_category("a", texts=["a"])
        with pytest.raises(StoreError, match=r"no calibration .* calibrate it with `zsvec calibrate`"):
            clf.references.suspects()
