"""Audit of the reference images of a store. Nothing is changed.

- *Labels*: images that the other references put into another category (`zsvec.method.quality.label_errors`).
- *Duplicates*: near-duplicates within a category or across categories (`zsvec.method.quality.neighborhoods`).
- *Outliers*: images whose nearest neighbors are distant (the weight of Angiulli & Pizzuti, "Fast outlier detection in
  high dimensional spaces", 2002; threshold in `zsvec.method.quality.neighborhoods`).
- *Thin categories*: too few pictures, or pictures that differ much less than in other categories.
- *Confusions*: pairs of categories whose images are confused. Images with a doubtful label do not count.

Labels and confusions need a calibration, which weights the evidence of each expert.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import filterfalse
from typing import Any

import numpy as np

from zsvec.method.arrays import Key
from zsvec.method.calibrate.fit import calibration_floor, expected_calibration_error
from zsvec.method.predict.background import FEWEST
from zsvec.method.quality.label_errors import Suspect, Verdict, suspects
from zsvec.method.quality.neighborhoods import Neighborhoods, closeness, far_below, neighborhoods
from zsvec.method.quality.scenes import image_rows, most_discriminating, spreads
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.notebook import Html, table
from zsvec.types import counted, is_attached

_OUTLIER_FENCE = 2.0  # interquartile ranges below the lower quartile of closeness
_UNIFORM_FENCE = 3.0  # interquartile ranges below the lower quartile of log spread
_SHOWN = 50  # findings in a notebook
_SHOWN_IMAGES = 4  # images of a finding in a notebook
_LEAST_SPREAD = 1e-6  # spread of equal images, above rounding errors


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A reference image.

    Attributes:
        category: Category of the image.
        hash: Content hash.
        source: Path or name of the image.
    """

    category: str
    hash: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Reference images that show the same picture.

    Attributes:
        images: Two or more images.
        across: Whether the images are in several categories, of which at most one is right. Always false where an image
            may belong to several categories.
        likeness: Smallest cosine between an image and its duplicate, -1 to 1.
    """

    images: Sequence[StoredImage]
    across: bool
    likeness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A reference image unlike all others.

    Attributes:
        image: The image.
        similarity: Mean cosine to the three nearest images that show other pictures, -1 to 1.
    """

    image: StoredImage
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinCategory:
    """A category with too few different reference images.

    Attributes:
        category: Name of the category.
        images: Number of reference images.
        pictures: Number of different pictures; duplicates count once.
        spread: Median distance (1 - cosine) between two images, 0 to 2; ``None`` for fewer than two images.
        uniform: Whether the category has enough images, but the images show few pictures or differ too little.
    """

    category: str
    images: int
    pictures: int
    spread: float | None
    uniform: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Two categories whose reference images are confused.

    Attributes:
        categories: Names of the categories, in ascending order.
        images: Images of either category that the remaining references put into the other category.
    """

    categories: tuple[str, str]
    images: Sequence[StoredImage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Findings about the reference images of a store. Each kind begins with the most doubtful.

    Attributes:
        images: Number of reference images.
        judged: Number of judged labels; 0 without a calibration. The label of an image is not judged if the category
            has no other image, or if the image lacks the vector of an encoder.
        calibrated: Whether the store has a calibration by which labels can be judged.
        labels: Probable label errors, the most probable first.
        duplicates: Near-duplicates: across categories first, then by number of images.
        outliers: Outliers, the farthest first.
        thin: Categories with too few different images, fewest pictures first.
        confusions: Confused pairs of categories, the pairs with the most images first.
        kept: Number of findings that are left out, because they were kept (`StoredReferences.keep`).
        mistaken: Number of judged images that the other references put into another category. The accuracy by
            leave-one-out is ``1 - mistaken / judged``; wrong labels count as mistakes.
        confidence: Mean probability of the most probable category, over the judged images that no other category has.
            ``None`` without such images.
        ece: Expected calibration error of these probabilities, 0 to 1.
        ece_floor: Mean `ece` that perfectly calibrated probabilities have by chance alone on these images.
    """

    images: int
    judged: int
    calibrated: bool
    labels: Sequence[Suspect] = ()
    duplicates: Sequence[Duplicates] = ()
    outliers: Sequence[Outlier] = ()
    thin: Sequence[ThinCategory] = ()
    confusions: Sequence[Confusion] = ()
    kept: int = 0
    mistaken: int = 0
    confidence: float | None = None
    ece: float | None = None
    ece_floor: float | None = None

    def __repr__(self) -> str:
        return f"<zsvec.Audit of {counted(self.images, 'image')}, {counted(len(self._findings()), 'finding')}>"

    def _repr_html_(self) -> str:
        return self._html(lambda *_: None)

    def _html(self, picture: Callable[[str, str, str], Html | None]) -> Html:
        """As `_repr_html_`, with pictures, which `picture` finds by hash, with a caption and a description."""
        findings = self._findings()
        rows: list[tuple[object, ...]] = []
        for kind, text, images in findings[:_SHOWN]:
            shown = (
                picture(digest, category, source) or f"{category}: {source}"
                for category, digest, source in images[:_SHOWN_IMAGES]
            )
            rows.append((kind, text, *shown))
        if len(findings) > _SHOWN:
            rows.append(("", f"and {counted(len(findings) - _SHOWN, 'more finding')}"))
        return table(f"Audit of {counted(self.images, 'image')}: {counted(len(findings), 'finding')}", rows)

    def _findings(self) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
        """Returns kind and description of each finding, and category, hash and source of its images."""
        found = [
            (
                "label",
                f"{one.category}, probably {one.instead} ({one.probability:.0%})",
                [(one.category, one.hash, one.source)],
            )
            for one in self.labels
        ]
        found += [
            ("duplicates", f"{'across' if one.across else 'within'} categories", list(map(_parts, one.images)))
            for one in self.duplicates
        ]
        found += [("outlier", one.image.category, [_parts(one.image)]) for one in self.outliers]
        found += [("thin category", f"{one.category}: {counted(one.pictures, 'picture')}", []) for one in self.thin]
        return found + [
            ("confusion", " and ".join(one.categories), list(map(_parts, one.images))) for one in self.confusions
        ]

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the objects that ``zsvec audit --json`` prints: a summary, then the findings, each with its kind."""
        kinds: dict[str, Sequence[Suspect | Duplicates | Outlier | ThinCategory | Confusion]] = {
            "label": self.labels,
            "duplicates": self.duplicates,
            "outlier": self.outliers,
            "thin": self.thin,
            "confusion": self.confusions,
        }
        yield {
            "finding": "summary",
            "images": self.images,
            "judged": self.judged,
            "calibrated": self.calibrated,
            **{name: len(getattr(self, name)) for name in ("labels", "duplicates", "outliers", "thin", "confusions")},
            "kept": self.kept,
            "mistaken": self.mistaken,
        }
        for kind, found in kinds.items():
            yield from ({"finding": kind, **asdict(one)} for one in found)


def _parts(image: StoredImage) -> tuple[str, str, str]:
    return image.category, image.hash, image.source


def audited(
    references: Mapping[str, References], verdicts: Sequence[Verdict] | None, *, multilabel: bool = False
) -> Audit:
    """Returns the audit of references.

    Args:
        references: All references of the store, by expert.
        verdicts: Verdicts on the labels; ``None`` without a calibration.
        multilabel: Whether an image may belong to several categories. Then the same image in several is no finding.
    """
    stored = {
        key: StoredImage(category=key[0], hash=key[1], source=source)
        for found in image_experts(references).values()
        for key, source in zip(found.keys, found.sources, strict=True)
    }
    labels = suspects(references, verdicts or ())
    if not stored:
        return Audit(images=0, judged=0, calibrated=verdicts is not None)
    rows = image_rows(references)
    most = max(map(len, rows.values()))  # a vector that was given alone, or a point of others, is of one encoder
    whole = {expert: references[expert] for expert, row in rows.items() if len(row) == most}
    best = whole[most_discriminating(whole, rows, stored)]
    spread = spreads(best)
    compared = neighborhoods(best, spread)
    confidence, error, floor = _calibration_error(verdicts or ())
    return Audit(
        images=len(stored),
        judged=len(verdicts or ()),
        calibrated=verdicts is not None,
        labels=labels,
        duplicates=_duplicates(compared, stored, multilabel=multilabel),
        outliers=[
            Outlier(image=stored[compared.keys[image]], similarity=float(compared.nearest[image]))
            for image in far_below(closeness(compared.nearest, best.starts), _OUTLIER_FENCE)
        ],
        thin=_thin(category_names(references), compared, spread),
        confusions=_confusions(verdicts or (), {(suspect.category, suspect.hash) for suspect in labels}, stored),
        mistaken=sum(verdict.mistaken for verdict in verdicts or ()),
        confidence=confidence,
        ece=error,
        ece_floor=floor,
    )


def _calibration_error(verdicts: Sequence[Verdict]) -> tuple[float, float, float] | tuple[None, None, None]:
    """Returns the mean confidence, the expected calibration error, and the floor of the error."""
    told = [(one.confidence, not one.mistaken) for one in verdicts if one.confidence is not None]
    if not told:
        return None, None, None
    confidence, right = (np.array(values) for values in zip(*told, strict=True))
    return float(confidence.mean()), expected_calibration_error(confidence, right), calibration_floor(confidence)


def split_kept(found: Audit, is_kept: Callable[[str, str, str], bool]) -> tuple[Audit, Audit]:
    """Splits an audit into the findings that wait for a decision, and the findings that were kept.

    Args:
        found: The audit.
        is_kept: As `zsvec.store.Store.kept` returns it.
    """

    def all_kept(finding: str, images: Iterable[StoredImage | Suspect]) -> bool:
        own = [image for image in images if not is_attached(image.hash)]
        return bool(own) and all(is_kept(finding, image.category, image.hash) for image in own)

    tests: dict[str, Callable[[Any], bool]] = {
        "labels": lambda one: all_kept("label", [one]),
        "duplicates": lambda one: all_kept("duplicates", one.images),
        "outliers": lambda one: all_kept("outlier", [one.image]),
        "confusions": lambda one: all_kept("confusion", one.images),
    }
    kept: dict[str, Any] = {name: [*filter(test, getattr(found, name))] for name, test in tests.items()}
    waiting: dict[str, Any] = {name: [*filterfalse(test, getattr(found, name))] for name, test in tests.items()}
    number = sum(map(len, kept.values()))
    return replace(found, **waiting, kept=number) if number else found, replace(found, **kept, thin=[])


def _duplicates(compared: Neighborhoods, stored: Mapping[Key, StoredImage], *, multilabel: bool) -> list[Duplicates]:
    members: dict[int, list[int]] = defaultdict(list)
    for image in np.flatnonzero(~np.isnan(compared.likeness)).tolist():
        members[int(compared.pictures[image])].append(image)
    found = [
        Duplicates(
            images=sorted(
                (stored[compared.keys[image]] for image in images), key=lambda one: (one.category, one.source, one.hash)
            ),
            across=not multilabel and len({compared.keys[image][0] for image in images}) > 1,
            likeness=float(compared.likeness[images].min()),
        )
        for images in members.values()
        if not multilabel or len({compared.keys[image][1] for image in images}) > 1
    ]
    return sorted(found, key=lambda one: (not one.across, -len(one.images), -one.likeness))


def _thin(names: Sequence[str], compared: Neighborhoods, spread: Mapping[str, float]) -> list[ThinCategory]:
    """Returns the thin categories, including categories without images."""
    images = Counter(name for name, _ in compared.keys)
    shown = zip(compared.keys, compared.pictures.tolist(), strict=True)
    pictures = Counter(name for name, _ in {(key[0], picture) for key, picture in shown})
    scales = np.log(np.maximum(list(spread.values()), _LEAST_SPREAD))
    differ_little = {list(spread)[position] for position in far_below(scales, _UNIFORM_FENCE)}
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


def _confusions(verdicts: Sequence[Verdict], doubtful: set[Key], stored: Mapping[Key, StoredImage]) -> list[Confusion]:
    pairs: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
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
