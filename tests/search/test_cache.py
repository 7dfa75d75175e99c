"""The cache of references: the next process, damaged files, other users, and drops."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zsvec
from tests.search.support import STATE, OneWay, SharedDeployment, State, assert_answers, fill, in_a_folder, queries
from tests.store.material import add, references
from zsvec import CategoryInput
from zsvec.errors import StoreUnavailableError
from zsvec.inputs.files import replacing
from zsvec.search import cache
from zsvec.search.base import IndexSpec
from zsvec.search.cache import ReferenceCache
from zsvec.search.searcher import Searcher
from zsvec.store import Store
from zsvec.testing import HashEncoder

CACHED = "*.references"
SMALL = {name: STATE[name] for name in ("both", "images only", "text only", "duplicates", "a single reference")}


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zsvec.search.searcher.WORTH", 1)


@pytest.fixture
def deployment() -> Iterator[SharedDeployment]:
    with in_a_folder("shared") as opened:
        assert isinstance(opened, SharedDeployment)
        yield opened


def another(store: Store, *, cached: bool = True) -> OneWay:
    """The searcher of another process."""
    made = OneWay(store, kind="memory", budget=0, neighbors=100, norms=True, cached=cached)
    made.spec = IndexSpec("numpy")
    return made


def folder() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "zsvec" / "references"


def files(pattern: str = "*") -> list[Path]:
    return sorted(folder().glob(pattern))


class Read:
    """Counts the references that are read from a store."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        pages = store._references.pages

        def counting(*arguments: Any, **options: Any) -> Iterator[Any]:
            for page in pages(*arguments, **options):
                self.count += len(page.ids)
                yield page

        monkeypatch.setattr(store._references, "pages", counting)


@pytest.fixture
def read(store: Store, monkeypatch: pytest.MonkeyPatch) -> Read:
    return Read(store, monkeypatch)


def total(state: State) -> int:
    return sum(len({r.key for r in found}) for found in state.values())


def test_the_next_process_reads_none(store: Store, read: Read) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    assert read.count == total(SMALL)
    searching = another(store)
    assert_answers(searching, SMALL)
    assert read.count == total(SMALL)
    kept, fresh = searching.references()[0], another(store, cached=False).references()[0]
    assert kept.keys() == fresh.keys()
    for expert, found in fresh.items():
        for name in ("names", "hashes", "sources", "groups"):
            assert getattr(kept[expert], name) == getattr(found, name)
        for name in ("vectors", "starts", "norms"):
            np.testing.assert_array_equal(getattr(kept[expert], name), getattr(found, name))
            assert getattr(kept[expert], name).dtype == getattr(found, name).dtype


def test_the_next_process_reads_changes_only(store: Store, read: Read) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    state = dict(SMALL)
    add(store, "both", ["11"])
    state["both"] = [*state["both"], *references(images=["11"])]
    add(store, "text only", ["12"], replace=True)
    state["text only"] = references(images=["12"])
    store.remove("images only")
    del state["images only"]
    store.remove("duplicates")
    add(store, "duplicates", ["13"])
    state["duplicates"] = references(images=["13"])
    add(store, "new", ["14"])
    state["new"] = references(images=["14"])
    before = read.count
    searching = another(store)
    assert_answers(searching, state)
    assert read.count - before == 4 * 2
    add(store, "new", ["15"])
    state["new"] = [*state["new"], *references(images=["15"])]
    assert_answers(searching, state)


changes = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["add", "replace", "remove", "open"]), st.integers(0, 9)),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes)
def test_each_process_sees_all_commits(changes: list[tuple[str, str, int]]) -> None:
    with in_a_folder("shared") as opened:
        store = opened.open()
        state: dict[str, Any] = {}
        for name, what, number in changes:
            if what == "open" and state:
                assert_answers(another(store), state)
            elif what == "remove" and name in state:
                store.remove(name)
                del state[name]
            elif what in ("add", "replace"):
                add(store, name, [str(number)], replace=what == "replace")
                new = references(images=[str(number)])
                state[name] = new if what == "replace" else [*state.get(name, []), *new]
        if state:
            assert_answers(another(store), state)


