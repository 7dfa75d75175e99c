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
    (colours / "red" / "0-link.png").symlink_to(Path("private/70.png").absolute())
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
        (linked / "red" / f"link-{number}.png").symlink_to(Path("private/70.png").absolute())
    result = cli("import", linked)
    assert len(told(result)) == 20
    assert "left out: 13 more" in result.err


def test_evaluate(filled: Cli, linked: Path) -> None:
    shutil.copytree("private", "unknown")
    Path("unknown/link.png").symlink_to(Path("private/70.png").absolute())
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


# ---- --follow-links


def out(result: Result) -> str:
    """The note on links that led out of a folder."""
    (note,) = [line for line in result.err.splitlines() if "led out of" in line]
    return note


def test_import_that_follows_links(cli: Cli, linked: Path) -> None:
    (linked / "red" / "1-link.png").symlink_to("/dev/zero")
    (linked / "red" / "2-link.png").symlink_to("missing.png")
    os.mkfifo(linked / "blue" / "pipe")
    (linked / "blue" / "0-link.png").symlink_to("pipe")
    result = cli("import --follow-links --json", linked)
    assert result.code == 0
    assert not told(result)
    for link in ("red/1-link.png", "red/2-link.png", "blue/0-link.png"):
        assert sum(str(linked / link) in note for note in result.err.splitlines()) == 1
    assert sorted(found["category"] for found in result.objects) == ["blue", "green", "red", "secret"]
    assert f"3 links led out of {linked}" in out(result)
    (secret,) = cli("show secret --json").objects
    sources = {found["source"] for found in secret["stored"] if found["modality"] == "image"}
    assert sources == {str(linked / "secret" / name) for name in ("70.png", "71.png")}


def test_import_that_replaces_and_follows_links(cli: Cli, linked: Path) -> None:
    assert cli("import --replace --follow-links", linked).code == 0
    (linked / "red" / "1-link.png").symlink_to("/dev/zero")
    result = cli("import --replace --follow-links", linked)
    assert (result.code, result.out) == (2, "")


def test_import_of_a_tree_that_follows_links(cli: Cli, linked: Path) -> None:
    result = cli("import --tree --follow-links --json", linked)
    assert result.code == 0
    # Each folder is visited once in a tree: `blue/deep` before `secret`.
    assert sorted(found["category"] for found in result.objects) == ["blue", "deep", "green", "red"]
    assert f"2 links led out of {linked}" in out(result)


def test_a_folder_without_links_out_of_it_has_none(cli: Cli, colours: Path) -> None:
    result = cli("import --follow-links", colours)
    assert result.code == 0
    assert f"0 links led out of {colours}" in out(result)
    assert "led out of" not in cli("import", colours).err


def test_evaluate_that_follows_links(cli: Cli, linked: Path) -> None:
    assert cli("import --follow-links", linked).code == 0
    Path("unknown").mkdir()
    Path("unknown/link.png").symlink_to(Path("private/70.png").absolute())
    result = cli("evaluate --unknown unknown --follow-links --json", linked)
    assert result.code == 0
    assert not told(result)
    (found,) = result.objects
    assert found["categories"]["secret"]["images"] == 2
    assert found["n"] == 3 * 3 + 1 + 2 + 2 + 1  # of the folders, within, secret, blue/deep, red/0-link
    assert "detected" in found
    assert result.err.splitlines() == ["1 link led out of unknown", f"3 links led out of {linked}"]


@pytest.mark.parametrize("command", ["import", "evaluate"])
@pytest.mark.parametrize("source", ["colours.csv", "colours.json"])
def test_only_a_folder_has_links_to_follow(filled: Cli, colours: Path, command: str, source: str) -> None:
    Path(source).write_text("path,label\ncolours/red/0.png,red\n")
    result = filled(f"{command} --follow-links", source)
    assert (result.code, result.out) == (2, "")
    assert "--follow-links" in result.said


def test_a_public_data_set_and_a_copy_have_no_links_to_follow(filled: Cli, colours: Path) -> None:
    result = filled("evaluate --follow-links --suite paper --dataset cifar10", colours)
    assert (result.code, result.out) == (2, "")
    assert "--follow-links" in result.said
    result = filled("evaluate --follow-links --against other")
    assert (result.code, result.out) == (2, "")


@pytest.mark.filterwarnings("ignore:the variable ZSVEC_:UserWarning")
@pytest.mark.parametrize("name", ["ZSVEC_FOLLOW_LINKS", "ZSVEC_IMPORT_FOLLOW_LINKS", "FOLLOW_LINKS"])
def test_no_environment_variable_follows_links(
    cli: Cli, linked: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert_told(cli("import", linked), linked)


def test_no_file_follows_links(cli: Cli, linked: Path) -> None:
    for line in ("follow_links = true", "[import]\nfollow_links = true"):
        Path("zsvec.toml").write_text(line)
        result = cli("import", linked)
        assert (result.code, result.out) == (2, "")


def test_refusals_name_the_flag(cli: Cli, linked: Path) -> None:
    for note in told(cli("import", linked)):
        assert "--follow-links" in note
        assert "that you trust" not in note
    assert "--follow-links" in cli("import --replace", linked).said
