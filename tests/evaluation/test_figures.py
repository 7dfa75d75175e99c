"""Figures are PNGs of a sane size that show their data, from the least to the most."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from zsvec import SearchMeasurement, SearchParams, SearchQuality
from zsvec.evaluation import figures

LONG = "a name of sixty characters, with $dollars$, _ and & <b>, 猫, x"[:60]


def drawn(draw: Callable[..., bytes], *data: Any) -> np.ndarray:
    """Draws, and checks that the picture has a sane size, a white border, and content."""
    with Image.open(io.BytesIO(draw(*data))) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    assert 150 <= width <= 3000
    assert 100 <= height <= 3000
    assert (pixels[0, 0] == 255).all()
    assert pixels.min() < 128
    # Nothing touches the border, so nothing is cut off there.
    for edge in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (edge == 255).all()
    return pixels


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def measured(params: Sequence[tuple[float | None, int | None]]) -> SearchMeasurement:
    rows = []
    for i, (times, ef) in enumerate(params):
        how = SearchParams(oversampling=times, ef=ef)
        rows.append(SearchQuality(params=how, recall=1 - i / 50, same_label=1 - i / 99, ms=9 - i / 9))
    return SearchMeasurement(measured=datetime(2026, 11, 29, tzinfo=UTC), images=512, k=256, rows=tuple(rows))


def test_search_quality() -> None:
    scan = measured([(None, None), (1, None), (2, None), (4, None)])
    graph = measured([(None, None), *((times, ef) for ef in (64, 128, 65_536) for times in (1, 2, 64))])
    pixels = drawn(figures.search_quality, scan)
    assert not same(pixels, drawn(figures.search_quality, graph))
    drawn(figures.search_quality, measured([(None, None)]))
    drawn(figures.search_quality, measured([(None, None), (3, 17)]))


def counts(n: int, right: int = 8) -> np.ndarray:
    """Returns counts with some right images of each category, and one answered as the next."""
    eye = np.eye(n, dtype=np.intp)
    return right * eye + np.roll(eye, 1, axis=1)


def names(n: int) -> list[str]:
    return [f"{i} {LONG}"[:60] for i in range(n)]


def curve(counts: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    return {"counts": counts, "mean": mean, "std": std}


CURVE = curve((1, 2, 4), (0.5, 0.6, 0.7), (0.1, 0.05, 0.0))
NO = np.zeros(0)
P = np.linspace(0.05, 1, 40)
POINTS = np.random.default_rng(0).normal(size=(12, 2))
STARS = np.arange(12) % 2 == 0
ROWS = np.arange(20) < 10
CASES: dict[str, tuple[Callable[..., bytes], tuple[Any, ...]]] = {
    "curves": (figures.accuracy_by_references, ({"fusion": CURVE},)),
    "curves, better": (figures.accuracy_by_references, ({"fusion": curve((1, 2, 4), (0.6, 0.7, 0.8), (0, 0, 0))},)),
    "curves, several": (figures.accuracy_by_references, ({"a": CURVE, "_b": curve((1, 64), (0.1, 1.0), (0.2, 0.2))},)),
    "curves, many": (figures.accuracy_by_references, (dict.fromkeys(names(20), CURVE),)),
    "curves, one count": (figures.accuracy_by_references, ({"a": curve((1,), (1.0,), (0.0,))},)),
    "confusion": (figures.confusion, (counts(3), ["cat", "dog", "fox"])),
    "confusion, better": (figures.confusion, (counts(3, right=9), ["cat", "dog", "fox"])),
    "confusion, 24": (figures.confusion, (counts(24), names(24))),
    "confusion, 1": (figures.confusion, (counts(1), ["cat"])),
    "confusion, 40": (figures.confusion, (counts(40), names(40))),
    "confusion, 200": (figures.confusion, (counts(200), names(200))),
    "confusion, wide": (figures.confusion, (counts(2), ["W" * 60, "x" * 500])),
    "confusion, no images of one": (figures.confusion, (np.diag([3, 0, 2]), ["a", "b", "c"])),
    "reliability": (figures.reliability, (P, P > 0.5)),
    "reliability, worse": (figures.reliability, (P, P > 0.9)),
    "reliability, constant": (figures.reliability, (np.ones(9), np.ones(9, dtype=bool))),
    "reliability, many": (figures.reliability, (np.full(100_000, 0.5), np.zeros(100_000, dtype=bool))),
    "novelties": (figures.novelties, (P / 2, P, 0.5)),
    "novelties, other threshold": (figures.novelties, (P / 2, P, 0.4)),
    "novelties, no threshold": (figures.novelties, (P / 2, P, None)),
    "novelties, no unknown": (figures.novelties, (P / 2, NO, 0.5)),
    "novelties, constant": (figures.novelties, (np.full(3, 0.2), NO, None)),
    "novelties, beyond 1": (figures.novelties, (P * 7, P * 9 - 12, 3.0)),
    "neighbourhood": (figures.neighbourhood, (POINTS, ["cat", "dog", "_fox"] * 4, STARS)),
    "neighbourhood, turned": (figures.neighbourhood, (-POINTS, ["cat", "dog", "_fox"] * 4, STARS)),
    "neighbourhood, no stars": (figures.neighbourhood, (POINTS, ["cat", "dog", "_fox"] * 4, STARS & False)),
    "neighbourhood, 1 category": (figures.neighbourhood, (POINTS, [LONG] * 12, STARS)),
    "neighbourhood, 2 points": (figures.neighbourhood, (POINTS[:2], ["cat", "dog"], STARS[:2])),
    "neighbourhood, 2 in a place": (figures.neighbourhood, (np.zeros((2, 2)), ["cat", "dog"], STARS[:2])),
    "neighbourhood, 10 categories": (figures.neighbourhood, (np.repeat(POINTS[:10], 2, axis=0), names(10) * 2, ROWS)),
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    return {case: drawn(draw, *data) for case, (draw, data) in CASES.items()}


def test_figures_differ_when_the_data_differ(pictures: dict[str, np.ndarray]) -> None:
    shown = list(pictures.items())
    assert [(a, b) for i, (a, one) in enumerate(shown) for b, other in shown[:i] if same(one, other)] == []


@pytest.mark.parametrize("case", ["curves, several", "confusion", "neighbourhood"])
def test_figures_are_the_same_when_the_data_are(pictures: dict[str, np.ndarray], case: str) -> None:
    draw, data = CASES[case]
    assert same(drawn(draw, *data), pictures[case])


def test_of_many_categories_the_most_confused_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_MOST_ROWS", 15)
    monkeypatch.setattr(figures, "_MOST_CONFUSED", 10)
    matrix = np.diag(np.full(20, 5))
    matrix[:10, :10] += 1
    short = [str(i) for i in range(20)]
    shown = drawn(figures.confusion, matrix, short)
    matrix[14, 14] = 9  # not among them
    assert same(shown, drawn(figures.confusion, matrix, short))
    matrix[3, 3] = 9
    assert not same(shown, drawn(figures.confusion, matrix, short))


def test_settings_of_the_user_stay() -> None:
    plain = drawn(figures.novelties, P, NO, 0.5)
    with mpl.rc_context({"font.size": 30, "text.color": "red", "axes.facecolor": "black", "savefig.dpi": 20}):
        assert same(drawn(figures.novelties, P, NO, 0.5), plain)
        assert mpl.rcParams["font.size"] == 30


def test_no_pyplot() -> None:
    code = "import sys, zsvec.evaluation.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# ---- t-SNE


def clusters(n: int, each: int, seed: int = 0) -> np.ndarray:
    """Unit vectors float32 ``(n * each, 16)`` about n directions, one after the other."""
    random = np.random.default_rng(seed)
    vectors = np.repeat(np.eye(16)[:n], each, axis=0) + 0.1 * random.normal(size=(n * each, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_stay_together() -> None:
    points = figures.embed_2d(clusters(4, 20))
    assert points.dtype == np.float64
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    cluster = np.arange(80) // 20
    assert (cluster[distance.argmin(axis=1)] == cluster).all()


def test_the_same_seed_gives_the_same_points() -> None:
    vectors = clusters(4, 20)
    assert np.array_equal(figures.embed_2d(vectors), figures.embed_2d(vectors))
    few = vectors[:3]
    assert np.array_equal(figures.embed_2d(few, seed=1), figures.embed_2d(few, seed=1))
    assert not np.array_equal(figures.embed_2d(few, seed=1), figures.embed_2d(few, seed=2))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 31])
def test_few_points(n: int) -> None:
    points = figures.embed_2d(clusters(2, 20)[:n])
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize(
    "vectors",
    [np.ones((9, 4), dtype=np.float32), np.ones((9, 1), dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 1] * 5]],
    ids=["all the same", "one dimension", "two different"],
)
def test_points_without_a_spread(vectors: np.ndarray) -> None:
    assert np.isfinite(figures.embed_2d(vectors)).all()
