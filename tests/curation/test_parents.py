"""Parents of categories: written, renamed, merged, undone and forged; and the paths of predictions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import zsvec
from tests.support import coloured
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.store.backends.base import Put
from zsvec.store.catalog.schema import expected
from zsvec.store.names import record_id
from zsvec.testing import HashEncoder

COLOURS = {"robin": "red", "wren": "blue", "bird": "green", "dog": "yellow", "car": "black"}
PARENTS = {"robin": "bird", "wren": "animal > bird", "bird": "animal", "dog": "animal", "car": None}


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        classifier.add_categories(
            CategoryInput(name=name, images=[coloured(colour, i) for i in range(4)], parent=PARENTS[name])
            for name, colour in COLOURS.items()
        )
        yield classifier


def parents(clf: Classifier) -> dict[str, str]:
    return {category.name: category.parent for category in clf.categories()}


def forge(clf: Classifier, name: str, parent: object) -> None:
    catalog = clf._store._catalog
    manifest = catalog.state([name]).manifests[name]
    forged = {**manifest, "parent": parent, "version": manifest["version"] + 1, "rev": catalog.next_rev()}
    catalog.put([Put(record_id("category", name), forged, expected(manifest))])


def test_a_prediction_has_the_sums_on_its_path(clf: Classifier) -> None:
    found = clf.classify(coloured("red", 0), top_k=5)
    own = dict(found.ranking)
    names = [name for name, _ in found.path]
    assert names == ["animal", "bird", "robin"]
    assert [p for _, p in found.path] == pytest.approx(
        [1 - own["car"], own["robin"] + own["wren"] + own["bird"], own["robin"]]
    )
    assert [entry["label"] for entry in found.to_dict()["path"]] == names
    deepest = found.at(0.51)
    assert deepest is not None
    assert deepest in found.path
    assert all(p < 0.51 for _, p in found.path[found.path.index(deepest) + 1 :])


@pytest.mark.parametrize("value", [0.5, 0, 1.01, -1, float("nan"), "high", None])
def test_an_accuracy_of_half_or_less_is_refused(clf: Classifier, value: float) -> None:
    with pytest.raises(InvalidInputError):
        clf.classify(coloured("red", 0)).at(value)


def test_without_parents_there_is_no_path() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as flat:
        flat.add_category("red", images=[coloured("red", i) for i in range(4)])
        flat.add_category("blue", images=[coloured("blue", i) for i in range(4)])
        found = flat.classify(coloured("red", 0))
        assert found.path == ()
        assert found.at(0.51) == ("red", found.probability)
        flat.add_category("red", parent="warm")
        assert [name for name, _ in flat.classify(coloured("red", 0)).path] == ["warm", "red"]
        flat.references.update("red", parent="")
        assert flat.classify(coloured("red", 0)).path == ()


def test_the_tree_is_made_again_when_names_or_parents_change(clf: Classifier) -> None:
    def tree() -> object:
        clf.classify(coloured("red", 0))
        return clf._searcher._made.tree

    made = tree()
    clf.add_category("robin", images=[coloured("red", 8)])
    assert tree() is made
    clf.references.update("robin", parent="toy")
    assert (changed := tree()) is not made
    clf.add_category("boat", images=[coloured("cyan", 0)])
    assert tree() is not changed


def test_a_parent_stays_until_another_is_given(clf: Classifier) -> None:
    before = clf.category("robin")
    assert clf.add_category("robin", images=[coloured("red", 7)]).parent == "bird"
    assert clf.add_category("robin", texts=["a small bird"], replace=True).parent == "bird"
    assert clf.references.update("robin", metadata={"legs": 2}).parent == "bird"
    version = clf.category("robin").version
    assert version > before.version
    assert clf.add_category("robin", parent="bird").version == version  # nothing to write
    assert clf.references.update("robin", parent=" animal>bird ").parent == "animal > bird"
    assert clf.category("robin").images == 5


@pytest.mark.parametrize(
    "parent", ["robin", "animal > robin", "a > > b", ">", "a\nb", 7, " > ".join("x" * 33), "x" * 501]
)
def test_unusable_parents_are_refused(clf: Classifier, parent: str) -> None:
    before = parents(clf)
    with pytest.raises(InvalidInputError):
        clf.references.update("robin", parent=parent)
    with pytest.raises(InvalidInputError):
        clf.add_category("robin", parent=parent)
    assert parents(clf) == before


def test_a_category_cannot_be_put_below_itself(clf: Classifier) -> None:
    for write in (clf.references.update, clf.add_category):
        with pytest.raises(InvalidInputError):
            write("bird", parent="robin")
        with pytest.raises(InvalidInputError):
            write("bird", parent="robin > nest")
    assert parents(clf)["bird"] == "animal"


def test_a_rename_carries_the_categories_below_and_one_undo_reverts_it(clf: Classifier) -> None:
    before = parents(clf)
    assert clf.references.rename("bird", "fowl").parent == "animal"
    assert parents(clf) == {"robin": "fowl", "wren": "animal > fowl", "fowl": "animal", "dog": "animal", "car": ""}
    assert [name for name, _ in clf.classify(coloured("blue", 0)).path] == ["animal", "fowl", "wren"]
    change = next(iter(clf.history))
    assert (change.what, set(change.categories)) == ("rename", {"bird", "fowl", "robin", "wren"})
    clf.history.undo()
    assert parents(clf) == before
    assert [name for name, _ in clf.classify(coloured("blue", 0)).path] == ["animal", "bird", "wren"]


@pytest.mark.parametrize("gone", [["robin"], ["robin", "wren"]])
def test_a_category_below_that_is_removed_during_a_rename_needs_no_parent(
    clf: Classifier, gone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = clf._store.move

    def removes_meanwhile(*given: Any) -> Any:
        with ThreadPoolExecutor(1) as other:  # a thread is another writer
            list(other.map(clf.remove_category, gone))
        return move(*given)

    monkeypatch.setattr(clf._store, "move", removes_meanwhile)
    assert clf.references.rename("bird", "fowl").name == "fowl"
    expected = {"robin": "fowl", "wren": "animal > fowl", "fowl": "animal", "dog": "animal", "car": ""}
    assert parents(clf) == {name: parent for name, parent in expected.items() if name not in gone}


def test_a_category_cannot_take_the_name_of_its_parent(clf: Classifier) -> None:
    before = clf.categories()
    with pytest.raises(InvalidInputError):
        clf.references.rename("dog", "animal")
    assert clf.categories() == before


def test_a_merge_gives_the_categories_below_to_the_target(clf: Classifier) -> None:
    before = parents(clf)
    assert clf.references.merge("bird", "car").parent == ""
    assert parents(clf) == {"robin": "car", "wren": "car", "dog": "animal", "car": ""}
    clf.history.undo()
    assert parents(clf) == before


def test_a_merge_into_a_category_below_leaves_a_group(clf: Classifier) -> None:
    clf.references.merge("bird", "robin")
    assert parents(clf) == {"robin": "bird", "wren": "animal > bird", "dog": "animal", "car": ""}


def test_a_removed_parent_stays_as_a_group(clf: Classifier) -> None:
    clf.remove_category("bird")
    assert [name for name, _ in clf.classify(coloured("red", 0)).path] == ["bird", "robin"]
    clf.history.undo()
    assert [name for name, _ in clf.classify(coloured("red", 0)).path] == ["animal", "bird", "robin"]


def test_an_undo_restores_the_parent(clf: Classifier) -> None:
    clf.references.update("robin", parent="toy")
    clf.history.undo()
    assert clf.category("robin").parent == "bird"
    clf.references.update("robin", parent="")
    assert clf.category("robin").parent == ""
    clf.history.undo()
    assert clf.category("robin").parent == "bird"


def test_moved_images_change_no_parent(clf: Classifier) -> None:
    first = next(one.hash for one in clf.references.of("robin") if one.modality == "image")
    assert clf.references.move(first, source="robin", target="dog").parent == "animal"
    assert clf.references.move(first, source="dog", target="new").parent == ""
    assert parents(clf)["robin"] == "bird"


@pytest.mark.parametrize(
    ("forged", "path"),
    [
        ({"bird": "robin"}, ["bird", "robin"]),  # a cycle
        ({"robin": "robin"}, ["robin"]),
        ({"robin": 7}, ["robin"]),
        ({"robin": ["bird"]}, ["robin"]),
        ({"robin": " >  > "}, ["robin"]),
        ({"robin": " > ".join("x" * 40)}, ["robin"]),
        ({"robin": "b" * 501}, ["robin"]),
        ({"robin": "to\ny"}, ["robin"]),
        ({"robin": "bird > \u202e"}, ["robin"]),
    ],
)
def test_a_forged_parent_stops_no_reader(clf: Classifier, forged: dict[str, object], path: list[str]) -> None:
    for name, parent in forged.items():
        forge(clf, name, parent)
    found = clf.classify(coloured("red", 0))
    assert found.label == "robin"
    assert [name for name, _ in found.path] == path
    assert len(clf.categories()) == len(COLOURS)
    assert clf.references.update("robin", parent="toy").parent == "toy"


def test_a_copy_has_the_parents(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with zsvec.open(source, encoders=[HashEncoder()]) as clf:
        clf.add_category("robin", texts=["a robin"], parent="animal > bird")
        clf.add_category("car", texts=["a car"])
    assert zsvec.copy(source, target).complete
    with zsvec.open(source, encoders=[HashEncoder()]) as clf:
        clf.references.update("robin", parent="toy")
    assert zsvec.copy(source, target).different == ("robin",)
    with zsvec.open(target, encoders=[HashEncoder()]) as clf:
        assert parents(clf) == {"robin": "animal > bird", "car": ""}
    assert zsvec.copy(source, target, replace=True).complete
    with zsvec.open(target, encoders=[HashEncoder()]) as clf:
        assert parents(clf) == {"robin": "toy", "car": ""}
        forge(clf, "robin", "to\ny")
    assert zsvec.copy(target, tmp_path / "third").complete
    with zsvec.open(tmp_path / "third", encoders=[HashEncoder()]) as clf:
        assert parents(clf) == {"robin": "", "car": ""}
        forge(clf, "robin", "..")
    assert list(zsvec.copy(tmp_path / "third", tmp_path / "fourth").damaged) == ["robin"]


@pytest.mark.parametrize("forged", ["bird > robin", "bird > \x00", "bird > " + "x" * 500])
def test_a_forged_parent_below_stops_no_rename(clf: Classifier, forged: str) -> None:
    forge(clf, "robin", forged)
    clf.references.rename("bird", "birds")
    assert parents(clf) == {"robin": "", "wren": "animal > birds", "birds": "animal", "dog": "animal", "car": ""}
