"""The words of zsvec as frozen dataclasses: what the store holds, and what a classification says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

Modality: TypeAlias = Literal["text", "image"]
CalibrationState: TypeAlias = Literal["current", "stale", "none"]
KeepImages: TypeAlias = Literal["small", "none"]
Keep: TypeAlias = Literal["none", "uncertain", "all"]
Ranking: TypeAlias = tuple[tuple[str, float], ...]

CALIBRATION_FORMAT = 4
"""Of the calibration that is kept with a store; one of another format counts as none."""


def expert_name(encoder: str, modality: Modality) -> str:
    """Name of the expert that compares an image with the references of one encoder and modality."""
    return f"{encoder}:{modality}"


def encoder_and_modality(expert: str) -> tuple[str, Modality]:
    """What `expert_name` made an expert's name from."""
    encoder, _, modality = expert.rpartition(":")
    return encoder, "text" if modality == "text" else "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What must be equal for two vectors to be comparable.

    Attributes:
        model: Model id, or ``sha256:…`` of the weights when they were loaded from a local path.
        revision: Commit of the hub's repository, where the weights come from one.
        dim: Dimension of the vectors.
        preprocessing: From pixels and words to what the model eats, in words.
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
    """A committed category: what its manifest in the catalog says.

    Attributes:
        name: The label.
        version: 1 for the first commit, and higher for each later one.
        rev: Microseconds since 1970 of the last change, by the clock of its writer; above all that it had seen.
        write_ids: Ids of the writes whose references count. References of other writes are ignored.
        texts: Definition texts.
        references: Number of references of each expert, ``{"clip:text": 2, "clip:image": 5}``.
        metadata: Whatever the user stored with it; JSON.
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
        """When the last commit was made (UTC)."""
        return datetime.fromtimestamp(self.rev / 1e6, tz=UTC)

    @property
    def images(self) -> int:
        """Number of reference images; where encoders differ, of the one that has most."""
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
    """A text or an image of a category, as the store has it.

    Attributes:
        category: Whose reference it is.
        hash: Content hash of the text or image.
        modality: What it is.
        source: The text itself, or where the image came from.
        prompt: What a generated image was drawn from.
        group: Names the images of the category that it belongs together with, such as those of a burst.
        added: When it was added (UTC); ``None`` if it was by a version that did not keep that.
        by: Who added it, if that was said.
        experts: Names of the experts that have it.
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
        """An entry of what ``zsvec show --json`` prints."""
        added = self.added and self.added.isoformat(timespec="seconds")
        return {**asdict(self), "added": added, "experts": list(self.experts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallImage:
    """A small copy of an image, for people to look at.

    Attributes:
        hash: Content hash of the image.
        content: The copy as a file: a JPEG.
        width: Of the image itself, upright, in pixels.
        height: Likewise.
        source: Where the image came from.
        added: When it was added (UTC), if that is known.
    """

    hash: str
    content: bytes
    width: int
    height: int
    source: str
    added: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of categories that can be taken back, or was.

    Attributes:
        id: Names it.
        what: In one word, such as ``add`` or ``rename``.
        at: When it was made (UTC).
        by: Who made it, if that was said.
        categories: Those that it has changed, by name.
        undone: Whether it is taken back.
    """

    id: str
    what: str
    at: datetime
    by: str | None = None
    categories: tuple[str, ...] = ()
    undone: bool = False

    def to_dict(self) -> dict[str, Any]:
        """An entry of what ``zsvec history --json`` prints."""
        return {**asdict(self), "at": self.at.isoformat(timespec="seconds"), "categories": list(self.categories)}


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What there was of an image that is forgotten.

    Attributes:
        categories: Those that had it, by name.
        points: How many points of all collections had it: references, also replaced ones, copies and one that waited.
    """

    categories: tuple[str, ...]
    points: int


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A reference near to the image: evidence.

    Attributes:
        category: Whose reference it is.
        similarity: Cosine of image and reference, -1 to 1.
        source: Where the reference came from: the text itself, a path, or ``image``.
        hash: Content hash of the text or image, by which `Classifier.image` finds its small copy.
    """

    category: str
    similarity: float
    source: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOutput:
    """What one expert says about one image.

    Attributes:
        weight: Its share in the fusion; the shares of all experts sum to 1.
        entropy: Entropy of its distribution over the categories it covers, in nats.
        ranking: Its best categories with their probabilities, best first.
        neighbors: The references nearest to the image, nearest first.
    """

    weight: float
    entropy: float
    ranking: Ranking
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one image, with its evidence.

    Attributes:
        source: Where the image came from.
        label: The most probable category; ``None`` when the image is unknown, or could not be read.
        nearest: The most probable category, of an unknown image too.
        probability: Its fused probability, 0 to 1.
        unknown: Whether the novelty is above the threshold in force (never, without one).
        novelty: Novelty, 0 to 1. With a calibrated threshold, `false_unknown_rate` of the known images exceed 0.5.
            ``None`` without a calibration.
        distance: 1 - the largest cosine to a reference image, under the encoder that sees the image farthest; to a text
            where there are no images. 0 (a reference itself) to 2.
        ranking: The best categories with their fused probabilities, best first.
        experts: What each expert says, by name.
        fusion: The strategy that ran: the one that was chosen, or what it had to fall back to.
        calibration: Whether the store's calibration was used: ``current``, ``stale`` if categories have
            changed since it was made, ``none`` if there is none, or none for these settings.
        incomplete: Committed categories of which not all references could be read at the moment. They count as they
            were before, or not at all.
        stale_seconds: How long ago the state of the store was read that answered, while the store is away; 0 if it is
            not away (`max_staleness`).
        error: Why there is no answer, or ``None``.
        hash: Content hash of the image, by which `Classifier.keep` and `Classifier.correct` find it; ``None`` unless it
            was asked for (by ``keep``, in a stream) or is of a path that was classified alone.
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
        return {
            "source": self.source,
            "label": self.label,
            "nearest": self.nearest,
            "probability": self.probability,
            "unknown": self.unknown,
            "novelty": self.novelty,
            "distance": self.distance,
            "ranking": _labelled(self.ranking),
            "experts": {
                name: {
                    "weight": expert.weight,
                    "entropy": expert.entropy,
                    "ranking": _labelled(expert.ranking),
                    "neighbors": [asdict(neighbor) for neighbor in expert.neighbors],
                }
                for name, expert in self.experts.items()
            },
            "fusion": self.fusion,
            "calibration": self.calibration,
            "incomplete": list(self.incomplete),
            "stale_seconds": self.stale_seconds,
            "error": self.error,
            "hash": self.hash,
        }

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.source}: not classified, {self.error}"
        unknown = "unknown; nearest is " if self.unknown else ""
        others = ", ".join(f"{label} {p:.1%}" for label, p in self.ranking[1:3])
        then = f" (then {others})" if others else ""
        return f"{self.source}: {unknown}{self.nearest} {self.probability:.1%}{then}, {how_far(self)}"


def how_far(prediction: Prediction) -> str:
    """The novelty of an image in words; without a calibration, its distance."""
    if prediction.novelty is None:
        return f"distance {prediction.distance:.2f}"
    return f"novelty {prediction.novelty:.2f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things, such as ``1 image`` or ``2 categories``; `many` is `one` with an s where it is not given."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _labelled(ranking: Ranking) -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in ranking]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined.

    Attributes:
        what: The thing.
        ok: Whether it works, or is not needed.
        detail: What was found.
        advice: What to do; empty if nothing.
    """

    what: str
    ok: bool
    detail: str
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec doctor --json`` prints."""
        return asdict(self)
