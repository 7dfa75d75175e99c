"""Commands on a folder leave out links to images elsewhere, and report the links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.support import Cli, Result
from tests.support import write_photos

pytestmark = [
    pytest.mark.usefixtures("hash_encoders"),
    pytest.mark.skipif(os.name != "posix", reason="links take rights elsewhere"),
]


@pytest.fixture
def linked(colours: Path) -> Path:
    """A folder of categories with three links out of the folder, and one within."""
    write_photos(Path("private"), [70, 71])
    (colours / "red" / "broken.jpg").unlink(missing_ok=True)
    (colours / "red" / "0-link.png").symlink_to(Path("private/0.png").absolute())
    (colours / "blue" / "deep").symlink_to(Path("private").absolute(), target_is_directory=True)
    (colours / "secret").symlink_to(Path("private").absolute(), target_is_directory=True)
    (colours / "green" / "within.png").symlink_to("../red/0.png")
    return colours


LINKS = ("red/0-link.png", "blue/deep", "secret")


def told(result: Result) -> list[str]:
    """The notes of links that lead out."""
    return [line for line in result.err.splitlines() if "leads out of" in line]


def assert_told(result: Result, folder: Path, links: tuple[str, ...] = LINKS) -> None:
    notes = told(result)
    assert len(notes) == len(links)
    for link in links:
        (note,) = [note for note in notes if f"{str(folder / link)!r}" in note]
        assert note.startswith("left out: ")
        assert "private" in note


def test_import(cli: Cli, linked: Path) -> None:
    result = cli("import --json", linked)
    assert result.code == 0
    assert_told(result, linked)
    names = [found["category"] for found in result.objects]
    assert sorted(names) == ["blue", "green", "red"]
    assert "secret" not in result.out


def test_import_that_replaces_ends_before_anything_is_written(cli: Cli, linked: Path) -> None:
    result = cli("import --replace", linked)
    assert (result.code, result.out) == (2, "")
    assert "leads out of" in result.err
    assert not Path("zsvec-store").exists()


def test_import_of_many_links_says_their_number(cli: Cli, linked: Path) -> None:
    for number in range(30):
        (linked / "red" / f"link-{number}.png").symlink_to(Path("private/0.png").absolute())
    result = cli("import", linked)
    assert len(told(result)) == 20
    assert "left out: 13 more" in result.err


def test_evaluate(filled: Cli, linked: Path) -> None:
    shutil.copytree("private", "unknown")
    Path("unknown/link.png").symlink_to(Path("private/0.png").absolute())
    result = filled("evaluate --unknown unknown --json", linked)
    assert result.code == 0
    assert len(told(result)) == 4
    assert_told(Result(0, "", "\n".join(note for note in told(result) if "unknown" not in note)), linked)


def test_classify(filled: Cli, linked: Path) -> None:
    result = filled("classify --json", linked)
    assert result.code == 0
    assert_told(result, linked)
    sources = [found["source"] for found in result.objects]
    assert str(linked / "green" / "within.png") in sources
    assert not [source for source in sources if any(link in source for link in LINKS)]


def test_classify_of_named_links(filled: Cli, linked: Path) -> None:
    result = filled("classify --json", linked / "secret", linked / "red" / "0-link.png")
    assert result.code == 0
    assert len(result.objects) == 3
    assert not told(result)


def test_add(cli: Cli, linked: Path) -> None:
    result = cli("add red --json --image", linked / "red")
    assert result.code == 0
    assert_told(result, linked, ("red/0-link.png",))
