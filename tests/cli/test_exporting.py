"""The offer to export the encoders of a profile, before a command loads them with torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import zsvec
import zsvec.classifier.opening as opening
from tests.cli.support import DEADLINE, RUNNER, Cli, Loading
from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.conftest import ON_TORCH
from tests.support import coloured, encode
from zsvec.cli import exporting
from zsvec.cli.exporting import declined_file
from zsvec.encoders import hardware, load_encoders, runtimes
from zsvec.encoders.runtimes import Record, failure_of, place, record_of
from zsvec.encoders.torch import export
from zsvec.errors import EncoderError
from zsvec.settings.profiles import PROFILES, Profile
from zsvec.settings.settings import Settings

for package in runtimes.EXPORT_PACKAGES:
    pytest.importorskip(package, reason='pip install "zsvec[export]"')

QUESTION = "Export the encoders of profile mine once"
FAST = Record(weights={}, rates={"torch float32": 10.0, "onnx": 20.0})


class Exports:
    """Stands for `export_to_cache`, which takes long. Raises `error`, if there is one."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []
        self.error: Exception | None = None

    def __call__(self, specs: Mapping[str, Any], *, on_step: Callable[[str], None]) -> Record:
        on_step("exporting")
        self.made.append(list(specs))
        if self.error is not None:
            raise self.error
        return FAST


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Exports:
    """Exports on a machine without a GPU and with an empty cache. The profile `mine` is on torch."""
    made = Exports()
    monkeypatch.setitem(PROFILES, "mine", Profile(encoders=ON_TORCH))
    monkeypatch.setattr(export, "export_to_cache", made)
    monkeypatch.setattr(runtimes, "_GPUS", ())
    monkeypatch.setattr(hardware, "cache_folder", lambda: tmp_path / "cache" / "zsvec" / "encoders")
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_is_interactive", lambda: True)


@pytest.fixture
def mine(cli: Cli, hash_encoders: Loading, colours: Path, exports: Exports) -> Cli:
    """`cli` on a store of the profile `mine`."""
    assert cli("--profile mine import", colours).code == 0
    assert exports.made == []  # not a terminal
    return cli


# ---- the question


def test_no_is_remembered(mine: Cli, exports: Exports, terminal: None, new: Path) -> None:
    asked = mine("classify --json new", stdin="n\n")
    assert (asked.code, [o["label"] for o in asked.objects]) == (0, ["blue", "red"])
    assert QUESTION in asked.said
    assert f"MB in {hardware.cache_folder()}" in asked.said
    assert "`zsvec encoders export`" in asked.said
    again = mine("classify --json new", stdin="y\n")
    assert (again.code, QUESTION in again.said) == (0, False)
    assert exports.made == []
    assert list(declined_file().parent.iterdir()) == [declined_file()]  # the user's configuration


@pytest.mark.parametrize("command", ["classify new", "add red --image new/red.png", "correct new/red.png red"])
def test_yes_exports_and_the_command_goes_on(
    command: str, mine: Cli, exports: Exports, terminal: None, new: Path
) -> None:
    done = mine(command, stdin="\n")  # the default
    assert (done.code, done.out != "") == (0, True)
    assert exports.made == [["conse", "efficientnet"]]
    assert "torch float32 10.0, onnx 20.0 images/s" in done.said
    assert not declined_file().exists()


def test_the_first_import_asks(
    cli: Cli, hash_encoders: Loading, colours: Path, exports: Exports, terminal: None
) -> None:
    assert cli("--profile mine import", colours, stdin="y\n").code == 0
    assert exports.made


def test_the_end_of_the_input_is_no_answer(mine: Cli, exports: Exports, terminal: None, new: Path) -> None:
    for _ in range(2):
        done = mine("classify new", stdin="")
        assert (done.code, QUESTION in done.said) == (0, True)
    assert exports.made == []
    assert not declined_file().exists()


