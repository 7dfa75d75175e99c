"""Generated images → quality gate → builder → store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zsvec.builder import Builder
from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError
from zsvec.generation.gate import EVERYDAY, blank, copies, far
from zsvec.generation.manifest import DeclinedRecord, ImageRecord
from zsvec.inputs.categories import CategoryInput, ReferenceImage, readable
from zsvec.inputs.images import load_image
from zsvec.method.similarities import References
from zsvec.stream import prefetch
from zsvec.types import Category, expert_name

if TYPE_CHECKING:
    from zsvec.generation.run import Drawn

Floats = NDArray[np.float32]

SOURCE = "generated"


@dataclass(slots=True)
class GeneratedImage:
    """One image, and what became of it.

    Attributes:
        record: What was asked for, and what came.
        path: Of the file.
        flags: Why it is better left out of the store; empty if nothing speaks against it.
        stored: Whether it is in the store.
        vectors: By encoder, float32 ``(dim,)``, unit norm, if it was looked at and can be read.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a run has come to.

    Attributes:
        images: All that there are of the categories, by category and index, those of earlier runs included.
        declined: What the service does not draw, and why.
        categories: Those that were committed.
        spent: Dollars, as far as it is known, earlier runs included.
        out_of_budget: Whether the budget ended the run before all was bought.
    """

    images: tuple[GeneratedImage, ...]
    declined: tuple[DeclinedRecord, ...]
    categories: tuple[Category, ...]
    spent: float
    out_of_budget: bool

    @property
    def flagged(self) -> tuple[GeneratedImage, ...]:
        """The images that are better left out."""
        return tuple(image for image in self.images if image.flags)


class Gate:
    """Looks at generated images: whether each shows what it shall, and what is not there yet.

    Args:
        encoders: All of the store.
        prompts: By encoder, the text of a category from its ``{name}``.
        references: By expert, all that are stored.
        batch_size: Images that an encoder takes at once.
        max_pixels: Largest image that is decoded.
    """

    def __init__(
        self,
        encoders: EncoderSet,
        prompts: Mapping[str, str],
        references: Mapping[str, References],
        *,
        batch_size: int,
        max_pixels: int,
    ) -> None:
        self._encoders = encoders
        self._prompts = prompts
        self._batch_size = batch_size
        self._max_pixels = max_pixels
        stored = {e.name: references.get(expert_name(e.name, "image")) for e in encoders if "image" in e.modalities}
        held = [set(of.keys) if of else set() for of in stored.values()]
        self._keys = set.intersection(*held) if held else set()
        self._held = sorted(self._keys)
        dims = {name: fingerprint.dim for name, fingerprint in encoders.fingerprints.items()}
        self._stored = {
            name: _rows(of, self._held) if of else np.empty((0, dims[name]), np.float32) for name, of in stored.items()
        }

    def holds(self, record: ImageRecord) -> bool:
        """Whether the store has this image of this category."""
        return (record.category, record.sha256) in self._keys

    def look(self, images: Sequence[GeneratedImage], appearances: Mapping[str, str]) -> None:
        """Flag images that are better left out, and keep the vectors of all that can be read.

        Args:
            images: None of which is in the store.
            appearances: By category, its description.
        """
        for batch in prefetch(self._prepare, images, self._batch_size):
            readable_ones = [(image, inputs) for image, inputs in batch if inputs is not None]
            vectors = self._encoders.encode_images([inputs for _, inputs in readable_ones]) if readable_ones else {}
            for row, (image, _) in enumerate(readable_ones):
                image.vectors = {name: of[row] for name, of in vectors.items()}
        seen = [image for image in images if image.vectors]
        if seen:
            self._flag_far(seen, appearances)
        if seen and self._stored:
            self._flag_copies(seen)

    def _prepare(self, image: GeneratedImage) -> tuple[GeneratedImage, Any]:
        try:
            rgb = load_image(image.path, max_pixels=self._max_pixels)
        except ImageError as exc:
            image.flags.append(f"unreadable: {exc}")
            return image, None
        if blank(rgb):
            image.flags.append("blank: there is nothing to see in it")
        return image, self._encoders.preprocess(rgb)

    def _flag_far(self, images: Sequence[GeneratedImage], appearances: Mapping[str, str]) -> None:
        """Flag what each encoder of texts finds no nearer to its category than to anything."""
        joint = [encoder.name for encoder in self._encoders if "text" in encoder.modalities]  # all take images
        categories: dict[str, list[GeneratedImage]] = {}
        for image in images:
            categories.setdefault(image.record.category, []).append(image)
        described = [name for name in categories if name in appearances]
        found = {name: np.full(len(of), bool(joint)) for name, of in categories.items()}
        for encoder in joint:
            everyday = self._texts(encoder, EVERYDAY)
            looks = self._encoders[encoder].encode_texts([appearances[name] for name in described])
            texts: dict[str, list[Floats]] = {name: [] for name in categories}
            for name, text in (
                *zip(categories, self._texts(encoder, list(categories)), strict=True),
                *zip(described, looks, strict=True),
            ):
                texts[name].append(text)
            for name, of in categories.items():
                vectors = np.stack([image.vectors[encoder] for image in of])
                found[name] &= far(vectors, np.stack(texts[name]), everyday)
        for name, of in categories.items():
            for position in np.flatnonzero(found[name]):
                of[position].flags.append(f"far: no nearer to {readable(name)!r} than to everyday things")

    def _texts(self, encoder: str, names: Sequence[str]) -> Floats:
        prompt = self._prompts.get(encoder, "{name}")
        return self._encoders[encoder].encode_texts([prompt.replace("{name}", readable(name)) for name in names])

    def _flag_copies(self, images: Sequence[GeneratedImage]) -> None:
        vectors = {name: np.stack([image.vectors[name] for image in images]) for name in self._stored}
        for image, other in zip(images, copies(vectors, self._stored), strict=True):
            if other >= len(self._held):
                image.flags.append(f"copy: the same picture as {images[other - len(self._held)].path}")
            elif other >= 0:
                image.flags.append(f"copy: the same picture as a reference of {self._held[other][0]!r}")


def _rows(of: References, keys: Sequence[tuple[str, str]]) -> Floats:
    row = {key: position for position, key in enumerate(of.keys)}
    return of.vectors[[row[key] for key in keys]]


def store_images(
    drawn: Drawn, folder: Path, *, gate: Gate, builder: Builder, existing: set[str], keep_flagged: bool
) -> Generated:
    """Put what was drawn into a store, but for what is flagged, and the descriptions with it.

    Args:
        drawn: What there is.
        folder: Where it is.
        gate: Looks at it.
        builder: Of the store.
        existing: The categories that the store has.
        keep_flagged: Whether flagged images that can be read are stored as well.
    """
    images = [
        GeneratedImage(record, folder / record.file, stored=gate.holds(record))
        for record in sorted(drawn.images, key=lambda record: (record.category, record.index))
    ]
    first: dict[tuple[str, str], GeneratedImage] = {}
    for image in images:
        same = first.setdefault((image.record.category, image.record.sha256), image)
        if same is not image and image.stored:
            image.stored = False
            image.flags.append(f"copy: the same file as {same.path}")
    fresh = [image for image in images if not image.stored and not image.flags]
    appearances = drawn.knowledge.appearances()
    gate.look(fresh, appearances)
    wanted = [image for image in fresh if image.vectors and (keep_flagged or not image.flags)]
    inputs = list(_inputs(wanted, drawn.categories, appearances, with_texts_alone=builder.takes_texts))
    # A category is known by its name as well, in the words of each encoder; what exists has its texts already.
    named = [CategoryInput(name=of.name) for of in inputs if of.name not in existing] if builder.takes_texts else []
    committed = {category.name: category for some in (named, inputs) for category in builder.build(some)}
    for image in wanted:
        image.stored = True
    return Generated(
        images=tuple(images),
        declined=drawn.declined,
        categories=tuple(committed.values()),
        spent=drawn.spent,
        out_of_budget=drawn.out_of_budget,
    )


def _inputs(
    images: Sequence[GeneratedImage],
    categories: Sequence[str],
    appearances: Mapping[str, str],
    *,
    with_texts_alone: bool,
) -> Iterator[CategoryInput]:
    """The categories of which there is something to store."""
    for name in categories:
        references = [
            ReferenceImage(image=image.path, source=SOURCE, prompt=image.record.prompt, vectors=image.vectors)
            for image in images
            if image.record.category == name
        ]
        if references or (with_texts_alone and name in appearances):
            texts = [appearances[name]] if name in appearances else None
            yield CategoryInput(name=name, texts=texts, images=references)
