"""`Generation`: the part of a classifier that draws reference images (paper, section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zsvec.errors import InvalidInputError, needs_extra, shown
from zsvec.generation.gate import Gate, GeneratedImage
from zsvec.generation.manifest import DeclinedRecord, ImageRecord
from zsvec.generation.plan import Budget, Plan, StoredCategory, make_plan
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.validation import checked_count
from zsvec.inputs.categories import CategoryInput, ReferenceImage, as_words, checked_name, checked_path, is_several
from zsvec.method.calibrate.confusions import Confusions, confusions
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import GenerationSettings
from zsvec.store import Store
from zsvec.types import Category, StoredReference, encoder_and_modality

if TYPE_CHECKING:
    from zsvec.generation.run import Drawn  # imports the package `openai`, which takes a second
    from zsvec.ingest.recalibration import Calibrator

FOLDER = "zsvec-generated"
"""Default folder of images and costs, in the working directory."""

SOURCE = "generated"
"""`ReferenceImage.source` of generated images."""

Track = Callable[[Iterable[ImageRecord | DeclinedRecord]], Iterable[ImageRecord | DeclinedRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Result of a run and of all earlier runs over the folder.

    Attributes:
        images: All images of the categories, sorted by category and index; none if only texts were wanted.
        declined: Images that the service declined to draw, with the reason.
        texts: Definition texts by category; none if no encoder of the store embeds texts.
        undescribed: Reason by category for each missing description.
        categories: Categories that this run committed to the store.
        withdrawn: Images and descriptions that were left out, because they were moved or removed from their category.
        spent: Sum of the known costs in dollars.
        out_of_budget: Whether the budget ended the run before every image was bought, or every answer.
    """

    images: tuple[GeneratedImage, ...]
    declined: tuple[DeclinedRecord, ...]
    texts: Mapping[str, Sequence[str]]
    undescribed: Mapping[str, str]
    categories: tuple[Category, ...]
    withdrawn: tuple[StoredReference, ...]
    spent: float
    out_of_budget: bool

    @property
    def flagged(self) -> tuple[GeneratedImage, ...]:
        """Images with a flag, which should stay out of the store."""
        return tuple(image for image in self.images if image.flags)


