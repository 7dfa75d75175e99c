"""Tables of results, for the terminal, pages and `results.json`.

A table is a mapping with the keys ``id, title, paper, note, columns, rows``. A column has ``key, title, unit``, and may
have ``best``, which is ``"high"`` or ``"low"``. A row has ``name`` and ``values``, and may have ``interval``. The keys
of ``values`` and ``interval`` are those of the columns. Values with the unit ``%`` are fractions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from zsvec.evaluation.evaluate import Evaluation
from zsvec.evaluation.labels import LabelEvaluation
from zsvec.evaluation.metrics import mean_score
from zsvec.types import counted

NO_VALUE = "–"
ACCURACY = (
    {"key": "top1", "title": "top-1", "unit": "%", "best": "high"},
    {"key": "top3", "title": "top-3", "unit": "%", "best": "high"},
    {"key": "top5", "title": "top-5", "unit": "%", "best": "high"},
    {"key": "paper_auroc", "title": "AUROC, paper", "unit": "", "best": "high"},
    {"key": "auroc", "title": "AUROC, novelty", "unit": "", "best": "high"},
    {"key": "nll", "title": "NLL, nats", "unit": "", "best": "low"},
    {"key": "brier", "title": "Brier", "unit": "", "best": "low"},
    {"key": "ece", "title": "ECE", "unit": "%", "best": "low"},
    {"key": "ece_floor", "title": "its floor", "unit": "%"},
)
_BY_CATEGORY = (
    {"key": "images", "title": "images", "unit": "images"},
    {"key": "precision", "title": "precision", "unit": "%"},
    {"key": "recall", "title": "recall", "unit": "%"},
    {"key": "f1", "title": "F1", "unit": "%"},
    {"key": "called_unknown", "title": "called unknown", "unit": "%"},
)
_BY_LABEL = (
    {"key": "images", "title": "images", "unit": "images"},
    {"key": "average_precision", "title": "AP", "unit": "%"},
    {"key": "precision", "title": "precision", "unit": "%"},
    {"key": "recall", "title": "recall", "unit": "%"},
    {"key": "f1", "title": "F1", "unit": "%"},
    {"key": "false_positives", "title": "false positives", "unit": "%"},
    {"key": "ece", "title": "ECE", "unit": "%"},
)
_MISTAKES = (
    {"key": "number", "title": "images", "unit": "images"},
    {"key": "share", "title": "of the category", "unit": "%"},
)
_MOST_MISTAKES = 20


def table(
    identifier: str,
    title: str,
    note: str,
    columns: Sequence[Mapping[str, str]],
    rows: Sequence[Mapping[str, Any]],
    *,
    paper: str = "",
) -> dict[str, Any]:
    """Returns a table without its empty columns.

    Args:
        identifier: Anchor on a page.
        title: Heading.
        note: How to read the table.
        columns: Columns. A column without a value in any row is left out.
        rows: Rows.
        paper: Tables or section of the paper.
    """
    used = [column for column in columns if any(row["values"].get(column["key"]) is not None for row in rows)]
    return {"id": identifier, "title": title, "paper": paper, "note": note, "columns": used, "rows": list(rows)}


def tables_of(evaluation: Evaluation | LabelEvaluation) -> Iterator[dict[str, Any]]:
    """Yields the tables ``accuracy``, ``categories`` and, if an answer is wrong, ``mistakes``.

    An evaluation of labels has only the table ``categories``, because an image has no single answer.
    """
    if isinstance(evaluation, LabelEvaluation):
        rows = [{"name": name, "values": asdict(score)} for name, score in evaluation.labels.items()]
        rows.append({"name": "mean", "values": asdict(evaluation.macro)})
        note = "An image counts for each of its categories. The mean is over categories."
        yield table("categories", "Categories", note, _BY_LABEL, rows)
        return
    quality = {f"fusion ({evaluation.fusion})": evaluation.accuracy, **evaluation.experts}
    rows = [{"name": name, "values": asdict(accuracy)} for name, accuracy in quality.items()]
    yield table("accuracy", "Accuracy", "The fusion, and each expert alone.", ACCURACY, rows)
    scores = evaluation.categories
    named = (*scores.items(), ("mean", mean_score(scores)))
    rows = [{"name": name, "values": asdict(score)} for name, score in named]
    note = (
        "An image counts as its most probable category, also where it is called unknown. The mean is over categories."
    )
    yield table("categories", "Categories", note, _BY_CATEGORY, rows)
    pairs = zip(evaluation.truth, evaluation.answers, strict=True)
    mistakes = Counter((true, answer) for true, answer in pairs if true != answer)
    rows = [
        {"name": f"{true} → {answer}", "values": {"number": number, "share": number / scores[true].images}}
        for (true, answer), number in sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))[:_MOST_MISTAKES]
    ]
    if rows:
        yield table("mistakes", "Mistakes", "Category → answer, the most frequent first.", _MISTAKES, rows)


def summary_of(evaluation: Evaluation | LabelEvaluation) -> list[str]:
    """Returns the main results as sentences."""
    if isinstance(evaluation, LabelEvaluation):
        summary = [
            f"{counted(evaluation.n, 'image')} with {evaluation.mean_labels:.1f} labels on average; "
            f"mAP {evaluation.mean_average_precision:.1%}, micro F1 {evaluation.micro_f1:.1%}, "
            f"macro F1 {evaluation.macro.f1:.1%}; {evaluation.exact:.1%} have exactly their labels."
        ]
    else:
        summary = [f"{evaluation.accuracy.top1:.1%} of {evaluation.n:,} images are right."]
    if evaluation.false_unknown_rate is not None:
        summary.append(f"{evaluation.false_unknown_rate:.1%} of the images are called unknown.")
    if evaluation.auroc is not None:
        summary.append(
            f"{evaluation.detected:.1%} of the images of no category are called unknown; "
            f"the AUROC of novelty is {evaluation.auroc:.3f}."
        )
    if isinstance(evaluation, LabelEvaluation) and evaluation.given_labels is not None:
        summary.append(f"{evaluation.given_labels:.1%} of the images of no category are given a label.")
    return summary


def shown(value: float | None, unit: str) -> str:
    """Returns a number as text.

    Percentages have one decimal, milliseconds two decimals, and numbers without a unit three. With another unit, whole
    numbers have no decimals, and other numbers two. ``None``, NaN and infinity are `NO_VALUE`.
    """
    if value is None or not math.isfinite(value):
        return NO_VALUE
    if unit == "%":
        text = f"{100 * value:,.1f}"
    elif not unit:
        text = f"{value:,.3f}"
    elif unit != "ms" and value == int(value):
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.2f}"
    # A number that rounds to 0 has no sign.
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.removeprefix("-")
