"""Embeds sets of images once, each with variants: a burst, and a copy that is saved again."""

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

from zsvec.encoders import load_encoders
from zsvec.encoders.base import batches
from zsvec.evaluation import labelled_images
from zsvec.inputs.categories import as_words
from zsvec.inputs.folders import read_categories
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import PROFILES

progress = Console(stderr=True)
_BATCH = 16  # number of images embedded at once, each with five variants


@dataclass(frozen=True)
class Images:
    """An embedded set of images. Every image has a number, and so has every variant of an image.

    Attributes:
        name: Name of the set.
        texts: Vectors of the definition texts by encoder, float32 ``(n_texts, dim)``.
        owners: Category of each text.
        vectors: Vectors of all images and variants by encoder, float32 ``(n_images, dim)``.
        pool: Image numbers of each category, references and photos alike.
        most: Maximum number of references of a category. Further images of the category are photos.
        bursts: Image numbers of the four burst variants of each image in the pool.
        copies: Image number of the re-saved copy of each image in the pool.
    """

    name: str
    texts: Mapping[str, NDArray[np.float32]]
    owners: Sequence[str]
    vectors: Mapping[str, NDArray[np.float32]]
    pool: Mapping[str, Sequence[int]]
    most: int
    bursts: Mapping[int, Sequence[int]]
    copies: Mapping[int, int]


def embed(folder: Path, profile: str) -> Images:
    """Reads a set and embeds it with the encoders of a profile.

    Args:
        folder: Folder with the sub-folders ``references`` and ``photos``, each with a sub-folder per category.
        profile: Profile with the encoders, and with prompts for categories without definition texts.
    """
    specs = PROFILES[profile].encoders
    encoders = load_encoders(specs, device="auto", dtype="auto", batch_size=64)
    references = labelled_images(folder / "references")
    labelled = references + labelled_images(folder / "photos")
    pool: dict[str, list[int]] = defaultdict(list)
    for number, (_, name) in enumerate(labelled):
        pool[name].append(number)
    found: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    made: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    for batch in track(list(batches(labelled, _BATCH)), f"embedding {folder.name}", console=progress, transient=True):
        images = [load_image(path) for path, _ in batch]
        others = [made for one in images for made in (*_burst(one), _saved_again(one))]
        for encoder, vectors in encoders.encode_images([encoders.preprocess(one) for one in images + others]).items():
            found[encoder].append(vectors[: len(images)])
            made[encoder].append(vectors[len(images) :])
    categories = read_categories(folder / "references")
    texts, owners = {}, [category.name for category in categories for _ in category.texts or [""]]
    for reader in [encoder for encoder in encoders if "text" in encoder.modalities]:
        prompt = specs[reader.name].prompt
        named = (one.texts or [prompt.replace("{name}", as_words(one.name))] for one in categories)
        texts[reader.name] = reader.encode_texts([text for own in named for text in own])
    count = len(labelled)
    return Images(
        name=folder.name,
        texts=texts,
        owners=owners,
        vectors={encoder: np.concatenate(vectors + made[encoder]) for encoder, vectors in found.items()},
        pool=pool,
        most=min(sum(name == wanted for _, name in references) for wanted in pool),
        bursts={number: range(count + 5 * number, count + 5 * number + 4) for number in range(count)},
        copies={number: count + 5 * number + 4 for number in range(count)},
    )


def _burst(image: Image.Image) -> list[Image.Image]:
    """Returns four variants: mirrored, cropped in two ways, and mirrored, cropped and blurred."""

    def cropped(image: Image.Image, share: float, left: float, top: float) -> Image.Image:
        width, height = (max(1, int(share * side)) for side in image.size)
        x, y = int((image.width - width) * left), int((image.height - height) * top)
        return image.crop((x, y, x + width, y + height))

    mirrored = ImageOps.mirror(image)
    blurred = cropped(mirrored, 0.9, 0.5, 1).filter(ImageFilter.GaussianBlur(max(image.size) / 150))
    return [mirrored, cropped(image, 0.9, 0, 0), cropped(image, 0.85, 1, 0.7), blurred]


def _saved_again(image: Image.Image) -> Image.Image:
    """Returns a JPEG copy at nine tenths of the width and height."""
    smaller = image.convert("RGB").resize((max(1, round(0.9 * image.width)), max(1, round(0.9 * image.height))))
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=75)
    return Image.open(file)
