"""The page of an audit is one file with every finding, and escapes all texts."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.page import Page, assert_it_needs_nothing_else
from zsvec.curation.audit import Audit, Confusion, Duplicates, Outlier, StoredImage, ThinCategory
from zsvec.errors import InvalidInputError
from zsvec.evaluation.report import write_audit
from zsvec.method.quality.label_errors import Suspect

EVIL = "<script>alert('x')</script>\"&"


def image(category: str, digest: str) -> StoredImage:
    return StoredImage(category=category, hash=digest, source=f"{category}/{digest}.jpg")


FOUND = Audit(
    images=1234,
    judged=1200,
    calibrated=True,
    labels=[
        Suspect(category="cat", hash="1", source="cat/1.jpg", probability=0.9876, instead="dog", copied=False),
        Suspect(category="cat", hash="2", source="cat/2.jpg", probability=0.6, instead="fox", copied=True),
    ],
    duplicates=[Duplicates(images=[image("cat", "3"), image("dog", "4")], across=True, likeness=0.98765)],
    outliers=[Outlier(image=image("fox", "5"), similarity=0.1234)],
    thin=[
        ThinCategory(category="emu", images=0, pictures=0, spread=None, uniform=False),
        ThinCategory(category="fox", images=1000, pictures=2, spread=0.0456, uniform=True),
    ],
    confusions=[Confusion(categories=("cat", "dog"), images=[image("dog", "6"), image("cat", "7")])],
)


def written(
    folder: Path, found: Audit = FOUND, picture: Callable[[str], bytes | None] = lambda _: None
) -> tuple[str, Page]:
    path = folder / "audit.html"
    write_audit(path, found, "./store", picture)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    page.close()
    return text, page


def test_it_needs_nothing_else(tmp_path: Path) -> None:
    assert_it_needs_nothing_else(*written(tmp_path))


def test_every_finding_is_shown(tmp_path: Path) -> None:
    _, page = written(tmp_path)
    assert [[" ".join(cell.split()) for cell in row] for row in page.rows] == [
        ["reference", "category", "probably wrong, %", "instead"],
        ["cat/1.jpg 1", "cat", "98.8", "dog"],
        ["cat/2.jpg 2", "cat", "60.0", "fox the same picture is there, too"],
        ["references", "category", "cosine"],
        ["cat/3.jpg 3", "cat", "0.988"],
        ["dog/4.jpg 4", "dog", ""],
        ["reference", "category", "cosine to the nearest"],
        ["fox/5.jpg 5", "fox", "0.12"],
        ["category", "images", "different pictures", "spread"],
        ["emu", "0", "0", "–"],
        ["fox", "1,000", "2", "0.05"],
        ["reference", "category"],
        ["dog/6.jpg 6", "dog"],
        ["cat/7.jpg 7", "cat"],
    ]
    for text in ("./store", "1,234", "1,200", "cat – dog"):
        assert text in page.text
    assert "no calibration" not in page.text


def test_a_picture_is_shown_where_there_is_one(tmp_path: Path) -> None:
    pictures = {"1": b"RIFF....WEBP", "5": b"\xff\xd8\xff\xe0"}
    _, page = written(tmp_path, picture=pictures.get)
    shown = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert shown == [
        f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        for kind, content in zip(("webp", "jpeg"), pictures.values(), strict=True)
    ]
    assert "img" not in {tag for tag, _ in written(tmp_path)[1].elements}


def test_nothing_is_taken_for_html(tmp_path: Path) -> None:
    evil = StoredImage(category=EVIL, hash=EVIL, source=EVIL)
    found = Audit(
        images=1,
        judged=1,
        calibrated=True,
        labels=[Suspect(category=EVIL, hash=EVIL, source=EVIL, probability=1.0, instead=EVIL, copied=True)],
        duplicates=[Duplicates(images=[evil, evil], across=False, likeness=1.0)],
        outliers=[Outlier(image=evil, similarity=0.0)],
        thin=[ThinCategory(category=EVIL, images=1, pictures=1, spread=None, uniform=False)],
        confusions=[Confusion(categories=(EVIL, EVIL), images=[evil])],
    )
    text, page = written(tmp_path, found)
    assert "<script" not in text
    assert page.text.count(EVIL) == 3 + 4 + 2 + 1 + 2 + 2
    write_audit(tmp_path / "evil.html", FOUND, EVIL)
    assert "<script" not in (tmp_path / "evil.html").read_text(encoding="utf-8")


def test_without_findings_and_without_a_calibration(tmp_path: Path) -> None:
    _, page = written(tmp_path, Audit(images=3, judged=0, calibrated=False))
    assert "Nothing is doubtful." in page.text
    assert "no calibration" in page.text
    assert page.rows == []
    _, page = written(tmp_path, replace(FOUND, calibrated=False))
    assert "Nothing is doubtful." not in page.text


def test_a_file_name_that_is_no_unicode(tmp_path: Path) -> None:
    odd = StoredImage(category="a", hash="1", source="caf\udce9.jpg")
    text, _ = written(tmp_path, Audit(images=1, judged=0, calibrated=True, outliers=[Outlier(image=odd, similarity=0)]))
    assert "caf\\udce9.jpg" in text


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    for name in ("missing/audit.html", ".", "a\0b", "x" * 300):
        with pytest.raises(InvalidInputError, match="cannot be written"):
            write_audit(tmp_path / name, FOUND, "./store")
