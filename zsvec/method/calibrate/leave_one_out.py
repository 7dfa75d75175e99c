"""Scores each stored reference image against all other references, as if it were a new image of its category.

Calibration learns from these labelled examples. They need only the stored vectors: no additional images and no encoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, Floats, Key, slices
from zsvec.method.calibration import LOG_COUNT
from zsvec.method.predict.background import Background
from zsvec.method.predict.gda import Removal, left_out
from zsvec.method.predict.reference_aggregation import Similarities, aggregate
from zsvec.method.quality.scenes import TWIN, Pairs, Scenes, agreed, image_rows, scenes
from zsvec.method.similarities import ExpertSimilarities, References, SearchResult, category_names
from zsvec.types import encoder_and_modality, expert_name

LARGEST_SAMPLE = 2048
"""Maximum number of images that are left out; smaller for stores with many categories."""
_LARGEST_TABLE = 2_000_000  # maximum of images times categories
_SMALLEST_SAMPLE = 256  # images; takes precedence over _LARGEST_TABLE
_BLOCK = 2**24  # similarities in memory at once


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Similarities of left-out reference images to every category.

    Attributes:
        categories: All categories, by name.
        labels: int ``(n_images,)``, position in `categories` of each image's category.
        coverage: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        aggregations: By expert and aggregation, float32 ``(n_images, n_categories)``. NaN if the expert has no
            reference of the category outside the scene of the image, or no vector of the image. Image experts also have
            `LOG_COUNT`, and `CENTRED` and `GDA` if they have a background.
        hashes: Content hash of each image.
        copies: For each image with copies in other categories, the category and hash of each copy. In a store of one
            category an image, these images have no row in the arrays, unless every image has copies.
        scenes: For each image, a content hash that the images of its scene share. Empty if every image is a scene of
            its own.
    """

    categories: tuple[str, ...]
    labels: NDArray[np.intp]
    coverage: NDArray[np.bool_]
    aggregations: Mapping[str, Mapping[str, Floats]]
    hashes: tuple[str, ...] = ()
    copies: Mapping[Key, set[Key]] = field(default_factory=dict)
    scenes: tuple[str, ...] = ()

    @property
    def shares(self) -> Doubles:
        """1 / the number of left-out images of the scene of each image, float64 ``(n_images,)``."""
        scenes = list(zip(self.labels.tolist(), self.scenes or self.hashes, strict=True))
        count = Counter(scenes)
        return np.array([1 / count[scene] for scene in scenes])

    def belongs(self) -> NDArray[np.bool_]:
        """Returns the categories that have each image or a copy of it, bool ``(n_images, n_categories)``."""
        found: NDArray[np.bool_] = self.labels[:, None] == np.arange(len(self.categories))
        column = {name: c for c, name in enumerate(self.categories)}
        for row, digest in zip(found, self.hashes, strict=bool(self.hashes)):
            own = self.categories[int(row.argmax())]
            row[[column[name] for name, _ in self.copies.get((own, digest), ()) if name in column]] = True
        return found

    def complete(self, evidence: Doubles) -> NDArray[np.bool_]:
        """Returns, for each image, whether every expert has evidence for every category that the expert covers.

        Args:
            evidence: float64 ``(n_experts, n_images, n_categories)``; NaN stands for no evidence.

        Returns:
            bool ``(n_images,)``.
        """
        whole: NDArray[np.bool_] = (np.isnan(evidence) == ~self.coverage[:, None]).all(axis=(0, 2))
        return whole

    def of(self, experts: Collection[str]) -> LeftOut:
        """Returns the similarities of some experts."""
        chosen = [expert in experts for expert in self.aggregations]
        some = {expert: found for expert, found in self.aggregations.items() if expert in experts}
        return replace(self, coverage=self.coverage[chosen], aggregations=some)

    def alone(self) -> NDArray[np.bool_]:
        """Returns whether the category of each image has no image of another scene, bool ``(n_images,)``."""
        rows = np.arange(len(self.labels))
        own = np.stack([next(iter(found.values()))[rows, self.labels] for found in self.aggregations.values()])
        alone: NDArray[np.bool_] = np.any(np.isnan(own) & self.coverage[:, self.labels], axis=0)
        return alone

    @property
    def skipped(self) -> int:
        """Number of images that the sample leaves out, because another category has a copy."""
        names = [self.categories[label] for label in self.labels]
        return len(self.copies.keys() - set(zip(names, self.hashes, strict=bool(self.hashes))))

    def judged(self) -> LeftOut:
        """Returns the sample without the categories that have images, of which none was left out.

        A reference that is alone in its category cannot be compared with another one. Every image that can be left out
        has another category, so the sample suggests that this category is never right. The coefficients of a logit
        model that are learned from choices among some categories hold for all categories (McFadden, "Modelling the
        choice of residential location", 1978).

        The same holds for a category without an image in the sample. A category of texts alone stays, as its evidence
        is neutral for each image expert.
        """
        alone = self.alone()
        image = [encoder_and_modality(expert)[1] == "image" for expert in self.aggregations]
        kept = np.union1d(self.labels[~alone], np.flatnonzero(~self.coverage[image].any(axis=0)))
        if alone.all() or len(kept) == len(self.categories):
            return self
        rows = np.flatnonzero(np.isin(self.labels, kept))
        return replace(
            self,
            categories=tuple(self.categories[column] for column in kept),
            labels=np.searchsorted(kept, self.labels[rows]),
            coverage=self.coverage[:, kept],
            aggregations={
                expert: {name: values[np.ix_(rows, kept)] for name, values in found.items()}
                for expert, found in self.aggregations.items()
            },
            hashes=tuple(self.hashes[row] for row in rows) if self.hashes else (),
            scenes=tuple(self.scenes[row] for row in rows) if self.scenes else (),
        )

    def covers(self, expert: str) -> NDArray[np.bool_]:
        """Returns whether an expert has references of each category, bool ``(n_categories,)``."""
        covered: NDArray[np.bool_] = self.coverage[list(self.aggregations).index(expert)]
        return covered

    def uneven(self, expert: str) -> bool:
        """Returns whether the categories of an image expert differ in number of references; False for a text expert."""
        logs = self.aggregations[expert].get(LOG_COUNT)
        if logs is None:
            return False
        others = logs[(self.labels[:, None] != np.arange(len(self.categories))) & ~np.isnan(logs)]
        return bool(others.size and np.ptp(others) > 0)


