"""Streams through a classifier: order, damage, changes meanwhile, early ends, statistics, memory."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import json
import signal
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec.ingest.embedding
from tests.cli.support import Result, cli, colours, filled, finish, hash_encoders, start  # noqa: F401
from tests.store.support import Deployment, EdgeDeployment, LocalDeployment
from tests.streams.test_stream import eventually, short_polls, threads, until, within  # noqa: F401
from tests.support import (  # noqa: F401
    REUSING,
    Reusing,
    classifier_over,
    coloured,
    encode,
    fast_folder,
    isolated,
    open_classifier,
    two_encoders,
)
from zsvec.classifier import Classifier
from zsvec.errors import EncoderError, ImageError, InvalidInputError, StoreError
from zsvec.store import Store
from zsvec.testing import HashEncoder
from zsvec.types import Prediction

COLOURS = ("red", "green", "blue")
DEADLINE = 60.0


@pytest.fixture(autouse=True)
def working_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders work ahead of the search, as on a GPU; `test_classifier.py` streams as on a CPU."""
    monkeypatch.setattr(zsvec.ingest.embedding, "_work_ahead", lambda encoders: True)


PATIENT: dict[str, Any] = {"max_wait_ms": 1000 * DEADLINE}  # batches are full, however busy the machine is


def fill(classifier: Classifier) -> Classifier:
    for colour in COLOURS:
        classifier.add_category(colour, texts=[f"all {colour}"], images=[coloured(colour, seed) for seed in range(3)])
    return classifier


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    """For tests that write nothing."""
    with fast_folder() as folder, open_classifier(folder) as opened:
        yield fill(opened)


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert eventually(lambda: not threads())


class Slow(io.BytesIO):
    """A file that takes some time to be read."""

    def __init__(self, data: bytes, name: str, seconds: float) -> None:
        super().__init__(data)
        self.name = name
        self.seconds = seconds

    def read(self, *args: Any) -> bytes:
        time.sleep(self.seconds)
        return super().read(*args)


def pictures(n: int) -> list[Image.Image]:
    """Pictures of all colours that are no references."""
    return [coloured(COLOURS[i % 3], 100 + i) for i in range(n)]


def endless(colour: str = "red") -> Iterator[Image.Image]:
    return itertools.repeat(coloured(colour, 100))


def stream_of(clf: Classifier, images: Iterable[Any], **options: Any) -> Any:
    """A generator, which can be closed."""
    return clf.classify_stream(images, **options)


def close_in_time(clf: Classifier) -> None:
    within(clf.close)


# ---- order and damage


def test_answers_come_in_the_order_of_the_images_whichever_is_decoded_first(clf: Classifier) -> None:
    kinds = pictures(60)
    expected = [(p.label, p.probability) for p in clf.classify(kinds)]
    data = [encode(image) for image in kinds]
    seconds = np.random.default_rng(0).exponential(0.0005, 1000)
    images = (Slow(data[i % 60], f"image {i}", seconds[i]) for i in range(1000))
    stream = clf.classify_stream(images, top_k=2)
    found = list(stream)
    assert [p.source for p in found] == [f"image {i}" for i in range(1000)]
    assert [p.label for p in found] == [expected[i % 60][0] for i in range(1000)]
    assert [p.probability for p in found] == pytest.approx([expected[i % 60][1] for i in range(1000)], abs=1e-4)
    assert (stream.stats.images, stream.stats.failed) == (1000, 0)