class Generation:
    """Generates reference images and definition texts for the categories of a store: ``clf.generation``.

    Args:
        store: Store of the categories.
        settings: Address, models and prices of the service.
        searcher: Provides the references of the store.
        calibrator: Measures confusions between categories.
        builder: Returns the builder of the store; called after drawing.
        takes_texts: Whether an encoder of the store embeds texts.
    """

    def __init__(
        self,
        store: Store,
        settings: GenerationSettings,
        searcher: Searcher,
        calibrator: Calibrator,
        builder: Callable[[], Builder],
        *,
        takes_texts: bool,
    ) -> None:
        self._store = store
        self._settings = settings
        self._searcher = searcher
        self._calibrator = calibrator
        self._builder = builder
        self._takes_texts = takes_texts

    def plan(
        self,
        categories: Iterable[str] | None = None,
        *,
        per_category: int = 4,
        budget: Budget | None = None,
        folder: str | os.PathLike[str] = FOLDER,
        texts_only: bool = False,
    ) -> Plan:
        """Plans a run. Sends no requests, writes nothing and needs no API key.

        The plan begins with categories that the store confuses or that have few images. Prompts of confused categories
        name common and distinguishing features. A category that was removed, renamed or merged is left out
        (`Plan.retired`), until it is added again.

        Args:
            categories: Names of stored or new categories; by default, all categories of the store.
            per_category: Number of images that the folder should contain for each category.
            budget: Limits for these categories. Earlier runs over the folder count too. Categories that the budget
                cannot cover are neither drawn nor described.
            folder: Folder of images and costs. An image in this folder is not bought again.
            texts_only: Whether to plan definition texts alone: the appearance of each category, and the features that
                distinguish the category from similar ones. `per_category` and the budget in images do not count.

        Raises:
            InvalidInputError: An argument is invalid, there is no category, the budget is in dollars but the price of a
                model is unknown, the folder cannot be used, or no encoder embeds the texts.
        """
        if texts_only and not self._takes_texts:
            raise InvalidInputError(
                "definition texts need an encoder that embeds texts, and those of this store embed images alone: "
                "generate images, or use a profile with a text encoder"
            )
        per_category = checked_count("per_category", per_category)
        if not isinstance(budget, Budget | None):
            raise InvalidInputError(f"budget must be a Budget or None. Got {shown(budget)} instead")
        stored = {category.name: _stored(category) for category in self._store.categories()}
        if categories is None:
            categories = stored
        elif not is_several(categories):
            raise InvalidInputError(f"categories must be a list of names. Got {shown(categories)} instead")
        names = list(dict.fromkeys(map(checked_name, categories)))
        if not names:
            raise InvalidInputError(f"{self._store.location} has no category to draw: name some")
        retired = self._store.retired(names)
        fitted = self._calibrator.fitted() if stored else None
        plan = make_plan(
            [name for name in names if name not in retired],
            stored,
            confusions(fitted[1], fitted[0].classwise or fitted[0].aggregations) if fitted else Confusions(),
            self._settings,
            per_category=per_category,
            budget=budget or Budget(),
            folder=checked_path("folder", folder),
            texts_only=texts_only,
        )
        return replace(plan, retired=tuple(name for name in names if name in retired))

    def run(self, plan: Plan, *, keep_flagged: bool = False, track: Track = iter) -> Generated:
        """Describes and compares categories, draws images, and stores the images with the descriptions as texts.

        With `Plan.texts_only`, stores descriptions and distinguishing features as texts, and draws nothing. The history
        gets one change.

        Flags images that are blank, unreadable or duplicates, or that show something else. Images and descriptions that
        were moved or removed from their category since an earlier run are left out. To resume a run after a kill, an
        error or the end of the budget, call `plan` and `run` again with the same folder.

        Args:
            plan: Plan from `plan`.
            keep_flagged: Whether to store readable flagged images as well, except images that were moved or removed.
            track: Wraps the iteration over drawn and declined images, to show progress.

        Raises:
            GenerationError: There is no key (``OPENAI_API_KEY``), or a request failed. Images that arrived before the
                failure are stored, and the attribute ``generated`` of the error is the `Generated` so far.
            InvalidInputError: The plan is invalid, or the folder is in use or cannot be used.
            MissingExtraError: The package `openai` is not installed.
        """
        if not isinstance(plan, Plan):
            raise InvalidInputError(f"plan must be a Plan, from clf.generation.plan. Got {shown(plan)} instead")
        with needs_extra("generate", "generated references"):
            from zsvec.generation.run import carry_out  # the package `openai` takes a second to import

        drawn = carry_out(plan, self._settings, track=track)
        if drawn.error is None:
            return self._store_drawn(plan, drawn, keep_flagged)
        if drawn.images or (plan.texts_only and drawn.knowledge.texts(plan.categories, ())):
            drawn.error.generated = self._store_drawn(plan, drawn, keep_flagged)
        raise drawn.error

    def references(
        self,
        categories: Iterable[str] | None = None,
        *,
        per_category: int = 4,
        budget: Budget | None = None,
        folder: str | os.PathLike[str] = FOLDER,
        keep_flagged: bool = False,
        texts_only: bool = False,
    ) -> Generated:
        """Plans a run and executes the plan. Arguments and errors are those of `plan` and `run`."""
        plan = self.plan(categories, per_category=per_category, budget=budget, folder=folder, texts_only=texts_only)
        return self.run(plan, keep_flagged=keep_flagged)

    def _store_drawn(self, plan: Plan, drawn: Drawn, keep_flagged: bool) -> Generated:
        """Checks drawn images, and stores the accepted ones with the texts."""
        builder = self._builder()
        gate = Gate(builder, self._searcher.references()[0] if drawn.images else {})
        stored = gate.stored
        images = [
            GeneratedImage(record, plan.folder / record.file, stored=(record.category, record.sha256) in stored)
            for record in sorted(drawn.images, key=lambda record: (record.category, record.index))
        ]
        first: dict[tuple[str, str], GeneratedImage] = {}
        for image in images:
            same = first.setdefault((image.record.category, image.record.sha256), image)
            if same is not image and image.stored:
                image.stored = False
                image.flags.append(f"copy: the same file as {same.path}")
        withdrawn = list(self._withdrawn([image for image in images if not image.stored]))
        fresh = [image for image in images if not image.stored and not image.flags]
        appearances = drawn.knowledge.appearances()
        gate.look(fresh, appearances)
        wanted = [image for image in fresh if image.vectors and (keep_flagged or not image.flags)]
        texts: Mapping[str, Sequence[str]]
        if not builder.takes_texts:
            texts = {}
        elif plan.texts_only:
            texts = drawn.knowledge.texts(plan.categories, [*plan.categories, *plan.others])
        else:
            texts = {name: [appearances[name]] for name in plan.categories if name in appearances}
        with self._store.one_change("generate"):
            existing = {category.name for category in self._store.categories()}
            inputs = list(_inputs(wanted, plan.categories, texts))
            # A new category also gets texts with the name, in the prompt of each encoder.
            new = [CategoryInput(name=one.name) for one in inputs if builder.takes_texts and one.name not in existing]
            committed = {
                category.name: category
                for some in (new, inputs)
                for category in builder.build(some, on_withdrawn=withdrawn.append)
            }
        left_out = {(one.category, one.hash) for one in withdrawn}
        for image in wanted:
            image.stored = (image.record.category, image.record.sha256) not in left_out
        return Generated(
            images=tuple(images),
            declined=drawn.declined,
            texts=texts,
            undescribed={
                name: why
                for (step, name), why in drawn.knowledge.declined.items()
                if step == "descriptions" and name in plan.categories
            },
            categories=tuple(committed.values()),
            withdrawn=tuple(withdrawn),
            spent=drawn.spent,
            out_of_budget=drawn.out_of_budget,
        )

    def _withdrawn(self, images: Sequence[GeneratedImage]) -> Iterator[StoredReference]:
        """Flags and yields the images that were moved or removed from their category."""
        checks = {name: self._store.withdrawn(name) for name in {image.record.category for image in images}}
        for image in images:
            name, digest = image.record.category, image.record.sha256
            if (is_withdrawn := checks[name]) is not None and is_withdrawn(digest):
                image.flags.append(f"withdrawn: it was moved or removed from {name!r}")
                yield StoredReference(category=name, hash=digest, modality="image", source=SOURCE)


def _inputs(
    images: Sequence[GeneratedImage], categories: Sequence[str], texts: Mapping[str, Sequence[str]]
) -> Iterator[CategoryInput]:
    """Yields the categories with an image or a text to store."""
    for name in categories:
        references = [
            ReferenceImage(image=image.path, source=SOURCE, prompt=image.record.prompt, vectors=image.vectors)
            for image in images
            if image.record.category == name
        ]
        if references or name in texts:
            yield CategoryInput(name=name, texts=texts.get(name), images=references or None)


def _stored(category: Category) -> StoredCategory:
    """Returns a category's longest text, and the number of reference images."""
    counts = [n for expert, n in category.references.items() if encoder_and_modality(expert)[1] == "image"]
    return StoredCategory(max((as_words(category.name), *category.texts), key=len), max(counts, default=0))
