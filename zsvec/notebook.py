"""Tables for notebooks, which show the ``_repr_html_`` of a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from zsvec.errors import harmless

_LONGEST_CELL = 200  # characters


def table(title: object, rows: Iterable[Sequence[object]]) -> str:
    """Returns an HTML table with a title.

    The title and the cells may come from a store or from file names, so they are untrusted: markup and control
    characters are escaped, and long texts are shortened. The two classes keep MathJax from taking ``$`` in them for the
    beginning of a formula, which could contain a link.
    """
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f'<caption style="text-align: left"><b>{_text(title)}</b></caption>'
    return f'<table class="tex2jax_ignore mathjax_ignore">{caption}{body}</table>'


def _text(value: object) -> str:
    text = harmless(str(value))
    return escape(text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…")