def test_one_corrupt_image_of_a_hundred_costs_one_answer_of_a_hundred(clf: Classifier) -> None:
    rng = np.random.default_rng(1)
    kinds = [encode(image) for image in pictures(30)]
    expected = [p.label for p in clf.classify([io.BytesIO(data) for data in kinds])]
    bad = set(rng.choice(1000, 10, replace=False).tolist())

    def damaged(data: bytes, i: int) -> bytes:
        return (data[: len(data) // 2], b"", b"no image", data[:8] + rng.bytes(len(data)))[i % 4]

    def images() -> Iterator[Slow]:
        for i in range(1000):
            data = kinds[i % 30]
            yield Slow(damaged(data, i) if i in bad else data, f"image {i}", 0)

    stream = clf.classify_stream(images(), batch_size=16)
    found = list(stream)
    assert [p.source for p in found] == [f"image {i}" for i in range(1000)]
    assert {i for i, p in enumerate(found) if p.error is not None} == bad
    for i, prediction in enumerate(found):
        if i in bad:
            assert prediction == Prediction(source=f"image {i}", error=prediction.error)
            assert f"cannot read image {i}: " in (prediction.error or "")
        else:
            assert prediction.label == expected[i % 30]
    assert (stream.stats.images, stream.stats.failed) == (1000, 10)


def test_an_unreadable_image_ends_a_stream_that_shall_raise(clf: Classifier) -> None:
    for at in (0, 5, 8):
        images: list[Any] = [*pictures(at), b"", *pictures(20)]
        stream = stream_of(clf, images, batch_size=4, errors="raise")
        for _ in range(at):
            assert next(stream).label in COLOURS
        with pytest.raises(ImageError, match="cannot read bytes: it is empty"):
            next(stream)
        assert next(stream, None) is None
        assert eventually(lambda: not threads())


def test_an_encoder_that_fails(folder: Path) -> None:
    class Failing(HashEncoder):
        def embed(self, batch: Any, modality: Any) -> Any:
            if modality == "image" and any(image.size == (13, 13) for image in batch):
                raise EncoderError("out of memory")
            return super().embed(batch, modality)

    with open_classifier(folder, Failing("clip", dim=32)) as clf:
        fill(clf)
        good = pictures(8)
        got = []
        with pytest.raises(EncoderError, match="out of memory"):
            for prediction in clf.classify_stream([*good, Image.new("RGB", (13, 13)), *good], batch_size=4, **PATIENT):
                got.append(prediction.label)  # noqa: PERF401 - predictions before the error count
        assert got == [p.label for p in clf.classify(good)]
        assert eventually(lambda: not threads())


def test_a_source_may_use_its_object_again(clf: Classifier) -> None:
    images = pictures(24)
    expected = [clf.classify(np.asarray(image)).label for image in images]
    assert set(expected) == set(COLOURS)
    for kind in REUSING:
        found = list(clf.classify_stream(getattr(Reusing(images), kind)(), batch_size=8))
        assert [(p.label, p.error) for p in found] == [(label, None) for label in expected], kind


def test_one_image_of_a_file_may_be_given_many_times(clf: Classifier) -> None:
    image = Image.open(io.BytesIO(encode(coloured("red", 100).resize((640, 480)), "JPEG")))
    assert {(p.label, p.error) for p in clf.classify([image] * 16, errors="report")} == {("red", None)}


# ---- concurrent commits


@pytest.fixture(params=["the same process", "another process", "a server"])
def two_handles(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Classifier, Classifier]]:
    """A reader and a writer of one store: the same classifier, or two."""
    if request.param == "a server":
        yield handles_of(request.getfixturevalue("server"))
        return
    deployment = EdgeDeployment(folder / "store") if request.param == "the same process" else LocalDeployment()
    yield handles_of(deployment)
    deployment.close()


def handles_of(deployment: Deployment) -> tuple[Classifier, Classifier]:
    def opened() -> Classifier:
        return classifier_over(Store(deployment.backend(), deployment.namespace))

    reader = opened()
    return fill(reader), opened() if deployment.shared else reader


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
def test_commits_of_others_are_in_the_very_next_batch(two_handles: tuple[Classifier, Classifier]) -> None:
    reader, writer = two_handles
    stream = stream_of(reader, endless("white"), batch_size=2, **PATIENT)
    for added in (False, True, False, True):
        if added:
            writer.add_category("white", images=[coloured("white", 1)])
        elif "white" in {category.name for category in writer.categories()}:
            writer.remove_category("white")
        batch = [next(stream), next(stream)]
        assert [("white" in dict(prediction.ranking)) for prediction in batch] == [added] * 2
        assert {prediction.label == "white" for prediction in batch} == {added}
        assert eventually(
            lambda: stream.stats.waiting["encode"] == 1
        )  # the next is embedded already, before the change
    stream.close()


def test_all_that_others_write_while_a_stream_runs(folder: Path) -> None:
    with open_classifier(folder) as clf:
        fill(clf)
        over = threading.Event()

        def write() -> int:
            for i in range(8):
                clf.add_category(f"other {i}", images=[coloured("white", i)])
            clf.remove_category("other 0")
            over.set()
            return 8

        def images() -> Iterator[Image.Image]:
            yield from itertools.takewhile(lambda _: not over.is_set(), endless())
            yield coloured("red", 100)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            sizes = [len(p.ranking) for p in clf.classify_stream(images(), batch_size=4, top_k=20)]
            assert writing.result() == 8
        assert sizes[-1] == 3 + 7
        most = len(sizes) - sizes[::-1].index(max(sizes))
        assert sizes[:most] == sorted(sizes[:most])  # each comes to those before
        assert set(sizes[most:]) <= {3 + 7}  # and one goes in the end


# ---- early ends


@pytest.mark.parametrize("how", ["close", "break", "raise", "forget"])
def test_a_consumer_that_stops_early(folder: Path, how: str) -> None:
    clf = fill(open_classifier(folder))

    def consume() -> None:
        for taken, _ in enumerate(clf.classify_stream(endless(), batch_size=2)):
            if taken == 5:
                if how == "raise":
                    raise KeyError("the consumer")
                break

    if how == "close":
        stream = stream_of(clf, endless(), batch_size=2, **PATIENT)
        next(stream)
        assert threads()
        within(stream.close)
        after = stream.stats
        time.sleep(0.02)
        assert (stream.stats, after.images) == (after, 2)
    elif how == "forget":
        next(stream_of(clf, endless(), batch_size=2))
    else:
        with pytest.raises(KeyError) if how == "raise" else nullcontext():
            consume()
    assert eventually(lambda: not threads())
    close_in_time(clf)
    with open_classifier(folder) as again:
        assert again.classify(coloured("red", 100)).label == "red"


def test_a_classifier_is_closed_while_a_stream_is_open(folder: Path) -> None:
    clf = fill(open_classifier(folder))
    stream = stream_of(clf, endless(), batch_size=2)
    next(stream)
    close_in_time(clf)
    with pytest.raises(StoreError):
        within(lambda: list(stream))
    assert eventually(lambda: not threads())


def test_closing_waits_neither_for_a_source_nor_for_a_batch_to_be_full(clf: Classifier) -> None:
    release = threading.Event()

    def images() -> Iterator[Image.Image]:
        yield from pictures(5)  # a batch, and one that waits for an hour to be full
        release.wait(3 * DEADLINE)

    stream = stream_of(clf, images(), batch_size=4, max_wait_ms=3_600_000)
    assert [within(lambda: next(stream)).label for _ in range(4)] == ["red", "green", "blue", "red"]
    within(stream.close)
    assert eventually(lambda: set(threads()) <= {"zsvec-feed"})
    release.set()


def test_embeddings_that_are_not_wanted_any_more(clf: Classifier) -> None:
    stream: Any = clf.embed_stream(endless(), batch_size=2)
    assert set(next(stream).vectors) == {"clip", "dino"}
    within(stream.close)
    assert eventually(lambda: not threads())


def test_a_stream_that_is_never_begun(clf: Classifier) -> None:
    read = []
    stream = stream_of(clf, map(read.append, range(3)))
    stream.close()
    assert (read, threads()) == ([], [])


# ---- statistics


def test_statistics_while_it_runs_and_afterwards(clf: Classifier) -> None:
    images: list[Any] = [*pictures(20), b"", *pictures(20)]
    stream = stream_of(clf, images, batch_size=4, **PATIENT)
    next(stream)
    running = stream.stats
    assert (running.images, running.failed) == (4, 0)
    assert running.seconds > 0
    assert set(running.busy) == {"decode", "preprocess", "encode", "search", "fuse"}
    assert all(seconds > 0 for seconds in running.busy.values())
    assert eventually(lambda: stream.stats.waiting == {"encode": 1, "decode": 8})
    assert len(list(stream)) == 40
    after = stream.stats
    assert (after.images, after.failed) == (41, 1)
    assert after.waiting == {"encode": 0, "decode": 0}
    assert after.seconds > running.seconds
    assert after.rate == 41 / after.seconds
    assert all(after.busy[stage] >= running.busy[stage] for stage in running.busy)
    time.sleep(0.02)
    assert stream.stats == after


def test_each_stream_has_its_own_statistics_and_the_classifier_their_sum(clf: Classifier) -> None:
    before = clf.stats
    assert before.store == {"second_stamps": 0, "unknown_outcomes": 0, "healed_records": 0}
    first = stream_of(clf, pictures(8), batch_size=2, **PATIENT)
    second = stream_of(clf, pictures(6), batch_size=3, **PATIENT)
    next(second)
    assert (first.stats.images, second.stats.images, clf.stats.images) == (0, 3, before.images + 3)
    next(first)
    assert (first.stats.images, second.stats.images, clf.stats.images) == (2, 3, before.images + 5)
    assert len(list(second)) == 5
    assert len(list(first)) == 7
    assert (first.stats.images, second.stats.images) == (8, 6)
    assert clf.stats.images == before.images + 14
    assert clf.stats.failed == before.failed
    assert clf.stats.seconds == pytest.approx(before.seconds + first.stats.seconds + second.stats.seconds)
    assert clf.stats.busy["encode"] >= first.stats.busy["encode"] + second.stats.busy["encode"]


def test_a_single_image_needs_no_thread_and_is_counted(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = clf.classify([coloured("red", 100)])
    before = clf.stats.images

    def refuse(thread: threading.Thread) -> None:
        raise AssertionError(f"{thread} was started")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert [clf.classify(coloured("red", 100))] == expected
    assert clf.stats.images == before + 1


def test_a_classifier_that_has_classified_nothing(folder: Path) -> None:
    with open_classifier(folder) as clf:
        time.sleep(0.01)
        assert (clf.stats.images, clf.stats.seconds, clf.stats.rate) == (0, 0, 0)
        with pytest.raises(StoreError, match="no category"):
            list(clf.classify_stream(endless()))
        time.sleep(0.01)
        assert (clf.stats.images, clf.stats.seconds, clf.stats.rate) == (0, 0, 0)


# ---- how long a batch waits


def test_waits_that_are_none(clf: Classifier) -> None:
    values: tuple[Any, ...] = (-1, -0.001, float("nan"), float("inf"), "50", [50], 1j, 10**400)
    for value, stream in itertools.product(values, (clf.classify_stream, clf.aclassify_stream)):
        with pytest.raises(InvalidInputError, match=r"max_wait_ms must be a number from 0 up\. Got "):
            stream(pictures(1), max_wait_ms=value)  # type: ignore[operator]


def test_waits(clf: Classifier) -> None:
    expected = [p.label for p in clf.classify(pictures(9))]
    values: tuple[Any, ...] = (None, 0, 0.5, 20, np.float32(3), 10**12, Fraction(20))
    for value in values:
        assert [p.label for p in clf.classify_stream(pictures(9), batch_size=4, max_wait_ms=value)] == expected


def test_a_batch_is_classified_when_it_has_waited_long_enough(clf: Classifier) -> None:
    go_on = threading.Event()

    def images() -> Iterator[Image.Image]:
        yield coloured("red", 100)
        assert go_on.wait(DEADLINE)
        yield coloured("blue", 100)

    start = time.monotonic()
    stream = stream_of(clf, images(), batch_size=100, max_wait_ms=200)
    assert within(lambda: next(stream)).label == "red"
    assert time.monotonic() - start >= 0.2
    go_on.set()
    assert [p.label for p in stream] == ["blue"]


# ---- several streams


def test_two_streams_by_turns(clf: Classifier) -> None:
    one, other = pictures(30), pictures(60)[30:]
    expected = zip(clf.classify(one), clf.classify(other), strict=True)
    together = zip(clf.classify_stream(one, batch_size=4), clf.classify_stream(other, batch_size=7), strict=True)
    assert [(a.label, b.label) for a, b in together] == [(a.label, b.label) for a, b in expected]


def test_streams_in_several_threads(clf: Classifier) -> None:
    images = {colour: [coloured(colour, 100 + i) for i in range(60)] for colour in COLOURS}
    expected = {colour: [p.label for p in clf.classify(group)] for colour, group in images.items()}

    def classify(colour: str) -> list[str | None]:
        return [p.label for p in clf.classify_stream(iter(images[colour]), batch_size=8)]

    with ThreadPoolExecutor(3) as pool:
        assert dict(zip(COLOURS, pool.map(classify, COLOURS), strict=True)) == expected


# ---- event loops


async def asynchronously(images: Iterable[Any]) -> AsyncIterator[Any]:
    for image in images:
        await asyncio.sleep(0)
        yield image


@pytest.mark.parametrize("source", [iter, asynchronously])
def test_the_same_answers_in_an_event_loop(clf: Classifier, source: Callable[[Iterable[Any]], Any]) -> None:
    images: list[Any] = [*pictures(10), b"", *pictures(9)]
    expected = list(clf.classify_stream(images, batch_size=4, top_k=2, **PATIENT))

    async def collect() -> list[Prediction]:
        async with clf.aclassify_stream(source(images), batch_size=4, top_k=2, **PATIENT) as stream:
            found = [prediction async for prediction in stream]
        assert (stream.stats.images, stream.stats.failed) == (20, 1)
        return found

    assert asyncio.run(collect()) == expected
    assert sum(p.error is not None for p in expected) == 1


def test_an_event_loop_gets_the_same_errors(clf: Classifier) -> None:
    async def collect(images: Any, **options: Any) -> list[Any]:
        return [prediction async for prediction in clf.aclassify_stream(images, **options)]

    with pytest.raises(ImageError, match="it is empty"):
        asyncio.run(collect(asynchronously([coloured("red", 1), b""]), errors="raise"))
    for options in ({"batch_size": 0}, {"top_k": 0}, {"errors": "ignore"}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(options))} must be"):
            clf.aclassify_stream(pictures(1), **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        clf.aclassify_stream("photo.jpg")


def test_an_event_loop_goes_on_meanwhile(clf: Classifier) -> None:
    release = threading.Event()

    async def main() -> None:
        async with aclosing(clf.aclassify_stream([Slow(encode(coloured("red", 100)), "slow", 0.1)])) as stream:
            waiting = asyncio.ensure_future(anext(stream))
            turns = 0
            while not waiting.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert (await waiting).label == "red"
            assert turns > 1
        release.set()

    asyncio.run(main())


@pytest.mark.parametrize("source", [endless, lambda: asynchronously(endless())])
def test_a_task_that_is_cancelled(folder: Path, source: Callable[[], Any]) -> None:
    clf = fill(open_classifier(folder))
    seen: list[str | None] = []

    async def consume() -> None:
        async for prediction in clf.aclassify_stream(source(), batch_size=2):
            seen.append(prediction.label)  # noqa: PERF401 - until it is cancelled

    async def main() -> None:
        task = asyncio.create_task(consume())
        assert await until(lambda: len(seen) > 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await until(lambda: not threads())

    asyncio.run(main())
    assert set(seen) == {"red"}
    close_in_time(clf)
    open_classifier(folder).close()


@pytest.mark.parametrize("source", [endless, lambda: asynchronously(endless())])
def test_a_stream_that_is_open_when_its_loop_ends(
    clf: Classifier, source: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    kept = []

    async def main() -> None:
        kept.append(clf.aclassify_stream(source(), batch_size=2))
        assert (await anext(kept[0])).label == "red"

    asyncio.run(main())
    assert eventually(lambda: not threads())
    assert caplog.records == []


# ---- memory


def test_an_endless_stream_takes_no_more_and_more_memory(clf: Classifier) -> None:
    rng = np.random.default_rng(2)

    def arrays(n: int) -> Iterator[np.ndarray]:
        return (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(n))

    stream = stream_of(clf, arrays(2000), batch_size=16)
    assert len(list(itertools.islice(stream, 200))) == 200  # caches fill, once
    peaks = []
    tracemalloc.start()
    try:
        for images in (300, 1500):
            gc.collect()
            tracemalloc.reset_peak()
            assert sum(1 for _ in itertools.islice(stream, images)) == images
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert next(stream, None) is None
    # Threads hold about five batches of 50 kB, and predictions. All images would be 5 MB.
    assert peaks[1] < peaks[0] + 1_000_000


# ---- large photographs


class Thumbnails:
    """A backbone that scales to 16 pixels, and records the sizes of images."""

    def __init__(self, side: int | None = 16) -> None:
        self.side = side
        self.sizes: list[tuple[int, int]] = []

    def preprocess(self, image: Image.Image) -> Image.Image:
        self.sizes.append(image.size)
        return image.resize((16, 16), Image.Resampling.BOX)

    def forward(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize(("other", "size"), [(16, (40, 32)), (30, (80, 64)), (None, (320, 256))])
def test_large_photographs_are_not_decoded_larger_than_encoders_need(
    folder: Path, other: int | None, size: tuple[int, int]
) -> None:
    backbones = [Thumbnails(), Thumbnails(other)]
    encoders = [HashEncoder(name, dim=16) for name in ("clip", "dino")]
    for encoder, backbone in zip(encoders, backbones, strict=True):
        encoder.backbone = backbone
    photos = {colour: encode(coloured(colour, 100).resize((320, 256)), "JPEG") for colour in COLOURS}
    with open_classifier(folder, *encoders) as clf:
        for colour in COLOURS:
            clf.add_category(colour, texts=[], images=[photos[colour]])
        assert [backbone.sizes for backbone in backbones] == [[size] * 3] * 2
        for colour in COLOURS:
            clf.add_category(colour, texts=[], images=[photos[colour]])  # known by the hash of the file
        assert [backbone.sizes for backbone in backbones] == [[size] * 3] * 2
        found = list(clf.classify_stream([*photos.values(), *map(io.BytesIO, photos.values())]))
        assert [prediction.label for prediction in found] == [*COLOURS] * 2
        assert len(list(clf.embed_stream(photos.values()))) == 3
        assert [backbone.sizes for backbone in backbones] == [[size] * 12] * 2
        clf.classify(Image.open(io.BytesIO(photos["red"])))
        assert backbones[0].sizes[-1] == (320, 256)


# ---- processes


@pytest.mark.usefixtures("hash_encoders")
def test_ctrl_c_while_it_is_busy(filled: Callable[..., Result]) -> None:  # noqa: F811
    Path("new").mkdir()
    for seed in range(20):
        Path(f"new/{seed}.png").write_bytes(encode(coloured("red", seed)))
    process = start("classify", "-", "--json", "--stats")
    assert process.stdin
    assert process.stdout
    pipe = process.stdin

    def feed() -> None:
        with suppress(BrokenPipeError):
            for i in itertools.count():
                pipe.write(f"new/{i % 20}.png\n".encode())
                pipe.flush()

    feeding = threading.Thread(target=feed)
    feeding.start()
    first = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGINT)
    rest = process.stdout.readlines()
    assert process.wait(DEADLINE) == 130
    assert process.stderr
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    feeding.join(DEADLINE)
    with suppress(BrokenPipeError):
        pipe.close()
    sources = [json.loads(line)["source"] for line in first + rest]
    assert sources == [f"new/{i % 20}.png" for i in range(len(sources))]
    stages = [line.split()[0] for line in err.splitlines() if " s " in line and "images" not in line]
    assert stages == ["decode", "preprocess", "encode", "search", "fuse"]
    assert " a second, 0 unreadable" in err
    assert len(filled("list --json").objects) == 3
    assert filled("classify new/1.png --json").objects[0]["label"] == "red"


@pytest.mark.usefixtures("hash_encoders")
def test_ctrl_c_ends_a_watch_and_another_goes_on(filled: Callable[..., Result]) -> None:  # noqa: F811
    Path("new").mkdir()
    state = Path("new/.zsvec-watch.jsonl")
    for name, option in (("a", "--json"), ("b", "--stats")):
        process = start("watch", "new", "--settle", "0", option)
        assert process.stdout
        Path(f"new/{name}.png").write_bytes(encode(coloured("red", 100)))
        assert f"{name}.png" in process.stdout.readline().decode()
        assert eventually(lambda name=name: f"{name}.png" in state.read_text())  # type: ignore[misc]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
        _, out, err = finish(process)
        assert out == ""
        assert ("1 image in " in err) if option == "--stats" else err == ""
    assert [json.loads(line)[0] for line in state.read_text().splitlines()] == ["a.png", "b.png"]
    assert len(filled("list --json").objects) == 3


@pytest.mark.usefixtures("hash_encoders")
def test_statistics_for_people(filled: Callable[..., Result]) -> None:  # noqa: F811
    result = filled("classify colours/red colours/blue missing.png --json --stats")
    assert (result.code, len(result.objects)) == (0, 8)
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert lines[0].split() == ["stage", "busy", "of", "the", "time", "waiting", "for", "the", "next"]
    assert "8 images in " in result.err
    assert " a second, 2 unreadable" in result.err
    assert lines[-1] == "2 of 8 images could not be read"
    assert "busy" not in filled("classify colours/red --json").err
