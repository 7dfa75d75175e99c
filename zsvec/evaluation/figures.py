"""Figures of an evaluation, each written to ``path`` as a PNG, in colours that the colour-blind tell apart."""

from __future__ import annotations

import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font_names
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageFont
from sklearn.manifold import TSNE

from zsvec.evaluation.metrics import Doubles, calibration_floor
from zsvec.inputs.files import replacing
from zsvec.method.calibrate.fit import expected_calibration_error

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#767676"
# Okabe and Ito's, without the yellow that is lost on white.
_LINES, _MARKERS = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"), "osD^vPX"
# Tol's muted colours; then the same darker, then lighter.
_FILLS = ("#332288", "#CC6677", "#44AA99", "#DDCC77", "#882255", "#88CCEE", "#117733", "#AA4499", "#999933")
_SHADES = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0))  # by how much towards which grey
_MIDDLE: dict[str, Any] = {"ha": "center", "va": "center"}
_MOST_ROWS, _MOST_CONFUSED, _MOST_NUMBERED = 40, 30, 24
_MOST_MISTAKES, _PAIRS_A_ROW, _THUMB = 24, 4, 256
_BINS, _LONGEST = 15, 60  # _LONGEST: characters of a name
# Fonts for letters that matplotlib's own font lacks; those that are not installed are ignored.
_FONTS = ("Noto Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai")


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy by the number of references.

    Attributes:
        counts: References per category.
        mean: Mean top-1 accuracy over draws of references, a fraction for each count.
        std: Its standard deviation, a fraction.
    """

    counts: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image of the category ``truth`` that was classified wrongly, with a probability of 0 to 1.

    ``nearest`` is the reference image nearest to it, of ``nearest_category``; ``None`` if there is none to show.
    """

    image: Image.Image
    truth: str
    answer: str
    probability: float
    nearest: Image.Image | None
    nearest_category: str


def accuracy_by_references(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw, by name, lines of accuracy against the number of references, in bands of one standard deviation."""
    with _drawn(path, 7, 4 + 0.2 * len(curves)) as figure:
        axes = figure.subplots()
        for i, (name, curve) in enumerate(curves.items()):
            look: dict[str, Any] = {"color": _LINES[i % len(_LINES)], "marker": _MARKERS[i % len(_MARKERS)]}
            mean, std = 100 * np.asarray(curve.mean, dtype=float), 100 * np.asarray(curve.std, dtype=float)
            # Without the space of no width, matplotlib would leave out a name that begins with _.
            axes.plot(curve.counts, mean, "-" if i < len(_LINES) else "--", label=f"\u200b{name}", **look)
            axes.fill_between(curve.counts, *np.clip((mean - std, mean + std), 0, 100), color=look["color"], alpha=0.15)
        axes.set_xscale("symlog", base=2, linthresh=1)  # as log2, and 0 has its place one step before 1
        ticks: list[int] = []
        for count in sorted({count for curve in curves.values() for count in curve.counts}):
            if not ticks or count >= 1.2 * ticks[-1]:
                ticks.append(count)
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.minorticks_off()
        axes.set(xlabel="references per category", ylabel="top-1 accuracy, %")
        axes.grid(alpha=0.3)
        if curves:
            figure.legend(loc="outside lower left", frameon=False)


def confusion(counts: NDArray[np.intp], names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix in percent of each true category; of many categories, the most confused.

    Args:
        counts: Images ``(n, n)``, true category × answered category.
        names: Of the n categories.
        path: Of the PNG.
    """
    images, n, title = counts.sum(axis=1, keepdims=True), len(names), "Answers for each true category"
    share = 100 * np.divide(counts, images, out=np.full(counts.shape, np.nan), where=images > 0)
    if n > _MOST_ROWS:
        wrong = counts * ~np.eye(n, dtype=bool)
        most = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:_MOST_CONFUSED])
        share, names = share[np.ix_(most, most)], [names[i] for i in most]
        title = f"The {_MOST_CONFUSED} most confused of {n} categories"
    names, inner = [_short(name) for name in names], max(2.5, 0.27 * len(names))
    outer = inner + max((_inches(name, 7) for name in names), default=0)
    with _drawn(path, outer + 1.6, outer + 0.8) as figure:
        axes = figure.subplots()
        axes.set_facecolor("#DDDDDD")  # rows of categories without images
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set(xlabel="answered category", ylabel="true category")
        axes.set_title(_wrapped(title, inner, 10), fontsize=10)
        for row, column in np.argwhere(share > 0) if len(names) <= _MOST_NUMBERED else ():
            value = share[row, column]
            axes.text(column, row, f"{value:.0f}", fontsize=6, color="white" if value > 55 else "black", **_MIDDLE)
        figure.colorbar(shown, ax=axes, shrink=0.8, label="of the true category's images, %")


