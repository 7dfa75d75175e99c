"""The command that copies a store."""

from __future__ import annotations

from typing import Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.errors import shown
from zsvec.types import Category, Copied

_SHOWN = 20  # categories named in a note


@app.command()
def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or URL of the store. It is only read.")],
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="Folder or URL of the copy: a new store, or one with the same encoders."),
    ],
    target_namespace: Annotated[
        str | None,
        typer.Option("--target-namespace", metavar="NS", help="Namespace of TARGET.  [default: as SOURCE]"),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace categories of TARGET that differ in SOURCE.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy a store, for a backup or a move: folder or server to folder or server. No encoder runs.

    Copies each category as a whole, the calibration and the inbox. The history stays behind. Repeat the command freely:
    it continues after an interruption, adds new categories, also those that were removed from TARGET, and leaves equal
    ones as they are. A category that differs in TARGET is named and stays as it is, unless you give --replace.
    Categories that only TARGET has always stay; --replace names them.

    ZSVEC_API_KEY is sent to SOURCE, and to TARGET only if SOURCE is a folder or has the same URL.
    ZSVEC_TARGET_API_KEY is sent to TARGET instead. `--namespace` applies to SOURCE.

    Exit code 1 if a category is damaged, differs, or changes in SOURCE during the copy: it is named, and all others are
    copied.
    """
    import zsvec

    settings = context.obj.settings()
    committed: list[Category] = []

    def keep(category: Category) -> None:
        committed.append(category)
        if json:
            output.print_json(category.to_dict())

    try:
        with output.progress("copying", None) as counted:
            copied = zsvec.copy(
                source,
                target,
                target_namespace=target_namespace,
                replace=replace,
                on_commit=keep,
                track=counted,
                namespace=settings.namespace,
            )
    except KeyboardInterrupt:
        output.print_note(f"interrupted: {_number(committed)} copied. Repeat the command to go on")
        raise
    print_notes(copied, replace=replace)
    if not copied.complete:
        raise typer.Exit(1)


def _number(categories: list[Category] | tuple[Category, ...]) -> str:
    return output.counted(len(categories), "category", "categories")


def print_notes(copied: Copied, *, replace: bool, done: str = "copied", target: str = "TARGET") -> None:
    """Prints the copied categories, and the reasons why others were left out.

    Args:
        copied: The result of the copy.
        replace: Whether categories that differ were replaced.
        done: The activity, in words.
        target: Name of the target, in words.
    """
    with output.left_out() as report:
        for name, reason in copied.damaged.items():
            report(ValueError(f"{shown(name)}: {reason}"))
    names = {
        "changed by others meanwhile; repeat the command:": copied.changed,
        f"left as they are, because they differ in {target}; --replace replaces them:": copied.different,
    }
    for reason, some in names.items():
        if some:
            output.print_note(f"{reason} {', '.join(some)}")
    if replace and copied.only_target:
        more = len(copied.only_target) - _SHOWN
        named = ", ".join(copied.only_target[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        output.print_note(f"only in {target}, and left there: {named}")
    if copied.calibration is False:
        output.print_note(f"{target} does not take the calibration, which is of other contents: see `zsvec info`")
    inbox = f", {output.counted(copied.inbox, 'image')} of the inbox" if copied.inbox else ""
    there = f" ({len(copied.unchanged)} there before)" if copied.unchanged else ""
    output.print_note(
        f"{done} {_number(copied.categories)}, {output.contents(copied.categories)}{inbox}, "
        f"{copied.size / 1e6:.1f} MB{there}"
    )
