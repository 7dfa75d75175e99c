"""The inbox: images kept on request and from streams, ranked, labelled, dismissed, grouped; and feedback."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import zsvec
from tests.store.support import Crash, Hooked, LocalDeployment
from tests.support import (
    classifier_over,
    coloured,
    encode,
    open_classifier,
    photo,
    photos,
    trusted_settings,
    two_encoders,
    write_photos,
)
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.curation import retention
from zsvec.curation.inbox import Inbox, _similar
from zsvec.curation.retention import Keeper, surplus
from zsvec.encoders import EncoderSet
from zsvec.encoders.vocabulary import common_words
from zsvec.errors import (
    ConflictError,
    EncoderError,
    ImageError,
    InvalidInputError,
    MissingExtraError,
    StoreUnavailableError,
    ZSVecError,
)
from zsvec.ingest import embedding
from zsvec.inputs.images import Region, content_hash
from zsvec.method.quality.inbox_ranking import ALIKE, distinct
from zsvec.settings.settings import load_settings
from zsvec.store import InboxImage, Store
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.collections.inbox import Removal
from zsvec.testing import HashEncoder
from zsvec.types import Prediction

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

COLOURS = ("red", "green", "blue")
NOW = datetime.now(UTC)


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=two_encoders(), added_by="Ann") as classifier:
        yield fill(classifier)


def fill(classifier: Classifier) -> Classifier:
    classifier.add_categories(
        CategoryInput(name=colour, images=[coloured(colour, seed) for seed in range(3)]) for colour in COLOURS
    )
    return classifier


def held(clf: Classifier) -> set[str]:
    return {one.hash for one in clf.inbox}


def kept(clf: Classifier, image: Any) -> str:
    digest = clf.keep(image)
    assert digest
    return digest


def encoded(clf: Classifier) -> int:
    return sum(encoder.images_encoded + encoder.texts_encoded for encoder in clf.encoders)  # type: ignore[attr-defined]


# On request


def test_a_kept_image_waits(clf: Classifier, tmp_path: Path) -> None:
    assert (len(clf.inbox), clf.inbox.rank(), clf.inbox.groups()) == (0, [], [])
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError):
        clf.keep(tmp_path / "a.jpg")
    digest = clf.keep(photo(1))
    assert digest == content_hash(photo(1))
    assert clf.keep(photo(1)) == digest
    [one] = clf.inbox
    assert (one.hash, one.source, one.width, one.height) == (digest, "image", 8, 6)
    assert abs(one.added - datetime.now(UTC)) < timedelta(minutes=1)
    assert one.prediction is not None
    assert one.prediction.nearest in COLOURS
    assert one.prediction.hash == digest
    small = clf.image(digest)
    assert small is not None
    assert small.size == (8, 6)


def nearly(seed: int) -> Any:
    """A near-duplicate of a photo."""
    changed = np.asarray(photo(seed)).copy()
    changed[0, 0] ^= 1
    return changed


def test_near_duplicates_are_not_kept(clf: Classifier) -> None:
    assert clf.keep(coloured("red", 0)) is None
    assert clf.keep(photo(1))
    assert clf.keep(nearly(1)) is None
    assert len(clf.inbox) == 1


def test_a_store_without_categories_keeps_images() -> None:
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        assert len(clf.inbox) == 0
        digest = clf.keep(photo(1))
        [one] = clf.inbox
        assert (one.hash, one.prediction, one.urgency) == (digest, None, 1.0)
        assert clf.inbox.label(one.hash, "panda").references == {"clip:image": 1, "dino:image": 1}
        assert clf.classify(photo(1)).nearest == "panda"


@pytest.mark.parametrize("keep_images", ["small", "none"])
def test_the_first_kept_image_makes_the_store(keep_images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not if an encoder fails."""

    def fail(*_: Any) -> Any:
        raise ValueError("no vectors")

    with zsvec.open(":memory:", encoders=two_encoders(), keep_images=keep_images) as clf:
        with monkeypatch.context() as patch, pytest.raises(EncoderError, match="no vectors"):
            patch.setattr(HashEncoder, "embed", fail)
            clf.keep(photo(1))
        assert clf._store.encoders() == {}
        digest = clf.keep(photo(1))
        assert digest
        assert (clf.image(digest) is not None) == (keep_images == "small")


@pytest.mark.parametrize("keep_images", ["small", "none"])
def test_copies_are_kept_where_those_of_references_are(keep_images: Any) -> None:
    with zsvec.open(":memory:", encoders=two_encoders(), keep_images=keep_images) as clf:
        fill(clf)
        digest = clf.keep(photo(1))
        with clf.classify_stream([photo(2)], keep="all") as stream:
            [answer] = stream
        assert digest
        assert answer.hash
        for one in (digest, answer.hash):
            assert (clf.image(one) is not None) == (keep_images == "small")
        clf.inbox.label([digest, answer.hash], "panda")
        assert (clf.image(digest) is not None) == (keep_images == "small")


# Labels


