"""`zsvec inbox`, `zsvec correct`, and `--keep`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import zsvec
from tests.cli.support import Cli
from tests.support import coloured, encode, photo, write_photos
from zsvec.inputs.images import content_hash

pytestmark = pytest.mark.usefixtures("hash_encoders")


@pytest.fixture
def waiting(filled: Cli) -> Cli:
    """A store with three images that wait."""
    write_photos(Path("new"), [1, 2, 3])
    assert filled("classify --keep all new").code == 0
    return filled


def hashes(cli: Cli) -> list[str]:
    return [one["hash"] for one in cli("inbox --json").objects]


def test_empty(stocked: Cli) -> None:
    result = stocked("inbox")
    assert (result.code, result.out, result.err) == (0, "", "0 images wait for a label\n")
    assert stocked("inbox groups").err == "no five unknown images that wait look alike\n"
    assert stocked("inbox --json").out == stocked("inbox groups --json").out == ""
    result = stocked("classify --keep some .")
    assert result.code == 2
    assert "keep: " in result.err


def test_classify_tells_how_many_images_it_kept(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(Path("new"), [1, 2])
    write_photos(Path("newer"), [2, 3])
    assert filled("classify new").err == ""
    for folder, new, every in (("new", "2 new images", 2), ("newer", "1 new image", 3), ("newer", "0 new images", 3)):
        result = filled(f"classify --keep all {folder}")
        assert result.err == f"kept for a label: {new}, {every} in all; see `zsvec inbox`\n"
    monkeypatch.setenv("ZSVEC_KEEP", "all")
    assert "0 new images, 3 in all" in filled("classify --csv new").err


def test_list_and_contact_sheet(waiting: Cli) -> None:
    result = waiting("inbox")
    assert result.err == "3 images wait for a label\n"
    assert all(f"new/{path.name}" in result.out for path in Path("new").iterdir())
    found = waiting("inbox --json").objects
    assert {one["hash"] for one in found} == {content_hash(path) for path in Path("new").iterdir()}
    assert found[0].keys() == {"hash", "source", "added", "width", "height", "urgency", "prediction"}
    assert found[0]["prediction"]["hash"] == found[0]["hash"]
    assert [one["hash"] for one in waiting("inbox -n 1 --json").objects] == [found[0]["hash"]]
    assert "the contact sheet is sheet.html\n" in waiting("inbox --sheet sheet.html").err
    assert Path("sheet.html").stat().st_size > 1000
    assert waiting("inbox --sheet sheet.pdf").code == 2


def test_label(waiting: Cli) -> None:
    first, second, third = hashes(waiting)
    [category] = waiting(f"inbox label --json {first[:12]} {second} noise").objects
    assert (category["category"], set(category["references"].values())) == ("noise", {2})
    assert hashes(waiting) == [third]
    assert waiting(f"inbox label {first} noise").code == 0  # repeated
    assert "noise" in waiting(f"inbox label {third[:6]} noise").out
    assert waiting("show noise").out.count("new/") >= 3


@pytest.fixture
def grouped(cli: Cli) -> Cli:
    """A store without categories, and two groups of similar images that wait."""
    with zsvec.open() as clf:
        for colour in ("navy", "gold"):
            for seed in range(7):
                clf.keep(coloured(colour, seed))
    return cli


def test_label_a_group(grouped: Cli) -> None:
    first, second = grouped("inbox groups --json").objects
    result = grouped("inbox label --group 2 --json dark")
    number = len(second["images"])
    assert result.err.splitlines() == [
        "'dark' is a new category. `zsvec undo` takes it back",
        f"{number} images of group 2 labelled dark",
        "the other groups have new numbers: see `zsvec inbox groups`",
    ]
    assert [(found["category"], found["references"]["clip:image"]) for found in result.objects] == [("dark", number)]
    stored = {one["hash"] for one in grouped("show dark --json").objects[0]["stored"]}
    assert stored == {image["hash"] for image in second["images"]}
    assert set(hashes(grouped)) >= {image["hash"] for image in first["images"]}


def test_a_group_that_is_not_there(grouped: Cli) -> None:
    before = hashes(grouped)
    for arguments, message in {
        "--group 3 dark": "--group must be the number of one of 2 groups. Got 3: see `zsvec inbox groups`",
        "--group 0 dark": "--group",
        "--group one dark": "--group",
        f"--group 1 {before[0]} dark": "give hashes of images, or a group by --group",
        "dark": "give hashes of images, or a group by --group",
        "--group 1": "Missing argument",
        "--group 1 ..": "a category name must not be",
    }.items():
        result = grouped(f"inbox label {arguments}")
        assert (result.code, result.out) == (2, "")
        assert message in result.said
    assert hashes(grouped) == before


def test_dismiss(waiting: Cli) -> None:
    first, *others = hashes(waiting)
    result = waiting(f"inbox dismiss {first[:8]}")
    assert (result.code, result.err) == (0, "dismissed 1 image\n")
    assert set(hashes(waiting)) == set(others)
    assert waiting("classify --keep all new").code == 0
    assert set(hashes(waiting)) == set(others)
    none = "is the beginning of no hash of the images that wait: see `zsvec inbox`"
    for start, message in {"": "be empty", "12345": "is too short for a hash", "z" * 8: none}.items():
        for command in (f"inbox label '{start}' red", f"inbox dismiss '{start}'"):
            result = waiting(command)
            assert result.code == 2
            assert message in result.err


def test_several_labels(cli: Cli, colours: Path) -> None:
    assert cli("import --labels many", colours).code == 0
    [path, other] = write_photos(Path(), [9, 10])
    found = cli(f"correct --json {path} green --also red").objects
    assert [category["category"] for category in found] == ["green", "red"]
    assert all(path.name in cli(f"show {name}").out for name in ("green", "red"))
    with zsvec.open() as clf:
        digest = clf.keep(other)
    assert cli(f"inbox label {digest} blue --also new").code == 0
    assert all(other.name in cli(f"show {name}").out for name in ("blue", "new"))
    [score] = cli("evaluate --json", colours).objects
    assert score["n"] == 9
    assert score["labels"].keys() == {"blue", "green", "red"}
    assert "mAP" in cli("evaluate", colours).out


def test_several_names_need_the_setting(filled: Cli) -> None:
    [path] = write_photos(Path(), [9])
    assert filled(f"correct {path} green --also red").code == 2
    assert path.name not in filled("show green").out


def test_correct(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    [path] = write_photos(Path(), [9])
    [category] = filled(f"correct --json {path} green").objects
    assert category["category"] == "green"
    assert path.name in filled("show green").out
    assert filled(f"correct {path} red").code == 0
    assert path.name in filled("show red").out
    assert path.name not in filled("show green").out
    assert filled(f"correct {path} gren").err == (
        "'gren' is a new category; did you mean 'green'? `zsvec undo` takes it back\n"
    )
    assert filled("undo").code == 0
    assert filled(f"correct {path} green").err == ""
    assert "gren" not in {found["category"] for found in filled("list --json").objects}
    other = path.rename(os.fsdecode(b"caf\xe9.jpg"))
    other.write_bytes(encode(photo(10)))
    assert filled("correct", other, "red").code == 0
    assert r"caf\udce9.jpg" in filled("show red").out
    missing = filled("correct missing.jpg red")
    assert missing.code == 1
    assert "missing.jpg" in missing.err
