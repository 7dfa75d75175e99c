"""Accuracy and AUROC, against tables worked by hand and on a classifier of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support import coloured, encode, fast_folder, isolated, open_classifier, write_photos  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.evaluation import Evaluation, evaluate, labelled_images, labelled_images_of
from zsvec.evaluation.evaluate import Outcome
from zsvec.evaluation.metrics import Accuracy
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.folders import find_images
from zsvec.types import ExpertOutput, Prediction, Ranking


def ranking(*labels: str) -> Ranking:
    return tuple((label, 1 / 2**rank) for rank, label in enumerate(labels, 1))


# ---- accuracy


def accuracy(*answers: tuple[Ranking, str]) -> Accuracy:
    """Returns the accuracy of rankings, each with its true label."""
    return Accuracy.of(*zip(*(Outcome.of(ranking, label) for ranking, label in answers), strict=True))


def test_accuracy() -> None:
    abcdef = ranking(*"abcdef")
    cases: list[tuple[list[Ranking], list[str], tuple[float, ...]]] = [
        ([ranking("a", "b")], ["a"], (1.0, 1.0, 1.0, 0.5)),
        ([ranking("a", "b")], ["b"], (0.0, 1.0, 1.0, 0.5)),
        ([abcdef], ["c"], (0.0, 1.0, 1.0, 0.5)),
        ([abcdef], ["e"], (0.0, 0.0, 1.0, 0.5)),
        ([abcdef], ["f"], (0.0, 0.0, 0.0, 0.5)),
        ([ranking("a", "b")], ["z"], (0.0, 0.0, 0.0, 0.5)),  # a label that this expert does not know
        ([()], ["a"], (0.0, 0.0, 0.0, 0.0)),
        # ranks 1, 2, 4, none; a quarter is right at 1/2
        (
            [ranking("a", "b"), ranking("b", "a"), ranking("b", "c", "d", "a"), ranking("b")],
            ["a"] * 4,
            (0.25, 0.5, 0.75, 0.25),
        ),
        ([ranking("a", "b"), ranking("b", "a")], ["a"] * 2, (0.5, 1.0, 1.0, 0.0)),  # half is right at 1/2
        ([(("a", 0.875),), ranking("b", "a")], ["a"] * 2, (0.5, 1.0, 1.0, 0.3125)),  # off by 1/8 and by 1/2
        ([(("a", 0.875),), (("b", 0.875),)], ["a"] * 2, (0.5, 0.5, 0.5, 0.375)),  # half is right at 7/8
    ]
    for rankings, labels, expected in cases:
        found = accuracy(*zip(rankings, labels, strict=True))
        assert (found.top1, found.top3, found.top5, found.ece) == expected, (rankings, labels)


def test_quality_of_probabilities_by_hand() -> None:
    ranked = ((("a", 0.5), ("b", 0.25), ("c", 0.25)), (("c", 1.0), ("a", 0.0), ("b", 0.0)))
    found = accuracy((ranked[0], "b"), (ranked[1], "c"))
    assert found.nll == pytest.approx(math.log(4) / 2)
    assert found.brier == pytest.approx((0.5**2 + 0.75**2 + 0.25**2) / 2)
    assert found.ece_floor == 0.25  # the first is off by a half, right or wrong; the second is certain
    for label in ("a", "z"):  # of probability 0, and of none
        assert accuracy((ranked[1], label)).nll is None
        assert accuracy((ranked[1], label)).brier == 2


# ---- an evaluation, of given predictions


class Given:
    """A stand-in for a classifier, with predictions by name of the image."""

    def __init__(self, predictions: Mapping[str, Prediction], categories: Sequence[str]) -> None:
        self.settings = SimpleNamespace(fusion="log_linear_views")
        self.location = "here"
        self._predictions = predictions
        self._categories = categories
        self.asked: list[str] = []

    def categories(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self._categories]

    def classify_stream(self, images: Iterable[Path], *, top_k: int) -> AbstractContextManager[Iterator[Prediction]]:
        assert top_k == len(self._categories)
        return closing(self._answers(images))

    def _answers(self, images: Iterable[Path]) -> Generator[Prediction]:
        for path in images:
            self.asked.append(path.name)
            yield self._predictions[path.name]


def prediction(novelty: float, fused: Ranking, **experts: Ranking) -> Prediction:
    unknown = novelty > 0.25
    return Prediction(
        source="",
        label=None if unknown else fused[0][0],
        nearest=fused[0][0],
        probability=fused[0][1],
        novelty=novelty,
        distance=0.5,
        unknown=unknown,
        ranking=fused,
        fusion="log_linear",
        experts={
            name: ExpertOutput(weight=1.0, entropy=0.0, ranking=ranked, neighbors=())
            for name, ranked in experts.items()
        },
    )


# Of three answers of probability 1/2, all or none are right a quarter of the time, and off by 1/2; else off by 1/6.
FLOOR = pytest.approx(1 / 4, abs=0.02)
BROKEN = Prediction(source="broken.png", error="broken.png is empty")
PREDICTIONS = {
    "cat1.png": prediction(0.1, ranking("cat", "dog"), text=ranking("dog", "cat"), image=ranking("cat", "dog")),
    "cat2.png": prediction(0.2, ranking("dog", "cat"), text=ranking("dog"), image=ranking("cat", "dog")),
    "dog1.png": prediction(0.3, ranking("a", "b", "c", "dog"), text=ranking("dog"), image=ranking("a", "dog")),
    "fox1.png": prediction(0.2, ranking("cat"), text=ranking("cat"), image=ranking("cat")),
    "fox2.png": prediction(0.4, ranking("cat"), text=ranking("cat"), image=ranking("cat")),
    "broken.png": BROKEN,
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``known`` with two cats, a dog and a broken image, ``unknown`` with two foxes; the files are empty."""
    for name in (
        "known/cat/cat1",
        "known/cat/more/cat2",
        "known/dog/dog1",
        "known/dog/broken",
        "unknown/fox1",
        "unknown/fox2",
    ):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def run(
    folders: Path, *, unknown: bool, predictions: Mapping[str, Prediction] = PREDICTIONS, **options: Any
) -> Evaluation:
    classifier = cast("Classifier", Given(predictions, ["cat", "dog", "fox"]))
    return of_folders(classifier, folders / "known", folders / "unknown" if unknown else None, **options)


