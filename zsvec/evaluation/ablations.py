"""References and test images in memory, and what any choice among them gives: what ablations are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.fit import calibrate
from zsvec.method.scoring import Scoring
from zsvec.method.similarities import References, category_names
from zsvec.search.searcher import compare
from zsvec.types import encoder_and_modality

Doubles = NDArray[np.float64]

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Sample:
    """Test images.

    Attributes:
        sources: Where they come from.
        truth: Their categories; ``None`` for an image of no category.
        vectors: By encoder, float32 ``(n_images, dim)``.
    """

    sources: Sequence[str]
    truth: Sequence[str | None]
    vectors: Mapping[str, NDArray[np.float32]]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images have a category, bool ``(n_images,)``."""
        return np.array([label is not None for label in self.truth], dtype=bool)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was said of the images of a sample.

    Attributes:
        categories: By name.
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        novelty: float64 ``(n_images,)``.
        unknown: bool ``(n_images,)``, whether each was called unknown.
        threshold: float64 ``(n_images,)``, novelty above which that is so; NaN where it cannot be told.
    """

    categories: Sequence[str]
    probabilities: Doubles
    novelty: Doubles
    unknown: NDArray[np.bool_]
    threshold: Doubles


def only(references: Mapping[str, References], experts: Collection[str]) -> dict[str, References]:
    """The references of some experts."""
    return {expert: of for expert, of in references.items() if expert in experts}


def image_keys(references: Mapping[str, References]) -> list[tuple[str, str]]:
    """Category and hash of every reference image, sorted."""
    return sorted({key for expert, of in references.items() if _of_images(expert) for key in of.keys})


def with_images(
    references: Mapping[str, References], change: Callable[[str, References], References]
) -> dict[str, References]:
    """References whose images were changed, given encoder and images; texts stay."""
    return {
        expert: change(encoder_and_modality(expert)[0], of) if _of_images(expert) else of
        for expert, of in references.items()
    }


def _of_images(expert: str) -> bool:
    return encoder_and_modality(expert)[1] == "image"


def drawn(references: Mapping[str, References], count: int, seed: int) -> dict[str, References]:
    """At most so many reference images of each category, the same ones for every encoder; all texts.

    Args:
        references: By expert.
        count: Images of each category.
        seed: Of the draw.
    """
    images: dict[str, list[str]] = {}
    for name, digest in image_keys(references):
        images.setdefault(name, []).append(digest)
    random = np.random.default_rng(seed)
    chosen = {(name, digest) for name, of in images.items() for digest in random.permutation(of)[:count].tolist()}
    return with_images(references, lambda _, of: kept(of, [key in chosen for key in of.keys]))


def kept(of: References, keep: Sequence[bool]) -> References:
    """Some of the references of an expert."""
    rows = np.flatnonzero(keep)
    labels = of.labels
    return laid_out(
        of.vectors[rows],
        [labels[row] for row in rows],
        [of.hashes[row] for row in rows],
        [of.sources[row] for row in rows],
    )


def laid_out(
    vectors: NDArray[np.float32], labels: Sequence[str], hashes: Sequence[str], sources: Sequence[str]
) -> References:
    """References of one expert from its rows, in any order."""
    order = sorted(range(len(labels)), key=lambda row: labels[row])
    names, starts = np.unique([labels[row] for row in order], return_index=True)
    bounds = np.append(starts, len(order)).astype(np.intp)
    sorted_vectors = vectors[order]
    norms = [np.linalg.norm(part.mean(axis=0)) for part in np.split(sorted_vectors, bounds[1:-1])]
    return References(
        names=tuple(names.tolist()),
        vectors=sorted_vectors,
        starts=bounds,
        norms=np.array(norms, dtype=np.float32),
        hashes=tuple(hashes[row] for row in order),
        sources=tuple(sources[row] for row in order),
    )


def mislabelled(references: Mapping[str, References], share: float, seed: int) -> dict[str, References]:
    """The same images, a share of which stand under another category, by chance; the same for every encoder."""
    names, keys = category_names(references), image_keys(references)
    random = np.random.default_rng(seed)
    wrong = random.permutation(len(keys))[: round(share * len(keys))]
    moved = {keys[i]: str(random.choice([name for name in names if name != keys[i][0]])) for i in wrong}
    return with_images(
        references,
        lambda _, of: laid_out(of.vectors, [moved.get(key, key[0]) for key in of.keys], of.hashes, of.sources),
    )


def answer(
    references: Mapping[str, References], sample: Sample, scoring: Scoring, false_unknown_rate: float
) -> Answers:
    """Classify a sample by references, calibrated on themselves if the scoring wants that.

    Args:
        references: By expert.
        sample: To be classified.
        scoring: How.
        false_unknown_rate: Fraction of known images that calibration lets be called unknown.
    """
    names = category_names(references)
    made = None
    if scoring.calibrated:
        temperatures = {expert: scoring.temperatures[expert] for expert in references}
        made = calibrate(
            references,
            temperatures,
            revision=0,
            aggregation=scoring.aggregation,
            top_m=scoring.top_m,
            false_unknown_rate=false_unknown_rate,
        )
    parts = []
    for first in range(0, len(sample.sources), _BATCH):
        queries = {name: of[first : first + _BATCH] for name, of in sample.vectors.items()}
        found = compare(references, names, queries, nearest=1)
        parts.append(scoring.scores(replace(found, calibration=made[0] if made else None)))
    return Answers(
        categories=names,
        probabilities=np.concatenate([part.fused for part in parts]),
        novelty=np.concatenate([part.novelty for part in parts]),
        unknown=np.concatenate([part.novelty > part.threshold for part in parts]),
        threshold=np.concatenate([part.threshold for part in parts]),
    )
