"""Generated images → quality gate → builder → store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsvec.generation.gate import Gate, GeneratedImage
from zsvec.generation.manifest import DeclinedRecord
from zsvec.ingest.ingestion import Builder
from zsvec.inputs.categories import CategoryInput, ReferenceImage
from zsvec.method.similarities import References
from zsvec.types import Category

if TYPE_CHECKING:
    from zsvec.generation.run import Drawn  # with it, the package `openai`, which takes a second to import

SOURCE = "generated"
"""Source of the references that are generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The result of a run.

    Attributes:
        images: All images of the categories, by category and index, those of earlier runs included.
        declined: Images that the service does not draw, and why.
        categories: The categories that were committed.
        spent: Dollars, as far as the costs are known, earlier runs included.
        out_of_budget: Whether the budget ended the run before every image was bought.
    """

    images: tuple[GeneratedImage, ...]
    declined: tuple[DeclinedRecord, ...]
    categories: tuple[Category, ...]
    spent: float
    out_of_budget: bool

    @property
    def flagged(self) -> tuple[GeneratedImage, ...]:
        """The images with a flag: those that the store should not have."""
        return tuple(image for image in self.images if image.flags)


def store_images(
    drawn: Drawn,
    folder: Path,
    *,
    builder: Builder,
    references: Mapping[str, References],
    existing: set[str],
    keep_flagged: bool,
) -> Generated:
    """Store drawn images, except for flagged ones, with the descriptions as texts.

    Args:
        drawn: The images and descriptions.
        folder: Folder of the images.
        builder: Builder of the store.
        references: All stored references, by expert.
        existing: Names of the categories in the store.
        keep_flagged: Whether flagged images that can be read are stored as well.
    """
    gate = Gate(builder, references)
    stored = gate.stored
    images = [
        GeneratedImage(record, folder / record.file, stored=(record.category, record.sha256) in stored)
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
    # A new category is defined by its name as well, in the prompt of each encoder; an existing one has its texts.
    named = [CategoryInput(name=new.name) for new in inputs if new.name not in existing] if builder.takes_texts else []
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
    """The categories with an image or a text to store."""
    for name in categories:
        references = [
            ReferenceImage(image=image.path, source=SOURCE, prompt=image.record.prompt, vectors=image.vectors)
            for image in images
            if image.record.category == name
        ]
        if references or (with_texts_alone and name in appearances):
            texts = [appearances[name]] if name in appearances else None
            yield CategoryInput(name=name, texts=texts, images=references)
