"""Public data sets, written as tiny files of the same formats, and read back pixel by pixel."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from zsvec.errors import InvalidInputError
from zsvec.evaluation.datasets import DATASETS, DIGITS, ArrayImages, Dataset
from zsvec.inputs.images import load_image

Pixels = NDArray[np.uint8]


def pixels(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def shown(dataset: Dataset) -> list[Pixels]:
    """What the encoders would see."""
    return [np.asarray(load_image(image)) for image, _ in dataset.images]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- the files


def idx(values: Pixels) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def python2(value: object) -> bytes:
    """A pickle as Python 2 and the numpy of 2009 wrote it, as in the files of CIFAR: texts and bytes are the same."""
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


def write_mnist(root: Path, part: str, images: Pixels, labels: list[int], *, packed: bool = False) -> None:
    for kind, values in (("images-idx3", images), ("labels-idx1", np.array(labels, dtype=np.uint8))):
        content, suffix = (gzip.compress(idx(values)), ".gz") if packed else (idx(values), "")
        write(root / "MNIST" / "raw" / f"{part}-{kind}-ubyte{suffix}", content)


def write_svhn(path: Path, images: Pixels, labels: list[int], **more: Any) -> None:
    arrays = {"X": np.moveaxis(images, 0, 3), "y": np.array(labels, dtype=np.uint8)[:, None]}
    savemat(path, {**arrays, **more}, do_compression=True)


TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = ["aquarium_fish", *(f"thing_{number}" for number in range(1, 100))]
Pickler = Callable[[object], bytes]


def rows(images: Pixels) -> Pixels:
    """As in CIFAR: a row for each image, first all of its red, then green, then blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def write_cifar10(root: Path, batch: str, images: Pixels, labels: list[int], pickled: Pickler = python2) -> None:
    base = root / "cifar-10-batches-py"
    write(base / "batches.meta", pickled({"label_names": TEN, "num_vis": 3072}))
    write(base / batch, pickled({"batch_label": batch, "labels": labels, "data": rows(images)}))


def write_cifar100(root: Path, part: str, images: Pixels, labels: list[int]) -> None:
    base = root / "cifar-100-python"
    write(base / "meta", python2({"fine_label_names": HUNDRED, "coarse_label_names": ["fish"]}))
    write(base / part, python2({"fine_labels": labels, "coarse_labels": [0] * len(labels), "data": rows(images)}))


def write_picture(path: Path, seed: int) -> Pixels:
    """Losslessly, though with the suffix of the data set: images are known by their content."""
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


def write_tiny(base: Path) -> dict[str, Pixels]:
    """Three training images of three categories, two for validation."""
    write(base / "words.txt", WORDS.encode())
    write(
        base / "val" / "val_annotations.txt", b"val_0.JPEG\tn03837869\t0\t1\t2\t3\nval_1.JPEG\tn02012849\t0\t0\t9\t9\n"
    )
    write(base / "train" / "n02012849" / "n02012849_boxes.txt", b"n02012849_0.JPEG\t0\t0\t9\t9\n")
    names = [
        *(f"train/{wnid}/images/{wnid}_0.JPEG" for wnid in ("n01443537", "n02012849", "n03126707")),
        "val/images/val_0.JPEG",
        "val/images/val_1.JPEG",
    ]
    return {name: write_picture(base / name, seed) for seed, name in enumerate(names)}


# ---- each data set


def test_names() -> None:
    assert list(DATASETS) == ["folder", "mnist", "svhn", "cifar10", "cifar100", "tinyimagenet"]


def test_folder(tmp_path: Path) -> None:
    expected = [write_picture(tmp_path / name, seed) for seed, name in enumerate(["cat/a.png", "dog/old/b.png"])]
    for train in (True, False):
        dataset = DATASETS["folder"](tmp_path, train)
        assert dataset.name == "folder"
        assert dataset.images == [(tmp_path / "cat/a.png", "cat"), (tmp_path / "dog/old/b.png", "dog")]
        assert dataset.labels == dataset.categories == ("cat", "dog")
        np.testing.assert_array_equal(shown(dataset), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path: Path, packed: bool) -> None:
    train, test = pixels(1, 3, 28, 28), pixels(2, 2, 28, 28)
    write_mnist(tmp_path, "train", train, [5, 0, 5], packed=packed)
    write_mnist(tmp_path, "t10k", test, [9, 1], packed=packed)
    dataset = DATASETS["mnist"](tmp_path, True)
    assert dataset.labels == ("five", "zero", "five")
    assert dataset.categories == ("five", "zero")
    np.testing.assert_array_equal([image for image, _ in dataset.images], train)
    np.testing.assert_array_equal(shown(dataset), np.repeat(train[..., None], 3, axis=3))
    dataset = DATASETS["mnist"](tmp_path, False)
    assert [label for _, label in dataset.images] == ["nine", "one"]
    np.testing.assert_array_equal([image for image, _ in dataset.images], test)


