"""Clients of the service with an image each, beside one stream over the same images."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvicorn

import zsvec
from benchmarks.measure import Out, Row, interleaved, medians, ratio, report
from benchmarks.threads import encode_alone, stream_of
from zsvec.classifier import Classifier
from zsvec.inputs.folders import find_images, read_categories
from zsvec.service import create_app
from zsvec.service.server import configuration, listening

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def service(
    folder: Path,
    photos: Path,
    clients: Annotated[int, typer.Option(help="Clients, and images of a batch of the stream.")] = 8,
    images: int = 128,
    profile: str = "offline",
    rounds: int = 9,
    out: Out = None,
) -> None:
    """Images a second and latencies of clients of the service, beside a stream and the encoders alone.

    FOLDER has references, and PHOTOS images to classify. The service and the stream share a classifier; the clients
    are threads of a process of their own.
    """
    paths = find_images(photos)[:images]
    latencies: dict[str, list[float]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        classifier = stack.enter_context(zsvec.open(scratch / "store", profile=profile))
        classifier.add_categories(read_categories(folder))
        classifier.calibrate()
        port = stack.enter_context(_served(classifier))
        client = stack.enter_context(_client_process(port, paths))
        many, one = f"{clients} clients, an image each", "one client"
        streamed, encoded = f"stream, batches of {clients}", "decoding and encoders alone, an image at a time"

        def ask(way: str, number: int) -> None:
            client.send(number)
            latencies.setdefault(way, []).extend(client.recv())

        times = interleaved(
            {
                streamed: partial(stream_of, classifier, paths, clients),
                many: partial(ask, many, clients),
                one: partial(ask, one, 1),
                encoded: partial(encode_alone, classifier, paths),
            },
            rounds,
        )
        batches = classifier.alone.stats.batches
    rates = {way: len(paths) / spent for way, spent in medians(times).items()}
    rows: list[Row] = [
        {
            "way": way,
            "images/s": rate,
            "÷ stream": ratio(times, way, streamed),
            "÷ encoders": ratio(times, way, encoded),
        }
        for way, rate in rates.items()
    ]
    alone = medians(times)[encoded] / len(paths)
    waits: list[Row] = [
        {
            "way": way,
            **{name: float(np.quantile(found[len(paths) :], q)) * 1000 for name, q in _QUANTILES.items()},
            "one image of the encoders alone": alone * 1000,
        }
        for way, found in latencies.items()
    ]
    report(
        "service",
        f"{len(paths)} images, profile {profile}, {rounds} rounds",
        {"rates (medians)": rows, "latencies, ms": waits},
        out=out,
        draw=lambda axes: axes.barh(list(rates), list(rates.values())),
        device="cpu",
        raw={"seconds": times, "latencies": latencies, "batches": dict(batches)},
        notes=["Ratios of median rates, with their 95 % intervals over the rounds. The first round is left out."],
    )


@contextmanager
def _served(classifier: Classifier) -> Iterator[int]:
    """The port of a service in a thread."""
    server = uvicorn.Server(configuration(create_app(classifier)))
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _client_process(port: int, paths: Sequence[Path]) -> Iterator[Connection]:
    """A process that asks as many clients as it is told, and says what each image took."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_ask, args=(port, paths, there), daemon=True)
    process.start()
    yield here
    here.send(0)
    process.join()


def _ask(port: int, paths: Sequence[Path], orders: Connection) -> None:
    contents = [path.read_bytes() for path in paths]
    while clients := orders.recv():
        left = iter(contents)
        lock = threading.Lock()

        def work(left: Iterator[bytes] = left, lock: threading.Lock = lock) -> list[float]:
            connection = HTTPConnection("127.0.0.1", port)
            taken: list[float] = []
            while True:
                with lock:
                    content = next(left, None)
                if content is None:
                    connection.close()
                    return taken
                begun = time.perf_counter()
                connection.request("POST", "/v1/classify", content, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"the service answered {answer.status}")
                taken.append(time.perf_counter() - begun)

        with ThreadPoolExecutor(clients) as pool:
            found = [pool.submit(work) for _ in range(clients)]
            orders.send([seconds for one in found for seconds in one.result()])
