"""Images with their categories, from the files of public data sets: read where they lie, never downloaded.

Files are looked for where torchvision keeps them under its ``root``, so that one folder serves both. They are
read without it: torch has its home in `zsvec.encoders`, and the formats are simple. Pixels are kept as they are in
the file (uint8: 47 MB for the training images of MNIST, 150 MB of CIFAR, 225 MB of SVHN), and an image is taken out
of them when it is asked for; files of single images stay on the disk.
"""

from __future__ import annotations

import gzip
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from zsvec.errors import InvalidInputError
from zsvec.evaluation.evaluate import labelled_images
from zsvec.evaluation.pickles import plain_dict
from zsvec.inputs.categories import checked_name
from zsvec.inputs.files import open_regular, read_regular
from zsvec.inputs.images import ImageInput

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_CIFAR_PAGE = "Alex Krizhevsky's CIFAR page at the University of Toronto (the Python version, unpacked)"
_PAGES = {
    "mnist": "Yann LeCun's MNIST page, or one of its mirrors",
    "svhn": "the Street View House Numbers page of Stanford University (cropped digits, format 2)",
    "cifar10": _CIFAR_PAGE,
    "cifar100": _CIFAR_PAGE,
    "tinyimagenet": "the page of Stanford's course CS231n (Tiny ImageNet, 200 categories, unpacked)",
}


