"""Label errors: reference images that probably have a wrong category.

Calibration learns the fraction ε of references with uninformative labels (`zsvec.method.calibrate.coefficients`). Let p
be the fused probability of an image's category given all other references, and C the number of categories. The label is
then wrong with probability (ε / C) / ((1 - ε) p + ε / C).

A picture that is in several categories has one right label. So all copies of such a picture are left out together, with
their scenes (`zsvec.method.quality.scenes`), and the other references decide between these categories. Where an image
may belong to several categories, only the images of one category are judged.

Suspects are only reported: a rare image with the right label looks as doubtful as an image with a wrong label.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from zsvec.method.arrays import Doubles, Key
from zsvec.method.calibrate.coefficients import scaled
from zsvec.method.calibrate.leave_one_out import LeftOut, each_left_out, largest_sample
from zsvec.method.calibration import Calibration, LogLinear, other_aggregation
from zsvec.method.predict.gda import learn_backgrounds
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear, pooled_evidence
from zsvec.method.quality.scenes import image_rows, scenes
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.types import encoder_and_modality

_DOUBTFUL = 0.5  # probability of a wrong label above which a reference is a suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A reference image that probably has a wrong category.

    Attributes:
        category: Category of the image.
        hash: Content hash of the image.
        source: Source of the image.
        probability: Probability that the category is wrong, greater than 0.5, at most 1.
        instead: The most probable other category, given the other references; if `copied`, one with the same picture.
        copied: Whether the category `instead` has the same picture.
    """

    category: str
    hash: str
    source: str
    probability: float
    instead: str
    copied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Probability, given the other references, that the category of an image is wrong.

    Attributes:
        key: Category and hash of the image.
        wrong: Probability that the category is wrong, 0 to 1.
        instead: The most probable other category; if `copied`, among the categories that have the same picture.
        mistaken: Whether `instead` is more probable than the image's own category.
        copied: Whether the category `instead` has the same picture.
        confidence: Probability of the most probable category; ``None`` if `copied`, because only some categories are
            compared.
    """

    key: Key
    wrong: float
    instead: str
    mistaken: bool
    copied: bool
    confidence: float | None


def judge(references: Mapping[str, References], calibration: Calibration) -> list[Verdict]:
    """Returns verdicts on all reference images, left out in blocks; memory is linear in the number of images.

    Args:
        references: All references of the store, by expert.
        calibration: Calibration of these experts. It may have been learned from fewer references.
    """
    backgrounds = learn_backgrounds(references) if calibration.classwise else {}
    if not calibration.backgrounds.keys() <= backgrounds.keys():  # references were removed since the calibration
        calibration, backgrounds = replace(calibration, classwise=None), {}
    blocks = each_left_out(
        references,
        (calibration.aggregation, other_aggregation(calibration.aggregation)),
        calibration.top_m,
        largest_sample(len(category_names(references))),
        backgrounds,
        multilabel=calibration.multilabel,
    )
    return [verdict for block in blocks for verdict in verdicts(references, calibration, block)]


def verdicts(references: Mapping[str, References], calibration: Calibration, sample: LeftOut) -> list[Verdict]:
    """Returns verdicts on left-out images, and on images that are in several categories.

    There is no verdict on texts, on an image whose category has no other scene, or on an image without a vector of
    every encoder. The same holds for each category that has a copy of the image. Where an image may belong to several
    categories, there is no verdict on an image of several.

    Args:
        references: All references of the store, by expert.
        calibration: Calibration of these experts.
        sample: Images left out of these references, with all aggregations of the calibration's pools.
    """
    calibration = scaled(calibration, 1 / calibration.scale)  # the scale was not learned from references
    pool = calibration.classwise or calibration.aggregations
    copied = [] if calibration.multilabel else _of_copied(references, pool, calibration, sample.copies)
    return [*_of_left_out(pool, sample), *copied]


def suspects(references: Mapping[str, References], judged: Iterable[Verdict]) -> list[Suspect]:
    """Returns images whose category is probably wrong, most doubtful first; ties are in the order of category and hash.

    Args:
        references: All references of the store, by expert.
        judged: Verdicts on some of these references.
    """
    doubtful = {verdict.key: verdict for verdict in judged if verdict.wrong > _DOUBTFUL}
    sources = {
        key: source
        for found in image_experts(references).values()
        for key, source in zip(found.keys, found.sources, strict=True)
        if key in doubtful
    }
    named = [
        Suspect(
            category=category,
            hash=digest,
            source=sources[category, digest],
            probability=verdict.wrong,
            instead=verdict.instead,
            copied=verdict.copied,
        )
        for (category, digest), verdict in doubtful.items()
    ]
    return sorted(named, key=lambda suspect: (-suspect.probability, suspect.category, suspect.hash))


def _of_left_out(pool: LogLinear, sample: LeftOut) -> list[Verdict]:
    evidence = expert_evidence(pool.coefficients, sample.aggregations, pool.least)
    keys = [(sample.categories[c], digest) for c, digest in zip(sample.labels, sample.hashes, strict=True)]
    judged = sample.complete(evidence) & [key not in sample.copies for key in keys]
    if not judged.any():
        return []
    fused = softmax(log_linear(evidence[:, judged], list(sample.aggregations), pool.neutral))
    labels = sample.labels[judged]
    own = fused[np.arange(len(labels)), labels]
    largest = fused.max(axis=1)
    fused[np.arange(len(labels)), labels] = -1
    wrong = wrong_label(own, pool.noise, len(sample.categories))
    mistaken = fused.max(axis=1) > own
    return [
        Verdict(
            key=keys[i],
            wrong=p,
            instead=sample.categories[other],
            mistaken=is_mistaken,
            copied=False,
            confidence=confidence,
        )
        for i, p, other, is_mistaken, confidence in zip(
            np.flatnonzero(judged),
            wrong.tolist(),
            fused.argmax(axis=1),
            mistaken.tolist(),
            largest.tolist(),
            strict=True,
        )
    ]


def wrong_label(probability: Doubles, noise: float, n_categories: int) -> Doubles:
    """Returns the posterior probability that each label is wrong, float64 ``(n_images,)``.

    Args:
        probability: float64 ``(n_images,)``, fused probability of each image's label, 0 to 1.
        noise: Fraction of uninformative labels, 0 to 1.
        n_categories: Number of categories. An uninformative label has each category with equal probability.
    """
    by_chance = noise / n_categories
    right = (1 - noise) * probability
    posterior: Doubles = np.divide(by_chance, right + by_chance, out=np.zeros_like(right), where=right + by_chance > 0)
    return posterior


def _of_copied(
    references: Mapping[str, References],
    pool: LogLinear,
    calibration: Calibration,
    copies: Mapping[Key, Collection[Key]],
) -> list[Verdict]:
    """Returns verdicts on pictures in several categories, given the references outside the scenes of these pictures."""
    if not copies:
        return []
    rows = image_rows(references)
    dropped = set(copies).union(*copies.values())
    together = scenes(references, rows, dropped)
    dropped |= {(name, other) for name, digest in dropped for other in together.get((name, digest), ())}
    kept = {expert: _without(found, dropped) for expert, found in references.items()}
    # Only images with a vector of every encoder, whose categories keep an image under every encoder.
    names = set.intersection(*(set(kept[expert].names) for expert in rows))
    images = [
        one
        for one, others in sorted(copies.items())
        if all(one in row_of for row_of in rows.values()) and {one[0], *(n for n, _ in others)} <= names
    ]
    if not images:
        return []
    queries = {
        encoder_and_modality(expert)[0]: references[expert].vectors[[row_of[key] for key in images]]
        for expert, row_of in rows.items()
    }
    categories, evidence = pooled_evidence(kept, queries, pool, calibration)
    position = {name: i for i, name in enumerate(categories)}
    found = []
    for row, one in zip(evidence, images, strict=True):
        rivals = sorted({name for name, _ in copies[one]})
        among = softmax(row[[position[one[0]], *(position[name] for name in rivals)]])
        wrong, instead = float(1 - among[0]), rivals[int(among[1:].argmax())]
        mistaken = wrong > _DOUBTFUL
        found.append(Verdict(key=one, wrong=wrong, instead=instead, mistaken=mistaken, copied=True, confidence=None))
    return found


def _without(references: References, dropped: Collection[Key]) -> References:
    """Returns the references without the dropped images and without categories that become empty."""
    kept = np.array([key not in dropped for key in references.keys])
    counts = np.add.reduceat(kept.astype(np.intp), references.starts[:-1])
    vectors, starts = references.vectors[kept], np.concatenate([[0], np.cumsum(counts[counts > 0])])
    return References(
        names=tuple(name for name, count in zip(references.names, counts, strict=True) if count),
        vectors=vectors,
        starts=starts,
        norms=np.array(
            [np.linalg.norm(vectors[a:b].mean(axis=0)) for a, b in pairwise(starts.tolist())], dtype=np.float32
        ),
        hashes=tuple(digest for digest, keep in zip(references.hashes, kept, strict=True) if keep),
        sources=tuple(source for source, keep in zip(references.sources, kept, strict=True) if keep),
    )
