"""Programs that generate, for `test_kill` to kill.

``python -m tests.generation.runner`` runs what it reads, in a process for each line, one after the other:

- ``draw FOLDER URL`` executes a plan;
- ``store FOLDER URL`` runs a plan with `Generation.run`, into a new store;
- ``crash FOLDER URL`` draws in ``FOLDER/1``, ``FOLDER/2`` … and dies before the first, second … step to disk, until no
  step is left.

A process prints ``ready PID`` at its beginning, ``bought`` for each image, ``stored`` for each acknowledged write, and
``ended`` with its exit code.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.forking import say, serve
from tests.generation.fake_openai import FakeOpenAI
from tests.generation.material import plan_of, settings_of
from tests.support import open_classifier
from zsvec.generation.manifest import Manifest
from zsvec.generation.run import carry_out
from zsvec.store import Store, Write
from zsvec.types import Category

NAMES = [f"{colour} thing{i:02}" for i in range(24) for colour in ("blue", "red")]
STORED = NAMES[:20]
FEW = ["giant panda", "red panda"]
CONCURRENCY = 4
DEAD = 9


def draw(folder: Path, url: str, names: Sequence[str] = NAMES, **options: Any) -> None:
    settings = settings_of(url, **{"concurrency": CONCURRENCY, **options})
    drawn = carry_out(plan_of(folder, names, settings), settings, track=told)
    if drawn.error is not None:
        raise drawn.error


def store(folder: Path, url: str) -> None:
    settings = settings_of(url, concurrency=CONCURRENCY)
    write = Store.write

    def told_write(self: Store, writes: Sequence[Write]) -> list[Category]:
        written = write(self, writes)
        say("stored")
        return written

    Store.write = told_write  # type: ignore[method-assign]
    with open_classifier(folder, batch_size=2, generation=settings) as classifier:
        plan = classifier.generation.plan(STORED, per_category=2, folder=folder / "generated")
        classifier.generation.run(plan, keep_flagged=True, track=told)


def crash(folder: Path, url: str) -> None:
    for step in itertools.count(1):
        child = os.fork()
        if not child:
            die_before(step)
            draw(folder / str(step), url, FEW, concurrency=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        if os.waitstatus_to_exitcode(status) != DEAD:
            raise SystemExit(f"the run that was to die before step {step} failed")


def die_before(step: int) -> None:
    """Ends this process at once before its nth change of the disk."""
    steps = itertools.count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                os._exit(DEAD)
            return function(*args, **options)

        return call

    os.fsync = counted(os.fsync)
    for owner, name in ((Manifest, "append"), (Path, "mkdir"), (Path, "replace"), (Path, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))


def told(results: Iterable[Any]) -> Iterator[Any]:
    for result in results:
        say("bought")
        yield result


def run(program: str, folder: str, url: str) -> None:
    """Run a program."""
    {"draw": draw, "store": store, "crash": crash}[program](Path(folder), url)


def warm_up() -> None:
    """Imports and builds modules and models once, before the processes are forked."""
    with TemporaryDirectory() as folder, FakeOpenAI() as server:
        settings = settings_of(server.url)
        carry_out(plan_of(Path(folder), FEW, settings), settings)


if __name__ == "__main__":
    warm_up()
    serve(lambda line: run(*line.split()))
