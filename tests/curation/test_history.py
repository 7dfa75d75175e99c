"""Undo (`clf.history`), and erasure of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import zsvec
from tests.support import coloured
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import ChangeIdNeededError, InvalidInputError, StoreError
from zsvec.testing import HashEncoder


@pytest.fixture
def pets(tmp_path: Path) -> Iterator[Classifier]:
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()], added_by="Ann") as classifier:
        classifier.add_categories(
            CategoryInput(name=name, texts=[name], images=[coloured(colour, i) for i in range(3)])
            for name, colour in {"cat": "red", "dog": "blue", "cow": "green"}.items()
        )
        yield classifier


def images(clf: Classifier, name: str) -> list[str]:
    return [reference.hash for reference in clf.references.of(name) if reference.modality == "image"]


def test_writes_of_one_call_are_one_change(pets: Classifier) -> None:
    (added,) = pets.history
    assert (added.what, added.categories, added.by, added.undone) == ("add", ("cat", "cow", "dog"), "Ann", False)
    assert pets.history.undo() == replace(added, undone=True)
    assert pets.categories() == []
    assert [(change.what, change.undone) for change in pets.history] == [("undo", False), ("add", True)]
    with pytest.raises(InvalidInputError, match="no change that can be taken back"):
        pets.history.undo()


def test_an_undo_is_taken_back_by_its_id(pets: Classifier) -> None:
    pets.remove_category("cat")
    before = pets.categories()
    pets.history.undo()
    undo = next(iter(pets.history))
    assert [category.name for category in pets.categories()] == ["cat", "cow", "dog"]
    assert pets.history.undo(change=undo.id[:8]).what == "undo"
    assert pets.categories() == before
    pets.history.undo()
    assert [category.name for category in pets.categories()] == ["cat", "cow", "dog"]


def test_the_next_prediction_knows_of_an_undo(pets: Classifier) -> None:
    photo = coloured("red", 0)
    assert pets.classify(photo).label == "cat"
    pets.references.move(images(pets, "cat"), source="cat", target="dog")
    assert pets.classify(photo).label == "dog"
    pets.history.undo("dog")
    assert pets.classify(photo).label == "cat"


def test_a_later_change_must_be_undone_first(pets: Classifier) -> None:
    first, *_ = images(pets, "cat")
    pets.references.move(first, source="cat", target="dog")
    pets.references.rename("dog", "hound")
    with pytest.raises(InvalidInputError, match=r"'dog' has been changed since by another change \(rename, "):
        pets.history.undo("cat")
    pets.history.undo("hound")
    assert pets.history.undo("cat").what == "move"
    assert len(images(pets, "cat")) == len(images(pets, "dog")) == 3


def test_a_change_that_is_not_there(pets: Classifier) -> None:
    for change in ("", "nonsense"):
        with pytest.raises(InvalidInputError, match="no change"):
            pets.history.undo(change=change)
    with pytest.raises(InvalidInputError, match="no change of 'fox'"):
        pets.history.undo("fox")


def test_the_changes_of_one_category(pets: Classifier) -> None:
    pets.references.move(images(pets, "cat")[0], source="cat", target="dog")
    pets.references.update("cow", metadata={"a": 1})
    assert [change.what for change in pets.history.of(" cat ")] == ["move", "add"]
    assert [change.what for change in pets.history.of("cow")] == ["set", "add"]
    assert pets.history.of("fox") == []
    with pytest.raises(InvalidInputError, match="name"):
        pets.history.of("")


def test_each_way_to_change_has_its_word(pets: Classifier) -> None:
    pets.add_category("cat", images=[coloured("red", 7)])
    pets.add_category("cat", texts=["a cat"], replace=True)
    pets.references.update("cat", texts=["a feline"], metadata={"legs": 4})
    pets.references.remove("cat", images(pets, "cat")[0])
    pets.references.move(images(pets, "cat")[0], source="cat", target="dog")
    pets.references.rename("cow", "ox")
    pets.references.merge("ox", "dog")
    pets.remove_category("dog")
    words = ["remove", "merge", "rename", "move", "remove", "set", "replace", "add", "add"]
    assert [change.what for change in pets.history] == words
    for _ in words[:-1]:
        pets.history.undo()
    assert [(category.name, category.texts) for category in pets.categories()] == [
        (name, (name,)) for name in ("cat", "cow", "dog")
    ]
    assert all(len(images(pets, name)) == 3 for name in ("cat", "cow", "dog"))


def test_without_a_history_nothing_is_kept(tmp_path: Path) -> None:
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()], history=0) as clf:
        clf.add_category("cat", images=[coloured("red", i) for i in range(3)])
        clf.remove_category("cat")
        assert list(clf.history) == []
        with pytest.raises(InvalidInputError, match="no change"):
            clf.history.undo()
        assert clf._store.gc().total() == 0  # it was deleted with the commit


def test_another_process_takes_it_back(pets: Classifier, tmp_path: Path) -> None:
    pets.remove_category("dog")
    pets.close()
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()], added_by="Bob") as clf:
        assert clf.history.undo(change=next(iter(clf.history)).id).by == "Ann"
        assert next(iter(clf.history)).by == "Bob"
        assert clf.classify(coloured("blue", 1)).label == "dog"


def test_a_forgotten_image_is_no_evidence_and_has_no_copy(pets: Classifier) -> None:
    photo, (digest, *_) = coloured("red", 0), images(pets, "cat")
    pets.add_category("dog", images=[photo])
    digest = pets.classify(photo).experts["hash:image"].neighbors[0].hash
    assert pets.image(digest) is not None
    assert pets.references.forget(digest).categories == ("cat", "dog")
    assert digest not in {n.hash for n in pets.classify(photo).experts["hash:image"].neighbors}
    assert pets.image(digest) is None
    pets.history.undo(change=next(change.id for change in pets.history if not change.final))
    assert digest not in images(pets, "dog")
    assert pets.references.forget(digest).categories == ()


def sizes(clf: Classifier) -> dict[str, int]:
    return {category.name: len(images(clf, category.name)) for category in clf.categories()}


def test_a_correction_of_an_image_in_two_categories_is_taken_back_as_a_whole(pets: Classifier) -> None:
    photo = coloured("red", 0)
    pets.add_category("dog", images=[photo])
    before = sizes(pets)
    for how in ("last", "id", "category"):
        pets.correct(photo, "cow")
        assert sizes(pets) == {"cat": 2, "cow": 4, "dog": 3}
        by_id = next(iter(pets.history)).id if how == "id" else None
        undone = pets.history.undo("cow" if how == "category" else None, change=by_id)
        assert (undone.what, undone.categories) == ("correct", ("cat", "cow", "dog"))
        assert sizes(pets) == before
    assert pets.history.undo().what == "add"  # of the photo to the dogs
    assert sizes(pets) == {"cat": 3, "cow": 3, "dog": 3}


def test_the_rest_of_a_change_is_the_last_one(pets: Classifier) -> None:
    pets.add_categories(CategoryInput(name=name, images=[coloured("red", i)]) for i, name in enumerate("ab", 10))
    pets.history.undo("a")
    assert "a" not in sizes(pets)
    assert pets.history.undo().categories == ("b",)
    assert sizes(pets) == {"cat": 3, "cow": 3, "dog": 3}


def test_only_a_whole_hash_is_forgotten(pets: Classifier) -> None:
    for digest in ("abc", "", None, 7, "g" * 64):
        with pytest.raises(InvalidInputError, match=r"hash must be a .*hash of 64 characters"):
            pets.references.forget(digest)  # type: ignore[arg-type]


def test_nothing_is_forgotten_where_there_is_no_store(tmp_path: Path) -> None:
    with zsvec.open(tmp_path / "nothing", encoders=[HashEncoder()]) as clf, pytest.raises(StoreError, match="no store"):
        clf.references.forget("a" * 64)


def test_a_forgotten_image_is_not_called_undone(pets: Classifier) -> None:
    pets.references.forget(images(pets, "cat")[0].upper())
    pets.history.undo(change=list(pets.history)[1].id)
    assert {change.what: change.undone for change in pets.history} == {"add": True, "forget": False, "undo": False}


def test_a_change_names_images_and_direction(pets: Classifier) -> None:
    cats, dogs = images(pets, "cat"), images(pets, "dog")
    (added,) = pets.history
    assert (added.images, added.moved, len(added.examples)) == (9, (), 6)
    pets.add_category("cat", texts=["a pet"])
    pets.add_category("cat", images=[coloured("red", 0), coloured("red", 7)])
    pets.references.move(cats[:2], source="cat", target="fox")
    pets.references.remove("dog", dogs[:1])
    pets.references.rename("fox", "wolf")
    pets.references.merge("wolf", "cow")
    pets.history.undo()
    pets.remove_category("cow")
    seen = [(one.what, one.images, one.moved) for one in pets.history][:-1]
    assert seen == [
        ("remove", 3, ()),
        ("undo", 2, ("cow", "wolf")),
        ("merge", 2, ("wolf", "cow")),
        ("rename", 2, ("fox", "wolf")),
        ("remove", 1, ()),
        ("move", 2, ("cat", "fox")),
        ("add", 1, ()),
        ("add", 0, ()),
    ]
    examples = [set(one.examples) for one in pets.history]
    assert examples[1:6] == [set(cats[:2])] * 3 + [{dogs[0]}, set(cats[:2])]
    pets.references.forget(cats[0])
    assert not any(cats[0] in one.examples for one in pets.history)


def test_the_author_of_a_block_is_recorded(pets: Classifier) -> None:
    with pets.history.acting("Bob"):
        pets.add_category("fox", images=[coloured("yellow", 901)])
        with pets.history.one_change("two"):
            pets.references.update("fox", metadata={"a": 1})
    pets.references.update("fox", metadata={"a": 2})
    assert [change.by for change in pets.history][:3] == ["Ann", "Bob", "Bob"]
    assert {reference.by for reference in pets.references.of("fox")} == {"Bob"}


def test_a_forget_is_final_and_stops_an_undo_without_an_id(pets: Classifier) -> None:
    pets.references.update("cat", metadata={"a": 1})
    pets.remove_category("dog")
    pets.references.forget(images(pets, "cat")[0])
    before = pets.categories()
    forgotten, removal, *_ = pets.history
    assert [(change.what, change.final) for change in pets.history] == [
        ("forget", True),
        ("remove", False),
        ("set", False),
        ("add", False),
    ]
    for category, change in ((None, None), ("cat", None), (None, forgotten.id)):
        with pytest.raises(InvalidInputError, match=forgotten.id[:8]):
            pets.history.undo(category, change=change)
    assert pets.categories() == before
    pets.history.undo(change=removal.id)
    assert len(images(pets, "dog")) == 3
    pets.references.update("cow", metadata={"a": 1})
    assert pets.history.undo().what == "set"  # made after the forget
    with pytest.raises(InvalidInputError, match=forgotten.id[:8]):
        pets.history.undo()


def test_what_a_change_did_besides_a_forget_can_be_undone(pets: Classifier) -> None:
    digest = images(pets, "cat")[0]
    with pets.history.one_change("tidy"):
        pets.references.forget(digest)
        pets.remove_category("dog")
    assert [(change.undone, change.final) for change in pets.history] == [(False, False), (False, False)]
    assert pets.history.undo().what == "tidy"
    assert sizes(pets) == {"cat": 2, "cow": 3, "dog": 3}
    assert [(change.undone, change.final) for change in pets.history][1:] == [(False, True), (False, False)]
    with pytest.raises(InvalidInputError):
        pets.history.undo()


def last(clf: Classifier) -> str:
    return next(iter(clf.history)).id


def test_a_change_that_was_undone_does_not_prevent_a_redo(pets: Classifier) -> None:
    pets.add_category("fox", images=[coloured("yellow", i) for i in range(2)])
    pets.history.undo("fox")
    undo = last(pets)
    pets.correct(coloured("red", 0), "fox")
    assert pets.history.undo().what == "correct"
    correction = last(pets)
    assert undo in pets.history.undoable(pets.history)
    redone = pets.history.undo(change=undo)
    assert (redone.what, redone.categories, redone.left_out) == ("undo", ("fox",), ())
    assert sizes(pets) == {"cat": 3, "cow": 3, "dog": 3, "fox": 2}
    with pytest.raises(InvalidInputError):  # undone already
        pets.history.undo(change=correction)
    assert pets.history.undo("fox").what == "add"


def test_a_category_with_the_content_that_an_undo_left_is_redone(pets: Classifier) -> None:
    photos = [coloured("red", i) for i in range(3, 5)]
    pets.add_category("cat", images=photos)
    pets.history.undo()
    undo = last(pets)
    pets.add_category("cat", images=photos[:1])
    assert undo not in pets.history.undoable(pets.history)
    with pytest.raises(InvalidInputError, match="'cat' has been changed since"):
        pets.history.undo(change=undo)
    pets.references.remove("cat", images(pets, "cat")[-1])
    pets.references.update("cat", metadata={"a": 1})
    with pytest.raises(InvalidInputError):
        pets.history.undo(change=undo)
    pets.references.update("cat", metadata={})
    pets.history.undo(change=undo)
    assert sizes(pets)["cat"] == 5
    pets.history.undo("cat")
    assert sizes(pets)["cat"] == 3


def test_a_redo_names_the_categories_that_it_leaves_as_they_are(pets: Classifier) -> None:
    pets.history.undo()
    undo = last(pets)
    pets.add_category("dog", images=[coloured("blue", 9)])
    assert undo in pets.history.undoable(pets.history)
    redone = pets.history.undo(change=undo)
    assert (redone.categories, redone.left_out) == (("cat", "cow"), ("dog",))
    assert sizes(pets) == {"cat": 3, "cow": 3, "dog": 1}
    with pytest.raises(InvalidInputError, match="'dog' has been changed since"):
        pets.history.undo(change=undo)
    pets.history.undo("dog")
    assert pets.history.undo(change=undo).categories == ("dog",)
    assert sizes(pets) == {"cat": 3, "cow": 3, "dog": 3}


def test_a_move_is_redone_in_both_categories_or_in_neither(pets: Classifier) -> None:
    first, second, _ = images(pets, "cat")
    pets.references.move([first, second], source="cat", target="dog")
    pets.history.undo("dog")
    undo = last(pets)
    pets.add_category("dog", images=[coloured("blue", 9)])
    with pytest.raises(InvalidInputError, match="'dog' has been changed since"):
        pets.history.undo(change=undo)
    assert sizes(pets) == {"cat": 3, "cow": 3, "dog": 4}
    pets.history.undo()
    assert pets.history.undo(change=undo).categories == ("cat", "dog")
    assert sizes(pets) == {"cat": 1, "cow": 3, "dog": 5}


def test_without_an_id_only_the_changes_of_this_classifier_are_undone(tmp_path: Path) -> None:
    def opened() -> Classifier:
        return zsvec.open(tmp_path / "store", encoders=[HashEncoder()])

    with opened() as clf:
        clf.add_category("cat", images=[coloured("red", i) for i in range(3)])
        clf.references.update("cat", metadata={"a": 1})
        assert clf.history.undo().what == "set"
    with opened() as clf:
        (undo, _, added) = clf.history
        assert [clf.history.needs_id(change) for change in (undo, added)] == [True, True]
        for category in (None, "cat"):
            with pytest.raises(ChangeIdNeededError) as error:
                clf.history.undo(category)
            assert error.value.change == added
        clf.references.update("cat", metadata={"a": 2})
        assert clf.history.undo("cat").what == "set"
        assert sizes(clf) == {"cat": 3}
        assert clf.history.undo(change=added.id).id == added.id
        assert sizes(clf) == {}


@pytest.mark.parametrize("author", ["Ann", None])
def test_a_large_change_takes_its_id(tmp_path: Path, author: str | None) -> None:
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()], added_by=author) as clf:
        photos = [coloured(colour, i) for colour in ("red", "blue") for i in range(51)]
        clf.add_category("many", images=photos[:100])
        assert clf.history.undo().images == 100
        clf.add_category("many", images=photos)
        for category in (None, "many"):
            with pytest.raises(ChangeIdNeededError) as error:
                clf.history.undo(category)
            assert error.value.change == next(iter(clf.history))
        assert clf.history.undo(change=last(clf)).images == 102


@pytest.mark.parametrize("other", ["Bob", None])
def test_a_change_of_another_author_takes_its_id(pets: Classifier, tmp_path: Path, other: str | None) -> None:
    pets.references.update("cat", metadata={"a": 1})
    (change, added) = pets.history
    pets.close()
    with zsvec.open(tmp_path / "store", encoders=[HashEncoder()], added_by=other) as clf:
        before = clf.categories()
        for category in (None, "cat"):
            with pytest.raises(ChangeIdNeededError, match="'Ann'") as error:
                clf.history.undo(category)
            assert error.value.change == change
        assert clf.categories() == before
        clf.references.update("cow", metadata={"a": 1})
        assert not clf.history.needs_id(next(iter(clf.history)))
        assert clf.history.undo().by == other
        with clf.history.acting("Ann"):
            assert clf.history.undo().id == change.id
        assert clf.history.undo(change=added.id[:8]).by == "Ann"


def test_one_category_of_a_change(pets: Classifier) -> None:
    (added,) = pets.history
    pets.references.update("cat", metadata={"a": 1})
    for change in (added.id, "", "nonsense"):  # not the last change of the category
        with pytest.raises(InvalidInputError):
            pets.history.undo("cat", change=change)
    assert pets.history.undo("dog", change=added.id[:8]).categories == ("dog",)
    assert sizes(pets) == {"cat": 3, "cow": 3}