def reliability(probabilities: Doubles, right: NDArray[np.bool_], path: Path) -> None:
    """Draw accuracy against confidence, with the number of images in each of 15 bins.

    Args:
        probabilities: Of the answers, float64 ``(n,)``.
        right: Whether they were, bool ``(n,)``.
        path: Of the PNG.
    """
    bins = np.clip(np.ceil(probabilities * _BINS).astype(int) - 1, 0, _BINS - 1)
    images = np.bincount(bins, minlength=_BINS)
    hits = np.bincount(bins, weights=right, minlength=_BINS)
    accuracy = 100 * np.divide(hits, images, out=np.zeros(_BINS), where=images > 0)
    centres, width = 100 * (np.arange(_BINS) + 0.5) / _BINS, 100 / _BINS
    with _drawn(path, 6, 6.5) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.bar(centres, accuracy, width, color=_BLUE, edgecolor="white", label="answers")
        above.plot([0, 100], [0, 100], color="black", linestyle="--", label="as often right as they are confident")
        above.set(xlim=(-1.5, 101.5), ylim=(0, 102), ylabel="accuracy, %")
        figure.legend(loc="outside lower left", frameon=False, ncols=2)
        error = "– (no images)"
        if len(right):
            floor = calibration_floor(probabilities)
            error = f"{expected_calibration_error(probabilities, right):.1%}; by chance alone {floor:.1%}"
        above.set_title(f"Expected calibration error {error}", fontsize=11)
        bars = below.bar(centres, images, width, color=_GREY, edgecolor="white")
        below.bar_label(bars, [f"{n:,}" for n in images], fontsize=6, padding=1)
        below.set(xlabel="confidence, %", ylabel="images", ylim=(0, 1.25 * max(1, int(images.max()))))
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.yaxis.set_major_formatter("{x:,.0f}")


def novelties(known: Doubles, unknown: Doubles | None, threshold: float | None, path: Path) -> None:
    """Draw how novelty is spread over known and unknown images.

    Args:
        known: Novelty of images of the categories, float64 ``(n,)``.
        unknown: Of images of no category; ``None`` if there are none.
        threshold: Novelty above which an image is called unknown; ``None`` or NaN if none is.
        path: Of the PNG.
    """
    groups = [("known", known, _BLUE, "-")] + ([] if unknown is None else [("unknown", unknown, _ORANGE, "--")])
    limits = [] if threshold is None or np.isnan(threshold) else [threshold]
    everything = np.concatenate([limits, *(values for _, values, *_ in groups)])
    edges = np.linspace(everything.min(initial=0), everything.max(initial=1), 41)
    with _drawn(path, 7, 4.8) as figure:
        axes = figure.subplots()
        for name, values, colour, dashes in groups:
            label = f"{name} ({len(values):,})"
            if limits and len(values):
                label += f": {np.mean(values > limits[0]):.1%} beyond the threshold"
            share = 100 * np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.35)
            axes.stairs(share, edges, color=colour, linestyle=dashes, linewidth=1.5)
            axes.plot([], [], color=colour, linestyle=dashes, linewidth=3, label=label)
        for limit in limits:
            axes.axvline(limit, color="black", linestyle=":", label=f"threshold {limit:.2f}")
        axes.set(xlabel="novelty (no unit)", ylabel="share of the images, %")
        figure.legend(loc="outside lower left", frameon=False)


def embed_2d(vectors: NDArray[np.float32], seed: int = 0) -> Doubles:
    """Place vectors float32 ``(n, d)`` in the plane so that neighbours stay together: t-SNE by cosine.

    Returns:
        float64 ``(n, 2)``, without units; the same for the same seed.
    """
    if (n := len(vectors)) < 2:
        return np.zeros((n, 2))
    # Principal components make a better start, where there are two of them.
    start = "pca" if n > 3 and np.linalg.matrix_rank(vectors - vectors.mean(axis=0)) > 1 else "random"
    tsne = TSNE(metric="cosine", perplexity=min(30, (n - 1) / 3), init=start, random_state=seed)
    return np.asarray(tsne.fit_transform(vectors), dtype=np.float64)


