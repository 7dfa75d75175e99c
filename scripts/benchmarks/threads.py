"""Threads that classify an image each, beside one stream over the same images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import zsvec
from benchmarks.measure import Out, Row, interleaved, medians, ratio, report
from zsvec.classifier import Classifier
from zsvec.encoders.torch.export import export_encoders
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import PROFILES


def threads(
    folder: Path,
    photos: Path,
    workers: Annotated[int, typer.Option(help="Threads, and images of a batch of the stream.")] = 8,
    images: int = 128,
    rounds: int = 9,
    runtime: Annotated[str, typer.Option(help="onnx or torch.")] = "onnx",
    out: Out = None,
) -> None:
    """Images a second of several threads, of one thread, of a stream, and of the encoders alone.

    FOLDER has references, and PHOTOS images to classify; profile offline.
    """
    paths = find_images(photos)[:images]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        profile = "offline"
        if runtime == "onnx":
            profile = str(scratch / "encoders")
            export_encoders(PROFILES["offline"].encoders, scratch / "encoders")
        classifier = stack.enter_context(
            zsvec.open(scratch / "store", profile=profile, runtime="torch" if runtime == "torch" else "auto")
        )
        classifier.add_categories(read_categories(folder))
        classifier.calibrate()
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stream, by_threads = f"stream, batches of {workers}", f"{workers} threads, an image each"
        alone, encoded = "one thread, an image at a time", "decoding and encoders alone, an image at a time"
        ways: dict[str, Callable[[], object]] = {
            stream: partial(stream_of, classifier, paths, workers),
            by_threads: lambda: list(pool.map(classifier.classify, paths)),
            alone: lambda: [classifier.classify(path) for path in paths],
            encoded: partial(encode_alone, classifier, paths),
        }
        times = interleaved(ways, rounds)
    rates = {name: len(paths) / taken for name, taken in medians(times).items()}
    rows: list[Row] = [
        {
            "way": name,
            "images/s": rate,
            "of the stream": ratio(times, name, stream),
            "of the encoders alone": ratio(times, name, encoded),
        }
        for name, rate in rates.items()
    ]
    report(
        "threads",
        f"{len(paths)} images, profile offline by {runtime}, {rounds} rounds",
        {"rates": rows},
        out=out,
        draw=lambda axes: axes.barh(list(rates), list(rates.values())),
        device="cpu",
        raw={"seconds": times},
        notes=["Ratios of median rates, with their 95 % intervals over the rounds."],
    )


def stream_of(classifier: Classifier, paths: Sequence[Path], size: int) -> None:
    """Classify images as a stream, in batches of this size."""
    with classifier.classify_stream(paths, batch_size=size) as predictions:
        for _ in predictions:
            pass


def encode_alone(classifier: Classifier, paths: Sequence[Path]) -> None:
    """Decode, preprocess and encode images, one at a time."""
    encoders = classifier.encoders
    for path in paths:
        encoders.encode_images([encoders.preprocess(load_image(path, side=encoders.side))])
