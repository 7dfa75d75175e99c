"""Measures the cost of storing small copies of references, and of keeping images of a stream in the inbox."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import zsvec
from benchmarks.measure import Cell, interleaved, rates, report
from zsvec.encoders import load_encoders
from zsvec.inputs.folders import find_images, read_categories
from zsvec.settings.settings import load_settings
from zsvec.types import Keep, KeepImages


def keeping(references: Path, photos: Path, profile: str = "offline", rounds: int = 7) -> None:
    """Measure imports with and without small copies, and streams that keep no, uncertain or all images."""
    categories, paths = read_categories(references), find_images(photos)
    imported = len(find_images(references))
    encoders = list(load_encoders(load_settings(profile=profile).encoder_specs()))
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        stores = (Path(scratch) / str(number) for number in range(10**6))

        def fill(keep: KeepImages) -> None:
            folder = next(stores)
            with zsvec.open(folder, encoders=encoders, keep_images=keep) as filled:
                filled.add_categories(categories)
            sizes[keep] = _allocated(folder) / 1e6

        copies: tuple[KeepImages, ...] = ("none", "small")
        imports = interleaved({f"keep_images={keep}": partial(fill, keep) for keep in copies}, rounds)
        with zsvec.open(next(stores), encoders=encoders, inbox_size=len(paths)) as classifier:
            classifier.add_categories(categories)

            def classify(keep: Keep) -> None:
                with classifier.classify_stream(paths, keep=keep) as stream:
                    for _ in stream:
                        pass
                classifier.inbox.clear()

            kept: tuple[Keep, ...] = ("none", "uncertain", "all")
            streams = interleaved({f"keep={keep}": partial(classify, keep) for keep in kept}, rounds)
    folders: list[dict[str, Cell]] = [{"keep_images": keep, "MB": size} for keep, size in sizes.items()]
    report(
        f"{imported} references, {len(paths)} photos, profile {profile}, {rounds} rounds",
        {
            "imports": rates(imports, imported),
            "folders of the stores": folders,
            "streams": rates(streams, len(paths)),
        },
    )


def _allocated(folder: Path) -> int:
    """Returns the bytes that a folder takes on disk: less than the sum of file sizes, as some files are sparse."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
