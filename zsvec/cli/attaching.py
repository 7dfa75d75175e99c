"""The commands that make the points of other collections of the deployment references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from zsvec.cli import output
from zsvec.cli.app import Json, app
from zsvec.cli.categories import categories_table
from zsvec.errors import InvalidInputError
from zsvec.types import Attached

if TYPE_CHECKING:
    from zsvec import Classifier

Collection = Annotated[str, typer.Argument(metavar="COLLECTION", help="Name of the collection.")]


@app.command()
def attach(
    context: typer.Context,
    collection: Collection,
    label: Annotated[
        str, typer.Option("--label", metavar="FIELD", help="Payload field with the category, such as metadata.brand.")
    ],
    expert: Annotated[
        str, typer.Option("--expert", metavar="EXPERT", help="Expert of the vectors, such as clip:image.")
    ],
    vector: Annotated[
        str, typer.Option("--vector", metavar="NAME", help="Name of the vector, if points have named vectors.")
    ] = "",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="FIELD=VALUE",
            help='Take only points with this payload: sold=true, size=3, or a text, such as code="3". Repeatable.',
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="FIELD",
            help="Payload field with the path of the image, or with the text. Some are embedded again, as a check.",
        ),
    ] = None,
    refresh: Annotated[
        float, typer.Option("--refresh", metavar="SECONDS", help="Seconds after which labels are read again.")
    ] = 60.0,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the points to this store instead. Repeat to go on or to update.")
    ] = False,
    json: Json = False,
) -> None:
    """Use the points of another collection of the same Qdrant server as references, without copying them.

    The collection is only read. Its points compete with the categories of the store, and add to those of the same name.
    Every process reads labels again every --refresh seconds. Attach a collection again to read all its vectors anew.
    """
    chosen = dict(map(_condition, where or ()))
    with context.obj.open() as classifier:
        if copy:
            before = {category.name: category.own.get(expert, 0) for category in classifier.categories()}
            copied = classifier.copy_collection(
                collection, label=label, expert=expert, vector=vector, where=chosen, source=source
            )
            output.print_found(copied, categories_table, json=json, otherwise="there is no point with a label to copy")
            new = sum(category.own.get(expert, 0) - before.get(category.name, 0) for category in copied)
            output.print_note(f"{output.counted(new, 'point')} copied that the store did not have")
            if any(one.attachment.collection == collection for one in classifier.attached()):
                output.print_note(
                    f"{collection} is attached, too, so its points count twice: `zsvec detach {collection}`"
                )
            return
        attached = classifier.attach(
            collection, label=label, expert=expert, vector=vector, where=chosen, source=source, refresh=refresh
        )
        output.print_found([attached], _table, json=json)
        if json:
            return
        if not attached.attachment.compared:
            why = f"no {source!r} of the first points can be read" if source else "give --source, if a field has"
            end = "" if source else " the path of the image, or the text"
            output.print_note(f"nothing shows that the vectors come from the encoder of this store: {why}{end}")
        if others := _other_experts(classifier):
            output.print_note(
                f"own images have vectors of {', '.join(others)}, too, and these points have none: answers between own "
                "and attached categories are less accurate. Attach vectors of each encoder, or use a store with one"
            )
        output.print_standing(classifier.info(), classifier.categories())


@app.command()
def attached(context: typer.Context, json: Json = False) -> None:
    """List the attached collections, as they are now."""
    with context.obj.open_store() as store:
        output.print_found(
            store.attached(), _table, json=json, otherwise="no collection is attached: see `zsvec attach --help`"
        )


@app.command()
def detach(
    context: typer.Context,
    collection: Collection,
    expert: Annotated[
        str | None,
        typer.Option("--expert", metavar="EXPERT", help="Detach it from this expert alone.  [default: from all]"),
    ] = None,
) -> None:
    """Stop using the points of an attached collection. The collection stays as it is."""
    with context.obj.open(runs_encoders=False) as classifier:
        classifier.detach(collection, expert=expert)
    output.print_note(f"{collection} is no longer attached")


def _other_experts(classifier: Classifier) -> list[str]:
    """Returns the image experts that have references of the store, but no attached points."""
    categories = classifier.categories()
    own = {expert for category in categories for expert in category.own if expert.endswith(":image")}
    return sorted(own - {expert for category in categories for expert in category.attached})


def _condition(text: str) -> tuple[str, str | int | bool]:
    """Returns field and value of a condition such as ``price=3``, ``sold=true`` or ``code="3"``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidInputError(f"--where must be FIELD=VALUE, got {text!r}")
    if value in {"true", "false"}:
        return name, value == "true"
    if len(value) > 1 and value[0] == value[-1] == '"':
        return name, value[1:-1]
    if re.fullmatch(r"-?\d*\.\d+", value):
        raise InvalidInputError(f"--where must have a text, an integer or a boolean, got {text!r}")
    return (name, int(value)) if re.fullmatch(r"-?(0|[1-9]\d*)", value) else (name, value)


def _table(found: Sequence[Attached]) -> Table:
    return output.new_table(
        *("collection", "expert", "label", "points", "categories", "read", "remarks"),
        rows=(
            (
                one.attachment.collection,
                one.attachment.expert,
                one.attachment.label,
                f"{one.points:,}",
                f"{one.categories:,}",
                "never" if one.age is None else f"{one.age:.0f} s ago",
                "; ".join(_remarks(one)) or "–",
            )
            for one in found
        ),
        wrapped=("remarks",),
    )


def _remarks(one: Attached) -> list[str]:
    unsure = [] if one.attachment.compared else ["not compared with its sources"]
    conditions = [f"where {name} = {value!r}" for name, value in one.attachment.where.items()]
    left_out = [f"{output.counted(n, 'point')} left out: {reason}" for reason, n in one.left_out.items()]
    return [*([one.problem] if one.problem else []), *conditions, *left_out, *unsure]
