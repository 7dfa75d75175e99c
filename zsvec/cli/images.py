"""The commands for the small copies of images that a store keeps."""

from __future__ import annotations

import typer

from zsvec.cli.app import Yes, app, confirm, is_terminal

images = typer.Typer(help="Look after the small copies of reference images that the store keeps.", no_args_is_help=True)
app.add_typer(images, name="images")


@images.command()
def drop(context: typer.Context, yes: Yes = False) -> None:
    """Delete all small copies of images, and keep none. References stay.

    `--keep-images small`, or the setting, starts again with new images.
    """
    from zsvec.cli import output

    with context.obj.open_store() as store:
        if is_terminal() and not yes:
            confirm("Delete all small copies of images?")
        store.drop_images()
    output.print_note("all small copies of images are deleted, and none are kept any more")
