"""Stores on every backend: writes are read back."""

from __future__ import annotations

import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.store.material import (
    FINGERPRINTS,
    Key,
    add,
    commits,
    content_hash,
    reference,
    references,
    sources,
    unit_vector,
    vectors,
    write_of,
)
from tests.store.support import (
    LASTING,
    ClientDeployment,
    Deployment,
    EdgeDeployment,
    LocalDeployment,
    MemoryDeployment,
    fast_folder,
)
from zsvec.errors import CategoryNotFoundError, ZSVecError
from zsvec.store import Cursor, Look, Store, Write
from zsvec.store.backends.base import Points, Where
from zsvec.store.catalog.schema import LATEST
from zsvec.store.names import record_id
from zsvec.types import CALIBRATION_FORMAT

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

OpenStore = Callable[..., Store]

AWKWARD_NAMES = [
    "roter Panda",
    "панда",
    "小熊猫",
    "🐼",
    "👩‍👩‍👧‍👦 family",
    "e\u0301",  # e and a combining accent …
    "é",  # … are not the letter é
    "ﷺ" * 50,
    "x" * 20_000,
    " ",
    " leading and trailing ",
    "a/b\\c:d",
    "../../etc/passwd",
    "quote ' \" ` ; -- DROP",
    '{"json": [1]}',
    "%s {name} $HOME",
    "*",
    "Panda",
    "panda",
    "None",
    "0",
    "zsvec__catalog",
]