def of_folders(classifier: Any, known: Path, unknown: Path | None = None, **options: Any) -> Evaluation:
    images, labels = zip(*labelled_images(known), strict=True)
    return evaluate(classifier, images, labels, find_images(unknown) if unknown else (), **options)


def test_an_evaluation_by_hand(folders: Path) -> None:
    left_out: list[Prediction] = []
    result = run(folders, unknown=True, on_error=left_out.append)
    assert result.to_dict() == {
        "n": 3,
        "top1": pytest.approx(1 / 3),
        "top3": pytest.approx(2 / 3),
        "top5": pytest.approx(3 / 3),
        "nll": pytest.approx((1 + 2 + 4) * math.log(2) / 3),  # of 1/2, 1/4 and 1/16
        "brier": pytest.approx((5 / 16 + 13 / 16 + 309 / 256) / 3),
        # A third is right, and the best probability is always 1/2. Of the experts 1/3 and 2/3 is.
        "ece": pytest.approx(1 / 2 - 1 / 3),
        "ece_floor": FLOOR,
        # Of the pairs of unknown and known, 0.2 wins one and ties one of three, 0.4 wins three: 4.5 of 6.
        "auroc": pytest.approx(0.75),
        "detected": pytest.approx(1 / 2),  # 0.4 is beyond 0.25, and
        "false_unknown_rate": pytest.approx(1 / 3),  # of the known images 0.3 is
        "fusion": "log_linear",  # of the predictions, not of the settings
        "experts": {
            "text": {
                "top1": pytest.approx(1 / 3),
                "top3": pytest.approx(2 / 3),
                "top5": pytest.approx(2 / 3),
                "nll": None,  # the second image's category is not in the ranking
                "brier": pytest.approx((13 / 16 + 5 / 4 + 1 / 4) / 3),
                "ece": pytest.approx(1 / 2 - 1 / 3),
                "ece_floor": FLOOR,
            },
            "image": {
                "top1": pytest.approx(2 / 3),
                "top3": pytest.approx(1.0),
                "top5": pytest.approx(1.0),
                "nll": pytest.approx((1 + 1 + 2) * math.log(2) / 3),
                "brier": pytest.approx((5 / 16 + 5 / 16 + 13 / 16) / 3),
                "ece": pytest.approx(2 / 3 - 1 / 2),
                "ece_floor": FLOOR,
            },
        },
        "macro": score(3, 1 / 2, 1 / 4, 1 / 3, 1 / 2),  # of cat and dog
        "categories": {
            "a": score(0, 0.0, None, 0.0, None),
            "cat": score(2, 1.0, 1 / 2, 2 / 3, 0.0),
            "dog": score(1, 0.0, 0.0, 0.0, 1.0),
        },
        "confusion": {"cat": {"cat": 1, "dog": 1}, "dog": {"a": 1}},
    }
    assert result.confusion.tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert left_out == [BROKEN]


