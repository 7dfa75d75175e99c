"""A classifier over an embedded store: predictions with evidence, errors, calibration, settings."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, cast
from unittest.mock import Mock

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from PIL import Image

import zsvec
from tests.support import (
    classifier_over,
    coloured,
    encode,
    fast_folder,
    isolated,  # noqa: F401
    open_classifier,
    photo,
    sources,
    state,
    trusted_settings,
    two_encoders,
)
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet
from zsvec.encoders.everyday import EVERYDAY
from zsvec.encoders.spec import EncoderSpec
from zsvec.errors import (
    CategoryNotFoundError,
    ConflictError,
    EncoderError,
    EncoderMismatchError,
    ImageError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    WeightsUnavailableError,
)
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.images import content_hash
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.settings.settings import load_settings
from zsvec.store import open_store
from zsvec.testing import HashEncoder
from zsvec.types import Modality, Prediction

COLOURS = ("red", "green", "blue")
EXPERTS = {"clip:text", "clip:image", "dino:image"}
DEADLINE = 60.0


def fill(classifier: Classifier, colours: tuple[str, ...] = COLOURS, images: int = 3) -> Classifier:
    """A category per colour: a text and three images of each, or more."""
    for colour in colours:
        classifier.add_category(
            colour, texts=[f"all {colour}"], images=[coloured(colour, seed) for seed in range(images)]
        )
    return classifier


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


@pytest.fixture
def encoders() -> tuple[HashEncoder, HashEncoder]:
    return two_encoders()


@pytest.fixture
def empty(request: pytest.FixtureRequest, encoders: tuple[HashEncoder, HashEncoder]) -> Iterator[Classifier]:
    """A store in memory; a store in the folder, for a test that uses the folder."""
    in_folder = "folder" in request.fixturenames
    store = request.getfixturevalue("folder") / "store" if in_folder else ":memory:"
    with zsvec.open(store, encoders=encoders) as opened:
        yield opened


@pytest.fixture
def clf(empty: Classifier) -> Classifier:
    return fill(empty)


# ---- definitions of categories


def test_texts_and_images_are_keywords(clf: Classifier) -> None:
    before = state(clf._store)
    add: Any = clf.add_category
    for given in (["new/cat.png"], None, ()):
        with pytest.raises(TypeError):
            add("cat", given)
        with pytest.raises(TypeError):
            add("cat", given, [photo(1)])
    assert state(clf._store) == before


def none(form: str, folder: Path) -> Any:
    """No images, as users come by them."""
    return {
        "list": [],
        "tuple": (),
        "generator": (photo(seed) for seed in ()),
        "glob": folder.glob("*.png"),
        "batch": np.empty((0, 8, 8, 3), np.uint8),
        "series": pd.Series([], dtype=object),
    }[form]


@pytest.mark.parametrize("form", ["list", "tuple", "generator", "glob", "batch", "series"])
def test_no_image_at_all_is_refused_unless_there_are_texts_or_vectors(
    form: str, clf: Classifier, tmp_path: Path
) -> None:
    before = state(clf._store)
    options: list[dict[str, Any]] = [
        {},
        {"texts": []},
        {"metadata": {"a": 1}},
        {"parent": "animal"},
        {"vectors": {}},
        {"vectors": {"clip:image": np.empty((0, 32))}},
    ]
    for name, given, replaces in itertools.product(("new", "red"), options, (False, True)):
        with pytest.raises(InvalidInputError):
            clf.add_category(name, images=none(form, tmp_path), **given, replace=replaces)
        with pytest.raises(InvalidInputError):
            category = CategoryInput(name=name, images=none(form, tmp_path), **given)
            clf.add_categories([category], replace=replaces, on_error=lambda *_: None)
    assert state(clf._store) == before
    assert clf.add_category("words", texts=["a"], images=none(form, tmp_path)).texts == ("a",)
    row = np.ones((1, 32), np.float32)
    vectors = {"clip:image": row}
    made = clf.add_category("vectors", texts=[], vectors=vectors, images=none(form, tmp_path))
    assert made.references == {"clip:image": 1}
    for name in ("new", "other"):
        clf.add_categories([CategoryInput(name=name)])
        assert clf.category(name).texts == (name,)
    assert clf.add_category("name", images=None).texts == ("name",)


def test_a_text_is_refused_if_no_encoder_embeds_texts() -> None:
    encoder = HashEncoder("dino", modalities=("image",))
    with zsvec.open(":memory:", encoders=[encoder]) as clf:
        clf.add_category("cat", images=[photo(1), photo(2)])
        before, embedded = state(clf._store), encoder.images_encoded
        for name, images, replaces in itertools.product(("new", "cat"), (None, [], [photo(3)]), (False, True)):
            with pytest.raises(InvalidInputError):
                clf.add_category(name, texts=["a cat"], images=images, replace=replaces)
            with pytest.raises(InvalidInputError):
                clf.add_categories([CategoryInput(name=name, texts=("a cat",), images=images)], replace=replaces)
        with pytest.raises(InvalidInputError):
            clf.references.update("cat", texts=["a cat"])
        with pytest.raises(InvalidInputError):
            clf.add_category("name")
        assert (state(clf._store), encoder.images_encoded) == (before, embedded)
        assert clf.references.update("cat", texts=[]).references == {"dino:image": 2}
        assert clf.add_category("new", texts=[], images=[photo(3)]).references == {"dino:image": 1}


def test_whether_there_are_images_is_known_from_the_first(clf: Classifier) -> None:
    begun: list[int] = []

    def endless() -> Iterator[bytes]:
        for number in itertools.count():
            begun.append(number)
            yield encode(photo(number)) if number < 3 else b""

    for replaces in (False, True):
        with pytest.raises(ImageError):
            clf.add_category("new", images=endless(), replace=replaces)
    assert begun.count(0) == 2
    assert [category.name for category in clf.categories()] == sorted(COLOURS)
    added = clf.add_category("new", images=(photo(seed) for seed in range(9)))
    assert added.references == {"clip:text": 1, "clip:image": 9, "dino:image": 9}


# ---- one image, several, none


def test_a_classifier_tells_of_its_store(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clf.location == clf._store.location
    assert clf.info()["categories"] == len(clf.categories())
    assert clf.category(f" {clf.categories()[0].name} ") == clf.categories()[0]
    with pytest.raises(ImageError):
        clf.thumbnail(b"no image")
    clf.ping()

    def away() -> NoReturn:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(clf._store, "ping", away)
    with clf.within(1), pytest.raises(StoreUnavailableError):
        clf.ping()


def test_a_prediction_names_the_revision_that_it_was_compared_with(clf: Classifier) -> None:
    def revisions() -> set[int | None]:
        return {clf.classify(photo(0)).revision, *(one.revision for one in clf.classify([photo(0), photo(1)]))}

    newest = max(category.rev for category in clf.categories())
    assert revisions() == {newest}
    added = clf.add_category("new", images=[photo(99)]).rev
    assert added > newest
    assert revisions() == {added}
    clf.remove_category("new")
    (removed,) = revisions()
    assert removed is not None
    assert removed > added
    assert clf.revision == removed
    assert clf.classify([b"no image"], errors="report")[0].revision is None


def test_the_revision_counts_removed_categories_after_a_restart(tmp_path: Path) -> None:
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()]) as clf:
        assert clf.revision == 0
        added = [clf.add_category(name, images=[photo(seed)]).rev for seed, name in enumerate(("new", "newest"))]
        assert clf.revision == max(added)
        clf.remove_category("newest")
        removed = clf.revision
        assert removed > max(added)
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()]) as clf:
        assert clf.revision == removed == clf.classify(photo(0)).revision


def test_an_image_like_the_references_of_a_category_gets_its_label(clf: Classifier) -> None:
    for colour in COLOURS:
        prediction = clf.classify(coloured(colour, 100))
        assert isinstance(prediction, Prediction)
        assert (prediction.label, prediction.error, prediction.unknown) == (colour, None, False)
        assert prediction.experts["dino:image"].ranking[0][0] == colour


@pytest.mark.usefixtures("patient")
def test_a_list_gives_a_list_in_order(clf: Classifier) -> None:
    images = [coloured(colour, 100) for colour in ("blue", "red", "green", "red")]
    assert [prediction.label for prediction in clf.classify(images)] == ["blue", "red", "green", "red"]
    assert clf.classify(tuple(images)) == clf.classify(images)
    assert [prediction.label for prediction in clf.classify(images[:1])] == ["blue"]


def several(images: Sequence[Image.Image]) -> dict[str, Any]:
    """The same images in every form that holds more than one."""
    batch = np.stack([np.asarray(image) for image in images])
    return {
        "list": images,
        "tuple": tuple(images),
        "generator": (image for image in images),
        "values of a dictionary": dict(enumerate(images)).values(),
        "pandas.Series": pd.Series(images),
        "pandas.Series with another index": pd.Series(images, index=range(7, 7 + len(images))),
        "array of objects": pd.Series(images).to_numpy(),
        "(N, H, W, C)": batch,
        "(N, C, H, W)": batch.transpose(0, 3, 1, 2),
        "tensor (N, C, H, W), 0 to 1": torch.from_numpy(batch).permute(0, 3, 1, 2) / 255,
        "tensor (N, H, W, C)": torch.from_numpy(batch),
        "tensors": [torch.from_numpy(image).permute(2, 0, 1) for image in batch],
    }


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("form", several([coloured("red", 0)]))
def test_several_images_may_come_in_any_form(clf: Classifier, form: str) -> None:
    images = [coloured(colour, 100) for colour in ("blue", "red", "green")]
    predictions = clf.classify(several(images)[form])
    assert [prediction.label for prediction in predictions] == ["blue", "red", "green"]
    with clf.classify_stream(several(images)[form]) as stream:
        assert [prediction.label for prediction in stream] == ["blue", "red", "green"]
    assert [embedding.error for embedding in clf.embed_stream(several(images)[form])] == [None] * 3
    assert asyncio.run(clf.aclassify(several(images)[form])) == predictions
    assert clf.add_category("new", texts=[], images=several(images)[form]).images == 3


@pytest.mark.parametrize("kind", [list, pd.Series, np.array, iter])
def test_several_paths_may_come_in_any_form(clf: Classifier, tmp_path: Path, kind: Any) -> None:
    paths = [tmp_path / f"{colour}.png" for colour in ("blue", "red")]
    for path in paths:
        coloured(path.stem, 100).save(path)
    assert [answer.label for answer in clf.classify(kind([str(path) for path in paths]))] == ["blue", "red"]
    answers = clf.classify(pd.Series([*map(str, paths), None]), errors="report")  # a value is missing
    assert [answer.label for answer in answers] == ["blue", "red", None]
    assert answers[2].error


def test_one_tensor_is_one_image(clf: Classifier) -> None:
    image = coloured("red", 100)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for one in (tensor, tensor / 255, tensor.permute(1, 2, 0), np.asarray(tensor)):
        assert clf.classify(one).label == "red"
        assert clf.thumbnail(one) == clf.thumbnail(image)
    clf.add_category("red", texts=[], images=[tensor, tensor.permute(1, 2, 0), np.asarray(image)])
    assert len([one for one in clf.references.of("red") if one.source == "array"]) == 1
    assert clf.correct(tensor, "blue").name == "blue"
    unusable: list[Any] = [torch.tensor(1), {"a.jpg": 1}, pd.DataFrame({"path": ["a.jpg"]}), pd.Series([1.0])]
    for value in (*unusable, torch.stack([tensor]), torch.zeros(5)):
        with pytest.raises(ImageError):
            clf.keep(value)
    for value in unusable:
        with pytest.raises(ImageError):
            clf.classify(value)


def test_no_images_give_no_predictions(empty: Classifier) -> None:
    for filled in (False, True):
        if filled:
            fill(empty)
        assert empty.classify([]) == []
        assert empty.classify(()) == []
        assert empty.classify(pd.Series([])) == []
        assert empty.classify(np.zeros((0, 8, 8, 3))) == []
        with pytest.raises(InvalidInputError, match="top_k"):
            empty.classify([], top_k=0)
    assert empty.classify_vectors({"clip": np.empty((0, 32)), "dino": np.empty((0, 16))}) == []
    with pytest.raises(InvalidInputError, match="top_k"):
        empty.classify_vectors({"clip": np.ones((1, 32)), "dino": np.ones((1, 16))}, top_k=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("loaded", [False, True], ids=["encoders not loaded", "encoders loaded"])
def test_a_fork_is_refused_before_anything_is_embedded(folder: Path, loaded: bool) -> None:
    """A fork waits forever for the threads of torch, and so do these encoders."""
    home = os.getpid()

    class Torch(HashEncoder):
        def embed(self, batch: Any, modality: Modality) -> Any:
            return super().embed(batch, modality) if os.getpid() == home else time.sleep(1e6)

    image = coloured("red", 1)
    with open_classifier(folder, Torch("clip")) as classifier:
        if loaded:
            fill(classifier)
            classifier.classify(image)
        calls: list[Callable[[], object]] = [
            lambda: classifier.classify(image),
            lambda: classifier.classify([image]),
            lambda: list(classifier.classify_stream([image])),
            lambda: list(classifier.embed_stream([image])),
            lambda: classifier.add_category("new", images=[image]),
            lambda: classifier.encoders,
        ]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                said = [_refusal(call) for call in calls]
                os.write(writer, repr([text for text in said if "before this process was forked" not in text]).encode())
            finally:
                os._exit(0)
        os.close(writer)
        ended = _wait(child)
        with os.fdopen(reader) as pipe:
            assert (ended, pipe.read()) == (True, "[]")


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except StoreError as error:
        return str(error)
    return "not refused"


def _wait(child: int) -> bool:
    """Whether a process ends before the deadline; else the process is killed."""
    deadline = time.monotonic() + DEADLINE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)
    return True


def test_a_classifier_cannot_be_pickled(folder: Path) -> None:
    with open_classifier(folder) as classifier:
        for thing in (classifier, classifier._store):
            with pytest.raises(TypeError, match=r"cannot be pickled.*zsvec\.open"):
                pickle.dumps(thing)


def test_every_kind_of_input_gives_the_same_answer(clf: Classifier, tmp_path: Path) -> None:
    image = coloured("red", 100)
    data = encode(image)
    path = tmp_path / "a photo.png"
    path.write_bytes(data)
    given: dict[str, Any] = {
        str(path): path,
        "bytes": data,
        "file": io.BytesIO(data),
        "image": image,
        "array": np.asarray(image),
    }
    given[f"{path} "] = str(path)
    answers = {source.strip(): clf.classify(value) for source, value in given.items()}
    assert {source: answer.source for source, answer in answers.items()} == {source: source for source in answers}
    assert len({str(answer.to_dict() | {"source": "", "hash": ""}) for answer in answers.values()}) == 1
    assert {answer.hash for source, answer in answers.items() if source == str(path)} == {content_hash(path)}


def test_classifying_writes_nothing(clf: Classifier) -> None:
    before = state(clf._store)
    clf.classify([coloured("red", 100), coloured("red", 0)])
    assert state(clf._store) == before


def test_a_reference_itself_is_not_novel(folder: Path) -> None:
    with fill(open_classifier(folder, calibration="off")) as clf:
        prediction = clf.classify(coloured("green", 1))
    assert prediction.novelty is None
    assert prediction.distance == pytest.approx(0, abs=1e-6)
    nearest = prediction.experts["dino:image"].neighbors[0]
    assert (nearest.category, nearest.source) == ("green", "image")
    assert nearest.similarity == pytest.approx(1, abs=1e-6)


# ---- images that cannot be read


def test_an_unreadable_image_raises(clf: Classifier) -> None:
    with pytest.raises(ImageError, match=r"cannot read 'missing\.jpg': No such file"):
        clf.classify("missing.jpg")
    with pytest.raises(ImageError, match="cannot read bytes: it is empty"):
        clf.classify([coloured("red", 100), b""])


def test_an_unreadable_image_is_reported_in_its_place(clf: Classifier) -> None:
    images: list[Any] = [b"", coloured("red", 100), "missing.jpg", b"?", coloured("blue", 100), None]
    predictions = clf.classify(images, errors="report")
    assert [prediction.label for prediction in predictions] == [None, "red", None, None, "blue", None]
    assert [prediction.source for prediction in predictions] == [
        *("bytes", "image", "missing.jpg", "bytes", "image", "NoneType"),
    ]
    errors = [prediction.error for prediction in predictions]
    assert [error is None for error in errors] == [False, True, False, False, True, False]
    assert "missing.jpg" in str(errors[2])
    assert predictions[0] == Prediction(source="bytes", error=errors[0])


def test_a_batch_of_unreadable_images_alone(clf: Classifier, encoders: tuple[HashEncoder, HashEncoder]) -> None:
    before = encoders[0].images_encoded
    assert [p.label for p in clf.classify_stream([b""] * 5, batch_size=2)] == [None] * 5
    assert encoders[0].images_encoded == before


def test_an_error_loses_nothing_that_came_before(clf: Classifier) -> None:
    def source() -> Iterator[Image.Image]:
        yield coloured("red", 100)
        raise LookupError("camera gone")

    got: list[Prediction] = []
    with pytest.raises(LookupError, match="camera gone"):
        got.extend(clf.classify_stream(source()))
    with pytest.raises(ImageError, match="it is empty"):
        got.extend(clf.classify_stream([coloured("blue", 100), b"", b""], errors="raise"))
    assert [prediction.label for prediction in got] == ["red", "blue"]


# ---- arguments


def test_counts_that_are_none(clf: Classifier) -> None:
    values: tuple[Any, ...] = (0, -1, 1.5, "3", float("nan"), [1], True, np.float64(2))
    for name, value in itertools.product(["top_k", "batch_size"], values):
        with pytest.raises(InvalidInputError, match=rf"{name} must be a whole number from 1 (up|to 4,096)\. Got "):
            clf.classify_stream([], **{name: value})  # at the call, not at the first prediction


def test_rankings_have_top_k_categories(clf: Classifier) -> None:
    whole = clf.classify(coloured("red", 100), top_k=3).ranking
    counts: tuple[Any, ...] = (1, 2, 3, 1000, np.int64(2))
    for top_k in counts:
        prediction = clf.classify(coloured("red", 100), top_k=top_k)
        for ranking in (prediction.ranking, *(expert.ranking for expert in prediction.experts.values())):
            assert len(ranking) == min(top_k, 3)
        assert prediction.ranking == whole[: int(top_k)]


@pytest.mark.usefixtures("patient")
def test_batches(folder: Path) -> None:
    sizes: list[int] = []

    class Encoder(HashEncoder):
        def embed(self, batch: Any, modality: Modality) -> Any:
            if modality == "image":
                sizes.append(len(batch))
            return super().embed(batch, modality)

    images = [coloured("red", seed) for seed in range(20)]
    with fill(open_classifier(folder, Encoder("clip"), batch_size=6)) as clf:
        sizes.clear()
        clf.classify(images)
        assert (sum(sizes), max(sizes)) == (20, 6)
        sizes.clear()
        assert len(list(clf.classify_stream(images, batch_size=4))) == 20
        assert (sum(sizes), max(sizes)) == (20, 4)
        with pytest.raises(InvalidInputError, match=r"batch_size: Input should be less than or equal to 4096"):
            open_classifier(folder, batch_size=5000)


def test_an_endless_stream_is_read_a_little_ahead(clf: Classifier) -> None:
    read = 0

    def source() -> Iterator[Image.Image]:
        nonlocal read
        while True:
            read += 1
            yield coloured("red", 100)

    stream = clf.classify_stream(source(), batch_size=4)
    assert [prediction.label for prediction in itertools.islice(stream, 10)] == ["red"] * 10
    stream.close()  # type: ignore[attr-defined]
    assert 10 <= read <= 12 + 8 + 4 + 8


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_embedded_ahead_of_the_search_unless_on_the_cpu(device: Any, folder: Path) -> None:
    embedding: set[int] = set()

    class Encoder(HashEncoder):
        def embed(self, batch: Sequence[Any], modality: Modality) -> Any:
            embedding.add(threading.get_ident())
            return super().embed(batch, modality)

    with fill(open_classifier(folder, Encoder("clip"))) as clf:
        clf.encoders.device = device
        embedding.clear()
        assert [p.label for p in clf.classify_stream([coloured("red", 100)] * 3, batch_size=2)] == ["red"] * 3
    assert (embedding == {threading.get_ident()}) == (device == "cpu")


# ---- evidence


def check_evidence(prediction: Prediction, experts: set[str], n_categories: int) -> None:
    """The numbers of complete rankings agree with each other."""
    assert prediction.ranking[0] == (prediction.nearest, prediction.probability)
    assert prediction.label == (None if prediction.unknown else prediction.nearest)
    assert len(prediction.ranking) == n_categories
    assert (prediction.novelty is None) == (prediction.calibration == "none")
    assert prediction.novelty is None or 0 <= prediction.novelty <= 1
    images = [expert for name, expert in prediction.experts.items() if name.endswith(":image")]
    assert prediction.distance == pytest.approx(max(1 - expert.neighbors[0].similarity for expert in images), abs=1e-6)
    assert prediction.fusion in STRATEGIES
    assert prediction.experts.keys() == experts
    assert sum(expert.weight for expert in prediction.experts.values()) == pytest.approx(1)
    for ranking in (prediction.ranking, *(expert.ranking for expert in prediction.experts.values())):
        probabilities = [probability for _, probability in ranking]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
        assert min(probabilities) >= 0
        assert len({label for label, _ in ranking}) == len(ranking)
    for expert in prediction.experts.values():
        assert expert.weight > 0
        nats = -sum(p * math.log(p) for _, p in expert.ranking if p > 0)
        assert expert.entropy == pytest.approx(nats, abs=1e-9)
        similarities = [neighbor.similarity for neighbor in expert.neighbors]
        assert similarities == sorted(similarities, reverse=True)
        assert len(similarities) == 3
        assert all(-1.000001 <= similarity <= 1.000001 for similarity in similarities)


def beside(clf: Classifier, **settings: Any) -> Classifier:
    """Another classifier over the same open store."""
    return Classifier(
        clf._store,
        load_settings(**settings),
        load_encoders=lambda: clf.encoders,
        temperatures=clf._scoring.temperatures,
        prompts={},
    )


@pytest.mark.parametrize("calibration", ["auto", "off"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_setting_gives_complete_evidence_and_both_searches_agree(aggregation: str, calibration: str) -> None:
    settings: dict[str, Any] = {"aggregation": aggregation, "top_m": 2, "calibration": calibration}
    images = [coloured("red", 100), coloured("orange", 7), coloured("white", 3), coloured("blue", 0)]
    with zsvec.open(":memory:", encoders=two_encoders(), **settings) as clf:
        fill(clf)
        vectors = clf.encoders.encode_images([clf.encoders.preprocess(image) for image in images])
        for fusion in STRATEGIES:
            memory_answers, qdrant_answers, auto_answers = (
                beside(clf, index=index, fusion=fusion, **settings).classify_vectors(vectors, top_k=10)
                for index in ("memory", "qdrant", "auto")
            )
            for memory, qdrant, auto in zip(memory_answers, qdrant_answers, auto_answers, strict=True):
                check_evidence(memory, EXPERTS, len(COLOURS))
                check_evidence(qdrant, EXPERTS, len(COLOURS))
                assert same(memory, qdrant)
                assert same(memory, auto)
                assert memory.calibration == ("none" if calibration == "off" else "current")
            assert [answer.label for answer in memory_answers][::3] == ["red", "blue"]


def same(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions say the same, but for the rounding of float32."""

    def plain(prediction: Prediction) -> Any:
        return {
            "label": prediction.label,
            "calibration": prediction.calibration,
            "novelty": prediction.novelty,
            "distance": prediction.distance,
            "ranking": dict(prediction.ranking),
            **{f"weight of {name}": expert.weight for name, expert in prediction.experts.items()},
            **{f"entropy of {name}": expert.entropy for name, expert in prediction.experts.items()},
            **{f"nearest of {name}": [n.category for n in e.neighbors] for name, e in prediction.experts.items()},
        }

    first, second = plain(one), plain(other)
    assert first.keys() == second.keys()
    numbers = {key for key, value in first.items() if isinstance(value, float | dict)}
    return all(
        first[key] == (pytest.approx(second[key], rel=1e-3, abs=1e-4) if key in numbers else second[key])
        for key in first
    )


