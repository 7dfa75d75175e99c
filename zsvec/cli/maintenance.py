"""The commands that look after the store and the installation: info, doctor, init, gc, images drop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, Yes, app, confirm

if TYPE_CHECKING:
    from zsvec.types import Change

images = typer.Typer(help="Look after the small copies of reference images that the store keeps.", no_args_is_help=True)


@app.command()
def info(context: typer.Context, json: Json = False) -> None:
    """Show the store's contents, encoders, their speed, and the engine."""
    from zsvec.settings.settings import info as facts

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
        typer.Argument(metavar="[URL|DIR]", help="Store, as --store."),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make differing replicas of a catalog agree.")] = False,
    json: Json = False,
) -> None:
    """Check encoders, GPU, hub, weights, store and each node of a server, and suggest fixes."""
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
    """Create the collections of the store, for keys without that right. Writes create them too."""
    with context.obj.open() as classifier:
        classifier.create()
        output.print_note(f"{classifier.location} is there")


@app.command()
def gc(
    context: typer.Context,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Minimum age of deleted references; may shorten the history.  [default: as writers and history need]",
        ),
    ] = None,
) -> None:
    """Delete unused references: those of killed writers, and those replaced longer ago than the history.

    Names each change that can no longer be undone.
    """
    from zsvec.cli.history import said

    final: list[Change] = []
    with context.obj.open_store() as store:
        deleted = store.gc(grace, on_final=final.append)
    for change in final:
        output.print_note(f"final: {said(change)}")
    output.print_note(f"{output.counted(deleted, 'reference')} deleted")


@images.command()
def drop(context: typer.Context, yes: Yes = False) -> None:
    """Delete all small copies of images, and keep none. References stay.

    `--keep-images small`, or the setting, starts again with new images.
    """
    with context.obj.open_store() as store:
        confirm("Delete all small copies of images?", yes=yes)
        store.drop_images()
    output.print_note("all small copies of images are deleted, and none are kept any more")


app.add_typer(images, name="images")
