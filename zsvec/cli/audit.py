"""The command that audits references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Json, answering, app, is_terminal
from zsvec.errors import CategoryNotFoundError, InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from zsvec.curation.audit import Audit, Confusion, Duplicates, Outlier, StoredImage, ThinCategory
    from zsvec.curation.references import StoredReferences
    from zsvec.types import Category

_SHOWN = 10  # findings of a kind in a table for people
_UNCALIBRATED = (
    "labels are not judged without a calibration: `zsvec calibrate` makes it, where there are two categories with "
    "images"
)


@app.command()
def audit(
    context: typer.Context,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write all findings as one page."),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Ask for each doubtful label and copy what to do, and do it."),
    ] = False,
    json: Json = False,
) -> None:
    """Find label errors, duplicates, outliers, thin categories and confused ones, most doubtful first.

    Changes nothing without --fix. Label errors and confusions need a calibration.
    """
    from zsvec.cli import output

    if fix and (json or html):
        raise InvalidInputError("--fix asks one by one, without a report: give it alone")
    if fix and not is_terminal():
        raise InvalidInputError("--fix asks at a terminal: in a program, take `zsvec audit --json` and `zsvec move`")
    write = _page_writer() if html else None
    with context.obj.open() as classifier:
        found = classifier.references.audit()
        if fix:
            with suppress(_Stop):
                _fix(found, classifier.references)
                output.print_note("there is nothing more to ask")
            if not found.calibrated:
                output.print_note(_UNCALIBRATED)
            return
    if json:
        for line in found.lines():
            output.print_json(line)
    else:
        _print(found)
    if html and write:
        write(html, found, classifier.store.location)
        output.print_note(f"page: {html}")


class _Stop(Exception):  # noqa: N818 - an answer, not an error
    """No more questions."""


def _fix(found: Audit, references: StoredReferences) -> None:
    """Ask what to do with each image under a doubtful label, and with copies within a category; do it at once."""
    gone: set[tuple[str, str]] = set()
    for label in found.labels:
        answer = _ask(
            [label.source, f"  is under {label.category!r}, and probably {label.instead!r} ({label.probability:.0%})"],
            {"m": f"move it to {label.instead!r}", "r": "remove it", "k": "keep it"},
        )
        if answer == "m":
            _try(partial(references.move, label.hash, source=label.category, target=label.instead))
        elif answer == "r":
            _try(partial(references.remove, label.category, label.hash))
        if answer != "k":
            gone.add((label.category, label.hash))
    for duplicates in found.duplicates:
        there = [image for image in duplicates.images if (image.category, image.hash) not in gone]
        for name in dict.fromkeys(image.category for image in there):
            first, *copies = [image for image in there if image.category == name]
            if copies:
                answer = _ask(
                    [first.source, f"  of {name!r} looks like", *(f"  {image.source}" for image in copies)],
                    {"r": f"remove {'these' if len(copies) > 1 else 'this'}", "k": "keep all"},
                )
                if answer == "r":
                    _try(partial(references.remove, name, [image.hash for image in copies]))


def _ask(lines: Sequence[str], choices: Mapping[str, str]) -> str:
    """One of some letters, or `_Stop`."""
    from zsvec.cli import output

    choices = {**choices, "s": "stop"}
    for line in lines:
        output.err.print(output.escape(line))
    said = ", ".join(f"{letter}: {meaning}" for letter, meaning in choices.items())
    output.err.print(output.escape(said))
    answer = ""
    while answer not in choices:
        with answering():
            answer = typer.prompt(f"What to do? [{'/'.join(choices)}]", err=True).strip().lower()
    if answer == "s":
        raise _Stop
    return answer


def _try(change: Callable[[], Category]) -> None:
    """Do what was chosen; what cannot be done is said, and the next question asked."""
    from zsvec.cli import output

    try:
        changed = change()
    except (CategoryNotFoundError, InvalidInputError) as exc:  # others may have changed it meanwhile
        output.print_note(f"not done: {exc}")
    else:
        output.print_note(f"done: {changed.name} has {output.counted(sum(changed.references.values()), 'reference')}")


def _page_writer() -> Callable[[Path, Audit, str], None]:
    from zsvec.errors import MissingExtraError

    try:
        from zsvec.evaluation.report import write_audit
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f'{exc.name} is needed for a page: pip install "zsvec[report]"') from exc
    return write_audit


def _print(found: Audit) -> None:
    """Print the findings of each kind that has any."""
    from zsvec.cli import output

    for number, named, table in (
        (
            len(found.labels),
            output.counted(len(found.labels), "reference image") + " probably under a wrong category",
            output.suspects_table(found.labels[:_SHOWN]),
        ),
        (
            len(found.duplicates),
            output.counted(len(found.duplicates), "picture") + " more than once",
            _duplicates_table(found.duplicates[:_SHOWN]),
        ),
        (
            len(found.outliers),
            output.counted(len(found.outliers), "reference image") + " like no other",
            _outliers_table(found.outliers[:_SHOWN]),
        ),
        (
            len(found.thin),
            output.counted(len(found.thin), "category", "categories") + " with too few different pictures",
            _thin_table(found.thin[:_SHOWN]),
        ),
        (
            len(found.confusions),
            output.counted(len(found.confusions), "pair") + " of categories taken for each other",
            _confusions_table(found.confusions[:_SHOWN]),
        ),
    ):
        if number:
            output.out.print(f"{named}:")
            output.out.print(table)
        if number > _SHOWN:
            output.out.print(f"and {number - _SHOWN} more: --json and --html name all\n")
    doubtful = any((found.labels, found.duplicates, found.outliers, found.thin, found.confusions))
    output.out.print(
        f"{output.counted(found.images, 'reference image')}, {found.judged} of them judged by the others"
        + "; nothing is doubtful" * (not doubtful)
    )
    if not found.calibrated:
        output.print_note(_UNCALIBRATED)


def _duplicates_table(duplicates: Sequence[Duplicates]) -> Table:
    from zsvec.cli import output

    table = output.new_table("references", "category", "cosine")
    for one in duplicates:
        table.add_row(*_columns(one.images), f"{one.likeness:.3f}")
    return table


def _outliers_table(outliers: Sequence[Outlier]) -> Table:
    from zsvec.cli import output

    table = output.new_table("reference", "category", "cosine to the nearest")
    for one in outliers:
        table.add_row(output.escape(one.image.source), output.escape(one.image.category), f"{one.similarity:.2f}")
    return table


def _thin_table(thin: Sequence[ThinCategory]) -> Table:
    from zsvec.cli import output

    table = output.new_table("category", "images", "different pictures", "spread")
    for one in thin:
        spread = "–" if one.spread is None else f"{one.spread:.2f}"
        table.add_row(output.escape(one.category), str(one.images), str(one.pictures), spread)
    return table


def _confusions_table(confusions: Sequence[Confusion]) -> Table:
    from zsvec.cli import output

    table = output.new_table("categories", "images", "references", "category")
    for one in confusions:
        categories = output.escape(" – ".join(one.categories))
        table.add_row(categories, str(len(one.images)), *_columns(one.images))
    return table


def _columns(images: Sequence[StoredImage]) -> tuple[str, str]:
    """Sources and categories of some images, a line for each, and how many there are beyond some."""
    from zsvec.cli import output

    some = images[:_SHOWN]
    more = [f"and {len(images) - _SHOWN} more"] * (len(images) > _SHOWN)
    sources = [output.escape(output.shortened(image.source)) for image in some]
    return "\n".join([*sources, *more]), "\n".join(output.escape(image.category) for image in some)
