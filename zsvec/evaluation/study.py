"""Studies: how the references of a store classify a sample of images, by any experts, strategy or change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.evaluation import metrics
from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.fit import fit_calibration
from zsvec.method.predict.scoring import Scoring
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.search.numpy_index import compare
from zsvec.types import encoder_and_modality

MANY = 100
"""Categories from which 20 are known in the AUROC of the paper, as in its TinyImageNet; of fewer, 60 % are."""
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

    @property
    def unknown_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Vectors of the images of no category, by encoder, float32 ``(n_unknown, dim)``."""
        return {encoder: vectors[~self.known] for encoder, vectors in self.vectors.items()}

    def columns(self, categories: Sequence[str]) -> NDArray[np.intp]:
        """Position of each known image's category among some categories, int ``(n_known,)``; -1 if it is not there."""
        position = {category: i for i, category in enumerate(categories)}
        return np.array([position.get(label, -1) for label in self.truth if label is not None], dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered for the images of a sample.

    Attributes:
        categories: By name.
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        novelty: float64 ``(n_images,)``, 0 to 1; without a calibration the distance of `Scores`, 0 to 2.
        unknown: bool ``(n_images,)``, whether each was called unknown.
        threshold: float64 ``(n_images,)``, novelty above which an image is called unknown; NaN where there is none.
    """

    categories: Sequence[str]
    probabilities: Doubles
    novelty: Doubles
    unknown: NDArray[np.bool_]
    threshold: Doubles


def answer(
    references: Mapping[str, References], sample: Sample, scoring: Scoring, false_unknown_rate: float
) -> Answers:
    """Classify a sample by references, which are calibrated first where the scoring uses a calibration.

    In batches of random images: a strategy may take it from a batch that its images are alike.

    Args:
        references: By expert.
        sample: Images to classify.
        scoring: From similarities to answers.
        false_unknown_rate: Target rate of unknown among images of known categories.
    """
    names = category_names(references)
    made = None
    if scoring.calibrated:
        temperatures = {expert: scoring.temperatures[expert] for expert in references}
        made = fit_calibration(
            references,
            temperatures,
            revision=0,
            aggregation=scoring.aggregation,
            top_m=scoring.top_m,
            false_unknown_rate=false_unknown_rate,
        )
    parts = []
    order = np.random.default_rng(0).permutation(len(sample.sources))
    for first in range(0, len(order), _BATCH):
        queries = {encoder: vectors[order[first : first + _BATCH]] for encoder, vectors in sample.vectors.items()}
        found = compare(references, names, queries, nearest=1)
        parts.append(scoring.scores(replace(found, calibration=made[0] if made else None)))

    def in_order(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(values)[np.argsort(order)]

    novelty = in_order([part.novelty for part in parts])
    return Answers(
        categories=names,
        probabilities=in_order([part.fused for part in parts]),
        novelty=np.where(np.isnan(novelty), in_order([part.distance for part in parts]), novelty),
        unknown=in_order([part.unknown for part in parts]),
        threshold=in_order([part.threshold for part in parts]),
    )


def known_categories(names: Collection[str], seed: int) -> frozenset[str]:
    """Returns the categories that are known in one division for the AUROC of the paper; the others are unknown.

    A draw depends on the seed and on which names there are: not on their order or repetition, nor on the version of
    Python or numpy, for names are ordered by a SHA-256 of seed and name.

    Args:
        names: Categories, two or more.
        seed: Of the draw.

    Source: Yin & Jiang (2024), section 4.1, after Neal et al. (2018).
    """
    drawn = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    n_known = 20 if len(drawn) >= MANY else min(max((6 * len(drawn) + 5) // 10, 1), len(drawn) - 1)
    return frozenset(drawn[:n_known])


@dataclass
class Study:
    """One store and one sample.

    Attributes:
        references: Of the store, by expert.
        sample: Test images.
        scoring: As the store is classified by.
        false_unknown_rate: Target rate of every calibration.
        splits: Known categories of each division for the AUROC of the paper.
        predictions: What was answered in each row so far, by table and row; everything that its metrics need.
    """

    references: Mapping[str, References]
    sample: Sample
    scoring: Scoring
    false_unknown_rate: float
    splits: Sequence[frozenset[str]]
    predictions: dict[str, Any] = field(default_factory=dict)

    def answers(self, references: Mapping[str, References], **choices: Any) -> Answers:
        """Classify the sample by some references.

        Args:
            references: By expert.
            **choices: Fields of the scoring to change.
        """
        return answer(references, self.sample, replace(self.scoring, **choices), self.false_unknown_rate)

    def row(self, table: str, name: str, references: Mapping[str, References], **choices: Any) -> dict[str, Any]:
        """Returns the metrics of a table's row, for the answers by some references; adds these to `predictions`.

        Args:
            table: Id of the table.
            name: Of the row.
            references: By expert.
            **choices: Fields of the scoring to change.

        Returns:
            ``name``; ``values``, fractions and areas from 0 to 1 by key of `tables.ACCURACY`, ``None`` where there is
            nothing to measure; ``interval``, lower and upper end by key.
        """
        answers, known = self.answers(references, **choices), self.sample.known
        truth = self.sample.columns(answers.categories)
        probabilities, largest = answers.probabilities[known], answers.probabilities.max(axis=1)
        rank, own = metrics.ranks(probabilities, truth), metrics.true_probability(probabilities, truth)
        accuracy = metrics.Accuracy.of(rank, own, largest[known], metrics.brier_score(probabilities, truth))
        masks = [np.isin(answers.categories, list(split)) for split in self.splits]
        scores = [metrics.paper_unknown_score(answers.probabilities, mask) for mask in masks]
        named = truth >= 0
        sides = [(score[known][named], ~mask[truth[named]]) for score, mask in zip(scores, masks, strict=True)]
        # Of experts that cover some categories only, a split may leave no image on one side.
        aurocs = [
            metrics.blind_auroc(score, is_unknown) for score, is_unknown in sides if len(set(is_unknown.tolist())) > 1
        ]
        values = {**asdict(accuracy), "paper_auroc": float(np.mean(aurocs)) if aurocs else None, "auroc": None}
        interval = {f"top{k}": metrics.interval_of_share(rank < k) for k in (1, 3, 5)}
        if not known.all():
            values["auroc"] = metrics.blind_auroc(answers.novelty, ~known)
            interval["auroc"] = metrics.interval_of_auroc(answers.novelty, ~known)
        true = np.full(len(known), None, dtype=object)
        true[known] = own
        self.predictions[f"{table}/{name}"] = {
            "categories": list(answers.categories),
            "top": np.argsort(-answers.probabilities, axis=1, kind="stable")[:, :5].tolist(),
            "probability": largest.tolist(),
            "sum_of_squares": (answers.probabilities**2).sum(axis=1).tolist(),
            "true_probability": true.tolist(),
            "novelty": answers.novelty.tolist(),
            "unknown": answers.unknown.tolist(),
            "unknown_scores": [score.tolist() for score in scores],
        }
        return {"name": name, "values": values, "interval": interval}


# ---- references, changed in memory


def only(references: Mapping[str, References], experts: Collection[str]) -> dict[str, References]:
    """The references of some experts."""
    return {expert: stored for expert, stored in references.items() if expert in experts}


def image_keys(references: Mapping[str, References]) -> list[tuple[str, str]]:
    """Category and hash of every reference image, sorted."""
    return sorted({key for stored in image_experts(references).values() for key in stored.keys})


def with_images(
    references: Mapping[str, References], change: Callable[[str, References], References]
) -> dict[str, References]:
    """The same references, those of images changed.

    Args:
        references: By expert.
        change: From an encoder's name and its reference images to what takes their place.
    """
    images = image_experts(references)
    changed = {expert: change(encoder_and_modality(expert)[0], stored) for expert, stored in images.items()}
    return {**references, **changed}


def drawn(references: Mapping[str, References], count: int, seed: int) -> dict[str, References]:
    """At most so many reference images of each category, the same ones for every encoder; all texts.

    Args:
        references: By expert.
        count: Images of each category.
        seed: Of the draw.
    """
    digests: dict[str, list[str]] = {}
    for name, digest in image_keys(references):
        digests.setdefault(name, []).append(digest)
    generator = np.random.default_rng(seed)
    chosen = {(name, digest) for name, own in digests.items() for digest in generator.permutation(own)[:count].tolist()}
    return _relabelled(references, {key: key[0] for key in chosen})


def mislabelled(references: Mapping[str, References], share: float, seed: int) -> dict[str, References]:
    """The same images, a random share of which has another category; the same images for every encoder."""
    names, keys = category_names(references), image_keys(references)
    generator = np.random.default_rng(seed)
    labels = {key: key[0] for key in keys}
    for i in generator.permutation(len(keys))[: round(share * len(keys))]:
        labels[keys[i]] = str(generator.choice([name for name in names if name != keys[i][0]]))
    return _relabelled(references, labels)


def replaced(
    references: Mapping[str, References], share: float, vectors: Mapping[str, NDArray[np.float32]], seed: int
) -> dict[str, References]:
    """A random share of the reference images replaced by other images; the same ones for every encoder.

    Args:
        references: By expert.
        share: Fraction of the images, rounded down to whole images.
        vectors: Of the other images, by encoder, float32 ``(n_others, dim)``, at least one.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    digests = sorted({digest for _, digest in image_keys(references)})
    others = np.arange(len(next(iter(vectors.values()))))
    chosen = generator.permutation(len(digests))[: int(share * len(digests))]
    place = {digests[i]: int(generator.choice(others)) for i in chosen}

    def change(encoder: str, images: References) -> References:
        changed = images.vectors.copy()
        for row, digest in enumerate(images.hashes):
            if digest in place:
                changed[row] = vectors[encoder][place[digest]]
        return laid_out(changed, images.labels, images.hashes, images.sources)

    return with_images(references, change)


def _relabelled(references: Mapping[str, References], labels: Mapping[tuple[str, str], str]) -> dict[str, References]:
    """The reference images under other categories, by category and hash; those that are not named are left out."""

    def change(_: str, images: References) -> References:
        rows = [(row, labels[key]) for row, key in enumerate(images.keys) if key in labels]
        kept = [row for row, _ in rows]
        hashes, sources = ([column[row] for row in kept] for column in (images.hashes, images.sources))
        return laid_out(images.vectors[kept], [label for _, label in rows], hashes, sources)

    return with_images(references, change)


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
