"""Names and paths may be anything: the terminal shows them, and obeys none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from tests.support import encode, isolated
from tests.test_cli import cli, hash_encoders
from zsvec.cli import output
from zsvec.cli.process import harmless

__all__ = ["cli", "hash_encoders", "isolated"]

EVIL = "\x1b[2J\x1b]0;owned\x07\r\nforged.png  red 100.0%\u202e\x9b31m\u2028"
OBEYED = set(map(chr, [*range(32), *range(127, 160), 0x202E, 0x2028, 0x2066])) - {"\n"}


def assert_harmless(text: str, *, lines: int | None = None) -> None:
    assert not OBEYED & set(text), repr(text)
    assert not [line for line in text.splitlines() if line.lstrip().startswith("forged.png")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red panda, 赤い, é", "red panda, 赤い, é"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b\x7f\0", r"\x9b\x7f\x00"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("\udcff", r"\udcff"),
        ("it's \\n", "it's \\n"),
    ],
)
def test_harmless(text: str, shown: str) -> None:
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
def test_json_obeys_nothing_on_a_terminal(
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_colours_of_our_own_are_obeyed() -> None:
    console = output._Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as capture:
        console.print("[red]a\x1bb[/]")
    assert capture.get() == "\x1b[31ma\\x1bb\x1b[0m\n"


@pytest.fixture
def evil(hash_encoders: object, cli: Callable[..., object]) -> Path:
    """Folders of two categories, with images of such names, one of them damaged."""
    folder = Path("pictures")
    for number, name in enumerate(("blue", "red")):
        (folder / name).mkdir(parents=True)
        for seed in range(3):
            pixels = np.random.default_rng(seed + 10 * number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            (folder / name / f"{seed}{EVIL}.png").write_bytes(encode(Image.fromarray(pixels)))
    (folder / "red" / f"broken{EVIL}.png").write_bytes(b"\x89PNG\r\n\x1a\nnone")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no such names")
class TestCommands:
    def test_all_that_a_person_reads(self, evil: Path, cli: Callable[..., object]) -> None:
        def run(command: str, *more: str | Path, code: int | None = 0) -> str:
            done = cli(command, *more)
            assert_harmless(done.out)  # type: ignore[attr-defined]
            assert_harmless(done.err)  # type: ignore[attr-defined]
            if code is not None:
                assert done.code == code, done  # type: ignore[attr-defined]
            return str(done.out + done.err)  # type: ignore[attr-defined]

        definitions = Path("definitions.json")
        definitions.write_text(json.dumps({"red": [f"a text {EVIL}"], "blue": "sky"}))
        assert r"broken\x1b[2J" in run("import", evil, "--definitions", definitions, code=None)
        run("list")
        found = run("show", "red")
        assert r"a text \x1b[2J" in found
        run("classify", evil)
        assert r"red\n" not in run("classify --explain", evil / "red")
        run("classify", f"no{EVIL}", code=1)
        run("classify", "-", code=None)
        run("evaluate", evil)
        run("calibrate")
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

    def test_json_keeps_them(self, evil: Path, cli: Callable[..., object]) -> None:
        cli("import", evil)
        lines = cli("classify --json", evil / "red").out.strip().split("\n")  # type: ignore[attr-defined]
        assert {json.loads(line)["source"] for line in lines} >= {str(evil / "red" / f"0{EVIL}.png")}


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import warnings; from zsvec.cli.process import prepare_process\n"
        "prepare_process(); warnings.warn('a\\x1b[2J\\nzsvec: forged')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stderr == "zsvec: a\\x1b[2J\\nzsvec: forged\n"
