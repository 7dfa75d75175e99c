"""Damaged files of an embedded store: an error of zsvec, or the loss is named; and nothing else is deleted."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID

import numpy as np
import pytest

from tests.store.material import FINGERPRINTS, add, references, sources
from tests.store.support import fast_folder
from zsvec.errors import StoreError, ZSVecError
from zsvec.store import Cursor, Store
from zsvec.store.backends.base import Put, Where
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.checksums import _checksum
from zsvec.store.catalog.schema import intent_payload
from zsvec.store.names import new_write_id

ROOT = Path(__file__).parents[2]
STORED = {
    "lynx": {"clip:image": ["1", "2"], "clip:text": ["text"], "dino:image": ["1", "2"]},
    "red panda": {"clip:image": ["3"], "clip:text": ["text"], "dino:image": ["3"]},
}


@pytest.fixture
def parent() -> Iterator[Path]:
    with fast_folder() as parent:
        yield parent


@pytest.fixture
def folder(parent: Path) -> Path:
    """A store of two categories, closed."""
    with Store(EdgeBackend(parent / "store"), "zsvec") as store:
        fill(store)
    return parent / "store"


def fill(store: Store) -> None:
    store.bind(FINGERPRINTS)
    add(store, "lynx", ["1", "2"], ["text"])
    add(store, "desk", ["4"])
    store.remove("desk")
    add(store, "red panda", ["3"], ["text"])


WRITER = """
import os, signal, sys
from pathlib import Path
from tests.store.material import add
from tests.store.test_damage import fill
from zsvec.store import Store
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.checksums import Checksums

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

store = Store(EdgeBackend(Path(sys.argv[1])), "zsvec")
fill(store)
exec("\\n".join(sys.argv[2:]))
kill()
"""


def killed(folder: Path, *then: str) -> Path:
    """The same store in a folder, of a writer that was killed after these further lines."""
    command = [sys.executable, "-c", WRITER, str(folder), *then]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    return folder


@pytest.fixture(scope="module")
def unclosed() -> Iterator[Path]:
    with fast_folder() as parent:
        yield killed(parent / "store")


@pytest.fixture
def open_folder(unclosed: Path, parent: Path) -> Path:
    return copy(unclosed, parent / "store")


def copy(folder: Path, other: Path) -> Path:
    return shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".lock-*"))


@pytest.fixture(scope="module")
def flushed() -> Iterator[Path]:
    with fast_folder() as parent:
        yield killed(parent / "store", "store.flush()")


@pytest.fixture(scope="module")
def written_since() -> Iterator[Path]:
    """With the same content as when flushed."""
    with fast_folder() as parent:
        yield killed(parent / "store", "store.flush()", "add(store, 'desk', ['5'])", "store.remove('desk')")


def file(folder: Path, collection: str, pattern: str) -> Path:
    return sorted((folder / f"zsvec__{collection}").glob(pattern))[0]


def truncated(collection: str, pattern: str, size: int = 0) -> Callable[[Path], None]:
    return lambda folder: os.truncate(file(folder, collection, pattern), size)


def removed(collection: str, pattern: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(file(folder, collection, pattern))


def zeroed(collection: str, pattern: str) -> Callable[[Path], None]:
    def zero(folder: Path) -> None:
        damaged = file(folder, collection, pattern)
        damaged.write_bytes(bytes(damaged.stat().st_size))

    return zero


def swapped(pattern: str, one: str, other: str) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        first, second = file(folder, one, pattern), file(folder, other, pattern)
        kept = first.read_bytes()
        shutil.copyfile(second, first)
        second.write_bytes(kept)

    return swap


def renamed(folder: Path) -> None:
    """One bit of each letter of a category's name."""
    for payloads in (folder / "zsvec__catalog").glob("segments/*/payload_storage/page_0.dat"):
        content = payloads.read_bytes()
        assert b"red panda" in content
        payloads.write_bytes(content.replace(b"red panda", b"rfd pbndb"))


