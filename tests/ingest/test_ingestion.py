"""Categories into a store: by `Builder`, and from folders and files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import (  # noqa: F401
    REUSING,
    Reusing,
    encode,
    fast_folder,
    given_images,
    isolated,
    photo,
    photos,
    sources,
    state,
    write_photos,
)
from zsvec.encoders import EncoderSet
from zsvec.errors import ConflictError, EncoderError, ImageError, InvalidInputError
from zsvec.ingest.embedding import Embedder
from zsvec.ingest.ingestion import Builder
from zsvec.inputs.categories import CategoryInput, ReferenceImage, as_words, checked_name
from zsvec.inputs.folders import read_categories, read_definitions
from zsvec.inputs.images import content_hash
from zsvec.settings.settings import load_settings
from zsvec.store import Store, open_store
from zsvec.streams import stream
from zsvec.testing import HashEncoder
from zsvec.types import Category, Modality, StoredReference


class Encoder(HashEncoder):
    """Records the size of every batch."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.batches: dict[str, list[int]] = {"text": [], "image": []}

    def embed(self, batch: Any, modality: Modality) -> Any:
        self.batches[modality].append(len(batch))
        return super().embed(batch, modality)


class Workshop:
    """A builder with encoders and a store."""

    def __init__(self, store: Store, *encoders: Encoder, batch_size: int = 8) -> None:
        self.store = store
        self.encoders = encoders
        embedder = Embedder(lambda: EncoderSet(encoders), {"max_pixels": 1000})
        store.bind(embedder.encoders.fingerprints)
        self.builder = Builder(store, embedder, prompts={"clip": "a photo of a {name}"}, batch_size=batch_size)

    def add(self, name: str, texts: Any = None, images: Any = None, **options: Any) -> Category:
        """Build one category; ``replace`` and ``on_error`` are of the build."""
        build = {key: options.pop(key) for key in ("replace", "on_error") if key in options}
        given = CategoryInput(name=name, texts=texts, images=images, **options)
        (category,) = self.builder.build([given], **build)
        return category

    def embedded(self) -> dict[str, tuple[int, int]]:
        """Texts and images that each encoder embedded so far."""
        return {encoder.name: (encoder.texts_encoded, encoder.images_encoded) for encoder in self.encoders}


@contextmanager
def new_store() -> Iterator[Store]:
    with fast_folder() as folder, open_store(str(folder / "store"), namespace="zsvec") as opened:
        yield opened


def workshop_of(store: Store) -> Workshop:
    return Workshop(store, Encoder("clip", dim=32), Encoder("dino", dim=16, modalities=("image",)))


@pytest.fixture
def store() -> Iterator[Store]:
    with new_store() as opened:
        yield opened


@pytest.fixture
def workshop(store: Store) -> Workshop:
    return workshop_of(store)


@pytest.fixture(scope="module")
def empty() -> Iterator[Workshop]:
    """A workshop without categories, for tests that write none."""
    with new_store() as opened:
        yield workshop_of(opened)


@pytest.fixture(scope="module")
def kennel() -> Iterator[Workshop]:
    """A workshop with a dog, for tests that may find each other's categories."""
    with new_store() as opened:
        made = workshop_of(opened)
        made.add("dog")
        yield made


@pytest.fixture
def full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait until full, on a busy machine too."""
    monkeypatch.setattr(stream, "MAX_WAIT", 10.0)


# ---- add, append, replace


def test_a_new_category(workshop: Workshop, tmp_path: Path) -> None:
    paths = write_photos(tmp_path, [1, 2])
    category = workshop.add("red panda", ["a small mammal", "小熊猫"], paths, metadata={"owner": "zoo"})
    assert (category.name, category.version, category.texts) == ("red panda", 1, ("a small mammal", "小熊猫"))
    assert category.references == {"clip:text": 2, "clip:image": 2, "dino:image": 2}
    assert category.metadata == {"owner": "zoo"}
    assert workshop.embedded() == {"clip": (2, 2), "dino": (0, 2)}
    assert workshop.store.categories() == [category]
    assert sources(workshop.store, "red panda") == {
        "clip:text": ["a small mammal", "小熊猫"],
        "clip:image": list(map(str, paths)),
        "dino:image": list(map(str, paths)),
    }


def test_the_vectors_are_those_of_the_encoders(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], [photo(1)])
    stored = {reference.key[:2]: reference.vector for reference in workshop.store.stored("cat")}
    clip, dino = workshop.encoders
    np.testing.assert_allclose(stored["clip", "text"], clip.encode_texts(["a feline"])[0], atol=1e-6)
    np.testing.assert_allclose(stored["clip", "image"], clip.encode_images([photo(1)])[0], atol=1e-6)
    np.testing.assert_allclose(stored["dino", "image"], dino.encode_images([photo(1)])[0], atol=1e-6)


def test_an_addition_embeds_only_new_references(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], photos(1, 2))
    before = state(workshop.store)["cat"][1]
    category = workshop.add("cat", ["a feline", "a pet"], photos(1, 2, 3))
    assert workshop.embedded() == {"clip": (2, 3), "dino": (0, 3)}
    assert (category.version, category.texts) == (2, ("a feline", "a pet"))
    assert category.references == {"clip:text": 2, "clip:image": 3, "dino:image": 3}
    after = state(workshop.store)["cat"][1]
    assert before.items() <= after.items()


@pytest.mark.parametrize("replacing", [False, True])
def test_adding_the_same_again_embeds_nothing(workshop: Workshop, *, replacing: bool) -> None:
    given: dict[str, Any] = {"texts": ["a feline"], "metadata": {"tags": ("a", "b")}}
    workshop.add("cat", images=photos(1, 2), **given)
    embedded, before = workshop.embedded(), state(workshop.store)
    workshop.add("cat", images=photos(2, 1), **given, replace=replacing)
    assert workshop.embedded() == embedded
    after = state(workshop.store)
    assert after["cat"][1] == before["cat"][1]
    if not replacing:
        assert after == before  # version and revision too: nothing was written


def test_content_is_recognised_in_any_form(workshop: Workshop, tmp_path: Path) -> None:
    (path,) = write_photos(tmp_path, [1])
    data = path.read_bytes()
    first = workshop.add("cat", [], [path])
    with path.open("rb") as file:
        for again in (str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, Pipe(data)):
            assert workshop.add("cat", [], [again]) == first
    pixels = workshop.add("cat", [], [photo(1), np.asarray(photo(2))])
    assert workshop.add("cat", [], [photo(1).copy(), np.array(photo(2))]) == pixels
    assert workshop.embedded() == {"clip": (0, 3), "dino": (0, 3)}


class Pipe(io.RawIOBase):
    """A file that can be read only once."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(buffer)


