"""The commands that classify images: given images, and images that appear in a folder."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsvec.cli import output
from zsvec.cli.app import Explain, Fusion, Json, Keep, Stats, TopK, app, check_exists, images_at
from zsvec.cli.exporting import ExportYes, prepare_encoders
from zsvec.errors import ImageError, StoreError, without_password
from zsvec.types import MAX_MARGIN, Prediction

if TYPE_CHECKING:
    from zsvec import Classifier, ImageInput, Region, Tracker


@app.command()
def classify(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH|DIR|-",
            help="Images, folders, videos, cameras (/dev/video0, rtsp://…); - reads paths from stdin.",
        ),
    ],
    top_k: TopK = 5,
    fusion: Fusion = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.99,
            metavar="P",
            help="Print the categories that have the right one with this probability.",
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0.51,
            max=1,
            metavar="P",
            help="Answer with the deepest node of the tree that is right with this probability: 'some bird'.",
        ),
    ] = None,
    explain: Explain = False,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Each N-th frame of a video.")] = 1,
    keep: Keep = None,
    stats: Stats = False,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Classify boxes in the images of DIR: COCO (.json), CSV (image, left, top, right, bottom, maybe "
            "track), or YOLO labels (a folder, or .txt for one image).",
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=MAX_MARGIN, help="Fraction of a box to add on each side; with --boxes.")
    ] = 0.0,
    together: Annotated[
        bool,
        typer.Option("--together", help="Print results at the end: similar images of the whole set help each other."),
    ] = False,
    json: Json = False,
    csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="Print CSV: source, label, nearest, probability, …; a row for each of several labels."
        ),
    ] = False,
    yes: ExportYes = False,
) -> None:
    """Classify images, and print each result as soon as it is known.

    Reports unreadable images and continues. Fails if no image was classified.
    """
    from zsvec.cli.spreadsheet import prediction_printer

    if csv and (json or explain or coverage):
        raise typer.BadParameter(
            "--csv has no evidence, and is no JSON: leave --explain, --coverage and --json out, or --csv"
        )
    if together and any(map(_is_endless, sources)):
        raise typer.BadParameter("--together needs images that end, and a camera does not: leave one of the two out")
    as_object = partial(output.prediction_object, coverage=coverage, min_accuracy=min_accuracy)
    in_words = partial(
        output.print_prediction, explain=explain, json=json, coverage=coverage, min_accuracy=min_accuracy
    )
    images_to_classify, show_next = _to_classify(
        sources, every, boxes, margin, as_object=as_object if json else None, by_track=not csv
    )
    if boxes is not None and not csv:
        top_k = _top_k_of_boxes(boxes, top_k, of_boxes=explain or coverage is not None or min_accuracy is not None)
    incomplete: set[str] = set()
    missing = [answer for source in sources if (answer := _missing(source))]
    with context.obj.open(fusion=fusion, keep=keep) as classifier:
        if min_accuracy is not None:
            _check_has_one_answer(classifier)
        show = prediction_printer(min_accuracy, many=classifier.labels == "many") if csv else in_words
        if len(missing) == len(sources) and classifier.categories():  # an empty store raises its own error below
            for answer in missing:
                show(answer)
            failed = images = len(missing)
        else:
            prepare_encoders(classifier, yes=yes)
            output.print_loading(classifier)
            failed = images = 0
            with (
                _noted_as_kept(classifier),
                _predictions(classifier, images_to_classify, top_k, together=together, stats=stats) as predictions,
            ):
                for prediction in predictions:
                    show_next(prediction, show, classifier)
                    incomplete.update(prediction.incomplete)
                    failed += prediction.error is not None
                    images += 1
    if incomplete:
        output.print_note(f"{', '.join(sorted(incomplete))} could not be read: see `zsvec attached` and `zsvec doctor`")
    _print_failures(failed, images, sources)
    if failed == images:
        raise typer.Exit(1)


@app.command()
def watch(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to watch, with its sub-folders.")],
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record of finished images.  [default: .zsvec-watch.jsonl in DIR]"),
    ] = None,
    settle: Annotated[float, typer.Option(min=0, help="Seconds without a change until a file is complete.")] = 1,
    top_k: TopK = 5,
    explain: Explain = False,
    keep: Keep = None,
    stats: Stats = False,
    json: Json = False,
    yes: ExportYes = False,
) -> None:
    """Classify each image in a folder once, and wait for new images until interrupted. The next run continues."""
    from zsvec.inputs.watch import Watch

    with context.obj.open(keep=keep) as classifier, Watch(folder, state=state, settle=settle) as watched:
        prepare_encoders(classifier, yes=yes)
        with classifier.classify_stream(watched, top_k=top_k) as stream, output.live(stream, stats):
            output.print_loading(classifier)
            for prediction in stream:
                output.print_prediction(prediction, explain=explain, json=json)
                watched.done(prediction.source)


def _print_failures(failed: int, images: int, sources: list[str]) -> None:
    if failed:
        output.print_note(f"{failed} of {output.counted(images, 'image')} could not be read")
    elif not images:
        places = ", ".join("stdin" if source == "-" else source for source in sources)
        output.print_note(f"nothing was classified: there are no images in {places}")


def _check_has_one_answer(classifier: Classifier) -> None:
    if classifier.labels == "many":
        raise typer.BadParameter(
            "--min-accuracy needs one category an image. Images of this store may belong to several, each with its own "
            "probability: leave --min-accuracy out"
        )


def _top_k_of_boxes(boxes: Path, top_k: int, *, of_boxes: bool) -> int:
    """Returns the number of categories in the ranking of each box; for a file with tracks, as many as a tracker uses.

    Raises:
        typer.BadParameter: The file has tracks, and an option concerns the answers of single boxes (`of_boxes`).
    """
    from zsvec.classifier.tracker import TOP_K
    from zsvec.inputs.box_files import has_tracks

    if not has_tracks(boxes):
        return top_k
    if of_boxes:
        raise typer.BadParameter(
            f"--coverage, --min-accuracy and --explain concern single boxes, and {boxes} has the column track: leave "
            "out the options, or the column"
        )
    return max(top_k, TOP_K)


@contextmanager
def _predictions(
    classifier: Classifier, images: Iterator[ImageInput], top_k: int, *, together: bool, stats: bool
) -> Iterator[Iterable[Prediction]]:
    if together:
        with output.live(classifier, stats):
            yield classifier.classify_together(images, top_k=top_k)
    else:
        with classifier.classify_stream(images, top_k=top_k) as stream, output.live(stream, stats):
            yield stream


@contextmanager
def _noted_as_kept(classifier: Classifier) -> Iterator[None]:
    """Prints how many new images wait in the inbox after the block, if the classifier keeps images."""
    if classifier.settings.keep == "none":
        yield
        return
    before = set(classifier.inbox.hashes())
    yield
    with suppress(StoreError):  # the images are classified
        waiting = set(classifier.inbox.hashes())
        new = output.counted(len(waiting - before), "new image")
        output.print_note(f"kept for a label: {new}, {len(waiting)} in all; see `zsvec inbox`")


def _images(sources: list[str], every: int) -> Iterator[ImageInput]:
    from zsvec.inputs.video import frames

    for source in sources:
        if source == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        elif _has_frames(source):
            yield from frames(source, every=every)
        else:
            yield from images_at(source)


Show = Callable[[Prediction], None]
ShowNext = Callable[[Prediction, Show, "Classifier"], None]


def _to_classify(
    sources: list[str],
    every: int,
    boxes: Path | None,
    margin: float,
    *,
    as_object: Callable[[Prediction], dict[str, Any]] | None,
    by_track: bool,
) -> tuple[Iterator[ImageInput], ShowNext]:
    """Returns the images, or the regions in a file of boxes, and a function that prints their predictions, in order."""
    if boxes is None and margin:
        raise typer.BadParameter("--margin needs --boxes")
    if boxes is None:
        return _images(sources, every), lambda prediction, show, classifier: show(prediction)
    if len(sources) != 1 or sources[0] == "-" or _has_frames(sources[0]):
        raise typer.BadParameter("--boxes needs one DIR with the images, or the image of one .txt")
    return _regions_to_classify(boxes, sources[0], margin, as_object=as_object, by_track=by_track)


def _regions_to_classify(
    boxes: Path,
    images: str,
    margin: float,
    *,
    as_object: Callable[[Prediction], dict[str, Any]] | None,
    by_track: bool,
) -> tuple[Iterator[Region], ShowNext]:
    """Returns the regions in a file of boxes, and a function that prints their predictions, in order.

    Unusable rows are reported and skipped. Objects, if they are printed, have the box of each prediction, with null for
    NaN and infinity. With `by_track`, the boxes of a track have one answer, after the last of them.
    """
    from zsvec.inputs.box_files import MAX_ALL_BOXES, TrackedRegion, regions_of_file

    read: deque[Region] = deque()
    trackers: list[Tracker] = []
    with output.left_out() as report:
        found = regions_of_file(boxes, images, margin=margin, on_error=report)

    def regions() -> Iterator[Region]:
        for region in found:
            read.append(region)
            yield region

    def show_next(prediction: Prediction, show: Show, classifier: Classifier) -> None:
        region = read.popleft()
        if isinstance(region, TrackedRegion) and by_track:
            if not trackers:
                trackers.append(classifier.tracker(max_tracks=MAX_ALL_BOXES, max_age=inf))
            answer = trackers[0].update(region.track, prediction)
            if region.last:
                output.print_track(answer, json=as_object is not None)
        elif as_object is None:
            show(prediction)
        else:
            output.print_json({**as_object(prediction), "box": [at if isfinite(at) else None for at in region.box]})

    return regions(), show_next


def _has_frames(source: str) -> bool:
    from zsvec.inputs.video import VIDEOS

    return Path(source).suffix.lower() in VIDEOS or _is_endless(source)


def _is_endless(source: str) -> bool:
    from zsvec.inputs.video import CAMERA

    return source.startswith((CAMERA, "rtsp://"))


def _missing(source: str) -> Prediction | None:
    """Returns a prediction with the error of a missing path, made without encoders; ``None`` for any other source."""
    if source == "-" or _has_frames(source):
        return None
    try:
        check_exists(source)
    except ImageError as exc:
        return Prediction(source=without_password(source), error=str(exc))
    return None
