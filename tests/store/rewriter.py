"""A program that writes collections of embedded stores anew, for `test_rewrite` to kill.

``python -m tests.store.rewriter`` reads lines ``STEP FOLDER``. For each, a process rewrites the collection of
the folder, prints each step, and is killed before the given one; at step -1, never.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from tests.forking import say, serve
from zsvec.store.backends.edge import backend as edge
from zsvec.store.backends.edge.backend import EdgeBackend

COLLECTION = "points"
STEPS = {os: ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink"), edge: ("_count", "_made", "_page", "_upserts")}


def rewrite(line: str) -> None:
    step, _, folder = line.partition(" ")
    number = count()

    def stepping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(number) == int(step):
                os.kill(os.getpid(), signal.SIGKILL)
            say(name)
            return function(*args, **options)

        return call

    backend = EdgeBackend(Path(folder))
    assert backend.exists(COLLECTION)
    for module, names in STEPS.items():
        for name in names:
            setattr(module, name, stepping(name, getattr(module, name)))
    backend.rewrite(COLLECTION)
    backend.close()


if __name__ == "__main__":
    serve(rewrite)