def test_a_source_may_use_its_object_again(kennel: Workshop) -> None:
    images = photos(*range(12))
    kennel.add("apart", [], [encode(image) for image in images])

    def vectors(name: str) -> list[tuple[str, bytes]]:
        return sorted((reference.encoder, reference.vector.tobytes()) for reference in kennel.store.stored(name))

    assert len(set(vectors("apart"))) == 2 * 12
    for kind in REUSING:
        kennel.add(kind, [], getattr(Reusing(images), kind)())
        assert vectors(kind) == vectors("apart"), kind


def test_the_same_image_twice_is_one_reference(workshop: Workshop) -> None:
    category = workshop.add("cat", ["a feline", " a feline "], photos(1, 1))
    assert category.references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}
    assert category.texts == ("a feline",)


def test_replacing_drops_all_but_the_given_references(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline", "a pet"], photos(1, 2), metadata={"a": 1})
    before = state(workshop.store)["cat"][1]
    category = workshop.add("cat", ["a pet", "a hunter"], photos(2, 3), replace=True)
    assert workshop.embedded() == {"clip": (3, 3), "dino": (0, 3)}  # one of each was new
    assert (category.version, category.texts, category.metadata) == (2, ("a pet", "a hunter"), {"a": 1})
    after = state(workshop.store)["cat"][1]
    assert len(after) == 2 + 2 + 2
    kept = before.keys() & after.keys()
    assert len(kept) == 1 + 1 + 1
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_a_part_that_is_not_given_is_not_replaced(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], photos(1, 2), metadata={"a": 1})
    before = state(workshop.store)["cat"][1]

    category = workshop.add("cat", images=photos(3), replace=True)
    assert category.references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}
    assert (category.texts, category.metadata) == (("a feline",), {"a": 1})

    category = workshop.add("cat", ["a pet"], replace=True)
    assert category.references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}
    assert (category.texts, category.metadata) == (("a pet",), {"a": 1})
    assert not before.keys() & state(workshop.store)["cat"][1].keys()

    workshop.add("cat", images=photos(1), replace=True, metadata={"b": 2})
    category = workshop.add("cat", [], replace=True)
    assert category.references == {"clip:image": 1, "dino:image": 1}
    assert (category.texts, category.metadata) == ((), {"b": 2})
    assert before.items() >= state(workshop.store)["cat"][1].items()  # the first photo, as it was
    assert workshop.embedded() == {"clip": (2, 4), "dino": (0, 4)}  # each was embedded once, but one was removed

    assert workshop.add("cat", replace=True) == category


def test_replacing_by_the_same_changes_nothing(workshop: Workshop) -> None:
    given = {"texts": ["a feline", "a pet"], "images": photos(1, 2), "metadata": {"a": 1}}
    before = workshop.add("cat", **given), state(workshop.store)
    assert (workshop.add("cat", **given, replace=True), state(workshop.store)) == before
    assert workshop.add("cat", images=photos(2, 1), replace=True) == before[0]
    grouped = [ReferenceImage(image=photo, group="a burst") for photo in photos(1, 2)]
    assert workshop.add("cat", images=grouped, replace=True).version == before[0].version + 1


def test_removed_references_are_embedded_anew(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], photos(1))
    workshop.store.remove("cat")
    assert workshop.store.categories() == []
    category = workshop.add("cat", ["a feline"], photos(1))
    assert category.version == 3
    assert workshop.embedded() == {"clip": (2, 2), "dino": (0, 2)}


def test_what_an_undo_could_restore_is_not_embedded_anew() -> None:
    with fast_folder() as folder, open_store(str(folder), namespace="zsvec", history=60.0) as store:
        workshop = workshop_of(store)
        workshop.add("cat", ["a feline", "a pet"], photos(1, 2))
        before = state(store)["cat"][1]
        store.remove_references("cat", {content_hash(photo(1))})
        workshop.add("cat", ["a hunter"], photos(2, 1))
        store.remove("cat")
        workshop.add("cat", ["a feline", "a pet"], photos(1, 2))
        assert workshop.embedded() == {"clip": (3, 2), "dino": (0, 2)}
        assert state(store)["cat"][1] == before
        store.remove("cat")
        store.gc(grace=0)
        workshop.add("cat", ["a feline", "a pet"], photos(1, 2))
        assert workshop.embedded() == {"clip": (5, 4), "dino": (0, 4)}


