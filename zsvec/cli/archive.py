"""The command that exports a store to an archive, and the part of `zsvec import` that imports one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.cli.copying import print_notes
from zsvec.errors import StoreError
from zsvec.types import Category

if TYPE_CHECKING:
    from zsvec.cli.app import Target

Categories = Annotated[
    list[str] | None,
    typer.Option(
        "--categories",
        metavar="NAME",
        help="A category of the archive, without calibration and inbox. Repeatable.  [default: everything]",
    ),
]


@app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive to write, such as birds.zsvec.")],
    categories: Categories = None,
    json: Json = False,
) -> None:
    """Export the store to one file, which `zsvec import` reads. No encoder runs.

    The archive has vectors, texts, metadata, small images, the inbox and the calibration. It is a zip of JSON and
    safetensors, which other programs can read: see `zsvec docs archive`. The history stays behind.

    An archive of the same name is replaced only when the new one is complete.

    Exit code 1 if a category is damaged, or changes during the export: it is named, and all others are exported.
    """
    from zsvec.curation.archive import Archive

    with context.obj.open_store() as store, output.progress("exporting", None) as counted:
        archive = Archive(store)
        copied = archive.export(file, categories=categories, on_commit=_on_commit(json=json), track=counted)
    if copied.calibration is False:
        output.print_note("the archive has no calibration, because it lacks categories, or the store has changed")
    copied = changed(copied, calibration=None, size=file.stat().st_size)
    print_notes(copied, replace=False, done="exported", target=str(file))
    if not copied.complete:
        raise typer.Exit(1)


def import_archive(
    target: Target,
    file: Path,
    *,
    categories: Sequence[str] | None,
    replace: bool,
    keep_images: str | None,
    json: bool,
) -> None:
    """Imports an archive to the store of the options, and exits with 1 unless all categories are there."""
    from zsvec.curation.archive import Archive

    settings = target.settings(keep_images=keep_images)
    own = {one.name: one.fingerprint for one in settings.import_encoders()} if settings.encoders else {}
    committed: list[Category] = []

    def imported() -> str:
        return output.counted(len(committed), "category", "categories") + " imported"

    notify = _on_commit(json=json)

    def keep(category: Category) -> None:
        committed.append(category)
        notify(category)

    try:
        with settings.open_store() as store, output.progress("importing", None) as counted:
            uses_profile = settings.has_encoders and not own and not store.encoders()
            names = settings.encoder_specs() if uses_profile else own
            archive = Archive(store, names, settings.keep_images, (lambda: own) if own else None)
            copied = archive.import_(file, categories=categories, replace=replace, on_commit=keep, track=counted)
            is_calibrated = store.info()["calibration"] == "current"
    except KeyboardInterrupt:
        output.print_note(f"interrupted: {imported()}. Repeat the command to go on")
        raise
    except StoreError:
        if committed:
            output.print_note(f"{imported()}, and then an error:")
        raise
    copied = copied if is_calibrated else changed(copied, calibration=None)
    print_notes(copied, replace=replace, done="imported", target="the store")
    if not is_calibrated:
        output.print_note("the store has no current calibration: run `zsvec calibrate`")
    if not copied.complete:
        raise typer.Exit(1)


def _on_commit(*, json: bool) -> Callable[[Category], None]:
    return lambda category: output.print_json(category.to_dict()) if json else None
