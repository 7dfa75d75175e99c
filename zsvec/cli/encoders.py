"""The commands for the encoders of a profile: export them, to run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsvec.cli.app import app

encoders = typer.Typer(help="Export the encoders of the profile, to run without torch.", no_args_is_help=True)
app.add_typer(encoders, name="encoders")


@encoders.command()
def export(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Where to; then --profile FOLDER takes them from there, on machines without torch too. Without a "
            "folder, they are kept for this user and this machine, and used from the next start on.",
        ),
    ] = None,
) -> None:
    """Export the encoders of the profile for onnxruntime, which starts in a fraction of a second.

    The vectors are compared with those of torch; they are the same, so stores stay valid.
    """
    from zsvec.cli import output
    from zsvec.encoders.export import export_encoders, export_to_cache

    specs = context.obj.settings().encoder_specs()
    if folder is None:
        record = export_to_cache(specs)
        used = "onnxruntime from the next start on" if record.is_fast else "torch as before: onnxruntime is slower here"
        output.print_note(f"{record}: {used}")
        return
    export_encoders(specs, folder)
    output.print_note(f"exported to {folder}: use them by --profile {folder.absolute()}")
