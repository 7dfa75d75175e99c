"""The same models by other libraries at their defaults, each as its documentation shows it, in a process of its own.

In one process they would share what zsvec changes: the C library of a process with zsvec's encoders keeps freed memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from benchmarks.measure import Spent, spent
from zsvec.encoders.base import batches
from zsvec.encoders.quiet import quiet_loading
from zsvec.encoders.spec import EncoderSpec

_AT_ONCE = 32  # what `SentenceTransformer.encode` takes by default

Embed = Callable[[Sequence[Path]], object]


@contextmanager
def in_a_process(make: Callable[[], Embed], paths: Sequence[Path]) -> Iterator[Callable[[], Spent]]:
    """Go through the images in another process, as often as is called; its times are returned."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_load, initargs=(make,)) as process:
        yield lambda: process.submit(_measure, paths).result()


_loaded: list[Embed] = []


def _load(make: Callable[[], Embed]) -> None:
    with quiet_loading():
        _loaded.append(make())


def _measure(paths: Sequence[Path]) -> Spent:
    return spent(lambda: _loaded[0](paths))


def transformers_pipeline(model: str, labels: int, device: str) -> Embed:
    """The zero-shot pipeline of transformers, which classifies by one model."""
    from transformers import pipeline

    classify = pipeline("zero-shot-image-classification", model=model, device=device)
    names = [f"c{number}" for number in range(labels)]
    return lambda paths: classify([str(path) for path in paths], candidate_labels=names)


def loops(specs: Mapping[str, EncoderSpec], device: str) -> Embed:
    """Loops that embed by sentence-transformers and by timm."""
    # Encoders that share an image model have the same one.
    models = {(spec.model, spec.image_size) for spec in specs.values() if spec.family != "clip"}
    embedders = [_sentence_transformers(spec.model, device) for spec in specs.values() if spec.family == "clip"]
    embedders += [_timm(name, image_size, device) for name, image_size in models]

    def embed(paths: Sequence[Path]) -> None:
        for embedder in embedders:
            embedder(paths)

    return embed


def _sentence_transformers(name: str, device: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, device=device, local_files_only=True)

    def embed(paths: Sequence[Path]) -> None:
        for batch in batches(paths, _AT_ONCE):
            model.encode([Image.open(path) for path in batch], show_progress_bar=False)

    return embed


def _timm(name: str, image_size: int | None, device: str) -> Embed:
    import timm

    options = {"img_size": image_size} if image_size else {}
    model = timm.create_model(name, **options).eval().to(device)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model, args=options))

    def embed(paths: Sequence[Path]) -> None:
        for batch in batches(paths, _AT_ONCE):
            pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in batch])
            with torch.inference_mode():
                model(pixels.to(device)).cpu()

    return embed
