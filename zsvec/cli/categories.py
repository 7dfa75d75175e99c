"""The commands that add, remove and show categories."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import Json, KeepImages, Name, Replace, Yes, app, check_exists, confirm, images_at
from zsvec.cli.labelled import Boxes, Images, is_file, read_file, source_of
from zsvec.errors import ImageError, InvalidInputError
from zsvec.types import Category, SmallImage, StoredReference

if TYPE_CHECKING:
    from zsvec import CategoryInput, Classifier

_SHORTEST, _WHOLE = 6, 64  # characters of a hash that may stand for it, and of a whole one


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE",
            help="Folder with a sub-folder for each category, CSV file (path, label), or COCO annotations (.json).",
        ),
    ],
    images: Images = None,
    boxes: Boxes = False,
    definitions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Definition texts: JSON {category: text or [texts]}, or CSV (category, text).",
        ),
    ] = None,
    replace_: Replace = False,
    keep_images: KeepImages = None,
    json: Json = False,
) -> None:
    """Add a category for each sub-folder of DIR, named like the folder, or for each label in FILE.

    Repeat the command freely: stored images are not embedded again. Reports and skips unreadable images, empty folders,
    links that lead out of DIR, and unusable rows. With --replace, such a link or row ends the command before anything
    is written.
    """
    from zsvec.inputs.folders import read_definitions

    texts = read_definitions(definitions) if definitions else {}
    found = _read(source, images, boxes=boxes, definitions=texts, strict=replace_)
    number = _images_in(found)
    unreadable: list[str] = []

    def report(source: str, error: ImageError) -> None:
        unreadable.append(source)
        output.print_note(f"left out: {error}")

    committed: list[Category] = []

    def keep(category: Category) -> None:
        committed.append(category)
        if json:
            output.print_json(category.to_dict())

    start = time.monotonic()
    with context.obj.open(keep_images=keep_images) as classifier, output.progress("importing", number) as counted:
        before = {category.name: category.images for category in classifier.categories()}
        inputs = (replace(category, images=counted(category.images)) for category in found)
        try:
            with classifier.history.one_change("import"):
                classifier.add_categories(inputs, replace=replace_, on_error=report, on_commit=keep)
        except KeyboardInterrupt:
            output.print_note(
                f"interrupted: {len(committed)} of {output.counted(len(found), 'category', 'categories')} are stored. "
                "Do the same again to go on: what is stored is not embedded again"
            )
            raise
    seconds = time.monotonic() - start
    names = {category.name for category in committed}
    stored = [category for category in found if category.name in names]
    failed = len({source_of(image) for category in stored for image in category.images}.intersection(unreadable))
    new = sum(category.images - before.get(category.name, 0) for category in committed)
    known = _images_in(stored) - failed - new
    there = f", {known} stored before, or the same as another" if known > 0 and not replace_ else ""
    what = f"{output.counted(len(stored), 'category', 'categories')}, {output.counted(_images_in(stored), 'image')}"
    output.print_note(f"{what} ({failed} unreadable{there}) in {seconds:.1f} s")
    if left := [category.name for category in found if category.name not in names]:
        output.print_note(f"left as they were, because images are unreadable: {', '.join(left)}")
    if number and len(unreadable) == number:
        raise typer.Exit(1)


def _read(
    source: Path, images: Path | None, *, boxes: bool, definitions: Mapping[str, Sequence[str]], strict: bool
) -> list[CategoryInput]:
    """The categories of a folder or a file, with notes on what somebody may not expect of them."""
    from zsvec.inputs.folders import category_folders, read_categories, refused, with_definitions

    if not is_file(source, images, boxes=boxes):
        with output.left_out() as report:
            found = read_categories(source, definitions, on_outside=refused if strict else report)
        for note in _notes_on(source, found, category_folders(source, on_outside=lambda _: None)):
            output.print_note(note)
        return found
    rows = read_file(source, images, boxes=boxes, strict=strict)
    found = with_definitions(rows, definitions)
    if bare := [category.name for category in found if not list(category.images)]:
        output.print_note(f"no images for the definitions of {', '.join(bare)}")
    return found


def _notes_on(folder: Path, found: Sequence[CategoryInput], folders: Mapping[str, Path]) -> Iterator[str]:
    """What somebody who imports may not expect of the folders."""
    from zsvec.inputs.encoded import SUFFIXES
    from zsvec.inputs.folders import other_files

    if loose := sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        yield f"images of no category, because they are in no sub-folder: {loose}"
    bare = [category.name for category in found if not list(category.images)]
    notes = {
        "left out, because there are no images in the folders:": sorted(folders.keys() - {c.name for c in found}),
        "no images in the folders of the definitions of": [name for name in bare if name in folders],
        "no folder for the definitions of": [name for name in bare if name not in folders],
    }
    yield from (f"{what} {', '.join(names)}" for what, names in notes.items() if names)
    nested = Counter(
        category.name
        for category in found
        for image in category.images
        if isinstance(image, Path) and image.parent != folders[category.name]
    )
    if nested:
        counts = ", ".join(f"{name} {count}" for name, count in nested.items())
        yield f"images of sub-folders belong to the category of the folder above: {counts}"
    if others := sum((other_files(path, folder) for path in folders.values()), Counter()):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        yield f"files left out, because they are no images by their names: {others.total()} ({kinds})"


def _images_in(categories: Sequence[CategoryInput]) -> int:
    return sum(len(list(category.images)) for category in categories)


@app.command()
def add(
    context: typer.Context,
    name: Name,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Definition text, by default the name. Repeatable."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="PATH|DIR", help="Reference image, or a folder of images. Repeatable."),
    ] = None,
    replace_: Replace = False,
    keep_images: KeepImages = None,
    json: Json = False,
) -> None:
    """Add a category, or references to one. Every process uses them from its next image on."""
    images = [path for given in image or [] for path in images_at(given)]
    for path in images:
        check_exists(path)
    with context.obj.open(keep_images=keep_images) as classifier:
        category = classifier.add_category(name, text or None, images, replace=replace_)
    output.print_found([category], categories_table, json=json)


@app.command()
def remove(
    context: typer.Context,
    name: Name,
    hashes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[HASH]...", help="Remove these references alone; see `zsvec show`."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Remove a category, or some of its references."""
    with context.obj.open() as classifier:
        if hashes:
            category = classifier.references.remove(name, hashes_of(classifier, name, hashes))
            output.print_note(f"{name} has {output.counted(sum(category.references.values()), 'reference')} left")
            return
        references = sum(classifier.category(name).references.values())
        confirm(f"Remove {name!r} and its {output.counted(references, 'reference')}?", yes=yes)
        classifier.remove_category(name)
    output.print_note(f"removed {name}")