def test_what_another_category_has_is_not_embedded_again(workshop: Workshop, tmp_path: Path) -> None:
    paths = write_photos(tmp_path, [1, 2])
    workshop.add("cat", ["a feline"], paths)
    category = workshop.add("lynx", ["a feline", "a hunter"], [*paths, photo(3)])
    assert category.references == {"clip:text": 2, "clip:image": 3, "dino:image": 3}
    assert workshop.embedded() == {"clip": (2, 3), "dino": (0, 3)}
    cat, lynx = (state(workshop.store)[name][1] for name in ("cat", "lynx"))
    assert cat.items() <= lynx.items()
    workshop.store.remove("cat")
    workshop.store.gc(grace=0)
    assert state(workshop.store)["lynx"][1] == lynx


def test_a_vector_of_another_category_comes_without_source_prompt_and_group(workshop: Workshop) -> None:
    given = ReferenceImage(image=photo(1), source="first", prompt="a cat", group="burst")
    workshop.add("cat", [], [given])
    workshop.add("lynx", [], [ReferenceImage(image=photo(1), source="second")])
    first, second = (workshop.store.stored_references(name)[0] for name in ("cat", "lynx"))
    assert (second.source, second.prompt, second.group) == ("second", None, None)
    assert first.added
    assert second.added
    assert second.added >= first.added


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 64])
def test_categories_that_are_added_together_share_images(store: Store, full_batches: None, batch_size: int) -> None:
    """In one batch, and in several before the first category is committed."""
    workshop = Workshop(store, Encoder("clip", dim=32), Encoder("dino", dim=16), batch_size=batch_size)
    names = ("cat", "lynx", "owl")
    given = [CategoryInput(name=name, texts=[], images=photos(1, 2, 3, 4, 5, 1)) for name in names]
    for category in workshop.builder.build(given):
        assert category.references == {"clip:image": 5, "dino:image": 5}
    assert workshop.embedded() == {"clip": (0, 5), "dino": (0, 5)}


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_images_of_other_categories_are_reported(store: Store, full_batches: None, batch_size: int) -> None:
    workshop = Workshop(store, Encoder("clip", dim=32), Encoder("dino", dim=16), batch_size=batch_size)
    workshop.add("cat", [], photos(1, 2))
    reported: list[tuple[str, str, list[str]]] = []

    def report(one: StoredReference, others: Sequence[str]) -> None:
        assert one.hash in {reference.hash for reference in store.stored(one.category)}  # committed
        reported.append((one.category, one.hash, list(others)))

    given = [
        CategoryInput(name="cat", texts=[], images=photos(1, 3, 3)),
        CategoryInput(name="lynx", texts=[], images=[b"", *photos(2, 4)]),
        CategoryInput(name="owl", texts=[], images=photos(2, 4, 5)),
        CategoryInput(name="fox", texts=[], images=[b"", b""]),
    ]
    for _ in range(2):  # what is stored is not added again
        list(workshop.builder.build(given, on_error=lambda *_: None, on_shared=report))
        hashes = {seed: content_hash(photo(seed)) for seed in (2, 4)}
        found = {(name, digest): others for name, digest, others in reported}
        assert len(reported) == len(found)
        assert found.keys() == {("lynx", hashes[2]), ("owl", hashes[2]), ("owl", hashes[4])}
        assert (found["lynx", hashes[2]], found["owl", hashes[4]]) == (["cat"], ["lynx"])
        assert set(found["owl", hashes[2]]) <= {"cat", "lynx"}


def test_metadata_is_kept_until_another_is_given(workshop: Workshop) -> None:
    workshop.add("cat", ["a"], metadata={"a": 1, "b": {"c": [None, True, 0.1, "ß"]}})
    assert workshop.add("cat", ["b"]).metadata == {"a": 1, "b": {"c": [None, True, 0.1, "ß"]}}
    changed = workshop.add("cat", [], metadata=MappingProxyType({"a": 2}))
    assert (changed.version, changed.metadata) == (3, {"a": 2})
    assert workshop.add("cat", [], metadata={"a": 2}) == changed
    assert workshop.add("cat", [], metadata={}).metadata == {}


def test_an_image_that_one_encoder_knows_and_another_does_not(workshop: Workshop) -> None:
    image = photo(1)
    workshop.add("cat", [], [image])
    known = next(reference for reference in workshop.store.stored("cat") if reference.encoder == "clip")
    workshop.store.remove("cat")
    workshop.add("cat", ["a feline"])
    workshop.store.write([_write("cat", [known])])
    assert workshop.add("cat", [], [image]).references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}


def _write(name: str, references: list[Any]) -> Any:
    from zsvec.store import Write

    return Write(name=name, references=references)


# ---- groups


def groups_in(workshop: Workshop, name: str) -> dict[str, str | None]:
    return {r.source: r.group for r in workshop.store.stored(name) if r.modality == "image"}


