"""Changes of references and label errors: `clf.references`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import zsvec
from tests.method.material import clusters
from tests.support import coloured
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import CategoryNotFoundError, ConflictError, InvalidInputError, StoreError
from zsvec.testing import HashEncoder
from zsvec.types import Category, Modality

NAMES = "abcdef"


@pytest.fixture
def clf() -> Iterator[Classifier]:
    """A store of which two images a category are under the next one, known by vectors."""
    encoder = HashEncoder(dim=16)
    vectors = clusters(np.random.default_rng(1), dict.fromkeys(NAMES, 12), signal=3.0)
    with zsvec.open(":memory:", encoders=[encoder]) as classifier:
        of_each = {name: list(vectors[name].values()) for name in NAMES}
        moved = {name: of_each[NAMES[i - 1]][:2] + of_each[name][2:] for i, name in enumerate(NAMES)}
        classifier.add_categories(
            CategoryInput(name=name, texts=[], vectors={f"{encoder.name}:image": rows}) for name, rows in moved.items()
        )
        yield classifier


def test_all_suspects_are_those_of_a_report_that_leaves_all_out(clf: Classifier) -> None:
    told = clf.references.suspects()
    assert clf.references is clf.references
    assert [(s.category, s.instead) for s in sorted(told, key=lambda s: (s.category, s.hash))] == [
        (name, NAMES[i - 1]) for i, name in enumerate(NAMES) for _ in range(2)
    ]
    assert [suspect.probability for suspect in told] == sorted((s.probability for s in told), reverse=True)
    report = clf.calibrate()
    assert report.calibration.images == 72
    assert {(s.category, s.hash) for s in report.suspects} == {(s.category, s.hash) for s in told}


def test_the_first_images_of_categories() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as clf:
        clf.add_categories(
            CategoryInput(name=name, texts=[name], images=[coloured(name, i) for i in range(3)])
            for name in ("red", "blue")
        )
        clf.add_category("red", images=[coloured("red", 9)])
        clf.add_category("words", texts=["no image"])
        first = clf.references.first_images(clf.categories(), 2)
        assert first.keys() == {"red", "blue"}
        for name, images in first.items():
            assert len(images) == 2
            assert images == [one for one in clf.references.of(name) if one in images]
        assert len(clf.references.first_images([clf.category("red")], 9)["red"]) == 4
        (gone, *_), blue = first["red"], first["blue"]
        clf.references.move(gone.hash, source="red", target="blue")
        first = clf.references.first_images(clf.categories(), 2)
        assert gone not in first["red"]
        clf.references.forget(blue[0].hash)
        assert blue[0].hash not in {one.hash for one in clf.references.first_images(clf.categories(), 2)["blue"]}
        for most in (0, -1, "a"):
            with pytest.raises(InvalidInputError, match="most must be"):
                clf.references.first_images([], most)  # type: ignore[arg-type]


@pytest.fixture
def uneven() -> Iterator[tuple[Classifier, list[int]]]:
    """A large category, small ones and an empty one; and the numbers of points that readers of pages got."""
    encoder = HashEncoder(dim=16)
    sizes = {"large": 3000, "small": 2, "seven": 7, **{f"of {n}": 40 for n in range(40)}}
    with zsvec.open(":memory:", encoders=[encoder], calibration="off") as classifier:
        rows = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
        classifier.add_categories(
            CategoryInput(name=name, texts=[], vectors={f"{encoder.name}:image": rows[:n]}) for name, n in sizes.items()
        )
        read: list[int] = []
        scroll = classifier._store._backend.scroll

        def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
            for page in scroll(*args, **kwargs):
                read.append(len(page.ids))
                yield page

        classifier._store._backend.scroll = counted  # type: ignore[method-assign]
        yield classifier, read


def test_first_images_do_not_read_whole_categories(uneven: tuple[Classifier, list[int]]) -> None:
    clf, read = uneven
    categories = clf.categories()
    read.clear()
    first = clf.references.first_images(categories, 6)
    assert sum(read) < 3000
    assert {name: len(images) for name, images in first.items()} == {one.name: min(6, one.images) for one in categories}
    for name, images in first.items():
        assert {one.category for one in images} == {name}
        assert {one.hash for one in images} <= set(hashes_of(clf, name))


def test_first_images_are_remembered_for_the_newest_categories(
    uneven: tuple[Classifier, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, read = uneven
    monkeypatch.setattr("zsvec.curation.references._MAX_REMEMBERED", 10)
    some, others = clf.categories()[:8], clf.categories()[8:]
    first = clf.references.first_images(some, 6)
    read.clear()
    assert clf.references.first_images(some, 6) == first
    assert not read
    assert len(clf.references.first_images(others, 6)) == len(others)
    assert len(clf.references._first) == 10
    read.clear()
    clf.references.first_images(others[-10:], 6)
    assert not read
    assert clf.references.first_images(some, 6) == first


def test_suspects_stay_where_they_are(clf: Classifier) -> None:
    before = clf.categories()
    assert clf.references.suspects()
    clf.calibrate()
    assert clf.categories() == before


def test_suspects_of_a_stale_calibration(clf: Classifier) -> None:
    encoder = next(iter(clf.encoders)).name
    added = clusters(np.random.default_rng(2), {"g": 2}, signal=3.0)["g"]
    calibrated = clf._store.calibration()
    clf.add_category("g", texts=[], vectors={f"{encoder}:image": list(added.values())})
    assert calibrated is not None
    clf._store.keep_calibration(calibrated)
    told = clf.references.suspects()
    assert {suspect.category for suspect in told} >= set(NAMES)


def test_suspects_need_a_calibration() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()], calibration="off") as clf:
        clf.add_category("a", texts=["a"])
        with pytest.raises(StoreError, match=r"no calibration .* calibrate it with `zsvec calibrate`"):
            clf.references.suspects()


@pytest.fixture
def pets() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        classifier.add_category("cat", texts=["meows", "purrs"], images=[coloured("red", i) for i in range(3)])
        classifier.add_category("dog", images=[coloured("blue", i) for i in range(3)], metadata={"legs": 4})
        yield classifier


def hashes_of(classifier: Classifier, name: str, modality: str = "image") -> list[str]:
    return sorted({digest for _, said, digest in classifier._store.keys(name) if said == modality})


def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images and texts are embedded from now on, batch by batch."""
    counts: list[int] = []
    embed = HashEncoder.embed

    def counting(self: HashEncoder, batch: Sequence[Any], modality: Modality) -> Any:
        counts.append(len(batch))
        return embed(self, batch, modality)

    monkeypatch.setattr(HashEncoder, "embed", counting)
    return counts


