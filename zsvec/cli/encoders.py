"""The command that exports the encoders of a profile, so that they run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import App, app, images_in
from zsvec.cli.exporting import export_for_user
from zsvec.errors import ImageError, InvalidInputError, StoreLockedError, StoreUnavailableError, needs_extra

if TYPE_CHECKING:
    from PIL import Image

    from zsvec import Settings
    from zsvec.cli.app import Target

_SIDE = 640  # longest side of a calibration image, in pixels; 128 images take 160 MB

encoders = App(help="Export the encoders of the profile, to run without torch.", no_args_is_help=True)
app.add_typer(encoders, name="encoders")


@encoders.command()
def export(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder to write, then usable as --profile FOLDER on machines without torch.  [default: your cache, "
            "which is used automatically if about as fast as torch]",
        ),
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(
            metavar="PHOTOS",
            help="Quantise image models to int8 where faster, calibrated on a folder of photographs. A float32 store "
            "refuses the vectors. Needs FOLDER.",
        ),
    ] = None,
) -> None:
    """Export the encoders of the profile for onnxruntime, which starts in a fraction of a second.

    Vectors stay the same and stores stay valid, unless you give --int8.
    """
    if int8 is not None and folder is None:
        raise InvalidInputError("--int8 takes a folder to export to: encoders kept for you have the vectors of torch")
    with needs_extra("export", "an export"):
        from zsvec.encoders.torch.export import export_encoders
    settings = _settings(context.obj)
    if settings.encoders is not None:
        raise InvalidInputError(
            f"the encoders to export must belong to a profile, got {settings.encoders_name}. Export the model with its "
            "own library, and name the graph in a profile (see `zsvec docs encoders`)"
        )
    specs = settings.encoder_specs()
    if folder is not None:
        photographs = _photographs(int8, settings) if int8 else None
        with output.steps(f"exporting the encoders of profile {settings.profile}") as on_step:
            cosines = export_encoders(specs, folder, photographs=photographs, on_step=on_step)
        if int8 is not None:
            said = ", ".join(f"{name} (mean cosine {cosine:.4f})" for name, cosine in cosines.items())
            output.print_note(f"in int8: {said or 'nothing, which would be slower here, or too different'}")
        output.print_note(f"exported to {folder}: use them by --profile {folder.absolute()}")
        return
    output.print_note(export_for_user(specs, settings))


def _settings(target: Target) -> Settings:
    """Returns the settings, with the profile of the store if none is given.

    Raises:
        StoreError: The store cannot be opened, for example because a service has it open.
    """
    settings = target.settings()
    try:
        return settings.of_store()
    except (StoreLockedError, StoreUnavailableError) as exc:
        raise type(exc)(
            f"the profile of the store is unknown: {exc}. Name the profile, so that the store is not opened: "
            "zsvec --profile NAME encoders export"
        ) from exc


def _photographs(folder: Path, settings: Settings) -> list[Image.Image]:
    """Returns a sample of the images in a folder, scaled down to save memory. Reports and skips unreadable images."""
    import zsvec
    from zsvec.encoders.onnx.int8 import MOST_PHOTOGRAPHS

    paths, found = images_in(folder), []
    for path in paths[:: -(-len(paths) // MOST_PHOTOGRAPHS) or 1]:
        try:
            image = zsvec.load_image(path, side=_SIDE, **settings.image_limits())
        except ImageError as exc:
            output.print_note(f"left out: {exc}")
        else:
            image.thumbnail((_SIDE, _SIDE))
            found.append(image)
    return found
