"""What the commands print: results on stdout, as tables or JSON lines; everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from zsvec.cli.doctor import Finding
    from zsvec.evaluation import Evaluation
    from zsvec.generation import Plan
    from zsvec.generation.synthesis import Generated
    from zsvec.method.fit import CalibrationReport
    from zsvec.stream import Stream, StreamStats
    from zsvec.types import Category, Prediction, Ranking

T = TypeVar("T")

# What is not a terminal has no width that tables would have to be squeezed into.
out = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def json_line(value: Mapping[str, Any]) -> None:
    """One object on a line of stdout, at once."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # a file name that is no Unicode, or a terminal that is not
        line = json.dumps(value, allow_nan=False)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """A line for the person who watches."""
    err.print(escape(message))


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """A bar on stderr, if that is a terminal; gives a function that counts what it iterates."""
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
    """What a stream does, on stderr: all the time if that is a terminal, and at the end."""
    if not wanted:
        yield
        return
    try:
        with Live(
            console=err,
            auto_refresh=err.is_terminal,
            get_renderable=lambda: stream(running.stats),
            redirect_stdout=sys.stdout.isatty(),  # else results would go where the statistics go
            transient=True,
        ):
            yield
    finally:  # whatever ends it: of a watch that is always an interruption
        err.print(stream(running.stats))


def stream(stats: StreamStats) -> Table:
    """What a stream does."""
    table = _table("stage", "busy", "of the time", "waiting for the next")
    for stage in ("decode", "preprocess", "encode", "search", "fuse"):
        spent = stats.busy.get(stage, 0.0)
        share = f"{spent / stats.seconds:.0%}" if stats.seconds else "–"
        waiting = stats.waiting.get(stage)
        table.add_row(stage, f"{spent:.1f} s", share, "" if waiting is None else str(waiting))
    table.caption = (
        f"{stats.images} images in {stats.seconds:.1f} s, {stats.rate:.1f} a second, {stats.failed} unreadable"
    )
    return table


def answer(prediction: Prediction, *, explain: bool, json: bool) -> None:
    """A prediction, for a program or for a person."""
    if json:
        json_line(prediction.to_dict())
    else:
        _print_prediction(prediction, explain=explain)


def _print_prediction(answer: Prediction, *, explain: bool) -> None:
    """A prediction in a line, and with its evidence below."""
    if answer.error is not None:
        out.print(f"[red]{escape(str(answer))}[/red]")
        return
    nearest = escape(answer.nearest or "")
    label = f"[bold yellow]unknown[/], nearest {nearest}" if answer.unknown else f"[bold green]{nearest}[/]"
    then = _ranked(answer.ranking[1:3])
    out.print(
        f"{escape(answer.source)}  {label} {answer.probability:.1%}"
        + (f"  [dim]then {then}[/]" if then else "")
        + f"  [dim]{how_far(answer)}[/]"
    )
    if explain:
        out.print(evidence(answer))


def how_far(answer: Prediction) -> str:
    """The novelty of an image; without a calibration its distance."""
    return f"distance {answer.distance:.2f}" if answer.novelty is None else f"novelty {answer.novelty:.2f}"


def evidence(answer: Prediction) -> Table:
    """What each expert says, and by which references."""
    stale = answer.calibration == "stale"
    caption = "the calibration is stale: run `zsvec calibrate`" if stale else None
    table = _table("expert", "weight", "entropy", "says", "nearest references", caption=caption)
    for name, expert in answer.experts.items():
        nearest = "\n".join(f"{n.similarity:.2f} {n.category}: {_short(n.source)}" for n in expert.neighbors)
        says = "\n".join(f"{p:.1%} {label}" for label, p in expert.ranking[:3])
        table.add_row(name, f"{expert.weight:.0%}", f"{expert.entropy:.2f}", escape(says), escape(nearest))
    return table


def categories(found: Sequence[Category]) -> Table:
    """The categories of a store."""
    experts = sorted({expert for category in found for expert in category.references})
    table = _table("category", "version", "updated", "texts", *experts)
    for category in found:
        counts = [str(category.references.get(expert, "–")) for expert in experts]
        text = _short("; ".join(category.texts))
        updated = f"{category.updated.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(escape(category.name), str(category.version), updated, escape(text), *counts)
    return table


def evaluation(result: Evaluation) -> Table:
    """Accuracies of the fusion and of each expert."""
    table = _table("", "top-1", "top-3", "top-5", "calibration error")
    for name, accuracy in {f"fusion ({result.fusion})": result.accuracy, **result.experts}.items():
        values = (accuracy.top1, accuracy.top3, accuracy.top5, accuracy.ece)
        table.add_row(name, *(f"{value:.1%}" for value in values))
    return table


