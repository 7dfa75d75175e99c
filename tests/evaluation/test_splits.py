"""Splits: their sizes, that they are drawn from the seed and the names alone, and what is refused."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsvec.errors import InvalidInputError
from zsvec.evaluation.splits import KINDS, Split, paper_splits

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = [f"thing {number}" for number in range(100)]
TWO_HUNDRED = [f"kind {number}" for number in range(200)]

prop = settings(deadline=None, max_examples=50)


@pytest.mark.parametrize(
    ("names", "kind", "others", "known", "unknown"),
    [
        (CIFAR10, "6/4", (), 6, 4),
        (CIFAR10, "cifar+10", HUNDRED, 4, 10),
        (CIFAR10, "cifar+50", HUNDRED, 4, 50),
        (TWO_HUNDRED, "20/180", (), 20, 180),
        # 60 % rounded, and one of each at least
        ("ab", "6/4", (), 1, 1),
        ("abc", "6/4", (), 2, 1),
        ("abcd", "6/4", (), 2, 2),
        ("abcde", "6/4", (), 3, 2),
        ("abcdefgh", "6/4", (), 5, 3),
        (HUNDRED, "6/4", (), 60, 40),
        # as few as will do
        ("abcd", "cifar+10", HUNDRED[:10], 4, 10),
        (TWO_HUNDRED[:21], "20/180", (), 20, 1),
    ],
)
def test_sizes(names: tuple[str, ...], kind: str, others: tuple[str, ...], known: int, unknown: int) -> None:
    splits = paper_splits(names, kind, range(20), others)
    assert [(split.name, split.seed) for split in splits] == [(kind, seed) for seed in range(20)]
    for split in splits:
        assert (len(split.known), len(split.unknown)) == (known, unknown)
        assert split.known <= set(names)
        assert split.unknown <= set(others or names)
        assert not split.known & split.unknown
    assert len(known_sets := {split.known for split in splits}) > 1 or known_sets == {frozenset(names)}


def test_a_split_for_each_seed() -> None:
    assert paper_splits(CIFAR10, "6/4", []) == []
    once, again, other = paper_splits(CIFAR10, "6/4", [3, 3, 4])
    assert once == again
    assert once.known != other.known


def test_a_split_is_for_ever() -> None:
    """Pinned: with another draw, results that were published could not be made again."""
    (split,) = paper_splits(CIFAR10, "6/4", [0])
    assert split == Split(
        "6/4",
        0,
        frozenset({"automobile", "deer", "frog", "horse", "ship", "truck"}),
        frozenset({"airplane", "bird", "cat", "dog"}),
    )


def test_what_both_sets_have_is_not_unknown() -> None:
    for split in paper_splits(CIFAR10, "cifar+10", range(20), [*CIFAR10, *HUNDRED[:10]]):
        assert split.unknown == set(HUNDRED[:10])


def test_every_category_is_known_as_often() -> None:
    often = Counter(name for split in paper_splits(CIFAR10, "6/4", range(2000)) for name in split.known)
    # 1200 of 2000 each, with a standard deviation of 22
    assert all(1100 < often[name] < 1300 for name in CIFAR10)
    pairs = Counter(
        name for split in paper_splits(CIFAR10, "6/4", range(2000)) if "cat" in split.known for name in split.known
    )
    # of the about 1200, 5 of 9
    assert all(560 < pairs[name] < 780 for name in CIFAR10 if name != "cat")


@prop
@given(st.sampled_from(KINDS), st.integers(-5, 2**40), st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_counts(kind: str, seed: int, shuffle: random.Random) -> None:
    names, others = TWO_HUNDRED[:30], HUNDRED[:60]
    expected = paper_splits(names, kind, [seed], others)
    names, others = [*names, *names[:7]], [*others, others[0]]
    shuffle.shuffle(names)
    shuffle.shuffle(others)
    assert paper_splits(names, kind, [seed], others) == expected


@pytest.mark.parametrize(
    ("names", "kind", "others", "message"),
    [
        ("a", "6/4", (), "6/4 needs 2 categories or more in names. Got 1"),
        (["a", "a"], "6/4", (), "Got 1"),
        ("abc", "cifar+10", HUNDRED, "needs 4 categories or more in names. Got 3"),
        ("abcd", "cifar+10", HUNDRED[:9], "needs 10 categories or more in others. Got 9"),
        ("abcd", "cifar+10", (), "in others. Got 0"),
        ("abcd", "cifar+50", HUNDRED[:49], "needs 50 categories or more in others. Got 49"),
        ("abcd", "cifar+10", ["a", *HUNDRED[:9]], "Got 9"),
        (TWO_HUNDRED[:20], "20/180", (), "needs 21 categories or more in names. Got 20"),
        ("abcd", "7/3", (), "one of 6/4, cifar.10, cifar.50, 20/180. Got '7/3'"),
    ],
)
def test_too_few(names: list[str], kind: str, others: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        paper_splits(names, kind, [0], others)
