"""Commands on a store whose images may belong to several categories."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.cli.support import Cli, Loading, words
from tests.support import COLOURS, coloured, encode, fast_folder, given_images, write_photos
from zsvec.cli import main
from zsvec.inputs.tables import from_csv

pytestmark = pytest.mark.usefixtures("hash_encoders")


def write_pairs(folder: Path, seeds: range) -> Path:
    """Writes pictures of one colour and of two, and a file with their labels."""
    folder.mkdir()
    rows = ["path,label"]
    for colours in (*((colour,) for colour in COLOURS), *combinations(COLOURS, 2)):
        for seed in seeds:
            left, right = (np.asarray(coloured(colour, seed)) for colour in (colours[0], colours[-1]))
            name = f"{'-'.join(colours)}-{seed}.png"
            (folder / name).write_bytes(encode(Image.fromarray(np.concatenate([left[:, :4], right[:, 4:]], axis=1))))
            rows += [f"{name},{colour}" for colour in colours]
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store of several labels an image, made once for the tests of this module."""
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        store = str(folder / "store")
        patch.setattr("zsvec.encoders.load_encoders", Loading())
        patch.chdir(tmp_path_factory.mktemp("pairs"))
        file = write_pairs(Path("pairs"), range(4)) / "labels.csv"
        patch.setattr(sys, "argv", ["zsvec", "--store", store, "import", "--labels", "many", str(file)])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        yield store


@pytest.fixture
def several(imported: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli` on this store, for tests that write nothing to it."""
    monkeypatch.setenv("ZSVEC_STORE", imported)
    return cli


def test_csv_has_a_row_for_each_label_and_can_be_imported(several: Cli) -> None:
    write_pairs(Path("new"), range(20, 22))
    Path("new/broken.png").touch()
    Path("found.csv").write_text(several("classify new --csv").out)
    with zsvec.open() as clf:
        paths = sorted(Path("new").glob("*.png"))
        answers = {one.source: one for one in clf.classify(paths, errors="report")}
    assert any(len(answer.labels) > 1 for answer in answers.values())
    expected = [
        (source, answer.label or "", label)
        for source, answer in answers.items()
        for label, _ in answer.labels or [("", 0)]
    ]
    rows = list(csv.DictReader(io.StringIO(Path("found.csv").read_text(encoding="utf-8"))))
    assert [(row["source"], row["label"], row["labels"]) for row in rows] == expected
    refused: list[Exception] = []
    found = from_csv("found.csv", path="source", label="labels", on_error=refused.append)
    assert {category.name: sorted(map(str, given_images(category))) for category in found} == {
        colour: [str(path) for path in paths if colour in dict(answers[str(path)].labels)] for colour in COLOURS
    }
    assert len(refused) == sum(not answer.labels for answer in answers.values())


def test_one_answer_for_several_labels_is_refused(several: Cli, new: Path) -> None:
    for options in ("", "--csv", "--json"):
        result = several(f"classify --min-accuracy 0.9 {options}", new)
        assert (result.code, result.out) == (2, "")
        assert "needs one category an image" in result.said


def test_info_shows_that_images_have_several_labels(several: Cli) -> None:
    assert ["labels", "many:"] in [row[:2] for row in words(several("info").out)]


def test_evaluation(several: Cli) -> None:
    pytest.importorskip("matplotlib", reason='pip install "zsvec[report]"')
    write_pairs(Path("new"), range(20, 22))
    write_photos(Path("noise"), range(4))
    result = several("evaluate new/labels.csv --unknown noise --csv e.csv --html e.html --json")
    (found,) = result.objects
    assert result.err.splitlines() == ["written: e.csv", "written: e.html"]
    assert (found["n"], found["unknown_images"], found["macro"]["images"]) == (12, 4, 12)
    rows = {row["category"]: row for row in csv.DictReader(io.StringIO(Path("e.csv").read_text(encoding="utf-8")))}
    assert list(rows) == list(COLOURS)
    for name, row in rows.items():
        assert {key: float(row[key]) for key in found["labels"][name]} == found["labels"][name]
    page = Path("e.html").read_text(encoding="utf-8")
    assert "data:image/png" not in page
    assert f"mAP {found['mean_average_precision']:.1%}" in page
    assert several("evaluate new/labels.csv --suite paper").code == 2
    lines = words(several("evaluate new/labels.csv --unknown noise").out)
    mean = ["mean", "12", *(f"{found['macro'][name]:.1%}" for name in ("average_precision", "precision", "recall"))]
    assert [line[:5] for line in lines if line[0] == "mean"] == [mean]
    assert [line[0] for line in lines[2:5]] == list(COLOURS)
    assert f"{found['auroc']:.3f}." in lines[-2]
