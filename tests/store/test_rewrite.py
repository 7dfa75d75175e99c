"""A rewritten collection: its files hold nothing deleted, and the content is the same after any failure."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store.rewriter import COLLECTION
from tests.store.support import Disk, fast_folder, small_disk
from zsvec.errors import StoreError, StoreUnavailableError, ZSVecError
from zsvec.store.backends.base import Points, Where
from zsvec.store.backends.edge import backend as edge
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.folder import ROOM

ROOT = Path(__file__).parents[2]
DIM = 16
KEPT = 3000  # more than a page
INDEXES = {"category": "keyword", "rev": "integer"}
FORGOTTEN = str(uuid.UUID(int=2**127 + 5))
SECRET = "a name that nobody else has"
_LINE = np.linspace(0.1, 0.4, DIM, dtype=np.float32)
VECTOR = (_LINE / np.linalg.norm(_LINE)).astype(np.float32)
NEEDLES: Mapping[str, bytes] = {
    "payload": SECRET.encode(),
    "vector": VECTOR.tobytes(),
    "vector in the log": b"".join(b"\xfa" + struct.pack(">f", value) for value in VECTOR),  # as CBOR
    "id": uuid.UUID(FORGOTTEN).bytes,
}

# Payload and bytes of the vector of each point, by id.
Content = dict[str, tuple[Mapping[str, Any], bytes]]


def kept(number: int = KEPT) -> Points:
    """Vectors that are of no unit length, as well."""
    draw = np.random.default_rng(number)
    vectors = (draw.standard_normal((number, DIM)) * draw.uniform(0.5, 2, (number, 1))).astype(np.float32)
    values = [None, True, -1, 2**53, 0.1, "é\0小熊猫", [1, {"deep": []}], {}]
    payloads = [{"category": f"c{i % 7}", "rev": i, "value": values[i % len(values)]} for i in range(number)]
    return Points([str(uuid.UUID(int=i)) for i in range(number)], vectors, payloads)


def fill(backend: EdgeBackend, number: int = KEPT) -> None:
    backend.create(COLLECTION, DIM, INDEXES)
    backend.upsert(COLLECTION, kept(number))
    backend.upsert(COLLECTION, Points([FORGOTTEN], VECTOR[None], [{"category": SECRET, "rev": 7}]))


def content(backend: EdgeBackend) -> Content:
    pages = list(backend.scroll(COLLECTION, Where(), vectors=True))
    return {
        identifier: (payload, vector.tobytes())
        for page in pages
        for identifier, payload, vector in zip(page.ids, page.payloads, page.vectors, strict=True)
    }


def found(folder: Path) -> dict[str, set[str]]:
    """Files of a store that have traces of the deleted point."""
    places: dict[str, set[str]] = {name: set() for name in NEEDLES}
    for file in folder.rglob("*"):
        if file.is_file():
            read = data(file)
            for name, needle in NEEDLES.items():
                if needle in read:
                    places[name].add(file.relative_to(folder).as_posix())
    return {name: files for name, files in places.items() if files}


def data(file: Path) -> bytes:
    """Content of a file without holes, which are slow to read."""
    read, end = b"", 0
    with file.open("rb") as opened, suppress(OSError):  # there is no data after the last hole
        while True:
            start = os.lseek(opened.fileno(), end, os.SEEK_DATA)
            end = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            read += os.pread(opened.fileno(), end - start, start)
    return read


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as parent:
        yield parent / "store"


@pytest.fixture
def backend(folder: Path) -> Iterator[EdgeBackend]:
    """With a point deleted that is to be forgotten."""
    opened = EdgeBackend(folder)
    fill(opened)
    opened.drop(COLLECTION, [FORGOTTEN])
    yield opened
    opened.close()


# Deleted points


@pytest.mark.parametrize("before", [EdgeBackend.flush, EdgeBackend.close, lambda _: None], ids=["flush", "close", "-"])
def test_deleted_points_are_in_no_file(folder: Path, before: Callable[[EdgeBackend], None]) -> None:
    backend = EdgeBackend(folder)
    fill(backend)
    backend.drop(COLLECTION, [FORGOTTEN])
    before(backend)
    if before is EdgeBackend.close:
        backend = EdgeBackend(folder)
    there = content(backend)
    backend.flush()
    assert found(folder).keys() == NEEDLES.keys()  # deletion alone leaves traces
    backend.rewrite(COLLECTION)
    assert found(folder) == {}
    assert names(folder) == {f".lock-{COLLECTION}", f".collection-{COLLECTION}", COLLECTION}
    assert content(backend) == there
    assert found(folder) == {}
    backend.flush()
    assert found(folder) == {}
    backend.upsert(COLLECTION, kept(10))
    backend.close()
    assert found(folder) == {}
    backend = EdgeBackend(folder)
    assert content(backend).keys() == there.keys()
    backend.close()
    assert found(folder) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells mapped files")
def test_the_room_of_deleted_points_is_free(backend: EdgeBackend) -> None:
    """Mapped and open files still take room."""
    for _ in range(3):
        backend.rewrite(COLLECTION)
        backend.count(COLLECTION, Where())
    used = Path("/proc/self/maps").read_text() + "".join(
        str(path.readlink()) + "\n" for path in Path("/proc/self/fd").iterdir() if path.exists()
    )
    assert f"{COLLECTION}/segments" in used
    assert "(deleted)" not in "".join(line for line in used.splitlines() if COLLECTION in line)


def test_an_empty_collection_and_one_that_is_not_there(folder: Path) -> None:
    backend = EdgeBackend(folder)
    backend.rewrite(COLLECTION)
    assert not folder.exists()
    fill(backend, 1)
    backend.delete(COLLECTION, Where())
    backend.rewrite(COLLECTION)
    assert found(folder) == {}
    assert backend.count(COLLECTION, Where()) == 0
    backend.upsert(COLLECTION, kept(3))
    backend.close()
    backend = EdgeBackend(folder)
    assert backend.count(COLLECTION, Where()) == 3
    backend.close()


def test_the_indexes_are_the_same(backend: EdgeBackend) -> None:
    before = backend._shard(COLLECTION).info().payload_schema
    backend.rewrite(COLLECTION)
    after = backend._shard(COLLECTION).info().payload_schema
    assert {name: (index.data_type, index.points) for name, index in after.items()} == {
        name: (index.data_type, index.points) for name, index in before.items()
    }
    assert after.keys() == INDEXES.keys()


# Damage


def test_damage_of_a_rewritten_collection_is_told(backend: EdgeBackend, folder: Path) -> None:
    """Closed, or killed before the next load."""
    backend.rewrite(COLLECTION)
    killed = copy(folder, folder.with_name("killed"))
    backend.count(COLLECTION, Where())
    backend.close()
    for store in (folder, killed):
        [ids] = (store / COLLECTION).glob("segments/*/mutable_id_tracker.mappings")
        os.truncate(ids, ids.stat().st_size // 2)
        with (
            closing(EdgeBackend(store)) as damaged,
            pytest.raises(StoreError, match="has changed since the collection was closed"),
        ):
            damaged.count(COLLECTION, Where())


def copy(folder: Path, other: Path) -> Path:
    """A store as after a killed writer."""
    return shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".lock-*"))


# Concurrent use


def test_concurrent_readers_have_whole_answers(backend: EdgeBackend) -> None:
    there, vectors = content(backend), np.eye(3, DIM, dtype=np.float32)
    nearest = backend.query(COLLECTION, vectors, Where(), 5, ["rev"])
    failed, done, answers = list[BaseException](), threading.Event(), [0, 0, 0]

    def read(which: int, ask: Callable[[], None]) -> None:
        while not done.is_set():
            try:
                ask()
                answers[which] += 1
            except BaseException as error:  # noqa: BLE001
                failed.append(error)
                return

    def scroll() -> None:
        assert content(backend) == there

    def query() -> None:
        assert backend.query(COLLECTION, vectors, Where(), 5, ["rev"]) == nearest

    def rest() -> None:
        assert backend.exists(COLLECTION)
        assert backend.count(COLLECTION, Where()) == KEPT
        assert len(backend.retrieve(COLLECTION, list(there)[:3])) == 3

    threads = [threading.Thread(target=read, args=pair) for pair in enumerate((scroll, query, rest))]
    for thread in threads:
        thread.start()
    for _ in range(10):
        backend.rewrite(COLLECTION)
    time.sleep(0.2)
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert min(answers) > 0


def test_a_scroll_goes_on_in_the_rewritten_collection(backend: EdgeBackend) -> None:
    pages = backend.scroll(COLLECTION, Where(), vectors=True)
    first = next(pages)
    backend.rewrite(COLLECTION)
    assert len(first.ids) + sum(len(page.ids) for page in pages) == KEPT


def test_another_process_finds_the_store_open(backend: EdgeBackend, folder: Path) -> None:
    backend.rewrite(COLLECTION)
    with closing(EdgeBackend(folder)) as other, pytest.raises(StoreError, match="already open"):
        other.rewrite(COLLECTION)
    assert backend.count(COLLECTION, Where()) == KEPT


# Failures


def test_a_full_disk_leaves_the_old_collection(backend: EdgeBackend, folder: Path, disk: Disk) -> None:
    there = content(backend)
    backend.flush()
    for step in range(100):
        disk.full_at = disk.looks + step
        try:
            backend.rewrite(COLLECTION)
        except StoreUnavailableError:
            pass
        else:
            assert step > 5
            break
        finally:
            disk.full_at = -1
        assert names(folder) == {f".lock-{COLLECTION}", f".collection-{COLLECTION}", COLLECTION}
        assert content(backend) == there
    else:
        raise AssertionError("it is never done")
    assert found(folder) == {}
    assert content(backend) == there


def test_the_needed_room_grows_with_the_collection(backend: EdgeBackend, disk: Disk) -> None:
    disk.free = ROOM + 1000
    with pytest.raises(StoreUnavailableError, match=r"16\.0 MiB free, and (1[7-9]|2\d)\.\d MiB are needed"):
        backend.rewrite(COLLECTION)


FORGETTER = """
import sys
from pathlib import Path
from contextlib import closing
from tests.store.test_rewrite import COLLECTION, EdgeBackend, Points, content, fill, kept
from zsvec.errors import StoreUnavailableError
with closing(EdgeBackend(Path(sys.argv[1]))) as backend:
    fill(backend, 1)
    points = kept(200_000)
    try:
        for i in range(0, 200_000, 500):
            chunk = slice(i, i + 500)
            backend.upsert(COLLECTION, Points(points.ids[chunk], points.rows[chunk], points.payloads[chunk]))
    except StoreUnavailableError:
        there = content(backend)
    backend.drop(COLLECTION, list(there)[:1])
    there = content(backend)
    try:
        backend.rewrite(COLLECTION)
    except StoreUnavailableError as refused:
        print(refused)
    assert content(backend) == there
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as small:
        command = [sys.executable, "-c", FORGETTER, str(small / "store")]
        forgetter = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (forgetter.returncode, forgetter.stderr) == (0, "")  # -SIGBUS, without the check
        assert "MiB are needed for this: make room" in forgetter.stdout
        assert len(names(small / "store")) == 3


