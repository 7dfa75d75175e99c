"""What a run will ask, buy and cost, before anything is asked or bought."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zsvec.config import GenerationSettings
from zsvec.errors import InvalidInputError
from zsvec.generation.features import (
    COMPARED_AT_ONCE,
    DESCRIBED_AT_ONCE,
    GROUPED_AT_ONCE,
    MOST_GROUPS,
    Group,
    Knowledge,
    chosen_groups,
)
from zsvec.generation.manifest import images, read_manifest, settled, spent
from zsvec.generation.prices import Usage, image_cost, price_of, text_cost
from zsvec.method.confusions import Confusions

ROUNDING = 1e-9
"""Dollars by which a sum of costs may exceed a budget."""

# Tokens, roughly: of the instructions, of a name, and of the answer about one subject, reasoning included.
_INSTRUCTIONS = 250
_NAME = 6
_APPEARANCE = 60
_ANSWERS = {"descriptions": 300, "groups": 60, "features": 300}


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a folder may hold of the categories of a run, and have cost for them, earlier runs included.

    Attributes:
        images: How many; ``None``: as many as are planned.
        dollars: For answers and images; ``None``: without a limit.
    """

    images: int | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        for name, kind, wanted in (("images", int, "a whole number"), ("dollars", int | float, "a number")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and 0 <= value < math.inf):
                raise InvalidInputError(f"a budget of {name} must be {wanted} from 0 up. Got {value!r} instead")


@dataclass(frozen=True, slots=True)
class Held:
    """What a store knows of a category.

    Attributes:
        text: A text of it.
        images: How many reference images it has.
    """

    text: str
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done; it changes nothing to make one.

    Attributes:
        folder: Where what is bought is kept.
        categories: To draw references of.
        others: What further categories of the store look like, which these may be confused with.
        measured: Groups that the store confuses.
        places: Images to buy, by category and index, the most useful first.
        affordable: How many of them the budget allows, as estimated; with what is left by then, more are bought.
        excluded: How many images it does not allow at all: those beyond a budget in images, and those of
            categories that there is not even money to ask about.
        there: Images of these categories that are in the folder.
        questions: Requests to the language model, by step; of the features no more than that.
        budget: That will be kept to.
        spent: Dollars that have been spent on these categories in this folder.
        cost_of_questions: Estimated, in dollars; ``None`` if the price of the language model is not known.
        cost_of_image: Estimated; ``None`` if the price of the image model is not known.
        models: Language model and image model.
    """

    folder: Path
    categories: tuple[str, ...]
    others: Mapping[str, str] = field(repr=False)
    measured: tuple[Group, ...] = field(repr=False)
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
        """How many images the budget does not allow, as estimated."""
        return self.excluded + len(self.places) - self.affordable

    @property
    def cost(self) -> float | None:
        """Estimated dollars still to be spent."""
        if self.cost_of_questions is None or self.cost_of_image is None:
            return None
        return self.cost_of_questions + self.affordable * self.cost_of_image

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec generate --dry-run --json`` prints."""
        return {
            "folder": str(self.folder),
            "categories": list(self.categories),
            "confused": [list(group) for group in self.measured],
            "questions": dict(self.questions),
            "images": self.affordable,
            "images_there": self.there,
            "images_beyond_budget": self.beyond_budget,
            "cost": self.cost,
            "spent": self.spent,
            "budget": {"images": self.budget.images, "dollars": self.budget.dollars},
            "language_model": self.models[0],
            "image_model": self.models[1],
        }


def make_plan(
    categories: Sequence[str],
    held: Mapping[str, Held],
    confusions: Confusions,
    settings: GenerationSettings,
    *,
    per_category: int,
    budget: Budget,
    folder: Path,
) -> Plan:
    """Plan a run.

    Images are bought where they help most, so that a budget that ends the run has been well spent: a
    category whose images go to others much, and one that has few, comes first.

    Args:
        categories: To draw references of.
        held: What the store has, by category.
        confusions: Of its reference images.
        settings: Models and prices.
        per_category: Images of each category that the folder shall hold.
        budget: What the folder may hold and have cost.
        folder: Where what is bought is kept; what is in it already is not bought again.

    Raises:
        InvalidInputError: A budget in dollars for a model whose price is not known, or a folder of something else.
    """
    records = read_manifest(folder)
    known = Knowledge.of(records)
    there = {(record.category, record.index) for record in images(records, folder) if record.category in categories}
    declined = {(of.category, of.index) for of in settled(records, settings.image_model)}
    places = [
        (name, index)
        for name in categories
        for index in range(per_category)
        if (name, index) not in there and (name, index) not in declined
    ]
    places.sort(key=lambda place: -_use(place, held, confusions))
    planned = len(places)
    if budget.images is not None:
        places = places[: max(0, budget.images - len(there))]
    if budget.dollars is not None:
        for model in (settings.language_model, settings.image_model):
            if price_of(model, settings) is None:
                raise InvalidInputError(
                    f"no price is known for {model!r}, so that a budget in dollars cannot be kept: set "
                    f'[generation.prices."{model}"] in zsvec.toml'
                )
    every = sorted({*categories, *held})
    measured = tuple((name, *others) for name in categories if (others := confusions.partners.get(name)))
    paid = spent(records, categories)

    def questions(images: int) -> tuple[dict[str, int], Usage]:
        """Those that so many images need."""
        return _questions(known, sorted({name for name, _ in places[:images]}), every, measured)

    def cost(images: int) -> float:
        return (text_cost(questions(images)[1], settings) or 0.0) + images * (image_cost(None, settings) or 0.0)

    affordable = len(places)
    if budget.dollars is not None:
        affordable = max(0, bisect_right(range(len(places) + 1), budget.dollars - paid + ROUNDING, key=cost) - 1)
        # Nothing is asked about a category that there will be no money to draw.
        asked = {name for name, _ in places[:affordable]}
        places = [place for place in places if place[0] in asked]
    counts, usage = questions(affordable)
    return Plan(
        folder=folder,
        categories=tuple(categories),
        others={name: of.text for name, of in held.items() if name not in categories},
        measured=measured,
        places=tuple(places),
        affordable=affordable,
        excluded=planned - len(places),
        there=len(there),
        questions=counts,
        budget=budget,
        spent=paid,
        cost_of_questions=text_cost(usage, settings),
        cost_of_image=image_cost(None, settings),
        models=(settings.language_model, settings.image_model),
    )


def _use(place: tuple[str, int], held: Mapping[str, Held], confusions: Confusions) -> float:
    """How much an image is worth: what its category loses to others, shared among the images that it has."""
    name, index = place
    has = held[name].images if name in held else 0
    return confusions.lost.get(name, 1.0) / (1 + has + index)


def _questions(
    known: Knowledge, names: Sequence[str], every: Sequence[str], measured: Sequence[Group]
) -> tuple[dict[str, int], Usage]:
    """How many questions there are to ask, at most, and their tokens, roughly."""
    undescribed, ungrouped = known.missing("descriptions", names), known.missing("groups", names)
    groups = known.missing("features", chosen_groups(names, [*measured, *known.groups], every))
    # Of those that are not grouped yet, each may be in a group, and half of these are groups of others.
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
