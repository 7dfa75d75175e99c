"""Known and unknown categories of the experiments on unknown images."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from zsvec.errors import InvalidInputError, shown

KINDS = ("6/4", "cifar+10", "cifar+50", "20/180")


@dataclass(frozen=True, slots=True)
class Split:
    """Categories of one experiment.

    Attributes:
        name: A member of `KINDS`.
        seed: What it was drawn with.
        known: The closed set: categories that an image may be of.
        unknown: The open set: categories whose images are to be rejected. None of them is known.
    """

    name: str
    seed: int
    known: frozenset[str]
    unknown: frozenset[str]


def paper_splits(names: Sequence[str], kind: str, seeds: Sequence[int], others: Sequence[str] = ()) -> list[Split]:
    """Draw the splits of Yin & Jiang (2024), section 4.1, which are those of Neal et al. (2018).

    - ``6/4``: of `names`, 60 % are known, rounded (half up), the rest is not; at least one each.
    - ``cifar+10``, ``cifar+50``: 4 of `names` (CIFAR-10) are known, 10 or 50 of `others` (CIFAR-100) are not.
      The paper draws all of them at random, and so does this; Neal et al. draw from vehicles and from animals.
      What is in `names` as well is not taken from `others`.
    - ``20/180``: 20 of `names` are known, all the rest is not.

    A draw depends on the seed and on which names there are: not on their order or repetition, nor on the version of
    Python or numpy, for names are ordered by a SHA-256 of seed and name.

    Args:
        names: Categories.
        kind: A member of `KINDS`.
        seeds: One for each split.
        others: Categories of the other data set, for ``cifar+…``; else unused.

    Raises:
        InvalidInputError: There is no such kind, or there are too few categories for it.
    """
    if kind not in KINDS:
        raise InvalidInputError(f"split must be one of {', '.join(KINDS)}. Got {shown(kind)} instead")
    own = set(names)
    if kind.startswith("cifar+"):
        foreign, n_unknown = set(others) - own, int(kind.removeprefix("cifar+"))
        _enough(kind, own, 4, "names")
        _enough(kind, foreign, n_unknown, "others")
        return [
            Split(kind, seed, frozenset(_drawn(own, seed)[:4]), frozenset(_drawn(foreign, seed)[:n_unknown]))
            for seed in seeds
        ]
    if kind == "6/4":
        _enough(kind, own, 2, "names")
        n_known = min(max((6 * len(own) + 5) // 10, 1), len(own) - 1)
    else:
        n_known = 20
        _enough(kind, own, n_known + 1, "names")
    drawn = [(seed, _drawn(own, seed)) for seed in seeds]
    return [Split(kind, seed, frozenset(order[:n_known]), frozenset(order[n_known:])) for seed, order in drawn]


def _drawn(names: Collection[str], seed: int) -> list[str]:
    """The names in random order."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def _enough(kind: str, names: Collection[str], least: int, argument: str) -> None:
    if len(names) < least:
        raise InvalidInputError(
            f"a split {kind} needs {least} categories or more in {argument}. Got {len(names)}; give all of the data set"
        )
