"""The commands about the store and the installation: info, doctor, gc, demo."""

from __future__ import annotations

import typer

from zsvec.cli.app import Json, app


@app.command()
def demo() -> None:
    """Show the whole story in a minute: real photographs, a category added live, an answer that changes.

    Works offline, in a temporary folder that is removed afterwards.
    """
    from zsvec.cli.demo import run

    run()


@app.command()
def info(context: typer.Context, json: Json = False) -> None:
    """Show what the store holds, what made its vectors, and what serves it."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        found = store.info()
    if json:
        output.json_line(found)
    else:
        output.out.print(output.facts(found))


@app.command()
def doctor(context: typer.Context, json: Json = False) -> None:
    """Say what works here (encoders, GPU, hub, weights, store) and what to do about the rest."""
    from zsvec.cli import output
    from zsvec.cli.doctor import examine

    findings = list(examine(context.obj))
    for finding in findings:
        if json:
            output.json_line(finding.to_dict())
    if not json:
        output.out.print(output.findings(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def gc(context: typer.Context) -> None:
    """Delete references that a writer left behind when it was killed. Nobody sees them; they take space."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        deleted = store.gc()
    output.note(f"{deleted} references deleted")
