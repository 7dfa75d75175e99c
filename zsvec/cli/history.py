"""The commands that show what was changed, and take it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.types import Change


@app.command()
def history(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this category.")] = None,
    json: Json = False,
) -> None:
    """List changes that can be undone, and undone ones, newest first."""
    if name is not None:
        from zsvec import checked_name

        name = checked_name(name)
    with context.obj.open_store() as store:
        found = [change for change in store.changes() if name is None or name in change.categories]
    output.print_found(found, _table, json=json, otherwise="there are no changes that can be taken back")


@app.command()
def undo(
    context: typer.Context,
    change: Annotated[
        str | None, typer.Argument(metavar="[CHANGE]", help="Id of a change, or its beginning; see `zsvec history`.")
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="NAME", help="Undo the last change of this category.")
    ] = None,
    json: Json = False,
) -> None:
    """Undo the last change, or another one. An undo can be undone by its id."""
    with context.obj.open() as classifier, classifier.history.one_change("undo") as last:
        undone = classifier.history.undo(category, change=change)
    if json:
        output.print_json(undone.to_dict())
    else:
        output.print_note(f"taken back: {said(undone)}; `zsvec undo {last[:8]}` does it again")


def said(change: Change) -> str:
    """A change in words."""
    names = output.shortened(", ".join(map(repr, change.categories)))
    by = f", by {change.by}" if change.by else ""
    return f"{change.what} of {names} ({change.at.astimezone():%Y-%m-%d %H:%M:%S}{by})"


def _table(changes: Sequence[Change]) -> Table:
    return output.new_table(
        *("change", "what", "categories", "at", "by", ""),
        rows=(
            (
                change.id[:8],
                change.what,
                output.shortened(", ".join(change.categories)),
                f"{change.at.astimezone():%Y-%m-%d %H:%M:%S}",
                change.by or "–",
                "taken back" if change.undone else "",
            )
            for change in changes
        ),
    )
