"""The report is one file with every number, and escapes all texts."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from tests.evaluation.page import Page, assert_it_needs_nothing_else
from zsvec.evaluation.report import Drawing, Mistake, report_page
from zsvec.evaluation.tables import shown

EVIL = "<script>alert('x')</script>\"&"
RESULTS: dict[str, Any] = {
    "format": 7,
    "set": "caltech24",
    "profile": "offline",
    "created": "2025-11-25 16:40",
    "images": 360,
    "unknown_images": 120,
    "categories": 24,
    "references": {"clip:text": 25, "clip:image": 12345},
    "versions": {"zsvec": "0.1.0", "torch": "2.13.0+cpu"},
    "summary": ["The fusion is right for 93.6 % of the images.", "It is quick."],
    "tables": [
        {
            "id": "accuracy",
            "title": "Accuracy of everyone",
            "paper": "table 2",
            "note": "By bootstrap.",
            "columns": [
                {"key": "top1", "title": "top-1", "unit": "%", "best": "high"},
                {"key": "ece", "title": "calibration error", "unit": "%", "best": "low"},
                {"key": "auroc", "title": "AUROC", "unit": ""},
                {"key": "time", "title": "time", "unit": "ms", "best": "low"},
            ],
            "rows": [
                {
                    "name": "fusion",
                    "values": {"top1": 0.9361, "ece": 0.019, "auroc": 0.99012, "time": 12.345},
                    "interval": {"top1": [0.9112, 0.9561], "ece": (0.011, 0.031)},
                },
                {"name": "clip:text", "values": {"top1": 0.8721, "ece": 0.066, "auroc": None, "time": None}},
                {"name": "dino", "values": {"top1": 0.9358, "time": 8.0}, "interval": {}},
            ],
        },
        {
            "id": "gain",
            "title": "Gain",
            "paper": "",
            "note": "",
            "columns": [{"key": "gain", "title": "gain", "unit": "%", "best": "high"}],
            "rows": [{"name": "fusion", "values": {"gain": -0.0123}, "interval": {"gain": [-0.021, 0.015]}}],
        },
    ],
}


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 20), colour).save(file, "PNG", dpi=(150, 150))
    return file.getvalue()


FIGURES = [Drawing("one", "The first", "Red it is.", png("red")), Drawing("two", "The second", "", png("blue"))]


def written(figures: Sequence[Drawing] = FIGURES, mistakes: Sequence[Mistake] = (), **changes: Any) -> tuple[str, Page]:
    text = report_page({**RESULTS, **changes}, figures, mistakes)
    page = Page(text)
    page.close()
    return text, page


def test_the_page_needs_nothing_else() -> None:
    assert_it_needs_nothing_else(*written(mistakes=[MISTAKE]))


def test_figures_are_embedded() -> None:
    _, page = written()
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    embedded = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in images]
    assert embedded == [figure.png for figure in FIGURES]
    assert [(image["alt"], image["width"]) for image in images] == [("The first", "192"), ("The second", "192")]
    assert "Red it is." in page.text


MISTAKE = Mistake(b"\xff\xd8a", "cat", "dog", 0.876, b"\xff\xd8b", "fox")


def test_mistakes_are_shown_beside_the_nearest_references() -> None:
    _, page = written(figures=[], mistakes=[MISTAKE, Mistake(None, "emu", "ant", 0.5, None, "")])
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    embedded = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in images]
    assert embedded == [MISTAKE.image, MISTAKE.nearest]
    assert [image["alt"] for image in images] == ["image of cat", "reference of fox"]
    assert "is cat, answer dog (88 %); nearest fox" in page.text
    assert page.text.count("no image") == 2
    assert "is emu, answer ant (50 %)" in page.text


def test_every_number_is_shown() -> None:
    _, page = written()
    assert page.rows == [
        ["", "top-1,\xa0%", "calibration error,\xa0%", "AUROC", "time,\xa0ms"],
        ["fusion", "93.6 91.1–95.6", "1.9 1.1–3.1", "0.990", "12.35"],
        ["clip:text", "87.2", "6.6", "–", "–"],
        ["dino", "93.6", "–", "–", "8.00"],
        ["", "gain,\xa0%"],
        ["fusion", "−1.2 −2.1 to 1.5"],
    ]
    for text in (
        "caltech24",
        "offline",
        "2025-11-25 16:40",
        "clip:text",
        "torch",
        "2.13.0+cpu",
        "0.1.0",
        "paper: table 2",
    ):
        assert text in page.text
    for number in ("360", "120", "24", "25", "12,345", "7"):
        assert re.search(rf"(?<![\d,.]){number}(?![\d,.])", page.text), number
    for sentence in (*RESULTS["summary"], "By bootstrap."):
        assert sentence in page.text


def test_the_best_of_a_column_is_bold() -> None:
    _, page = written()
    # Equal texts are equally good; a column without a direction has nothing bold.
    assert page.bold == ["93.6", "1.9", "93.6", "8.00", "−1.2"]


def test_every_part_can_be_jumped_to() -> None:
    _, page = written()
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert ids == ["accuracy", "gain", "one", "two"]
    assert [attributes["href"] for tag, attributes in page.elements if tag == "a"] == [f"#{i}" for i in ids]


def test_nothing_is_taken_for_html() -> None:
    kept = ("key", "best")  # keys, which the page does not show

    def evil(value: Any) -> Any:
        """Returns the value with HTML in each free text."""
        if isinstance(value, dict):
            return {key: item if key in kept else evil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [evil(item) for item in value]
        return f"{value}{EVIL}" if isinstance(value, str) else value

    figures = [replace(figure, title=f"{figure.title}{EVIL}", caption=f"{figure.caption}{EVIL}") for figure in FIGURES]
    wrong = replace(MISTAKE, truth=EVIL, answer=EVIL, nearest_category=EVIL)
    text, page = written(figures, [wrong], **{**evil(RESULTS), "references": {EVIL: 24}, "versions": {EVIL: EVIL}})
    assert "<script" not in text
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in written(mistakes=[MISTAKE])[1].elements}
    for shown_text in ("caltech24", "offline", "fusion", "The first", "Gain", "By bootstrap.", "Red it is.", "AUROC"):
        assert f"{shown_text}{EVIL}" in page.text


def test_nothing_but_the_facts() -> None:
    _, page = written([], tables=[], summary=[], references={}, versions={}, unknown_images=0)
    assert not {"table", "figure", "nav", "ul"} & {tag for tag, _ in page.elements}
    assert "caltech24" in page.text


def test_numbers() -> None:
    expected = {
        (None, "%"): "–",
        (float("nan"), ""): "–",
        (1.0, "%"): "100.0",
        (0.0, "%"): "0.0",
        (-0.0001, "%"): "0.0",
        (-0.5, "%"): "−50.0",
        (0.12345, ""): "0.123",
        (-0.0004, ""): "0.000",
        (3, "ms"): "3.00",
        (1234.567, "ms"): "1,234.57",
        (240, "images"): "240",
        (0.5, "s"): "0.50",
    }
    assert {given: shown(*given) for given in expected} == expected
