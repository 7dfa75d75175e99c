"""Pages that need no other file, no script and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def rendered(template: str, **values: Any) -> str:
    """A page as HTML. Names of categories and of files come from outside: all that is filled in is escaped.

    Args:
        template: Name of a file in this folder, which extends ``page.html.jinja``.
        values: What is filled in; all that the template names.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
