"""Re-embedded copies beside a store: content, interruption, changes meanwhile, the switch, and forged records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.store.material import (
    ADDED,
    FINGERPRINTS,
    content_hash,
    jpeg,
    pictured,
    unit_vector,
    vectors,
    write_of,
)
from tests.store.support import Crash, Deployment, Hooked
from zsvec.errors import (
    ChangeIdNeededError,
    ConflictError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from zsvec.store import Cursor, InboxImage, Move, Reference, Store, Write, open_store
from zsvec.store import switching as switching_module
from zsvec.store.backends.base import Put, Where
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.catalog import catalog as catalog_module
from zsvec.store.catalog import commit as commit_module
from zsvec.store.catalog.catalog import COMMITS
from zsvec.store.catalog.schema import expected
from zsvec.store.catalog.successor import LARGEST_NUMBER, Successor, successor_from
from zsvec.store.collections.inbox import Removal
from zsvec.store.names import record_id
from zsvec.store.reembedding import Origin
from zsvec.types import Attachment, Fingerprint, Modality, SmallImage

NEW = {"clip": FINGERPRINTS["clip"], "new": Fingerprint(model="test/new", revision="1", dim=4, preprocessing="4 px")}
OTHER = {"dino": replace(FINGERPRINTS["dino"], revision="2")}
CATALOG = "zsvec__catalog"


class Shared(MemoryBackend):
    """As a server: other processes may write."""

    exclusive = False


class Encoders:
    """Vectors made of hashes. An image is readable if it has a small copy, or is among the `originals`."""

    def __init__(self, fingerprints: Mapping[str, Fingerprint] = NEW, originals: Collection[str] = ()) -> None:
        self.fingerprints = fingerprints
        self.modalities: Mapping[str, Collection[Modality]] = dict.fromkeys(fingerprints, ("text", "image"))
        self.originals = originals
        self.embedded: list[str] = []
        self.before_images: list[Callable[[], Any]] = []

    def has_original(self, image: Reference) -> bool:
        return image.source in self.originals

    def prompt(self, encoder: str, name: str) -> str:
        return f"a photo of {name}"

    def vector(self, encoder: str, digest: str) -> NDArray[np.float32]:
        return unit_vector(self.fingerprints[encoder].dim, f"{encoder} {digest}")

    def texts(self, encoder: str, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += texts
        return np.stack([self.vector(encoder, content_hash(text)) for text in texts])

    def images(
        self, images: Sequence[tuple[Reference, SmallImage | None]], encoders: Collection[str]
    ) -> Iterator[tuple[str, Origin, Mapping[str, NDArray[np.float32]]]]:
        if self.before_images:
            self.before_images.pop()()
        for image, copy in images:
            if copy is not None or self.has_original(image):
                self.embedded.append(image.hash)
                origin: Origin = "original" if self.has_original(image) else "small"
                yield image.hash, origin, {encoder: self.vector(encoder, image.hash) for encoder in encoders}


def opened(backend: Any = None, *, history: float = 3600.0, by: str | None = "Ann") -> Store:
    store = Store(backend or Shared(), "zsvec", history=history, by=by)
    if not store.encoders():
        store.bind(FINGERPRINTS, profile="offline")
    return store.current()


def filled(store: Store) -> Store:
    """Categories with all that there can be, and an image that waits."""
    writes = [
        pictured("cat", ["tom", "felix"], ["meows", "purrs"], metadata={"legs": 4}, parent="animal"),
        pictured("dog", ["rex"], ["barks"]),
        write_of("text only", texts=["words"]),
        pictured("old", ["z"]),
    ]
    detailed = [
        replace(one, prompt="a photo of it", group="burst", added=ADDED, by="Ann") for one in writes[0].references
    ]
    store.write([replace(writes[0], references=detailed), *writes[1:]])
    store.write([pictured("cat", ["late"])])
    store.move(Move(source="cat", target="dog", hashes=[content_hash("felix")]))
    store.remove("old")
    store.keep("dog", [content_hash("rex")], "outliers")
    vectors_of = {name: unit_vector(one.dim, "waits") for name, one in FINGERPRINTS.items()}
    store.inbox.put(
        [InboxImage(hash=content_hash("waits"), source="w.png", added=ADDED, vectors=vectors_of, content=jpeg("waits"))]
    )
    return store


def copied(store: Store, encoders: Encoders | None = None) -> tuple[Store, Any, Encoders]:
    encoders = encoders or Encoders()
    copy = store.copy_for(encoders.fingerprints, "plus")
    running = store.reembedding(copy, encoders)
    while running.follow():
        pass
    return copy, running, encoders


def content(store: Store) -> dict[str, Any]:
    """All of a store that does not depend on encoders and on what a commit chooses."""
    found: dict[str, Any] = {}
    for category in store.look(Cursor(), {}).categories:
        stored = store.stored(category.name)
        marks = sorted(category.withdrawn), sorted(category.kept), category.retired
        described = {
            (one.modality, one.hash, one.source, one.prompt, one.group, one.added, one.by, store.image(one.hash))
            for one in stored
        }
        found[category.name] = category.texts, category.metadata, category.parent, marks, described
    return found


def everything(store: Store) -> Any:
    stored = {one.name: vectors(store.stored(one.name)) for one in store.categories()}
    return content(store), {name: {key: some[key].tolist() for key in sorted(some)} for name, some in stored.items()}


def hook(act: Callable[[], object]) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        act()

    return call


def clip_text(name: str) -> Write:
    """A category that the store before and after the switch can have."""
    write = write_of(name, texts=[name])
    return replace(write, references=[replace(write.references[0], encoder="clip")])


def names(store: Store) -> list[str]:
    return [category.name for category in store.categories()]


@pytest.fixture(params=[MemoryBackend, Shared])
def source(request: pytest.FixtureRequest) -> Store:
    return filled(opened(request.param()))


def test_a_copy_has_all_but_the_vectors(source: Store) -> None:
    copy, running, encoders = copied(source)
    assert content(copy) == content(source)
    assert (copy.namespace, copy.encoders(), copy.profile(), copy.incomplete()) == ("zsvec.1", NEW, "plus", [])
    for name in names(source):
        here, there = vectors(source.stored(name)), vectors(copy.stored(name))
        shared = {key for key in here if key[0] == "clip"}
        assert shared == {key for key in there if key[0] == "clip"}
        assert {("new", *key[1:]) for key in shared} == {key for key in there if key[0] == "new"}
        for key in shared:
            np.testing.assert_allclose(there[key], here[key], atol=1e-6)
        for key in there.keys() - shared:
            np.testing.assert_allclose(there[key], encoders.vector(key[0], key[2]), atol=1e-6)
    images = {content_hash(one) for one in ("tom", "felix", "rex", "late")}
    assert running.found.origins == dict.fromkeys(images, "small")
    assert sorted(encoders.embedded) == sorted([*images, "meows", "purrs", "barks", "words"])  # each once
    assert copy.changes() == []


def test_nothing_is_embedded_again(source: Store) -> None:
    copied(source)
    _, running, encoders = copied(source)
    assert (encoders.embedded, running.found.committed) == ([], {})
    assert running.found.unchanged == {"cat", "dog", "text only"}


def test_an_encoder_is_dropped_without_running_any(source: Store) -> None:
    copy, _, encoders = copied(source, Encoders({"clip": FINGERPRINTS["clip"]}))
    assert encoders.embedded == []
    assert content(copy) == content(source)


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_an_interrupted_run_is_repeated(at: int) -> None:
    straight = everything(copied(filled(opened()))[0])
    inner = Shared()
    filled(opened(inner))
    backend = Hooked(inner)
    encoders = Encoders()
    backend.dies_at = at
    try:
        copied(opened(backend), encoders)
    except Crash:
        pass
    else:
        assert at > 100, "nothing was interrupted"
    assert everything(copied(opened(inner), encoders)[0]) == straight


def test_images_of_committed_chunks_are_not_embedded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.reembedding.CHUNK", 2)
    store = opened()
    store.write([pictured("many", [f"image {i}" for i in range(7)], ["text"])])
    encoders = Encoders()
    committed: list[int] = []

    def count(number: int) -> None:
        committed.append(number)
        if len(committed) == 3:
            raise KeyboardInterrupt

    copy = store.copy_for(NEW)
    with pytest.raises(KeyboardInterrupt):
        store.reembedding(copy, encoders, on_image=count).follow()
    assert len(encoders.embedded) == 7  # the text, and three chunks, of which two are committed
    copy, _, again = copied(store)
    assert len(again.embedded) == 3
    assert content(copy) == content(store)


def test_the_parts_of_a_large_category_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.store.reembedding.CHUNK", 1)
    store = opened()
    store.write([pictured("many", [f"image {i}" for i in range(70)])])
    copy, sizes = store.copy_for(NEW), list[int]()
    store.reembedding(copy, Encoders(), on_image=sizes.append).follow()
    assert sizes == [1] * 70  # images in memory at once
    assert len(copy.category("many").write_ids) == 24
    assert content(copy) == content(store)


def test_a_repeated_run_compares_all_categories_at_once() -> None:
    def repeated(categories: int) -> int:
        inner = Shared()
        store = filled(opened(inner))
        store.write([pictured(f"category {i}", [f"image {i}"], metadata={"i": i}) for i in range(categories)])
        copied(store)
        backend = Hooked(inner)
        _, running, encoders = copied(opened(backend))
        assert (len(running.found.unchanged), running.found.committed) == (categories + 3, {})
        assert (encoders.embedded, running.survey().present) == ([], categories + 4)
        return backend.calls.total()

    assert repeated(2) == repeated(40)


def test_each_namespace_is_listed_once() -> None:
    listed: list[str] = []

    class Listed(Shared):
        def scroll(self, collection: str, where: Where, *args: Any, **kwargs: Any) -> Any:
            if where.match.get("kind") in ("manifest", COMMITS.match["kind"]) and where.since is None:
                listed.append(collection)
            return super().scroll(collection, where, *args, **kwargs)

    store = filled(opened(Listed()))
    encoders = Encoders()
    copied(store, encoders)
    copy = store.copy_for(encoders.fingerprints, "plus")
    running = store.reembedding(copy, encoders)
    listed.clear()
    assert running.survey().present == 4
    assert running.follow()
    assert sorted(listed) == ["zsvec.1__catalog"] * 2 + ["zsvec__catalog"]  # the collector lists the copy, too
    assert running.found.committed == {}
    store.write([pictured("cat", ["new"])])
    assert running.follow()
    assert list(running.found.committed) == ["cat"]


def test_a_repeated_run_embeds_what_could_not_be_embedded_before() -> None:
    store = opened()
    store.write([write_of("cat", ["first", "second"], ["meows"])])
    copied(store, Encoders(OTHER, originals=["first"]))
    copy, running, encoders = copied(store, Encoders(OTHER, originals=["first", "second"]))
    assert (encoders.embedded, running.found.left_out) == ([content_hash("second")], {})
    assert content(copy) == content(store)


def test_a_repeated_run_replaces_the_prompts_of_another_version() -> None:
    class Prompting(Encoders):
        def prompt(self, encoder: str, name: str) -> str:
            return f"an image of {name}"

    store = opened()
    store.write([replace(pictured("cat", ["tom"]), texts=("cat",))])
    assert [one.source for one in copied(store)[0].stored("cat") if one.modality == "text"] == ["a photo of cat"]
    copy, running, _ = copied(store, Prompting())
    assert [one.source for one in copy.stored("cat") if one.modality == "text"] == ["an image of cat"]
    assert running.found.committed.keys() == {"cat"}


def test_what_cannot_be_embedded_is_left_out_and_named() -> None:
    store = opened()
    store.write([write_of("cat", ["with original", "without"], ["meows"]), write_of("dog", ["gone"])])
    encoders = Encoders(OTHER, originals=["with original"])
    copy, running, _ = copied(store, encoders)
    survey = running.survey()
    assert running.found.origins == {content_hash("with original"): "original"}
    assert [one.source for one in running.found.left_out["cat"]] == ["without"]
    assert running.found.left_out["cat"][0].experts == ("dino:image",)
    assert running.found.damaged.keys() == {"dog"}
    assert names(copy) == ["cat"]
    assert (survey.present, survey.originals, survey.small, survey.neither) == (1, 0, 0, 2)
    with pytest.raises(StoreError):
        store.switch_to(copy, running)
    store.remove("dog")
    assert store.switch_to(copy, running)[0].what == "reembed"


def test_texts_of_a_category_defined_by_its_name_follow_the_prompt() -> None:
    store = opened()
    prompted, plain = "photo: red panda", "red panda"
    write = write_of("red panda", texts=[prompted])
    store.write([replace(write, texts=(plain,)), write_of("told", texts=["told"])])
    copy, _, _ = copied(store, Encoders(OTHER))
    assert {one.source for one in copy.stored("red panda")} == {"a photo of red panda"}
    assert copy.category("red panda").texts == (plain,)
    assert {one.source for one in copy.stored("told")} == {"told"}


def test_changes_meanwhile_are_followed(source: Store) -> None:
    encoders = Encoders()

    def change() -> None:
        source.write([pictured("bird", ["tweety"], ["sings"])])
        source.remove_references("dog", [content_hash("felix")])
        source.remove("text only")

    encoders.before_images.append(change)
    copy, _, _ = copied(source, encoders)
    assert content(copy) == content(source)
    source.write([pictured("bird", ["woodstock"])])
    source.write([replace(pictured("cat", ["tom"]), replace=True)])
    copy, running, _ = copied(source)
    assert content(copy) == content(source)
    assert running.found.committed.keys() == {"bird", "cat"}


def test_damaged_records_are_named(source: Store) -> None:
    catalog = source._catalog
    place = record_id("category", "dog")
    record = catalog.retrieve([place])[place]
    catalog.put([Put(place, {**record, "version": record["version"] + 1, "texts": [" "]}, expected(record))])
    copy, running, _ = copied(source)
    assert running.found.damaged.keys() == {"dog"}
    assert names(copy) == ["cat", "text only"]


# The switch


def test_a_switch_and_back(source: Store) -> None:
    copy, running, _ = copied(source)
    change, detached = source.switch_to(copy, running)
    assert detached == []
    now = opened(source._backend)
    assert (now.namespace, now.encoders()) == ("zsvec.1", NEW)
    assert content(now) == content(source)
    assert [image.hash for image in now.inbox.read(vectors=True)] == [content_hash("waits")]
    assert [(one.id, one.what) for one in now.changes()] == [(change.id, "reembed")]
    assert now.undo() == replace(change, undone=True)
    back = opened(source._backend)
    assert (back.namespace, back.encoders()) == ("zsvec", FINGERPRINTS)
    back.write([write_of("bird", texts=["sings"])])  # the old state is whole again
    with pytest.raises(StoreError):
        now.write([write_of("lost", texts=["lost"])])


def test_switching_again_takes_what_changed_in_between(source: Store) -> None:
    copy, running, _ = copied(source)
    source.switch_to(copy, running)
    opened(source._backend).undo()
    back = opened(source._backend)
    back.write([pictured("bird", ["tweety"])])
    copy, running, encoders = copied(back)
    assert (copy.namespace, encoders.embedded) == ("zsvec.1", [content_hash("tweety")])
    back.switch_to(copy, running)
    assert names(opened(source._backend)) == ["bird", "cat", "dog", "text only"]
    second = opened(source._backend)
    copy, running, _ = copied(second, Encoders({**NEW, **OTHER}))
    second.switch_to(copy, running)
    third = opened(source._backend)
    assert (third.namespace, third.encoders()) == ("zsvec.2", {**NEW, **OTHER})
    assert content(third) == content(back)
    third.undo()
    assert opened(source._backend).namespace == "zsvec.1"


def test_a_copy_that_an_undo_has_left_is_refused_to_its_old_writers_until_the_next_switch() -> None:
    late = switched()
    opened(late._backend).undo()
    back = opened(late._backend)
    copy, running, _ = copied(back)
    assert copy.namespace == late.namespace
    for _ in range(2):  # the second run goes on in the copy of the first
        with pytest.raises(StoreError):
            late.write([clip_text("lost")])
        copy, running, _ = copied(back)
    back.switch_to(copy, running)
    late.write([clip_text("kept")])
    assert names(opened(late._backend)) == ["cat", "dog", "kept", "text only"]
    with pytest.raises(StoreError):
        back.write([clip_text("lost")])


def test_writers_of_before_are_refused_and_readers_go_on(source: Store) -> None:
    old = opened(source._backend) if not source._backend.exclusive else source
    copy, running, _ = copied(source)
    source.switch_to(copy, running)
    before = content(old)
    for change in (
        lambda: old.write([write_of("new", texts=["new"])]),
        lambda: old.remove("cat"),
        lambda: old.move(Move(source="cat", target="dog", hashes=[content_hash("tom")])),
        lambda: old.keep_calibration({"format": 1}),
        lambda: old.inbox.put(old.inbox.read(vectors=True)),
        lambda: old.gc(grace=0),
        old.undo,
    ):
        with pytest.raises(StoreError):
            change()
    assert content(old) == before
    assert {one.name for one in old.look(Cursor(), {}).categories if one.write_ids} == set(names(old))


def pair() -> tuple[Store, Store, Hooked]:
    """Two processes that have one store open, and what the second sends."""
    inner = Shared()
    first = filled(opened(inner))
    second = Hooked(inner)
    return first, opened(second), second


def test_a_commit_that_lands_after_the_switch_is_refused() -> None:
    first, second, sent = pair()
    copy, running, _ = copied(first)
    sent.hooks["commit"] = hook(lambda: first.switch_to(copy, running))
    with pytest.raises(StoreError):
        second.write([write_of("late", texts=["late"])])
    assert "late" in names(second)  # it has landed in the old namespace, and was not acknowledged
    assert "late" not in names(opened(sent.inner))


def test_a_commit_between_the_last_look_and_the_switch_is_in_the_copy() -> None:
    inner = Shared()
    second = filled(opened(inner))
    sent = Hooked(inner)
    first = opened(sent)
    copy, running, _ = copied(first)
    looked = running.follow
    calls: list[int] = []

    def follow() -> bool:
        found = looked()
        calls.append(1)
        if len(calls) == 1:  # the last look before the store is closed
            sent.hooks["put"] = hook(lambda: second.write([pictured("late", ["late"])]))
        return found

    running.follow = follow
    first.switch_to(copy, running)
    assert len(calls) == 2
    assert "late" in names(opened(inner))


@pytest.mark.parametrize("finishes", [True, False])
def test_a_commit_that_lands_while_the_store_is_closed_waits(finishes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "PAUSES", (0.0, 0.0, 0.0))
    first, second, sent = pair()
    copy, running, _ = copied(first)
    closing = switching_module.closed(first._catalog, 1)
    reads: list[int] = []

    def close(*_: Any) -> None:  # after the writer has planned, before its commit
        held = closing.__enter__()

        def read(*_: Any) -> None:
            reads.append(1)
            if len(reads) < 3 * commit_module._LOOKS:
                sent.hooks["retrieve"] = read
            else:
                end(held)

        sent.hooks["retrieve"] = read

    def end(held: switching_module.Closed) -> None:
        running.follow()  # may see the commit
        if finishes:
            switching_module.finish(first._catalog, held, rev=0, window_s=60, by=None)
        closing.__exit__(None, None, None)

    sent.hooks["commit"] = close
    if finishes:
        with pytest.raises(StoreError):
            second.write([write_of("late", texts=["late"])])
    else:
        second.write([write_of("late", texts=["late"])])
        first.switch_to(copy, running)
        assert "late" in names(opened(sent.inner))


def test_a_writer_opens_a_store_that_a_killed_process_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "LONGEST_CLOSED_S", 0.1)
    first, second, sent = pair()
    copy, running, _ = copied(first)
    with switching_module.closed(first._catalog, 1) as closing:
        second.write([write_of("late", texts=["late"])])
        with pytest.raises(ConflictError):  # it was not killed
            switching_module.finish(first._catalog, closing, rev=0, window_s=60, by=None)
    assert names(opened(sent.inner)) == ["cat", "dog", "late", "text only"]
    first.switch_to(copy, running)
    assert "late" in names(opened(sent.inner))


def test_a_switch_waits_for_a_move_in_progress() -> None:
    first, second, sent = pair()
    copy, running, _ = copied(first)
    puts: list[int] = []

    def after_marks(*_: Any) -> None:
        puts.append(1)
        if len(puts) < 3:
            sent.hooks["commit"] = after_marks
        else:
            first.switch_to(copy, running)

    sent.hooks["commit"] = after_marks
    with pytest.raises(StoreError):
        second.move(Move(source="cat", target="dog", hashes=[content_hash("tom")]))
    now = opened(sent.inner)
    where = [name for name in names(now) for one in now.stored(name) if one.hash == content_hash("tom")]
    assert set(where) in ({"cat"}, {"dog"})
    assert len(puts) == 3


def waiting(name: str, encoders: Mapping[str, Fingerprint] = FINGERPRINTS, *, copy: bool = True) -> InboxImage:
    found = {encoder: unit_vector(of.dim, name) for encoder, of in encoders.items()}
    small = jpeg(name) if copy else None
    return InboxImage(hash=content_hash(name), source=name, added=ADDED, vectors=found, content=small)


@pytest.mark.parametrize("how", ["failed", "undone"])
def test_the_inbox_of_the_copy_follows(source: Store, how: str) -> None:
    source.inbox.put([waiting("labelled"), waiting("stays"), waiting("dismissed in the copy")])
    copy, running, _ = copied(source, Encoders(OTHER))
    if how == "failed":
        source.write([write_of("bad", ["nothing to embed"])])
        with pytest.raises(StoreError):
            source.switch_to(copy, running)
        source.remove("bad")
    else:
        source.switch_to(copy, running)
        now = opened(source._backend)
        now.inbox.put([waiting("of the copy alone", OTHER)])
        now.undo(change=now.changes()[0].id)
        now.inbox.remove([content_hash("dismissed in the copy")], Removal("dismissed"))
    source.remove_from_inbox([content_hash("waits")])
    source.remove_from_inbox([content_hash("labelled")], "cat")
    source.switch_to(*copied(source, Encoders(OTHER))[:2])
    found = {(image.source, image.state) for image in opened(source._backend).inbox.read(labelled=True)}
    assert found == {("stays", "waiting"), ("dismissed in the copy", "waiting")}


def test_an_image_of_the_inbox_that_cannot_be_embedded_is_named(source: Store) -> None:
    source.inbox.put([waiting("lost", copy=False)])
    copy, running, _ = copied(source)
    source.switch_to(copy, running)
    assert (running.found.inbox, running.found.inbox_left_out) == (1, {content_hash("lost"): "lost"})
    assert [image.hash for image in opened(source._backend).inbox.read()] == [content_hash("waits")]


def test_writers_wait_only_for_images_that_come_to_the_inbox_during_the_switch() -> None:
    store = filled(opened())
    copy, running, encoders = copied(store)
    closed: list[bool] = []

    def see() -> None:
        closed.append(store._catalog.successor() is not None)
        encoders.before_images.append(see)
        if not closed[-1]:
            store.inbox.put([waiting("late")])

    encoders.before_images.append(see)
    store.switch_to(copy, running)
    assert closed == [False, True]
    assert encoders.embedded[-2:] == [content_hash("waits"), content_hash("late")]


def test_attached_collections_of_shared_encoders_come_along(source: Store) -> None:
    attached = [
        asdict(Attachment(collection=name, expert=f"{name}:image", label="label", id=name)) for name in FINGERPRINTS
    ]
    copy, running, _ = copied(source)
    source._catalog.set_in_store(attachments=attached, labels="many")
    assert source.switch_to(copy, running)[1] == ["dino"]
    record = copy._catalog.store() or {}
    assert (record["attachments"], record["labels"]) == (attached[:1], "many")


def test_the_run_that_began_last_makes_the_copy() -> None:
    first, second, sent = pair()
    copies = [copied(first), copied(second)]
    with pytest.raises(StoreError):
        first.switch_to(copies[0][0], copies[0][1])
    second.switch_to(copies[1][0], copies[1][1])
    assert opened(sent.inner).namespace == "zsvec.1"
    with pytest.raises(StoreError):
        first.copy_for(NEW)


def test_a_second_run_cannot_change_a_copy_that_has_become_current() -> None:
    first, second, sent = pair()
    copied(first)
    first.write([pictured("bird", ["tweety"]), replace(pictured("cat", ["tom"]), replace=True)])

    def overtake(*_: Any) -> None:  # the second run has planned a commit
        first.switch_to(*copied(first)[:2])
        opened(sent.inner).remove("bird")

    copy = second.copy_for(NEW)
    sent.hooks["commit"] = overtake
    running = second.reembedding(copy, Encoders())
    with pytest.raises(StoreError):
        while running.follow():
            pass
        running.check_complete()
    assert names(opened(sent.inner)) == ["cat", "dog", "text only"]
    assert {one.source for one in opened(sent.inner).stored("cat")} == {"tom"}


@pytest.mark.parametrize("fields", [{"schema": 99}, {"schema": "none"}])
def test_a_store_whose_current_namespace_cannot_be_read_is_not_opened(
    fields: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = switched()._backend
    monkeypatch.setattr("zsvec.store.backends.memory.MemoryBackend", lambda: backend)
    with open_store(":memory:", namespace="zsvec") as store:
        assert store.namespace == "zsvec.1"
        place = record_id("store")
        record = store._catalog.retrieve([place])[place]
        changed = {**record, **fields, "version": record["version"] + 1}
        store._catalog.put([Put(place, changed, expected(record))])
        with pytest.raises(StoreError):
            open_store(":memory:", namespace="zsvec")


def test_a_folder_that_is_locked_is_not_opened_in_its_old_namespace(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "store"), namespace="zsvec") as store:
        store.bind(FINGERPRINTS)
        with pytest.raises(StoreLockedError):
            open_store(str(tmp_path / "store"), namespace="zsvec")
    with open_store(str(tmp_path / "store"), namespace="zsvec") as store:
        assert store.encoders() == FINGERPRINTS


# The undo


def switched(**settings: Any) -> Store:
    store = filled(opened(**settings))
    copy, running, _ = copied(store)
    store.switch_to(copy, running)
    return opened(store._backend, **settings)


def test_a_store_is_switched_after_a_transfer() -> None:
    store = opened()
    store.write([pictured("cat", ["tom", "felix"], ["meows"]), pictured("dog", ["rex"], ["barks"])])
    store.move(Move(source="cat", target="dog", hashes=[content_hash("felix")]))
    copy, running, _ = copied(store)
    store.switch_to(copy, running)
    assert {one.hash for one in copy.stored("dog") if one.modality == "image"} == {
        content_hash("rex"),
        content_hash("felix"),
    }


def test_a_switch_embeds_again_what_the_copy_has_lost(source: Store) -> None:
    copy, _, _ = copied(source)
    source._backend.delete("zsvec.1__new", Where(match={"hash": content_hash("rex")}))
    assert copy.incomplete() == ["dog"]
    copy, running, _ = copied(source)
    source.switch_to(copy, running)
    assert (copy.incomplete(), content(copy)) == ([], content(source))


def test_a_category_that_was_restored_and_changed_again_is_embedded_again(source: Store) -> None:
    catalog = source._catalog
    place = record_id("category", "dog")
    record = catalog.retrieve([place])[place]
    source.write([pictured("dog", ["first"])])
    copied(source)
    catalog.put([Put(place, record, expected(catalog.retrieve([place])[place]))])
    source.write([pictured("dog", ["second"])])
    copy, _, _ = copied(source)
    assert content(copy) == content(source)


def test_a_forged_removal_in_the_copy_removes_nothing(source: Store) -> None:
    copy, _, _ = copied(source)
    catalog = copy._catalog
    place = record_id("category", "dog")
    record = catalog.retrieve([place])[place]
    forged = {**record, "version": record["version"] + 1, "writes": [], "references": {}}
    catalog.put([Put(place, forged, expected(record))])
    copy, _, _ = copied(source)
    assert content(copy) == content(source)


def test_changes_since_the_switch_are_never_lost_by_an_undo() -> None:
    store = switched()
    [change] = store.changes()
    later = write_of("bird", texts=["sings"])
    store.write([replace(later, references=[replace(later.references[0], encoder="clip")])])
    assert store.undo().what == "add"  # the last change, not the switch
    store.keep("dog", [content_hash("rex")], "duplicates")
    with pytest.raises(InvalidInputError):
        store.undo(change=change.id)
    assert opened(store._backend).namespace == "zsvec.1"
    store.write([replace(later, references=[replace(later.references[0], encoder="clip")])])  # it is open


def test_an_undo_is_refused_to_late_writers_too() -> None:
    store = switched()
    sent = Hooked(store._backend)
    late = opened(sent)
    write = write_of("late", texts=["late"])
    sent.hooks["commit"] = hook(store.undo)
    with pytest.raises(StoreError):
        late.write([replace(write, references=[replace(write.references[0], encoder="clip")])])
    assert "late" not in names(opened(sent.inner))


def test_a_killed_undo_is_finished_by_the_next_process() -> None:
    store = switched()
    before = store._before[-1]
    found = switching_module.last_switch(before)
    assert found is not None
    with switching_module.closed(store._catalog, 0, identifier=found[0].id) as closing:
        switching_module.finish(store._catalog, closing, rev=0, window_s=0, by=None)  # and killed
    assert before.store()["successor"]["done"] is True  # type: ignore[index]
    back = opened(store._backend)
    assert back.namespace == "zsvec"
    back.write([write_of("bird", texts=["sings"])])
    assert before.store()["successor"] is None  # type: ignore[index]


def test_an_id_that_begins_as_a_switch_and_another_change_takes_neither() -> None:
    store = switched()
    [before] = store._before
    store.remove_from_inbox([content_hash("waits")])
    dismissal = store.changes()[0]
    start = dismissal.id[:8]
    before.set_in_store(successor={**(before.store() or {})["successor"], "id": f"{start} the switch"})
    with pytest.raises(InvalidInputError):
        store.undo(change=start)
    assert [one.undone for one in store.changes()] == [False, False]
    assert store.undo(change=dismissal.id).what == "dismiss"
    assert store.undo(change=f"{start} the").what == "reembed"


def test_an_undo_needs_the_undo_time_and_the_author() -> None:
    assert switched(history=0.0).changes() == []
    with pytest.raises(InvalidInputError):
        switched(history=0.0).undo()
    store = switched(by="Ann")
    with pytest.raises(ChangeIdNeededError):
        opened(store._backend, by="Bob").undo()
    [change] = store.changes()
    assert opened(store._backend, by="Bob").undo(change=change.id[:8]).by == "Ann"


# The old state


def collections_of(store: Store) -> set[str]:
    return {name for name, some in store._backend._collections.items() if some}  # type: ignore[attr-defined]


def test_gc_deletes_the_old_state_after_the_undo_time() -> None:
    store = switched()
    store.gc()
    assert "zsvec__dino" in collections_of(store)
    final: list[str] = []
    store.gc(grace=0, on_final=lambda change: final.append(change.what))
    assert final == ["reembed"]
    assert collections_of(store) & {"zsvec__dino", "zsvec__clip", "zsvec__images", "zsvec__inbox"} == set()
    again = opened(store._backend)
    assert (again.namespace, content(again)) == ("zsvec.1", content(store))
    with pytest.raises(InvalidInputError):
        again.undo()
    store.gc(grace=0, on_final=lambda change: final.append(change.what))
    assert final == ["reembed"]


def test_readers_of_a_deleted_namespace_are_refused() -> None:
    first, second, _ = pair()
    seen = second.look(Cursor(), {})
    known = {category.name: category.version for category in seen.categories}
    copy, running, _ = copied(first)
    first.switch_to(copy, running)
    assert second.look(seen.cursor, known).categories == []
    second.ping()
    opened(first._backend).gc(grace=0)
    readings: list[Callable[[], Any]] = [
        lambda: second.look(seen.cursor, known),
        lambda: second.look(Cursor(), {}),
        lambda: second.stored("cat"),
        second.categories,
        second.info,
        second.ping,
    ]
    for reading in readings:
        with pytest.raises(StoreError):
            reading()
    assert names(second.current()) == ["cat", "dog", "text only"]


def test_a_forgotten_image_is_in_no_copy() -> None:
    store = switched()
    store.forget(content_hash("nowhere"))
    assert "zsvec__dino" in collections_of(store)
    store.forget(content_hash("tom"))
    assert "zsvec__dino" not in collections_of(store)
    for some in store._backend._collections.values():  # type: ignore[attr-defined]
        assert content_hash("tom") not in str(some)


@pytest.mark.parametrize("when", ["embedding", "writing"])
def test_an_image_that_is_forgotten_during_a_run_is_in_no_copy(when: str) -> None:
    other, store, sent = pair()
    encoders = Encoders()
    forget = hook(lambda: other.forget(content_hash("tom")))
    if when == "embedding":
        encoders.before_images.append(forget)
    else:
        encoders.before_images.append(lambda: sent.hooks.update(upsert=forget))
    with pytest.raises(StoreError):
        copied(store, encoders)
    assert encoders.embedded.count(content_hash("tom")) == 1
    assert content_hash("rex") not in encoders.embedded  # refused at once
    copy, running, _ = copied(store)
    store.switch_to(copy, running)
    assert names(opened(sent.inner)) == ["cat", "dog", "text only"]
    for some in sent.inner._collections.values():  # type: ignore[attr-defined]
        assert content_hash("tom") not in str(some)


def test_an_image_that_is_forgotten_during_a_switch_is_in_no_copy() -> None:
    first, second, sent = pair()
    copy, running, _ = copied(first)
    sent.hooks["delete"] = hook(lambda: first.switch_to(copy, running))  # between the check and the last step
    with pytest.raises(StoreError):
        second.forget(content_hash("waits"))
    now = opened(sent.inner)
    assert (now.namespace, names(now)) == (
        "zsvec",
        ["cat", "dog", "text only"],
    )  # the switch finished the erasure first
    assert now.forget(content_hash("waits")).points == 0
    for some in sent.inner._collections.values():  # type: ignore[attr-defined]
        assert content_hash("waits") not in str(some)


class OneNamespace(Shared):
    """As a server, with a key that has rights on the collections of one namespace."""

    def retrieve(self, collection: str, ids: Sequence[str]) -> Any:
        if collection.startswith("zsvec."):
            raise StoreUnavailableError(collection)
        return super().retrieve(collection, ids)


def test_a_key_for_one_namespace_suffices_until_a_copy_is_begun() -> None:
    store = filled(opened(OneNamespace()))
    assert store.forget(content_hash("tom")).points > 0
    store.gc(grace=0)
    assert store.drop_others() == []
    with pytest.raises(StoreUnavailableError):
        store.copy_for(NEW)


def test_copies_that_are_not_current_are_dropped_on_request(source: Store) -> None:
    copied(source)
    copied(source, Encoders(OTHER))
    assert source.drop_others() == ["zsvec.1", "zsvec.2"]
    assert content(opened(source._backend)) == content(source)
    assert copied(source)[0].namespace == "zsvec.3"
    with pytest.raises(InvalidInputError):
        source.named("zsvec.1")
    assert source.named("zsvec.3").encoders() == NEW


@pytest.mark.parametrize(
    "delete", [Store.drop_others, lambda store: store.gc(), lambda store: store.forget(content_hash("rex"))]
)
@pytest.mark.parametrize("dies_before", ["remove", "drop"])
def test_a_killed_deletion_is_finished(dies_before: str, delete: Callable[[Store], object]) -> None:
    store = switched()
    sent = Hooked(store._backend)
    dying = opened(sent)

    def die(*_: object) -> None:
        raise Crash

    sent.hooks[dies_before] = die
    with pytest.raises(Crash):
        dying.drop_others()
    with pytest.raises(InvalidInputError):
        store.named("zsvec")
    assert len(store._backend._collections[CATALOG]) > 1  # type: ignore[attr-defined]
    delete(store)
    assert collections_of(store) & {"zsvec__dino", "zsvec__clip", "zsvec__images", "zsvec__inbox"} == set()
    assert store._backend._collections[CATALOG].keys() == {record_id("store")}  # type: ignore[attr-defined]
    assert store.drop_others() == []
    assert "cat" in names(opened(store._backend))


def first_put(sent: Hooked, act: Callable[[], object], when: Callable[[Mapping[str, Any]], bool]) -> None:
    """Acts before the first put of such a record."""

    def look(_: str, puts: Sequence[Put]) -> None:
        if when(puts[0].payload):
            act()
        else:
            sent.hooks["put"] = look

    sent.hooks["put"] = look


def drops(record: Mapping[str, Any]) -> bool:
    return bool(record.get("dropped"))


def switches(record: Mapping[str, Any], *, done: bool) -> bool:
    return bool((found := record.get("successor")) and found["done"] is done)


@pytest.mark.parametrize("delete", [Store.drop_others, lambda store: store.gc(grace=0)])
def test_a_namespace_that_an_undo_has_made_current_is_not_deleted(delete: Callable[[Store], object]) -> None:
    store = switched()
    sent = Hooked(store._backend)
    before = everything(store.beside(0))
    first_put(sent, store.undo, drops)
    with pytest.raises(StoreError):
        delete(opened(sent))
    back = opened(store._backend)
    assert (back.namespace, everything(back)) == ("zsvec", before)
    back.write([clip_text("kept")])


def test_a_copy_that_a_switch_has_made_current_is_not_deleted() -> None:
    first, second, sent = pair()
    copy, running, _ = copied(first)
    first_put(sent, lambda: first.switch_to(copy, running), drops)
    with pytest.raises(StoreError):
        second.drop_others()
    now = opened(sent.inner)
    assert (now.namespace, content(now)) == ("zsvec.1", content(first))
    now.write([clip_text("kept")])


@pytest.mark.parametrize("done", [False, True])
def test_a_copy_that_was_deleted_during_the_switch_does_not_become_current(
    done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "LONGEST_CLOSED_S", 0.1)
    first, second, sent = pair()
    copy, running, _ = copied(second)
    first_put(sent, first.drop_others, partial(switches, done=done))
    with pytest.raises(StoreError):
        second.switch_to(copy, running)
    now = opened(sent.inner)
    assert (now.namespace, names(now)) == ("zsvec", ["cat", "dog", "text only"])
    now.write([clip_text("kept")])


@pytest.mark.parametrize("done", [False, True])
def test_an_undo_does_not_lead_to_a_namespace_that_was_deleted_meanwhile(
    done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "LONGEST_CLOSED_S", 0.1)
    store = switched()
    sent = Hooked(store._backend)
    undoing = opened(sent)
    first_put(sent, store.drop_others, partial(switches, done=done))
    with pytest.raises(StoreError):
        undoing.undo()
    now = opened(store._backend)
    assert (now.namespace, names(now)) == ("zsvec.1", ["cat", "dog", "text only"])
    now.write([clip_text("kept")])


def test_the_encoders_must_be_others(source: Store) -> None:
    with pytest.raises(InvalidInputError):
        source.copy_for(FINGERPRINTS)
    with pytest.raises(StoreError):
        Store(MemoryBackend(), "zsvec").copy_for(NEW)


# Each backend


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
def test_the_whole_path_from_a_killed_run_to_the_deletion(deployment: Deployment) -> None:
    backend = deployment.backend()

    def current() -> Store:
        return Store(backend, deployment.namespace, history=3600.0).current()

    store = filled(deployment.open(backend, history=3600.0))
    backend.dies_at = backend.calls.total() + 60
    with pytest.raises(Crash):
        copied(store)
    backend.dies_at = None
    copy, running, _ = copied(store)
    assert running.found.unchanged | running.found.committed.keys() == {"cat", "dog", "text only"}
    writer = deployment.another(store)
    writer.write([pictured("bird", ["tweety"])])
    writer.remove("text only")
    before = content(store)
    change, _ = store.switch_to(copy, running)
    with pytest.raises(StoreError):
        writer.write([clip_text("late")])
    now = current()
    assert (now.namespace, content(now)) == (f"{deployment.namespace}.1", before)
    assert (now.encoders(), now.incomplete(), len(now.inbox.read())) == (NEW, [], 1)
    assert now.undo(change=change.id).id == change.id
    back = current()
    assert (back.namespace, content(back)) == (deployment.namespace, before)
    back.write([clip_text("kept")])
    assert back.drop_others() == [f"{deployment.namespace}.1"]
    left = {name for name in deployment.collections() if name.startswith(f"{deployment.namespace}.")}
    assert left == {f"{deployment.namespace}.1__catalog"}
    assert names(current()) == ["bird", "cat", "dog", "kept"]


# Forged records

VALID = Successor(id="a", to=1, done=True).to_dict()


@pytest.mark.parametrize(
    "forged",
    [
        None,
        1,
        "other",
        [1],
        {},
        {**VALID, "to": "other"},
        {**VALID, "to": "../other"},
        {**VALID, "to": True},
        {**VALID, "to": 1.0},
        {**VALID, "to": -1},
        {**VALID, "to": 0},
        {**VALID, "to": LARGEST_NUMBER + 1},
        {**VALID, "done": 1},
        {**VALID, "id": ""},
        {**VALID, "id": "\x1b[2J"},
        {**VALID, "at": -1},
        {**VALID, "until": 2.0**60},
        {**VALID, "by": 1},
        {**VALID, "by": "x" * 501},
        {key: value for key, value in VALID.items() if key != "rev"},
    ],
)
def test_a_forged_successor_is_none(forged: Any) -> None:
    assert successor_from({"successor": forged}, 0) is None


def test_a_successor_leads_to_a_namespace_of_the_same_store_alone() -> None:
    assert successor_from({"successor": VALID}, 0) == Successor(id="a", to=1, done=True)
    backend = Shared()
    Store(backend, "zsvec-1").bind(FINGERPRINTS)  # of another team
    Store(backend, "zsvec__1").bind(FINGERPRINTS)
    store = opened(backend)
    store._catalog.set_in_store(successor=VALID)
    assert opened(backend).namespace == "zsvec"  # there is no zsvec.1


def test_a_circle_of_successors_ends() -> None:
    store = switched()
    store._catalog.set_in_store(successor={**VALID, "to": 0, "id": "forged"})
    assert opened(store._backend).namespace == "zsvec.1"
