"""Flags generated images that should stay out of a store: blank ones, duplicates, and images of something else.

Bad references cost accuracy (paper, section 4.3.3). The gate only flags them; the user decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.encoders.base import Encoder
from zsvec.encoders.everyday import EVERYDAY
from zsvec.errors import ImageError
from zsvec.generation.manifest import ImageRecord
from zsvec.ingest.ingestion import Builder
from zsvec.inputs.categories import as_words
from zsvec.inputs.images import load_image
from zsvec.method.arrays import Floats
from zsvec.method.quality.scenes import TWIN, image_rows
from zsvec.method.similarities import References
from zsvec.streams.stream import prefetch
from zsvec.types import expert_name

_BLOCK = 2**24  # number of similarities in memory at once
_SIDE = 64
_CONTRAST = 4.0  # standard deviation of the pixels (0 to 255) below which an image is blank


def blank(image: Image.Image) -> bool:
    """Returns whether an RGB image has one colour only, except for noise."""
    small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    return bool(small.std(axis=(0, 1)).max() < _CONTRAST)


def far(images: Floats, texts: Floats, everyday: Floats) -> NDArray[np.bool_]:
    """Returns whether each image is no more similar to the category's texts than to everyday words, on average.

    Args:
        images: Vectors of images of one category, float32 ``(n, dim)``, unit rows.
        texts: Vectors of texts of the category, float32 ``(n_texts, dim)``, unit rows.
        everyday: Vectors of `EVERYDAY`, float32 ``(n_words, dim)``, unit rows.

    Returns:
        bool ``(n,)``.
    """
    own = (images @ texts.T).mean(axis=1)
    return np.asarray(own <= (images @ everyday.T).mean(axis=1))


def copies(images: Mapping[str, Floats], references: Mapping[str, Floats]) -> NDArray[np.intp]:
    """Finds the images that duplicate a reference or an earlier image under every encoder.

    Args:
        images: Vectors of the same images by encoder, float32 ``(n, dim)``, unit rows.
        references: Vectors of the same references by encoder, float32 ``(n_references, dim)``, unit rows.

    Returns:
        int ``(n,)``: position of each image's first duplicate in a list of all references and then all images; -1
        without a duplicate.
    """
    every = {encoder: np.concatenate([references[encoder], vectors]) for encoder, vectors in images.items()}
    n = max(map(len, images.values()), default=0)
    n_references = max(map(len, every.values()), default=0) - n
    found = np.full(n, -1, dtype=np.intp)
    size = max(1, _BLOCK // max(1, n_references + n))
    for first in range(0, n, size):
        rows = np.arange(first, min(first + size, n))
        alike = np.arange(n_references + n)[None] < (n_references + rows)[:, None]
        for encoder, vectors in images.items():
            alike &= (vectors[rows] @ every[encoder].T) >= TWIN
        found[rows] = np.where(alike.any(axis=1), alike.argmax(axis=1), -1)
    return found


@dataclass(slots=True)
class GeneratedImage:
    """A generated image with flags.

    Attributes:
        record: Record of the purchase.
        path: Path of the file.
        flags: Reasons to keep the image out of the store.
        stored: Whether the image is in the store.
        vectors: Vector by encoder, float32 ``(dim,)``, unit norm. Empty before `Gate.look`, and if the file is
            unreadable.
    """

    record: ImageRecord
    path: Path
    flags: list[str] = field(default_factory=list)
    stored: bool = False
    vectors: Mapping[str, Floats] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec generate --json`` prints."""
        record = self.record.model_dump(include={"category", "index", "prompt", "model", "size", "quality", "cost"})
        return {**record, "file": str(self.path), "stored": self.stored, "flags": self.flags, "error": None}


class Gate:
    """Flags generated images that are unreadable, blank, duplicates, or far from their category.

    Args:
        builder: Provides encoders, image limits, batch size and prompts.
        references: All stored references, by expert.
    """

    def __init__(self, builder: Builder, references: Mapping[str, References]) -> None:
        self._builder = builder
        self._encoders = builder.encoders
        rows = image_rows(references)
        experts = {one.name: expert_name(one.name, "image") for one in self._encoders if "image" in one.modalities}
        keys = [set(rows.get(expert, ())) for expert in experts.values()]
        self._keys = sorted(set.intersection(*keys)) if keys else []  # images that every image encoder has
        self._stored = {
            name: references[expert].vectors[[rows[expert][key] for key in self._keys]]
            if self._keys
            else np.empty((0, self._encoders[name].fingerprint.dim), np.float32)
            for name, expert in experts.items()
        }

    @property
    def stored(self) -> set[tuple[str, str]]:
        """Category and hash of each reference image that is stored for every image encoder."""
        return set(self._keys)

    def look(self, images: Sequence[GeneratedImage], appearances: Mapping[str, str]) -> None:
        """Checks images that are not stored yet: sets the vectors of readable images, and adds flags to bad images."""
        for batch in prefetch(self._prepare, images, self._builder.batch_size):
            legible = [(image, inputs) for image, inputs in batch if inputs is not None]
            vectors = self._encoders.encode_images([inputs for _, inputs in legible]) if legible else {}
            for row, (image, _) in enumerate(legible):
                image.vectors = {name: rows[row] for name, rows in vectors.items()}
        seen = [image for image in images if image.vectors]
        if seen:
            self._flag_far(seen, appearances)
        if seen and self._stored:
            self._flag_copies(seen)

    def _prepare(self, image: GeneratedImage) -> tuple[GeneratedImage, Any]:
        try:
            rgb = load_image(image.path, **self._builder.limits)
        except ImageError as exc:
            image.flags.append(f"unreadable: {exc}")
            return image, None
        if blank(rgb):
            image.flags.append("blank: the image has one colour only")
        return image, self._encoders.preprocess(rgb)

    def _flag_far(self, images: Sequence[GeneratedImage], appearances: Mapping[str, str]) -> None:
        """Flags images that are `far` under every encoder that embeds texts."""
        joint = [encoder for encoder in self._encoders if "text" in encoder.modalities]  # these embed images too
        everyday = [encoder.encode_texts(self._prompts(encoder, EVERYDAY)) for encoder in joint]
        for name in dict.fromkeys(image.record.category for image in images):
            members = [image for image in images if image.record.category == name]
            found = np.full(len(members), bool(joint))
            for encoder, things in zip(joint, everyday, strict=True):
                looks = [appearances[name]] if name in appearances else []
                texts = encoder.encode_texts([*self._prompts(encoder, [name]), *looks])
                found &= far(np.stack([image.vectors[encoder.name] for image in members]), texts, things)
            for position in np.flatnonzero(found):
                members[position].flags.append(f"far: no nearer to {as_words(name)!r} than to everyday things")

    def _prompts(self, encoder: Encoder, names: Sequence[str]) -> list[str]:
        return [self._builder.prompt(encoder.name, name) for name in names]

    def _flag_copies(self, images: Sequence[GeneratedImage]) -> None:
        vectors = {name: np.stack([image.vectors[name] for image in images]) for name in self._stored}
        for image, other in zip(images, copies(vectors, self._stored), strict=True):
            if other >= len(self._keys):
                image.flags.append(f"copy: the same picture as {images[other - len(self._keys)].path}")
            elif other >= 0:
                image.flags.append(f"copy: the same picture as a reference of {self._keys[other][0]!r}")
