"""`zsvec import`: folders, CSV files and COCO annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.support import IMPORTED, Cli, Loading, category, without_time
from tests.support import COLOURS, coloured, encode
from zsvec.curation.references import StoredReferences
from zsvec.errors import StoreError
from zsvec.types import ThresholdProgress

pytestmark = pytest.mark.usefixtures("hash_encoders")
ALL_RED = "colours/red/0.png, colours/red/1.png, colours/red/2.png"


def test_import(cli: Cli, colours: Path) -> None:
    result = cli("import", colours)
    assert (result.code, result.out) == (0, "")
    left_out, summary, progress = result.err.splitlines()
    assert left_out.startswith("left out: cannot read 'colours/red/broken.jpg': it is empty (0 bytes)")
    assert summary.startswith("3 categories, 10 images (1 unreadable) in ")
    assert progress == str(ThresholdProgress(9, 19))


def test_importing_again_embeds_nothing(cli: Cli, colours: Path, hash_encoders: Loading) -> None:
    first = cli("import --json", colours)
    assert [without_time(found) for found in first.objects] == IMPORTED
    assert "left out: " in first.err
    assert hash_encoders.embedded() == 9 + 9 + 3
    again = cli("import --json", colours)
    assert again.objects == first.objects
    (colours / "red" / "0.png").unlink()
    (colours / "red" / "broken.jpg").unlink()
    replaced = cli("import --replace --json", colours).objects
    assert hash_encoders.embedded() == 9 + 9 + 3
    assert without_time(replaced[2]) == category("red", version=2, clip_text=1, clip_image=2, dino_image=2)


def test_folders_in_folders_are_a_tree(cli: Cli, colours: Path) -> None:
    Path("tree/warm").mkdir(parents=True)
    colours.joinpath("red").rename("tree/warm/red")
    colours.joinpath("blue").rename("tree/blue")
    found = cli("import --tree --json tree").objects
    assert [(one["category"], one.get("parent")) for one in found] == [("blue", None), ("red", "warm")]
    assert [one["category"] for one in cli("import --json tree").objects] == ["blue", "warm"]
    Path("labels.csv").write_text("path,label,kind\ntree/blue/0.png,blue,cold\n")
    assert cli("import --tree labels.csv").code == 2
    assert cli("import --parent-column kind tree").code == 2
    assert cli("import --parent-column kind --json labels.csv").objects[0]["parent"] == "cold"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", '{"red": ["like fire", "like blood"], "cat": "a feline"}'),
        ("d.csv", "category,text\nred,like fire\ncat,a feline\nred,like blood\n"),
    ],
)
def test_definitions(cli: Cli, colours: Path, name: str, content: str) -> None:
    Path(name).write_text(content)
    found = {o["category"]: without_time(o) for o in cli("import --json --definitions", name, colours).objects}
    assert found["red"] == category("red", texts=["like fire", "like blood"], clip_text=2, clip_image=3, dino_image=3)
    assert found["cat"] == category("cat", texts=["a feline"], clip_text=1)
    assert found["blue"]["texts"] == ["blue"]


def test_definitions_that_are_no_json(cli: Cli, colours: Path) -> None:
    Path("d.json").write_text("{")
    result = cli("import --definitions d.json", colours)
    assert (result.code, result.out) == (2, "")
    assert "pydantic" not in result.err


def test_csv(cli: Cli, colours: Path) -> None:
    (colours / "red" / "1.png").rename(Path("elsewhere.png"))
    rows = [f"{colour}/{i}.png,{colour}" for colour in COLOURS for i in range(3)]
    (colours / "labels.csv").write_text("\n".join(["path,label", *rows, "red/broken.jpg,red", "red/2.png,green"]))
    result = cli("import --json", colours / "labels.csv")
    assert result.code == 0
    counts = {found["category"]: found["references"]["clip:image"] for found in result.objects}
    assert counts == {"blue": 3, "green": 4, "red": 2}
    notes = result.err.splitlines()
    assert notes[0].startswith("left out: colours/labels.csv, line 9: there is no 'colours/red/1.png': check the path")
    assert notes[1] == "images under several labels: 1, such as colours/red/2.png"
    assert notes[2].startswith("left out: cannot read 'colours/red/broken.jpg': it is empty (0 bytes)")
    assert notes[3] == "images in several categories: 1, such as colours/red/2.png (green, red)"
    assert notes[4].startswith("3 categories, 10 images (1 unreadable) in ")
    assert "10 images (1 unreadable, 9 stored before, or " in cli("import", colours / "labels.csv").err


def test_csv_with_images_in_another_folder(cli: Cli, colours: Path) -> None:
    Path("lists").mkdir()
    Path("lists/labels.tsv").write_text("label\tpath\nred\tred/0.png\nred\t../lists/labels.tsv\n")
    Path("d.json").write_text('{"red": "like fire", "cat": "a feline"}')
    result = cli("import lists/labels.tsv --json --definitions d.json --images", colours)
    texts = [(found["category"], found["texts"]) for found in result.objects]
    assert texts == [("cat", ["a feline"]), ("red", ["like fire"])]
    assert "line 3: 'colours/../lists/labels.tsv' leads out of colours" in result.err
    assert "no images for the definitions of cat" in result.err.splitlines()


@pytest.mark.parametrize("command", ["import", "evaluate"])
def test_csv_of_windows_with_other_columns(filled: Cli, command: str) -> None:
    rows = [rf"7,colours\{colour}\{i}.png,{colour}" for colour in COLOURS for i in range(3)]
    Path("labels.csv").write_text("\r\n".join(['"id","Image, file","class"', *rows]))
    result = filled(f"{command} labels.csv --json --path-column 'Image, file' --label-column class")
    assert (result.code, result.out != "") == (0, True)
    assert "left out" not in result.err
    assert [found["category"] for found in filled("list --json").objects] == [*COLOURS]


def test_unusable_rows_are_counted_and_replace_nothing(cli: Cli, colours: Path) -> None:
    Path("labels.csv").write_text("path,label\ncolours/red/0.png,red\n" + "none.png,red\n" * 30)
    result = cli("import labels.csv")
    notes = result.err.splitlines()
    assert result.code == 0
    assert sum(note.startswith("left out: labels.csv, line ") for note in notes) == 20
    assert notes[20] == "left out: 10 more"
    before = cli("list --json").objects
    result = cli("import labels.csv --replace")
    assert result.code == 2
    assert "labels.csv, line 3: there is no 'none.png'" in result.err
    assert cli("list --json").objects == before
    Path("labels.csv").write_text("path,label\n" + "none.png,red\n")
    assert cli("import labels.csv").code == 2


def test_coco_annotations(cli: Cli, colours: Path) -> None:
    width, height = coloured("red", 0).size
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "iscrowd": crowd} for crowd in (0, 1)]
    content = {
        "images": [{"id": 1, "file_name": "red/0.png", "width": width, "height": height}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "corner"}],
    }
    Path("annotations.json").write_text(json.dumps(content))
    result = cli("import annotations.json --json --images", colours)
    assert [found["references"]["clip:image"] for found in result.objects] == [1]
    assert "1 category, 1 image (0 unreadable) in " in result.err
    result = cli("import annotations.json --json --boxes --images", colours)
    assert [found["references"]["clip:image"] for found in result.objects] == [2]
    assert "left out: annotations.json, annotations[1]: it is a crowd, not one object" in result.err
    assert "colours/red/0.png#xywh=0,0,2,2" in cli("show corner").out


def test_folders_without_images_and_definitions_without_a_folder(cli: Cli, colours: Path) -> None:
    for name in ("empty", "__MACOSX", ".git", "zsvec__catalog", "zsvec__clip"):
        (colours / name).mkdir()
    Path("texts.json").write_text('{"red": "red things", "rde": "red things"}')
    result = cli("import", colours, "--definitions", "texts.json")
    assert result.code == 0
    notes = result.err.splitlines()
    assert "left out, because there are no images in the folders: empty" in notes
    assert "no folder for the definitions of rde" in notes
    assert [found["category"] for found in cli("list --json").objects] == sorted([*COLOURS, "rde"])
    Path("texts.json").write_text('{"empty": "nothing"}')
    notes = cli("import", colours, "--definitions", "texts.json").err.splitlines()
    assert "no images in the folders of the definitions of empty" in notes
    assert "empty" in [found["category"] for found in cli("list --json").objects]
    (colours / "empty").rmdir()
    assert "no images" not in cli("import", colours).err


def test_known_images_nested_images_and_other_files_are_counted(cli: Cli, colours: Path) -> None:
    assert cli("import", colours).code == 0
    (colours / "red" / "more").mkdir()
    (colours / "red" / "more" / "new.png").write_bytes(encode(coloured("red", 77)))
    (colours / "loose.png").write_bytes(encode(coloured("red", 78)))
    for name in ("red/notes.txt", "blue/a.heic", "blue/b.HEIC", "blue/LICENSE"):
        (colours / name).write_bytes(b"no image")
    notes = cli("import", colours).err.splitlines()
    assert "images of no category, because they are in no sub-folder: 1" in notes
    assert "images of sub-folders belong to the category of the folder above: red 1" in notes
    files = "files left out, because they are no images by their names"
    assert f"{files}: 4 (2 .heic, 1 without a suffix, 1 .txt)" in notes
    assert notes[-2].startswith("3 categories, 11 images (1 unreadable, 9 stored before, or the same as another) in ")


def test_unreadable_images_replace_nothing(cli: Cli, colours: Path) -> None:
    assert cli("import", colours).code == 0
    for name in ("blue", "red"):
        min((colours / name).glob("*.png")).unlink()
    result = cli("import --replace", colours)
    summary, left, _ = result.err.splitlines()[-3:]
    assert summary.startswith("2 categories, 6 images (1 unreadable) in ")
    assert left == "left as they were, because images are unreadable: red"
    versions = {found["category"]: found["version"] for found in cli("list --json").objects}
    assert versions == {"blue": 2, "green": 1, "red": 1}  # the same images again are no new version of green


def test_a_folder_of_unreadable_images_is_named_and_no_category(cli: Cli, colours: Path) -> None:
    for name in ("photos of a phone", "[a]"):
        (colours / name).mkdir()
        (colours / name / "a.jpg").write_bytes(b"no image")
    result = cli("import --json", colours)
    assert (result.code, [found["category"] for found in result.objects]) == (0, [*COLOURS])
    summary, note = result.err.splitlines()[-2:]
    assert summary.startswith("3 categories, 12 images (3 unreadable) in ")
    assert note == "not made categories, because no image is readable: [a], photos of a phone"
    Path("texts.json").write_text('{"[a]": "a letter"}')
    assert cli("import", colours, "--definitions", "texts.json").err.splitlines()[-2].endswith(": photos of a phone")
    assert [found["category"] for found in cli("list --json").objects] == ["[a]", *COLOURS]


def test_interrupted(cli: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, categories: Any, *, on_commit: Callable[[Any], None], **options: Any) -> None:
        on_commit(SimpleNamespace(name=next(iter(categories)).name))
        raise KeyboardInterrupt

    monkeypatch.setattr("zsvec.classifier.Classifier.add_categories", interrupted)
    result = cli("import", colours)
    assert result.code == 130
    assert "interrupted: 1 of 3 categories are stored. Repeat the command to go on" in result.err


@pytest.mark.parametrize("command", ["import", "evaluate"])
def test_options_of_a_file(cli: Cli, colours: Path, command: str) -> None:
    Path("labels.csv").write_text("path,label\ncolours/red/0.png,red\n")
    Path("annotations.json").write_text("{}")
    for arguments, message in {
        "colours --images colours": "--images needs a FILE",
        "colours --boxes": "--boxes needs COCO annotations",
        "labels.csv --boxes": "--boxes needs COCO annotations",
        "colours --path-column file": "--path-column and --label-column need a CSV file",
        "annotations.json --label-column class": "--path-column and --label-column need a CSV file",
        "labels.csv --path-column file": "must name the columns file and label. Got 'path,label'",
        "colours/red/0.png": "file that ends with .csv",
        "none.csv": "none.csv",
    }.items():
        result = cli(f"{command} {arguments}")
        assert result.code == 2
        assert message in result.said


def hash_of(cli: Cli, name: str, file: str) -> str:
    (shown,) = cli("show --json", name).objects
    return next(one["hash"] for one in shown["stored"] if one["source"].endswith(file))


@pytest.mark.parametrize(
    ("mending", "noted"),
    [
        ("move red blue {hash}", "  red: 1 image, now in blue (colours/red/0.png)"),
        ("remove red {hash}", "  red: 1 image (colours/red/0.png)"),
        (
            "remove red --yes",
            f"  red (no longer a category): 3 images ({ALL_RED})",
        ),
        (
            "rename red crimson",
            f"  red (no longer a category): 3 images, now in crimson ({ALL_RED})",
        ),
        (
            "merge red blue",
            f"  red (no longer a category): 3 images, now in blue ({ALL_RED})",
        ),
    ],
)
def test_mending_lasts(filled: Cli, colours: Path, mending: str, noted: str, hash_encoders: Loading) -> None:
    assert filled(mending.format(hash=hash_of(filled, "red", "0.png"))).code == 0
    mended = filled("list --json").objects
    assert filled("gc --grace 0").code == 0
    before = hash_encoders.embedded()
    result = filled("import", colours)
    assert result.code == 0
    assert hash_encoders.embedded() == before
    assert filled("list --json").objects == mended
    assert noted in result.err.splitlines()
    assert "unreadable images" not in result.err
    result = filled("import --again", colours)
    assert noted not in result.err.splitlines()
    counts = {found["category"]: found["references"]["clip:image"] for found in filled("list --json").objects}
    assert counts["red"] == 3
    result = filled("import", colours)
    assert noted not in result.err.splitlines()


def test_what_is_left_out_is_counted(filled: Cli, colours: Path) -> None:
    for name in ("0.png", "1.png"):
        filled(f"move red blue {hash_of(filled, 'red', name)}")
    filled("remove green --yes")
    (colours / "green" / "new.png").write_bytes(encode(coloured("green", 77)))
    notes = filled("import", colours).err.splitlines()
    assert "left out, because they or their categories were moved, renamed or removed: 6 images." in notes[1]
    assert notes[-2].startswith("2 categories, 5 images (1 unreadable, 4 stored before, or the same as another) in ")
    assert [found["category"] for found in filled("list --json").objects] == ["blue", "red"]


def test_a_forgotten_image_comes_back(filled: Cli, colours: Path) -> None:
    assert "the next import adds it again" in filled("forget --yes colours/red/0.png").said
    assert filled("import", colours).code == 0
    assert hash_of(filled, "red", "0.png")


def test_an_image_of_another_category_is_named(filled: Cli, colours: Path) -> None:
    (colours / "green" / "copy.png").write_bytes((colours / "red" / "0.png").read_bytes())
    assert (
        "images in several categories: 1, such as colours/green/copy.png (green, red)" in filled("import", colours).err
    )
    assert "images in several categories" not in filled("import", colours).err


def test_a_committed_import_does_not_fail(filled: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the number of requests grow with the references of the changed categories."""
    filled(f"move red blue {hash_of(filled, 'red', '0.png')}")
    (colours / "green" / "copy.png").write_bytes((colours / "red" / "1.png").read_bytes())

    def unreadable(*_: object) -> None:
        raise StoreError("references cannot be read")

    for name in ("of", "holders"):
        monkeypatch.setattr(StoredReferences, name, unreadable)
    result = filled("import", colours)
    assert result.code == 0
    assert "  red: 1 image (colours/red/0.png)" in result.err.splitlines()
    assert "such as colours/green/copy.png (green, red)" in result.err
