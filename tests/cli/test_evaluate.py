"""`zsvec evaluate`: figures, tables, labels in files, and pages."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import zsvec
from tests.cli.support import Cli, words
from tests.support import COLOURS, coloured, write_photos
from zsvec.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("hash_encoders")


@pytest.mark.usefixtures("patient")
def test_json(stocked: Cli, colours: Path) -> None:
    noise = write_photos(Path("noise"), range(4))
    (colours / "red" / "broken.jpg").unlink()
    paths = sorted(colours.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    for options, fusion, unknown in (("--unknown noise", None, noise), ("--fusion fixed", "fixed", [])):
        (found,) = stocked(f"evaluate --json {options}", colours).objects
        with zsvec.open(fusion=fusion) as clf:
            expected = evaluate(clf, paths, labels, unknown).to_dict()
        assert found == json.loads(json.dumps(expected))
    assert (found["n"], found["top1"], found["fusion"]) == (9, 1.0, "fixed")


def test_tables(stocked: Cli, colours: Path) -> None:
    write_photos(Path("noise"), range(4))
    result = stocked("evaluate --fusion fixed --unknown noise", colours)
    assert result.code == 0
    assert "left out: cannot read 'colours/red/broken.jpg'" in result.err
    lines = words(result.out)
    assert lines[0] == [*("accuracy", "top-1", "top-3", "top-5"), *("NLL,", "nats", "Brier", "ECE", "its", "floor")]
    (found,) = stocked("evaluate --json --fusion fixed", colours).objects
    last = [f"{found['nll']:.3f}", f"{found['brier']:.3f}", f"{found['ece']:.1%}", f"{found['ece_floor']:.1%}"]
    assert lines[2] == ["fusion", "(fixed)", "100.0%", "100.0%", "100.0%", *last]
    assert {row[0] for row in lines[3:6]} == {"clip:text", "clip:image", "dino:image"}
    assert lines[6] == ["categories", "images", "precision", "recall", "F1", "called", "unknown"]
    assert [row[:5] for row in lines[8:12]] == [
        *([colour, "3", "100.0%", "100.0%", "100.0%"] for colour in COLOURS),
        ["mean", "9", "100.0%", "100.0%", "100.0%"],
    ]
    assert lines[12] == ["is", "\\", "answered", *COLOURS]
    assert lines[14] == ["blue", "3", "·", "·"]
    assert " ".join(lines[-2]) == f"9 images; {found['false_unknown_rate']:.1%} of them are called unknown"
    assert " ".join(lines[-1]).startswith("unknown images: AUROC 1.000; ")


def test_many_categories_have_a_table_of_mistakes(cli: Cli) -> None:
    for i in range(11):
        for folder in ("references", "test"):
            write_photos(Path(folder) / f"c{i:02}", [i])
    shutil.copy("test/c00/0.png", "test/c01/0.png")
    assert cli("import references").code == 0
    out = cli("evaluate test").out
    assert ["c01", "→", "c00", "1", "50.0%"] in words(out)
    assert "\\" not in out


@pytest.mark.usefixtures("patient")
def test_csv_labels(stocked: Cli, colours: Path) -> None:
    (of_the_folder,) = stocked("evaluate --json", colours).objects
    rows = [f"{colour}/{i}.png,{colour}" for colour in COLOURS for i in range(3)]
    Path("lists").mkdir()
    Path("lists/labels.csv").write_text("\n".join(["path,label", *rows, "red/broken.jpg,red", "red/9.png,red"]))
    result = stocked("evaluate lists/labels.csv --json --images", colours)
    assert (result.code, result.objects) == (0, [of_the_folder])
    refused, unreadable = result.err.splitlines()
    assert refused.startswith("left out: lists/labels.csv, line 12: there is no 'colours/red/9.png': check the path")
    assert unreadable.startswith("left out: cannot read 'colours/red/broken.jpg'")
    # An image under two labels counts for each of them, and can be right for one.
    Path("lists/labels.csv").write_text("\n".join(["path,label", *rows, "red/0.png,blue"]))
    result = stocked("evaluate lists/labels.csv --json --images", colours)
    (found,) = result.objects
    assert result.err.splitlines() == ["images under several labels: 1, such as colours/red/0.png"]
    assert (found["n"], found["confusion"]["blue"]) == (10, {"blue": 3, "red": 1})


def test_coco_labels(stocked: Cli, colours: Path) -> None:
    width, height = coloured("red", 0).size
    files = [*(f"{colour}/0.png" for colour in COLOURS), "../labels.json"]
    content = {
        "images": [{"id": i, "file_name": file, "width": width, "height": height} for i, file in enumerate(files)],
        "annotations": [{"image_id": i, "category_id": i % 3, "bbox": [0, 0, width, height]} for i in range(4)],
        "categories": [{"id": i, "name": colour} for i, colour in enumerate(COLOURS)],
    }
    Path("labels.json").write_text(json.dumps(content))
    for options in ("", "--boxes"):
        result = stocked(f"evaluate labels.json --json {options} --images", colours)
        (found,) = result.objects
        assert (found["n"], found["confusion"]) == (3, {colour: {colour: 1} for colour in COLOURS})
        assert "images[3]: 'colours/../labels.json' leads out of colours" in result.err


def test_unusable_labels(stocked: Cli, colours: Path) -> None:
    Path("secret").mkdir()
    shutil.copy(colours / "red" / "0.png", "secret")
    (colours / "link").symlink_to(Path("secret").resolve())
    none = "labels.csv has no image with a label that can be used"
    for content, message in {
        "path,label\n/etc/passwd,red\n": none,
        "path,label\nlink/0.png,red\n": none,
        "path,label\nhttps://example.org/0.png,red\n": none,
        "path,label\n\x1b[31mred/0.png,red\n": none,
        "path,label\nred/0.png,purple\n": "1 of the labels in the images is no category of",
        "path,label\nred/broken.jpg,red\n": "no image with a label can be read",
        "": "the first line of colours/labels.csv must name the columns path and label",
    }.items():
        (colours / "labels.csv").write_text(content)
        result = stocked("evaluate --json", colours / "labels.csv")
        assert (result.code, result.out) == (2, "")
        assert message in result.err
        assert "\x1b" not in result.err


def test_folders_in_folders(stocked: Cli, colours: Path) -> None:
    (of_the_folder,) = stocked("evaluate --json", colours).objects
    Path("tree/warm/very").mkdir(parents=True)
    (colours / "red").rename("tree/warm/very/red")
    for colour in ("blue", "green"):
        (colours / colour).rename(Path("tree") / colour)
    assert stocked("evaluate --json --tree tree").objects == [of_the_folder]
    assert stocked("evaluate tree").code == 2
    Path("labels.csv").write_text("path,label\ntree/blue/0.png,blue\n")
    assert stocked("evaluate --tree labels.csv").code == 2
    assert stocked("evaluate --tree --suite paper --dataset mnist tree").code == 2


def test_csv_and_page(stocked: Cli, colours: Path) -> None:
    pytest.importorskip("matplotlib", reason='pip install "zsvec[report]"')
    shutil.copy(colours / "red" / "0.png", colours / "blue" / "red.png")
    (colours / "red" / "broken.jpg").unlink()
    result = stocked("evaluate --csv e.csv --html e.html --json", colours)
    assert result.code == 0
    assert result.err.splitlines() == ["written: e.csv", "written: e.html"]
    (found,) = result.objects
    rows = {row["category"]: row for row in csv.DictReader(io.StringIO(Path("e.csv").read_text(encoding="utf-8")))}
    assert list(rows) == list(COLOURS)
    assert {name: rows["blue"][f"answered {name}"] for name in COLOURS} == {"blue": "3", "green": "0", "red": "1"}
    for name, row in rows.items():
        assert {key: float(row[key]) for key in found["categories"][name]} == found["categories"][name]
    page = Path("e.html").read_text(encoding="utf-8")
    assert "blue → red" in page
    assert "colours" in page
    assert page.count("data:image/png;base64") == 3


def test_a_page_needs_its_extra(stocked: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zsvec.evaluation.publish", None)
    result = stocked("evaluate --html e.html", colours)
    assert result.code == 1
    assert 'is needed for a report: pip install "zsvec[report]"' in result.err
