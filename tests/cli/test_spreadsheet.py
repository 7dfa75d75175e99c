"""Rows of CSV."""

from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from zsvec.cli.spreadsheet import row


def read(line: str) -> list[str]:
    return next(csv.reader(io.StringIO(line, newline="")))


def test_values_are_read_as_they_were_written() -> None:
    values = ["a.png", 'say "a", b', "two\nlines", "", "ünï", " x"]
    assert read(row(values)) == values
    assert row([1, 0.25, None, True, False, -0.5]) == "1,0.25,,true,false,-0.5\n"
    for text in ("a=1", "photos/-1.jpg", "1-2", "'=1", "a@b", "a; b", "é=1", "…"):
        assert row([text]) == f"{text}\n"


SIGNS = "=+-@\u2212﹢﹣﹦﹫＝＋－＠"
SKIPPED = "".join([' \t\r\n"`,;|“”«»', "\x00\x1f\x7f\x85\xa0\xad", "\u034f\u180e\u200b\u200e\u2028\u202e\u2060"])


@given(st.text(SKIPPED + "\u3000\ufe0f\ufeff\udc80", max_size=4), st.sampled_from(SIGNS), st.text(max_size=4))
def test_no_prefix_hides_a_formula(prefix: str, sign: str, rest: str) -> None:
    (found,) = read(row([f"{prefix}{sign}{rest}"]))
    assert found.startswith("'")
    assert found.replace("'", "") == f"{prefix}{sign}{rest}".replace("'", "")


def test_formulas_are_text() -> None:
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", " =1", "=cmd|' /C calc'!A0", "-photo.jpg", "＝1"):
        assert read(row([text])) == [f"'{text}"]
    for text in (";=x", "a;=x", "a; =x", "=\u03381"):
        (found,) = read(row([text]))
        assert [cell for cell in found.split(";") if cell.strip().startswith("=")] == []


def test_no_separator_begins_a_formula() -> None:
    for separator in ";\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029":
        for text in ("a{}=1+1", "a{}=1+1;", "a{}b{}＝1", "{}=1", "a{}{}=1"):
            given = text.replace("{}", separator)
            (found,) = read(row([given]))
            assert [cell for cell in found.split(separator) if cell.strip().startswith(("=", "＝"))] == []
            assert found.replace("'", "") == given
