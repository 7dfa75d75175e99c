"""Reads files with the boxes of a detector as regions of images: COCO annotations, labels of YOLO, and CSV.

A file is untrusted: no path leaves the folder of the images, and the number of boxes is bounded. The boxes of an image
follow each other, so that the image is decoded once. A box is checked when its region is read.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.boxes import MAX_BOXES
from zsvec.inputs.categories import checked_path
from zsvec.inputs.coco import Box, boxes_of_coco
from zsvec.inputs.files import inside
from zsvec.inputs.folders import OnOutside, find_images, refused
from zsvec.inputs.images import Region, checked_margin
from zsvec.inputs.tables import DELIMITERS, Gathered, OnError, lines_of, path_in

COLUMNS = ("image", "left", "top", "right", "bottom")
"""Columns of a CSV file."""
TRACK = "track"
"""Column of a CSV file with the id of the track of each box. A box with an empty field has no track."""
MAX_ALL_BOXES = 1_000_000
"""Maximum number of boxes in a file or folder."""
_CSV = (".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class RelativeRegion(Region):
    """A region with a box in fractions of the width and height of the upright image."""

    @property
    def fragment(self) -> str:
        """The rectangle as a URL fragment in percent, as in W3C, Media Fragments URI 1.0 (2012), section 4.2.2."""
        left, top, right, bottom = self.box
        return f"xywh=percent:{','.join(f'{100 * side:g}' for side in (left, top, right - left, bottom - top))}"

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """As `Region.pixels`."""
        self.check()
        (left, top, right, bottom), (width, height) = self.box, size
        # Files have few digits: 0.333333 of 60 pixels is 20 pixels.
        box = round(left * width, 2), round(top * height, 2), round(right * width, 2), round(bottom * height, 2)
        return Region(self.image, box, margin=self.margin).pixels(size)


@dataclass(frozen=True, slots=True)
class TrackedRegion(Region):
    """A region in a frame of a video.

    Attributes:
        track: Id of the track of the region.
        last: Whether the region is the last one of its track.
    """

    track: str = ""
    last: bool = False


def regions_of_file(
    file: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    margin: float = 0.0,
    on_error: OnError | None = None,
) -> Iterator[Region]:
    """Reads boxes, and returns their regions. The boxes of an image stay in order.

    With the column `TRACK` in a CSV file, the regions of tracks are `TrackedRegion`. Its rows are in the order of time.

    Args:
        file: COCO annotations (``.json``, box ``[x, y, width, height]``), a CSV file with the `COLUMNS`, labels of YOLO
            (``.txt`` with ``class x_center y_center width height`` in fractions on each line), or a folder with such
            labels, one file for each image, with the path and name of the image.
        images: Folder of the images, which no path leaves; for one file of YOLO labels, their image.
        margin: As `Region.margin`.
        on_error: Called with the error of each unusable row, which is then skipped. By default, the error is raised.

    Raises:
        InvalidInputError: The file cannot be read, has another format, or has too many boxes.
    """
    file, images, margin = checked_path("file", file), checked_path("images", images), checked_margin(margin)
    gathered = Gathered(str(file), on_error)
    suffix = file.suffix.lower()
    if os.path.isdir(file):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        return _regions(RelativeRegion, _labels_in(file, images, gathered, on_error or refused), margin)
    if suffix == ".txt":
        return _regions(RelativeRegion, {images: _labels(file, gathered)}, margin)
    if suffix != ".json" and suffix not in _CSV:
        raise InvalidInputError(f"{file} must end with .json (COCO), .csv or .txt (YOLO), or be a folder: give one")
    if not os.path.isdir(images):  # noqa: PTH112 - as above
        raise InvalidInputError(f"the images of {file} must be a folder, got {str(images)!r}: give the folder")
    if suffix == ".json":
        boxes = boxes_of_coco(file, images, gathered)
        _check_numbers(file, {path: found for path, (found, _) in boxes.items()})
        return (Region(path, box, size, margin) for path, (found, size) in boxes.items() for box in found)
    return _tracked(_rows(file, images, gathered), margin)


def has_tracks(file: str | os.PathLike[str]) -> bool:
    """Returns whether a file of boxes is a CSV file with the column `TRACK`.

    Raises:
        InvalidInputError: The CSV file cannot be read, or lacks one of the `COLUMNS`.
    """
    path = checked_path("file", file)
    if path.suffix.lower() not in _CSV or os.path.isdir(path):  # noqa: PTH112 - as below
        return False
    return TRACK in _columns(path, next(lines_of(path), ""))[1]


def _tracked(rows: Mapping[Path, Sequence[tuple[Box, str]]], margin: float) -> Iterator[Region]:
    last = {track: (path, number) for path, found in rows.items() for number, (_, track) in enumerate(found)}
    for path, found in rows.items():
        for number, (box, track) in enumerate(found):
            if track:
                ends = last[track] == (path, number)
                yield TrackedRegion(path, box, margin=margin, track=track, last=ends)
            else:
                yield Region(path, box, margin=margin)


def _regions(kind: type[Region], boxes: Mapping[Path, Sequence[Box]], margin: float) -> Iterator[Region]:
    return (kind(path, box, margin=margin) for path, found in boxes.items() for box in found)


def _check_numbers(file: Path, boxes: Mapping[Path, Sequence[object]]) -> None:
    for path, found in boxes.items():
        _check_number(path, len(found), MAX_BOXES)
    _check_number(file, sum(map(len, boxes.values())), MAX_ALL_BOXES)


def _check_number(path: Path, boxes: int, most: int) -> None:
    if boxes > most:
        raise InvalidInputError(f"{path} may have at most {most:,} boxes, got {boxes:,} or more: divide them")


def _rows(file: Path, images: Path, gathered: Gathered) -> dict[Path, list[tuple[Box, str]]]:
    lines = lines_of(file)
    delimiter, columns = _columns(file, next(lines, ""))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    boxes: dict[Path, list[tuple[Box, str]]] = {}
    number = 0
    try:
        for row in rows:
            if not row:
                continue
            number += 1
            _check_number(file, number, MAX_ALL_BOXES)
            with gathered.row(f"line {rows.line_num + 1}"):
                if len(row) != len(columns):
                    raise InvalidInputError(f"{len(row)} columns where the first line has {len(columns)}; mend it")
                path, *box = (row[columns.index(name)] for name in COLUMNS)
                track = row[columns.index(TRACK)].strip() if TRACK in columns else ""
                numbers = _numbers(box)
                boxes.setdefault(path_in(images, path), []).append((numbers, track))
    except csv.Error as exc:
        raise InvalidInputError(f"{file} is no CSV after line {rows.line_num + 1}: {exc}; mend it") from exc
    _check_numbers(file, boxes)
    return boxes


def _columns(file: Path, header: str) -> tuple[str, list[str]]:
    for delimiter in DELIMITERS:
        with suppress(csv.Error):  # not a line with this delimiter
            columns = [name.strip() for row in csv.reader([header], delimiter=delimiter, strict=True) for name in row]
            if all(columns.count(name) == 1 for name in COLUMNS) and columns.count(TRACK) <= 1:
                return delimiter, columns
    raise InvalidInputError(
        f"the first line of {file} must name the columns {', '.join(COLUMNS)}. Got {shown(header.strip())}; correct it"
    )


def _labels_in(folder: Path, images: Path, gathered: Gathered, on_outside: OnOutside) -> dict[Path, list[Box]]:
    boxes: dict[Path, list[Box]] = {}
    for image in find_images(images, on_outside=on_outside):
        with gathered.row(str(image)):
            labels = inside(folder, folder / image.relative_to(images).with_suffix(".txt"))
            if os.path.lexists(labels):  # an image without objects may have no file
                boxes[image] = _labels(labels, gathered)
                _check_number(folder, sum(map(len, boxes.values())), MAX_ALL_BOXES)
    return boxes


def _labels(file: Path, gathered: Gathered) -> list[Box]:
    boxes: list[Box] = []
    for number, line in enumerate(lines_of(file), 1):
        with gathered.row(f"{file.name}, line {number}"):
            if not (parts := line.split()):
                continue
            if len(parts) not in (5, 6):
                raise InvalidInputError(
                    f"a label must be class, x_center, y_center, width and height, maybe with a confidence. Got "
                    f"{len(parts)} numbers, {shown(line.strip())}; polygons are no boxes"
                )
            x, y, width, height = _numbers(parts[1:5])
            boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        _check_number(file, len(boxes), MAX_BOXES)
    return boxes


def _numbers(texts: Sequence[str]) -> Box:
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError:
        raise InvalidInputError(f"a box must be four numbers. Got {shown(', '.join(texts))}") from None
    return left, top, right, bottom
