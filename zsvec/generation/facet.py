"""`Generation`: what a classifier offers to draw reference images of its categories (paper, section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from zsvec.errors import InvalidInputError, shown
from zsvec.generation.budget import Budget
from zsvec.generation.manifest import DeclinedRecord, ImageRecord
from zsvec.generation.plan import Plan, StoredCategory, make_plan
from zsvec.generation.synthesis import Generated, store_images
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.validation import checked_count
from zsvec.inputs.categories import as_words, checked_name, checked_path, is_several
from zsvec.method.calibrate.confusions import Confusions, confusions
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import GenerationSettings
from zsvec.store import Store
from zsvec.types import Category, encoder_and_modality

if TYPE_CHECKING:
    from zsvec.ingest.recalibration import Calibrator

FOLDER = "zsvec-generated"
"""Where purchases are kept by default, in the working directory."""

Track = Callable[[Iterable[ImageRecord | DeclinedRecord]], Iterable[ImageRecord | DeclinedRecord]]


class Generation:
    """Draws reference images for the categories of a store. It is ``clf.generation`` of a classifier.

    Args:
        store: Where the categories are.
        settings: The service and its models.
        searcher: Searches the references of the store.
        calibrator: Measures which categories the store confuses.
        builder: Returns the builder of the store; called after the images have been drawn.
    """

    def __init__(
        self,
        store: Store,
        settings: GenerationSettings,
        searcher: Searcher,
        calibrator: Calibrator,
        builder: Callable[[], Builder],
    ) -> None:
        self._store = store
        self._settings = settings
        self._searcher = searcher
        self._calibrator = calibrator
        self._builder = builder

    def plan(
        self,
        categories: Iterable[str] | None = None,
        *,
        per_category: int = 4,
        budget: Budget | None = None,
        folder: str | os.PathLike[str] = FOLDER,
    ) -> Plan:
        """Plan to draw reference images. Planning makes no request, writes nothing and needs no key.

        Categories that the stored references confuse come first. Their images will show the features that they share,
        and those that tell them apart.

        Args:
            categories: Names, new ones too; by default all categories of the store.
            per_category: How many images of each category the folder shall contain.
            budget: The most that these images may be and cost, earlier runs over the folder included. Categories the
                budget cannot cover are not described either.
            folder: Where images and their costs are kept; an image in it is not bought again.

        Raises:
            InvalidInputError: A name cannot be used, there are none, or the price of a model is not known and the
                budget is in dollars.
        """
        per_category = checked_count("per_category", per_category)
        if not isinstance(budget, Budget | None):
            raise InvalidInputError(f"budget must be a Budget or None. Got {shown(budget)} instead")
        stored = {category.name: _stored(category) for category in self._store.categories()}
        names = list(dict.fromkeys(map(checked_name, _names(categories) if categories is not None else stored)))
        if not names:
            raise InvalidInputError(f"{self._store.location} has no category to draw: name some")
        fitted = self._calibrator.fitted() if stored else None
        return make_plan(
            names,
            stored,
            confusions(fitted[1], fitted[0].classwise or fitted[0].aggregations) if fitted else Confusions(),
            self._settings,
            per_category=per_category,
            budget=budget or Budget(),
            folder=checked_path("folder", folder),
        )

    def run(self, plan: Plan, *, keep_flagged: bool = False, track: Track = iter) -> Generated:
        """Carry out a plan: describe, compare, draw; then store the images, with the descriptions as texts.

        Killed at any instant, or ended by the budget or an error, a run is resumed by planning and running the same
        again. Images that show nothing, a copy of another, or something else are flagged.

        Args:
            plan: From `plan`.
            keep_flagged: Whether flagged images that can be read are stored as well.
            track: Iterates the purchases, to show progress.

        Raises:
            GenerationError: There is no key (``OPENAI_API_KEY``), or the service cannot do it. Images that have
                arrived by then are stored, and are its ``generated``.
            InvalidInputError: The folder is in use, or cannot be used.
        """
        if not isinstance(plan, Plan):
            raise InvalidInputError(f"plan must be a Plan, from clf.generation.plan. Got {shown(plan)} instead")
        from zsvec.generation.run import carry_out  # the package `openai` takes a second to import

        drawn = carry_out(plan, self._settings, track=track)
        if drawn.error is not None and not drawn.images:
            raise drawn.error
        builder = self._builder()
        references, _ = self._searcher.references()
        with self._store.one_change("generate"):
            done = store_images(
                drawn,
                plan.folder,
                builder=builder,
                references=references,
                existing={category.name for category in self._store.categories()},
                keep_flagged=keep_flagged,
            )
        if drawn.error is not None:
            drawn.error.generated = done
            raise drawn.error
        return done

    def references(
        self,
        categories: Iterable[str] | None = None,
        *,
        per_category: int = 4,
        budget: Budget | None = None,
        folder: str | os.PathLike[str] = FOLDER,
        keep_flagged: bool = False,
    ) -> Generated:
        """`plan` and `run` in one."""
        plan = self.plan(categories, per_category=per_category, budget=budget, folder=folder)
        return self.run(plan, keep_flagged=keep_flagged)


def _names(categories: object) -> Iterable[Any]:
    if not is_several(categories):
        raise InvalidInputError(f"categories must be a list of names. Got {shown(categories)} instead")
    return categories


def _stored(category: Category) -> StoredCategory:
    """A category's longest text, and how many reference images it has."""
    counts = [n for expert, n in category.references.items() if encoder_and_modality(expert)[1] == "image"]
    return StoredCategory(max((as_words(category.name), *category.texts), key=len), max(counts, default=0))
