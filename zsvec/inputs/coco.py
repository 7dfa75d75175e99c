"""Reads categories from COCO annotations: whole images, or objects in boxes.

Source of the format: Lin et al. (2014), "Microsoft COCO", arXiv:1405.0312, and its "Data format" page.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import CategoryInput, ReferenceImage, checked_group, checked_name, checked_path
from zsvec.inputs.images import Region
from zsvec.inputs.tables import Gathered, LeftOutError, OnError, folder_of, opened_text, path_in
from zsvec.types import Labels

Box = tuple[float, float, float, float]
_Id = int | Annotated[str, Field(max_length=200)]
_Side = Annotated[int, Field(gt=0, lt=2**31)]


class _Category(BaseModel):
    id: _Id
    name: str
    supercategory: Any = None


class _Picture(BaseModel):
    id: _Id
    file_name: str
    width: _Side
    height: _Side


class _Annotation(BaseModel):
    image_id: _Id
    category_id: _Id


class _Object(_Annotation):
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    iscrowd: bool = False


class _Detected(BaseModel):
    image_id: _Id
    bbox: Box


_KEPT = {"images", "annotations", "categories", *_Category.model_fields, *_Picture.model_fields}
_KEPT |= _Object.model_fields.keys()

_NO_PARENT = (None, "", "none")  # tools without supercategories write these, or the name of the category
_SHOWN = 5  # maximum number of categories that an error names for one image

T = TypeVar("T", bound=BaseModel)
A = TypeVar("A", bound=_Annotation)


@dataclass(frozen=True, slots=True)
class _Image:
    path: Path
    picture: _Picture


def from_coco(
    file: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    boxes: bool = False,
    labels: Labels = "one",
    on_error: OnError | None = None,
) -> list[CategoryInput]:
    """Reads categories from a JSON file of COCO annotations.

    Args:
        file: The JSON file, up to 1 GiB.
        images: Folder that image paths start from and must not leave, as in `from_csv`; by default, the folder of the
            file.
        boxes: If true, each reference is an annotated object: the `Region` of its box. The objects of one image form a
            group, and come one after the other. A box is rounded outwards to whole pixels and cut at the border of the
            image. Crowds are skipped. If false, each reference is a whole image, in the category of its annotations. An
            image without annotations is skipped.
        labels: Of whole images: if ``one``, an image of several categories is invalid; if ``many``, the image is a
            reference of each of them.
        on_error: Called with an error for each category, image or annotation that is invalid or skipped. By default,
            the first error of an invalid entry is raised.

    Returns:
        The categories for `add_categories`, sorted by name, with the supercategory as parent. No image is read yet.

    Raises:
        InvalidInputError: The file cannot be read or does not contain COCO annotations, an entry is invalid, or no
            image is left.
    """
    file = checked_path("file", file)
    content = _read(file)
    gathered = Gathered(str(file), on_error)
    names = _names(content["categories"], gathered)
    pictures = _pictures(content["images"], folder_of(file, images), gathered)
    if boxes:
        _add_boxes(content["annotations"], names, pictures, gathered)
    else:
        _add_images(content["annotations"], names, pictures, gathered, labels)
    return gathered.categories(_by_image if boxes else list)


def boxes_of_coco(file: Path, folder: Path, gathered: Gathered) -> dict[Path, tuple[list[Box], tuple[int, int]]]:
    """Reads the boxes of all objects in COCO annotations, crowds included.

    Args:
        file: The JSON file.
        folder: Folder of the images, which no path leaves.
        gathered: Takes the errors of unusable entries.

    Returns:
        By path, the boxes (left, top, right, bottom) in order, and the width and height of the image. A box may be
        unusable.

    Raises:
        InvalidInputError: The file cannot be read, or is no such JSON.
    """
    content = _read(file, ("images", "annotations"))
    pictures = _pictures(content["images"], folder, gathered)
    boxes: dict[Path, tuple[list[Box], tuple[int, int]]] = {}
    for number, row in enumerate(content["annotations"]):
        with gathered.row(f"annotations[{number}]"):
            found = _checked(_Detected, row)
            if found.image_id not in pictures:
                raise InvalidInputError(f"there is no image of the id {found.image_id!r} that can be used")
            image = pictures[found.image_id]
            size = image.picture.width, image.picture.height
            x, y, width, height = found.bbox
            boxes.setdefault(image.path, ([], size))[0].append((x, y, x + width, y + height))
    return boxes


def _read(file: Path, parts: Sequence[str] = ("images", "annotations", "categories")) -> Mapping[str, list[Any]]:
    with opened_text(file) as text:
        try:
            content = json.load(text, object_hook=lambda found: {key: found[key] for key in _KEPT & found.keys()})
        except (ValueError, RecursionError) as exc:
            raise InvalidInputError(f"{file} is no JSON: {exc}; give COCO annotations, or a CSV file") from exc
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise InvalidInputError(f"{file} has no COCO annotations: required are the lists {', '.join(parts)}")
    return content


def _names(rows: list[Any], gathered: Gathered) -> dict[int | str, str]:
    names: dict[int | str, str] = {}
    for number, row in enumerate(rows):
        with gathered.row(f"categories[{number}]"):
            category = _checked(_Category, row)
            name = checked_name(category.name)
            if names.setdefault(category.id, name) != name:
                raise InvalidInputError(f"the id {category.id!r} is taken by {names[category.id]!r}")
            if category.supercategory not in _NO_PARENT and category.supercategory != category.name:
                gathered.set_parent(name, category.supercategory)
    return names


def _pictures(rows: list[Any], folder: Path, gathered: Gathered) -> dict[int | str, _Image]:
    pictures: dict[int | str, _Image] = {}
    for number, row in enumerate(rows):
        with gathered.row(f"images[{number}]"):
            picture = _checked(_Picture, row)
            checked_group(picture.file_name)
            image = _Image(path_in(folder, picture.file_name), picture)
            if pictures.setdefault(picture.id, image) is not image:
                raise InvalidInputError(f"the id {picture.id!r} is taken by another image")
    return pictures


def _add_images(
    rows: list[Any],
    names: Mapping[int | str, str],
    pictures: Mapping[int | str, _Image],
    gathered: Gathered,
    labels: Labels,
) -> None:
    labels_of: dict[int | str, dict[str, None]] = {key: {} for key in pictures}
    for number, row in enumerate(rows):
        with gathered.row(f"annotations[{number}]"):
            annotation = _known(_Annotation, row, names, pictures)
            labels_of[annotation.image_id][names[annotation.category_id]] = None
    for key, own in labels_of.items():
        with gathered.row(f"image {key!r} ({pictures[key].picture.file_name})"):
            if not own:
                raise LeftOutError("it has no annotation that can be used")
            if len(own) > 1 and labels == "one":
                first = ", ".join(list(own)[:_SHOWN])
                raise InvalidInputError(
                    f"it shows {len(own)} categories ({first}): take the boxes instead, or labels='many'"
                )
            for name in own:
                gathered.add(name, str(pictures[key].path))


def _add_boxes(
    rows: list[Any], names: Mapping[int | str, str], pictures: Mapping[int | str, _Image], gathered: Gathered
) -> None:
    for number, row in enumerate(rows):
        with gathered.row(f"annotations[{number}]"):
            annotation = _known(_Object, row, names, pictures)
            if annotation.iscrowd:
                raise LeftOutError("it is a crowd, not one object")
            image = pictures[annotation.image_id]
            size = image.picture.width, image.picture.height
            region = Region(str(image.path), _pixels(annotation.bbox, size), size)
            gathered.add(names[annotation.category_id], ReferenceImage(image=region, group=image.picture.file_name))


def _by_image(objects: list[ReferenceImage]) -> list[ReferenceImage]:
    """Returns the objects of each image one after the other, so that the image is decoded once."""
    of_image: dict[str | None, list[ReferenceImage]] = {}
    for one in objects:
        of_image.setdefault(one.group, []).append(one)
    return list(chain.from_iterable(of_image.values()))


def _pixels(bbox: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y, width, height = bbox
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = (math.ceil(min(end, side)) for end, side in ((x + width, size[0]), (y + height, size[1])))
    if min(width, height) <= 0 or left >= right or top >= bottom:
        raise InvalidInputError(f"its box {bbox} has no pixel in an image of {size[0]} × {size[1]}")
    return left, top, right, bottom


def _known(model: type[A], row: Any, names: Mapping[int | str, str], pictures: Mapping[int | str, _Image]) -> A:
    annotation = _checked(model, row)
    if annotation.category_id not in names:
        raise InvalidInputError(f"there is no category of the id {annotation.category_id!r}")
    if annotation.image_id not in pictures:
        raise InvalidInputError(f"there is no image of the id {annotation.image_id!r} that can be used")
    return annotation


def _checked(model: type[T], row: Any) -> T:
    try:
        return model.model_validate(row)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        field = "".join(f"{part}: " for part in first["loc"][:1])
        raise InvalidInputError(f"{field}{first['msg']}. Got {shown(first['input'])}") from exc
