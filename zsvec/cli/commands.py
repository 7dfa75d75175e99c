"""The commands of `zsvec`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from zsvec import __version__

if TYPE_CHECKING:
    from zsvec.classifier import Classifier
    from zsvec.config import Settings
    from zsvec.errors import ImageError
    from zsvec.generation import Budget
    from zsvec.inputs.images import ImageInput
    from zsvec.store import Store
    from zsvec.types import Prediction

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classify images by categories that live in Qdrant. Add, change and remove categories at any time: "
    "nothing is retrained, nothing is embedded twice.\n\n"
    "Start with `zsvec demo`; then `zsvec --profile offline import FOLDER` and "
    "`zsvec --profile offline classify PHOTO`.",
    epilog="Every setting can also come from the environment (ZSVEC_STORE, ZSVEC_PROFILE, ZSVEC_API_KEY, "
    "ZSVEC_DEVICE …) or from zsvec.toml. Exit codes: 0 done, 1 failed, 2 wrong usage.",
)


class Fusion(str, Enum):
    """The names that --fusion takes."""

    MAX = "max"
    INVERSE_ENTROPY = "inverse_entropy"
    NEG_EXP_ENTROPY = "neg_exp_entropy"
    FIXED = "fixed"
    LOG_LINEAR = "log_linear"
    LOG_LINEAR_VIEWS = "log_linear_views"
    TRANSDUCTIVE = "transductive"


class Suite(str, Enum):
    """The names that --suite takes."""

    PAPER = "paper"


class Dataset(str, Enum):
    """The names that --dataset takes."""

    FOLDER = "folder"
    MNIST = "mnist"
    SVHN = "svhn"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    TINYIMAGENET = "tinyimagenet"


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the category.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Explain = Annotated[bool, typer.Option(help="Show what each expert says, and its nearest references.")]
Stats = Annotated[bool, typer.Option("--stats", help="Show rate, time of each stage and what waits, live on stderr.")]
Replace = Annotated[bool, typer.Option("--replace", help="Drop the references it has, instead of adding to them.")]
FusionOption = Annotated[
    Optional[Fusion],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
    typer.Option("--fusion", help="How the experts are fused.  [default: log_linear_views]"),
]


@dataclass(frozen=True)
class Target:
    """The options that stand before the command."""

    store: str | None
    namespace: str | None
    profile: str | None

    def open(self, **settings: Any) -> Classifier:
        """The classifier that they name."""
        import zsvec

        return zsvec.open(self.store, namespace=self.namespace, profile=self.profile, **settings)

    def settings(self) -> Settings:
        """The settings with these options."""
        from zsvec.config import load_settings

        return load_settings(store=self.store, namespace=self.namespace, profile=self.profile)

    def open_store(self) -> Store:
        """The store alone, whatever encoders it was made with."""
        return self.settings().open_store()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zsvec {__version__}")
        raise typer.Exit


@app.callback()
def target(
    context: typer.Context,
    store: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="URL|DIR", help="Qdrant server, or folder of an embedded store.  [default: ./zsvec-store]"
        ),
    ] = None,
    namespace: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NS", help="Prefix of the collections that belong to this store.  [default: zsvec]"),
    ] = None,
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="Encoders: base (CLIP + DINOv2), plus (a stronger CLIP), offline (no download needed), or one of "
            "your own in zsvec.toml.  [default: base]",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep where to work for the command that follows."""
    context.obj = Target(store, namespace, profile)


@app.command()
def demo() -> None:
    """Show the whole story in a minute: real photographs, a category added live, an answer that changes.

    Works offline, in a temporary folder that is removed afterwards.
    """
    from zsvec.cli.demo import run

    run()


@app.command("import")
def import_(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A sub-folder of reference images per category.")],
    definitions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Texts that define categories: JSON {category: text or [texts]}, or CSV with the columns category "
            "and text. A category without any is defined by its name.",
        ),
    ] = None,
    replace_: Replace = False,
    json: Json = False,
) -> None:
    """Add a category per sub-folder of DIR, named as it is.

    Repeat it freely: what is there already is recognised and not embedded again. An image that cannot
    be read is reported and left out.
    """
    from zsvec.cli import output
    from zsvec.inputs.folders import read_categories, read_definitions

    found = read_categories(folder, read_definitions(definitions) if definitions else None)
    images = sum(len(list(category.images)) for category in found)
    unreadable = committed = 0

    def report(source: str, error: ImageError) -> None:
        nonlocal unreadable
        unreadable += 1
        output.note(f"left out: {error}")

    start = time.monotonic()
    with context.obj.open() as classifier, output.progress("importing", images) as counted:
        inputs = (replace(category, images=counted(category.images)) for category in found)
        for category in classifier.add_categories(inputs, replace=replace_, on_error=report):
            committed += 1
            if json:
                output.json_line(category.to_dict())
    seconds = time.monotonic() - start
    output.note(f"{committed} categories, {images} images ({unreadable} unreadable) in {seconds:.1f} s")
    if images and unreadable == images:
        raise typer.Exit(1)


@app.command()
def add(
    context: typer.Context,
    name: Name,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--text", help="A text that defines it; by default its name. Repeatable."),
    ] = None,
    image: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--image", metavar="PATH|DIR", help="A reference image, or a folder of them. Repeatable."),
    ] = None,
    replace_: Replace = False,
    json: Json = False,
) -> None:
    """Add a category, or references to one that exists. It counts from the next image on, in every process."""
    from zsvec.cli import output

    images = [path for given in image or [] for path in _images(given)]
    with context.obj.open() as classifier:
        category = classifier.add_category(name, text or None, images, replace=replace_)
    if json:
        output.json_line(category.to_dict())
    else:
        output.out.print(output.categories([category]))


