"""How much of its speed torch keeps beside other busy processes, measured here.

Threads that spin at the barriers of a network wait for one that a busy neighbour keeps off its core: what takes a
millisecond alone takes a time slice of the scheduler. Which of the two it is depends on libgomp, its variables and the
kernel, so it is tried.
"""

from __future__ import annotations

import subprocess  # nosec B404 # starts Python itself
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 0.5
_STARTING = 0.2  # seconds that a neighbour needs to be busy


def kept_beside_others() -> float:
    """Passes of a small layer a second beside as many busy processes as torch has threads, as a share of those alone.

    Takes a second and a half. A half is fair.
    """
    import torch

    layer, rows = torch.nn.Linear(256, 256), torch.ones(64, 256)

    def rate() -> float:
        passes, begun = 0, time.perf_counter()
        while (taken := time.perf_counter() - begun) < _SECONDS:
            layer(rows)
            passes += 1
        return passes / taken

    with torch.inference_mode():
        rate()  # warms up
        alone = rate()
        with busy_processes(torch.get_num_threads()):
            return rate() / alone


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute all the time."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        computing = [sys.executable, "-I", "-S", "-c", "while True: pass"]
        while len(started) < count:
            started.append(subprocess.Popen(computing))  # noqa: S603 # nosec B603 # nothing of it is given
        time.sleep(_STARTING)
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
