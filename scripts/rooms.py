#!/usr/bin/env python
"""How control moves through the house: the rooms that an image goes through, and how often scoring is returned to.

    python scripts/rooms.py [--json]

A room is a module or package at the top of zsvec. It is entered when code of another room, or of no room, calls it.
Errors, the encoders for tests and generated code (of dataclasses) are no rooms. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import groupby
from types import FrameType
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import zsvec
from zsvec.inputs.categories import CategoryInput
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.scoring import Scoring
from zsvec.search.searcher import Searcher
from zsvec.testing import HashEncoder

# Errors are the words of all; a turn is held around the way from the encoders on, as a lock is, and is no step of it.
IGNORED = ("zsvec.errors", "zsvec.testing", "zsvec.encoders.shared_batches")
SCORING = Scoring.__module__
MOST_ROOMS = 8
MOST_RETURNS = 8


class Move(NamedTuple):
    """Control goes from one module to another; ``None`` is outside of the package."""

    origin: str | None
    target: str | None


def moves(package: str, action: Callable[[], object], ignored: Collection[str] = ()) -> tuple[list[Move], list[Move]]:
    """Calls and returns between the modules of a package while an action runs, in order.

    Code between them (of other packages, ignored modules, or generated) is looked through: a call by way of it is a
    call by the module that called it. Threads that the action starts are observed, too.

    Args:
        package: Its name.
        action: Is run.
        ignored: Modules of the package that are taken to be outside.
    """
    calls: list[Move] = []
    returns: list[Move] = []

    def module(frame: FrameType) -> str | None:
        name: str = frame.f_globals.get("__name__", "")
        is_inside = name.partition(".")[0] == package and name not in ignored
        return name if is_inside and not frame.f_code.co_filename.startswith("<") else None

    def caller(frame: FrameType) -> str | None:
        above = frame.f_back
        while above is not None and module(above) is None:
            above = above.f_back
        return module(above) if above else None

    def observe(frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "return") or (here := module(frame)) is None:
            return
        there = caller(frame)
        if here != there and event == "call":
            calls.append(Move(there, here))
        elif here != there:
            returns.append(Move(here, there))

    before, before_in_threads = sys.getprofile(), threading.getprofile()
    threading.setprofile(observe)
    sys.setprofile(observe)
    try:
        action()
    finally:
        sys.setprofile(before)
        threading.setprofile(before_in_threads)
    return calls, returns


def entered(calls: Sequence[Move]) -> list[str]:
    """Rooms in the order in which they are entered; one that is entered several times on end is named once."""
    rooms = ((_room(origin), _room(target)) for origin, target in calls)
    return [room for room, _ in groupby(target for origin, target in rooms if target != origin)]


def _room(module: str | None) -> str:
    return "" if module is None else module.split(".")[1] if "." in module else module


def entered_again(rooms: Sequence[str]) -> list[str]:
    """Rooms that are entered after another room has been entered since, each once, in that order."""
    return list(dict.fromkeys(room for position, room in enumerate(rooms) if room in rooms[:position]))


def main(as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False) -> None:
    """Count the rooms of an image and the returns into scoring, and compare them with the goals."""
    encoders = HashEncoder("clip"), HashEncoder("dino", modalities=("image",))
    with zsvec.open(":memory:", encoders=encoders) as classifier:
        classifier.add_categories(
            [CategoryInput(name=name, texts=[name], images=_pictures(seed)) for seed, name in enumerate("abc")]
        )
        (picture,) = _pictures(9, 1)
        classifier.classify(picture)  # references are indexed once
        calls, _ = moves("zsvec", lambda: classifier.classify(picture), IGNORED)
        searcher = Searcher(classifier.store, kind="memory", budget=0, neighbors=1, norms=True)
        prepared = [classifier.encoders.preprocess(picture)]
        found = searcher.search(classifier.encoders.encode_images(prepared), 3)
        returns = {}
        for strategy in STRATEGIES:
            scoring = Scoring(temperatures=classifier.scoring.temperatures, fusion=strategy)
            _, all_returns = moves("zsvec", partial(scoring.predict, found, [""], 5), IGNORED)
            returns[strategy] = sum(move.target == SCORING for move in all_returns)
    rooms = entered(calls)
    again = entered_again(rooms)
    passed = len(set(rooms)) <= MOST_ROOMS and not again and max(returns.values()) <= MOST_RETURNS
    if as_json:
        image = {"rooms": rooms, "distinct": len(set(rooms)), "entered_again": again}
        print(json.dumps({"image": image, "returns_into_scoring": returns, "passed": passed}))
    else:
        _show(rooms, again, returns, passed=passed)
    if not passed:
        raise typer.Exit(1)


def _pictures(seed: int, count: int = 4) -> list[Image.Image]:
    """Noise about a colour."""
    random = np.random.default_rng(seed)
    colour = random.integers(0, 256, 3)
    noise = random.integers(-40, 41, (count, 8, 8, 3))
    return [Image.fromarray(pixels) for pixels in np.clip(colour + noise, 0, 255).astype(np.uint8)]


def _show(rooms: Sequence[str], again: Sequence[str], returns: dict[str, int], *, passed: bool) -> None:
    console = Console(highlight=False, width=120)
    console.print(f"an image: {' → '.join(rooms)}")
    table = Table("", "measured", "goal", box=SIMPLE_HEAD)
    table.add_row("different rooms", str(len(set(rooms))), f"at most {MOST_ROOMS}")
    table.add_row("rooms entered again", ", ".join(again) or "none", "none")
    for strategy, count in returns.items():
        table.add_row(f"returns into {SCORING}, {strategy}", str(count), f"at most {MOST_RETURNS}")
    console.print(table)
    console.print("passed" if passed else "FAILED")


if __name__ == "__main__":
    typer.run(main)
