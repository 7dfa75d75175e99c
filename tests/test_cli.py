"""The command line: what it prints, on which stream, and how it ends."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from rich.color import ColorSystem

import zsvec
from tests.store.support import ServerDeployment
from tests.support import coloured, encode, fast_folder, isolated, trusted_settings, write_photos  # noqa: F401
from zsvec import __version__
from zsvec.cli import main, output
from zsvec.cli.sheet import pictures_of, write_sheet
from zsvec.encoders import EncoderSet
from zsvec.encoders.spec import EncoderSpec
from zsvec.evaluation.metrics import calibration_floor
from zsvec.inputs.images import content_hash
from zsvec.store import open_store, writing
from zsvec.testing import HashEncoder
from zsvec.types import SmallImage, StoredReference

COLOURS = ("blue", "green", "red")
CURRENT = "the calibration was already current: nothing has changed\n"
DEADLINE = 60.0

pytestmark = pytest.mark.usefixtures("hash_encoders")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Every line of stdout, which must be an object of JSON."""
        found = [json.loads(line) for line in self.out.splitlines()]
        assert all(isinstance(value, dict) for value in found)
        return found


class Loading:
    """Stands for `zsvec.encoders.load_encoders`, and counts what its encoders embed."""

    made: ClassVar[list[HashEncoder]] = []

    def __call__(self, specs: Mapping[str, EncoderSpec], **options: Any) -> EncoderSet:
        made = [HashEncoder(name, modalities=spec.modalities) for name, spec in specs.items()]
        self.made.extend(made)
        return EncoderSet(made, batch_size=options["batch_size"])

    def embedded(self) -> int:
        return sum(encoder.texts_encoded + encoder.images_encoded for encoder in self.made)


@pytest.fixture
def hash_encoders(monkeypatch: pytest.MonkeyPatch) -> Loading:
    loading = Loading()
    loading.made.clear()
    monkeypatch.setattr("zsvec.encoders.load_encoders", loading)
    return loading


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Runs a command line on a store of the test's own."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(output.out, "width", 200)

    def run(command: str, *more: str | Path, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["zsvec", *shlex.split(command), *map(str, more)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape"))))
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return Result(code, *capsys.readouterr())

    with fast_folder() as folder:
        monkeypatch.setenv("ZSVEC_STORE", str(folder / "store"))
        yield run


def write_colours() -> Path:
    """A folder with three pictures of each colour, and a file that is none."""
    folder = Path("colours")
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for seed in range(3):
            (folder / colour / f"{seed}.png").write_bytes(encode(coloured(colour, seed)))
    (folder / "red" / "broken.jpg").touch()
    return folder


@pytest.fixture
def colours() -> Path:
    return write_colours()


@pytest.fixture
def new() -> Path:
    """A folder with a red and a blue picture that are no references."""
    folder = Path("new")
    folder.mkdir()
    for colour in ("red", "blue"):
        (folder / f"{colour}.png").write_bytes(encode(coloured(colour, 100)))
    return folder


@pytest.fixture
def filled(cli: Callable[..., Result], colours: Path) -> Callable[..., Result]:
    assert cli("import", colours).code == 0
    return cli


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store that `filled` has, once for all tests that write nothing to it."""
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        store = str(folder / "store")
        patch.setattr("zsvec.encoders.load_encoders", Loading())
        patch.chdir(tmp_path_factory.mktemp("imported"))
        patch.setattr(sys, "argv", ["zsvec", "--store", store, "import", str(write_colours())])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        yield store


@pytest.fixture
def stocked(
    imported: str, cli: Callable[..., Result], colours: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`filled` for tests that write nothing."""
    monkeypatch.setenv("ZSVEC_STORE", imported)
    return cli


def category(name: str, *, version: int = 1, texts: list[str] | None = None, **references: int) -> dict[str, Any]:
    """The object of a category, but for the time."""
    return {
        "category": name,
        "version": version,
        "texts": [name] if texts is None else texts,
        "references": {expert.replace("_", ":"): count for expert, count in references.items()},
    }


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    assert list(found) == ["category", "version", "updated", "texts", "references"]
    updated = datetime.fromisoformat(found["updated"])
    assert abs((datetime.now(tz=updated.tzinfo) - updated).total_seconds()) < 600
    return {key: value for key, value in found.items() if key != "updated"}


IMPORTED = [category(colour, clip_text=1, clip_image=3, dino_image=3) for colour in COLOURS]


# ---- import


def test_import(cli: Callable[..., Result], colours: Path) -> None:
    result = cli("import", colours)
    assert (result.code, result.out) == (0, "")
    left_out, summary = result.err.splitlines()
    assert left_out.startswith("left out: cannot read 'colours/red/broken.jpg': it is empty (0 bytes)")
    assert summary.startswith("3 categories, 10 images (1 unreadable) in ")


def test_import_json(cli: Callable[..., Result], colours: Path) -> None:
    result = cli("import --json", colours)
    assert result.code == 0
    assert [without_time(found) for found in result.objects] == IMPORTED
    assert "left out: " in result.err


def test_importing_again_embeds_nothing(cli: Callable[..., Result], colours: Path, hash_encoders: Loading) -> None:
    first = cli("import --json", colours)
    assert hash_encoders.embedded() == 9 + 9 + 3
    again = cli("import --json", colours)
    assert hash_encoders.embedded() == 9 + 9 + 3
    assert again.objects == first.objects
    (colours / "red" / "0.png").unlink()
    (colours / "red" / "broken.jpg").unlink()
    replaced = cli("import --replace --json", colours).objects
    assert hash_encoders.embedded() == 9 + 9 + 3
    assert without_time(replaced[2]) == category("red", version=2, clip_text=1, clip_image=2, dino_image=2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", '{"red": ["like fire", "like blood"], "cat": "a feline"}'),
        ("d.csv", "category,text\nred,like fire\ncat,a feline\nred,like blood\n"),
    ],
)
def test_import_with_definitions(cli: Callable[..., Result], colours: Path, name: str, content: str) -> None:
    Path(name).write_text(content)
    found = {o["category"]: without_time(o) for o in cli("import --json --definitions", name, colours).objects}
    assert found["red"] == category("red", texts=["like fire", "like blood"], clip_text=2, clip_image=3, dino_image=3)
    assert found["cat"] == category("cat", texts=["a feline"], clip_text=1)
    assert found["blue"]["texts"] == ["blue"]


def test_import_of_a_csv(cli: Callable[..., Result], colours: Path, hash_encoders: Loading) -> None:
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
    assert notes[3].startswith("3 categories, 10 images (1 unreadable) in ")
    embedded = hash_encoders.embedded()
    again = cli("import --json", colours / "labels.csv")
    assert again.objects == result.objects
    assert "10 images (1 unreadable, 9 stored before, or the same as another)" in again.err
    assert hash_encoders.embedded() == embedded


def test_import_of_a_csv_whose_images_lie_elsewhere(cli: Callable[..., Result], colours: Path) -> None:
    Path("lists").mkdir()
    Path("lists/labels.tsv").write_text("label\tpath\nred\tred/0.png\nred\t../lists/labels.tsv\n")
    Path("d.json").write_text('{"red": "like fire", "cat": "a feline"}')
    result = cli("import lists/labels.tsv --json --definitions d.json --images", colours)
    assert [(found["category"], found["texts"]) for found in result.objects] == [
        ("cat", ["a feline"]),
        ("red", ["like fire"]),
    ]
    assert "line 3: 'colours/../lists/labels.tsv' leads out of colours" in result.err
    assert "no images for the definitions of cat" in result.err.splitlines()


def test_rows_that_cannot_be_used_are_counted_and_replace_nothing(cli: Callable[..., Result], colours: Path) -> None:
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


def test_import_of_coco_annotations(cli: Callable[..., Result], colours: Path) -> None:
    width, height = coloured("red", 0).size
    images = [{"id": i, "file_name": f"red/{i}.png", "width": width + (i == 2), "height": height} for i in range(3)]
    annotations = [
        {"image_id": i, "category_id": 1, "bbox": [0, 0, 2, 2], "iscrowd": int(i == 0 and crowd)}
        for i in range(3)
        for crowd in range(2)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "corner"}]}
    Path("annotations.json").write_text(json.dumps(content))
    result = cli("import annotations.json --json --images", colours)
    assert [found["references"]["clip:image"] for found in result.objects] == [3]
    result = cli("import annotations.json --json --boxes --images", colours)
    assert result.code == 0
    assert [found["references"]["clip:image"] for found in result.objects] == [3 + 2]
    assert "left out: annotations.json, annotations[1]: it is a crowd, not one object" in result.err
    assert "red/2.png#xywh=0,0,2,2': it has " in result.err
    assert "1 category, 5 images (1 unreadable, " in result.err
    sources = [one["source"] for one in cli("show corner --json").objects[0]["stored"] if one["modality"] == "image"]
    assert "colours/red/1.png#xywh=0,0,2,2" in sources


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import colours --images colours", "--images needs a FILE"),
        ("import colours --boxes", "--boxes needs COCO annotations"),
        ("import labels.csv --boxes", "--boxes needs COCO annotations"),
        ("import colours/red/0.png", "is not a folder, and no file that ends with .csv or .tsv or .txt or .json"),
        ("evaluate colours --images colours", "--images needs a FILE"),
        ("evaluate colours --boxes", "--boxes needs COCO annotations"),
        ("evaluate labels.csv --boxes", "--boxes needs COCO annotations"),
        ("evaluate colours/red/0.png", "is not a folder, and no file that ends with .csv or .tsv or .txt or .json"),
        ("evaluate labels.csv --suite paper --dataset mnist", "--dataset mnist is a folder. Got the file labels.csv"),
        ("evaluate colours --suite paper --boxes", "--boxes needs COCO annotations"),
        ("evaluate none.csv", "none.csv"),
    ],
)
def test_options_of_a_file(cli: Callable[..., Result], colours: Path, command: str, message: str) -> None:
    Path("labels.csv").write_text("path,label\ncolours/red/0.png,red\n")
    result = cli(command)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())


