"""Which reference images are probably under a wrong category.

Calibration learns which fraction ε of the references has a label that says nothing
(`zsvec.method.calibrate.coefficients`). With p the fused probability that all other references give to the category of
an image, and C categories, its label is wrong with the probability (ε / C) / ((1 - ε) p + ε / C).

Of a picture that is in several categories one label is right. So all its copies are left out together, and the label
that the other references make most probable is kept.

This tells, and changes nothing: what is rare and right looks as doubtful as what is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zsvec.method.arrays import Doubles, Key
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibrate.scale import scaled
from zsvec.method.calibration import Calibration, LogLinear
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear
from zsvec.method.predict.pooled import pooled_evidence
from zsvec.method.similarities import References, image_experts
from zsvec.types import encoder_and_modality

_DOUBTFUL = 0.5  # probability of a wrong label above which a reference is named


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A reference image that is probably under a wrong category.

    Attributes:
        category: Its category.
        hash: Its content hash.
        source: Where it comes from.
        probability: That the category is wrong, above 0.5 to 1.
        instead: The category that the other references make most probable.
        copied: Whether the same picture is in the category `instead`, too.
    """

    category: str
    hash: str
    source: str
    probability: float
    instead: str
    copied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the other references say of the category of an image.

    Attributes:
        key: The image.
        wrong: Probability that its category is wrong, 0 to 1.
        instead: The most probable other category.
        mistaken: Whether that is more probable than its own.
        copied: Whether the same picture is in that category, too.
    """

    key: Key
    wrong: float
    instead: str
    mistaken: bool
    copied: bool


def verdicts(references: Mapping[str, References], calibration: Calibration, sample: LeftOut) -> list[Verdict]:
    """What is said of left-out images, and of those that are in several categories.

    Nothing is said of texts, nor of an image that has no other of its category to be compared with, or that an encoder
    has not embedded.

    Args:
        references: By expert, all of them.
        calibration: Of these experts.
        sample: Images that were left out of these references, with all that the pools of the calibration add up.
    """
    calibration = scaled(calibration, 1 / calibration.scale)  # references are no worse than references
    pool = calibration.classwise or calibration.aggregations
    return [*_of_left_out(pool, sample), *_of_copied(references, pool, calibration, sample.copies)]


def suspects(references: Mapping[str, References], said: Iterable[Verdict]) -> list[Suspect]:
    """Those whose category is probably wrong, most doubtful first; as doubtful ones by name and hash.

    Args:
        references: By expert, all of them.
        said: Of some of them.
    """
    doubtful = {verdict.key: verdict for verdict in said if verdict.wrong > _DOUBTFUL}
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
    told = sample.complete(evidence)
    told &= [(sample.categories[c], digest) not in sample.copies for c, digest in _labelled(sample)]
    if not told.any():
        return []
    fused = softmax(log_linear(evidence[:, told], list(sample.aggregations), pool.neutral))
    labels = sample.labels[told]
    own = fused[np.arange(len(labels)), labels]
    fused[np.arange(len(labels)), labels] = -1
    wrong = wrong_label(own, pool.noise, len(sample.categories))
    keys = [(sample.categories[c], digest) for (c, digest), kept in zip(_labelled(sample), told, strict=True) if kept]
    others = [sample.categories[c] for c in fused.argmax(axis=1)]
    mistaken = fused.max(axis=1) > own
    return [
        Verdict(key=key, wrong=p, instead=other, mistaken=is_mistaken, copied=False)
        for key, p, other, is_mistaken in zip(keys, wrong.tolist(), others, mistaken.tolist(), strict=True)
    ]


def _labelled(sample: LeftOut) -> Sequence[tuple[int, str]]:
    return list(zip(sample.labels.tolist(), sample.hashes, strict=True))


def wrong_label(probability: Doubles, noise: float, n_categories: int) -> Doubles:
    """Posterior probability that labels are wrong.

    Args:
        probability: float64 ``(n_images,)``, fused probability of the label of each, 0 to 1.
        noise: Fraction of the labels that say nothing, 0 to 1.
        n_categories: From which such a label is drawn evenly.
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
    """Of pictures in several categories, what the references without any of their copies say."""
    if not copies:
        return []
    dropped = set(copies).union(*copies.values())
    kept = {expert: _without(found, dropped) for expert, found in references.items()}
    rows = {
        expert: {key: row for row, key in enumerate(found.keys) if key in copies}
        for expert, found in image_experts(references).items()
    }
    # Judged is what every encoder has seen, against categories of which every encoder has another image.
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
    """References without some of them; categories that had no others are gone."""
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
