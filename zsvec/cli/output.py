"""Output of all commands. Results go to stdout, as tables or JSON lines; everything else goes to stderr."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape as escape_markup
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from zsvec.errors import harmless, without_password
from zsvec.types import StoredReference, ThresholdProgress, how_far, in_words, kind_of
from zsvec.types import counted as counted

if TYPE_CHECKING:
    from zsvec import Category, Classifier, Prediction, Stream, StreamStats, TrackPrediction

T = TypeVar("T")


class Printable(Protocol):
    """A result that can be printed as a JSON object."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object."""
        ...


P = TypeVar("P", bound=Printable)

_SHOWN = 20  # maximum number of notes on unusable inputs
_LEAST_WIDTH = 10  # characters of a column that wraps, if there is room
_BORDER = 3  # characters of padding and border for each column
_UNLIMITED = 10**6  # characters, to measure the width of cells that do not wrap


class _Console(Console):
    """A console that escapes control characters in all rendered text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text, but="\n"))


def escape(text: str) -> str:
    """Returns untrusted text on one line. Escapes markup and control characters, and masks passwords in URLs."""
    return escape_markup(harmless(without_password(text)))


# On a terminal, a table must fit the width. In a pipe or a file, a table may have 160 columns.
out = _Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = _Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def contents(categories: Iterable[Category]) -> str:
    """Returns how many images and texts define categories, in words. An image counts once, whatever experts use it."""
    images = texts = 0
    for category in categories:
        images += category.images
        texts += len(category.texts)
    return f"{counted(images, 'image')} and {counted(texts, 'text')}"


def number_of(references: Collection[StoredReference]) -> str:
    """Returns the numbers of images and texts among references, in words."""
    return in_words(Counter(one.modality for one in references))


def print_standing(info: Mapping[str, Any], categories: Collection[Category]) -> None:
    """Prints a note on a store that cannot reject unknown images yet, or not at the wanted false-unknown rate.

    Args:
        info: The object that ``zsvec info --json`` prints.
        categories: All categories of the store.
    """
    if progress := ThresholdProgress.from_dict(info["threshold_progress"]):
        print_note(str(progress))
    elif categories and info["calibration"] == "none":
        few = sum(category.images > 0 for category in categories) < 2
        advice = "add images to at least two categories" if few else "run `zsvec calibrate`"
        print_note(f"your images cannot tell yet which images are unknown: {advice}")


def print_json(value: Mapping[str, Any]) -> None:
    """Prints an object as one line of JSON on stdout, and flushes. Escapes control characters on a terminal."""
    is_terminal = sys.stdout.isatty()
    is_unicode = (sys.stdout.encoding or "").lower() == "utf-8"
    line = json.dumps(value, ensure_ascii=is_terminal or not is_unicode, allow_nan=False)
    if is_terminal:
        line = line.replace("\x7f", r"\u007f")  # the only ASCII control character that JSON leaves
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def print_found(
    found: Sequence[P], table: Callable[[Sequence[P]], Table], *, json: bool, otherwise: str | None = None
) -> None:
    """Prints results on stdout.

    Args:
        found: The results.
        table: Returns a table of results.
        json: Whether to print a JSON line per result instead of the table.
        otherwise: Note for stderr if there are no results and `json` is false.
    """
    if json:
        for one in found:
            print_json(one.to_dict())
    elif found:
        out.print(table(found))
    elif otherwise:
        print_note(otherwise)


def print_note(message: str) -> None:
    """Prints a line on stderr."""
    err.print(escape(message))


@contextmanager
def left_out() -> Iterator[Callable[[Exception], None]]:
    """Yields a function that prints the error of an unusable input. After 20 errors, inputs are only counted."""
    count = 0

    def report(error: Exception) -> None:
        nonlocal count
        count += 1
        if count <= _SHOWN:
            print_note(f"left out: {error}")

    yield report
    if count > _SHOWN:
        print_note(f"left out: {count - _SHOWN} more")


def print_loading(classifier: Classifier) -> None:
    """Prints on a terminal that encoders of a profile are loading.

    Prints nothing for an empty store, which loads no encoders, and for encoders in Python, which are loaded earlier.
    """
    if err.is_terminal and classifier.settings.encoders is None and classifier.categories():
        print_note(f"loading the encoders of profile {classifier.settings.profile} …")


@contextmanager
def steps(activity: str) -> Iterator[Callable[[str], None]]:
    """Shows an activity on stderr: on a terminal a line with the current step, elsewhere one note.

    Shows nothing before the first step, so that an activity that cannot begin has only an error.

    Yields a function that takes the description of the next step.
    """
    status = err.status("")
    begun = False

    def show(step: str) -> None:
        nonlocal begun
        if err.is_terminal:
            status.update(escape(f"{activity}: {step} …"))
            status.start()
        elif not begun:
            print_note(f"{activity} …")
        begun = True

    try:
        yield show
    finally:
        status.stop()


@contextmanager
def progress(activity: str, total: int | None) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """Shows a progress bar if stderr is a terminal. Yields a function that passes items on and advances the bar.

    Without a total, the number of items counts if it is known.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(activity, total=total)

        def counted(items: Iterable[T]) -> Iterator[T]:
            if total is None and isinstance(items, Sized):
                bar.update(task, total=len(items))
            for item in items:
                yield item
                bar.advance(task)

        yield counted