@pytest.fixture(scope="module", autouse=True)
def no_second_stamps() -> Iterator[None]:
    """Versions are counted here. A commit a second older than the newest, as on a busy machine, would get another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zsvec.store.catalog.commit.SLACK", LATEST)
        yield


# Reading back


def test_references_are_read_back(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    written = references(texts=["a small reddish mammal"], images=["a.jpg", "b.jpg"])
    before = time.time()
    [returned] = store.write(
        [Write(name="red panda", references=written, texts=["a small reddish mammal"], metadata={"wikidata": "Q41050"})]
    )
    [category] = store.categories()

    assert category == returned == store.category("red panda")
    assert (category.name, category.version) == ("red panda", 1)
    assert category.texts == ("a small reddish mammal",)
    assert category.references == {"clip:text": 1, "clip:image": 2, "dino:image": 2}
    assert category.metadata == {"wikidata": "Q41050"}
    assert before - 1 <= category.updated.timestamp() <= time.time() + 1
    stored = {reference.key: reference for reference in store.stored("red panda")}
    assert stored.keys() == {reference.key for reference in written} == store.keys("red panda")
    for expected in written:
        assert stored[expected.key].source == expected.source
        np.testing.assert_allclose(stored[expected.key].vector, expected.vector, atol=0 if deployment.exact else 1e-6)
        assert stored[expected.key].vector.dtype == np.float32


def test_same_again_writes_nothing(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    add(store, "red panda", ["a", "b"], ["text"], metadata={"k": 1})
    before, sizes, calls = store.category("red panda"), deployment.sizes(), backend.calls.copy()

    add(store, "red panda", ["a", "b"], ["text"], metadata={"k": 1})
    add(store, "red panda", ["b"])

    assert store.category("red panda") == before
    assert deployment.sizes() == sizes == {"clip": 3, "dino": 2}
    for method in ("upsert", "put", "delete"):
        assert backend.calls[method] == calls[method]


def test_addition_keeps_present_references(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a", "b"], ["first"])
    before = vectors(store.stored("red panda"))

    [category] = store.write([write_of("red panda", ["b", "c"], ["second"])])

    assert category.version == 2
    assert category.texts == ("first", "second")
    assert category.references == {"clip:text": 2, "clip:image": 3, "dino:image": 3}
    assert sources(store, "red panda") == {
        "clip:image": ["a", "b", "c"],
        "clip:text": ["first", "second"],
        "dino:image": ["a", "b", "c"],
    }
    after = vectors(store.stored("red panda"))
    assert all(np.array_equal(after[key], vector) for key, vector in before.items())
    assert deployment.sizes() == {"clip": 5, "dino": 3}


def test_replacement_leaves_only_the_new(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a", "b"], ["old"], metadata={"k": 1})
    add(store, "lynx", ["a"])

    [category] = store.write([write_of("red panda", ["b", "c"], ["new"], replace=True)])

    assert category.version == 2
    assert (category.texts, category.metadata) == (("new",), {})
    assert sources(store, "red panda") == {"clip:image": ["b", "c"], "clip:text": ["new"], "dino:image": ["b", "c"]}
    assert sources(store, "lynx") == {"clip:image": ["a"], "dino:image": ["a"]}
    assert deployment.sizes(after=store) == {"clip": 4, "dino": 3}


def test_many_additions_are_compacted_and_keep_every_vector(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    written = {}
    for i in range(40):
        part = [reference("clip", "image", str(i)), reference("dino", "image", str(i))]
        store.write([Write(name="red panda", references=part)])
        written.update(vectors(part))
    category = store.category("red panda")

    assert category.version == 40
    assert len(category.write_ids) <= 32
    assert category.references == {"clip:image": 40, "dino:image": 40}
    stored = vectors(store.stored("red panda"))
    assert stored.keys() == written.keys()
    for key, vector in written.items():
        np.testing.assert_allclose(stored[key], vector, atol=0 if deployment.exact else 1e-6)
    assert deployment.sizes(after=store) == {"clip": 40, "dino": 40}
    assert store.incomplete() == []


def test_prompts_and_groups_are_kept_through_compaction(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    prompts = {"a.jpg": "a picture of a.jpg"}
    groups = {"a.jpg": "burst 1", "b.jpg": "burst 1", "c.jpg": "burst 2"}
    written = [
        replace(r, prompt=prompts.get(r.source), group=groups.get(r.source))
        for r in references(["text"], ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    ]
    store.write([Write(name="red panda", references=written)])
    expected = {r.key: (r.prompt, r.group) for r in written}
    for further in range(35):
        stored = store.stored("red panda")
        assert {r.key: (r.prompt, r.group) for r in stored if r.key in expected} == expected
        deployment.sizes(after=store)
        for encoder in FINGERPRINTS:
            payloads = deployment.points(encoder).values()
            assert sorted(p["prompt"] for p in payloads if "prompt" in p) == list(prompts.values())
            assert sorted(p["group"] for p in payloads if "group" in p) == sorted(groups.values())
        add(store, "red panda", [str(further)])
    assert len(store.category("red panda").write_ids) < 32
    described = {r.source: r.prompt for r in store.stored_references("red panda")}
    assert (described["a.jpg"], described["b.jpg"], described["34"]) == ("a picture of a.jpg", None, None)


def test_removed_category_can_be_added_again(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a", "b"], ["old"], metadata={"k": 1})
    first = store.category("red panda")
    store.remove("red panda")

    assert store.categories() == []
    assert store.stored("red panda") == []
    assert deployment.sizes(after=store) == {"clip": 0, "dino": 0}
    with pytest.raises(CategoryNotFoundError, match="'red panda'"):
        store.category("red panda")
    with pytest.raises(CategoryNotFoundError, match="'red panda'"):
        store.remove("red panda")

    add(store, "red panda", ["b"])
    again = store.category("red panda")

    assert again.version == 3
    assert again.rev > first.rev
    assert (again.texts, again.metadata, again.references) == ((), {}, {"clip:image": 1, "dino:image": 1})


def test_removal_of_an_unknown_category(open_store: OpenStore) -> None:
    with pytest.raises(CategoryNotFoundError, match="'red panda'"):
        open_store().remove("red panda")


def test_metadata_and_texts_are_kept_unless_given(open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a"], ["text"], metadata={"k": [1, {"deep": "é"}]})
    add(store, "red panda", ["b"])

    assert store.category("red panda").metadata == {"k": [1, {"deep": "é"}]}
    assert store.category("red panda").texts == ("text",)

    add(store, "red panda", metadata={"other": None})

    category = store.category("red panda")
    assert category.metadata == {"other": None}
    assert category.version == 3
    assert category.references == {"clip:text": 1, "clip:image": 2, "dino:image": 2}
    assert store.incomplete() == []


def test_duplicates_within_a_write_count_once(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    [category] = store.write([write_of("red panda", ["a", "b", "a", "a"], ["t", "t"])])

    assert category.texts == ("t",)
    assert category.references == {"clip:text": 1, "clip:image": 2, "dino:image": 2}
    assert deployment.sizes() == {"clip": 3, "dino": 2}
    assert store.incomplete() == []


def test_one_content_may_be_of_several_categories_and_modalities(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of("red panda", ["x"], ["x"]), write_of("lynx", ["x"], ["x"])])

    assert deployment.sizes() == {"clip": 4, "dino": 2}
    assert sources(store, "lynx") == {"clip:image": ["x"], "clip:text": ["x"], "dino:image": ["x"]}


def test_several_categories_in_one_write(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "b", ["1"])
    add(store, "c", ["1"])
    written = store.write(
        [
            write_of("d", ["1"], ["text of d"]),  # new
            write_of("c", ["1"]),  # there already
            write_of("b", ["2"]),  # an addition
            write_of("a", ["2", "3"], replace=True),  # new, too
        ]
    )

    assert [category.name for category in written] == ["d", "c", "b", "a"]
    assert [category.version for category in written] == [1, 1, 2, 1]
    assert store.categories() == sorted(written, key=lambda category: category.name)
    assert sources(store, "b")["clip:image"] == ["1", "2"]
    assert len({category.rev for category in written}) == 4
    assert store.incomplete() == []
    assert store.write([]) == []


def test_category_without_references(open_store: OpenStore) -> None:
    store = open_store()
    [category] = store.write([Write(name="red panda", references=[], metadata={"planned": True})])

    assert category.references == {}
    assert store.categories() == [category]
    assert store.stored("red panda") == []

    add(store, "red panda", ["a"])

    assert store.category("red panda").references == {"clip:image": 1, "dino:image": 1}
    assert store.category("red panda").metadata == {"planned": True}


def test_awkward_names_are_kept_apart(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of(name, [name[:99]], [name]) for name in AWKWARD_NAMES])
    store = deployment.another(store)

    assert [category.name for category in store.categories()] == sorted(AWKWARD_NAMES)
    for name in AWKWARD_NAMES:
        assert store.category(name).texts == (name,)
        assert sources(store, name) == {"clip:text": [name], "clip:image": [name[:99]], "dino:image": [name[:99]]}
    assert store.incomplete() == []
    for name in AWKWARD_NAMES:
        store.remove(name)
    assert store.categories() == []
    assert deployment.sizes(after=store) == {"clip": 0, "dino": 0}


def test_a_look_finds_changes(open_store: OpenStore) -> None:
    store = open_store()
    for name in ("a", "b", "c"):
        add(store, name, ["1"])
    first = store.look(Cursor(), {})
    assert first.categories == store.categories()
    known = {category.name: category.version for category in first.categories}
    assert store.look(first.cursor, known).categories == []

    store.remove("a")
    add(store, "c", ["2"])
    look = store.look(first.cursor, known)
    changed = {category.name: category for category in look.categories}
    assert changed.keys() == {"a", "c"}
    assert (changed["a"].write_ids, changed["a"].version) == ((), 2)
    assert changed["c"] == store.category("c")
    assert not look.reset
    known |= {category.name: category.version for category in look.categories}
    assert store.look(look.cursor, known).categories == []
    assert store.look(look.cursor, known, whole=True).categories == []
    assert [c.name for c in store.look(look.cursor, {**known, "b": 0}, whole=True).categories] == ["b"]


@pytest.mark.parametrize("deployment", ["edge", "memory"], indirect=True)
def test_an_exclusive_store_is_read_again_only_after_writes(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    add(store, "a", ["1"])
    first = store.look(Cursor(), {})
    backend = store._catalog.backend
    read = Mock(wraps=backend.scroll)
    monkeypatch.setattr(backend, "scroll", read)
    known = {"a": 1}
    assert store.look(first.cursor, known) == Look(first.cursor, [])
    read.assert_not_called()
    assert store.look(first.cursor, known, whole=True).categories == []
    read.assert_called()
    add(store, "b", ["1"])
    second = store.look(first.cursor, known)
    assert [category.name for category in second.categories] == ["b"]
    assert store.look(second.cursor, known | {"b": 1}) == Look(second.cursor, [])
    store.remove("a")
    assert [category.name for category in store.look(second.cursor, known).categories] == ["a"]


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_a_look_finds_that_the_store_was_dropped(deployment: ClientDeployment, open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    for name in ("a", "b"):
        add(store, name, ["1"])
    look = store.look(Cursor(), {})
    known = {category.name: category.version for category in look.categories}
    for collection in deployment.collections():
        if deployment.namespace in collection:
            deployment.client.delete_collection(collection)
    gone = store.look(look.cursor, known)
    assert (gone.reset, gone.categories, gone.cursor) == (True, (), Cursor())

    other.bind(FINGERPRINTS)
    add(other, "a", ["2"])
    again = store.look(look.cursor, known)
    assert again.reset
    assert again.categories == [other.category("a")]
    assert store.look(again.cursor, {"a": 1}).categories == []


def test_revisions_grow_though_the_clock_goes_back(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    add(store, "a", ["1"])
    yesterday = time.time_ns() - 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: yesterday)
    add(store, "b", ["1"])

    assert store.category("b").rev > store.category("a").rev


def test_query_finds_the_nearest_of_a_modality(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    images, texts = [f"image {i}" for i in range(30)], [f"text {i}" for i in range(5)]
    add(store, "red panda", images[:20], texts)
    add(store, "lynx", images[20:])
    stored = {r.source: r.vector for r in references(texts, images) if r.encoder == "clip"}
    queries = np.stack([unit_vector(16, "query one"), stored["image 25"], stored["text 3"]])

    found = store.query("clip", "image", queries, limit=7)

    assert len(found) == 3
    for query, hits in zip(queries, found, strict=True):
        cosines = sorted(((float(stored[source] @ query), source) for source in images), reverse=True)[:7]
        assert [hit.payload["source"] for hit in hits] == [source for _, source in cosines]
        np.testing.assert_allclose([hit.similarity for hit in hits], [cosine for cosine, _ in cosines], atol=1e-5)
    nearest = found[1][0]
    assert nearest.payload == {
        "category": "lynx",
        "gen": store.category("lynx").write_ids[0],
        "source": "image 25",
        "hash": content_hash("image 25"),
    }
    assert nearest.similarity == pytest.approx(1, abs=1e-5)
    assert {hit.payload["source"] for hit in store.query("clip", "text", queries, limit=99)[0]} == set(texts)


# Content of the deployment


def test_payloads_and_ids_are_as_documented(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a.jpg"], ["text"], metadata={"k": 1})
    [gen] = store.category("red panda").write_ids
    namespace = uuid.UUID("6b1f3c80-7a0c-5a52-9d0e-2f6f3a1f5b7e")

    def identifier(*parts: str) -> str:
        return str(uuid.uuid5(namespace, "\0".join(parts)))

    image = {"category": "red panda", "modality": "image", "gen": gen, "hash": content_hash("a.jpg"), "source": "a.jpg"}
    text = {"category": "red panda", "modality": "text", "gen": gen, "hash": content_hash("text"), "source": "text"}
    assert deployment.points("dino") == {identifier("dino", "red panda", "image", gen, image["hash"]): image}
    assert deployment.points("clip") == {
        identifier("clip", "red panda", "image", gen, image["hash"]): image,
        identifier("clip", "red panda", "text", gen, text["hash"]): text,
    }
    catalog = deployment.points("catalog")
    manifest = catalog[identifier("category", "red panda")]
    assert manifest == {
        "kind": "manifest",
        "store": catalog[identifier("store", "")]["id"],
        "category": "red panda",
        "version": 1,
        "rev": store.category("red panda").rev,
        "changed": store.category("red panda").rev,
        "writes": [gen],
        "references": {"clip:text": 1, "clip:image": 1, "dino:image": 1},
        "texts": ["text"],
        "metadata": {"k": 1},
        "writers": manifest["writers"],
    }
    assert len(manifest["writers"]) == 1
    assert catalog[identifier("store", "")]["schema"] == 3
    assert len(catalog) == 2


@pytest.mark.parametrize("deployment", ["edge", "server"], indirect=True)
def test_payload_indexes_are_there_before_data(deployment: EdgeDeployment, open_store: OpenStore) -> None:
    open_store().close()
    assert indexes(deployment) == INDEXES


@pytest.mark.parametrize("deployment", ["edge", "server"], indirect=True)
def test_payload_indexes_that_a_killed_process_left_out_are_made(
    deployment: EdgeDeployment, open_store: OpenStore
) -> None:
    backend = deployment.connect()
    for name, dim in (("catalog", 1), ("clip", FINGERPRINTS["clip"].dim)):
        backend.create(f"{deployment.namespace}__{name}", dim, {})
    backend.close()
    open_store().close()
    assert indexes(deployment) == INDEXES


KEYWORDS = dict.fromkeys(["category", "modality", "gen", "hash"], "keyword")
INDEXES = {"clip": KEYWORDS, "dino": KEYWORDS, "catalog": {"kind": "keyword", "rev": "integer"}}


def indexes(deployment: EdgeDeployment) -> dict[str, dict[str, str]]:
    return {name: deployment.indexes(f"{deployment.namespace}__{name}") for name in INDEXES}


def test_nothing_is_made_before_the_first_write(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)

    assert store.categories() == []
    assert store.encoders() == {}
    assert store.stored("red panda") == []
    assert store.keys("red panda") == set()
    assert store.incomplete() == []
    assert store.gc().total() == 0
    assert store.calibration() is None
    assert store.look(Cursor(), {}) == Look(Cursor())
    assert store.info()["calibration"] == "none"
    store.check(["anything"])
    store.check_fingerprints(FINGERPRINTS)
    with pytest.raises(CategoryNotFoundError):
        store.category("red panda")
    with pytest.raises(CategoryNotFoundError):
        store.remove("red panda")
    store.flush()
    assert not any(name.startswith(f"{deployment.namespace}__") for name in deployment.collections())
    if isinstance(deployment, EdgeDeployment):
        assert not deployment.folder.exists()


@LASTING
def test_reopening_finds_everything(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a"], ["text"], metadata={"k": 1})
    add(store, "lynx", ["b"])
    store.remove("lynx")
    before = store.categories(), vectors(store.stored("red panda"))
    store.close()
    store = open_store()

    assert store.categories() == before[0]
    after = vectors(store.stored("red panda"))
    assert after.keys() == before[1].keys()
    assert all(np.array_equal(after[key], vector) for key, vector in before[1].items())
    assert store.encoders() == FINGERPRINTS
    add(store, "lynx", ["c"])
    assert store.category("lynx").version == 3


def test_a_rewritten_store_answers_the_same(deployment: Deployment, open_store: OpenStore) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    add(store, "red panda", ["a", "b"], ["text"])
    add(store, "lynx", ["a", "c"], metadata={"k": [1, {"deep": "é"}]})
    store.remove("red panda")
    store.gc(grace=0)
    queries = np.array([unit_vector(FINGERPRINTS["clip"].dim, content) for content in "abc"])

    def answers() -> list[Any]:
        found: list[Any] = [store.categories(), deployment.sizes(), store.query("clip", "image", queries, 5)]
        for name in ("catalog", "images", *FINGERPRINTS):
            collection = f"{deployment.namespace}__{name}"
            points = deployment.points(name)
            found += [points, backend.retrieve(collection, list(points)), backend.count(collection, Where())]
        return [*found, {key: vector.tobytes() for key, vector in vectors(store.stored("lynx")).items()}]

    before = answers()
    for name in ("catalog", "images", *FINGERPRINTS, "not there"):
        backend.rewrite(f"{deployment.namespace}__{name}")
    assert answers() == before

    add(store, "lynx", ["d"])
    assert sources(store, "lynx") == {"clip:image": ["a", "c", "d"], "dino:image": ["a", "c", "d"]}
    assert store.incomplete() == []


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_flushed_store_can_be_copied_while_open(deployment: EdgeDeployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a"], ["text"])
    store.flush()
    copy = EdgeDeployment(deployment.folder.with_name("copy"))
    shutil.copytree(deployment.folder, copy.folder)
    copied = copy.open()

    assert copied.categories() == store.categories()
    assert sources(copied, "red panda") == {"clip:image": ["a"], "clip:text": ["text"], "dino:image": ["a"]}
    copy.close()


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
@pytest.mark.parametrize("what", ["lock", "collection", "file"])
def test_a_link_in_a_store_is_not_written_through(deployment: EdgeDeployment, open_store: OpenStore, what: str) -> None:
    store = open_store()
    add(store, "red panda", ["a"])
    store.close()
    (catalog,) = (path for path in deployment.folder.glob("*__catalog") if path.is_dir())
    link = {
        "lock": deployment.folder / f".lock-{catalog.name}",
        "collection": catalog,
        "file": next(path for path in sorted(catalog.rglob("*")) if path.is_file()),
    }[what]
    victim = deployment.folder.with_name("victim")
    link.rename(victim)
    link.symlink_to(victim)
    before = victim.stat()
    with pytest.raises(ZSVecError, match="leads out of"):
        open_store().categories()
    assert victim.stat() == before


# Calibration

CALIBRATION = {"revision": 7, "experts": {"clip:image": [0.25, None]}, "é": "小熊猫"}


def newest(store: Store) -> int:
    """The largest ``rev`` of the categories, removed ones included."""
    return max(category.rev for category in commits(store))


def test_calibration_is_kept_and_read_back(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    assert store.calibration() is None

    store.keep_calibration(CALIBRATION)

    assert store.calibration() == CALIBRATION
    assert deployment.another(store).calibration() == CALIBRATION
    if not isinstance(deployment, MemoryDeployment):
        store.close()
        assert open_store().calibration() == CALIBRATION


def test_calibration_is_replaced_by_any_handle(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    other = deployment.another(store)
    for i, writer in enumerate((store, other, other, store), 1):
        writer.keep_calibration({"number": i})
        assert store.calibration() == other.calibration() == {"number": i}
        record = deployment.points("catalog")[record_id("calibration")]
        assert record == {
            "kind": "calibration",
            "store": deployment.points("catalog")[record_id("store")]["id"],
            "version": i,
            "rev": record["rev"],
            "writers": record["writers"],
            "fitted": {"number": i},
        }
    other.keep_calibration({})
    assert not store.calibration()
    assert store.info()["calibration"] == "none"


def test_calibration_has_a_larger_revision_than_every_category(
    deployment: Deployment, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    add(store, "a", ["1"])
    yesterday = time.time_ns() - 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: yesterday)
    last = newest(store)
    steps: list[Callable[[], object]] = [
        lambda: add(store, "b", ["1"]),
        lambda: store.remove("a"),
        lambda: add(store, "a", ["2"]),
    ]
    for step in steps:
        store.keep_calibration(CALIBRATION)
        rev = deployment.points("catalog")[record_id("calibration")]["rev"]
        assert rev > last
        step()
        last = newest(store)
        assert last > rev


def test_a_look_gives_a_calibration_once(open_store: OpenStore) -> None:
    store = open_store()
    add(store, "a", ["1"])
    known = {"a": 1}
    cursor = store.look(Cursor(), {}).cursor
    for number in range(3):
        store.keep_calibration({"number": number})
        look = store.look(cursor, known)
        assert (look.categories, look.calibration) == ([], {"number": number})
        cursor = look.cursor
        assert store.look(cursor, known).calibration is None

    add(store, "b", ["1"])
    look = store.look(cursor, known)
    assert (look.categories, look.calibration) == ([store.category("b")], None)


def test_calibration_is_no_category(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    store.keep_calibration(CALIBRATION)

    assert store.categories() == []
    assert store.keys("") == set()
    add(store, "red panda", ["a"], ["text"])
    before = store.categories()
    store.keep_calibration({"revision": 9, "another": "one"})

    assert store.categories() == before
    assert commits(store) == before
    assert store.info()["categories"] == 1
    assert store.incomplete() == []
    assert store.gc(grace=0).total() == 0
    add(store, "red panda", ["b"], replace=True)
    store.remove("red panda")
    assert store.gc(grace=0).total() == (5 if deployment.shared else 0)
    assert store.calibration() == {"revision": 9, "another": "one"}
    assert store.encoders() == FINGERPRINTS


def test_a_collection_that_is_not_there_has_no_points(open_store: OpenStore) -> None:
    store = open_store()
    add(store, "red panda", ["a"])
    backend, collection = store._backend, store.collection("nobody")
    assert sum(len(page.ids) for page in backend.scroll(collection, Where())) == 0
    assert backend.count(collection, Where()) == 0
    assert backend.retrieve(collection, [str(uuid.uuid4())]) == {}


def made_from(revision: int) -> dict[str, Any]:
    return {"format": CALIBRATION_FORMAT, "revision": revision, "experts": {"clip:image": {"temperature": 0.01}}}


def test_a_calibration_of_an_earlier_state_does_not_replace_a_later_one(open_store: OpenStore) -> None:
    store = open_store()
    store.keep_calibration(made_from(7))
    store.keep_calibration(made_from(6))
    assert store.calibration() == made_from(7)
    store.keep_calibration(made_from(8))
    store.keep_calibration({})
    assert store.calibration() == {}
    store.keep_calibration(made_from(6))
    assert store.calibration() == made_from(6)


def test_info_counts_a_calibration_of_another_format_as_none(open_store: OpenStore) -> None:
    store = open_store()
    add(store, "a", ["1"])
    store.keep_calibration({**made_from(newest(store)), "format": 0})
    assert store.info()["calibration"] == "none"


def test_info_has_the_progress_towards_a_threshold(open_store: OpenStore) -> None:
    store, progress = open_store(), {"images": 9, "needed": 19, "one_scene": 2, "copied": 1}
    assert store.info()["threshold_progress"] is None
    cases: list[tuple[dict[str, Any], object]] = [
        ({"threshold_progress": progress}, progress),
        ({"threshold_progress": progress, "format": 0}, None),
        ({"threshold_progress": {"images": "9", "needed": 19}}, None),
        ({"threshold_progress": None}, None),
        ({}, None),
    ]
    for rev, (made, told) in enumerate(cases):
        store.keep_calibration({**made_from(rev), **made})
        assert store.info()["threshold_progress"] == told


def test_info_has_the_fractions_that_encoders_settle_alone(open_store: OpenStore) -> None:
    store = open_store()
    rule = {"settled": 0.75}
    cases: list[tuple[dict[str, Any], object]] = [
        ({"cascade": {"clip": rule, "dino": {"settled": 0}}}, {"clip": 0.75, "dino": 0.0}),
        ({"cascade": {"clip": rule}, "format": 0}, None),
        ({"cascade": {"clip": {"settled": "0.75"}}}, None),
        ({"cascade": {"clip": {"settled": 1.5}, "dino": [], "mobile": {}}}, None),
        ({"cascade": [rule]}, None),
        ({}, None),
    ]
    for rev, (made, told) in enumerate(cases):
        store.keep_calibration({**made_from(rev), **made})
        assert store.info().get("cascade") == told


def test_info_says_whether_categories_have_changed_since_the_calibration(
    deployment: Deployment, open_store: OpenStore
) -> None:
    store = open_store()
    other = deployment.another(store)
    assert store.info()["calibration"] == "none"
    changes: list[Callable[[], None]] = [
        lambda: add(other, "a", ["1"]),
        lambda: add(other, "b", ["1"]),
        lambda: add(other, "a", ["2"]),
        lambda: add(other, "a", ["3"], replace=True),
        lambda: other.remove("b"),
    ]
    for i, change in enumerate(changes):
        change()
        assert store.info()["calibration"] == ("stale" if i else "none")
        store.keep_calibration(made_from(newest(store)))
        assert store.info()["calibration"] == other.info()["calibration"] == "current"

    before = newest(store)
    add(other, "c", ["1"])
    store.keep_calibration(made_from(before))  # made before the change, and committed after
    assert store.info()["calibration"] == "stale"


# Against a model

CONTENTS = st.lists(st.sampled_from("abcdef"), max_size=4)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "replace", "remove", "gc", "reopen"]), st.sampled_from("xyz"), CONTENTS, CONTENTS
    ),
    max_size=12,
)


class Model:
    """A store of one process at a time, as plain dicts."""

    def __init__(self) -> None:
        self.versions: Counter[str] = Counter()
        self.texts: dict[str, tuple[str, ...]] = {}
        self.keys: dict[str, set[Key]] = {}

    def write(self, write: Write) -> None:
        before = (self.texts.get(write.name), self.keys.get(write.name))
        kept_texts = () if write.replace else self.texts.get(write.name, ())
        kept_keys = set() if write.replace else self.keys.get(write.name, set())
        self.texts[write.name] = tuple(dict.fromkeys([*kept_texts, *write.texts]))
        self.keys[write.name] = kept_keys | {reference.key for reference in write.references}
        if before != (self.texts[write.name], self.keys[write.name]):
            self.versions[write.name] += 1

    def remove(self, name: str) -> None:
        self.versions[name] += 1
        del self.texts[name], self.keys[name]


def check_against_model(deployment: Deployment, operations: list[tuple[str, str, list[str], list[str]]]) -> None:
    store, model = deployment.open(), Model()
    for operation, name, images, texts in operations:
        if operation in ("add", "replace"):
            write = write_of(name, images, texts, replace=operation == "replace")
            store.write([write])
            model.write(write)
        elif operation == "reopen":
            store.close()
            store = deployment.open()
        elif operation == "gc":
            collected = store.gc(grace=0)
            assert not collected or deployment.shared  # replaced references go at once without other readers
        elif name in model.keys:
            store.remove(name)
            model.remove(name)
        else:
            with pytest.raises(CategoryNotFoundError):
                store.remove(name)
        categories = {category.name: category for category in store.categories()}
        assert {name: category.texts for name, category in categories.items()} == model.texts
        assert {name: store.keys(name) for name in categories} == model.keys
        assert {name: category.version for name, category in categories.items()} == {
            name: model.versions[name] for name in model.keys
        }
        for name, category in categories.items():
            assert category.references == Counter(f"{encoder}:{modality}" for encoder, modality, _ in model.keys[name])
    assert sum(deployment.sizes(after=store).values()) == sum(len(keys) for keys in model.keys.values())


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
@example([("add", "x", [], []), ("replace", "x", [], [])])  # the same once more is no new version
@example([("add", "x", ["a", "a"], ["b"]), ("replace", "x", ["a"], ["b"]), ("replace", "x", ["a"], ["c"])])
def test_store_of_the_client_is_like_the_model(operations: list[tuple[str, str, list[str], list[str]]]) -> None:
    deployment = LocalDeployment()
    check_against_model(deployment, operations)
    deployment.close()


@settings(max_examples=15, deadline=None)
@given(OPERATIONS)
def test_edge_store_is_like_the_model(operations: list[tuple[str, str, list[str], list[str]]]) -> None:
    with fast_folder() as folder:
        deployment = EdgeDeployment(folder)
        check_against_model(deployment, operations)
        deployment.close()


# Named vectors


def test_points_have_vectors_by_name(deployment: Deployment, open_store: OpenStore) -> None:
    """Of several dimensions, written and read page by page; and replaced."""
    backend = open_store()._backend
    name = "zsvec__several"
    backend.create(name, {"a": 3, "b": 2}, {"hash": "keyword"})
    backend.create(name, {"a": 3, "b": 2}, {"hash": "keyword"})
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))) for i in range(3)]
    rows = [{"a": unit_vector(3, str(i)), "b": unit_vector(2, str(i))} for i in range(3)]
    payloads = [{"hash": str(i), "added": "then", "width": i} for i in range(3)]
    backend.upsert(name, Points(ids, rows, payloads))
    backend.upsert(name, Points(ids[:1], rows[1:2], payloads[:1]))

    found = {
        place: (row, payload)
        for page in backend.scroll(name, Where(), vectors=True)
        for place, row, payload in zip(page.ids, page.rows, page.payloads, strict=True)
    }
    assert found.keys() == set(ids)
    for place, row, payload in zip(ids, (rows[1], rows[1], rows[2]), payloads, strict=True):
        assert found[place][1] == payload
        assert found[place][0].keys() == {"a", "b"}
        for key, vector in row.items():
            np.testing.assert_allclose(found[place][0][key], vector, atol=1e-6)
    chosen = [page for page in backend.scroll(name, Where(match={"hash": ["2", "x"]}), fields=("hash",)) if page.ids]
    assert [(page.ids, page.payloads) for page in chosen] == [(ids[2:], [{"hash": "2"}])]
    backend.delete(name, Where(match={"hash": ["0", "1"]}))
    assert backend.count(name, Where()) == 1


def test_fields_are_set_in_points_that_exist(deployment: Deployment, open_store: OpenStore) -> None:
    backend = open_store()._backend
    name = "zsvec__several"
    backend.create(name, {"a": 3, "b": 2}, {"hash": "keyword"})
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))) for i in range(3)]
    rows = [{"a": unit_vector(3, str(i)), "b": unit_vector(2, str(i))} for i in range(3)]
    payloads = [{"hash": str(i), "small": "x" * 99, "told": {"then": {"how": "a", "why": 1}}} for i in range(3)]
    payloads[2]["told"] = ["no", "mapping"]
    backend.upsert(name, Points(ids, rows, payloads))

    wanted = Where(match={"hash": ["0", "2", "x"]})
    backend.set_payload(name, wanted, {"small": None, "width": 7})
    backend.set_payload(name, wanted, {"then": {"how": "b"}, "now": [1]}, "told")
    backend.set_payload(name, wanted, {"": 2, "now": None}, "told")
    backend.set_payload(name, Where(match={"hash": "1"}), {"then": 3}, "other")

    found = {
        place: (row, payload)
        for page in backend.scroll(name, Where(), vectors=True)
        for place, row, payload in zip(page.ids, page.rows, page.payloads, strict=True)
    }
    assert [found[place][1] for place in ids] == [
        {"hash": "0", "width": 7, "told": {"then": {"how": "b"}, "": 2}},
        {**payloads[1], "other": {"then": 3}},
        {"hash": "2", "width": 7, "told": {"then": {"how": "b"}, "": 2}},
    ]
    for place, row in zip(ids, rows, strict=True):
        for key, vector in row.items():
            np.testing.assert_allclose(found[place][0][key], vector, atol=1e-6)
    assert len(found) == 3


# Many points


def test_a_scroll_of_many_points_gives_each_once(deployment: Deployment, open_store: OpenStore) -> None:
    backend = open_store()._backend
    name = "zsvec__many"
    backend.create(name, 4, {"kind": "keyword"}, memory="cold")
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))) for i in range(2500)]
    rows = np.stack([unit_vector(4, place) for place in ids])
    backend.upsert(name, Points(ids, rows, [{"kind": "ab"[i % 2]} for i in range(2500)]))
    for where, expected in ((Where(), ids), (Where(match={"kind": ["a"]}), ids[::2])):
        for with_vectors in (True, False):
            pages = list(backend.scroll(name, where, vectors=with_vectors))
            found = [place for page in pages for place in page.ids]
            assert sorted(found) == sorted(expected)
            if with_vectors:
                sent = dict(zip(ids, rows, strict=True))
                np.testing.assert_allclose(
                    np.concatenate([page.vectors for page in pages if page.ids]),
                    [sent[place] for place in found],
                    atol=1e-6,
                )
                again = [place for page in backend.scroll(name, where, vectors=True) for place in page.ids]
                assert again == found
    for limit in (1, 6, 2300, 9999):
        pages = list(backend.scroll(name, Where(match={"kind": "a"}), fields=("kind",), limit=limit))
        found = [place for page in pages for place in page.ids]
        assert len(found) == min(limit, 1250)
        assert set(found) <= set(ids[::2])
    pages_to_leave = backend.scroll(name, Where(), vectors=True)
    next(pages_to_leave)
    pages_to_leave.close()  # type: ignore[attr-defined]


def test_all_writes_can_be_read_for_some_of_them(open_store: OpenStore) -> None:
    store = open_store()
    store.write([write_of(name, [name, "2"]) for name in ("lynx", "red panda", "wolf")])
    ids = [write_id for name in ("lynx", "wolf") for write_id in store.category(name).write_ids]
    assert store.count("clip") == 6
    for all_writes in (False, True):
        pages = list(store.references("clip", ids, all_writes=all_writes))
        assert sorted(payload["category"] for page in pages for payload in page.payloads) == ["lynx"] * 2 + ["wolf"] * 2
        assert sum(len(page.vectors) for page in pages if page.ids) == 4
