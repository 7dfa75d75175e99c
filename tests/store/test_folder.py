"""The folder beneath an embedded store: a full disk, or a folder deleted, moved or replaced while open."""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

import zsvec
from tests.qdrant import DEADLINE
from tests.store.material import FINGERPRINTS, add, sources, write_of
from tests.store.support import Disk, Hooked, fast_folder, small_disk
from tests.support import coloured
from zsvec.errors import StoreError, StoreUnavailableError
from zsvec.inputs.files import write_whole
from zsvec.store import Store, open_store
from zsvec.store.backends.base import Backend
from zsvec.store.backends.edge import folder as folder_module
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.folder import ROOM
from zsvec.store.backends.edge.private import PrivateCopy
from zsvec.testing import HashEncoder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no folder that is in use")

State = dict[str, dict[str, list[str]]]


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as parent:
        yield parent / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """With two categories."""
    opened = open_(folder)
    add(opened, "lynx", ["1", "2"], ["text"])
    add(opened, "red panda", ["3"], ["text"])
    yield opened
    opened.close()


def open_(folder: Path) -> Store:
    store = Store(EdgeBackend(folder), "zsvec")
    store.bind(FINGERPRINTS)
    return store


def state(store: Store) -> State:
    return {category.name: sources(store, category.name) for category in store.categories()}


WRITES: dict[str, Callable[[Store], object]] = {
    "add": lambda store: add(store, "desk", ["4"], ["text"]),
    "extend": lambda store: add(store, "lynx", ["5"]),
    "replace": lambda store: add(store, "lynx", ["6"], replace=True),
    "remove": lambda store: store.remove("lynx"),
    "calibrate": lambda store: store.keep_calibration({"format": 1, "revision": 1}),
}


# A full disk


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_are_refused_while_the_disk_is_full(
    store: Store, folder: Path, disk: Disk, write: Callable[[Store], object]
) -> None:
    before = state(store)
    disk.free = ROOM - 1
    with pytest.raises(StoreUnavailableError, match=r"has 16\.0 MiB free, and 16\.\d MiB are needed") as refused:
        write(store)
    assert str(folder) in str(refused.value)
    assert "make room" in str(refused.value)
    assert state(store) == before
    disk.free = 2**30
    write(store)
    assert store.incomplete() == []
    assert store.gc().total() == 0


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_disk_that_fills_up_between_two_steps_of_a_write(
    folder: Path, disk: Disk, write: Callable[[Store], object]
) -> None:
    """The store is as before or as after, and a refused write can be repeated."""
    for step in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        store = open_(folder)
        add(store, "lynx", ["1", "2"], ["text"])
        before, disk.full_at = state(store), disk.looks + step
        try:
            write(store)
        except StoreUnavailableError:
            refused = True
        else:
            refused = False
        assert (state(store) != before) <= (write is not WRITES["calibrate"])
        disk.full_at = -1
        if refused and state(store) == before:
            write(store)
        store.gc()
        after = state(store)
        assert store.incomplete() == []
        store.close()
        with open_(folder) as again:
            assert state(again) == after
        if not refused:
            assert step > 0
            return
    raise AssertionError("it is never done")


def test_the_room_for_a_write_grows_with_it(store: Store, disk: Disk) -> None:
    disk.free = ROOM + 2**20
    add(store, "desk", ["4"])
    with pytest.raises(StoreUnavailableError, match=r"17\.0 MiB free, and 20\.\d MiB are needed"):
        add(store, "essay", texts=["x" * 2**20])
    assert [category.name for category in store.categories()] == ["desk", "lynx", "red panda"]


def test_a_file_system_without_a_free_size(store: Store, disk: Disk) -> None:
    disk.total = disk.free = 0
    add(store, "desk", ["4"])
    store.close()


def test_no_store_is_made_on_a_full_disk(folder: Path, disk: Disk) -> None:
    disk.free = 2**20
    with pytest.raises(StoreUnavailableError, match=r"1\.0 MiB free, and 16\.0 MiB are needed"):
        open_(folder)
    disk.free = 2**30
    with open_(folder) as store:
        add(store, "lynx", ["1"])


