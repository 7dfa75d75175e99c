"""Makes trials. A trial has the references of a store, and images to classify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from standing.sets import Images
from zsvec.method.calibrate.fit import FALSE_UNKNOWN_RATE

Numbers = NDArray[np.intp]
Rows = Sequence[tuple[int, str]]
"""Image number and category of each reference."""

FEW = 3  # maximum number of references of a category in `Trial.few`
RATES = (0.01, 0.02, 0.05, 0.10)  # requested false-unknown rates
BATCHES = {64: 10, 256: 4}  # number of skewed batches in a draw, by batch size
SKEW = 0.3  # concentration of the Dirichlet distribution of category shares


@dataclass(frozen=True)
class Trial:
    """References of a store, and images to classify.

    Attributes:
        rows: The references.
        batches: Image numbers of each batch, by name of the condition.
        truth: Category of each image.
        few: Categories with few references. The accuracy on images of these categories is also measured separately.
        rate: Requested false-unknown rate.
        by_text: Categories that have a text, but no reference.
        by_encoder: Categories that have no text, and vectors of one encoder alone, as those of an attached collection;
            with the name of the encoder.
    """

    rows: Rows
    batches: Mapping[str, Sequence[Numbers]]
    truth: Mapping[int, str]
    few: frozenset[str] = frozenset()
    rate: float = FALSE_UNKNOWN_RATE
    by_text: frozenset[str] = frozenset()
    by_encoder: Mapping[str, str] = field(default_factory=dict)


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
        """Returns the first images of each category, as many as `counts` says."""
        return [(int(number), name) for name in self.names for number in self.order[name][: counts[name]]]

    def equal(self, count: int) -> Rows:
        """Returns the first `count` images of each category."""
        return self.references(dict.fromkeys(self.names, count))

    def mislabelled(self, rows: Rows, share: float) -> Rows:
        """Returns the references. A random share of them gets another category."""
        return [(number, self.another(name) if self.random.random() < share else name) for number, name in rows]

    def another(self, name: str) -> str:
        """Returns a random other category."""
        return str(self.random.choice([other for other in self.names if other != name]))

    def balanced(self, size: int = 256) -> list[Numbers]:
        """Returns all photos in random batches, in which categories are as frequent as in all photos."""
        shuffled = self.random.permutation(self.photos)
        return [shuffled[first : first + size] for first in range(0, len(shuffled), size)]

    def skewed(self, size: int) -> list[Numbers]:
        """Returns batches in which few categories are frequent. A batch has at most half of the photos."""
        owners = np.array([self.names.index(self.truth[number]) for number in self.photos.tolist()])
        largest, batches = min(size, len(self.photos) // 2), []
        for _ in range(BATCHES[size]):
            weights = (self.random.dirichlet(np.full(len(self.names), SKEW)) + 1e-9)[owners]
            batches.append(self.random.choice(self.photos, largest, replace=False, p=weights / weights.sum()))
        return batches


def trials(images: Images, counts: Sequence[int], seed: int) -> Iterator[Trial]:
    """Yields the trials of one draw, which cover all conditions. Skips values of `counts` above `images.most`."""
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
    """Yields trials with unequal numbers of references."""
    most, half = draw.images.most, len(draw.names) // 2
    logarithms = draw.random.uniform(0, np.log(most), len(draw.names))
    spread = {name: round(float(np.exp(value))) for name, value in zip(draw.names, logarithms, strict=True)}
    halves = {name: most if i < half else FEW for i, name in enumerate(draw.random.permutation(draw.names).tolist())}
    for title, counts in ((f"1 to {most} references", spread), (f"{FEW} or {most} references", halves)):
        few = frozenset(name for name, count in counts.items() if count <= FEW)
        yield Trial(draw.references(counts), {title: draw.balanced()}, draw.truth, few)


def doubtful(images: Images, count: int, wrong: float, copied: float, seed: int) -> Trial:
    """Returns a trial with wrong labels and copies among the references.

    Args:
        images: Images of the set.
        count: Number of references of each category, without the copies.
        wrong: Share of the references that get another category.
        copied: Share of the references with a copy. Every second copy gets another category than the reference.
        seed: Seed of the draw.
    """
    draw = Draw(images, seed)
    rows = draw.mislabelled(draw.equal(count), wrong)
    chosen = [rows[i] for i in draw.random.permutation(len(rows))[: round(copied * len(rows))]]
    copies = [(images.copies[number], draw.another(name) if i % 2 else name) for i, (number, name) in enumerate(chosen)]
    truth = draw.truth | {images.copies[number]: draw.truth[number] for number, _ in chosen}
    return Trial([*rows, *copies], {"": draw.balanced()}, truth)


@dataclass(frozen=True)
class Arrival:
    """New categories in a store.

    Attributes:
        new: The new categories.
        before: Trial of the other categories, with their photos.
        after: Trial of all categories, with all photos.
    """

    new: frozenset[str]
    before: Trial
    after: Trial


def arrivals(images: Images, count: int, seed: int) -> dict[str, Arrival]:
    """Returns arrivals of categories with less evidence than the others, by name of the condition.

    For comparison, the same categories also arrive with as much evidence as the others.

    Args:
        images: Images of the set.
        count: Number of references of each of the other categories.
        seed: Seed of the draw.
    """
    draw = Draw(images, seed)
    names = [str(name) for name in draw.random.permutation(draw.names)]
    half, three = names[: len(names) // 2], names[: min(3, len(names) - 2)]
    photos = draw.balanced()

    def arrival(counts: dict[str, int], encoder: str | None = None) -> Arrival:
        new = frozenset(counts)
        by_encoder = dict.fromkeys(new, encoder) if encoder else {}
        by_text = frozenset(name for name, n in counts.items() if not n)
        others = [batch[[draw.truth[number] not in new for number in batch.tolist()]] for batch in photos]
        before = draw.references(dict.fromkeys(names, count) | dict.fromkeys(new, 0))
        after = draw.references(dict.fromkeys(names, count) | counts)
        return Arrival(
            new,
            Trial(before, {"": others}, draw.truth),
            Trial(after, {"": photos}, draw.truth, by_text=by_text, by_encoder=by_encoder),
        )

    one, few = names[0], len(three)
    found = {
        f"1 category, {count} references": arrival({one: count}),
        "1 category, 1 reference": arrival({one: 1}),
        "1 category, 2 references": arrival({one: 2}),
        "1 category, a text alone": arrival({one: 0}),
        f"{few} categories, {count} references": arrival(dict.fromkeys(three, count)),
        f"{few} categories, 1 reference": arrival(dict.fromkeys(three, 1)),
        f"{few} categories: 1, 2, a text alone": arrival(dict(zip(three, (1, 2, 0), strict=False))),
        f"half of the categories, {count} references": arrival(dict.fromkeys(half, count)),
    }
    for encoder in sorted(images.vectors):
        found[f"1 category, {encoder} alone"] = arrival({one: count}, encoder)
        found[f"half of the categories, {encoder} alone"] = arrival(dict.fromkeys(half, count), encoder)
    return found
