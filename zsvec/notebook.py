"""Tables, bars and pictures for notebooks, which show the ``_repr_html_`` of a value."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from zsvec.errors import harmless

_LONGEST_CELL = 200  # characters


class Html(str):
    """HTML that a notebook shows. It has no script and no link, and all texts from outside are escaped."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<HTML of {len(self):,} characters, for a notebook>"

    def _repr_html_(self) -> str:
        return str(self)


def bar(fraction: float) -> Html:
    """Returns a bar for a fraction, 0 to 1."""
    return Html(f'<meter value="{fraction:.3f}"></meter>')


def picture(jpeg: bytes, caption: object, description: object) -> Html:
    """Returns a JPEG file with a caption, and a description for the pointer. Both are untrusted, as in `table`."""
    address, described = f"data:image/jpeg;base64,{b64encode(jpeg).decode()}", _text(description)
    return Html(f'<img src="{address}" alt="{described}" title="{described}"><br>{_text(caption)}')


def table(title: object, rows: Iterable[Sequence[object]]) -> Html:
    """Returns an HTML table with a title.

    The title and the cells may come from a store or from file names, so they are untrusted: markup and control
    characters are escaped, and long texts are shortened. Only `Html` stays as it is. The two classes keep MathJax from
    taking ``$`` in texts for the beginning of a formula, which could contain a link.
    """
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f'<caption style="text-align: left"><b>{_text(title)}</b></caption>'
    return Html(f'<table class="tex2jax_ignore mathjax_ignore">{caption}{body}</table>')


def _text(value: object) -> str:
    if isinstance(value, Html):
        return str(value)
    text = harmless(str(value))
    return escape(text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…")
