"""The standing conditions: which references a store has, and which images it is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from standing.sets import Images
from zsvec.method.calibrate.fit import FALSE_UNKNOWN_RATE

Numbers = NDArray[np.intp]

FEW = 3
"""References of a category that is said to have few."""
RATES = (0.01, 0.02, 0.05, 0.10)
"""False-unknown rates that are asked for."""
BATCHES = (64, 256)
"""Sizes of batches."""
_SKEWED = {64: 10, 256: 4}  # skewed batches a draw
_SKEW = 0.3  # of the Dirichlet distribution of their categories


@dataclass(frozen=True)
class Trial:
    """References, and the images that are classified by them.

    Attributes:
        rows: Number and category of each reference.
        batches: By name of the condition, numbers of the images of each batch.
        truth: Category of each image that has one.
        few: Categories whose images are also counted apart.
        rate: False-unknown rate that is asked for.
    """

    rows: Sequence[tuple[int, str]]
    batches: Mapping[str, Sequence[Numbers]]
    truth: Mapping[int, str]
    few: frozenset[str] = frozenset()
    rate: float = FALSE_UNKNOWN_RATE


class Draw:
    """A division of the images of a set into references and photos.

    Args:
        images: Of the set.
        seed: Of the draw.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.images = images
        self.names = sorted(images.pool)
        self.order = {name: self.random.permutation(images.pool[name]) for name in self.names}
        self.truth = {int(number): name for name, numbers in self.order.items() for number in numbers}
        self.photos = np.concatenate([numbers[images.most :] for numbers in self.order.values()])
        self.unknown = np.array(images.unknown, dtype=np.intp)

    def references(self, counts: Mapping[str, int]) -> list[tuple[int, str]]:
        """The first images of each category, and their category."""
        return [(int(number), name) for name in self.names for number in self.order[name][: counts[name]]]

    def equal(self, count: int) -> list[tuple[int, str]]:
        """As many of each category."""
        return self.references(dict.fromkeys(self.names, count))

    def another(self, name: str) -> str:
        """Any other category."""
        return str(self.random.choice([other for other in self.names if other != name]))

    def everything(self) -> list[Numbers]:
        """All photos, and all images of no category, in batches of 256."""
        return self.balanced(256, np.concatenate([self.photos, self.unknown]))

    def balanced(self, size: int, numbers: Numbers) -> list[Numbers]:
        """All of some images, in batches in which categories are as frequent as among them."""
        shuffled = self.random.permutation(numbers)
        return [shuffled[first : first + size] for first in range(0, len(shuffled), size)]

    def skewed(self, size: int) -> list[Numbers]:
        """Batches of half of the photos at most, in which few categories are frequent."""
        owners = np.array([self.names.index(self.truth[number]) for number in self.photos.tolist()])
        batches = []
        for _ in range(_SKEWED[size]):
            weights = (self.random.dirichlet(np.full(len(self.names), _SKEW)) + 1e-9)[owners]
            largest = min(size, len(self.photos) // 2)
            batches.append(self.random.choice(self.photos, largest, replace=False, p=weights / weights.sum()))
        return batches

    def mixed(self, size: int, known: Numbers, unknown: Numbers) -> list[Numbers]:
        """Batches a quarter of which has no category."""
        strangers = self.balanced(size // 4, unknown)
        return [
            np.concatenate([part, strangers[i % len(strangers)]])
            for i, part in enumerate(self.balanced(size - size // 4, known))
        ]


def trials(images: Images, counts: Sequence[int], seed: int) -> Iterator[Trial]:
    """All conditions of one draw.

    Args:
        images: Of the set.
        counts: Numbers of references a category; those that are too large are left out.
        seed: Of the draw.
    """
    draw = Draw(images, seed)
    for count in (count for count in counts if count <= images.most):
        yield from _equal(draw, count)
    whole = draw.equal(images.most)
    for rate in RATES:
        yield Trial(whole, {f"{rate:.0%} unknown asked for": draw.everything()}, draw.truth, rate=rate)
    if images.most > FEW:
        yield from _uneven(draw)
    yield from _spoiled(draw, whole)


def _equal(draw: Draw, count: int) -> Iterator[Trial]:
    """As many references of each category, and batches of all kinds."""
    title, unknown = f"{count} reference{'s'[: count > 1]}", draw.unknown
    references, batches = draw.equal(count), {title: draw.everything()}
    for size in BATCHES:
        batches[f"{title}, batches of {size}"] = draw.balanced(size, draw.photos)
        batches[f"{title}, skewed batches of {size}"] = draw.skewed(size)
    mixed = {f"{title}, a quarter of {size} unknown": size for size in BATCHES}
    if len(unknown):
        batches |= {name: draw.mixed(size, draw.photos, unknown) for name, size in mixed.items()}
    yield Trial(references, batches, draw.truth)
    if not len(unknown):
        outside = set(draw.random.permutation(draw.names)[: max(1, len(draw.names) // 5)].tolist())
        is_outside = np.array([draw.truth[number] in outside for number in draw.photos.tolist()])
        known, unknown = draw.photos[~is_outside], draw.photos[is_outside]
        yield Trial(
            [(number, name) for number, name in references if name not in outside],
            {name: draw.mixed(size, known, unknown) for name, size in mixed.items()},
            {number: name for number, name in draw.truth.items() if name not in outside},
        )


def _uneven(draw: Draw) -> Iterator[Trial]:
    """Unequal numbers of references."""
    most, half = draw.images.most, len(draw.names) // 2
    logarithms = draw.random.uniform(0, np.log(most), len(draw.names))
    spread = {name: round(float(np.exp(value))) for name, value in zip(draw.names, logarithms, strict=True)}
    halves = {name: most if i < half else FEW for i, name in enumerate(draw.random.permutation(draw.names).tolist())}
    for title, counts in ((f"1 to {most} references", spread), (f"{FEW} or {most} references", halves)):
        few = frozenset(name for name, count in counts.items() if count <= FEW)
        yield Trial(draw.references(counts), {title: draw.everything()}, draw.truth, few)


def _spoiled(draw: Draw, whole: Sequence[tuple[int, str]]) -> Iterator[Trial]:
    """Wrong labels, pictures in two categories, and bursts."""
    for share in (0.2, 0.5):
        yield Trial(_mislabelled(draw, whole, share), {f"{share:.0%} wrong labels": draw.everything()}, draw.truth)
    twins = [(number, draw.another(name)) for number, name in whole if draw.random.random() < 0.2]
    yield Trial([*whole, *twins], {"20% in another category too": draw.everything()}, draw.truth)
    burst = [(made, name) for number, name in whole for made in (number, *draw.images.bursts[number])]
    yield Trial(burst, {"bursts of 5": draw.everything()}, draw.truth)


def _mislabelled(draw: Draw, whole: Sequence[tuple[int, str]], share: float) -> list[tuple[int, str]]:
    """The same images, a share of which is under any other category."""
    return [(number, draw.another(name) if draw.random.random() < share else name) for number, name in whole]


def doubtful(images: Images, count: int, wrong: float, copied: float, seed: int) -> Trial:
    """References some of which are wrong.

    Args:
        images: Of the set.
        count: References a category.
        wrong: Share of them that is under another category.
        copied: Share of them that is saved again: every other one in its category, the others in another one.
        seed: Of the draw.
    """
    draw = Draw(images, seed)
    rows = _mislabelled(draw, draw.equal(count), wrong)
    chosen = [rows[i] for i in draw.random.permutation(len(rows))[: round(copied * len(rows))]]
    copies = [(images.copies[number], draw.another(name) if i % 2 else name) for i, (number, name) in enumerate(chosen)]
    truth = draw.truth | {images.copies[number]: draw.truth[number] for number, _ in chosen}
    return Trial([*rows, *copies], {"": draw.everything()}, truth)