def test_a_label_makes_a_reference_without_an_encoder(tmp_path: Path) -> None:
    with open_classifier(tmp_path, *two_encoders()) as clf:
        fill(clf)
        digest = kept(clf, photo(1))

    def load() -> EncoderSet:
        raise AssertionError("no encoder is needed")

    settings = load_settings(store=str(tmp_path / "store"), added_by="Ann")
    with classifier_over(settings.open_store(), load) as again:
        assert [one.hash for one in again.inbox.rank(5)] == [digest]
        again.inbox.groups()
        before = again._store.calibration()
        category = again.inbox.label(digest, " red ")
        assert category.name == "red"
        assert category.references["clip:image"] == category.references["dino:image"] == 4
        [reference] = [one for one in again.references.of("red") if one.hash == digest]
        assert (reference.source, reference.by, reference.experts) == ("image", "Ann", ("clip:image", "dino:image"))
        assert reference.added is not None
        assert len(again.inbox) == 0
        assert again.image(digest) is not None
        assert again._store.calibration() != before  # it is current again
        assert again.inbox.label(digest, "red") == again.category("red")  # done again
    with open_classifier(tmp_path, *two_encoders()) as last:
        assert last.classify(photo(1)).nearest == "red"


def test_a_label_that_cannot_be(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    with pytest.raises(InvalidInputError, match="no image 'x' waits in the inbox: `zsvec inbox` lists those that do"):
        clf.inbox.label([digest, "x"], "red")
    with pytest.raises(InvalidInputError, match="category name"):
        clf.inbox.label(digest, "")
    with pytest.raises(InvalidInputError, match="hashes must be one or more content hashes"):
        clf.inbox.label([], "red")
    assert held(clf) == {digest}


def test_a_label_moves_a_reference_of_another_category(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    clf.add_category("green", images=[photo(1)])
    assert clf.inbox.label(digest, "red").references["dino:image"] == 4
    assert clf._store.holders({digest}) == {digest: {"red"}}
    assert len(clf.inbox) == 0


@pytest.mark.parametrize("how", ["label", "correct"])
@pytest.mark.parametrize("held_by", ["target", "other", "none"])
def test_an_image_that_waits_survives_the_removal_of_its_category_on_the_way(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch, how: str, held_by: str
) -> None:
    """Another writer removes the category after the image was found there."""
    image = photo(1)
    digest = kept(clf, image)
    names = {"target": ["right"], "other": ["wrong"], "none": []}[held_by]
    clf.add_categories(CategoryInput(name=name, texts=[], images=[image]) for name in names)
    holders = clf._store.holders

    def found(hashes: Any) -> Any:
        known = holders(hashes)
        for name in names:
            clf._store.remove(name)
        return known

    monkeypatch.setattr(clf._store, "holders", found)

    def act() -> None:
        _ = clf.inbox.label(digest, "right") if how == "label" else clf.correct(image, "right")

    try:
        act()
    except ZSVecError:
        assert digest in clf.inbox.hashes()
        monkeypatch.undo()
        act()
    assert digest in {key[2] for key in clf._store.keys("right")}
    assert digest not in clf.inbox.hashes()


@pytest.mark.parametrize("how", ["label", "correct"])
def test_an_image_that_another_removes_is_not_called_labelled(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Only the category has the image."""
    image, store = photo(1), clf._store
    clf.add_category("right", images=[image, photo(2)])
    digest = content_hash(image)
    holders = store.holders

    def found(hashes: Any) -> Any:
        known = holders(hashes)
        store.remove_references("right", [digest])
        return known

    monkeypatch.setattr(store, "holders", found)
    with pytest.raises(ConflictError, match="'right'"):
        _ = clf.inbox.label(digest, "right") if how == "label" else clf.correct(image, "right")


def test_killed_while_labelling() -> None:
    """Nothing is lost, and a repetition succeeds."""
    for dies_at in itertools.count():
        backend = Hooked(MemoryBackend())
        clf = classifier_over(Store(backend, "zsvec"), calibration="off")
        clf.add_category("red", images=[coloured("red", 0)])
        waiting = {kept(clf, photo(seed)) for seed in (1, 2)}
        assert held(clf) == waiting
        backend.dies_at = backend.calls.total() + dies_at
        died = True
        with suppress(Crash):
            clf.inbox.label(waiting, "red")
            died = False
        backend.dies_at = None
        assert waiting <= held(clf) | {one.hash for one in clf.references.of("red")}
        clf.inbox.label(waiting, "red")
        assert waiting <= {one.hash for one in clf.references.of("red")}
        assert clf.category("red").references["dino:image"] == 3
        assert len(clf.inbox) == 0
        if not died:
            break
    assert dies_at > 10


def test_a_dismissed_image_waits_no_more_nor_one_like_it(clf: Classifier) -> None:
    first, second = kept(clf, photo(1)), kept(clf, photo(2))
    clf.inbox.dismiss(first)
    assert held(clf) == {second}
    assert clf.image(first) is not None  # while an undo may put the image back
    assert clf.keep(nearly(1)) is None
    assert clf.keep(photo(1)) is None
    with pytest.raises(InvalidInputError, match="no image 'x' waits"):
        clf.inbox.dismiss("x")
    clf.inbox.clear()
    assert len(clf.inbox) == 0
    assert clf.keep(photo(1)) == first


# The order


def test_the_ranking_follows_labels(clf: Classifier) -> None:
    colour = coloured("yellow", 0)
    yellow = [Image.blend(colour, photo(seed).resize(colour.size), 0.5) for seed in range(6)]
    for one in yellow:
        clf.keep(one)
    first = clf.inbox.rank(1)[0]
    assert clf.inbox.rank()[0] == first
    assert sorted(one.hash for one in clf.inbox.rank()) == sorted(map(content_hash, yellow))
    clf.inbox.label(first.hash, "yellow")
    after = {one.hash: one.prediction for one in clf.inbox}
    assert first.hash not in after
    assert "yellow" in {one.nearest for one in after.values() if one}
    with pytest.raises(InvalidInputError, match="number must be a whole number from 1 up"):
        clf.inbox.rank(0)


# Bounds

WHYS = ("all", "uncertain", "asked")
Spec = tuple[int, int, bool, str]  # direction, age in minutes, whether it was dismissed, why


@st.composite
def inboxes(draw: st.DrawFn) -> list[InboxImage]:
    """Images of which those of one direction are nearly alike, and no others."""
    specs = draw(
        st.lists(
            st.tuples(
                st.integers(0, 5), st.integers(0, 9), st.booleans(), st.sampled_from(["all", "uncertain", "asked"])
            ),
            max_size=14,
        )
    )
    return [
        InboxImage(
            hash=f"{i}",
            source="",
            added=NOW - timedelta(minutes=age),
            why=why,  # type: ignore[arg-type]
            removals=(Removal("dismissed"),) if dismissed else (),
            vectors={"clip": np.eye(6, dtype=np.float32)[direction]},
        )
        for i, (direction, age, dismissed, why) in enumerate(specs)
    ]


@given(inboxes(), st.integers(1, 5))
def test_the_inbox_is_bounded_and_has_no_near_duplicates(images: list[InboxImage], size: int) -> None:
    gone = surplus(images, size)
    stays = [image for image in images if image.hash not in gone]
    waiting = [image for image in stays if image.state == "waiting"]
    assert len(waiting) <= size
    assert sum(image.state == "dismissed" for image in stays) <= size
    directions = [int(image.vectors["clip"].argmax()) for image in waiting]
    assert len(set(directions)) == len(directions)
    dismissed = {int(image.vectors["clip"].argmax()) for image in images if image.state == "dismissed"}
    assert dismissed.isdisjoint(directions)
    assert surplus(stays, size) == set()  # the next writer deletes nothing
    every = {int(image.vectors["clip"].argmax()) for image in images} - dismissed
    assert len(waiting) == min(size, len(every))  # and nothing goes without need
    for lower, higher in itertools.combinations(WHYS, 2):
        if any(image.why == lower for image in waiting):
            assert not any(image.why == higher and image.hash in gone for image in firsts(images, dismissed))


def firsts(images: list[InboxImage], dismissed: set[int]) -> list[InboxImage]:
    """Of each direction that waits, the one that stays: that was asked for, or else has waited longest."""
    found: dict[int, InboxImage] = {}
    for image in sorted(images, key=lambda image: (image.why != "asked", image.added, image.hash)):
        direction = int(image.vectors["clip"].argmax())
        if image.state == "waiting" and direction not in dismissed:
            found.setdefault(direction, image)
    return list(found.values())


@pytest.mark.parametrize("known", ["new", "waits already", "nearly waits already"])
def test_streams_never_evict_images_kept_on_request(known: str) -> None:
    for by in ("image", "prediction"):
        with zsvec.open(":memory:", encoders=two_encoders(), inbox_size=3) as clf:
            fill(clf)
            path = Path("wanted.png")
            path.write_bytes(encode(photo(1)))
            digest = content_hash(path)
            if known != "new":
                waits = path.read_bytes() if known == "waits already" else encode(Image.fromarray(nearly(1)))
                with clf.classify_stream([waits], keep="all") as stream:
                    list(stream)
                assert len(clf.inbox) == 1
            given = clf.classify(path) if by == "prediction" else path
            assert clf.keep(given) == digest
            assert clf.keep(given) == digest
            for first in (100, 200):
                with clf.classify_stream([photo(first + i) for i in range(8)], keep="uncertain") as stream:
                    list(stream)
                assert digest in clf.inbox.hashes()
                assert len(clf.inbox) == 3
                assert clf.inbox.small(digest) is not None
            for seed in (11, 12, 13):
                assert clf.keep(photo(seed))
            assert set(clf.inbox.hashes()) == {content_hash(photo(seed)) for seed in (11, 12, 13)}  # bounded


def test_nearly_the_same_is_for_every_encoder() -> None:
    near = [np.cos(0.1), np.sin(0.1)]
    far = [np.cos(0.5), np.sin(0.5)]
    assert np.cos(0.1) > ALIKE > np.cos(0.5)
    one, other = np.array([[1, 0], near]), np.array([[1, 0], far])
    assert distinct({"a": one, "b": one}) == [0]
    assert distinct({"a": one, "b": other}) == [0, 1]
    assert distinct({"a": one, "b": one}, first=1) == []
    assert distinct({}) == []


def test_old_images_go(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    [one] = clf._store.inbox.read(vectors=True)
    old = InboxImage(hash="old", source="", added=NOW - timedelta(days=31), vectors=one.vectors)
    clf._store.inbox.put([old])
    assert held(clf) == {digest}  # expired
    clf.keep(photo(2))
    assert {one.hash for one in clf._store.inbox.read()} == {
        digest,
        content_hash(photo(2)),
    }  # deleted by the next write


def test_writers_at_once_leave_no_more_than_may_wait() -> None:
    deployment = LocalDeployment()
    stores = [deployment.open() for _ in range(4)]
    settings = load_settings(store="http://localhost", inbox_size=5)
    directions = np.eye(16, dtype=np.float32)

    def work(number: int) -> None:
        keeper = Keeper(stores[number], settings)
        for i in range(12):
            vectors = {"clip": directions[(i + number) % 12], "dino": directions[0, :8]}
            keeper.keep([InboxImage(hash=f"{number}-{i}", source="", added=datetime.now(UTC), vectors=vectors)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = stores[0].inbox.read(vectors=True)
    assert len(left) <= 5
    assert len(distinct({"clip": np.stack([image.vectors["clip"] for image in left])})) == len(left)
    deployment.close()


def test_an_image_that_another_process_keeps_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the inbox was read for the surplus, and before the surplus is deleted."""
    deployment = LocalDeployment()
    store, other = deployment.open(), deployment.open()
    directions = np.eye(16, dtype=np.float32)
    first, second = (
        InboxImage(hash=name, source="", added=datetime.now(UTC), vectors={"clip": row, "dino": row[:8]})
        for name, row in zip(["first", "second"], directions, strict=False)
    )
    read, put = store.inbox.read, store.inbox.put

    def read_then_other(*args: Any, **options: Any) -> list[InboxImage]:
        found = read(*args, **options)
        if found:
            other.inbox.put([second])
        return found

    def put_then_watch(images: Sequence[InboxImage]) -> None:
        put(images)
        monkeypatch.setattr(store.inbox, "read", read_then_other)

    monkeypatch.setattr(store.inbox, "put", put_then_watch)
    assert Keeper(store, load_settings(store="http://localhost")).keep([first]) == {"first"}
    assert {image.hash for image in other.inbox.read()} == {"first", "second"}
    deployment.close()


# Streams


def test_a_stream_keeps_nothing_by_default(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing of the inbox is needed")

    monkeypatch.setattr("zsvec.ingest.embedding.small_copy", refuse)
    monkeypatch.setattr("zsvec.inputs.images._digest_of", refuse)
    monkeypatch.setattr("zsvec.store.collections.inbox.InboxCollection.read", refuse)
    with clf.classify_stream(photos(1, 2)) as stream:
        answers = list(stream)
    assert [one.hash for one in answers] == [None, None]
    assert not clf._store._backend.exists(clf._store.inbox.name)


def test_a_stream_keeps_all(clf: Classifier) -> None:
    images: list[Any] = [*photos(1, 2), coloured("red", 0), b"no image", photo(3), photo(1)]
    with clf.classify_stream(images, keep="all") as stream:
        answers = list(stream)
    assert [one.hash is None for one in answers] == [False, False, False, True, False, False]
    assert held(clf) == {content_hash(photo(seed)) for seed in (1, 2, 3)}  # no reference, and none twice
    assert all(clf.image(digest) for digest in held(clf))


def test_a_stream_keeps_uncertain_images(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prediction, "uncertainty", property(lambda prediction: prediction.source == "b"))
    files = [encode(photo(seed)) for seed in (1, 2)]
    Path("a").write_bytes(files[0])
    Path("b").write_bytes(files[1])
    with clf.classify_stream(["a", "b"], keep="uncertain", top_k=1) as stream:
        a, b = stream
    assert len(a.ranking) == 1
    assert held(clf) == {b.hash}
    [one] = clf._store.inbox.read()
    assert one.why == "uncertain"


def test_the_setting_keeps_in_streams_and_lists_alone() -> None:
    with zsvec.open(":memory:", encoders=two_encoders(), keep="all") as clf:
        fill(clf)
        clf.classify(photo(1))
        assert len(clf.inbox) == 0
        clf.classify([photo(2)])
        with clf.classify_stream([photo(3)], keep="none") as stream:
            list(stream)
        assert held(clf) == {content_hash(photo(2))}

        async def answers() -> None:
            async with clf.aclassify_stream([photo(4)]) as found:
                assert [one.hash async for one in found] == [content_hash(photo(4))]

        asyncio.run(answers())
        assert held(clf) == {content_hash(photo(2)), content_hash(photo(4))}
        streams: list[Any] = [clf.classify_stream, clf.aclassify_stream]
        for stream in streams:
            with pytest.raises(InvalidInputError, match=r"keep must be 'none', 'uncertain' or 'all'. Got 'some'"):
                stream([photo(1)], keep="some")


def test_a_stream_goes_on_while_the_inbox_cannot_be_written(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailableError("the server is away")

    monkeypatch.setattr("zsvec.store.collections.inbox.InboxCollection.put", away)
    with caplog.at_level(logging.WARNING), clf.classify_stream(photos(*range(6)), batch_size=1, keep="all") as stream:
        assert [answered.error for answered in stream] == [None] * 6
    assert sum("not kept for labelling: the server is away" in one.message for one in caplog.records) == 1


def test_a_stream_does_not_wait_for_the_inbox(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that wait to be written are bounded."""
    going, largest = threading.Event(), []
    real = Keeper.keep

    def slow(keeper: Keeper, images: Any) -> set[str]:
        largest.append(len(images))
        assert going.wait(60)
        return real(keeper, images)

    monkeypatch.setattr(Keeper, "keep", slow)
    with clf.classify_stream(photos(*range(100, 140)), batch_size=1, keep="all") as stream:
        assert len(list(stream)) == 40  # while nothing is written
        going.set()
    assert 1 <= len(clf.inbox) <= retention._MAX_WAITING_BATCHES + 1


# Feedback


def test_a_correction_moves_the_image(clf: Classifier) -> None:
    wrong = coloured("red", 7)
    assert clf.classify(wrong).nearest == "red"
    category = clf.correct(wrong, "green")
    digest = content_hash(wrong)
    [reference] = [one for one in clf.references.of("green") if one.hash == digest]
    assert (reference.by, reference.source) == ("Ann", "image")
    assert reference.added
    assert category.references["dino:image"] == 4
    assert clf.classify(wrong).experts["dino:image"].neighbors[0].category == "green"

    before = encoded(clf)
    clf.correct(wrong, "blue")  # moved
    assert clf._store.holders({digest}) == {digest: {"blue"}}
    assert clf.correct(wrong, "blue").version == clf.category("blue").version
    clf.correct(wrong, "new")
    assert clf.category("new").texts == ()
    assert encoded(clf) == before
    with pytest.raises(ConflictError, match="would have no reference"):
        clf.correct(wrong, "red")


def test_an_image_of_the_inbox_is_corrected_without_an_encoder(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    before = encoded(clf)
    clf.correct(photo(1), "red")
    assert (encoded(clf), len(clf.inbox)) == (before, 0)
    assert clf._store.holders({digest}) == {digest: {"red"}}


def test_a_prediction_stands_for_its_image(clf: Classifier) -> None:
    [path] = write_photos(Path(), [1])
    answered = clf.classify(path)
    assert answered.hash == content_hash(path)
    assert clf.keep(answered) == answered.hash
    path.unlink()
    assert clf.keep(answered) == answered.hash  # still in the inbox
    clf.correct(answered, "red")  # by the image of the inbox
    clf.correct(answered, "green")  # by the reference
    assert answered.hash
    assert clf._store.holders({answered.hash}) == {answered.hash: {"green"}}


def predicted(clf: Classifier, path: Path, how: str) -> Prediction:
    """The prediction of a file that is classified beside another."""
    others = write_photos(Path("others"), [90, 91])
    if how == "list":
        return clf.classify([others[0], path, others[1]])[1]
    with path.open("rb") as file:
        image: Any = file if how == "file" else path.read_bytes()
        with clf.classify_stream([image]) as stream:
            (answered,) = stream
    return answered


@pytest.mark.parametrize("how", ["list", "file", "bytes"])
def test_each_prediction_of_an_encoded_image_has_its_hash(clf: Classifier, how: str) -> None:
    [path] = write_photos(Path(), [1])
    answered = predicted(clf, path, how)
    assert answered.hash == content_hash(path)
    before = encoded(clf)
    if how == "bytes":
        with pytest.raises(ImageError, match="give the image itself"):
            clf.correct(answered, "red")
        clf.correct(path.read_bytes(), "red")
    else:
        clf.correct(answered, "red")
    assert clf._store.holders({content_hash(path)}) == {content_hash(path): {"red"}}
    assert encoded(clf) == before


def form(kind: str) -> Any:
    """An image as a path, or as pixels."""
    [path] = write_photos(Path(), [1])
    forms: dict[str, Callable[[], Any]] = {
        "path": lambda: path,
        "array": lambda: np.asarray(photo(1)),
        "PIL": lambda: photo(1),
        "region": lambda: Region(path, (0, 0, *photo(1).size)),
    }
    return forms[kind]()


FORMS = ("path", "array", "PIL", "region")


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("how", ["keep", "correct", "add"])
def test_an_image_is_not_embedded_again_after_its_classification(clf: Classifier, how: str, kind: str) -> None:
    image = form(kind)
    answered = clf.classify([image, photo(2)])[0] if how == "correct" else clf.classify(image)
    before = encoded(clf)
    if how == "keep":
        clf.keep(image)
    elif how == "correct":
        clf.correct(image, "red")
    else:
        clf.add_category("red", images=[image])
    assert encoded(clf) == before
    rows = {r.encoder: r.vector for r in clf._store.stored("red") if r.hash == answered.hash}
    if how == "keep":
        [one] = clf._store.inbox.read(vectors=True)
        rows = dict(one.vectors)
    for encoder in clf.encoders:
        np.testing.assert_allclose(rows[encoder.name], encoder.encode_images([photo(1)])[0], atol=1e-6)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("how", ["add", "correct", "keep"])
def test_an_image_that_waits_is_not_embedded_again(kind: str, how: str) -> None:
    with open_classifier(Path("store"), *two_encoders()) as clf:
        digest = kept(fill(clf), form(kind))
        [waiting] = clf._store.inbox.read(vectors=True)
    with open_classifier(Path("store"), *two_encoders()) as clf:  # without the vectors of classified images
        image = form(kind)
        if how == "keep":
            assert clf.keep(image) == digest
        else:
            clf.add_category("red", images=[image]) if how == "add" else clf.correct(image, "red")
            rows = {r.encoder: r.vector for r in clf._store.stored("red") if r.hash == digest}
            for name, vector in waiting.vectors.items():
                np.testing.assert_allclose(rows[name], vector, atol=1e-6)
        assert encoded(clf) == 0


def test_a_reference_is_not_embedded_to_be_kept(clf: Classifier) -> None:
    before = encoded(clf)
    assert clf.keep(coloured("red", 0)) is None
    assert encoded(clf) == before


def test_the_vectors_of_classified_images_are_bounded(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "RECENT_IMAGES", 3)
    paths = write_photos(Path(), range(6))
    answers = clf.classify(paths[:5])
    clf.classify(paths[2])  # a recent one again
    clf.classify(paths[5])
    assert len(clf._embedder.recent._images) == 3
    before = encoded(clf)
    for kept in (2, 4):
        clf.correct(answers[kept], "red")
    assert encoded(clf) == before
    clf.correct(answers[3], "red")
    assert encoded(clf) == before + 2


def test_the_vectors_of_a_forgotten_image_are_gone(clf: Classifier) -> None:
    [path] = write_photos(Path(), [1])
    answered = clf.classify(path)
    clf.correct(answered, "red")
    assert answered.hash
    clf.references.forget(answered.hash)
    before = encoded(clf)
    clf.correct(answered, "red")
    assert encoded(clf) == before + 2


@pytest.mark.parametrize("use", ["keep", "correct"])
def test_a_file_that_changes_after_the_check_is_not_taken(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    [path] = write_photos(Path(), [1])
    answered = clf.classify(path)

    def changed(image: Any, **limits: Any) -> str:
        digest = content_hash(image, **limits)
        path.write_bytes(encode(photo(2)))
        return digest

    monkeypatch.setattr("zsvec.curation.inbox.content_hash", changed)
    clf.keep(answered) if use == "keep" else clf.correct(answered, "red")
    assert answered.hash
    if use == "keep":
        assert held(clf) == {answered.hash}
    else:
        assert clf._store.holders({answered.hash, content_hash(path)}) == {answered.hash: {"red"}}


def test_a_prediction_stands_for_no_other_image(clf: Classifier) -> None:
    [path] = write_photos(Path(), [1])
    answered = clf.classify(path)
    path.write_bytes(encode(photo(2)))
    for use in (clf.keep, lambda one: clf.correct(one, "red")):
        with pytest.raises(ImageError, match="has changed since"):
            use(answered)  # type: ignore[operator]
    with Image.open(path) as opened:  # has the hash of its pixels, and the name of the file
        pixels = clf.classify(opened)
    with pytest.raises(ImageError, match=r"was given as pixels\. Give the image itself"):
        clf.correct(pixels, "red")
    path.unlink()
    with pytest.raises(ImageError):
        clf.keep(answered)
    with pytest.raises(ImageError, match="give the image itself"):
        clf.correct(clf.classify(photo(1)), "red")
    vectors = {encoder.name: encoder.encode_images([photo(1)]) for encoder in clf.encoders}
    with pytest.raises(InvalidInputError, match="cannot stand for its image, because it has no hash"):
        clf.correct(clf.classify_vectors(vectors)[0], "red")
    assert clf.category("red").references["dino:image"] == 3


def test_a_stream_of_bytes_is_read_once(clf: Classifier) -> None:
    class Once:
        """A file that cannot seek."""

        def __init__(self) -> None:
            self._left = [encode(photo(1)), b""]

        def read(self, _: int = -1) -> bytes:
            return self._left.pop(0) if self._left else b""

    clf.correct(Once(), "red")  # type: ignore[arg-type]
    assert clf.category("red").references["dino:image"] == 4


# Trust


def test_an_untrusted_file_keeps_and_deletes_nothing() -> None:
    for line in ('keep = "all"', 'keep = "uncertain"', "inbox_size = 1", "inbox_days = 0.001", 'keep = "none"'):
        Path("zsvec.toml").write_text(line)
        with pytest.raises(InvalidInputError, match=r"which only a file that you trust may"):
            load_settings()
        trusted_settings(line)
        load_settings()


def test_forged_vectors_do_not_count(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    [one] = clf._store.inbox.read(vectors=True)
    bad = {name: np.full_like(vector, np.nan) for name, vector in one.vectors.items()}
    forged = content_hash(coloured("red", 7))
    clf._store.inbox.put([InboxImage(hash=forged, source="\x1b[2J", added=NOW, vectors=bad)])
    assert held(clf) == {digest}
    clf.add_category("red", images=[coloured("red", 7)])
    assert all(np.isfinite(one.vector).all() for one in clf._store.stored("red"))
    clf.keep(photo(2))
    assert held(clf) == {digest, content_hash(photo(2))}
    assert len(clf._store.inbox.read()) == 2


# Names of groups


class Things:
    """An encoder that sees in each image, and reads in each text, one of a few things."""

    def __init__(self, name: str, things: list[str]) -> None:
        self.name, self.modalities, self._things = name, ("text", "image"), things

    def encode_texts(self, texts: list[str]) -> Any:
        found = [self._things.index(text) if text in self._things else len(self._things) for text in texts]
        return np.eye(len(self._things) + 1, dtype=np.float32)[found]


def test_groups_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    vectors = np.eye(8, dtype=np.float32)
    with pytest.raises(MissingExtraError, match=r'pip install "zsvec\[groups\]"'):
        _similar({"one": vectors})


def test_groups_are_named_by_the_nearest_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("red panda, lesser panda", "lion", "tench, Tinca tinca", "hen")
    monkeypatch.setattr("zsvec.curation.inbox.common_words", lambda: words)
    encoders = [Things("one", list(words)), Things("other", ["lion", "red panda, lesser panda"])]
    inbox = Inbox(None, None, None, [], lambda: encoders)  # type: ignore[arg-type, return-value]
    vectors = {"one": np.eye(5, dtype=np.float32)[[0, 0, 1]], "other": np.eye(3, dtype=np.float32)[[1, 1, 0]]}
    first, second = inbox._names(vectors, [[0, 1], [2]])
    assert (first[0], second[0], len(first)) == ("red panda", "lion", 3)
    monkeypatch.setattr("zsvec.curation.inbox.common_words", lambda: ())
    assert inbox._names(vectors, [[0, 1]]) == [()]


def test_the_words_are_those_of_imagenet() -> None:
    words = common_words()
    assert len(words) == 1000
    assert "tench, Tinca tinca" in words


# Undo


REMOVALS: dict[str, Callable[[Classifier, str], object]] = {
    "label": lambda clf, digest: clf.inbox.label(digest, "panda"),
    "correct": lambda clf, digest: clf.correct(photo(1), "panda"),
    "dismiss": lambda clf, digest: clf.inbox.dismiss(digest),
}


def states(clf: Classifier) -> Mapping[str, str]:
    found = {image.hash: image.state for image in clf._store.inbox.read(labelled=True)}
    assert {digest for digest, state in found.items() if state == "waiting"} == set(clf.inbox.hashes())
    return found


@pytest.mark.parametrize("how", REMOVALS)
def test_an_undo_puts_the_image_back_and_a_redo_removes_it_again(clf: Classifier, how: str) -> None:
    first, second = kept(clf, photo(1)), kept(clf, photo(2))
    [before] = [image for image in clf.inbox if image.hash == first]
    by_encoders = encoded(clf)
    REMOVALS[how](clf, first)
    removal = next(iter(clf.history))
    assert (removal.what, removal.by, removal.categories) == (how, "Ann", () if how == "dismiss" else ("panda",))
    for _ in range(2):
        assert held(clf) == {second}
        assert ("panda" in {category.name for category in clf.categories()}) == (how != "dismiss")
        with clf.history.one_change("undo") as undo:
            assert clf.history.undo().id == removal.id
        assert {change.id: change.undone for change in clf.history}[removal.id]
        assert held(clf) == {first, second}
        [back] = [image for image in clf.inbox if image.hash == first]
        assert replace(back, prediction=None, urgency=0) == replace(before, prediction=None, urgency=0)
        assert back.prediction is not None
        assert before.prediction is not None
        assert (back.prediction.nearest, back.prediction.unknown) == (
            before.prediction.nearest,
            before.prediction.unknown,
        )
        # The backgrounds are those that were learned last: one image more or less does not change them.
        assert dict(back.prediction.ranking) == pytest.approx(dict(before.prediction.ranking), abs=0.01)
        assert clf.image(first) is not None
        assert "panda" not in {category.name for category in clf.categories()}
        assert clf.history.undo(change=undo).what == "undo"
        assert not {change.id: change.undone for change in clf.history}[removal.id]
    assert held(clf) == {second}
    assert encoded(clf) == by_encoders
    if how == "dismiss":
        assert clf.keep(nearly(1)) is None


def test_removals_of_one_image_are_undone_one_after_the_other(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    clf.inbox.dismiss(digest)
    clf.inbox.label(digest, "panda")
    clf.inbox.label(digest, "panda")  # changes nothing
    assert [change.what for change in clf.history] == ["label", "dismiss", "add"]
    assert states(clf) == {digest: "labelled"}
    assert clf.history.undo().what == "label"
    assert states(clf) == {digest: "dismissed"}
    assert clf.history.undo().what == "dismiss"
    assert states(clf) == {digest: "waiting"}
    assert clf.history.undo().what == "add"


def test_an_undo_of_one_category_puts_only_its_images_back(clf: Classifier) -> None:
    first, second = kept(clf, photo(1)), kept(clf, photo(2))
    with clf.history.one_change("sort"):
        clf.inbox.label(first, "panda")
        clf.inbox.label(second, "lynx")
    clf.history.undo("panda")
    assert states(clf) == {first: "waiting", second: "labelled"}
    assert clf.history.undo().categories == ("lynx",)
    assert states(clf) == {first: "waiting", second: "waiting"}
    assert {change.what: change.undone for change in clf.history}["sort"]


def test_the_removal_of_another_author_takes_its_id(clf: Classifier) -> None:
    digest = kept(clf, photo(1))
    with clf.history.acting("Bob"):
        clf.inbox.dismiss(digest)
    with pytest.raises(InvalidInputError, match="'Bob'"):
        clf.history.undo()
    assert states(clf) == {digest: "dismissed"}
    clf.history.undo(change=next(iter(clf.history)).id)
    assert states(clf) == {digest: "waiting"}


def test_a_forgotten_image_is_not_put_back(clf: Classifier) -> None:
    first, second = kept(clf, photo(1)), kept(clf, photo(2))
    clf.inbox.dismiss([first, second])
    clf.references.forget(first)  # no category has it
    assert [(change.what, change.final) for change in clf.history][:2] == [("forget", True), ("dismiss", False)]
    with pytest.raises(InvalidInputError):
        clf.history.undo()
    clf.history.undo(change=[*clf.history][1].id)
    assert states(clf) == {second: "waiting"}


def test_without_a_history_nothing_is_kept_for_an_undo() -> None:
    with zsvec.open(":memory:", encoders=two_encoders(), history=0) as clf:
        fill(clf)
        first, second = kept(clf, photo(1)), kept(clf, photo(2))
        clf.inbox.label(first, "panda")
        clf.inbox.dismiss(second)
        assert states(clf) == {second: "dismissed"}
        assert clf.inbox.small(second) is None
        assert list(clf.history) == []


@pytest.mark.parametrize("by", ["gc", "keep"])
def test_what_no_undo_needs_any_more_is_deleted(clf: Classifier, by: str) -> None:
    first, second = kept(clf, photo(1)), kept(clf, photo(2))
    clf.inbox.label(first, "panda")
    clf.inbox.dismiss(second)
    clf._store.gc()
    assert states(clf) == {first: "labelled", second: "dismissed"}
    assert clf.inbox.small(second) is not None
    if by == "gc":
        clf._store.gc(0)
    else:
        clf._store._collector.collect(0)
        kept(clf, photo(3))
    assert first not in states(clf)
    assert states(clf)[second] == "dismissed"
    assert clf.inbox.small(second) is None
    with pytest.raises(InvalidInputError):
        clf.history.undo()


def test_labelled_images_take_no_room_of_waiting_ones() -> None:
    with zsvec.open(":memory:", encoders=two_encoders(), inbox_size=2) as clf:
        fill(clf)
        for seed in range(1, 6):
            clf.inbox.label(kept(clf, photo(seed)), "panda")
        waiting = {kept(clf, photo(seed)) for seed in (7, 8)}
        assert held(clf) == waiting
        assert sorted(states(clf).values()) == ["labelled"] * 2 + ["waiting"] * 2


@pytest.mark.parametrize("how", ["label", "dismiss"])
def test_an_undo_that_is_killed_loses_no_image_and_is_finished(how: str) -> None:
    finished = 0
    for survived in itertools.count():
        backend = MemoryBackend()

        def opened(inner: Any, backend: MemoryBackend = backend) -> Store:
            return Store(inner or backend, "zsvec", history=86_400.0, by="Ann")

        with classifier_over(opened(None)) as clf:
            fill(clf)
            digest = kept(clf, photo(1))
            REMOVALS[how](clf, digest)
            dying = Hooked(backend)
            dying.dies_at = survived
            died = False
            try:
                opened(dying).undo()
            except Crash:
                died = True
            store = opened(None)
            assert how == "dismiss" or digest in {*clf.inbox.hashes(), *(key[2] for key in store.keys("panda"))}
            store.finish_interrupted()
            [change] = [change for change in store.changes() if change.what == how]
            waits = digest in clf.inbox.hashes()
            assert change.undone == waits
            if how == "label":
                assert waits != bool(store.keys("panda"))
            finished += died and waits
        if not died:
            break
    assert waits
    assert finished > 1
