"""Trials: references of a store, and images to classify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from standing.sets import Images
from zsvec.method.calibrate.fit import FALSE_UNKNOWN_RATE

Numbers = NDArray[np.intp]
Rows = Sequence[tuple[int, str]]
"""Number and category of each reference."""

FEW = 3  # references of a category that is said to have few
RATES = (0.01, 0.02, 0.05, 0.10)  # false-unknown rates that are asked for
BATCHES = {64: 10, 256: 4}  # sizes of batches, and how many skewed ones a draw has
SKEW = 0.3  # of the Dirichlet distribution of categories


@dataclass(frozen=True)
class Trial:
    """References, and images to classify.

    Attributes:
        rows: The references.
        batches: By name of the condition, numbers of the images of each batch.
        truth: Category of each image.
        few: Categories with images that are also counted apart.
        rate: False-unknown rate that is asked for.
    """

    rows: Rows
    batches: Mapping[str, Sequence[Numbers]]
    truth: Mapping[int, str]
    few: frozenset[str] = frozenset()
    rate: float = FALSE_UNKNOWN_RATE


class Draw:
    """A random division of the images of a set into references and photos."""

    def __init__(self, images: Images, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.images = images
        self.names = sorted(images.pool)
        self.order = {name: self.random.permutation(images.pool[name]) for name in self.names}
        self.truth = {int(number): name for name, numbers in self.order.items() for number in numbers}
        self.photos = np.concatenate([numbers[images.most :] for numbers in self.order.values()])

    def references(self, counts: Mapping[str, int]) -> Rows:
        """The first images of each category."""
        return [(int(number), name) for name in self.names for number in self.order[name][: counts[name]]]

    def equal(self, count: int) -> Rows:
        """The same number of references in each category."""
        return self.references(dict.fromkeys(self.names, count))

    def mislabelled(self, rows: Rows, share: float) -> Rows:
        """The same images, a share of which is under another category."""
        return [(number, self.another(name) if self.random.random() < share else name) for number, name in rows]

    def another(self, name: str) -> str:
        """Any other category."""
        return str(self.random.choice([other for other in self.names if other != name]))

    def balanced(self, size: int = 256) -> list[Numbers]:
        """All photos, in batches of representative frequencies."""
        shuffled = self.random.permutation(self.photos)
        return [shuffled[first : first + size] for first in range(0, len(shuffled), size)]

    def skewed(self, size: int) -> list[Numbers]:
        """Batches of at most half of the photos, in which few categories are frequent."""
        owners = np.array([self.names.index(self.truth[number]) for number in self.photos.tolist()])
        largest, batches = min(size, len(self.photos) // 2), []
        for _ in range(BATCHES[size]):
            weights = (self.random.dirichlet(np.full(len(self.names), SKEW)) + 1e-9)[owners]
            batches.append(self.random.choice(self.photos, largest, replace=False, p=weights / weights.sum()))
        return batches


def trials(images: Images, counts: Sequence[int], seed: int) -> Iterator[Trial]:
    """All conditions of one draw; numbers of references a category that are too large are left out."""
    draw = Draw(images, seed)
    for count in (count for count in counts if count <= images.most):
        title = f"{count} reference{'s'[: count > 1]}"
        batches = {title: draw.balanced()}
        for size in BATCHES:
            batches[f"{title}, batches of {size}"] = draw.balanced(size)
            batches[f"{title}, skewed batches of {size}"] = draw.skewed(size)
        yield Trial(draw.equal(count), batches, draw.truth)
    whole = draw.equal(images.most)
    for rate in RATES:
        yield Trial(whole, {f"{rate:.0%} unknown asked for": draw.balanced()}, draw.truth, rate=rate)
    if images.most > FEW:
        yield from _uneven(draw)
    for share in (0.2, 0.5):
        yield Trial(draw.mislabelled(whole, share), {f"{share:.0%} wrong labels": draw.balanced()}, draw.truth)
    twins = [(number, draw.another(name)) for number, name in whole if draw.random.random() < 0.2]
    yield Trial([*whole, *twins], {"20% in another category too": draw.balanced()}, draw.truth)
    burst = [(made, name) for number, name in whole for made in (number, *images.bursts[number])]
    yield Trial(burst, {"bursts of 5": draw.balanced()}, draw.truth)


def _uneven(draw: Draw) -> Iterator[Trial]:
    """Unequal numbers of references."""
    most, half = draw.images.most, len(draw.names) // 2
    logarithms = draw.random.uniform(0, np.log(most), len(draw.names))
    spread = {name: round(float(np.exp(value))) for name, value in zip(draw.names, logarithms, strict=True)}
    halves = {name: most if i < half else FEW for i, name in enumerate(draw.random.permutation(draw.names).tolist())}
    for title, counts in ((f"1 to {most} references", spread), (f"{FEW} or {most} references", halves)):
        few = frozenset(name for name, count in counts.items() if count <= FEW)
        yield Trial(draw.references(counts), {title: draw.balanced()}, draw.truth, few)


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
    rows = draw.mislabelled(draw.equal(count), wrong)
    chosen = [rows[i] for i in draw.random.permutation(len(rows))[: round(copied * len(rows))]]
    copies = [(images.copies[number], draw.another(name) if i % 2 else name) for i, (number, name) in enumerate(chosen)]
    truth = draw.truth | {images.copies[number]: draw.truth[number] for number, _ in chosen}
    return Trial([*rows, *copies], {"": draw.balanced()}, truth)
