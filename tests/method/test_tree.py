"""The tree over the categories, against tables worked by hand and against forged parents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsvec.method.predict.tree import Tree, ancestors, carried
from zsvec.types import MAX_LEVELS

PARENTS = {"robin": "bird", "wren": "bird", "bird": "animal", "dog": "animal > mammal", "car": ""}
NAMES = ("ant", "bird", "car", "dog", "robin", "wren")
KNOWN, UNKNOWN = np.array([False]), np.array([True])


def tree() -> Tree:
    made = Tree.of(NAMES, PARENTS)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("name", "above"),
    [
        ("robin", ("animal", "bird")),
        ("bird", ("animal",)),
        ("dog", ("animal", "mammal")),
        ("car", ()),
        ("missing", ()),
    ],
)
def test_a_parent_that_is_a_category_brings_its_own_parent(name: str, above: tuple[str, ...]) -> None:
    assert ancestors(name, PARENTS) == above


def test_groups_of_one_name_below_different_groups_are_two_nodes() -> None:
    made = Tree.of(("x", "y"), {"x": "a > other", "y": "b > other"})
    assert made is not None
    assert made.names == ("a", "b", "other", "other", "x", "y")
    np.testing.assert_array_equal(made.sums(np.array([[0.25, 0.75]])), [[0.25, 0.75, 0.25, 0.75, 0.25, 0.75]])


def test_without_a_parent_there_is_no_tree() -> None:
    assert Tree.of(NAMES, {}) is None
    assert Tree.of(NAMES, {"elsewhere": "animal", "ant": ""}) is None


# The table: own probability by category; the sum of a node is the own probability of its category, if any, and of all
# categories below. animal = bird + dog, bird = bird + robin + wren, mammal = dog.
OWN = {"ant": 0.05, "bird": 0.1, "car": 0.2, "dog": 0.15, "robin": 0.3, "wren": 0.2}
SUMS = {"animal": 0.75, "ant": 0.05, "car": 0.2, "bird": 0.6, "mammal": 0.15, "robin": 0.3, "wren": 0.2, "dog": 0.15}


def test_sums_worked_by_hand() -> None:
    made = tree()
    found = made.sums(np.array([[OWN[name] for name in NAMES]]))
    assert dict(zip(made.names, found[0].tolist(), strict=True)) == pytest.approx(SUMS)


@pytest.mark.parametrize(
    ("own", "unknown", "path"),
    [
        (OWN, KNOWN, [("animal", 0.75), ("bird", 0.6), ("robin", 0.3)]),
        (OWN, UNKNOWN, [("animal", 0.75), ("bird", 0.6)]),
        ({"bird": 0.5, "robin": 0.4, "ant": 0.1}, KNOWN, [("animal", 0.9), ("bird", 0.9)]),  # the bird itself
        ({"bird": 0.5, "robin": 0.4, "ant": 0.1}, UNKNOWN, [("animal", 0.9), ("bird", 0.9)]),
        ({"car": 0.7, "dog": 0.3}, KNOWN, [("car", 0.7)]),
        ({"car": 0.7, "dog": 0.3}, UNKNOWN, []),
        ({"car": 0.4, "dog": 0.35, "wren": 0.25}, KNOWN, [("animal", 0.6), ("mammal", 0.35), ("dog", 0.35)]),
    ],
)
def test_a_path_leads_down_to_the_most_probable_child(
    own: dict[str, float], unknown: np.ndarray, path: list[tuple[str, float]]
) -> None:
    (found,) = tree().paths(np.array([[own.get(name, 0.0) for name in NAMES]]), unknown)
    assert [name for name, _ in found] == [name for name, _ in path]
    assert [p for _, p in found] == pytest.approx([p for _, p in path])


def test_a_node_above_all_categories_tells_nothing_about_an_unknown_image() -> None:
    own = np.array([[0.6, 0.3, 0.1]])
    names = ("dog", "robin", "wren")
    made = Tree.of(names, {"dog": "thing > animal", "robin": "thing > animal > bird", "wren": "thing > animal > bird"})
    assert made is not None
    assert made.paths(own, KNOWN) == [(("thing", 1.0), ("animal", 1.0), ("dog", 0.6))]
    assert made.paths(own, UNKNOWN) == [()]
    ((found,),) = made.paths(np.array([[0.4, 0.3, 0.3]]), UNKNOWN)
    assert found == ("bird", pytest.approx(0.6))


def test_a_category_above_all_others_tells_nothing_about_an_unknown_image() -> None:
    made = Tree.of(("bird", "robin"), {"robin": "bird > songbird"})
    assert made is not None
    assert made.paths(np.array([[0.2, 0.8]]), UNKNOWN) == [(("songbird", 0.8),)]
    assert made.paths(np.array([[0.9, 0.1]]), UNKNOWN) == [()]
    assert made.paths(np.array([[0.9, 0.1]]), KNOWN) == [(("bird", 1.0),)]


@pytest.mark.parametrize(
    ("parents", "name", "above"),
    [
        ({"a": "a"}, "a", ()),
        ({"a": "b", "b": "a"}, "a", ("b",)),
        ({"a": "b", "b": "a"}, "b", ("a",)),
        ({"a": "x > b", "b": "a"}, "b", ("x", "b", "a")),
        ({"a": "b", "b": "c", "c": "b"}, "a", ("c", "b")),
    ],
)
def test_a_cycle_ends_before_a_category_that_was_met(
    parents: dict[str, str], name: str, above: tuple[str, ...]
) -> None:
    assert ancestors(name, parents) == above


def test_a_path_has_at_most_32_levels() -> None:
    chain = {f"{i}": f"{i + 1}" for i in range(1000)}
    assert ancestors("0", chain) == tuple(str(i) for i in range(MAX_LEVELS, 0, -1))


texts = st.lists(st.sampled_from("abcdef"), min_size=0, max_size=4).map(" > ".join)


@given(parents=st.dictionaries(st.sampled_from("abcdef"), texts), seed=st.integers(0, 2**32 - 1))
def test_any_parents_give_a_tree_of_probabilities(parents: dict[str, str], seed: int) -> None:
    names = tuple("abcdef")
    made = Tree.of(names, parents)
    if made is None:
        assert not any(parents.values())
        return
    own = np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=3)
    sums = made.sums(own)
    assert ((sums >= 0) & (sums <= 1)).all()
    top = sums[:, made.children[0] : made.children[1]].sum(axis=1)
    np.testing.assert_allclose(top, 1)  # every category is below one topmost node
    for node in range(len(made.names)):
        below = sums[:, made.children[node + 1] : made.children[node + 2]]
        column = made.columns[node]
        np.testing.assert_allclose(sums[:, node], below.sum(axis=1) + (own[:, column] if column >= 0 else 0))
        assert (sums[:, [node]] >= below).all()
    for row, path in zip(sums, made.paths(own, np.array([False, True, False])), strict=True):
        assert [p for _, p in path] == sorted((p for _, p in path), reverse=True)
        if path:
            assert path[-1][1] in row


@given(parents=st.dictionaries(st.sampled_from("abcdef"), texts), source=st.sampled_from("abcdef"))
def test_after_a_rename_the_same_categories_are_below(parents: dict[str, str], source: str) -> None:
    node = (*ancestors(source, parents), source)
    new = (*node[:-1], "new")
    every = {name: (*ancestors(name, parents), name) for name in {*parents, source}}
    tops = {parents[path[0]] for path in every.values() if path[0] in parents}  # parents at which a cycle was ended
    own = any(name in parent.split(" > ") for name, parent in parents.items())
    if own or any(tops) or any(len(set(path)) < len(path) for path in every.values()):
        return  # a writer refuses such parents; a reader only ends them
    after = {("new" if name == source else name): parent for name, parent in parents.items()}
    after |= carried(parents, source, new)
    for name in parents.keys() - {source}:
        above = ancestors(name, parents)
        expected = (*new, *above[len(node) :]) if above[: len(node)] == node else above
        assert ancestors(name, after) == expected


def test_a_merge_into_a_category_below_changes_no_parent() -> None:
    assert carried(PARENTS, "bird", ("animal", "bird", "robin")) == {}


def test_children_follow_into_another_branch() -> None:
    parents = {**PARENTS, "owl": "animal > bird", "eagle owl": "owl", "heron": "animal > bird > wader"}
    assert carried(parents, "bird", ("thing", "toy")) == {
        "robin": "toy",
        "wren": "toy",
        "owl": "thing > toy",
        "heron": "thing > toy > wader",
    }
