"""Names and paths may hold any characters: a terminal shows control characters and never obeys them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from tests.cli.support import Cli
from tests.support import encode, photo
from zsvec.cli import output
from zsvec.cli.app import confirm
from zsvec.errors import harmless

EVIL = "\x1b[2J\x1b]0;owned\x07\r\nforged.png  red 100.0%\u202e\x9b31m[bold]\u2028"
OBEYED = set(map(chr, [*range(32), *range(127, 160), 0x202E, 0x2028, 0x2066])) - {"\n"}


def assert_harmless(text: str) -> None:
    assert not OBEYED & set(text), repr(text)
    assert not [line for line in text.splitlines() if line.lstrip().startswith("forged.png")]


def test_harmless() -> None:
    for text, shown in {
        "red panda, 赤い, é": "red panda, 赤い, é",
        "a\nb\tc\r": r"a\nb\tc\r",
        "\x1b[31m": r"\x1b[31m",
        "\x9b\x7f\0": r"\x9b\x7f\x00",
        "a\u202eb\u2066": r"a\u202eb\u2066",
        "\udcff": r"\udcff",
        "it's \\n": "it's \\n",
    }.items():
        assert harmless(text) == shown


def test_no_renderable_reaches_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a\x1bb")
    table.add_row("\x1b[31mred\x9b")
    for console in (output.out, output.err):
        for one in (table, "\x1b[31mred\x07\u202e", f"[bold]{output.escape(EVIL)}[/]"):
            console.print(one)
    output.print_note(EVIL)
    captured = capsys.readouterr()
    assert_harmless(captured.out)
    assert_harmless(captured.err)
    assert captured.out.count(r"\x1b[31") == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_json(terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    value = {"source": f"{EVIL}\x7f赤"}
    output.print_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    if terminal:
        assert_harmless(shown)
        assert shown.count("\n") == 1
    else:
        assert "赤" in shown


def test_colours_of_the_console_are_kept() -> None:
    console = output._Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as capture:
        console.print("[red]a\x1bb[/]")
    assert capture.get() == "\x1b[31ma\\x1bb\x1b[0m\n"


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no such names")
@pytest.mark.usefixtures("hash_encoders")
def test_commands(cli: Cli) -> None:
    evil = Path("pictures")
    for number, name in enumerate(("blue", "red")):
        (evil / name).mkdir(parents=True)
        for seed in range(3):
            pixels = np.random.default_rng(seed + 10 * number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            (evil / name / f"{seed}{EVIL}.png").write_bytes(encode(Image.fromarray(pixels)))
    (evil / "red" / f"broken{EVIL}.png").write_bytes(b"\x89PNG\r\n\x1a\nnone")

    def run(command: str, *more: str | Path, code: int | None = 0) -> str:
        done = cli(command, *more)
        assert_harmless(done.out)
        assert_harmless(done.err)
        assert code is None or done.code == code, done
        return done.out + done.err

    definitions = Path("definitions.json")
    definitions.write_text(json.dumps({"red": [f"a text {EVIL}"], "blue": "sky"}))
    assert r"broken\x1b[2J" in run("import", evil, "--definitions", definitions, code=None)
    lines = cli("classify --json", evil / "red").objects
    assert {line["source"] for line in lines} >= {str(evil / "red" / f"0{EVIL}.png")}  # JSON keeps names
    run("list")
    assert r"a text \x1b[2J" in run("show", "red")
    assert "[bold]" in run("classify --keep all", evil)
    assert r"red\n" not in run("classify --explain", evil / "red")
    strange = Path(f"strange{EVIL}.png")
    strange.write_bytes(encode(photo(1)))
    run("classify --keep all", strange)
    assert "[bold]" in run("inbox --sheet sheet.html")
    assert not OBEYED - {"\n"} & set(Path("sheet.html").read_text(encoding="utf-8"))
    run("classify", f"no{EVIL}", code=1)
    run("classify", "-", code=None)
    run("evaluate", evil)
    run("calibrate")
    for seed in range(9):
        (evil / "red" / f"blue {seed}{EVIL}.png").write_bytes((evil / "blue" / f"{seed % 3}{EVIL}.png").read_bytes())
    run("import", evil, code=None)
    assert "[bold]" in run("audit")
    run("info")
    run("doctor", f"nowhere{EVIL}", code=None)
    run("show", f"none{EVIL}", code=2)
    run("remove", f"none{EVIL}", code=2)
    run(f"--store 'x{EVIL}' list", code=None)
    run(f"--{EVIL}", code=2)
    run("list", f"--{EVIL}", code=2)
    run("list", f"{EVIL}", code=2)
    run("generate", "--max-cost", f"{EVIL}", "red", code=2)
    run("remove", EVIL, code=2)
    (evil / EVIL).mkdir()
    run("import", evil, code=2)


def test_a_warning_is_one_line() -> None:
    code = (
        "import warnings; from zsvec.cli.process import prepare_process\n"
        "prepare_process(); warnings.warn('a\\x1b[2J\\nzsvec: forged')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "zsvec: a\\x1b[2J\\nzsvec: forged\n"


def test_a_message_of_the_log_is_harmless() -> None:
    code = (
        "import logging; from zsvec.cli.process import prepare_process\n"
        "prepare_process(); logging.getLogger('zsvec.x').warning('to %s', 'http://u:secret@h/a\\x1b[2J\\nforged')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "to http://***@h/a\\x1b[2J\\nforged\n"


def test_a_question_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("zsvec.cli.app.is_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda question, **_: asked.append(question))
    confirm("Undo a change by eve\x1b]0;mine\x07\x1b[1A?", yes=False)
    assert asked == ["Undo a change by eve\\x1b]0;mine\\x07\\x1b[1A?"]
