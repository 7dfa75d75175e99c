"""Encoders by torch and by onnxruntime: images a second, and the start of a command."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime

import zsvec
from benchmarks.material import specs
from benchmarks.measure import Device, Out, Row, Spent, interleaved, medians, ratio, report, spent
from benchmarks.peers import in_a_process, loops
from zsvec.encoders import EncoderSet, describe_device, load_encoders
from zsvec.encoders.base import batches
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import image_model
from zsvec.encoders.torch.export import export_encoders
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import PROFILES

_BATCH, _REPEATS = 8, 5
_ONNX, _PLAIN = "onnxruntime, float32", "onnxruntime, plain loop"

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
    folder: Path,
    profile: str = "offline",
    rounds: int = 7,
    starts: int = 7,
    compiled: bool = False,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Images a second from files, of every candidate and of plain loops; one warm image; `zsvec classify` of one.

    ``base`` has random weights, which are as fast as the real ones. ``--compiled`` adds torch.compile, which takes
    minutes to load.
    """
    paths = find_images(folder)[:32]
    with tempfile.TemporaryDirectory() as scratch:
        chosen = specs(profile, Path(scratch)) if profile in {"base", "plus"} else PROFILES[profile].encoders
        exported, rounded = Path(scratch, "encoders"), Path(scratch, "int8")
        export_encoders(chosen, exported)
        export_encoders(chosen, rounded, photographs=[load_image(path) for path in paths])
        candidates = _candidates(chosen, exported, rounded, device, compiled=compiled)
        auto = f"auto, without an export: {describe_device(device, specs=chosen, runtime='torch')}"  # type: ignore[arg-type]
        plain = _PlainLoop(exported)

        def ways(paths: Sequence[Path]) -> dict[str, Callable[[], object]]:
            ours = {name: partial(_encode, encoders, paths) for name, encoders in candidates.items()}
            return {**ours, _PLAIN: partial(plain, paths)}

        with in_a_process(partial(loops, chosen, device), paths) as peers:
            all_of_them = interleaved({**ways(paths), "sentence-transformers and timm, plain loops": peers}, rounds)
        one = interleaved(_one_image(candidates, plain, paths[0]), rounds)
        profiles = {"torch": (profile, "torch"), "onnxruntime": (str(exported), "auto")}
        start = _starts(profiles, paths, Path(scratch, "store"), starts) if chosen is PROFILES[profile].encoders else []
    rows = _ratios(all_of_them, len(paths))
    tables: dict[str, list[Row]] = {
        f"{len(paths)} images from files, decoded one after the other, batches of {_BATCH}": rows,
        f"one warm image from a file, the best of {_REPEATS} each round": _ratios(one, 1),
        **({"zsvec classify, one image": start} if start else {}),
    }
    report(
        "runtimes",
        f"Encoders of the profile {profile}, {rounds} rounds",
        tables,
        out=out,
        draw=lambda axes: axes.barh([str(row["way"]) for row in rows], [row["images/s"] for row in rows]),
        device=device,
        notes=[auto, "[ ] are 95 % intervals over rounds."],
    )


def _candidates(
    chosen: Mapping[str, EncoderSpec], exported: Path, rounded: Path, device: str, *, compiled: bool
) -> dict[str, EncoderSet]:
    on_torch: dict[str, Any] = {"device": device, "runtime": "torch"}
    found = {}
    for dtype in ("float32", "bfloat16"):
        with patch.multiple(image_model, _fold=lambda *_: None, _layers=lambda *_: set()):
            found[f"torch eager, {dtype}"] = load_encoders(chosen, dtype=dtype, **on_torch)
        found[f"torch, {dtype}"] = load_encoders(chosen, dtype=dtype, **on_torch)
        if compiled:
            found[f"torch compiled, {dtype}"] = load_encoders(chosen, dtype=dtype, compiled=True, **on_torch)
    found["torch, auto"] = load_encoders(chosen, **on_torch)
    found[_ONNX] = load_encoders(ExportedFolder(exported).specs())
    found["onnxruntime, int8"] = load_encoders(ExportedFolder(rounded).specs())
    return found


def _encode(encoders: EncoderSet, paths: Sequence[Path]) -> None:
    for batch in batches(paths, _BATCH):
        encoders.encode_images([encoders.preprocess(load_image(path, side=encoders.side)) for path in batch])


class _PlainLoop:
    """What one would write by onnxruntime, at its defaults, with zsvec's decoding and pixels."""

    def __init__(self, folder: Path) -> None:
        models = {e.images for e in ExportedFolder(folder).manifest.encoders.values()}
        self._models = [
            (onnxruntime.InferenceSession(str(folder / model.graph)), model.preprocessing) for model in models
        ]
        self._side = max(preprocessing.scaled for _, preprocessing in self._models)

    def __call__(self, paths: Sequence[Path]) -> None:
        for batch in batches(paths, _BATCH):
            images = [load_image(path, side=self._side) for path in batch]
            for session, preprocessing in self._models:
                vectors = session.run(None, {"pixels": np.stack([preprocessing(image) for image in images])})[0]
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)


def _one_image(candidates: Mapping[str, EncoderSet], plain: _PlainLoop, path: Path) -> dict[str, Callable[[], object]]:
    def best(action: Callable[[], object]) -> Spent:
        return min(spent(action) for _ in range(_REPEATS))

    def encode(encoders: EncoderSet) -> object:
        return encoders.encode_images([encoders.preprocess(load_image(path, side=encoders.side))])

    ways: dict[str, Callable[[], object]] = {
        name: partial(best, partial(encode, encoders)) for name, encoders in candidates.items()
    }
    return {**ways, _PLAIN: partial(best, partial(plain, [path]))}


def _ratios(times: Mapping[str, Sequence[Spent]], count: int) -> list[Row]:
    """Rates, and as ratios to that of the plain loop of onnxruntime."""
    return [
        {"way": name, "images/s": count / taken, "÷ plain onnxruntime": ratio(times, name, _PLAIN)}
        for name, taken in medians(times).items()
    ]


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
