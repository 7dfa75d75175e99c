"""Help, completion, names in any script, and narrow terminals. `tests/stories/test_mistakes.py` has wrong usage."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.cli.support import ARGUMENTS, Cli, Loading, Result, commands
from tests.support import COLOURS, coloured, encode, trusted_settings, write_photos
from zsvec.cli import output
from zsvec.cli.commands import app

pytestmark = pytest.mark.usefixtures("hash_encoders")


@pytest.mark.parametrize("command", ["classify {}", "import {}", "evaluate {}", "add x --image {}", "--store {} list"])
def test_a_name_that_is_too_long_for_the_file_system(stocked: Cli, command: str) -> None:
    result = stocked(command.format("x" * 5000))
    assert result.code in (1, 2)
    assert "xxx" in result.out + result.err
    assert "too long" in result.out + result.err or "does not exist" in result.err


def empty_values() -> Iterator[str]:
    """Each command with an empty value for one of its arguments, or of its options."""
    for words in commands(typer.main.get_command(app)):
        command: Any = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        given = shlex.split(ARGUMENTS.get(" ".join(words), ""))
        for position, value in enumerate(given):
            if not value.startswith("--"):
                yield shlex.join([*words, *given[:position], "", *given[position + 1 :]])
        for parameter in command.params:
            option = parameter.opts[0]
            if not option.startswith("--"):
                if not given:
                    yield shlex.join([*words, ""])
            elif not parameter.is_flag and option not in {"--parent", *given}:
                yield shlex.join([*words, f"{option}=", *given])
                yield shlex.join([*words, *given, option, ""])


def test_an_empty_value_is_refused_wherever_a_value_is_expected(
    stocked: Cli, new: Path, hash_encoders: Loading, subtests: pytest.Subtests
) -> None:
    def files() -> set[Path]:
        return {path for path in Path().rglob("*") if path.is_file()}

    before, there = stocked("list --json").out, files()
    found = set(empty_values())
    assert found >= {"import ''", "evaluate colours --csv ''", "classify ''", "doctor ''", "--store=", "inbox --sheet="}
    for command in found:
        with subtests.test(command):
            result = stocked(command)
            assert (result.code, result.out) == (2, "")
    assert stocked("list --json").out == before
    assert files() == there
    assert not hash_encoders.embedded()
    assert stocked("import '' --help").code == 0


def test_the_folder_itself_is_no_file_to_write(stocked: Cli, new: Path) -> None:
    for command in ("evaluate colours --csv .", "evaluate colours --html .", "watch new --state .", "audit --html ."):
        result = stocked(command)
        assert result.code == 2
        assert "'.'" in result.said or " . " in result.said


def test_help_shows_flags_without_a_type(cli: Cli) -> None:
    for words in commands(typer.main.get_command(app)):
        assert "bool" not in cli(" ".join([*words, "--help"])).out.lower()


def test_shell_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ZSVEC_COMPLETE", "source_bash")
    assert "complete -o default -F _zsvec_completion zsvec" in cli("").out
    monkeypatch.setenv("_ZSVEC_COMPLETE", "complete_bash")
    lines = {"cl": ["classify"], "inbox l": ["label"], "list --j": ["--json"], "import '' --def": ["--definitions"]}
    for line, expected in lines.items():
        monkeypatch.setenv("COMP_WORDS", f"zsvec {line}")
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ") + 1))
        assert cli("") == Result(0, "\n".join([*expected, ""]), "")


def test_a_custom_profile(cli: Cli) -> None:
    trusted_settings('profile = "mine"\n[profiles.mine.encoders.vit]\nfamily = "clip"\nmodel = "m"\n')
    assert [o["references"] for o in cli("add cat --json").objects] == [{"vit:text": 1}]


@pytest.mark.parametrize(
    "command",
    [
        *("list", "show red", "info", "history", "gc", "images drop --yes", "inbox", "inbox groups", "audit", "undo"),
        *("calibrate", "optimize", "classify new", "evaluate colours", "set red --text t", "set red --metadata {}"),
        *("move red blue 123456", "rename red rouge", "merge red blue", "remove red", "inbox label 123456 red"),
    ],
)
def test_a_namespace_without_a_store_fails_every_command_alike(stocked: Cli, new: Path, command: str) -> None:
    result = stocked(f"--namespace other {command}")
    assert (result.code, result.out) == (1, "")


@pytest.mark.parametrize("name", ["小熊猫", "🐼👩‍👩‍👧‍👦", "[red]x[/red]", ":cat:", "a/b", "--x", "%s {x}", "[/]\\[b]"])
def test_any_name(filled: Cli, new: Path, name: str) -> None:
    write_photos(new, [7])
    assert filled("add --text t --image new/7.png --", name).code == 0
    assert name in filled("list").out
    assert name in filled("show --", name).out
    assert [o["category"] for o in filled("show --json --", name).objects] == [name]
    (found,) = filled("classify --json new/7.png").objects
    assert found["label"] == name
    explained = filled("classify --explain new/7.png").out
    assert explained.startswith(f"new/7.png  {name} ")
    assert f" {name}: new/7.png" in explained
    assert filled("remove --", name).err == f"removed {name}\n"


def test_any_name_of_a_file(stocked: Cli) -> None:
    for name in ("[red]a[b].png", ":cat:.png", "小熊猫.png"):
        Path(name).write_bytes(encode(coloured("red", 100)))
        assert stocked("classify", name).out.startswith(f"{name}  red ")
        assert [o["source"] for o in stocked("classify --json -", stdin=f"{name}\n").objects] == [name]


def test_a_narrow_terminal_cuts_nothing_off(filled: Cli, monkeypatch: pytest.MonkeyPatch, new: Path) -> None:
    filled("add hippopotamus --text t")
    for width in (30, 50, 80):
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


def cells(table: str) -> set[str]:
    """The cells of a table, each line of a cell by itself."""
    return {cell.strip() for line in table.splitlines() for cell in line.split("   ")}


def test_80_columns_break_no_name_date_or_hash(cli: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann Example")
    monkeypatch.setattr(output.out, "width", 80)
    long = new / "a long folder of photographs" / "from a camera with a long name.png"
    long.parent.mkdir()
    names = ["golden retriever", "hippopotamus amphibius", "ox"]
    for number, name in enumerate(names):
        long.write_bytes(encode(coloured("red", number)))
        text = "a definition that is much longer than a narrow terminal has room for"
        assert cli("add --text", text, "--image", long, name).code == 0
    found = [cli("list --json").objects, *(cli("show --json", name).objects for name in names)]
    dates = {f"{datetime.fromisoformat(one['updated']).astimezone():%Y-%m-%d %H:%M}" for one in found[0]}
    listed = cli("list").out
    assert {*names, *dates} <= cells(listed)
    tables = [listed]
    for name, (category,) in zip(names, found[1:], strict=True):
        tables.append(cli("show", name).out)
        hashes = {one["hash"][:12] for one in category["stored"]}
        assert {name, "Ann Example", *hashes} <= cells(tables[-1])
        assert dates & cells(tables[-1])
    tables.append(cli("history").out)
    assert any(cell.startswith("20") and len(cell) == 19 for cell in cells(tables[-1]))
    assert max(len(line) for table in tables for line in table.splitlines()) <= 80


def first_column(table: str) -> str:
    """The text of the first column, joined where it is folded."""
    lines = [line.ljust(200) for line in table.splitlines() if line.strip() and "─" not in line]
    edge = next(i for i in range(1, 200) if all(line[i] == " " for line in lines))
    return "".join(line[:edge].strip() for line in lines)