def test_scripts_answer_by_an_option_or_a_setting(
    mine: Cli, exports: Exports, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mine("classify new").code == 0
    assert exports.made == []
    declined_file().parent.mkdir(parents=True, exist_ok=True)
    declined_file().touch()
    assert mine("classify new --yes").code == 0
    assert len(exports.made) == 1
    monkeypatch.setenv("ZSVEC_EXPORT_ENCODERS", "yes")
    assert mine("classify new").code == 0
    assert len(exports.made) == 2
    monkeypatch.setenv("ZSVEC_EXPORT_ENCODERS", "no")
    monkeypatch.setattr(exporting, "_is_interactive", lambda: True)
    declined_file().unlink()
    assert QUESTION not in mine("classify new", stdin="y\n").said
    assert len(exports.made) == 2


def test_a_file_of_the_working_folder_may_not_ask_for_an_export(mine: Cli, exports: Exports, new: Path) -> None:
    Path("zsvec.toml").write_text('export_encoders = "yes"\n')
    refused = mine("classify new")
    assert (refused.code, exports.made) == (2, [])
    assert "export_encoders" in refused.err


def unneeded(name: str, patch: pytest.MonkeyPatch) -> None:
    if name == "another user may write to the cache":
        hardware.cache_folder().mkdir(parents=True)
        hardware.cache_folder().chmod(0o777)
    elif name == "a GPU":
        patch.setattr(runtimes, "_GPUS", ("/",))
    elif name == "a missing package":
        patch.setattr(runtimes, "find_spec", lambda package: None if package == "onnxscript" else package)
    elif name == "a failed export":
        specs = Settings(profile="mine").encoder_specs()
        hardware.write_cached(failure_of(place(specs)), b"impossible")
    else:
        patch.setenv(*name.split("="))


@pytest.mark.parametrize(
    "name",
    [
        "another user may write to the cache",
        "a GPU",
        "a missing package",
        "a failed export",
        "ZSVEC_RUNTIME=torch",
        "ZSVEC_DTYPE=bfloat16",
        "ZSVEC_DEVICE=mps",
        "ZSVEC_COMPILE=true",
    ],
)
def test_nothing_is_asked_where_an_export_would_not_be_used(
    name: str, mine: Cli, exports: Exports, terminal: None, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unneeded(name, monkeypatch)
    for command in ("classify new", "classify new --yes"):
        done = mine(command, stdin="y\n")
        assert (done.code, QUESTION in done.said) == (0, False)
        assert done.err == ""
    assert exports.made == []


def test_nothing_is_asked_about_an_empty_store_or_missing_images(
    mine: Cli, exports: Exports, terminal: None, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert QUESTION not in mine("classify nowhere.png", stdin="y\n").said
    monkeypatch.setenv("ZSVEC_STORE", "empty")
    assert QUESTION not in mine("--profile mine classify new", stdin="y\n").said
    assert exports.made == []


@pytest.mark.parametrize("error", [EncoderError("they differ"), OSError(28, "No space left on device")])
def test_torch_computes_after_a_failure(
    error: Exception, mine: Cli, exports: Exports, terminal: None, new: Path
) -> None:
    exports.error = error
    done = mine("classify new --json", stdin="y\n")
    assert (done.code, len(done.objects)) == (0, 2)
    assert str(error) in done.said


def test_a_link_in_place_of_the_answer_is_not_followed(mine: Cli, exports: Exports, terminal: None, new: Path) -> None:
    victim = Path("victim")
    declined_file().parent.mkdir(parents=True, exist_ok=True)
    declined_file().symlink_to(victim.absolute())
    assert mine("classify new", stdin="n\n").code == 0
    assert not victim.exists()


def test_scripts_in_python_are_told_once(
    mine: Cli, new: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opening._advise_export.cache_clear()
    monkeypatch.setattr(opening, "_SLOW_S", -1.0)
    caplog.set_level("WARNING", opening.__name__)
    told = []
    for device in ("mps", "cpu", "cpu"):  # an export would not be used on a GPU
        with zsvec.open(device=device) as clf:  # type: ignore[arg-type]
            clf.classify(new / "red.png")
        told.append(len(caplog.records))
    assert told == [0, 1, 1]


ASKING = f"""
import zsvec.cli.exporting as exporting
exporting._lacks_export = lambda *_: True
exporting._question = lambda *_: "Export?"
{RUNNER}
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_results_in_a_file_have_nothing_of_the_question(
    cli: Cli, hash_encoders: Loading, colours: Path, new: Path, exports: Exports
) -> None:
    import pty

    assert cli("--profile offline import", colours).code == 0  # another process does not know `mine`

    ours, theirs = pty.openpty()
    arguments = ["classify", "new", "--csv"]
    process = subprocess.Popen(
        [sys.executable, "-c", ASKING, *arguments], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while b"Export?" not in said:
        said += os.read(ours, 1000)
    os.write(ours, b"n\n")
    out, _ = process.communicate(timeout=DEADLINE)
    os.close(ours)
    assert process.returncode == 0
    assert [line.split(",")[0] for line in out.decode().splitlines()] == ["source", "new/blue.png", "new/red.png"]
    assert declined_file().exists()


def test_a_background_job_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, SimpleNamespace(isatty=lambda: True, fileno=lambda: 0))
    for group, asked in ((os.getpgrp(), True), (os.getpgrp() + 1, False)):
        monkeypatch.setattr(os, "tcgetpgrp", lambda _, group=group: group)
        assert exporting._is_interactive() is asked
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert exporting._is_interactive() is False


# ---- with real encoders


CLASSIFIES = """
import sys
sys.argv = ["zsvec", "classify", "photo.png", "--json"]
from zsvec.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("torch:", "torch" in sys.modules)
"""


def classify_in_a_process() -> tuple[dict[str, Any], bool, str]:
    """Prediction, whether torch was imported, and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFIES], capture_output=True, text=True, timeout=2 * DEADLINE, check=True
    )
    prediction, imported = done.stdout.splitlines()
    return json.loads(prediction), imported == "torch: True", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only torch knows of GPUs")
def test_after_an_export_commands_do_without_torch(
    cli: Cli, terminal: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("ZSVEC_DEVICE", "cpu")  # in the other process, too
    monkeypatch.setattr(hardware, "cache_folder", lambda: tmp_path / "cache" / "zsvec" / "encoders")
    monkeypatch.setattr(export, "_rates", lambda *_: FAST.rates)
    config = Settings.toml_files[0]
    config.parent.mkdir(parents=True)
    config.write_text(
        f'profile = "tiny"\n[profiles.tiny.encoders.vit]\nfamily = "vision"\nmodel = "{tiny.VIT}"\n'
        f'weights = "{tiny.save_vit(tmp_path / "vit.pth")}"\nmodalities = ["image"]\n'
    )
    Path("photo.png").write_bytes(encode(coloured("red", 1)))
    for colour in ("red", "blue"):
        Path(f"{colour}.png").write_bytes(encode(coloured(colour, 2)))
        done = cli(f"add {colour} --image {colour}.png", stdin="y\n")
        assert done.code == 0, done.err
        assert ("Export the encoders of profile tiny" in done.said) is (colour == "red")  # asked once
    specs = Settings().encoder_specs()
    with zsvec.open(os.environ["ZSVEC_STORE"], runtime="torch") as clf:
        expected = clf.classify("photo.png")
    by_torch = load_encoders(specs, device="cpu", dtype="float32", runtime="torch")
    exported = load_encoders(specs, device="cpu")
    image = coloured("red", 1)
    cosine = (by_torch["vit"].encode_images([image]) * exported["vit"].encode_images([image])).sum()
    assert cosine >= export.LEAST_COSINE
    found, imported, said = classify_in_a_process()
    assert (found["label"], imported, said) == (expected.label, False, "")
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-3)

    graph = next(place(specs).glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-100])  # damaged
    found, imported, said = classify_in_a_process()
    assert (found["label"], imported, len(said.splitlines())) == (expected.label, True, 1)
    assert "zsvec encoders export" in said
    assert record_of(place(specs)).exists()