def test_a_store_that_cannot_be_flushed_stays_open(store: Store, folder: Path, disk: Disk) -> None:
    before, disk.free = state(store), 0
    for save in (store.flush, store.close, store.close):
        with pytest.raises(StoreUnavailableError, match=r"has 0\.0 MiB free"):
            save()
    assert state(store) == before
    disk.free = 2**30
    store.close()
    with open_(folder) as again:
        assert state(again) == before


def test_a_store_that_was_closed_is_read_on_a_full_disk(
    store: Store, folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(store)
    store.close()
    monkeypatch.setattr(folder_module, "_in_memory", lambda path: False)
    disk.free = 0
    with Store(EdgeBackend(folder), "zsvec") as reader:
        assert state(reader) == before


def test_a_store_is_closed_and_read_again_where_checksums_find_no_room(
    store: Store, folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file takes none."""
    before = state(store)
    store.close()
    monkeypatch.setattr(folder_module, "_in_memory", lambda path: False)

    def full(path: Path, content: bytes) -> None:
        if content:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_whole(path, content)

    monkeypatch.setattr("zsvec.store.backends.edge.checksums.write_whole", full)
    disk.free = 0
    for _ in range(3):
        with Store(EdgeBackend(folder), "zsvec") as reader:
            assert state(reader) == before
    monkeypatch.undo()
    with Store(EdgeBackend(folder), "zsvec") as reader:
        assert state(reader) == before
    assert all(file.stat().st_size for file in folder.glob("*/checksums.json"))


def test_a_store_of_a_killed_writer_is_opened_when_there_is_room(store: Store, folder: Path, disk: Disk) -> None:
    before, copy = state(store), folder.with_name("copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".lock-*"))
    disk.free = 2**20
    with Store(EdgeBackend(copy), "zsvec") as reader, pytest.raises(StoreUnavailableError, match=r"1\.0 MiB free"):
        reader.categories()
    disk.free = 2**30
    with Store(EdgeBackend(copy), "zsvec") as reader:
        assert state(reader) == before


FILLER = """
import sys
from pathlib import Path
from tests.store.test_folder import open_, state
from tests.store.material import add
from zsvec.errors import StoreUnavailableError
with open_(Path(sys.argv[1])) as store:
    try:
        for i in range(1000):
            add(store, f"category {i}", [f"{i}"], [f"{i} " + "x" * int(sys.argv[2])])
            print(i, flush=True)
    except StoreUnavailableError as refused:
        assert len(store.categories()) == i and not store.incomplete()
        print(refused)
"""


@pytest.mark.parametrize("length", [100_000, 3_000_000])
def test_a_disk_that_is_really_full(tmp_path: Path, length: int) -> None:
    with small_disk(tmp_path / "small") as small:
        command = [sys.executable, "-c", FILLER, str(small / "store"), str(length)]
        filler = subprocess.run(command, capture_output=True, text=True)
        assert (filler.returncode, filler.stderr) == (0, "")  # -SIGBUS, without the check
        *acknowledged, refused = filler.stdout.splitlines()
        assert "MiB are needed for this: make room" in refused
        shutil.copytree(small / "store", tmp_path / "larger")
    with open_(tmp_path / "larger") as store:
        assert len(store.categories()) == len(acknowledged) > 0
        assert store.incomplete() == []


# Memory of an open store

MAPPED = """
import sys
from pathlib import Path
from tests.store.test_folder import open_, state
with open_(Path(sys.argv[1])) as store:
    state(store)
    maps = Path("/proc/self/smaps").read_text().splitlines()
files = [line for line in maps if ".mmap" in line or line.startswith("Rss:")]
print(sum(int(size.split()[1]) for file, size in zip(files, files[1:]) if ".mmap" in file))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are mapped")
def test_holes_for_vectors_to_come_take_no_memory(store: Store, folder: Path) -> None:
    before = state(store)
    store.close()
    reader = subprocess.run([sys.executable, "-c", MAPPED, str(folder)], capture_output=True, text=True, check=True)
    assert 0 < int(reader.stdout) < 1024  # KiB; each of the three files has 32 MiB
    with open_(folder) as opened:
        assert state(opened) == before


# A folder that is gone


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"), ignore=shutil.ignore_patterns(".lock-*"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


def without_catalog(folder: Path) -> None:
    shutil.rmtree(folder / "zsvec__catalog")


def without_references(folder: Path) -> None:
    shutil.rmtree(folder / "zsvec__clip")
    shutil.rmtree(folder / "zsvec__dino")


GONE = [deleted, moved, replaced, without_catalog]


@pytest.mark.parametrize("gone", GONE)
def test_nothing_is_acknowledged_when_the_folder_is_gone(folder: Path, gone: Callable[[Path], None]) -> None:
    message = "was deleted, moved, replaced or made inaccessible while it was open"
    for number, call in enumerate((*WRITES.values(), Store.gc, Store.flush, Store.categories, Store.info, state)):
        place = folder.with_name(str(number)) / "store"
        store = open_(place)
        add(store, "lynx", ["1", "2"], ["text"])
        gone(place)
        with pytest.raises(StoreUnavailableError, match=message) as refused:
            call(store)
        assert str(place.absolute()) in str(refused.value)
        with pytest.raises(StoreUnavailableError, match=message):
            store.close()  # with unflushed writes
        with pytest.raises(StoreError, match="is closed"):
            store.categories()


@pytest.mark.parametrize("name", ["add", "extend", "replace"])
def test_nothing_is_acknowledged_when_collections_are_gone(store: Store, folder: Path, name: str) -> None:
    without_references(folder)
    with pytest.raises(StoreUnavailableError, match="was deleted, moved, replaced"):
        WRITES[name](store)
    with pytest.raises(StoreUnavailableError, match="was deleted, moved, replaced"):
        store.close()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_folder_that_goes_between_two_steps_of_a_write(folder: Path, write: Callable[[Store], object]) -> None:
    for step in range(3):
        store = open_(folder)
        add(store, "lynx", ["1"])
        backend = Hooked(store._backend)
        backend.hooks[step] = lambda *_, **__: shutil.rmtree(folder)
        with pytest.raises(StoreUnavailableError, match="was deleted, moved, replaced"):
            write(Store(cast("Backend", backend), "zsvec"))
        with pytest.raises(StoreUnavailableError, match="was deleted, moved, replaced"):
            store.close()


def test_a_copy_in_the_place_of_a_store_is_left_alone(store: Store, folder: Path) -> None:
    """The engine flushes open collections by path, into the copy that was put back."""
    store.flush()
    replaced(folder)
    with pytest.raises(StoreUnavailableError):
        store.write([write_of("desk", ["4"])])
    with pytest.raises(StoreUnavailableError):
        store.remove("lynx")
    store.close()  # nothing was written since
    del store
    gc.collect()
    with open_(folder) as again:
        assert list(state(again)) == ["lynx", "red panda"]
        assert again.incomplete() == []


def test_a_store_that_is_only_read_is_closed_without_its_folder(store: Store, folder: Path) -> None:
    store.close()
    reader = Store(EdgeBackend(folder), "zsvec")
    assert len(reader.categories()) == 2
    deleted(folder)
    reader.close()


def test_a_folder_above_that_became_a_file(tmp_path: Path) -> None:
    above = tmp_path / "above"
    opened = open_store(str(above / "store"), namespace="zsvec")
    opened.bind(FINGERPRINTS)
    add(opened, "lynx", ["1"])
    before = state(opened)
    above.rename(tmp_path / "elsewhere")
    above.write_text("a file")
    for call in (opened.categories, partial(add, opened, "desk", ["4"]), opened.close):
        with pytest.raises(StoreUnavailableError, match=re.escape(str(above / "store"))):
            call()
    opened.close()
    above.unlink()
    shutil.copytree(tmp_path / "elsewhere", above)
    with open_store(str(above / "store"), namespace="zsvec") as copied:
        assert state(copied) == before


def test_another_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    store = open_(Path("store"))
    folder.with_name("other").mkdir()
    monkeypatch.chdir(folder.with_name("other"))
    add(store, "lynx", ["1"])
    store.close()
    with open_(folder) as again:
        assert state(again) == {"lynx": {"clip:image": ["1"], "dino:image": ["1"]}}
    assert list(folder.with_name("other").iterdir()) == []


def test_a_collection_that_cannot_be_closed_keeps_no_other_from_it(store: Store, folder: Path) -> None:
    shutil.rmtree(folder / "zsvec__dino")
    with pytest.raises(StoreUnavailableError, match="zsvec__dino"):
        store.close()
    with Store(EdgeBackend(folder), "zsvec") as again:
        assert len(again.categories()) == 2
        assert len(list(again.references("clip", again.category("lynx").write_ids))) == 1


_AS_NOBODY = """
import logging, os, shutil, sys, tempfile
import zsvec
import zsvec.store.backends.edge.private  # another user may not be allowed to read it
from tests.support import coloured
from zsvec.errors import StoreError, StoreLockedError
from zsvec.testing import HashEncoder

folder, temporary = sys.argv[1:]
logging.basicConfig(format="%(message)s")

def opened(folder):
    return zsvec.open(folder, encoders=[HashEncoder()])

with opened(f"{temporary}/own") as own:  # imports the other modules
    own.add_category("dog", images=[coloured("blue", 1)])
    own.classify(coloured("blue", 1))
shutil.rmtree(f"{temporary}/own")
os.chown(temporary, 65534, 65534)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
tempfile.tempdir = temporary
try:
    with opened(folder) as clf:
        print([category.name for category in clf.categories()], clf.classify(coloured("red", 1)).nearest)
        print(len(os.listdir(temporary)))
        for change in (
            lambda: clf.add_category("cat", images=[coloured("red", 9)]),
            lambda: clf.remove_category("cat"),
            lambda: clf.history.undo(change=next(iter(clf.history)).id),
        ):
            try:
                change()
            except StoreError as exc:
                print(type(exc).__name__)
        print([category.references for category in clf.categories()])
except StoreLockedError:
    print("locked")
print(os.listdir(temporary))
"""


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_private_copy_takes_nothing_from_elsewhere(store: Store, folder: Path, tmp_path: Path, what: str) -> None:
    store.close()
    shutil.copytree(folder / "zsvec__catalog", folder / ".next-zsvec__catalog")  # of a writer that was killed
    with closing(PrivateCopy(folder, "store")) as copy:
        assert len(Store(copy, "zsvec").categories()) == 2
    shutil.rmtree(folder / ".next-zsvec__catalog")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    forged = folder / "zsvec__catalog" / "forged"
    forged.symlink_to(secret) if what == "link" else os.mkfifo(forged)
    with pytest.raises(StoreError), closing(PrivateCopy(folder, "store")) as copy:
        assert not [
            path
            for path in Path(copy._folder).rglob("*")
            if path.is_file() and not path.is_symlink() and path.read_bytes() == b"secret"
        ]
        Store(copy, "zsvec").categories()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_is_read_from_a_private_copy() -> None:
    with TemporaryDirectory() as parent:
        folder, temporary = Path(parent) / "store", Path(parent) / "temporary"
        with zsvec.open(folder, encoders=[HashEncoder()]) as clf:
            clf.add_category("cat", images=[coloured("red", seed) for seed in range(3)])
        for one in (Path(parent), folder, *folder.rglob("*")):
            one.chmod(0o755 if one.is_dir() else 0o644)
        temporary.mkdir()
        before = {one: one.lstat().st_mtime_ns for one in folder.rglob("*")}

        def said() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-W", "error", "-c", _AS_NOBODY, str(folder), str(temporary)]
            users = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"), parent)
            env = {**os.environ, **users}
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE, env=env)

        done = said()
        refused = ["StoreError"] * 3
        assert done.stdout.splitlines() == ["['cat'] cat", "1", *refused, "[{'hash:image': 3, 'hash:text': 1}]", "[]"]
        assert "private copy of" in done.stderr
        assert {one: one.lstat().st_mtime_ns for one in folder.rglob("*")} == before
        with zsvec.open(folder, encoders=[HashEncoder()]) as clf:
            assert len(clf.categories()) == 1
            assert said().stdout.splitlines() == ["locked", "[]"]
