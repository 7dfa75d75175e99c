"""The command that measures accuracy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Fusion, Json, Target, app

if TYPE_CHECKING:
    from rich.table import Table

    from zsvec.evaluation import Evaluation
    from zsvec.types import Prediction


class Suite(StrEnum):
    """The names that --suite takes."""

    PAPER = "paper"


class Dataset(StrEnum):
    """The names that --dataset takes."""

    FOLDER = "folder"
    MNIST = "mnist"
    SVHN = "svhn"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    TINYIMAGENET = "tinyimagenet"


@app.command()
def evaluate(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with a sub-folder of images for each category.")
    ],
    unknown: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images of no category, to measure how well novelty tells them apart."),
    ] = None,
    fusion: Fusion = None,
    suite: Annotated[
        Suite | None,
        typer.Option("--suite", help="All tables and figures of the paper."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Where the suite writes its report.  [default: zsvec-report]"),
    ] = None,
    dataset: Annotated[
        Dataset, typer.Option("--dataset", help="How DIR is laid out, for the suite: folders, or a public data set.")
    ] = Dataset.FOLDER,
    json: Json = False,
) -> None:
    """Measure accuracy on images whose categories are known.

    With --suite paper: every table and figure of the paper, on the references of the store and these images,
    as a page to read and as JSON. Embeddings are kept in the folder of the report, so that the command can be
    interrupted and repeated.
    """
    from zsvec.cli import output
    from zsvec.evaluation import evaluate as measure

    if suite is not None:
        if fusion is not None:
            raise typer.BadParameter("--suite compares all strategies: leave --fusion out")
        _suite(context.obj, folder, unknown, dataset, report, json)
        return
    if report is not None or dataset is not Dataset.FOLDER:
        raise typer.BadParameter("--report and --dataset need --suite paper")

    def left_out(prediction: Prediction) -> None:
        output.print_note(f"left out: {prediction.error}")

    with context.obj.open(fusion=fusion) as classifier, output.progress("classifying", None) as counted:
        result = measure(classifier, folder, unknown, on_error=left_out, track=counted)
    if json:
        output.print_json(result.to_dict())
        return
    output.out.print(_accuracy_table(result))
    output.out.print(output.counted(result.n, "image"))
    if result.auroc is not None:
        output.out.print(
            f"unknown images: AUROC {result.auroc:.3f}; {result.detected:.1%} of them are called unknown, "
            f"and {result.false_unknown_rate:.1%} of the others"
        )


def _suite(
    target: Target, folder: Path, unknown: Path | None, dataset: Dataset, report: Path | None, json: bool
) -> None:
    from zsvec.cli import output
    from zsvec.cli.process import single_threaded
    from zsvec.errors import MissingExtraError
    from zsvec.evaluation.datasets import DATASETS
    from zsvec.evaluation.suite import run
    from zsvec.inputs.folders import find_images

    try:
        from zsvec.evaluation.publish import publish
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f'{exc.name} is needed for a report: pip install "zsvec[report]"') from exc
    images = DATASETS[dataset.value](folder, False).images
    strangers = find_images(unknown) if unknown else []
    to = report or Path("zsvec-report")
    with target.open() as classifier, output.progress("embedding", len(images) + len(strangers)) as counted:
        found = run(
            classifier,
            images,
            strangers,
            folder=to,
            name="/".join(folder.resolve().parts[-2:]),
            track=counted,
            on_error=lambda source, reason: output.print_note(f"left out: {source}: {reason}"),
            say=output.print_note,
        )
    with single_threaded():
        page = publish(found, to)
    if json:
        output.print_json(found.results)
    else:
        for sentence in found.results["summary"]:
            output.out.print(output.escape(sentence))
    output.print_note(f"report: {page}")


def _accuracy_table(result: Evaluation) -> Table:
    """A row for the fusion, and for each expert alone."""
    from zsvec.cli import output

    table = output.new_table("", "top-1", "top-3", "top-5", "NLL, nats", "ECE (floor)")
    for name, accuracy in {f"fusion ({result.fusion})": result.accuracy, **result.experts}.items():
        right = (f"{value:.1%}" for value in (accuracy.top1, accuracy.top3, accuracy.top5))
        surprise = "–" if accuracy.nll is None else f"{accuracy.nll:.3f}"
        table.add_row(output.escape(name), *right, surprise, f"{accuracy.ece:.1%} ({accuracy.ece_floor:.1%})")
    return table