def test_a_group_comes_with_its_image(workshop: Workshop) -> None:
    burst = [ReferenceImage(image=photo(i), source=f"{i}", group=" burst 1 ") for i in range(2)]
    workshop.add("cat", [], [*burst, ReferenceImage(image=photo(2), source="2")])
    assert groups_in(workshop, "cat") == {"0": "burst 1", "1": "burst 1", "2": None}


def test_an_image_that_is_there_gets_another_group_only_where_it_is_replaced(workshop: Workshop) -> None:
    data = encode(photo(1))
    given = [ReferenceImage(image=data, source="1", group=group) for group in ("x", "y", None)]
    workshop.add("cat", [], given[:1])
    workshop.add("cat", [], given[1:2])
    assert groups_in(workshop, "cat") == {"1": "x"}
    workshop.add("cat", [], given[1:2], replace=True)
    assert groups_in(workshop, "cat") == {"1": "y"}
    workshop.add("cat", [], given[2:], replace=True)
    assert groups_in(workshop, "cat") == {"1": "y"}


def test_a_group_is_a_short_text(empty: Workshop) -> None:
    for group in ("", 7, "a\nb", "x" * 501):
        with pytest.raises(InvalidInputError, match="the group of a reference image m"):
            empty.add("cat", [], [ReferenceImage(image=photo(1), group=group)])  # type: ignore[arg-type]
    assert empty.store.categories() == []


# ---- texts


def test_a_category_without_texts_is_defined_by_its_name_in_the_prompt_of_each_encoder(store: Store) -> None:
    workshop = Workshop(store, Encoder("clip", dim=32), Encoder("words", dim=16, modalities=("text",)))
    category = workshop.add("red__panda_")
    assert category.texts == ("red panda",)
    assert sources(store, "red__panda_") == {"clip:text": ["a photo of a red panda"], "words:text": ["red panda"]}


def test_as_words() -> None:
    names = ("red_panda", "_a__b_ c_", "T-34/85", "{name}")
    assert list(map(as_words, names)) == ["red panda", "a b c", "T-34/85", "{name}"]


def test_only_a_new_category_without_texts_gets_a_text_of_its_name(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"])
    assert workshop.add("cat", images=photos(1)).references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}
    assert workshop.add("cat").texts == ("a feline",)
    assert workshop.add("fox", replace=True).references == {"clip:text": 1}
    assert workshop.add("fly", images=photos(1)).references == {"clip:text": 1, "clip:image": 1, "dino:image": 1}
    assert workshop.add("dog", texts=[], images=photos(1)).references == {"clip:image": 1, "dino:image": 1}


def test_nothing_at_all_is_refused(workshop: Workshop) -> None:
    with pytest.raises(InvalidInputError, match=r"category 'cat' has no reference: .* clip, dino"):
        workshop.add("cat", [])
    workshop.add("dog")
    before = state(workshop.store)
    with pytest.raises(ConflictError, match="category 'dog' would have no reference"):
        workshop.add("dog", [], replace=True)
    assert state(workshop.store) == before


def test_only_modalities_of_the_encoders_are_references(store: Store) -> None:
    workshop = Workshop(store, Encoder("dino", dim=16, modalities=("image",)))
    for texts in (None, []):
        with pytest.raises(InvalidInputError, match=r"category 'cat' has no reference: .* an image .* dino can"):
            workshop.add("cat", texts)
    for images in (None, [], photos(1)):
        with pytest.raises(InvalidInputError, match=r"category 'cat' must have no texts, .* dino .* 'a feline'"):
            workshop.add("cat", ["a feline"], images)
    assert workshop.add("cat", images=photos(1)).references == {"dino:image": 1}
    with open_store(":memory:", namespace="zsvec") as other:
        words = Workshop(other, Encoder("words", dim=16, modalities=("text",)))
        assert words.add("cat", images=photos(1)).references == {"words:text": 1}
        assert words.embedded() == {"words": (1, 0)}


def test_the_longest_text(workshop: Workshop) -> None:
    text = "ж" * 20_000
    assert workshop.add("cat", [text]).texts == (text,)
    assert sources(workshop.store, "cat") == {"clip:text": [text]}


# ---- names


def test_names_as_they_are_stored(kennel: Workshop) -> None:
    for name, stored in (
        ("  cat\t\n", "cat"),
        ("cafe\u0301", "caf\u00e9"),
        ("x" * 500, "x" * 500),
        ("e\u0301" * 500, "\u00e9" * 500),
        ("👩‍👩‍👧‍👦", "👩‍👩‍👧‍👦"),
        ("A/../b", "A/../b"),
    ):
        assert checked_name(name) == stored
        assert kennel.add(name, ["t"]).name == stored
        assert kennel.add(stored, ["t"]).version == 1


def test_names_that_a_terminal_or_a_page_would_obey_are_refused(empty: Workshop) -> None:
    for name in (
        "a\x00b",
        "a\x1b[31mb",
        "a\u2028b",
        "a\udcff",
        "a\u202eb",
        "\u200fa",
        "a\u2066",
        " .",
        "..",
        "\u200b\u200d",
    ):
        with pytest.raises(InvalidInputError, match="a category name must"):
            empty.add(name)
    assert empty.store.categories() == []


def test_a_name_given_twice_is_refused_and_earlier_categories_are_kept(workshop: Workshop) -> None:
    inputs = [CategoryInput(name=name) for name in ("dog", "caf\u00e9", "cafe\u0301", "cat")]
    built = []
    with pytest.raises(InvalidInputError, match="category 'café' is given twice"):
        built.extend(workshop.builder.build(inputs))
    assert [category.name for category in built] == ["dog", "café"]
    assert workshop.store.categories() == sorted(built, key=lambda category: category.name)