def test_the_numbers_of_a_case_worked_by_hand(folder: Path) -> None:
    """Two categories at cosines 0.6 and 0.8 with temperature 0.2: softmax of 3 and 4."""
    encoder = HashEncoder("e", dim=2, modalities=("image",))
    settings: dict[str, Any] = {
        "temperatures": {"e:image": 0.2},
        "aggregation": "max",
        "fusion": "inverse_entropy",
        "calibration": "off",
    }
    with open_classifier(folder, encoder, **settings) as clf:
        clf.add_category("a", texts=[], vectors={"e:image": [[3, 4]]})
        clf.add_category("b", texts=[], vectors={"e:image": [[4, 3], [-1, 0]]})
        (prediction,) = clf.classify_vectors({"e": [[5.0, 0.0]]})
    p = 1 / (1 + math.exp(-1))
    assert prediction.label == "b"
    assert dict(prediction.ranking) == pytest.approx({"b": p, "a": 1 - p}, abs=1e-6)
    expert = prediction.experts["e:image"]
    assert expert.weight == 1
    assert expert.entropy == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-6)
    assert [(n.category, n.source) for n in expert.neighbors] == [("b", "vector"), ("a", "vector"), ("b", "vector")]
    assert [n.similarity for n in expert.neighbors] == pytest.approx([0.8, 0.6, -1], abs=1e-6)
    assert prediction.distance == pytest.approx(0.2, abs=1e-6)
    assert (prediction.novelty, prediction.unknown) == (None, False)