def hashes_of(classifier: Classifier, name: str, given: Sequence[str]) -> frozenset[str]:
    """The hashes of references of a category that begin as these; raises as `chosen_hashes`."""
    known = {reference.hash for reference in classifier.references.of(name)}
    return chosen_hashes(known, given, repr(name), "zsvec show")


def chosen_hashes(known: Collection[str], given: Sequence[str], whose: str, command: str) -> frozenset[str]:
    """The hashes that begin as these; a whole hash stands for itself.

    Args:
        known: All there are.
        given: Hashes, or their beginnings.
        whose: They are, in words.
        command: Lists them.

    Raises:
        InvalidInputError: One of them is too short, or none or several begin so.
    """
    chosen = set()
    for start in given:
        if len(start) < _SHORTEST:
            raise InvalidInputError(f"{start!r} is too short for a hash: give {_SHORTEST} characters of it, or more")
        found = [digest for digest in known if digest.startswith(start)]
        if len(found) > 1:
            raise InvalidInputError(f"{start!r} is the beginning of {len(found)} hashes of {whose}: give more of it")
        if not found and len(start) < _WHOLE:
            raise InvalidInputError(f"{start!r} is the beginning of no hash of {whose}: `{command}` lists them")
        chosen.update(found or [start])
    return frozenset(chosen)


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the categories and their numbers of references."""
    with context.obj.open_store() as store:
        empty = f"no categories in {store.location}: add one with `zsvec add` or `zsvec import`"
        output.print_found(store.categories(), categories_table, json=json, otherwise=empty)


@app.command()
def show(
    context: typer.Context,
    name: Name,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a contact sheet."),
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Show the images, in a terminal with colours.")] = False,
    json: Json = False,
) -> None:
    """Show a category and its references, with dates and authors."""
    from zsvec import checked_name
    from zsvec.cli.thumbnails import shows_pictures

    if pictures and not json and not shows_pictures(output.out):
        raise InvalidInputError("this terminal has no colours for pictures: write a contact sheet, with --sheet")
    if sheet:
        from zsvec.cli.sheet import check_sheet, pictures_of, write_sheet

        check_sheet(sheet)
    with context.obj.open_store() as store:
        category = store.category(checked_name(name))
        references = store.stored_references(category.name)
        if sheet:
            texts = [reference.source for reference in references if reference.modality == "text"]
            write_sheet(sheet, category.name, pictures_of(references), store.image, texts)
        images = [reference.hash for reference in references if reference.modality == "image"]
        found = {digest: store.image(digest) for digest in images} if pictures and not json else {}
    if json:
        stored = [reference.to_dict() for reference in references]
        output.print_json({**category.to_dict(), "metadata": category.metadata, "stored": stored})
        return
    output.out.print(categories_table([category]))
    output.out.print(_references_table(references, found))


def categories_table(categories: Sequence[Category]) -> Table:
    """A row for each category, with the number of its references of each expert."""
    experts = sorted({expert for category in categories for expert in category.references})
    return output.new_table(
        *("category", "version", "updated", "texts", *map(output.escape, experts)),
        rows=(
            (
                category.name,
                str(category.version),
                output.minute(category.updated),
                output.shortened("; ".join(category.texts)),
                *(str(category.references.get(expert, "–")) for expert in experts),
            )
            for category in categories
        ),
    )


def _references_table(references: Sequence[StoredReference], pictures: Mapping[str, SmallImage | None]) -> Table:
    """A row for each text and image.

    Args:
        references: The texts and images.
        pictures: Copies of the images by hash, if they are to be shown.
    """
    from zsvec.cli.thumbnails import thumbnail

    return output.new_table(
        *(["picture"] if pictures else []),
        *("hash", "modality", "source", "added", "by"),
        rows=(
            (
                *([thumbnail(pictures.get(one.hash))] if pictures else []),
                one.hash[:12],
                one.modality,
                one.source if one.prompt is None else f"{one.source}: {one.prompt}",
                output.minute(one.added),
                one.by or "–",
            )
            for one in references
        ),
    )
