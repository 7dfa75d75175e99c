"""Models of requests and responses, for validation and for OpenAPI.

Responses are the objects that the commands print with ``--json``.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from base64 import b64decode
from inspect import cleandoc
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    create_model,
    model_validator,
)

import zsvec
from zsvec import types
from zsvec.curation import inbox
from zsvec.errors import ImageError
from zsvec.inputs.categories import LONGEST_TEXT, NAME_PATTERN, PARENT_PATTERN
from zsvec.service.problems import CODES, TYPES
from zsvec.types import LONGEST_NAME

_MAX_ITEMS = 1000  # of a list in a request: each invalid item costs an error object
MAX_ALSO = 100
"""Maximum number of further categories of an image in a request."""

_RED_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
_DATA_URI = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w.=+-]{1,100}){0,4};base64,", re.ASCII | re.IGNORECASE)
NAME: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_NAME,
    "pattern": NAME_PATTERN,
}
"""JSON Schema of a category name: one line of printable characters."""
TEXT: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_TEXT,
    "pattern": r"[^\s\x1c-\x1f\x85]|\ufeff",  # what str.strip leaves, since \s of ECMA 262 differs
    "examples": ["a small reddish arboreal mammal"],
}
"""JSON Schema of a definition text."""
PARENT: dict[str, Any] = {
    "type": "string",
    "maxLength": LONGEST_NAME,
    "pattern": PARENT_PATTERN,
    "description": "Names above the category in the tree, topmost first. An empty text removes the parent.",
    "examples": ["animal > bird"],
}
"""JSON Schema of a parent."""
HASH = "^[0-9a-f]{64}$"
"""Pattern of a content hash."""
Hash = Annotated[str, Field(pattern=HASH)]


def _not_too_long(name: str) -> str:
    composed = unicodedata.normalize("NFC", name)
    if len(composed) > LONGEST_NAME:  # counts spaces around the name, as the schema does
        raise ValueError(f"a category name must have at most {LONGEST_NAME} characters, got {len(composed):,}")
    return name


CategoryName = Annotated[str, AfterValidator(_not_too_long), WithJsonSchema(NAME)]
Text = Annotated[str, WithJsonSchema(TEXT)]
Parent = Annotated[str, WithJsonSchema(PARENT)]


def _from_base64(value: object) -> bytes | ImageError:
    """Decodes base64 or a data URI. Returns an error for other strings, so that other images can be read."""
    if not isinstance(value, str):
        raise ValueError("an image must be base64 in a string")  # noqa: TRY004 - for pydantic
    try:
        content = value[found.end() :] if (found := _DATA_URI.match(value)) else value
        return b64decode(content.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except ValueError:
        return ImageError("an image must be base64, or a data URI with base64")


Base64 = Annotated[
    bytes | ImageError,
    PlainValidator(_from_base64),
    WithJsonSchema({"type": "string", "format": "byte", "contentEncoding": "base64", "examples": [_RED_PIXEL]}),
]


class Given(BaseModel):
    """A JSON body. Unknown fields are rejected, and types are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NamedImage(Given):
    """An image with a file name."""

    data: Annotated[Base64, Field(description="The image file, as base64 or a data URI.")]
    name: Annotated[str | None, Field(description="File name; stored as the source of a reference.")] = None


Image = Base64 | NamedImage


class Images(Given):
    """Images, each as a string (base64 or a data URI) or as an object with a file name."""

    images: Annotated[list[Image], Field(min_length=1, max_length=_MAX_ITEMS)]


Box = Annotated[list[float], Field(min_length=4, max_length=4)]
Boxes = Annotated[
    list[Box],
    Field(
        min_length=1,
        max_length=_MAX_ITEMS,
        description="Left, top, right and bottom of each box in pixels of the upright image.",
        examples=[[[0, 0, 200, 100]]],
    ),
]
Margin = Annotated[
    float,
    Field(ge=0, le=types.MAX_MARGIN, description="Fraction of the width and height of a box to add on each side."),
]


class Regions(Given):
    """An image, as a string (base64 or a data URI) or an object with a file name, and boxes in the image."""

    image: Image
    boxes: Boxes
    margin: Margin = 0.0


