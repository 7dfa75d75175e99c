"""Drift of the images of a stream: the measure, the statistics, the warning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import reduce
from operator import add

import numpy as np
import pytest

import zsvec
from tests.support import COLOURS, coloured, coloured_store, isolated, photo  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.streams.drift import FAR, FEWEST, PARTS, WINDOW, Drift
from zsvec.streams.flow import Flow, StreamStats
from zsvec.testing import HashEncoder

EVEN = [k / PARTS for k in range(PARTS)]


def drift(*ranks: float) -> float | None:
    found = Drift()
    found.add(ranks)
    return found.value


# ---- by hand


def test_ranks_that_are_equally_frequent_are_no_drift() -> None:
    assert drift(*EVEN * 8) == pytest.approx(0, abs=1e-12)


def test_drift_is_the_excess_of_low_ranks() -> None:
    assert drift(*[0.0] * 100) == pytest.approx(0.95)
    assert drift(*[0.5] * 100) == pytest.approx(0.45)  # all below 0.55
    assert drift(*[0.0] * 50, *EVEN * 10) == pytest.approx(0.2 * 0.95)  # a fifth is like nothing
    assert drift(*[0.95] * 100) == 0  # more like the references than they are like each other


def test_few_images_say_nothing_and_those_without_a_rank_do_not_count() -> None:
    assert drift() is None
    assert drift(*[0.0] * (FEWEST - 1), *[np.nan] * 500) is None
    assert drift(*[0.0] * FEWEST, *[np.nan] * 500) == pytest.approx(0.95)


def test_only_the_last_images_count() -> None:
    found = Drift()
    found.add([0.0] * 1000)
    found.add(np.resize(EVEN, WINDOW // 2))
    assert found.value == pytest.approx(0.5 * 0.95, abs=0.05)
    found.add(np.resize(EVEN, WINDOW // 2))
    assert found.value == pytest.approx(0, abs=0.05)


def test_a_whole_window_is_far_away_once() -> None:
    found = Drift()
    assert found.add([0.0] * (WINDOW - 1)) is None
    assert found.add([0.0]) == pytest.approx(0.95)
    assert found.add([0.0] * WINDOW) is None
    near = Drift()
    assert near.add(np.resize([0.0] * 6 + EVEN, 4 * WINDOW)) is None  # 6 of 26 like nothing
    assert near.value is not None
    assert 0.2 < near.value < FAR


# ---- streams


def test_the_drift_of_several_streams_is_the_largest() -> None:
    values = [None, 0.1, None, 0.4, 0.2]
    stats = [StreamStats(images=1, drift=value) for value in values]
    assert reduce(add, stats).drift == reduce(add, reversed(stats)).drift == 0.4
    assert (StreamStats() + StreamStats(drift=0.0)).drift == 0.0
    assert (StreamStats() + StreamStats()).drift is None


def test_a_stream_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    flow = Flow()
    for _ in range(3 * WINDOW):
        flow.rank([0.0])
    assert flow.stats().drift == pytest.approx(0.95)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("zsvec.streams.flow", logging.WARNING)
    assert f"the last {WINDOW} images are less like the references" in record.getMessage()
    assert "(drift 0.95): add references" in record.getMessage()
    assert "clf.calibrate(labelled=" in record.getMessage()


def test_a_handler_of_the_warning_may_read_the_statistics() -> None:
    flow, seen = Flow(), list[StreamStats]()

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(flow.stats())

    handler = Asking()
    logging.getLogger("zsvec.streams.flow").addHandler(handler)
    try:
        flow.rank([0.0] * WINDOW)
    finally:
        logging.getLogger("zsvec.streams.flow").removeHandler(handler)
    assert [stats.drift for stats in seen] == [pytest.approx(0.95)]


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with coloured_store(30) as classifier:
        yield classifier


def test_images_like_the_references_do_not_drift(clf: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    images = [coloured(COLOURS[i % 3], 5000 + i) for i in range(2 * WINDOW)]
    with clf.classify_stream(images) as stream:
        assert stream.stats.drift is None
        list(stream)
    assert stream.stats.drift is not None
    assert 0 <= stream.stats.drift < 0.2
    assert clf.stats.drift == stream.stats.drift
    assert caplog.records == []


def test_images_unlike_the_references_drift(clf: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    with clf.classify_stream([photo(seed) for seed in range(2 * WINDOW)]) as stream:
        list(stream)
    assert stream.stats.drift is not None
    assert stream.stats.drift > FAR
    assert clf.stats.drift == stream.stats.drift
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_no_drift_without_a_calibration_of_novelty() -> None:
    for calibration in ("off", None):
        with zsvec.open(":memory:", encoders=[HashEncoder()], calibration=calibration) as clf:  # type: ignore[arg-type]
            for colour in COLOURS:
                clf.add_category(colour, images=[coloured(colour, seed) for seed in range(4)])
            with clf.classify_stream([photo(seed) for seed in range(100)]) as stream:
                list(stream)
            assert stream.stats.drift is None