# ---- vectors from elsewhere


def test_vectors_given_are_stored_at_unit_length_and_not_embedded(workshop: Workshop) -> None:
    given = np.random.default_rng(0).standard_normal((3, 32)) * [[1], [1e-30], [1e30]]
    category = workshop.add("cat", [], vectors={"clip:image": given, "clip:text": [[1.0] + [0.0] * 31]})
    assert category.references == {"clip:image": 3, "clip:text": 1}
    assert workshop.embedded() == {"clip": (0, 0), "dino": (0, 0)}
    stored = np.array([r.vector for r in workshop.store.stored("cat") if r.modality == "image"])
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    order = np.argmax(stored @ unit.T, axis=0)
    np.testing.assert_allclose(stored[order], unit, atol=1e-6)
    assert workshop.add("cat", [], vectors={"clip:image": given.tolist()}) == category


def test_vectors_come_beside_texts_and_images(workshop: Workshop) -> None:
    category = workshop.add("cat", images=photos(1), vectors={"dino:image": np.eye(16)[:2]})
    assert category.references == {"clip:text": 1, "clip:image": 1, "dino:image": 3}


def test_sources_name_the_vectors(workshop: Workshop) -> None:
    given: dict[str, Any] = {"vectors": {"clip:image": np.eye(32)[:2], "dino:image": np.eye(16)[:2]}}
    category = workshop.add("cat", [], **given, sources=["sku 7", " https://shop/8 "])
    found = {(reference.encoder, reference.source) for reference in workshop.store.stored("cat")}
    assert found == {(encoder, source) for encoder in ("clip", "dino") for source in ("sku 7", "https://shop/8")}
    assert workshop.add("cat", [], **given, sources=["other", "names"]) == category  # the vectors are there already
    workshop.add("cat", [], **given, sources=["other", "names"], replace=True)
    assert {reference.source for reference in workshop.store.stored("cat")} == {"other", "names"}


def test_sources_that_cannot_be_used(kennel: Workshop) -> None:
    before = state(kennel.store)
    two = {"clip:image": np.eye(32)[:2]}
    sources: Any
    for sources in (
        [],
        ["a"],
        ["a", "b", "c"],
        "ab",
        ["a", ""],
        ["a", None],
        ["a", "\udcff"],
        ["a", "x" * 20_001],
        7,
        b"ab",
    ):
        with pytest.raises(InvalidInputError, match="source"):
            kennel.add("cat", vectors=two, sources=sources)
    for vectors in ({}, {**two, "clip:text": np.eye(32)[:1]}):
        with pytest.raises(InvalidInputError, match="one source for each row"):
            kennel.add("cat", vectors=vectors, sources=["a", "b"])
    assert state(kennel.store) == before


def test_vectors_that_cannot_be_used(kennel: Workshop) -> None:
    before = state(kennel.store)
    rows: Any
    infinite = [[1.0] * 32, [float("-inf")] * 32]
    for rows in (
        [],
        np.ones(32),
        np.ones((1, 1, 32)),
        None,
        [["a"] * 32],
        infinite,
        np.diag([1, 1, 0]) @ np.ones((3, 32)),
    ):
        with pytest.raises(InvalidInputError, match="of clip:image"):
            kennel.add("cat", vectors={"clip:image": rows})
    for expert in ("dino:text", "clip", "", 7):
        with pytest.raises(InvalidInputError, match=f"no expert {expert!r}.*clip:text, clip:image, dino:image"):
            kennel.add("cat", vectors={expert: np.ones((1, 16))})
    assert state(kennel.store) == before


# ---- metadata


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


CIRCLE: dict[str, Any] = {}
CIRCLE["a"] = CIRCLE


def test_metadata_that_cannot_be_used(empty: Workshop) -> None:
    """Embedded stores cannot be opened again with more than 127 levels."""
    metadata: Any
    for metadata in (
        *({"a": value} for value in (b"x", np.float32(1), [float("inf")], 2**63, -(2**63) - 1, 10**5000, "\ud800")),
        *(CIRCLE, nested(33), nested(150), nested(100_000), {"a": "x" * 100_000}, "{}"),
    ):
        with pytest.raises(InvalidInputError, match="metadata m"):
            empty.add("cat", metadata=metadata)
    assert empty.store.categories() == []


def test_metadata_survives_closing_the_store() -> None:
    extremes = {"deep": nested(31), "most": 2**63 - 1, "least": -(2**63), "": "\x00\u2028", "long": "ж" * 90_000}
    with fast_folder() as folder:
        settings = load_settings(store=str(folder / "store"))
        with settings.open_store() as store:
            Workshop(store, Encoder("clip", dim=32)).add("cat", metadata=extremes)
        with settings.open_store() as store:
            assert store.category("cat").metadata == extremes


# ---- images that cannot be read


def test_an_unreadable_image_stores_nothing(workshop: Workshop) -> None:
    with pytest.raises(ImageError, match=r"cannot read 'missing\.jpg'"):
        workshop.add("cat", ["a feline"], [photo(1), "missing.jpg", photo(2)])
    with pytest.raises(ImageError, match="max_pixels=1000"):
        workshop.add("cat", [], [photo(1, (40, 26))])
    assert workshop.store.categories() == []
    workshop.add("cat", ["a feline"], photos(1))
    before = state(workshop.store)
    with pytest.raises(ImageError, match="cannot read bytes: it is empty"):
        workshop.add("cat", ["a pet"], [photo(2), b""])
    assert state(workshop.store) == before


