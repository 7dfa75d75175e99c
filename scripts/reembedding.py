#!/usr/bin/env python
"""Measures what small copies of images are worth when a store is embedded again with other encoders.

    python scripts/reembedding.py SET… [--tiled]

SET has the folders `references` and `photos`, each with a sub-folder per category. A store of the references is made
with an encoder of no use, and embedded again twice with a profile: once from the original files, and once, after these
are gone, from the small copies. The first table has the cosine between both vectors of an image. The second has the
accuracy of both stores on the photos, the 95 % interval of the difference, and how many photos both give the same name.

With `--tiled`, four images of a category at a time are pasted into one of 448 × 448 pixels, which is larger than a
small copy and has detail. Each image is used once.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

import zsvec
from zsvec.evaluation import Evaluation, evaluate, labelled_images
from zsvec.evaluation.metrics import interval_of_difference
from zsvec.store import open_store
from zsvec.testing import HashEncoder

app = typer.Typer(add_completion=False)
console = Console(width=120)

_TILE = 224  # pixels


@app.command()
def reembedding(
    folders: list[Path],
    profile: Annotated[str, typer.Option()] = "offline",
    tiled: Annotated[bool, typer.Option("--tiled", help="Paste four images of a category into one.")] = False,
) -> None:
    """Measure agreement and accuracy of vectors from original files and from small copies."""
    cosines = Table("set", "encoder", "images", "median cosine", "5th percentile", "smallest")
    accuracies = Table("set", "photos", "from originals", "from small copies", "difference", "95 % interval", "same")
    for folder in folders:
        with TemporaryDirectory() as scratch:
            if tiled:
                _tile(folder, Path(scratch) / "tiled")
            measured = _measured(Path(scratch) / "tiled" if tiled else folder, Path(scratch), profile)
        vectors, (one, other) = measured
        for encoder, found in vectors.items():
            low, middle = np.quantile(found, [0.05, 0.5])
            cosines.add_row(folder.name, encoder, f"{len(found)}", f"{middle:.4f}", f"{low:.4f}", f"{found.min():.4f}")
        rights = [
            np.array([a == t for a, t in zip(result.answers, result.truth, strict=True)]) for result in (one, other)
        ]
        low, high = interval_of_difference(*rights)
        shares = [right.mean() for right in rights]
        accuracies.add_row(
            folder.name,
            f"{one.n}",
            *(f"{share:.1%}" for share in shares),
            f"{shares[1] - shares[0]:+.1%}",
            f"{low:+.1%} to {high:+.1%}",
            f"{np.mean([a == b for a, b in zip(one.answers, other.answers, strict=True)]):.1%}",
        )
    console.print(cosines)
    console.print(accuracies)


def _tile(folder: Path, target: Path) -> None:
    """Makes a set of the images of another one, four by four."""
    for category in (one for part in ("references", "photos") for one in sorted((folder / part).iterdir())):
        (made := target / category.relative_to(folder)).mkdir(parents=True)
        paths = sorted(category.iterdir())
        for first in range(0, len(paths) - 3, 4):
            whole = Image.new("RGB", (2 * _TILE, 2 * _TILE))
            for number, path in enumerate(paths[first : first + 4]):
                with Image.open(path) as image:
                    tile = ImageOps.fit(image.convert("RGB"), (_TILE, _TILE))
                whole.paste(tile, (number % 2 * _TILE, number // 2 * _TILE))
            whole.save(made / f"{first}.png")


def _measured(folder: Path, scratch: Path, profile: str) -> tuple[dict[str, np.ndarray], list[Evaluation]]:
    references = scratch / "references"
    shutil.copytree(folder / "references", references)
    stores = [scratch / "originals", scratch / "small"]
    with zsvec.open(stores[0], encoders=[HashEncoder()]) as clf:
        clf.add_categories(zsvec.read_categories(references))
    shutil.copytree(stores[0], stores[1])
    for store, is_small in zip(stores, (False, True), strict=True):
        if is_small:
            shutil.rmtree(references)
        found = zsvec.reembed(store, profile=profile, switch=True)
        console.print(f"{folder.name}: {found.originals} images from original files, {found.small} from small copies")
    vectors: list[dict[tuple[str, str, str], np.ndarray]] = []
    for store in stores:
        with open_store(str(store), namespace="zsvec") as opened:
            vectors.append(
                {
                    (category.name, one.encoder, one.hash): one.vector
                    for category in opened.categories()
                    for one in opened.stored(category.name)
                    if one.modality == "image"
                }
            )
    cosines: dict[str, list[float]] = {}
    for key, vector in vectors[0].items():
        cosines.setdefault(key[1], []).append(float(vector @ vectors[1][key]))
    results = []
    images, labels = zip(*labelled_images(folder / "photos"), strict=True)
    for store in stores:
        with zsvec.open(store, profile=profile) as clf:
            results.append(evaluate(clf, images, labels))
    return {encoder: np.array(some) for encoder, some in cosines.items()}, results


if __name__ == "__main__":
    app()
