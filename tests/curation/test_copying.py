"""`zsvec.copy`: predictions of a copy, keys, and the two ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zsvec
from tests.qdrant import running_server
from tests.store.support import ServerDeployment
from tests.support import COLOURS, coloured, fast_folder, photo, two_encoders
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.curation import copying
from zsvec.errors import InvalidInputError, StoreLockedError, StoreUnavailableError
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.store.backends.memory import MemoryBackend

SOURCE_KEY, TARGET_KEY = "key-of-the-source-0123", "key-of-the-target-0123"


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


def open_at(location: str | Path, **settings: Any) -> zsvec.Classifier:
    return zsvec.open(location, encoders=two_encoders(), **settings)


def fill(location: str | Path, images: int = 8, **settings: Any) -> None:
    with open_at(location, **settings) as clf:
        clf.add_categories(
            CategoryInput(name=colour, images=[coloured(colour, seed) for seed in range(images)]) for colour in COLOURS
        )
        clf.keep(photo(1))


def assert_predicts_the_same(some: zsvec.Classifier, other: zsvec.Classifier) -> None:
    images = [*(coloured(colour, seed) for colour in COLOURS for seed in (100, 101)), photo(7)]
    for one, two in zip(some.classify(images), other.classify(images), strict=True):
        assert (one.calibration, one.unknown, one.nearest) == (two.calibration, two.unknown, two.nearest)
        assert one.calibration == "current"
        assert one.novelty == pytest.approx(two.novelty, abs=1e-6)
        assert [label for label, _ in one.ranking] == [label for label, _ in two.ranking]
        np.testing.assert_allclose([p for _, p in one.ranking], [p for _, p in two.ranking], atol=1e-6)


def test_a_copy_predicts_the_same(folder: Path) -> None:
    fill(folder / "store")
    copied = zsvec.copy(folder / "store", folder / "copy")
    assert (copied.complete, copied.calibration, copied.inbox) == (True, True, 1)
    with open_at(folder / "store") as ours, open_at(folder / "copy") as theirs:
        assert_predicts_the_same(ours, theirs)
        assert theirs.inbox.hashes() == ours.inbox.hashes() != []
        assert next(iter(theirs.history)).what == "copy"


def test_a_copy_to_a_server_and_back(folder: Path, server: ServerDeployment) -> None:
    fill(folder / "store")
    assert zsvec.copy(folder / "store", server.url, target_namespace=server.namespace).complete
    assert zsvec.copy(folder / "store", server.url, target_namespace=server.namespace).categories == ()
    again = f"{server.namespace}-again"
    assert zsvec.copy(server.url, server.url, namespace=server.namespace, target_namespace=again).complete
    assert zsvec.copy(server.url, folder / "back", namespace=again, target_namespace="zsvec").complete
    with open_at(folder / "store") as ours, open_at(folder / "back") as theirs:
        assert_predicts_the_same(ours, theirs)
    with open_at(server.url, namespace=server.namespace) as theirs, open_at(folder / "store") as ours:
        assert_predicts_the_same(ours, theirs)


def test_a_key_that_may_only_read_suffices_for_the_source(folder: Path) -> None:
    fill(folder / "store", images=2)
    keys = {"QDRANT__SERVICE__API_KEY": "admin-0123", "QDRANT__SERVICE__READ_ONLY_API_KEY": "reader-0123"}
    with running_server(folder / "qdrant", **keys) as node:
        assert zsvec.copy(folder / "store", node.url, api_key="admin-0123").complete
        assert zsvec.copy(node.url, folder / "back", api_key="reader-0123").complete
        with pytest.raises(StoreUnavailableError):
            zsvec.copy(folder / "back", node.url, target_namespace="other", api_key="reader-0123")


@pytest.mark.parametrize(
    ("source", "target", "given", "ours", "theirs"),
    [
        ("./folder", "https://a", None, SOURCE_KEY, SOURCE_KEY),
        ("https://a", "./folder", None, SOURCE_KEY, SOURCE_KEY),  # a folder is sent nothing
        ("https://a", "https://b", None, SOURCE_KEY, None),
        ("https://a", "https://a/", None, SOURCE_KEY, SOURCE_KEY),
        ("https://a,https://b", "https://B", None, SOURCE_KEY, SOURCE_KEY),
        ("https://a", "https://a,https://b", None, SOURCE_KEY, None),
        ("https://a", "https://a:6334", None, SOURCE_KEY, None),
        ("https://a", "http://a", None, SOURCE_KEY, None),
        ("https://a", "https://b", TARGET_KEY, SOURCE_KEY, TARGET_KEY),
        ("./folder", "https://b", TARGET_KEY, SOURCE_KEY, TARGET_KEY),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_key_is_sent_to_its_server_alone(
    source: str,
    target: str,
    given: str | None,
    ours: str,
    theirs: str | None,
    by_variable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: dict[str, str | None] = {}

    class EndError(Exception):
        pass

    def open_store(settings: Settings) -> Any:
        sent[settings.store] = settings.api_key.get_secret_value() if settings.api_key else None
        if len(sent) == 2:
            raise EndError
        return Store(MemoryBackend(), "zsvec")

    monkeypatch.setattr(Settings, "open_store", open_store)
    options: dict[str, Any] = {}
    if by_variable:
        monkeypatch.setenv("ZSVEC_API_KEY", SOURCE_KEY)
        if given:
            monkeypatch.setenv(copying.TARGET_KEY_VARIABLE, given)
    else:
        options = {"api_key": SOURCE_KEY, "target_api_key": given}
    with pytest.raises(EndError):
        zsvec.copy(source, target, **options)
    assert sent[source] == ours
    if "://" in target:
        assert sent[target] == theirs


def test_two_servers_with_two_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder / "store", images=2)
    with (
        running_server(folder / "one", QDRANT__SERVICE__API_KEY=SOURCE_KEY) as one,
        running_server(folder / "two", QDRANT__SERVICE__API_KEY=TARGET_KEY) as two,
    ):
        assert zsvec.copy(folder / "store", one.url, api_key=SOURCE_KEY).complete
        with pytest.raises(StoreUnavailableError, match=copying.TARGET_KEY_VARIABLE):
            zsvec.copy(one.url, two.url, api_key=SOURCE_KEY)
        monkeypatch.setenv("ZSVEC_API_KEY", SOURCE_KEY)
        monkeypatch.setenv(copying.TARGET_KEY_VARIABLE, TARGET_KEY)
        assert zsvec.copy(one.url, two.url).complete
        assert zsvec.copy(one.url, two.url).categories == ()


def test_a_key_for_the_target_is_not_sent_unencrypted(folder: Path) -> None:
    fill(folder / "store", images=1)
    with pytest.raises(InvalidInputError, match="allow_http"):
        zsvec.copy(folder / "store", "http://192.0.2.1:6333", target_api_key=TARGET_KEY)


def test_ends_that_cannot_be(folder: Path) -> None:
    fill(folder / "store", images=1)
    for source, target in (("store", "store"), ("store", "./store")):
        with pytest.raises((InvalidInputError, StoreLockedError)):
            zsvec.copy(folder / source, f"{folder}/{target}")
    for ends in ((folder / "store", ":memory:"), (":memory:", folder / "store")):
        with pytest.raises(InvalidInputError):
            zsvec.copy(*ends)
    with pytest.raises(InvalidInputError):
        zsvec.copy(folder / "store", folder / "copy", target_namespace="../x")
    assert {path.name for path in folder.iterdir()} == {"store"}
    with open_at(folder / "store"), pytest.raises(StoreLockedError):
        zsvec.copy(folder / "store", folder / "copy")
    copied = zsvec.copy(folder / "store", folder / "store", target_namespace="other")
    assert copied.complete


# The lines are long, so that a pipe holds four: the process does not finish while the test stands still.
_COPY = """
import sys, zsvec
print("ready", flush=True)
zsvec.copy(sys.argv[1], sys.argv[2], on_commit=lambda category: print(category.name.ljust(2**14), flush=True))
print("done", flush=True)
"""


def test_a_copy_that_is_killed_again_and_again(folder: Path) -> None:
    with open_at(folder / "store") as clf:
        names = [f"category {i:02}" for i in range(30)]
        rng = np.random.default_rng(0)
        clf.add_categories(
            CategoryInput(
                name=name,
                texts=[name],
                vectors={"clip:image": rng.normal(size=(300, 32)), "dino:image": rng.normal(size=(300, 16))},
            )
            for name in names
        )
        expected = {category.name: category.references for category in clf.categories()}
    acknowledged: set[str] = set()
    for lines in (1, 4, 9):
        command = [sys.executable, "-c", _COPY, str(folder / "store"), str(folder / "copy")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline().rstrip() for _ in range(lines)]
            time.sleep(0.02)  # the instant is the point
            process.send_signal(signal.SIGKILL)
            said += [line.rstrip() for line in process.stdout.read().split("\n")[:-1]]
        assert "done" not in said
        acknowledged |= set(said[1:])
        with open_at(folder / "copy") as clf:
            found = {category.name: category.references for category in clf.categories()}
            assert acknowledged <= found.keys()
            assert found.items() <= expected.items()
            assert clf._store.incomplete() == []
    copied = zsvec.copy(folder / "store", folder / "copy")
    assert copied.complete
    assert {category.name for category in copied.categories} <= expected.keys() - acknowledged
    with open_at(folder / "copy") as clf:
        assert {category.name: category.references for category in clf.categories()} == expected