@pytest.mark.parametrize("failing", ["fsync", "rename", "replace"])
def test_a_failing_disk_leaves_the_old_or_the_new_collection(
    backend: EdgeBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    there = content(backend)
    backend.flush()
    function = getattr(os, failing)
    for step in chain(range(4), range(4, 1000, 9)):
        calls = iter(range(1000))

        def fail(*args: Any, calls: Iterator[int] = calls, step: int = step) -> Any:
            if next(calls) == step:
                raise OSError(5, "Input/output error")
            return function(*args)

        with monkeypatch.context() as patched:
            patched.setattr(os, failing, fail)
            try:
                backend.rewrite(COLLECTION)
                done = next(calls) <= step
            except StoreUnavailableError:
                done = False
        assert content(backend) == there
        assert names(folder) == {f".lock-{COLLECTION}", f".collection-{COLLECTION}", COLLECTION}
        if done:
            break
    else:
        raise AssertionError("it is never done")
    assert step > 0
    assert found(folder) == {}


def test_a_copy_in_the_place_of_the_store_is_left_alone(backend: EdgeBackend, folder: Path) -> None:
    backend.flush()
    copy(folder, folder.with_name("copy"))
    folder.rename(folder.with_name("moved"))
    folder.with_name("copy").rename(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(StoreUnavailableError, match="was deleted, moved, replaced"):
        backend.rewrite(COLLECTION)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_copy_that_took_the_place_meanwhile_is_left_alone(
    backend: EdgeBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.flush()
    there, elsewhere = folder.with_name("copy"), folder.with_name("moved")
    copy(folder, there)
    (there / f".{COLLECTION}.01234567").mkdir()  # of a process with the lock
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    page = edge._page

    def replaced(*args: Any, **options: Any) -> Any:
        if there.exists():
            folder.rename(elsewhere)
            there.rename(folder)
        return page(*args, **options)

    monkeypatch.setattr(edge, "_page", replaced)
    with pytest.raises(StoreUnavailableError, match="was deleted, moved, replaced"):
        backend.rewrite(COLLECTION)
    assert {there / path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("link", [f".next-{COLLECTION}", f".{COLLECTION}.01234567"])
def test_a_link_in_a_store_is_not_followed(backend: EdgeBackend, folder: Path, link: str) -> None:
    backend.close()
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "seal").write_text("mine")
    (folder / link).symlink_to(elsewhere)
    with closing(EdgeBackend(folder)) as opened, pytest.raises(ZSVecError):
        opened.count(COLLECTION, Where())
    assert (elsewhere / "seal").read_text() == "mine"
    assert names(elsewhere) == {"seal"}


# Killed


class Rewriter:
    """`tests.store.rewriter`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, step: int = -1, delay: float | None = None) -> list[str] | None:
        """Rewrites a collection, and returns the steps; ``None`` if killed before a step, or after `delay` seconds."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        print(step, folder, file=asked, flush=True)
        pid = int(told.readline().removeprefix("ready "))
        if delay is not None:
            time.sleep(delay)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        taken: list[str] = []
        for line in told:
            if line.startswith("ended "):
                assert line in (f"ended {-signal.SIGKILL}\n", "ended 0\n")
                return taken if line == "ended 0\n" else None
            taken.append(line.rstrip())
        raise AssertionError("the rewriter has ended")


@pytest.fixture(scope="module")
def rewriter() -> Iterator[Rewriter]:
    command = [sys.executable, "-m", "tests.store.rewriter"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Rewriter(process)
        process.kill()


def filled(folder: Path) -> Content:
    """Content of a new store."""
    with closing(EdgeBackend(folder)) as backend:
        fill(backend, 200)
        backend.drop(COLLECTION, [FORGOTTEN])
        return content(backend)


def assert_whole(folder: Path, there: Content) -> bool:
    """Whether the collection is rewritten; otherwise, it is as before."""
    with closing(EdgeBackend(folder)) as backend:
        assert backend.exists(COLLECTION)
        assert content(backend) == there
        assert names(folder) == {f".lock-{COLLECTION}", f".collection-{COLLECTION}", COLLECTION}
        left = found(folder)
        assert left.keys() in (set(), NEEDLES.keys())
        backend.upsert(COLLECTION, kept(200))
    return not left


def test_killed_at_each_step(rewriter: Rewriter, folder: Path) -> None:
    """Of many steps of a kind, one after the other, before the first, the second and the last."""
    there = filled(folder)
    steps = rewriter.run(folder)
    assert steps is not None
    chosen, first = [], 0
    for _, group in groupby(steps):
        last = first + len(list(group)) - 1
        chosen += sorted({first, min(first + 1, last), last})
        first = last + 1
    assert len(chosen) > 20
    anew = []
    for step in chosen:
        shutil.rmtree(folder)
        filled(folder)
        if rewriter.run(folder, step) is None:
            anew.append(assert_whole(folder, there))
    assert len(anew) > 20
    assert anew == sorted(anew)  # from one step on
    assert set(anew) == {False, True}


def test_killed_at_any_instant(rewriter: Rewriter, folder: Path) -> None:
    there, draw, times = filled(folder), random.Random(1999), 25
    begun = time.monotonic()
    rewriter.run(folder)
    longest = time.monotonic() - begun
    killed = 0
    for _ in range(times):
        shutil.rmtree(folder)
        filled(folder)
        begun = time.monotonic()
        if rewriter.run(folder, delay=draw.uniform(0, longest)) is None:
            killed += 1
        else:  # the machine has become faster
            longest = min(longest, time.monotonic() - begun)
        assert_whole(folder, there)
        assert rewriter.run(folder) is not None
        assert assert_whole(folder, there)
    assert killed > times / 4