# ---- add, show, list, remove


def test_add(cli: Callable[..., Result], colours: Path, new: Path) -> None:
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


def test_add_for_people(cli: Callable[..., Result]) -> None:
    result = cli("add red_panda")
    assert (result.code, result.err) == (0, "")
    header, _, row = (line.split() for line in result.out.splitlines() if line.strip())
    assert header == ["category", "version", "updated", "texts", "clip:text"]
    assert row[:2] == ["red_panda", "1"]
    assert row[-3:] == ["red", "panda", "1"]


def test_add_of_an_unreadable_image_adds_nothing(cli: Callable[..., Result], new: Path) -> None:
    result = cli("add red --image", new / "red.png", "--image", "missing.png")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "zsvec: cannot read 'missing.png': No such file or directory; check the path and its permissions\n"
    )
    assert cli("list --json").objects == []


@pytest.mark.parametrize(
    ("command", "code"),
    [("add ' '", 2), ("add x --text ' '", 2), ("add x --image missing.png", 1), ("classify missing.png gone", 1)],
)
def test_what_is_wrong_at_first_sight_is_said_before_encoders_are_loaded(
    stocked: Callable[..., Result], hash_encoders: Loading, command: str, code: int
) -> None:
    assert stocked(command).code == code
    assert not hash_encoders.made


def test_list(stocked: Callable[..., Result]) -> None:
    result = stocked("list --json")
    assert (result.code, result.err) == (0, "")
    assert [without_time(found) for found in result.objects] == IMPORTED
    result = stocked("list")
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines() if line.strip()]
    assert rows[0] == ["category", "version", "updated", "texts", "clip:image", "clip:text", "dino:image"]
    assert [row[0] for row in rows[2:]] == list(COLOURS)
    assert [row[-3:] for row in rows[2:]] == [["3", "1", "3"]] * 3


def test_list_of_nothing(cli: Callable[..., Result]) -> None:
    assert cli("add cat").code == 0
    assert cli("remove cat").code == 0
    assert cli("list --json") == Result(0, "", "")
    result = cli("list")
    assert (result.code, result.out) == (0, "")
    assert "no categories in " in result.err
    assert "zsvec import" in result.err


@pytest.mark.parametrize("command", ["list", "list --json", "show cat", "info", "info --json", "gc"])
def test_a_store_that_is_not_there_yet(cli: Callable[..., Result], command: str) -> None:
    store = os.environ["ZSVEC_STORE"]
    expected = "zsvec: there is no store in {} (namespace zsvec) yet: `zsvec import` and `zsvec add` make it\n"
    assert cli(command) == Result(1, "", expected.format(f"the missing folder {store}"))
    assert not Path(store).exists()
    Path("photos").mkdir()
    assert cli(f"--store photos {command}") == Result(1, "", expected.format("photos"))
    assert not list(Path("photos").iterdir())


def test_show(stocked: Callable[..., Result]) -> None:
    (found,) = stocked("show red --json").objects
    images = [f"colours/red/{seed}.png" for seed in range(3)]
    assert found.pop("metadata") == {}
    stored = [(one["modality"], one["source"], one["experts"]) for one in found.pop("stored")]
    assert stored[0] == ("text", "a photo of a red", ["clip:text"])
    assert stored[1:] == [("image", path, ["clip:image", "dino:image"]) for path in images]
    assert without_time(found) == IMPORTED[2]
    result = stocked("show red")
    assert (result.code, result.err) == (0, "")
    assert all(expected in result.out for expected in ("a photo of a red", *images))


