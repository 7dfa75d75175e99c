"""The distribution of a track, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from zsvec.method.predict.tracks import combined

KNOWN = np.zeros(2)


def test_copies_of_a_frame_are_no_more_evidence_than_the_frame() -> None:
    frame = np.array([[0.7, 0.2, 0.1]])
    for number in (1, 2, 30):
        distribution, novelty = combined(frame.repeat(number, axis=0), np.full(number, 0.0))
        assert distribution.tolist() == pytest.approx([0.7, 0.2, 0.1])
        assert novelty == 0


def test_the_evidence_of_the_frames_is_averaged() -> None:
    distribution, _ = combined(np.array([[0.9, 0.1], [0.5, 0.5]]), KNOWN)
    assert distribution.tolist() == pytest.approx([0.75, 0.25])  # √(.9 · .5) : √(.1 · .5) = 3 : 1


def test_a_frame_counts_as_far_as_it_is_not_new() -> None:
    distribution, novelty = combined(np.array([[0.9, 0.1], [0.01, 0.99]]), np.array([0.0, 1.0]))
    assert novelty == pytest.approx(0.001)  # √(10⁻⁶ · 1)
    assert distribution.tolist() == pytest.approx([0.9 * 0.999, 0.1 * 0.999])
    distribution, novelty = combined(np.array([[16 / 17, 1 / 17]]), np.array([0.75]))
    assert novelty == pytest.approx(0.75)
    assert distribution.tolist() == pytest.approx([0.25 * 2 / 3, 0.25 / 3])  # 16^.25 : 1 = 2 : 1
    distribution, novelty = combined(np.array([[1.0, 0.0]]), np.array([1.0]))
    assert (distribution.tolist(), novelty) == ([0.0, 0.0], 1.0)


def test_the_novelty_of_a_track_is_the_geometric_mean() -> None:
    _, novelty = combined(np.full((3, 2), 0.5), np.array([0.9, 0.9, 0.01]))
    assert novelty == pytest.approx((0.9 * 0.9 * 0.01) ** (1 / 3))


def test_no_frame_excludes_a_category_for_good() -> None:
    distribution, _ = combined(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), np.zeros(3))
    assert distribution.tolist() == pytest.approx([0.9900990, 0.0099010], abs=1e-7)  # 10⁶ ** (1 / 3) : 1
