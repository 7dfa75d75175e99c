"""Encoders by torch and by onnxruntime: images a second alone and beside a busy process, and the start of a command."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import zsvec
from benchmarks.measure import Device, Out, Row, Spent, interleaved, medians, report
from zsvec.encoders import EncoderSet, load_encoders
from zsvec.encoders.export import export_encoders
from zsvec.encoders.exported import ExportedFolder
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.profiles import PROFILES

# The peak of a process counts that of its parent: this one has loaded everything, and a launcher nothing.
_LAUNCHER = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(status))
"""


def runtimes(
    folder: Path, profile: str = "offline", rounds: int = 7, starts: int = 7, device: Device = "cpu", out: Out = None
) -> None:
    """Images a second, medians of interleaved rounds; and seconds and memory of `zsvec classify` of one image."""
    specs = PROFILES[profile].encoders
    paths = find_images(folder)[:32]
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch, "encoders")
        export_encoders(specs, exported)
        candidates = {
            f"torch, {dtype}": load_encoders(specs, device=device, dtype=dtype, runtime="torch")  # type: ignore[arg-type]
            for dtype in ("float32", "bfloat16")
        } | {"onnxruntime": load_encoders(ExportedFolder(exported).specs())}
        alone = [_rates(candidates, paths, size, rounds) for size in (1, 8, 32)]
        with _busy_process():
            beside = _rates(candidates, paths, 8, rounds)
        profiles = {"torch": (profile, "torch"), "onnxruntime": (str(exported), "auto")}
        start = _starts(profiles, paths, Path(scratch, "store"), starts)
    rows: list[Row] = [
        {
            "runtime": name,
            **{f"batch of {size}": rates[name] for size, rates in zip((1, 8, 32), alone, strict=True)},
            "batch of 8, cores busy": beside[name],
            "of alone": beside[name] / alone[1][name],
        }
        for name in candidates
    ]
    report(
        "runtimes",
        f"Encoders of the profile {profile}, {len(paths)} images",
        {"images/s": rows, "zsvec classify, one image": start},
        out=out,
        draw=lambda axes: axes.bar(list(candidates), list(alone[2].values())),
        device=device,
        notes=["As many processes as there are cores kept them busy."],
    )


def _rates(candidates: Mapping[str, EncoderSet], paths: list[Path], size: int, rounds: int) -> dict[str, float]:
    """Images a second of each candidate, decoding not included."""
    images = [load_image(path) for path in (paths * size)[:size]]
    repeats = max(1, 8 // size)

    def encode(encoders: EncoderSet) -> None:
        for _ in range(repeats):
            encoders.encode_images([encoders.preprocess(image) for image in images])

    times = medians(interleaved({name: partial(encode, one) for name, one in candidates.items()}, rounds))
    return {name: size * repeats / taken for name, taken in times.items()}


def _spin() -> None:
    while True:
        pass


@contextmanager
def _busy_process() -> Iterator[None]:
    """Others that keep every core busy."""
    others = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def _starts(profiles: Mapping[str, tuple[str, str]], paths: list[Path], store: Path, rounds: int) -> list[Row]:
    exported, _ = profiles["onnxruntime"]
    with zsvec.open(store, profile=exported) as classifier:
        classifier.add_category("something", images=paths[:2])
    megabytes: dict[str, float] = {}

    def start(name: str) -> Spent:
        profile, runtime = profiles[name]
        options = ["--store", str(store), "--profile", profile]
        done = subprocess.run(  # noqa: S603 - this program itself
            [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-m", "zsvec", *options, "classify", str(paths[0])],
            env={**os.environ, "ZSVEC_RUNTIME": runtime},
            capture_output=True,
            check=True,
        )
        wall, cpu, megabytes[name] = json.loads(done.stdout)
        return Spent(wall, cpu)

    times = interleaved({name: partial(start, name) for name in profiles}, rounds)
    return [
        {
            "runtime": name,
            "s": statistics.median(one.wall for one in taken),
            "s of CPU": statistics.median(one.cpu for one in taken),
            "MiB": megabytes[name],
        }
        for name, taken in times.items()
    ]
