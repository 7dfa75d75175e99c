"""`zsvec sync`."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.support import Cli, Loading
from tests.store.test_copying import Shared, altered
from zsvec.curation import syncing
from zsvec.errors import StoreUnavailableError
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.names import record_id

pytestmark = pytest.mark.usefixtures("hash_encoders")

URL = "https://store.example"


class Lasting(Shared):
    """As a server, which lasts when a handle is closed."""

    def close(self) -> None:
        pass


@pytest.fixture
def at(hash_encoders: Loading, filled: Cli, monkeypatch: pytest.MonkeyPatch) -> Lasting:
    """Stands for a server at `URL`, with the categories of `filled`."""
    backend = Lasting()
    real = Settings.open_store

    def open_store(settings: Settings) -> Store:
        return Store(backend, settings.namespace) if settings.store == URL else real(settings)

    monkeypatch.setattr(Settings, "open_store", open_store)
    assert filled("copy", os.environ["ZSVEC_STORE"], URL).code == 0
    return backend


@pytest.mark.usefixtures("at")
def test_a_folder_follows_and_works(filled: Cli, new: Path, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    result = filled("sync --json", URL, folder)
    assert (result.code, [found["category"] for found in result.objects]) == (0, ["blue", "green", "red"])
    assert "synced 3 new or changed categories, 0.0 MB" in result.said
    ours, theirs = (filled(f"--store {place} classify --json", new).objects for place in (URL, folder))
    assert [found["label"] for found in theirs] == [found["label"] for found in ours] == ["blue", "red"]
    assert [found["novelty"] for found in theirs] == pytest.approx([found["novelty"] for found in ours], abs=1e-6)
    result = filled("sync --json", URL, folder)
    assert (result.code, result.out) == (0, "")
    filled(f"--store {URL} remove --yes red")
    filled(f"--store {URL} add violet --text v")
    result = filled("sync --json", URL, folder)
    assert [found["category"] for found in result.objects] == ["violet", "red"]
    assert result.objects[1] == {"category": "red", "removed": True}
    assert "removed: red " in result.said


@pytest.mark.usefixtures("at")
def test_own_categories_and_different_ones_are_named(filled: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    filled("sync", URL, folder)
    filled(f"--store {folder} add violet --text v")
    filled(f"--store {folder} add red --text 'reverted'")
    result = filled("sync", URL, folder)
    assert (result.code, result.out) == (0, "")
    assert "made in FOLDER, and left there: violet" in result.said
    assert "FOLDER does not take the calibration" in result.said
    filled(f"--store {URL} add violet --text 'the last colour of the rainbow'")
    result = filled("sync", URL, folder)
    assert result.code == 1
    assert "left as they are, because they were made in FOLDER and differ; remove or rename them there: violet" in (
        result.said
    )


def test_a_damaged_category_is_named(filled: Cli, at: Lasting, tmp_path: Path) -> None:
    altered(Store(at, "zsvec"), "zsvec__catalog", record_id("category", "green"), texts=5)
    result = filled("sync", URL, tmp_path / "device")
    assert result.code == 1
    assert "left out: 'green': its manifest cannot be read" in result.said
    assert len(filled(f"--store {tmp_path}/device list --json").objects) == 2


def test_wrong_usage(filled: Cli, at: Lasting, tmp_path: Path) -> None:
    assert filled("sync", URL).code == 2
    assert filled("sync", tmp_path / "folder", tmp_path / "device").code == 2
    assert filled("sync", URL, ":memory:").code == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert filled("sync", URL, tmp_path / "photos").code == 2
    assert filled("sync --watch", URL, tmp_path / "photos").code == 2
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    filled("sync", URL, tmp_path / "device")
    for name in list(at._collections):
        at.remove(name)
    filled("copy", os.environ["ZSVEC_STORE"], URL)
    result = filled("sync", URL, tmp_path / "device")
    assert result.code == 1
    assert "follows another store" in result.said
    assert not (tmp_path / "folder").exists()


def test_watching_prints_each_change_until_interrupted(
    filled: Cli, at: Lasting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, pauses = Store(at, "zsvec"), 0

    def sleep(_: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 2:
            source.remove("red")
        if pauses == 3:  # a mark, which is no change of the category
            source.keep("blue", [source.stored("blue")[0].hash], "outliers")
        if pauses == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(syncing, "time", SimpleNamespace(sleep=sleep))
    result = filled("sync --watch --json", URL, tmp_path / "device")
    assert result.code == 130
    assert [found["category"] for found in result.objects] == ["blue", "green", "red", "red"]
    assert result.objects[-1] == {"category": "red", "removed": True}
    assert result.said.count("synced") == 2


def test_watching_tells_once_why_it_waits(
    filled: Cli, at: Lasting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled("sync", URL, tmp_path / "device")
    holder, pauses = Store(EdgeBackend(tmp_path / "device"), "zsvec"), 0
    holder.categories()

    def sleep(_: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(syncing, "time", SimpleNamespace(sleep=sleep))
    result = filled("sync --watch", URL, tmp_path / "device")
    holder.close()
    assert result.code == 130
    assert result.said.count("waiting: the embedded store") == 1


@pytest.mark.parametrize("json", ["", "--json"])
def test_watching_says_when_it_is_in_step_again(
    filled: Cli, at: Lasting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json: str
) -> None:
    filled("sync", URL, tmp_path / "device")
    pauses, scroll = 0, at.scroll

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("no answer")

    def sleep(_: float) -> None:
        nonlocal pauses
        pauses += 1
        monkeypatch.setattr(at, "scroll", away if pauses in (2, 3, 5) else scroll)
        if pauses == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(syncing, "time", SimpleNamespace(sleep=sleep))
    result = filled(f"sync --watch {json}", URL, tmp_path / "device")
    assert result.code == 130
    assert result.err.splitlines()[-4:] == 2 * ["waiting: no answer", "in step again"]
    assert result.objects == (2 * [{"waiting": "no answer"}, {"in_step": True}] if json else [])