@app.command()
def remove(context: typer.Context, name: Name) -> None:
    """Remove a category and its references."""
    from zsvec.cli import output
    from zsvec.inputs.categories import checked_name

    with context.obj.open_store() as store:
        store.remove(checked_name(name))
    output.note(f"removed {name}")


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the categories with their references."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        found = store.categories()
        location = store.location
    if json:
        for category in found:
            output.json_line(category.to_dict())
    elif found:
        output.out.print(output.categories(found))
    else:
        output.note(f"no categories in {location}: add one with `zsvec add` or `zsvec import`")


@app.command()
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show a category: its texts, its references and where they come from."""
    from zsvec.cli import output
    from zsvec.inputs.categories import checked_name

    with context.obj.open_store() as store:
        category = store.category(checked_name(name))
        sources = store.sources(category)
    if json:
        output.json_line({**category.to_dict(), "metadata": category.metadata, "sources": sources})
        return
    output.out.print(output.categories([category]))
    for expert, of in sources.items():
        output.out.print(output.facts({f"{expert} {i}": source for i, source in enumerate(of, 1)}))


@app.command()
def classify(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH|DIR|-…",
            help="Images, folders of images, videos, cameras (/dev/video0, rtsp://…); - reads paths from stdin.",
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Categories in the ranking.")] = 5,
    fusion: FusionOption = None,
    explain: Explain = False,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Of videos, each N-th frame.")] = 1,
    stats: Stats = False,
    json: Json = False,
) -> None:
    """Classify images, each as soon as it is read.

    An image that cannot be read is reported, and the rest goes on.
    """
    from zsvec.cli import output

    settings = {"fusion": fusion.value} if fusion else {}
    with context.obj.open(**settings) as classifier, output.live(classifier, stats):
        for prediction in classifier.classify_stream(_paths(sources, every), top_k=top_k):
            output.answer(prediction, explain=explain, json=json)
        done = classifier.stats
    if done.failed:
        output.note(f"{done.failed} of {done.images} images could not be read")
    elif not done.images:
        output.note("no images")
    if done.failed and done.failed == done.images:
        raise typer.Exit(1)


@app.command()
def watch(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where images appear, in sub-folders too.")],
    state: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Says what is done.  [default: .zsvec-watch.jsonl in DIR]"),
    ] = None,
    settle: Annotated[float, typer.Option(min=0, help="Seconds without a change after which a file is complete.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, help="Categories in the ranking.")] = 5,
    explain: Explain = False,
    stats: Stats = False,
    json: Json = False,
) -> None:
    """Classify images as they appear in a folder, each once, until it is interrupted; then go on where it ended."""
    from zsvec.cli import output
    from zsvec.inputs.watch import Watch

    with (
        context.obj.open() as classifier,
        Watch(folder, state=state, settle=settle) as watched,
        output.live(classifier, stats),
    ):
        for prediction in classifier.classify_stream(watched, top_k=top_k):
            output.answer(prediction, explain=explain, json=json)
            watched.done(prediction.source)


def _paths(sources: list[str], every: int) -> Iterator[ImageInput]:
    from zsvec.inputs.video import CAMERA, VIDEOS, frames

    for source in sources:
        if source == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        elif Path(source).suffix.lower() in VIDEOS or source.startswith((CAMERA, "rtsp://")):
            yield from frames(source, every=every)
        else:
            yield from _images(source)


def _images(path: str | Path) -> Sequence[str | Path]:
    """The images of a folder, or the path itself."""
    from zsvec.inputs.images import find_images

    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
    return find_images(Path(path)) if is_folder else [path]


@app.command()
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A sub-folder of images per category.")],
    unknown: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Images of no category: measures how well novelty tells them apart."),
    ] = None,
    fusion: FusionOption = None,
    suite: Annotated[
        Optional[Suite],  # noqa: UP045
        typer.Option("--suite", help="All tables and figures of the paper."),
    ] = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045
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

    settings = {"fusion": fusion.value} if fusion else {}
    with context.obj.open(**settings) as classifier, output.progress("classifying", None) as counted:
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
    from zsvec.errors import MissingExtraError
    from zsvec.evaluation.datasets import DATASETS
    from zsvec.evaluation.suite import run
    from zsvec.inputs.images import find_images

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
        Optional[float],  # noqa: UP045
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


@app.command()
def generate(
    context: typer.Context,
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="NAME", help="Categories, new ones too."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All categories of the store.")] = False,
    per_category: Annotated[int, typer.Option(min=1, metavar="N", help="Images of each category.")] = 4,
    budget: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="N|USD",
            help="The most that the folder may hold of these categories, 40 (images), or have cost for them, 2.50usd; "
            "both if given twice.",
        ),
    ] = None,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
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


@app.command()
def info(context: typer.Context, json: Json = False) -> None:
    """Show what the store holds, what made its vectors, and what serves it."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        found = store.info()
    if json:
        output.json_line(found)
    else:
        output.out.print(output.facts(found))


@app.command()
def doctor(context: typer.Context, json: Json = False) -> None:
    """Say what works here (encoders, GPU, hub, weights, store) and what to do about the rest."""
    from zsvec.cli import output
    from zsvec.cli.doctor import examine

    findings = list(examine(context.obj))
    for finding in findings:
        if json:
            output.json_line(finding.to_dict())
    if not json:
        output.out.print(output.findings(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def gc(context: typer.Context) -> None:
    """Delete references that a writer left behind when it was killed. Nobody sees them; they take space."""
    from zsvec.cli import output

    with context.obj.open_store() as store:
        deleted = store.gc()
    output.note(f"{deleted} references deleted")
