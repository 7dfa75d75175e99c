"""Small copies of images: written and deleted with the references of a write, and never read to classify."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from tests.store.material import ADDED, FINGERPRINTS, add, content_hash, jpeg, pictured, references, small
from tests.store.support import Deployment, EdgeDeployment
from zsvec.store import Move, Store, Write
from zsvec.store.backends.base import InProcess, Placement, Points, Where
from zsvec.types import SmallImage

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
DEPLOYMENTS = ("edge", "local")  # logic above the backends: one that a process has for itself, one that several share


def kept(deployment: Deployment) -> list[tuple[str, str]]:
    """Category and source of every copy that there is, committed or not."""
    return sorted((payload["category"], payload["source"]) for payload in deployment.points("images").values())


def collected(deployment: Deployment, store: Store) -> list[tuple[str, str]]:
    """`kept`, after garbage collection."""
    store.gc(grace=0)
    return kept(deployment)


def rival(store: Store, images: Sequence[str], **changes: Any) -> None:
    """Another writer of the same category."""
    store.write([pictured("red panda", images, **changes)])


def assert_found(store: Store, *images: str) -> None:
    for image in images:
        assert store.image(content_hash(image)) == small(image)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, indirect=True)
def test_info_places_the_collection_of_copies(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcess, "placement", lambda self, collection: Placement(replicas=1))
    store = deployment.open()
    usual = {store.collection(name) for name in ("catalog", *FINGERPRINTS)}
    assert store.info()["collections"].keys() == {*usual, store.collection("images")}
    store.drop_images()
    assert store.info()["collections"].keys() == usual


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_copy_is_found_by_the_hash_of_its_image(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a", "b"], ["text"]), pictured("lynx", ["b"])])
    assert_found(store, "a", "b")
    assert store.image(content_hash("text")) is None
    assert store.image("") is None
    assert kept(deployment) == [("lynx", "b"), ("red panda", "a"), ("red panda", "b")]
    payload = next(p for p in deployment.points("images").values() if p["source"] == "a")
    assert payload == {
        "category": "red panda",
        "gen": store.category("red panda").write_ids[0],
        "hash": content_hash("a"),
        "small": b64encode(jpeg("a")).decode(),
        "width": 800,
        "height": 600,
        "source": "a",
        "added": "2026-05-04T03:02:01.000+00:00",
    }


@pytest.mark.parametrize("deployment", ["edge", "server"], indirect=True)
def test_copies_are_indexed_by_write_and_hash(deployment: Any) -> None:
    store = deployment.open()
    store.close()
    assert deployment.indexes(f"{deployment.namespace}__images") == {"gen": "keyword", "hash": "keyword"}


def test_the_same_again_writes_no_copy(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a"])])
    before = deployment.points("images")
    store.write([pictured("red panda", ["a"])])
    assert deployment.points("images") == before
    store.write([pictured("red panda", ["a", "b"])])
    assert kept(deployment) == [("red panda", "a"), ("red panda", "b")]


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_a_copy_goes_with_its_last_reference(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a", "b"]), pictured("lynx", ["b"])])
    store.remove("red panda")
    assert collected(deployment, store) == [("lynx", "b")]
    assert_found(store, "b")
    assert store.image(content_hash("a")) is None
    store.write([pictured("lynx", ["c"], replace=True)])
    assert collected(deployment, store) == [("lynx", "c")]
    store.remove("lynx")
    assert collected(deployment, store) == []


def test_references_that_are_written_again_bring_their_copies(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a", "b"], ["old"])])
    store.write([Write(name="red panda", references=references(["new"]), replace=True, keeps=frozenset({"image"}))])
    assert collected(deployment, store) == [("red panda", "a"), ("red panda", "b")]
    assert_found(store, "a", "b")
    again = [stored for stored in store.stored("red panda") if stored.source == "a"]
    new = pictured("red panda", ["c"]).references
    store.write([Write(name="red panda", references=[*again, *new], replace=True)])
    assert collected(deployment, store) == [("red panda", "a"), ("red panda", "c")]
    assert_found(store, "a", "c")


def test_many_additions_are_compacted_and_keep_every_copy(deployment: Deployment) -> None:
    store = deployment.open()
    names = [str(i) for i in range(35)]
    for name in names:
        store.write([pictured("red panda", [name])])
    assert len(store.category("red panda").write_ids) < 32
    assert collected(deployment, store) == sorted(("red panda", name) for name in names)
    assert_found(store, *names)


def test_a_copy_of_another_category_is_not_taken_along(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("lynx", ["a"])])
    add(store, "red panda", ["a"])
    store.write([Write(name="red panda", references=references(["t"]), replace=True, keeps=frozenset({"image"}))])
    assert kept(deployment) == [("lynx", "a")]


def test_a_writer_that_loses_leaves_no_copy_and_takes_none_away(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    store.write([pictured("red panda", ["a"])])
    other = deployment.another(store)
    backend.hooks["commit"] = lambda *_: rival(other, ["b"])
    store.write([pictured("red panda", ["c"], replace=True)])
    assert collected(deployment, store) == [("red panda", "c")]
    assert_found(store, "c")
    backend.hooks["commit"] = lambda *_: rival(other, ["d"], replace=True)
    store.write([pictured("red panda", ["e"])])
    assert collected(deployment, store) == [("red panda", "d"), ("red panda", "e")]
    assert_found(store, "d", "e")


# Settings


def test_a_store_without_copies_keeps_them_when_asked(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    store.bind(FINGERPRINTS, images="none")
    store.write([pictured("red panda", ["a"])])
    assert not store.keeps_images()
    assert f"{deployment.namespace}__images" not in deployment.collections()
    store.bind(FINGERPRINTS)
    store.bind(FINGERPRINTS, images="none")
    assert not store.keeps_images()
    store.bind(FINGERPRINTS, images="small")
    store.write([pictured("red panda", ["a", "b"])])
    assert kept(deployment) == [("red panda", "b")]
    store.bind(FINGERPRINTS, images="none")  # of this process alone
    assert store.keeps_images()
    assert_found(store, "b")


def test_dropped_copies_are_gone_and_no_more_are_kept(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a"])])
    store.drop_images()
    assert (kept(deployment), store.image(content_hash("a")), store.keeps_images()) == ([], None, False)
    store.bind(FINGERPRINTS)
    store.write([pictured("red panda", ["a", "b"])])
    assert kept(deployment) == []
    assert store.incomplete() == []
    store.bind(FINGERPRINTS, images="small")
    store.write([pictured("red panda", ["c"])])
    assert kept(deployment) == [("red panda", "c")]
    store.drop_images()
    store.drop_images()
    assert kept(deployment) == []


@pytest.mark.parametrize("deployment", ["edge"], indirect=True)
def test_dropped_copies_are_not_in_the_files(deployment: EdgeDeployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a"])])
    store.flush()
    coded = b64encode(jpeg("a"))

    def found() -> list[str]:
        return [f.name for f in deployment.folder.rglob("*") if f.is_file() and coded in f.read_bytes()]

    assert found()
    store.drop_images()
    store.close()
    assert found() == []
    with deployment.open() as again:
        assert [category.name for category in again.categories()] == ["red panda"]


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_a_copy_of_a_writer_at_work_is_left_to_the_collector_when_all_are_dropped(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    dropping = deployment.another(store)
    # After the record of the store was read, and before copies are written.
    backend.hooks["upsert"] = lambda *_: dropping.drop_images()
    store.write([pictured("red panda", ["a"])])
    assert kept(deployment) == [("red panda", "a")]
    assert store.image(content_hash("a")) is None
    assert store.gc().total() == 0
    assert kept(deployment) == []


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_copies_that_are_kept_again_meanwhile_are_not_dropped(deployment: Deployment) -> None:
    backend = deployment.backend()
    store = deployment.open(backend)
    other = deployment.another(store)
    store.write([pictured("red panda", ["a"])])

    def begin_again(collection: str, *_: Any, **__: Any) -> None:
        if not collection.endswith("__images"):  # undos that are under way are looked for before
            backend.hooks["scroll"] = begin_again
            return
        other.bind(FINGERPRINTS, images="small")
        other.write([pictured("lynx", ["b"])])

    backend.hooks["scroll"] = begin_again  # of the copies to delete
    store.drop_images()
    assert_found(store, "b")


# Damage and foreign points


def write_point(deployment: Deployment, store: Store, payload: dict[str, Any]) -> None:
    points = Points(["00000000-0000-0000-0000-000000000001"], [[1.0]], [payload])
    store._backend.upsert(f"{deployment.namespace}__images", points)


def bomb() -> bytes:
    """A PNG that claims 10⁸ pixels."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


