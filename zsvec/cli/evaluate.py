"""The command that measures accuracy on labelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zsvec import __version__
from zsvec.cli import output
from zsvec.cli.app import Fusion, Json, Target, app, images_in
from zsvec.cli.importing import (
    Boxes,
    FileOptions,
    FollowLinks,
    Images,
    LabelColumn,
    PathColumn,
    Tree,
    is_file,
    print_links,
    read_file,
)
from zsvec.cli.spreadsheet import row
from zsvec.errors import InvalidInputError, needs_extra
from zsvec.inputs.files import replacing_named

if TYPE_CHECKING:
    from rich.table import Table

    from zsvec import ImageInput, Prediction
    from zsvec.evaluation import Evaluation, LabelEvaluation

_SCORES = ("images", "precision", "recall", "f1", "called_unknown")
_LABEL_SCORES = ("images", "average_precision", "precision", "recall", "f1", "false_positives", "ece")
_MATRIX = 10  # maximum number of categories of a confusion matrix in a terminal

Dataset = Literal["folder", "mnist", "svhn", "cifar10", "cifar100", "tinyimagenet"]


@app.command()
def evaluate(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="DIR|FILE", help="Labelled images, as for `zsvec import`. Not with --against."),
    ] = None,
    images: Images = None,
    boxes: Boxes = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    tree: Tree = False,
    follow_links: FollowLinks = False,
    unknown: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images of no category, to measure rejection.")
    ] = None,
    fusion: Fusion = None,
    suite: Annotated[
        Literal["paper"] | None, typer.Option("--suite", help="All tables and figures of the paper.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Folder of the suite's report.  [default: zsvec-report]"),
    ] = None,
    dataset: Annotated[Dataset, typer.Option("--dataset", help="Layout of DIR, for the suite.")] = "folder",
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="NS", help="Compare with a copy that `zsvec reembed` has made, by leave-one-out."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write scores and confusions, a row for each category."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write all as one page, with figures.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure accuracy on labelled images, overall and by category, and show confused categories.

    Reports and skips unusable rows and unreadable images. In a store whose images may belong to several categories, the
    labels of each image are compared: average precision, F1 scores and calibration error.

    --suite paper writes every table and figure of the paper, computed from the store's references and these images.
    Embeddings are cached in the folder of the report, so you can interrupt and repeat the command.

    --against NS classifies each reference image by all other references, in the store and in the copy NS, and compares
    both on the same images. No encoder runs, and nothing is stored.
    """
    if against is not None or source is None:
        _compare(context.obj, against, [source, images, follow_links or None, suite, csv, html], json)
        return
    from zsvec.evaluation import evaluate as measure
    from zsvec.evaluation import evaluate_labels

    options = FileOptions(
        images=images,
        boxes=boxes,
        path_column=path_column,
        label_column=label_column,
        tree=tree,
        follow_links=follow_links,
    )
    if suite is not None:
        if fusion is not None or csv is not None or html is not None:
            raise typer.BadParameter(
                "--suite compares all strategies in a separate report: leave --fusion, --csv and --html out"
            )
        labelled = _labelled(source, options, dataset)
        strangers = _strangers(unknown, options)
        _suite(context.obj, labelled, _named(source), strangers, report or Path("zsvec-report"), json)
        return
    if report is not None or dataset != "folder":
        raise typer.BadParameter("--report and --dataset need --suite paper; a page without it is --html FILE")
    if html is not None:
        with needs_extra("report", "a report"):
            import zsvec.evaluation.publish as publishing
    _check_folders(csv, html)

    def left_out(prediction: Prediction) -> None:
        output.print_note(f"left out: {prediction.error}")

    with context.obj.open(fusion=fusion) as classifier, output.progress("classifying", None) as counted:
        strangers = _strangers(unknown, options)
        result: Evaluation | LabelEvaluation
        if classifier.labels == "many":
            given, labels = zip(*_labelled(source, replace(options, labels="many")), strict=True)
            each = [[label] for label in labels]
            result = evaluate_labels(classifier, given, each, strangers, on_error=left_out, track=counted)
        else:
            given, labels = zip(*_labelled(source, options), strict=True)
            result = measure(classifier, given, labels, strangers, on_error=left_out, track=counted)
        references = sum((Counter(category.references) for category in classifier.categories()), Counter[str]())
    if csv is not None:
        _write(csv, "".join(map(row, _rows(result))))
    if html is not None:
        profile = classifier.settings.encoders_name
        page = publishing.page_of(
            result, name=_named(source), profile=profile, references=references, version=__version__
        )
        _write(html, page)
    _print(result, json=json)