def calibration(report: CalibrationReport) -> None:
    """What a calibration found, and what it changed."""
    made = report.calibration
    experts = _table("expert", "temperature", "images", "says the category of")
    for name, expert in made.experts.items():
        accuracy = "– (one reference a category)" if expert.accuracy is None else f"{expert.accuracy:.1%}"
        experts.add_row(name, f"{expert.temperature:.3f}", str(expert.images), accuracy)
    out.print(experts)
    fusion = _table("fusion", "top-1", "cross-entropy", "calibration error")
    for when, quality in {"before": report.before, "after": report.after}.items():
        if quality is not None:
            fusion.add_row(when, f"{quality.top1:.1%}", f"{quality.cross_entropy:.3f} nats", f"{quality.ece:.1%}")
    if report.after is not None:
        out.print(fusion)
    out.print(
        f"learned from {made.images} reference images; "
        + (
            f"unknown is what is farther than {1 - made.false_unknown_rate:.1%} of them"
            if made.aggregations.thresholds
            else "too few have another of their category to tell from where an image is unknown"
        )
    )


def plan(made: Plan) -> Table:
    """What a run will ask, buy and cost."""
    asked = ", ".join(f"{n} for {step}" for step, n in made.questions.items() if n)
    cost = "unknown: no price is known for the models" if made.cost is None else f"about ${made.cost:.2f}"
    limits = [
        *([f"{made.budget.images} images"] if made.budget.images is not None else []),
        *([f"${made.budget.dollars:g}"] if made.budget.dollars is not None else []),
    ]
    confused = "; ".join(", ".join(group) for group in made.measured[:5])
    return facts(
        {
            "categories": f"{len(made.categories)}",
            "confused by the store": (confused + (" …" if len(made.measured) > 5 else "")) or "none",
            "questions": f"at most {asked} ({made.models[0]})" if asked else "none",
            "images to buy": f"{made.affordable} ({made.models[1]})"
            + (f", and {made.beyond_budget} that the budget does not allow" if made.beyond_budget else ""),
            "images there": made.there,
            "cost": cost,
            "spent so far": f"${made.spent:.2f}",
            "budget": " and ".join(limits) or "none",
            "folder": made.folder,
        }
    )


def generated(done: Generated, *, json: bool) -> None:
    """What a run has come to: what was stored, and what was not, and why."""
    if json:
        for image in done.images:
            json_line(image.to_dict())
        for declined in done.declined:
            json_line(declined.to_dict())
    else:
        _print_generated(done)
    if done.out_of_budget:
        note("the budget ended it: with a larger one, run the same again to go on")


def _print_generated(done: Generated) -> None:
    left_out = _table("category", "image", "left out because")
    for image in done.images:
        if not image.stored:
            left_out.add_row(escape(image.record.category), escape(str(image.path)), escape("; ".join(image.flags)))
    for declined in done.declined:
        left_out.add_row(escape(declined.category), "–", escape(f"{declined.code}: {declined.reason}"))
    if left_out.row_count:
        out.print(left_out)
    stored = sum(image.stored for image in done.images)
    flagged = [image for image in done.images if image.flags]
    out.print(
        f"{len(done.images)} images, {stored} of them in the store, {len(flagged)} flagged; "
        f"{len(done.declined)} declined by the service; ${done.spent:.2f} spent"
    )


def facts(values: Mapping[str, Any]) -> Table:
    """Names and values."""
    table = _table("", "", box=None, show_header=False)
    for name, value in values.items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    return table


def findings(found: Sequence[Finding]) -> Table:
    """What works, and what to do about the rest."""
    table = _table("", "", "", box=None, show_header=False)
    for finding in found:
        mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
        advice = f"\n[yellow]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(mark, finding.what, escape(finding.detail) + advice)
    return table


def _table(*headers: str, box: Box | None = SIMPLE_HEAD, **options: Any) -> Table:
    """A table that cuts nothing off, however narrow the terminal."""
    return Table(*(Column(header, overflow="fold") for header in headers), box=box, pad_edge=False, **options)


def _ranked(ranking: Ranking) -> str:
    return ", ".join(f"{escape(label)} {p:.1%}" for label, p in ranking)


def _short(text: str, longest: int = 48) -> str:
    return text if len(text) <= longest else f"…{text[-longest:]}" if "/" in text else f"{text[:longest]}…"
