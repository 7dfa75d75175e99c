"""The commands that add, remove and show categories."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Json, Name, Replace, app, images_at
from zsvec.errors import CategoryNotFoundError, ImageError
from zsvec.types import Category

if TYPE_CHECKING:
    from rich.table import Table

    from zsvec.store import Store


@app.command("import")
def import_(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with a sub-folder of reference images for each category.")
    ],
    definitions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts that define categories: JSON {category: text or [texts]}, or CSV with the columns category "
            "and text. A category without any is defined by its name.",
        ),
    ] = None,
    replace_: Replace = False,
    json: Json = False,
) -> None:
    """Add a category for each sub-folder of DIR, named like the folder.

    Repeat the command freely: stored images are recognised and not embedded again. Unreadable images are reported
    and left out.
    """
    from zsvec.cli import output
    from zsvec.inputs.folders import category_folders, read_categories, read_definitions

    found = read_categories(folder, read_definitions(definitions) if definitions else None)
    images = sum(len(list(category.images)) for category in found)
    folders = category_folders(folder)
    bare = [category.name for category in found if not list(category.images)]
    notes = {
        "no images in the folders": [name for name in bare if name in folders],
        "no folder for the definitions of": [name for name in bare if name not in folders],
    }
    if bare:
        output.print_note("; ".join(f"{what} {', '.join(names)}" for what, names in notes.items() if names))
    unreadable = 0

    def report(source: str, error: ImageError) -> None:
        nonlocal unreadable
        unreadable += 1
        output.print_note(f"left out: {error}")

    def print_category(category: Category) -> None:
        output.print_json(category.to_dict())

    start = time.monotonic()
    with context.obj.open() as classifier, output.progress("importing", images) as counted:
        inputs = (replace(category, images=counted(category.images)) for category in found)
        committed = classifier.add_categories(
            inputs, replace=replace_, on_error=report, on_commit=print_category if json else None
        )
    seconds = time.monotonic() - start
    what = f"{output.counted(len(committed), 'category', 'categories')}, {output.counted(images, 'image')}"
    output.print_note(f"{what} ({unreadable} unreadable) in {seconds:.1f} s")
    if images and unreadable == images:
        raise typer.Exit(1)


@app.command()
def add(
    context: typer.Context,
    name: Name,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text that defines the category; by default its name. Repeatable."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="PATH|DIR", help="A reference image, or a folder of them. Repeatable."),
    ] = None,
    replace_: Replace = False,
    json: Json = False,
) -> None:
    """Add a category, or references to one that exists. Every process uses them from its next image on."""
    from zsvec.cli import output

    images = [path for given in image or [] for path in images_at(given)]
    with context.obj.open() as classifier:
        category = classifier.add_category(name, text or None, images, replace=replace_)
    if json:
        output.print_json(category.to_dict())
    else:
        output.out.print(_categories_table([category]))


@app.command()
def remove(context: typer.Context, name: Name) -> None:
    """Remove a category and its references. A small store is then calibrated again."""
    from zsvec.cli import output

    with context.obj.open() as classifier, _nearest_name(name, classifier.store):
        classifier.remove_category(name)
    output.print_note(f"removed {name}")


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the categories, with how many references each has."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        found = store.categories()
        location = store.location
    if json:
        for category in found:
            output.print_json(category.to_dict())
    elif found:
        output.out.print(_categories_table(found))
    else:
        output.print_note(f"no categories in {location}: add one with `zsvec add` or `zsvec import`")


@app.command()
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show a category: its texts, and the source of each reference."""
    from zsvec.cli import output
    from zsvec.inputs.categories import checked_name

    with context.obj.open_store() as store:
        with _nearest_name(name, store):
            category = store.category(checked_name(name))
        sources = store.sources(category)
    if json:
        output.print_json({**category.to_dict(), "metadata": category.metadata, "sources": sources})
        return
    output.out.print(_categories_table([category]))
    for expert, origins in sources.items():
        output.out.print(output.facts_table({f"{expert} {i}": source for i, source in enumerate(origins, 1)}))


@contextmanager
def _nearest_name(name: str, store: Store) -> Iterator[None]:
    """Add the nearest name, if there is one, to the error that there is no category of this one."""
    try:
        yield
    except CategoryNotFoundError as exc:
        near = get_close_matches(name, [category.name for category in store.categories()], n=1)
        raise CategoryNotFoundError(f"{exc}{f'; did you mean {near[0]!r}?' if near else ''}") from exc


def _categories_table(categories: Sequence[Category]) -> Table:
    """A row for each category, with the number of its references of each expert."""
    from zsvec.cli import output
    from zsvec.cli.output import escape

    experts = sorted({expert for category in categories for expert in category.references})
    table = output.new_table("category", "version", "updated", "texts", *map(escape, experts))
    for category in categories:
        counts = [str(category.references.get(expert, "–")) for expert in experts]
        text = output.shortened("; ".join(category.texts))
        updated = f"{category.updated.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(escape(category.name), str(category.version), updated, escape(text), *counts)
    return table