def _compare(target: Target, namespace: str | None, others: Sequence[object], json: bool) -> None:
    from zsvec.evaluation.against import compare

    if namespace is None:
        raise typer.BadParameter("give labelled images (DIR or FILE), or --against NS")
    if any(other is not None for other in others):
        raise typer.BadParameter("--against compares the reference images of the store: leave DIR and its options out")
    with target.open_store() as store:
        found = compare(store, namespace, target.settings())
        encoders = [", ".join(sorted(one.encoders())) for one in (store, store.named(namespace))]
    if json:
        output.print_json(found.to_dict())
        return
    rows = zip((found.namespace, found.against), encoders, (found.accuracy, found.accuracy_against), strict=True)
    output.out.print(
        output.new_table(
            "namespace", "encoders", "accuracy", rows=((name, some, f"{share:.1%}") for name, some, share in rows)
        )
    )
    low, high = found.interval
    output.out.print(
        f"difference {found.difference:+.1%} (95 % interval {low:+.1%} to {high:+.1%}) by leave-one-out on "
        f"{output.counted(found.images, 'reference image')}; right only in {output.escape(found.against)}: "
        f"{found.gained:,}, only in {output.escape(found.namespace)}: {found.lost:,}"
    )


def _strangers(folder: Path | None, options: FileOptions) -> Sequence[Path]:
    """Returns the images of no category; raises InvalidInputError for a folder without images."""
    if folder is None:
        return []
    strangers = images_in(folder, follow_links=options.follow_links)
    if not strangers:
        raise InvalidInputError(f"{folder} has no images")
    print_links(folder, strangers, options)
    return strangers


def _labelled(source: Path, options: FileOptions, dataset: Dataset = "folder") -> Sequence[tuple[ImageInput, str]]:
    """Returns pairs of image and category from a folder, a file or a public data set."""
    from zsvec.evaluation import labelled_images_of
    from zsvec.inputs.folders import read_categories

    in_file = is_file(source, options)
    if dataset != "folder":
        from zsvec.evaluation.datasets import DATASETS

        if in_file:
            raise typer.BadParameter(f"--dataset {dataset} is a folder. Got the file {source}")
        if options.tree:
            raise typer.BadParameter(f"--dataset {dataset} has no folders in folders: leave --tree out")
        if options.follow_links:
            raise typer.BadParameter(f"--dataset {dataset} must have all files in its folder: leave --follow-links out")
        return DATASETS[dataset](source)
    if in_file:
        return labelled_images_of(read_file(source, options, strict=False))
    with output.left_out() as report:
        found = read_categories(source, tree=options.tree, follow_links=options.follow_links, on_outside=report)
    labelled = labelled_images_of(found)
    print_links(source, (image for image, _ in labelled), options)
    return labelled


