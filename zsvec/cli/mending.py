"""The commands that change what a category has: move, rename, merge, forget, set."""

from __future__ import annotations

import json as json_
import re
from pathlib import Path
from typing import Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, Name, Yes, app, confirm
from zsvec.cli.categories import categories_table, hashes_of
from zsvec.errors import InvalidInputError

_HASH = re.compile("[0-9a-f]{64}")
_BEGINNING = re.compile("[0-9a-f]{6,63}")

Hashes = Annotated[list[str], typer.Argument(metavar="HASH...", help="Hash of a text or an image, or its beginning.")]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Category to take from.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Category to add to.")]


@app.command()
def move(context: typer.Context, source: Source, target: Target, hashes: Hashes, json: Json = False) -> None:
    """Move references from one category to another, stored or new."""
    with context.obj.open() as classifier:
        chosen = hashes_of(classifier, source, hashes)
        category = classifier.references.move(chosen, source=source, target=target)
    output.print_found([category], categories_table, json=json)


@app.command()
def rename(
    context: typer.Context,
    name: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name.")],
    json: Json = False,
) -> None:
    """Rename a category."""
    with context.obj.open() as classifier:
        output.print_found([classifier.references.rename(name, new)], categories_table, json=json)


@app.command()
def merge(context: typer.Context, source: Source, target: Target, json: Json = False) -> None:
    """Move all references of SOURCE to TARGET, and remove SOURCE."""
    with context.obj.open() as classifier:
        output.print_found([classifier.references.merge(source, target)], categories_table, json=json)


@app.command()
def forget(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Image file, or its hash; see `zsvec show`.")],
    yes: Yes = False,
) -> None:
    """Erase an image from every category, the inbox, the copies and the history, for good.

    A copy of another size or format is another image.
    """
    from zsvec import content_hash

    is_hash = _HASH.fullmatch(image.lower())
    if not is_hash and _BEGINNING.fullmatch(image.lower()) and not Path(image).exists():
        raise InvalidInputError(
            f"{image!r} is the beginning of a hash: `zsvec show --json` has all 64 characters of it"
        )
    digest = image.lower() if is_hash else content_hash(image)
    confirm(f"Forget {digest[:12]} for good?", yes=yes)
    with context.obj.open() as classifier:
        found = classifier.references.forget(digest)
    if not found.points:
        output.print_note(f"{digest[:12]} is not in this store: it is another one, or the file has changed since")
        raise typer.Exit(1)
    had = f"it was in {', '.join(map(repr, found.categories))}" if found.categories else "no category had it any more"
    output.print_note(f"{digest[:12]} is forgotten: {had}. No undo brings it back; its file can be added again")


@app.command("set")
def set_(
    context: typer.Context,
    name: Name,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Definition text, replacing the present ones. Repeatable."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="Object to keep with the category.")
    ] = None,
    json: Json = False,
) -> None:
    """Replace the texts or the metadata of a category."""
    if text is None and metadata is None:
        raise InvalidInputError("there is nothing to set: give --text or --metadata")
    kept = None if metadata is None else _object(metadata)
    with context.obj.open() as classifier:
        category = classifier.references.update(name, texts=text, metadata=kept)
    output.print_found([category], categories_table, json=json)


def _object(text: str) -> dict[str, object]:
    try:
        found = json_.loads(text)
    except (RecursionError, ValueError) as exc:
        raise InvalidInputError(f"the metadata are no JSON: {exc}. Got {text[:80]!r}") from exc
    if not isinstance(found, dict):
        raise InvalidInputError(f"the metadata must be an object of JSON. Got {text[:80]!r}")
    return found
