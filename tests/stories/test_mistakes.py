"""New users make mistakes, and look for help: each error says what is wrong, with exit code 2 or 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

import zsvec
from tests.cli.support import Cli, Result, commands
from tests.support import coloured
from zsvec import __version__
from zsvec.classifier import Classifier
from zsvec.cli.commands import app
from zsvec.cli.docs import TOPICS
from zsvec.errors import CategoryNotFoundError, ImageError, InvalidInputError, StoreError, ZSVecError
from zsvec.testing import HashEncoder

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
    "--store '' list": "'--store': the value must not be empty. Got ''",
    "--store localhost:6333 list": "'localhost:6333' looks like a server: write http://localhost:6333",
    "--store :memory: list": "':memory:' would be gone when this command ends: give a folder",
    "--store :memory: add x": "':memory:' would be gone when this command ends: give a folder",
    "--store ftp://x list": "'ftp://x' is neither a folder nor an http:// or https:// URL",
    "--store colours/red/0.png list": "'colours/red/0.png' is a file",
    "classify x.png --store y": "--store stands before the command: zsvec --store … classify",
    "import --profile offline x": "--profile stands before the command",
    "list --namespace=y": "--namespace stands before the command",
    "import ''": "'DIR|FILE': the value must not be empty. Got ''",
    "add x --image ''": "'--image': the value must not be empty. Got ''",
    "add ''": "'NAME': the value must not be empty. Got ''",
    "add ' '": "a category name must not be empty. Got ' '",
    "add x --text ''": "'--text': the value must not be empty. Got ''",
    "add x --text ' '": "a definition text must be a str that is not empty. Got ' '",
    "import missing": "missing does not exist",
    "import colours/red": "colours/red has no sub-folders",
    "import colours --definitions missing.json": "missing.json cannot be read",
    "import colours --definitions colours/red/0.png": "0.png cannot be read: 'utf-8' codec",
    "import colours --keep-images all": "keep_images: Input should be 'small' or 'none' (got 'all')",
    "evaluate missing": "missing does not exist",
    "evaluate colours/red": "colours/red has no sub-folders",
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


MISTAKES: list[tuple[Callable[[Classifier], object], type[ZSVecError], str]] = [
    (lambda clf: clf.classify("nope.jpg"), ImageError, "nope.jpg"),
    (lambda clf: clf.classify("https://example.org/cat.jpg"), ImageError, "not fetched"),
    (lambda clf: clf.classify(Path.cwd()), ImageError, "folder"),
    (lambda clf: clf.classify(""), ImageError, "empty"),
    (lambda clf: clf.classify(None), ImageError, "None"),  # type: ignore[call-overload]
    (lambda clf: clf.classify(coloured("red", 1), top_k=0), InvalidInputError, "top_k"),
    (lambda clf: clf.classify_stream("photos"), InvalidInputError, "iterable"),
    (lambda clf: clf.add_category("red", texts="a red thing"), InvalidInputError, "list of str"),
    (lambda clf: clf.add_category("red", images="red.png"), InvalidInputError, "iterable"),
    (lambda clf: clf.add_category("red\u202e"), InvalidInputError, "printable"),
    (lambda clf: clf.add_categories("photos"), InvalidInputError, "CategoryInput"),  # type: ignore[arg-type]
    (lambda clf: clf.remove_category("rde"), CategoryNotFoundError, "rde"),
    (lambda clf: clf.references.rename("red", "blue"), InvalidInputError, "merge"),
    (lambda clf: clf.classify_vectors({"klip": [[1.0]]}), InvalidInputError, "klip"),
    (lambda clf: clf.calibrate(false_unknown_rate=5), InvalidInputError, "5"),
    (lambda _: zsvec.open(":memory:", profil="offline"), InvalidInputError, "profile"),  # type: ignore[call-arg]
    (lambda _: zsvec.open("localhost:6333"), InvalidInputError, "http://localhost:6333"),
    (lambda _: zsvec.open("http:/localhost:6333"), InvalidInputError, "http://"),
    (lambda _: zsvec.read_categories("nope"), InvalidInputError, "nope"),
]


def test_mistakes_in_python(subtests: pytest.Subtests) -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as clf:
        for colour in ("red", "blue"):
            clf.add_category(colour, images=[coloured(colour, seed) for seed in range(2)])
        before = clf.categories()
        for number, (mistake, error, word) in enumerate(MISTAKES):
            with subtests.test(f"{number}: {word}"), pytest.raises(error, match=word):
                mistake(clf)
        assert clf.categories() == before
    with pytest.raises(StoreError):
        clf.classify(coloured("red", 1))


def test_help_and_version(cli: Cli) -> None:
    assert cli("--version") == Result(0, f"zsvec {__version__}\n", "")
    listed = cli("--help").out
    found = list(commands(typer.main.get_command(app)))
    assert {"import", "list", "doctor"} <= {words[0] for words in found if words}
    for words in found:
        result = cli(" ".join([*words, "--help"]))
        assert (result.code, result.err) == (0, "")
        usage = result.out.partition("Usage: ")[2].splitlines()[0]
        assert not any(doubled in usage for doubled in ("[[", "]]", "...]", "...}", "…"))
        assert len(words) != 1 or f" {words[0]} " in listed
        assert cli(" ".join([*words, "-h"])) == result


def test_doctor_and_help(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # `doctor` asks whether the hub is there
    for topic in TOPICS:
        assert topic in filled("docs").out
    assert "did you mean" in filled("docs stream").said
    facts = filled("info").out
    assert all(word in facts for word in ("profile", "base", "3 categories, 9 images and 3 texts", "calibration"))
    found = {one["what"]: one for one in filled("doctor --json").objects}
    assert found["store"]["ok"]
    damaged = min(Path(os.environ["ZSVEC_STORE"]).rglob("*clip*/**/*.dat"))
    damaged.write_bytes(b"damaged" + damaged.read_bytes()[7:])
    result = filled("doctor --json")
    found = {one["what"]: one for one in result.objects}
    assert (result.code, found["store"]["ok"]) == (1, False)
    assert damaged.name in found["store"]["detail"]
