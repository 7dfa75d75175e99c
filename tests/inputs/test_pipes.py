"""A named pipe in an untrusted folder is refused at once: no reader waits for a writer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.support import encode, photo
from zsvec.encoders.onnx.custom_graphs import preprocessing_beside, read_file
from zsvec.encoders.onnx.exported import MANIFEST, ExportedFolder
from zsvec.encoders.weights import LocalSource
from zsvec.errors import ZSVecError
from zsvec.evaluation.datasets import DATASETS
from zsvec.generation.manifest import Manifest, read_manifest
from zsvec.inputs.coco import from_coco
from zsvec.inputs.folders import read_definitions
from zsvec.inputs.images import content_hash, load_image
from zsvec.inputs.tables import from_csv
from zsvec.inputs.watch import Watch

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")

PATIENCE = 60  # seconds


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@contextmanager
def hanging_fails() -> Iterator[None]:
    """Fails a call that waits for the writer of a pipe."""

    def end(number: int, frame: FrameType | None) -> None:
        pytest.fail("waits for the writer of a pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def checkpoint(name: str) -> Callable[[Path], None]:
    def load(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_bytes(b"{}")
        pipe(folder / name)
        LocalSource(str(folder)).load()

    return load


def public_set(name: str, file: str) -> Callable[[Path], None]:
    def load(folder: Path) -> None:
        pipe(folder / file)
        DATASETS[name](folder)

    return load


READERS: dict[str, Callable[[Path], Any]] = {
    "state of a watch": lambda folder: Watch(pipe(folder / ".zsvec-watch.jsonl").parent),
    "named state of a watch": lambda folder: Watch(folder, state=pipe(folder / "state")),
    "manifest of generated images": lambda folder: Manifest(pipe(folder / "manifest.jsonl").parent),
    "manifest of generated images, read": lambda folder: read_manifest(pipe(folder / "manifest.jsonl").parent),
    "exported encoders": lambda folder: ExportedFolder(pipe(folder / MANIFEST).parent),
    "file beside a graph": lambda folder: preprocessing_beside(
        pipe(folder / "preprocessor_config.json").with_name("model.onnx")
    ),
    "graph": lambda folder: read_file(pipe(folder / "model.onnx")),
    "weights": lambda folder: LocalSource(str(pipe(folder / "model.pth"))).load(),
    "weights of a checkpoint": checkpoint("model.safetensors"),
    "modules of a checkpoint": checkpoint("modules.json"),
    "a file in a folder of a checkpoint": checkpoint("1_Pooling/config.json"),
    "definitions": lambda folder: read_definitions(pipe(folder / "texts.json")),
    "table": lambda folder: from_csv(pipe(folder / "labels.csv")),
    "COCO annotations": lambda folder: from_coco(pipe(folder / "coco.json")),
    "image": lambda folder: load_image(pipe(folder / "a.png")),
    "hash of an image": lambda folder: content_hash(pipe(folder / "a.png")),
    "MNIST": public_set("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
    "CIFAR-10": public_set("cifar10", "cifar-10-batches-py/test_batch"),
    "TinyImageNet": public_set("tinyimagenet", "words.txt"),
}
"""Each puts a pipe into a folder and reads it."""


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_an_error_at_once(reader: str, tmp_path: Path) -> None:
    with hanging_fails(), pytest.raises(ZSVecError):
        READERS[reader](tmp_path)


def test_a_pipe_among_weights_is_named(tmp_path: Path) -> None:
    pipe(tmp_path / "checkpoint" / "modules.json")
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    with hanging_fails():
        assert "modules.json is no regular file" in str(LocalSource(str(tmp_path / "checkpoint")).missing())


def test_a_watch_passes_a_pipe_on_to_its_reader(tmp_path: Path) -> None:
    pipe(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(encode(photo(1)))
    with hanging_fails(), Watch(tmp_path, settle=0, poll=0.001) as watched:
        images = iter(watched)
        assert {next(images).name, next(images).name} == {"a.png", "b.png"}


def test_definitions_are_read_from_a_pipe_of_the_shell() -> None:
    read, write = os.pipe()
    os.write(write, b'{"cat": "a small predator"}')
    os.close(write)
    assert read_definitions(Path(f"/dev/fd/{read}")) == {"cat": ["a small predator"]}
    os.close(read)
