"""`zsvec inbox`, `zsvec correct`, and `--keep`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import coloured, isolated, write_photos  # noqa: F401
from tests.test_cli import Result, cli, colours, filled, hash_encoders  # noqa: F401
from zsvec.inputs.images import content_hash

pytestmark = pytest.mark.usefixtures("hash_encoders")


@pytest.fixture
def waiting(filled: Callable[..., Result]) -> Callable[..., Result]:  # noqa: F811
    """A store with three images that wait."""
    Path("new").mkdir()
    write_photos(Path("new"), [1, 2, 3])
    assert filled("classify --keep all new").code == 0
    return filled


def hashes(cli: Callable[..., Result]) -> list[str]:  # noqa: F811
    return [one["hash"] for one in cli("inbox --json").objects]


def test_inbox_is_empty(filled: Callable[..., Result]) -> None:  # noqa: F811
    result = filled("inbox")
    assert (result.code, result.out, result.err) == (0, "", "0 images wait for a label\n")
    assert filled("inbox groups").err == "no five unknown images that wait look alike\n"
    assert filled("inbox --json").out == filled("inbox groups --json").out == ""


def test_inbox_lists_what_waits(waiting: Callable[..., Result]) -> None:
    result = waiting("inbox")
    assert result.err == "3 images wait for a label\n"
    assert all(f"new/{name}" in result.out for name in (path.name for path in Path("new").iterdir()))
    found = waiting("inbox --json").objects
    assert {one["hash"] for one in found} == {content_hash(path) for path in Path("new").iterdir()}
    assert found[0].keys() == {"hash", "source", "added", "width", "height", "urgency", "prediction"}
    assert found[0]["prediction"]["hash"] == found[0]["hash"]
    assert [one["hash"] for one in waiting("inbox -n 1 --json").objects] == [found[0]["hash"]]


def test_inbox_as_a_contact_sheet(waiting: Callable[..., Result]) -> None:
    assert "the contact sheet is sheet.html\n" in waiting("inbox --sheet sheet.html").err
    assert Path("sheet.html").stat().st_size > 1000
    assert waiting("inbox --sheet sheet.pdf").code == 2


def test_inbox_label(waiting: Callable[..., Result]) -> None:
    first, second, third = hashes(waiting)
    [category] = waiting(f"inbox label --json {first[:12]} {second} noise").objects
    assert (category["category"], set(category["references"].values())) == ("noise", {2})
    assert hashes(waiting) == [third]
    assert waiting(f"inbox label {first} noise").code == 0  # done again
    assert "noise" in waiting(f"inbox label {third[:6]} noise").out
    assert waiting("show noise").out.count("new/") >= 3


def test_inbox_dismiss(waiting: Callable[..., Result]) -> None:
    first, *others = hashes(waiting)
    result = waiting(f"inbox dismiss {first[:8]}")
    assert (result.code, result.err) == (0, "dismissed 1 image\n")
    assert set(hashes(waiting)) == set(others)
    assert waiting("classify --keep all new").code == 0
    assert set(hashes(waiting)) == set(others)


@pytest.mark.parametrize("start", ["", "12345", "zzzzzzzz"])
def test_inbox_hash_that_is_none(waiting: Callable[..., Result], start: str) -> None:
    for command in (f"inbox label '{start}' red", f"inbox dismiss '{start}'"):
        result = waiting(command)
        assert result.code == 2
        assert re.search(
            "is too short for a hash: give 6|is the beginning of no hash of the images that wait: `zsvec inbox`",
            result.err,
        )


def test_names_of_files_are_obeyed_by_no_terminal(filled: Callable[..., Result]) -> None:  # noqa: F811
    evil = "\x1b[2J\x07[red]\n.png"
    coloured("red", 50).resize((8, 8)).rotate(45).save(evil)
    assert filled("classify --keep all .").code == 0
    for command in ("inbox", "inbox --sheet sheet.html"):
        result = filled(command)
        assert "[red]" in result.out
        assert not {"\x1b", "\x07"} & set(result.out + result.err)
    assert "\x1b" not in Path("sheet.html").read_text(encoding="utf-8")


def test_correct(filled: Callable[..., Result]) -> None:  # noqa: F811
    [path] = write_photos(Path(), [9])
    [category] = filled(f"correct --json {path} green").objects
    assert category["category"] == "green"
    assert path.name in filled("show green").out
    assert filled(f"correct {path} red").code == 0
    assert path.name in filled("show red").out
    assert path.name not in filled("show green").out
    missing = filled("correct missing.jpg red")
    assert missing.code == 1
    assert "missing.jpg" in missing.err


def test_keep_is_checked(filled: Callable[..., Result]) -> None:  # noqa: F811
    result = filled("classify --keep some .")
    assert result.code == 2
    assert "keep: " in result.err
