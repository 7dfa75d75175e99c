"""The commands that learn from the references and check their quality: calibrate and audit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import Json, answering, app, is_terminal
from zsvec.errors import ConflictError, InvalidInputError, needs_extra
from zsvec.types import is_attached

if TYPE_CHECKING:
    from zsvec import (
        Audit,
        CalibrationReport,
        Category,
        Confusion,
        Duplicates,
        Outlier,
        StoredImage,
        StoredReferences,
        Suspect,
        ThinCategory,
    )

F = TypeVar("F")

_SHOWN = 10  # maximum number of findings in a table
_UNCALIBRATED = "label errors need a calibration: run `zsvec calibrate`, with images in at least two categories"


@app.command()
def calibrate(
    context: typer.Context,
    false_unknown_rate: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Fraction, 0 to 1, of known images that may be called unknown.  [default: the setting, else the "
            "stored rate, else 0.05]",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Learn the weights of the experts and the rejection threshold from the stored references.

    Needs no images and no encoders. Small stores calibrate themselves after each change; `zsvec info` shows whether
    the calibration is stale. Lists references that are probably under a wrong category, without changing them. Resets
    the scale that `clf.calibrate(labelled=…)` has learned.
    """
    with context.obj.open(runs_encoders=False) as classifier:
        report = classifier.calibrate(false_unknown_rate=false_unknown_rate)
    if json:
        output.print_json(report.to_dict())
        return
    _print_calibration(report)
    for note in report.notes:
        output.print_note(note)


@app.command()
def audit(
    context: typer.Context,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write all findings as one page.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Review doubtful labels and copies one by one.")] = False,
    kept: Annotated[bool, typer.Option("--kept", help="Show also the findings that you answered with keep.")] = False,
    json: Json = False,
) -> None:
    """Find label errors, duplicates, outliers, thin categories and confused categories, most doubtful first.

    Changes nothing without --fix. A finding that you keep there is not shown again. Label errors and confusions need a
    calibration.
    """
    if fix and (json or html):
        raise InvalidInputError("--fix must be alone. Got --json or --html, too")
    if fix and not is_terminal():
        raise InvalidInputError("--fix asks at a terminal: in a program, take `zsvec audit --json` and `zsvec move`")
    if html:
        with needs_extra("report", "a page"):
            from zsvec.evaluation.report import write_audit
    with context.obj.open(runs_encoders=False) as classifier:
        found = classifier.references.audit(kept=kept)
        if fix:
            _fix(found, classifier.references)
    if json:
        for line in found.lines():
            output.print_json(line)
    elif not fix:
        _print_audit(found, "zsvec audit --fix --kept" if kept else "zsvec audit --fix")
    if not found.calibrated and not json:
        output.print_note(_UNCALIBRATED)
    if html:
        write_audit(html, found, classifier.location)
        output.print_note(f"page: {html}")


def _print_calibration(report: CalibrationReport) -> None:
    output.out.print(
        output.new_table(
            *("expert", "temperature", "images", "accuracy"),
            rows=(
                (
                    name,
                    f"{expert.temperature:.3f}",
                    str(expert.images),
                    "– (one reference a category)" if expert.accuracy is None else f"{expert.accuracy:.1%}",
                )
                for name, expert in report.calibration.experts.items()
            ),
        )
    )
    fusion = output.new_table(
        *("fusion", "top-1", "cross-entropy", "calibration error"),
        rows=(
            (when, f"{quality.top1:.1%}", f"{quality.cross_entropy:.3f} nats", f"{quality.ece:.1%}")
            for when, quality in {"before": report.before, "after": report.after}.items()
            if quality is not None
        ),
    )
    if fusion.row_count:
        output.out.print(fusion)
    output.out.print(str(report))
    _print_findings(
        report.suspects, "reference image", "probably under a wrong category", _suspects_table, "--json names"
    )


def _print_audit(found: Audit, fix: str) -> None:
    """Prints tables of findings, and at a terminal a note on the command `fix` that asks about some of them."""
    all_in = "--json and --html name"
    _print_findings(found.labels, "reference image", "probably under a wrong category", _suspects_table, all_in)
    _print_findings(found.duplicates, "picture", "more than once", _duplicates_table, all_in)
    _print_findings(found.outliers, "reference image", "like no other", _outliers_table, all_in)
    _print_findings(found.thin, "category", "with too few different pictures", _thin_table, all_in)
    _print_findings(found.confusions, "pair", "of categories taken for each other", _confusions_table, all_in)
    doubtful = any((found.labels, found.duplicates, found.outliers, found.thin, found.confusions))
    output.out.print(
        f"{output.counted(found.images, 'reference image')}, {found.judged} of them judged by the others"
        + "; nothing is doubtful" * (not doubtful)
    )
    if found.kept:
        output.out.print(f"{output.counted(found.kept, 'kept finding')} not shown: see `zsvec audit --kept`")
    questions = len(found.labels) + len(list(_copies(found.duplicates, ())))
    if questions and is_terminal():
        output.print_note(f"to decide {output.counted(questions, 'finding')} one by one, run `{fix}`")


def _print_findings(
    findings: Sequence[F], noun: str, finding: str, table: Callable[[Sequence[F]], Table], all_in: str
) -> None:
    if findings:
        plural = "categories" if noun == "category" else None
        output.out.print(f"{output.counted(len(findings), noun, plural)} {finding}:")
        output.out.print(table(findings[:_SHOWN]))
    if len(findings) > _SHOWN:
        output.out.print(f"and {len(findings) - _SHOWN} more: {all_in} all")


