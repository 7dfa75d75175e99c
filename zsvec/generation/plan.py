"""Plan of a run: questions, images and estimated cost, within a budget.

A plan begins with categories that the store often confuses or that have few images. If the budget ends the run, the
money was spent where images help most.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsvec.errors import InvalidInputError, shown
from zsvec.generation.features import (
    COMPARED_AT_ONCE,
    DESCRIBED_AT_ONCE,
    GROUPED_AT_ONCE,
    MOST_GROUPS,
    Knowledge,
    NameGroup,
    chosen_groups,
)
from zsvec.generation.manifest import Place, images, read_manifest, settled, spent
from zsvec.generation.prices import Usage, image_cost, price_of, text_cost
from zsvec.method.calibrate.confusions import Confusions
from zsvec.settings.settings import GenerationSettings

ROUNDING = 1e-9
"""Tolerance in dollars for rounding errors when a sum of costs is compared with a budget."""

# Rough numbers of tokens. `_ANSWERS` has the tokens per subject, including reasoning.
_INSTRUCTIONS = 250
_NAME = 6
_APPEARANCE = 60
_ANSWERS = {"descriptions": 300, "groups": 60, "features": 300}


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on the total for all categories of a run, including what earlier runs in the same folder spent on them.

    Attributes:
        images: Maximum number of images of these categories in the folder; ``None`` for no limit.
        dollars: Maximum cost of the language model's answers and of the images; ``None`` for no limit.
    """

    images: int | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        for name, kind, wanted in (("images", int, "a whole number"), ("dollars", int | float, "a number")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and 0 <= value < math.inf):
                raise InvalidInputError(f"a budget of {name} must be {wanted} from 0 up. Got {shown(value)} instead")


@dataclass(frozen=True, slots=True)
class StoredCategory:
    """A category of the store.

    Attributes:
        text: A definition text.
        images: Number of reference images.
    """

    text: str
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Plan of a run.

    Attributes:
        folder: Folder of images and costs.
        categories: Categories to draw.
        retired: Requested categories that are not drawn, because they were removed, renamed or merged.
        others: By name, a definition text of each other category of the store, for comparison with `categories`.
        measured: Groups of categories that the store confuses.
        texts_only: Whether categories are described and compared for their definition texts, and no images are bought.
        described: Categories that the language model is asked about, unless the folder has the answers.
        places: Images to buy, as pairs of category and index, the most useful first.
        affordable: Estimated number of `places` within the budget. If images cost less than estimated, more are bought.
        excluded: Number of images left out of `places`, because the budget in images is exceeded or the budget in
            dollars cannot cover the category. With `texts_only`, the number of categories left out of `described`.
        there: Number of images of `categories` that the folder already contains.
        questions: Number of requests to the language model by step. For ``features``, this is an upper bound.
        budget: Limits of the run.
        spent: Dollars spent on `categories` in this folder so far.
        cost_of_questions: Estimated cost of all questions in dollars; ``None`` if the price of the language model is
            unknown.
        cost_of_image: Estimated cost of one image in dollars; ``None`` if the price of the image model is unknown, 0
            with `texts_only`.
        models: Language model and image model.
    """

    folder: Path
    categories: tuple[str, ...]
    retired: tuple[str, ...] = ()
    others: Mapping[str, str] = field(repr=False)
    measured: tuple[tuple[str, ...], ...] = field(repr=False)
    texts_only: bool = False
    described: tuple[str, ...] = ()
    places: tuple[tuple[str, int], ...] = field(repr=False)
    affordable: int
    excluded: int
    there: int
    questions: Mapping[str, int]
    budget: Budget
    spent: float
    cost_of_questions: float | None
    cost_of_image: float | None
    models: tuple[str, str]

    @property
    def beyond_budget(self) -> int:
        """Estimated number of images beyond the budget; of categories with `texts_only`."""
        return self.excluded + len(self.places) - self.affordable

    @property
    def cost(self) -> float | None:
        """Estimated cost of the run in dollars; ``None`` if a price is unknown."""
        if self.cost_of_questions is None or self.cost_of_image is None:
            return None
        return self.cost_of_questions + self.affordable * self.cost_of_image

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec generate --dry-run --json`` prints."""
        return {
            "folder": str(self.folder),
            "categories": list(self.categories),
            "retired": list(self.retired),
            "confused": [list(group) for group in self.measured],
            "texts_only": self.texts_only,
            "described": list(self.described),
            "questions": dict(self.questions),
            "images": self.affordable,
            "images_there": self.there,
            "images_beyond_budget": 0 if self.texts_only else self.beyond_budget,
            "cost": self.cost,
            "spent": self.spent,
            "budget": {"images": self.budget.images, "dollars": self.budget.dollars},
            "language_model": self.models[0],
            "image_model": self.models[1],
        }


