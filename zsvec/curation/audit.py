"""An audit: what is doubtful among the reference images of a store. It changes nothing.

- *Labels*: images that the others put into another category (`zsvec.method.quality.suspects`).
- *Duplicates*: the same picture twice, within a category or across (`zsvec.method.quality.neighborhoods`).
- *Outliers*: images whose nearest others are far (the weight of Angiulli & Pizzuti, "Fast outlier detection in high
  dimensional spaces", 2002; from where on is said in `zsvec.method.quality.outliers`).
- *Thin categories*: too few pictures, or pictures that differ much less than those of other categories.
- *Confusions*: categories whose images the others take for each other, without those whose label is doubtful.

Labels and confusions take a calibration, which says what the evidence of each expert is worth; the others take none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zsvec.method.arrays import Key
from zsvec.method.predict.background import FEWEST
from zsvec.method.quality.neighborhoods import Neighborhoods, neighborhoods, spreads
from zsvec.method.quality.outliers import closeness, far_below
from zsvec.method.quality.scenes import image_rows, most_discriminating
from zsvec.method.quality.suspects import Suspect, Verdict, suspects
from zsvec.method.similarities import References, category_names, image_experts

_STRANGE = 2.0  # distances of the quartiles below which an outlier is nearer to no other image
_UNIFORM = 3.0  # the same of the logarithm of a category's spread
_LEAST_SPREAD = 1e-6  # of images that do not differ, but for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A reference image by its names.

    Attributes:
        category: Its category.
        hash: Its content hash.
        source: Where it comes from.
    """

    category: str
    hash: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Reference images that show the same picture.

    Attributes:
        images: Two or more.
        across: Whether they are of several categories, of which one at most is right.
        likeness: The least cosine by which one of them was taken for another one, -1 to 1.
    """

    images: Sequence[StoredImage]
    across: bool
    likeness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A reference image that is like no other.

    Attributes:
        image: The image.
        similarity: Mean cosine to the three nearest others, -1 to 1.
    """

    image: StoredImage
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinCategory:
    """A category whose reference images show little of it.

    Attributes:
        category: Its name.
        images: How many reference images it has.
        pictures: How many of them are left if the same picture counts once.
        spread: Median distance (1 - cosine) of two of its images, 0 to 2; ``None`` of fewer than two.
        uniform: Whether it has enough images, but these show few pictures, or differ much less than those of other
            categories.
    """

    category: str
    images: int
    pictures: int
    spread: float | None
    uniform: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Two categories whose reference images the others take for each other.

    Attributes:
        categories: Their names, ascending.
        images: Those that are taken for one of the other category.
    """

    categories: tuple[str, str]
    images: Sequence[StoredImage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is doubtful among the reference images of a store, of each kind the most doubtful first.

    Attributes:
        images: Number of reference images.
        judged: Of how many the label could be judged: not without a calibration, nor where an image is the only one of
            its category, or an encoder has not embedded it.
        calibrated: Whether there is a calibration to judge labels by.
        labels: Images that are probably under a wrong category, by falling probability.
        duplicates: The same picture twice: across categories first, then by number of images.
        outliers: Images that are like no other, the farthest first.
        thin: Categories whose images show little of them, fewest pictures first.
        confusions: Pairs of categories, by falling number of images.
    """

    images: int
    judged: int
    calibrated: bool
    labels: Sequence[Suspect] = ()
    duplicates: Sequence[Duplicates] = ()
    outliers: Sequence[Outlier] = ()
    thin: Sequence[ThinCategory] = ()
    confusions: Sequence[Confusion] = ()

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects that ``zsvec audit --json`` prints: a summary, then the findings, each with its kind."""
        yield {
            "finding": "summary",
            "images": self.images,
            "judged": self.judged,
            "calibrated": self.calibrated,
            **{name: len(getattr(self, name)) for name in ("labels", "duplicates", "outliers", "thin", "confusions")},
        }
        for kind, found in (
            ("label", self.labels),
            ("duplicates", self.duplicates),
            ("outlier", self.outliers),
            ("thin", self.thin),
            ("confusion", self.confusions),
        ):
            yield from ({"finding": kind, **asdict(one)} for one in found)


def audited(references: Mapping[str, References], said: Sequence[Verdict] | None) -> Audit:
    """Audit reference images, which are compared with each other in blocks.

    Args:
        references: By expert, all of them.
        said: Of their categories; ``None`` without a calibration.
    """
    stored = {
        key: StoredImage(category=key[0], hash=key[1], source=source)
        for found in image_experts(references).values()
        for key, source in zip(found.keys, found.sources, strict=True)
    }
    labels = suspects(references, said or ())
    if not stored:
        return Audit(images=0, judged=0, calibrated=said is not None)
    best = references[most_discriminating(references, image_rows(references), stored)]
    spread = spreads(best)
    compared = neighborhoods(best, spread)
    return Audit(
        images=len(stored),
        judged=len(said or ()),
        calibrated=said is not None,
        labels=labels,
        duplicates=_duplicates(compared, stored),
        outliers=[
            Outlier(image=stored[compared.keys[image]], similarity=float(compared.nearest[image]))
            for image in far_below(closeness(compared.nearest, best.starts), _STRANGE)
        ],
        thin=_thin(category_names(references), compared, spread),
        confusions=_confusions(said or (), {(suspect.category, suspect.hash) for suspect in labels}, stored),
    )


def _duplicates(compared: Neighborhoods, stored: Mapping[Key, StoredImage]) -> list[Duplicates]:
    members: dict[int, list[int]] = defaultdict(list)
    for image in np.flatnonzero(~np.isnan(compared.likeness)).tolist():
        members[int(compared.pictures[image])].append(image)
    found = [
        Duplicates(
            images=sorted((stored[compared.keys[image]] for image in images), key=_by_source),
            across=len({compared.keys[image][0] for image in images}) > 1,
            likeness=float(compared.likeness[images].min()),
        )
        for images in members.values()
    ]
    return sorted(found, key=lambda one: (not one.across, -len(one.images), -one.likeness))


def _by_source(image: StoredImage) -> tuple[str, str, str]:
    return image.category, image.source, image.hash


def _thin(names: Sequence[str], compared: Neighborhoods, spread: Mapping[str, float]) -> list[ThinCategory]:
    """Categories that have no image are among them: others have."""
    images = Counter(name for name, _ in compared.keys)
    shown = zip(compared.keys, compared.pictures.tolist(), strict=True)
    pictures = Counter(name for name, _ in {(key[0], picture) for key, picture in shown})
    scales = np.log(np.maximum(list(spread.values()), _LEAST_SPREAD))
    differ_little = {list(spread)[position] for position in far_below(scales, _UNIFORM)}
    found = [
        ThinCategory(
            category=name,
            images=images[name],
            pictures=pictures[name],
            spread=spread.get(name),
            uniform=images[name] >= FEWEST,
        )
        for name in names
        if pictures[name] < max(FEWEST, images[name] / 2) or name in differ_little
    ]
    return sorted(found, key=lambda one: (one.pictures, -one.images))


def _confusions(said: Sequence[Verdict], doubtful: set[Key], stored: Mapping[Key, StoredImage]) -> list[Confusion]:
    pairs: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in said:
        if verdict.mistaken and verdict.key not in doubtful:
            one, other = sorted((verdict.key[0], verdict.instead))
            pairs[one, other].append(verdict)
    found = [
        Confusion(
            categories=pair,
            images=[stored[verdict.key] for verdict in sorted(images, key=lambda one: (-one.wrong, one.key))],
        )
        for pair, images in pairs.items()
    ]
    return sorted(found, key=lambda one: (-len(one.images), one.categories))
