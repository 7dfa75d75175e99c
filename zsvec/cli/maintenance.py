"""The commands that look after the store and the installation: info, doctor, init, gc."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Json, app

if TYPE_CHECKING:
    from zsvec.types import Change


@app.command()
def info(context: typer.Context, json: Json = False) -> None:
    """Show what is in the store, which encoders made its vectors, how fast they are, and which engine serves it."""
    from zsvec.cli import output
    from zsvec.settings.info import info as facts

    with context.obj.open_store() as store:
        found = facts(store, context.obj.settings())
    if json:
        output.print_json(found)
    else:
        output.out.print(output.facts_table(found))


@app.command()
def doctor(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Argument(metavar="[URL|DIR]", help="The store, as --store."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the copies of a catalog in a cluster agree, where they do not.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what works here (encoders, GPU, hub, weights, store, each node of a server) and what to do about the rest."""
    from zsvec.cli import output
    from zsvec.cli.doctor import examine, findings_table

    target = replace(context.obj, store=store) if store else context.obj
    findings = list(examine(target, repair=repair))
    for finding in findings:
        if json:
            output.print_json(finding.to_dict())
    if not json:
        output.out.print(findings_table(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def init(context: typer.Context) -> None:
    """Make the collections of the store, which a key with fewer rights can fill then. Writes make them too."""
    from zsvec.cli import output

    with context.obj.open() as classifier:
        classifier.create()
        output.print_note(f"{classifier.store.location} is there")


@app.command()
def gc(
    context: typer.Context,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Age from which they go, also of changes that could be taken back yet.  [default: as long as a writer "
            "may be at work, and the history is kept]",
        ),
    ] = None,
) -> None:
    """Delete references that no category names: left behind by killed writers, or replaced before the last day.

    No reader sees them, but they take space. What is deleted of a change makes that final: `zsvec undo` cannot take it
    back any more. Each such change is named.
    """
    from zsvec.cli import output
    from zsvec.cli.history import said

    final: list[Change] = []
    with context.obj.open_store() as store:
        deleted = store.gc(grace, on_final=final.append)
    for change in final:
        output.print_note(f"final: {said(change)}")
    output.print_note(f"{output.counted(deleted, 'reference')} deleted")