def score(
    images: int, precision: float | None, recall: float | None, f1: float | None, called_unknown: float | None
) -> dict[str, Any]:
    shares = {"precision": precision, "recall": recall, "f1": f1, "called_unknown": called_unknown}
    return {"images": images} | {
        name: share if share is None else pytest.approx(share) for name, share in shares.items()
    }


def test_the_object_is_json_and_has_an_auroc_only_with_unknown_images(folders: Path) -> None:
    result = run(folders, unknown=False)
    assert result.auroc is None
    quality = ["top1", "top3", "top5", "nll", "brier", "ece", "ece_floor"]
    rest = ["false_unknown_rate", "fusion", "experts", "macro", "categories", "confusion"]
    assert list(json.loads(json.dumps(result.to_dict()))) == ["n", *quality, *rest]
    assert list(run(folders, unknown=True).to_dict()) == ["n", *quality, "auroc", "detected", *rest]


def test_auroc_by_hand(folders: Path) -> None:
    for known, unknown, auroc in (
        ((0.1, 0.2, 0.3), (0.4, 0.5), 1.0),
        ((0.4, 0.5, 0.6), (0.1, 0.2), 0.0),
        ((0.1, 0.3, 0.5), (0.2, 0.4), 0.5),  # 1 + 2 of 6
        ((0.1, 0.3, 0.3), (0.3, 0.3), 4 / 6),  # twice 1 + ½ + ½
    ):
        novelty = dict(zip(("cat1.png", "cat2.png", "dog1.png", "fox1.png", "fox2.png"), known + unknown, strict=True))
        given = {name: prediction(value, ranking("cat")) for name, value in novelty.items()}
        plain = {name: replace(given[name], novelty=None, distance=2 * value) for name, value in novelty.items()}
        for predictions in (given, plain):
            found = run(folders, unknown=True, predictions={**predictions, "broken.png": BROKEN})
            assert found.auroc == pytest.approx(auroc)


def test_auroc_of_distances_where_one_image_has_no_novelty(folders: Path) -> None:
    """A calibration may appear or vanish meanwhile: novelty and distance are not mixed."""
    distances = {"cat1.png": 0.1, "cat2.png": 0.2, "dog1.png": 0.3, "fox1.png": 0.4, "fox2.png": 0.25}
    given = {
        name: replace(PREDICTIONS[name], novelty=0.9 if name == "cat1.png" else None, distance=distance)
        for name, distance in distances.items()
    }
    result = run(folders, unknown=True, predictions={**given, "broken.png": BROKEN})
    assert result.auroc == pytest.approx(5 / 6)


def test_progress_sees_every_image_once(folders: Path) -> None:
    seen: list[str] = []

    def track(paths: Sequence[Path]) -> Iterator[Path]:
        for path in paths:
            seen.append(path.name)
            yield path

    run(folders, unknown=True, track=track)
    assert sorted(seen) == sorted(PREDICTIONS)


