"""The commands for images that wait for a label, and the command that corrects a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import App, Json, Name, Sheet, app, check_exists
from zsvec.cli.categories import categories_table, chosen_hashes, print_if_new
from zsvec.cli.exporting import ExportYes, prepare_encoders
from zsvec.errors import InvalidInputError

if TYPE_CHECKING:
    from zsvec import Group, Inbox, Unlabelled

Also = Annotated[
    list[str] | None,
    typer.Option("--also", metavar="NAME", help="Another category, where an image may have several. Repeatable."),
]
Hashes = Annotated[list[str], typer.Argument(metavar="HASH", help="Hash of an image, or a prefix.")]

_SHOWN = 20  # default number of images in the table

inbox = App(help="Show, label and dismiss images that wait for a label.")
app.add_typer(inbox, name="inbox")


@app.command()
def correct(
    context: typer.Context,
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="Image file.")],
    name: Name,
    also: Also = None,
    json: Json = False,
    yes: ExportYes = False,
) -> None:
    """Make an image a reference of the right category, which is created if new.

    Every process uses the reference from the next image on. If the image is a reference of another category,
    the reference is moved: the image is a reference of the named categories alone.
    """
    check_exists(photo)
    with context.obj.open() as classifier:
        prepare_encoders(classifier, yes=yes, adds=True)
        others = [one.name for one in classifier.categories()]
        names = [name, *(also or [])]
        classifier.correct(photo, names)
        categories = [classifier.category(name) for name in dict.fromkeys(names)]
    output.print_found(categories, categories_table, json=json)
    for category in categories:
        print_if_new(category, others)


@inbox.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    number: Annotated[
        int | None,
        typer.Option(
            "--number", "-n", metavar="N", min=1, help="Images to show.  [default: 20; with --json or --sheet, all]"
        ),
    ] = None,
    sheet: Sheet = None,
    json: Json = False,
) -> None:
    """Show the images that wait for a label, the most informative first."""
    if context.invoked_subcommand:
        return
    with context.obj.open(runs_encoders=False) as classifier:
        waiting = len(classifier.inbox)
        found = classifier.inbox.rank(number if json or sheet else number or _SHOWN)
        if sheet:
            _write_sheet(sheet, found, classifier.inbox)
    output.print_found(found, _table, json=json)
    if not json:
        output.print_note(f"{output.counted(waiting, 'image')} {'waits' if waiting == 1 else 'wait'} for a label")


@inbox.command()
def label(
    context: typer.Context,
    *,
    hashes: Annotated[list[str] | None, typer.Argument(metavar="HASH", help="Hash of an image, or a prefix.")] = None,
    name: Name,
    group: Annotated[
        int | None, typer.Option("--group", metavar="N", min=1, help="All images of a group; see `zsvec inbox groups`.")
    ] = None,
    also: Also = None,
    json: Json = False,
) -> None:
    """Make images, or a whole group of images, references of a category, which is created if new."""
    if bool(hashes) == (group is not None):
        raise typer.BadParameter("give hashes of images, or a group by --group")
    with context.obj.open(runs_encoders=False) as classifier:
        groups = classifier.inbox.groups(names=False) if group else []
        chosen = _images_of(groups, group) if group else _hashes_of(classifier.inbox, hashes or [])
        others = [one.name for one in classifier.categories()]
        category = classifier.inbox.label(chosen, [name, *(also or [])])
    output.print_found([category], categories_table, json=json)
    print_if_new(category, others)
    if group:
        output.print_note(f"{output.counted(len(chosen), 'image')} of group {group} labelled {category.name}")
    if len(groups) > 1:
        output.print_note("the other groups have new numbers: see `zsvec inbox groups`")


@inbox.command()
def dismiss(context: typer.Context, hashes: Hashes) -> None:
    """Remove images from the inbox. Until the dismissal expires, the images and near-duplicates are not kept again."""
    with context.obj.open(runs_encoders=False) as classifier:
        chosen = _hashes_of(classifier.inbox, hashes)
        classifier.inbox.dismiss(chosen)
    output.print_note(f"dismissed {output.counted(len(chosen), 'image')}")


@inbox.command()
def groups(context: typer.Context, sheet: Sheet = None, json: Json = False) -> None:
    """Show groups of similar unknown images: candidates for new categories."""
    from zsvec.classifier import CANNOT_ENCODE

    with context.obj.open(runs_encoders=False) as classifier:
        try:
            found = classifier.inbox.groups()
        except CANNOT_ENCODE as exc:
            output.print_note(f"no names are proposed: {exc}")
            found = classifier.inbox.groups(names=False)
        if sheet:
            _write_sheet(sheet, [image for group in found for image in group.images], classifier.inbox)
    if json:
        for group in found:
            output.print_json(group.to_dict())
        return
    for number, group in enumerate(found, 1):
        output.print_note(
            f"group {number}: {output.counted(len(group.images), 'image')}, likeness {group.likeness:.2f}"
            + (f"; perhaps {', '.join(group.names)}" if group.names else "")
        )
        output.out.print(_table(group.images))
    if not found:
        output.print_note("no five unknown images that wait look alike")


def _hashes_of(inbox: Inbox, given: Sequence[str]) -> frozenset[str]:
    return chosen_hashes(inbox.hashes(), given, "the images that wait", "zsvec inbox")


def _images_of(groups: Sequence[Group], number: int) -> frozenset[str]:
    """Returns the hashes of the images of a group, which is given by its number in `zsvec inbox groups`."""
    if number > len(groups):
        there = output.counted(len(groups), "group")
        raise InvalidInputError(f"--group must be the number of one of {there}. Got {number}: see `zsvec inbox groups`")
    return frozenset(image.hash for image in groups[number - 1].images)


def _table(found: Sequence[Unlabelled]) -> Table:
    return output.new_table(
        *("hash", "source", "kept", "urgency", "would be"),
        rows=(
            (one.hash[:12], one.source, output.minute(one.added), f"{one.urgency:.2f}", _guess(one)) for one in found
        ),
        wrapped=("source", "would be"),
    )


def _guess(one: Unlabelled) -> str:
    if one.prediction is None:
        return "–"
    if one.prediction.unknown:
        return f"unknown, nearest {one.prediction.nearest}"
    return f"{one.prediction.nearest} {one.prediction.probability:.1%}"


def _write_sheet(file: Path, found: Sequence[Unlabelled], inbox: Inbox) -> None:
    from zsvec.cli.pictures import Picture, check_sheet, write_sheet

    check_sheet(file)
    pictures = [Picture(one.hash, [one.hash[:12], one.source, _guess(one)]) for one in found]
    write_sheet(file, "inbox", pictures, inbox.small)
