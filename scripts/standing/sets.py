"""Sets of images, embedded once, with what a burst of each image would show, and each image saved again."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from rich.console import Console
from rich.progress import track

from zsvec.encoders import EncoderSet
from zsvec.evaluation import labelled_images
from zsvec.inputs.categories import as_words
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.images import load_image

progress = Console(stderr=True)
_BATCH = 16  # images that are embedded at once, each with five that are made from it


@dataclass(frozen=True)
class Images:
    """A set, embedded once. Images have numbers; those that are made from another too.

    Attributes:
        name: Of the set.
        texts: By encoder, vectors of the definition texts, float32 ``(n_texts, dim)``.
        owners: Category of each text.
        vectors: By encoder, of all images, float32 ``(n_images, dim)``.
        pool: Numbers of the references and photos of each category.
        unknown: Numbers of the images of no category.
        most: References of a category, at most; the others are photos.
        bursts: By image of the pool, numbers of the images that are made from it.
        copies: By image of the pool, the number of that which was saved again.
    """

    name: str
    texts: Mapping[str, NDArray[np.float32]]
    owners: Sequence[str]
    vectors: Mapping[str, NDArray[np.float32]]
    pool: Mapping[str, Sequence[int]]
    unknown: Sequence[int]
    most: int
    bursts: Mapping[int, Sequence[int]]
    copies: Mapping[int, int]


def embed(folder: Path, encoders: EncoderSet, prompts: Mapping[str, str]) -> Images:
    """Read and embed a set, with four variants of each image of a category, and a copy.

    Args:
        folder: With ``references`` and ``photos``, and possibly ``unknown``.
        encoders: All that embed.
        prompts: By encoder, the text of a category without definition texts, from its ``{name}``.
    """
    references, photos = labelled_images(folder / "references"), labelled_images(folder / "photos")
    unknown = find_images(folder / "unknown") if (folder / "unknown").is_dir() else []
    pool: dict[str, list[int]] = defaultdict(list)
    for number, (_, name) in enumerate(references + photos):
        pool[name].append(number)
    paths, pooled = [path for path, _ in references + photos] + list(unknown), len(references) + len(photos)
    found: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    made: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    batches = range(0, len(paths), _BATCH)
    for first in track(batches, f"embedding {folder.name}", console=progress, transient=True):
        images = [load_image(path) for path in paths[first : first + _BATCH]]
        others = [made for one in images[: max(0, pooled - first)] for made in (*variants(one), saved_again(one))]
        for encoder, vectors in encoders.encode_images([encoders.preprocess(one) for one in images + others]).items():
            found[encoder].append(vectors[: len(images)])
            made[encoder].append(vectors[len(images) :])
    categories = read_categories(folder / "references")

    def of_encoder(encoder: str) -> list[tuple[str, str]]:
        prompt = prompts.get(encoder, "{name}")
        named = ((one.name, one.texts or [prompt.replace("{name}", as_words(one.name))]) for one in categories)
        return [(name, text) for name, texts in named for text in texts]

    return Images(
        name=folder.name,
        texts={e.name: e.encode_texts([t for _, t in of_encoder(e.name)]) for e in encoders if "text" in e.modalities},
        owners=[name for name, _ in of_encoder("")],
        vectors={encoder: np.concatenate(vectors + made[encoder]) for encoder, vectors in found.items()},
        pool=pool,
        unknown=range(pooled, len(paths)),
        most=min(sum(name == wanted for _, name in references) for wanted in pool),
        bursts={number: range(len(paths) + 5 * number, len(paths) + 5 * number + 4) for number in range(pooled)},
        copies={number: len(paths) + 5 * number + 4 for number in range(pooled)},
    )


def variants(image: Image.Image) -> list[Image.Image]:
    """Mirrored, cropped twice, and all of it, blurred."""

    def cropped(image: Image.Image, share: float, left: float, top: float) -> Image.Image:
        width, height = (max(1, int(share * side)) for side in image.size)
        x, y = int((image.width - width) * left), int((image.height - height) * top)
        return image.crop((x, y, x + width, y + height))

    mirrored = ImageOps.mirror(image)
    blurred = cropped(mirrored, 0.9, 0.5, 1).filter(ImageFilter.GaussianBlur(max(image.size) / 150))
    return [mirrored, cropped(image, 0.9, 0, 0), cropped(image, 0.85, 1, 0.7), blurred]


def saved_again(image: Image.Image) -> Image.Image:
    """As a JPEG, at nine tenths of its size."""
    smaller = image.convert("RGB").resize((max(1, round(0.9 * image.width)), max(1, round(0.9 * image.height))))
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=75)
    return Image.open(file)
