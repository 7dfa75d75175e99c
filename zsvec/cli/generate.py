"""The command that generates references with a language model and an image model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.errors import GenerationError

if TYPE_CHECKING:
    from rich.table import Table

    from zsvec.generation.facet import Generated
    from zsvec.generation.plan import Plan


@app.command()
def generate(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Categories; new ones are created.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All categories of the store.")] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Ask the language model for definition texts; draw no images.")
    ] = False,
    per_category: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images for each category.  [default: 4]")
    ] = None,
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

    Needs OPENAI_API_KEY and costs money: try --dry-run first. Repeating the command does not pay again for answers and
    images that have arrived. Images and descriptions that were moved or removed since, and categories that were
    removed, renamed or merged, are reported and left out. Set models, service and prices in zsvec.toml under
    [generation].
    """
    from zsvec.generation.facet import Generated
    from zsvec.generation.plan import Budget

    if bool(names) == every:
        raise typer.BadParameter("give either names of categories or --all")
    if texts and (per_category is not None or max_images is not None or keep_flagged):
        raise typer.BadParameter("--texts draws no images: leave out --per-category, --max-images and --keep-flagged")
    with context.obj.open() as classifier:
        plan = classifier.generation.plan(
            names or None,
            per_category=per_category or 4,
            budget=Budget(max_images, max_cost),
            folder=folder,
            texts_only=texts,
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
            with output.progress("asking" if texts else "drawing", None if texts else len(plan.places)) as counted:
                done = classifier.generation.run(plan, keep_flagged=keep_flagged, track=counted)
        except KeyboardInterrupt:
            output.print_note(f"stopped; what has arrived is in {folder}: run the same again to go on")
            raise
        except GenerationError as exc:
            if isinstance(exc.generated, Generated):
                _print_generated(exc.generated, texts=texts, json=json)
            raise
    _print_generated(done, texts=texts, json=json)


def _plan_table(plan: Plan) -> Table:
    asked = ", ".join(f"{n} for {step}" for step, n in plan.questions.items() if n)
    digits = 4 if plan.texts_only else 2  # a text costs far less than a cent
    cost = "unknown: no price is known for the models" if plan.cost is None else f"about ${plan.cost:.{digits}f}"
    limits = [
        *([output.counted(plan.budget.images, "image")] if plan.budget.images is not None else []),
        *([f"${plan.budget.dollars:g}"] if plan.budget.dollars is not None else []),
    ]
    beyond = f", and {plan.beyond_budget} that the budget does not allow" if plan.beyond_budget else ""
    questions = f"at most {asked} ({plan.models[0]})" if asked else "none"
    facts: dict[str, object]
    if plan.texts_only:
        facts = {"categories": f"{len(plan.described)}{beyond}", "questions": questions}
    else:
        confused = "; ".join(", ".join(group) for group in plan.measured[:5])
        facts = {
            "categories": f"{len(plan.categories)}",
            "confused by the store": (confused + (" …" if len(plan.measured) > 5 else "")) or "none",
            "questions": questions,
            "images to buy": f"{plan.affordable} ({plan.models[1]}){beyond}",
            "images there": plan.there,
        }
    return output.facts_table(
        {
            **facts,
            "cost": cost,
            "spent so far": f"${plan.spent:.{digits}f}",
            "budget": limits,
            "folder": plan.folder,
        }
    )


def _print_generated(done: Generated, *, texts: bool, json: bool) -> None:
    if texts:
        _print_texts(done, json=json)
    elif json:
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


def _print_texts(done: Generated, *, json: bool) -> None:
    if json:
        for name in sorted({*done.texts, *done.undescribed}):
            error = done.undescribed.get(name)
            output.print_json({"category": name, "texts": list(done.texts.get(name, ())), "error": error})
        return
    if done.undescribed:
        wrapped = ("no text because",)
        rows = sorted(done.undescribed.items())
        output.out.print(output.new_table("category", *wrapped, rows=rows, wrapped=wrapped))
    number = output.counted(sum(map(len, done.texts.values())), "text")
    categories = output.counted(len(done.texts), "category", "categories")
    output.out.print(
        f"{number} of {categories}, {len(done.undescribed)} without a description; ${done.spent:.4f} spent"
    )
