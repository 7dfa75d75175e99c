"""The commands that add, show, change and remove categories and references."""

from __future__ import annotations

import json as json_
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import Json, KeepImages, Labels, Name, Replace, Sheet, Yes, app, check_exists, confirm, images_at
from zsvec.cli.exporting import ExportYes, prepare_encoders
from zsvec.errors import InvalidInputError
from zsvec.types import Category, SmallImage, StoredReference

if TYPE_CHECKING:
    from zsvec import Classifier

_MIN_HASH, _WHOLE_HASH = 6, 64  # characters

Hashes = Annotated[list[str], typer.Argument(metavar="HASH", help="Hash of a text or an image, or a prefix.")]
From = Annotated[str, typer.Argument(metavar="SOURCE", help="Category to take from.")]
To = Annotated[str, typer.Argument(metavar="TARGET", help="Category to add to.")]
Parent = Annotated[
    str | None,
    typer.Option(
        "--parent", metavar="NAMES", help="Names above the category, topmost first: 'animal > bird'; '' is none."
    ),
]


@app.command()
def add(
    context: typer.Context,
    name: Name,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Definition text, by default the name. Repeatable.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="PATH|DIR", help="Reference image, or a folder of images. Repeatable."),
    ] = None,
    parent: Parent = None,
    replace_: Replace = False,
    keep_images: KeepImages = None,
    labels: Labels = None,
    json: Json = False,
    yes: ExportYes = False,
) -> None:
    """Add a category, or add references to a category. Every process uses the references from the next image on."""
    images = None if image is None else [path for given in image for path in images_at(given)]
    for path in images or ():
        check_exists(path)
    with context.obj.open(keep_images=keep_images, labels=labels) as classifier:
        prepare_encoders(classifier, yes=yes, adds=True)
        category = classifier.add_category(name, texts=text or None, images=images, parent=parent, replace=replace_)
        output.print_found([category], categories_table, json=json)
        if not json:
            output.print_standing(classifier.info(), classifier.categories())


@app.command()
def remove(
    context: typer.Context,
    name: Name,
    hashes: Annotated[
        list[str] | None,
        typer.Argument(metavar="HASH", help="Remove these references alone; see `zsvec show`."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Remove a category, or some of its references."""
    with context.obj.open(runs_encoders=False) as classifier:
        if hashes:
            category = classifier.references.remove(name, _hashes_of(classifier, name, hashes))
            output.print_note(f"{name} has {output.contents([category])} left")
            return
        confirm(f"Remove {name!r} and its {output.contents([classifier.category(name)])}?", yes=yes)
        classifier.remove_category(name)
    output.print_note(f"removed {name}")


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the categories with their numbers of images and texts."""
    with context.obj.open_store() as store:
        empty = f"no categories in {store.location}: add one with `zsvec add` or `zsvec import`"
        categories = store.all_categories()
        output.print_found(categories, categories_table, json=json, otherwise=empty)
        if not json:
            output.print_standing(store.info(), categories)


@app.command()
def show(
    context: typer.Context,
    name: Name,
    sheet: Sheet = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Show the images, in a terminal with colours.")] = False,
    json: Json = False,
) -> None:
    """Show a category and its references, with dates and authors."""
    from zsvec import checked_name
    from zsvec.cli.pictures import check_sheet, pictures_of, shows_pictures, write_sheet

    if pictures and not json and not shows_pictures(output.out):
        raise InvalidInputError("this terminal has no colours for pictures: write a contact sheet, with --sheet")
    if sheet:
        check_sheet(sheet)
    with context.obj.open_store() as store:
        category = store.whole_category(checked_name(name))
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
    if points := sum(category.attached.values()):
        output.print_note(f"without {output.counted(points, 'point')} of attached collections: see `zsvec attached`")


@app.command()
def move(context: typer.Context, source: From, target: To, hashes: Hashes, json: Json = False) -> None:
    """Move references to another category, which is created if new."""
    with context.obj.open(runs_encoders=False) as classifier:
        chosen = _hashes_of(classifier, source, hashes)
        others = [one.name for one in classifier.categories() if one.name != source]
        category = classifier.references.move(chosen, source=source, target=target)
    output.print_found([category], categories_table, json=json)
    print_if_new(category, others)


@app.command()
def rename(
    context: typer.Context,
    name: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name.")],
    json: Json = False,
) -> None:
    """Rename a category."""
    with context.obj.open(runs_encoders=False) as classifier:
        output.print_found([classifier.references.rename(name, new)], categories_table, json=json)


@app.command()
def merge(context: typer.Context, source: From, target: To, json: Json = False) -> None:
    """Move all references of SOURCE to TARGET, and remove SOURCE."""
    with context.obj.open(runs_encoders=False) as classifier:
        output.print_found([classifier.references.merge(source, target)], categories_table, json=json)


@app.command()
def forget(
    context: typer.Context,
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="Image file, or its whole hash; see `zsvec show --json`.")
    ],
    yes: Yes = False,
) -> None:
    """Erase an image from every category, the inbox, the copies and the history, for good.

    The boxes that were cut from it are erased with it, and counted. Only this exact file content is erased; resized or
    converted copies, and boxes of these, stay. Nothing is kept, not even the hash: delete the file, too, or the next
    `zsvec import` of its folder adds the image again.
    """
    from zsvec import content_hash

    given = image.lower()
    is_hash = re.fullmatch(f"[0-9a-f]{{{_MIN_HASH},{_WHOLE_HASH}}}", given) is not None
    is_whole = is_hash and len(given) == _WHOLE_HASH
    if is_hash and not is_whole and not Path(image).exists():
        raise InvalidInputError(
            f"{image!r} is the beginning of a hash: give all {_WHOLE_HASH} characters; see `zsvec show --json`"
        )
    digest = given if is_whole else content_hash(image)
    confirm(f"Forget {digest[:12]} for good?", yes=yes, final=True)
    with context.obj.open(runs_encoders=False) as classifier:
        found = classifier.references.forget(digest)
    if not found.points:
        output.print_note(f"{digest[:12]} is not in this store: check --store, --namespace and the file")
        raise typer.Exit(1)
    places = ", ".join(map(repr, found.categories)) or "the store"
    boxes = f" with {output.counted(found.boxes, 'box', 'boxes')} cut from it" if found.boxes else ""
    output.print_note(
        f"{digest[:12]} is erased from {places}{boxes}. This cannot be undone. If a file of it stays "
        "in a folder that you import, the next import adds it again"
    )


@app.command("set")
def set_(
    context: typer.Context,
    name: Name,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Definition text, replacing the present ones. Repeatable.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="Object to keep with the category.")
    ] = None,
    parent: Parent = None,
    json: Json = False,
) -> None:
    """Replace the texts, the metadata or the parent of a category."""
    if text is None and metadata is None and parent is None:
        raise InvalidInputError("there is nothing to set: give --text, --metadata or --parent")
    kept = None if metadata is None else _object(metadata)
    with context.obj.open(runs_encoders=False) as classifier:
        category = classifier.references.update(name, texts=text, metadata=kept, parent=parent)
    output.print_found([category], categories_table, json=json)