@contextmanager
def live(running: Stream[Any] | Classifier, wanted: bool) -> Iterator[None]:
    """Prints the statistics of one or all streams on stderr at the end, and on a terminal also while they run."""
    if not wanted:
        yield
        return
    from rich.live import Live

    try:
        with Live(
            console=err,
            auto_refresh=err.is_terminal,
            get_renderable=lambda: stream_table(running.stats),
            redirect_stdout=sys.stdout.isatty(),  # otherwise results for a pipe would go to stderr
            transient=True,
        ):
            yield
    finally:  # also after an error: `zsvec watch` ends only by an interruption
        err.print(stream_table(running.stats))


def stream_table(stats: StreamStats) -> Table:
    """Returns a table of the statistics of a stream, with a row per stage."""
    rate = f"{counted(stats.images, 'image')} in {stats.seconds:.1f} s, {stats.rate:.1f} a second"
    drift = "" if stats.drift is None else f", drift {stats.drift:.2f}"
    settled = "".join(f", {number:,} by {encoder} alone" for encoder, number in stats.settled.items())
    whole = f", no cascade: {stats.no_cascade}" if stats.no_cascade else ""
    return new_table(
        *("stage", "busy", "of the time", "waiting for the next"),
        rows=(
            (
                stage,
                f"{(spent := stats.busy.get(stage, 0.0)):.1f} s",
                f"{spent / stats.seconds:.0%}" if stats.seconds else "–",
                str(stats.waiting.get(stage, "")),
            )
            for stage in ("decode", "preprocess", "encode", "search", "fuse")
        ),
        caption=f"{rate}, {stats.failed} unreadable{settled}{whole}{drift}",
    )


def prediction_object(prediction: Prediction, coverage: float | None, min_accuracy: float | None) -> dict[str, Any]:
    """Returns the JSON object of a prediction.

    With `coverage`, the object has the ``candidates``. With `min_accuracy`, ``answer`` is the answer of
    `Prediction.at`, or null.
    """
    values = prediction.to_dict()
    if coverage is not None:
        values["candidates"] = prediction.candidates(coverage)
    if min_accuracy is not None:
        answer = prediction.at(min_accuracy)
        values["answer"] = answer and dict(zip(("label", "probability"), answer, strict=True))
    return values


def print_prediction(
    prediction: Prediction,
    *,
    explain: bool,
    json: bool,
    coverage: float | None = None,
    min_accuracy: float | None = None,
) -> None:
    """Prints a prediction as a JSON object or as a line of text.

    Args:
        prediction: The prediction.
        explain: Whether the evidence follows the line of text. The line of an unknown image has no percentages, because
            they would only compare the known categories; the evidence has.
        json: Whether to print a JSON object.
        coverage: Coverage of the candidates to print, if any.
        min_accuracy: Accuracy for `Prediction.at`, if any. The line begins with its answer.
    """
    if json:
        print_json(prediction_object(prediction, coverage, min_accuracy))
        return
    if prediction.error is not None:
        out.print(f"[red]{escape(str(prediction))}[/red]")
        return
    nearest = escape(prediction.nearest or "")
    label = f"[bold yellow]unknown[/], nearest {nearest}" if prediction.unknown else f"[bold green]{nearest}[/]"
    if min_accuracy is not None and (answer := prediction.at(min_accuracy)) is None and not prediction.unknown:
        label = f"[bold yellow]no answer[/], nearest {nearest}"
    elif min_accuracy is not None and answer and answer[0] != prediction.label:
        perhaps = "[bold yellow]unknown[/], perhaps " * prediction.unknown
        kind = f"{perhaps}[bold green]{escape(kind_of(prediction, answer[0]))}[/]"
        label = f"{kind}{_share(prediction, answer[1])}, nearest {nearest}"
    then = ", ".join(f"{escape(label)} {p:.1%}" for label, p in prediction.ranking[1:3])
    asked = "" if coverage is None else "if known: " if prediction.unknown else f"{100 * coverage:g}%: "
    out.print(
        f"{escape(prediction.source)}  {label}{_share(prediction, prediction.probability)}"
        + (f"  [dim]then {then}[/]" if then and not prediction.unknown else "")
        + f"  [dim]{how_far(prediction)}[/]"
        + ("" if coverage is None else f"  {asked}{_in_set(prediction.candidates(coverage))}")
    )
    if prediction.labels:
        labels = (f"[bold]{escape(label)}[/]{_share(prediction, p)}" for label, p in prediction.labels)
        out.print(f"  labels {', '.join(labels)}")
    if explain:
        out.print(evidence_table(prediction))


def _share(answer: Prediction | TrackPrediction, share: float | None) -> str:
    """Returns a share of the probability, to follow a name. Empty for an unknown image, which no category fits."""
    return "" if answer.unknown else f" {share:.1%}"


