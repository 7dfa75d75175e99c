"""Encoders in Python on the command line and in settings: every command works, and no stranger's code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zsvec
from tests.cli.support import DEADLINE, IMPORTED, Cli, Loading, add_images, without_time
from tests.support import COLOURS, trusted_settings
from zsvec.errors import EncoderMismatchError, InvalidInputError
from zsvec.settings.settings import Settings
from zsvec.testing import HashEncoder

ROOT = Path(__file__).parents[2]
MINE = """
from pathlib import Path
from zsvec.testing import HashEncoder

with Path("imported").open("a") as file:
    file.write("x")

def encoders():
    yield HashEncoder("clip")
    yield HashEncoder("dino", modalities=("image",))

def mute():
    yield HashEncoder("dino", modalities=("image",))

def narrow():
    yield HashEncoder("clip", dim=8)
    yield HashEncoder("dino", dim=8, modalities=("image",))
"""


@pytest.fixture(autouse=True)
def mymodule(tmp_path: Path, hash_encoders: Loading) -> Iterator[Path]:
    """A module in the working folder, that counts how often it is imported."""
    file = Path("mymodule.py")
    file.write_text(MINE)
    yield file
    assert not hash_encoders.made  # of a profile
    sys.modules.pop("mymodule", None)


def imports() -> int:
    sys.modules.pop("mymodule", None)
    file = Path("imported")
    return len(file.read_text()) if file.exists() else 0


@pytest.fixture
def own(cli: Cli, colours: Path) -> Cli:
    """`cli` on a store with the references of `colours`, made with encoders in Python."""
    result = cli("--encoders mymodule:encoders import", colours)
    assert result.code == 0, result.err
    return cli


@pytest.mark.parametrize("command", ["--encoders mymodule:narrow reembed", "reembed --encoders mymodule:narrow"])
def test_reembed_prints_the_command_that_switches(own: Cli, command: str) -> None:
    result = own(command)
    assert (result.code, result.out) == (0, "")
    [options] = re.findall(r"then switch: zsvec reembed (\S+ \S+) --switch", result.said)
    assert own(f"reembed {options} --switch").code == 0
    assert own("info --json").objects[0]["encoders"]["clip"].endswith("(8-d, 8 px)")


def test_an_archive_of_other_encoders_is_refused(own: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.zsvec"
    assert own("export", file).code == 0
    for number, (given, code) in enumerate(
        [("--encoders zsvec.testing:HashEncoder ", 1), ("--encoders mymodule:narrow ", 1), ("", 0)]
    ):
        result = own(f"{given}--store {tmp_path}/{number} import", file)
        assert (result.code, (tmp_path / str(number)).exists()) == (code, code == 0), result.err
    assert own(f"--encoders mymodule:encoders --store {tmp_path}/same import", file).code == 0


def test_every_command_works(own: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    given = "--encoders mymodule:encoders "
    assert [without_time(o) for o in own(f"{given}list --json").objects] == IMPORTED
    found = {o["source"]: o["label"] for o in own(f"{given}classify --json", new).objects}
    assert found == {"new/blue.png": "blue", "new/red.png": "red"}
    add_images(Path("test"), range(50, 52))
    for command in (
        "init",
        "import colours",
        "add blue --image new/blue.png",
        "correct new/red.png red",
        "set red --text crimson",
        "classify new --keep all",
        "inbox",
        "inbox groups",
        "calibrate",
        "audit",
        "evaluate test",
        "evaluate test --html page.html",
        "undo",
        "info",
    ):
        result = own(given + command)
        assert result.code == 0, (command, result.err)
    assert "mymodule:encoders" in Path("page.html").read_text()
    assert str(Path.cwd()) not in Path("page.html").read_text()  # a page may be published
    assert {line["what"]: line["ok"] for line in own(f"{given}doctor --json").objects} == {
        **dict.fromkeys(("packages", "settings", "encoders", "generation", "store"), True)
    }
    (info,) = own(f"{given}info --json").objects
    assert (info["profile"], "measured" in info) == (None, False)


@pytest.mark.parametrize("command", ["watch", "serve"])
def test_commands_that_wait(command: str, own: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if command == "serve":
        pytest.importorskip("uvicorn", reason='pip install "zsvec[serve]"')
        monkeypatch.setattr("zsvec.service.server.serve", interrupt)
        assert own("--encoders mymodule:encoders serve --port 0").code == 130
    else:
        monkeypatch.setattr("zsvec.inputs.watch.Watch.done", interrupt)
        result = own("--encoders mymodule:encoders watch --settle 0 --json", new)
        assert (result.code, len(result.objects)) == (130, 1)


def test_a_trusted_file_names_encoders_beside_it(own: Cli, new: Path) -> None:
    trusted_settings('encoders = "mymodule:encoders"')
    assert own("classify", new).code == 0
    assert [encoder.name for encoder in zsvec.open(os.environ["ZSVEC_STORE"]).encoders] == ["clip", "dino"]


def test_the_environment_names_encoders_on_the_python_path(
    own: Cli, new: Path, mymodule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = imports()
    monkeypatch.setenv("ZSVEC_ENCODERS", "mymodule:encoders")
    result = own("classify", new)
    assert (result.code, result.out, imports()) == (2, "", before)
    assert "./mymodule:encoders" in result.err
    (tmp_path / "installed").mkdir()
    mymodule.rename(tmp_path / "installed" / mymodule)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert own("classify", new).code == 0


def test_an_argument_names_encoders_for_python(own: Cli) -> None:
    with zsvec.open(os.environ["ZSVEC_STORE"], encoders="./mymodule:encoders") as clf:
        assert [encoder.name for encoder in clf.encoders] == ["clip", "dino"]
    for encoders in ("./mymodule:encoders", [HashEncoder()]):
        with pytest.raises(InvalidInputError, match="exclude each other"):
            zsvec.open(":memory:", encoders=encoders, profile="offline")


def test_a_folder_of_strangers_runs_no_code(own: Cli, new: Path) -> None:
    before = imports()
    for text in ("mymodule:encoders", "./mymodule:encoders", f"{Path.cwd()}/mymodule:encoders"):
        Path("zsvec.toml").write_text(f'encoders = "{text}"')
        for command in ("list", "info", "undo", "classify new", "import colours", "doctor", "--profile base list"):
            result = own(command)
            assert result.code in (1, 2), command
            assert "sets encoders, which only a file that you trust may" in result.said + " ".join(result.out.split())
        result = own("trust")
        assert f"encoders = '{text}'" in result.err
        assert imports() == before
        assert own("classify new").code == 0
        assert own("trust --revoke").code == 0
        assert own("classify new").code == 2
        before = imports()
    Path("zsvec.toml").write_text('Encoders = "mymodule:encoders"')
    assert own("classify new").code == 2
    assert imports() == before


def test_a_file_of_strangers_beside_the_module_replaces_no_library(own: Cli, new: Path) -> None:
    """As the installed command does: the folder of the script is on the Python path, and not the working folder."""
    for name in ("json", "numpy", "torch", "typer", "sitecustomize", "accelerate", "helper"):
        Path(f"{name}.py").write_text(f"open('hostile-{name}', 'w').close()")
    code = "import sys; from zsvec.cli import main; main()"
    for module, codes in {"mymodule:encoders": 0, "zsvec.testing:HashEncoder": 1}.items():
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, "--encoders", module, "classify", str(new)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == codes, done.stderr
    assert list(Path().glob("hostile-*")) == []


@pytest.mark.parametrize("problem", ["missing", "raises", "no encoder"])
def test_commands_that_run_no_encoder_import_none(
    problem: str, own: Cli, new: Path, mymodule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    before = imports()
    mymodule.write_text({"missing": "", "raises": "1 / 0", "no encoder": "encoders = 7"}[problem])
    if problem == "missing":
        mymodule.unlink()
    monkeypatch.setenv("ZSVEC_ENCODERS", "./mymodule:encoders")
    for command in (
        *("list", "show red", "history", "info", "calibrate", "audit", "gc", "inbox"),
        *('set red --metadata "{}"', "merge red blue", "remove green --yes", "undo"),
    ):
        result = own(command)
        assert result.code == 0, (command, result.err)
    listed = own("list --json").out
    code = 1 if problem == "raises" else 2
    for command in ("classify new", "set blue --text azure", "add blue --image new/blue.png", "init", "doctor"):
        result = own(command)
        assert result.code == (1 if command == "doctor" else code), command
        assert "mymodule" in result.out + result.err
    assert own("list --json").out == listed
    assert imports() == before


def test_a_change_keeps_the_calibration_of_the_store(own: Cli) -> None:
    assert own("info --json").objects[0]["calibration"] == "current"
    assert own("--encoders ./gone:encoders remove green --yes").code == 0
    assert own("info --json").objects[0]["calibration"] == "current"


def test_without_its_encoders_a_store_says_which_it_has(cli: Cli, colours: Path, new: Path) -> None:
    Path("mymodule.py").write_text("from zsvec.testing import HashEncoder\nmine = HashEncoder('mine')")
    assert cli("--encoders mymodule:mine import", colours).code == 0
    for given in ("", "--profile offline ", "--encoders zsvec.testing:HashEncoder "):
        result = cli(f"{given}classify", new)
        assert (result.code, result.out) == (1, "")
        assert "has vectors of the encoders mine, and" in result.err
        assert "--encoders MODULE:OBJECT" in result.err
    with pytest.raises(EncoderMismatchError):
        zsvec.open(os.environ["ZSVEC_STORE"])


def test_encoders_of_a_store_are_checked_before_a_late_import_is_used(own: Cli, mymodule: Path) -> None:
    """`inbox groups` embeds names of the vocabulary, if it finds groups; `zsvec.open` of a command that may embed."""
    from zsvec.classifier import open_classifier
    from zsvec.settings.settings import load_settings

    mymodule.write_text("from zsvec.testing import HashEncoder\nencoders = HashEncoder('other')")
    imports()
    with open_classifier(load_settings(encoders="./mymodule:encoders"), runs_encoders=False) as clf:
        assert [category.name for category in clf.categories()] == list(COLOURS)
        with pytest.raises(EncoderMismatchError, match="encoders clip, dino, and other are in use"):
            _ = clf.encoders


def test_a_profile_and_encoders_are_wrong_usage(cli: Cli, colours: Path) -> None:
    result = cli("--profile offline --encoders mymodule:encoders import", colours)
    assert (result.code, result.out) == (2, "")
    assert "exclude each other" in result.err
    assert imports() == 0


def test_one_argument_beats_another_setting(own: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_PROFILE", "offline")
    assert own("--encoders mymodule:encoders classify", new).code == 0
    monkeypatch.setenv("ZSVEC_ENCODERS", "./mymodule:encoders")
    assert own("classify", new).code == 2
    monkeypatch.delenv("ZSVEC_PROFILE")
    assert own("classify", new).code == 0
    result = own("--profile offline classify", new)
    assert result.code == 1
    assert "conse, efficientnet are in use" in result.err


def test_encoders_in_python_cannot_be_exported(own: Cli) -> None:
    pytest.importorskip("onnxscript", reason='pip install "zsvec[export]"')
    before = imports()
    for command in ("encoders export", "encoders export ./to"):
        result = own(f"--encoders mymodule:encoders {command}")
        assert result.code == 2
        assert "mymodule:encoders" in result.err
    assert imports() == before
    assert not Path("to").exists()


def test_a_module_that_ends_the_process_is_an_error(cli: Cli, colours: Path, mymodule: Path) -> None:
    mymodule.write_text("import sys\nsys.exit(0)")
    result = cli("--encoders mymodule:encoders import", colours)
    assert result.code == 1
    assert "mymodule.py, line 2" in result.err


def test_a_file_of_the_user_does_not_name_the_working_folder(own: Cli, new: Path) -> None:
    before = imports()
    users = Settings.toml_files[0]
    users.parent.mkdir(parents=True, exist_ok=True)
    users.write_text('encoders = "mymodule:encoders"')
    assert own("classify", new).code == 2
    assert imports() == before


def test_a_text_for_encoders_without_texts_is_refused(cli: Cli, colours: Path) -> None:
    mute = "--encoders mymodule:mute"
    Path("texts.json").write_text('{"red": ["crimson"]}')
    assert cli(f"{mute} import --definitions texts.json", colours).code == 2
    assert cli(f"{mute} add red --text crimson").code == 2
    assert cli(f"{mute} add red --text crimson --image colours/red/0.png").code == 2
    assert cli(f"{mute} import", colours).code == 0
    before = cli("list --json").out
    for command in ("set red --text crimson", "add red --text crimson", "import --definitions texts.json colours"):
        result = cli(f"{mute} {command}")
        assert (result.code, result.out) == (2, "")
        assert "texts" in result.said
    assert cli("list --json").out == before