def test_damaged_files_are_read_from_the_store(store: Store, read: Read) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    rng = np.random.default_rng(0)
    (file,) = files(CACHED)
    content = file.read_bytes()
    for number, at in enumerate(rng.integers(len(content), size=64).tolist()):
        flipped = content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
        damaged = flipped, content[:at], b"", None
        file.unlink()
        if (left := damaged[number % 4]) is not None:
            file.write_bytes(left)
        before = read.count
        assert_answers(another(store), SMALL)
        assert read.count - before == total(SMALL)
        assert file.read_bytes() == content


def sealed(header: Any, vectors: bytes = b"") -> bytes:
    """A file with its checksum."""
    content = json.dumps(header).encode() + b"\n" + vectors
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def test_a_file_of_another_kind_is_none(store: Store) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    (file,) = files(CACHED)
    one = {"format": 2, "experts": {}, "categories": {}}
    for header in ({"format": 3}, [], {**one, "experts": 7}, {**one, "categories": 7}):
        file.write_bytes(sealed(header))
        assert_answers(another(store), SMALL)


def forged(change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a header, and the checksum of its file."""
    (file,) = files(CACHED)
    header, _, vectors = file.read_bytes().partition(b"\n")[2].partition(b"\n")
    values = json.loads(header)
    change(values)
    file.write_bytes(sealed(values, vectors))


CHANGES: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "another name": lambda expert: expert["names"].reverse(),
    "a name too few": lambda expert: expert["names"].pop(),
    "a hash too few": lambda expert: expert["hashes"].pop(),
    "a source too many": lambda expert: expert["sources"].append("x"),
    "groups of some": lambda expert: expert["groups"].append("x"),
    "an empty category": lambda expert: expert["starts"].__setitem__(1, 0),
    "a number more": lambda expert: expert.update(dim=expert["dim"] + 1),
    "no number": lambda expert: expert.update(dim=-1),
    "not to the end": lambda expert: expert["starts"].__setitem__(-1, expert["starts"][-1] - 1),
}


def test_a_header_that_does_not_fit_its_vectors_is_none(store: Store, read: Read) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    for name, change in CHANGES.items():
        forged(lambda values, change=change: change(values["experts"]["clip:image"]))  # type: ignore[misc]
        before = read.count
        assert_answers(another(store), SMALL)
        assert read.count - before == total(SMALL), name


def test_vectors_of_other_encoders_are_none(store: Store, read: Read) -> None:
    fill(store, SMALL)
    for dim in (3, 400):
        assert_answers(another(store), SMALL)
        kept = ReferenceCache().load(key(store))
        assert kept is not None
        other = np.ones((len(kept.references["clip:image"].hashes), dim), np.float32)
        changed = {**kept.references, "clip:image": replace(kept.references["clip:image"], vectors=other)}
        ReferenceCache().save(key(store), changed, kept.catalog, b"")
        before = read.count
        assert_answers(another(store), SMALL)
        assert read.count - before == total(SMALL)


def test_a_folder_where_others_may_write_is_not_used(store: Store, read: Read) -> None:
    folder().mkdir(parents=True)
    folder().chmod(0o777)
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    assert not files()
    folder().chmod(0o700)
    assert_answers(another(store), SMALL)
    assert files()
    folder().chmod(0o777)
    before = read.count
    assert_answers(another(store), SMALL)
    assert read.count - before == total(SMALL)


def test_a_restored_older_copy_is_read_anew(store: Store, deployment: SharedDeployment) -> None:
    fill(store, SMALL)
    deployment.close()
    copied = deployment.folder.with_name("backup")
    shutil.copytree(deployment.folder, copied)
    store = Store(deployment.backend(), "zsvec")
    add(store, "both", ["11"])
    assert_answers(another(store), {**SMALL, "both": [*SMALL["both"], *references(images=["11"])]})
    deployment.close()
    shutil.rmtree(deployment.folder)
    copied.rename(deployment.folder)
    store = Store(deployment.backend(), "zsvec")
    searching = another(store)
    assert_answers(searching, SMALL)
    assert searching.search(queries(), nearest=1).incomplete == ()


def test_a_reference_more_is_no_reason_to_keep_all_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.search.searcher.WORTH", 20)
    state = {"a": references(images=[f"a{i}" for i in range(30)]), "b": references(images=[f"b{i}" for i in range(30)])}
    fill(store, state)
    searching = another(store)
    assert_answers(searching, state)
    kept = kept_bytes()
    for i in range(5):
        add(store, "a", [f"new {i}"])
        searching.search(queries(), nearest=1)
    assert kept_bytes() == kept
    add(store, "b", [f"more {i}" for i in range(20)])
    searching.search(queries(), nearest=1)
    assert kept_bytes() != kept
    assert len(files(CACHED)) == 1


def test_stores_of_equal_id_at_two_places_are_distinct(store: Store, deployment: SharedDeployment) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    deployment.close()
    copied = deployment.folder.with_name("copy")
    shutil.copytree(deployment.folder, copied)
    opened = SharedDeployment(copied)
    there = Store(opened.backend(), "zsvec")
    with pytest.MonkeyPatch.context() as patch:
        read = Read(there, patch)
        assert_answers(another(there), SMALL)
        assert read.count == total(SMALL)
    assert len(files(CACHED)) == 2
    opened.close()


def test_no_id_of_a_store_leads_out_of_the_folder(store: Store) -> None:
    fill(store, SMALL)
    searching = another(store)
    assert_answers(searching, SMALL)
    kept = ReferenceCache()
    for name in ("../../../x", "/x", "a\0b", "x" * 5000):
        kept.save(name, searching.references()[0], searching._snapshot.catalog, b"")
        assert kept.load(name) is not None
    assert len(files(CACHED)) == 5
    assert {path.parent for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.*")} == {folder()}


def test_others_cannot_read_it(store: Store) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files()} == {0o600}


def test_nothing_is_kept_where_it_shall_not_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, SMALL)
    assert_answers(another(store, cached=False), SMALL)
    monkeypatch.setattr("zsvec.search.searcher.WORTH", total(SMALL) + 1)
    assert_answers(another(store), SMALL)
    assert not folder().exists()


@pytest.mark.parametrize("index_cache", [True, False])
@pytest.mark.parametrize("place", ["store", ":memory:"])
def test_the_setting(place: str, index_cache: bool) -> None:
    encoder = HashEncoder()
    with zsvec.open(place, encoders=[encoder], index_cache=index_cache) as clf:
        clf.add_categories([CategoryInput(name=name) for name in ("a", "b")])
        clf.classify_vectors({encoder.name: np.eye(1, encoder.fingerprint.dim)})
    assert bool(files()) == (index_cache and place == "store")


def test_without_room_or_rights_answers_are_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, SMALL)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: usage(100, 100, 0))
        assert_answers(another(store), SMALL)
        assert not files()
    folder().rmdir()
    folder().write_text("a file")
    assert_answers(another(store), SMALL)
    assert folder().read_text() == "a file"


def test_unused_files_are_deleted(store: Store) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    kept = files()
    (used,) = files(CACHED)
    long_ago = used.stat().st_mtime - 31 * 86_400

    def aged(name: str) -> Path:
        file = folder() / name
        file.write_text("{}")
        os.utime(file, (long_ago, long_ago))
        return file

    old = [aged(name) for name in ("0.references", "0.new")]
    young = folder() / "1.new"
    young.touch()
    os.utime(used, (long_ago, long_ago))
    assert_answers(another(store), SMALL)  # a use
    ReferenceCache().save("another", {}, {}, b"")
    assert set(kept) <= set(files())
    assert young.exists()
    assert not any(file.exists() for file in old)


def test_incomplete_references_are_cached_later(store: Store, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, SMALL)
    lost = store.category("both").write_ids
    searching = another(store)
    with monkeypatch.context() as patched:
        pages = store._references.pages
        patched.setattr(
            store._references,
            "pages",
            lambda encoder, ids, **options: pages(encoder, [i for i in ids if i not in lost], **options),
        )
        patched.setattr("zsvec.search.searcher.time.sleep", lambda _: None)
        assert searching.search(queries(), nearest=1).incomplete == ("both",)
    assert not files()
    add(store, "both", ["9"], replace=True)
    assert_answers(searching, {**SMALL, "both": references(images=["9"])})
    assert len(files(CACHED)) == 1


# Drops


def key(store: Store) -> str:
    return f"{store.place} {store._catalog.state([]).store}"


def kept_bytes() -> bytes:
    """All content of the cache."""
    return b"".join(path.read_bytes() for path in files())


def one_vector(store: Store) -> bytes:
    return next(iter(another(store, cached=False).references()[0].values())).vectors[0].tobytes()


def test_dropped_references_are_in_no_file(store: Store, read: Read) -> None:
    fill(store, SMALL)
    searching = another(store)
    assert_answers(searching, SMALL)
    vector = one_vector(store)
    assert vector in kept_bytes()
    assert b"images only" in kept_bytes()
    ReferenceCache().drop(key(store))
    assert vector not in kept_bytes()
    assert b"images only" not in kept_bytes()
    assert [file.name for file in files()] == [".lock", "dropped"]
    before = read.count
    assert_answers(another(store), SMALL)
    assert read.count - before == total(SMALL)
    assert vector in kept_bytes()
    ReferenceCache().drop(key(store))
    assert vector not in kept_bytes()


def test_drop_keeps_other_stores(store: Store, deployment: SharedDeployment) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    mine = key(store)
    deployment.close()
    copied = deployment.folder.with_name("copy")
    shutil.copytree(deployment.folder, copied)
    opened = SharedDeployment(copied)
    there = Store(opened.backend(), "zsvec")
    assert_answers(another(there), SMALL)
    assert len(files(CACHED)) == 2
    ReferenceCache().drop(mine)
    assert len(files(CACHED)) == 1
    with pytest.MonkeyPatch.context() as patch:
        read = Read(there, patch)
        assert_answers(another(there), SMALL)
        assert read.count == 0
    ReferenceCache().drop(key(there))
    assert files(CACHED) == []
    opened.close()


def test_drop_keeps_mapped_references(store: Store, read: Read) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    searching = another(store)
    assert_answers(searching, SMALL)
    ReferenceCache().drop(key(store))
    before = read.count
    assert_answers(searching, SMALL)
    add(store, "new", ["14"])
    assert_answers(searching, {**SMALL, "new": references(images=["14"])})
    assert read.count - before == 2


def test_references_read_before_a_drop_are_not_cached(store: Store) -> None:
    """Before the next look at the store."""
    fill(store, SMALL)
    searching = another(store)
    Searcher.search(searching, queries(), 1, searching.spec)
    vector = one_vector(store)
    ReferenceCache().drop(key(store))
    searching.close()
    assert not files(CACHED)
    assert vector not in kept_bytes()
    add(store, "new", [f"new {i}" for i in range(30)])
    searching.search(queries(), 1)
    assert vector in kept_bytes()


@pytest.mark.parametrize("moment", ["before", "opened", "written"])
def test_drop_during_save(store: Store, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    fill(store, SMALL)
    vector, dropping = one_vector(store), key(store)
    header = cache._header
    dropped = []

    def drop(now: str) -> None:
        if now == moment:
            ReferenceCache().drop(dropping)
            dropped.append(now)

    def interrupted(*arguments: Any) -> bytes:
        drop("before")
        return header(*arguments)

    @contextmanager
    def written(file: Path, **options: Any) -> Iterator[Any]:
        with replacing(file, **options) as opened:
            if file.suffix != ".references":
                yield opened
                return
            drop("opened")

            def writelines(parts: Any) -> None:
                opened.writelines(parts)
                drop("written")

            yield SimpleNamespace(write=opened.write, writelines=writelines)

    monkeypatch.setattr(cache, "_header", interrupted)
    monkeypatch.setattr(cache, "replacing", written)
    assert_answers(another(store), SMALL)
    assert dropped == [moment]
    assert [file.name for file in files()] == [".lock", "dropped"]
    assert vector not in kept_bytes()


def test_drop_during_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    vector, load = one_vector(store), cache._read

    def interrupted(opened: Any) -> Any:
        ReferenceCache().drop(key(store))
        return load(opened)

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_read", interrupted)
        searching = another(store)
        assert_answers(searching, SMALL)
    add(store, "both", ["11"])
    assert_answers(searching, {**SMALL, "both": [*SMALL["both"], *references(images=["11"])]})
    assert vector not in kept_bytes()


def test_drop_among_concurrent_saves(store: Store) -> None:
    """After the last drop, nothing read before that drop is cached."""
    fill(store, SMALL)
    searching, vector, dropping = another(store), one_vector(store), key(store)
    searching.search(queries(), 1)
    kept, catalog = searching.references()[0], searching._snapshot.catalog
    done = threading.Event()
    saved = [0, 0]

    def save(number: int) -> None:
        while not done.is_set():
            ReferenceCache().save(dropping, kept, catalog, ReferenceCache().dropped() if number else b"")
            saved[number] += 1

    threads = [threading.Thread(target=save, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        ReferenceCache().drop(dropping)
    done.set()
    for thread in threads:
        thread.join()
    ReferenceCache().drop(dropping)
    ReferenceCache().save(dropping, kept, catalog, b"")
    assert min(saved) > 0
    assert vector not in kept_bytes()


def test_nothing_to_drop() -> None:
    ReferenceCache().drop("a store that nobody knows")
    assert [file.name for file in files()] == [".lock", "dropped"]


def test_failed_deletion_raises(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        with pytest.raises(
            StoreUnavailableError, match=r"cannot be deleted: .*Permission denied.*; delete that folder"
        ):
            another(store).forget()
    another(store).forget()
    assert not files(CACHED)


def test_nothing_is_written_where_others_may_write(store: Store) -> None:
    folder().mkdir(parents=True)
    folder().chmod(0o777)
    victim = folder().with_name("victim")
    victim.write_text("mine")
    (folder() / ".lock").symlink_to(victim)
    ReferenceCache().drop("a store of which nothing is kept")
    fill(store, SMALL)
    ReferenceCache()._file(key(store)).write_text("of another")
    with pytest.raises(StoreUnavailableError, match="others may write"):
        another(store).forget()
    assert victim.read_text() == "mine"
    assert not (folder() / "dropped").exists()


def test_nothing_is_dropped_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    ReferenceCache().drop("a store of which nothing is kept")


@pytest.mark.parametrize("cached", [True, False])
def test_forget_reads_all_anew(store: Store, read: Read, cached: bool) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    searching = another(store, cached=cached)
    assert_answers(searching, SMALL)
    vector = one_vector(store)
    before = read.count
    assert_answers(searching, SMALL)
    assert read.count == before
    searching.forget()
    assert vector not in kept_bytes()
    searching.close()
    assert vector not in kept_bytes()
    assert_answers(searching, SMALL)
    assert read.count - before == total(SMALL)
    assert (vector in kept_bytes()) == cached


def test_forget_before_the_first_search(store: Store) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    another(store).forget()
    assert not files(CACHED)


def test_forget_drops_other_namespaces_of_the_store(store: Store) -> None:
    fill(store, SMALL)
    copy = store.copy_for({name: replace(one, revision="2") for name, one in store.encoders().items()})
    fill(copy, SMALL)
    for one in (store, copy):
        assert_answers(another(one), SMALL)
    assert len(files(CACHED)) == 2
    another(store).forget()
    assert not files(CACHED)


def test_a_store_in_memory_forgets() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as clf:
        clf._searcher.forget()
        clf.add_categories([CategoryInput(name=name) for name in ("a", "b")])
        clf._searcher.forget()
        assert clf.classify_vectors({"hash": np.eye(1, 64, dtype=np.float32)})
    assert not files()
