"""The command that brings a folder in step with a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, NoReturn

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.types import Category, Synced

_SHOWN = 20  # categories named in a note


@app.command()
def sync(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="URL", help="Server with the store to follow. It is only read.")],
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder of a new store, or of one with the same encoders.")
    ],
    target_namespace: Annotated[
        str | None,
        typer.Option("--target-namespace", metavar="NS", help="Namespace of FOLDER.  [default: as URL]"),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow until interrupted: look for changes every 5 seconds.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring a folder in step with a store on a server, such as on a device. No encoder runs.

    FOLDER gets the categories and the calibration. Only what has changed is transferred, and categories that were
    removed from the server are removed. Each category is committed as a whole. Repeat the command for later changes and
    after an interruption.

    Changes of these categories in FOLDER are reverted. Categories that were made in FOLDER stay, and are named. The
    inbox and the history are not transferred.

    A key that may only read suffices: ZSVEC_API_KEY. `--namespace` applies to URL. With --watch, FOLDER is locked only
    while it changes, so that other commands can use it. --watch says `waiting` after 5 seconds without an answer, or
    while another process has FOLDER open, and later `in step again` (`in_step` with --json). A Python program that
    keeps FOLDER open calls `clf.sync(URL)`.

    Exit code 1 if a category is damaged, or differs from one that was made in FOLDER: it is named, and all others are
    copied.
    """
    import zsvec

    settings: dict[str, Any] = {"target_namespace": target_namespace, "namespace": context.obj.settings().namespace}
    if watch:
        _watch(source, folder, settings, json=json)
    with output.progress("copying", None) as counted:
        synced = zsvec.sync(source, folder, on_commit=_printer(json=json), track=counted, **settings)
    _print(synced, json=json)
    if not synced.complete:
        raise typer.Exit(1)


def _watch(source: str, folder: str, settings: Mapping[str, Any], *, json: bool) -> NoReturn:
    from zsvec.curation import syncing

    told: set[str] = set()

    def tell(error: Exception) -> None:
        if str(error) not in told:
            output.print_note(f"waiting: {error}")
            if json:
                output.print_json({"waiting": str(error)})
        told.add(str(error))

    before = None
    for synced in syncing.watch(source, folder, on_commit=_printer(json=json), on_error=tell, **settings):
        now = replace(synced, categories=(), removed=(), size=0)
        if synced.categories or synced.removed or now != before:
            _print(synced, json=json)
        before = now
        if told:
            told.clear()
            output.print_note("in step again" + ("" if synced.complete else ", except for the categories left out"))
            if json:
                output.print_json({"in_step": synced.complete})
    raise AssertionError("watching has no end")


def _printer(*, json: bool) -> Callable[[Category], None]:
    return (lambda category: output.print_json(category.to_dict())) if json else lambda category: None


def _print(synced: Synced, *, json: bool) -> None:
    if json:
        for name in synced.removed:
            output.print_json({"category": name, "removed": True})
    _print_notes(synced)


def _print_notes(synced: Synced) -> None:
    with output.left_out() as report:
        for name, reason in synced.damaged.items():
            report(ValueError(f"{name!r}: {reason}"))
    names = {
        "left as they are, because they were made in FOLDER and differ; remove or rename them there:": synced.different,
        "made in FOLDER, and left there:": tuple(name for name in synced.own if name not in synced.different),
        "removed:": synced.removed,
    }
    for reason, some in names.items():
        if some:
            more = len(some) - _SHOWN
            output.print_note(f"{reason} {', '.join(some[:_SHOWN])}" + (f" and {more} more" if more > 0 else ""))
    if synced.calibration is False:
        output.print_note("FOLDER does not take the calibration, which is of other contents: see `zsvec info`")
    number = output.counted(len(synced.categories), "new or changed category", "new or changed categories")
    output.print_note(f"synced {number}, {synced.size / 1e6:.1f} MB")