def test_show_says_when_and_by_whom(cli: Callable[..., Result], colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann [bold]")
    assert cli("import", colours).code == 0
    (found,) = cli("show red --json").objects
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert {(one["by"], one["added"][:10]) for one in found["stored"]} == {("Ann [bold]", today)}
    shown = cli("show red").out
    assert "Ann [bold]" in shown
    assert all(one["hash"][:12] in shown for one in found["stored"])


def test_contact_sheet(stocked: Callable[..., Result]) -> None:
    result = stocked("show red --sheet sheet.html")
    assert (result.code, result.err) == (0, "the contact sheet is sheet.html\n")
    page = Path("sheet.html").read_text(encoding="utf-8")
    assert page.count('<img alt="" src="data:image/jpeg;base64,') == 3
    assert "a photo of a red" in page
    assert "http" not in page.replace("http-equiv", "")  # all is in it


def test_contact_sheet_without_copies(cli: Callable[..., Result], colours: Path) -> None:
    assert cli("import --keep-images none", colours).code == 0
    result = cli("show red --sheet sheet.html")
    assert result.err == "the contact sheet is sheet.html; of 3 images the store has no copy\n"
    assert '<div class="none">' in Path("sheet.html").read_text(encoding="utf-8")


def test_contact_sheet_of_another_kind(stocked: Callable[..., Result]) -> None:
    result = stocked("show red --sheet sheet.pdf")
    assert (result.code, result.out) == (2, "")
    assert stocked("show red --sheet missing/sheet.html").code == 1


def test_a_contact_sheet_obeys_nothing_that_it_shows(stocked: Callable[..., Result], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\n\"'&"
    pictures = pictures_of([StoredReference(category=evil, hash=evil, modality="image", source=evil, by=evil)])
    content = b"GIF89a<script>"
    small = SmallImage(hash=evil, content=content, width=1, height=1, source=evil)
    write_sheet(tmp_path / "a.html", evil, pictures, lambda _: small, [evil])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") == 6  # title twice, text, hash, source and author


def test_images_drop(filled: Callable[..., Result]) -> None:
    done = "all small copies of images are deleted, and none are kept any more\n"
    assert filled("images drop --yes") == Result(0, "", done)
    assert filled("images drop") == Result(0, "", done)
    assert "of 3 images the store has no copy" in filled("show red --sheet a.html").err
    assert [found["references"]["clip:image"] for found in filled("list --json").objects] == [3, 3, 3]


def test_images_drop_asks(filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.cli.app.is_terminal", lambda: True)
    assert filled("images drop", stdin="n\n").code == 1
    assert filled("show red --sheet a.html").err == "the contact sheet is a.html\n"
    assert filled("images drop", stdin="y\n").code == 0


def test_keep_images_is_one_of_two(cli: Callable[..., Result], colours: Path) -> None:
    result = cli("import --keep-images all", colours)
    assert result.code == 2
    assert "keep_images: Input should be 'small' or 'none' (got 'all')" in result.err


def test_remove(filled: Callable[..., Result]) -> None:
    assert filled("remove ' red '") == Result(0, "", "removed  red \n")
    assert [found["category"] for found in filled("list --json").objects] == ["blue", "green"]
    result = filled("remove red")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("zsvec: there is no category 'red' in ")


def test_pictures_in_a_terminal(filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    result = filled("show red --pictures")
    assert (result.code, result.out) == (2, "")
    assert "this terminal has no colours for pictures" in result.err
    monkeypatch.setattr(output.out, "_color_system", ColorSystem.TRUECOLOR)
    monkeypatch.setattr(output.out, "_force_terminal", True)
    shown = filled("show red --pictures").out
    reds = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;\d+;\d+;\d+m▀", shown)
    assert len(reds) == 3 * 8 * 3  # of three pictures, each of 8 by 6 pixels
    assert all(int(red) > 150 > 100 > int(green) for red, green, _ in reds)


def test_changes_are_listed_and_taken_back(filled: Callable[..., Result]) -> None:
    (imported,) = filled("history --json").objects
    assert (imported["what"], imported["categories"], imported["undone"]) == ("import", ["blue", "green", "red"], False)
    before = filled("list --json").out
    filled("rename red crimson")
    filled("remove blue")
    table = filled("history").out
    assert [line.split()[1] for line in table.splitlines() if line[1:9].strip().isalnum()][1:] == [
        "remove",
        "rename",
        "import",
    ]
    assert [found["what"] for found in filled("history crimson --json").objects] == ["rename"]
    said = filled("undo --category crimson").err
    assert re.fullmatch(
        r"taken back: rename of 'crimson', 'red' \(20.*\); `zsvec undo [0-9a-f]{8}` does it again\n", said
    )
    assert filled("undo --json").objects[0]["what"] == "remove"
    assert [without_time({**found, "version": 0}) for found in filled("list --json").objects] == [
        without_time({**json.loads(line), "version": 0}) for line in before.splitlines()
    ]
    undo = filled("history --json").objects[0]
    assert undo["what"] == "undo"
    filled(f"undo {undo['id'][:10]}")
    assert "blue" not in {found["category"] for found in filled("list --json").objects}
    result = filled("undo nonsense")
    assert (result.code, result.out) == (2, "")
    assert "no change that can be taken back begins with 'nonsense'" in result.err


def test_gc_says_what_it_makes_final(filled: Callable[..., Result]) -> None:
    filled("remove red")
    assert filled("gc").err == "0 references deleted\n"
    said = filled("gc --grace 0").err.splitlines()
    names = [line.split(" (")[0] for line in said[:-1]]
    assert names == ["final: remove of 'red'", "final: import of 'blue', 'green', 'red'"]
    assert said[-1] != "0 references deleted"
    assert filled("history").err == "there are no changes that can be taken back\n"
    assert filled("undo").code == 2


def test_an_image_is_forgotten_by_its_file_or_its_hash(filled: Callable[..., Result], colours: Path) -> None:
    photo = sorted((colours / "red").glob("*.png"))[0]
    digest = content_hash(photo)
    assert "is the beginning of a hash: `zsvec show --json`" in filled(f"forget {digest[:12]}").err
    said = f"{digest[:12]} is forgotten: it was in 'red'. No undo brings it back; its file can be added again\n"
    assert filled("forget", photo) == Result(0, "", said)
    again = filled(f"forget {digest.upper()}")
    assert (again.code, again.err.partition(" ")[2][:21]) == (1, "is not in this store:")
    assert digest not in filled("show red --json").out
    assert filled("forget nowhere.png").code == 1


def test_references_are_moved_and_categories_mended(filled: Callable[..., Result]) -> None:
    def images(name: str) -> list[str]:
        with open_store(os.environ["ZSVEC_STORE"], namespace="zsvec") as store:
            return sorted({digest for _, modality, digest in store.keys(name) if modality == "image"})

    red, blue = images("red"), images("blue")
    (moved,) = filled(f"move red blue {red[0][:12]} --json").objects
    assert (moved["category"], max(moved["references"].values())) == ("blue", len(blue) + 1)
    assert images("blue") == sorted([*blue, red[0]])
    assert images("red") == red[1:]
    (shown,) = filled("show red --json").objects
    left = sum(shown["references"].values()) - sum(expert.endswith(":image") for expert in shown["references"])
    assert filled(f"remove red {red[1]}") == Result(0, "", f"red has {left} references left\n")
    assert "azure" in filled("rename blue azure").out
    assert filled("""set azure --text 'like the sky' --metadata '{"a": 1}' --json""").objects[0]["texts"] == [
        "like the sky"
    ]
    assert [found["category"] for found in filled("merge red azure --json").objects] == ["azure"]
    assert [found["category"] for found in filled("list --json").objects] == ["azure", "green"]
    for command, says in {
        "move azure green abc": "'abc' is too short for a hash: give 6 characters of it, or more",
        f"move azure green {'f' * 12}": "is the beginning of no hash of 'azure'",
        "move azur green abcdef": "there is no category 'azur'",
        "rename azure green": "there is a category 'green' already",
        "merge azure azure": "are the same category",
        "set azure": "there is nothing to set",
        "set azure --metadata [1]": "must be an object of JSON",
        "set azure --metadata {": "the metadata are no JSON",
        f"set azure --metadata {'[' * 100_000}": "the metadata are no JSON",
        "merge azure gren": "there is no category 'gren' in",
    }.items():
        result = filled(command)
        assert (result.code, result.out) == (2, "")
        assert says in result.err


def test_gc(filled: Callable[..., Result], ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled("gc") == Result(0, "", "0 references deleted\n")

    def killed(*_: Any) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "commit", killed)
        assert filled("add cat --text 'a feline' --text 'a pet'").code == 9
    assert len(filled("list --json").objects) == 3
    (garbage,) = (found for found in filled("doctor --json").objects if found["what"] == "garbage")
    assert garbage["detail"] == "2 references that no category names"
    assert filled("gc") == Result(0, "", "2 references deleted\n")
    assert filled("gc") == Result(0, "", "0 references deleted\n")
    with monkeypatch.context() as patched:
        patched.setattr(writing, "commit", killed)
        assert filled("add cat --text 'a feline'").code == 9
    (garbage,) = (found for found in filled("doctor --json").objects if found["what"] == "garbage")
    assert garbage["detail"] == "1 reference that no category names"
    assert filled("gc") == Result(0, "", "1 reference deleted\n")


def test_info(filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = filled("info --json").objects
    assert found.pop("qdrant-edge")
    encoder = "zsvec.testing.HashEncoder@1 (64-d, 8 px)"
    assert found == {
        "store": os.environ["ZSVEC_STORE"],
        "namespace": "zsvec",
        "categories": 3,
        "unreadable": [],
        "references": {"clip:text": 3, "clip:image": 9, "dino:image": 9},
        "encoders": {"clip": encoder, "dino": encoder},
        "calibration": "current",
        "measured": {
            "all together": "not exported here",
            "clip by torch": "not measured yet",
            "dino by torch": "not measured yet",
        },
    }
    assert filled("--namespace other init").code == 0
    result = filled("--namespace other info")
    assert (result.code, result.err) == (0, "")
    assert dict(line.split()[:2] for line in result.out.splitlines())["namespace"] == "other"
    assert dict(line.split()[:2] for line in result.out.splitlines())["categories"] == "0"
    assert dict(line.split()[:2] for line in result.out.splitlines())["calibration"] == "none"
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    assert filled("remove red").code == 0
    assert [found["calibration"] for found in filled("info --json").objects] == ["stale"]


# ---- doctor


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """No hub in reach, a device that needs no torch; gives a function that says which weights are missing."""

    def missing(weights: dict[str, str]) -> None:
        monkeypatch.setattr("zsvec.cli.doctor.missing_weights", lambda specs: weights)

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("zsvec.cli.doctor.describe_device", lambda device, dtype, **_: f"{device}, {dtype}")
    missing({})
    return missing


def test_doctor_finds_nothing(stocked: Callable[..., Result], ward: Callable[..., None]) -> None:
    result = stocked("doctor --json")
    assert (result.code, result.err) == (0, "")
    assert [list(found) for found in result.objects] == [["what", "ok", "detail", "advice"]] * 7
    found = {o["what"]: o for o in result.objects}
    assert list(found) == ["packages", "settings", "device", "hub", "weights", "generation", "store"]
    assert all(o["ok"] and not o["advice"] for o in found.values())
    assert f"zsvec {__version__}" in found["packages"]["detail"]
    assert found["device"]["detail"] == "auto, auto"
    assert found["hub"]["detail"] == "http://127.0.0.1:9 cannot be reached (ConnectError); not needed"
    assert found["store"]["detail"].endswith("3 categories, 21 references, calibration: current")
    result = stocked("doctor")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[:2] for line in result.out.splitlines()] == [["ok", what] for what in found]


def test_doctor_finds_a_calibration_that_is_stale(
    filled: Callable[..., Result], ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    assert filled("remove red").code == 0
    result = filled("doctor --json")
    assert result.code == 0
    found = result.objects[-1]
    assert (found["what"], found["ok"]) == ("store", True)
    assert found["detail"].endswith("2 categories, 14 references, calibration: stale")
    assert "run `zsvec calibrate`" in found["advice"]


def test_doctor_finds_what_is_missing(stocked: Callable[..., Result], ward: Callable[..., None]) -> None:
    ward({"clip": "some/model"})
    result = stocked("doctor --json")
    assert result.code == 1
    found = {o["what"]: o for o in result.objects}
    assert [what for what, o in found.items() if not o["ok"]] == ["hub", "weights"]
    assert "clip: some/model" in found["weights"]["detail"]
    assert "--profile offline" in found["weights"]["advice"]
    result = stocked("doctor")
    assert result.code == 1
    assert "--profile offline" in result.out


def test_doctor_of_other_encoders(stocked: Callable[..., Result], ward: Callable[..., None]) -> None:
    result = stocked("--profile offline doctor --json")
    assert result.code == 1
    found = result.objects[-1]
    assert (found["what"], found["ok"]) == ("store", False)
    assert "encoders clip, dino, and conse, efficientnet are in use" in found["detail"]
    assert "profile '" not in found["detail"]  # those of the test are of no profile


def test_the_profile_that_a_store_was_made_with_is_named(
    cli: Callable[..., Result], ward: Callable[..., None], colours: Path
) -> None:
    assert cli("--profile offline import", colours).code == 0
    named = "; it was made with the profile 'offline': open it with that (--profile offline)"
    result = cli("classify colours")
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith(f"{named}\n")
    assert cli("doctor --json").objects[-1]["detail"].endswith(named)


@pytest.mark.parametrize("url", ["nonsense", "http://[bad", "ftp://hub"])
def test_doctor_of_a_hub_that_is_no_url(
    cli: Callable[..., Result], ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    found = {o["what"]: o for o in cli("doctor --json").objects}
    assert f"{url} cannot be reached" in found["hub"]["detail"]


def test_doctor_of_a_store_that_is_not_there_yet(
    cli: Callable[..., Result], ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("doctor --json nowhere", "--store nowhere doctor --json"):
        result = cli(command)
        found = result.objects[-1]
        assert (result.code, found["what"], found["ok"]) == (1, "store", False)
        missing = f"the missing folder {Path('nowhere').absolute()} (namespace zsvec)"
        assert found["detail"] == f"there is no store in {missing} yet"
        assert found["advice"] == "`zsvec import` and `zsvec add` make it"
    monkeypatch.delenv("ZSVEC_STORE")
    result = cli("doctor --json")  # a new installation is as it should be
    found = result.objects[-1]
    assert (result.code, found["ok"]) == (0, True)
    assert found["detail"].startswith("there is no store in the missing folder ")
    assert not Path("nowhere").exists()


def test_doctor_of_wrong_settings(cli: Callable[..., Result], ward: Callable[..., None]) -> None:
    result = cli("--profile nonsense doctor --json")
    assert result.code == 1
    assert [(o["what"], o["ok"]) for o in result.objects] == [("packages", True), ("settings", False)]
    assert "'nonsense'" in result.objects[1]["detail"]


# ---- a server


@pytest.mark.usefixtures("ward")
def test_a_store_on_a_server(
    cli: Callable[..., Result], server: ServerDeployment, colours: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_STORE", server.url)
    monkeypatch.setenv("ZSVEC_NAMESPACE", server.namespace)
    assert cli("list --json").code == 1  # nothing has been written yet
    assert [without_time(found) for found in cli("import --json", colours).objects] == IMPORTED
    assert [without_time(found) for found in cli("list --json").objects] == IMPORTED
    assert cli("add cat --text 'a feline'").code == 0
    assert {o["source"]: o["label"] for o in cli("classify --json", new).objects} == {
        "new/blue.png": "blue",
        "new/red.png": "red",
    }
    assert cli("remove cat").code == 0
    (found,) = cli("info --json").objects
    assert (found["store"], found["namespace"]) == (server.url, server.namespace)
    assert (found["categories"], found["calibration"]) == (3, "current")
    assert found["qdrant"].count(".") == 2
    *nodes, doctor = cli(f"doctor {server.url} --json").objects[6:]
    assert [found["what"] for found in nodes] == [
        f"node {server.url}",
        "rights",
        "limits",
        "copies",
        "catalog",
    ]  # what was removed is no garbage while it can be taken back
    assert all(found["ok"] for found in nodes)
    assert (doctor["what"], doctor["ok"]) == ("store", True)
    assert "3 categories, 21 references" in doctor["detail"]
    assert cli("gc") == Result(0, "", "0 references deleted\n")


# ---- classify


def test_classify_json(stocked: Callable[..., Result], new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stocked("classify --json", new / "red.png")
    assert (result.code, result.err) == (0, "")
    (found,) = result.objects
    assert list(found) == [
        *("source", "label", "nearest", "probability", "unknown", "novelty", "distance", "ranking"),
        *("experts", "fusion", "calibration", "incomplete", "stale_seconds", "error", "hash"),
    ]
    assert (found["source"], found["label"], found["unknown"], found["error"]) == ("new/red.png", "red", False, None)
    assert found["calibration"] == "current"
    assert found["ranking"][0] == {"label": "red", "probability": found["probability"]}
    assert [list(entry) for entry in found["ranking"]] == [["label", "probability"]] * 3
    assert 0.9 < found["probability"] <= 1
    assert 0 < found["novelty"] < 0.2
    assert found["experts"].keys() == {"clip:text", "clip:image", "dino:image"}
    for expert in found["experts"].values():
        assert list(expert) == ["weight", "entropy", "ranking", "neighbors"]
        assert {entry["label"] for entry in expert["ranking"]} == set(COLOURS)
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    (plain,) = stocked("classify --json", new / "red.png").objects
    assert (plain["label"], plain["calibration"], plain["novelty"]) == ("red", "none", None)
    assert 0 < plain["distance"] < 0.2
    assert (found["fusion"], plain["fusion"]) == ("log_linear_gda", "log_linear")


def test_classify_paths_and_folders_in_order(stocked: Callable[..., Result], new: Path) -> None:
    result = stocked("classify --json", new / "red.png", new, f"./{new}/blue.png")
    assert [(o["source"], o["label"]) for o in result.objects] == [
        ("new/red.png", "red"),
        ("new/blue.png", "blue"),
        ("new/red.png", "red"),
        ("./new/blue.png", "blue"),
    ]


def test_classify_from_stdin(stocked: Callable[..., Result], new: Path) -> None:
    stdin = "new/red.png\r\n\n   \nmissing.png\nnew/blue.png"
    result = stocked("classify --json new/blue.png - new/red.png", stdin=stdin)
    assert [(o["source"], o["label"]) for o in result.objects] == [
        ("new/blue.png", "blue"),
        ("new/red.png", "red"),
        ("missing.png", None),
        ("new/blue.png", "blue"),
        ("new/red.png", "red"),
    ]


def test_classify_for_people(stocked: Callable[..., Result], new: Path) -> None:
    result = stocked("classify", new)
    assert (result.code, result.err) == (0, "")
    blue, red = result.out.splitlines()
    assert blue.startswith("new/blue.png  blue ")
    assert red.startswith("new/red.png  red ")
    assert "then" in red
    assert "novelty 0.0" in red


def test_classify_explains(stocked: Callable[..., Result], new: Path) -> None:
    result = stocked("classify --explain", new / "red.png")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines() if line.strip()]
    assert lines[1] == ["expert", "weight", "entropy", "says", "nearest", "references"]
    first = {words[0]: words[1:] for words in lines[3:] if ":" in words[0]}
    assert first.keys() == {"clip:text", "clip:image", "dino:image"}
    assert first["dino:image"][3] == "red"
    assert first["dino:image"][-2] == "red:"
    assert first["dino:image"][-1].startswith("colours/red/")
    assert sum(int(words[0].rstrip("%")) for words in first.values()) in (99, 100, 101)
    assert lines[-1][:3] == ["fused", "by", "log_linear_gda"]


@pytest.mark.parametrize("top_k", [1, 2])
def test_classify_top_k(stocked: Callable[..., Result], new: Path, top_k: int) -> None:
    (found,) = stocked(f"classify --json --top-k {top_k}", new / "red.png").objects
    assert [len(found["ranking"]), *(len(e["ranking"]) for e in found["experts"].values())] == [top_k] * 4


def test_classify_fusion(stocked: Callable[..., Result], new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {
        fusion: stocked(f"classify --json --fusion {fusion}", new / "red.png").objects[0]["experts"]["clip:text"][
            "weight"
        ]
        for fusion in (
            "max_confidence",
            "inverse_entropy",
            "neg_exp_entropy",
            "fixed",
            "log_linear",
            "log_linear_views",
        )
    }
    assert weights["fixed"] == pytest.approx(1 / 3)
    assert len(set(weights.values())) == 6
    monkeypatch.setenv("ZSVEC_FUSION", "fixed")
    (found,) = stocked("classify --json", new / "red.png").objects
    assert found["experts"]["clip:text"]["weight"] == pytest.approx(1 / 3)


def test_classify_without_a_calibration(
    stocked: Callable[..., Result], new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(new, [7])
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    monkeypatch.setenv("ZSVEC_UNKNOWN_ABOVE", "0.2")
    assert [o["unknown"] for o in stocked("classify --json new/7.png new/red.png").objects] == [False, False]
    assert "  distance 0." in stocked("classify new/7.png").out


def test_classify_unknown_in_a_calibrated_store(filled: Callable[..., Result], colours: Path, new: Path) -> None:
    write_photos(new, [7])
    for colour in COLOURS:
        for seed in range(3, 8):
            (colours / colour / f"{seed}.png").write_bytes(encode(coloured(colour, seed)))
    assert filled("import", colours).code == 0
    assert [o["unknown"] for o in filled("classify --json new/7.png new/red.png").objects] == [True, False]
    assert filled("classify new/7.png").out.startswith("new/7.png  unknown, nearest ")


def test_an_unreadable_image_is_reported_and_the_rest_goes_on(stocked: Callable[..., Result], new: Path) -> None:
    result = stocked("classify --json missing.png new/red.png colours/red/broken.jpg")
    assert result.code == 0
    missing, red, broken = result.objects
    assert missing == {
        "source": "missing.png",
        "label": None,
        "nearest": None,
        "probability": None,
        "unknown": False,
        "novelty": None,
        "distance": None,
        "ranking": [],
        "experts": {},
        "fusion": None,
        "calibration": "none",
        "incomplete": [],
        "stale_seconds": 0.0,
        "error": "cannot read 'missing.png': No such file or directory; check the path and its permissions",
        "hash": None,
    }
    assert red["label"] == "red"
    assert broken["error"].startswith("cannot read 'colours/red/broken.jpg': it is empty")
    assert result.err == "2 of 3 images could not be read\n"
    result = stocked("classify missing.png new/red.png")
    assert result.out.splitlines()[0].startswith("missing.png: not classified, cannot read 'missing.png'")
    assert result.out.splitlines()[1].startswith("new/red.png  red ")


def test_no_image_can_be_read(stocked: Callable[..., Result]) -> None:
    result = stocked("classify --json missing.png")
    assert (result.code, len(result.objects), result.err) == (1, 1, "1 of 1 image could not be read\n")


@pytest.mark.parametrize("options", ["", "--json"])
def test_paths_that_do_not_exist_are_answered_as_others(
    stocked: Callable[..., Result], new: Path, options: str
) -> None:
    alone = stocked(f"classify {options} missing.png gone.png")
    among_others = stocked(f"classify {options} missing.png gone.png new/red.png")
    assert (alone.code, alone.err) == (1, "2 of 2 images could not be read\n")
    assert alone.out.splitlines() == among_others.out.splitlines()[:2]
    assert len(alone.out.splitlines()) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_it_is_said_that_encoders_are_loaded(
    stocked: Callable[..., Result], new: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(output.err, "_force_terminal", terminal)
    result = stocked("classify --json new/red.png")
    assert result.err == ("loading the encoders of profile base …\n" if terminal else "")
    assert [found["label"] for found in result.objects] == ["red"]
    empty = stocked("--namespace other classify new/red.png")
    assert "loading" not in empty.err


def test_no_image_at_all(stocked: Callable[..., Result]) -> None:
    Path("empty").mkdir()
    assert stocked("classify --json empty") == Result(1, "", "nothing was classified: there are no images in empty\n")
    assert stocked("classify - empty") == Result(1, "", "nothing was classified: there are no images in stdin, empty\n")


def test_a_folder_that_cannot_be_listed_comes_after_what_was_read(
    stocked: Callable[..., Result], new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("locked").mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = stocked("classify --json new/red.png locked")
    assert result.code == 2
    assert [o["label"] for o in result.objects] == ["red"]
    assert "cannot list the folder 'locked': Permission denied" in result.err


def test_classify_csv(stocked: Callable[..., Result], new: Path) -> None:
    (new / "broken, or so.jpg").touch()
    (new / "red.png").rename("=red.png")
    result = stocked("classify --csv =red.png", new)
    assert result.code == 0
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["source"] for row in rows] == ["'=red.png", str(new / "blue.png"), str(new / "broken, or so.jpg")]
    objects = stocked("classify --json =red.png", new).objects
    for row, found in zip(rows, objects, strict=True):
        assert list(row) == ["source", "label", "nearest", "probability", "unknown", "novelty", "distance", "error"]
        for name in ("label", "nearest", "probability", "novelty", "distance", "error"):
            assert row[name] == ("" if found[name] is None else str(found[name]))
        assert row["unknown"] == ("true" if found["unknown"] else "false")
    assert stocked("classify --csv missing.png").out.splitlines()[1].startswith("missing.png,,,,false,,,")


def test_csv_on_a_terminal_is_harmless(
    stocked: Callable[..., Result], new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (new / "blue.png").rename(new / "\x1b[31mred.png")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    result = stocked("classify --csv", new)
    assert "\x1b" not in result.out
    assert "\\x1b[31mred.png" in result.out


# ---- evaluate


def test_evaluate(stocked: Callable[..., Result], colours: Path) -> None:
    write_photos(Path("noise"), range(4))
    result = stocked("evaluate --json --unknown noise", colours)
    assert result.code == 0
    answers = [answer for answer in stocked("classify --json", colours).objects if answer["error"] is None]
    assert len(answers) == 9
    strangers = stocked("classify --json", Path("noise")).objects

    def all_right(rankings: list[list[dict[str, Any]]]) -> dict[str, Any]:
        # What is always right is off by what its best probability lacks.
        confidence = np.array([ranking[0]["probability"] for ranking in rankings])
        others = [sum(entry["probability"] ** 2 for entry in ranking[1:]) for ranking in rankings]
        return {
            "top1": 1.0,
            "top3": 1.0,
            "top5": 1.0,
            "nll": pytest.approx(-np.log(confidence).mean()),
            "brier": pytest.approx(((1 - confidence) ** 2 + others).mean()),
            "ece": pytest.approx(1 - confidence.mean()),
            "ece_floor": pytest.approx(calibration_floor(confidence)),
        }

    quality = ["top1", "top3", "top5", "nll", "brier", "ece", "ece_floor"]
    (found,) = result.objects
    assert list(found["experts"].pop("clip:text")) == quality
    unknown = {colour: sum(a["unknown"] for a in answers if a["nearest"] == colour) / 3 for colour in COLOURS}
    perfect = {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert found == {
        "n": 9,
        **all_right([answer["ranking"] for answer in answers]),
        "auroc": 1.0,
        "detected": sum(answer["unknown"] for answer in strangers) / 4,
        "false_unknown_rate": sum(answer["unknown"] for answer in answers) / 9,
        "fusion": "log_linear_gda",
        "experts": {
            name: all_right([answer["experts"][name]["ranking"] for answer in answers])
            for name in ("clip:image", "dino:image")
        },
        "macro": {"images": 9, **perfect, "called_unknown": pytest.approx(np.mean(list(unknown.values())))},
        "categories": {
            colour: {"images": 3, **perfect, "called_unknown": pytest.approx(unknown[colour])} for colour in COLOURS
        },
        "confusion": {colour: {colour: 3} for colour in COLOURS},
    }
    assert "left out: cannot read 'colours/red/broken.jpg'" in result.err
    (found,) = stocked("evaluate --json --fusion max_confidence", colours).objects
    assert list(found) == [
        *("n", *quality, "false_unknown_rate", "fusion", "experts", "macro", "categories", "confusion"),
    ]
    assert found["fusion"] == "max_confidence"


def test_evaluate_for_people(stocked: Callable[..., Result], colours: Path) -> None:
    write_photos(Path("noise"), range(4))
    result = stocked("evaluate --fusion fixed --unknown noise", colours)
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines() if line.strip()]
    assert lines[0] == [*("accuracy", "top-1", "top-3", "top-5"), *("NLL,", "nats", "Brier", "ECE", "its", "floor")]
    (found,) = stocked("evaluate --json --fusion fixed", colours).objects
    last = [f"{found['nll']:.3f}", f"{found['brier']:.3f}", f"{found['ece']:.1%}", f"{found['ece_floor']:.1%}"]
    assert lines[2] == ["fusion", "(fixed)", "100.0%", "100.0%", "100.0%", *last]
    assert {words[0] for words in lines[3:6]} == {"clip:text", "clip:image", "dino:image"}
    assert lines[6] == ["categories", "images", "precision", "recall", "F1", "called", "unknown"]
    assert [words[:5] for words in lines[8:12]] == [
        *([colour, "3", "100.0%", "100.0%", "100.0%"] for colour in COLOURS),
        ["mean", "9", "100.0%", "100.0%", "100.0%"],
    ]
    assert lines[12] == ["is", "\\", "answered", *COLOURS]
    assert lines[14] == ["blue", "3", "·", "·"]
    assert " ".join(lines[-2]) == f"9 images; {found['false_unknown_rate']:.1%} of them are called unknown"
    assert " ".join(lines[-1]).startswith("unknown images: AUROC 1.000; ")
    assert stocked("evaluate", colours).out.splitlines()[-1].startswith("9 images; ")


def test_evaluate_labels_in_a_csv(stocked: Callable[..., Result], colours: Path) -> None:
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


def test_evaluate_coco_annotations(stocked: Callable[..., Result], colours: Path) -> None:
    blue, red = (Image.open(colours / colour / "0.png") for colour in ("blue", "red"))
    (width, height), both = blue.size, Image.new("RGB", (2 * blue.width, blue.height))
    both.paste(blue, (0, 0))
    both.paste(red, (width, 0))
    both.save(colours / "both.png")
    content = {
        "images": [
            {"id": 1, "file_name": "both.png", "width": 2 * width, "height": height},
            {"id": 2, "file_name": "green/0.png", "width": width, "height": height},
            {"id": 3, "file_name": "../lists.json", "width": width, "height": height},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, width, height]},
            {"image_id": 1, "category_id": 3, "bbox": [width, 0, width, height]},
            {"image_id": 2, "category_id": 2, "bbox": [0, 0, width, height]},
            {"image_id": 3, "category_id": 2, "bbox": [0, 0, width, height]},
        ],
        "categories": [{"id": i, "name": colour} for i, colour in enumerate(COLOURS, 1)],
    }
    Path("lists.json").write_text(json.dumps(content))
    result = stocked("evaluate lists.json --boxes --json --images", colours)
    (found,) = result.objects
    assert (found["n"], found["top1"]) == (3, 1.0)
    assert found["confusion"] == {colour: {colour: 1} for colour in COLOURS}
    assert "images[2]: 'colours/../lists.json' leads out of colours" in result.err
    result = stocked("evaluate lists.json --json --images", colours)  # whole images
    (found,) = result.objects
    assert (found["n"], found["confusion"]) == (1, {"green": {"green": 1}})
    assert "it shows 2 categories (blue, red): take the boxes instead" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n/etc/passwd,red\n", "labels.csv has no image with a label that can be used"),
        ("path,label\nlink/0.png,red\n", "labels.csv has no image with a label that can be used"),
        ("path,label\nred/0.png,purple\n", "1 of the labels in the images is no category of"),
        ("path,label\nred/broken.jpg,red\n", "no image with a label can be read"),
        ("path,label\nhttps://example.org/0.png,red\n", "labels.csv has no image with a label that can be used"),
        ("path,label\n" + "red/0.png," + "x" * 2**20 + "\n", "labels.csv is no CSV: it has a line of 1,048,576"),
        ("file,class\nred/0.png,red\n", "the first line of colours/labels.csv must name the columns path and label"),
        ("", "the first line of colours/labels.csv must name the columns path and label"),
        ("path,label\n\x1b[31mred/0.png,red\n", "labels.csv has no image with a label that can be used"),
    ],
)
def test_files_that_nothing_can_be_evaluated_by(
    stocked: Callable[..., Result], colours: Path, content: str, message: str
) -> None:
    Path("secret").mkdir()
    shutil.copy(colours / "red" / "0.png", "secret")
    (colours / "link").symlink_to(Path("secret").resolve())
    (colours / "labels.csv").write_text(content)
    result = stocked("evaluate --json", colours / "labels.csv")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "\x1b" not in result.err


def test_evaluate_shows_the_mistakes_of_many_categories(cli: Callable[..., Result]) -> None:
    names = [f"c{i:02}" for i in range(11)]
    for i, name in enumerate(names):
        write_photos(Path("references") / name, [i])
        write_photos(Path("test") / name, [i])
    shutil.copy("test/c00/0.png", "test/c01/0.png")
    assert cli("import references").code == 0
    out = cli("evaluate test").out
    assert ["c01", "→", "c00", "1", "50.0%"] in [line.split() for line in out.splitlines()]
    assert "\\" not in out


def test_evaluate_into_files(stocked: Callable[..., Result], colours: Path) -> None:
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


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("classify new --csv --json", "--csv has no evidence, and is no JSON"),
        ("classify new --csv --explain", "--csv has no evidence"),
        ("evaluate colours --csv no/e.csv", "no/e.csv cannot be written: there is no folder no"),
        ("evaluate colours --html colours", "colours cannot be written: Is a directory"),
        ("evaluate colours --suite paper --csv e.csv", "leave --fusion, --csv and --html out"),
        ("evaluate colours --report r", "a page without it is --html FILE"),
    ],
)
def test_wrong_usage_of_files(stocked: Callable[..., Result], new: Path, command: str, message: str) -> None:
    result = stocked(command)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert result.out == ""


def test_a_page_needs_its_extra(stocked: Callable[..., Result], colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zsvec.evaluation.publish", None)
    result = stocked("evaluate --html e.html", colours)
    assert result.code == 1
    assert 'is needed for a report: pip install "zsvec[report]"' in result.err


# ---- calibrate


def add_images(colours: Path, seeds: range) -> None:
    for colour in COLOURS:
        for seed in seeds:
            (colours / colour / f"{seed}.png").write_bytes(encode(coloured(colour, seed)))


def test_calibrate_json(filled: Callable[..., Result], hash_encoders: Loading) -> None:
    before = hash_encoders.embedded()
    result = filled("calibrate --json")
    assert (result.code, result.err) == (0, "")
    assert hash_encoders.embedded() == before
    (found,) = result.objects
    assert list(found) == [
        *("images", "false_unknown_rate", "threshold", "experts", "before", "after"),
        *("scale", "labelled_before", "labelled_after", "suspects"),
    ]
    assert (found["scale"], found["labelled_before"], found["suspects"]) == (1.0, None, [])
    assert (found["images"], found["false_unknown_rate"], found["threshold"]) == (9, 0.05, {})
    assert found["experts"].keys() == {"clip:text", "clip:image", "dino:image"}
    for expert in found["experts"].values():
        assert list(expert) == ["temperature", "spread", "images", "accuracy"]
        assert 0 < expert["temperature"] < 1
        assert 0 < expert["spread"] < 1
        assert (expert["images"], 0 <= expert["accuracy"] <= 1) == (9, True)
    assert found["experts"]["dino:image"]["accuracy"] == 1
    for quality in (found["before"], found["after"]):
        assert list(quality) == ["top1", "cross_entropy", "ece"]
        assert quality["top1"] == 1
        assert 0 <= quality["cross_entropy"] < 0.1
        assert 0 <= quality["ece"] < 0.1
    assert found["before"] == found["after"]  # the import has calibrated it


def test_calibrate_says_from_where_an_image_is_unknown(filled: Callable[..., Result], colours: Path) -> None:
    add_images(colours, range(3, 8))
    assert filled("import", colours).code == 0
    thresholds = {}
    for fraction in ("0.05", "0.5"):
        (found,) = filled("calibrate --json --false-unknown-rate", fraction).objects
        assert (found["images"], found["false_unknown_rate"]) == (24, float(fraction))
        assert found["threshold"].keys() == {"clip:image+clip:text+dino:image"}
        thresholds[fraction] = found["threshold"]["clip:image+clip:text+dino:image"]
    assert thresholds["0.05"] < thresholds["0.5"]
    unknown = [o["unknown"] for o in filled("classify --json", colours).objects if o["error"] is None]
    assert 0.2 < sum(unknown) / len(unknown) < 0.8
    result = filled("calibrate --false-unknown-rate 0.125")
    assert result.out.splitlines()[-1] == (
        "learned from 24 reference images; an image is unknown if it is farther from every category than 87.5% of "
        "these images"
    )


def test_calibrate_names_references_under_a_wrong_category(filled: Callable[..., Result], colours: Path) -> None:
    add_images(colours, range(3, 12))
    for number, (colour, other) in enumerate(itertools.permutations(COLOURS, 2)):
        for seed in (20 + 2 * number, 21 + 2 * number):
            (colours / colour / f"{other} {seed}.png").write_bytes(encode(coloured(other, seed)))
    assert filled("import", colours).code == 0
    (found,) = filled("calibrate --json").objects
    suspects = found["suspects"]
    assert len(suspects) == 12
    assert list(suspects[0]) == ["category", "hash", "source", "probability", "instead", "copied"]
    for suspect in suspects:
        assert Path(suspect["source"]).name.startswith(suspect["instead"])
        assert 0.5 < suspect["probability"] <= 1
    lines = filled("calibrate").out.splitlines()
    assert "12 reference images probably under a wrong category:" in lines
    shown = [line for line in lines if line.strip().endswith(tuple(COLOURS)) and "%" in line]
    assert len(shown) == 10
    assert lines[-1] == "and 2 more: --json names all"


def test_calibrate_for_people(filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = filled("calibrate --json").objects
    result = filled("calibrate")
    assert (result.code, result.err) == (0, CURRENT)
    lines = [line.split() for line in result.out.splitlines() if line.strip()]
    assert lines[0] == ["expert", "temperature", "images", "accuracy"]
    assert lines[2:5] == [
        [name, f"{expert['temperature']:.3f}", "9", f"{expert['accuracy']:.1%}"]
        for name, expert in expected["experts"].items()
    ]
    assert lines[5] == ["fusion", "top-1", "cross-entropy", "calibration", "error"]
    assert [words[:2] for words in lines[7:9]] == [["before", "100.0%"], ["after", "100.0%"]]
    assert [words[3] for words in lines[7:9]] == ["nats"] * 2
    assert " ".join(lines[9]) == (
        "learned from 9 reference images; no threshold: that takes 19 images that share their category with another"
    )
    assert len(lines) == 10
    monkeypatch.setattr(output.out, "width", 30)
    narrow = filled("calibrate").out
    assert "…" not in narrow
    assert max(len(line) for line in narrow.splitlines()[:-1]) <= 30


def test_calibrate_with_one_reference_a_category(cli: Callable[..., Result], new: Path) -> None:
    for colour in ("red", "blue"):
        assert cli("add", colour, "--image", new / f"{colour}.png").code == 0
    (found,) = cli("calibrate --json").objects
    assert (found["images"], found["threshold"], found["before"], found["after"]) == (2, {}, None, None)
    assert found["experts"]["dino:image"]["accuracy"] is None
    result = cli("calibrate")
    few = "log_linear_views runs: log_linear_gda takes 3 images of each category, 'blue' and 1 more have fewer"
    assert (result.code, result.err) == (0, f"{few}\n{CURRENT}")
    assert result.out.count("– (one reference a category)") == 2
    assert "cross-entropy" not in result.out


def test_calibrate_says_that_labelled_images_do_not_count_any_more(filled: Callable[..., Result]) -> None:
    with zsvec.open() as clf:
        scale = clf.calibrate(labelled=[(coloured("blue", seed), "red") for seed in range(9)]).calibration.scale
    assert scale < 0.9
    result = filled("calibrate")
    assert result.err == (
        f"the scale {scale:.2f} learned from labelled images was reset to 1: learn it again by "
        "clf.calibrate(labelled=…)\n"
    )
    assert filled("calibrate").err == CURRENT


def test_calibrate_makes_a_stale_store_current(filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("zsvec.ingest.recalibration._CHEAP", 0)
        assert filled("add white --image colours/red/0.png").code == 0
    for command, key in (("info --json", "calibration"), ("classify --json colours/red/0.png", "calibration")):
        assert [o[key] for o in filled(command).objects] == ["stale"]
    assert dict(line.split()[:2] for line in filled("info").out.splitlines())["calibration"] == "stale"
    result = filled("calibrate")
    few = "log_linear_views runs: log_linear_gda takes 3 images of each category, 'white' has fewer\n"
    assert (result.code, result.err) == (0, few)
    assert filled("calibrate").err == few + CURRENT
    assert filled("calibrate --false-unknown-rate 0.2").err == few
    monkeypatch.setenv("ZSVEC_FUSION", "log_linear_views")
    assert filled("calibrate").err == CURRENT
    for command, key in (("info --json", "calibration"), ("classify --json colours/red/0.png", "calibration")):
        assert [o[key] for o in filled(command).objects] == ["current"]


@pytest.mark.parametrize("content", [[], ["add cat", "add dog"], ["add red --image new/red.png"]])
@pytest.mark.parametrize("options", ["", "--json"])
def test_a_store_that_cannot_be_calibrated(
    cli: Callable[..., Result], new: Path, content: list[str], options: str
) -> None:
    for command in content:
        assert cli(command).code == 0
    result = cli(f"calibrate {options}")
    assert (result.code, result.out) == (1, "")
    missing = "" if content else "the missing folder "
    assert result.err == (
        f"zsvec: {missing}{os.environ['ZSVEC_STORE']} (namespace zsvec) cannot be calibrated: "
        "that takes two categories and a reference image\n"
    )
    assert Path(os.environ["ZSVEC_STORE"]).exists() == bool(content)


# ---- audit


@pytest.fixture
def doubtful(filled: Callable[..., Result], colours: Path) -> Callable[..., Result]:
    """A store with six images under a wrong category, and the copy of one in another."""
    add_images(colours, range(3, 12))
    for number, (colour, other) in enumerate(itertools.permutations(COLOURS, 2)):
        (colours / colour / f"{other} {number}.png").write_bytes(encode(coloured(other, 20 + number)))
    (colours / "red" / "copy of blue.png").write_bytes((colours / "blue" / "0.png").read_bytes())
    assert filled("import", colours).code == 0
    return filled


def test_audit_json(doubtful: Callable[..., Result], hash_encoders: Loading) -> None:
    filled = doubtful
    before, embedded = filled("list --json").objects, hash_encoders.embedded()
    result = filled("audit --json")
    assert (result.code, result.err) == (0, "")
    summary, *findings = result.objects
    assert summary == {
        "finding": "summary",
        "images": 43,
        "judged": 43,
        "calibrated": True,
        **{kind: summary[kind] for kind in ("labels", "duplicates", "outliers", "thin", "confusions")},
    }
    labels = [one for one in findings if one["finding"] == "label"]
    assert len(labels) == summary["labels"] == 7
    assert all(one["instead"] in Path(one["source"]).name for one in labels)
    assert [one["probability"] for one in labels] == sorted((one["probability"] for one in labels), reverse=True)
    (pair,) = [one for one in findings if one["finding"] == "duplicates" and one["across"] and one["likeness"] > 0.9999]
    assert [image["category"] for image in pair["images"]] == ["blue", "red"]
    assert (filled("list --json").objects, hash_encoders.embedded()) == (before, embedded)


def test_audit_for_people(filled: Callable[..., Result], colours: Path) -> None:
    result = filled("audit")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1].startswith("9 reference images, 9 of them judged by the others")
    for number, (colour, other) in enumerate([*itertools.permutations(COLOURS, 2)] * 2):
        (colours / colour / f"{other} {number}.png").write_bytes(encode(coloured(other, 20 + number)))
    add_images(colours, range(3, 12))
    assert filled("import", colours).code == 0
    lines = filled("audit").out.splitlines()
    assert lines[0] == "12 reference images probably under a wrong category:"
    assert "and 2 more: --json and --html name all" in lines
    assert lines[-1] == "48 reference images, 48 of them judged by the others"


def test_audit_asks_what_to_do_and_does_it(
    doubtful: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, hash_encoders: Loading
) -> None:
    found = [one for one in doubtful("audit --json").objects if one["finding"] == "label"]
    embedded = hash_encoders.embedded()
    monkeypatch.setattr("zsvec.cli.audit.is_terminal", lambda: True)
    result = doubtful("audit --fix", stdin="m\nnonsense\nR\nk\ns\n")
    assert (result.code, result.out.strip()) == (0, "")  # click puts the space of its question there
    first, second, third, *_ = found
    assert f"is under '{first['category']}', and probably '{first['instead']}'" in result.err.replace("\n", " ")
    with open_store(os.environ["ZSVEC_STORE"], namespace="zsvec") as store:

        def names_of(one: dict[str, Any]) -> set[str]:
            return {c.name for c in store.categories() if one["hash"] in {digest for *_, digest in store.keys(c.name)}}

        assert names_of(first) == {first["instead"]}
        assert names_of(second) == ({second["instead"]} if second["copied"] else set())
        assert third["category"] in names_of(third)
    assert hash_encoders.embedded() == embedded
    assert doubtful("audit --fix", stdin="").code == 1  # nobody answers


def test_audit_asks_nobody_where_nobody_can_answer(filled: Callable[..., Result]) -> None:
    for command, says in {"audit --fix": "--fix asks at a terminal", "audit --fix --json": "give it alone"}.items():
        result = filled(command)
        assert (result.code, result.out) == (2, "")
        assert says in result.err


def test_audit_without_a_calibration(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("add red --text red").code == 0
    result = cli("audit")
    assert (result.code, result.out) == (0, "0 reference images, 0 of them judged by the others; nothing is doubtful\n")
    assert result.err == (
        "labels are not judged without a calibration: `zsvec calibrate` makes it, where there are two categories with "
        "images\n"
    )
    assert cli("audit --json").objects[0]["calibrated"] is False


def test_audit_writes_a_page(filled: Callable[..., Result]) -> None:
    result = filled("audit --html audit.html")
    assert (result.code, result.err) == (0, "page: audit.html\n")
    assert "9 reference images" in Path("audit.html").read_text(encoding="utf-8")
    assert filled("audit --json --html audit.html").objects[0]["images"] == 9
    result = filled("audit --html missing/audit.html")
    assert (result.code, result.out.splitlines()[-1][:18]) == (2, "9 reference images")
    assert "missing/audit.html' cannot be written" in result.err


def test_audit_shows_control_characters_and_obeys_none(filled: Callable[..., Result], colours: Path) -> None:
    for seed in range(2):
        (colours / "red" / f"\x1b[2J[bold]{seed}.png").write_bytes(encode(coloured("blue", 30 + seed)))
    assert filled("import", colours).code == 0
    add_images(colours, range(3, 12))
    assert filled("import", colours).code == 0
    out = filled("audit").out
    assert "\x1b" not in out
    assert "[bold]0.png" in out


# ---- wrong usage


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "Usage"),
        ("--store x", "Missing command"),
        ("nonsense", "nonsense"),
        ("--nonsense list", "--nonsense"),
        ("classify", "Missing argument"),
        ("show", "Missing argument"),
        ("classify --top-k 0 x", "--top-k"),
        ("classify --top-k many x", "--top-k"),
        ("classify --fusion nonsense x", "nonsense"),
        ("evaluate --fusion nonsense x", "nonsense"),
        ("--profile nonsense classify x", "no profile is named 'nonsense'; choose one of base, offline, plus"),
        ("--namespace a/b list", "namespace"),
        ("--store '' list", "store: "),
        ("--store localhost:6333 list", "'localhost:6333' looks like a server: write http://localhost:6333"),
        ("--store :memory: list", "':memory:' would be gone when this command ends: give a folder"),
        ("--store :memory: add x", "':memory:' would be gone when this command ends: give a folder"),
        ("classify x.png --store y", "--store stands before the command: zsvec --store … classify"),
        ("import --profile offline x", "--profile stands before the command"),
        ("list --namespace=y", "--namespace stands before the command"),
        ("classify --nonsense x", "--nonsense"),
        ("--store ftp://x list", "'ftp://x' is neither a folder nor an http:// or https:// URL"),
        ("--store colours/red/0.png list", "'colours/red/0.png' is a file"),
        ("show nonsense", "there is no category 'nonsense'"),
        ("remove nonsense", "there is no category 'nonsense'"),
        ("add ''", "a category name must not be empty. Got ''"),
        ("add x --text ''", "a definition text must be a str that is not empty. Got ''"),
        ("import missing", "missing is not a folder"),
        ("import colours/red/0.png", "is not a folder"),
        ("import colours/red", "colours/red has no sub-folders"),
        ("import colours --definitions missing.json", "missing.json cannot be read"),
        ("import colours --definitions colours/red/0.png", "0.png cannot be read: 'utf-8' codec"),
        ("evaluate missing", "cannot list the folder 'missing'"),
        ("evaluate colours/red", "colours/red has no images in sub-folders"),
        ("evaluate colours --unknown missing", "cannot list the folder 'missing'"),
        ("calibrate --false-unknown-rate 0", "false_unknown_rate must be between 0 and 1. Got 0.0"),
        ("calibrate --false-unknown-rate 1", "false_unknown_rate must be between 0 and 1. Got 1.0"),
        ("calibrate --false-unknown-rate 5", "false_unknown_rate must be between 0 and 1. Got 5.0"),
        ("calibrate --false-unknown-rate -0.1", "false_unknown_rate must be between 0 and 1. Got -0.1"),
        ("calibrate --false-unknown-rate nan", "false_unknown_rate must be between 0 and 1. Got nan"),
        ("calibrate --false-unknown-rate many", "--false-unknown-rate"),
        ("calibrate nonsense", "nonsense"),
    ],
)
def test_wrong_usage(stocked: Callable[..., Result], command: str, message: str) -> None:
    before = stocked("list --json")
    result = stocked(command)
    assert result.code == 2
    assert message in result.err + result.out
    assert "Traceback" not in result.err
    if command:
        assert result.out == ""
    assert stocked("list --json") == before


@pytest.mark.parametrize("setting", ["ZSVEC_FUSION", "ZSVEC_BATCH_SIZE", "ZSVEC_INDEX", "ZSVEC_DEVICE"])
def test_a_wrong_value_in_the_environment(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(setting, "nonsense")
    result = cli("classify x")
    assert result.code == 2
    assert f"{setting.removeprefix('ZSVEC_').lower()}: " in result.err
    assert "(got 'nonsense')" in result.err


def test_what_fails_is_no_wrong_usage(cli: Callable[..., Result], new: Path) -> None:
    result = cli("classify", new)
    assert (result.code, result.out) == (1, "")
    assert "has no category yet: add one with `zsvec add`" in result.err
    assert cli("--profile base add cat").code == 0
    result = cli("--profile offline add dog")
    assert (result.code, result.out) == (1, "")
    assert "vectors of the encoders clip, dino" in result.err


@pytest.mark.parametrize(
    "command",
    ["classify {}", "import {}", "evaluate {}", "add x --image {}", "--store {} list"],
    ids=lambda c: c.split()[0],
)
def test_a_name_that_is_too_long_for_the_file_system(stocked: Callable[..., Result], command: str) -> None:
    result = stocked(command.format("x" * 5000))
    assert result.code in (1, 2)
    assert "xxx" in result.out + result.err
    assert "too long" in result.out + result.err or "not a folder" in result.err


def test_help_and_version(cli: Callable[..., Result]) -> None:
    assert cli("--version") == Result(0, f"zsvec {__version__}\n", "")
    result = cli("--help")
    commands = ["demo", "import", "add", "remove", "list", "show", "classify", "evaluate", "calibrate"]
    commands += ["generate", "info", "doctor", "init", "gc"]
    assert result.code == 0
    assert all(f" {command} " in result.out for command in commands)
    for command in commands:
        assert cli(f"{command} --help").code == 0


def test_a_profile_of_ones_own(cli: Callable[..., Result]) -> None:
    trusted_settings('profile = "mine"\n[profiles.mine.encoders.vit]\nfamily = "clip"\nmodel = "m"\n')
    assert [o["references"] for o in cli("add cat --json").objects] == [{"vit:text": 1}]


# ---- any name, any terminal


@pytest.mark.parametrize(
    "name", ["小熊猫", "é", "🐼👩‍👩‍👧‍👦", "[red]x[/red]", ":cat:", "a/b", "--x", "%s {x}", "[/]", "\\[b]"]
)
def test_any_name(filled: Callable[..., Result], new: Path, name: str) -> None:
    write_photos(new, [7])
    assert filled("add --text t --image new/7.png --", name).code == 0
    assert name in filled("list").out
    assert name in filled("show --", name).out
    assert [o["category"] for o in filled("show --json --", name).objects] == [name]
    (found,) = filled("classify --json new/7.png").objects
    assert found["label"] == name
    assert filled("classify new/7.png").out.startswith(f"new/7.png  {name} ")
    assert f" {name}: new/7.png" in filled("classify --explain new/7.png").out
    assert filled("remove --", name).err == f"removed {name}\n"


def test_file_names_as_they_are(stocked: Callable[..., Result]) -> None:
    for name in ("[red]a[b].png", ":cat:.png", "小熊猫.png"):
        Path(name).write_bytes(encode(coloured("red", 100)))
        assert stocked("classify", name).out.startswith(f"{name}  red ")
        assert [o["source"] for o in stocked("classify --json -", stdin=f"{name}\n").objects] == [name]


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_narrow_terminal_cuts_nothing_off(
    filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, new: Path, width: int
) -> None:
    filled("add hippopotamus --text t")
    monkeypatch.setattr(output.out, "width", width)
    for command in ("list", "show red", "info"):
        result = filled(command)
        assert result.code == 0
        assert "…" not in result.out
        assert max(len(line) for line in result.out.splitlines()) <= width
    assert first_column(filled("list").out) == "category" + "".join(sorted(["hippopotamus", *COLOURS]))
    explained = filled("classify --explain new/red.png").out.partition("\n")[2]
    assert "…" not in explained
    explained = explained[: explained.index("fused by")]
    assert first_column(explained) == "expertclip:imageclip:textdino:image"


def first_column(table: str) -> str:
    """What stands in the first column of a table, put together again where it was folded."""
    lines = [line.ljust(200) for line in table.splitlines() if line.strip() and "─" not in line]
    edge = next(i for i in range(1, 200) if all(line[i] == " " for line in lines))
    return "".join(line[:edge].strip() for line in lines)


# ---- processes


RUNNER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
import zsvec.encoders
from zsvec.encoders import EncoderSet
from zsvec.testing import HashEncoder

def load_encoders(specs, **options):
    made = [HashEncoder(name, modalities=spec.modalities) for name, spec in specs.items()]
    return EncoderSet(made, batch_size=options["batch_size"])

zsvec.encoders.load_encoders = load_encoders
from zsvec.cli import main
main()
"""


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start zsvec with hash encoders in a process of its own."""
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", RUNNER, *map(str, arguments)], **(streams | options))


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, (out or b"").decode(), err.decode()


def test_the_first_answer_comes_before_stdin_is_closed(stocked: Callable[..., Result], new: Path) -> None:
    process = start("classify", "-", "--json")
    assert process.stdin
    assert process.stdout
    for name, label in (("new/red.png", "red"), ("missing.png", None), ("new/blue.png", "blue")):
        process.stdin.write(f"{name}\n".encode())
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        assert (found["source"], found["label"]) == (name, label)
    code, out, err = finish(process)
    assert (code, out, err) == (0, "", "1 of 3 images could not be read\n")


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "people"])
def test_ctrl_c(stocked: Callable[..., Result], new: Path, options: list[str]) -> None:
    process = start("classify", "-", *options)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"new/red.png\n")
    process.stdin.flush()
    assert b"red" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 130  # with stdin still open
    assert finish(process)[1:] == ("", "")
    assert len(stocked("list --json").objects) == 3


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "people"])
def test_a_reader_that_has_enough(stocked: Callable[..., Result], new: Path, options: list[str]) -> None:
    process = start("classify", "-", *options)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"new/red.png\n" * 3)
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    with pytest.raises(BrokenPipeError):
        write_for_ever(process.stdin.fileno(), b"new/red.png\n")  # until it has noticed and ended
    process.stdin.close()
    assert process.stderr
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(DEADLINE) in (0, 1)


def write_for_ever(file: int, data: bytes) -> None:
    while True:
        os.write(file, data)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "people"])