class CategoryGiven(Given):
    """Texts, images, metadata and parent of a category."""

    texts: Annotated[list[Text] | None, Field(max_length=_MAX_ITEMS, description="Definition texts.")] = None
    images: Annotated[
        list[Image] | None,
        Field(max_length=_MAX_ITEMS, description="Reference images. An empty list needs texts beside it."),
    ] = None
    metadata: Annotated[dict[str, Any] | None, Field(description="JSON object stored with the category.")] = None
    parent: Parent | None = None


class CategoryChange(Given):
    """Changes of a category. Omitted fields are not changed."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"merge": {"const": True}}, "required": ["merge"]},
            "then": {"properties": {"name": {"type": "string"}}, "required": ["name"]},
        }
    )

    name: Annotated[CategoryName | None, Field(description="New name, or the category to merge into.")] = None
    merge: Annotated[bool, Field(description="Whether to merge into the existing category `name`.")] = False
    texts: Annotated[list[Text] | None, Field(max_length=_MAX_ITEMS, description="New definition texts.")] = None
    metadata: Annotated[dict[str, Any] | None, Field(description="New JSON object.")] = None
    parent: Parent | None = None

    @model_validator(mode="after")
    def _merges_with_one(self) -> CategoryChange:
        if self.merge and self.name is None:
            raise ValueError("`merge` needs `name`, the category to merge into")
        return self


class ReferenceChange(Given):
    """The new category of a reference."""

    category: Annotated[CategoryName, Field(description="The new category; created if missing.")]


class LabelGiven(Given):
    """Content hashes of images in the inbox, and the category of these images."""

    hashes: Annotated[list[Hash], Field(min_length=1, max_length=_MAX_ITEMS)]
    category: Annotated[CategoryName, Field(description="Created if missing.")]
    also: Annotated[
        list[CategoryName],
        Field(max_length=MAX_ALSO, description="Further categories, where an image may belong to several."),
    ] = []


class Hashes(Given):
    """Content hashes of images in the inbox."""

    hashes: Annotated[list[Hash], Field(min_length=1, max_length=_MAX_ITEMS)]


class UndoGiven(Given):
    """The change to undo. By default, the last change of any category.

    The change needs its id if it is not by the same key (without keys: if this service has not made it), or if it
    concerns more than 100 images.
    """

    category: Annotated[CategoryName | None, Field(description="Undo the last change of this category.")] = None
    change: Annotated[str | None, Field(pattern="^[0-9a-f-]{1,36}$", description="Id or prefix of an id.")] = None


class Answer(BaseModel):
    """A JSON response."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """An error, as problem details (RFC 9457)."""

    type: Annotated[str, Field(description="Address of the description of the problem.", examples=[f"{TYPES}#busy"])]
    title: str
    status: int
    detail: Annotated[str, Field(description="Cause, value and fix, for people. The words may change.")]
    error: Annotated[
        str, Field(description=f"Code of the problem: {', '.join(CODES)}. There may be more later.", examples=["busy"])
    ]
    change: Annotated[str | None, Field(description="Of `change_id_needed` alone: id of the change to undo.")] = None


def _answer(kind: type, **changed: Any) -> Any:
    """Returns the response model of a dataclass's ``to_dict``.

    Descriptions come from the docstring of the dataclass. `changed` replaces the types of fields.
    """
    text = cleandoc(kind.__doc__ or "").replace("``None``", "null")
    summary, _, attributes = text.partition("\n\nAttributes:\n")
    said = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.M))
    hints = {**get_type_hints(kind), **changed}
    fields = {
        one.name: (hints[one.name], Field(description=re.sub(r"\s+", " ", said.get(one.name, ""))))
        for one in dataclasses.fields(kind)
    }
    return create_model(kind.__name__, __base__=Answer, __doc__=summary, **fields)  # type: ignore[call-overload]


class Label(Answer):
    """A category with a probability."""

    label: str
    probability: Annotated[float, Field(ge=0, le=1)]


class Candidate(Answer):
    """A category with the coverage from which on a set has the category."""

    label: str
    coverage: Annotated[float, Field(ge=0.5, le=0.99)]


Neighbor: Any = _answer(types.Neighbor)
ExpertOutput: Any = _answer(types.ExpertOutput, ranking=list[Label], neighbors=list[Neighbor])
ThresholdProgress: Any = _answer(types.ThresholdProgress)
CandidateSets: Any = _answer(types.CandidateSets, entries=list[Candidate])
Prediction: Any = _answer(
    types.Prediction,
    ranking=list[Label],
    candidate_sets=CandidateSets | None,
    path=list[Label],
    labels=list[Label],
    experts=dict[str, ExpertOutput],
    threshold_progress=ThresholdProgress | None,
)
TrackPrediction: Any = create_model(
    "TrackPrediction",
    __base__=_answer(types.TrackPrediction, ranking=list[Label]),
    __doc__="The prediction for one object, from several images.",
    predictions=(
        list[Prediction],
        Field(description="Prediction of each image, in order, with an `error` for an unreadable image."),
    ),
)
StoredReference: Any = _answer(types.StoredReference)
Change: Any = _answer(types.Change)
Unlabelled: Any = _answer(inbox.Unlabelled, prediction=Prediction | None)
Group: Any = _answer(inbox.Group, images=list[Unlabelled])


class Category(Answer):
    """A category."""

    category: str
    version: int
    updated: Annotated[str | None, Field(description="Null: only attached collections have the category.")]
    texts: list[str]
    references: Annotated[dict[str, int], Field(description="Number of references by expert.")]
    attached: Annotated[
        dict[str, int], Field(default_factory=dict, description="Of these, the points of attached collections.")
    ]
    parent: Annotated[str, Field(description="Names above the category in the tree, topmost first.")] = ""


class WholeCategory(Category):
    """A category with metadata and references."""

    metadata: dict[str, Any]
    stored: list[StoredReference]


class Kept(Answer):
    """Result of keeping an image in the inbox."""

    source: str
    hash: Annotated[str | None, Field(description="Null: a duplicate or dismissed image, or unreadable.")]
    error: str | None


def _page(kind: Any, name: str) -> Any:
    return create_model(
        f"{name}Page",
        __base__=Answer,
        __doc__="A page of a list.",
        items=(list[kind], ...),
        next=(str | None, Field(description="`cursor` of the next page; null at the end.")),
    )


CategoryPage: Any = _page(Category, "Category")
StoredReferencePage: Any = _page(StoredReference, "StoredReference")
ChangePage: Any = _page(Change, "Change")
UnlabelledPage: Any = _page(Unlabelled, "Unlabelled")


class AuditSummary(Answer):
    """Numbers of an audit: images, judged and mistaken labels, findings of each kind, and findings that were kept."""

    finding: Literal["summary"]
    images: int
    judged: int
    mistaken: int
    calibrated: bool
    labels: int
    duplicates: int
    outliers: int
    thin: int
    confusions: int
    kept: int


def _finding(finding: str, kind: type, **changed: Any) -> Any:
    base, literal = _answer(kind, **changed), cast("Any", Literal[finding])
    return create_model(f"{kind.__name__}Finding", __base__=base, __doc__=base.__doc__, finding=(literal, ...))


StoredImage: Any = _answer(zsvec.StoredImage)
Finding: Any = Annotated[
    AuditSummary
    | _finding("label", zsvec.Suspect)
    | _finding("duplicates", zsvec.Duplicates, images=list[StoredImage])
    | _finding("outlier", zsvec.Outlier, image=StoredImage)
    | _finding("thin", zsvec.ThinCategory)
    | _finding("confusion", zsvec.Confusion, images=list[StoredImage], categories=list[str]),
    Field(discriminator="finding"),
]
"""An item of an audit; `finding` is its kind."""


class ServiceLimits(Answer):
    """Limits of requests."""

    images: Annotated[int, Field(description="Images in a request.")]
    body_bytes: Annotated[int, Field(description="Bytes of a body.")]
    queue: Annotated[int, Field(description="Images that wait or are classified.")]
    top_k: Annotated[int, Field(description="Categories in a ranking.")]
    page: Annotated[int, Field(description="Items of a page.")]


class Info(Answer):
    """The service and the store."""

    version: Annotated[str, Field(description="Version of zsvec.")]
    limits: ServiceLimits
    encoders: Annotated[dict[str, str], Field(description="Fingerprint of each encoder of the store.")]
    categories: int
    references: Annotated[dict[str, int], Field(description="Number of references by expert.")]
    unreadable: Annotated[list[str], Field(description="Categories whose records are damaged.")]
    profile: str | None
    labels: Annotated[types.Labels, Field(description="Number of categories that an image may belong to.")]
    calibration: zsvec.CalibrationState
    threshold_progress: ThresholdProgress | None


FindingPage: Any = _page(Finding, "Finding")
