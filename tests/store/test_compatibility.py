"""Ownership of a store: encoders, collections, and processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.store.material import FINGERPRINTS, add, sources, unit_vector, write_of
from tests.store.support import LASTING, Deployment, EdgeDeployment, MemoryDeployment
from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreError, StoreLockedError
from zsvec.store import Store, open_store
from zsvec.store.backends.base import Put
from zsvec.store.catalog.changefeed import Cursor
from zsvec.store.names import record_id
from zsvec.types import Fingerprint

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

CLIP, DINO = FINGERPRINTS["clip"], FINGERPRINTS["dino"]
OPERATIONS: Mapping[str, Callable[[Store], Any]] = {
    "encoders": lambda store: store.encoders(),
    "bind": lambda store: store.bind(FINGERPRINTS),
    "categories": lambda store: store.categories(),
    "category": lambda store: store.category("red panda"),
    "stored": lambda store: store.stored("red panda"),
    "query": lambda store: store.query("clip", "image", unit_vector(16, "query")[None], 1),
    "incomplete": lambda store: store.incomplete(),
    "write": lambda store: add(store, "lynx", ["a"]),
    "remove": lambda store: store.remove("red panda"),
    "gc": lambda store: store.gc(),
}


# Encoders


OTHER_ENCODERS: list[tuple[dict[str, Fingerprint], list[str]]] = [
    ({"clip": replace(CLIP, dim=512), "dino": DINO}, ["another encoder (dim: 16 there, 512 in use)"]),
    ({"clip": replace(CLIP, model="other"), "dino": DINO}, ["(model: test/clip there, other in use)"]),
    ({"clip": replace(CLIP, revision="4567def"), "dino": DINO}, ["(revision: 0123abc there, 4567def in use)"]),
    ({"clip": CLIP, "dino": replace(DINO, preprocessing="crop")}, ["(preprocessing: resize 518 there, crop in use)"]),
    (
        {"clip": CLIP, "dino": replace(DINO, preprocessing=f"{DINO.preprocessing}; int8 0a1b")},
        ["(preprocessing: nothing there, int8 0a1b in use)"],
    ),
    ({"clip": CLIP}, ["encoders clip, dino", "clip are in use"]),
    ({**FINGERPRINTS, "sift": DINO}, ["encoders clip, dino", "clip, dino, sift are in use"]),
    ({"clip": CLIP, "sift": DINO}, ["encoders clip, dino", "clip, sift are in use"]),
]


def test_other_encoders_are_refused(deployment: Deployment) -> None:
    store = deployment.open()
    add(store, "red panda", ["a"])
    before = deployment.collections()
    for used, named in OTHER_ENCODERS:
        with pytest.raises(EncoderMismatchError) as caught:
            store.bind(used)
        for part in [*named, store.location]:
            assert part in str(caught.value)
    assert deployment.collections() == before
    assert store.encoders() == FINGERPRINTS
    store.bind(FINGERPRINTS)
    assert sources(store, "red panda") == {"clip:image": ["a"], "dino:image": ["a"]}


def test_store_of_another_schema_is_refused(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    add(store, "red panda", ["a"])
    catalog = store.collection("catalog")
    identifier = record_id("store")
    stored = backend.retrieve(catalog, [identifier])[identifier]
    backend.put(catalog, [Put(str(uuid.uuid4()), {"kind": "a kind that is not known yet", "rev": 7})])
    for version, schema in enumerate((1, 2, 4), 1):
        changed = {**stored, "version": version + 1, "schema": schema}
        backend.put(catalog, [Put(identifier, changed, {"version": version})])
        calls: list[Callable[[], Any]] = [
            *(partial(OPERATIONS[operation], store) for operation in ("bind", "encoders")),
            *(partial(store.check, FINGERPRINTS), store.categories, partial(store.look, Cursor(), {})),
        ]
        for call in calls:
            with pytest.raises(StoreError, match=rf"schema {schema} .* knows 3"):
                call()


def test_encoder_names_that_could_be_of_another_collection_are_refused(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    for name in ("x__clip", "images", "inbox", "catalog"):
        for operation in (store.bind, store.check):
            with pytest.raises(InvalidInputError, match=repr(name)):
                operation({name: CLIP})


def test_a_store_remembers_the_profile_that_it_was_made_with(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    assert store.profile() is None
    store.bind(FINGERPRINTS, profile="mine 2.0")
    store.bind(FINGERPRINTS, profile="another", images="small")
    store.drop_images()
    assert store.profile() == store.info()["profile"] == "mine 2.0"
    with pytest.raises(EncoderMismatchError, match=r"\(profile 'mine 2.0'\)"):
        store.check(["sift"])


NO_PROFILES: list[Any] = [
    7,
    "",
    ["offline"],
    "./x",
    "/x",
    "~/x",
    "..",
    "a/b",
    "a\\b",
    "\x1b[2J",
    "a\u202eb",
    "a" * 101,
    "a\n",
]


def test_what_cannot_be_the_name_of_a_profile_is_ignored(deployment: Deployment) -> None:
    """Anyone who may write to a shared server may write the record."""
    backend = deployment.backend()
    store = deployment.open(backend)
    catalog, identifier = store.collection("catalog"), record_id("store")
    stored = backend.retrieve(catalog, [identifier])[identifier]
    for version, name in enumerate(NO_PROFILES, 1):
        changed = {**stored, "version": version + 1, "profile": name}
        backend.put(catalog, [Put(identifier, changed, {"version": version})])
        assert backend.retrieve(catalog, [identifier])[identifier]["profile"] == name
        assert store.profile() is None
        store.check(FINGERPRINTS)


# Collections


def live(store: Store) -> None:
    """A whole life cycle."""
    store.bind(FINGERPRINTS)
    store.write([write_of("red panda", ["a", "b"], ["text"]), write_of("lynx", ["a"])])
    add(store, "red panda", ["c"], replace=True)
    add(store, "red panda", ["d"])
    store.remove("lynx")
    store.gc(grace=0)
    store.flush()
    assert [category.name for category in store.categories()] == ["red panda"]


@LASTING
def test_foreign_collections_are_left_alone(deployment: Deployment) -> None:
    own = deployment.namespace
    foreign = [
        *(own, f"{own}_", f"{own}__", f"{own}__other", f"{own}__cli", f"{own}__clip__old", f"{own}__catalog2"),
        *(f"{own}_clip", f"{own}clip", f"x{own}__clip", f"other__{own}__clip", f"{own}2__clip", f"{own}-clip"),
    ]
    for collection in foreign:
        deployment.make_foreign(collection)
    before = {collection: deployment.state(collection) for collection in foreign}
    store = Store(deployment.backend(), own)
    live(store)
    store.close()

    assert {collection: deployment.state(collection) for collection in foreign} == before
    ours = {f"{own}__catalog", f"{own}__images", f"{own}__clip", f"{own}__dino"}
    assert {name for name in deployment.collections() if own in name} == {*foreign, *ours}


@LASTING
@pytest.mark.parametrize("taken", ["catalog", "clip", "dino", "images"])
def test_foreign_collection_under_a_needed_name_is_refused(deployment: Deployment, taken: str) -> None:
    collection = f"{deployment.namespace}__{taken}"
    deployment.make_foreign(collection)
    before = deployment.content(collection)
    store = Store(deployment.backend(), deployment.namespace)

    for _ in range(2):
        with pytest.raises(StoreError, match=rf"already has a collection '{collection}'.*another namespace"):
            store.bind(FINGERPRINTS)
    assert store.encoders() == {}
    store.close()
    assert deployment.content(collection) == before
    assert {name for name in deployment.collections() if deployment.namespace in name} == {collection}


def test_namespaces_are_apart(deployment: Deployment) -> None:
    backend = deployment.backend()
    names = [deployment.namespace, f"{deployment.namespace}2", f"{deployment.namespace}_"]
    stores = [Store(backend, name) for name in names]
    for store in stores:
        store.bind(FINGERPRINTS)
        add(store, "red panda", [store.namespace])
    stores[0].remove("red panda")
    stores[0].gc(grace=0)

    assert stores[0].categories() == []
    for store in stores[1:]:
        assert sources(store, "red panda")["dino:image"] == [store.namespace]


# Processes


def test_closed_store_says_so(deployment: Deployment, open_store: Callable[..., Store]) -> None:
    memory = isinstance(deployment, MemoryDeployment)
    store = open_store()
    add(store, "red panda", ["a"])
    store.close()
    store.close()

    for operation in OPERATIONS.values():
        with pytest.raises(StoreError, match="is closed: open it again"):
            operation(store)
    with open_store() as again:
        assert [category.version for category in again.categories()] == ([] if memory else [1])
    with pytest.raises(StoreError, match="is closed"):
        again.categories()


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_closed_store_that_was_never_written_says_so(deployment: EdgeDeployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    store.close()
    with pytest.raises(StoreError, match="is closed: open it again"):
        store.categories()
    assert not deployment.folder.exists()


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_embedded_store_is_open_once(deployment: EdgeDeployment) -> None:
    store = deployment.open()
    add(store, "red panda", ["a"])
    second = Store(deployment.backend(), deployment.namespace)

    for operation in OPERATIONS.values():
        with pytest.raises(StoreLockedError, match="is already open") as caught:
            operation(second)
        assert str(deployment.folder) in str(caught.value)
    assert subprocess.run([*READER, deployment.folder], capture_output=True, text=True, check=False).stdout == (
        "StoreLockedError\n"
    )
    add(store, "lynx", ["a"])
    store.close()
    assert subprocess.run([*READER, deployment.folder], capture_output=True, text=True, check=False).stdout == (
        "['lynx', 'red panda']\n"
    )


READER = [
    sys.executable,
    "-c",
    """\