def _print(result: Evaluation | LabelEvaluation, *, json: bool) -> None:
    """Prints the tables. With few categories, a confusion matrix replaces the table of mistakes."""
    from zsvec.evaluation import LabelEvaluation
    from zsvec.evaluation.tables import summary_of, tables_of

    if json:
        output.print_json(result.to_dict())
        return
    if isinstance(result, LabelEvaluation):
        for table in tables_of(result):
            output.out.print(_printable(table))
        for sentence in summary_of(result):
            output.out.print(sentence)
        return
    few = len(result.categories) <= _MATRIX
    for table in tables_of(result):
        if not few or table["id"] != "mistakes":
            output.out.print(_printable(table))
    if few:
        names = [output.escape(name) for name in result.categories]
        matrix = output.new_table("is \\ answered", *names)
        for name, counts in zip(names, result.confusion.tolist(), strict=True):
            matrix.add_row(name, *(str(count) if count else "[dim]·[/]" for count in counts))
        output.out.print(matrix)
    output.out.print(f"{output.counted(result.n, 'image')}; {result.false_unknown_rate:.1%} of them are called unknown")
    if result.auroc is not None:
        output.out.print(f"unknown images: AUROC {result.auroc:.3f}; {result.detected:.1%} of them are called unknown")


def _printable(table: Mapping[str, Any]) -> Table:
    """Returns a printable form of a table of `zsvec.evaluation.tables`."""
    from zsvec.evaluation.tables import NO_VALUE, shown

    printed = output.new_table(table["title"].lower(), *(column["title"] for column in table["columns"]))
    for entry in table["rows"]:
        texts = [(shown(entry["values"][column["key"]], column["unit"]), column["unit"]) for column in table["columns"]]
        cells = (f"{text}%" if unit == "%" and text != NO_VALUE else text for text, unit in texts)
        printed.add_row(output.escape(entry["name"]), *cells)
    return printed


def _named(source: Path) -> str:
    return "/".join(source.resolve().parts[-2:])


def _check_folders(*files: Path | None) -> None:
    """Raises an error for a missing output folder, before images are classified."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise InvalidInputError(f"{file} cannot be written: there is no folder {file.parent}; make it first")


def _write(file: Path, text: str) -> None:
    try:
        with replacing_named(file) as opened:
            opened.write(text.encode(errors="backslashreplace"))  # a file name may contain bytes that are not Unicode
    except OSError as exc:
        raise InvalidInputError(f"{file} cannot be written: {exc.strerror}; give another file") from exc
    output.print_note(f"written: {file}")


def _rows(result: Evaluation | LabelEvaluation) -> Iterator[list[object]]:
    """Yields a header, then a row per category: scores, and how many of its images got each category as answer.

    An evaluation of labels has only scores, because an image has no single answer.
    """
    from zsvec.evaluation import LabelEvaluation

    if isinstance(result, LabelEvaluation):
        yield ["category", *_LABEL_SCORES]
        for name, found in result.labels.items():
            yield [name, *(getattr(found, column) for column in _LABEL_SCORES)]
        return
    scores = result.categories
    yield ["category", *_SCORES, *(f"answered {name}" for name in scores)]
    for (name, score), counts in zip(scores.items(), result.confusion.tolist(), strict=True):
        yield [name, *(getattr(score, column) for column in _SCORES), *counts]


def _suite(
    target: Target,
    images: Sequence[tuple[ImageInput, str]],
    name: str,
    strangers: Sequence[Path],
    folder: Path,
    json: bool,
) -> None:
    with needs_extra("report", "a report"):
        from threadpoolctl import threadpool_limits

        import zsvec.evaluation.publish as publishing
    from zsvec.evaluation.suite import run

    with target.open() as classifier, output.progress("embedding", len(images) + len(strangers)) as counted:
        if classifier.labels == "many":
            raise typer.BadParameter(
                "the tables of the paper need one category an image, and images of this store may belong to several: "
                "leave --suite out"
            )
        found = run(
            classifier,
            images,
            strangers,
            folder=folder,
            name=name,
            track=counted,
            on_error=lambda source, reason: output.print_note(f"left out: {source}: {reason}"),
            say=output.print_note,
        )
    with threadpool_limits(1):  # t-SNE amplifies the rounding differences of several threads
        page = publishing.publish(found, folder)
    if json:
        output.print_json(found.results)
    else:
        for sentence in found.results["summary"]:
            output.out.print(output.escape(sentence))
    output.print_note(f"report: {page}")
