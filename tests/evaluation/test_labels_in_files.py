"""Photographs are evaluated by labels in files as by folders; objects in boxes as photographs of their own."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import zsvec
from tests.support import isolated  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet
from zsvec.errors import InvalidInputError
from zsvec.evaluation import Evaluation, evaluate, labelled_images, labelled_images_of
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.coco import from_coco
from zsvec.inputs.folders import read_categories
from zsvec.inputs.tables import from_csv

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[3] / "shared" / "data") / "caltech24"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data"
)


@pytest.fixture
def clf(load_once: Callable[..., EncoderSet], monkeypatch: pytest.MonkeyPatch) -> Iterator[Classifier]:
    monkeypatch.setattr("zsvec.encoders.load_encoders", load_once)
    with zsvec.open(":memory:", profile="offline") as opened:
        opened.add_categories(
            CategoryInput(name=one.name, images=list(one.images)[:5])
            for one in read_categories(DATA / "references")[::4]
        )
        yield opened


def photos(clf: Classifier, number: int) -> list[tuple[Path, str]]:
    names = {category.name for category in clf.categories()}
    found = [(path, name) for path, name in labelled_images(DATA / "photos") if name in names]
    return [pair for name in sorted(names) for pair in [one for one in found if one[1] == name][:number]]


def judged(clf: Classifier, labelled: list[Any]) -> Evaluation:
    return evaluate(clf, *zip(*labelled, strict=True))


@needs_data
def test_photographs_in_a_csv_are_those_of_the_folders(clf: Classifier) -> None:
    labelled = photos(clf, 4)
    with Path("labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "path"), *((name, path.relative_to(DATA)) for path, name in labelled)])
    by_file = judged(clf, labelled_images_of(from_csv("labels.csv", DATA)))
    assert by_file.to_dict() == judged(clf, labelled).to_dict()
    assert by_file.n == 24
    assert by_file.accuracy.top1 > 0.8


@needs_data
def test_photographs_side_by_side_are_told_by_their_boxes(clf: Classifier) -> None:
    labelled = photos(clf, 4)
    names = sorted({name for _, name in labelled})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(4):  # each shows a photograph of each category
        pictures = [Image.open(path).convert("RGB") for path, _ in labelled[number::4]]
        scene = Image.new("RGB", (sum(one.width for one in pictures), max(one.height for one in pictures)))
        left = 0
        for position, one in enumerate(pictures):
            scene.paste(one, (left, 0))
            annotations.append({"image_id": number, "category_id": position, "bbox": [left, 0, one.width, one.height]})
            left += one.width
        scene.save(f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": scene.width, "height": scene.height})
    categories = [{"id": position, "name": name} for position, name in enumerate(names)]
    Path("scenes.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))

    by_box = judged(clf, labelled_images_of(from_coco("scenes.json", boxes=True)))
    alone = judged(clf, labelled)
    assert by_box.n == alone.n == 24
    assert by_box.accuracy.top1 == alone.accuracy.top1 > 0.8
    assert by_box.categories == alone.categories
    with pytest.raises(InvalidInputError, match="it shows 6 categories"):
        from_coco("scenes.json")


def test_categories_without_images_cannot_be_evaluated() -> None:
    with pytest.raises(InvalidInputError, match="none of the categories has an image"):
        labelled_images_of([CategoryInput(name="red", texts=["like fire"])])
