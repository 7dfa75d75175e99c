"""Reads categories from labelled images: CSV files, data frames, and torchvision or Hugging Face data sets.

A file is untrusted, so the paths in it must not leave the image folder. The paths in a data frame or a data set come
from the calling program and are not checked. Images are read later, when their category is built.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import repeat
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import (
    CategoryInput,
    ReferenceImage,
    checked_name,
    checked_parent,
    checked_path,
    is_several,
)
from zsvec.inputs.files import inside, open_regular

OnError: TypeAlias = Callable[[InvalidInputError], object]

DELIMITERS = ",;\t|"
LARGEST_FILE = 2**30  # bytes; the rows take about as much memory
_MAX_PATH_CHARS = 4096  # characters, the limit of common file systems
_MAX_LINE_CHARS = 2**20  # characters; a file without line ends is not read as a whole


class LeftOutError(Exception):
    """A COCO row is skipped on purpose: a crowd, or an image without a usable annotation.

    `Gathered` reports the row to `on_error`, if given, and continues.
    """


class Gathered:
    """Collects images by label.

    Args:
        table: Name of the table, for messages.
        on_error: Called with the error of each row that yields no image. By default, the first InvalidInputError is
            raised and skipped rows (`LeftOutError`) are ignored.
    """

    def __init__(self, table: str, on_error: OnError | None) -> None:
        self._table = table
        self._on_error = on_error
        self._images: dict[str, list[Any]] = {}
        self._parents: dict[str, str] = {}

    @contextmanager
    def row(self, row: str) -> Iterator[None]:
        """Passes an error of the block to `on_error`, with the names of the table and the row in the message.

        Without `on_error`, an InvalidInputError is raised, and a LeftOutError is ignored.
        """
        try:
            yield
        except (InvalidInputError, LeftOutError) as exc:
            error = InvalidInputError(f"{self._table}, {row}: {exc}")
            if self._on_error is not None:
                self._on_error(error)
            elif not isinstance(exc, LeftOutError):
                raise error from None

    def add(self, label: object, image: Any) -> None:
        """Adds an image to the category `label`; raises InvalidInputError if the label is not a valid category name."""
        self._images.setdefault(checked_name(label), []).append(image)

    def set_parent(self, label: object, parent: object) -> None:
        """Sets the parent of the category `label`. Without a text, as in an empty cell, does nothing.

        Raises:
            InvalidInputError: The parent is unusable, or differs from the parent that was set before.
        """
        name = checked_name(label)
        given = checked_parent(parent, name) if isinstance(parent, str) else ""
        if given and (before := self._parents.setdefault(name, given)) != given:
            raise InvalidInputError(f"{name!r} must have one parent. Got {given!r} after {before!r}")

    def categories(self, images: Callable[[list[Any]], Iterable[Any]] = list) -> list[CategoryInput]:
        """Returns the categories, sorted by name; `images` converts the list of images of each category.

        Raises:
            InvalidInputError: No image was added.
        """
        if not self._images:
            raise InvalidInputError(f"{self._table} has no image with a label that can be used; mend or replace it")
        return [
            CategoryInput(name=name, images=images(self._images[name]), parent=self._parents.get(name))
            for name in sorted(self._images)
        ]


def from_csv(
    file: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    path: str = "path",
    label: str = "label",
    parent: str | None = None,
    on_error: OnError | None = None,
) -> list[CategoryInput]:
    """Reads categories from a CSV file with the path and the label of one image per row.

    The file is UTF-8, and the first line names the columns. The delimiter is a comma, semicolon, tab or vertical bar,
    and is detected from the first line. Other columns are ignored. An image with several labels has one row per label.
    Paths may have the backslashes of Windows on any system.

    Args:
        file: The CSV file, up to 1 GiB.
        images: Folder that relative paths start from; by default, the folder of the file. Every path must stay in this
            folder: ``..``, absolute paths and symbolic links that lead out are refused.
        path: Name of the column of paths.
        label: Name of the column of labels.
        parent: Name of the column of parents, such as ``animal > bird``; by default ``parent``, if the file has such a
            column. Rows of one label have the same parent, or an empty cell.
        on_error: Called with the error of each invalid row. The row is then skipped. By default, the first error is
            raised.

    Returns:
        The categories for `add_categories`, sorted by name. Their images are paths of files that are not read yet.

    Raises:
        InvalidInputError: The file cannot be read or is not a CSV file with these columns, a row is invalid, or no row
            is valid.
    """
    file = checked_path("file", file)
    folder = folder_of(file, images)
    gathered = Gathered(str(file), on_error)
    lines = lines_of(file)
    delimiter, columns = _columns(file, next(lines, ""), path, label, *([parent] if parent else []))
    above = parent or ("parent" if columns.count("parent") == 1 else None)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if not row:
                continue
            with gathered.row(f"line {rows.line_num + 1}"):
                if len(row) != len(columns):
                    raise InvalidInputError(
                        f"{len(row)} columns where the first line has {len(columns)}; quote its text"
                    )
                image = str(path_in(folder, row[columns.index(path)]))
                if above:
                    gathered.set_parent(row[columns.index(label)], row[columns.index(above)])
                gathered.add(row[columns.index(label)], image)
    except csv.Error as exc:
        raise InvalidInputError(f"{file} is no CSV after line {rows.line_num + 1}: {exc}; mend it") from exc
    return gathered.categories()


def from_frame(
    frame: Any,
    *,
    path: str = "path",
    label: str = "label",
    parent: str | None = None,
    on_error: OnError | None = None,
) -> list[CategoryInput]:
    """Reads categories from a pandas or polars data frame with the path and the label of one image per row.

    Args:
        frame: The data frame. Relative paths start from the working directory.
        path: Name of the column of paths.
        label: Name of the column of labels, which are text, or lists of text for images with several labels.
        parent: As in `from_csv`.
        on_error: As in `from_csv`.

    Returns:
        As `from_csv`.

    Raises:
        InvalidInputError: The value is not a data frame with these columns, a row is invalid, or no row is valid.
    """
    if hasattr(frame, "collect"):
        raise InvalidInputError(f"{type(frame).__name__} is lazy: give its collect()")
    try:
        columns = list(frame.columns)
        wanted = [path, label, *([parent] if parent else [])]
        if any(columns.count(name) != 1 for name in wanted):
            raise InvalidInputError(
                f"a frame needs one column {' and one '.join(map(repr, wanted))}; give their names as path, label and "
                f"parent. Got {shown(columns)}"
            )
        above = parent or ("parent" if columns.count("parent") == 1 else None)
        rows = zip(frame[path], frame[label], frame[above] if above else repeat(None, len(frame)), strict=True)
    except (AttributeError, TypeError) as exc:
        raise InvalidInputError(f"a frame must be one of pandas or polars. Got {shown(frame)} instead") from exc
    gathered = Gathered("the frame", on_error)
    for number, (image, name, over) in enumerate(rows):
        with gathered.row(f"row {number}"):
            if not isinstance(image, str | os.PathLike) or not os.fspath(image):
                raise InvalidInputError(f"a path must be text that is not empty. Got {shown(image)}")
            for one in [name] if isinstance(name, str) or not is_several(name) else name:
                gathered.set_parent(one, over)
                gathered.add(one, image)
    return gathered.categories()


def from_dataset(
    dataset: Any, *, image: str | None = None, label: str | None = None, on_error: OnError | None = None
) -> list[CategoryInput]:
    """Reads categories from a torchvision ``ImageFolder`` or a Hugging Face ``Dataset`` (``Image``, ``ClassLabel``).

    zsvec decodes the images itself, within its own limits. Transforms and formats of the data set are not applied. If a
    Hugging Face data set stores only the path of an image, the file is read from that path, as ``datasets`` does. If
    the labels are a ``Sequence`` of ``ClassLabel``, an image belongs to each of its categories.

    Args:
        dataset: The data set. Of a ``DatasetDict``, pass one split. Streamed data sets (``IterableDataset``) are
            refused.
        image: Name of the image column of a Hugging Face data set; by default, the only column of type ``Image``.
        label: Name of the label column of a Hugging Face data set; by default, the only column of type ``ClassLabel``,
            or ``Sequence`` of this type.
        on_error: As in `from_csv`.

    Returns:
        The categories for `add_categories`, sorted by name. Their images are not read yet.

    Raises:
        InvalidInputError: The value is not such a data set, a row is invalid, or no row is valid.
    """
    gathered = Gathered("the data set", on_error)
    if hasattr(dataset, "samples") and hasattr(dataset, "classes"):
        for number, (path, position) in enumerate(dataset.samples):
            with gathered.row(f"row {number}"):
                gathered.add(dataset.classes[position], path)
        return gathered.categories()
    features = getattr(dataset, "features", None)
    if features is None or not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
        raise InvalidInputError(
            "a data set must be a torchvision ImageFolder or a Hugging Face Dataset, of a DatasetDict one split. Got "
            f"{type(dataset).__name__} instead"
        )
    labels = {column: _element(feature) for column, feature in features.items()}
    image, label = _feature(features, "Image", image), _feature(labels, "ClassLabel", label)
    plain = dataset.with_format(None)
    names = labels[label].names
    for number, given in enumerate(plain[label]):
        with gathered.row(f"row {number}"):
            positions = list(given) if is_several(given) else [given]
            if not positions or not all(isinstance(one, int) and 0 <= one < len(names) for one in positions):
                raise InvalidInputError(f"it has no label. Got {given}")
            for position in positions:
                gathered.add(names[position], number)
    pictures = plain.select_columns([image]).cast_column(image, type(features[image])(decode=False))
    return gathered.categories(lambda rows: _Pictures(pictures, image, rows))


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The encoded images in the given rows of a Hugging Face data set; can be iterated repeatedly."""

    dataset: Any
    column: str
    rows: Sequence[int]

    def __iter__(self) -> Iterator[ReferenceImage]:
        for row in self.rows:
            found = self.dataset[row][self.column] or {}
            path = found.get("path")
            content = found.get("bytes")
            # A missing image becomes empty bytes, which are reported as unreadable when they are decoded.
            yield ReferenceImage(image=content or path or b"", source=path or f"row {row}")