class ArrayImages(Sequence[tuple[ImageInput, str]]):
    """Images that lie in one array, each taken out of it, with its category, when it is asked for."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.intp], names: Sequence[str]) -> None:
        """Nothing is copied.

        Args:
            pixels: uint8 ``(n_images, height, width)`` or ``(n_images, height, width, 3)``.
            labels: ``(n_images,)``, positions in `names`.
            names: Of the categories.
        """
        self._pixels, self._labels, self._names = pixels, labels, names

    @property
    def labels(self) -> tuple[str, ...]:
        """Category of each image; no image is made for that."""
        return tuple(self._names[label] for label in self._labels)

    def __len__(self) -> int:
        return len(self._pixels)

    @overload
    def __getitem__(self, index: int) -> tuple[ImageInput, str]: ...
    @overload
    def __getitem__(self, index: slice) -> ArrayImages: ...
    def __getitem__(self, index: int | slice) -> tuple[ImageInput, str] | ArrayImages:
        if isinstance(index, slice):
            return ArrayImages(self._pixels[index], self._labels[index], self._names)
        return np.ascontiguousarray(self._pixels[index]), self._names[self._labels[index]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images whose categories are known.

    Attributes:
        name: A key of `DATASETS`.
        images: Each with its category, in the order of the files.
    """

    name: str
    images: Sequence[tuple[ImageInput, str]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Category of each image, without making any."""
        if isinstance(self.images, ArrayImages):
            return self.images.labels
        return tuple(label for _, label in self.images)

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that have an image, sorted."""
        return tuple(sorted(set(self.labels)))


Loader: TypeAlias = Callable[[Path, bool], Dataset]


def folder(root: Path, train: bool) -> Dataset:
    """A sub-folder of images per category. There is one set of images, whatever `train` says.

    Raises:
        InvalidInputError: It is no folder, or has no image in a sub-folder.
    """
    return Dataset("folder", labelled_images(root))


def mnist(root: Path, train: bool) -> Dataset:
    """Digits, 28 × 28 grey: ``MNIST/raw/*-ubyte``, or as they come, ``*-ubyte.gz``.

    Raises:
        InvalidInputError: A file is missing or damaged.
    """
    stem = f"{'train' if train else 't10k'}-"
    images, labels = (
        _existing("mnist", *(root / "MNIST" / "raw" / f"{stem}{kind}-ubyte{suffix}" for suffix in ("", ".gz")))
        for kind in ("images-idx3", "labels-idx1")
    )
    return Dataset("mnist", _array_images(images, _read_idx(images), _read_idx(labels), DIGITS, colours=False))


def svhn(root: Path, train: bool) -> Dataset:
    """Digits of house numbers, 32 × 32 in colour: ``train_32x32.mat``, ``test_32x32.mat``.

    Raises:
        InvalidInputError: The file is missing or damaged.
    """
    path = _existing("svhn", root / f"{'train' if train else 'test'}_32x32.mat")
    with _damaged(path):
        with open_regular(path) as file:
            found = loadmat(file, variable_names=("X", "y"))
        # (height, width, colour, image); the label of 0 is 10
        pixels, labels = np.moveaxis(found["X"], 3, 0), found["y"].reshape(-1)
    return Dataset("svhn", _array_images(path, pixels, np.where(labels == 10, 0, labels), DIGITS))


def cifar10(root: Path, train: bool) -> Dataset:
    """Ten kinds of animals and vehicles, 32 × 32 in colour: ``cifar-10-batches-py/``.

    Raises:
        InvalidInputError: A file is missing, damaged, or would run code.
    """
    batches = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    return _cifar("cifar10", root / "cifar-10-batches-py", batches, "labels", ("batches.meta", "label_names"))


def cifar100(root: Path, train: bool) -> Dataset:
    """A hundred kinds of things (the fine labels), 32 × 32 in colour: ``cifar-100-python/``.

    Raises:
        InvalidInputError: A file is missing, damaged, or would run code.
    """
    batch = "train" if train else "test"
    return _cifar("cifar100", root / "cifar-100-python", [batch], "fine_labels", ("meta", "fine_label_names"))


def tinyimagenet(root: Path, train: bool) -> Dataset:
    """200 categories of ImageNet, 64 × 64: its training images, or those for validation; the test has no labels.

    A category is named by its first synonym in ``words.txt``, with its WordNet id behind if two are named alike.

    Args:
        root: The folder with ``train``, ``val`` and ``words.txt``, or the one that ``tiny-imagenet-200`` is in.
        train: Take ``train/<id>/images``, not ``val/images`` with ``val/val_annotations.txt``.

    Raises:
        InvalidInputError: A file is missing, or an image's category is not in ``words.txt``.
    """
    base = root / "tiny-imagenet-200"
    base = base if os.path.isdir(base) else root  # noqa: PTH112 - as in `_existing`
    words = _table(_existing("tinyimagenet", base / "words.txt"))
    if train:
        if not (base / "train").is_dir():
            raise _missing("tinyimagenet", base / "train")
        found = labelled_images(base / "train")
    else:
        annotations = _existing("tinyimagenet", base / "val" / "val_annotations.txt")
        images = base / "val" / "images"
        found = [(_existing("tinyimagenet", images / name), wnid) for name, wnid in _table(annotations).items()]
    wnids = {wnid for _, wnid in found}
    if unnamed := sorted(wnids - words.keys()):
        raise InvalidInputError(f"{base / 'words.txt'} has no name for {unnamed[0]!r}; get the file again")
    # Named alike whichever images are taken: references from the one part, photos from the other.
    wnids.update(path.name for path in (base / "train").glob("n*") if path.name in words)
    first = {wnid: words[wnid].split(",")[0].replace("_", " ").strip() for wnid in wnids}
    shared = Counter(first.values())
    names = {wnid: checked_name(name if shared[name] == 1 else f"{name} ({wnid})") for wnid, name in first.items()}
    return Dataset("tinyimagenet", [(path, names[wnid]) for path, wnid in found])


DATASETS: Mapping[str, Loader] = {
    loader.__name__: loader for loader in (folder, mnist, svhn, cifar10, cifar100, tinyimagenet)
}


# ---- files


def _missing(name: str, path: Path, *others: Path) -> InvalidInputError:
    also = "".join(f", nor is {other.name}" for other in others)
    return InvalidInputError(
        f"the data set {name} needs {path}, which is not there{also}; nothing is downloaded, get it from {_PAGES[name]}"
    )


def _existing(name: str, *paths: Path) -> Path:
    """The first of the paths that is a file."""
    for path in paths:
        if os.path.isfile(path):  # noqa: PTH113 - is_file raises where one may not look
            return path
    raise _missing(name, *paths)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Map errors of reading a file to one that names the file."""
    try:
        yield
    # Not a list: gzip, pickle and scipy.io each raise a dozen kinds of errors for damaged files.
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise InvalidInputError(f"cannot read {path}: {reason}; it is damaged or another file, get it again") from error


def _array_images(path: Path, pixels: Any, labels: Any, names: Sequence[str], *, colours: bool = True) -> ArrayImages:
    """Check the content of a file."""
    with _damaged(path):
        kind, label_kind = f"{pixels.dtype} {pixels.shape}", f"{labels.dtype} {labels.shape}"
        shape_is_right = pixels.shape[3:] == (3,) if colours else pixels.ndim == 3
        fits = shape_is_right and pixels.dtype == np.uint8 and pixels.size and labels.shape == pixels.shape[:1]
    if not fits or labels.dtype.kind not in "iu":
        raise InvalidInputError(f"{path} has no labelled images: {kind}, with labels {label_kind}; get it again")
    if labels.min() < 0 or labels.max() >= len(names):
        extremes = f"labels from {labels.min()} to {labels.max()}"
        raise InvalidInputError(f"{path} has {extremes} for {len(names)} categories; get it again")
    return ArrayImages(pixels, labels.astype(np.intp), names)


def _table(path: Path) -> dict[str, str]:
    """The first two columns of a text whose columns are separated by tabs."""
    with _damaged(path):
        lines = read_regular(path).decode().splitlines()
        return {first: second for first, second, *_ in (line.split("\t") for line in lines if line.strip())}


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of LeCun's IDX format: zero, zero, 8 for uint8, dimensions; each size in 4 bytes; the values."""
    with _damaged(path):
        content = read_regular(path)
        data = gzip.decompress(content) if path.suffix == ".gz" else content
        dimensions = data[3] if data[:3] == b"\0\0\x08" else 0
        shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, 4))
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if not dimensions or values.size != math.prod(shape):
        raise InvalidInputError(f"{path} is no whole IDX file of uint8; get it again")
    return values.reshape(shape)


