"""The suite on pictures of colours: every number is computed again from the predictions, in plain Python."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image

import zsvec
from tests.support import encode, isolated  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.encoders import BatchEncoder
from zsvec.errors import InvalidInputError
from zsvec.evaluation import labelled_images, metrics, study
from zsvec.evaluation.publish import publish
from zsvec.evaluation.study import Embeddings
from zsvec.evaluation.suite import DRAWS, Suite, quality, run
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.method.calibrate.fit import calibration_floor
from zsvec.types import Fingerprint, Modality

COLOURS = {"red": (200, 30, 30), "green": (30, 190, 40), "blue": (40, 40, 210), "grey": (120, 120, 120)}
STRANGE = (250, 240, 20)


class Colours(BatchEncoder):
    """Embeds the mean colour of an image, and the colour in a text; counts embedded images."""

    def __init__(self, name: str, modalities: tuple[Modality, ...], weight: float) -> None:
        fingerprint = Fingerprint(model=f"colours/{weight}", revision=None, dim=4, preprocessing="mean")
        super().__init__(name, fingerprint, modalities=modalities)
        self.weight = weight
        self.embedded = 0

    def embed(self, batch: Any, modality: Modality) -> ArrayLike:
        if modality == "text":
            return [self._vector(COLOURS[text]) for text in batch]
        self.embedded += len(batch)
        return [self._vector(np.asarray(image).reshape(-1, 3).mean(axis=0)) for image in batch]

    def _vector(self, colour: ArrayLike) -> np.ndarray:
        return np.append((np.asarray(colour, dtype=float) - 127) / 127, self.weight)


def write_colours(folder: Path, counts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(counts):
            pixels = np.clip(random.normal(colour, 40, (6, 8, 3)) + random.normal(0, 45, 3), 0, 255)
            (folder / name / f"{i}.png").write_bytes(encode(coloured_pixels(pixels)))


def coloured_pixels(pixels: Any) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def write_folders(folder: Path) -> None:
    write_colours(folder / "references", 7, 0)
    write_colours(folder / "photos", 6, 1)
    (folder / "unknown").mkdir()
    random = np.random.default_rng(2)
    for i in range(9):
        pixels = np.clip(random.normal(STRANGE, 30, (6, 8, 3)), 0, 255)
        (folder / "unknown" / f"{i}.png").write_bytes(encode(coloured_pixels(pixels)))


def two_colours() -> list[Colours]:
    return [Colours("clip", ("text", "image"), 1.0), Colours("dino", ("image",), 0.1)]


@contextmanager
def opened(folders: Path, encoders: list[Colours]) -> Iterator[Classifier]:
    """A store of the references."""
    inputs = [CategoryInput(name=name, images=sorted((folders / "references" / name).iterdir())) for name in COLOURS]
    with zsvec.open(":memory:", encoders=encoders) as classifier:
        classifier.add_categories(inputs)
        yield classifier


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    return tmp_path


@pytest.fixture
def encoders() -> list[Colours]:
    return two_colours()


@pytest.fixture
def classifier(folders: Path, encoders: list[Colours], monkeypatch: pytest.MonkeyPatch) -> Iterator[Classifier]:
    """A classifier with a new store, for a suite with few draws."""
    monkeypatch.setattr("zsvec.evaluation.suite.DRAWS", 1)
    monkeypatch.setattr(metrics, "interval_of_auroc", partial(metrics.interval_of_auroc, draws=10))
    with opened(folders, encoders) as classifier:
        yield classifier


@dataclass(frozen=True)
class Evaluated:
    """Result and page of the whole suite."""

    classifier: Classifier
    found: Suite
    page: Path


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    """The suite with all draws, run once for the module."""
    folders = tmp_path_factory.mktemp("colours")
    write_folders(folders)
    with opened(folders, two_colours()) as classifier:
        found = suite(classifier, folders)
        yield Evaluated(classifier, found, publish(found, folders / "report"))


def suite(classifier: Classifier, folders: Path, **options: Any) -> Suite:
    return run(
        classifier,
        labelled_images(folders / "photos"),
        find_images(folders / "unknown"),
        folder=folders / "report",
        name="colours",
        **options,
    )


def pairs_right(scores: list[float], positive: list[bool]) -> float:
    """Returns the AUROC as the share of pairs in the right order, ties counting half."""
    highs = [score for score, is_in in zip(scores, positive, strict=True) if is_in]
    lows = [score for score, is_in in zip(scores, positive, strict=True) if not is_in]
    return statistics.fmean((high > low) + 0.5 * (high == low) for high in highs for low in lows)


def again(images: list[dict[str, Any]], said: dict[str, Any], splits: list[list[str]]) -> dict[str, float]:
    """Returns the metrics of a row, from its predictions."""
    where = [i for i, image in enumerate(images) if image["category"] is not None]
    known = [images[i] for i in where]
    ranked = [[said["categories"][c] for c in said["top"][i]] for i in where]
    values = {
        f"top{k}": statistics.fmean(image["category"] in names[:k] for image, names in zip(known, ranked, strict=True))
        for k in (1, 3, 5)
    }
    gaps: Counter[int] = Counter()
    for image, names, probability in zip(known, ranked, [said["probability"][i] for i in where], strict=True):
        gaps[max(0, math.ceil(probability * 15) - 1)] += (image["category"] == names[0]) - probability
    values["ece"] = sum(map(abs, gaps.values())) / len(known)
    values["ece_floor"] = calibration_floor(np.array([said["probability"][i] for i in where]))
    own = [said["true_probability"][i] for i in where]
    values["nll"] = -statistics.fmean(map(math.log, own))
    values["brier"] = statistics.fmean(said["sum_of_squares"][i] - 2 * p + 1 for i, p in zip(where, own, strict=True))
    values["auroc"] = pairs_right(said["novelty"], [image["category"] is None for image in images])
    values["paper_auroc"] = statistics.fmean(
        pairs_right([scores[i] for i in where], [image["category"] not in names for image in known])
        for scores, names in zip(said["unknown_scores"], splits, strict=True)
    )
    return values


def test_every_number_can_be_computed_from_the_predictions(evaluated: Evaluated) -> None:
    page = evaluated.page
    assert page.read_text(encoding="utf-8").startswith("<!")
    results = json.loads((page.parent / "results.json").read_text(encoding="utf-8"))
    predictions = json.loads((page.parent / "predictions.json").read_text(encoding="utf-8"))
    splits = results["splits"]["known"]
    assert len(predictions["images"]) == 24 + 9
    checked = 0
    for table in results["tables"]:
        for row in table["rows"]:
            metrics_of_row = [
                again(predictions["images"], said, splits)
                for name, said in predictions["rows"].items()
                if name == f"{table['id']}/{row['name']}"
                or (
                    (row["name"].startswith("one reference image, ") and name.startswith(f"{table['id']}/one, "))
                    and name.split(", ")[1] == row["name"].split(", ")[1]
                )
            ]
            if table["id"] == "stages":
                assert not metrics_of_row
                continue
            assert len(metrics_of_row) == (DRAWS if row["name"].startswith("one reference image") else 1), row["name"]
            for key, value in row["values"].items():
                assert value == pytest.approx(statistics.fmean(values[key] for values in metrics_of_row), abs=1e-9), key
                checked += 1
            for key, (low, high) in row["interval"].items():
                assert low <= row["values"][key] <= high
    assert checked > 200


def test_the_tables_of_the_paper(evaluated: Evaluated) -> None:
    results = evaluated.found.results
    tables = {table["id"]: {row["name"]: row["values"] for row in table["rows"]} for table in results["tables"]}
    assert [table["paper"] for table in results["tables"]] == [
        "table 2",
        "tables 3 and 4",
        "tables 5 and 6",
        "table 7",
        "section 4.3.3",
        "table 8",
    ]
    assert len(tables["components"]) == 2 * (2**3 - 1)
    assert tables["single"]["fusion as in the paper"] == tables["strategies"]["inverse_entropy, fixed temperatures"]
    assert tables["stages"]["total"]["ms"] == pytest.approx(
        sum(values["ms"] for stage, values in tables["stages"].items() if stage != "total")
    )
    assert set(results["curves"]) == {"fusion by default", "fusion as in the paper", "clip:image", "dino:image"}
    assert results["curves"]["dino:image"]["counts"] == [1, 2, 3, 5, 7]
    assert tables["quality"]["50% under a wrong category"]["ece"] > tables["quality"]["as they are"]["ece"]


def test_the_default_row_equals_the_classifier(evaluated: Evaluated) -> None:
    found, classifier = evaluated.found, evaluated.classifier
    name = next(name for name in found.predictions["rows"] if name.startswith("single/fusion by default"))
    said = found.predictions["rows"][name]
    classifier.calibrate()
    images = [image["source"] for image in found.predictions["images"]]
    predictions = classifier.classify(images)
    for prediction, novelty in zip(predictions, said["novelty"], strict=True):
        assert prediction.novelty == pytest.approx(novelty, abs=1e-6)
    for prediction, top, probability in zip(predictions, said["top"], said["probability"], strict=True):
        assert prediction.nearest == said["categories"][top[0]]
        assert prediction.probability == pytest.approx(probability, abs=1e-6)
    assert [prediction.unknown for prediction in predictions] == said["unknown"]


def test_batches_are_mixed_and_answers_in_order(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    made = evaluated.found.study
    sample, scoring = made.sample, made.scoring
    whole = made.answers(made.references)
    monkeypatch.setattr(study, "_BATCH", 8)
    asked: list[list[str | None]] = []

    def scores(self: Any, found: Any) -> Any:
        vectors = sample.vectors["clip"]
        asked.append([sample.truth[np.abs(vectors - query).max(axis=1).argmin()] for query in found.queries["clip"]])
        return plain(self, found)

    plain = type(scoring).scores
    monkeypatch.setattr(type(scoring), "scores", scores)
    batches = made.answers(made.references)
    assert [len(batch) for batch in asked] == [8, 8, 8, 8, 1]
    assert all(len(set(batch)) > 1 for batch in asked[:4])
    np.testing.assert_allclose(batches.probabilities, whole.probabilities, atol=1e-6)
    np.testing.assert_allclose(batches.novelty, whole.novelty, atol=1e-6)


def test_images_and_blurred_references_are_embedded_once(evaluated: Evaluated) -> None:
    encoder = cast("Colours", evaluated.classifier.encoders["clip"])
    before = encoder.embedded
    cache = Embeddings(evaluated.page.parent / "embeddings", evaluated.classifier)
    cache.of(evaluated.found.images, on_error=lambda *_: None)
    quality(evaluated.found.study, cache, evaluated.classifier.settings.image_limits())
    assert encoder.embedded == before


def test_references_without_files_are_not_blurred(evaluated: Evaluated, tmp_path: Path) -> None:
    study = evaluated.found.study
    gone = {
        expert: replace(stored, sources=("gone.png", *stored.sources[1:]))
        for expert, stored in study.references.items()
    }
    limits = evaluated.classifier.settings.image_limits()
    table = quality(replace(study, references=gone, predictions={}), Embeddings(tmp_path, evaluated.classifier), limits)
    assert not any("blurred" in row["name"] for row in table["rows"])
    assert "not blurred" in table["note"]


def test_a_label_that_is_no_category_is_refused(classifier: Classifier, folders: Path) -> None:
    (folders / "photos" / "red").rename(folders / "photos" / "crimson")
    with pytest.raises(InvalidInputError, match="'crimson'"):
        suite(classifier, folders)


def test_photos_of_one_category_and_none_of_no_category(classifier: Classifier, folders: Path) -> None:
    photos = [(path, label) for path, label in labelled_images(folders / "photos") if label == "red"]
    found = run(classifier, photos, folder=folders / "report", name="reds")
    values = [row["values"] for table in found.results["tables"] for row in table["rows"]]
    assert all(row.get("paper_auroc") is None and row.get("auroc") is None for row in values)
    assert publish(found, folders / "report").is_file()


def test_categories_by_name_alone_among_others(classifier: Classifier, folders: Path) -> None:
    for name in ("red", "green"):
        classifier.remove_category(name)
        classifier.add_category(name, texts=[name])
    assert publish(suite(classifier, folders), folders / "report").is_file()


def test_a_store_of_texts_has_no_tables_of_reference_images(classifier: Classifier, folders: Path) -> None:
    for name in COLOURS:
        classifier.remove_category(name)
        classifier.add_category(name, texts=[name])
    found = suite(classifier, folders)
    assert [table["id"] for table in found.results["tables"]] == ["single", "components", "strategies", "stages"]
    assert found.results["curves"] == {}
    assert publish(found, folders / "report").is_file()


def test_a_store_of_one_category(folders: Path, encoders: list[Colours]) -> None:
    with zsvec.open(":memory:", encoders=encoders) as classifier:
        classifier.add_category("red", images=sorted((folders / "references" / "red").iterdir()))
        photos = [(path, label) for path, label in labelled_images(folders / "photos") if label == "red"]
        assert publish(run(classifier, photos, folder=folders / "r", name="reds"), folders / "r").is_file()


def test_a_report_in_the_place_of_a_file_is_refused_before_anything_is_embedded(
    classifier: Classifier, encoders: list[Colours], folders: Path
) -> None:
    (folders / "report").touch()
    before = encoders[0].embedded
    with pytest.raises(InvalidInputError, match="report"):
        suite(classifier, folders)
    assert encoders[0].embedded == before


def test_images_that_are_no_files_are_numbered_and_shown(classifier: Classifier, folders: Path) -> None:
    photos = [(np.asarray(load_image(path)), label) for path, label in labelled_images(folders / "photos")]
    found = run(classifier, photos, folder=folders / "report", name="arrays")
    assert [image["source"] for image in found.predictions["images"]] == [f"arrays/{i}" for i in range(24)]
    publish(found, folders / "report")
    results = json.loads((folders / "report" / "results.json").read_text(encoding="utf-8"))
    default = next(row for row in results["tables"][0]["rows"] if row["name"].startswith("fusion by default"))
    page = (folders / "report" / "report.html").read_text(encoding="utf-8")
    wrong = round(24 * (1 - default["values"]["top1"]))
    assert wrong > 0
    assert page.count("data:image/jpeg") == 2 * wrong


def test_a_link_in_the_folder_leads_nowhere(evaluated: Evaluated, tmp_path: Path) -> None:
    for name in ("results.json", "predictions.json", "confusion.png", "reliability.png", "report.html"):
        report, treasure = tmp_path / f"of {name}", tmp_path / "treasure"
        report.mkdir()
        treasure.write_text("mine")
        (report / name).symlink_to(treasure)
        with pytest.raises(InvalidInputError, match="leads out of"):
            publish(evaluated.found, report)
        assert treasure.read_text() == "mine"


def test_a_link_in_the_place_of_the_embeddings_leads_nowhere(
    classifier: Classifier, folders: Path, tmp_path: Path
) -> None:
    (folders / "report").mkdir()
    (tmp_path / "treasure").mkdir()
    (folders / "report" / "embeddings").symlink_to(tmp_path / "treasure")
    with pytest.raises(InvalidInputError, match="leads out of"):
        suite(classifier, folders)
    assert list((tmp_path / "treasure").iterdir()) == []
