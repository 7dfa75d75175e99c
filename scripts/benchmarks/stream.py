"""`classify_stream` end to end, beside what one would write or call without zsvec."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import zsvec
from benchmarks import material, peers
from benchmarks.measure import Device, Out, Row, Spent, interleaved, medians, report
from zsvec.encoders import EncoderSet
from zsvec.encoders.base import batches
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.device import choose_runtime
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import Profile
from zsvec.streams.flow import StreamStats

_STREAM = "classify_stream"
_CLIP_ALONE = "classify_stream, CLIP alone"
_SLOW_IMAGES = 32  # for the pipeline of transformers, which embeds the labels again with every image


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to go through some images."""

    images: int
    run: Callable[[], object]


def stream(
    encoders: Annotated[str, typer.Option(help="Profile; weights of the hub are replaced by random ones.")] = "offline",
    folder: Annotated[Path | None, typer.Option(help="Images to make JPEGs of 500×375 from; else random ones.")] = None,
    images: int = 512,
    references: Annotated[int, typer.Option(help="In the store, of all experts together.")] = 10_000,
    categories: int = 1_000,
    labels: Annotated[int, typer.Option(help="Labels that the pipeline of transformers is given.")] = 10,
    batch_size: int = 32,
    rounds: int = 5,
    device: Device = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder to keep random checkpoints in; else temporary.")] = None,
    out: Out = None,
) -> None:
    """Images a second of classify_stream, of plain loops and of pipelines of other libraries at their defaults."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        specs = material.specs(encoders, cache or scratch / "checkpoints")
        (scratch / "images").mkdir()
        paths = material.write_images(images, folder, scratch / "images")
        clips = {name: spec for name, spec in specs.items() if spec.family == "clip"}
        stats: dict[str, list[StreamStats]] = {}

        def streaming(way: str, by: Mapping[str, EncoderSpec]) -> tuple[EncoderSet, _Way]:
            profiles = {"measured": Profile(encoders=by)}
            classifier = stack.enter_context(
                zsvec.open(scratch / way, profile="measured", profiles=profiles, batch_size=batch_size, device=device)
            )
            classifier.add_categories(material.random_categories(classifier.encoders, references, categories))
            classifier.calibrate()

            def classify() -> None:
                with classifier.classify_stream(paths) as predictions:
                    for _ in predictions:
                        pass
                    stats.setdefault(way, []).append(predictions.stats)

            return classifier.encoders, _Way(images, classify)

        where = str(choose_runtime(device, "auto").device)  # type: ignore[arg-type]
        loaded, by_all = streaming(_STREAM, specs)
        ways = {
            _STREAM: by_all,
            # What the pipeline of transformers runs.
            **({_CLIP_ALONE: streaming(_CLIP_ALONE, clips)[1]} if clips and len(clips) < len(specs) else {}),
            "plain loop, threads decode ahead": _Way(images, lambda: _plain_loop(loaded, paths, batch_size)),
            "plain loop, one thing after another": _Way(images, lambda: _plainest_loop(loaded, paths, batch_size)),
            **_other_libraries(stack, specs, paths, labels, where),
        }
        times = interleaved({name: way.run for name, way in ways.items()}, rounds)
    rates = {name: ways[name].images / spent for name, spent in medians(times).items()}
    rows: list[Row] = [
        {
            "way": name,
            "images/s": rate,
            **{f"{way} ÷ this": _ratio(times, way, name, images / ways[name].images) for way in stats},
            "CPU ms an image": 1000 * statistics.median(spent.cpu for spent in times[name]) / ways[name].images,
        }
        for name, rate in rates.items()
    ]
    report(
        "stream",
        f"{images} images, profile {encoders}, {references:,} references, {categories:,} categories, "
        f"batches of {batch_size}",
        {"rates (medians)": rows, **{f"stages of {way}": _stages(measured[1:]) for way, measured in stats.items()}},
        out=out,
        draw=lambda axes: (axes.barh(list(rates), list(rates.values())), axes.set_xlabel("images/s")),
        device=device,
        raw={"images": {name: way.images for name, way in ways.items()}, "seconds": times},
        notes=[
            f"Ratios: median over {rounds} rounds. The loops only embed; the pipeline classifies by {labels} labels.",
            "Stages overlap, and one that waits for a core is busy: on a CPU their times add up to more than it takes.",
        ],
    )


def _ratio(times: Mapping[str, Sequence[Spent]], way: str, other: str, share: float) -> float:
    """Median over the rounds of how many times as fast a way is as another, which has so many times fewer images."""
    pairs = zip(times[way], times[other], strict=True)
    return statistics.median(share * theirs.wall / mine.wall for mine, theirs in pairs)


def _stages(stats: Sequence[StreamStats]) -> list[Row]:
    """Mean time of each stage, and of search and fusion together."""
    images, elapsed = sum(one.images for one in stats), sum(one.seconds for one in stats)
    busy = {stage: sum(one.busy[stage] for one in stats) for stage in stats[0].busy}
    busy["search + fuse"] = busy["search"] + busy["fuse"]
    return [
        {
            "stage": stage,
            "ms an image": 1000 * spent / images,
            "share of the time that the stream took": spent / elapsed,
        }
        for stage, spent in busy.items()
    ]


def _plain_loop(encoders: EncoderSet, paths: Sequence[Path], batch_size: int) -> None:
    """Decode and preprocess in as many threads as zsvec does, two batches ahead; encode."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[list[Any]] = deque()
        for batch in batches(paths, batch_size):
            waiting.append([pool.submit(_prepared, encoders, path) for path in batch])
            if len(waiting) > 2:
                encoders.encode_images([future.result() for future in waiting.popleft()])
        for futures in waiting:
            encoders.encode_images([future.result() for future in futures])


def _plainest_loop(encoders: EncoderSet, paths: Sequence[Path], batch_size: int) -> None:
    """Decode and preprocess a batch, encode it, and so on."""
    for batch in batches(paths, batch_size):
        encoders.encode_images([_prepared(encoders, path) for path in batch])


def _prepared(encoders: EncoderSet, path: Path) -> Any:
    return encoders.preprocess(load_image(path, side=encoders.side))


def _other_libraries(
    stack: ExitStack, specs: Mapping[str, EncoderSpec], paths: Sequence[Path], labels: int, device: str
) -> dict[str, _Way]:
    clips = [spec.model for spec in specs.values() if spec.family == "clip"]
    embed = stack.enter_context(peers.in_a_process(partial(peers.loops, specs, device), paths))
    ways = {"sentence-transformers + timm, loops" if clips else "timm, loop": _Way(len(paths), embed)}
    for model in clips:
        some = paths[:_SLOW_IMAGES]
        make = partial(peers.transformers_pipeline, model, labels, device)
        ways["transformers, zero-shot pipeline"] = _Way(len(some), stack.enter_context(peers.in_a_process(make, some)))
    return ways
