"""Small copies of images: kept with the store, found by the evidence of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.store.support import LocalDeployment
from tests.support import classifier_over, encode, open_classifier, photo, photos, two_encoders
from tests.support import isolated as isolated
from zsvec.classifier import Classifier
from zsvec.errors import CategoryNotFoundError
from zsvec.ingest import ingestion as builder
from zsvec.inputs.categories import ReferenceImage
from zsvec.inputs.decoding import decode
from zsvec.inputs.images import content_hash
from zsvec.store import Store
from zsvec.store.backends.base import Backend, Where
from zsvec.store.backends.memory import MemoryBackend

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=two_encoders(), added_by="Ann") as classifier:
        yield classifier


def same(one: Image.Image | None, other: Image.Image) -> bool:
    """Whether two images are equal, except for losses of JPEG."""
    return one is not None and abs(np.asarray(one, int) - np.asarray(other, int)).mean() < 60 and one.size == other.size


def copies(clf: Classifier) -> int:
    return clf._store._backend.count(clf._store.collection("images"), Where())


# Evidence


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_evidence_shows_pictures(index: Any) -> None:
    with zsvec.open(":memory:", encoders=two_encoders(), index=index) as clf:
        clf.add_category("red panda", texts=["a small mammal"], images=photos(1, 2))
        clf.add_category("lynx", images=photos(3))
        prediction = clf.classify(photo(2))
        nearest = prediction.experts["dino:image"].neighbors[0]
        assert nearest.hash == content_hash(photo(2))
        assert same(clf.image(nearest.hash), photo(2))
        small = clf.references.small(nearest.hash)
        assert small is not None
        assert (small.content, small.width, small.height) == (clf.thumbnail(photo(2)), *photo(2).size)
        assert clf.references.small("0" * 64) is None
        text = prediction.experts["clip:text"].neighbors[0]
        assert (len(text.hash), clf.image(text.hash)) == (64, None)
        shown = prediction.to_dict()["experts"]["dino:image"]["neighbors"][0]
        assert shown["hash"] == nearest.hash


def test_a_missing_copy_breaks_nothing(clf: Classifier) -> None:
    clf.add_category("red panda", images=photos(1))
    clf._store._backend.remove(clf._store.collection("images"))
    prediction = clf.classify(photo(1))
    assert prediction.label == "red panda"
    assert clf.image(prediction.experts["dino:image"].neighbors[0].hash) is None


class Recording:
    """A backend that records the names of used collections."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.named: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            self.named |= {arg for arg in args if isinstance(arg, str)}
            return attribute(*args, **kwargs)

        return call


@pytest.mark.parametrize("index", ["memory", "qdrant"])
@pytest.mark.parametrize("place", [MemoryBackend, lambda: LocalDeployment().connect()], ids=["memory", "client"])
def test_classifying_reads_no_copy(place: Callable[[], Backend], index: Any) -> None:
    backend = Recording(place())
    with classifier_over(Store(backend, "zsvec"), index=index) as classifier:
        classifier.add_category("red panda", texts=["a small mammal"], images=photos(1, 2))
        assert "zsvec__images" in backend.named
        backend.named.clear()
        with classifier.classify_stream(photos(*range(40)), batch_size=8) as stream:
            assert sum(1 for _ in stream) == 40
        assert backend.named >= {"zsvec__catalog"} | ({"zsvec__clip"} if index == "qdrant" else set())
        assert "zsvec__images" not in backend.named


# Copies


