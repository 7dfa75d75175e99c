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
from zsvec.errors import EncoderError, InvalidInputError
from zsvec.evaluation.datasets import DATASETS
from zsvec.evaluation.evaluate import evaluate, labelled_images, labelled_images_of
from zsvec.inputs.categories import CategoryInput, ReferenceImage
from zsvec.inputs.coco import from_coco
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.tables import from_csv
from zsvec.inputs.watch import Watch
from zsvec.settings.settings import Settings, load_settings
from zsvec.settings.trust import distrust, trust
from zsvec.testing import HashEncoder
from zsvec.types import Prediction

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


HASH = "0" * 64
ODD: dict[str, Any] = {
    "int": 3,
    "float": 1.5,
    "bytes": b"ab",
    "dict": {HASH: 1},
    "empty dict": {},
    "object": object(),
    "type": str,
    "list of None": [None],
    "list of ints": [1, 2],
    "list of bytes": [b"ab"],
    "nested list": [[HASH]],
    "mixed list": [HASH, 1],
    "mixed set": {HASH, 1},
    "empty text": "",
    "text that is too long": "0" * 10**6,
    "list of a long text": ["0" * 10**6],
    "surrogate": "\ud800",
    "list of a surrogate": ["\ud800"],
    "number that is too long": 10**5000,
    "array": np.ones(3),
    "array without a dimension": np.array(3),
}
deep: list[Any] = []
for _ in range(5000):
    deep = [deep]
ODD["list without end"] = deep


BY_HASH: dict[str, Callable[[Classifier, Any], object]] = {
    "remove": lambda clf, hashes: clf.references.remove("a", hashes),
    "move": lambda clf, hashes: clf.references.move(hashes, source="a", target="b"),
    "label": lambda clf, hashes: clf.inbox.label(hashes, "a"),
    "dismiss": lambda clf, hashes: clf.inbox.dismiss(hashes),
}
BY_ONE: dict[str, Callable[[Classifier, Any], object]] = {
    "forget": lambda clf, digest: clf.references.forget(digest),
    "small": lambda clf, digest: clf.inbox.small(digest),
    "image": lambda clf, digest: clf.image(digest),
    "keep": lambda clf, digest: clf.keep(Prediction(source="x", hash=digest)),
    "correct": lambda clf, digest: clf.correct(Prediction(source="x", hash=digest), "a"),
}


