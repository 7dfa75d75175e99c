"""The commands that show what was changed, and take it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Json, app
from zsvec.types import Change

if TYPE_CHECKING:
    from rich.table import Table


@app.command()
def history(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this category.")] = None,
    json: Json = False,
) -> None:
    """List changes that can be undone, and undone ones, newest first."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        found = [change for change in store.changes() if name is None or name in change.categories]
    if json:
        for change in found:
            output.print_json(change.to_dict())
    elif found:
        output.out.print(changes_table(found))
    else:
        output.print_note("there are no changes that can be taken back")


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
    from zsvec.cli import output

    with context.obj.open() as classifier:
        undone = classifier.history.undo(category, change=change)
        last = next((one.id for one in classifier.history if one.what == "undo"), "")
    if json:
        output.print_json(undone.to_dict())
    else:
        output.print_note(f"taken back: {said(undone)}; `zsvec undo {last[:8]}` does it again")


def said(change: Change) -> str:
    """A change in words."""
    from zsvec.cli import output

    names = output.shortened(", ".join(map(repr, change.categories)))
    by = f", by {change.by}" if change.by else ""
    return f"{change.what} of {names} ({change.at.astimezone():%Y-%m-%d %H:%M:%S}{by})"


def changes_table(changes: Sequence[Change]) -> Table:
    """A row for each change."""
    from zsvec.cli import output
    from zsvec.cli.output import escape

    table = output.new_table("change", "what", "categories", "at", "by", "")
    for change in changes:
        names = output.shortened(", ".join(change.categories))
        at = f"{change.at.astimezone():%Y-%m-%d %H:%M:%S}"
        undone = "taken back" if change.undone else ""
        table.add_row(escape(change.id[:8]), escape(change.what), escape(names), at, escape(change.by or "–"), undone)
    return table
