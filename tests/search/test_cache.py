"""References that a process kept: what the next one reads, and what it makes of files that are damaged or another's."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
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
from zsvec.method.similarities import References
from zsvec.search import cache
from zsvec.search.base import IndexSpec
from zsvec.search.cache import ReferenceCache
from zsvec.search.searcher import Searcher
from zsvec.store import Store
from zsvec.testing import HashEncoder

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


def test_it_reads_what_has_changed_since(store: Store, read: Read) -> None:
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
def test_whatever_happens_each_process_sees_what_is_committed(changes: list[tuple[str, str, int]]) -> None:
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


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "lose"])
@pytest.mark.parametrize("kind", ["*.npy", "*.json"])
def test_what_is_damaged_is_read_from_the_store(store: Store, read: Read, kind: str, damage: str) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    rng = np.random.default_rng(0)
    for file in files(kind):
        content = file.read_bytes()
        for at in rng.integers(len(content), size=8).tolist():
            damaged = {
                "flip": content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :],
                "cut": content[:at],
                "empty": b"",
            }
            file.unlink()
            if damage != "lose":
                file.write_bytes(damaged[damage])
            before = read.count
            assert_answers(another(store), SMALL)
            assert read.count - before == total(SMALL)
            assert file.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        {"format": 2},
        [],
        {"format": 1, "experts": 7, "categories": {}},
        {"format": 1, "experts": {}, "categories": 7},
    ],
)
def test_a_table_of_another_kind_is_none(store: Store, content: Any) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    (table,) = files("*.json")
    text = json.dumps(content).encode()
    table.write_bytes(cache._checksum(text).encode() + b"\n" + text)
    assert_answers(another(store), SMALL)


def forged(change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a table says, with the checksum that it must have."""
    (table,) = files("*.json")
    values = json.loads(table.read_bytes().partition(b"\n")[2])
    change(values)
    text = json.dumps(values).encode()
    table.write_bytes(cache._checksum(text).encode() + b"\n" + text)


CHANGES: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "another name": lambda expert: expert["names"].reverse(),
    "a name too few": lambda expert: expert["names"].pop(),
    "a hash too few": lambda expert: expert["hashes"].pop(),
    "a source too many": lambda expert: expert["sources"].append("x"),
    "groups of some": lambda expert: expert["groups"].append("x"),
    "an empty category": lambda expert: expert["starts"].__setitem__(1, 0),
    "not to the end": lambda expert: expert["starts"].__setitem__(-1, expert["starts"][-1] - 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_table_that_does_not_fit_its_vectors_is_none(store: Store, read: Read, what: str) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    forged(lambda values: CHANGES[what](values["experts"]["clip:image"]))
    before = read.count
    assert_answers(another(store), SMALL)
    assert read.count - before == total(SMALL)


@pytest.mark.parametrize("dim", [3, 400])
def test_vectors_of_other_encoders_are_none(store: Store, read: Read, dim: int) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)

    def wider(values: dict[str, Any]) -> None:
        expert = values["experts"]["clip:image"]
        other = ReferenceCache()._write_vectors(np.ones((len(expert["hashes"]), dim), np.float32))
        expert["vectors"] = other

    forged(wider)
    before = read.count
    assert_answers(another(store), SMALL)
    assert read.count - before == total(SMALL)


def test_a_table_names_no_file_of_another_folder(store: Store, read: Read) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    elsewhere = folder().parent / "elsewhere"
    elsewhere.mkdir()

    def moved(values: dict[str, Any]) -> None:
        expert = values["experts"]["clip:image"]
        (folder() / expert["vectors"]).rename(elsewhere / expert["vectors"])
        expert["vectors"] = f"../elsewhere/{expert['vectors']}"

    forged(moved)
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


def test_what_was_restored_from_an_older_copy_is_read_anew(store: Store, deployment: SharedDeployment) -> None:
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
    kept = [file.name for file in files()]
    for i in range(5):
        add(store, "a", [f"new {i}"])
        searching.search(queries(), nearest=1)
    assert [file.name for file in files()] == kept
    add(store, "b", [f"more {i}" for i in range(20)])
    searching.search(queries(), nearest=1)
    assert [file.name for file in files()] != kept
    assert len(files("*.npy")) == 2  # those of before are gone


def test_a_store_elsewhere_is_another_whatever_id_it_has(store: Store, deployment: SharedDeployment) -> None:
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
    assert len(files("*.json")) == 2
    opened.close()


def test_no_id_of_a_store_leads_out_of_the_folder(store: Store) -> None:
    fill(store, SMALL)
    searching = another(store)
    assert_answers(searching, SMALL)
    kept = ReferenceCache()
    for name in ("../../../x", "/x", "a\0b", "x" * 5000):
        kept.save(name, searching.references()[0], searching._snapshot.catalog, b"")
        assert kept.load(name) is not None
    assert len(files("*.json")) == 5
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


def test_what_nobody_uses_is_deleted(store: Store) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    kept = files()
    table = next(file for file in kept if file.suffix == ".json")
    long_ago = table.stat().st_mtime - 31 * 86_400

    def aged(name: str) -> Path:
        file = folder() / name
        file.write_text("{}")
        os.utime(file, (long_ago, long_ago))
        return file

    old = [aged(name) for name in ("0.json", "0.npy", "0.new")]
    young = folder() / "1.new"
    young.touch()
    os.utime(table, (long_ago, long_ago))
    assert_answers(another(store), SMALL)  # it is used
    ReferenceCache().save("another", {}, {}, b"")
    assert set(kept) <= set(files())
    assert young.exists()
    assert not any(file.exists() for file in old)