def _element(feature: Any) -> Any:
    """Returns the feature of the elements of a ``Sequence`` or ``List``; any other feature as it is."""
    return getattr(feature, "feature", feature)


def _feature(features: Any, kind: str, name: str | None) -> str:
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if name is None and len(found) == 1:
        return str(found[0])
    if name in found:
        return str(name)
    argument = "image" if kind == "Image" else "label"
    raise InvalidInputError(
        f"a data set needs one column of type {kind}; give its name as {argument}. Got {argument}={name!r} and "
        f"{', '.join(map(str, found)) or 'none'} of {', '.join(map(str, features))}"
    )


@contextmanager
def opened_text(file: Path) -> Iterator[TextIO]:
    """Opens a text file of at most `LARGEST_FILE` bytes.

    Raises:
        InvalidInputError: The path is not a file, or the file is too large, unreadable or not UTF-8. Also raised if the
            block fails to read the file.
    """
    try:
        if not os.path.isfile(file):  # noqa: PTH113 - is_file raises for a name that is too long
            raise InvalidInputError(f"{file} is no file: give one that exists")
        with open_regular(file) as opened:
            if (size := os.fstat(opened.fileno()).st_size) > LARGEST_FILE:
                raise InvalidInputError(f"{file} has {size:,} bytes, more than {LARGEST_FILE:,}: divide it")
            with TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
                yield text
    except OSError as exc:
        raise InvalidInputError(f"{file} cannot be read: {exc.strerror}; check its permissions") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{file} is not UTF-8: {exc.reason} ({exc.object[exc.start]:#x}); save it so") from exc


def folder_of(file: Path, images: str | os.PathLike[str] | None) -> Path:
    """Returns `images`, or else the folder of `file`; raises InvalidInputError if the folder does not exist."""
    folder = file.parent if images is None else checked_path("images", images)
    if not os.path.isdir(folder):  # noqa: PTH112 - as above
        raise InvalidInputError(f"the folder of images {folder} is no folder: give one that exists")
    return folder


def path_in(folder: Path, path: str) -> Path:
    """Joins `folder` and the path of an image from an untrusted file, and returns the result.

    Where no file has the name, backslashes are taken as the separators of a path from Windows.

    Raises:
        InvalidInputError: The path is empty, too long or a URL, leads out of the folder, or does not exist.
    """
    if not path.strip():
        raise InvalidInputError("the path is empty; name an image")
    if len(path) > _MAX_PATH_CHARS:
        raise InvalidInputError(
            f"a path may have at most {_MAX_PATH_CHARS:,} characters. Got {len(path):,}, {path[:40]!r}…"
        )
    if "://" in path:
        raise InvalidInputError(f"URLs are not fetched: download {path!r}, and give its path")
    for written in dict.fromkeys((path, path.replace("\\", "/"))):
        found = inside(folder, folder / written)
        if os.path.exists(found):  # noqa: PTH110 - Path.exists raises for a name that is too long
            return found
    raise InvalidInputError(f"there is no {str(found)!r}: check the path, and the folder of the images")


def lines_of(file: Path) -> Iterator[str]:
    """Yields the lines of a text file; raises InvalidInputError as `opened_text`, and for an endless line."""
    with opened_text(file) as text:
        while line := text.readline(_MAX_LINE_CHARS):
            if len(line) == _MAX_LINE_CHARS:
                raise InvalidInputError(
                    f"{file} is no CSV or text: it has a line of {_MAX_LINE_CHARS:,} characters or more"
                )
            yield line


def _columns(file: Path, header: str, *wanted: str) -> tuple[str, list[str]]:
    """Returns the delimiter of a CSV file and the names of its columns, among them the wanted ones."""
    for delimiter in DELIMITERS:
        with suppress(csv.Error):  # not a line with this delimiter
            columns = [name.strip() for row in csv.reader([header], delimiter=delimiter, strict=True) for name in row]
            if all(columns.count(name) == 1 for name in wanted):
                return delimiter, columns
    raise InvalidInputError(
        f"the first line of {file} must name the columns {' and '.join(wanted)}. Got {shown(header.strip())}; correct "
        "it, or give the names of its columns (path, label and parent; --path-column, --label-column, --parent-column)"
    )
