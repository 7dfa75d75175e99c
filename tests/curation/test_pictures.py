"""Predictions and audits with pictures, as a notebook shows them."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.support import COLOURS, coloured, encode, isolated, photo  # noqa: F401
from zsvec.curation import pictures
from zsvec.errors import InvalidInputError
from zsvec.testing import HashEncoder
from zsvec.types import Neighbor

pytestmark = pytest.mark.usefixtures("isolated")
EVIL = '<script>alert(1)</script>"><img src=x>'


@pytest.fixture
def clf() -> Iterator[zsvec.Classifier]:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        for i, colour in enumerate(COLOURS):
            images = [coloured(colour, 10 * i + seed).resize((300, 400)) for seed in range(4)]
            classifier.add_category(colour, images=images)
        yield classifier


def shown(html: str) -> list[Image.Image]:
    """The pictures of some HTML, which has no other address, no link and no script."""
    found = re.findall(r'src="([^"]*)"', html)
    assert not re.search(r"<script|<a |href|https?:", html)
    assert all(address.startswith("data:image/jpeg;base64,") for address in found)
    return [Image.open(io.BytesIO(b64decode(address.partition(",")[2]))) for address in found]


def colour_of(image: Image.Image) -> str:
    means = np.asarray(image.convert("RGB")).mean(axis=(0, 1))
    return {0: "red", 1: "green", 2: "blue"}[int(means.argmax())]


def test_a_prediction_has_pictures_of_the_nearest_references(clf: zsvec.Classifier) -> None:
    prediction = clf.classify(coloured("red", 99))
    html = clf.show(prediction)
    assert [colour_of(image) for image in shown(html)] == ["red"] * 3
    assert all(max(image.size) <= 160 and image.height <= 96 for image in shown(html))
    assert shown(prediction._repr_html_()) == []
    assert html._repr_html_() == html
    assert len(repr(html)) < 100


def test_the_classified_image_is_shown_if_it_is_given_or_stored(clf: zsvec.Classifier) -> None:
    image = coloured("blue", 99)
    prediction = clf.classify(image)
    assert len(shown(clf.show(prediction, image))) == 4
    waiting = photo(1)
    assert clf.keep(waiting) is not None
    assert len(shown(clf.show(clf.classify(waiting)))) == 4
    assert len(shown(clf.show(clf.classify(coloured("green", 98)), encode(coloured("green", 98))))) == 4


def test_an_unreadable_image_has_an_error(clf: zsvec.Classifier) -> None:
    (prediction,) = clf.classify([b"nothing"], errors="report")
    assert "not classified" in clf.show(prediction)


def test_several_predictions_are_shown_one_after_another(clf: zsvec.Classifier) -> None:
    predictions = clf.classify([coloured("red", 99), coloured("blue", 98)])
    html = clf.show(predictions)
    assert html == clf.show(predictions[0]) + clf.show(predictions[1])
    assert [colour_of(image) for image in shown(html)] == ["red"] * 3 + ["blue"] * 3
    assert clf.show(tuple(predictions)) == html
    assert clf.show([]) == ""


def test_values_that_are_no_result_are_refused(clf: zsvec.Classifier) -> None:
    image = coloured("red", 99)
    prediction: Any = clf.classify(image)
    found: Any
    for found in ("photo.jpg", image, None, [image], [prediction, None]):
        with pytest.raises(InvalidInputError):
            clf.show(found)
    for several in ([prediction], clf.references.audit()):
        with pytest.raises(InvalidInputError):
            clf.show(several, image)


def test_an_audit_has_pictures_of_its_findings(clf: zsvec.Classifier) -> None:
    wrong, twice = coloured("red", 50), coloured("green", 51)
    clf.add_category("blue", images=[wrong, twice])
    clf.add_category("green", images=[twice])
    audit = clf.references.audit()
    assert audit.duplicates
    html = clf.show(audit)
    assert "duplicates" in html
    assert len(shown(html)) >= 2
    text = audit._repr_html_()
    assert shown(text) == []
    assert "duplicates" in text
    assert len(repr(audit)) < 100


def test_paths_in_a_store_are_not_opened(clf: zsvec.Classifier, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(coloured("green", 1)))
    prediction = clf.classify(coloured("red", 99))
    forged = _with_neighbors(prediction, Neighbor("red", 0.9, str(path), "0" * 64))
    assert shown(clf.show(forged)) == []


@pytest.mark.parametrize("content_hash", [EVIL, "products#17", ""])
def test_forged_hashes_and_texts_are_harmless(clf: zsvec.Classifier, content_hash: str) -> None:
    prediction = clf.classify(coloured("red", 99))
    real = prediction.experts["hash:image"].neighbors[0].hash
    forged = _with_neighbors(prediction, Neighbor(EVIL, 0.9, EVIL, content_hash), Neighbor(EVIL, 0.9, EVIL, real))
    assert len(shown(clf.show(forged))) == 1


def test_forged_copies_are_not_passed_on(clf: zsvec.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = clf.classify(coloured("red", 99))
    comment = io.BytesIO()
    coloured("red", 1).save(comment, "JPEG", comment=b"<script>")
    copies = iter([b"GIF89a<script>", comment.getvalue(), b"x" * 100_000])

    def forged(content_hash: str) -> zsvec.SmallImage:
        return zsvec.SmallImage(hash=content_hash, content=next(copies), width=1, height=1, source="")

    monkeypatch.setattr(clf.references, "small", forged)
    (only,) = shown(clf.show(replace(prediction, hash=None)))
    assert "comment" not in only.info


def test_the_number_of_pictures_is_bounded(clf: zsvec.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURES", 2)
    assert len(shown(clf.show(clf.classify(coloured("red", 99))))) == 2


def _with_neighbors(prediction: zsvec.Prediction, *neighbors: Neighbor) -> zsvec.Prediction:
    expert: Any = replace(prediction.experts["hash:image"], neighbors=neighbors)
    return replace(prediction, experts={"hash:image": expert})
