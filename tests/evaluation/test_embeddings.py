"""Vectors that were kept in a folder: a file that is not as it was kept is made again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zsvec
from tests.support import isolated, photos  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.evaluation.embeddings import Embeddings
from zsvec.testing import HashEncoder


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=[HashEncoder("hash")]) as classifier:
        classifier.add_category("cat", texts=["a cat"])
        yield classifier


def npz(**columns: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **columns)
    return file.getvalue()


DAMAGED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no archive": lambda: b"text",
    "no vectors": lambda: npz(),
    "several vectors": lambda: npz(hash=np.zeros((2, 8), np.float32)),
    "a vector of another size": lambda: npz(hash=np.zeros(3, np.float32)),
    "a vector of another kind": lambda: npz(hash=np.zeros(8, np.float64)),
    "objects": lambda: npz(hash=np.array([None] * 8)),
    "one number": lambda: npz(hash=np.float32(1)),
    "another encoder": lambda: npz(other=np.zeros(8, np.float32)),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_embedded_again(
    classifier: Classifier, tmp_path: Path, damaged: Callable[[], bytes]
) -> None:
    images = photos(1, 2)
    _, expected = Embeddings(tmp_path / "kept", classifier).of(images, on_error=lambda *_: None)
    kept = sorted((tmp_path / "kept").rglob("*.npz"))
    whole = [path.read_bytes() for path in kept]
    kept[0].write_bytes(damaged())
    _, found = Embeddings(tmp_path / "kept", classifier).of(images, on_error=lambda *_: None)
    np.testing.assert_array_equal(found["hash"], expected["hash"])
    assert [path.read_bytes() for path in kept] == whole


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_is_no_vector(classifier: Classifier, tmp_path: Path) -> None:
    Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)
    (kept,) = (tmp_path / "kept").rglob("*.npz")
    kept.unlink()
    os.mkfifo(kept)
    positions, _ = Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)
    assert positions == [0]
