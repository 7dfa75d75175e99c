"""Taking times and memory, and saying what came out: a table, and for `--out` JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zsvec.encoders import describe_device

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Out = Annotated[Path | None, typer.Option(help="Folder for figures as JSON and a plot.")]
Row: TypeAlias = Mapping[str, str | float]

_RESAMPLES = 2000

console = Console(highlight=False, width=160)
_LOAD_BEFORE = os.getloadavg()  # of other processes, when this one begins

_PACKAGES = {
    *("zsvec", "numpy", "torch", "timm", "sentence-transformers", "transformers", "pillow"),
    *("qdrant-client", "qdrant-edge-py", "faiss-cpu", "scikit-learn", "scipy"),
}


class Spent(NamedTuple):
    """Seconds that passed, and seconds that this process was on cores, which other processes disturb less."""

    wall: float
    cpu: float


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    return spent(action).wall


def spent(action: Callable[[], object]) -> Spent:
    """What an action takes; of one that runs in another process, what it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    elsewhere = action()
    if isinstance(elsewhere, Spent):
        return elsewhere
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Spent]]:
    """What each action takes in each round; taken in turns, so that a slow moment of the machine hits all alike."""
    times: dict[str, list[Spent]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            time.sleep(0.1)  # threads of a BLAS go on spinning after a product; none shall disturb the next action
            times[name].append(spent(action))
    return times


def medians(times: Mapping[str, Sequence[Spent]]) -> dict[str, float]:
    """Median seconds that pass for each action."""
    return {name: statistics.median(spent.wall for spent in rounds) for name, rounds in times.items()}


def ratio(
    times: Mapping[str, Sequence[Spent]], way: str, other: str, *, digits: int = 2, by: Literal["wall", "cpu"] = "wall"
) -> str:
    """Rate of a way by that of another: the ratio of medians, with its 95 % interval by resampling the rounds."""
    mine, theirs = (np.array([getattr(one, by) for one in times[name]]) for name in (way, other))
    drawn = np.random.default_rng(0).integers(0, len(mine), (_RESAMPLES, len(mine)))
    low, high = np.quantile(np.median(theirs[drawn], axis=1) / np.median(mine[drawn], axis=1), [0.025, 0.975])
    return f"{np.median(theirs) / np.median(mine):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def memory() -> tuple[float, float]:
    """Resident memory of this process in MiB: all of it, and what is not pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    total, own = (int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon"))
    return total, own


def unit_vectors(random: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """Random directions, float32 ``(count, dim)``."""
    vectors = random.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def report(
    name: str,
    title: str,
    tables: Mapping[str, Sequence[Row]],
    *,
    out: Path | None,
    draw: Callable[[Any], object],
    device: str = "auto",
    notes: Sequence[str] = (),
    raw: Mapping[str, Any] | None = None,
) -> None:
    """Print the tables; with a folder, also write ``NAME.json`` and ``NAME.png`` into it.

    Args:
        name: Of the benchmark.
        title: What was measured.
        tables: By caption, their rows, which have the same columns.
        out: The folder.
        draw: Plots into axes of matplotlib.
        device: As `--device` says.
        notes: What one has to know to read the tables.
        raw: What the tables sum up; for the JSON alone.
    """
    console.print(title)
    console.print(f"{describe_device(device)}; load of the machine before: {_LOAD_BEFORE[0]:.1f}")  # type: ignore[arg-type]
    for caption, rows in tables.items():
        table = Table(*rows[0], title=caption, title_justify="left", box=SIMPLE_HEAD)
        for row in rows:
            table.add_row(*map(_text, row.values()))
        console.print(table)
    for note in notes:
        console.print(note)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    figures = {"benchmark": name, "title": title, "tables": tables, "notes": notes, "raw": raw or {}}
    (out / f"{name}.json").write_text(
        json.dumps({**figures, **_circumstances(device)}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    _plot(out / f"{name}.png", title, draw)


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plot(path: Path, title: str, draw: Callable[[Any], object]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title, fontsize="small", wrap=True)
    figure.savefig(path, dpi=150)


def _circumstances(device: str) -> dict[str, Any]:
    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "device": describe_device(device),  # type: ignore[arg-type]
            "load_before": _LOAD_BEFORE,
        },
        "versions": {
            "python": platform.python_version(),
            **{found.name: found.version for found in distributions() if found.name in _PACKAGES},
        },
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
