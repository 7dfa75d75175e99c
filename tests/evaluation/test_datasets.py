"""Public data sets, written as tiny files of the same formats, and read back pixel by pixel."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from zsvec.errors import InvalidInputError
from zsvec.evaluation import datasets
from zsvec.evaluation.datasets import DATASETS, Labelled
from zsvec.inputs.files import read_regular
from zsvec.inputs.images import load_image

Pixels = NDArray[np.uint8]


def pixels(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def shown(labelled: Labelled) -> list[Pixels]:
    """Returns the decoded images."""
    return [np.asarray(load_image(image)) for image, _ in labelled]


def labels_of(labelled: Labelled) -> list[str]:
    return [label for _, label in labelled]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- the files


def idx(values: Pixels) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def python2(value: object) -> bytes:
    """Returns a pickle as of Python 2 and the numpy of 2009, as in the files of CIFAR, without a type of bytes."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        kind = _global("numpy", "dtype") + _python2((value.dtype.str[1:], 0, 1)) + b"R"
        kind += _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
        made = _global("numpy.core.multiarray", "_reconstruct")
        made += b"(" + _global("numpy", "ndarray") + _python2((0,)) + _python2("b") + b"tR"
        return made + b"(" + _python2(1) + _python2(value.shape) + kind + b"I00\n" + _python2(value.tobytes()) + b"tb"
    if isinstance(value, dict):
        return b"(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"d"
    if isinstance(value, list | tuple):
        return b"(" + b"".join(map(_python2, value)) + (b"l" if isinstance(value, list) else b"t")
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    text = value.encode("latin-1") if isinstance(value, str) else value
    return b"T" + struct.pack("<i", len(text)) + text


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def write_mnist(root: Path, images: Pixels, labels: list[int]) -> None:
    for kind, values in (("images-idx3", images), ("labels-idx1", np.array(labels, dtype=np.uint8))):
        write(root / "MNIST" / "raw" / f"t10k-{kind}-ubyte", idx(values))


def write_svhn(root: Path, images: Pixels, labels: list[int]) -> None:
    arrays = {"X": np.moveaxis(images, 0, 3), "y": np.array(labels, dtype=np.uint8)[:, None]}
    root.mkdir(exist_ok=True)
    savemat(root / "test_32x32.mat", arrays, do_compression=True)


TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = ["aquarium_fish", *(f"thing_{number}" for number in range(1, 100))]


def rows(images: Pixels) -> Pixels:
    """Returns a row for each image, all red values, then green, then blue, as in CIFAR."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def write_cifar10(root: Path, images: Pixels, labels: list[int]) -> None:
    base = root / "cifar-10-batches-py"
    write(base / "batches.meta", python2({"label_names": TEN, "num_vis": 3072}))
    write(base / "test_batch", python2({"batch_label": "testing", "labels": labels, "data": rows(images)}))


def write_cifar100(root: Path, images: Pixels, labels: list[int]) -> None:
    base = root / "cifar-100-python"
    write(base / "meta", python2({"fine_label_names": HUNDRED, "coarse_label_names": ["fish"]}))
    write(base / "test", python2({"fine_labels": labels, "coarse_labels": [0] * len(labels), "data": rows(images)}))


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the files of a folder the official ones."""

    def trust(root: Path = tmp_path) -> None:
        for file in datasets._OFFICIAL:
            if (root / file).is_file():
                digest = hashlib.md5((root / file).read_bytes()).hexdigest()
                monkeypatch.setitem(datasets._OFFICIAL, file, digest)

    return trust


def write_picture(path: Path, seed: int) -> Pixels:
    """Writes a lossless image with the suffix of the data set: decoders go by the content."""
    values = pixels(seed, 64, 64, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, "PNG")
    return values


WORDS = "\n".join(
    [
        "n00000001\tentity",
        "n01443537\tgoldfish, Carassius auratus",
        "n02012849\tcrane",
        "n03126707\tcrane",
        "n03837869\tobelisk_of_stone, needle",
    ]
)


def write_tiny(base: Path) -> list[Pixels]:
    """Writes three validation images of three categories, two with the same name."""
    write(base / "words.txt", WORDS.encode())
    wnids = ("n03837869", "n02012849", "n03126707")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t1\t2\t3\n" for i, wnid in enumerate(wnids)]
    write(base / "val" / "val_annotations.txt", "".join(lines).encode())
    return [write_picture(base / "val" / "images" / f"val_{i}.JPEG", i) for i in range(3)]


