"""Classifies embedded test images by the references of a store, or by variants of these references.

`Embeddings` embeds the images, and `Study` classifies the images. The functions at the end return the variants: fewer,
mislabelled or replaced references.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.classifier import Classifier
from zsvec.errors import ImageError
from zsvec.evaluation import metrics
from zsvec.inputs.files import inside, open_regular, replacing
from zsvec.inputs.images import ImageInput, content_hash, source_of
from zsvec.method.arrays import Doubles, Floats
from zsvec.method.calibrate.fit import fit_calibration
from zsvec.method.predict.scoring import Scoring
from zsvec.method.similarities import References, category_names, image_experts, laid_out
from zsvec.search.in_process import compare
from zsvec.types import encoder_and_modality

MANY = 100
"""Minimum number of categories for which the AUROC of the paper has 20 known categories, as with TinyImageNet.

With fewer categories, 60 % are known.
"""
_BATCH = 256
_CHUNK = 64  # images that are embedded at once; an interruption loses at most one chunk
_ROUNDING = 0.01  # tolerance for the sum of squares of unit vectors


class Embeddings:
    """Cache of vectors on disk, with one file per image. The path depends on the encoders and on the image content.

    Args:
        folder: Folder of the cache, which is created with the first file.
        classifier: Classifier with the encoders that embed new images.
    """

    def __init__(self, folder: Path, classifier: Classifier) -> None:
        fingerprints = sorted(classifier.encoders.fingerprints.items())
        self._dims = {name: fingerprint.dim for name, fingerprint in fingerprints}
        prints = [(name, str(fingerprint)) for name, fingerprint in fingerprints]
        own = folder / hashlib.sha256(repr(prints).encode()).hexdigest()[:16]
        self._folder = inside(folder.parent, own)
        self._classifier = classifier

    def of(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[str, str], None],
        track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> tuple[list[int], dict[str, Floats]]:
        """Returns vectors of images, from the cache or from the encoders.

        Args:
            images: Images to embed.
            on_error: Called with source and reason for each image that cannot be read.
            track: Wraps the images, to show progress.

        Returns:
            The positions of the readable images, and the vectors of these images by encoder, float32 ``(n, dim)``.
        """
        rows: dict[int, Floats] = {}
        numbered = enumerate(track(images))
        while chunk := list(islice(numbered, _CHUNK)):
            new: list[tuple[int, ImageInput, Path]] = []
            for position, image in chunk:
                try:
                    digest = content_hash(image, **self._classifier.settings.image_limits())
                except ImageError as exc:
                    on_error(source_of(image), str(exc))
                    continue
                path = inside(self._folder, self._folder / f"{digest}.f32")
                if (row := self._read(path)) is not None:
                    rows[position] = row
                else:
                    new.append((position, image, path))
            if not new:
                continue
            answers = self._classifier.embed_stream([image for _, image, _ in new])
            for (position, _, path), embedding in zip(new, answers, strict=True):
                if embedding.error is None:
                    rows[position] = np.concatenate([embedding.vectors[name] for name in self._dims])
                    self._keep(path, rows[position])
                else:
                    on_error(embedding.source, embedding.error)
        positions, dims = sorted(rows), list(self._dims.values())
        matrix = np.array([rows[position] for position in positions], np.float32).reshape(-1, sum(dims))
        parts = np.split(matrix, np.cumsum(dims)[:-1], axis=1)
        return positions, dict(zip(self._dims, map(np.ascontiguousarray, parts), strict=True))

    def _read(self, path: Path) -> Floats | None:
        """Returns the concatenated vectors of an image; ``None`` if the file is missing or damaged.

        The folder may come from elsewhere, so a file holds only raw numbers, and a file that is too large is not read
        to the end.
        """
        size = 4 * sum(self._dims.values())
        try:
            with open_regular(path) as file:
                content = file.read(size + 1)
        except OSError:
            return None
        if len(content) != size:
            return None
        row = np.frombuffer(content, np.float32)
        return row if abs(float(row @ row) - len(self._dims)) < _ROUNDING else None  # each vector has unit norm

    def _keep(self, path: Path, row: Floats) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:
            file.write(row.tobytes())


@dataclass(frozen=True, slots=True)
class Sample:
    """Embedded test images.

    Attributes:
        sources: Source of each image.
        truth: Category of each image; ``None`` for an image that belongs to no category.
        vectors: Vectors by encoder, float32 ``(n_images, dim)``.
    """

    sources: Sequence[str]
    truth: Sequence[str | None]
    vectors: Mapping[str, Floats]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images have a category, bool ``(n_images,)``."""
        return np.array([label is not None for label in self.truth], dtype=bool)

    def columns(self, categories: Sequence[str]) -> NDArray[np.intp]:
        """Returns the position of each known image's category among `categories`, int ``(n_known,)``; -1 if absent."""
        position = {category: i for i, category in enumerate(categories)}
        return np.array([position.get(label, -1) for label in self.truth if label is not None], dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers for the images of a sample.

    Attributes:
        categories: Names of the categories, sorted.
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        novelty: float64 ``(n_images,)``, 0 to 1. Without a calibration, the distance of `Scores`, 0 to 2.
        unknown: Whether each image was called unknown, bool ``(n_images,)``.
        threshold: Novelty above which an image is called unknown, float64 ``(n_images,)``; NaN without a threshold.
    """

    categories: Sequence[str]
    probabilities: Doubles
    novelty: Doubles
    unknown: NDArray[np.bool_]
    threshold: Doubles


def known_categories(names: Collection[str], seed: int) -> frozenset[str]:
    """Returns the categories that count as known in one random split for the AUROC of the paper.

    The draw depends only on the seed and the set of names, not on the version of Python or numpy, because names are
    ordered by a SHA-256 of seed and name.

    Args:
        names: Names of two or more categories.
        seed: Seed of the draw.

    Source: Yin & Jiang (2024), section 4.1, after Neal et al. (2018).
    """
    drawn = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    n_known = 20 if len(drawn) >= MANY else min(max((6 * len(drawn) + 5) // 10, 1), len(drawn) - 1)
    return frozenset(drawn[:n_known])


@dataclass
class Study:
    """Classifies one sample by the references of one store, or by variants of these references.

    Attributes:
        references: References of the store, by expert.
        sample: Embedded test images.
        scoring: Scoring of the store.
        false_unknown_rate: Target false-unknown rate of every calibration, 0 to 1.
        splits: Known categories of each random split for the AUROC of the paper.
        predictions: Answers by ``table/row``. Each metric of the row can be computed from the answers.
    """

    references: Mapping[str, References]
    sample: Sample
    scoring: Scoring
    false_unknown_rate: float
    splits: Sequence[frozenset[str]]
    predictions: dict[str, Any] = field(default_factory=dict)

    def answers(self, references: Mapping[str, References], **choices: Any) -> Answers:
        """Classifies the sample by `references`. `choices` are fields of the scoring to change.

        If the scoring is calibrated, a calibration is fitted to `references` first. Images are classified in random
        order, because a strategy may exploit that the images of a batch are similar.
        """
        scoring, sample = replace(self.scoring, **choices), self.sample
        names = category_names(references)
        made = None
        if scoring.calibrated:
            made = fit_calibration(
                references,
                {expert: scoring.temperatures[expert] for expert in references},
                revision=0,
                aggregation=scoring.aggregation,
                top_m=scoring.top_m,
                false_unknown_rate=self.false_unknown_rate,
            )
        parts = []
        order = np.random.default_rng(0).permutation(len(sample.sources))
        for first in range(0, len(order), _BATCH):
            queries = {encoder: vectors[order[first : first + _BATCH]] for encoder, vectors in sample.vectors.items()}
            found = compare(references, names, queries, nearest=1)
            parts.append(scoring.scores(replace(found, calibration=made[0] if made else None)))

        def in_order(field_name: str) -> NDArray[Any]:
            return np.concatenate([getattr(part, field_name) for part in parts])[np.argsort(order)]

        novelty = in_order("novelty")
        return Answers(
            categories=names,
            probabilities=in_order("fused"),
            novelty=np.where(np.isnan(novelty), in_order("distance"), novelty),
            unknown=in_order("unknown"),
            threshold=in_order("threshold"),
        )

    def row(self, table: str, name: str, references: Mapping[str, References], **choices: Any) -> dict[str, Any]:
        """Computes the metrics of `answers` for a row of a table, and adds the answers to `predictions`.

        Returns:
            A mapping with ``name``, ``values`` and ``interval``. ``values`` has each metric by key of
            `tables.ACCURACY`; ``None`` for a metric that cannot be measured. ``interval`` has the lower and upper end
            of the 95 % interval of some metrics, by the same keys.
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
        # If experts cover only some categories, a split may have only known or only unknown images.
        aurocs = [metrics.auroc(score, is_unknown) for score, is_unknown in sides if len({*is_unknown.tolist()}) > 1]
        values = {**asdict(accuracy), "paper_auroc": float(np.mean(aurocs)) if aurocs else None, "auroc": None}
        interval = {f"top{k}": metrics.interval_of_share(rank < k) for k in (1, 3, 5)}
        if not known.all():
            values["auroc"] = metrics.auroc(answers.novelty, ~known)
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
    """Returns the references of some experts."""
    return {expert: stored for expert, stored in references.items() if expert in experts}


def image_keys(references: Mapping[str, References]) -> list[tuple[str, str]]:
    """Returns category and hash of every reference image, sorted."""
    return sorted({key for stored in image_experts(references).values() for key in stored.keys})


def with_images(
    references: Mapping[str, References], change: Callable[[str, References], References]
) -> dict[str, References]:
    """Returns the references with changed images. `change` takes the name and the reference images of an encoder."""
    images = image_experts(references)
    changed = {expert: change(encoder_and_modality(expert)[0], stored) for expert, stored in images.items()}
    return {**references, **changed}


def drawn(references: Mapping[str, References], count: int, seed: int) -> dict[str, References]:
    """Returns all texts and at most `count` random images of each category, with the same images for every encoder."""
    digests: dict[str, list[str]] = {}
    for name, digest in image_keys(references):
        digests.setdefault(name, []).append(digest)
    generator = np.random.default_rng(seed)
    chosen = {(name, digest) for name, own in digests.items() for digest in generator.permutation(own)[:count].tolist()}
    return _relabelled(references, {key: key[0] for key in chosen})


def mislabelled(references: Mapping[str, References], share: float, seed: int) -> dict[str, References]:
    """Returns the references with a random share of the images moved to random other categories.

    The moves are the same for every encoder.
    """
    names, keys = category_names(references), image_keys(references)
    generator = np.random.default_rng(seed)
    labels = {key: key[0] for key in keys}
    for i in generator.permutation(len(keys))[: round(share * len(keys))]:
        labels[keys[i]] = str(generator.choice([name for name in names if name != keys[i][0]]))
    return _relabelled(references, labels)


def replaced(
    references: Mapping[str, References], share: float, vectors: Mapping[str, Floats], seed: int
) -> dict[str, References]:
    """Returns the references with a random share of the images replaced. Every encoder gets the same replacements.

    Args:
        references: References by expert.
        share: Fraction of the images, rounded down to whole images.
        vectors: Vectors of one or more replacement images, by encoder, float32 ``(n_others, dim)``.
        seed: Seed of the draw.
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
    """Returns all texts and only the images in `labels`, in the categories that `labels` assigns."""

    def change(_: str, images: References) -> References:
        rows = [(row, labels[key]) for row, key in enumerate(images.keys) if key in labels]
        kept = [row for row, _ in rows]
        hashes, sources = ([column[row] for row in kept] for column in (images.hashes, images.sources))
        return laid_out(images.vectors[kept], [label for _, label in rows], hashes, sources)

    return with_images(references, change)
