"""The command that embeds a store again with other encoders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, Yes, app, confirm
from zsvec.errors import InvalidInputError
from zsvec.types import Category, Reembedded

if TYPE_CHECKING:
    from zsvec.store.reembedding import Survey

_SHOWN = 20  # references or images named in a note
_LONG_S = 60  # a run that takes longer is announced with its time


@app.command()
def reembed(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="The other encoders, as the global option.")
    ] = None,
    encoders: Annotated[
        str | None, typer.Option("--encoders", metavar="MODULE:OBJECT", help="The other encoders, in Python.")
    ] = None,
    switch: Annotated[
        bool, typer.Option("--switch", help="Switch the store to the copy. `zsvec undo ID` switches back.")
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Delete all copies but the current one, instead of making one.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Embed all references again with other encoders, into a copy beside the store, and switch to the copy.

    Embeds images from the original files, where these are at their paths and unchanged, else from the small copies.
    Names the references that have neither. Does not run an encoder that the store already has: copies its vectors.

    Repeat the command freely: it continues after an interruption, and follows the changes of the store. Compare both
    with `zsvec evaluate --against NAMESPACE`, and repeat the command with --switch.

    After the switch, processes that had the store open before go on answering from the old state, and their writes are
    refused: restart them with the other encoders. `zsvec gc` deletes the old state when the undo time is over. From
    then on, such processes fail with an error.
    """
    target = context.obj
    if drop:
        if switch or profile is not None or encoders is not None:
            raise typer.BadParameter("--drop makes no copy: leave --switch, --profile and --encoders out")
        with target.open_store() as store:
            confirm(f"Delete all copies of {store.location} with other encoders?", yes=yes, final=True)
            names = store.drop_others()
        output.print_note(f"deleted: {', '.join(names) or 'nothing'}")
        return
    if profile is not None or encoders is not None:
        if encoders is not None:
            from zsvec.settings.import_string import located

            encoders = located(encoders)
        target = replace(target, profile=profile, encoders=encoders)
    if target.profile is None and target.encoders is None:
        raise typer.BadParameter("give the other encoders: --profile NAME or --encoders MODULE:OBJECT")
    from zsvec.curation.reembedding import reembed_store

    settings = target.settings()

    def keep(category: Category) -> None:
        if json:
            output.print_json(category.to_dict())

    with ExitStack() as stack:
        store = stack.enter_context(settings.open_store())
        progress = _Progress(stack)
        try:
            found = reembed_store(
                store, settings, switch=switch, on_survey=progress.begin, on_image=progress.advance, on_commit=keep
            )
        except KeyboardInterrupt:
            output.print_note("interrupted: repeat the command to go on")
            raise
    _print_notes(found, settings.encoders_name, named=settings.encoders is not None)
    if found.damaged:
        raise typer.Exit(1)


class _Progress:
    """Prints the numbers of originals and small copies beforehand, and shows a progress bar with the remaining time."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar: Iterator[int] = iter(())
        self._left = 0
        self._begun: float | None = None

    def begin(self, survey: Survey) -> None:
        self._left = survey.originals + survey.small + survey.neither
        output.print_note(
            f"to embed: {output.counted(survey.originals, 'image')} from original files, {survey.small:,} from small "
            f"copies; {survey.neither:,} with neither; {survey.present:,} done before"
        )
        counted: Callable[[Iterator[int]], Iterator[int]]
        counted = self._stack.enter_context(output.progress("embedding", self._left))
        self._bar = counted(count())
        next(self._bar)
        self._begun = time.monotonic()

    def advance(self, images: int) -> None:
        next(islice(self._bar, images - 1, None), None)
        self._left -= images
        if self._begun is not None:
            left = (time.monotonic() - self._begun) / images * self._left
            self._begun = None
            if left > _LONG_S:
                output.print_note(f"about {left / 60:.0f} minutes left")


def _print_notes(found: Reembedded, encoders: str, *, named: bool) -> None:
    with output.left_out() as report:
        for name, reason in found.damaged.items():
            report(InvalidInputError(f"{name!r}: {reason}"))
    _print_left_out("reference", [f"{one.category}: {one.source}" for some in found.left_out.values() for one in some])
    _print_left_out("image of the inbox", found.inbox_left_out, "images of the inbox")
    output.print_note(
        f"{output.counted(len(found.categories), 'category', 'categories')} written ({len(found.unchanged):,} there "
        f"before): {output.counted(found.originals, 'image')} embedded from original files, {found.small:,} from small "
        "copies"
    )
    option = "--encoders" if named else "--profile"
    if found.change is None:
        output.print_note(
            f"compare: zsvec evaluate --against {found.namespace}; then switch: "
            f"zsvec reembed {option} {encoders} --switch"
        )
        return
    if found.detached:
        output.print_note(f"not attached any more, since their encoder is gone: {', '.join(found.detached)}")
    output.print_note(
        f"switched to {found.namespace} ({output.counted(found.inbox, 'image')} of the inbox embedded): restart "
        f"processes that have the store open; back with `zsvec undo {found.change.id[:8]}`"
    )


def _print_left_out(what: str, named: Sequence[str], several: str = "") -> None:
    if named:
        number = output.counted(len(named), what, several)
        output.print_note(f"{number} left out, with neither an unchanged original nor a small copy:")
    for one in named[:_SHOWN]:
        output.print_note(f"  {one}")
    if more := named[_SHOWN:]:
        output.print_note(f"  and {len(more):,} more")
