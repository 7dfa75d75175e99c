"""A program that imports categories into embedded stores, for `test_kill` to kill.

``python -m tests.store.importer`` imports into each folder that it reads, in a process for each line, one after the
other. A process says ``ready PID`` when it begins, and the name of each category, a line each, when the store has
acknowledged it. When it has ended, ``ended`` is said, with its exit code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.forking import say, serve
from tests.store.material import FINGERPRINTS, pictured
from zsvec.store import Store, Write
from zsvec.store.backends.edge.backend import EdgeBackend

NAMES = [f"category {i:02}" for i in range(45)]
BATCH = 3  # categories a write


def batches() -> list[Sequence[Write]]:
    """Every category with a text and three images; then two more images for some of them."""
    new = [pictured(name, [f"{name}, {i}" for i in range(3)], [f"text of {name}"]) for name in NAMES]
    additions = [pictured(name, [f"{name}, {i}" for i in (3, 4)]) for name in NAMES[::5]]
    return [part[first : first + BATCH] for part in (new, additions) for first in range(0, len(part), BATCH)]


def write_all(folder: Path) -> Iterator[str]:
    with Store(EdgeBackend(folder), "zsvec") as store:
        store.bind(FINGERPRINTS)
        for batch in batches():
            for category in store.write(batch):
                yield category.name


def import_into(folder: str) -> None:
    """Import, and say what is committed."""
    for name in write_all(Path(folder)):
        say(name)


if __name__ == "__main__":
    serve(import_into)
