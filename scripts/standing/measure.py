"""Measures how well the references of a trial classify its photos, and compares variants over the draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from standing.sets import Images
from standing.trials import Numbers, Trial
from zsvec.encoders.spec import TEMPERATURES
from zsvec.evaluation.metrics import ranks
from zsvec.method.calibrate.fit import (
    FALSE_UNKNOWN_RATE,
    LabelSettings,
    calibration_floor,
    expected_calibration_error,
    fit_calibration,
)
from zsvec.method.calibration import Calibration
from zsvec.method.predict.scoring import Scores, Scoring
from zsvec.method.similarities import References, category_names, laid_out
from zsvec.search.in_process import compare
from zsvec.types import Prediction, encoder_and_modality, expert_name

Draws = Sequence[Mapping[str, float]]
"""For each draw, the figures of one variant, by name."""

# Title, name of the figure, decimal places, and whether the gain over the baseline is shown.
_COLUMNS = (
    ("top-1 %", "top1", 1, True),
    ("ECE %", "ece", 1, True),
    ("by chance", "floor", 1, False),
    ("unknown %", "unknown", 1, False),
    ("few: top-1 %", "few", 1, False),
)


@dataclass(frozen=True)
class Asked:
    """A trial with indexed references and a calibration.

    Attributes:
        images: Images of the set.
        trial: The references, and the images to classify.
        references: References by expert.
        calibration: Learned from the references; ``None`` if no calibration could be fitted.
    """

    images: Images
    trial: Trial
    references: Mapping[str, References]
    calibration: Calibration | None

    @classmethod
    def of(cls, images: Images, trial: Trial) -> Asked:
        """Indexes the references of a trial, and fits a calibration to them."""
        references = {}
        for encoder, vectors in images.vectors.items():
            covered = [(number, name) for number, name in trial.rows if trial.by_encoder.get(name, encoder) == encoder]
            numbers = [number for number, _ in covered]
            hashes, nothing = [f"{number:08d}" for number in numbers], [""] * len(numbers)
            labels = [name for _, name in covered]
            references[expert_name(encoder, "image")] = laid_out(vectors[numbers], labels, hashes, nothing)
        described = {name for _, name in trial.rows if name not in trial.by_encoder} | trial.by_text
        texts = [i for i, name in enumerate(images.owners) if name in described]
        owners, digests = [images.owners[i] for i in texts], [f"text {i}" for i in texts]
        for encoder, vectors in images.texts.items():
            references[expert_name(encoder, "text")] = laid_out(vectors[texts], owners, digests, [""] * len(texts))
        return cls(images, trial, references, calibration_of(references, trial.rate))

    def predictions(self, numbers: Numbers) -> list[Prediction]:
        """Returns the predictions of the default strategy for some images."""
        queries = {encoder: vectors[numbers] for encoder, vectors in self.images.vectors.items()}
        found = compare(self.references, category_names(self.references), queries, nearest=1)
        sources = [str(number) for number in numbers]
        return scoring_of(self.references).predict(replace(found, calibration=self.calibration), sources, top_k=1)

    def scores(self, fusion: str, batches: Sequence[Numbers]) -> tuple[list[str], NDArray[np.intp], list[Scores]]:
        """Returns the categories, the column of the category of each image, and the scores of each batch."""
        scoring = replace(scoring_of(self.references), fusion=fusion)
        names = category_names(self.references)
        parts = []
        for batch in batches:
            queries = {encoder: vectors[batch] for encoder, vectors in self.images.vectors.items()}
            found = compare(self.references, names, queries, nearest=1)
            parts.append(scoring.scores(replace(found, calibration=self.calibration)))
        truth = np.array([names.index(self.trial.truth[number]) for number in np.concatenate(batches).tolist()])
        return names, truth, parts

    def figures(self, fusion: str, batches: Sequence[Numbers]) -> dict[str, float]:
        """Returns how well a strategy classifies batches: figures in percent, by name."""
        names, truth, parts = self.scores(fusion, batches)
        probabilities = np.concatenate([part.fused for part in parts])
        confidence, right = probabilities.max(axis=1), ranks(probabilities, truth) == 0
        figures = {
            "top1": 100 * float(right.mean()),
            "ece": 100 * expected_calibration_error(confidence, right),
            "floor": 100 * calibration_floor(confidence),
            "unknown": 100 * float(np.concatenate([part.unknown for part in parts]).mean()),
        }
        is_few = np.isin(np.array(names)[truth], list(self.trial.few))
        if is_few.any():
            figures["few"] = 100 * float(right[is_few].mean())
        return figures


def scoring_of(references: Mapping[str, References]) -> Scoring:
    """Returns the default scoring of the experts of some references."""
    return Scoring(temperatures={expert: TEMPERATURES[encoder_and_modality(expert)[1]] for expert in references})


def calibration_of(
    references: Mapping[str, References],
    false_unknown_rate: float = FALSE_UNKNOWN_RATE,
    *,
    labels: LabelSettings | None = None,
    cascade: str | None = None,
) -> Calibration | None:
    """Returns the calibration of some references for the default scoring, as `fit_calibration`."""
    scoring = scoring_of(references)
    fitted = fit_calibration(
        references,
        scoring.temperatures,
        revision=0,
        aggregation=scoring.aggregation,
        top_m=scoring.top_m,
        false_unknown_rate=false_unknown_rate,
        labels=labels,
        cascade=cascade,
    )
    return fitted[0] if fitted else None


def mean_and_error(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Returns the mean over the draws with the standard error. Skips draws with NaN, in which nothing was measured."""
    measured = np.array(values)[~np.isnan(values)]
    if not len(measured):
        return ""
    mean = f"{measured.mean():{sign}.{digits}f}"
    if len(measured) == 1:
        return mean
    return f"{mean} ± {measured.std(ddof=1) / np.sqrt(len(measured)):.{digits}f}"


def show(title: str, measured: Mapping[str, Mapping[str, Draws]]) -> None:
    """Prints a row for each variant in each condition. Gains are over the first variant, paired by draw.

    Args:
        title: Title of the table.
        measured: Draws by condition and variant.
    """
    headers = [header for name, _, _, gains in _COLUMNS for header in (name, *["Δ"] * gains)]
    caption = "± is a standard error over the draws, Δ the gain over the first row of the condition"
    table = Table(Column(no_wrap=True), *headers, box=SIMPLE_HEAD, title=title, title_justify="left", caption=caption)
    for condition, ways in measured.items():
        first = next(iter(ways.values()))
        table.add_row(condition)
        for way, draws in ways.items():
            cells = []
            for _, key, digits, gains in _COLUMNS:
                values = [draw.get(key, np.nan) for draw in draws]
                cells.append(mean_and_error(values, digits))
                if gains:
                    gained = [value - other[key] for value, other in zip(values, first, strict=True)]
                    cells.append("" if draws is first else mean_and_error(gained, digits + 1, "+"))
            table.add_row(f"  {way}", *cells)
    Console(highlight=False, width=200).print(table)