def test_what_was_not_whole_at_first_is_kept_later(store: Store, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(files("*.json")) == 1


# What is dropped


def key(store: Store) -> str:
    return f"{store.place} {store._catalog.state([]).store}"


def kept_bytes() -> bytes:
    """All that is in the cache, whatever it is called."""
    return b"".join(path.read_bytes() for path in files())


def one_vector(store: Store) -> bytes:
    return next(iter(another(store, cached=False).references()[0].values())).vectors[0].tobytes()


def test_what_is_dropped_is_in_no_file(store: Store, read: Read) -> None:
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


def test_what_another_store_keeps_stays(store: Store, deployment: SharedDeployment) -> None:
    """Of a copy: the files of vectors are the same."""
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    mine = key(store)
    deployment.close()
    copied = deployment.folder.with_name("copy")
    shutil.copytree(deployment.folder, copied)
    opened = SharedDeployment(copied)
    there = Store(opened.backend(), "zsvec")
    assert_answers(another(there), SMALL)
    vectors = files("*.npy")
    assert len(vectors) == 3
    ReferenceCache().drop(mine)
    assert (files("*.npy"), len(files("*.json"))) == (vectors, 1)
    with pytest.MonkeyPatch.context() as patch:
        read = Read(there, patch)
        assert_answers(another(there), SMALL)
        assert read.count == 0
    ReferenceCache().drop(key(there))
    assert files("*.npy") == files("*.json") == []
    opened.close()


def test_who_has_mapped_what_is_dropped_goes_on_with_it(store: Store, read: Read) -> None:
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


def test_who_has_read_it_before_does_not_keep_it(store: Store) -> None:
    """Until it has looked at the store again."""
    fill(store, SMALL)
    searching = another(store)
    Searcher.search(searching, queries(), 1, searching.spec)
    vector = one_vector(store)
    ReferenceCache().drop(key(store))
    searching.close()
    assert not files("*.npy")
    assert vector not in kept_bytes()
    add(store, "new", [f"new {i}" for i in range(30)])
    searching.search(queries(), 1)
    assert vector in kept_bytes()


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_what_is_dropped_while_it_is_written_is_not_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """By another process, before a file of vectors is written, between two, and after the last."""
    fill(store, SMALL)
    vector, dropping = one_vector(store), key(store)
    write, written = ReferenceCache._write, []

    def interrupted(cache: ReferenceCache, expert: References) -> dict[str, Any]:
        if len(written) == moment:
            ReferenceCache().drop(dropping)
        written.append(write(cache, expert))
        if len(written) == moment == 3:
            ReferenceCache().drop(dropping)
        return written[-1]

    monkeypatch.setattr(ReferenceCache, "_write", interrupted)
    assert_answers(another(store), SMALL)
    assert len(written) == 3
    assert [file.name for file in files()] == [".lock", "dropped"]
    assert vector not in kept_bytes()


def test_what_is_dropped_while_it_is_loaded_is_read_from_the_store(
    store: Store, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    load = ReferenceCache._read

    def interrupted(cache: ReferenceCache, expert: Mapping[str, Any]) -> References:
        ReferenceCache().drop(key(store))
        return load(cache, expert)

    before = read.count
    with monkeypatch.context() as patched:
        patched.setattr(ReferenceCache, "_read", interrupted)
        assert_answers(another(store), SMALL)
    assert read.count - before == total(SMALL)


def test_it_is_dropped_among_many_who_keep_it(store: Store) -> None:
    """After the last drop nothing is there that was read before it."""
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


def test_what_cannot_be_deleted_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not files("*.npy")


def test_nothing_is_written_where_others_may_write(store: Store) -> None:
    folder().mkdir(parents=True)
    folder().chmod(0o777)
    victim = folder().with_name("victim")
    victim.write_text("mine")
    (folder() / ".lock").symlink_to(victim)
    ReferenceCache().drop("a store of which nothing is kept")
    fill(store, SMALL)
    ReferenceCache()._table(key(store)).write_text("of another")
    with pytest.raises(StoreUnavailableError, match="others may write"):
        another(store).forget()
    assert victim.read_text() == "mine"
    assert not (folder() / "dropped").exists()


def test_nothing_is_dropped_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    ReferenceCache().drop("a store of which nothing is kept")


@pytest.mark.parametrize("cached", [True, False])
def test_who_forgets_reads_all_anew(store: Store, read: Read, cached: bool) -> None:
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


def test_who_forgets_before_the_first_search(store: Store) -> None:
    fill(store, SMALL)
    assert_answers(another(store), SMALL)
    another(store).forget()
    assert not files("*.npy")


def test_a_store_in_memory_forgets() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as clf:
        clf._searcher.forget()
        clf.add_categories([CategoryInput(name=name) for name in ("a", "b")])
        clf._searcher.forget()
        assert clf.classify_vectors({"hash": np.eye(1, 64, dtype=np.float32)})
    assert not files()
