"""The commands for the encoders of a profile: export them, to run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsvec.cli.app import app
from zsvec.errors import MissingExtraError

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
            "folder, they are kept for this user and this machine, and used from the next start on if that is as fast.",
        ),
    ] = None,
) -> None:
    """Export the encoders of the profile for onnxruntime, which starts in a fraction of a second.

    The vectors are compared with those of torch; they are the same, so stores stay valid.
    """
    from zsvec.cli import output
    from zsvec.encoders.cache import chosen_specs

    try:
        from zsvec.encoders.export import export_encoders, export_to_cache
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f'{exc.name} is not installed, and exports encoders: pip install "zsvec[onnx]"'
        ) from exc
    settings = context.obj.settings()
    specs = settings.encoder_specs()
    if folder is not None:
        export_encoders(specs, folder)
        output.print_note(f"exported to {folder}: use them by --profile {folder.absolute()}")
        return
    record = export_to_cache(specs)
    device, dtype, runtime = settings.device, settings.dtype, settings.runtime
    if chosen_specs(specs, device=device, dtype=dtype, runtime=runtime) is not specs:
        used = "onnxruntime from the next start on"
    elif record.is_fast:
        used = f"torch as before, by runtime={runtime!r}, device={device!r} and dtype={dtype!r} (zsvec docs encoders)"
    else:
        used = "torch as before: onnxruntime is slower here"
    output.print_note(f"{record}: {used}")
