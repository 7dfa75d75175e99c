"""The command line as a process: pipes, signals, a full disk, other encodings, and a second process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import DEADLINE, Cli, finish, start
from tests.support import coloured, encode
from zsvec import __version__

pytestmark = pytest.mark.usefixtures("hash_encoders")


def ask(process: subprocess.Popen[bytes], name: str) -> bytes:
    """The line of the answer to a path on stdin."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{name}\n".encode())
    process.stdin.flush()
    return process.stdout.readline()


def test_the_first_answer_comes_before_stdin_is_closed(stocked: Cli, new: Path) -> None:
    process = start("classify", "-", "--json")
    for name, label in (("new/red.png", "red"), ("missing.png", None), ("new/blue.png", "blue")):
        found = json.loads(ask(process, name))
        assert (found["source"], found["label"]) == (name, label)
    assert finish(process) == (0, "", "1 of 3 images could not be read\n")


def test_ctrl_c(stocked: Cli, new: Path) -> None:
    process = start("classify", "-")
    assert b"red" in ask(process, "new/red.png")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 130  # with stdin still open
    assert finish(process)[1:] == ("", "")
    assert len(stocked("list --json").objects) == 3


INTERRUPTED = """
import os
import runpy
import sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == os.environ["INTERRUPTED"]:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
sys.argv = ["zsvec", "--version"]
"""


@pytest.mark.parametrize("module", ["zsvec.errors", "zsvec.types", "zsvec.cli.process", "typer"])
@pytest.mark.parametrize(
    "entry", ["from zsvec.cli import main; main()", "runpy.run_module('zsvec', run_name='__main__', alter_sys=True)"]
)
def test_ctrl_c_during_the_imports(entry: str, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED + entry],
        env={**os.environ, "INTERRUPTED": module},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "text"])
def test_a_closed_pipe_ends_quietly(stocked: Cli, new: Path, options: list[str]) -> None:
    process = start("classify", "-", *options)
    ask(process, "new/red.png")
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with pytest.raises(BrokenPipeError):
        while True:
            os.write(process.stdin.fileno(), b"new/red.png\n")
    process.stdin.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(DEADLINE) in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "text"])
def test_a_full_disk(stocked: Cli, options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(start("list", *options, stdout=full))
    assert code == 1
    assert err == "zsvec: [Errno 28] No space left on device\n"


def test_a_second_process_on_an_embedded_store(filled: Cli, new: Path) -> None:
    process = start("classify", "-", "--json")
    assert json.loads(ask(process, "new/red.png"))["label"] == "red"
    for command in ("add cat", "list", "classify new/red.png"):
        result = filled(command)
        assert (result.code, result.out) == (1, "")
        assert "is already open, here or in another process: close it there, or share one store" in result.err
    assert json.loads(ask(process, "new/blue.png"))["label"] == "blue"
    assert finish(process) == (0, "", "")
    assert len(filled("list --json").objects) == 3


def test_names_of_files_that_are_not_unicode(stocked: Cli, new: Path) -> None:
    with open(b"new/\xff.png", "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(encode(coloured("red", 100)))
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    code, out, err = finish(start("classify", "new", "-", "--json", env=strict), b"new/\xff.png\n\xfe.png\n")
    assert (code, err) == (0, "1 of 5 images could not be read\n")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(o["source"], o["label"]) for o in found] == [
        ("new/blue.png", "blue"),
        ("new/red.png", "red"),
        ("new/\udcff.png", "red"),
        ("new/\udcff.png", "red"),
        ("\udcfe.png", None),
    ]
    code, out, err = finish(start("classify", "new", env=strict))
    assert (code, err) == (0, "")
    assert out.splitlines()[2].startswith("new/\\udcff.png  red ")


def test_a_terminal_that_is_not_unicode(filled: Cli) -> None:
    filled("add 小熊猫🐼é --text t")
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    code, out, err = finish(start("show", "小熊猫🐼é", "--json", env=latin))
    assert (code, err) == (0, "")
    assert json.loads(out)["category"] == "小熊猫🐼é"
    assert out.isascii()
    process = start("list", env=latin)
    listed, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert b"\\u5c0f" in listed


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zsvec", "--version"], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert (done.stdout, done.stderr) == (f"zsvec {__version__}\n", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_ctrl_c_at_a_question(stocked: Cli) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = start("remove", "red", stdin=theirs)
    os.close(theirs)
    assert process.stderr
    said = b""
    while b"Remove 'red' and its 3 images and 1 text?" not in said:
        said += (part := os.read(process.stderr.fileno(), 1000))
        assert part, said
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    os.close(ours)
    assert (code, out.strip()) == (130, "")  # click prints the space of its prompt on stdout
    assert len(stocked("list --json").objects) == 3
