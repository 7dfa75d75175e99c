"""`zsvec.sync` and `Classifier.sync`: predictions of a folder that follows, keys, and the two ends."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import zsvec
from tests.curation.test_copying import assert_predicts_the_same, fill, open_at
from tests.curation.test_copying import folder as folder
from tests.qdrant import running_server
from tests.store.support import Hooked, ServerDeployment
from tests.store.test_copying import READS, Shared
from tests.support import coloured
from tests.support import isolated as isolated
from zsvec.curation import syncing
from zsvec.errors import (
    EncoderMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.testing import HashEncoder

URL, OTHER = "https://store.example", "https://other.example"


class Lasting(Shared):
    """As a server, which lasts when a handle is closed."""

    def close(self) -> None:
        pass


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Hooked]:
    """Stands for servers, by URL."""
    made = {url: Hooked(Lasting()) for url in (URL, OTHER)}
    real = Settings.open_store

    def open_store(settings: Settings) -> Store:
        return Store(made[settings.store], settings.namespace) if settings.store in made else real(settings)

    monkeypatch.setattr(Settings, "open_store", open_store)
    return made


def add(name: str, seed: int, url: str = URL) -> None:
    with open_at(url) as clf:
        clf.add_category(name, images=[coloured("red", seed)])


def listed(folder: Path) -> list[str]:
    with open_at(folder) as clf:
        return [category.name for category in clf.categories()]


# A folder


def test_a_folder_predicts_as_the_server(folder: Path, server: ServerDeployment) -> None:
    fill(server.url, namespace=server.namespace)
    synced = zsvec.sync(server.url, folder / "device", namespace=server.namespace, target_namespace="zsvec")
    assert (synced.complete, synced.calibration) == (True, True)
    with open_at(server.url, namespace=server.namespace) as ours:
        with open_at(folder / "device") as theirs:
            assert_predicts_the_same(ours, theirs)
            assert list(theirs.inbox.hashes()) == []
        ours.add_category("orange", images=[coloured("red", 50), coloured("green", 51)])
        ours.remove_category("blue")
        synced = zsvec.sync(server.url, folder / "device", namespace=server.namespace, target_namespace="zsvec")
        assert ([category.name for category in synced.categories], synced.removed) == (["orange"], ("blue",))
        with open_at(folder / "device") as theirs:
            assert_predicts_the_same(ours, theirs)


def test_a_key_that_may_only_read_suffices(folder: Path) -> None:
    keys = {"QDRANT__SERVICE__API_KEY": "admin-0123", "QDRANT__SERVICE__READ_ONLY_API_KEY": "reader-0123"}
    with running_server(folder / "qdrant", **keys) as node:
        fill(node.url, images=2, api_key="admin-0123")
        assert len(zsvec.sync(node.url, folder / "device", api_key="reader-0123").categories) == 3
        with open_at(folder / "device") as clf, open_at(node.url, api_key="admin-0123") as writer:
            writer.add_category("new", images=[coloured("red", 99)])
            writer.remove_category("blue")
            clf.add_category("green", texts=["local"])
            synced = clf.sync(node.url, api_key="reader-0123")
            assert [category.name for category in synced.categories] == ["green", "new"]
            assert synced.removed == ("blue",)
            assert clf.sync(node.url, api_key="reader-0123").categories == ()
        with pytest.raises(StoreUnavailableError):
            zsvec.sync(node.url, folder / "device", api_key="wrong-0123")
        with open_at(node.url, api_key="reader-0123") as reader, pytest.raises(StoreUnavailableError):
            reader.add_category("x", texts=["x"])


def test_ends_that_cannot_be(folder: Path, servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    for source, target in (
        (URL, ":memory:"),
        (URL, OTHER),
        (str(folder), folder / "device"),
        (":memory:", folder / "device"),
    ):
        with pytest.raises(InvalidInputError):
            zsvec.sync(source, target)
    with pytest.raises(InvalidInputError):
        zsvec.sync(URL, folder / "device", target_namespace="../x")
    with pytest.raises(StoreError, match="there is no store"):
        zsvec.sync(OTHER, folder / "device")
    assert list(folder.iterdir()) == []
    zsvec.sync(URL, folder / "device")
    with open_at(folder / "device"), pytest.raises(StoreLockedError):
        zsvec.sync(URL, folder / "device")
    fill(OTHER, images=1)
    with pytest.raises(StoreError, match="follows another store"):
        zsvec.sync(OTHER, folder / "device")
    assert zsvec.sync(OTHER, folder / "device", target_namespace="other").complete


def test_small_images_are_left_out_if_the_folder_keeps_none(folder: Path, servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    zsvec.sync(URL, folder / "device", keep_images="none")
    with open_at(folder / "device") as clf:
        hashes = [one.hash for one in clf.references.of("red")]
        assert hashes
        assert all(clf.image(digest) is None for digest in hashes)


# An open classifier


def test_a_classifier_follows_between_batches(servers: dict[str, Hooked]) -> None:
    fill(URL, images=2)
    with open_at(":memory:") as clf:
        assert len(clf.sync(URL).categories) == 3
        add("new", 99)
        backend = servers[URL]
        backend.calls.clear()
        assert clf.classify(coloured("red", 99)).nearest != "new"
        assert [category.name for category in clf.sync(URL).categories] == ["new"]
        assert clf.classify(coloured("red", 99)).nearest == "new"
        backend.calls.clear()
        clf.keep(coloured("green", 5))
        clf.sync(URL)
        assert backend.calls == {"scroll": 1}


def test_a_followed_store_keeps_the_calibration_of_its_source(servers: dict[str, Hooked]) -> None:
    """The classifier does not calibrate after a run, as it would after a write of its own."""
    fill(URL)
    with open_at(":memory:") as clf, open_at(URL) as writer:
        clf.sync(URL)
        with writer.history.one_change("add"):  # calibrated at the end of the block alone
            writer.add_category("new", images=[coloured("red", seed) for seed in range(90, 95)])
            assert clf.sync(URL).calibration
            assert clf.info()["calibration"] == "stale"
        clf.sync(URL)
        assert clf.info()["calibration"] == writer.info()["calibration"] == "current"
        assert_predicts_the_same(clf, writer)


def test_threads_classify_while_another_follows(servers: dict[str, Hooked]) -> None:
    fill(URL, images=2)
    ended, found = threading.Event(), set()
    with open_at(":memory:") as clf:
        clf.sync(URL)

        def classify() -> None:
            while not ended.is_set():
                found.add(clf.classify(coloured("red", 99)).nearest)

        threads = [threading.Thread(target=classify) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(5):
                add("new", 99 + number)
                clf.sync(URL)
            last = clf.classify(coloured("red", 99)).nearest
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert last == "new"
    assert found <= {"red", "new"}


def test_other_encoders_are_refused_before_anything_is_stored(servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    others = [HashEncoder("clip", dim=8), HashEncoder("dino", dim=8, modalities=("image",))]
    for encoders in (others, others[:1]):
        with zsvec.open(":memory:", encoders=encoders) as clf:
            with pytest.raises(EncoderMismatchError):
                clf.sync(URL)
            assert clf.info()["encoders"] == {}


def test_an_empty_folder_name_is_not_the_working_folder() -> None:
    Path("notes.txt").touch()
    with pytest.raises(InvalidInputError, match=r"store: .*\(got ''\)"):
        zsvec.sync(URL, "")


def test_a_classifier_that_cannot_follow(servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    fill(OTHER, images=1)
    with open_at(OTHER) as clf, pytest.raises(InvalidInputError):
        clf.sync(URL)
    with open_at(":memory:") as clf:
        clf.sync(URL)
        with pytest.raises(StoreError, match="follows another store"):
            clf.sync(OTHER)
        with pytest.raises(InvalidInputError):
            clf.sync("./folder")
        add("new", 99)
        assert [category.name for category in clf.sync(URL).categories] == ["new"]


# Watching


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "WATCH_EVERY_S", 0.001)


def refuse(error: Exception) -> None:
    raise AssertionError(error)


@pytest.mark.usefixtures("at_once")
def test_watching_follows_and_unlocks_the_folder(folder: Path, servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    servers[URL].calls.clear()
    watched = syncing.watch(URL, folder / "device", on_error=refuse)
    assert len(next(watched).categories) == 3
    for number in range(2):
        assert len(listed(folder / "device")) == 3 + number  # the folder can be opened
        add(f"new {number}", number)
        assert [category.name for category in next(watched).categories] == [f"new {number}"]
    watched.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("at_once")
def test_watching_waits_for_the_folder_and_the_server(folder: Path, servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    zsvec.sync(URL, folder / "device")
    holder = open_at(folder / "device")
    holder.categories()
    errors: list[Exception] = []

    def tell(error: Exception) -> None:
        errors.append(error)
        if len(errors) == 3:
            holder.close()

    watched = syncing.watch(URL, folder / "device", on_error=tell)
    assert next(watched).categories == ()
    assert [type(error) for error in errors] == 3 * [StoreLockedError]

    def unreachable(*_: Any, **__: Any) -> None:
        raise StoreUnavailableError("away")

    add("new", 5)
    servers[URL].hooks["scroll"] = unreachable
    assert [category.name for category in next(watched).categories] == ["new"]
    assert isinstance(errors[-1], StoreUnavailableError)


class Away(Lasting):
    """A server whose answers may fail.

    Attributes:
        before: Called before each answer with the time-out in seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[float], None] = lambda seconds: None
        self._seconds = math.inf

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self._seconds = seconds
        try:
            yield
        finally:
            self._seconds = math.inf

    def scroll(self, *arguments: Any, **options: Any) -> Any:
        self.before(self._seconds)
        return super().scroll(*arguments, **options)

    def retrieve(self, *arguments: Any, **options: Any) -> Any:
        self.before(self._seconds)
        return super().retrieve(*arguments, **options)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("is_changed", [False, True])
