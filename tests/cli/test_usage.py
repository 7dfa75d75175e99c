"""Wrong usage, help, names in any script, and narrow terminals."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.cli.support import Cli, Result
from tests.support import COLOURS, coloured, encode, trusted_settings, write_photos
from zsvec import __version__
from zsvec.cli import output
from zsvec.cli.commands import app

pytestmark = pytest.mark.usefixtures("hash_encoders")

RATE = "false_unknown_rate must be between 0 and 1. Got"
WRONG = {
    "": "Usage",
    "--store x": "Missing command",
    "nonsense": "nonsense",
    "--nonsense list": "--nonsense",
    "classify": "Missing argument",
    "classify --top-k 0 x": "--top-k",
    "classify --top-k many x": "--top-k",
    "classify --nonsense x": "--nonsense",
    "classify --fusion nonsense x": "nonsense",
    "evaluate --fusion nonsense x": "nonsense",
    "--profile nonsense classify x": "no profile is named 'nonsense'; choose one of base, offline, plus",
    "--namespace a/b list": "namespace",
    "--store '' list": "store: ",
    "--store localhost:6333 list": "'localhost:6333' looks like a server: write http://localhost:6333",
    "--store :memory: list": "':memory:' would be gone when this command ends: give a folder",
    "--store :memory: add x": "':memory:' would be gone when this command ends: give a folder",
    "--store ftp://x list": "'ftp://x' is neither a folder nor an http:// or https:// URL",
    "--store colours/red/0.png list": "'colours/red/0.png' is a file",
    "classify x.png --store y": "--store stands before the command: zsvec --store … classify",
    "import --profile offline x": "--profile stands before the command",
    "list --namespace=y": "--namespace stands before the command",
    "add ''": "a category name must not be empty. Got ''",
    "add x --text ''": "a definition text must be a str that is not empty. Got ''",
    "import missing": "missing does not exist",
    "import colours/red": "colours/red has no sub-folders",
    "import colours --definitions missing.json": "missing.json cannot be read",
    "import colours --definitions colours/red/0.png": "0.png cannot be read: 'utf-8' codec",
    "import colours --keep-images all": "keep_images: Input should be 'small' or 'none' (got 'all')",
    "evaluate missing": "cannot list the folder 'missing'",
    "evaluate colours/red": "colours/red has no images in sub-folders",
    "evaluate colours --unknown missing": "cannot list the folder 'missing'",
    "evaluate colours --csv no/e.csv": "no/e.csv cannot be written: there is no folder no",
    "evaluate colours --html colours": "colours cannot be written: Is a directory",
    "evaluate colours --suite paper --csv e.csv": "leave --fusion, --csv and --html out",
    "evaluate colours --suite paper --boxes": "--boxes needs COCO annotations",
    "evaluate labels.csv --suite paper --dataset mnist": "--dataset mnist is a folder. Got the file labels.csv",
    "evaluate colours --report r": "a page without it is --html FILE",
    "classify new --csv --json": "--csv has no evidence, and is no JSON",
    "classify new --csv --explain": "--csv has no evidence",
    "calibrate --false-unknown-rate 0": f"{RATE} 0.0",
    "calibrate --false-unknown-rate 1": f"{RATE} 1.0",
    "calibrate --false-unknown-rate -0.1": f"{RATE} -0.1",
    "calibrate --false-unknown-rate nan": f"{RATE} nan",
    "calibrate --false-unknown-rate many": "--false-unknown-rate",
    "calibrate nonsense": "nonsense",
}


def test_wrong_usage(stocked: Cli, new: Path, subtests: pytest.Subtests) -> None:
    Path("labels.csv").write_text("path,label\ncolours/red/0.png,red\n")
    before = stocked("list --json")
    for command, message in WRONG.items():
        with subtests.test(command):
            result = stocked(command)
            assert result.code == 2
            assert message in result.said + result.out
            assert "Traceback" not in result.err
            assert not command or not result.out
    assert stocked("list --json") == before


@pytest.mark.parametrize("setting", ["ZSVEC_FUSION", "ZSVEC_BATCH_SIZE"])
def test_a_wrong_value_in_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(setting, "nonsense")
    result = cli("classify x")
    assert result.code == 2
    assert f"{setting.removeprefix('ZSVEC_').lower()}: " in result.err
    assert "(got 'nonsense')" in result.err


def test_a_failure_is_not_wrong_usage(cli: Cli, new: Path, colours: Path) -> None:
    for command in ("classify new", "evaluate colours"):
        result = cli(command)
        assert (result.code, result.out) == (1, "")
        assert "has no category yet: add one with `zsvec add`" in result.err
    assert cli("--profile base add cat").code == 0
    result = cli("--profile offline add dog")
    assert (result.code, result.out) == (1, "")
    assert "vectors of the encoders clip, dino" in result.err
    for command in ("list", "show cat", "classify new/red.png", "remove cat"):
        said = cli(f"--store nowhere {command}").err
        assert f"the missing folder {Path('nowhere').absolute()} (namespace zsvec)" in said
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("command", ["classify {}", "import {}", "evaluate {}", "add x --image {}", "--store {} list"])
def test_a_name_that_is_too_long_for_the_file_system(stocked: Cli, command: str) -> None:
    result = stocked(command.format("x" * 5000))
    assert result.code in (1, 2)
    assert "xxx" in result.out + result.err
    assert "too long" in result.out + result.err or "does not exist" in result.err


def commands(group: Any, *before: str) -> Iterator[list[str]]:
    """The words of every command and group, and of the application itself."""
    yield [*before]
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *before, name)


def test_help_and_version(cli: Cli) -> None:
    assert cli("--version") == Result(0, f"zsvec {__version__}\n", "")
    listed = cli("--help").out
    found = list(commands(typer.main.get_command(app)))
    assert {"import", "list", "doctor"} <= {words[0] for words in found if words}
    for words in found:
        result = cli(" ".join([*words, "--help"]))
        assert (result.code, result.err) == (0, "")
        assert len(words) != 1 or f" {words[0]} " in listed
        assert cli(" ".join([*words, "-h"])) == result


def test_help_shows_flags_without_a_type(cli: Cli) -> None:
    for words in commands(typer.main.get_command(app)):
        assert "bool" not in cli(" ".join([*words, "--help"])).out.lower()


def test_shell_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ZSVEC_COMPLETE", "source_bash")
    assert "complete -o default -F _zsvec_completion zsvec" in cli("").out
    monkeypatch.setenv("_ZSVEC_COMPLETE", "complete_bash")
    for line, expected in {"zsvec cl": ["classify"], "zsvec inbox l": ["label"], "zsvec list --j": ["--json"]}.items():
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        assert cli("") == Result(0, "\n".join([*expected, ""]), "")


def test_a_custom_profile(cli: Cli) -> None:
    trusted_settings('profile = "mine"\n[profiles.mine.encoders.vit]\nfamily = "clip"\nmodel = "m"\n')
    assert [o["references"] for o in cli("add cat --json").objects] == [{"vit:text": 1}]


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
