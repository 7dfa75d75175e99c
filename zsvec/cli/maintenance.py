"""The commands that look after the store and the installation: info, doctor, gc."""

from __future__ import annotations

import typer

from zsvec.cli.app import Json, app


@app.command()
def info(context: typer.Context, json: Json = False) -> None:
    """Show what is in the store, which encoders made its vectors, and which engine serves it."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        found = store.info()
    if json:
        output.print_json(found)
    else:
        output.out.print(output.facts_table(found))


@app.command()
def doctor(context: typer.Context, json: Json = False) -> None:
    """Say what works here (encoders, GPU, hub, weights, store) and what to do about the rest."""
    from zsvec.cli import output
    from zsvec.cli.doctor import examine, findings_table

    findings = list(examine(context.obj))
    for finding in findings:
        if json:
            output.print_json(finding.to_dict())
    if not json:
        output.out.print(findings_table(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def gc(context: typer.Context) -> None:
    """Delete references left behind by killed writers. No reader sees them, but they take space."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        deleted = store.gc()
    output.print_note(f"{deleted} references deleted")
