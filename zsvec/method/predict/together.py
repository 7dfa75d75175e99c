"""Predictions for a finite set of images, whose similar images add to each other's evidence (`transduction`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zsvec.method.arrays import Doubles, Floats
from zsvec.method.predict.logits import entropy, softmax
from zsvec.method.predict.scoring import Scores, rankings
from zsvec.method.predict.transduction import transduce
from zsvec.method.predict.tree import Tree
from zsvec.method.similarities import SearchResult
from zsvec.types import Prediction, Ranking

WORTH = 5.0
"""λ of `transduce` in a set with many images of each category, nats."""
HALVED = 10.0
"""Images a category for which λ is half of `WORTH`.

The neighbours of an image are of its own category only if the set has several images of this category.
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Distributions and vectors of a batch of a set.

    Attributes:
        categories: Names of the categories, ascending.
        fused: float64 ``(n_images, n_categories)``, fused distribution of each image alone.
        vectors: By encoder with reference images, float32 ``(n_images, dim)``, unit rows.
        shares: By the same encoders, the mean confidence of the image expert in this batch.
        tree: The tree over the categories, if any of them has a parent.
    """

    categories: tuple[str, ...]
    fused: Doubles
    vectors: Mapping[str, Floats]
    shares: Mapping[str, float]
    tree: Tree | None = None

    @classmethod
    def of(cls, found: SearchResult, parts: Iterable[Scores]) -> Batch:
        """Returns the batch of a search and of its scores."""
        images = {e: expert.encoder for e, expert in enumerate(found.experts) if expert.modality == "image"}
        scores = list(parts)
        confidence = np.concatenate([one.confidence for one in scores], axis=1).mean(axis=1)
        return cls(
            found.categories,
            np.concatenate([one.fused for one in scores]),
            {encoder: found.queries[encoder] for encoder in images.values()},
            {encoder: float(confidence[e]) for e, encoder in images.items()},
            found.tree,
        )


def together(alone: Sequence[Prediction], batches: Sequence[Batch], top_k: int) -> list[Prediction]:
    """Returns predictions from the evidence of each image and of similar images of the set.

    Label, probability, ranking and path change. Novelty, the decision whether an image is unknown, candidate sets,
    labels and the evidence of the experts are those of the image alone.

    Args:
        alone: Predictions of the images of the batches, in order.
        batches: The batches, in order, with one image at least. A category that was not committed yet when a batch was
            searched has probability 0 for the images of this batch.
        top_k: Maximum number of categories in a ranking; at least 1.
    """
    encoders = [name for name in batches[0].vectors if all(name in batch.vectors for batch in batches)]
    if not encoders:
        return list(alone)
    categories = sorted({name for batch in batches for name in batch.categories})
    evidence = np.full((len(alone), len(categories)), -np.inf)
    ends = np.cumsum([len(batch.fused) for batch in batches]).tolist()
    parts = [slice(end - len(batch.fused), end) for end, batch in zip(ends, batches, strict=True)]
    of_batch = [np.searchsorted(categories, batch.categories) for batch in batches]
    for batch, rows, columns in zip(batches, parts, of_batch, strict=True):
        with np.errstate(divide="ignore"):
            evidence[rows, columns] = np.log(batch.fused)
    vectors = [np.concatenate([batch.vectors[name] for batch in batches]) for name in encoders]
    shares = np.array([np.mean([batch.shares[name] for batch in batches]) for name in encoders])
    fused = softmax(transduce(evidence, vectors, shares, _worth(softmax(evidence).mean(axis=0), len(alone))))
    ranked = rankings(fused, np.arange(len(categories)), categories, top_k)
    unknown = np.array([prediction.unknown for prediction in alone])
    paths: list[Ranking] = []
    for batch, rows, columns in zip(batches, parts, of_batch, strict=True):
        paths += batch.tree.paths(fused[rows][:, columns], unknown[rows]) if batch.tree else [()] * len(batch.fused)
    return [
        replace(
            prediction,
            label=None if prediction.unknown else ranking[0][0],
            nearest=ranking[0][0],
            probability=ranking[0][1],
            ranking=ranking,
            path=path,
        )
        for prediction, ranking, path in zip(alone, ranked, paths, strict=True)
    ]


def _worth(frequencies: Doubles, n_images: int) -> float:
    """Returns λ for a set, nats.

    Args:
        frequencies: float64 ``(n_categories,)``, expected share of each category in the set.
        n_images: Number of images. They are divided by the effective number of categories, the perplexity.
    """
    of_category = n_images / float(np.exp(entropy(frequencies)))
    return WORTH * of_category / (of_category + HALVED)
