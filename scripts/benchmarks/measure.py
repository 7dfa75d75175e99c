"""Measures interleaved actions, and prints tables of the results."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_info

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Cell = str | float
Times = Mapping[str, Sequence[float]]

_RESAMPLES = 2000
_PACKAGES = ("zsvec", "numpy", "torch", "onnxruntime", "qdrant-edge-py")


def seconds(action: Callable[[], object]) -> float:
    """Returns the seconds that an action takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each action in each round, after a warm-up round.

    The actions alternate, so that a slow period of the machine affects all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            time.sleep(0.1)  # threads of BLAS spin after a product, which would slow the next action
            times[name].append(seconds(action))
    return times


def rates(times: Times, images: int) -> list[dict[str, Cell]]:
    """Returns a row per action: images per second, and how many times as fast as the first action."""
    baseline = next(iter(times.values()))
    return [
        {"way": name, "images/s": images / statistics.median(taken), "times the first": ratio(baseline, taken)}
        for name, taken in times.items()
    ]


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Returns the ratio of the medians, slow to fast, with a paired bootstrap interval of 95 % over the rounds."""
    over, under = np.array(slow), np.array(fast)
    drawn = np.random.default_rng(0).integers(0, len(over), (_RESAMPLES, len(over)))
    low, high = np.quantile(np.median(over[drawn], axis=1) / np.median(under[drawn], axis=1), [0.025, 0.975])
    return f"{np.median(over) / np.median(under):.2f} [{low:.2f}, {high:.2f}]"


def unit_vectors(random: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """Returns random unit vectors, float32 ``(count, dim)``."""
    vectors = random.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def report(title: str, tables: Mapping[str, Sequence[Mapping[str, Cell]]]) -> None:
    """Prints the machine, the libraries, and a table per caption. All rows of a table must have the same columns."""
    console = Console(highlight=False, width=160)
    console.print(title)
    console.print(f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {_versions()}; {_blas()}")
    for caption, rows in tables.items():
        table = Table(*rows[0], title=caption, title_justify="left", box=SIMPLE_HEAD)
        for row in rows:
            table.add_row(*map(_text, row.values()))
        console.print(table)


def _text(value: Cell) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def _blas() -> str:
    """Returns the name, version, architecture and number of threads of each BLAS of this process."""
    found = [
        f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}, {blas['num_threads']} threads"
        for blas in threadpool_info()
        if blas["user_api"] == "blas"
    ]
    return "; ".join(found)


def _versions() -> str:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return ", ".join(f"{name} {number}" for name, number in found.items())
