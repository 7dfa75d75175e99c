"""Rows of CSV."""

from __future__ import annotations

import csv
import io

import pytest

from zsvec.cli.spreadsheet import row


def test_what_is_written_is_read() -> None:
    values = ["a.png", 'say "a", b', "two\nlines", "", "ünï", " x"]
    assert next(csv.reader(io.StringIO(row(values), newline=""))) == values
    assert row([1, 0.25, None, True, False, -0.5]) == "1,0.25,,true,false,-0.5\n"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "=cmd|' /C calc'!A0", "-photo.jpg", "＝1"]
)
def test_a_text_is_no_formula(text: str) -> None:
    (found,) = next(csv.reader(io.StringIO(row([text]), newline="")))
    assert found == f"'{text}"


@pytest.mark.parametrize("text", ["a=1", "photos/-1.jpg", "1-2", "'=1", "a@b"])
def test_other_texts_are_as_they_are(text: str) -> None:
    assert row([text]) == f"{text}\n"