import sys
from pathlib import Path
from zsvec.errors import StoreError
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.store import Store
try:
    print([category.name for category in Store(EdgeBackend(Path(sys.argv[1])), "zsvec").categories()])
except StoreError as exc:
    print(type(exc).__name__)
""",
]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while another thread writes"])
def test_forked_process_is_refused_and_does_not_hang(deployment: Deployment, busy: bool) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    add(store, "red panda", ["a"])
    writing, forked = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        writing.set()
        assert forked.wait(60)

    backend.hooks["commit"] = pause
    writer = threading.Thread(target=add, args=(store, "fox", ["a"]))
    if busy:
        writer.start()
        assert writing.wait(60)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=use_in_child, args=(store, sender))
    child.start()
    forked.set()
    child.join(60)
    hung = child.is_alive()
    child.kill()
    child.join()
    if busy:
        writer.join(60)

    assert not hung
    assert child.exitcode == 0
    assert receiver.recv() == dict.fromkeys(OPERATIONS, "before this process was forked")
    assert [category.name for category in store.categories()] == (["fox", "red panda"] if busy else ["red panda"])


def use_in_child(store: Store, sender: Connection) -> None:
    said = {name: refusal(operation, store) for name, operation in OPERATIONS.items()}
    store.close()
    sender.send(said)


def refusal(operation: Callable[[Store], Any], store: Store) -> str:
    with pytest.raises(StoreError) as caught:
        operation(store)
    expected = "before this process was forked"
    return expected if expected in str(caught.value) else str(caught.value)


# open_store


def test_an_embedded_store_is_opened_without_heavy_packages(tmp_path: Path) -> None:
    program = f"""\
