"""Programs for tests to kill: each line of stdin is work for a process of its own, forked from one that is warm."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def say(word: str) -> None:
    """Print a line in one piece: it is said, or it is not."""
    os.write(sys.stdout.fileno(), f"{word}\n".encode())


def serve(work: Callable[[str], object]) -> None:
    """Do the work of each line, and say when it begins, where, and how it has ended."""
    for line in sys.stdin:
        say(f"ended {_in_a_process(work, line.rstrip())}")


def _in_a_process(work: Callable[[str], object], line: str) -> int:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        say(f"ready {os.getpid()}")
        work(line)
    except BaseException:  # noqa: BLE001 - it must not go on in the loop of its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