def test_a_picture_is_decoded_once_and_only_if_it_is_new(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []

    def noted(content: Any, plan: Any) -> Image.Image:
        decoded.append(content)
        return decode(content, plan)

    files = [encode(picture) for picture in photos(1, 2)]
    monkeypatch.setattr("zsvec.inputs.images.decode", noted)
    clf.add_category("red panda", images=files)
    assert len(decoded) == 2
    clf.add_category("red panda", images=files)
    clf.add_category("red panda", images=files[:1], replace=True)
    assert len(decoded) == 2
    (kept,) = (r for r in clf.references.of("red panda") if r.modality == "image")
    assert same(clf.image(kept.hash), photo(1))


def test_a_copy_has_size_and_source_of_the_image(clf: Classifier, tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    Image.new("RGB", (1600, 1200), "red").save(file)
    clf.add_category("red panda", images=[file])
    (stored,) = (r for r in clf.references.of("red panda") if r.modality == "image")
    small = clf._store.image(stored.hash)
    assert small is not None
    assert (small.width, small.height, small.source) == (1600, 1200, str(file))
    assert small.added == stored.added
    image = clf.image(stored.hash)
    assert image is not None
    assert image.size == (341, 256)


def test_an_image_that_brings_its_vectors_has_a_copy(clf: Classifier) -> None:
    clf.add_category("lynx", images=photos(9))
    vectors = {r.encoder: r.vector for r in clf._store.stored("lynx") if r.modality == "image"}
    broken = encode(photo(2))[:60]  # its hash is enough
    given = [ReferenceImage(image=image, vectors=vectors) for image in (encode(photo(1)), broken)]
    clf.add_category("red panda", images=given)
    images = [clf.image(r.hash) for r in clf.references.of("red panda") if r.modality == "image"]
    assert sorted(image is None for image in images) == [False, True]


def test_keep_images(tmp_path: Path) -> None:
    with open_classifier(tmp_path, keep_images="none") as clf:
        clf.add_category("red panda", images=photos(1))
        assert not (tmp_path / "store" / "zsvec__images").exists()
    with open_classifier(tmp_path) as clf:  # as the store says
        clf.add_category("red panda", images=photos(2))
        assert copies(clf) == 0
    with open_classifier(tmp_path, keep_images="small") as clf:
        clf.classify(photo(1))
        assert not clf._store.keeps_images()  # a reader changes nothing
        clf.add_category("red panda", images=photos(1, 2, 3))
        assert copies(clf) == 1
    with open_classifier(tmp_path) as clf:
        clf.add_category("red panda", images=photos(4))
        assert copies(clf) == 2
    with open_classifier(tmp_path, keep_images="none") as clf:  # of this process
        clf.add_category("red panda", images=photos(5))
        assert (copies(clf), clf._store.keeps_images()) == (2, True)


def test_an_unreadable_image_leaves_no_copy(clf: Classifier) -> None:
    left: list[str] = []
    category = zsvec.CategoryInput(name="red panda", images=[photo(1), b"no image"])
    clf.add_categories([category], on_error=lambda source, _: left.append(source))
    assert (left, copies(clf)) == (["bytes"], 1)


# References by name


def test_the_references_of_a_category(clf: Classifier) -> None:
    begun = datetime.now(UTC)
    clf.add_category(
        "red panda", texts=["b", "a"], images=[ReferenceImage(image=photo(1), source="one", prompt="p", group="g")]
    )
    clf.add_category("red panda", images=[ReferenceImage(image=photo(2), source="another")])
    found = clf.references.of(" red panda ")
    told = [(r.modality, r.source, r.prompt, r.group) for r in found]
    assert told[:2] == [("text", "a", None, None), ("text", "b", None, None)]
    assert set(told[2:]) == {("image", "one", "p", "g"), ("image", "another", None, None)}
    assert {r.by for r in found} == {"Ann"}
    assert {r.category for r in found} == {"red panda"}
    assert [r.experts for r in found] == [("clip:text",)] * 2 + [("clip:image", "dino:image")] * 2
    assert all(r.added and abs(r.added - begun) < timedelta(minutes=1) for r in found)
    with pytest.raises(CategoryNotFoundError, match="there is no category 'lynx'"):
        clf.references.of("lynx")


def test_author_and_time_stay_when_references_are_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_classifier(tmp_path, added_by="Ann") as clf:
        clf.add_category("red panda", texts=["a"], images=photos(1))
        before = {(r.hash, r.added, r.by) for r in clf.references.of("red panda")}
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    monkeypatch.setattr(builder, "datetime", SimpleNamespace(now=lambda _: later))
    with open_classifier(tmp_path, added_by="Bob") as clf:
        clf.add_category("red panda", texts=["a", "b"], images=photos(1, 2), replace=True)
        after = {(r.hash, r.added, r.by) for r in clf.references.of("red panda")}
        assert before <= after
        assert {(added, by) for _, added, by in after - before} == {(later, "Bob")}
        clf.add_category("vectors", texts=[], vectors={"dino:image": np.eye(16)[:1]})
        (one,) = clf.references.of("vectors")
        assert (one.modality, one.experts, one.by, clf.image(one.hash)) == ("image", ("dino:image",), "Bob", None)