@pytest.mark.parametrize("given", ODD.values(), ids=ODD)
@pytest.mark.parametrize("call", [*BY_HASH.values(), *BY_ONE.values()], ids=[*BY_HASH, *BY_ONE])
def test_hashes(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^(hash|hashes) must be .* Got ") as raised:
        call(clf, given)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("given", [None, [], iter([1])])
@pytest.mark.parametrize("call", BY_HASH.values(), ids=BY_HASH)
def test_hashes_that_are_missing(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"hash"):
        call(clf, given)


@pytest.mark.parametrize("given", ODD.values(), ids=ODD)
def test_the_id_of_a_change(clf: Classifier, given: Any) -> None:
    with pytest.raises(InvalidInputError) as raised:
        clf.history.undo(change=given)
    assert len(str(raised.value)) < 500
    if not isinstance(given, str):
        assert str(raised.value).startswith("change must be ")


@pytest.mark.parametrize("given", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "call",
    [
        lambda clf, name: clf.add_category(name, texts=["a text"]),
        lambda clf, name: clf.remove_category(name),
        lambda clf, name: clf.references.of(name),
        lambda clf, name: clf.history.undo(name),
        lambda clf, name: clf.inbox.label(HASH, name),
        lambda clf, name: clf.correct(encode(photo(1)), name),
        lambda clf, name: clf.calibrate(labelled=[(encode(photo(1)), name)]),
        lambda clf, name: evaluate(clf, [encode(photo(1))], [name]),
    ],
)
def test_names(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^a category name m") as raised:
        call(clf, given)
    assert len(str(raised.value)) < 500


COUNTS: dict[str, Any] = {
    name: value for name, value in ODD.items() if name not in ("int", "number that is too long")
} | {"0": 0, "-1": -1, "True": True, "nan": float("nan")}
BATCH_SIZES: dict[str, Any] = COUNTS | {"401 digits": 10**400, "5001 digits": 10**5000, "4097": 4097}


@pytest.mark.parametrize("given", BATCH_SIZES.values(), ids=BATCH_SIZES)
@pytest.mark.parametrize(
    "call",
    [
        lambda clf, size: clf.classify_stream([], batch_size=size),
        lambda clf, size: clf.aclassify_stream([], batch_size=size),
        lambda clf, size: clf.embed_stream([], batch_size=size),
    ],
)
def test_batch_sizes(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^batch_size must be a whole number from 1 to 4,096\. Got "):
        call(clf, given)


@pytest.mark.parametrize("given", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(
    "call",
    [
        lambda clf, k: clf.classify(encode(photo(1)), top_k=k),
        lambda clf, k: clf.classify([encode(photo(1))], top_k=k),
        lambda clf, k: clf.classify_vectors({"clip": CLIP, "dino": DINO}, top_k=k),
        lambda clf, k: clf.inbox.rank(k),
        lambda clf, k: clf.generation.plan(["a"], per_category=k),
    ],
)
def test_counts(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^(top_k|number|per_category) must be a whole number from 1 "):
        call(clf, given)


WAITS: dict[str, Any] = {name: value for name, value in ODD.items() if name not in ("int", "float")} | {
    "401 digits": 10**400,
    "-1": -1,
    "nan": float("nan"),
    "inf": float("inf"),
}


@pytest.mark.parametrize("given", WAITS.values(), ids=WAITS)
def test_waits(clf: Classifier, given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^max_wait_ms must be a number from 0 up\. Got "):
        clf.classify_stream([], max_wait_ms=given)


@pytest.mark.parametrize("given", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "call",
    [
        lambda clf, value: clf.classify(encode(photo(1)), errors=value),
        lambda clf, value: clf.classify(encode(photo(1)), keep=value),
        lambda clf, value: clf.classify_stream([], errors=value),
        lambda clf, value: clf.classify_stream([], keep=value),
    ],
)
def test_choices(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^(errors|keep) must be .*\. Got "):
        call(clf, given)


@pytest.mark.parametrize("given", [np.int64(3), str, np.array(None, dtype=object), 3, None])
@pytest.mark.parametrize(
    "call",
    [
        lambda clf, images: list(clf.classify_stream(images)),
        lambda clf, images: list(clf.embed_stream(images)),
        lambda clf, images: clf.add_category("b", images=images),
        lambda clf, images: evaluate(clf, images, ["a"]),
    ],
)
def test_images_that_cannot_be_iterated(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^images must be "):
        call(clf, given)


@pytest.mark.parametrize("given", [np.array(3), np.array(None, dtype=object), b"ab", "ab", np.int64(3), str, 3])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("hashes", lambda clf, value: clf.inbox.dismiss(value)),
        ("texts", lambda clf, value: clf.add_category("b", texts=value)),
        ("labelled", lambda clf, value: clf.calibrate(labelled=value)),
        ("categories", lambda clf, value: clf.add_categories(value)),
        ("categories", lambda clf, value: clf.generation.plan(value)),
        ("encoders", lambda clf, value: zsvec.open(":memory:", encoders=value)),
        ("labels", lambda clf, value: evaluate(clf, [], value)),
        ("categories", lambda clf, value: labelled_images_of(value)),
    ],
)
def test_lists(clf: Classifier, name: str, call: Callable[[Classifier, Any], object], given: Any) -> None:
    if name == "hashes" and given == "ab":
        return
    with pytest.raises(InvalidInputError, match=f"^{name} must be "):
        call(clf, given)


@pytest.mark.parametrize("name", ["on_error", "on_commit"])
@pytest.mark.parametrize("given", [3, "ab", [], np.ones(3), True])
def test_callbacks_are_checked_before_anything_is_written(clf: Classifier, name: str, given: Any) -> None:
    images: list[Any] = [encode(photo(2)), "no file"] if name == "on_error" else [encode(photo(2))]
    with pytest.raises(InvalidInputError, match=f"^{name} must be a function"):
        clf.add_categories([CategoryInput(name="b", images=images)], **{name: given})
    assert [category.name for category in clf.categories()] == ["a"]


PATHS: dict[str, Any] = {
    name: value for name, value in ODD.items() if name not in ("empty text", "text that is too long")
} | {"zero byte": "a\0b"}


@pytest.mark.parametrize("given", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(
    "call",
    [
        lambda clf, path: find_images(path),
        lambda clf, path: read_categories(path),
        lambda clf, path: labelled_images(path),
        lambda clf, path: from_csv(path),
        lambda clf, path: from_csv("some.csv", path),
        lambda clf, path: from_coco(path),
        lambda clf, path: Watch(path),
        lambda clf, path: clf.generation.plan(["a"], folder=path),
    ],
)
def test_paths(clf: Classifier, call: Callable[[Classifier, Any], object], given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^(folder|file|images) must be a path\. Got ") as raised:
        call(clf, given)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("given", [3, "ab", [], {}, np.ones(3), object(), True])
def test_plans_and_budgets(clf: Classifier, given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^budget must be a Budget"):
        clf.generation.plan(["a"], budget=given)
    with pytest.raises(InvalidInputError, match=r"^plan must be a Plan"):
        clf.generation.run(given)


@pytest.mark.parametrize("name", ["batch_size", "top_m", "timeout", "history", "device", "fusion", "store", "profile"])
@pytest.mark.parametrize("given", ["number that is too long", "text that is too long", "surrogate", "list without end"])
def test_settings_of_another_kind(name: str, given: str) -> None:
    if (name, given) == ("history", "text that is too long"):
        return  # this is the number 0
    with pytest.raises(InvalidInputError) as raised:
        zsvec.open(**{"store": ":memory:", name: ODD[given]}).close()
    assert name in str(raised.value)
    assert len(str(raised.value)) < 500


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
        for load in DATASETS.values():
            for folder in (locked, locked / "in"):
                with pytest.raises(InvalidInputError, match="locked"):
                    load(folder)
