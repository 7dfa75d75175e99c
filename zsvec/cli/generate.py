"""The command that generates reference images with a language model and an image model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.errors import GenerationError

if TYPE_CHECKING:
    from rich.table import Table

    from zsvec.generation import Plan
    from zsvec.generation.facet import Generated


@app.command()
def generate(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Categories; new ones are created.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All categories of the store.")] = False,
    per_category: Annotated[int, typer.Option(min=1, metavar="N", help="Images for each category.")] = 4,
    max_images: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Limit of images in total, earlier runs included.")
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Most dollars for these categories, earlier runs included."),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(
            metavar="DIR", show_default=False, help="Folder of images and costs.  [default: ./zsvec-generated]"
        ),
    ] = Path("zsvec-generated"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the price; send nothing.")] = False,
    keep_flagged: Annotated[
        bool, typer.Option("--keep-flagged", help="Also store images flagged as blank, copied or off-topic.")
    ] = False,
    json: Json = False,
) -> None:
    """Draw reference images: a language model describes categories, and an image model draws images.

    Needs OPENAI_API_KEY and costs money: try --dry-run first. Repeating the command does not pay again for images
    that have arrived. Images and descriptions that were moved or removed since, and categories that were removed,
    renamed or merged, are reported and left out. Set models, service and prices in zsvec.toml under [generation].
    """
    from zsvec.generation import Budget
    from zsvec.generation.facet import Generated

    if bool(names) == every:
        raise typer.BadParameter("name categories, or give --all")
    with context.obj.open() as classifier:
        plan = classifier.generation.plan(
            names or None, per_category=per_category, budget=Budget(max_images, max_cost), folder=folder
        )
        if plan.retired:
            output.print_note(
                f"left out, because they were removed, renamed or merged: {', '.join(plan.retired)}. `zsvec add` makes "
                "them categories again"
            )
        if dry_run and json:
            output.print_json(plan.to_dict())
        else:
            (output.out if dry_run else output.err).print(_plan_table(plan))
        if dry_run:
            return
        try:
            with output.progress("drawing", len(plan.places)) as counted:
                done = classifier.generation.run(plan, keep_flagged=keep_flagged, track=counted)
        except KeyboardInterrupt:
            output.print_note(f"stopped; what has arrived is in {folder}: run the same again to go on")
            raise
        except GenerationError as exc:
            if isinstance(exc.generated, Generated):
                _print_generated(exc.generated, json=json)
            raise
    _print_generated(done, json=json)


def _plan_table(plan: Plan) -> Table:
    asked = ", ".join(f"{n} for {step}" for step, n in plan.questions.items() if n)
    cost = "unknown: no price is known for the models" if plan.cost is None else f"about ${plan.cost:.2f}"
    limits = [
        *([output.counted(plan.budget.images, "image")] if plan.budget.images is not None else []),
        *([f"${plan.budget.dollars:g}"] if plan.budget.dollars is not None else []),
    ]
    confused = "; ".join(", ".join(group) for group in plan.measured[:5])
    return output.facts_table(
        {
            "categories": f"{len(plan.categories)}",
            "confused by the store": (confused + (" …" if len(plan.measured) > 5 else "")) or "none",
            "questions": f"at most {asked} ({plan.models[0]})" if asked else "none",
            "images to buy": f"{plan.affordable} ({plan.models[1]})"
            + (f", and {plan.beyond_budget} that the budget does not allow" if plan.beyond_budget else ""),
            "images there": plan.there,
            "cost": cost,
            "spent so far": f"${plan.spent:.2f}",
            "budget": limits,
            "folder": plan.folder,
        }
    )


def _print_generated(done: Generated, *, json: bool) -> None:
    if json:
        found: list[output.Printable] = [*done.images, *done.declined]
        for one in found:
            output.print_json(one.to_dict())
    else:
        unstored = [image for image in done.images if not image.stored]
        rows = [
            *((image.record.category, str(image.path), "; ".join(image.flags)) for image in unstored),
            *((declined.category, "–", f"{declined.code}: {declined.reason}") for declined in done.declined),
        ]
        if rows:
            wrapped = ("image", "left out because")
            output.out.print(output.new_table("category", *wrapped, rows=rows, wrapped=wrapped))
        stored = sum(image.stored for image in done.images)
        output.out.print(
            f"{output.counted(len(done.images), 'image')}, {stored} of them in the store, {len(done.flagged)} flagged; "
            f"{len(done.declined)} declined by the service; ${done.spent:.2f} spent"
        )
    if done.withdrawn:
        number = output.number_of(done.withdrawn)
        output.print_note(f"left out, because they were moved or removed: {number}. `zsvec add` adds them again")
    if done.out_of_budget:
        output.print_note("the budget ended it: with a larger one, run the same again to go on")
