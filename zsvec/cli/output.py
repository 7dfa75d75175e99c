"""What several commands print: results on stdout, as tables or JSON lines; everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape as escape_markup
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from zsvec.cli.process import harmless
from zsvec.errors import without_password
from zsvec.types import counted as counted  # all commands count
from zsvec.types import how_far

if TYPE_CHECKING:
    from zsvec import Classifier, Prediction, Ranking, Stream, StreamStats, Suspect

T = TypeVar("T")


class Printable(Protocol):
    """A result that has an object of JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The object."""
        ...


P = TypeVar("P", bound=Printable)

_SHOWN = 20  # inputs that cannot be used, each in a line


class _Console(Console):
    """A console that shows control characters, wherever they come from, and obeys none but its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text, but="\n"))


def escape(text: str) -> str:
    """A text from outside as it is, on one line: no markup, no control character, no line that it could fake.

    Passwords of URLs are left out.
    """
    return escape_markup(harmless(without_password(text)))


# What is not a terminal has no width that tables would have to be squeezed into.
out = _Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = _Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print an object as one line of stdout, at once; to a terminal without any character that it could obey."""
    line = json.dumps(value, ensure_ascii=sys.stdout.isatty(), allow_nan=False)
    if sys.stdout.isatty():
        line = line.replace("\x7f", r"\u007f")  # the only one in ASCII that JSON leaves
    try:
        line.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # a file name that is no Unicode, or a terminal that is not
        line = json.dumps(value, allow_nan=False)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def print_found(
    found: Sequence[P], table: Callable[[Sequence[P]], Table], *, json: bool, otherwise: str | None = None
) -> None:
    """Print results on stdout.

    Args:
        found: The results.
        table: Makes a table of them, for people.
        json: Whether to print each as a line of JSON instead.
        otherwise: A note for people where there is no result.
    """
    if json:
        for one in found:
            print_json(one.to_dict())
    elif found:
        out.print(table(found))
    elif otherwise:
        print_note(otherwise)


def print_note(message: str) -> None:
    """Print a line on stderr, for the person who watches."""
    err.print(escape(message))


@contextmanager
def left_out() -> Iterator[Callable[[Exception], None]]:
    """Yields a function that prints a note on each input that cannot be used: the first ones, then their number."""
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
    """Say on stderr, if that is a terminal, why the first answer takes seconds; of an empty store there is none."""
    if err.is_terminal and classifier.categories():
        print_note(f"loading the encoders of profile {classifier.settings.profile} …")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """A progress bar on stderr, if that is a terminal; gives a function that iterates items and counts them."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def counted(items: Iterable[T]) -> Iterator[T]:
            for item in items:
                yield item
                bar.advance(task)

        yield counted


@contextmanager
def live(running: Stream[Any], wanted: bool) -> Iterator[None]:
    """The statistics of a stream on stderr: at the end, and all the time if that is a terminal."""
    if not wanted:
        yield
        return
    from rich.live import Live

    try:
        with Live(
            console=err,
            auto_refresh=err.is_terminal,
            get_renderable=lambda: stream_table(running.stats),
            redirect_stdout=sys.stdout.isatty(),  # else results would go where the statistics go
            transient=True,
        ):
            yield
    finally:  # after an error, too: a watch always ends by an interruption
        err.print(stream_table(running.stats))


def stream_table(stats: StreamStats) -> Table:
    """The statistics of a stream."""
    images = counted(stats.images, "image")
    drift = "" if stats.drift is None else f", drift {stats.drift:.2f}"
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
        caption=f"{images} in {stats.seconds:.1f} s, {stats.rate:.1f} a second, {stats.failed} unreadable{drift}",
    )


def print_prediction(prediction: Prediction, *, explain: bool, json: bool) -> None:
    """Print a prediction: as JSON, or in a line for a person, with its evidence below if that is wanted."""
    if json:
        print_json(prediction.to_dict())
        return
    if prediction.error is not None:
        out.print(f"[red]{escape(str(prediction))}[/red]")
        return
    nearest = escape(prediction.nearest or "")
    label = f"[bold yellow]unknown[/], nearest {nearest}" if prediction.unknown else f"[bold green]{nearest}[/]"
    then = _ranked(prediction.ranking[1:3])
    out.print(
        f"{escape(prediction.source)}  {label} {prediction.probability:.1%}"
        + (f"  [dim]then {then}[/]" if then else "")
        + f"  [dim]{how_far(prediction)}[/]"
    )
    if explain:
        out.print(evidence_table(prediction))


def evidence_table(prediction: Prediction) -> Table:
    """What each expert says, and its nearest references."""
    stale = prediction.calibration == "stale"
    caption = f"fused by {prediction.fusion}" + "; the calibration is stale: run `zsvec calibrate`" * stale
    return new_table(
        *("expert", "weight", "entropy", "says", "nearest references"),
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
        caption=caption,
    )


def facts_table(values: Mapping[str, Any]) -> Table:
    """Names and their values."""
    rows = ((Text(name, "dim"), lines(_worded(value))) for name, value in values.items())
    return new_table("", "", rows=rows, box=None, show_header=False)


def _worded(value: Any) -> list[str]:
    """The lines of a value for people: one for each entry of a table, and a list with commas."""
    if isinstance(value, Mapping):
        return [f"{name}: {one}" for name, one in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [", ".join(map(str, value)) or "none"]
    return [str(value)]


def new_table(
    *headers: str, rows: Iterable[Iterable[RenderableType]] = (), box: Box | None = SIMPLE_HEAD, **options: Any
) -> Table:
    """A table. However narrow the terminal is, nothing is cut off.

    Args:
        *headers: Of the columns.
        rows: Cells by row. A `str` may be anybody's text: markup in it is none (see `escape`).
        box: The lines of the table.
        **options: Of `rich.table.Table`.
    """
    table = Table(*(Column(header, overflow="fold") for header in headers), box=box, pad_edge=False, **options)
    for row in rows:
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def lines(texts: Iterable[str]) -> Text:
    """A cell with a line for each of some texts, which may be anybody's."""
    return Text("\n".join(harmless(without_password(text)) for text in texts))


def minute(moment: datetime | None) -> str:
    """A moment to the minute, in the time of this machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else "–"


def suspects_table(suspects: Iterable[Suspect]) -> Table:
    """References that are probably under a wrong category."""
    return new_table(
        *("reference", "category", "probably wrong", "instead"),
        rows=(
            (
                one.source,
                one.category,
                f"{one.probability:.1%}",
                one.instead + (" (the same picture is there, too)" if one.copied else ""),
            )
            for one in suspects
        ),
    )


def shortened(text: str, longest: int = 48) -> str:
    """The beginning of a long text, or the end of a long path."""
    return text if len(text) <= longest else f"…{text[-longest:]}" if "/" in text else f"{text[:longest]}…"


def _ranked(ranking: Ranking) -> str:
    return ", ".join(f"{escape(label)} {p:.1%}" for label, p in ranking)
