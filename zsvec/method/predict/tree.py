"""The tree over the categories: probabilities are summed upwards, from the categories to the groups above.

The parent of a category is a chain of names, topmost first, such as ``animal > bird``. If the topmost name is itself a
category with a parent, the chain goes on above this category. A node is known by its whole path, like a folder in a
file system, so two groups of one name under different groups are two nodes. Any writer may have forged the parents.
Therefore a path ends before a category that it has met already, and after `MAX_LEVELS` names.

A node whose sum reaches the asked accuracy answers, the deepest one first: Deng, Krause, Berg and Fei-Fei (2012),
"Hedging your bets: optimizing accuracy-specificity trade-offs in large scale visual recognition". Since the fused
probabilities are calibrated, so are the sums, and no threshold is learned (`scripts/tree.py` measures this).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.types import MAX_LEVELS, PARENT_MARK, Ranking, names_of_parent


def ancestors(name: str, parents: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the names of the nodes above a category, topmost first; at most `MAX_LEVELS`, the nearest ones.

    Args:
        name: Name of the category.
        parents: Parents of categories, by name. Categories without a parent may be missing.
    """
    found: list[str] = []  # nearest first
    met = {name}
    while (above := names_of_parent(parents.get(name, ""))) and len(found) < MAX_LEVELS:
        name = above[0]
        if name in met:
            found += above[:0:-1]
            break
        met.add(name)
        found += above[::-1]
    return tuple(found[:MAX_LEVELS][::-1])


def carried(parents: Mapping[str, str], source: str, path: Sequence[str]) -> dict[str, str]:
    """Returns the new parents of the categories below a category that gets another path.

    Args:
        parents: Parents of categories, by name, before the change.
        source: Name of the category.
        path: The new names of the node, topmost first and the node itself last. If this node is below `source`, no
            parent changes.

    Returns:
        By category, the new parent. Categories that do not name the node themselves are missing.
    """
    node = (*ancestors(source, parents), source)
    if node == tuple(path[: len(node)]):
        return {}
    changed: dict[str, str] = {}
    for name, parent in parents.items():
        above, own = ancestors(name, parents), names_of_parent(parent)
        inherited = len(above) - len(own)  # names that a category above adds
        if name != source and above[: len(node)] == node and inherited < len(node):
            new = path[-1:] if inherited == len(node) - 1 else path
            changed[name] = PARENT_MARK.join((*new, *above[len(node) :]))
    return changed


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """Nodes of one level that have the same distance from the top.

    Attributes:
        nodes: The nodes of the level.
        starts: int ``(n_parents,)``, position within `nodes` of the first child of each parent.
        parents: int ``(n_parents,)``, nodes of the level above that have children.
    """

    nodes: slice
    starts: NDArray[np.intp]
    parents: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A tree of nodes, numbered level by level from the top, so that the children of each node follow each other.

    Attributes:
        names: Name of each node.
        children: Boundaries ``(n_nodes + 2,)``: the topmost nodes are ``children[0]:children[1]``, and the children of
            node ``i`` are ``children[i + 1]:children[i + 2]``.
        nodes: int ``(n_categories,)``, the node of each category.
        columns: The category of each node, or -1 for a group.
        levels: The levels, from the second on.
    """

    names: tuple[str, ...]
    children: tuple[int, ...]
    nodes: NDArray[np.intp]
    columns: tuple[int, ...]
    levels: tuple[_Level, ...]

    @classmethod
    def of(cls, names: Sequence[str], parents: Mapping[str, str]) -> Tree | None:
        """Returns the tree over these categories; ``None`` if none of them has a parent.

        Args:
            names: Names of the categories.
            parents: Parents by name, also of other categories. Categories without a parent may be missing.
        """
        if not any(map(parents.get, names)):
            return None
        paths = [(*ancestors(name, parents), name) for name in names]
        by_level: list[set[tuple[str, ...]]] = []
        for path in paths:
            for level in range(len(path)):
                if level == len(by_level):
                    by_level.append(set())
                by_level[level].add(path[: level + 1])
        ordered = sorted(by_level[0])
        number = {node: i for i, node in enumerate(ordered)}
        levels = []
        for nodes in by_level[1:]:
            begin = len(ordered)
            ordered += sorted(nodes, key=lambda node: (number[node[:-1]], node[-1]))
            number.update((node, i) for i, node in enumerate(ordered[begin:], begin))
            above = np.array([number[node[:-1]] for node in ordered[begin:]], dtype=np.intp)
            parent, starts = np.unique(above, return_index=True)
            levels.append(_Level(slice(begin, len(ordered)), starts.astype(np.intp), parent))
        counts = [0, len(by_level[0]), *[0] * len(ordered)]
        for node in ordered[len(by_level[0]) :]:
            counts[number[node[:-1]] + 2] += 1
        own = [number[path] for path in paths]
        columns = [-1] * len(ordered)
        for column, node_of_category in enumerate(own):
            columns[node_of_category] = column
        return cls(
            names=tuple(node[-1] for node in ordered),
            children=tuple(accumulate(counts)),
            nodes=np.array(own, dtype=np.intp),
            columns=tuple(columns),
            levels=tuple(levels),
        )

    def sums(self, probabilities: Doubles) -> Doubles:
        """Returns the probability of each node: of its own category, if any, and of all nodes below.

        Args:
            probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.

        Returns:
            float64 ``(n_images, n_nodes)``, 0 to 1. No node has less than a node below.
        """
        sums = np.zeros((len(probabilities), len(self.names)))
        sums[:, self.nodes] = probabilities
        for level in reversed(self.levels):
            sums[:, level.parents] += np.add.reduceat(sums[:, level.nodes], level.starts, axis=1)
        return np.minimum(sums, 1.0, out=sums)

    def _above_all(self) -> int:
        """Returns the number of nodes that are above all categories."""
        node, number = -1, 0
        while (node < 0 or self.columns[node] < 0) and self.children[node + 2] - self.children[node + 1] == 1:
            node = self.children[node + 1]
            number += 1
        return number

    def paths(self, probabilities: Doubles, unknown: NDArray[np.bool_]) -> list[Ranking]:
        """Returns the nodes that lead down to the most probable child on every level, with their probabilities.

        A path ends at a category that is more probable than any node below. Every node with a probability above one
        half is on the path.

        Args:
            probabilities: As in `sums`.
            unknown: bool ``(n_images,)``. The path of an unknown image has only nodes with other nodes below, and no
                node above all categories: probabilities compare the categories, so this node always has 1.
        """
        found = []
        for own, row, is_unknown in zip(probabilities, self.sums(probabilities), unknown.tolist(), strict=True):
            path: list[int] = []
            node = -1
            while (begin := self.children[node + 1]) < (end := self.children[node + 2]):
                best = begin + int(row[begin:end].argmax())
                if node >= 0 and self.columns[node] >= 0 and own[self.columns[node]] >= row[best]:
                    break
                node = best
                path.append(node)
            else:
                if is_unknown:
                    path.pop()
            if is_unknown:
                del path[: self._above_all()]
            found.append(tuple((self.names[node], float(row[node])) for node in path))
        return found