def test_the_unpacked_file_is_taken_first(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", pixels(1, 1, 28, 28), [1], packed=True)
    write_mnist(tmp_path, "train", pixels(2, 1, 28, 28), [2])
    assert DATASETS["mnist"](tmp_path, True).labels == ("two",)


def test_svhn(tmp_path: Path) -> None:
    train, test = pixels(1, 3, 32, 32, 3), pixels(2, 2, 32, 32, 3)
    write_svhn(tmp_path / "train_32x32.mat", train, [10, 1, 9])  # 10 is the digit 0
    write_svhn(tmp_path / "test_32x32.mat", test, [2, 2])
    dataset = DATASETS["svhn"](tmp_path, True)
    assert dataset.labels == ("zero", "one", "nine")
    np.testing.assert_array_equal(shown(dataset), train)
    dataset = DATASETS["svhn"](tmp_path, False)
    assert dataset.labels == ("two", "two")
    np.testing.assert_array_equal(shown(dataset), test)


@pytest.mark.parametrize(
    "pickled", [python2, *(partial(pickle.dumps, protocol=protocol) for protocol in (3, 4))], ids=["python2", "3", "4"]
)
def test_cifar10(tmp_path: Path, pickled: Pickler) -> None:
    parts = [pixels(number, 2, 32, 32, 3) for number in range(6)]
    for number in range(1, 6):
        write_cifar10(tmp_path, f"data_batch_{number}", parts[number], [number, 0], pickled)
    write_cifar10(tmp_path, "test_batch", parts[0], [9, 3], pickled)
    dataset = DATASETS["cifar10"](tmp_path, True)
    assert dataset.labels == tuple(name for number in range(1, 6) for name in (TEN[number], "airplane"))
    np.testing.assert_array_equal(shown(dataset), np.concatenate(parts[1:]))
    dataset = DATASETS["cifar10"](tmp_path, False)
    assert dataset.labels == ("truck", "cat")
    np.testing.assert_array_equal(shown(dataset), parts[0])


def test_cifar100(tmp_path: Path) -> None:
    train, test = pixels(1, 3, 32, 32, 3), pixels(2, 2, 32, 32, 3)
    write_cifar100(tmp_path, "train", train, [0, 99, 7])
    write_cifar100(tmp_path, "test", test, [7, 0])
    dataset = DATASETS["cifar100"](tmp_path, True)
    assert dataset.labels == ("aquarium fish", "thing 99", "thing 7")
    np.testing.assert_array_equal(shown(dataset), train)
    dataset = DATASETS["cifar100"](tmp_path, False)
    assert dataset.labels == ("thing 7", "aquarium fish")
    np.testing.assert_array_equal(shown(dataset), test)


@pytest.mark.parametrize("below", [".", "tiny-imagenet-200"])
def test_tinyimagenet(tmp_path: Path, below: str) -> None:
    written = write_tiny(tmp_path / below)
    train, val = DATASETS["tinyimagenet"](tmp_path, True), DATASETS["tinyimagenet"](tmp_path, False)
    assert train.labels == ("goldfish", "crane (n02012849)", "crane (n03126707)")
    # only one of the cranes is among these: it is named as among the training images
    assert val.labels == ("obelisk of stone", "crane (n02012849)")
    np.testing.assert_array_equal(shown(train) + shown(val), list(written.values()))
    assert all(isinstance(image, Path) for image, _ in train.images)


# ---- images that are made on access


def test_array_images_are_a_sequence() -> None:
    values = pixels(1, 4, 5, 6, 3)
    images = ArrayImages(values, np.array([2, 0, 1, 2]), DIGITS)
    assert len(images) == 4
    assert images.labels == ("two", "zero", "one", "two")
    assert isinstance(images[1:3], ArrayImages)
    assert images[1:3].labels == ("zero", "one")
    assert images[::-1].labels == ("two", "one", "zero", "two")
    for index in (-4, -1, 0, 3):
        image, label = images[index]
        np.testing.assert_array_equal(image, values[index])
        assert label == images.labels[index]
    with pytest.raises(IndexError):
        images[4]
    assert [label for _, label in images] == list(images.labels)


def test_an_image_is_made_when_it_is_asked_for() -> None:
    values = pixels(1, 2, 5, 3, 6).transpose(0, 1, 3, 2)
    images = ArrayImages(values, np.array([0, 0]), DIGITS)
    image, _ = images[0]
    assert isinstance(image, np.ndarray)
    assert image.flags.c_contiguous
    assert not np.shares_memory(image, values)
    assert np.shares_memory(images[1:]._pixels, values)


# ---- what is missing

WHOLE: dict[str, Callable[[Path], object]] = {
    "mnist": lambda root: write_mnist(root, "t10k", pixels(1, 2, 28, 28), [1, 2]),
    "svhn": lambda root: write_svhn(root / "test_32x32.mat", pixels(1, 2, 32, 32, 3), [1, 2]),
    "cifar10": lambda root: write_cifar10(root, "test_batch", pixels(1, 2, 32, 32, 3), [1, 2]),
    "cifar100": lambda root: write_cifar100(root, "test", pixels(1, 2, 32, 32, 3), [1, 2]),
    "tinyimagenet": write_tiny,
}


@pytest.mark.parametrize(
    ("name", "file", "site"),
    [
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte", "Yann LeCun"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte", "Yann LeCun"),
        ("svhn", "test_32x32.mat", "Stanford"),
        ("cifar10", "cifar-10-batches-py/test_batch", "Toronto"),
        ("cifar10", "cifar-10-batches-py/batches.meta", "Toronto"),
        ("cifar100", "cifar-100-python/test", "Toronto"),
        ("cifar100", "cifar-100-python/meta", "Toronto"),
        ("tinyimagenet", "words.txt", "CS231n"),
        ("tinyimagenet", "val/val_annotations.txt", "CS231n"),
        ("tinyimagenet", "val/images/val_1.JPEG", "CS231n"),
    ],
)
def test_a_missing_file_is_named_and_where_to_get_it(tmp_path: Path, name: str, file: str, site: str) -> None:
    WHOLE[name](tmp_path)
    assert len(DATASETS[name](tmp_path, False).images) == 2
    (tmp_path / file).unlink()
    with pytest.raises(InvalidInputError, match=site) as refused:
        DATASETS[name](tmp_path, False)
    assert f"needs {tmp_path / file}, which is not there" in str(refused.value)
    assert "nothing is downloaded" in str(refused.value)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("train", [True, False])
