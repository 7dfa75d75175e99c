"""Runs the command line in this process, or in another, on stores of coloured pictures."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from tests.support import COLOURS, coloured, encode, fast_folder
from zsvec.cli import main, output
from zsvec.encoders import EncoderSet
from zsvec.encoders.spec import EncoderSpec
from zsvec.testing import HashEncoder

DEADLINE = 180.0  # seconds; no test fails because the machine is busy


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one a line."""
        found = [json.loads(line) for line in self.out.split("\n") if line]
        assert all(isinstance(value, dict) for value in found)
        return found

    @property
    def said(self) -> str:
        """Stderr as one line, without the box of usage errors."""
        return " ".join(self.err.replace("│", " ").split())


class Cli(Protocol):
    def __call__(self, command: str, *more: str | Path, stdin: str = "") -> Result: ...


class Loading:
    """Stands for `zsvec.encoders.load_encoders`, and counts the items that its encoders embed."""

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
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs a command line on a store of the test."""
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
    """A folder with three pictures of each colour, and an empty file."""
    folder = Path("colours")
    add_images(folder, range(3))
    (folder / "red" / "broken.jpg").touch()
    return folder


def add_images(folder: Path, seeds: range) -> None:
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (folder / colour / f"{seed}.png").write_bytes(encode(coloured(colour, seed)))


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
def filled(cli: Cli, colours: Path) -> Cli:
    """`cli` on a store with the references of `colours`."""
    assert cli("import", colours).code == 0
    return cli


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store of `filled`, made once for all tests of a module that write nothing to it."""
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        store = str(folder / "store")
        patch.setattr("zsvec.encoders.load_encoders", Loading())
        patch.chdir(tmp_path_factory.mktemp("imported"))
        patch.setattr(sys, "argv", ["zsvec", "--store", store, "import", str(write_colours())])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        yield store


@pytest.fixture
def stocked(imported: str, cli: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`filled`, for tests that write nothing."""
    monkeypatch.setenv("ZSVEC_STORE", imported)
    return cli


def category(name: str, *, version: int = 1, texts: list[str] | None = None, **references: int) -> dict[str, Any]:
    """The JSON object of a category, without the time."""
    return {
        "category": name,
        "version": version,
        "texts": [name] if texts is None else texts,
        "references": {expert.replace("_", ":"): count for expert, count in references.items()},
    }


IMPORTED = [category(colour, clip_text=1, clip_image=3, dino_image=3) for colour in COLOURS]


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    assert list(found) == ["category", "version", "updated", "texts", "references"]
    updated = datetime.fromisoformat(found["updated"])
    assert abs((datetime.now(tz=updated.tzinfo) - updated).total_seconds()) < 600
    return {key: value for key, value in found.items() if key != "updated"}


def words(table: str) -> list[list[str]]:
    """The words of each line that is not empty."""
    return [line.split() for line in table.splitlines() if line.strip()]


def commands(group: Any, *before: str) -> Iterator[list[str]]:
    """The words of every command and group, and of the application itself."""
    yield [*before]
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *before, name)


ARGUMENTS = {  # of the commands that need some
    "add": "red --image new/red.png",
    "attach": "other --label name --expert clip:image",
    "classify": "new",
    "copy": "here there",
    "correct": "new/red.png blue",
    "detach": "other",
    "encoders export": "there",
    "evaluate": "colours",
    "export": "some.zsvec",
    "forget": f"{'0' * 64} --yes",
    "generate": "cat",
    "images drop": "--yes",
    "import": "colours",
    "inbox dismiss": "123456",
    "inbox label": "123456 red",
    "merge": "red blue",
    "move": "red blue 123456",
    "reembed": "--drop --yes",
    "remove": "red --yes",
    "rename": "red rouge",
    "serve": "--port 0",
    "set": "red --metadata {}",
    "show": "red",
    "sync": "http://127.0.0.1:9 there",
    "watch": "new",
}


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
    """Starts zsvec with hash encoders in another process."""
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", RUNNER, *map(str, arguments)], **(streams | options))


def finish(process: subprocess.Popen[bytes], given: bytes | None = None) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a process, with its last input."""
    out, err = process.communicate(given, timeout=DEADLINE)
    return process.returncode, (out or b"").decode(), err.decode()
