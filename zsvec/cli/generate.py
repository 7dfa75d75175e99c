"""The command that draws references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsvec.cli.app import Json, app

if TYPE_CHECKING:
    from zsvec.generation import Budget


@app.command()
def generate(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Categories, new ones too."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All categories of the store.")] = False,
    per_category: Annotated[int, typer.Option(min=1, metavar="N", help="Images of each category.")] = 4,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|USD",
            help="The most that the folder may hold of these categories, 40 (images), or have cost for them, 2.50usd; "
            "both if given twice.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where images and what they cost are kept.  [default: ./zsvec-generated]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and what it would cost; ask nothing.")] = (
        False
    ),
    keep_flagged: Annotated[
        bool, typer.Option("--keep-flagged", help="Store images, too, that show nothing, a copy or something else.")
    ] = False,
    json: Json = False,
) -> None:
    """Draw reference images: a language model says how categories look, an image model draws them.

    Needs OPENAI_API_KEY, and costs money: --dry-run says how much. Interrupt and repeat it freely: what is in the
    folder is not bought again. Models, service and prices are set in zsvec.toml under [generation].
    """
    from zsvec.cli import output
    from zsvec.errors import GenerationError
    from zsvec.generation.facet import FOLDER
    from zsvec.generation.synthesis import Generated

    if bool(names) == every:
        raise typer.BadParameter("name categories, or give --all")
    where = folder or Path(FOLDER)
    with context.obj.open() as classifier:
        plan = classifier.generation.plan(
            names if names else None, per_category=per_category, budget=_budget(budget or []), folder=where
        )
        if dry_run and json:
            output.json_line(plan.to_dict())
        else:
            (output.out if dry_run else output.err).print(output.plan(plan))
        if dry_run:
            return
        try:
            with output.progress("drawing", len(plan.places)) as counted:
                done = classifier.generation.run(plan, keep_flagged=keep_flagged, track=counted)
        except KeyboardInterrupt:
            output.note(f"stopped; what has arrived is in {where}: run the same again to go on")
            raise
        except GenerationError as exc:
            if isinstance(exc.generated, Generated):
                output.generated(exc.generated, json=json)
            raise
    output.generated(done, json=json)


def _budget(given: Sequence[str]) -> Budget:
    """``40`` is of images, ``2.50usd`` of dollars."""
    from zsvec.generation import Budget

    limits: dict[str, Any] = {}
    for text in given:
        number = r"(\d+\.?\d*|\.\d+)"
        in_dollars = re.fullmatch(rf"{number} *usd|\${number}", text, re.IGNORECASE)
        if in_dollars:
            limits["dollars"] = float(in_dollars[1] or in_dollars[2])
        elif re.fullmatch(r"\d{1,9}", text):
            limits["images"] = int(text)
        else:
            raise typer.BadParameter(f"--budget takes a number of images, such as 40, or 2.50usd. Got {text!r}")
    return Budget(**limits)
