"""Whatever is given, the error is one of our own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zsvec
from tests.support import encode, isolated, photo, two_encoders
from zsvec.classifier import Classifier
from zsvec.config import Settings, load_settings
from zsvec.errors import EncoderError, InvalidInputError
from zsvec.evaluation.datasets import DATASETS
from zsvec.inputs.categories import CategoryInput, ReferenceImage
from zsvec.testing import HashEncoder
from zsvec.trust import distrust, trust

__all__ = ["isolated"]

CLIP, DINO = np.ones((1, 32), np.float32), np.ones((1, 16), np.float32)


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=two_encoders()) as classifier:
        classifier.add_category("a", images=[encode(photo(1))])
        yield classifier


QUERIES: dict[str, Any] = {
    "none": None,
    "number": 3,
    "list": [1],
    "text": "clip",
    "number as a name": {1: CLIP, 2: DINO},
    "no name": {None: CLIP, "dino": DINO},
    "one name too many": {"clip": CLIP, "dino": DINO, 1: CLIP},
    "gradient": {"clip": torch.ones(1, 32, requires_grad=True), "dino": DINO},
    "bfloat16": {"clip": torch.ones(1, 32, dtype=torch.bfloat16), "dino": DINO},
    "meta": {"clip": torch.ones(1, 32, device="meta"), "dino": DINO},
    "texts": {"clip": [["1"] * 32], "dino": DINO},
    "complex": {"clip": CLIP * 1j, "dino": DINO},
    "ragged": {"clip": [[1.0], [1.0, 2.0]], "dino": DINO},
    "object": {"clip": object(), "dino": DINO},
}


@pytest.mark.parametrize("vectors", QUERIES.values(), ids=QUERIES)
def test_vectors_to_classify(clf: Classifier, vectors: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^vectors "):
        clf.classify_vectors(vectors)


@pytest.mark.parametrize("value", [torch.ones(1, 32, requires_grad=True), CLIP * 1j, [["1"] * 32], object()])
def test_vectors_of_a_category(clf: Classifier, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^vectors of clip:image must be numbers"):
        clf.add_category("b", vectors={"clip:image": value})
    for names in ({1: CLIP}, {None: CLIP}, {("clip", "image"): CLIP}):
        with pytest.raises(InvalidInputError, match="there is no expert"):
            clf.add_category("b", vectors=names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "vectors", ["x", 3, {1: CLIP[0]}, {"clip": CLIP[0]}, {"clip": torch.ones(32, requires_grad=True), "dino": DINO[0]}]
)
def test_vectors_of_a_reference(clf: Classifier, vectors: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"vectors? of"):
        clf.add_categories([CategoryInput(name="b", images=[ReferenceImage(image=photo(2), vectors=vectors)])])


RETURNED: dict[str, Callable[[int], Any]] = {
    "texts": lambda n: ["a vector"] * n,
    "a text": lambda n: "a vector",
    "bytes": lambda n: b"x" * n,
    "rows of texts": lambda n: [["1"] * 32] * n,
    "none": lambda n: None,
    "a mapping": lambda n: {"a": 1},
    "objects": lambda n: [object()] * n,
    "complex": lambda n: np.ones((n, 32)) * 1j,
    "gradient": lambda n: torch.ones(n, 32, requires_grad=True),
    "bfloat16": lambda n: torch.ones(n, 32, dtype=torch.bfloat16),
    "ragged": lambda n: [[1.0]] * (n - 1) + [[1.0, 2.0]],
    "a number": lambda n: 7,
}


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_an_encoder_that_returns_no_vectors(returned: Callable[[int], Any]) -> None:
    class Broken(HashEncoder):
        def embed(self, batch: Any, modality: Any) -> Any:
            return returned(len(batch))

    with zsvec.open(":memory:", encoders=[Broken("clip", dim=32)]) as clf:
        for given in ({"texts": ["a"]}, {"images": [photo(1)]}):
            with pytest.raises(EncoderError, match="encoder 'clip' returned"):
                clf.add_category("a", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoders", [["clip"], [None], 3])
def test_what_is_no_encoder(encoders: Any) -> None:
    with pytest.raises(InvalidInputError, match="encoders must be a list of encoders"):
        zsvec.open(":memory:", encoders=encoders)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not look into."""
    folder = tmp_path / "locked"
    (folder / "in").mkdir(parents=True)
    mine = os.geteuid() if hasattr(os, "geteuid") else -1
    folder.chmod(0)
    if mine == 0:
        os.chown(folder, 65534, 65534)
        tmp_path.chmod(0o777)
        for parent in tmp_path.parents:
            if parent.name.startswith(("pytest-", "popen-")):
                parent.chmod(0o755)
        os.seteuid(65533)
    yield folder
    if mine == 0:
        os.seteuid(0)
    folder.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are other ones")
class TestInaccessibleFolders:
    def test_a_store(self, locked: Path) -> None:
        with pytest.raises(InvalidInputError, match="may not read: change its permissions"):
            zsvec.open(str(locked), encoders=two_encoders())

    def test_settings(self, locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for files in ((locked / "config.toml", Path("zsvec.toml")), (Path("none"), locked / "zsvec.toml")):
            monkeypatch.setattr(Settings, "toml_files", files)
            with pytest.raises(InvalidInputError, match=r"settings cannot be used: .*locked"):
                load_settings()

    def test_trust(self, locked: Path, tmp_path: Path) -> None:
        file = tmp_path / "zsvec.toml"
        file.write_text('store = "https://host"')
        for action in (trust, distrust):
            with pytest.raises(InvalidInputError, match=r"cannot be kept in .*locked"):
                action(file, locked / "trusted")
            with pytest.raises(InvalidInputError, match="cannot be trusted"):
                action(locked / "zsvec.toml", tmp_path)

    def test_data_sets(self, locked: Path) -> None:
        for name, load in DATASETS.items():
            for folder in (locked, locked / "in"):
                with pytest.raises(InvalidInputError, match="locked"):
                    load(folder, name == "tinyimagenet")
