"""Rows of CSV, in which a spreadsheet takes no text for a formula."""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable

from zsvec.cli.process import harmless
from zsvec.types import Prediction

PREDICTION = ("source", "label", "nearest", "probability", "unknown", "novelty", "distance", "error")
"""The fields of a prediction that are columns; `Prediction.to_dict` has all."""

_END = "\r\n"
_SIGNS = frozenset("=+-@\N{MINUS SIGN}")  # begin a formula, their wide and small forms too
_SKIPPED = frozenset("\"'`,;|")  # quotes and separators
_SEPARATOR = re.compile("(?<=[;\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029])")  # a cell or line may begin behind it
_SKIPPED_CATEGORIES = ("C", "M", "Z", "Pi", "Pf")  # controls, zero width, marks, spaces, quotes


def row(values: Iterable[object]) -> str:
    """A line of CSV with its end.

    Names and paths may be anybody's. A text that begins like a formula gets an apostrophe before it, as spreadsheets
    mark text; after a semicolon, a tab or a line break likewise, where some settings of an import begin a cell. Source:
    OWASP, "CSV Injection". ``None`` is an empty cell, a truth value ``true`` or ``false``.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator=_END).writerow(
        [_cell(value) for value in values]
    )  # characters of its line end are quoted
    return line.getvalue().removesuffix(_END) + "\n"


def print_row(values: Iterable[object]) -> None:
    """Print a line of CSV on stdout, at once; to a terminal without any character that it could obey."""
    line = row(values)
    sys.stdout.write(harmless(line, but="\n") if sys.stdout.isatty() else line)
    sys.stdout.flush()


def prediction_printer() -> Callable[[Prediction], None]:
    """A function that prints a prediction as a line, and before the first the names of the columns."""
    names = iter([PREDICTION])

    def show(prediction: Prediction) -> None:
        for columns in names:
            print_row(columns)
        print_row(getattr(prediction, name) for name in PREDICTION)

    return show


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _marked("".join(map(_marked, _SEPARATOR.split(value)))) if isinstance(value, str) else value


def _marked(text: str) -> str:
    return f"'{text}" if _begins_like_a_formula(text) and not text.startswith("'") else text


def _begins_like_a_formula(text: str) -> bool:
    for character in text:
        for plain in unicodedata.normalize("NFKC", character):
            if plain in _SIGNS:
                return True
            if plain not in _SKIPPED and not unicodedata.category(plain).startswith(_SKIPPED_CATEGORIES):
                return False
    return False
