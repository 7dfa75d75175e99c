"""Images with their labels, from a folder or from a file: what the commands that take them share."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.errors import InvalidInputError

if TYPE_CHECKING:
    from zsvec import CategoryInput, ImageInput, ReferenceImage

_FILES = (".csv", ".tsv", ".txt", ".json")

Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder that holds all paths of FILE.  [default: the folder of FILE]",
    ),
]
Boxes = Annotated[bool, typer.Option("--boxes", help="Use each box of COCO annotations as an image.")]


def is_file(source: Path, images: Path | None, *, boxes: bool) -> bool:
    """Whether labels are in a file, not in the names of folders; options that do not go with it are refused."""
    if not os.path.isfile(source):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        if images is not None:
            raise typer.BadParameter("--images needs a FILE: the images of a folder are in it")
        if boxes:
            raise typer.BadParameter("--boxes needs COCO annotations")
        return False
    suffix = source.suffix.lower()
    if suffix not in _FILES:
        raise InvalidInputError(f"{source} is not a folder, and no file that ends with {' or '.join(_FILES)}: give one")
    if boxes and suffix != ".json":
        raise typer.BadParameter("--boxes needs COCO annotations, a file that ends with .json")
    return True


def read_file(file: Path, images: Path | None, *, boxes: bool, strict: bool) -> list[CategoryInput]:
    """The categories of a CSV file or of COCO annotations, with a note on images of several.

    Args:
        file: One of `is_file`.
        images: Where its paths begin; by default its own folder.
        boxes: Whether to take the objects in their boxes.
        strict: Whether a row that cannot be used is an error. If not, a note tells of it, and it is left out.
    """
    with output.left_out() as report:
        on_error = None if strict else report
        if file.suffix.lower() == ".json":
            from zsvec.inputs.coco import from_coco

            found = from_coco(file, images, boxes=boxes, on_error=on_error)
        else:
            from zsvec.inputs.tables import from_csv

            found = from_csv(file, images, on_error=on_error)
    labels = Counter(image for category in found for image in {source_of(image) for image in category.images})
    if several := [image for image, number in labels.items() if number > 1]:
        output.print_note(f"images under several labels: {len(several)}, such as {several[0]}")
    return found


def source_of(image: ImageInput | ReferenceImage) -> str:
    """The name of an image in errors."""
    from zsvec import ReferenceImage
    from zsvec.inputs import images

    return images.source_of(image.image if isinstance(image, ReferenceImage) else image)
