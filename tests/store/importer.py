"""A program that imports categories into embedded stores, for `test_kill` to kill.

``python -m tests.store.importer`` reads folders, and imports into each in another process, one after the other.
A process prints ``ready PID``, and the name of each acknowledged category. The end is printed as ``ended`` with the
exit code.
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
    """Every category with a text and three images; then two more images for some."""
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
    """Import, and print committed categories."""
    for name in write_all(Path(folder)):
        say(name)


if __name__ == "__main__":
    serve(import_into)
