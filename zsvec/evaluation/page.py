"""An `Evaluation` as one HTML page: tables and figures, in the form of the suite's report."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from zsvec.evaluation import figures
from zsvec.evaluation.by_category import mean_score, mistakes
from zsvec.evaluation.evaluate import Evaluation
from zsvec.evaluation.report import report_page

_MOST_MISTAKES = 20
_QUALITY = (
    {"key": "top1", "title": "top-1", "unit": "%", "best": "high"},
    {"key": "top3", "title": "top-3", "unit": "%", "best": "high"},
    {"key": "top5", "title": "top-5", "unit": "%", "best": "high"},
    {"key": "nll", "title": "NLL, nats", "unit": "", "best": "low"},
    {"key": "brier", "title": "Brier", "unit": "", "best": "low"},
    {"key": "ece", "title": "ECE", "unit": "%", "best": "low"},
    {"key": "ece_floor", "title": "its floor", "unit": "%"},
)
_BY_CATEGORY = (
    {"key": "images", "title": "tested", "unit": "images"},
    {"key": "precision", "title": "precision", "unit": "%"},
    {"key": "recall", "title": "recall", "unit": "%"},
    {"key": "f1", "title": "F1", "unit": "%"},
    {"key": "called_unknown", "title": "called unknown", "unit": "%"},
)
_MISTAKES = (
    {"key": "number", "title": "so answered", "unit": "images"},
    {"key": "share", "title": "of the category", "unit": "%"},
)


def page_of(evaluation: Evaluation, *, name: str, profile: str, references: Mapping[str, int], version: str) -> str:
    """The page, as HTML.

    Args:
        evaluation: What was found.
        name: Of the set of images.
        profile: Of the encoders.
        references: How many the store has, by expert.
        version: Of zsvec.
    """
    with TemporaryDirectory() as folder:
        drawn = [
            {"id": identifier, "title": title, "file": f"{identifier}.png", "caption": caption}
            for identifier, title, caption in _draw(evaluation, Path(folder))
        ]
        return report_page(
            Path(folder),
            {
                "set": name,
                "profile": profile,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "images": evaluation.n,
                "unknown_images": len(evaluation.judged) - evaluation.n,
                "categories": len(evaluation.categories),
                "references": references,
                "versions": {"python": platform.python_version(), "zsvec": version},
                "summary": list(_summary(evaluation)),
                "tables": list(_tables(evaluation)),
                "figures": drawn,
            },
        )


def _summary(evaluation: Evaluation) -> Iterator[str]:
    yield f"{evaluation.accuracy.top1:.1%} of {evaluation.n:,} images are right."
    yield f"{evaluation.false_unknown_rate:.1%} of the images are called unknown."
    if evaluation.auroc is not None:
        yield (
            f"{evaluation.detected:.1%} of the images of no category are called unknown; "
            f"the AUROC of novelty is {evaluation.auroc:.3f}."
        )


def _tables(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    quality = {f"fusion ({evaluation.fusion})": evaluation.accuracy, **evaluation.experts}
    yield _table("accuracy", "Accuracy", "The fusion, and each expert alone.", _QUALITY, quality)
    scores = evaluation.categories
    note = (
        "An image counts as its most probable category, also where it is called unknown. The mean is over categories."
    )
    by_category, mean = (
        _table("categories", "Categories", note, _BY_CATEGORY, rows) for rows in (scores, {"mean": mean_score(scores)})
    )
    yield {**by_category, "rows": [*by_category["rows"], *mean["rows"]]}  # a category may be called so as well
    wrong = mistakes(evaluation.truth, evaluation.answers)
    if wrong:
        rows = [
            {"name": f"{true} → {answer}", "values": {"number": number, "share": number / scores[true].images}}
            for true, answer, number in wrong[:_MOST_MISTAKES]
        ]
        note = "Category → answer, the most frequent first."
        yield {**_table("mistakes", "Mistakes", note, _MISTAKES, {}), "rows": rows}


def _table(
    identifier: str, title: str, note: str, columns: tuple[dict[str, str], ...], rows: Mapping[str, Any]
) -> dict[str, Any]:
    made = [{"name": name, "values": asdict(values)} for name, values in rows.items()]
    return {"id": identifier, "title": title, "paper": "", "note": note, "columns": columns, "rows": made}


def _draw(evaluation: Evaluation, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Draw each figure that has data, and yield its name, title and caption."""
    figures.confusion(evaluation.confusion, list(evaluation.categories), folder / "confusion.png")
    caption = "Each row is a category, and the share of its images by what they were called."
    yield "confusion", "What is taken for what", caption
    known = [image for image in evaluation.judged if image.truth is not None]
    right = np.array([image.nearest == image.truth for image in known])
    figures.reliability(np.array([image.probability for image in known]), right, folder / "reliability.png")
    yield "reliability", "What a probability is worth", "On the diagonal, of 100 answers with 80 %, 80 are right."
    if any(image.novelty is None for image in evaluation.judged):
        return
    novelty = np.array([image.novelty for image in evaluation.judged], dtype=np.float64)
    unknown = novelty[evaluation.n :] if evaluation.auroc is not None else None
    threshold = 0.5 if [image.unknown for image in evaluation.judged] == (novelty > 0.5).tolist() else None
    figures.novelties(novelty[: evaluation.n], unknown, threshold, folder / "novelty.png")
    told = "Beyond the threshold an image is called unknown." if threshold else "No threshold could be learned."
    yield "novelty", "Novelty of known and unknown images", told
