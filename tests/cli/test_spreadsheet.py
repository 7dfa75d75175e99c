"""Rows of CSV."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsvec.cli.spreadsheet import row


def test_what_is_written_is_read() -> None:
    values = ["a.png", 'say "a", b', "two\nlines", "", "ünï", " x"]
    assert next(csv.reader(io.StringIO(row(values), newline=""))) == values
    assert row([1, 0.25, None, True, False, -0.5]) == "1,0.25,,true,false,-0.5\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "=cmd|' /C calc'!A0", "-photo.jpg", "＝1"])
def test_a_text_is_no_formula(text: str) -> None:
    (found,) = next(csv.reader(io.StringIO(row([text]), newline="")))
    assert found == f"'{text}"


SIGNS = "=+-@\u2212﹢﹣﹦﹫＝＋－＠"
SKIPPED = "".join([' \t\r\n"`,;|“”«»', "\x00\x1f\x7f\x85\xa0\xad", "\u034f\u180e\u200b\u200e\u2028\u202e\u2060"])


@given(st.text(SKIPPED + "\u3000\ufe0f\ufeff\udc80", max_size=4), st.sampled_from(SIGNS), st.text(max_size=4))
def test_no_prefix_hides_a_formula(prefix: str, sign: str, rest: str) -> None:
    (found,) = next(csv.reader(io.StringIO(row([f"{prefix}{sign}{rest}"]), newline="")))
    assert found.startswith("'")
    assert found.replace("'", "") == f"{prefix}{sign}{rest}".replace("'", "")


@pytest.mark.parametrize("text", [";=x", "a;=x", "a; =x", "=\u03381"])
def test_a_cell_that_a_semicolon_begins_is_no_formula(text: str) -> None:
    (found,) = next(csv.reader(io.StringIO(row([text]), newline="")))
    assert [cell for cell in found.split(";") if cell.strip().startswith("=")] == []


@pytest.mark.parametrize("separator", ";\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
@pytest.mark.parametrize("text", ["a{}=1+1", "a{}=1+1;", "a{}b{}＝1", "{}=1", "a{}{}=1"])
def test_a_cell_that_a_tab_or_line_break_begins_is_no_formula(text: str, separator: str) -> None:
    given = text.replace("{}", separator)
    (found,) = next(csv.reader(io.StringIO(row([given]), newline="")))
    assert [cell for cell in found.split(separator) if cell.strip().startswith(("=", "＝"))] == []
    assert found.replace("'", "") == given


@pytest.mark.parametrize("text", ["a=1", "photos/-1.jpg", "1-2", "'=1", "a@b", "a; b", "é=1", "…"])
def test_other_texts_are_as_they_are(text: str) -> None:
    assert row([text]) == f"{text}\n"
