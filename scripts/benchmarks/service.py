"""Measures clients of `zsvec serve` that send single images, and a stream over the same images for comparison."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer

import zsvec
from benchmarks.measure import Cell, interleaved, rates, report
from zsvec.inputs.folders import find_images, read_categories

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def service(
    references: Path,
    photos: Path,
    clients: Annotated[int, typer.Option(help="Clients, and images of a batch of the stream.")] = 8,
    images: int = 128,
    profile: str = "offline",
    rounds: int = 7,
) -> None:
    """Measure images per second and latencies of clients of the service, and of a stream in this process."""
    paths = find_images(photos)[:images]
    latencies: dict[str, list[float]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("served", "streamed"):
            with zsvec.open(scratch / name, profile=profile) as classifier:
                classifier.add_categories(read_categories(references))
        classifier = stack.enter_context(zsvec.open(scratch / "streamed", profile=profile))
        http = stack.enter_context(_served(scratch / "served", profile))

        def stream() -> None:
            with classifier.classify_stream(paths, batch_size=clients) as predictions:
                for _ in predictions:
                    pass

        def ask(way: str, count: int) -> None:
            with ThreadPoolExecutor(count) as pool:
                latencies.setdefault(way, []).extend(pool.map(partial(_classify, http), paths))

        many, one, streamed = f"{clients} clients, an image each", "one client", f"stream, batches of {clients}"
        times = interleaved({streamed: stream, many: partial(ask, many, clients), one: partial(ask, one, 1)}, rounds)
    waits: list[dict[str, Cell]] = [
        {"way": way, **{name: 1000 * float(np.quantile(found[len(paths) :], q)) for name, q in _QUANTILES.items()}}
        for way, found in latencies.items()
    ]
    report(
        f"{len(paths)} images, profile {profile}, {rounds} rounds",
        {"rates (medians)": rates(times, len(paths)), "latencies, ms": waits},
    )


def _classify(http: httpx.Client, path: Path) -> float:
    """Returns the seconds until the response."""
    begun = time.perf_counter()
    answer = http.post("/v1/classify", content=path.read_bytes(), headers={"Content-Type": "image/jpeg"})
    answer.raise_for_status()
    return time.perf_counter() - begun


@contextmanager
def _served(store: Path, profile: str) -> Iterator[httpx.Client]:
    """Serves a store in another process, and yields a client of the service."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options: Sequence[str] = ["--store", str(store), "--profile", profile, "serve", "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "zsvec", *options])  # noqa: S603 - this program itself
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            while not _is_ready(http):
                if process.poll() is not None:
                    raise RuntimeError(f"zsvec serve has ended with code {process.returncode}")
                time.sleep(0.1)
            yield http
    finally:
        process.terminate()
        process.wait()


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/health/ready").is_success
    except httpx.TransportError:
        return False