def _fix(found: Audit, references: StoredReferences) -> None:
    """Asks about each label error, then about near-duplicates within a category. Each answer takes effect at once.

    Counts the questions. An answer to a label error may make a later question needless.
    """
    gone: set[tuple[str, str]] = set()
    labels = [label for label in found.labels if not is_attached(label.hash)]
    if len(labels) < len(found.labels):
        output.print_note(
            f"{output.counted(len(found.labels) - len(labels), 'label')} of attached collections not asked about: "
            "change the payload there; see `zsvec audit`"
        )
    for number, label in enumerate(labels, 1):
        total = len(labels) + len(list(_copies(found.duplicates, gone)))
        answer = _ask(
            f"{number} of {total}: {label.source}",
            [f"  is under {label.category!r}, and probably {label.instead!r} ({label.probability:.0%})"],
            {"m": f"move it to {label.instead!r}", "r": "remove it", "k": "keep it"},
        )
        if answer == "s":
            return
        if answer == "m":
            _try(partial(references.move, label.hash, source=label.category, target=label.instead))
        elif answer == "r":
            _try(partial(references.remove, label.category, label.hash))
        else:
            _try(partial(references.keep, label.category, label.hash, finding="label"))
        if answer != "k":
            gone.add((label.category, label.hash))
    left = list(_copies(found.duplicates, gone))
    for number, (first, *copies) in enumerate(left, len(labels) + 1):
        answer = _ask(
            f"{number} of {len(labels) + len(left)}: {first.source}",
            [f"  of {first.category!r} looks like", *(f"  {image.source}" for image in copies)],
            {"r": f"remove {'these' if len(copies) > 1 else 'this'}", "k": "keep all"},
        )
        if answer == "s":
            return
        if answer == "r":
            _try(partial(references.remove, first.category, [image.hash for image in copies]))
        else:
            every = [image.hash for image in (first, *copies)]
            _try(partial(references.keep, first.category, every, finding="duplicates"))
    output.print_note("there is nothing more to ask")


def _copies(duplicates: Sequence[Duplicates], gone: Collection[tuple[str, str]]) -> Iterator[list[StoredImage]]:
    """Yields the near-duplicates within each category, without points of attached collections.

    The images in `gone`, given by category and hash, are left out, too.
    """
    for one in duplicates:
        there = [
            image for image in one.images if (image.category, image.hash) not in gone and not is_attached(image.hash)
        ]
        for name in dict.fromkeys(image.category for image in there):
            if len(copies := [image for image in there if image.category == name]) > 1:
                yield copies


def _ask(title: str, lines: Sequence[str], choices: Mapping[str, str]) -> str:
    """Returns the letter of the user's choice; ``s`` means stop."""
    choices = {**choices, "s": "stop"}
    for line in (title, *lines, ", ".join(f"{letter}: {meaning}" for letter, meaning in choices.items())):
        output.print_note(line)
    answer = ""
    while answer not in choices:
        with answering():
            answer = typer.prompt(f"What to do? [{'/'.join(choices)}]", err=True).strip().lower()
    return answer


def _try(change: Callable[[], Category]) -> None:
    """Makes a change. Prints the error if the change fails, as another process may have changed the category."""
    try:
        changed = change()
    except (ConflictError, InvalidInputError) as exc:
        output.print_note(f"not done: {exc}")
    else:
        output.print_note(f"done: {changed.name} has {output.contents([changed])}")


def _suspects_table(suspects: Sequence[Suspect]) -> Table:
    return output.new_table(
        *("hash", "reference", "category", "wrong", "instead"),
        rows=(
            (
                _short(one.hash),
                one.source + (f" (the same picture is in {one.instead!r}, too)" if one.copied else ""),
                one.category,
                f"{one.probability:.1%}",
                one.instead,
            )
            for one in suspects
        ),
        wrapped=("reference",),
    )


def _duplicates_table(duplicates: Sequence[Duplicates]) -> Table:
    return output.new_table(
        *("hash", "reference", "category", "cosine"),
        rows=(
            (*cells, f"{one.likeness:.3f}" if first else "")
            for one in duplicates
            for first, cells in _image_rows(one.images)
        ),
        wrapped=("reference",),
    )


def _outliers_table(outliers: Sequence[Outlier]) -> Table:
    return output.new_table(
        *("hash", "reference", "category", "cosine to the nearest"),
        rows=((*_image_cells(one.image), f"{one.similarity:.2f}") for one in outliers),
        wrapped=("reference",),
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
        *("hash", "reference", "category", "taken for"),
        rows=(row for one in confusions for row in _confused_rows(one)),
        wrapped=("reference",),
    )


def _confused_rows(confusion: Confusion) -> Iterator[tuple[str, ...]]:
    first, second = confusion.categories
    other = {first: second, second: first}
    for _, cells in _image_rows(confusion.images):
        yield *cells, other.get(cells[-1], "")


def _image_rows(images: Sequence[StoredImage]) -> Iterator[tuple[bool, tuple[str, str, str]]]:
    """Yields the cells of the first 10 images, each with whether it is the first. A last row counts further images."""
    for position, image in enumerate(images[:_SHOWN]):
        yield position == 0, _image_cells(image)
    if len(images) > _SHOWN:
        yield False, ("", f"and {len(images) - _SHOWN} more", "")


def _image_cells(image: StoredImage) -> tuple[str, str, str]:
    return _short(image.hash), output.shortened(image.source), image.category


def _short(content_hash: str) -> str:
    return content_hash if is_attached(content_hash) else content_hash[:12]
