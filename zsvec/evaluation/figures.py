"""Figures of an evaluation, each returned as a PNG, in a palette for colour-blind readers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.fit import calibration_floor, expected_calibration_error
from zsvec.types import SearchMeasurement, SearchQuality

P = ParamSpec("P")

_BLUE, _ORANGE, _GREY = "C0", "C1", "#767676"
_MIDDLE: dict[str, Any] = {"ha": "center", "va": "center"}
_MOST_ROWS, _MOST_CONFUSED, _MOST_NUMBERED = 40, 30, 24
_BINS = 15
_NAME_LENGTH = 60  # characters
# Fonts for letters that matplotlib's own font lacks. Fonts that are not installed are ignored.
_FONTS = ("Noto Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai")


def _png(draw: Callable[Concatenate[Figure, P], None]) -> Callable[P, bytes]:
    """Turns a function that draws on an empty figure into a function that returns a PNG.

    ``$`` in a name does not start a formula.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        fonts = ["DejaVu Sans", *(font for font in _FONTS if font in get_font_names())]
        png = io.BytesIO()
        look: list[Any] = ["default", "petroff10", {"font.family": fonts, "text.parse_math": False}]
        with style.context(look), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters without a font become boxes
            figure = Figure(dpi=150)
            draw(figure, *args, **kwargs)
            figure.savefig(png, format="png", backend="agg", bbox_inches="tight", pad_inches=0.1)
        return png.getvalue()

    return drawn


@_png
def accuracy_by_references(figure: Figure, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draws accuracy against the number of references, as lines with a band of one standard deviation.

    Args:
        figure: Empty figure, which the decorator passes.
        curves: Lines by name. Each line has three lists: ``counts`` has numbers of references per category. For each
            count, ``mean`` and ``std`` describe the top-1 accuracy (a fraction) over draws of references.
    """
    figure.set_size_inches(7, 4)
    axes = figure.subplots()
    for name, curve in curves.items():
        mean, std = 100 * np.array(curve["mean"]), 100 * np.array(curve["std"])
        # matplotlib leaves out labels that begin with _, so a zero-width space is put first.
        axes.plot(curve["counts"], mean, marker="o", label=f"\u200b{name}")
        axes.fill_between(curve["counts"], *np.clip((mean - std, mean + std), 0, 100), alpha=0.15)
    axes.set_xscale("log", base=2)
    counts = sorted({count for curve in curves.values() for count in curve["counts"]})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="references per category", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), frameon=False)


@_png
def confusion(figure: Figure, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Draws the confusion matrix in percent of each true category. Beyond 40 categories, draws the 30 most confused.

    Args:
        figure: Empty figure, which the decorator passes.
        counts: Numbers of images, int64 ``(n, n)``: rows are true categories, columns answered categories.
        names: Names of the n categories.
    """
    images, n, title = counts.sum(axis=1, keepdims=True), len(names), "Answers for each true category"
    share = 100 * np.divide(counts, images, out=np.full(counts.shape, np.nan), where=images > 0)
    if n > _MOST_ROWS:
        wrong = counts * ~np.eye(n, dtype=bool)
        most = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:_MOST_CONFUSED])
        share, names = share[np.ix_(most, most)], [names[i] for i in most]
        title = f"The {_MOST_CONFUSED} most confused of {n} categories"
    names, side = [_short(name) for name in names], max(2.5, 0.27 * len(names))
    figure.set_size_inches(side, side)  # labels around the matrix make the picture larger
    axes = figure.add_axes((0, 0, 1, 1), title=title, xlabel="answered category", ylabel="true category")
    axes.set_facecolor("#DDDDDD")  # shows in rows of categories without images
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for row, column in np.argwhere(share > 0) if len(names) <= _MOST_NUMBERED else ():
        value = share[row, column]
        axes.text(column, row, f"{value:.0f}", fontsize=6, color="white" if value > 55 else "black", **_MIDDLE)
    figure.colorbar(shown, cax=figure.add_axes((1 + 0.2 / side, 0.1, 0.15 / side, 0.8))).set_label(
        "of the true category's images, %"
    )


@_png
def reliability(figure: Figure, probabilities: Doubles, right: NDArray[np.bool_]) -> None:
    """Draws accuracy against confidence, with the number of images in each of 15 bins.

    Args:
        figure: Empty figure, which the decorator passes.
        probabilities: Probabilities of the answers, float64 ``(n,)``, at least one.
        right: Whether each answer is right, bool ``(n,)``.
    """
    bins = np.clip(np.ceil(probabilities * _BINS).astype(int) - 1, 0, _BINS - 1)
    images = np.bincount(bins, minlength=_BINS)
    hits = np.bincount(bins, weights=right, minlength=_BINS)
    accuracy = 100 * np.divide(hits, images, out=np.zeros(_BINS), where=images > 0)
    centres, width = 100 * (np.arange(_BINS) + 0.5) / _BINS, 100 / _BINS
    figure.set_size_inches(6, 6.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(centres, accuracy, width, color=_BLUE, edgecolor="white", label="answers")
    above.plot([0, 100], [0, 100], color="black", linestyle="--", label="as often right as they are confident")
    above.set(xlim=(-1.5, 101.5), ylim=(0, 102), ylabel="accuracy, %")
    error, floor = expected_calibration_error(probabilities, right), calibration_floor(probabilities)
    above.set_title(f"Expected calibration error {error:.1%}; by chance alone {floor:.1%}", fontsize=11)
    bars = below.bar(centres, images, width, color=_GREY, edgecolor="white")
    below.bar_label(bars, [f"{n:,}" for n in images], fontsize=6, padding=1)
    below.set(xlabel="confidence, %", ylabel="images", ylim=(0, 1.25 * max(1, int(images.max()))))
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="upper left", bbox_to_anchor=(0.1, 0.05), frameon=False, ncols=2)


