"""A program that imports categories into embedded stores, for `test_kill` to kill.

``python -m tests.store.importer`` imports into each folder that it reads, in a process for each line, one after the
other. A process says ``ready PID`` when it begins, and the name of each category, a line each, when the store has
acknowledged it. When it has ended, ``ended`` is said, with its exit code.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.store.material import FINGERPRINTS, write_of
from zsvec.store import Store, Write
from zsvec.store.edge import EdgeBackend

NAMES = [f"category {i:02}" for i in range(45)]
BATCH = 3  # categories a write


def batches() -> list[Sequence[Write]]:
    """Every category with a text and three images; then two more images for some of them."""
    new = [write_of(name, [f"{name}, {i}" for i in range(3)], [f"text of {name}"]) for name in NAMES]
    additions = [write_of(name, [f"{name}, {i}" for i in (3, 4)]) for name in NAMES[::5]]
    return [part[first : first + BATCH] for part in (new, additions) for first in range(0, len(part), BATCH)]


def write_all(folder: Path) -> Iterator[str]:
    """Names of the categories as they are acknowledged."""
    with Store(EdgeBackend(folder), "zsvec") as store:
        store.bind(FINGERPRINTS)
        for batch in batches():
            for category in store.write(batch):
                yield category.name


def say(line: str) -> None:
    os.write(sys.stdout.fileno(), f"{line}\n".encode())  # in one piece: a line is said, or it is not


def in_a_process(folder: str) -> int:
    """Import into a folder; the exit code."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        say(f"ready {os.getpid()}")
        for name in write_all(Path(folder)):
            say(name)
    except BaseException:  # noqa: BLE001 - it must not go on in the loop of its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        say(f"ended {in_a_process(line.rstrip())}")
