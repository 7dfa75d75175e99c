"""The commands that measure and that learn: evaluate, calibrate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Fusion, Json, Target, app

if TYPE_CHECKING:
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
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A sub-folder of images per category.")],
    unknown: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images of no category: measures how well novelty tells them apart."),
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
    as a page to read and as JSON. What is embedded is kept in the folder of the report, so that it can be
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
        raise typer.BadParameter("--report and --dataset are of --suite paper")

    def left_out(prediction: Prediction) -> None:
        output.note(f"left out: {prediction.error}")

    with context.obj.open(fusion=fusion) as classifier, output.progress("classifying", None) as counted:
        result = measure(classifier, folder, unknown, on_error=left_out, track=counted)
    if json:
        output.json_line(result.to_dict())
        return
    output.out.print(output.evaluation(result))
    output.out.print(f"{result.n} images")
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
            on_error=lambda source, reason: output.note(f"left out: {source}: {reason}"),
            say=output.note,
        )
    with single_threaded():
        page = publish(found, to)
    if json:
        output.json_line(found.results)
    else:
        for sentence in found.results["summary"]:
            output.out.print(sentence)
    output.note(f"report: {page}")


@app.command()
def calibrate(
    context: typer.Context,
    false_unknown_rate: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION", help="Images of known categories that may be called unknown.  [default: 0.05]"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Learn from the references how much each expert is worth, and from where an image is unknown.

    Needs no images and no encoder, and is kept with the store for all who read it. Small stores are
    calibrated after each change; `zsvec info` says whether this one has to be.
    """
    from zsvec.cli import output

    with context.obj.open() as classifier:
        report = classifier.calibrate(false_unknown_rate=false_unknown_rate)
    if json:
        output.json_line(report.to_dict())
    else:
        output.calibration(report)