@_png
def novelties(figure: Figure, known: Doubles, unknown: Doubles, threshold: float | None) -> None:
    """Draws the distribution of novelty over known and unknown images.

    Args:
        figure: Empty figure, which the decorator passes.
        known: Novelty of images that belong to a category, float64 ``(n,)``, at least one.
        unknown: Novelty of images that belong to no category, float64 ``(m,)``, possibly none.
        threshold: Novelty above which an image is called unknown; ``None`` without a threshold.
    """
    limits = [] if threshold is None else [threshold]
    everything = np.concatenate([limits, known, unknown])
    edges = np.linspace(everything.min(initial=0), everything.max(initial=1), 41)
    figure.set_size_inches(7, 4)
    axes = figure.subplots()
    for name, values, colour, dashes in (("known", known, _BLUE, "-"), ("unknown", unknown, _ORANGE, "--")):
        if name == "unknown" and not len(values):
            continue
        label = f"{name} ({len(values):,})"
        for limit in limits:
            label += f": {np.mean(values > limit):.1%} beyond the threshold"
        share = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(share, edges, color=colour, linestyle=dashes, linewidth=1.5)
        axes.plot([], [], color=colour, linestyle=dashes, linewidth=3, label=label)
    for limit in limits:
        axes.axvline(limit, color="black", linestyle=":", label=f"threshold {limit:.2f}")
    axes.set(xlabel="novelty (no unit)", ylabel="share of the images, %")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), frameon=False)


def embed_2d(vectors: NDArray[np.float32], seed: int = 0) -> Doubles:
    """Embeds vectors, float32 ``(n, d)``, in the plane by t-SNE with cosine distance.

    Returns:
        float64 ``(n, 2)``, without units. The same seed gives the same points.
    """
    if (n := len(vectors)) < 2:
        return np.zeros((n, 2))
    # Principal components are a better start, but need vectors that span at least two dimensions.
    start = "pca" if n > 3 and np.linalg.matrix_rank(vectors - vectors.mean(axis=0)) > 1 else "random"
    tsne = TSNE(metric="cosine", perplexity=min(30, (n - 1) / 3), init=start, random_state=seed)
    return np.asarray(tsne.fit_transform(vectors), dtype=np.float64)


@_png
def search_quality(figure: Figure, measurement: SearchMeasurement) -> None:
    """Draws recall, agreement of labels, and time against oversampling, with a line for each `ef` of an HNSW graph.

    Args:
        figure: Empty figure, which the decorator passes.
        measurement: The measurement; its first row is exact search.
    """
    figure.set_size_inches(9, 3.6)
    exact, *rows = measurement.rows
    panels: dict[str, Callable[[SearchQuality], float]] = {
        f"recall@{measurement.k}, %": lambda row: 100 * row.recall,
        "same label, %": lambda row: 100 * row.same_label,
        "ms an image": lambda row: row.ms,
    }
    lines: dict[str, list[SearchQuality]] = {}
    for row in rows:
        lines.setdefault(f"ef {row.params.ef:,}" if row.params.ef else "int8 scan", []).append(row)
    ticks = sorted({row.params.oversampling for row in rows if row.params.oversampling})
    every = figure.subplots(1, 3)
    for axes, (title, value) in zip(every, panels.items(), strict=True):
        axes.axhline(value(exact), color=_GREY, linestyle="--", label="exact")
        for name, some in lines.items():
            axes.plot([row.params.oversampling or 0 for row in some], list(map(value, some)), marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="oversampling", title=title)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()


@_png
def neighbourhood(figure: Figure, points: Doubles, names: Sequence[str], is_reference: NDArray[np.bool_]) -> None:
    """Draws images in the plane: references as stars, test images as circles, in the colour of their category.

    Args:
        figure: Empty figure, which the decorator passes.
        points: Points from `embed_2d`, float64 ``(n, 2)``.
        names: Category of each point; at most ten categories.
        is_reference: Whether each point is a reference, bool ``(n,)``.
    """
    figure.set_size_inches(6, 6)  # the legend on the right enlarges the image
    axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
    axes.set(xlabel="t-SNE, first axis (no unit)", ylabel="t-SNE, second axis (no unit)")
    size = float(np.clip(9000 / max(1, len(points)), 6, 36))
    categories, category = sorted(set(names)), np.asarray(names, dtype=object)
    keys = {"reference": (_GREY, "*"), "test image": (_GREY, "o")}
    for i, name in enumerate(categories, 1):
        own, fill = category == name, f"C{i - 1}"
        keys[f"{i}  {_short(name)}"] = (fill, "o")
        x, y = points[own & ~is_reference].T
        axes.scatter(x, y, size, marker="o", color=fill, edgecolor="white", linewidth=0.3)
        x, y = points[own & is_reference].T
        axes.scatter(x, y, 4 * size, marker="*", color=fill, edgecolor="black", linewidth=0.3)
        # The number of a category is drawn above the point nearest to the median.
        middle = points[own][np.linalg.norm(points[own] - np.median(points[own], axis=0), axis=1).argmin()]
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "edgecolor": fill}
        axes.annotate(str(i), tuple(middle), (0, 9), textcoords="offset points", fontsize=7, bbox=box, **_MIDDLE)
    handles = [Line2D([], [], color=fill, marker=marker, linestyle="") for fill, marker in keys.values()]
    axes.legend(handles, list(keys), loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