def test_references_are_moved_and_removed_and_the_next_image_knows(
    pets: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, other = hashes_of(pets, "cat")[:2]
    counts = embedded(monkeypatch)
    dog = pets.references.move(moved, source="cat", target="dog")
    assert dog == pets.category("dog")
    assert moved in hashes_of(pets, "dog")
    assert moved not in hashes_of(pets, "cat")
    pets.references.remove("cat", [other])
    assert len(hashes_of(pets, "cat")) == 1
    assert counts == []


def test_many_moves_are_one_change(pets: Classifier) -> None:
    before = {name: hashes_of(pets, name) for name in ("cat", "dog")}
    (cat, other, *_), (dog, *_) = before.values()
    assert pets.references.move_many({}) == []
    moves = {("cat", "dog"): [cat], ("dog", "cat"): dog, ("cat", "fox"): [other]}
    assert {category.name for category in pets.references.move_many(moves)} == {"cat", "dog", "fox"}
    after = {name: set(hashes_of(pets, name)) for name in ("cat", "dog", "fox")}
    assert after == {
        "cat": {*before["cat"], dog} - {cat, other},
        "dog": {*before["dog"], cat} - {dog},
        "fox": {other},
    }
    change = next(iter(pets.history))
    assert (change.what, change.images, change.moved, change.categories) == ("move", 3, (), ("cat", "dog", "fox"))
    pets.history.undo()
    assert {category.name: hashes_of(pets, category.name) for category in pets.categories()} == before
    pets.references.move_many({("cat", "dog"): [cat]})
    assert next(iter(pets.history)).moved == ("cat", "dog")


def test_a_category_that_is_defined_by_its_name_is_defined_by_the_new_one(
    pets: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = embedded(monkeypatch)
    renamed = pets.references.rename("dog", "grey_wolf")
    assert renamed.texts == ("grey wolf",)
    assert renamed.metadata == {"legs": 4}
    assert counts == [1]
    assert pets.references.rename("cat", "tom").texts == ("meows", "purrs")
    assert counts == [1]
    assert [category.name for category in pets.categories()] == ["grey_wolf", "tom"]


def test_categories_are_merged_and_described(pets: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = embedded(monkeypatch)
    merged = pets.references.merge("cat", "dog")
    assert merged.texts == ("dog", "meows", "purrs")
    assert counts == []
    assert pets.references.update("dog", texts=["meows", "hunts"]).texts == ("meows", "hunts")
    assert counts == [1]
    assert len(hashes_of(pets, "dog")) == 6
    assert pets.references.update("dog", metadata={"tame": True}).metadata == {"tame": True}
    assert pets.category("dog").references == {"hash:image": 6, "hash:text": 2}


def test_a_refused_change_changes_nothing(pets: Classifier) -> None:
    r, before, unknown, known = pets.references, pets.categories(), "f" * 64, hashes_of(pets, "cat")[:1]
    changes: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: r.move(unknown, source="cat", target="dog"), InvalidInputError, "no reference"),
        (lambda: r.move([], source="cat", target="dog"), InvalidInputError, "hashes must be"),
        (lambda: r.move(unknown, source="fox", target="dog"), CategoryNotFoundError, "fox"),
        (lambda: r.move_many({("cat", "cat"): known}), InvalidInputError, "the same"),
        (lambda: r.move_many({("cat", "dog"): known, ("cat", "fox"): known}), InvalidInputError, "several"),
        (lambda: r.move_many({("cat", "dog"): known, ("dog", "cat"): unknown}), InvalidInputError, "no reference"),
        (lambda: r.move_many({("cat", "dog"): []}), InvalidInputError, "hashes must be"),
        (lambda: r.remove("cat", unknown), InvalidInputError, "no reference"),
        (lambda: r.remove("fox", unknown), CategoryNotFoundError, "fox"),
        (lambda: r.rename("cat", "dog"), InvalidInputError, "already"),
        (lambda: r.rename("cat", " cat "), InvalidInputError, "the same"),
        (lambda: r.rename("cat", "a\nb"), InvalidInputError, "printable"),
        (lambda: r.rename("fox", "wolf"), CategoryNotFoundError, "fox"),
        (lambda: r.merge("cat", "fox"), CategoryNotFoundError, "fox"),
        (lambda: r.merge("cat", "cat"), InvalidInputError, "the same"),
        (lambda: r.update("cat"), InvalidInputError, "texts, metadata or a parent"),
        (lambda: r.update("fox", texts=["red"]), CategoryNotFoundError, "fox"),
        (lambda: r.update("cat", texts=[""]), InvalidInputError, "text"),
        (lambda: r.update("fox", metadata={}), CategoryNotFoundError, "fox"),
        (lambda: r.update("cat", metadata={"a": float("nan")}), InvalidInputError, "metadata"),
    ]
    for change, error, message in changes:
        with pytest.raises(error, match=message):
            change()
    assert pets.categories() == before


def test_the_last_reference_of_a_category_stays(pets: Classifier) -> None:
    """The state of the category is the cause, not the arguments."""
    fox = pets.add_category("fox", texts=["a red hunter"])
    (only,) = pets.references.of("fox")
    changes: list[Callable[[], object]] = [
        lambda: pets.references.update("fox", texts=[]),
        lambda: pets.add_category("fox", texts=[], replace=True),
        lambda: pets.references.remove("fox", only.hash),
        lambda: pets.references.move(only.hash, source="fox", target="dog"),
    ]
    for change in changes:
        with pytest.raises(ConflictError, match="would have no reference"):
            change()
    assert pets.category("fox") == fox


@pytest.mark.parametrize("given", [{"texts": ["new"]}, {"metadata": {"b": 1}}])
def test_a_category_that_another_removes_is_not_made_again_by_its_texts_or_metadata(
    clf: Classifier, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    category = clf._store.category

    def found(name: str) -> Category:
        there = category(name)
        clf._store.remove(name)
        return there

    monkeypatch.setattr(clf._store, "category", found)
    with pytest.raises(ConflictError, match="'a'"):
        clf.references.update("a", **given)
    assert "a" not in {one.name for one in clf.categories()}
