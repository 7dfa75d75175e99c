"""Arguments of any type raise an error of zsvec, never of Python or a library."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zsvec
from tests.support import encode, isolated, photo, two_encoders
from zsvec.classifier import Classifier
from zsvec.encoders.base import ImageBackbone
from zsvec.errors import EncoderError, InvalidInputError, VersionConflictError
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

Call = Callable[[Classifier, Any], object]
Refuses = Callable[[Call, Mapping[str, Any], str], None]

CLIP, DINO = np.ones((1, 32), np.float32), np.ones((1, 16), np.float32)
HASH = "0" * 64
IMAGE = encode(photo(1))

deep: list[Any] = []
for _ in range(5000):
    deep = [deep]
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
    "long text": "0" * 10**6,
    "list of a long text": ["0" * 10**6],
    "surrogate": "\ud800",
    "list of a surrogate": ["\ud800"],
    "long int": 10**5000,
    "array": np.ones(3),
    "array without a dimension": np.array(3),
    "deep list": deep,
}


def odd(*without: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in ODD.items() if name not in without} | more


NOT_COUNTS = odd("int", "long int", zero=0, negative=-1, true=True, nan=float("nan"))


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=two_encoders()) as classifier:
        classifier.add_category("a", images=[IMAGE])
        yield classifier


@contextmanager
def refused(match: str) -> Iterator[None]:
    """Expects an error for an invalid argument, with a message that a terminal can show."""
    with pytest.raises(InvalidInputError, match=match) as raised:
        yield
    assert len(str(raised.value)) < 500


@pytest.fixture
def refuses(clf: Classifier, subtests: pytest.Subtests) -> Refuses:
    """Returns a function that makes a call with each of some values, and expects errors."""

    def check(call: Call, values: Mapping[str, Any], match: str) -> None:
        for name, value in values.items():
            with subtests.test(name), refused(match):
                call(clf, value)

    return check


BY_HASHES: dict[str, Call] = {
    "remove": lambda clf, hashes: clf.references.remove("a", hashes),
    "move": lambda clf, hashes: clf.references.move(hashes, source="a", target="b"),
    "label": lambda clf, hashes: clf.inbox.label(hashes, "a"),
    "dismiss": lambda clf, hashes: clf.inbox.dismiss(hashes),
}
BY_HASH: dict[str, Call] = {
    "forget": lambda clf, digest: clf.references.forget(digest),
    "small": lambda clf, digest: clf.inbox.small(digest),
    "image": lambda clf, digest: clf.image(digest),
    "keep": lambda clf, digest: clf.keep(Prediction(source="x", hash=digest)),
    "correct": lambda clf, digest: clf.correct(Prediction(source="x", hash=digest), "a"),
}
BY_NAME: dict[str, Call] = {
    "add": lambda clf, name: clf.add_category(name, texts=["a text"]),
    "remove": lambda clf, name: clf.remove_category(name),
    "references": lambda clf, name: clf.references.of(name),
    "undo": lambda clf, name: clf.history.undo(name),
    "label": lambda clf, name: clf.inbox.label(HASH, name),
    "correct": lambda clf, name: clf.correct(IMAGE, name),
    "calibrate": lambda clf, name: clf.calibrate(labelled=[(IMAGE, name)]),
    "evaluate": lambda clf, name: evaluate(clf, [IMAGE], [name]),
}
BY_COUNT: dict[str, Call] = {
    "an image": lambda clf, k: clf.classify(IMAGE, top_k=k),
    "images": lambda clf, k: clf.classify([IMAGE], top_k=k),
    "vectors": lambda clf, k: clf.classify_vectors({"clip": CLIP, "dino": DINO}, top_k=k),
    "rank": lambda clf, k: clf.inbox.rank(k),
    "plan": lambda clf, k: clf.generation.plan(["a"], per_category=k),
}
BY_PATH: dict[str, Call] = {
    "find_images": lambda clf, path: find_images(path),
    "read_categories": lambda clf, path: read_categories(path),
    "labelled_images": lambda clf, path: labelled_images(path),
    "from_csv": lambda clf, path: from_csv(path),
    "images of from_csv": lambda clf, path: from_csv("some.csv", path),
    "from_coco": lambda clf, path: from_coco(path),
    "Watch": lambda clf, path: Watch(path),
    "plan": lambda clf, path: clf.generation.plan(["a"], folder=path),
}


@pytest.mark.parametrize("call", [*BY_HASHES, *BY_HASH])
def test_hashes(refuses: Refuses, call: str) -> None:
    refuses((BY_HASHES | BY_HASH)[call], ODD, r"^(hash|hashes) must be .* Got ")
    if call in BY_HASHES:
        refuses(BY_HASHES[call], {"none": None, "empty": [], "iterator": iter([1])}, "hash")


@pytest.mark.parametrize("call", BY_NAME)
def test_names(refuses: Refuses, call: str) -> None:
    refuses(BY_NAME[call], ODD, r"^a category name m")


@pytest.mark.parametrize("call", BY_COUNT)
def test_counts(refuses: Refuses, call: str) -> None:
    refuses(BY_COUNT[call], NOT_COUNTS, r"^(top_k|number|per_category) must be a whole number from 1 ")


@pytest.mark.parametrize("call", BY_PATH)
def test_paths(refuses: Refuses, call: str) -> None:
    values = odd("long text", zero="a\0b")
    refuses(BY_PATH[call], values, r"^(folder|file|images) must be a path\. Got ")


def test_moves(refuses: Refuses, clf: Classifier) -> None:
    values = odd(
        "empty dict",
        none=None,
        text="ab",
        true=True,
        nan=float("nan"),
        list=[],
        pairs=[(("a", "b"), [HASH])],
        set={("a", "b")},
        generator=(pair for pair in [("a", "b")]),
        numpy=np.int64(3),
        letters={"ab": [HASH]},
        two_bytes={b"ab": [HASH]},
        one_name={("a",): [HASH]},
        three_names={("a", "b", "c"): [HASH]},
        set_of_names={frozenset({"a", "b"}): [HASH]},
        no_pair={None: [HASH]},
    )
    refuses(lambda clf, given: clf.references.move_many(given), values, r"^moves must be a mapping of .*\. Got ")
    refuses(
        lambda clf, given: clf.references.move_many({("a", "b"): given}), odd(none=None, empty=[]), "^hashes must be "
    )
    for value in (None, True, 3, float("nan"), b"ab", "", ("a", "b"), str):
        for pair in ((value, "b"), ("a", value)):
            with refused(r"^a category name m"):
                clf.references.move_many({pair: [HASH]})  # type: ignore[dict-item]
    assert clf.references.move_many({}) == []
    assert [category.name for category in clf.categories()] == ["a"]


def test_expected_versions(refuses: Refuses, clf: Classifier) -> None:
    refuses(lambda clf, name: clf.expecting(name, {1}), ODD, r"^a category name m")
    values = odd(
        "list of ints",
        none=None,
        text="1",
        bytearray=bytearray(b"1"),
        true=True,
        nan=float("nan"),
        numpy=np.int64(1),
        mapping={1: 2},
        generator=(version for version in [1]),
        negative=[-1],
        bools={True},
        floats=[1.0],
        nans=[float("nan")],
        texts={"1"},
        nested=[[1]],
        pairs={(1, 2)},
        matrix=np.array([[1]]),
        flags=np.array([True]),
    )
    refuses(lambda clf, given: clf.expecting("a", given), values, r"^versions must be .*\. Got ")


def test_collections_of_expected_versions(clf: Classifier) -> None:
    version = clf.category("a").version
    keys = {version: "a"}.keys()
    allowed: list[Any] = [{version}, [np.int64(version)], range(version, 10**12), np.array([0, version]), keys]
    for versions in allowed:
        with clf.expecting("a", versions):
            pass
    others: list[Any] = [(), {0}, range(version + 1, 10**12)]
    for versions in others:
        with pytest.raises(VersionConflictError), clf.expecting("a", versions):
            pass


def test_ids_of_changes(refuses: Refuses) -> None:
    texts = {name: value for name, value in ODD.items() if isinstance(value, str)}
    refuses(lambda clf, given: clf.history.undo(change=given), texts, "change")
    refuses(lambda clf, given: clf.history.undo(change=given), odd(*texts), "^change must be ")


def test_waits(refuses: Refuses) -> None:
    values = odd("int", "float", digits=10**400, negative=-1, nan=float("nan"), inf=float("inf"))
    refuses(
        lambda clf, given: clf.classify_stream([], max_wait_ms=given),
        values,
        r"^max_wait_ms must be a number from 0 up\. Got ",
    )


def test_batch_sizes(refuses: Refuses) -> None:
    values = NOT_COUNTS | {"401 digits": 10**400, "5001 digits": 10**5000, "4097": 4097}
    for call in (
        lambda clf, size: clf.classify_stream([], batch_size=size),
        lambda clf, size: clf.aclassify_stream([], batch_size=size),
        lambda clf, size: clf.embed_stream([], batch_size=size),
    ):
        refuses(call, values, r"^batch_size must be a whole number from 1 to 4,096\. Got ")


def test_choices(refuses: Refuses) -> None:
    for call in (
        lambda clf, value: clf.classify(IMAGE, errors=value),
        lambda clf, value: clf.classify(IMAGE, keep=value),
        lambda clf, value: clf.classify_stream([], errors=value),
        lambda clf, value: clf.classify_stream([], keep=value),
    ):
        refuses(call, ODD, r"^(errors|keep) must be .*\. Got ")


def test_images_that_cannot_be_iterated(refuses: Refuses) -> None:
    values = {"numpy": np.int64(3), "type": str, "array": np.array(None, dtype=object), "int": 3}
    refuses(lambda clf, images: clf.add_category("b", images=images), values, r"^images must be ")
    for call in (
        lambda clf, images: list(clf.classify_stream(images)),
        lambda clf, images: list(clf.embed_stream(images)),
        lambda clf, images: evaluate(clf, images, ["a"]),
    ):
        refuses(call, values | {"none": None}, r"^images must be ")


def test_lists(refuses: Refuses) -> None:
    values = [np.array(3), np.array(None, dtype=object), b"ab", "ab", np.int64(3), str, 3]
    for name, call in (
        ("texts", lambda clf, value: clf.add_category("b", texts=value)),
        ("labelled", lambda clf, value: clf.calibrate(labelled=value)),
        ("categories", lambda clf, value: clf.add_categories(value)),
        ("categories", lambda clf, value: clf.generation.plan(value)),
        ("labels", lambda clf, value: evaluate(clf, [], value)),
        ("categories", lambda clf, value: labelled_images_of(value)),
    ):
        refuses(call, {repr(value): value for value in values}, f"^{name} must be ")


def test_encoders(refuses: Refuses) -> None:
    def opened(_: Classifier, value: Any) -> None:
        zsvec.open(":memory:", encoders=value)

    for wrong in (np.array(3), b"ab", str, 3):
        refuses(opened, {repr(wrong): wrong}, "^encoders must be ")
    refuses(opened, {"text": ["clip"], "none": [None]}, "encoders must be a list of encoders")
    refuses(opened, {"text": "ab"}, "encoders: must be MODULE:OBJECT")


def test_callbacks_are_checked_before_anything_is_written(refuses: Refuses, clf: Classifier) -> None:
    values = {"int": 3, "text": "ab", "list": [], "array": np.ones(3), "bool": True}
    good = CategoryInput(name="b", images=[encode(photo(2))])
    bad = CategoryInput(name="b", images=[encode(photo(2)), "no file"])
    refuses(lambda clf, given: clf.add_categories([bad], on_error=given), values, "^on_error must be a function")
    refuses(lambda clf, given: clf.add_categories([good], on_commit=given), values, "^on_commit must be a function")
    assert [category.name for category in clf.categories()] == ["a"]


def test_plans_and_budgets(refuses: Refuses) -> None:
    values = {"int": 3, "text": "ab", "list": [], "dict": {}, "array": np.ones(3), "object": object(), "bool": True}
    refuses(lambda clf, given: clf.generation.plan(["a"], budget=given), values, r"^budget must be a Budget")
    refuses(lambda clf, given: clf.generation.run(given), values, r"^plan must be a Plan")


def test_vectors_to_classify(refuses: Refuses) -> None:
    values = {
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
    refuses(lambda clf, vectors: clf.classify_vectors(vectors), values, r"^vectors ")


def test_vectors_of_references(refuses: Refuses) -> None:
    gradient = torch.ones(32, requires_grad=True)
    values = {"gradient": gradient[None], "complex": CLIP * 1j, "texts": [["1"] * 32], "object": object()}
    refuses(
        lambda clf, value: clf.add_category("b", vectors={"clip:image": value}),
        values,
        r"^vectors of clip:image must be numbers",
    )
    names = {repr(name): {name: CLIP} for name in (1, None, ("clip", "image"))}
    refuses(lambda clf, value: clf.add_category("b", vectors=value), names, "there is no expert")
    values = {
        "text": "x",
        "int": 3,
        "number as a name": {1: CLIP[0]},
        "one of two": {"clip": CLIP[0]},
        "gradient": {"clip": gradient, "dino": DINO[0]},
    }
    refuses(
        lambda clf, value: clf.add_categories(
            [CategoryInput(name="b", images=[ReferenceImage(image=photo(2), vectors=value)])]
        ),
        values,
        r"vectors? of",
    )


def test_settings(subtests: pytest.Subtests) -> None:
    for name in ("batch_size", "top_m", "timeout", "history", "device", "fusion", "store", "profile"):
        for given in ("long int", "long text", "surrogate", "deep list"):
            if (name, given) == ("history", "long text"):
                continue  # the number 0
            with subtests.test(f"{name}: {given}"), refused(name):
                zsvec.open(**{"store": ":memory:", name: ODD[given]}).close()


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


def test_encoders_that_return_no_vectors(subtests: pytest.Subtests) -> None:
    class Broken(HashEncoder):
        returned: Callable[[int], Any]

        def embed(self, batch: Any, modality: Any) -> Any:
            return Broken.returned(len(batch))

    for name, returned in RETURNED.items():
        Broken.returned = returned
        with subtests.test(name), zsvec.open(":memory:", encoders=[Broken("clip", dim=32)]) as clf:
            for given in ({"texts": ["a"]}, {"images": [photo(1)]}):
                with pytest.raises(EncoderError, match="encoder 'clip' returned"):
                    clf.add_category("a", **given)  # type: ignore[arg-type]


class FailingBackbone(ImageBackbone):
    """An image model that fails at one step."""

    def __init__(self, step: str) -> None:
        self.step = step

    def preprocess(self, image: Any) -> Any:
        return 1 / 0 if self.step == "preprocess" else image

    def forward(self, inputs: Any) -> Any:
        return 1 / 0 if self.step == "forward" else inputs


class FailingFeatures(HashEncoder):
    """An encoder that does not use the base class for images."""

    def encode_features(self, features: Any) -> Any:
        raise KeyError("a key")


def failing(step: str) -> list[HashEncoder]:
    if step == "encode_features":
        return [FailingFeatures("clip", dim=32)]
    clip, dino = HashEncoder("clip", dim=32), HashEncoder("dino", dim=16)
    dino.backbone = FailingBackbone(step)
    return [clip, dino]


@pytest.mark.parametrize(
    ("step", "raised"),
    [("preprocess", "'dino'.*ZeroDivisionError"), ("forward", "'dino'.*Zero"), ("encode_features", "'clip'.*KeyError")],
)
def test_the_error_of_an_image_model_names_its_encoder(step: str, raised: str) -> None:
    with zsvec.open(":memory:", encoders=failing(step)) as clf:
        clf.add_category("a", texts=["a text"])
        calls: list[Callable[[], object]] = [
            lambda: clf.classify(photo(1)),
            lambda: clf.classify([photo(1), photo(2)]),
            lambda: list(clf.classify_stream([photo(1)])),
            lambda: list(clf.embed_stream([photo(1)])),
            lambda: clf.add_category("a", images=[photo(1)]),
        ]
        for call in calls:
            with pytest.raises(EncoderError, match=raised):
                call()
    if step != "encode_features":
        with pytest.raises(EncoderError, match=raised):
            failing(step)[1].encode_images([photo(1)])


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
def test_inaccessible_folders(locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("may not read: change its permissions"):
        zsvec.open(str(locked), encoders=two_encoders())
    for load in DATASETS.values():
        for folder in (locked, locked / "in"):
            with refused("locked"):
                load(folder)
    file = tmp_path / "zsvec.toml"
    file.write_text('store = "https://host"')
    for action in (trust, distrust):
        with refused(r"cannot be kept in .*locked"):
            action(file, locked / "trusted")
        with refused("cannot be trusted"):
            action(locked / "zsvec.toml", tmp_path)
    for files in ((locked / "config.toml", Path("zsvec.toml")), (Path("none"), locked / "zsvec.toml")):
        monkeypatch.setattr(Settings, "toml_files", files)
        with refused(r"settings cannot be used: .*locked"):
            load_settings()