def test_unreadable_images_are_left_out_where_they_are_reported(workshop: Workshop) -> None:
    reported: list[tuple[str, str]] = []
    category = workshop.add(
        "cat",
        [],
        ["missing.jpg", photo(1), b"no image", photo(2)],
        on_error=lambda source, error: reported.append((source, str(error))),
    )
    assert category.references == {"clip:image": 2, "dino:image": 2}
    assert [source for source, _ in reported] == ["missing.jpg", "bytes"]
    assert "No such file" in reported[0][1]
    assert "unknown format" in reported[1][1]


def test_a_category_of_unreadable_images_alone_is_reported_and_left_out(workshop: Workshop) -> None:
    reported: list[str] = []

    def report(source: str, error: ImageError) -> None:
        reported.append(source)

    for texts in ([], None):
        given = CategoryInput(name="cat", texts=texts, images=[b"", b"?"])
        assert list(workshop.builder.build([given], on_error=report)) == []
        assert workshop.store.categories() == []
    assert reported == ["bytes", "bytes"] * 2
    assert sum(encoder.texts_encoded for encoder in workshop.encoders) == 0
    assert workshop.add("cat", ["a pet"], [b"", b"?"], on_error=report).references == {"clip:text": 1}
    assert workshop.add("cat", None, [b"", b"?"], on_error=report).references == {"clip:text": 1}  # as it was


@pytest.mark.usefixtures("full_batches")
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_categories_before_an_unreadable_image_are_kept(store: Store, batch_size: int) -> None:
    workshop = Workshop(store, Encoder("clip", dim=32), batch_size=batch_size)
    inputs = [
        CategoryInput(name="ant", images=photos(1, 2)),
        CategoryInput(name="bee", images=[photo(3), b"", photo(4)]),
        CategoryInput(name="cow", images=photos(5)),
    ]
    built = []
    with pytest.raises(ImageError, match="it is empty"):
        built.extend(workshop.builder.build(inputs))
    assert [category.name for category in built] == ["ant"]
    assert store.categories() == built
    assert built[0].references == {"clip:image": 2, "clip:text": 1}


class Dataset:
    """Iterable as sequences were before there were iterators; torch's are."""

    def __getitem__(self, index: int) -> Image.Image:
        return [photo(1), photo(2)][index]


def test_any_iterable_of_images(workshop: Workshop) -> None:
    batch = np.stack([np.asarray(photo(i)) for i in (1, 2)])
    iterables: tuple[Any, ...] = (iter(photos(1, 2)), (photo(i) for i in (1, 2)), batch, Dataset())
    for position, images in enumerate(iterables):
        assert workshop.add(f"{position}", [], images).references == {"clip:image": 2, "dino:image": 2}


