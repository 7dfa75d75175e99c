"""The commands that list and undo changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import Json, app, confirm, is_terminal
from zsvec.errors import ChangeIdNeededError
from zsvec.types import SWITCH, Change, counted


@app.command()
def history(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this category.")] = None,
    json: Json = False,
) -> None:
    """List recent changes, undone ones included, newest first.

    `final` marks a change that erased an image and cannot be undone.
    """
    if name is not None:
        from zsvec import checked_name

        name = checked_name(name)
    with context.obj.open_store() as store:
        found = [change for change in store.changes() if name is None or name in change.categories]
        if name is not None and not found:
            store.category(name)  # raises an error if there is no such category
    of = "" if name is None else f" of {name!r}"
    output.print_found(found, _table, json=json, otherwise=f"there are no changes{of} to undo")


@app.command()
def undo(
    context: typer.Context,
    change: Annotated[
        str | None, typer.Argument(metavar="CHANGE", help="Id of a change, or a prefix; see `zsvec history`.")
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="NAME", help="Undo the last change of this category.")
    ] = None,
    json: Json = False,
) -> None:
    """Undo the last change, or the change with the given id. To redo a change, give the id of the undo.

    Without an id, asks before it undoes a change of another author (setting `added_by`), or of more than 100 images. If
    `added_by` is not set, it always asks. A script must give the id. With `--category` and an id, only this category is
    restored.
    """
    with context.obj.open(runs_encoders=False) as classifier, classifier.history.one_change("undo") as last:
        try:
            undone = classifier.history.undo(category, change=change)
        except ChangeIdNeededError as exc:
            if not (is_terminal() and isinstance(exc.change, Change)):
                raise
            confirm(f"Undo {described(exc.change)}?", yes=False)
            undone = classifier.history.undo(category, change=exc.change.id)
    if json:
        output.print_json(undone.to_dict())
    elif undone.what == SWITCH:
        output.print_note(f"undone: {described(undone)}; redo with `zsvec reembed --switch` and the same encoders")
    else:
        output.print_note(f"undone: {described(undone)}; redo with `zsvec undo {last[:8]}`")
        for name in undone.left_out:
            output.print_note(f"{name!r} stays as it is: it has changed since the undo")


def described(change: Change) -> str:
    """Returns a description of a change: kind, categories, number of images, time and author."""
    whole = "the store" if change.what == SWITCH else "the inbox"
    names = output.shortened(", ".join(map(repr, change.categories))) or whole
    images = f"{counted(change.images, 'image')}, " if change.images else ""
    by = f", by {change.by}" if change.by else ""
    return f"{change.what} of {names} ({images}{_second(change)}{by})"


def _table(changes: Sequence[Change]) -> Table:
    return output.new_table(
        *("change", "what", "categories", "at", "by", ""),
        rows=(
            (
                change.id[:8],
                change.what,
                output.shortened(", ".join(change.categories)) or "–",
                _second(change),
                change.by or "–",
                "undone" if change.undone else "final" if change.final else "",
            )
            for change in changes
        ),
        wrapped=("categories",),
    )


def _second(change: Change) -> str:
    return f"{change.at.astimezone():%Y-%m-%d %H:%M:%S}"