def make_plan(
    categories: Sequence[str],
    stored: Mapping[str, StoredCategory],
    confusions: Confusions,
    settings: GenerationSettings,
    *,
    per_category: int,
    budget: Budget,
    folder: Path,
    texts_only: bool = False,
) -> Plan:
    """Plans a run.

    Args:
        categories: Categories to draw.
        stored: Categories of the store, by name.
        confusions: Confusions of the store's reference images.
        settings: Models and prices.
        per_category: Number of images that the folder should contain for each category.
        budget: Limits for the categories. Earlier runs over the folder count too.
        folder: Folder of images and costs. An image in this folder is not bought again.
        texts_only: Whether to plan definition texts and no images.

    Raises:
        InvalidInputError: The budget is in dollars but the price of a model is unknown, or `read_manifest` fails.
    """
    records = read_manifest(folder)
    knowledge = Knowledge.of(records)
    bought = images(records, folder).keys()
    there = [place for place in bought if place[0] in categories]
    if texts_only:
        places = [(name, 0) for name in categories]  # each stands for the description of the category
    else:
        finished = bought | settled(records, settings.image_model)
        wanted = ((name, index) for name in categories for index in range(per_category))
        places = [place for place in wanted if place not in finished]
    places.sort(key=lambda place: -_worth(place, stored, confusions))
    planned = len(places)
    if budget.images is not None and not texts_only:
        places = places[: max(0, budget.images - len(there))]
    if budget.dollars is not None:
        for model in (settings.language_model, *([] if texts_only else [settings.image_model])):
            if price_of(model, settings) is None:
                raise InvalidInputError(
                    f"no price is known for {model!r}, so that a budget in dollars cannot be kept: set "
                    f'[generation.prices."{model}"] in zsvec.toml'
                )
    every = sorted({*categories, *stored})
    # New texts change the confusions. A repeated run for texts would pay for the comparison of new groups.
    partners = {} if texts_only else confusions.partners
    measured = tuple((name, *others) for name in categories if (others := partners.get(name)))
    paid = spent(records, categories)
    cost_of_image = 0.0 if texts_only else image_cost(None, settings)

    def questions(images: int) -> tuple[dict[str, int], Usage]:
        """Returns the number of questions by step, and their tokens, for the first `images` places."""
        return _questions(knowledge, sorted({name for name, _ in places[:images]}), every, measured)

    def cost(images: int) -> float:
        return (text_cost(questions(images)[1], settings) or 0.0) + images * (cost_of_image or 0.0)

    affordable = len(places)
    if budget.dollars is not None:
        affordable = max(0, bisect_right(range(len(places) + 1), budget.dollars - paid + ROUNDING, key=cost) - 1)
        # Categories that the budget cannot cover are neither drawn nor described.
        covered = {name for name, _ in places[:affordable]}
        places = [place for place in places if place[0] in covered]
    counts, usage = questions(affordable)
    return Plan(
        folder=folder,
        categories=tuple(categories),
        others={name: category.text for name, category in stored.items() if name not in categories},
        measured=measured,
        texts_only=texts_only,
        described=tuple(sorted({name for name, _ in places[:affordable]})),
        places=() if texts_only else tuple(places),
        affordable=0 if texts_only else affordable,
        excluded=planned - len(places),
        there=len(there),
        questions=counts,
        budget=budget,
        spent=paid,
        cost_of_questions=text_cost(usage, settings),
        cost_of_image=cost_of_image,
        models=(settings.language_model, settings.image_model),
    )


def _worth(place: Place, stored: Mapping[str, StoredCategory], confusions: Confusions) -> float:
    """Returns the confusion probability of the category, divided by the number of images up to `place`."""
    name, index = place
    images = stored[name].images if name in stored else 0
    return confusions.lost.get(name, 1.0) / (1 + images + index)


def _questions(
    knowledge: Knowledge, names: Sequence[str], every: Sequence[str], measured: Sequence[NameGroup]
) -> tuple[dict[str, int], Usage]:
    """Returns the number of questions by step (an upper bound), and a rough estimate of all tokens."""
    undescribed, ungrouped = knowledge.missing("descriptions", names), knowledge.missing("groups", names)
    groups = knowledge.missing("features", chosen_groups(names, [*measured, *knowledge.groups], every))
    # Assumes that each ungrouped category joins `MOST_GROUPS` groups of two categories.
    uncompared = len(groups) + math.ceil(len(ungrouped) * MOST_GROUPS / 2)
    subjects = {"descriptions": len(undescribed), "groups": len(ungrouped), "features": uncompared}
    at_once = {"descriptions": DESCRIBED_AT_ONCE, "groups": GROUPED_AT_ONCE, "features": COMPARED_AT_ONCE}
    counts = {step: math.ceil(n / at_once[step]) for step, n in subjects.items()}
    read = (
        sum(counts.values()) * _INSTRUCTIONS
        + len(undescribed) * _NAME
        + counts["groups"] * len(every) * _NAME
        + uncompared * 3 * _APPEARANCE
    )
    written = sum(n * _ANSWERS[step] for step, n in subjects.items())
    return counts, Usage(read, written)