def test_distance_is_that_of_the_encoder_that_sees_the_image_farthest() -> None:
    one, other = (HashEncoder(name, dim=2, modalities=("text", "image")) for name in ("one", "other"))
    with zsvec.open(":memory:", encoders=[one, other], calibration="off") as clf:
        clf.add_category("a", texts=[], vectors={"one:image": [[1, 0], [3, 4]], "other:image": [[1, 0]]})
        clf.add_category("b", texts=[], vectors={"one:text": [[-1, 0]]})  # texts do not count where there are images
        answers = clf.classify_vectors({"one": [[1, 0], [0, 1], [1, 0]], "other": [[0, 1], [1, 0], [-1, 0]]})
    assert [answer.distance for answer in answers] == pytest.approx([1.0, 0.2, 2.0], abs=1e-6)


def test_fixed_weights_are_shares(folder: Path) -> None:
    settings: dict[str, Any] = {"fusion": "fixed", "weights": {"clip:text": 6.0, "dino:image": 3.0}}
    with fill(open_classifier(folder, **settings)) as clf:
        experts = clf.classify(coloured("red", 100)).experts
    assert {name: expert.weight for name, expert in experts.items()} == pytest.approx(
        {"clip:text": 0.6, "clip:image": 0.1, "dino:image": 0.3}
    )


def test_the_order_in_which_categories_came_does_not_matter() -> None:
    images = [coloured("red", 100), coloured("white", 3)]
    answers = []
    for colours in itertools.permutations(COLOURS):
        with zsvec.open(":memory:", encoders=two_encoders()) as clf:
            answers.append(fill(clf, colours).classify(images))
    assert len(answers) == 6
    assert all(same(one, other) for answer in answers[1:] for one, other in zip(answers[0], answer, strict=True))


def test_nothing_is_unknown_without_a_calibration(folder: Path) -> None:
    known, stranger = coloured("red", 100), coloured("white", 1)
    with fill(open_classifier(folder, calibration="off")) as clf:
        near, far = clf.classify([known, stranger])
        assert near.distance is not None
        assert far.distance is not None
        assert near.distance < far.distance
    for threshold in (0.0, 0.5, 1.0):
        with open_classifier(folder, unknown_above=threshold, calibration="off") as clf:
            answers = clf.classify([known, stranger])
            assert [(answer.novelty, answer.unknown) for answer in answers] == [(None, False)] * 2
            assert [answer.label for answer in answers] == [answer.nearest for answer in answers]


def test_a_calibrated_store_rejects_unknown_images(folder: Path) -> None:
    images = [*(coloured(colour, 100) for colour in COLOURS), coloured("white", 1)]
    expected = [False, False, False, True]
    with fill(open_classifier(folder), images=8) as clf:
        predictions = clf.classify(images)
        assert [prediction.unknown for prediction in predictions] == expected
        assert [cast("float", prediction.novelty) > 0.5 for prediction in predictions] == expected
        assert [prediction.label is None for prediction in predictions] == expected
        assert {prediction.calibration for prediction in predictions} == {"current"}
    far = predictions[-1].novelty
    for threshold, above in {0.0: [True] * 4, far: [False] * 4, 1.0: [False] * 4}.items():
        with open_classifier(folder, unknown_above=threshold) as clf:
            assert [prediction.unknown for prediction in clf.classify(images)] == above
    with open_classifier(folder, calibration="off") as clf:
        assert not any(prediction.unknown for prediction in clf.classify(images))