def test_a_full_disk(stocked: Callable[..., Result], options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(start("list", *options, stdout=full))
    assert code == 1
    assert err == "zsvec: [Errno 28] No space left on device\n"


def test_a_second_process_on_an_embedded_store(filled: Callable[..., Result], new: Path) -> None:
    process = start("classify", "-", "--json")
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"new/red.png\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["label"] == "red"
    for command in ("add cat", "list", "classify new/red.png"):
        result = filled(command)
        assert (result.code, result.out) == (1, "")
        assert "is already open, here or in another process: close it there, or share one store" in result.err
    process.stdin.write(b"new/blue.png\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["label"] == "blue"
    assert finish(process) == (0, "", "")
    assert len(filled("list --json").objects) == 3


def test_file_names_that_are_no_unicode(stocked: Callable[..., Result], new: Path) -> None:
    with open(b"new/\xff.png", "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(encode(coloured("red", 100)))
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    process = start("classify", "new", "-", "--json", env=strict)
    code, out, err = _with_input(process, b"new/\xff.png\n\xfe.png\n")
    assert (code, err) == (0, "1 of 5 images could not be read\n")
    found = [json.loads(line) for line in out.splitlines()]
    assert [o["source"] for o in found] == [
        "new/blue.png",
        "new/red.png",
        "new/\udcff.png",
        "new/\udcff.png",
        "\udcfe.png",
    ]
    assert [o["label"] for o in found] == ["blue", "red", "red", "red", None]
    code, out, err = finish(start("classify", "new", env=strict))
    assert (code, err) == (0, "")
    assert out.splitlines()[2].startswith("new/\\udcff.png  red ")


def _with_input(process: subprocess.Popen[bytes], data: bytes) -> tuple[int, str, str]:
    out, err = process.communicate(data, timeout=DEADLINE)
    return process.returncode, out.decode(), err.decode()


def test_a_terminal_that_is_not_unicode(filled: Callable[..., Result]) -> None:
    filled("add 小熊猫🐼é --text t")
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    process = start("show", "小熊猫🐼é", "--json", env=latin)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out.decode("ascii"))["category"] == "小熊猫🐼é"
    process = start("list", env=latin)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")
    assert b"pneumo" not in out
    assert b"\\u5c0f" in out


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zsvec", "--version"], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert (done.stdout, done.stderr) == (f"zsvec {__version__}\n", "")


@pytest.mark.parametrize("command", ["show", "remove"])
def test_a_name_that_is_misspelt_is_told_the_nearest(filled: Callable[..., Result], command: str) -> None:
    result = filled(f"{command} gren")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("did you mean 'green'?\n")
    assert "did you mean" not in filled(f"{command} xyz").err


def test_an_evaluation_says_that_the_store_is_empty(cli: Callable[..., Result], colours: Path) -> None:
    result = cli("evaluate", colours)
    assert (result.code, result.out) == (1, "")
    assert "has no category yet" in result.err


@pytest.mark.parametrize("url", ["https://example.org/a.jpg", "s3://bucket/a.jpg"])
def test_urls_are_not_fetched_and_that_is_said(stocked: Callable[..., Result], url: str) -> None:
    result = stocked("classify", url)
    assert result.code == 1
    assert "URLs are not fetched" in result.out


def test_import_names_folders_without_images_and_definitions_without_a_folder(
    cli: Callable[..., Result], colours: Path
) -> None:
    for name in ("empty", "__MACOSX", ".git", "zsvec__catalog", "zsvec__clip"):
        (colours / name).mkdir()
    Path("texts.json").write_text('{"red": "red things", "rde": "red things"}')
    result = cli("import", colours, "--definitions", "texts.json")
    assert result.code == 0
    notes = result.err.splitlines()
    assert "left out, because there are no images in the folders: empty" in notes
    assert "no folder for the definitions of rde" in notes
    names = [found["category"] for found in cli("list --json").objects]
    assert names == sorted([*COLOURS, "rde"])
    Path("texts.json").write_text('{"empty": "nothing"}')
    assert (
        "no images in the folders of the definitions of empty"
        in cli("import", colours, "--definitions", "texts.json").err.splitlines()
    )
    assert "empty" in [found["category"] for found in cli("list --json").objects]
    (colours / "empty").rmdir()
    assert "no images" not in cli("import", colours).err


def test_an_import_says_what_was_there_already_what_is_nested_and_what_is_no_image(
    cli: Callable[..., Result], colours: Path
) -> None:
    assert cli("import", colours).code == 0
    (colours / "red" / "more").mkdir()
    (colours / "red" / "more" / "new.png").write_bytes(encode(coloured("red", 77)))
    (colours / "red" / "notes.txt").write_text("red")
    (colours / "blue" / "a.heic").write_bytes(b"heic")
    (colours / "blue" / "b.HEIC").write_bytes(b"heic")
    (colours / "blue" / "LICENSE").write_text("free")
    (colours / "loose.png").write_bytes(encode(coloured("red", 78)))
    notes = cli("import", colours).err.splitlines()
    assert "images of no category, because they are in no sub-folder: 1" in notes
    assert "images of sub-folders belong to the category of the folder above: red 1" in notes
    files = "files left out, because they are no images by their names"
    assert f"{files}: 4 (2 .heic, 1 without a suffix, 1 .txt)" in notes
    assert notes[-1].startswith("3 categories, 11 images (1 unreadable, 9 stored before, or the same as another) in ")
    for path in (colours / "red" / "notes.txt", colours / "blue" / "a.heic", colours / "blue" / "LICENSE"):
        path.unlink()
    assert f"{files}: 1 (1 .heic)" in cli("import", colours).err.splitlines()


def test_images_are_not_replaced_by_those_that_can_be_read(cli: Callable[..., Result], colours: Path) -> None:
    assert cli("import", colours).code == 0
    result = cli("import --replace", colours)  # one of the red ones is broken
    summary, left = result.err.splitlines()[-2:]
    assert summary.startswith("2 categories, 6 images (0 unreadable) in ")
    assert left == "left as they were, because images are unreadable: red"
    versions = {found["category"]: found["version"] for found in cli("list --json").objects}
    assert versions == {"blue": 2, "green": 2, "red": 1}


def test_an_interrupted_import_says_how_to_go_on(
    cli: Callable[..., Result], colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, categories: Any, *, on_commit: Callable[[Any], None], **options: Any) -> None:
        on_commit(self.add_category(next(iter(categories)).name))
        raise KeyboardInterrupt

    monkeypatch.setattr("zsvec.classifier.Classifier.add_categories", interrupted)
    monkeypatch.setattr("zsvec.classifier.Classifier.add_category", lambda self, name: SimpleNamespace(name=name))
    result = cli("import", colours)
    assert result.code == 130
    assert "interrupted: 1 of 3 categories are stored. Do the same again to go on" in result.err


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("n\n", False), ("", False)])
def test_remove_asks_on_a_terminal(
    filled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, answer: str, *, removed: bool
) -> None:
    monkeypatch.setattr("zsvec.cli.app.is_terminal", lambda: True)
    result = filled("remove green", stdin=answer)
    assert result.code == (0 if removed else 1)
    assert "Remove 'green' and its 7 references?" in result.err
    assert ("green" not in filled("list").out) == removed
    assert filled("remove --yes red").code == 0