def test_a_file_name_that_is_no_unicode(workshop: Workshop, tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/\xff.png"
    with open(name, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(encode(photo(1)))
    (path,) = (path for path in tmp_path.iterdir() if path.suffix == ".png")
    workshop.add("cat", [], [path])
    assert sources(workshop.store, "cat")["clip:image"] == [f"{tmp_path}/\\udcff.png"]


# ---- many categories


@pytest.mark.usefixtures("full_batches")
def test_references_of_many_categories_share_batches(workshop: Workshop) -> None:
    inputs = [CategoryInput(name=f"category {i}", images=photos(2 * i, 2 * i + 1)) for i in range(12)]
    built = list(workshop.builder.build(inputs))
    assert [category.name for category in built] == [f"category {i}" for i in range(12)]
    assert all(category.references == {"clip:text": 1, "clip:image": 2, "dino:image": 2} for category in built)
    clip, dino = workshop.encoders
    assert sum(clip.batches["image"]) == sum(dino.batches["image"]) == 24
    assert len(clip.batches["image"]) <= 5  # 24 images and 12 ends of categories, 8 at a time
    assert len(clip.batches["text"]) <= 5
    assert max(clip.batches["image"]) > 2


@pytest.mark.usefixtures("full_batches")
def test_a_text_of_several_categories_is_embedded_once_a_batch(workshop: Workshop) -> None:
    inputs = [CategoryInput(name=name, texts=["an animal", name]) for name in ("ant", "bee", "cow")]
    list(workshop.builder.build(inputs))
    assert workshop.encoders[0].batches["text"] == [4]


def test_a_category_is_committed_before_the_next_is_read(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_WAIT", 0.01)
    seen: list[list[str]] = []

    def inputs() -> Iterator[CategoryInput]:
        yield CategoryInput(name="ant")
        while not workshop.store.categories():
            pass
        seen.append([category.name for category in workshop.store.categories()])
        yield CategoryInput(name="bee")

    assert [category.name for category in workshop.builder.build(inputs())] == ["ant", "bee"]
    assert seen == [["ant"]]


def test_a_category_is_stored_when_its_reader_stops_after_it(workshop: Workshop) -> None:
    def inputs() -> Iterator[CategoryInput]:
        for i in range(10_000):
            yield CategoryInput(name=f"{i}")

    building = workshop.builder.build(inputs())
    first = next(building)
    building.close()  # type: ignore[attr-defined]
    assert first in workshop.store.categories()
    assert len(workshop.store.categories()) <= 8


def test_a_failure_of_the_iterables_is_raised_as_it_is(empty: Workshop) -> None:
    def images() -> Iterator[Image.Image]:
        yield photo(1)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        empty.add("cat", images=images())
    assert empty.store.categories() == []


def test_an_encoder_that_fails_stores_nothing(store: Store) -> None:
    class Broken(Encoder):
        def embed(self, batch: Any, modality: Modality) -> Any:
            return super().embed(batch, modality) * np.nan

    with pytest.raises(EncoderError, match="encoder 'clip' returned a vector that is not finite"):
        Workshop(store, Broken("clip", dim=32)).add("cat")
    assert store.categories() == []


def test_removing_recognised_references_is_a_conflict(workshop: Workshop) -> None:
    for new in ([], [photo(9)]):
        workshop.add("cat", ["a feline"], photos(1, 2))

        def images(new: list[Any] = new) -> Iterator[Image.Image]:
            yield photo(1)
            workshop.store.remove("cat")
            yield from new

        with pytest.raises(ConflictError, match="another writer removed references of 'cat'"):
            workshop.add("cat", ["a feline"], images())
        assert workshop.store.categories() == []


@contextmanager
def before_the_write(store: Store, act: Callable[[], object]) -> Iterator[None]:
    """Let another writer act between the last read of a builder and the write."""
    write, acted = store.write, []

    def written(writes: Any) -> list[Category]:
        if not acted:
            acted.append(act())
        return write(writes)

    store.write = written  # type: ignore[method-assign]
    yield
    store.write = write  # type: ignore[method-assign]
    assert acted


@pytest.mark.parametrize("new", [[], [photo(9)]], ids=["nothing new", "something new"])
@pytest.mark.parametrize("removed", ["category", "reference"])
def test_removing_a_recognised_reference_before_the_write_is_a_conflict(
    workshop: Workshop, removed: str, new: list[Any]
) -> None:
    workshop.add("cat", ["a feline"], photos(1, 2))
    store, given = workshop.store, [photo(1), *new]

    def act() -> None:
        if removed == "category":
            store.remove("cat")
        else:
            store.remove_references("cat", [content_hash(photo(1))])

    with before_the_write(store, act), pytest.raises(ConflictError, match="'cat'"):
        workshop.add("cat", ["a feline"], given)
    assert [category.name for category in store.categories()] == ([] if removed == "category" else ["cat"])
    workshop.add("cat", ["a feline"], given)
    assert {content_hash(image) for image in given} <= {digest for _, _, digest in store.keys("cat")}


def test_a_conflict_over_one_category_leaves_the_others_of_the_batch_written(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"])
    both = [CategoryInput(name="cat", texts=["a feline"]), CategoryInput(name="dog", texts=["a canine"])]
    with before_the_write(workshop.store, lambda: workshop.store.remove("cat")), pytest.raises(ConflictError):
        list(workshop.builder.build(both))
    assert [category.name for category in workshop.store.categories()] == ["dog"]


def test_new_images_make_a_category_again_that_is_removed_before_the_write(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], photos(1, 2))
    with before_the_write(workshop.store, lambda: workshop.store.remove("cat")):
        assert workshop.add("cat", images=[photo(3)]).references == {"clip:image": 1, "dino:image": 1}


def test_replacing_texts_of_a_category_that_another_removes_is_a_conflict(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], photos(1, 2))
    with before_the_write(workshop.store, lambda: workshop.store.remove("cat")), pytest.raises(ConflictError):
        workshop.add("cat", ["a pet"], replace=True)
    assert workshop.store.categories() == []


def test_a_category_that_loses_its_images_meanwhile_keeps_its_texts(workshop: Workshop) -> None:
    workshop.add("cat", ["a feline"], [photo(1)])

    def act() -> None:
        workshop.store.remove_references("cat", [content_hash(photo(1))])

    with before_the_write(workshop.store, act), pytest.raises(ConflictError, match="no reference"):
        workshop.add("cat", [], replace=True)
    assert sources(workshop.store, "cat") == {"clip:text": ["a feline"]}


# ---- folders and definitions


def read(inputs: list[CategoryInput]) -> dict[str, tuple[Any, list[str]]]:
    """Texts and names of the images of each category."""
    return {given.name: (given.texts, [Path(str(image)).name for image in given_images(given)]) for given in inputs}


@pytest.mark.parametrize("definitions", [{"cat": "a feline"}, {"cat": None}, {"cat": [""]}, {"": []}, ["cat"], "cat"])
def test_definitions_of_another_form(tmp_path: Path, definitions: Any) -> None:
    write_photos(tmp_path / "pets" / "cat", [1])
    with pytest.raises(InvalidInputError):
        read_categories(tmp_path / "pets", definitions)


def test_a_folder_of_categories(tmp_path: Path) -> None:
    write_photos(tmp_path / "pets" / "cat", [2, 1])
    write_photos(tmp_path / "pets" / "cat" / "more", [3])
    write_photos(tmp_path / "pets" / "dog", [4])
    write_photos(tmp_path / "pets" / ".hidden", [5])
    (tmp_path / "pets" / "empty").mkdir()
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / "beside.png").write_bytes(encode(photo(1)))
    definitions = {"cat": ["a feline", "a pet"], "fox": ["a red hunter"]}
    assert read(read_categories(tmp_path / "pets", definitions)) == {
        "cat": (["a feline", "a pet"], ["1.png", "2.png", "3.png"]),
        "dog": (None, ["4.png"]),
        "fox": (["a red hunter"], []),
    }
    assert read_categories(str(tmp_path / "pets"), definitions) == read_categories(tmp_path / "pets", definitions)
    definitions["empty"] = ["nothing"]
    assert read(read_categories(tmp_path / "pets", definitions))["empty"] == (["nothing"], [])


def test_definitions_of_one_category_in_two_spellings_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "pets" / "dog").mkdir(parents=True)
    found = read(read_categories(tmp_path / "pets", {"caf\u00e9": ["a"], "cafe\u0301 ": ["b"]}))
    assert found["café"] == (["a", "b"], [])


