"""Values far below the others."""

from __future__ import annotations

import numpy as np

from zsvec.method.quality.neighborhoods import closeness, far_below

# Of these nine the quartiles are the third and the seventh: the fences are at 3 - 1.5 · (7 - 3) = -3 and at -9.
NINE = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_the_fences_by_hand() -> None:
    for least, fence, expected in [(-2.9, 1.5, []), (-3.1, 1.5, [0]), (-8.9, 3.0, []), (-9.1, 3.0, [0])]:
        assert far_below(np.array([least, *NINE[1:]]), fence) == expected


def test_the_lowest_is_first() -> None:
    assert far_below(np.array([*NINE * 3, -20.0, -30.0, -10.0]), 1.5) == [28, 27, 29]


def test_nan_is_ignored() -> None:
    assert far_below(np.array([np.nan, -3.1, *NINE[1:], np.nan], np.float32), 1.5) == [1]


def test_of_few_none_is_far() -> None:
    for values in [[], [np.nan], [0.5], [0.5, 0.5], [0, 1e9], [0, 1e9, 1e9]]:
        assert far_below(np.array(values), 1.5) == []


def test_closeness_by_hand() -> None:
    # Medians: .6 of all, .8 and .3 of the categories. The first category is compared with all, the second with itself.
    nearest = np.array([0.8, 0.9, 0.5, 0.3, 0.6, 0.2, 0.7], np.float32)
    starts = np.array([0, 3, 6, 7])
    np.testing.assert_allclose(closeness(nearest, starts), [0.2, 0.3, -0.1, 0.0, 0.3, -0.1, 0.1], atol=1e-6)


def test_closeness_of_unknown_nearness() -> None:
    nearest = np.array([np.nan, 0.9, 0.5, np.nan], np.float32)
    found = closeness(nearest, np.array([0, 3, 4]))
    np.testing.assert_allclose(found, [np.nan, 0.2, -0.2, np.nan], atol=1e-6)
    assert closeness(np.empty(0, np.float32), np.array([0])).size == 0