def _object(text: str) -> dict[str, object]:
    try:
        found = json_.loads(text)
    except (RecursionError, ValueError) as exc:
        raise InvalidInputError(f"the metadata are no JSON: {exc}. Got {text[:80]!r}") from exc
    if not isinstance(found, dict):
        raise InvalidInputError(f"the metadata must be an object of JSON. Got {text[:80]!r}")
    return found


def _hashes_of(classifier: Classifier, name: str, given: Sequence[str]) -> frozenset[str]:
    known = {reference.hash for reference in classifier.references.of(name)}
    return chosen_hashes(known, given, repr(name), "zsvec show")


def chosen_hashes(known: Collection[str], given: Sequence[str], owner: str, command: str) -> frozenset[str]:
    """Returns the known hashes for given prefixes. A full hash is returned even if it is not known.

    Args:
        known: Hashes to choose from.
        given: Full hashes, or prefixes of at least 6 characters.
        owner: Description of the set of known hashes, for error messages.
        command: Command that lists the known hashes, for error messages.

    Raises:
        InvalidInputError: A prefix is too short, or matches no known hash or several known hashes.
    """
    chosen = set()
    for start in given:
        if len(start) < _MIN_HASH:
            raise InvalidInputError(f"{start!r} is too short for a hash: give {_MIN_HASH} characters or more")
        found = [digest for digest in known if digest.startswith(start)]
        if len(found) > 1:
            raise InvalidInputError(f"{start!r} is the beginning of {len(found)} hashes of {owner}: give more")
        if not found and len(start) < _WHOLE_HASH:
            raise InvalidInputError(f"{start!r} is the beginning of no hash of {owner}: see `{command}`")
        chosen.update(found or [start])
    return frozenset(chosen)


def print_if_new(category: Category, others: Collection[str]) -> None:
    """Prints a note if a change made a category, since its name may be mistyped.

    Args:
        category: The category after the change.
        others: Names of categories before the change.
    """
    from zsvec.settings.settings import did_you_mean

    if category.name not in others:
        near = did_you_mean(category.name, others)
        output.print_note(f"{category.name!r} is a new category{near or '.'} `zsvec undo` takes it back")


def categories_table(categories: Sequence[Category]) -> Table:
    """Returns a table with a row per category: parent, if any has one, numbers of images and texts, date, texts."""
    with_parents = any(category.parent for category in categories)
    return output.new_table(
        *("category", *["parent"] * with_parents, "images", "texts", "updated", "definition"),
        rows=(
            (
                category.name,
                *[category.parent] * with_parents,
                f"{category.images:,}" + _attached(category),
                str(len(category.texts)),
                output.minute(category.updated if category.version else None),
                output.shortened("; ".join(category.texts)),
            )
            for category in categories
        ),
        wrapped=("definition",),
    )


def _attached(category: Category) -> str:
    points = max((n for expert, n in category.attached.items() if expert.endswith(":image")), default=0)
    return f" ({points:,} attached)" if points else ""


def _references_table(references: Sequence[StoredReference], pictures: Mapping[str, SmallImage | None]) -> Table:
    from zsvec.cli.pictures import thumbnail

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
        wrapped=("source",),
    )