def test_an_empty_folder_and_none(tmp_path: Path, name: str, train: bool) -> None:
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidInputError, match=f"the data set {name} needs "):
            DATASETS[name](root, train)


def test_no_training_images(tmp_path: Path) -> None:
    write(tmp_path / "words.txt", WORDS.encode())
    with pytest.raises(InvalidInputError, match=r"needs .*train, which is not there"):
        DATASETS["tinyimagenet"](tmp_path, True)
    (tmp_path / "train").mkdir()
    with pytest.raises(InvalidInputError, match="no images in sub-folders"):
        DATASETS["tinyimagenet"](tmp_path, True)


def test_the_packed_file_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nor is t10k-images-idx3-ubyte\.gz"):
        DATASETS["mnist"](tmp_path, False)


# ---- what is damaged


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("svhn", "test_32x32.mat"),
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/test"),
        ("tinyimagenet", "words.txt"),
        ("tinyimagenet", "val/val_annotations.txt"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, file: str) -> None:
    WHOLE[name](tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    binary = name != "tinyimagenet"
    damaged = [
        b"<html>Not found</html>\n",
        b"\xff\xfe\xfd",
        *([b"", whole[:-9], whole[:7], whole[:1]] if binary else []),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"get it again|get the file again") as refused:
            DATASETS[name](tmp_path, False)
        assert str(path) in str(refused.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path, "t10k", pixels(1, 2, 28, 28), [1, 2], packed=True)
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    for content in (path.read_bytes()[:-20], idx(pixels(1, 2, 28, 28)), b""):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="get it again"):
            DATASETS["mnist"](tmp_path, False)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda root: write_mnist(root, "t10k", pixels(1, 2, 28, 28), [1]), "mnist", r"\(2, 28, 28\), with .* \(1,\)"),
        (lambda root: write_mnist(root, "t10k", pixels(1, 2, 28, 28), [1, 10]), "mnist", "labels from 1 to 10 for 10"),
        (lambda root: write_mnist(root, "t10k", pixels(1, 2, 28), [1, 2]), "mnist", "no labelled images"),
        (lambda root: write_mnist(root, "t10k", pixels(1, 0, 28, 28), []), "mnist", "no labelled images"),
        (lambda root: write_svhn(root / "test_32x32.mat", pixels(1, 2, 32, 32, 3), [1]), "svhn", r"\(1,\)"),
        (lambda root: write_svhn(root / "test_32x32.mat", pixels(1, 2, 32, 32, 3), [1, 11]), "svhn", "to 11"),
        (lambda root: write_svhn(root / "test_32x32.mat", pixels(1, 2, 32, 32, 4), [1, 2]), "svhn", "32, 4"),
        (lambda root: write_svhn(root / "test_32x32.mat", np.ones((2, 9, 9, 3)), [1, 2]), "svhn", "float64"),  # type: ignore[arg-type]
        (lambda root: savemat(root / "test_32x32.mat", {"y": np.ones(3)}), "svhn", "'X'"),
        (lambda root: write_cifar10(root, "test_batch", pixels(1, 2, 32, 32, 3), [1]), "cifar10", r"\(1,\)"),
        (lambda root: write_cifar10(root, "test_batch", pixels(1, 2, 32, 32, 3), [1, -1]), "cifar10", "from -1 to 1"),
        (lambda root: write_cifar10(root, "test_batch", pixels(1, 2, 31, 32, 3), [1, 2]), "cifar10", "reshape"),
        (lambda root: write_cifar10(root, "test_batch", pixels(1, 2, 32, 32, 3), ["a", "b"]), "cifar10", "no labelled"),  # type: ignore[list-item]
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, make: Callable[[Path], object], name: str, message: str) -> None:
    make(tmp_path)
    with pytest.raises(InvalidInputError, match=message):
        DATASETS[name](tmp_path, False)


