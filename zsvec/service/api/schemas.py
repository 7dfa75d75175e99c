"""What the API takes and gives, as its description (OpenAPI) says it: the objects of the command line's ``--json``."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from base64 import b64decode
from inspect import cleandoc
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)

from zsvec import types
from zsvec.curation import inbox
from zsvec.inputs.categories import LONGEST_NAME, LONGEST_TEXT, NAME_PATTERN

_MOST = 1000  # entries of a list that is sent, so that one of many wrong ones costs no more than its bytes

# One of red, as a PNG.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
NAME: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_NAME,
    "pattern": NAME_PATTERN,
}
"""How a description says what the name of a category is: with something to see, and in one line."""
TEXT: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_TEXT,
    "pattern": r"\S",
    "examples": ["a small reddish arboreal mammal"],
}
"""How a description says what a definition text is."""
HASH = "^[0-9a-f]{64}$"
"""What a content hash is."""
Hash = Annotated[str, Field(pattern=HASH)]


def _not_too_long(name: str) -> str:
    composed = unicodedata.normalize("NFC", name)
    if len(composed) > LONGEST_NAME:  # with the space around it, as the description counts
        raise ValueError(f"a category name must have at most {LONGEST_NAME} characters, got {len(composed):,}")
    return name


CategoryName = Annotated[str, AfterValidator(_not_too_long), WithJsonSchema(NAME)]
Text = Annotated[str, WithJsonSchema(TEXT)]


def _from_base64(value: object) -> bytes:
    """The bytes that a text stands for, which may be broken into lines; ValueError for any other."""
    if not isinstance(value, str):
        raise ValueError("an image is base64 in a string")  # noqa: TRY004 - for pydantic
    try:
        return b64decode(value.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except ValueError:
        raise ValueError("this is no base64") from None


Base64 = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    WithJsonSchema({"type": "string", "format": "byte", "contentEncoding": "base64", "examples": [_PIXEL]}),
]


class Given(BaseModel):
    """JSON that is sent; what has no meaning is refused, and nothing is taken for what it is not."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NamedImage(Given):
    """An image with its name."""

    data: Annotated[Base64, Field(description="The image file, as base64.")]
    name: Annotated[str | None, Field(description="The name of the file; kept as the source of a reference.")] = None


Image = Base64 | NamedImage


class Images(Given):
    """Images, each as base64, or with its name."""

    images: Annotated[list[Image], Field(min_length=1, max_length=_MOST)]


class CategoryGiven(Given):
    """A category, or what is to be added to one."""

    texts: Annotated[list[Text] | None, Field(max_length=_MOST, description="Definition texts.")] = None
    images: Annotated[list[Image], Field(max_length=_MOST, description="Reference images.")] = []
    metadata: Annotated[dict[str, Any] | None, Field(description="JSON to keep with the category.")] = None


class CategoryChange(Given):
    """What is to be changed of a category; what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"merge": {"const": True}}, "required": ["merge"]},
            "then": {"properties": {"name": {"type": "string"}}, "required": ["name"]},
        }
    )

    name: Annotated[
        CategoryName | None, Field(description="Its new name; with `merge`, the category that gets all of it.")
    ] = None
    merge: Annotated[bool, Field(description="Whether `name` is there, and gets all that this one has.")] = False
    texts: Annotated[
        list[Text] | None, Field(max_length=_MOST, description="Definition texts in the place of those it has.")
    ] = None
    metadata: Annotated[dict[str, Any] | None, Field(description="JSON in the place of what it has.")] = None

    @model_validator(mode="after")
    def _merges_with_one(self) -> CategoryChange:
        if self.merge and self.name is None:
            raise ValueError("`merge` needs `name`, the category that gets all of it")
        return self


class ReferenceChange(Given):
    """Where a reference is to go."""

    category: Annotated[CategoryName, Field(description="The category that gets it; made if there is none.")]


class LabelGiven(Given):
    """Images of the inbox, and their category."""

    hashes: Annotated[list[Hash], Field(min_length=1, max_length=_MOST)]
    category: Annotated[CategoryName, Field(description="Made if there is none.")]


class Hashes(Given):
    """Images of the inbox."""

    hashes: Annotated[list[Hash], Field(min_length=1, max_length=_MOST)]


class UndoGiven(Given):
    """Which change to take back; by default the last one of all."""

    category: Annotated[CategoryName | None, Field(description="The category whose last change it is.")] = None
    change: Annotated[str | None, Field(pattern="^[0-9a-f-]{1,36}$", description="Its id, or how that begins.")] = None


class Answer(BaseModel):
    """JSON that is given."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Why a request was not done (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: Annotated[str, Field(description="What happened, with which value, and what to do.")]
    error: Annotated[str | None, Field(description="The class of `zsvec.errors`.")] = None


def _answer(kind: type, **changed: Any) -> Any:
    """The model of what ``to_dict`` of a dataclass gives, with the descriptions of its docstring.

    Args:
        kind: The dataclass.
        changed: Types of fields that ``to_dict`` gives in another form.
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
    """A category with its probability."""

    label: str
    probability: Annotated[float, Field(ge=0, le=1)]


Neighbor: Any = _answer(types.Neighbor)
ExpertOutput: Any = _answer(types.ExpertOutput, ranking=list[Label], neighbors=list[Neighbor])
Prediction: Any = _answer(types.Prediction, ranking=list[Label], experts=dict[str, ExpertOutput])
StoredReference: Any = _answer(types.StoredReference)
Change: Any = _answer(types.Change)
Unlabelled: Any = _answer(inbox.Unlabelled, prediction=Prediction | None)
Group: Any = _answer(inbox.Group, images=list[Unlabelled])


class Category(Answer):
    """A category."""

    category: str
    version: int
    updated: str
    texts: list[str]
    references: Annotated[dict[str, int], Field(description="Number of references of each expert.")]


class WholeCategory(Category):
    """A category with its metadata and references."""

    metadata: dict[str, Any]
    stored: list[StoredReference]


class Kept(Answer):
    """What became of an image that was to be kept."""

    source: str
    hash: Annotated[str | None, Field(description="Null: nothing is to be learned from it, or it cannot be read.")]
    error: str | None


class Finding(BaseModel):
    """A finding of an audit; its kind says what else it has."""

    model_config = ConfigDict(extra="allow")

    finding: Literal["summary", "label", "duplicates", "outlier", "thin", "confusion"]