def test_few_images_calibrate_no_threshold(folder: Path) -> None:
    with fill(open_classifier(folder)) as clf:
        kept = clf._store.calibration()
        assert kept is not None
        # nine images are fewer than twenty
        assert kept["plain"]["thresholds"] == kept["aggregations"]["thresholds"] == {}
        prediction = clf.classify(photo(7))
        assert prediction.calibration == "current"
        novelty = prediction.novelty
        assert novelty is not None
        assert 0 < novelty < 1
        assert prediction.unknown == (novelty > 0.5)
        assert prediction.novelty_basis == "references"  # its categories have definition texts
    for threshold, unknown in ((0.99 * novelty, True), (min(1.0, 1.01 * novelty), False)):
        with open_classifier(folder, unknown_above=threshold) as clf:
            assert clf.classify(photo(7)).unknown == unknown


def test_words_judge_categories_of_names_alone_until_there_are_references(
    empty: Classifier, encoders: tuple[HashEncoder, HashEncoder]
) -> None:
    image, clip = coloured("red", 100), encoders[0]
    for name in ("red", "blue"):
        empty.add_category(name)
    before = clip.texts_encoded
    prediction = empty.classify(image)
    assert (prediction.novelty_basis, prediction.calibration) == ("words", "none")
    assert prediction.novelty is not None
    assert prediction.unknown == (prediction.novelty > 0.5)
    assert [one.novelty for one in empty.classify([image, image])] == [pytest.approx(prediction.novelty)] * 2
    assert clip.texts_encoded == before + len(EVERYDAY)  # once

    vectors = {name: [vector] for name, vector in next(iter(empty.embed_stream([image]))).vectors.items()}
    (given,) = empty.classify_vectors(vectors)
    assert (given.novelty, given.novelty_basis, given.unknown) == (None, None, False)

    for name in ("red", "blue"):  # an image is farther from a sentence than from a word
        empty.add_category(name, texts=[f"the colour {name}"], replace=True)
    described = empty.classify(image)
    assert (described.novelty, described.novelty_basis, described.unknown) == (None, None, False)
    for name in ("red", "blue"):
        empty.add_category(name, texts=[name], replace=True)

    for number, basis in ((1, "both"), (3, "both"), (10, "references")):
        for name in ("red", "blue"):
            empty.add_category(name, images=[coloured(name, seed) for seed in range(number)])
        assert empty.classify(image).novelty_basis == basis
        assert empty.classify_vectors(vectors)[0].novelty_basis == "references"


def test_few_references_limit_a_category_of_a_text_alone(empty: Classifier) -> None:
    for name in ("red", "blue", "green"):
        empty.add_category(name, images=[coloured(name, seed) for seed in range(4)])
    empty.add_category("cat", texts=["a feline"])
    found = empty.classify([photo(seed) for seed in range(20)])
    of_text = [one for one in found if one.nearest == "cat"]
    assert of_text
    for one in of_text:  # 12 of 100 images, so 88 % of the novelty counts
        assert one.novelty is not None
        assert one.probability is not None
        assert one.probability <= 1 - 0.88 * one.novelty * 3 / 4 + 1e-9


def test_an_uncalibrated_store_with_images_has_no_novelty_by_words(folder: Path) -> None:
    with fill(open_classifier(folder, calibration="off")) as clf:
        clf.add_category("cat", texts=["a feline"])
        prediction = clf.classify(coloured("red", 100))
        assert (prediction.novelty, prediction.novelty_basis, prediction.unknown) == (None, None, False)


def test_categories_of_texts_alone_live_beside_categories_of_images_alone(empty: Classifier) -> None:
    empty.add_category("red", texts=[], images=[coloured("red", seed) for seed in range(3)])
    empty.add_category("blue", texts=[], images=[coloured("blue", seed) for seed in range(3)])
    empty.add_category("cat", texts=["a feline"])
    prediction = empty.classify(coloured("red", 100))
    assert prediction.experts.keys() == EXPERTS
    assert [label for label, _ in prediction.experts["clip:text"].ranking] == ["cat"]
    assert {label for label, _ in prediction.experts["dino:image"].ranking} == {"red", "blue"}
    fused = dict(prediction.ranking)
    assert sum(fused.values()) == pytest.approx(1)
    assert fused["cat"] > 0  # not punished for having no images
    assert fused["red"] > 100 * fused["blue"]  # nor do the others change places
    assert all(len(expert.neighbors) >= 1 for expert in prediction.experts.values())


# ---- while others write


def test_the_next_batch_of_a_stream_sees_additions_and_removals(clf: Classifier) -> None:
    changed = threading.Event()

    def source() -> Iterator[Image.Image]:
        yield coloured("red", 100)
        assert changed.wait(DEADLINE)
        yield coloured("white", 100)

    stream = clf.classify_stream(source())
    assert next(stream).label == "red"
    clf.add_category("white", images=[coloured("white", 1)])
    clf.remove_category(" red ")
    changed.set()
    after = next(stream)
    assert (after.label, {label for label, _ in after.ranking}) == ("white", {"green", "blue", "white"})
    assert next(stream, None) is None
    with pytest.raises(CategoryNotFoundError, match="no category 'red'"):
        clf.remove_category("red")


def test_several_threads_classify_while_one_writes(clf: Classifier) -> None:
    images = [coloured(colour, 100) for colour in COLOURS]
    expected = clf.classify(images)

    def write() -> None:
        for i in range(10):
            clf.add_category("white", texts=[f"text {i}"], images=[coloured("white", i)])
        clf.remove_category("white")

    with ThreadPoolExecutor(7) as pool:
        writing = pool.submit(write)
        answers = list(pool.map(lambda _: clf.classify(images), range(30)))
        writing.result()
    for answer in answers:
        assert [prediction.label for prediction in answer] == list(COLOURS)
    after = clf.classify(images)
    assert all(same(one, other) for one, other in zip(after, expected, strict=True))


