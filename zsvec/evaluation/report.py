"""The results of an evaluation as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from zsvec.evaluation.pages import rendered
from zsvec.inputs.files import inside, read_regular, write_whole

_NONE = "–"


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into a folder, which has the figures; the arguments are those of `report_page`.

    Returns:
        The page.

    Raises:
        OSError: A figure cannot be read, or the page not be written.
    """
    page = report_page(folder, results)
    path = inside(folder, folder / "report.html")
    write_whole(path, page.encode())
    return path


def report_page(folder: Path, results: Mapping[str, Any]) -> str:
    """The page, as HTML.

    Args:
        folder: From where the PNGs of the figures are taken.
        results: ``set``, ``profile``, ``created``, ``images``, ``unknown_images``, ``categories``, and ``format`` if
            there are files of results; ``references`` (of each expert) and ``versions`` as mappings; ``summary``, a
            list of sentences; ``tables``, each with ``id, title, paper, note, columns, rows``; ``figures``, each with
            ``id, title, file, caption``. A column has ``key, title, unit`` and may have ``best``: ``"high"`` or
            ``"low"``; a row has ``name``, ``values`` and, in the unit of these, ``interval``, both by key of column.
            The values of unit ``%`` are fractions.

    Raises:
        OSError: A figure cannot be read.
    """
    return rendered(
        "report.html.jinja",
        results=results,
        tables=[_table(table) for table in results["tables"]],
        figures=[_figure(folder, figure) for figure in results["figures"]],
    )


def shown(value: float | None, unit: str) -> str:
    """A number as the page shows it: percent with one decimal, ms with two, without unit three."""
    if value is None or not math.isfinite(value):
        return _NONE
    if unit == "%":
        text = f"{100 * value:,.1f}"
    elif not unit:
        text = f"{value:,.3f}"
    elif unit != "ms" and value == int(value):
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.2f}"
    # What rounds to nothing has no sign.
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.removeprefix("-")


def _table(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table whose rows have ``cells``, each with ``text``, ``interval`` (or empty) and whether it is ``best``."""
    columns = table["columns"]
    best = [_best(table, column) for column in columns]
    rows = []
    for row in table["rows"]:
        cells = []
        for column, top in zip(columns, best, strict=True):
            text = shown(row["values"].get(column["key"]), column["unit"])
            interval = _interval(row.get("interval", {}).get(column["key"]), column["unit"])
            cells.append({"text": text, "interval": interval, "best": text != _NONE and text == top})
        rows.append({"name": row["name"], "cells": cells})
    return {**table, "rows": rows}


def _best(table: Mapping[str, Any], column: Mapping[str, Any]) -> str | None:
    """The best value of a column, rounded as shown: equal texts are equally good."""
    values = [row["values"].get(column["key"]) for row in table["rows"]]
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or column.get("best") not in ("high", "low"):
        return None
    return shown(max(numbers) if column["best"] == "high" else min(numbers), column["unit"])


def _interval(limits: tuple[float, float] | None, unit: str) -> str:
    if limits is None:
        return ""
    low, high = (shown(limit, unit) for limit in limits)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def _figure(folder: Path, figure: Mapping[str, Any]) -> dict[str, Any]:
    """A figure with its ``png`` in base64, and the ``width`` in CSS pixels at which its letters have their size."""
    content = read_regular(folder / figure["file"])
    with Image.open(io.BytesIO(content)) as image:
        width = round(image.width * 96 / image.info.get("dpi", (96, 96))[0])
    return {**figure, "png": base64.b64encode(content).decode("ascii"), "width": width}