# ---- each data set


def test_names() -> None:
    assert list(DATASETS) == ["mnist", "svhn", "cifar10", "cifar100", "tinyimagenet"]


def test_mnist(tmp_path: Path) -> None:
    images = pixels(2, 3, 28, 28)
    write_mnist(tmp_path, images, [9, 0, 9])
    found = DATASETS["mnist"](tmp_path)
    assert labels_of(found) == ["nine", "zero", "nine"]
    np.testing.assert_array_equal([image for image, _ in found], images)
    np.testing.assert_array_equal(shown(found), np.repeat(images[..., None], 3, axis=3))


def test_svhn(tmp_path: Path, trusted: Callable[..., None]) -> None:
    images = pixels(1, 3, 32, 32, 3)
    write_svhn(tmp_path, images, [10, 1, 9])  # 10 is the digit 0
    trusted()
    found = DATASETS["svhn"](tmp_path)
    assert labels_of(found) == ["zero", "one", "nine"]
    np.testing.assert_array_equal(shown(found), images)


def test_cifar10(tmp_path: Path, trusted: Callable[..., None]) -> None:
    images = pixels(1, 2, 32, 32, 3)
    write_cifar10(tmp_path, images, [9, 3])
    trusted()
    found = DATASETS["cifar10"](tmp_path)
    assert labels_of(found) == ["truck", "cat"]
    np.testing.assert_array_equal(shown(found), images)


def test_cifar100(tmp_path: Path, trusted: Callable[..., None]) -> None:
    images = pixels(1, 3, 32, 32, 3)
    write_cifar100(tmp_path, images, [0, 99, 7])
    trusted()
    found = DATASETS["cifar100"](tmp_path)
    assert labels_of(found) == ["aquarium fish", "thing 99", "thing 7"]
    np.testing.assert_array_equal(shown(found), images)


@pytest.mark.parametrize("below", [".", "tiny-imagenet-200"])
def test_tinyimagenet(tmp_path: Path, below: str) -> None:
    written = write_tiny(tmp_path / below)
    found = DATASETS["tinyimagenet"](tmp_path)
    assert labels_of(found) == ["obelisk of stone", "crane (n02012849)", "crane (n03126707)"]
    np.testing.assert_array_equal(shown(found), written)
    assert all(isinstance(image, Path) for image, _ in found)


# ---- missing and damaged files

TWO = pixels(1, 2, 32, 32, 3)
WHOLE: dict[str, Callable[[Path], object]] = {
    "mnist": lambda root: write_mnist(root, pixels(1, 2, 28, 28), [1, 2]),
    "svhn": lambda root: write_svhn(root, TWO, [1, 2]),
    "cifar10": lambda root: write_cifar10(root, TWO, [1, 2]),
    "cifar100": lambda root: write_cifar100(root, TWO, [1, 2]),
    "tinyimagenet": write_tiny,
}
FILES = {
    "mnist": ["MNIST/raw/t10k-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"],
    "svhn": ["test_32x32.mat"],
    "cifar10": ["cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"],
    "cifar100": ["cifar-100-python/test", "cifar-100-python/meta"],
    "tinyimagenet": ["words.txt", "val/val_annotations.txt", "val/images/val_1.JPEG"],
}
SITES = {"mnist": "Yann LeCun", "svhn": "Stanford", "cifar10": "Toronto", "cifar100": "Toronto"}


@pytest.mark.parametrize("name", WHOLE)
def test_a_missing_file_is_named_with_its_source(tmp_path: Path, trusted: Callable[..., None], name: str) -> None:
    WHOLE[name](tmp_path)
    trusted()
    assert DATASETS[name](tmp_path)
    for file in FILES[name]:
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).unlink()
        with pytest.raises(InvalidInputError, match=SITES.get(name, "CS231n")) as refused:
            DATASETS[name](tmp_path)
        assert str(tmp_path / file) in str(refused.value)
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InvalidInputError, match=f"the data set {name} cannot be read"):
        DATASETS[name](tmp_path / "none")


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files(tmp_path: Path, trusted: Callable[..., None], name: str) -> None:
    WHOLE[name](tmp_path)
    trusted()
    for path in (tmp_path / file for file in FILES[name] if not file.endswith("JPEG")):
        whole = path.read_bytes()
        binary = name != "tinyimagenet"
        damaged = [
            b"<html>Not found</html>\n",
            b"\xff\xfe\xfd",
            *([b"", whole[:-9], whole[:7], whole[:1]] if binary else []),
        ]
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(InvalidInputError) as refused:
                DATASETS[name](tmp_path)
            assert str(path) in str(refused.value)
        path.write_bytes(whole)


