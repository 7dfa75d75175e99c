"""Label errors: reference images that are probably under a wrong category.

Calibration learns the fraction ε of references with uninformative labels
(`zsvec.method.calibrate.coefficients`). With p the fused probability that all other references give to the category of
an image, and C categories, the label is wrong with probability (ε / C) / ((1 - ε) p + ε / C).

A picture that is in several categories has one right label. So all its copies are left out together, and the other
references decide between these categories.

Suspects are only reported: a rare image with the right label looks as doubtful as one with a wrong label.
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
from zsvec.method.quality.scenes import image_rows
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.types import encoder_and_modality

_DOUBTFUL = 0.5  # probability of a wrong label above which a reference is named


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A reference image that is probably under a wrong category.

    Attributes:
        category: Its category.
        hash: Its content hash.
        source: Its source.
        probability: Probability that the category is wrong, above 0.5 to 1.
        instead: The most probable category by the other references.
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
    """Judgement of the other references on the category of an image.

    Attributes:
        key: The image.
        wrong: Probability that its category is wrong, 0 to 1.
        instead: The most probable other category.
        mistaken: Whether `instead` is more probable than the image's own category.
        copied: Whether the category `instead` has the same picture.
    """

    key: Key
    wrong: float
    instead: str
    mistaken: bool
    copied: bool


def judge(references: Mapping[str, References], calibration: Calibration) -> list[Verdict]:
    """Verdicts on all reference images, left out in blocks; memory is linear in their number.

    Args:
        references: By expert, all references of the store.
        calibration: Of these experts; may have been learned from fewer references.
    """
    backgrounds = learn_backgrounds(references) if calibration.classwise else {}
    if not backgrounds:
        calibration = replace(calibration, classwise=None)  # a category has too few images by now
    blocks = each_left_out(
        references,
        (calibration.aggregation, other_aggregation(calibration.aggregation)),
        calibration.top_m,
        largest_sample(len(category_names(references))),
        backgrounds,
    )
    return [verdict for block in blocks for verdict in verdicts(references, calibration, block)]


def verdicts(references: Mapping[str, References], calibration: Calibration, sample: LeftOut) -> list[Verdict]:
    """Verdicts on left-out images, and on images that are in several categories.

    There is no verdict on texts, on the only image of a category, or on an image without a vector of every encoder.

    Args:
        references: By expert, all references of the store.
        calibration: Of these experts.
        sample: Images left out of these references, with all aggregations of the pools of the calibration.
    """
    calibration = scaled(calibration, 1 / calibration.scale)  # the scale is learned from other images than references
    pool = calibration.classwise or calibration.aggregations
    return [*_of_left_out(pool, sample), *_of_copied(references, pool, calibration, sample.copies)]


def suspects(references: Mapping[str, References], judged: Iterable[Verdict]) -> list[Suspect]:
    """Images with a probably wrong category, most doubtful first; ties by name and hash.

    Args:
        references: By expert, all references of the store.
        judged: Verdicts on some of these.
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
    fused[np.arange(len(labels)), labels] = -1
    wrong = wrong_label(own, pool.noise, len(sample.categories))
    mistaken = fused.max(axis=1) > own
    return [
        Verdict(key=keys[i], wrong=p, instead=sample.categories[other], mistaken=is_mistaken, copied=False)
        for i, p, other, is_mistaken in zip(
            np.flatnonzero(judged), wrong.tolist(), fused.argmax(axis=1), mistaken.tolist(), strict=True
        )
    ]


def wrong_label(probability: Doubles, noise: float, n_categories: int) -> Doubles:
    """Posterior probability that labels are wrong.

    Args:
        probability: float64 ``(n_images,)``, fused probability of the label of each image, 0 to 1.
        noise: Fraction of the labels without information, 0 to 1.
        n_categories: Number of categories, from which such a label is drawn evenly.
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
    """Verdicts on pictures in several categories, by the references without any copy of these pictures."""
    if not copies:
        return []
    dropped = set(copies).union(*copies.values())
    kept = {expert: _without(found, dropped) for expert, found in references.items()}
    rows = image_rows(references)
    # Only images with a vector of every encoder, of categories with another image for every encoder.
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
        found.append(Verdict(key=one, wrong=wrong, instead=instead, mistaken=wrong > _DOUBTFUL, copied=True))
    return found


def _without(references: References, dropped: Collection[Key]) -> References:
    """References without some images, and without the categories that become empty."""
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
