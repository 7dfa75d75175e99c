"""Vectors that were kept in a folder: what is not as it was kept is embedded again."""

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
from zsvec.inputs.images import content_hash
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


IMAGES = photos(1, 2)
HASHES = np.array([content_hash(image) for image in IMAGES])
DAMAGED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no archive": lambda: b"text",
    "no hashes": lambda: npz(hash=np.zeros((2, 8), np.float32)),
    "no vectors": lambda: npz(hashes=HASHES),
    "too few vectors": lambda: npz(hashes=HASHES, hash=np.zeros((1, 8), np.float32)),
    "vectors of another size": lambda: npz(hashes=HASHES, hash=np.zeros((2, 3), np.float32)),
    "one number": lambda: npz(hashes=np.array("a"), hash=np.float32(1)),
    "another encoder": lambda: npz(hashes=HASHES, other=np.zeros((2, 8), np.float32)),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_embedded_again(
    classifier: Classifier, tmp_path: Path, damaged: Callable[[], bytes]
) -> None:
    _, expected = Embeddings(tmp_path / "kept", classifier).of(IMAGES, on_error=lambda *_: None)
    (chunk,) = (tmp_path / "kept").rglob("*.npz")
    chunk.write_bytes(damaged())
    _, found = Embeddings(tmp_path / "kept", classifier).of(IMAGES, on_error=lambda *_: None)
    np.testing.assert_array_equal(found["hash"], expected["hash"])
    assert chunk.stat().st_size > 100


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_is_no_chunk(classifier: Classifier, tmp_path: Path) -> None:
    Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)
    (chunk,) = (tmp_path / "kept").rglob("*.npz")
    chunk.unlink()
    os.mkfifo(chunk)
    positions, _ = Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)
    assert positions == [0]
