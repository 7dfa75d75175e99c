"""The commands that add, show, change and remove categories, and undo it."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.color import ColorSystem

from tests.cli.support import IMPORTED, Cli, Loading, Result, add_images, category, without_time, words
from tests.support import COLOURS
from zsvec.cli import output
from zsvec.cli.pictures import pictures_of, write_sheet
from zsvec.inputs.images import content_hash
from zsvec.store import open_store
from zsvec.types import SmallImage, StoredReference, ThresholdProgress

pytestmark = pytest.mark.usefixtures("hash_encoders")


def test_add(cli: Cli, colours: Path, new: Path) -> None:
    result = cli("add 'red panda' --text 'a small mammal' --text 小熊猫 --json --image", new / "red.png")
    expected = category("red panda", texts=["a small mammal", "小熊猫"], clip_text=2, clip_image=1, dino_image=1)
    assert (result.code, result.err) == (0, "")
    assert [without_time(found) for found in result.objects] == [expected]
    result = cli("add 'red panda' --json --image", colours / "blue", "--image", new / "red.png")
    assert [without_time(found) for found in result.objects] == [
        expected | {"version": 2, "references": {"clip:text": 2, "clip:image": 4, "dino:image": 4}}
    ]
    result = cli("add 'red panda' --replace --json --text 'not a bear'")
    assert [without_time(found) for found in result.objects] == [
        category("red panda", version=3, texts=["not a bear"], clip_text=1, clip_image=4, dino_image=4)
    ]
    header, _, row = words(cli("add red_panda").out)
    assert header == ["category", "images", "texts", "updated", "definition"]
    assert (row[:3], row[-2:]) == (["red_panda", "0", "1"], ["red", "panda"])


def test_a_parent_is_set_shown_and_removed(cli: Cli) -> None:
    (added,) = cli("add robin --parent 'animal > bird' --json").objects
    assert added["parent"] == "animal > bird"
    assert "parent" not in cli("add car --json").objects[0]
    header, _, *rows = words(cli("list").out)
    assert header[:3] == ["category", "parent", "images"]
    assert [row[:4] for row in rows] == [["car", "0", "1", rows[0][3]], ["robin", "animal", ">", "bird"]]
    (shown,) = cli("show robin --json").objects
    assert shown["parent"] == "animal > bird"
    assert cli("set robin --parent bird --json").objects[0]["parent"] == "bird"
    assert "parent" not in cli("set robin --parent '' --json").objects[0]
    assert cli("set robin --parent robin").code == 2
    assert cli("set robin").code == 2


def test_an_unreadable_image_adds_nothing(cli: Cli, new: Path) -> None:
    result = cli("add red --image", new / "red.png", "--image", "missing.png")
    expected = "zsvec: cannot read 'missing.png': No such file or directory; check the path and its permissions\n"
    assert result == Result(1, "", expected)
    assert cli("list --json").objects == []


def test_a_folder_without_images_makes_no_category_by_its_name(cli: Cli, new: Path, hash_encoders: Loading) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("no image")
    for command in ("add cat --image empty", "add cat --replace --image empty", "add cat --image empty --image empty"):
        result = cli(command)
        assert (result.code, result.out) == (2, "")
    assert not hash_encoders.embedded()
    assert cli("list --json").objects == []
    assert cli("add cat --text feline --image empty --json").objects[0]["texts"] == ["feline"]
    assert cli("add dog --image empty --image", new / "red.png").code == 0
    assert cli("add fox --json").objects[0]["texts"] == ["fox"]


def test_list(stocked: Cli) -> None:
    result = stocked("list --json")
    assert (result.code, result.err) == (0, "")
    assert [without_time(found) for found in result.objects] == IMPORTED
    result = stocked("list")
    assert (result.code, result.err) == (0, f"{ThresholdProgress(9, 19)}\n")
    header, _, *rows = words(result.out)
    assert header == ["category", "images", "texts", "updated", "definition"]
    assert [(*row[:3], row[-1]) for row in rows] == [(colour, "3", "1", colour) for colour in COLOURS]


def test_add_list_import_and_info_say_how_far_the_threshold_is(cli: Cli, colours: Path, new: Path) -> None:
    def said(command: str, *more: str | Path) -> str:
        result = cli(command, *more)
        assert result.code == 0
        notes = result.err.splitlines()
        assert cli("list").err.splitlines() == notes[-1:]
        rows = [" ".join(row[1:]) for row in words(cli("info").out) if row[0] == "threshold"]
        assert rows == [note for note in notes[-1:] if " of " in note]
        return notes[-1] if notes else ""

    too_few = "your images cannot tell yet which images are unknown: add images to at least two categories"
    assert said("add cat --text 'a feline'") == said("add dog") == too_few
    assert said("add red --image", new / "red.png") == str(ThresholdProgress(0, 19, one_scene=1))
    assert said("import", colours) == str(ThresholdProgress(10, 19))
    assert cli("calibrate --false-unknown-rate 0.25").code == 0
    add_images(colours, range(3, 5))
    result = cli("import", colours)
    assert not [line for line in result.err.splitlines() if "unknown images" in line]
    assert cli("list").err == ""
    assert "threshold" not in cli("info").out


def test_list_of_a_store_without_a_calibration_says_what_to_do(
    cli: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    assert cli("import", colours).code == 0
    assert cli("list").err == "your images cannot tell yet which images are unknown: run `zsvec calibrate`\n"


def test_list_of_nothing(cli: Cli) -> None:
    assert cli("add cat").code == cli("remove cat").code == 0
    assert cli("list --json") == Result(0, "", "")
    result = cli("list")
    assert (result.code, result.out) == (0, "")
    assert "no categories in " in result.err
    assert "zsvec import" in result.err


@pytest.mark.parametrize("command", ["list", "list --json", "show cat", "info --json", "gc"])
def test_a_missing_store(cli: Cli, command: str) -> None:
    store = os.environ["ZSVEC_STORE"]
    expected = "zsvec: there is no store in {} (namespace zsvec) yet: `zsvec import` and `zsvec add` make it\n"
    assert cli(command) == Result(1, "", expected.format(f"the missing folder {store}"))
    assert not Path(store).exists()
    Path("photos").mkdir()
    assert cli(f"--store photos {command}") == Result(1, "", expected.format("photos"))
    assert not list(Path("photos").iterdir())


def test_show(stocked: Cli) -> None:
    (found,) = stocked("show red --json").objects
    images = [f"colours/red/{seed}.png" for seed in range(3)]
    assert found.pop("metadata") == {}
    stored = [(one["modality"], one["source"], one["experts"]) for one in found.pop("stored")]
    assert stored[0] == ("text", "a photo of a red", ["clip:text"])
    assert stored[1:] == [("image", path, ["clip:image", "dino:image"]) for path in images]
    assert without_time(found) == IMPORTED[2]
    result = stocked("show red")
    assert (result.code, result.err) == (0, "")
    assert words(result.out)[2][:3] == ["red", "3", "1"]
    assert all(expected in result.out for expected in ("a photo of a red", *images))


def test_show_names_dates_and_authors(cli: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann [bold]")
    begun = datetime.now(UTC).replace(microsecond=0)
    assert cli("import", colours).code == 0
    (found,) = cli("show red --json").objects
    assert {one["by"] for one in found["stored"]} == {"Ann [bold]"}
    assert all(begun <= datetime.fromisoformat(one["added"]) <= datetime.now(UTC) for one in found["stored"])
    shown = cli("show red").out
    assert "Ann [bold]" in shown
    assert all(one["hash"][:12] in shown for one in found["stored"])


def test_contact_sheet(stocked: Cli) -> None:
    result = stocked("show red --sheet sheet.html")
    assert (result.code, result.err) == (0, "the contact sheet is sheet.html\n")
    page = Path("sheet.html").read_text(encoding="utf-8")
    assert page.count('<img alt="" src="data:image/jpeg;base64,') == 3
    assert "a photo of a red" in page
    assert "http" not in page.replace("http-equiv", "")  # needs no other file
    result = stocked("show red --sheet sheet.pdf")
    assert (result.code, result.out) == (2, "")
    result = stocked("show red --sheet missing/sheet.html")
    assert (result.code, result.out) == (2, "")
    assert "there is no folder missing" in result.err


def test_contact_sheet_without_copies(cli: Cli, colours: Path) -> None:
    assert cli("import --keep-images none", colours).code == 0
    result = cli("show red --sheet sheet.html")
    assert result.err == "the contact sheet is sheet.html; of 3 images the store has no copy\n"
    assert '<div class="none">' in Path("sheet.html").read_text(encoding="utf-8")


def test_a_contact_sheet_escapes_all_texts(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\n\"'&"
    pictures = pictures_of([StoredReference(category=evil, hash=evil, modality="image", source=evil, by=evil)])
    small = SmallImage(hash=evil, content=b"GIF89a<script>", width=1, height=1, source=evil)
    write_sheet(tmp_path / "a.html", evil, pictures, lambda _: small, [evil])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") == 6  # title twice, text, hash, source and author


def test_pictures_in_a_terminal(stocked: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stocked("show red --pictures")
    assert (result.code, result.out) == (2, "")
    assert "this terminal has no colours for pictures" in result.err
    monkeypatch.setattr(output.out, "_color_system", ColorSystem.TRUECOLOR)
    monkeypatch.setattr(output.out, "_force_terminal", True)
    shown = stocked("show red --pictures").out
    reds = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;\d+;\d+;\d+m▀", shown)
    assert len(reds) == 3 * 8 * 3  # three pictures of 8 by 6 pixels
    assert all(int(red) > 150 > 100 > int(green) for red, green, _ in reds)


def test_remove(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled("remove ' red '") == Result(0, "", "removed  red \n")
    assert [found["category"] for found in filled("list --json").objects] == ["blue", "green"]
    for command in ("remove", "show"):
        result = filled(f"{command} gren")
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("zsvec: there is no category 'gren' in ")
        assert result.err.endswith("did you mean 'green'?\n")
        assert "did you mean" not in filled(f"{command} xyz").err
    monkeypatch.setattr("zsvec.cli.app.is_terminal", lambda: True)
    for answer in ("n\n", "", "y\n"):
        assert "green" in filled("list").out
        result = filled("remove green", stdin=answer)
        assert result.code == (0 if answer == "y\n" else 1)
        assert "Remove 'green' and its 3 images and 1 text?" in result.err
    assert filled("remove --yes blue").code == 0
    assert filled("list --json").objects == []


def test_history_and_undo(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    (imported,) = filled("history --json").objects
    assert (imported["what"], imported["categories"], imported["undone"]) == ("import", ["blue", "green", "red"], False)
    before = filled("list --json").objects
    filled("rename red crimson")
    filled("remove blue")
    _, _, *rows = words(filled("history").out)
    assert [row[1] for row in rows] == ["remove", "rename", "import"]
    assert [found["what"] for found in filled("history crimson --json").objects] == ["rename"]
    result = filled("history crimsom")
    assert (result.code, result.out) == (2, "")
    assert "did you mean 'crimson'?" in result.err
    said = filled("undo --category crimson").err
    assert re.fullmatch(
        r"undone: rename of 'crimson', 'red' \(3 images, 20.*, by Ann\); redo with `zsvec undo [0-9a-f]{8}`\n", said
    )
    assert filled("undo --json").objects[0]["what"] == "remove"
    after = filled("list --json").objects
    assert [without_time({**found, "version": 0}) for found in after] == [
        without_time({**found, "version": 0}) for found in before
    ]
    undo = filled("history --json").objects[0]
    assert undo["what"] == "undo"
    filled(f"undo {undo['id'][:10]}")
    assert "blue" not in {found["category"] for found in filled("list --json").objects}
    result = filled("undo nonsense")
    assert (result.code, result.out) == (2, "")
    assert "begins with 'nonsense'" in result.err


def test_undo_asks_before_a_change_without_an_author(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = filled("undo")
    assert result.code == 2
    assert f"zsvec undo {filled('history --json').objects[0]['id'][:8]}" in result.err
    monkeypatch.setattr("zsvec.cli.app.is_terminal", lambda: True)
    monkeypatch.setattr("zsvec.cli.history.is_terminal", lambda: True)
    result = filled("undo", stdin="y\n")
    assert result.code == 0
    assert re.search(r"Undo import of 'blue', 'green', 'red' \(9 images, 20\S+ \S+\)\?", result.err)
    assert filled("list --json").objects == []


def test_undo_asks_before_a_change_of_another_author(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    filled("remove blue")
    removal = filled("history --json").objects[0]["id"][:8]
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Bob")
    for command in ("undo", "undo --category blue"):
        result = filled(command)
        assert (result.code, result.out) == (2, "")
        assert f"zsvec {command.replace('undo', f'undo {removal}')}" in result.err
    monkeypatch.setattr("zsvec.cli.app.is_terminal", lambda: True)
    monkeypatch.setattr("zsvec.cli.history.is_terminal", lambda: True)
    for answer in ("n\n", "", "y\n"):
        assert "blue" not in filled("list").out
        result = filled("undo", stdin=answer)
        assert result.code == (0 if answer == "y\n" else 1)
        assert "remove of 'blue'" in result.err
        assert "by Ann" in result.err
    assert "blue" in filled("list").out
    filled("remove --yes red")
    assert filled("undo").code == 0  # by Bob, so nothing is asked


def test_a_forget_is_listed_as_final(filled: Cli, colours: Path) -> None:
    digest = content_hash(sorted((colours / "red").glob("*.png"))[0])
    filled(f"forget --yes {digest}")
    _, _, *rows = words(filled("history").out)
    assert [(row[1], row[-1]) for row in rows] == [("forget", "final"), ("import", "–")]
    before = filled("list --json").objects
    result = filled("undo")
    assert (result.code, result.out) == (2, "")
    assert "`zsvec history`" in result.err
    assert filled("list --json").objects == before
    assert filled(f"undo {rows[1][0]}").code == 0


def test_forget(filled: Cli, colours: Path) -> None:
    photo = sorted((colours / "red").glob("*.png"))[0]
    digest = content_hash(photo)
    assert "is the beginning of a hash: give all 64 characters" in filled(f"forget {digest[:12]}").err
    assert filled("forget", photo, stdin="y\n").code == 2  # nobody is asked without a terminal
    result = filled("forget --yes", photo)
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"{digest[:12]} is erased from 'red'. This cannot be undone.")
    again = filled(f"forget --yes {digest.upper()}")
    assert (again.code, again.err.partition(" ")[2][:21]) == (1, "is not in this store:")
    assert digest not in filled("show red --json").out
    assert filled("forget nowhere.png").code == 1


def test_a_redo_names_what_stays_as_it_is(filled: Cli, monkeypatch: pytest.MonkeyPatch, colours: Path) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    (imported,) = filled("history --json").objects
    filled(f"undo {imported['id']}")
    undo = filled("history --json").objects[0]
    filled("add red --image", sorted((colours / "red").glob("*.png"))[0])
    result = filled(f"undo {undo['id']}")
    assert result.code == 0
    assert "'red' stays as it is" in result.err
    images = {one["category"]: max(one["references"].values()) for one in filled("list --json").objects}
    assert images == {"blue": 3, "green": 3, "red": 1}


def test_a_move_to_a_new_category_is_noted(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    *_, image = (one["hash"] for one in filled("show red --json").objects[0]["stored"])
    for name, near in {"Gren": "; did you mean 'green'?", "reds": ".", "x": "."}.items():  # not 'red' for 'reds'
        result = filled(f"move red {name} {image}")
        assert result.err == f"'{name}' is a new category{near} `zsvec undo` takes it back\n"
        assert filled("undo").code == 0
    assert filled(f"move red green {image}").err == ""
    assert [found["category"] for found in filled("list --json").objects] == ["blue", "green", "red"]


def test_move_rename_merge_and_set(filled: Cli) -> None:
    def images(name: str) -> list[str]:
        with open_store(os.environ["ZSVEC_STORE"], namespace="zsvec") as store:
            return sorted({digest for _, modality, digest in store.keys(name) if modality == "image"})

    red, blue = images("red"), images("blue")
    (moved,) = filled(f"move red blue {red[0][:12]} --json").objects
    assert (moved["category"], max(moved["references"].values())) == ("blue", len(blue) + 1)
    assert images("blue") == sorted([*blue, red[0]])
    assert images("red") == red[1:]
    assert filled(f"remove red {red[1]}") == Result(0, "", "red has 1 image and 1 text left\n")
    assert "azure" in filled("rename blue azure").out
    (changed,) = filled("set azure --text 'like the sky' --json --metadata", json.dumps({"a": 1})).objects
    assert changed["texts"] == ["like the sky"]
    assert [found["category"] for found in filled("merge red azure --json").objects] == ["azure"]
    assert [found["category"] for found in filled("list --json").objects] == ["azure", "green"]
    for command, says in {
        "move azure green abc": "'abc' is too short for a hash: give 6 characters or more",
        f"move azure green {'f' * 12}": "is the beginning of no hash of 'azure'",
        "move azur green abcdef": "there is no category 'azur'",
        "rename azure green": "there is a category 'green' already",
        "merge azure azure": "are the same category",
        "merge azure gren": "there is no category 'gren' in",
        "set azure": "there is nothing to set",
        "set azure --metadata [1]": "must be an object of JSON",
        "set azure --metadata {": "the metadata are no JSON",
        f"set azure --metadata {'[' * 100_000}": "the metadata are no JSON",
    }.items():
        result = filled(command)
        assert (result.code, result.out) == (2, "")
        assert says in result.err