def test_watching_reports_an_outage_after_5_seconds_and_its_end(
    folder: Path, servers: dict[str, Hooked], *, is_changed: bool
) -> None:
    server = servers[URL].inner = Away()
    fill(URL, images=1)
    errors: list[Exception] = []
    watched = syncing.watch(URL, folder / "device", on_error=errors.append)
    next(watched)
    if is_changed:
        add("new", 5)
    allowed: list[float] = []

    def slow(seconds: float) -> None:
        allowed.append(seconds)
        if seconds <= 5:
            raise StoreUnavailableError("no answer yet")

    server.before = slow
    assert [category.name for category in next(watched).categories] == ["new"] * is_changed
    assert [type(error) for error in errors] == [StoreUnavailableError]
    assert allowed[0] == 5
    assert set(allowed[1:]) == {math.inf}  # the deadline of the settings


@pytest.mark.usefixtures("at_once")
def test_the_folder_can_be_opened_during_an_outage(folder: Path, servers: dict[str, Hooked]) -> None:
    server = servers[URL].inner = Away()
    fill(URL, images=1)
    zsvec.sync(URL, folder / "device")
    opened: list[list[str]] = []

    def away(_: float) -> None:
        if len(opened) < 3:
            opened.append(listed(folder / "device"))
            raise StoreUnavailableError("away")

    server.before = away
    errors: list[Exception] = []
    next(syncing.watch(URL, folder / "device", on_error=errors.append))
    assert [type(error) for error in errors] == 3 * [StoreUnavailableError]


@pytest.mark.usefixtures("at_once")
def test_watching_only_reads_and_ends_if_the_store_is_another(folder: Path, servers: dict[str, Hooked]) -> None:
    fill(URL, images=1)
    servers[URL].calls.clear()
    watched: Iterator[Any] = syncing.watch(URL, folder / "device", on_error=refuse)
    next(watched)
    assert set(servers[URL].calls) <= {*READS, "close"}
    servers[URL].inner = Lasting()
    fill(URL, images=1)
    with pytest.raises(StoreError, match="follows another store"):
        next(watched)