def test_images_of_a_category_do_not_come_together(tmp_path: Path) -> None:
    names = [f"{label}{i}.png" for label in ("cat", "dog", "fox") for i in range(20)]
    for name in names:
        path = tmp_path / ("unknown" if name.startswith("fox") else f"known/{name[:3]}") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    classifier = Given({name: prediction(0.1, ranking(name[:3], "a")) for name in names}, ["cat", "dog"])
    result = of_folders(classifier, tmp_path / "known", tmp_path / "unknown")
    assert result.accuracy.top1 == 1
    assert sorted(classifier.asked) == sorted(names)
    for first in range(0, 60, 12):
        assert {name[:3] for name in classifier.asked[first : first + 12]} == {"cat", "dog", "fox"}


def test_labels_are_the_names_of_the_sub_folders(folders: Path) -> None:
    found = {path.name: label for path, label in labelled_images(folders / "known")}
    assert found == {"cat1.png": "cat", "cat2.png": "cat", "dog1.png": "dog", "broken.png": "dog"}
    (folders / "known" / "beside.png").touch()
    (folders / "known" / "cafe\u0301 ").mkdir()
    (folders / "known" / "cafe\u0301 " / "a.png").touch()
    found = {path.name: label for path, label in labelled_images(folders / "known")}
    assert "beside.png" not in found
    assert found["a.png"] == "café"


def test_labels_that_are_no_category(folders: Path) -> None:
    classifier = Given(PREDICTIONS, ["dog"])
    with pytest.raises(InvalidInputError, match="1 of the labels in the images is no category of here: 'cat'; add"):
        of_folders(classifier, folders / "known")
    assert classifier.asked == []
    for i in range(6):
        (folders / "known" / f"c{i}").mkdir()
        (folders / "known" / f"c{i}" / "a.png").touch()
    with pytest.raises(InvalidInputError, match=r"7 of the labels .*: 'c0', 'c1', 'c2', 'c3', 'c4' …; add"):
        of_folders(classifier, folders / "known")


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cat").mkdir()
    for name in ("flat", "empty", "missing"):
        with pytest.raises(InvalidInputError, match=name):
            labelled_images(tmp_path / name)


def test_images_and_labels_that_do_not_fit() -> None:
    cases: list[tuple[Any, Any]] = [
        ([], []),
        (["cat1.png"], []),
        (["cat1.png"], ["cat", "cat"]),
        (["cat1.png"], [3]),
        (["cat1.png"], [None]),
        ("cat1.png", ["cat"]),
    ]
    for images, labels in cases:
        with pytest.raises(InvalidInputError):
            evaluate(cast("Classifier", Given(PREDICTIONS, ["cat"])), images, labels)


def test_a_sequence_makes_each_image_when_it_is_asked_for_it() -> None:
    class Lazy(Sequence[Path]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            made.append(index)
            return Path(("cat1.png", "cat2.png", "dog1.png")[index])

    made: list[int] = []
    labels = iter(("cat", " cat ", "dog"))
    result = evaluate(cast("Classifier", Given(PREDICTIONS, ["cat", "dog"])), Lazy(), labels)
    assert sorted(made) == [0, 1, 2]
    assert result.truth == ["cat", "cat", "dog"]
    assert result.answers == ["cat", "dog", "a"]  # in the order given
    paths = (Path(name) for name in ("dog1.png", "cat1.png"))
    assert evaluate(cast("Classifier", Given(PREDICTIONS, ["cat", "dog"])), paths, ["dog", "cat"]).truth == [
        "dog",
        "cat",
    ]


def test_images_that_can_none_of_them_be_read(folders: Path) -> None:
    broken = dict.fromkeys(PREDICTIONS, BROKEN)
    with pytest.raises(InvalidInputError, match="no image with a label can be read"):
        run(folders, unknown=True, predictions=broken)
    some = {**PREDICTIONS, "fox1.png": BROKEN, "fox2.png": BROKEN}
    with pytest.raises(InvalidInputError, match="no image of no category can be read"):
        run(folders, unknown=True, predictions=some)
    assert run(folders, unknown=False, predictions=some).n == 3


def test_categories_without_images_cannot_be_evaluated() -> None:
    with pytest.raises(InvalidInputError, match="none of the categories has an image"):
        labelled_images_of([CategoryInput(name="red", texts=["like fire"])])
