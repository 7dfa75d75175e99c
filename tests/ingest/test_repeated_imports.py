"""Imports that are repeated after references were moved, removed, renamed, corrected or forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.Image import Image

import zsvec
from tests.support import coloured
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import CategoryNotFoundError, ConflictError, InvalidInputError
from zsvec.inputs.images import content_hash
from zsvec.store.backends.base import Where
from zsvec.testing import HashEncoder
from zsvec.types import StoredReference

FOLDERS = {name: [coloured(name, seed) for seed in range(3)] for name in ("red", "green", "blue")}
HASHES = {name: [content_hash(image) for image in images] for name, images in FOLDERS.items()}
IMAGES = {digest: image for name in FOLDERS for digest, image in zip(HASHES[name], FOLDERS[name], strict=True)}


def opened() -> Classifier:
    return zsvec.open(":memory:", encoders=[HashEncoder()], calibration="off")


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with opened() as classifier:
        import_folders(classifier)
        yield classifier


def import_folders(
    clf: Classifier, *, again: bool = False, folders: Mapping[str, list[Image]] = FOLDERS, replace: bool = False
) -> list[StoredReference]:
    """Imports the folders as `zsvec import` does, and returns the references that were left out."""
    left_out: list[StoredReference] = []
    inputs = [CategoryInput(name=name, images=images) for name, images in folders.items()]
    clf.add_categories(inputs, replace=replace, on_withdrawn=None if again else left_out.append)
    return left_out


def contents(clf: Classifier) -> dict[str, set[str]]:
    """Hashes of the texts and images of each category."""
    return {category.name: {one.hash for one in clf.references.of(category.name)} for category in clf.categories()}


# Mending

NAMES = st.sampled_from([*FOLDERS, "crimson"])
DIGESTS = st.sampled_from(sorted(IMAGES))
MENDING: Mapping[str, Callable[..., object]] = {
    "remove": lambda clf, name, _, digest: clf.references.remove(name, digest),
    "remove category": lambda clf, name, _, __: clf.remove_category(name),
    "move": lambda clf, name, other, digest: clf.references.move(digest, source=name, target=other),
    "rename": lambda clf, name, other, _: clf.references.rename(name, other),
    "merge": lambda clf, name, other, _: clf.references.merge(name, other),
    "correct": lambda clf, name, _, digest: clf.correct(IMAGES[digest], name),
    "undo": lambda clf, _, __, ___: clf.history.undo(),
    "undo category": lambda clf, name, _, __: clf.history.undo(name),
}
Step = tuple[str, str, str, str]
STEPS = st.tuples(st.sampled_from(sorted(MENDING)), NAMES, NAMES, DIGESTS)


def mend(clf: Classifier, step: Step) -> None:
    kind, name, other, digest = step
    with suppress(CategoryNotFoundError, ConflictError, InvalidInputError):
        MENDING[kind](clf, name, other, digest)


@given(steps=st.lists(STEPS, min_size=1, max_size=6), collect=st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_mended_state_stays(steps: list[Step], collect: bool) -> None:
    with opened() as clf:
        import_folders(clf)
        clf._store.gc(-1)  # so that no step undoes the import; each rev of an import is a little later than the clock
        for step in steps:
            mend(clf, step)
        mended = contents(clf)
        if collect:
            clf._store.gc(-1)
        left_out = import_folders(clf)
        assert contents(clf) == mended
        lacking = {(name, digest) for name in FOLDERS for digest in HASHES[name] if digest not in mended.get(name, ())}
        assert {(one.category, one.hash) for one in left_out} == lacking
        import_folders(clf, again=True)
        for name, hashes in HASHES.items():
            assert contents(clf)[name] >= set(hashes)
        assert import_folders(clf) == []


@given(steps=st.lists(STEPS, max_size=3), digest=DIGESTS)
@settings(deadline=None, max_examples=30)
def test_forgetting_keeps_no_mark_of_an_image(steps: list[Step], digest: str) -> None:
    with opened() as clf:
        import_folders(clf)
        for step in steps:
            mend(clf, step)
        clf.references.forget(digest)
        records = clf._store._backend.scroll(clf._store._catalog.collection, Where())
        assert not any(digest[:16] in str(payload) for page in records for payload in page.payloads)


def test_a_forgotten_image_is_imported_again(clf: Classifier) -> None:
    first, *_ = HASHES["red"]
    clf.references.move(first, source="red", target="blue")
    clf.references.forget(first)
    assert import_folders(clf) == []
    assert first in contents(clf)["red"]
    for digest in [*HASHES["green"], *(one.hash for one in clf.references.of("green") if one.modality == "text")]:
        with suppress(ConflictError):
            clf.references.remove("green", digest)
    assert len(contents(clf)["green"]) == 1


def test_the_only_image_of_a_category_is_imported_again_when_forgotten() -> None:
    with opened() as clf:
        single = {"red": FOLDERS["red"][:1]}
        clf.add_categories([CategoryInput(name="red", texts=[], images=single["red"])])
        clf.references.forget(HASHES["red"][0])
        assert clf.categories() == []
        assert import_folders(clf, folders=single) == []
        assert HASHES["red"][0] in contents(clf)["red"]


def test_new_images_are_imported_unless_the_category_is_retired(clf: Classifier) -> None:
    clf.references.remove("green", HASHES["green"][0])
    clf.references.rename("red", "crimson")
    folders = {name: [*images, coloured(name, 9)] for name, images in FOLDERS.items()}
    left_out = import_folders(clf, folders=folders)
    assert [(one.category, one.hash) for one in left_out] == [
        *(("red", content_hash(image)) for image in folders["red"]),
        ("green", HASHES["green"][0]),
    ]
    assert {category.name: category.images for category in clf.categories()} == {"blue": 4, "crimson": 3, "green": 3}


def test_a_category_that_is_added_again_lacks_only_what_was_withdrawn(clf: Classifier) -> None:
    clf.references.rename("red", "crimson")
    clf.add_category("red", images=[coloured("red", 9)])
    assert {one.hash for one in import_folders(clf)} == set(HASHES["red"])
    assert clf.category("red").images == 1
    clf.add_category("red", images=FOLDERS["red"][:1])
    assert {one.hash for one in import_folders(clf)} == set(HASHES["red"][1:])


def test_withdrawn_texts_are_left_out(clf: Classifier) -> None:
    given = CategoryInput(name="red", texts=["like fire", "like blood"])
    clf.add_categories([given])
    fire = next(one for one in clf.references.of("red") if one.source == "like fire")
    clf.references.remove("red", fire.hash)
    left_out: list[StoredReference] = []
    clf.add_categories([given], on_withdrawn=left_out.append)
    assert [(one.modality, one.source) for one in left_out] == [("text", "like fire")]
    assert clf.category("red").texts == ("red", "like blood")
    clf.add_categories([given])
    assert set(clf.category("red").texts) == {"red", "like blood", "like fire"}


def test_replacing_leaves_out_what_was_withdrawn_and_withdraws_nothing(clf: Classifier) -> None:
    clf.references.move(HASHES["red"][0], source="red", target="blue")
    halves = {"red": FOLDERS["red"][:2]}
    assert [one.hash for one in import_folders(clf, folders=halves, replace=True)] == HASHES["red"][:1]
    assert contents(clf)["red"] & set(IMAGES) == {HASHES["red"][1]}
    assert [one.hash for one in import_folders(clf)] == HASHES["red"][:1]
    assert contents(clf)["red"] & set(IMAGES) == set(HASHES["red"][1:])
    only = {"red": FOLDERS["red"][:1]}
    before = contents(clf)
    assert len(import_folders(clf, folders=only, replace=True)) == 1
    assert contents(clf) == before


def test_nothing_is_embedded_for_what_is_left_out() -> None:
    encoder = HashEncoder()
    with zsvec.open(":memory:", encoders=[encoder], calibration="off") as clf:
        import_folders(clf)
        clf.references.move(HASHES["red"][0], source="red", target="blue")
        clf.remove_category("green")
        before = encoder.images_encoded, encoder.texts_encoded
        assert len(import_folders(clf)) == 4
        assert (encoder.images_encoded, encoder.texts_encoded) == before


def test_an_undone_import_can_be_repeated(clf: Classifier) -> None:
    before = contents(clf)
    clf.history.undo()
    assert clf.categories() == []
    assert import_folders(clf) == []
    assert contents(clf) == before


def test_a_removed_category_does_not_come_back_by_its_name(clf: Classifier) -> None:
    clf.remove_category("red")
    left_out: list[StoredReference] = []
    assert clf.add_categories([CategoryInput(name="red")], on_withdrawn=left_out.append) == []
    assert {(one.category, one.modality) for one in left_out} == {("red", "text")}
    assert "red" not in contents(clf)
    clf.add_category("red")
    assert len(contents(clf)["red"]) == 1
