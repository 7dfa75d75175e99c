"""Frozen dataclasses for predictions, and for stored categories, references and changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from math import ceil
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zsvec.errors import InvalidInputError, shown
from zsvec.notebook import Html, bar, table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Modality: TypeAlias = Literal["text", "image"]
CalibrationState: TypeAlias = Literal["current", "stale", "none"]
KeepImages: TypeAlias = Literal["small", "none"]
Keep: TypeAlias = Literal["none", "uncertain", "all"]
Labels: TypeAlias = Literal["one", "many"]
Ranking: TypeAlias = tuple[tuple[str, float], ...]
Uncertainty: TypeAlias = Literal["unknown", "close", "disputed"]
NoveltyBasis: TypeAlias = Literal["words", "references", "both"]
TrackId: TypeAlias = int | str

_SHOWN = 5  # definition texts of a category in a notebook
_PICTURES = 3  # nearest references of an expert in a notebook
_CLOSE = 0.3  # margin, in probability, below which an image is uncertain
_DISPUTED = 0.5  # `Prediction.at_odds` above which an image is uncertain
_IN_WORDS: tuple[Modality, ...] = ("image", "text")

MAX_IMAGES = 2**53 - 1
"""Largest number of images in a `ThresholdProgress`: the largest integer that every reader of JSON keeps exact."""
MAX_OVERSAMPLING = 64
"""Largest `SearchParams.oversampling`: candidates for each reference that a query returns."""
MAX_EF = 65_536
"""Largest `SearchParams.ef`: candidates that the search of an HNSW graph keeps."""
MAX_MARGIN = 10
"""Largest `Region.margin`."""
CALIBRATION_FORMAT = 7
"""Format version of stored calibrations. Calibrations with another version are ignored."""
LONGEST_NAME = 500
"""Maximum number of characters of a category name, and of a parent."""
PARENT_MARK = " > "
"""Text between the names of a parent."""
MAX_LEVELS = 32
"""Largest number of names in a parent, and of nodes above a category."""


POINT_MARK = "#"
"""Character between collection and id in the hash of a point of an attached collection. No content hash has it."""


def is_attached(content_hash: str) -> bool:
    """Returns whether the hash of a reference names a point of an attached collection."""
    return POINT_MARK in content_hash


def expert_name(encoder: str, modality: Modality) -> str:
    """Returns the name of the expert for an encoder and a modality, such as ``clip:text``."""
    return f"{encoder}:{modality}"


def names_of_parent(parent: str) -> tuple[str, ...]:
    """Returns the names of a parent such as ``animal > bird``, topmost first; none for an empty parent."""
    return tuple(parent.split(PARENT_MARK)) if parent else ()


def encoder_and_modality(expert: str) -> tuple[str, Modality]:
    """Returns the encoder and the modality of an expert, from the name that `expert_name` returned."""
    encoder, _, modality = expert.rpartition(":")
    return encoder, "text" if modality == "text" else "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identity of an encoder. Vectors of encoders with different fingerprints cannot be compared.

    Attributes:
        model: Model id, or ``sha256:…`` for weights from a local path.
        revision: Commit of the hub repository that has the weights; ``None`` for weights from a local path.
        dim: Dimension of the vectors.
        preprocessing: Description of how images and texts are preprocessed.
    """

    model: str
    revision: str | None
    dim: int
    preprocessing: str

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.model}{revision} ({self.dim}-d, {self.preprocessing})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Category:
    """A committed category, from its manifest in the catalog.

    Attributes:
        name: The label.
        version: 1 at the first commit, and a higher number at each later commit. 0 if only attached collections have
            the category.
        rev: Revision of the last change of references, texts or metadata: microseconds since 1970 by the writer's
            clock, or more, to exceed every revision that the writer had seen.
        write_ids: Ids of the committed writes. References of other writes are ignored.
        texts: Definition texts.
        references: Number of references by expert, such as ``{"clip:text": 2, "clip:image": 5}``.
        attached: Of these, the number of points of attached collections, by expert (`Classifier.attach`).
        metadata: JSON object that the user stored with the category.
        parent: The names above the category in the tree, topmost first: ``animal > bird``; empty at the top.
        withdrawn: The first 16 characters of the content hash of each reference that was moved or removed from the
            category and not added again since, oldest first.
        retired: Whether the category was removed, renamed or merged into another. Then it has no write ids.
        kept: Marks of the images in findings of an audit that were kept, oldest first: the first letter of the kind of
            the finding, and the first 16 characters of the content hash.
    """

    name: str
    version: int
    rev: int
    write_ids: tuple[str, ...]
    texts: tuple[str, ...]
    references: Mapping[str, int]
    attached: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent: str = ""
    withdrawn: tuple[str, ...] = ()
    retired: bool = False
    kept: tuple[str, ...] = ()

    @property
    def own(self) -> Mapping[str, int]:
        """Number of references by expert, without those of attached collections."""
        if not self.attached:
            return self.references
        return {expert: own for expert, n in self.references.items() if (own := n - self.attached.get(expert, 0))}

    @property
    def updated(self) -> datetime:
        """Time of the last change (UTC)."""
        return datetime.fromtimestamp(self.rev / 1e6, tz=UTC)

    @property
    def images(self) -> int:
        """Number of reference images. If this number differs between encoders, the largest number."""
        return _largest_number(self.references, "image")

    @property
    def own_images(self) -> int:
        """As `images`, without those of attached collections."""
        return _largest_number(self.own, "image")

    def __repr__(self) -> str:
        return _one_line(self, name=self.name, images=self.images, texts=len(self.texts), version=self.version)

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [("text", text) for text in self.texts[:_SHOWN]]
        if len(self.texts) > _SHOWN:
            rows.append(("", f"and {counted(len(self.texts) - _SHOWN, 'more text')}"))
        rows += [(expert, counted(n, "reference")) for expert, n in self.references.items()]
        rows.append(("updated", f"{self.updated:%Y-%m-%d %H:%M} UTC, version {self.version}"))
        return table(self.name, rows)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec list --json`` prints."""
        return {
            "category": self.name,
            "version": self.version,
            "updated": self.updated.isoformat(timespec="seconds") if self.version else None,
            "texts": list(self.texts),
            "references": dict(self.references),
            **({"attached": dict(self.attached)} if self.attached else {}),
            **({"parent": self.parent} if self.parent else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """The arguments of `Classifier.attach`, which makes the points of another collection references of a store.

    Attributes:
        collection: Name of the collection, in the deployment of the store.
        expert: Expert of the vectors, such as ``clip:image``.
        label: Payload field with the category of a point. Dots lead into nested objects: ``metadata.brand``.
        vector: Name of the vector; empty for the only vector of a point.
        where: Value that each of these payload fields must have.
        source: Payload field with the path of the image, or with the text.
        refresh: Seconds after which labels are read again.
        compared: Number of sources that were embedded again and gave the stored vectors.
        id: Random id, new with each call of `Classifier.attach`.
    """

    collection: str
    expert: str
    label: str
    vector: str = ""
    where: Mapping[str, str | int | bool] = field(default_factory=dict)
    source: str | None = None
    refresh: float = 60.0
    compared: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """An attached collection, as it was last read.

    Attributes:
        attachment: What was attached.
        points: Number of points that are references.
        categories: Number of categories that these points belong to.
        left_out: Number of points that are no references, by reason.
        age: Seconds since the labels were read; ``None`` if they never were.
        problem: Why the last read failed; ``None`` if it has succeeded.
    """

    attachment: Attachment
    points: int = 0
    categories: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    age: float | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec attached --json`` prints."""
        own = {name: value for name, value in asdict(self.attachment).items() if name != "id"}
        return {**own, **{name: value for name, value in fields_of(self).items() if name != "attachment"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReference:
    """A stored text or image of a category.

    Attributes:
        category: Category of the reference.
        hash: Content hash of the text or image.
        modality: Text or image.
        source: The text itself, or the path or name of the image.
        prompt: Prompt of a generated image.
        group: Name of the group of related images that the image belongs to, such as a burst.
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
        content: Content of the copy, a JPEG file.
        width: Width of the original image in pixels, with the image upright.
        height: Height of the original image in pixels, with the image upright.
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
    """A change of categories or of the inbox, recent enough to be in the history (setting ``history``).

    Attributes:
        id: Id of the change.
        what: Kind of the change in one word, such as ``add`` or ``rename``.
        at: Time of the last write of the change (UTC).
        begun: Time of the first write of the change (UTC).
        by: Recorded author, if any.
        categories: Names of the changed categories; empty if only the inbox has changed.
        moved: Source and target, if references moved from one category to another; empty for another change.
        images: Number of images that were added, moved, removed, kept or dismissed.
        examples: Content hashes of a few of these images.
        undone: Whether the change was undone.
        final: Whether the change erased an image (``forget``), and therefore cannot be undone.
        left_out: Categories that `undo` has left as they are, if the change is an undo: they have been changed since.
            Empty in the history.
    """

    id: str
    what: str
    at: datetime
    begun: datetime
    by: str | None = None
    categories: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    images: int = 0
    examples: tuple[str, ...] = ()
    undone: bool = False
    final: bool = False
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """An entry of the output of ``zsvec history --json``."""
        lists = {name: list(getattr(self, name)) for name in ("categories", "moved", "examples", "left_out")}
        times = {name: getattr(self, name).isoformat(timespec="seconds") for name in ("at", "begun")}
        return {**asdict(self), **lists, **times}


SWITCH = "reembed"
"""Kind of a change that switches a store to other encoders. It has no categories."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Result of erasing an image from a store.

    Attributes:
        categories: Names of the categories that contained the image or a box that was cut from it.
        points: Number of points erased from all collections: current and replaced references, small copies, and images
            of the inbox.
        boxes: Number of boxes that were cut from the image, erased with it.
    """

    categories: tuple[str, ...]
    points: int
    boxes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Result of copying a store to another, of an export to an archive, or of an import from one.

    Attributes:
        categories: The copied categories, as committed in the target.
        unchanged: Names of categories that the target already had with the same content.
        different: Names of categories that the target has with other content, and that stay as they are.
        damaged: By name of each category that cannot be copied, the reason.
        changed: Names of categories that other writers changed in the source during the copy.
        only_target: Names of categories that the target has and the source has not. They stay.
        inbox: Number of copied images of the inbox.
        calibration: Whether the target has the calibration of the source; ``None`` if the source has none, or a damaged
            one. If the target has other categories, or a current calibration, it keeps its calibration.
        size: Number of bytes of the copied vectors and small images, without the inbox.
    """

    categories: tuple[Category, ...]
    unchanged: tuple[str, ...] = ()
    different: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    only_target: tuple[str, ...] = ()
    inbox: int = 0
    calibration: bool | None = None
    size: int = 0

    @property
    def complete(self) -> bool:
        """Whether the target now has each category of the source with the same content."""
        return not (self.different or self.damaged or self.changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reembedded:
    """Result of embedding the references of a store again with other encoders.

    Attributes:
        namespace: Namespace of the copy.
        categories: Categories of the copy that this run has committed.
        unchanged: Names of categories that the copy already had.
        originals: Number of images that this run has embedded from their original files.
        small: Number of images that this run has embedded from their small copies.
        left_out: By category, the references that could not be embedded; their ``experts`` lack them.
        damaged: By name of each category that the copy lacks, the reason.
        inbox: Number of images of the inbox that were embedded, at the switch.
        inbox_left_out: Sources of the images of the inbox that could not be embedded, at the switch.
        change: The switch to the copy, which can be undone; ``None`` without a switch.
        detached: Names of attached collections that the copy does not have, since their encoder is not among its own.
    """

    namespace: str
    categories: tuple[Category, ...] = ()
    unchanged: tuple[str, ...] = ()
    originals: int = 0
    small: int = 0
    left_out: Mapping[str, tuple[StoredReference, ...]] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    inbox: int = 0
    inbox_left_out: tuple[str, ...] = ()
    change: Change | None = None
    detached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """Result of bringing a store in step with the store that it follows.

    Attributes:
        categories: The added and changed categories, as committed.
        removed: Names of categories that were removed, because they were removed from the followed store.
        different: Names of categories that were made here and that the followed store has with other content. They stay
            as they are.
        damaged: By name of each category that cannot be copied, the reason. Its last state stays.
        own: Names of categories that were made here. They stay.
        calibration: Whether this store has the calibration of the followed store; ``None`` if that has none. A store
            with other categories keeps its calibration.
        size: Number of bytes of the copied vectors and small images.
    """

    categories: tuple[Category, ...] = ()
    removed: tuple[str, ...] = ()
    different: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    calibration: bool | None = None
    size: int = 0

    @property
    def complete(self) -> bool:
        """Whether the store now has each category of the followed store with the same content."""
        return not (self.different or self.damaged)


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One of the references that are most similar to the classified image.

    Attributes:
        category: Category of the reference.
        similarity: Cosine similarity of the image and the reference, -1 to 1.
        source: The text itself, or the path or name of the image.
        hash: Content hash of the text or image, for `Classifier.image`. For a point of an attached collection, the name
            of the collection and the id of the point, such as ``products#17``.
    """

    category: str
    similarity: float
    source: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Similar:
    """Images of a store that are similar to an image. `Neighbor.similarity` is the mean cosine over the image encoders.

    Attributes:
        references: The nearest reference images, nearest first, without points of attached collections.
        waiting: The nearest images that wait in the inbox, nearest first. Their category is empty.
    """

    references: tuple[Neighbor, ...]
    waiting: tuple[Neighbor, ...]


@dataclass(frozen=True, slots=True)
class ThresholdProgress:
    """Progress of a store towards a rejection threshold that keeps the false-unknown rate.

    Attributes:
        images: Number of reference images that count.
        needed: Number of such images from which the threshold can be learned; greater than `images`.
        one_scene: Number of images that do not count, because their category has no image of another scene. Among them
            is the only image of a category.
        copied: Number of images that do not count, because another category has the same picture.
    """

    images: int
    needed: int
    one_scene: int = 0
    copied: int = 0

    def __str__(self) -> str:
        return (
            f"{self.images} of {counted(self.needed, 'image')} until unknown images can be rejected as you asked; "
            "until then, a prior also decides" + (f"; not counted: {self.not_counted}" if self.not_counted else "")
        )

    @property
    def not_counted(self) -> str:
        """The images that do not count, in words, by reason. Empty if all images count."""
        reasons = {"of categories that show one scene": self.one_scene, "with a copy in another category": self.copied}
        return ", ".join(f"{counted(number, 'image')} {reason}" for reason, number in reasons.items() if number)

    @classmethod
    def from_dict(cls, values: object) -> ThresholdProgress | None:
        """Reads an entry of a stored calibration, which any writer may have made. Returns ``None`` if it is invalid."""
        match values:
            case {"images": int(images), "needed": int(needed), **others} if 0 <= images < needed <= MAX_IMAGES:
                match [others.get("one_scene", 0), others.get("copied", 0)]:
                    case [int(one_scene), int(copied)] if (
                        0 <= min(one_scene, copied) <= max(one_scene, copied) <= MAX_IMAGES
                    ):
                        return cls(int(images), int(needed), int(one_scene), int(copied))  # a bool becomes a number
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchParams:
    """How a Qdrant server finds the references that are nearest to an image.

    The default compares the image with every reference in float32. With `oversampling`, the server chooses candidates
    by int8 copies of the vectors, and compares only the candidates in float32.

    Attributes:
        oversampling: Number of candidates for each reference that a query returns, 1 to 64. ``None`` compares every
            reference in float32.
        ef: Number of candidates that the search of an HNSW graph keeps, 1 to 65,536. ``None`` scans all int8 vectors.
    """

    oversampling: float | None = None
    ef: int | None = None

    @property
    def exact(self) -> bool:
        """Whether every reference is compared in float32."""
        return self.oversampling is None

    def __str__(self) -> str:
        if self.oversampling is None:
            return "exact"
        return f"{f'HNSW graph, ef {self.ef}' if self.ef else 'int8 scan'}, oversampling {self.oversampling:g}"

    @classmethod
    def from_dict(cls, values: object) -> SearchParams:
        """Reads an entry of the catalog, which any writer may have made. Returns exact search if it is invalid."""
        match values:
            case {"oversampling": float() | int() as oversampling, "ef": None | int() as ef}:
                params = cls(oversampling=float(oversampling), ef=None if ef is None else int(ef))
                return params if params.is_valid() else cls()
        return cls()

    def is_valid(self) -> bool:
        """Returns whether the numbers are within their ranges, and `ef` is not given without `oversampling`."""
        if self.oversampling is None:
            return self.ef is None
        return 1 <= self.oversampling <= MAX_OVERSAMPLING and (self.ef is None or 1 <= self.ef <= MAX_EF)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuality:
    """Quality and speed of a search with some parameters, measured on stored references.

    Attributes:
        params: The parameters.
        recall: Fraction, 0 to 1, of the nearest references by exact search that this search finds.
        same_label: Fraction of images, 0 to 1, with the same most probable category as by exact search.
        ms: Median time of a search in milliseconds an image, over all experts, in batches of 64 images.
    """

    params: SearchParams
    recall: float
    same_label: float
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchMeasurement:
    """Result of `zsvec optimize --measure`.

    Attributes:
        measured: Time of the measurement (UTC).
        images: Number of stored reference images that were searched, each without itself.
        k: Number of nearest references that recall counts, for each expert.
        rows: One row for each tried setting, exact search first.
    """

    measured: datetime
    images: int
    k: int
    rows: tuple[SearchQuality, ...]

    def of(self, params: SearchParams) -> SearchQuality | None:
        """Returns the row of a setting, if it was tried."""
        return next((row for row in self.rows if row.params == params), None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that the store keeps, and that ``zsvec optimize --measure --json`` prints."""
        return {**asdict(self), "measured": self.measured.isoformat(), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, values: object) -> SearchMeasurement | None:
        """Reads an entry of the catalog, which any writer may have made. Returns ``None`` if it is invalid."""
        match values:
            case {"measured": str(measured), "images": int(images), "k": int(k), "rows": list(rows)}:
                try:
                    found = tuple(SearchQuality(**{**row, "params": SearchParams(**row["params"])}) for row in rows)
                    sound = all(row.params.is_valid() and _is_quality(row) for row in found)
                    return cls(measured=_utc(measured), images=images, k=k, rows=found) if sound else None
                except (TypeError, ValueError, KeyError, OverflowError):
                    return None
        return None


def _is_quality(row: SearchQuality) -> bool:
    numbers = (row.recall, row.same_label, row.ms)
    return all(isinstance(n, int | float) and 0 <= n < MAX_IMAGES for n in numbers) and max(numbers[:2]) <= 1


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOutput:
    """Evidence of one expert on one image.

    Attributes:
        weight: Share of the expert in the fusion; the shares of all experts sum to 1.
        entropy: Entropy, in nats, of the expert's distribution over the categories that the expert covers.
        ranking: The most probable categories with their probabilities, 0 to 1, best first.
        neighbors: The references nearest to the image, nearest first.
    """

    weight: float
    entropy: float
    ranking: Ranking
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSets:
    """Sets of categories, one of which is the category of the image with a wanted probability, the coverage.

    The promise is for images like the references: of 100 such images, the sets of coverage 0.95 have the right category
    of 95. Categories with 19 left-out images or more each have this promise.

    Attributes:
        entries: Categories with the coverage from which on the set has the category, 0.5 to 0.99 in steps of 0.01,
            ascending. Every set has the first category, the most probable one.
        up_to: Largest coverage that the references can promise, at most 0.99. If more than 100 categories may be the
            right one, the largest coverage of a smaller set.
    """

    entries: Ranking
    up_to: float

    def to_dict(self) -> dict[str, Any]:
        """A part of the object that ``zsvec classify --json`` prints."""
        entries = [{"label": label, "coverage": coverage} for label, coverage in self.entries]
        return {"entries": entries, "up_to": self.up_to}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prediction:
    """The prediction for one image, with its evidence.

    Attributes:
        source: Path or name of the image.
        label: The most probable category; ``None`` for an unknown or unreadable image.
        nearest: The most probable category, also for an unknown image.
        probability: Fused probability of `nearest`, 0 to 1. Below 100 reference images it is limited, the more the
            image may be new.
        unknown: Whether the novelty exceeds the setting ``unknown_above``, or by default 0.5. False without a novelty.
        novelty: Novelty, 0 to 1; ``None`` without evidence (`novelty_basis`). With a calibrated threshold, the novelty
            exceeds 0.5 for a fraction ``false_unknown_rate`` (setting) of the images of known categories. With too few
            references for a threshold (`threshold_progress`), a prior that was learned from other images counts, too.
        novelty_basis: Evidence of the novelty: ``references`` of the store; ``words`` for everyday things, to which the
            image is compared if `nearest` has only its name; ``both`` while there are few references. Words promise no
            rate of false unknowns. ``None`` without a novelty: without a calibration if `nearest` has images, with
            ``calibration="off"``, and for vectors that are classified without their encoder.
        distance: 1 minus the cosine similarity to the nearest reference image, from 0 (an image equal to a reference)
            to 2. Of several encoders, the largest distance counts. Without reference images, texts are compared.
        ranking: The most probable categories with their fused probabilities, best first.
        candidate_sets: Sets for `candidates`. ``None`` without a calibration, and if the calibration could leave out no
            image, because every category has a single reference image.
        path: If categories have parents, the nodes of the tree that lead down to the most probable child on every
            level, with their probabilities: the sums over the categories below. Every node with a probability above one
            half is on the path. For an unknown image, only nodes with other nodes below, and none above all categories.
        labels: In a store whose images may belong to several categories (setting ``labels="many"``): the categories
            that the image belongs to, each with its own probability of a yes, 0 to 1, the most probable first. Empty if
            no category exceeds its threshold, in a store of one category an image, and without a calibration. The
            decisions depend neither on each other nor on `unknown`.
        experts: Evidence of each expert, by name.
        fusion: Name of the fusion strategy that was used: the strategy of the settings, or the fallback.
        calibration: State of the store's calibration: ``current``, ``stale`` if categories have changed since, or
            ``none`` if there is no calibration for these settings.
        threshold_progress: Progress towards a calibrated threshold. ``None`` if the store has a threshold, or without a
            calibration.
        incomplete: Names of committed categories with references that could not be read, and of attached collections.
            The image is compared with the previous references of such a category, or the category is left out.
        stale_seconds: Seconds since the store was last read, if the store is unavailable (setting ``max_staleness``);
            otherwise 0.
        revision: Revision of the store that the image was compared with: the largest `Category.rev`, of removed
            categories too. Concurrent commits may share a revision, and a calibration has none. ``None`` for an
            unreadable image.
        error: Reason why there is no prediction, or ``None``.
        hash: Content hash of the image, for `Classifier.keep` and `Classifier.correct`. ``None`` for an unreadable
            image and for an image that was given as vectors.
    """

    source: str
    label: str | None = None
    nearest: str | None = None
    probability: float | None = None
    unknown: bool = False
    novelty: float | None = None
    novelty_basis: NoveltyBasis | None = None
    distance: float | None = None
    ranking: Ranking = ()
    candidate_sets: CandidateSets | None = None
    path: Ranking = ()
    labels: Ranking = ()
    experts: Mapping[str, ExpertOutput] = field(default_factory=dict)
    fusion: str | None = None
    calibration: CalibrationState = "none"
    threshold_progress: ThresholdProgress | None = None
    incomplete: tuple[str, ...] = ()
    stale_seconds: float = 0.0
    revision: int | None = field(default=None, compare=False)
    error: str | None = None
    hash: str | None = None

    def candidates(self, coverage: float = 0.95) -> tuple[str, ...] | None:
        """Returns the smallest set of categories that has the right one with the wanted probability.

        The probability is over images like the references. Experts count by their evidence, whatever the fusion.

        Args:
            coverage: The wanted probability, between 0 and 1; rounded up to a whole percentage.

        Returns:
            The categories, the most probable one first. ``None`` if the references cannot promise this coverage: see
            `candidate_sets` and `CandidateSets.up_to`.

        Raises:
            InvalidInputError: The coverage is not between 0 and 1.
        """
        if not (isinstance(coverage, Real) and 0 < coverage < 1):
            raise InvalidInputError(f"coverage must be between 0 and 1, got {shown(coverage)}")
        if self.candidate_sets is None:
            return None
        wanted = ceil(100 * coverage - 1e-9) / 100  # 100 * 0.55 is above 55 in rounding
        if wanted > self.candidate_sets.up_to:
            return None
        (first, _), *others = self.candidate_sets.entries
        return (first, *(label for label, least in others if least <= wanted))

    @property
    def margin(self) -> float:
        """Probability of the most probable category minus the probability of the second, 0 to 1.

        For a ranking of one category (``top_k=1``), the smallest possible margin; 0 for an unreadable image. For an
        image with labels, the least probable label counts: the probability that it is right minus that it is wrong, at
        least 0.
        """
        if self.labels:
            return max(0.0, 2 * min(probability for _, probability in self.labels) - 1)
        first, *others = [probability for _, probability in self.ranking[:2]] or [0.0]
        return first - others[0] if others else max(0.0, 2 * first - 1)

    @property
    def at_odds(self) -> float:
        """How strongly the experts disagree with the fused prediction, 0 to 1.

        This is the weight of the experts with another most probable category than `nearest`, as a share of all weight.
        """
        experts = [expert for expert in self.experts.values() if expert.ranking]
        return sum(expert.weight for expert in experts if expert.ranking[0][0] != self.nearest)

    @property
    def uncertainty(self) -> Uncertainty | None:
        """Reason why a label of the image would be informative, or ``None``; ``keep="uncertain"`` keeps such images.

        ``unknown``: no category fits. ``close``: two categories fit about equally, or one of several labels hardly
        fits. ``disputed``: the experts disagree. Experts may name different labels of several.
        """
        if self.error is not None or not self.ranking:
            return None
        if self.unknown:
            return "unknown"
        if self.margin < _CLOSE:
            return "close"
        return "disputed" if self.at_odds > _DISPUTED and not self.labels else None

    def at(self, min_accuracy: float = 0.9) -> tuple[str, float] | None:
        """Returns the most specific answer that is probable enough: "some bird, 97 %" instead of a doubtful species.

        ```python
        clf.classify("photo.jpg").at(min_accuracy=0.95)  # ("bird", 0.97)
        ```

        Among the answers of a calibrated store, at least this fraction is right. For an unknown image, an answer means
        another kind: another kind of bird. This is only right if the store has a group for the image.
        If images may belong to several categories, these share the probability: use `labels` instead.

        Args:
            min_accuracy: Smallest probability of an answer, above 0.5 and at most 1.

        Returns:
            The name and the probability of the deepest such node of `path`, or of the label if no category has a
            parent. ``None`` without such an answer.

        Raises:
            InvalidInputError: `min_accuracy` is out of range.
        """
        if not (isinstance(min_accuracy, int | float) and 0.5 < min_accuracy <= 1):
            raise InvalidInputError(f"min_accuracy must be above 0.5 and at most 1, got {shown(min_accuracy)}")
        nodes = self.path or (() if self.unknown else self.ranking[:1])
        return next((node for node in reversed(nodes) if node[1] >= min_accuracy), None)

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
        return {
            **fields_of(self),
            "ranking": _labelled(self.ranking),
            "candidate_sets": self.candidate_sets and self.candidate_sets.to_dict(),
            "path": _labelled(self.path),
            "labels": _labelled(self.labels),
            "experts": experts,
            "threshold_progress": self.threshold_progress and asdict(self.threshold_progress),
            "incomplete": list(self.incomplete),
        }

    def __repr__(self) -> str:
        if self.error is not None:
            return _one_line(self, source=self.source, error=self.error)
        far = "distance" if self.novelty is None else "novelty"
        numbers = {far: _rounded(getattr(self, far))}
        if self.unknown:
            return _one_line(self, source=self.source, unknown=True, nearest=self.nearest, **numbers)
        numbers = {"probability": _rounded(self.probability), **numbers}
        return _one_line(self, source=self.source, label=self.label, **numbers)

    def _repr_html_(self) -> str:
        return self._html(lambda *_: None)

    def _html(self, picture: Callable[[str, str, str], Html | None]) -> Html:
        """As `_repr_html_`, with pictures, which `picture` finds by hash, with a caption and a description."""
        if self.error is not None:
            return table(f"{self.source}: not classified", [("error", self.error)])
        title = f"{self.source}: unknown" if self.unknown else f"{self.source}: {self.label}"
        rows: list[tuple[object, ...]] = [("nearest", self.nearest)]
        if not self.unknown:
            rows = [(label, f"{p:.1%}", bar(p)) for label, p in self.ranking]
        if self.hash is not None and (own := picture(self.hash, "", self.source)):
            rows.insert(0, (own,))
        if self.labels:
            rows.append(("labels", _listed(self.labels, shares=not self.unknown)))
        rows.append(tuple(how_far(self).split(" ", 1)))
        for name, expert in self.experts.items():
            nearest = [f"{one.category}: {one.source} ({one.similarity:.2f})" for one in expert.neighbors[:1]]
            of_images = expert.neighbors[:_PICTURES] if encoder_and_modality(name)[1] == "image" else ()
            captions = ((one, f"{one.category} ({one.similarity:.2f})") for one in of_images)
            evidence = [found for one, text in captions if (found := picture(one.hash, text, one.source))] or nearest
            rows.append((name, f"weight {expert.weight:.0%}", bar(expert.weight), *evidence))
        if self.threshold_progress:
            rows.append(("threshold", str(self.threshold_progress)))
        if self.incomplete:
            rows.append(("incomplete", ", ".join(self.incomplete)))
        return table(title, rows)

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.source}: not classified, {self.error}"
        labels = f"; labels {_listed(self.labels, shares=not self.unknown)}" if self.labels else ""
        if self.unknown:  # without the probability, which only compares the known categories
            return f"{self.source}: unknown; nearest is {self.nearest}, {how_far(self)}{labels}"
        others = _listed(self.ranking[1:3])
        then = f" (then {others})" if others else ""
        return f"{self.source}: {self.nearest} {self.probability:.1%}{then}, {how_far(self)}{labels}"


def kind_of(prediction: Prediction, name: str) -> str:
    """Returns an answer of `Prediction.at` in words: the label itself, ``some bird`` or ``another kind of bird``."""
    if prediction.unknown:
        return f"another kind of {name}"
    return name if name == prediction.label else f"some {name}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrackPrediction:
    """The prediction for one track: for one object, from several frames of a video.

    Attributes:
        track: Id of the track; ``None`` for a box that has no track yet, and for images of no track.
        label: The category, while the answer is locked; otherwise ``None``.
        nearest: The most probable category; ``None`` before the first frame is classified.
        probability: Probability that the object belongs to `nearest`, 0 to 1.
        unknown: Whether `novelty` exceeds 0.5. An unknown track is not locked.
        novelty: Probability that the object belongs to no category, 0 to 1; ``None`` if no frame has a novelty.
        frames: Number of classified frames.
        decided_after: Number of frames that had been classified when the answer was locked; ``None`` if it is not.
        ranking: The most probable categories with their probabilities, best first.
        error: Reason why the last frame could not be classified, or ``None``.
    """

    track: TrackId | None
    label: str | None = None
    nearest: str | None = None
    probability: float | None = None
    unknown: bool = False
    novelty: float | None = None
    frames: int = 0
    decided_after: int | None = None
    ranking: Ranking = ()
    error: str | None = None

    @property
    def locked(self) -> bool:
        """Whether the answer is locked."""
        return self.decided_after is not None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec classify --boxes --json`` prints for a track."""
        return {**fields_of(self), "ranking": _labelled(self.ranking)}

    def __repr__(self) -> str:
        best = {"unknown": True} if self.unknown else {"probability": _rounded(self.probability)}
        return _one_line(self, track=self.track, label=self.label, nearest=self.nearest, **best, frames=self.frames)


def _one_line(value: object, **parts: object) -> str:
    """Returns a ``repr`` of one line. Line breaks and control characters in the parts are escaped."""
    return f"{type(value).__name__}({', '.join(f'{name}={shown(part)}' for name, part in parts.items())})"


def _listed(ranking: Ranking, *, shares: bool = True) -> str:
    return ", ".join(f"{label} {p:.1%}" if shares else label for label, p in ranking)


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


def how_far(prediction: Prediction) -> str:
    """Returns the novelty of an image as text, or the distance if there is no calibration."""
    if prediction.novelty is None:
        return f"distance {prediction.distance:.2f}"
    return f"novelty {prediction.novelty:.2f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns a number with a noun, such as ``1 image`` or ``2 categories``. The default plural adds an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def contents(references: Mapping[str, int]) -> str:
    """Returns numbers of references by expert in words, such as ``3 images and 1 text``; empty without references.

    An image of several experts counts once. If the number differs between encoders, the largest number counts.
    """
    return in_words({modality: _largest_number(references, modality) for modality in _IN_WORDS})


def in_words(numbers: Mapping[Modality, int]) -> str:
    """Returns the numbers of images and texts in words, such as ``3 images and 1 text``, without zeros."""
    return " and ".join(counted(numbers[modality], modality) for modality in _IN_WORDS if numbers.get(modality))


def _largest_number(references: Mapping[str, int], modality: Modality) -> int:
    return max((n for expert, n in references.items() if encoder_and_modality(expert)[1] == modality), default=0)


def fields_of(value: DataclassInstance) -> dict[str, Any]:
    """Returns the fields of a dataclass by name. Unlike `dataclasses.asdict`, does not convert nested values."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _labelled(ranking: Ranking) -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in ranking]


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check of ``zsvec doctor``.

    Attributes:
        what: Name of the check.
        ok: Whether the check passed, or the checked component is not needed.
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