def test_aclassify_leaves_the_event_loop_free(clf: Classifier) -> None:
    go_on = threading.Event()

    class Slow(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            assert go_on.wait(DEADLINE)
            return super().read(*args)

    async def main() -> list[Any]:
        slow = asyncio.create_task(clf.aclassify(Slow(encode(coloured("red", 100)))))
        quick = await asyncio.gather(*(clf.aclassify(coloured(colour, 100)) for colour in COLOURS))
        assert not slow.done()
        go_on.set()
        several: Any = await clf.aclassify([coloured("red", 100), b""], errors="report", top_k=1)
        return [await slow, *quick, *several]

    answers = asyncio.run(main())
    with pytest.raises(ImageError, match="cannot read 'missing"):
        asyncio.run(clf.aclassify("missing.jpg"))
    assert [answer.label for answer in answers] == ["red", *COLOURS, "red", None]
    assert len(answers[4].ranking) == 1


# ---- vectors in the place of images


def test_classify_vectors_predicts_as_classify(clf: Classifier, encoders: tuple[HashEncoder, HashEncoder]) -> None:
    images = [coloured(colour, 100) for colour in ("red", "white", "blue")]
    vectors = {encoder.name: encoder.encode_images(images) for encoder in encoders}
    answers = clf.classify_vectors(vectors)
    assert [answer.source for answer in answers] == ["vector 0", "vector 1", "vector 2"]
    assert all(same(one, other) for one, other in zip(answers, clf.classify(images), strict=True))
    longer = clf.classify_vectors({name: (7 * rows.astype(float)).tolist() for name, rows in vectors.items()}, top_k=1)
    assert [answer.label for answer in longer] == [answer.label for answer in answers]
    assert all(len(answer.ranking) == 1 for answer in longer)


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_sources_of_vectors_name_the_evidence(encoders: tuple[HashEncoder, HashEncoder], index: Any) -> None:
    rows = {"clip:image": np.eye(32)[:3], "dino:image": np.eye(16)[:3]}
    with zsvec.open(":memory:", encoders=encoders, index=index) as clf:
        clf.add_category("shoe", texts=[], vectors=rows, sources=["sku 7", "sku 8", "sku 9"])
        (answer,) = clf.classify_vectors({"clip": np.eye(32)[1:2], "dino": np.eye(16)[1:2]})
        assert {expert.neighbors[0].source for expert in answer.experts.values()} == {"sku 8"}
        assert [one.source for one in clf.references.of("shoe")] == ["sku 7", "sku 8", "sku 9"]
        assert "sku 8" in answer._repr_html_()


@pytest.mark.parametrize("index", ["memory", "qdrant"])
@pytest.mark.parametrize("fusion", STRATEGIES)
def test_classify_vectors_with_some_of_the_encoders(
    clf: Classifier, encoders: tuple[HashEncoder, HashEncoder], fusion: str, index: Any
) -> None:
    images = [coloured(colour, 100) for colour in COLOURS]
    clf.add_category("only texts", texts=["only texts"])
    for encoder in encoders:
        vectors = {encoder.name: encoder.encode_images(images)}
        with zsvec.open(":memory:", encoders=[encoder], calibration="off", fusion=fusion, index=index) as alone:
            if "text" in encoder.modalities:
                fill(alone).add_category("only texts", texts=["only texts"])
            else:
                alone.add_categories(
                    CategoryInput(name=colour, images=[coloured(colour, seed) for seed in range(3)])
                    for colour in COLOURS
                )
            expected = alone.classify_vectors(vectors, top_k=10)
        answers = beside(clf, calibration="off", fusion=fusion, index=index).classify_vectors(vectors, top_k=10)
        for answer, one in zip(answers, expected, strict=True):
            assert answer.experts.keys() == one.experts.keys() == {e for e in EXPERTS if e.startswith(encoder.name)}
            found = {name: p for name, p in answer.ranking if p}
            assert found == pytest.approx(dict(one.ranking), abs=1e-6)
            assert answer.distance == pytest.approx(one.distance, abs=1e-6)


@pytest.mark.parametrize("fusion", STRATEGIES)
def test_a_calibration_of_all_encoders_serves_some_of_them(
    clf: Classifier, encoders: tuple[HashEncoder, HashEncoder], fusion: str
) -> None:
    fill(clf, images=30)
    clf.add_category("only texts", texts=["only texts"])
    clf.calibrate()
    _, dino = encoders
    answers = beside(clf, fusion=fusion).classify_vectors(
        {"dino": dino.encode_images([coloured(colour, 100) for colour in COLOURS])}, top_k=10
    )
    for answer, colour in zip(answers, COLOURS, strict=True):
        assert (answer.label, answer.calibration) == (colour, "current")
        assert dict(answer.ranking)["only texts"] == 0
        assert sum(p for _, p in answer.ranking) == pytest.approx(1)
        assert answer.experts["dino:image"].weight == pytest.approx(1)


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_encoders_that_no_category_has_references_of_give_no_answer(
    encoders: tuple[HashEncoder, HashEncoder], index: Any
) -> None:
    with zsvec.open(":memory:", encoders=encoders, index=index) as clf:
        clf.add_category("red", texts=["red"])
        with pytest.raises(StoreError, match="has references that dino can compare"):
            clf.classify_vectors({"dino": np.ones((1, 16))})
        assert [answer.label for answer in clf.classify_vectors({"clip": np.ones((1, 32))})] == ["red"]


# ---- empty, closed, of other encoders


def test_a_store_without_categories_has_no_answer(empty: Classifier, folder: Path) -> None:
    actions: list[Callable[[], object]] = [
        lambda: empty.classify(coloured("red", 1)),
        lambda: list(empty.classify_stream([b""])),
        lambda: empty.classify_vectors({"clip": np.ones((1, 32)), "dino": np.ones((1, 16))}),
    ]
    for action in actions:
        with pytest.raises(StoreError, match=r"has no category yet: add one with `zsvec add`"):
            action()
    assert not (folder / "store").exists()
    assert empty.categories() == []
    empty.add_category("red")
    assert empty.classify(coloured("red", 1)).label == "red"
    empty.remove_category("red")
    with pytest.raises(StoreError, match="has no category yet"):
        empty.classify(coloured("red", 1))


def test_a_closed_classifier(clf: Classifier, folder: Path) -> None:
    before, answer = state(clf._store), clf.classify(coloured("red", 100))
    clf.close()
    clf.close()
    actions: list[Callable[[], object]] = [
        lambda: clf.classify(coloured("red", 1)),
        lambda: clf.classify_vectors({"clip": np.ones((1, 32)), "dino": np.ones((1, 16))}),
        lambda: clf.add_category("red", texts=["more"]),
        lambda: clf.remove_category("red"),
        clf.categories,
    ]
    for action in actions:
        with pytest.raises(StoreError, match=r"is closed: open it again"):
            action()
    with open_classifier(folder) as again:
        assert state(again._store) == before
        assert same(again.classify(coloured("red", 100)), answer)


def test_a_second_handle_is_refused_while_the_first_is_open(clf: Classifier, folder: Path) -> None:
    with pytest.raises(StoreLockedError, match="is already open, here or in another process"):
        open_classifier(folder)
    assert clf.classify(coloured("red", 100)).label == "red"


def test_encoders_of_other_names_are_refused_at_once(clf: Classifier, folder: Path) -> None:
    before = state(clf._store)
    clf.close()
    clip, dino = two_encoders()
    for others in ((HashEncoder("siglip", dim=32), dino), (clip, dino, HashEncoder("conse")), (clip,)):
        with pytest.raises(EncoderMismatchError, match=r"encoders clip, dino, and .* are in use"):
            open_classifier(folder, *others)
    with open_classifier(folder) as again:
        assert state(again._store) == before


@pytest.mark.parametrize("keep_images", ["small", "none", None])
def test_an_encoder_that_cannot_embed_makes_no_store(folder: Path, keep_images: Any) -> None:
    class Wrong(HashEncoder):
        def embed(self, batch: Sequence[Any], modality: Modality) -> Any:
            return super().embed(batch, modality)[:, :-1]

    photo = coloured("red", 1)
    with zsvec.open(folder / "store", encoders=[Wrong("clip", dim=32)], keep_images=keep_images) as clf:
        with pytest.raises(EncoderError):
            clf.add_category("cat", texts=["a cat"])
        with pytest.raises(EncoderError):
            clf.add_category("cat", images=[photo])
    assert not (folder / "store").exists()
    with zsvec.open(folder / "store", encoders=[HashEncoder("clip", dim=48)], keep_images=keep_images) as clf:
        clf.add_category("cat", texts=["a cat"], images=[photo])
        assert clf.category("cat").references == {"clip:text": 1, "clip:image": 1}
        (image,) = (one.hash for one in clf.references.of("cat") if one.modality == "image")
        assert (clf.image(image) is None) == (keep_images == "none")


def test_a_refused_store_can_be_opened_again_while_the_error_is_held(clf: Classifier, folder: Path) -> None:
    """A notebook keeps the last error, with all references of the error."""
    clf.close()
    with pytest.raises(InvalidInputError) as first:
        open_classifier(folder, weights={"clip:audio": 1.0})
    with pytest.raises(EncoderMismatchError) as second:
        open_classifier(folder, HashEncoder("other"))
    with open_classifier(folder) as again:
        assert len(again.categories()) == 3
    assert (first.tb, second.tb) != (None, None)  # the errors are still held


def test_encoders_of_other_fingerprints_are_refused_before_anything_is_written(clf: Classifier, folder: Path) -> None:
    before = state(clf._store)
    clf.close()
    others = (HashEncoder("clip", dim=24), HashEncoder("dino", dim=16, modalities=("image",)))
    with open_classifier(folder, *others) as wrong:
        for action in (lambda: wrong.add_category("white"), lambda: wrong.classify(coloured("red", 1))):
            with pytest.raises(
                EncoderMismatchError, match=r"'clip' in .* another encoder \(dim: 32 there, 24 in use"
            ) as error:
                action()
            assert str(folder) in str(error.value)
    with open_classifier(folder) as again:
        assert state(again._store) == before


def test_references_of_a_modality_that_is_not_in_use_any_more_are_left_alone(clf: Classifier, folder: Path) -> None:
    clf.add_category("cat", texts=["a feline"])
    before = state(clf._store)
    clf.close()
    only_images = (
        HashEncoder("clip", dim=32, modalities=("image",)),
        HashEncoder("dino", dim=16, modalities=("image",)),
    )
    for index in ("memory", "qdrant"):
        with open_classifier(folder, *only_images, index=index) as clf:
            prediction = clf.classify(coloured("red", 100))
            assert prediction.label == "red"
            assert prediction.experts.keys() == {"clip:image", "dino:image"}
            assert dict(prediction.ranking)["cat"] == 0
            assert state(clf._store) == before


# ---- calibration

WHITE = coloured("white", 100)


def calibration_states(clf: Classifier) -> tuple[str, str]:
    """Calibration by predictions, and by the store."""
    return clf.classify(WHITE).calibration, clf._store.info()["calibration"]


def encoded(encoders: tuple[HashEncoder, HashEncoder]) -> int:
    return sum(encoder.images_encoded + encoder.texts_encoded for encoder in encoders)


def test_a_small_store_is_calibrated_automatically(
    empty: Classifier, encoders: tuple[HashEncoder, HashEncoder]
) -> None:
    fill(empty, ("red",))
    assert empty._store.calibration() is None
    fill(empty, ("green", "blue"))
    assert encoded(encoders) == 3 * (1 + 3 + 3)
    first = empty._store.calibration()
    assert first is not None
    assert set(first["experts"]) == EXPERTS
    assert first["images"] == 9
    before = encoded(encoders) + 2 + len(EVERYDAY)
    assert calibration_states(empty) == ("current", "current")

    empty.remove_category("blue")
    assert calibration_states(empty) == ("current", "current")
    second = empty._store.calibration()
    assert second is not None
    assert second["images"] == 6
    assert second["revision"] > first["revision"]
    empty.add_category("red", texts=[], images=[coloured("red", seed) for seed in range(3)])
    assert empty._store.calibration() == second
    empty.calibrate()
    assert encoded(encoders) == before + 2


def inputs_of(*colours: str) -> list[CategoryInput]:
    return [CategoryInput(name=colour, images=[coloured(colour, seed) for seed in range(3)]) for colour in colours]


def test_a_whole_import_is_calibrated_at_its_end(empty: Classifier) -> None:
    states = []
    empty.add_categories(inputs_of(*COLOURS), on_commit=lambda category: states.append(empty._store.calibration()))
    assert states == [None, None, None]
    assert calibration_states(empty) == ("current", "current")


def test_a_single_category_has_no_calibration(empty: Classifier) -> None:
    fill(empty, ("red", "green"))
    assert calibration_states(empty) == ("current", "current")
    empty.remove_category("green")
    assert calibration_states(empty) == ("none", "none")
    fill(empty, ("green",))
    assert calibration_states(empty) == ("current", "current")


def test_a_large_store_goes_stale_until_it_is_calibrated(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = clf._store.calibration()
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)
    changes: list[Callable[[], object]] = [
        lambda: clf.add_category("white", images=[coloured("white", seed) for seed in range(3)]),
        lambda: clf.add_category("white", texts=["like snow"]),
        lambda: clf.add_category("white", images=[coloured("white", 5)], replace=True),
        lambda: clf.remove_category("white"),
    ]
    for change in changes:
        change()
        assert calibration_states(clf) == ("stale", "stale")
        assert clf._store.calibration() == kept
        report = clf.calibrate()
        assert calibration_states(clf) == ("current", "current")
        kept = clf._store.calibration()
        assert kept is not None
        assert kept["revision"] == report.calibration.revision


def test_a_large_store_is_not_calibrated_for_the_first_time_either(
    empty: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)
    fill(empty)
    assert calibration_states(empty) == ("none", "none")
    report = empty.calibrate()
    assert calibration_states(empty) == ("current", "current")
    assert report.calibration.images == 9
    assert report.before is not None
    assert report.after is not None
    assert report.before != report.after
    again = empty.calibrate()
    assert again.calibration == report.calibration
    assert again.before is not None
    assert asdict(again.before) == pytest.approx(asdict(report.after))
    assert again.after == report.after


@pytest.mark.parametrize("work", ["just enough", "too much"])
def test_the_cost_of_backgrounds(clf: Classifier, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    # 12 images of 32 dimensions, of which 12 have any, and of 16; a third more than there were when they were learned.
    multiplications = sum(12 * dim * 12 + 10 * 12**3 + 3 * 12 * dim * 12 for dim in (32, 16))
    monkeypatch.setattr("zsvec.ingest.recalibration._RARE", multiplications - (work == "too much"))
    fill(clf, ("white",))
    assert calibration_states(clf)[0] == ("current" if work == "just enough" else "stale")


def test_references_that_are_not_in_use_cost_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_classifier(folder) as clf:
        fill(clf, images=10)
    images = [HashEncoder(name, dim=dim, modalities=("image",)) for name, dim in (("clip", 32), ("dino", 16))]
    with open_classifier(folder, *images) as clf:
        clf.calibrate()
        monkeypatch.setattr("zsvec.ingest.recalibration._RARE", 0)
        clf.add_category("red", images=[coloured("red", 99)])
        assert calibration_states(clf)[0] == "current"


@pytest.mark.parametrize("work", ["just enough", "too much"])
def test_the_cost_of_a_cheap_calibration(clf: Classifier, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    # 12 images and 4 texts of 32 dimensions, and the images again of 16.
    products = 12 * (12 + 4) * 32 + 12 * 12 * 16
    # And the fitting of three experts in two views, of each image to each of four categories.
    multiplications = products + 12 * 4 * 3 * 2 * 20_000
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", multiplications - (work == "too much"))
    fill(clf, ("white",))
    assert calibration_states(clf)[0] == ("current" if work == "just enough" else "stale")


def test_calibration_off_neither_makes_one_nor_uses_one(folder: Path) -> None:
    with fill(open_classifier(folder, calibration="off")) as clf:
        assert clf._store.calibration() is None
        plain = clf.classify(WHITE)
        assert plain.calibration == "none"
    with open_classifier(folder) as clf:
        assert same(clf.classify(WHITE), plain)
        clf.calibrate()
        assert calibration_states(clf) == ("current", "current")
        assert clf.classify(WHITE).ranking != plain.ranking
    with open_classifier(folder, calibration="off") as clf:
        assert same(clf.classify(WHITE), plain)
        kept = clf._store.calibration()
        fill(clf, ("white",))
        clf.remove_category("white")
        assert clf._store.calibration() == kept
        assert calibration_states(clf) == ("none", "stale")
        assert same(clf.classify(WHITE), plain)


def test_a_calibration_without_one_of_the_experts_is_none(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    for colour in COLOURS:
        clf.add_category(colour, texts=[], images=[coloured(colour, 1), coloured(colour, 2)], replace=True)
    kept = clf._store.calibration()
    assert kept is not None
    assert set(kept["experts"]) == EXPERTS - {"clip:text"}
    assert calibration_states(clf) == ("current", "current")
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)
    clf.add_category("red", texts=["all red"])
    assert calibration_states(clf) == ("none", "stale")
    clf.remove_category("red")
    assert calibration_states(clf) == ("stale", "stale")


def test_temperatures_of_the_settings_win_over_calibrated_ones(clf: Classifier, folder: Path) -> None:
    calibrated = clf.classify(WHITE).experts
    clf.close()
    with open_classifier(folder, temperatures={"clip:image": 0.2}) as fixed:
        experts = fixed.classify(WHITE).experts
    with open_classifier(folder, temperatures={"clip:image": 0.2}, calibration="off") as off:
        plain = off.classify(WHITE).experts
    assert dict(experts["clip:image"].ranking) == pytest.approx(dict(plain["clip:image"].ranking))
    assert dict(experts["clip:image"].ranking) != pytest.approx(dict(calibrated["clip:image"].ranking), abs=1e-3)
    for name in EXPERTS - {"clip:image"}:
        assert dict(experts[name].ranking) == pytest.approx(dict(calibrated[name].ranking))
        assert dict(experts[name].ranking) != pytest.approx(dict(plain[name].ranking), rel=0.1, abs=0)


def test_the_false_unknown_rate_is_a_fraction(clf: Classifier) -> None:
    before = clf._store.calibration()
    values: tuple[Any, ...] = (0, 1, 0.0, 1.0, -0.1, 1.5, math.nan, math.inf, "0.1", [0.1], np.array([0.1, 0.2]))
    for value in values:
        with pytest.raises(InvalidInputError, match=r"false_unknown_rate must be between 0 and 1\. Got "):
            clf.calibrate(false_unknown_rate=value)
    assert clf._store.calibration() == before


def test_the_false_unknown_rate_is_that_of_the_settings_unless_given(folder: Path) -> None:
    with fill(open_classifier(folder, false_unknown_rate=0.2), images=8) as clf:
        kept = clf._store.calibration()
        assert kept is not None
        assert kept["false_unknown_rate"] == 0.2
        few, many = (clf.calibrate(false_unknown_rate=fraction).calibration for fraction in (0.05, 0.5))
        assert (few.false_unknown_rate, many.false_unknown_rate) == (0.05, 0.5)
        assert (
            few.aggregations.thresholds["clip:image+clip:text+dino:image"]
            < many.aggregations.thresholds["clip:image+clip:text+dino:image"]
        )
        assert clf.calibrate().calibration.false_unknown_rate == 0.2


@pytest.mark.parametrize("content", ["nothing", "texts alone", "one category"])
def test_a_store_that_cannot_be_calibrated(empty: Classifier, folder: Path, content: str) -> None:
    if content == "texts alone":
        for colour in COLOURS:
            empty.add_category(colour, texts=[f"all {colour}"])
    elif content == "one category":
        fill(empty, ("red",))
    with pytest.raises(StoreError, match="that takes two categories and a reference image") as error:
        empty.calibrate()
    assert str(folder) in str(error.value)
    assert empty._store.calibration() is None
    if content == "nothing":
        assert not (folder / "store").exists()


def test_a_calibration_of_categories_that_are_gone_is_dropped(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)
    clf.remove_category("red")
    clf.remove_category("green")
    assert calibration_states(clf) == ("stale", "stale")
    with pytest.raises(StoreError, match="cannot be calibrated"):
        clf.calibrate()
    assert calibration_states(clf) == ("none", "none")


@pytest.mark.parametrize("at", ["calibration", "keep_calibration"])
def test_an_error_of_the_automatic_calibration_does_not_fail_the_addition(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    calls = 0
    error = ConflictError("others were faster") if at == "keep_calibration" else StoreError("the disk is full")

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(clf._store, at, fail)
        assert clf.add_category("white", texts=["all white"], images=[coloured("white", 1)]) in clf.categories()
        clf.remove_category("red")
        if at == "keep_calibration":
            with pytest.raises(ConflictError, match="others were faster"):
                clf.calibrate()
    assert calls >= 2
    assert {category.name for category in clf.categories()} == {"blue", "green", "white"}
    assert calibration_states(clf) == ("stale", "stale")
    clf.calibrate()
    assert calibration_states(clf) == ("current", "current")


def test_an_idempotent_addition_does_not_write_the_calibration_again(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = clf._store.calibration()
    written: list[object] = []
    monkeypatch.setattr(clf._store, "keep_calibration", written.append)
    fill(clf)
    assert len(clf.add_categories(inputs_of(*COLOURS))) == 3
    assert written == []
    assert clf._store.calibration() == kept
    clf.add_category("red", texts=[], images=[coloured("red", 3)])
    assert len(written) == 1


def test_a_requested_false_unknown_rate_is_kept(clf: Classifier, folder: Path) -> None:
    def kept(clf: Classifier) -> float:
        return float((clf._store.calibration() or {})["false_unknown_rate"])

    assert kept(clf) == 0.05
    clf.calibrate(false_unknown_rate=0.2)
    fill(clf, ("white",))
    assert calibration_states(clf) == ("current", "current")
    assert kept(clf) == clf.calibrate().calibration.false_unknown_rate == 0.2
    clf.close()
    with open_classifier(folder) as clf:
        fill(clf, ("black",))
        assert kept(clf) == 0.2
    with open_classifier(folder, false_unknown_rate=0.1) as clf:  # the setting wins over the stored rate
        fill(clf, ("yellow",))
        assert kept(clf) == 0.1


@pytest.mark.parametrize("settings", [{"aggregation": "prototype"}, {"top_m": 2}])
def test_a_calibration_for_another_aggregation_is_replaced_only_on_request(
    clf: Classifier, folder: Path, settings: dict[str, Any]
) -> None:
    kept = clf._store.calibration()
    clf.close()
    with open_classifier(folder, calibration="off", **settings) as plain:
        expected = plain.classify(WHITE)
    with open_classifier(folder, **settings) as other:
        assert same(other.classify(WHITE), expected)
        fill(other, ("white",))
        assert other._store.calibration() == kept
        assert calibration_states(other) == ("none", "stale")
        made = other.calibrate().calibration
        now = other._store.calibration()
        assert now is not None
        assert (now["aggregation"], now["top_m"]) == (made.aggregation, made.top_m)
        assert calibration_states(other) == ("current", "current")
        assert {now["aggregation"], now["top_m"]} >= set(settings.values())
    with open_classifier(folder) as again:
        assert again.classify(WHITE).calibration == "none"


def test_an_import_that_fails_leaves_a_current_calibration(empty: Classifier) -> None:
    committed = []

    def stop(category: zsvec.Category) -> None:
        committed.append(category)
        if len(committed) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        empty.add_categories(inputs_of("red", "green", "blue"), on_commit=stop)
    assert calibration_states(empty) == ("current", "current")
    broken = CategoryInput(name="broken", images=[b"no image"])
    with pytest.raises(ImageError):
        empty.add_categories([*inputs_of("white"), broken])
    assert "broken" not in [category.name for category in empty.categories()]
    assert calibration_states(empty) == ("current", "current")


@pytest.mark.parametrize(("categories", "calibrated"), [(1000, False), (20, True)])
def test_many_categories_are_not_calibrated_automatically(
    empty: Classifier, monkeypatch: pytest.MonkeyPatch, categories: int, calibrated: bool
) -> None:
    fit = Mock(return_value=None)
    monkeypatch.setattr("zsvec.ingest.recalibration.fit_calibration", fit)
    vectors = np.random.default_rng(0).normal(size=(categories, 2, 48))
    empty.add_categories(
        CategoryInput(name=f"{i:04d}", vectors={"clip:image": rows[:, :32], "dino:image": rows[:, 32:]})
        for i, rows in enumerate(vectors)
    )
    assert fit.call_count == int(calibrated)


def test_the_quick_start_is_not_overconfident(empty: Classifier) -> None:
    """'cat' with a text and two images, 'red panda' with a text alone; cosines are as those of real encoders."""
    rng = np.random.default_rng(0)

    def clip_images(to_cat: np.ndarray, to_panda: np.ndarray) -> np.ndarray:
        # The texts are the first two axes, and images have half of the rest in common.
        rest = np.sqrt(0.5) * np.eye(1, 30) + np.sqrt(0.5) * unit_rows(rng.normal(size=(len(to_cat), 30)))
        rest = unit_rows(rest) * np.sqrt(1 - to_cat**2 - to_panda**2)[:, None]
        return np.hstack([to_cat[:, None], to_panda[:, None], rest])

    def unit_rows(matrix: np.ndarray) -> np.ndarray:
        rows: np.ndarray = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return rows

    cats = clip_images(np.array([0.27, 0.28]), np.array([0.2, 0.2001]))
    empty.add_category(
        "cat", vectors={"clip:text": np.eye(1, 32), "clip:image": cats, "dino:image": rng.normal(size=(2, 16))}
    )
    empty.add_category("red panda", vectors={"clip:text": np.eye(1, 32, 1)})
    kept = empty._store.calibration()
    assert kept is not None
    profile = 0.01
    assert profile / 3 <= kept["experts"]["clip:text"]["temperature"] <= 3 * profile
    strangers = clip_images(rng.uniform(0.17, 0.19, 100), rng.uniform(0.17, 0.19, 100))
    answers = empty.classify_vectors({"clip": strangers, "dino": rng.normal(size=(100, 16))})
    assert {answer.calibration for answer in answers} == {"current"}
    assert max(answer.probability or 0 for answer in answers) <= 0.99
    assert {answer.label for answer in answers} == {"cat", "red panda"}


def given_vectors(seed: int, rows: Mapping[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    dims = {"clip": 32, "dino": 16}
    return {
        expert: rng.normal(size=(n, dims[expert.split(":")[0]])) + 3 * np.sign(rng.normal(size=dims[expert[:4]]))
        for expert, n in rows.items()
    }


@pytest.mark.parametrize(("n_dino", "learned"), [(4, True), (3, False)])
def test_vectors_of_two_encoders_are_of_the_same_images_if_they_are_as_many(
    empty: Classifier, n_dino: int, learned: bool
) -> None:
    for seed, name in enumerate("abc"):
        empty.add_category(name, texts=["t"], vectors=given_vectors(seed, {"clip:image": 4, "dino:image": n_dino}))
        digests = {
            encoder: {
                digest for owner, modality, digest in empty._store.keys(name) if (owner, modality) == (encoder, "image")
            }
            for encoder in ("clip", "dino")
        }
        assert (len(digests["clip"]), len(digests["dino"])) == (4, n_dino)
        assert len(digests["clip"] & digests["dino"]) == (4 if learned else 0)
    calibration = empty.calibrate().calibration
    assert calibration.images == (12 if learned else 21)
    assert calibration.aggregations.learned == calibration.plain.learned == learned


def test_vectors_that_are_given_again_change_nothing(empty: Classifier) -> None:
    given = given_vectors(0, {"clip:image": 4, "dino:image": 4, "clip:text": 4})
    category = empty.add_category("a", texts=[], vectors=given)
    before = state(empty._store)
    assert category.references == dict.fromkeys(EXPERTS, 4)
    again = [
        given,
        dict(reversed(given.items())),
        {expert: (5 * rows).tolist() for expert, rows in given.items()},
        {expert: rows[::-1] for expert, rows in given.items()},
        {expert: rows[1:3] for expert, rows in given.items()},
        {expert: np.repeat(rows, 2, axis=0) for expert, rows in given.items()},
        {expert: rows for expert, rows in given.items() if expert != "clip:text"},
    ]
    for vectors in again:
        assert empty.add_category("a", texts=[], vectors=vectors) == category
    assert state(empty._store) == before


# ---- encoders


def test_encoders_are_loaded_once_and_not_before_they_are_needed(folder: Path) -> None:
    with fill(open_classifier(folder)):
        pass
    loads = []

    def load() -> EncoderSet:
        loads.append(threading.current_thread().name)
        return EncoderSet(two_encoders())

    with classifier_over(open_store(str(folder / "store"), namespace="zsvec"), load) as clf:
        assert len(clf.categories()) == 3
        clf.remove_category("green")
        clf.classify_vectors({"clip": np.ones((1, 32)), "dino": np.ones((1, 16))})
        assert loads == []
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda seed: clf.classify(coloured("red", seed)), range(16)))
        assert len(loads) == 1
        assert {answer.label for answer in answers} == {"red"}
        assert clf.encoders is clf.encoders
        assert len(loads) == 1


def test_missing_weights_are_reported(folder: Path) -> None:
    def load() -> EncoderSet:
        raise WeightsUnavailableError("no weights here")

    with classifier_over(open_store(str(folder / "store"), namespace="zsvec"), load) as clf:
        for action in (lambda: clf.encoders, lambda: clf.add_category("red")):
            with pytest.raises(WeightsUnavailableError, match="no weights here"):
                action()
    assert not (folder / "store").exists()


def test_unusable_names_of_encoders(folder: Path) -> None:
    for name in ("catalog", "", "a/b", "../up", "a b", "é", "x" * 64, "a\n"):
        with pytest.raises(InvalidInputError, match="an encoder cannot be named") as error:
            open_classifier(folder, HashEncoder(name))
        assert repr(name) in str(error.value)
    with pytest.raises(InvalidInputError, match="there are no encoders"):
        zsvec.open(str(folder / "store"), encoders=[])
    for setting in ("weights", "temperatures"):
        with pytest.raises(InvalidInputError, match="expert 'dino:text'; there are clip:text, clip:image, dino:image"):
            open_classifier(folder, **{setting: {"dino:text": 1.0}})
    assert list(folder.iterdir()) == []


# ---- settings


def test_settings_that_cannot_be_used(folder: Path) -> None:
    nan = float("nan")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"top_m": -1}, r"top_m: .* \(got -1\)"),
        ({"neighbors": 0}, r"neighbors: .* \(got 0\)"),
        ({"timeout": 0}, r"timeout: .* \(got 0\)"),
        ({"unknown_above": nan}, r"unknown_above: .* \(got nan\)"),
        ({"weights": {"clip:text": 0}}, r"weights.clip:text: .* \(got 0\)"),
        ({"temperatures": {"clip:text": nan}}, r"temperatures.clip:text: .* \(got nan\)"),
        ({"max_pixels": 0}, r"max_pixels: .* \(got 0\)"),
        ({"store": ""}, r"store: .* \(got ''\)"),
        ({"store": 5}, r"store: .* \(got 5\)"),
    )
    for settings, named in refused:
        with pytest.raises(InvalidInputError, match=named):
            zsvec.open(**{"store": str(folder / "store"), **settings})
    assert list(folder.iterdir()) == []


def test_the_key_of_a_server_is_never_shown() -> None:
    with pytest.raises(InvalidInputError) as error:
        zsvec.open("./s", api_key=12345)  # type: ignore[arg-type]
    assert "12345" not in str(error.value)
    assert "hunter2" not in repr(load_settings(api_key="hunter2"))


class Loading:
    """Stands for `zsvec.encoders.load_encoders`: hash encoders of the names that are asked for."""

    def __init__(self) -> None:
        self.specs: Mapping[str, EncoderSpec] = {}
        self.options: dict[str, Any] = {}

    def __call__(self, specs: Mapping[str, EncoderSpec], **options: Any) -> EncoderSet:
        self.specs, self.options = specs, options
        return EncoderSet([HashEncoder(name, modalities=spec.modalities) for name, spec in specs.items()])


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    loading = Loading()
    monkeypatch.setattr("zsvec.encoders.load_encoders", loading)
    return loading


def test_arguments_over_environment_over_file_over_user_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(**arguments: Any) -> tuple[str, str, int, str]:
        with zsvec.open(encoders=two_encoders(), **arguments) as clf:
            s = clf.settings
            return s.store, s.namespace, s.batch_size, s.fusion

    assert opened() == ("./zsvec-store", "zsvec", 32, "log_linear_gda")
    user = tmp_path / "user" / "zsvec" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('store = "./user"\nnamespace = "user"\nbatch_size = 1\nfusion = "max_confidence"\n')
    assert opened() == ("./user", "user", 1, "max_confidence")
    trusted_settings('store = "./file"\nnamespace = "file"\nbatch_size = 2\n')
    assert opened() == ("./file", "file", 2, "max_confidence")
    monkeypatch.setenv("ZSVEC_STORE", "./environment")
    monkeypatch.setenv("ZSVEC_NAMESPACE", "environment")
    assert opened() == ("./environment", "environment", 2, "max_confidence")
    assert opened(store=str(folder / "argument")) == (str(folder / "argument"), "environment", 2, "max_confidence")
    assert opened(store=None, fusion="fixed") == ("./environment", "environment", 2, "fixed")


def test_mappings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_WEIGHTS", '{"clip:text": 2.5}')
    monkeypatch.setenv("ZSVEC_UNKNOWN_ABOVE", "0.5")
    with zsvec.open(encoders=two_encoders()) as clf:
        assert (clf.settings.weights, clf.settings.unknown_above) == ({"clip:text": 2.5}, 0.5)


PROFILE = """
profile = "mine"
device = "cpu"
batch_size = 5

[profiles.mine.encoders.clip]
family = "clip"
model = "./models/clip"
prompt = "a photo of a {name}"
temperature = { text = 0.5 }

[profiles.mine.encoders.vit]
family = "vision"
model = "vit_tiny"
modalities = ["image"]
temperature = { image = 2.0 }
"""


def test_a_profile_of_ones_own(folder: Path, loading: Loading) -> None:
    trusted_settings(PROFILE)
    with zsvec.open(str(folder / "store"), dtype="float32", calibration="off") as clf:
        assert repr(clf).endswith("encoders clip, vit>")
        clf.add_category("red_panda", images=[coloured("red", 1)])
        clf.add_category("cat", texts=["a feline"], images=[coloured("blue", 1)])
        options = {"device": "cpu", "dtype": "float32", "runtime": "auto", "compiled": False, "batch_size": 5}
        assert loading.options == options
        assert [spec.model for spec in loading.specs.values()] == ["./models/clip", "vit_tiny"]
        assert sources(clf._store, "red_panda") == {
            "clip:text": ["a photo of a red panda"],
            "clip:image": ["image"],
            "vit:image": ["image"],
        }
        experts = clf.classify(coloured("red", 2)).experts
    for name, temperature in {"clip:text": 0.5, "vit:image": 2.0}.items():
        expert = experts[name]
        best, other = (probability for _, probability in expert.ranking)
        logits = sorted((neighbor.similarity / temperature for neighbor in expert.neighbors), reverse=True)
        assert best / other == pytest.approx(math.exp(logits[0] - logits[1]), rel=1e-4)


def test_the_offline_profile_by_name(folder: Path, loading: Loading) -> None:
    with zsvec.open(str(folder / "store"), profile="offline") as clf:
        clf.add_category("cat", images=[coloured("red", 1)])
        assert clf.categories()[0].references == {"conse:text": 1, "conse:image": 1, "efficientnet:image": 1}
    with pytest.raises(EncoderMismatchError, match="encoders conse, efficientnet, and clip, dino are in use"):
        zsvec.open(str(folder / "store"), profile="base")


def test_a_store_is_opened_with_the_profile_that_it_was_made_with(folder: Path, loading: Loading) -> None:
    trusted_settings(PROFILE)
    with zsvec.open(str(folder / "store")) as made:
        made.add_category("cat", images=[coloured("red", 1)])
    trusted_settings(PROFILE.replace('profile = "mine"', ""))
    with zsvec.open(str(folder / "store")) as again:
        assert again.settings.profile == "mine"
        assert again.classify(coloured("red", 2)).experts.keys() == {"clip:text", "clip:image", "vit:image"}
    assert [spec.model for spec in loading.specs.values()] == ["./models/clip", "vit_tiny"]


def test_only_settings_define_the_profile_of_a_store(folder: Path, loading: Loading) -> None:
    """Others may have made the store: its name of a profile means what the settings of this user say, or nothing."""
    trusted_settings(PROFILE)
    with zsvec.open(str(folder / "store")) as made:
        made.add_category("cat", images=[coloured("red", 1)])
    trusted_settings("")
    loading.specs = {}
    with pytest.raises(EncoderMismatchError, match="profile 'mine', which your settings do not define"):
        zsvec.open(str(folder / "store"))
    trusted_settings("[profiles.mine.encoders.other]\nfamily = 'clip'\nmodel = './models/other'\n")
    with pytest.raises(EncoderMismatchError, match="encoders clip, vit, and other are in use"):
        zsvec.open(str(folder / "store"))
    assert not loading.specs


def test_a_profile_with_other_fingerprints_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(specs: Mapping[str, EncoderSpec], **_: Any) -> EncoderSet:
        encoders = [HashEncoder(name, modalities=spec.modalities) for name, spec in specs.items()]
        for encoder in encoders:
            encoder.fingerprint = replace(encoder.fingerprint, revision=specs[encoder.name].revision)
        return EncoderSet(encoders)

    monkeypatch.setattr("zsvec.encoders.load_encoders", load)
    with zsvec.open(str(folder / "store"), profile="plus") as made:
        made.add_category("red", images=[coloured("red", 1)])
    with zsvec.open(str(folder / "store"), profile="base") as wrong:
        for action in (lambda: wrong.add_category("white"), lambda: wrong.classify(coloured("red", 1))):
            with pytest.raises(EncoderMismatchError, match=r"\(profile 'plus'\)"):
                action()
    with zsvec.open(str(folder / "store")) as right:
        assert right.classify(coloured("red", 1)).nearest == "red"


def test_encoders_in_python_and_folders_of_encoders_are_not_remembered(
    clf: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf.close()
    monkeypatch.setenv("ZSVEC_PROFILE", "offline")
    with open_classifier(folder) as again:
        assert again.info()["profile"] is None
    with pytest.raises(EncoderMismatchError, match="encoders clip, dino, and conse, efficientnet are in use"):
        zsvec.open(str(folder / "store"), profile="offline")


def test_a_profile_that_cannot_be_used() -> None:
    encoder = "[profiles.mine.encoders.a]\n"
    for toml, message in (
        ("profile = 'mine'\n[profiles.mine]\nencoders = {}", "profiles.mine.encoders: .* at least 1 item"),
        (f"{encoder}model = 'm'", "profiles.mine.encoders.a.family: Field required"),
        (f"{encoder}family = 'bert'\nmodel = 'm'", r"family: .* \(got 'bert'\)"),
        (f"{encoder}family = 'clip'\nmodel = 'm'\nprompt = 'a photo'", "must contain {name}"),
        (f"{encoder}family = 'clip'\nmodel = 'm'\ntemperature = {{text = 0}}", r"\(got 0\)"),
    ):
        trusted_settings(toml)
        with pytest.raises(InvalidInputError, match=message):
            zsvec.open("./s")


def test_store_can_be_given_as_a_path(tmp_path: Path) -> None:
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()]) as classifier:
        assert classifier.settings.store == str(tmp_path / "store")


def test_a_process_with_texts_alone_keeps_the_calibration(clf: Classifier) -> None:
    kept = clf._store.calibration()
    assert kept
    texts = Classifier(
        clf._store,
        load_settings(),
        load_encoders=lambda: clf.encoders,
        temperatures={"clip:text": 0.01, "dino:text": 0.01},
        prompts={},
    )
    with pytest.raises(StoreError, match="cannot be calibrated"):
        texts.calibrate()
    texts.remove_category("red")
    assert clf._store.calibration() == kept


def test_another_process_writes_first_with_other_encoders(clf: Classifier) -> None:
    others = EncoderSet([HashEncoder("siglip", dim=8), HashEncoder("dino", dim=16, modalities=("image",))])
    with pytest.raises(EncoderMismatchError, match="siglip"):
        clf._store.check_fingerprints(others.fingerprints)


class TestGda:
    """The strategy that needs more of a calibration than the others do."""

    @pytest.fixture
    def gda(self, folder: Path) -> Iterator[Classifier]:
        with fill(open_classifier(folder, fusion="log_linear_gda"), images=8) as clf:
            yield clf

    def test_it_runs_and_answers(self, gda: Classifier) -> None:
        for colour in COLOURS:
            prediction = gda.classify(coloured(colour, 99))
            assert (prediction.nearest, prediction.fusion) == (colour, "log_linear_gda")

    def test_another_process_answers_the_same(self, gda: Classifier, folder: Path) -> None:
        image = coloured("red", 99)
        before = gda.classify(image).ranking
        gda.close()
        with open_classifier(folder, fusion="log_linear_gda") as again:
            assert again.classify(image).ranking == before

    @pytest.mark.parametrize("images", [0, 1, 2])
    @pytest.mark.parametrize("calibrates", [False, True])
    def test_a_category_of_few_images_is_compared_like_the_others(
        self, gda: Classifier, images: int, calibrates: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not calibrates:
            monkeypatch.setattr("zsvec.ingest.recalibration._CHEAP", 0)  # the calibration stays as it was
        gda.add_category("white", texts=["all white"], images=[coloured("white", seed) for seed in range(images)])
        for colour in (*COLOURS, *["white"] * min(images, 1)):
            prediction = gda.classify(coloured(colour, 99))
            assert (prediction.nearest, prediction.fusion) == (colour, "log_linear_gda")

    @pytest.mark.parametrize("asked", [False, True])
    def test_a_process_with_another_strategy_calibrates_it(self, gda: Classifier, folder: Path, asked: bool) -> None:
        gda.close()
        with open_classifier(folder, fusion="max_confidence") as other:
            if asked:
                report = other.calibrate()
                assert report.calibration.classwise
                assert report.after == report.before  # of the pool without it
            other.add_category("white", texts=["all white"], images=[coloured("white", seed) for seed in range(8)])
        with open_classifier(folder, fusion="log_linear_gda") as again:
            assert again._store.info()["calibration"] == "current"
            assert again.classify(coloured("red", 99)).fusion == "log_linear_gda"
