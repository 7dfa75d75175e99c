"""Stores whose images may belong to several categories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import zsvec
from tests.support import coloured, two_encoders
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.evaluation import evaluate_labels
from zsvec.inputs.images import content_hash
from zsvec.method.calibration import Calibration
from zsvec.store.catalog.schema import labels_from

COLOURS = ("red", "green", "blue")
PAIRS = (("red", "green"), ("green", "blue"), ("red", "blue"))


def both(colours: tuple[str, str], seed: int) -> Image.Image:
    """The left half of an image of one colour beside the right half of another."""
    left, right = (np.asarray(coloured(colour, seed)) for colour in colours)
    width = left.shape[1] // 2
    return Image.fromarray(np.concatenate([left[:, :width], right[:, width:]], axis=1))


def labelled(seeds: range) -> list[tuple[Image.Image, list[str]]]:
    one = [(coloured(colour, seed), [colour]) for colour in COLOURS for seed in seeds]
    return one + [(both(colours, seed), list(colours)) for colours in PAIRS for seed in seeds]


def fill(clf: Classifier, seeds: range = range(4)) -> Classifier:
    clf.add_categories(
        CategoryInput(name=colour, images=[image for image, names in labelled(seeds) if colour in names])
        for colour in COLOURS
    )
    return clf


def open_many(location: str | Path = ":memory:", **settings: object) -> Classifier:
    return zsvec.open(location, encoders=two_encoders(), labels="many", **settings)  # type: ignore[arg-type]


@pytest.fixture
def clf() -> Iterator[Classifier]:
    with open_many() as classifier:
        yield fill(classifier)


def holders(clf: Classifier, image: Image.Image) -> tuple[str, ...]:
    digest = content_hash(image)
    return clf.references.holders([digest]).get(digest, ())


def labels_of(clf: Classifier, image: Image.Image) -> set[str]:
    return {name for name, _ in clf.classify(image).labels}


# ---- the setting


def test_the_store_remembers_the_setting(tmp_path: Path) -> None:
    with open_many(tmp_path / "store") as clf:
        assert clf.labels == "one"  # nothing was written
        fill(clf)
        assert (clf.labels, clf.info()["labels"]) == ("many", "many")
    with zsvec.open(tmp_path / "store", encoders=two_encoders()) as clf:
        assert clf.labels == "many"
        clf.add_category("red", images=[coloured("red", 90)])
        assert clf.labels == "many"
        assert labels_of(clf, coloured("red", 91)) == {"red"}
    with zsvec.open(tmp_path / "store", encoders=two_encoders(), labels="one") as clf:
        assert labels_of(clf, coloured("red", 91)) == {"red"}  # a reader changes nothing
        clf.add_category("red", images=[coloured("red", 92)])
        assert clf.labels == "one"
        assert labels_of(clf, coloured("red", 91)) == set()
    with open_many(tmp_path / "store") as clf:
        clf.add_category("red", images=[coloured("red", 92)])  # which it has
        clf.calibrate()
        assert labels_of(clf, coloured("red", 91)) == {"red"}


def test_by_default_an_image_has_one_label() -> None:
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        fill(clf)
        assert (clf.labels, clf.classify(coloured("red", 9)).labels) == ("one", ())


def test_a_store_that_learns_no_labels_is_calibrated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def same() -> list[CategoryInput]:  # every image is in every category
        return [CategoryInput(name=name, images=[coloured("red", seed) for seed in range(4)]) for name in ("a", "b")]

    with open_many() as clf:
        clf.add_categories(same())
        made = Calibration.from_dict(clf._store.calibration())
        assert made is not None
        assert (made.multilabel, made.plain.labels) == (True, None)
        written: list[object] = []
        monkeypatch.setattr(clf._store, "keep_calibration", written.append)
        clf.add_categories(same())
        assert written == []
        clf.add_category("a", images=[coloured("red", 9)])
        assert len(written) == 1


@pytest.mark.parametrize("record", [None, {}, {"labels": "all"}, {"labels": ["many"]}, {"labels": None}])
def test_an_odd_record_means_one_label(record: dict[str, object] | None) -> None:
    assert labels_from(record) == "one"


def test_a_copy_of_a_store_keeps_the_setting(tmp_path: Path) -> None:
    with open_many(tmp_path / "one") as clf:
        fill(clf)
    zsvec.copy(tmp_path / "one", tmp_path / "other")
    with zsvec.open(tmp_path / "other", encoders=two_encoders()) as clf:
        assert clf.labels == "many"
        assert labels_of(clf, coloured("red", 91)) == {"red"}


# ---- answers


def test_an_image_of_two_categories_has_both_labels(clf: Classifier) -> None:
    for image, names in labelled(range(20, 23)):
        answer = clf.classify(image)
        assert {name for name, _ in answer.labels} == set(names)
        assert answer.nearest in names
        assert [p for _, p in answer.labels] == sorted((p for _, p in answer.labels), reverse=True)
        assert answer.to_dict()["labels"] == [{"label": name, "probability": p} for name, p in answer.labels]


def test_a_track_has_no_several_labels(clf: Classifier) -> None:
    with pytest.raises(InvalidInputError):
        clf.tracker()


def test_a_calibration_by_another_rate_is_told_apart(tmp_path: Path) -> None:
    with open_many(tmp_path) as clf:
        fill(clf)
        unchanged = clf.calibrate().notes
    with open_many(tmp_path, label_false_positive_rate=0.3) as clf:
        changed = clf.calibrate().notes
    assert {*unchanged} - {*changed}


def test_without_a_calibration_there_are_no_labels() -> None:
    with open_many(calibration="off") as clf:
        assert labels_of(fill(clf), coloured("red", 9)) == set()


def test_a_false_positive_rate_is_stored_with_the_calibration(tmp_path: Path) -> None:
    def rate(clf: Classifier) -> float | None:
        clf.calibrate()
        model = clf._calibrator.present()
        assert model is not None
        assert model.aggregations.labels is not None
        return model.aggregations.labels.false_positive_rate

    with open_many(tmp_path, label_false_positive_rate=0.2) as clf:
        assert rate(fill(clf)) == 0.2
    with open_many(tmp_path) as clf:
        assert rate(clf) == 0.2
    with open_many(tmp_path, label_false_positive_rate=0) as clf:
        assert rate(clf) is None


def test_a_large_store_is_calibrated_from_a_sample() -> None:
    with open_many(index_budget=5, index="qdrant") as clf:
        fill(clf)
        clf.calibrate()
        for image, names in labelled(range(20, 22)):
            assert labels_of(clf, image) == set(names)


# ---- corrections


def test_a_correction_names_all_categories(clf: Classifier) -> None:
    image = both(PAIRS[0], 50)
    assert clf.correct(image, ["red", "green", "red"]).name == "red"
    assert holders(clf, image) == ("green", "red")
    before = clf.image(content_hash(image))
    assert clf.correct(image, ["green", "blue"]).name == "green"  # a reference, so no file is needed
    assert holders(clf, image) == ("blue", "green")
    assert clf.image(content_hash(image)) == before is not None
    prediction = clf.classify(image)
    clf.correct(prediction, "green")
    assert holders(clf, image) == ("green",)


def test_a_correction_keeps_the_source_and_the_vectors(clf: Classifier) -> None:
    image = both(PAIRS[0], 50)
    clf.add_category("red", images=[zsvec.ReferenceImage(image=image, source="mine.jpg", group="burst")])
    (encoder, _) = clf.encoders
    embedded = encoder.images_encoded  # type: ignore[attr-defined]
    clf.correct(image, ["red", "blue"])
    assert encoder.images_encoded == embedded  # type: ignore[attr-defined]
    (found,) = [one for one in clf.references.of("blue") if one.hash == content_hash(image)]
    assert (found.source, found.group, found.experts) == ("mine.jpg", "burst", ("dino:image", "clip:image")[::-1])


def test_a_correction_is_undone_as_a_whole(clf: Classifier) -> None:
    image = both(PAIRS[0], 50)
    clf.correct(image, ["red"])
    clf.correct(image, ["green", "blue"])
    clf.history.undo()
    assert holders(clf, image) == ("red",)


def test_inbox_images_get_several_labels(clf: Classifier) -> None:
    kept = clf.keep(both(PAIRS[0], 50))
    assert kept is not None
    assert clf.inbox.label(kept, ("red", "blue")).name == "red"
    assert holders(clf, both(PAIRS[0], 50)) == ("blue", "red")
    assert clf.inbox.hashes() == []
    clf.inbox.label(kept, ["red", "blue"])  # idempotent
    with pytest.raises(InvalidInputError, match="waits in the inbox"):
        clf.inbox.label(kept, ["red", "green"])


def test_one_label_refuses_several_names() -> None:
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        fill(clf)
        for names in (["red", "blue"], [], ["red", 3], 3):
            with pytest.raises(InvalidInputError):
                clf.correct(coloured("red", 50), names)  # type: ignore[arg-type]
        assert holders(clf, coloured("red", 50)) == ()
        assert clf.correct(coloured("red", 50), ["red"]).name == "red"


# ---- audit and evaluation


def test_an_image_in_several_categories_is_no_finding(clf: Classifier) -> None:
    found = clf.references.audit()
    shared = {content_hash(image) for image, names in labelled(range(4)) if len(names) > 1}
    assert not any(one.copied for one in found.labels)
    assert all(len({image.hash for image in one.images}) > 1 and not one.across for one in found.duplicates)
    with zsvec.open(":memory:", encoders=two_encoders()) as other:
        across = [one for one in fill(other).references.audit().duplicates if one.across]
    assert shared <= {image.hash for one in across for image in one.images}


def test_evaluation_by_hand(clf: Classifier) -> None:
    images, names = zip(*labelled(range(20, 23)), strict=True)
    wrong = [*names[:-1], ["red", "green"]]  # of the last, a red and blue image
    found = evaluate_labels(clf, images, wrong)
    assert (found.n, found.labels.keys()) == (18, set(COLOURS))
    assert found.exact == pytest.approx(17 / 18)
    assert found.micro_f1 == pytest.approx(2 * 26 / (27 + 27))
    assert (found.labels["green"].recall, found.labels["green"].precision) == (9 / 10, 1)
    assert found.labels["blue"].false_positives == pytest.approx(1 / 10)
    assert found.mean_labels == 1.5
    assert found.macro.images == 18
    assert 0.9 < found.mean_average_precision < 1
    assert found.to_dict()["macro"]["f1"] == pytest.approx(np.mean([one.f1 for one in found.labels.values()]))


def test_images_of_no_category(clf: Classifier) -> None:
    images, names = zip(*labelled(range(20, 23)), strict=True)
    strangers = [*(coloured("white", seed) for seed in range(4)), coloured("red", 30)]
    plain, found = evaluate_labels(clf, images, names), evaluate_labels(clf, images, names, [*strangers, b"x"])
    assert (plain.unknown_images, plain.auroc, plain.detected, "auroc" in plain.to_dict()) == (0, None, None, False)
    answers = clf.classify([*images, *strangers])
    known, foreign = answers[: len(images)], answers[len(images) :]
    assert found.unknown_images == found.to_dict()["unknown_images"] == len(strangers)
    assert found.detected == np.mean([one.unknown for one in foreign])
    assert found.given_labels == np.mean([bool(one.labels) for one in foreign])
    assert found.false_unknown_rate == np.mean([one.unknown for one in known])
    novelty = np.array([one.novelty for one in answers])
    assert found.auroc == pytest.approx(roc_auc_score([0] * len(known) + [1] * len(foreign), novelty))
    assert (found.detected, found.given_labels) == (4 / 5, 1 / 5)
    assert (found.n, found.micro_f1, found.macro.ece) == pytest.approx((18, plain.micro_f1, plain.macro.ece))
    with pytest.raises(InvalidInputError):
        evaluate_labels(clf, images, names, [b"x"])


def test_an_image_that_is_given_twice_has_the_labels_of_both(clf: Classifier) -> None:
    found = evaluate_labels(clf, [both(PAIRS[0], 20), both(PAIRS[0], 20)], [["red"], ["green"]])
    assert (found.n, found.exact) == (1, 1)


def test_evaluation_refuses_what_it_cannot_compare(clf: Classifier) -> None:
    for images, names in (
        ([], []),
        ([coloured("red", 1)], [["purple"]]),
        ([coloured("red", 1)], []),
        ([b"x"], [["red"]]),
    ):
        with pytest.raises(InvalidInputError):
            evaluate_labels(clf, images, names)
    with zsvec.open(":memory:", encoders=two_encoders()) as other, pytest.raises(zsvec.StoreError):
        evaluate_labels(fill(other), [coloured("red", 1)], [["red"]])