@pytest.mark.skipif(os.name != "posix", reason="a terminal of a test is a pseudo-terminal")
def test_ctrl_c_at_the_question_of_remove(filled: Callable[..., Result]) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = start("remove", "red", stdin=theirs)
    os.close(theirs)
    assert process.stderr
    said = b""
    while b"Remove 'red' and its 7 references?" not in said:
        said += (part := os.read(process.stderr.fileno(), 1000))
        assert part, said
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    os.close(ours)
    assert (code, out.strip()) == (130, "")  # click puts the space of its question there
    assert len(filled("list --json").objects) == 3


@pytest.mark.parametrize("command", ["list", "show cat", "classify new/red.png", "remove cat"])
def test_a_store_that_does_not_exist_is_said_not_to(cli: Callable[..., Result], new: Path, command: str) -> None:
    said = cli(f"--store nowhere {command}").err
    assert f"the missing folder {Path('nowhere').absolute()} (namespace zsvec)" in said
    assert not Path("nowhere").exists()


def test_info_is_in_words_and_one_is_singular(cli: Callable[..., Result], new: Path) -> None:
    (Path("one") / "red").mkdir(parents=True)
    (new / "red.png").rename("one/red/red.png")
    assert cli("import one").err.startswith("1 category, 1 image (0 unreadable)")
    lines = [line.split() for line in cli("info").out.splitlines()]
    assert ["unreadable", "none"] in lines
    assert {("references", "clip:image:", "1"), ("clip:text:", "1")} <= set(map(tuple, lines))
    assert not set("{}[]'") & set(cli("info").out)
    assert cli("--namespace other init").code == 0
    assert cli("--namespace other info").out.count("none") == 3  # unreadable, references, calibration