def changed(collection: str, pattern: str, at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        damaged = file(folder, collection, pattern)
        content = bytearray(damaged.read_bytes())
        content[at] ^= 64
        damaged.write_bytes(content)

    return change


def appended(collection: str, pattern: str, content: bytes) -> Callable[[Path], None]:
    def append(folder: Path) -> None:
        damaged = file(folder, collection, pattern)
        damaged.write_bytes(damaged.read_bytes() + content)

    return append


IDS = "segments/*/mutable_id_tracker.mappings"
LARGE = b"\2" + b"\xff" * 20  # an entry of ids: a point of the largest number there is
NO_POINTS = "segments/*/mutable_id_tracker.versions"
NO_VALUES = "segments/*/payload_index/*-null/is_null/status.dat"
NO_PAYLOADS = "segments/*/payload_storage"

DAMAGE: dict[str, Callable[[Path], object]] = {
    "a catalog of no points": truncated("catalog", NO_POINTS),
    "a catalog of some points": truncated("catalog", NO_POINTS, 37),
    "a catalog without payloads": removed("catalog", NO_PAYLOADS),
    "a catalog without segments": removed("catalog", "segments"),
    "a catalog without its segment": removed("catalog", "segments/*"),
    "a catalog without a log": removed("catalog", "wal"),
    "a catalog at which the engine panics": truncated("catalog", NO_VALUES),
    "a catalog without a folder": lambda folder: shutil.rmtree(folder / "zsvec__catalog"),
    "references without a folder": lambda folder: shutil.rmtree(folder / "zsvec__dino"),
    "a catalog with another name": renamed,
    "no references": truncated("clip", NO_POINTS),
    "some references": truncated("dino", NO_POINTS, 8),
    "references without payloads": removed("dino", NO_PAYLOADS),
    "references without vectors": removed("clip", "segments/*/vector_storage/vectors"),
    "references without segments": removed("clip", "segments"),
    "references without a log": removed("clip", "wal"),
    "references at which the engine panics": truncated("clip", NO_VALUES),
    "catalog and references swapped": swapped(IDS, "catalog", "clip"),
    "references of two encoders swapped": swapped(IDS, "dino", "clip"),
    "ids at which the engine ends the process": lambda folder: file(folder, "clip", IDS).write_bytes(LARGE),
    "damaged checksums": lambda folder: os.truncate(folder / "zsvec__clip" / "checksums.json", 3),
    "swapped checksums": swapped("checksums.json", "catalog", "clip"),
    "references with another segment": lambda folder: shutil.copytree(
        file(folder, "dino", "segments/*"), file(folder, "clip", "segments/*").with_name(str(UUID(int=1)))
    ),
    "a record with another id": changed("catalog", IDS, 30),
    "a reference with another id": changed("clip", IDS, 30),
    "records at whose ids the engine ends the process": appended("catalog", IDS, LARGE),
}

LOG = "wal/open-*"


def log_zeroed(collection: str, word: bytes, length: int | None = 4096) -> Callable[[Path], None]:
    """From the last place of a word on."""

    def zero(folder: Path) -> None:
        damaged = file(folder, collection, LOG)
        content = damaged.read_bytes()
        first = content.rindex(word)
        last = len(content) if length is None else first + length
        damaged.write_bytes(content[:first] + bytes(last - first) + content[last:])

    return zero


def log_ends(collection: str, word: bytes) -> Callable[[Path], None]:
    def end(folder: Path) -> None:
        damaged = file(folder, collection, LOG)
        os.truncate(damaged, damaged.read_bytes().rindex(word))

    return end


MISSING = {
    name: DAMAGE[name]
    for name in (
        "a catalog without a folder",
        "a catalog without a log",
        "a catalog without segments",
        "references without a folder",
        "references without a log",
    )
}

DAMAGED_LOGS: dict[str, Callable[[Path], object]] = {
    "a catalog whose log is zeroed at a category": log_zeroed("catalog", b"red panda"),
    "a catalog whose log is zeroed from a category on": log_zeroed("catalog", b"red panda", None),
    "a catalog whose log has lost a byte of a category": log_zeroed("catalog", b"red panda", 1),
    "a catalog whose log is zeroed at what was removed": log_zeroed("catalog", b"desk"),
    "a catalog whose log is zeroed at its end": log_zeroed("catalog", b"store"),
    "a catalog whose log is zeroed": zeroed("catalog", LOG),
    "a catalog whose log ends at a category": log_ends("catalog", b"red panda"),
    "a catalog whose log ends at what was removed": log_ends("catalog", b"desk"),
    "references whose log is zeroed at a category": log_zeroed("clip", b"red panda"),
    "references whose log is zeroed": zeroed("clip", LOG),
    "references whose log ends at a category": log_ends("dino", b"red panda"),
}

CALLS: dict[str, Callable[[Store], object]] = {
    "categories": Store.categories,
    "stored": lambda store: [store.stored(name) for name in STORED],
    "look": lambda store: store.look(Cursor(), {}),
    "query": lambda store: [
        store.query(e, "image", np.ones((1, f.dim), "float32"), 9) for e, f in FINGERPRINTS.items()
    ],
    "info": Store.info,
    "doctor": lambda store: list(store.check_up()),
    "calibration": Store.calibration,
    "bind": lambda store: store.bind(FINGERPRINTS),
    "add": lambda store: add(store, "desk", ["9"]),
    "replace": lambda store: add(store, "lynx", ["9"], replace=True),
    "remove": lambda store: store.remove("red panda"),
    "flush": Store.flush,
    "close": Store.close,
}


IGNORED = "ignore::pytest.PytestUnraisableExceptionWarning"  # of the engine, about a collection that cannot be flushed

pytestmark = pytest.mark.filterwarnings(IGNORED)


def check_errors(folder: Path) -> None:
    """All calls succeed, or name the folder in an error of zsvec."""
    store, failed = Store(EdgeBackend(folder), "zsvec"), dict[str, str]()
    for name, call in CALLS.items():
        try:
            call(store)
        except (
            ZSVecError
        ) as error:  # also CategoryNotFoundError, if the damaged log of a killed process has lost a category
            failed[name] = str(error)
    assert all(str(folder) in message for message in failed.values())


def check_nothing_is_collected(folder: Path) -> None:
    """No live reference is deleted; there is no garbage in the store."""
    backend = EdgeBackend(folder)
    before = points(backend)
    with suppress(StoreError):
        Store(backend, "zsvec").gc(grace=0)
    assert points(backend) >= before
    with suppress(StoreError):
        backend.close()


def check_loss_is_told(folder: Path) -> None:
    store = Store(EdgeBackend(folder), "zsvec")
    try:
        found = {category.name: sources(store, category.name) for category in store.categories()}
        missing = {name for name in STORED if found.get(name) != STORED[name]}
        assert missing <= set(store.incomplete())
        told = bool(missing)
    except StoreError:
        told = True
    assert told
    with suppress(StoreError):
        store.close()


def check(folder: Path, damage: Callable[[Path], object]) -> None:
    for number, one in enumerate((check_errors, check_nothing_is_collected, check_loss_is_told)):
        damaged = copy(folder, folder.with_name(f"damaged {number}"))
        damage(damaged)
        one(damaged)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_closed_store(folder: Path, damage: Callable[[Path], object]) -> None:
    check(folder, damage)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_store_that_was_flushed_and_killed(flushed: Path, parent: Path, damage: Callable[[Path], object]) -> None:
    check(copy(flushed, parent / "store"), damage)


@pytest.mark.parametrize("damage", MISSING.values(), ids=MISSING)
def test_a_store_that_was_not_closed(
    open_folder: Path, written_since: Path, parent: Path, damage: Callable[[Path], object]
) -> None:
    check(open_folder, damage)
    (parent / "since").mkdir()
    check(copy(written_since, parent / "since" / "store"), damage)


@pytest.mark.parametrize("damage", DAMAGED_LOGS.values(), ids=DAMAGED_LOGS)
def test_a_damaged_log_of_a_store_that_was_not_closed(open_folder: Path, damage: Callable[[Path], object]) -> None:
    damage(open_folder)
    check_errors(open_folder)


def points(backend: EdgeBackend) -> set[tuple[str, str]]:
    """Encoder and id of each reference that can be read."""
    found = set()
    for encoder in FINGERPRINTS:
        with suppress(StoreError):
            found |= {(encoder, i) for page in backend.scroll(f"zsvec__{encoder}", Where()) for i in page.ids}
    return found


def test_a_store_that_is_only_read_stays_closed(folder: Path) -> None:
    """The engine changes files; readers may be killed, and each of those that are not closes the store."""
    for number in range(4):
        with Store(EdgeBackend(folder), "zsvec") as store:
            assert {category.name: sources(store, category.name) for category in store.categories()} == STORED
            store.flush()
            folder, read = folder.with_name(f"copy {number}"), folder
            shutil.copytree(read, folder, ignore=shutil.ignore_patterns(".lock-*"))
        with Store(EdgeBackend(read), "zsvec") as store:
            assert store.incomplete() == []


def state(folder: Path) -> dict[str, dict[str, list[str]]]:
    with Store(EdgeBackend(folder), "zsvec") as store:
        assert store.incomplete() == []
        return {category.name: sources(store, category.name) for category in store.categories()}


def test_a_killed_store_is_compared_with_nothing_until_it_is_closed(open_folder: Path) -> None:
    assert not list(open_folder.glob("*/checksums.json"))
    assert state(open_folder) == STORED
    assert len(list(open_folder.glob("*/checksums.json"))) == 3  # all that were read
    truncated("clip", NO_POINTS)(open_folder)
    with pytest.raises(StoreError, match=r"mutable_id_tracker\.versions' has changed since the collection was closed"):
        state(open_folder)


ADD = "add(store, 'desk', ['5'])"


@pytest.mark.parametrize(
    "then",
    [
        *([f"EdgeBackend.{name} = kill", ADD] for name in ("_check_room", "_check_there", "upsert", "put", "drop")),
        *([f"Checksums.{name} = kill", "store.flush()"] for name in ("write", "_sync_changes")),
        ["os.fsync = kill", "store.flush()"],
        ["Path.replace = kill", "store.flush()"],
        *(["store.flush()", f"Checksums.{name} = kill", ADD] for name in ("check", "remove", "write")),
        ["store.flush()", "Path.unlink = kill", ADD],
        ["store.flush()", "os.fsync = kill", ADD],
        ["store.flush()", "EdgeBackend._check_there = kill", ADD],
        ["store.flush()", "store.categories()"],
        ["store.close()", "store = Store(EdgeBackend(Path(sys.argv[1])), 'zsvec')", "store.categories()"],
        ["store.flush()", ADD, "Path.replace = kill", "store.flush()"],
        ["store.flush()", ADD, "store.flush()", ADD],
        ["store._backend.rewrite('zsvec__catalog')"],
        ["store._backend.rewrite('zsvec__catalog')", ADD],
        ["store._backend.rewrite('zsvec__clip')", ADD, "Path.replace = kill", "store.flush()"],
        ["store.close()"],
    ],
    ids=", ".join,
)
def test_a_process_killed_at_any_point_leaves_no_damage(parent: Path, then: list[str]) -> None:
    folder = killed(parent / "store", *then)
    for _ in range(2):
        found = state(folder)
        assert {name: found[name] for name in STORED} == STORED


def test_a_store_that_is_never_closed_warns_of_nothing(folder: Path) -> None:
    add(Store(EdgeBackend(folder), "zsvec"), "desk", ["5"])
    gc.collect()


def test_the_way_out_is_in_the_message(folder: Path) -> None:
    zeroed("catalog", "segments/*/payload_index/*-kind-map/page_0.dat")(folder)
    with pytest.raises(StoreError, match=r"page_0\.dat' has changed since") as damaged:
        state(folder)
    way_out = re.search(r"delete (\S*) to open it all the same", str(damaged.value))
    assert way_out
    Path(way_out[1]).unlink()
    assert state(folder) == STORED


def test_a_copy_has_the_same_checksums(folder: Path) -> None:
    """Where holes are written, and where blocks of zeros become holes."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert state(folder) == STORED
    for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 4096]:
        content = path.read_bytes()
        path.unlink()
        with path.open("wb") as file:
            os.truncate(path, len(content))
            for first in range(0, len(content), 4096):
                if any(page := content[first : first + 4096]):
                    file.seek(first)
                    file.write(page)
    assert state(folder) == STORED


def test_the_checksum_of_a_file_depends_on_each_byte_and_on_the_size(tmp_path: Path) -> None:
    path, block = tmp_path / "file", 2**16
    contents = [
        b"",
        b"\0",
        b"\1",
        b"\0\1",
        bytes(block),
        bytes(block) + b"\1",
        bytes(2 * block) + b"\1",
        bytes(3 * block),
    ]
    found = []
    for content in contents:
        path.write_bytes(content)
        found.append(tuple(_checksum(path)))
    assert len(set(found)) == len(contents)


@pytest.mark.skipif(sys.platform != "linux", reason="the script forks, and limits memory")
def test_damage_at_random() -> None:
    command = [sys.executable, "-m", "scripts.damage", "--stores", "20", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert re.search(r"all +│ 20 ", done.stdout)


def test_a_damaged_index_hides_no_category(open_folder: Path) -> None:
    state(open_folder)
    zeroed("catalog", "segments/*/payload_index/*-kind-map/page_0.dat")(open_folder)
    (open_folder / "zsvec__catalog" / "checksums.json").unlink()
    with Store(EdgeBackend(open_folder), "zsvec") as store:
        assert [category.name for category in store.categories()] == list(STORED)
        assert [category.name for category in store.look(Cursor(), {}).categories] == ["desk", *STORED]
        assert store.gc().total() == 0


def test_references_of_a_lost_commit_are_not_collected(folder: Path) -> None:
    """References without commit and intent, since the catalog is an older copy."""
    before = folder.with_name("before")
    shutil.copytree(folder, before)
    with Store(EdgeBackend(folder), "zsvec") as store:
        add(store, "lynx", ["5"])
        add(store, "desk", ["6"])
    for lost in folder.glob("*zsvec__catalog"):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    shutil.copytree(before / "zsvec__catalog", folder / "zsvec__catalog")
    with Store(EdgeBackend(folder), "zsvec") as store:
        there = points(cast("EdgeBackend", store._backend))
        with pytest.raises(StoreError, match=r"references of 'desk', 'lynx' in .* the catalog may have lost them"):
            store.gc()
        assert points(cast("EdgeBackend", store._backend)) == there
        for name in ("desk", "lynx"):
            add(store, name, ["7"])
        assert store.gc().total() == 4


def test_intents_of_a_lost_manifest_block_no_others(folder: Path) -> None:
    """Intents of a lost manifest: garbage of other writes is deleted."""
    with Store(EdgeBackend(folder), "zsvec") as store:
        backend, catalog, dead = cast("EdgeBackend", store._backend), store._catalog, new_write_id()
        before = points(backend)
        store._references.put([(replace(store.category("lynx"), write_ids=(dead,)), references(["left"], ["left"]))])
        found: list[tuple[dict[str, list[str]], dict[str, list[str]]]] = [({}, {"lost": [new_write_id()]})] * 150
        for rev, (writes, replaced) in enumerate([*found, ({"lynx": [dead]}, {})]):
            intent = intent_payload(str(UUID(int=rev)), catalog.state([]).store, rev, writes, replaced)
            catalog.put([Put(intent["id"], intent)])
        assert len(points(backend) - before) == 3
        store.remove("lynx")
        assert points(backend) < before