def largest_sample(n_categories: int) -> int:
    """Returns the maximum number of reference images that are left out of a store with ``n_categories`` categories."""
    return min(LARGEST_SAMPLE, max(_SMALLEST_SAMPLE, _LARGEST_TABLE // max(1, n_categories)))


def leave_one_out(
    references: Mapping[str, References],
    aggregations: Sequence[str],
    top_m: int,
    most: int,
    backgrounds: Mapping[str, Background],
    *,
    multilabel: bool = False,
) -> LeftOut | None:
    """Scores a sample of reference images. Each image is scored against all references but itself.

    Text experts are scored on the reference images of their encoder. References of the same category that show the same
    scene (`scenes`) are left out as well, because they are not independent of the image. The right label of an image
    with a copy in another category is not known yet. Such images are skipped, unless all images have such copies.

    With `multilabel`, an image belongs to every category that has a copy. It has a row for each of these categories,
    and is left out of all of them, each time with its scene.

    Args:
        references: References of each expert, by name.
        aggregations: Names in `reference_aggregation.AGGREGATIONS`.
        top_m: Number of references that ``top_mean`` averages.
        most: Maximum number of images. If the store has more, each category contributes an equal number as far as
            possible, chosen by hash.
        backgrounds: Backgrounds by expert, for `CENTRED` and `GDA`; none with `multilabel`.
        multilabel: Whether an image may belong to several categories.

    Returns:
        The similarities, or ``None`` if there is no reference image or no second category.
    """
    every: set[Key] = set().union(*image_rows(references).values())
    images = evenly(every, most)
    if multilabel:
        hashes = {digest for _, digest in images}
        images = sorted(key for key in every if key[1] in hashes)
    blocks = each_left_out(
        references, aggregations, top_m, max(1, len(images)), backgrounds, images, multilabel=multilabel
    )
    return next(blocks, None)


def each_left_out(
    references: Mapping[str, References],
    aggregations: Sequence[str],
    top_m: int,
    most: int,
    backgrounds: Mapping[str, Background],
    images: Sequence[Key] | None = None,
    *,
    multilabel: bool = False,
) -> Iterator[LeftOut]:
    """Yields the result of `leave_one_out` for all reference images, in blocks.

    Args:
        references: References of each expert, by name.
        aggregations: As in `leave_one_out`.
        top_m: As in `leave_one_out`.
        most: Maximum number of images in a block.
        backgrounds: As in `leave_one_out`.
        images: The images to score, instead of all reference images.
        multilabel: As in `leave_one_out`. A block has the row of each category of an image only if `images` are given.
    """
    rows = image_rows(references)
    images = sorted(set().union(*rows.values())) if images is None else images
    if len(category_names(references)) < 2:
        return
    together = scenes(references, rows, images, multilabel=multilabel)
    for block in slices(len(images), most):
        yield _left_out(references, rows, images[block], together, aggregations, top_m, backgrounds, multilabel)


def _left_out(
    references: Mapping[str, References],
    rows: Mapping[str, Mapping[Key, int]],
    images: Sequence[Key],
    together: Scenes,
    aggregations: Sequence[str],
    top_m: int,
    backgrounds: Mapping[str, Background],
    multilabel: bool,
) -> LeftOut:
    """Scores images as `leave_one_out` does; needs at least one image and two categories."""
    categories = tuple(category_names(references))
    alike: dict[str, Pairs] = {expert: set() for expert in rows}
    scored = {}
    for expert, by_expert in references.items():
        encoder, modality = encoder_and_modality(expert)
        asked = expert_name(encoder, "image")
        queries = references[asked].vectors if asked in rows else by_expert.vectors[:0]
        row = np.array([rows.get(asked, {}).get(key, -1) for key in images], dtype=np.intp)
        names = (*aggregations, LOG_COUNT) if modality == "image" else aggregations
        scored[expert] = {name: np.full((len(images), len(categories)), np.nan, np.float32) for name in names}
        columns = np.searchsorted(categories, by_expert.names)
        embedded = np.flatnonzero(row >= 0)
        for part in slices(len(embedded), max(1, _BLOCK // len(by_expert.vectors))):
            block = embedded[part]
            values = queries[row[block]] @ by_expert.vectors.T
            if modality == "image":
                alike[expert] |= _alike_elsewhere(by_expert, values, row[block])
            found = _score(by_expert, values, row[block] if modality == "image" else None, together, names, top_m)
            for name, similarity in found.items():
                scored[expert][name][np.ix_(block, columns)] = similarity
    copies: dict[Key, set[Key]] = {}
    for one, other in agreed(alike, rows):
        copies.setdefault(one, set()).add(other)
    unique = np.array([key not in copies for key in images])
    if multilabel:
        _leave_out_everywhere(scored, categories, images, copies)
    elif unique.any():
        images = [key for key in images if key not in copies]
        scored = {expert: {name: found[unique] for name, found in by.items()} for expert, by in scored.items()}
    for expert, background in backgrounds.items():
        row_of = rows[expert]
        removals = _removals(references[expert], row_of, images, together)
        ordered = sorted(removals, key=lambda i: int(removals[i].rows[0]))
        columns = np.searchsorted(categories, references[expert].names)
        queried = [row_of[images[i]] for i in ordered]
        without = left_out(references[expert], background, queried, [removals[i] for i in ordered])
        for name, similarity in without.items():
            scored[expert][name] = np.full((len(images), len(categories)), np.nan, np.float32)
            scored[expert][name][np.ix_(np.array(ordered, dtype=np.intp), columns)] = similarity
    labels = np.searchsorted(categories, [name for name, _ in images])
    coverage = np.stack([np.isin(categories, by_expert.names) for by_expert in references.values()])
    scene_of = tuple(min(together.get(key, key[1:])) for key in images)
    return LeftOut(categories, labels, coverage, scored, tuple(digest for _, digest in images), copies, scene_of)


def _leave_out_everywhere(
    scored: Mapping[str, Mapping[str, Floats]],
    categories: Sequence[str],
    images: Sequence[Key],
    copies: Mapping[Key, Collection[Key]],
) -> None:
    """Leaves images out of every category that has a copy, in place.

    The row of a copy has the similarity to its own category without the picture. NaN if the copy is not in `images`.
    """
    row_of, column = ({key: i for i, key in enumerate(keys)} for keys in (images, categories))
    pairs = [
        (row, row_of.get(copy, -1), column[copy[0]])
        for row, key in enumerate(images)
        for copy in sorted(copies.get(key, ()))
    ]
    if not pairs:
        return
    rows, others, columns = np.array(pairs).T
    for similarities in scored.values():
        for similarity in similarities.values():
            similarity[rows, columns] = np.where(others >= 0, similarity[others, columns], np.nan)


def left_out_of_search(
    found: SearchResult,
    images: Sequence[Key],
    groups: Scenes,
    aggregation: str,
    top_m: int,
    *,
    multilabel: bool = False,
) -> LeftOut:
    """Scores reference images by a search that returned only the references nearest to each.

    As `leave_one_out`, with two differences. A reference that the search did not return counts with the bound, as it
    does when a new image is classified. And of the scene of an image, only copies (`TWIN`) and the image's group are
    left out.

    Args:
        found: The result of a search for the images. `ExpertSimilarities.nearest` has every reference that the search
            returned, and the similarities are those of `reference_aggregation`.
        images: Category and content hash of each image.
        groups: For each image in a group, the content hashes of the group.
        aggregation: A name in `reference_aggregation.AGGREGATIONS`, but not ``prototype``.
        top_m: Number of references that ``top_mean`` averages.
        multilabel: Whether to leave an image out of every category that has a copy, instead of its own alone.

    Returns:
        The scores of all images, images with copies in other categories included.
    """
    compared = [expert for expert in found.experts if expert.modality == "image"]
    copies: dict[Key, set[Key]] = {}
    left_out_hashes: list[dict[str, set[str]]] = []  # by category
    for i, (name, digest) in enumerate(images):
        twins = [{(n.category, n.hash) for n in one.nearest[i] if n.similarity >= TWIN} for one in compared]
        same = set.intersection(*twins) - {(name, digest)} if twins else set()
        if elsewhere := {key for key in same if key[0] != name}:
            copies[name, digest] = elsewhere
        without = {name: {digest, *groups.get((name, digest), ())}}
        for category, other in same:
            if multilabel or category == name:
                without.setdefault(category, set()).add(other)
        left_out_hashes.append(without)
    labels = np.searchsorted(found.categories, [name for name, _ in images])
    coverage = np.zeros((len(found.experts), len(found.categories)), dtype=bool)
    scored: dict[str, dict[str, Floats]] = {}
    for covered, expert in zip(coverage, found.experts, strict=True):
        covered[expert.coverage] = True
        names = (aggregation, LOG_COUNT) if expert.modality == "image" else (aggregation,)
        scored[expert.name] = {name: np.full((len(images), covered.size), np.nan, np.float32) for name in names}
        for name, values in scored[expert.name].items():
            values[:, expert.coverage] = aggregate(expert.similarities, name, top_m)
        if expert.modality == "image":
            _leave_out(scored[expert.name], expert, found.categories, left_out_hashes, top_m)
    scene_of = tuple(min(without[name]) for (name, _), without in zip(images, left_out_hashes, strict=True))
    return LeftOut(found.categories, labels, coverage, scored, tuple(digest for _, digest in images), copies, scene_of)


def _leave_out(
    scored: Mapping[str, Floats],
    expert: ExpertSimilarities,
    categories: Sequence[str],
    hashes: Sequence[Mapping[str, Collection[str]]],
    top_m: int,
) -> None:
    """Leaves references out of the scores of one image expert, in place.

    Args:
        scored: By aggregation, float32 ``(n_images, n_categories)``.
        expert: Similarities of the images.
        categories: Names of the columns.
        hashes: For each image, the content hashes of the references to leave out, by category.
        top_m: Number of references that ``top_mean`` averages.
    """
    position = {categories[column]: i for i, column in enumerate(expert.coverage)}
    for i, by_category in enumerate(hashes):
        for category, without in by_category.items():
            rest = _without(expert, i, category, position[category], without)
            for name, values in scored.items():
                values[i, expert.coverage[position[category]]] = aggregate(rest, name, top_m)[0, 0] if rest else np.nan


def _without(
    expert: ExpertSimilarities, image: int, name: str, category: int, hashes: Collection[str]
) -> Similarities | None:
    """Returns an image's similarities to its own category without some references; ``None`` if no other is left.

    Args:
        expert: Similarities of all images.
        image: Row of the image.
        name: Name of its category.
        category: Position of the category in the expert's coverage.
        hashes: Content hashes of the references to leave out.
    """
    found = cast("Similarities", expert.similarities)
    others = [n.similarity for n in expert.nearest[image] if n.category == name and n.hash not in hashes]
    count = max(int(found.counts[category]) - len(hashes), len(others))
    if not count:
        return None
    return Similarities(
        values=np.array([others], dtype=np.float32),
        starts=np.array([0, len(others)], dtype=np.intp),
        counts=np.array([count], dtype=np.intp),
        norms=np.array([np.nan], dtype=np.float32),
        bound=found.bound[image : image + 1],
    )


def joined(blocks: Sequence[LeftOut], *, multilabel: bool = False) -> LeftOut:
    """Returns the images of all blocks in one result.

    Categories and experts that some block lacks are left out, since the store may have changed between the blocks. So
    are images with copies in other categories, unless all images have such copies or images may belong to several
    categories.

    Args:
        blocks: Results of `left_out_of_search`, at least one.
        multilabel: Whether an image may belong to several categories.
    """
    categories = sorted(set.intersection(*(set(block.categories) for block in blocks)))
    experts = [name for name in blocks[0].aggregations if all(name in block.aggregations for block in blocks)]
    copies = {key: others for block in blocks for key, others in block.copies.items()}
    keys = [(block.categories[c], h) for block in blocks for c, h in zip(block.labels, block.hashes, strict=True)]
    present = np.isin([name for name, _ in keys], categories)
    unique = present & [key not in copies for key in keys]
    kept = np.flatnonzero(unique if unique.any() and not multilabel else present)
    columns = [np.searchsorted(block.categories, categories) for block in blocks]
    pairs = list(zip(blocks, columns, strict=True))
    coverage = [np.all([block.covers(name)[places] for block, places in pairs], axis=0) for name in experts]
    scored = {
        name: {
            how: np.where(covered, np.concatenate([b.aggregations[name][how][:, at] for b, at in pairs])[kept], np.nan)
            for how in blocks[0].aggregations[name]
        }
        for name, covered in zip(experts, coverage, strict=True)
    }
    images = [keys[i] for i in kept]
    scene_of = [scene for block in blocks for scene in block.scenes or block.hashes]
    labels = np.searchsorted(categories, [name for name, _ in images])
    return LeftOut(
        tuple(categories),
        labels,
        np.stack(coverage),
        scored,
        tuple(digest for _, digest in images),
        copies,
        tuple(scene_of[i] for i in kept),
    )


def _alike_elsewhere(references: References, values: Floats, itself: NDArray[np.intp]) -> Pairs:
    """Returns pairs of images of different categories that show the same picture under one encoder."""
    names, hashes = references.names, references.hashes
    images, others = np.nonzero(values >= TWIN)
    own, theirs = references.owners(itself), references.owners(others)
    return {
        ((names[own[i]], hashes[itself[i]]), (names[c], hashes[j]))
        for i, j, c in zip(images, others, theirs, strict=True)
        if own[i] != c
    }


def _removals(
    references: References, row_of: Mapping[Key, int], images: Sequence[Key], together: Scenes
) -> dict[int, Removal]:
    """Returns, by position in ``images``, the scene of each image that the expert has; one object per scene."""
    found: dict[int, Removal] = {}
    of_scene: dict[int, Removal] = {}
    for i, (name, digest) in enumerate(images):
        if (name, digest) not in row_of:
            continue
        scene = together.get((name, digest))
        if scene is None or id(scene) not in of_scene:
            rows = np.array(sorted(row_of[name, h] for h in scene or [digest] if (name, h) in row_of), dtype=np.intp)
            removal = Removal(int(references.owners(rows[0])), rows)
            of_scene[id(scene)] = removal
        found[i] = of_scene[id(scene)]
    return found


def evenly(images: set[Key], most: int) -> list[Key]:
    """Returns at most ``most`` images, sorted. As far as possible, every category contributes the same number.

    Images of a category are taken in the order of their hashes, one of each category per round. If the last round has
    too few places, hashes of the category names decide. Alphabetical order would be biased, because categories with a
    common prefix are often similar.
    """
    ranks: dict[str, int] = {}
    ranked = []
    for name, digest in sorted(images):
        ranks[name] = ranks.get(name, -1) + 1
        ranked.append((ranks[name], sha256(name.encode()).digest(), name, digest))
    return sorted((name, digest) for *_, name, digest in sorted(ranked)[:most])


def _score(
    references: References,
    values: Floats,
    itself: NDArray[np.intp] | None,
    together: Scenes,
    aggregations: Sequence[str],
    top_m: int,
) -> dict[str, Floats]:
    """Returns the similarity of each query to each category, by aggregation.

    If the queries are references, `itself` is the row of each query. The query's scene is then left out of its
    category.
    """
    every = Similarities.of_all(values, references)
    found = {name: aggregate(every, name, top_m) for name in aggregations}
    if itself is not None:
        own = references.owners(itself)
        order, others = _other_references(references, values, itself, own, together)
        for name, similarity in found.items():
            similarity[np.arange(len(values)), own] = np.nan
            similarity[order, own[order]] = aggregate(others, name, top_m)[0] if order.size else np.nan
    return found


def _other_references(
    references: References, values: Floats, itself: NDArray[np.intp], own: NDArray[np.intp], together: Scenes
) -> tuple[NDArray[np.intp], Similarities]:
    """Returns the similarities of images to the references of their own category outside their scene.

    Returns:
        The positions in `itself` of the images with such references; and `Similarities` with one row, in which category
        i stands for the i-th of these images.
    """
    order, kept, counts, norms = [], [], [], []
    for category in np.unique(own):
        images = np.flatnonzero(own == category)
        start, end = references.starts[category], references.starts[category + 1]
        similarity = values[images, start:end]
        keep = np.ones(similarity.shape, dtype=bool)
        keep[np.arange(len(images)), itself[images] - start] = False
        for i, row in enumerate(itself[images]):
            if same := together.get((references.names[category], references.hashes[row])):
                keep[i] &= [digest not in same for digest in references.hashes[start:end]]
        has = keep.any(axis=1)
        images, similarity, keep = images[has], similarity[has], keep[has]
        count = keep.sum(axis=1)
        mean = keep.astype(np.float32) @ references.vectors[start:end] / np.maximum(count, 1)[:, None]
        order.append(images)
        kept.append(similarity[keep])
        counts.append(count)
        norms.append(np.linalg.norm(mean, axis=1).astype(np.float32))
    count = np.concatenate(counts)
    return np.concatenate(order), Similarities(
        values=np.concatenate(kept)[None],
        starts=np.concatenate([[0], np.cumsum(count)]),
        counts=count,
        norms=np.concatenate(norms),
        bound=np.array([-1], dtype=np.float32),
    )