def test_digits_that_do_not_fit_together(tmp_path: Path) -> None:
    images = pixels(1, 2, 28, 28)
    for some, labels in ((images, [1]), (images, [1, 10]), (images[0], [1, 2])):
        write_mnist(tmp_path, some, labels)
        with pytest.raises(InvalidInputError):
            DATASETS["mnist"](tmp_path)


def test_packed_digits_are_not_unpacked(tmp_path: Path) -> None:
    """A small file that becomes gigabytes is never decompressed."""
    write_mnist(tmp_path, pixels(1, 2, 28, 28), [1, 2])
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(InvalidInputError, match="unpacked"):
        DATASETS["mnist"](tmp_path)


def test_a_category_that_words_do_not_name(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write(tmp_path / "words.txt", b"n02012849\tcrane\n")
    with pytest.raises(InvalidInputError, match="has no name for 'n03126707'"):
        DATASETS["tinyimagenet"](tmp_path)


# ---- files of attackers


def test_an_image_outside_its_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    write_tiny(root)
    secret = tmp_path / "secret.png"
    write_picture(secret, 7)
    (root / "val" / "images" / "link.png").symlink_to(secret)
    for name in ("../../../secret.png", str(secret), "link.png", "a\0b", ""):
        write(root / "val" / "val_annotations.txt", f"{name}\tn02012849\t0\t0\t9\t9\n".encode())
        with pytest.raises(InvalidInputError):
            DATASETS["tinyimagenet"](root)


@pytest.mark.parametrize("name", WHOLE)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, trusted: Callable[..., None], name: str) -> None:
    root, moved = tmp_path / "set", tmp_path / "moved"
    WHOLE[name](root)
    trusted(root)
    for file in FILES[name]:
        (root / file).rename(moved)
        (root / file).symlink_to(moved)
        with pytest.raises(InvalidInputError, match="leads out of"):
            DATASETS[name](root)
        moved.rename(root / file)
    assert DATASETS[name](root)


class Runs:
    """Calls a function when unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_that_runs_code_is_refused_before_it_is_read(
    tmp_path: Path, trusted: Callable[..., None], name: str
) -> None:
    WHOLE[name](tmp_path)
    trusted()
    touched = tmp_path / "touched"
    attack = {"data": rows(TWO), "labels": [1, 2], "label_names": TEN, "x": Runs(os.system, f"touch {touched}")}
    for file in FILES[name]:
        whole = (tmp_path / file).read_bytes()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            write(tmp_path / file, pickle.dumps(attack, protocol))
            with pytest.raises(InvalidInputError, match="not the official file"):
                DATASETS[name](tmp_path)
            assert not touched.exists()
        write(tmp_path / file, whole)


def test_a_pickle_that_takes_the_place_of_the_checked_file_is_not_read(
    tmp_path: Path, trusted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path, TWO, [9, 3])
    trusted()
    touched = tmp_path / "touched"
    attack = pickle.dumps(Runs(os.system, f"touch {touched}"))

    def read_and_replace(path: Path) -> bytes:
        content = read_regular(path)
        path.write_bytes(attack)
        return content

    monkeypatch.setattr(datasets, "read_regular", read_and_replace)
    assert labels_of(DATASETS["cifar10"](tmp_path)) == ["truck", "cat"]
    assert not touched.exists()


def test_the_checksums_equal_those_in_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    expected = {"test_32x32.mat": torchvision.SVHN.split_list["test"][2]}
    for kind in (torchvision.CIFAR10, torchvision.CIFAR100):
        files = [*kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        expected |= {f"{kind.base_folder}/{file}": digest for file, digest in files}
    assert expected == datasets._OFFICIAL
