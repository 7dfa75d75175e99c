"""CSV rows that are safe to open in a spreadsheet, because no text is evaluated as a formula."""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable

from zsvec.errors import harmless
from zsvec.types import Prediction, kind_of

PREDICTION = ("source", "label", "nearest", "probability", "unknown", "novelty", "novelty_basis", "distance", "error")
"""Columns of a prediction. `Prediction.to_dict` returns all fields."""

_END = "\r\n"
_SIGNS = frozenset("=+-@\N{MINUS SIGN}")  # first characters of formulas, also in fullwidth and small forms
_SKIPPED = frozenset("\"'`,;|")  # skipped before a formula: quotes and separators
_SEPARATOR = re.compile("(?<=[;\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029])")  # a cell or a line may begin after each of these
_SKIPPED_CATEGORIES = ("C", "M", "Z", "Pi", "Pf")  # also skipped: controls, zero width, marks, spaces, quotes


def row(values: Iterable[object]) -> str:
    """Returns a line of CSV that ends with a line feed.

    Text that begins like a formula gets a leading apostrophe, with which spreadsheets mark text. This also applies to
    text after a semicolon, a tab or a line break within a value, because some import settings begin a new cell there.
    ``None`` becomes an empty cell. A bool becomes ``true`` or ``false``.

    Source: OWASP, "CSV Injection".
    """
    line = io.StringIO()
    csv.writer(line, lineterminator=_END).writerow(map(_cell, values))  # quotes values that contain \r or \n
    return line.getvalue().removesuffix(_END) + "\n"


def print_row(values: Iterable[object]) -> None:
    """Prints a line of CSV on stdout, and flushes. Escapes control characters on a terminal."""
    line = row(values)
    sys.stdout.write(harmless(line, but="\n") if sys.stdout.isatty() else line)
    sys.stdout.flush()


def prediction_printer(min_accuracy: float | None = None, *, many: bool = False) -> Callable[[Prediction], None]:
    """Returns a function that prints a prediction as lines of CSV. The first call prints a header before the lines.

    With `min_accuracy`, the last column is the answer of `Prediction.at`, in words. With `many`, the last column is
    ``labels``, and an image has one line for each label, as in a CSV file for ``zsvec import``. An image without labels
    has one line with an empty cell.
    """
    names = iter([(*PREDICTION, *["answer"] * (min_accuracy is not None), *["labels"] * many)])

    def show(prediction: Prediction) -> None:
        for columns in names:
            print_row(columns)
        values = [getattr(prediction, name) for name in PREDICTION]
        if min_accuracy is not None:
            answer = prediction.at(min_accuracy)
            values.append(answer and kind_of(prediction, answer[0]))
        labels: list[str | None] = [name for name, _ in prediction.labels] or [None]
        for label in labels if many else [None]:
            print_row([*values, *[label] * many])

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