def _in_set(candidates: Sequence[str] | None) -> str:
    return "[dim]cannot be promised[/]" if candidates is None else escape(", ".join(candidates))


def print_track(answer: TrackPrediction, *, json: bool) -> None:
    """Prints the answer of a track as a JSON object or as a line of text."""
    if json:
        print_json(answer.to_dict())
        return
    line = f"track {escape(str(answer.track))}  "
    if answer.nearest is None:
        out.print(f"[red]{line}not classified[/red]")
        return
    nearest = escape(answer.nearest)
    found = f"[bold green]{nearest}[/]" if answer.locked else f"[bold yellow]undecided[/], nearest {nearest}"
    label = f"[bold yellow]unknown[/], nearest {nearest}" if answer.unknown else found
    after = "" if answer.decided_after is None else f", decided after {answer.decided_after}"
    out.print(f"{line}{label}{_share(answer, answer.probability)}  [dim]{counted(answer.frames, 'frame')}{after}[/]")


def evidence_table(prediction: Prediction) -> Table:
    """Returns a table with a row per expert: weight, entropy, ranking and nearest references."""
    stale, progress = prediction.calibration == "stale", prediction.threshold_progress
    caption = (
        f"fused by {prediction.fusion} (`zsvec docs decides`)"
        + "; the calibration is stale: run `zsvec calibrate`" * stale
        + (f"; {progress}" if progress else "")
        + "; without a calibration, no image is unknown" * (prediction.novelty is None)
        + "; novelty by words alone" * (prediction.novelty_basis == "words")
    )
    says = "among known categories" if prediction.unknown else "says"
    return new_table(
        *("expert", "weight", "entropy", says, "nearest references"),
        rows=(
            (
                name,
                f"{expert.weight:.0%}",
                f"{expert.entropy:.2f}",
                lines(f"{p:.1%} {label}" for label, p in expert.ranking[:3]),
                lines(f"{n.similarity:.2f} {n.category}: {shortened(n.source)}" for n in expert.neighbors),
            )
            for name, expert in prediction.experts.items()
        ),
        wrapped=(says, "nearest references"),
        caption=caption,
    )


def facts_table(values: Mapping[str, Any]) -> Table:
    """Returns a table with a row per name. Entries of a mapping are on separate lines; commas separate list items."""
    rows = ((Text(name, "dim"), lines(_worded(value))) for name, value in values.items())
    return new_table("name", "value", rows=rows, wrapped=("value",), box=None, show_header=False)


def _worded(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}: {one}" for name, one in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [", ".join(map(str, value)) or "none"]
    return [str(value)]


class _Table(Table):
    """A table that in a narrow terminal first wraps the texts of some columns.

    Attributes:
        wrapped: Headers of these columns. Names, dates, hashes and numbers in other columns stay whole, if there is
            room.
    """

    wrapped: Collection[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the table, after it has marked the columns that stay whole."""
        unlimited = options.update(max_width=_UNLIMITED)
        widths = [
            max(console.measure(cell, options=unlimited).maximum for cell in (column.header, *column.cells))
            for column in self.columns
        ]
        spare = options.max_width - sum(min(width, _LEAST_WIDTH) + _BORDER for width in widths)
        for width, column in sorted(zip(widths, self.columns, strict=True), key=itemgetter(0)):
            more = max(width - _LEAST_WIDTH, 0)
            column.no_wrap = column.header not in self.wrapped and more <= spare
            if column.no_wrap:
                spare -= more
        yield from super().__rich_console__(console, options)


def new_table(
    *headers: str,
    rows: Iterable[Iterable[RenderableType]] = (),
    wrapped: Collection[str] = (),
    box: Box | None = SIMPLE_HEAD,
    **options: Any,
) -> Table:
    """Returns a table that wraps long cells in a narrow terminal instead of cutting them off.

    Args:
        *headers: Headers of the columns.
        rows: Cells of each row. A `str` may be untrusted and becomes one line, as by `lines`.
        wrapped: Headers of the columns of long texts, which wrap before the other columns do.
        box: Borders of the table.
        **options: Options of `rich.table.Table`.
    """
    table = _Table(*(Column(header, overflow="fold") for header in headers), box=box, pad_edge=False, **options)
    table.wrapped = wrapped
    for row in rows:
        table.add_row(*(lines([cell]) if isinstance(cell, str) else cell for cell in row))
    return table


def lines(texts: Iterable[str]) -> Text:
    """Returns a cell with one line for each text. The texts may be untrusted."""
    return Text("\n".join(harmless(without_password(text)) for text in texts))


def minute(moment: datetime | None) -> str:
    """Returns a time to the minute in local time, or a dash for ``None``."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else "–"


def shortened(text: str, longest: int = 48) -> str:
    """Returns the first `longest` characters of a text, or the last ones if the text has a slash, as paths do."""
    return text if len(text) <= longest else f"…{text[-longest:]}" if "/" in text else f"{text[:longest]}…"
