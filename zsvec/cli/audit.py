"""The command that audits references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from zsvec.cli import output
from zsvec.cli.app import Json, answering, app, is_terminal
from zsvec.errors import ConflictError, InvalidInputError

if TYPE_CHECKING:
    from zsvec import Audit, Category, Confusion, Duplicates, Outlier, StoredImage, StoredReferences, ThinCategory

F = TypeVar("F")

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
        write(html, found, classifier.location)
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
    try:
        changed = change()
    except (ConflictError, InvalidInputError) as exc:  # others may have changed it meanwhile
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
    _print_findings("reference image", "probably under a wrong category", found.labels, output.suspects_table)
    _print_findings("picture", "more than once", found.duplicates, _duplicates_table)
    _print_findings("reference image", "like no other", found.outliers, _outliers_table)
    _print_findings("category", "with too few different pictures", found.thin, _thin_table, many="categories")
    _print_findings("pair", "of categories taken for each other", found.confusions, _confusions_table)
    doubtful = any((found.labels, found.duplicates, found.outliers, found.thin, found.confusions))
    output.out.print(
        f"{output.counted(found.images, 'reference image')}, {found.judged} of them judged by the others"
        + "; nothing is doubtful" * (not doubtful)
    )
    if not found.calibrated:
        output.print_note(_UNCALIBRATED)


def _print_findings(
    one: str, what: str, findings: Sequence[F], table: Callable[[Sequence[F]], Table], *, many: str | None = None
) -> None:
    if findings:
        output.out.print(f"{output.counted(len(findings), one, many)} {what}:")
        output.out.print(table(findings[:_SHOWN]))
    if len(findings) > _SHOWN:
        output.out.print(f"and {len(findings) - _SHOWN} more: --json and --html name all\n")


def _duplicates_table(duplicates: Sequence[Duplicates]) -> Table:
    return output.new_table(
        *("references", "category", "cosine"),
        rows=((*_columns(one.images), f"{one.likeness:.3f}") for one in duplicates),
    )


def _outliers_table(outliers: Sequence[Outlier]) -> Table:
    return output.new_table(
        *("reference", "category", "cosine to the nearest"),
        rows=((one.image.source, one.image.category, f"{one.similarity:.2f}") for one in outliers),
    )


def _thin_table(thin: Sequence[ThinCategory]) -> Table:
    return output.new_table(
        *("category", "images", "different pictures", "spread"),
        rows=(
            (one.category, str(one.images), str(one.pictures), "–" if one.spread is None else f"{one.spread:.2f}")
            for one in thin
        ),
    )


def _confusions_table(confusions: Sequence[Confusion]) -> Table:
    return output.new_table(
        *("categories", "images", "references", "category"),
        rows=((" – ".join(one.categories), str(len(one.images)), *_columns(one.images)) for one in confusions),
    )


def _columns(images: Sequence[StoredImage]) -> tuple[Text, Text]:
    """Sources and categories of some images, a line for each, and how many there are beyond some."""
    some = images[:_SHOWN]
    more = [f"and {len(images) - _SHOWN} more"] * (len(images) > _SHOWN)
    sources = [output.shortened(image.source) for image in some]
    return output.lines([*sources, *more]), output.lines(image.category for image in some)