import sys
from zsvec.store import open_store
with open_store({str(tmp_path / "store")!r}, namespace="birds") as store:
    store.categories()
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "qdrant_edge" in loaded
    assert not {"numpy", "torch", "scipy", "sklearn", "pydantic", "httpx", "PIL", "qdrant_client"} & loaded


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a store")
    with pytest.raises(InvalidInputError, match="is a file: give a folder"):
        open_store(str(file), namespace="birds")
    assert file.read_text() == "not a store"


@pytest.mark.parametrize("url", ["ftp://host", "qdrant://host:6334", "HTTP+UNIX://x"])
def test_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="neither a folder nor an http:// or https:// URL") as caught:
        open_store(url, namespace="birds")
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_folder_is_opened_by_its_name(deployment: EdgeDeployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(deployment.folder.parent))
    with open_store(str(deployment.folder), namespace="birds") as store:
        store.bind(FINGERPRINTS)
        add(store, "red panda", ["a"])
    with open_store("~/store", namespace="birds") as store:
        assert [category.name for category in store.categories()] == ["red panda"]
    assert deployment.collections() == {"birds__catalog", "birds__images", "birds__clip", "birds__dino"}


def make(folder: Path, begin: Any, sender: Connection) -> None:
    begin.wait()
    try:
        with open_store(str(folder), namespace="birds") as store:
            store.bind(FINGERPRINTS)
            add(store, f"of {os.getpid()}", ["a"])
        sender.send("made")
    except StoreLockedError:
        sender.send("locked")


def test_two_processes_that_make_one_folder_do_not_stop_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        receiver, sender = context.Pipe(duplex=False)
        begin = context.Barrier(2)
        makers = [context.Process(target=make, args=(tmp_path / str(attempt), begin, sender)) for _ in range(2)]
        for maker in makers:
            maker.start()
        said = [receiver.recv() for _ in makers]
        for maker in makers:
            maker.join()
        assert "made" in said
        with open_store(str(tmp_path / str(attempt)), namespace="birds") as store:
            assert len(store.categories()) == said.count("made")


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_folder_in_a_place_that_cannot_be_written(deployment: EdgeDeployment) -> None:
    deployment.folder.parent.joinpath("file").write_text("")
    deployment.folder = deployment.folder.parent / "file" / "store"
    with pytest.raises(StoreError, match="cannot be used"):
        deployment.open()


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
@pytest.mark.parametrize("damaged", ["catalog", "clip"])
def test_damaged_folder_is_a_store_error(deployment: EdgeDeployment, damaged: str) -> None:
    store = deployment.open()
    add(store, "red panda", ["a"])
    store.close()
    folder = deployment.folder / f"{deployment.namespace}__{damaged}"
    (folder / "edge_config.json").write_text("{not json")
    store = Store(deployment.backend(), deployment.namespace)

    with pytest.raises(StoreError, match=r"failed|cannot be used") as caught:
        store.stored("red panda")
    assert str(deployment.folder) in str(caught.value)
    assert folder.exists()
