"""Labelled test images of public data sets, from local files in the layout of torchvision's ``root``.

A pickle can run any code, so pickles and MATLAB files are loaded only if they have the MD5 of the official file. Each
file is read once, and the checked bytes are loaded. The classes of torchvision open a file again after the check; until
then, another file could replace the checked file. Each loader raises `InvalidInputError` for a file that is missing,
damaged, not the official file, or outside the folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle  # nosec B403 # official files only
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.io import loadmat

from zsvec.errors import InvalidInputError
from zsvec.inputs.categories import checked_name
from zsvec.inputs.files import inside, read_regular
from zsvec.inputs.images import ImageInput

Labelled = Sequence[tuple[ImageInput, str]]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_CIFAR_PAGE = "Alex Krizhevsky's CIFAR page at the University of Toronto (the Python version, unpacked)"
_PAGES = {
    "mnist": "Yann LeCun's MNIST page, or one of its mirrors (unpacked)",
    "svhn": "the Street View House Numbers page of Stanford University (cropped digits, format 2)",
    "cifar10": _CIFAR_PAGE,
    "cifar100": _CIFAR_PAGE,
    "tinyimagenet": "the page of Stanford's course CS231n (Tiny ImageNet, 200 categories, unpacked)",
}
# MD5 of the official files, from torchvision. It is infeasible to make another file with a given MD5.
_OFFICIAL = {
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def mnist(root: Path) -> Labelled:
    """Returns handwritten digits, 28 × 28 in grey, from the unpacked files ``MNIST/raw/t10k-*-ubyte``."""
    folder = root / "MNIST" / "raw"
    pixels = _read_idx(folder / "t10k-images-idx3-ubyte", root, dimensions=3)
    labels = _read_idx(folder / "t10k-labels-idx1-ubyte", root, dimensions=1)
    if len(labels) != len(pixels) or labels.max(initial=0) >= len(DIGITS):
        _refuse("mnist", folder / "t10k-labels-idx1-ubyte", "not one digit for each image")
    return _labelled(pixels, labels, DIGITS)


def svhn(root: Path) -> Labelled:
    """Returns digits of house numbers, 32 × 32 in colour, from ``test_32x32.mat``."""
    found = loadmat(io.BytesIO(_official("svhn", root, "test_32x32.mat")), variable_names=("X", "y"))
    # the axes of X are (height, width, colour, image); the digit 0 has the label 10
    return _labelled(np.moveaxis(found["X"], 3, 0), found["y"].reshape(-1) % 10, DIGITS)


def cifar10(root: Path) -> Labelled:
    """Returns ten kinds of animals and vehicles, 32 × 32 in colour, from ``cifar-10-batches-py/``."""
    return _cifar("cifar10", root, "cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta", "label")


def cifar100(root: Path) -> Labelled:
    """Returns a hundred kinds of things (the fine labels), 32 × 32 in colour, from ``cifar-100-python/``."""
    return _cifar("cifar100", root, "cifar-100-python/test", "cifar-100-python/meta", "fine_label")


def tinyimagenet(root: Path) -> Labelled:
    """Returns the validation images of 200 categories of ImageNet, 64 × 64. The test images have no labels.

    The name of a category is the first synonym in ``words.txt``, followed by the WordNet id if two names are equal.

    Args:
        root: The folder with ``val`` and ``words.txt``, or the parent of ``tiny-imagenet-200``.
    """
    base = root / "tiny-imagenet-200"
    base = base if os.path.isdir(base) else root  # noqa: PTH112 - Path.is_dir raises without permission
    words = _table(base / "words.txt", root)
    wnids = _table(base / "val" / "val_annotations.txt", root)
    if unnamed := sorted(set(wnids.values()) - words.keys()):
        _refuse("tinyimagenet", base / "words.txt", f"the file has no name for {unnamed[0]!r}")
    first = {wnid: words[wnid].split(",")[0].replace("_", " ").strip() for wnid in set(wnids.values())}
    shared = Counter(first.values())
    names = {wnid: checked_name(name if shared[name] == 1 else f"{name} ({wnid})") for wnid, name in first.items()}
    folder = base / "val" / "images"
    paths = {name: inside(folder, folder / name) for name in wnids}
    for path in paths.values():
        if not os.path.isfile(path):  # noqa: PTH113 - as above
            _refuse("tinyimagenet", path, "the file does not exist")
    return [(paths[name], names[wnid]) for name, wnid in wnids.items()]


DATASETS: Mapping[str, Callable[[Path], Labelled]] = {
    loader.__name__: loader for loader in (mnist, svhn, cifar10, cifar100, tinyimagenet)
}


def _refuse(name: str, path: Path, reason: str) -> NoReturn:
    raise InvalidInputError(
        f"the data set {name} cannot be read from {path}: {reason}; nothing is downloaded, get it from {_PAGES[name]}"
    )


def _content(name: str, path: Path, root: Path) -> bytes:
    try:
        return read_regular(inside(root, path))
    except OSError as error:
        _refuse(name, path, error.strerror or str(error))


def _official(name: str, root: Path, file: str) -> bytes:
    """Returns the content of an official file, after a check of the MD5."""
    content = _content(name, root / file, root)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != _OFFICIAL[file]:
        _refuse(name, root / file, "not the official file")
    return content


def _unpickled(name: str, root: Path, file: str) -> dict[str, Any]:
    content = _official(name, root, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about arrays that Python 2 pickled
        found: dict[str, Any] = pickle.loads(content, encoding="latin-1")  # noqa: S301 # nosec B301 # the official file
    return found


def _cifar(name: str, root: Path, batch: str, meta: str, key: str) -> Labelled:
    found, names = _unpickled(name, root, batch), _unpickled(name, root, meta)[f"{key}_names"]
    planes = found["data"].reshape(-1, 3, 32, 32)  # of red, green and blue
    return _labelled(planes.transpose(0, 2, 3, 1), found[f"{key}s"], [name.replace("_", " ") for name in names])


def _labelled(pixels: NDArray[np.uint8], labels: ArrayLike, names: Sequence[str]) -> Labelled:
    """Returns pairs of image and category name. The images are views of one array."""
    return list(zip(np.ascontiguousarray(pixels), [names[label] for label in np.asarray(labels)], strict=True))


def _read_idx(path: Path, root: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Returns the array in a file of LeCun's IDX format.

    The file begins with the bytes 0, 0, 8 (uint8) and the number of dimensions. Then come the size of each dimension
    as 4 bytes (big-endian), and the values.
    """
    content = _content("mnist", path, root)
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < header:
        _refuse("mnist", path, "no IDX file")
    shape = tuple(map(int, np.frombuffer(content, ">u4", dimensions, 4)))
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != np.prod(shape, dtype=object):
        _refuse("mnist", path, "the file is truncated")
    return values.reshape(shape)


def _table(path: Path, root: Path) -> dict[str, str]:
    """Returns a mapping from the first to the second column of a tab-separated file."""
    content = _content("tinyimagenet", path, root)
    try:
        lines = [line.split("\t") for line in content.decode().splitlines() if line.strip()]
        return {first: second for first, second, *_ in lines}
    except ValueError as error:
        _refuse("tinyimagenet", path, str(error))