DAMAGED: list[dict[str, Any]] = [
    {},
    *({"small": value} for value in (None, 7, ["x"], "no base64 at all!", "é", "")),
    *(
        {"small": b64encode(content).decode()}
        for content in (
            b"no image",
            jpeg("a")[:100],
            bomb(),
            jpeg("a") + bytes(30_000),
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        )
    ),
]


def test_a_damaged_copy_is_none(deployment: Deployment) -> None:
    store = deployment.open()
    digest = content_hash("a")
    for damage in DAMAGED:
        write_point(deployment, store, {"hash": digest, **damage})
        assert store.image(digest) is None, damage
    store.write([pictured("red panda", ["a"])])
    for damage in DAMAGED:
        write_point(deployment, store, {"hash": digest, **damage})
        assert_found(store, "a")  # beside the damaged copy
    store.write([Write(name="red panda", references=references(["t"]), replace=True, keeps=frozenset({"image"}))])
    assert_found(store, "a")


def test_a_copy_with_odd_fields(deployment: Deployment) -> None:
    store = deployment.open()
    content = {"small": b64encode(jpeg("a")).decode()}
    said = {"width": "wide", "height": None, "source": 7, "added": "yesterday", "category": [], "gen": {}}
    write_point(deployment, store, {"hash": "x", **said, **content})
    assert store.image("x") == SmallImage(hash="x", content=jpeg("a"), width=0, height=0, source="")
    store.gc(grace=0)


