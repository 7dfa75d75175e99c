"""The command that shows the documentation pages of the package."""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from typing import Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import app
from zsvec.errors import InvalidInputError

TOPICS = (
    "quickstart",
    "decides",
    "categories",
    "unknowns",
    "audit",
    "inbox",
    "service",
    "problems",
    "streams",
    "server",
    "archive",
    "encoders",
    "evaluation",
    "generation",
    "integrations",
    "measured",
    "limits",
    "architecture",
    "commands",
    "settings",
)
"""The pages, in reading order."""

_PAGE_LINK = re.compile(r"\[([^]]+)\]\((\w+)\.md\)")
_FIRST_SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


@app.command()
def docs(topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Page to show.")] = None) -> None:
    """Show a page of the documentation, or list the topics."""
    if topic is None:
        output.out.print(output.facts_table({name: summary(page(name)) for name in TOPICS}))
        return
    text = page(topic)
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        output.out.print(Markdown(_PAGE_LINK.sub(r"\1 (`zsvec docs \2`)", text)), soft_wrap=False)
    else:
        sys.stdout.write(text)


def page(topic: str) -> str:
    """Returns a page as Markdown.

    Raises:
        InvalidInputError: There is no page of this name.
    """
    if topic not in TOPICS:
        from zsvec.settings.settings import did_you_mean

        near = did_you_mean(topic, TOPICS) or "."
        raise InvalidInputError(f"no page is called {topic!r}{near} Topics: {', '.join(TOPICS)}")
    return files("zsvec").joinpath("docs", f"{topic}.md").read_text(encoding="utf-8")


def summary(text: str) -> str:
    """Returns the first sentence of a page."""
    paragraph = next(part for part in text.split("\n\n") if part.strip() and not part.startswith("#"))
    found = _FIRST_SENTENCE.match(paragraph)
    return " ".join((found[0] if found else paragraph).split())
