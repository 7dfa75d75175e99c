"""How long threads of OpenMP spin while they wait: what that leaves a stream by torch, and busy processes beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.sharedctypes import RawArray
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any

import typer

import zsvec
from benchmarks.measure import Device, Out, Row, Spent, medians, ratio, report
from benchmarks.peers import Embed, in_a_process
from zsvec.inputs.folders import find_images

_VARIABLE = "GOMP_SPINCOUNT"
_DEFAULT, _ALONE = "default", "busy processes alone"
_BATCH = 8
_TURN = 20_000  # turns of a loop that count as one: some tenths of a millisecond


def spin(
    folder: Path,
    images: int = 32,
    counts: Annotated[str, typer.Option(help=f"Values of {_VARIABLE}, beside its default.")] = "10000,1000,0",
    rounds: int = 9,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Images a second of streams by torch in float32, profile offline, alone and beside a busy process a core."""
    paths = find_images(folder)[:images]
    with ExitStack() as stack:
        streams = {
            value: stack.enter_context(_started(value, paths, device)) for value in (_DEFAULT, *counts.split(","))
        }
        busy, turns = stack.enter_context(_busy_processes())
        times: dict[str, list[Spent]] = {_ALONE: []}
        for number in range(rounds):
            first = number % len(streams)  # nobody is always the first after the busy processes
            turn = [*streams.items()][first:] + [*streams.items()][:first]
            for value, stream in turn:
                times.setdefault(value, []).append(stream())
            busy.set()
            times[_ALONE].append(_a_turn(turns, lambda: time.sleep(1)))
            for value, stream in turn:
                theirs = _a_turn(turns, lambda: times.setdefault(_beside(value), []).append(stream()))  # noqa: B023
                times.setdefault(_theirs(value), []).append(theirs)
            busy.clear()
    taken = medians(times)
    rows: list[Row] = [
        {
            _VARIABLE: value,
            "images/s": len(paths) / taken[value],
            "of the default": ratio(times, value, _DEFAULT),
            "images/s, cores busy": len(paths) / taken[_beside(value)],
            "of alone": ratio(times, _beside(value), value),
            "what the busy processes keep": ratio(times, _theirs(value), _ALONE),
        }
        for value in streams
    ]
    report(
        "spin",
        f"{len(paths)} images in batches of {_BATCH}, {rounds} rounds",
        {"streams by torch": rows},
        out=out,
        draw=lambda axes: axes.bar(list(streams), [len(paths) / taken[_beside(value)] for value in streams]),
        device=device,
        raw={"seconds": times},
        notes=[
            "Ratios of median rates, with their 95 % intervals over the rounds.",
            "Each value has one process. Processes of the same value differ by up to a quarter: repeat it.",
        ],
    )


def _beside(value: str) -> str:
    return f"{value}, cores busy"


def _theirs(value: str) -> str:
    return f"busy processes beside {value}"


@contextmanager
def _started(value: str, paths: Sequence[Path], device: str) -> Iterator[Callable[[], Spent]]:
    """A stream in a process whose environment has this value; libgomp reads it when torch is imported."""
    before = os.environ.pop(_VARIABLE, None)
    with in_a_process(partial(_stream, device), paths) as stream:
        try:
            if value != _DEFAULT:
                os.environ[_VARIABLE] = value
            stream()  # the first call starts the process
        finally:
            os.environ.pop(_VARIABLE, None)
            if before is not None:
                os.environ[_VARIABLE] = before
        yield stream


def _stream(device: str) -> Embed:
    classifier = zsvec.open(":memory:", profile="offline", runtime="torch", dtype="float32", device=device)
    classifier.add_category("lynx", texts=["a lynx"])

    def classify(paths: Sequence[Path]) -> None:
        with classifier.classify_stream(paths, batch_size=_BATCH) as predictions:
            for _ in predictions:
                pass

    return classify


@contextmanager
def _busy_processes() -> Iterator[tuple[Event, Any]]:
    """As many as there are cores, which count what they get done while the event is set."""
    context = get_context("spawn")
    busy = context.Event()
    turns = RawArray("Q", os.cpu_count() or 1)
    others = [context.Process(target=_count, args=(busy, turns, one), daemon=True) for one in range(len(turns))]
    for other in others:
        other.start()
    busy.set()
    while not all(turns):
        time.sleep(0.1)
    busy.clear()
    try:
        yield busy, turns
    finally:
        for other in others:
            other.kill()
            other.join()


def _count(busy: Event, turns: Any, one: int) -> None:
    while busy.wait():
        for _ in range(_TURN):
            pass
        turns[one] += 1


def _a_turn(turns: Any, meanwhile: Callable[[], object]) -> Spent:
    """Seconds that the busy processes take for one turn together, while something else is done."""
    before, begun = sum(turns), time.perf_counter()
    meanwhile()
    return Spent((time.perf_counter() - begun) / max(1, sum(turns) - before), 0.0)
