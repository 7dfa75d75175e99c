"""Measures clients of `zsvec serve` that send single images, and a stream over the same images for comparison."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated

import httpx
import numpy as np
import typer
from PIL import Image

import zsvec
from benchmarks.measure import Cell, interleaved, rates, report
from zsvec.inputs.folders import find_images, read_categories

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_PAGES = ("/", "/categories", "/audit", "/map", "/changes")
_JPEG = {"Content-Type": "image/jpeg"}


def service(
    references: Path,
    photos: Path,
    clients: Annotated[int, typer.Option(help="Clients, and images of a batch of the stream.")] = 8,
    images: int = 128,
    profile: str = "offline",
    rounds: int = 7,
    apart: Annotated[
        bool, typer.Option(help="Run the stream and the service on one core, and the clients on another.")
    ] = False,
) -> None:
    """Measure images per second, latencies and processor time of clients of the service, and of a stream."""
    if apart:
        os.sched_setaffinity(0, {0})  # before threads start; the service inherits it
    paths = find_images(photos)[:images]
    bodies = [path.read_bytes() for path in paths]
    latencies: dict[str, list[float]] = {}
    work: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("served", "streamed"):
            _fill(scratch / name, references, profile)
        classifier = stack.enter_context(zsvec.open(scratch / "streamed", profile=profile))
        process, port = stack.enter_context(_served(scratch / "served", profile))
        # In another process, because clients in threads of this process would compete with each other for the GIL.
        sender = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        cores = {1} if apart else os.sched_getaffinity(0)

        def stream(way: str) -> None:
            begun = time.process_time()
            with classifier.classify_stream(paths, batch_size=clients) as predictions:
                for _ in predictions:
                    pass
            work.setdefault(way, []).append((time.process_time() - begun, 0.0))

        def ask(way: str, count: int) -> None:
            begun = _processor_seconds(process.pid)
            waits, spent = sender.apply(_send, (port, bodies, count, cores))
            latencies.setdefault(way, []).extend(waits)
            work.setdefault(way, []).append((_processor_seconds(process.pid) - begun, spent))

        many, one, streamed = f"{clients} clients, an image each", "one client", f"stream, batches of {clients}"
        times = interleaved(
            {streamed: partial(stream, streamed), many: partial(ask, many, clients), one: partial(ask, one, 1)}, rounds
        )
    waits: list[dict[str, Cell]] = [
        {"way": way, **{name: 1000 * float(np.quantile(found[len(paths) :], q)) for name, q in _QUANTILES.items()}}
        for way, found in latencies.items()
    ]
    spent: list[dict[str, Cell]] = []
    for way, found in work.items():
        zsvec_s, clients_s = np.median(found[1:], axis=0)
        spent.append({"way": way, "zsvec": 1000 * zsvec_s / len(paths), "clients": 1000 * clients_s / len(paths)})
    report(
        f"{len(paths)} images, profile {profile}, {rounds} rounds{', clients on another core' if apart else ''}",
        {
            "rates (medians)": rates(times, len(paths)),
            "latencies, ms": waits,
            "processor time of an image, ms (medians)": spent,
        },
    )


def memory(
    references: Path,
    photos: Path,
    requests: int = 3000,
    clients: int = 8,
    profile: str = "offline",
) -> None:
    """Measure the memory of the service over many requests: images with evidence, changes, and pages."""
    files = find_images(photos)
    rows: list[dict[str, Cell]] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _fill(scratch / "served", references, profile)
        process, port = stack.enter_context(_served(scratch / "served", profile))
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False))
        pool = stack.enter_context(ThreadPoolExecutor(clients))

        def ask(number: int) -> None:
            answer = http.post("/v1/classify?explain=true", content=_varied(files, number), headers=_JPEG)
            answer.raise_for_status()
            if number % 50 == 0:
                http.put("/v1/categories/changing", json={"texts": [f"text {number}"]}).raise_for_status()
            if number % 100 == 0:
                page = _PAGES[number // 100 % len(_PAGES)]
                http.get(page, headers={"Accept": "text/html"}).raise_for_status()

        for begin in range(0, requests, 500):
            rows.append({"requests": str(begin), "own memory, MB": _memory_mb(process.pid)})
            list(pool.map(ask, range(begin, min(begin + 500, requests))))
        rows.append({"requests": str(requests), "own memory, MB": _memory_mb(process.pid)})
    report(f"{clients} clients, profile {profile}", {"memory of the service": rows})


def _varied(files: Sequence[Path], number: int) -> bytes:
    """Returns a JPEG that no other number gives: a photo with another size and quality."""
    with Image.open(files[number % len(files)]) as photo:
        turn = number // len(files)
        small = photo.convert("RGB").resize((photo.width - turn, photo.height - turn))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=90 - turn)
    return content.getvalue()


def _send(port: int, bodies: Sequence[bytes], count: int, cores: set[int]) -> tuple[list[float], float]:
    """Sends images from several clients. Returns the seconds until each response, and the processor time in seconds.

    The clients are threads that hardly work: `http.client` takes a third of the processor time of httpx.
    """
    os.sched_setaffinity(0, cores)
    waiting: SimpleQueue[bytes] = SimpleQueue()
    for body in bodies:
        waiting.put(body)

    def ask(_: int) -> list[float]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        waits: list[float] = []
        while True:
            try:
                body = waiting.get_nowait()
            except Empty:
                connection.close()
                return waits
            begun = time.perf_counter()
            connection.request("POST", "/v1/classify", body, _JPEG)
            answer = connection.getresponse()
            answer.read()
            waits.append(time.perf_counter() - begun)
            if answer.status != 200:
                raise RuntimeError(f"zsvec serve has answered {answer.status}")

    begun = time.process_time()
    with ThreadPoolExecutor(count) as pool:
        waits = [wait for found in pool.map(ask, range(count)) for wait in found]
    return waits, time.process_time() - begun


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> int:
    """Returns the memory of a process without the pages of files, which the system drops and reads again."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) // 1024


def _fill(store: Path, references: Path, profile: str) -> None:
    with zsvec.open(store, profile=profile) as classifier:
        classifier.add_categories(read_categories(references))


@contextmanager
def _served(store: Path, profile: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Serves a store in another process, and yields the process and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    options: Sequence[str] = ["--store", str(store), "--profile", profile, "serve", "--port", str(port)]
    # stderr has a line for each request.
    process = subprocess.Popen([sys.executable, "-m", "zsvec", *options], stderr=subprocess.DEVNULL)  # noqa: S603 - this program itself
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise RuntimeError(f"zsvec serve has ended with code {process.returncode}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False
