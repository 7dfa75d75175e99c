"""Frozen dataclasses of stored categories, references and changes, and of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Modality: TypeAlias = Literal["text", "image"]
CalibrationState: TypeAlias = Literal["current", "stale", "none"]
KeepImages: TypeAlias = Literal["small", "none"]
Keep: TypeAlias = Literal["none", "uncertain", "all"]
Ranking: TypeAlias = tuple[tuple[str, float], ...]

CALIBRATION_FORMAT = 4
"""Format of stored calibrations; a calibration of another format is ignored."""


def expert_name(encoder: str, modality: Modality) -> str:
    """Name of the expert that compares images with the references of one encoder and modality."""
    return f"{encoder}:{modality}"


def encoder_and_modality(expert: str) -> tuple[str, Modality]:
    """Inverse of `expert_name`."""
    encoder, _, modality = expert.rpartition(":")
    return encoder, "text" if modality == "text" else "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identity of an encoder: vectors of different fingerprints are not comparable.

    Attributes:
        model: Model id, or ``sha256:…`` of weights loaded from a local path.
        revision: Commit of the hub's repository, for weights of a hub.
        dim: Dimension of the vectors.
        preprocessing: Description of the preprocessing of pixels and words.
    """

    model: str
    revision: str | None
    dim: int
    preprocessing: str

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.model}{revision} ({self.dim}-d, {self.preprocessing})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A committed category, from its manifest in the catalog.

    Attributes:
        name: The label.
        version: 1 for the first commit, and higher for each later one.
        rev: Microseconds since 1970 of the last change, by the writer's clock; above all revisions the writer had seen.
        write_ids: Ids of the committed writes. References of other writes are ignored.
        texts: Definition texts.
        references: Number of references of each expert, ``{"clip:text": 2, "clip:image": 5}``.
        metadata: The user's JSON.
    """

    name: str
    version: int
    rev: int
    write_ids: tuple[str, ...]
    texts: tuple[str, ...]
    references: Mapping[str, int]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def updated(self) -> datetime:
        """Time of the last commit (UTC)."""
        return datetime.fromtimestamp(self.rev / 1e6, tz=UTC)

    @property
    def images(self) -> int:
        """Number of reference images; if encoders differ, the largest."""
        counts = (n for expert, n in self.references.items() if encoder_and_modality(expert)[1] == "image")
        return max(counts, default=0)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec list --json`` prints."""
        return {
            "category": self.name,
            "version": self.version,
            "updated": self.updated.isoformat(timespec="seconds"),
            "texts": list(self.texts),
            "references": dict(self.references),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReference:
    """A stored text or image of a category.

    Attributes:
        category: Category of the reference.
        hash: Content hash of the text or image.
        modality: Text or image.
        source: The text itself, or the path or name of the image.
        prompt: Prompt of a generated image.
        group: Name of a group of images of the category, such as a burst.
        added: Time of addition (UTC), if known.
        by: Recorded author, if any.
        experts: Names of the experts that compare images with the reference.
    """

    category: str
    hash: str
    modality: Modality
    source: str
    prompt: str | None = None
    group: str | None = None
    added: datetime | None = None
    by: str | None = None
    experts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """An entry of the output of ``zsvec show --json``."""
        added = self.added and self.added.isoformat(timespec="seconds")
        return {**asdict(self), "added": added, "experts": list(self.experts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallImage:
    """A small copy of an image, for display.

    Attributes:
        hash: Content hash of the image.
        content: The copy, a JPEG file.
        width: Width of the original image, upright, in pixels.
        height: Height, likewise.
        source: Path or name of the image.
        added: Time of addition (UTC), if known.
    """

    hash: str
    content: bytes
    width: int
    height: int
    source: str
    added: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of categories within the undo window.

    Attributes:
        id: Id of the change.
        what: Kind of the change in one word, such as ``add`` or ``rename``.
        at: Time of the change (UTC).
        by: Recorded author, if any.
        categories: Names of the changed categories.
        undone: Whether the change was undone.
    """

    id: str
    what: str
    at: datetime
    by: str | None = None
    categories: tuple[str, ...] = ()
    undone: bool = False

    def to_dict(self) -> dict[str, Any]:
        """An entry of the output of ``zsvec history --json``."""
        return {**asdict(self), "at": self.at.isoformat(timespec="seconds"), "categories": list(self.categories)}


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The erased points of a forgotten image.

    Attributes:
        categories: Names of the categories that had the image.
        points: Number of erased points of all collections: references, replaced ones included, copies, and the inbox.
    """

    categories: tuple[str, ...]
    points: int


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A reference near the image, as evidence.

    Attributes:
        category: Category of the reference.
        similarity: Cosine of image and reference, -1 to 1.
        source: The text itself, or the path or name of the image.
        hash: Content hash of the text or image, for `Classifier.image`.
    """

    category: str
    similarity: float
    source: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOutput:
    """Evidence of one expert on one image.

    Attributes:
        weight: Share of the expert in the fusion; the shares of all experts sum to 1.
        entropy: Entropy, in nats, of the expert's distribution over the categories of its coverage.
        ranking: The most probable categories with their probabilities, 0 to 1, best first.
        neighbors: The references nearest to the image, nearest first.
    """

    weight: float
    entropy: float
    ranking: Ranking
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction for one image, with its evidence.

    Attributes:
        source: Path or name of the image.
        label: The most probable category; ``None`` for an unknown or unreadable image.
        nearest: The most probable category, of an unknown image too.
        probability: Fused probability of `nearest`, 0 to 1.
        unknown: Whether the novelty is above the threshold in force; False without a threshold.
        novelty: Novelty, 0 to 1. With a calibrated threshold, `false_unknown_rate` of the known images exceed 0.5.
            ``None`` without a calibration.
        distance: 1 - the largest cosine to a reference image, under the encoder with the largest distance; to a text
            without any images. 0 (an image equal to a reference) to 2.
        ranking: The most probable categories with their fused probabilities, best first.
        experts: Evidence of each expert, by name.
        fusion: The strategy that ran: the chosen one, or its fallback.
        calibration: Use of the store's calibration: ``current``, ``stale`` if categories have changed since, ``none``
            without a calibration for these settings.
        incomplete: Committed categories of which not all references could be read. They count with their last whole
            state, or not at all.
        stale_seconds: Age of the state of the store, while the store is unavailable; else 0 (`max_staleness`).
        error: Reason why there is no prediction, or ``None``.
        hash: Content hash of the image, for `Classifier.keep` and `Classifier.correct`; ``None`` unless requested (by
            ``keep``, in a stream) or for a path that was classified alone.
    """

    source: str
    label: str | None = None
    nearest: str | None = None
    probability: float | None = None
    unknown: bool = False
    novelty: float | None = None
    distance: float | None = None
    ranking: Ranking = ()
    experts: Mapping[str, ExpertOutput] = field(default_factory=dict)
    fusion: str | None = None
    calibration: CalibrationState = "none"
    incomplete: tuple[str, ...] = ()
    stale_seconds: float = 0.0
    error: str | None = None
    hash: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec classify --json`` prints."""
        experts = {
            name: {
                **fields_of(expert),
                "ranking": _labelled(expert.ranking),
                "neighbors": [asdict(neighbor) for neighbor in expert.neighbors],
            }
            for name, expert in self.experts.items()
        }
        ranking, incomplete = _labelled(self.ranking), list(self.incomplete)
        return {**fields_of(self), "ranking": ranking, "experts": experts, "incomplete": incomplete}

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.source}: not classified, {self.error}"
        unknown = "unknown; nearest is " if self.unknown else ""
        others = ", ".join(f"{label} {p:.1%}" for label, p in self.ranking[1:3])
        then = f" (then {others})" if others else ""
        return f"{self.source}: {unknown}{self.nearest} {self.probability:.1%}{then}, {how_far(self)}"


def how_far(prediction: Prediction) -> str:
    """The novelty of an image, for display; without a calibration, its distance."""
    if prediction.novelty is None:
        return f"distance {prediction.distance:.2f}"
    return f"novelty {prediction.novelty:.2f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun, such as ``1 image`` or ``2 categories``; by default the plural has an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def fields_of(value: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass by name; nested values are not converted, unlike by `dataclasses.asdict`."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _labelled(ranking: Ranking) -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in ranking]


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check of ``zsvec doctor``.

    Attributes:
        what: Name of the check.
        ok: Whether the checked thing works, or is not needed.
        detail: Result in words.
        advice: Recommended action; empty if none.
    """

    what: str
    ok: bool
    detail: str
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec doctor --json`` prints."""
        return asdict(self)
