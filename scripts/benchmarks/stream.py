"""Measures `classify_stream`, and a plain loop with the same encoders for comparison."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import zsvec
from benchmarks.measure import Cell, Device, interleaved, rates, report, unit_vectors
from zsvec.encoders import EncoderSet
from zsvec.encoders.base import batches
from zsvec.inputs.images import load_image

_SIZE = (500, 375)
_DISTINCT = 128  # number of different images; further paths repeat them


def stream(
    profile: str = "offline",
    images: int = 512,
    references: Annotated[int, typer.Option(help="In the store, of all experts together.")] = 10_000,
    categories: int = 1_000,
    batch_size: int = 32,
    rounds: int = 5,
    device: Device = "cpu",
) -> None:
    """Measure images per second of classify_stream, and of a plain loop that decodes, preprocesses and encodes."""
    stages: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = _images(images, Path(scratch))
        options: dict[str, Any] = {"profile": profile, "batch_size": batch_size, "device": device}
        with zsvec.open(f"{scratch}/store", **options) as classifier:
            encoders = classifier.encoders
            classifier.add_categories(_categories(encoders, references, categories))
            classifier.calibrate()

            def classify() -> None:
                with classifier.classify_stream(paths) as predictions:
                    for _ in predictions:
                        pass
                spent = {**predictions.stats.busy, "all": predictions.stats.seconds}
                stages[:] = [{"stage": name, "ms an image": 1000 * s / images} for name, s in spent.items()]

            ways: dict[str, Callable[[], None]] = {
                "classify_stream": classify,
                "plain loop": partial(_loop, encoders, paths, batch_size),
            }
            times = interleaved(ways, rounds)
    report(
        f"{images} images, profile {profile}, {references:,} references, {categories:,} categories, "
        f"batches of {batch_size}",
        {"rates (medians)": rates(times, images), "stages, which overlap": stages},
    )


def _images(count: int, folder: Path) -> list[Path]:
    """Writes JPEG files of 500×375 pixels, with about as many bytes as photographs. Returns their paths."""
    paths = []
    for seed in range(min(count, _DISTINCT)):
        random = np.random.default_rng(seed)
        total = np.zeros((_SIZE[1], _SIZE[0], 3), dtype=np.float32)
        for side, weight in ((5, 0.6), (50, 0.3), (250, 0.1)):
            pixels = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
            total += weight * np.asarray(pixels.resize(_SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
        paths.append(folder / f"{seed:04}.jpg")
        Image.fromarray(total.astype(np.uint8)).save(paths[-1], quality=90)
    return [paths[number % len(paths)] for number in range(count)]


def _categories(encoders: EncoderSet, references: int, categories: int) -> Iterator[zsvec.CategoryInput]:
    """Yields categories with random references: one text for each text encoder, and images."""
    random = np.random.default_rng(0)
    of_texts = [encoder for encoder in encoders if "text" in encoder.modalities]
    images = (references - categories * len(of_texts)) // len(encoders)
    bounds = np.linspace(0, images, categories + 1).astype(int)
    for number, count in enumerate(np.diff(bounds).tolist()):
        vectors = {f"{e.name}:text": unit_vectors(random, 1, e.fingerprint.dim) for e in of_texts}
        vectors |= {f"{e.name}:image": unit_vectors(random, count, e.fingerprint.dim) for e in encoders if count}
        yield zsvec.CategoryInput(name=f"category {number:05}", texts=[], vectors=vectors)


def _loop(encoders: EncoderSet, paths: Sequence[Path], batch_size: int) -> None:
    """Encodes images, with decoding and preprocessing two batches ahead, in as many threads as zsvec uses."""

    def prepared(path: Path) -> Any:
        return encoders.preprocess(load_image(path, side=encoders.side))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[list[Any]] = deque()
        for batch in batches(paths, batch_size):
            waiting.append([pool.submit(prepared, path) for path in batch])
            if len(waiting) > 2:
                encoders.encode_images([future.result() for future in waiting.popleft()])
        for futures in waiting:
            encoders.encode_images([future.result() for future in futures])