def _unpickled(path: Path, *keys: str) -> list[Any]:
    """Values of a pickled dict."""
    with _damaged(path):
        found = plain_dict(read_regular(path))
    if not found.keys() >= set(keys):
        raise InvalidInputError(f"{path} has no {' and '.join(keys)}; it is damaged or another file, get it again")
    return [found[key] for key in keys]


def _cifar(name: str, base: Path, batches: Sequence[str], labels_key: str, meta: tuple[str, str]) -> Dataset:
    meta_file, names_key = meta
    paths = [_existing(name, base / file) for file in (meta_file, *batches)]
    (names,) = _unpickled(paths[0], names_key)
    with _damaged(paths[0]):
        readable = [checked_name(name.replace("_", " ")) for name in names]
    parts = []
    for path in paths[1:]:
        pixels, labels = _unpickled(path, "data", labels_key)
        with _damaged(path):
            if not isinstance(pixels, np.ndarray) or not isinstance(labels, list | np.ndarray):
                raise TypeError(f"its data are of {type(pixels).__name__}, its labels of {type(labels).__name__}")
            # a row is the red, the green and the blue plane
            planes = pixels.reshape(-1, 3, 32, 32)
            _array_images(path, planes.transpose(0, 2, 3, 1), np.asarray(labels), readable)
        parts.append((planes, np.asarray(labels, dtype=np.intp)))
    planes, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Dataset(name, ArrayImages(planes.transpose(0, 2, 3, 1), labels, readable))
