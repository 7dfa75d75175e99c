"""The page of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason='pip install "zsvec[report]"')

from tests.evaluation.page import Page
from zsvec.evaluation.evaluate import Evaluation, Judged
from zsvec.evaluation.metrics import Accuracy
from zsvec.evaluation.publish import page_of


def judged(truth: str | None, nearest: str, *, novelty: float | None = 0.2) -> Judged:
    return Judged("a.png", truth, nearest, 0.75, novelty is not None and novelty > 0.5, novelty, 0.5)


def evaluation(*images: Judged, auroc: float | None = None) -> Evaluation:
    known = [image for image in images if image.truth is not None]
    accuracy = Accuracy.of(
        [image.truth != image.nearest for image in known], *np.full((3, len(known)), [[0.75], [0.75], [0.1]])
    )
    detected = None if auroc is None else 0.5
    return Evaluation(len(known), accuracy, {"clip:image": accuracy}, auroc, detected, 0.25, "log_linear", images)


def page(found: Evaluation, name: str = "photos") -> Page:
    read = Page(page_of(found, name=name, profile="offline", references={"clip:image": 12}, version="1.2.3"))
    read.close()
    return read


def test_a_page() -> None:
    images = [judged("cat", "cat"), judged("cat", "dog"), judged("dog", "dog", novelty=0.9), judged("dog", "dog")]
    found = page(evaluation(*images, judged(None, "dog", novelty=0.7), auroc=0.875))
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["fusion (log_linear)"][0] == "75.0"
    assert rows["cat"] == ["2", "100.0", "50.0", "66.7", "0.0"]
    assert rows["dog"] == ["2", "66.7", "100.0", "80.0", "50.0"]
    assert rows["mean"] == ["4", "83.3", "75.0", "73.3", "25.0"]
    assert rows["cat → dog"] == ["1", "50.0"]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert ids == ["accuracy", "categories", "mistakes", "confusion", "reliability", "novelty"]
    for text in ("75.0% of 4 images are right", "50.0% of the images of no category", "0.875", "1.2.3", "photos"):
        assert text in found.text
    assert "Beyond the threshold" in found.text


def test_a_page_without_a_calibration_and_without_mistakes() -> None:
    found = page(evaluation(judged("cat", "cat", novelty=None)))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert ids == ["accuracy", "categories", "confusion", "reliability"]
    assert "images of no category are" not in found.text


def test_without_a_threshold_none_is_shown() -> None:
    unlearned = Judged("a.png", "cat", "cat", 0.75, unknown=False, novelty=0.9, distance=0.5)
    assert "No threshold could be learned" in page(evaluation(unlearned)).text


def test_names_are_no_html() -> None:
    evil = "<script>alert('x')</script><b>"
    found = page(evaluation(judged(f"cat{evil}", f"dog{evil}")), name=evil)
    assert not {"script", "b"} & {tag for tag, _ in found.elements}
    assert f"cat{evil}" in found.text
