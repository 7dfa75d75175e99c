"""What small copies of the reference images cost: at import, on disk, and where a stream classifies."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import zsvec
from benchmarks.measure import Device, Out, Row, Spent, interleaved, medians, ratio, report, spent
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet, load_encoders
from zsvec.evaluation import labelled_images
from zsvec.inputs.categories import CategoryInput
from zsvec.settings.profiles import PROFILES
from zsvec.testing import HashEncoder
from zsvec.types import KeepImages

_HASH = "hash"
_WAYS: Mapping[KeepImages, str] = {"small": "with copies", "none": "without"}


def copies(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER")],
    profile: Annotated[str, typer.Option(help="hash: an encoder that takes next to no time.")] = "offline",
    images: Annotated[int, typer.Option(help="Of the folders, at most.")] = 1000,
    batch_size: int = 32,
    rounds: int = 9,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Seconds and bytes of an import with small copies and without, and the rate of streams of both stores."""
    encoders = (
        EncoderSet([HashEncoder()])
        if profile == _HASH
        else load_encoders(PROFILES[profile].encoders, device=device, dtype="auto", batch_size=batch_size)  # type: ignore[arg-type]
    )
    labelled = [found for folder in folders for found in labelled_images(folder)][:images]
    paths = [path for path, _ in labelled]
    categories = [
        CategoryInput(name=name, images=[path for path, label in labelled if label == name])
        for name in sorted({label for _, label in labelled})
    ]
    sizes: dict[str, list[int]] = {way: [] for way in _WAYS.values()}

    def opened(place: Path, keep: KeepImages) -> Classifier:
        return zsvec.open(
            place,
            encoders=list(encoders),
            keep_images=keep,
            batch_size=batch_size,
            index_device=device,
            index_cache=False,
        )

    def fill(place: Path, keep: KeepImages) -> None:
        with opened(place, keep) as classifier:
            classifier.add_categories(categories)

    def fill_anew(keep: KeepImages) -> Spent:
        with tempfile.TemporaryDirectory() as scratch:
            taken = spent(partial(fill, Path(scratch), keep))
            sizes[_WAYS[keep]].append(_allocated(Path(scratch)))
            return taken

    imports = interleaved({way: partial(fill_anew, keep) for keep, way in _WAYS.items()}, rounds)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        actions: dict[str, Callable[[], object]] = {}
        for keep, way in _WAYS.items():
            fill(scratch / keep, keep)
            actions[way] = partial(_stream, stack.enter_context(opened(scratch / keep, keep)), paths)
        streams = interleaved(actions, rounds)
    rates = {way: len(paths) / taken for way, taken in medians(streams).items()}
    report(
        "copies",
        f"{len(paths)} images, {len(categories)} categories, profile {profile}, {rounds} rounds",
        {
            "import, with what it leaves on disk": _imported(imports, sizes, len(paths)),
            "classify_stream": [
                {
                    "store": way,
                    "images/s": rate,
                    "of a store without": ratio(streams, way, "without", digits=3),
                    "by CPU time": ratio(streams, way, "without", digits=3, by="cpu"),
                }
                for way, rate in rates.items()
            ],
        },
        out=out,
        draw=lambda axes: axes.barh(list(rates), list(rates.values())),
        device=device,
        raw={"import": imports, "stream": streams, "bytes": sizes},
        notes=["Ratios of medians, with their 95 % intervals over the rounds."],
    )


def _imported(times: Mapping[str, Sequence[Spent]], sizes: Mapping[str, Sequence[int]], images: int) -> list[Row]:
    return [
        {
            "store": way,
            "s": taken,
            "÷ without": ratio(times, "without", way),
            "CPU ms an image": 1000 * statistics.median(one.cpu for one in times[way]) / images,
            "MB": statistics.median(sizes[way]) / 1e6,
        }
        for way, taken in medians(times).items()
    ]


def _allocated(folder: Path) -> int:
    """Bytes that the files of a folder take: some of an embedded store are mostly holes."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def _stream(classifier: Classifier, paths: Sequence[Path]) -> None:
    with classifier.classify_stream(paths) as predictions:
        for _ in predictions:
            pass