def neighbourhood(points: Doubles, names: Sequence[str], is_reference: NDArray[np.bool_], path: Path) -> None:
    """Draw images in the plane: references as stars, test images as circles, in the colour of their category.

    Args:
        points: Of `embed_2d`, float64 ``(n, 2)``.
        names: The category of each point.
        is_reference: Whether it is a reference, bool ``(n,)``.
        path: Of the PNG.
    """
    category, number = np.asarray(names, dtype=object), Counter(names)
    shown = sorted(name for name, _ in number.most_common(len(_FILLS) * len(_SHADES)))
    others = len(number) - len(shown)
    labels = [f"{i}  {_short(name)}" for i, name in enumerate(shown, 1)] + [f"{others} more"] * (others > 0)
    groups = [(category == name, _fill(i), "black") for i, name in enumerate(shown)]
    groups += [(~np.isin(category, shown), to_rgb("#CCCCCC"), "#999999")] * (others > 0)
    size = float(np.clip(9000 / max(1, len(points)), 6, 36))
    with _drawn(path, 6.5 + max((_inches(label, 8) for label in labels), default=0), 6.2) as figure:
        axes = figure.subplots()
        for in_group, fill, dark in reversed(groups):
            look: dict[str, Any] = {"color": fill, "linewidth": 0.3}
            x, y = points[in_group & ~is_reference].T
            axes.scatter(x, y, size, marker="o", edgecolor="white", zorder=2, **look)
            x, y = points[in_group & is_reference].T
            axes.scatter(x, y, 4 * size, marker="*", edgecolor=dark, zorder=3, **look)
        # A number stands above the middle point of its category, if there is room.
        apart, taken = 0.04 * np.ptp(points, axis=0) if shown else np.zeros(2), np.empty((0, 2))
        for i, (in_group, fill, _) in enumerate(groups[: len(shown)], 1):
            away = np.linalg.norm(points[in_group] - np.median(points[in_group], axis=0), axis=1)
            middle = points[in_group][away.argmin()]
            if (np.abs(taken - middle) > apart).any(axis=1).all():
                taken = np.vstack([taken, middle])
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "edgecolor": fill}
                axes.annotate(str(i), middle, (0, 9), textcoords="offset points", fontsize=7, bbox=box, **_MIDDLE)
        looks = [(to_rgb(_GREY), "*"), (to_rgb(_GREY), "o"), *((fill, "o") for _, fill, _ in groups)]
        keys = [Line2D([], [], color=fill, marker=marker, linestyle="") for fill, marker in looks]
        figure.legend(keys, ["reference", "test image", *labels], loc="outside right upper", frameon=False, fontsize=8)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE, first axis (no unit)", ylabel="t-SNE, second axis (no unit)")


def mistakes(found: Sequence[Mistake], path: Path) -> None:
    """Draw the first 24 images that were answered wrongly, each beside the reference nearest to it."""
    tiles = []
    for mistake in found[:_MOST_MISTAKES]:
        answer = f"answer: {_short(mistake.answer)} ({mistake.probability:.0%})"
        tiles += [
            (mistake.image, f"is: {_short(mistake.truth)}", answer),
            (mistake.nearest, "nearest:", _short(mistake.nearest_category)),
        ]
    captions = ["\n".join(_wrapped(line, 1.4, 6.5) for line in lines) for _, *lines in tiles]
    columns = min(_PAIRS_A_ROW, max(1, len(tiles) // 2))
    rows = max(1, -(-len(tiles) // (2 * columns)))
    longest = max((caption.count("\n") for caption in captions), default=0)
    with _drawn(path, 3.1 * columns, rows * (1.7 + 0.12 * longest)) as figure:
        # Between the pairs of a row is a narrow column with nothing in it.
        grid = figure.add_gridspec(rows, 3 * columns - 1, width_ratios=[*(1, 1, 0.12) * columns][:-1])
        for i, ((image, *_), caption) in enumerate(zip(tiles, captions, strict=True)):
            row, place = divmod(i, 2 * columns)
            axes = figure.add_subplot(grid[row, place + place // 2], xticks=[], yticks=[], facecolor="#EEEEEE")
            axes.set_title(caption, fontsize=6.5, loc="left")
            if image is None:
                axes.text(0.5, 0.5, "no image", color=_GREY, **_MIDDLE)
            else:
                small = image.convert("RGB")
                small.thumbnail((_THUMB, _THUMB))
                axes.imshow(small)
            axes.set(adjustable="datalim", box_aspect=1)  # a square, and the image in its middle
        if not tiles:
            figure.text(0.5, 0.5, "no mistakes", **_MIDDLE)
            figure.add_subplot(xticks=[], yticks=[])


@contextmanager
def _drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of a size in inches, written when the block is left. Names are no formulas: ``$`` is a dollar."""
    fonts = ["DejaVu Sans", *(font for font in _FONTS if font in get_font_names())]
    with style.context(["default", {"font.family": fonts, "text.parse_math": False}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for a letter that no font has
        figure = Figure(figsize=(width, height), dpi=150, layout="compressed", facecolor="white")
        yield figure
        with replacing(path) as file:
            figure.savefig(file, format="png", backend="agg", bbox_inches="tight", pad_inches=0.1)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


@lru_cache(4096)
def _inches(line: str, size: float) -> float:
    return ImageFont.truetype(findfont("DejaVu Sans"), 100).getlength(line) * size / 7200  # 72 points an inch


def _wrapped(line: str, width: float, size: float) -> str:
    lines, longest = [line], len(line)
    while longest > 1 and max(_inches(part, size) for part in lines) > width:
        longest -= 1
        lines = textwrap.wrap(line, longest)
    return "\n".join(lines)


def _fill(i: int) -> tuple[float, float, float]:
    share, grey = _SHADES[i // len(_FILLS)]
    red, green, blue = ((1 - share) * part + share * grey for part in to_rgb(_FILLS[i % len(_FILLS)]))
    return red, green, blue