def test_pickles_of_something_else(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test_batch", pixels(1, 2, 32, 32, 3), [1, 2])
    path = tmp_path / "cifar-10-batches-py/test_batch"
    for content in (
        [1, 2],
        {"labels": [1]},
        "data labels",
        {"data": [1, 2], "labels": [1, 2]},
        {"data": 1, "labels": 2},
    ):
        path.write_bytes(python2(content))
        with pytest.raises(InvalidInputError, match="get it again"):
            DATASETS["cifar10"](tmp_path, False)
    path = tmp_path / "cifar-10-batches-py/batches.meta"
    for names in (3, [1, 2], [""]):
        path.write_bytes(python2({"label_names": names}))
        with pytest.raises(InvalidInputError, match="get it again"):
            DATASETS["cifar10"](tmp_path, False)


def test_a_category_that_words_do_not_name(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write(tmp_path / "words.txt", b"n02012849\tcrane\n")
    with pytest.raises(InvalidInputError, match="has no name for 'n03837869'"):
        DATASETS["tinyimagenet"](tmp_path, False)


# ---- pickles that run code


class Runs:
    """When it is unpickled, a function is called."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
@pytest.mark.parametrize("attack", ["system", "eval", "numpy", "subprocess", "dotted", "instance"])
def test_a_pickle_calls_nothing_but_numpy(tmp_path: Path, protocol: int, file: str, attack: str) -> None:
    touched = tmp_path / "touched"
    touch = f"open({str(touched)!r}, 'w').close()"
    images, labels = rows(pixels(1, 2, 32, 32, 3)), [1, 2]
    content = {"data": images, "labels": labels, "label_names": TEN}
    attacks: dict[str, bytes] = {
        "system": pickle.dumps({**content, "x": Runs(os.system, f"touch {touched}")}, protocol),
        "eval": pickle.dumps({**content, "x": Runs(eval, touch)}, protocol),
        "numpy": pickle.dumps({**content, "x": Runs(np.fromfile, str(tmp_path / file))}, protocol),
        "subprocess": pickle.dumps({**content, "x": Runs(subprocess.check_output, ["touch", str(touched)])}, protocol),
        # numpy.ndarray.tofile, by a dotted name, as protocol 4 allows
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "instance": f"(S{touch!r}\nibuiltins\neval\n.".encode(),
    }
    write_cifar10(tmp_path, "test_batch", pixels(1, 2, 32, 32, 3), labels)
    write(tmp_path / "cifar-10-batches-py" / file, attacks[attack])
    with pytest.raises(InvalidInputError, match="only numpy arrays may be in it") as refused:
        DATASETS["cifar10"](tmp_path, False)
    assert isinstance(refused.value.__cause__, pickle.UnpicklingError)
    assert not touched.exists()


def addresses() -> bytes:
    """An array of objects whose addresses are bytes of the file, made by numpy's own constructors."""
    kind = _global("numpy", "dtype") + b"(" + _python2("O") + b"\x89\x88tR"
    kind += _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
    made = _global("numpy.core.multiarray", "_reconstruct")
    made += b"(" + _global("numpy", "ndarray") + _python2((0,)) + _python2("b") + b"tR"
    return made + b"(" + _python2(1) + _python2((2,)) + kind + b"I00\n" + _python2(b"A" * 16) + b"tb"


READS = """if True:
    import pickletools, random, sys
    from pathlib import Path
    from zsvec.errors import InvalidInputError
    from zsvec.evaluation.datasets import DATASETS

    root, rng = Path(sys.argv[1]), random.Random(5)
    codes = [code.code.encode("latin-1") for code in pickletools.opcodes]
    base = root / "cifar-10-batches-py"

    def read():
        try:
            DATASETS["cifar10"](root, False)
        except InvalidInputError:
            return 1
        return 0

    refused = read()
    for file in ("batches.meta", "test_batch"):
        wholes = [path.read_bytes() for path in sorted(root.glob(f"*.{file}"))]
        for _ in range(500):
            damaged = bytearray(rng.choice(wholes))
            for _ in range(rng.randrange(1, 4)):
                end = rng.randrange(2)
                at = len(damaged) - 1 - rng.randrange(60) if end else rng.randrange(200)
                damaged[at : at + rng.randrange(3)] = rng.choice([*codes, rng.randbytes(1)])
            (base / file).write_bytes(damaged)
            refused += read()
        (base / file).write_bytes(wholes[0])
    print(refused)
"""


def test_damaged_pickles_and_those_of_attackers_are_errors(tmp_path: Path) -> None:
    images = pixels(1, 2, 32, 32, 3)
    picklers: list[Pickler] = [python2, *(partial(pickle.dumps, protocol=p) for p in (2, 3, 4))]
    for number, pickled in enumerate(picklers):
        write_cifar10(tmp_path, "test_batch", images, [1, 2], pickled)
        for file in ("batches.meta", "test_batch"):
            (tmp_path / f"{number}.{file}").write_bytes((tmp_path / "cifar-10-batches-py" / file).read_bytes())
    names = b"\x80\x02(" + _python2("label_names") + addresses() + b"d."
    (tmp_path / "cifar-10-batches-py/batches.meta").write_bytes(names)
    read = subprocess.run(
        [sys.executable, "-c", READS, tmp_path], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (read.returncode, read.stderr) == (0, "")
    assert int(read.stdout) > 700  # of 1,001


def test_lists_in_lists_are_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "test_batch", pixels(1, 2, 32, 32, 3), [1, 2])
    labels: list[Any] = [1]
    labels += [labels, labels]  # nobody could count what is in it
    path = tmp_path / "cifar-10-batches-py/test_batch"
    for content in ({"data": rows(pixels(1, 2, 32, 32, 3)), "labels": labels}, {(1, 2): 3}, [1]):
        path.write_bytes(pickle.dumps(content, 3))
        with pytest.raises(InvalidInputError, match="get it again") as refused:
            DATASETS["cifar10"](tmp_path, False)
        assert isinstance(refused.value.__cause__, pickle.UnpicklingError)


def test_reading_needs_no_torch() -> None:
    code = "import sys, zsvec.evaluation.datasets; assert not sys.modules.keys() & {'torch', 'torchvision'}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)
