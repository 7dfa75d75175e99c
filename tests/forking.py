"""Programs for tests to kill: each line of stdin is work for a new process, forked from a warm one."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def say(word: str) -> None:
    """Print a whole line, or nothing."""
    os.write(sys.stdout.fileno(), f"{word}\n".encode())


def serve(work: Callable[[str], object]) -> None:
    """Do the work of each line, and print the process id at the start and the exit code at the end."""
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
    except BaseException:  # noqa: BLE001 - a child must not go on in the loop of the parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