# Authors and times


def test_date_and_author_are_kept_through_compaction(deployment: Deployment) -> None:
    store = deployment.open()
    written = [replace(r, added=ADDED, by="Ann") for r in references(["text"], ["a"])]
    store.write([Write(name="red panda", references=written)])
    for further in range(35):
        add(store, "red panda", [str(further)])
    stored = {r.source: r for r in store.stored_references("red panda")}
    assert [(stored[s].added, stored[s].by) for s in ("text", "a", "7")] == [
        (ADDED, "Ann"),
        (ADDED, "Ann"),
        (None, None),
    ]
    assert next(iter(stored)) == "text"
    assert stored["a"].experts == ("clip:image", "dino:image")


@pytest.mark.parametrize("added", ["", "yesterday", "2026-05-04T03:02:01", "0001-01-01T00:00:00+00:00", 7, None, []])
def test_a_date_that_is_none_is_not_known(deployment: Deployment, added: Any) -> None:
    store = deployment.open()
    add(store, "red panda", ["a", "b"])
    clip = store.collection("clip")
    (page,) = store._backend.scroll(clip, Where(match={"category": "red panda"}), vectors=True)
    payloads = [{**payload, "added": added, "by": 7, "prompt": [1]} for payload in page.payloads]
    store._backend.upsert(clip, Points(page.ids, page.vectors, payloads))
    found = store.stored_references("red panda")
    assert [(r.source, r.added, r.by, r.prompt) for r in found] == [("a", None, None, None), ("b", None, None, None)]


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, "server"], indirect=True)
def test_copies_move_with_their_references(deployment: Deployment) -> None:
    store = deployment.open()
    store.write([pictured("red panda", ["a", "b", "c"]), pictured("lynx", ["d"])])
    store.move(Move(source="red panda", target="lynx", hashes=[content_hash("a")]))
    assert collected(deployment, store) == [("lynx", "a"), ("lynx", "d"), ("red panda", "b"), ("red panda", "c")]
    store.remove_references("red panda", [content_hash("b")])
    assert store.image(content_hash("b")) in (None, small("b"))  # until it is collected
    assert collected(deployment, store) == [("lynx", "a"), ("lynx", "d"), ("red panda", "c")]
    assert store.image(content_hash("b")) is None
    store.move(Move(source="lynx", target="fox", new=True))
    store.move(Move(source="red panda", target="fox"))
    assert collected(deployment, store) == [("fox", "a"), ("fox", "c"), ("fox", "d")]
    assert_found(store, "a", "c", "d")