def test_two_folders_of_one_category_are_refused(tmp_path: Path) -> None:
    for name in ("cafe", " cafe"):
        write_photos(tmp_path / "pets" / name, [1])
    with pytest.raises(InvalidInputError, match="name the same category"):
        read_categories(tmp_path / "pets")


def test_folders_that_hold_no_categories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for made in ("bare", "hidden/.hidden", "images/empty", "names/a\nb"):
        (tmp_path / made).mkdir(parents=True)
    for name, message in {
        "missing": "does not exist",
        "file": "is not a folder",
        "x" * 5000: "does not exist",
        "bare": "has no sub-folders",
        "hidden": "has no sub-folders",
        "images": "has no images in its sub-folders",
        "names": "category name must be printable in one line",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            read_categories(tmp_path / name)


def test_definitions(tmp_path: Path) -> None:
    animals = {"cat": ["a feline"], "dog": ["a pet", "a friend"], "fox": []}
    pets = '{"cat": "a feline", "dog": ["a pet", "a friend"], "fox": []}'
    rows = "category,text\ncat,a feline\ndog,a pet\ncat,a hunter\n"
    for name, content, expected in (
        ("a.json", pets, animals),
        ("a.json", f"\ufeff{pets}", animals),
        ("a", '{"小熊猫": "🐼"}', {"小熊猫": ["🐼"]}),
        ("a.csv", rows, {"cat": ["a feline", "a hunter"], "dog": ["a pet"]}),
        ("a.CSV", '\ufefftext,note,category\r\n"a, b\nc",x,cat\r\n', {"cat": ["a, b\nc"]}),
        ("a.csv", "category,text\ncat,one\u2028line\x0bstill\n", {"cat": ["one\u2028line\x0bstill"]}),
        ("a.csv", "category,text\n", {}),
    ):
        (tmp_path / name).write_bytes(content.encode())
        assert read_definitions(tmp_path / name) == expected


def test_definitions_that_cannot_be_used(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.json", b"", "are not JSON"),
        ("a.json", b'["cat"]', "are not JSON of the form"),
        ("a.json", b'{"cat": {"text": "a"}}', "are not JSON of the form"),
        ("a.json", b"\xff\xfe{", "cannot be read: 'utf-8' codec"),
        ("a.json", b"[" * 100_000, "are not JSON"),
        ("a.csv", b"", "columns category and text. Got none"),
        ("a.csv", b"category,text\ncat," + b"x" * 200_000, "are no CSV after line 1: field larger"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=message) as error:
            read_definitions(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    for missing in (tmp_path / "b.json", tmp_path):
        with pytest.raises(InvalidInputError, match=r"cannot be read: "):
            read_definitions(missing)


def test_importing_a_folder_again_embeds_nothing(workshop: Workshop, tmp_path: Path) -> None:
    write_photos(tmp_path / "pets" / "cat", [1, 2])
    write_photos(tmp_path / "pets" / "dog", [3])
    inputs = read_categories(tmp_path / "pets")
    first = list(workshop.builder.build(inputs))
    embedded = workshop.embedded()
    assert embedded == {"clip": (2, 3), "dino": (0, 3)}
    assert list(workshop.builder.build([replace(given) for given in inputs])) == first
    assert workshop.embedded() == embedded
    assert json.dumps([category.to_dict() for category in first])


def test_unreadable_images_do_not_replace_readable_ones(workshop: Workshop) -> None:
    before = workshop.add("red", images=photos(1, 2, 3))
    failed: list[str] = []

    def build(images: list[Any], new: str, *, replace: bool = True) -> list[str]:
        inputs = [CategoryInput(name="red", images=images), CategoryInput(name=new, images=[b"cut", *photos(4)])]
        built = workshop.builder.build(inputs, replace=replace, on_error=lambda source, error: failed.append(source))
        return [category.name for category in built]

    assert build([b"cut"], "first") == ["first"]
    assert build([*photos(1), b"cut"], "second") == ["second"]
    assert failed == ["bytes"] * 4
    assert workshop.store.category("red") == before
    assert build([*photos(1), b"cut"], "third", replace=False) == ["red", "third"]


def test_category_without_readable_images_does_not_stop_the_others(store: Store) -> None:
    workshop = Workshop(store, Encoder("dino", dim=16, modalities=("image",)))
    inputs = [CategoryInput(name="bad", images=[b"cut"]), CategoryInput(name="good", images=photos(1))]
    added = list(workshop.builder.build(inputs, on_error=lambda source, error: None))
    assert [category.name for category in added] == ["good"]
    assert [category.name for category in store.categories()] == ["good"]
