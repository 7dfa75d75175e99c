"""The profile that a store remembers, and commands that run no encoder and so need none."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer.main

import zsvec
from tests.cli.support import ARGUMENTS, Cli, Loading, commands
from tests.support import photo, trusted_settings
from zsvec.cli.commands import app
from zsvec.errors import InvalidInputError, StoreLockedError, WeightsUnavailableError
from zsvec.settings.settings import load_settings
from zsvec.store import open_store
from zsvec.store.backends.base import Put
from zsvec.store.names import record_id
from zsvec.testing import HashEncoder


def test_a_store_is_used_with_its_profile(cli: Cli, hash_encoders: Loading, colours: Path, new: Path) -> None:
    assert cli("--profile offline import", colours).code == 0
    found = {o["source"]: o["label"] for o in cli("classify --json", new).objects}
    assert found == {"new/blue.png": "blue", "new/red.png": "red"}
    assert cli("add blue --image", new / "blue.png").code == 0
    (info,) = cli("info --json").objects
    assert info["profile"] == "offline"
    assert "measured" not in info  # on onnxruntime alone, there is nothing to choose
    assert {encoder.name for encoder in hash_encoders.made} == {"conse", "efficientnet"}
    before = hash_encoders.embedded()
    result = cli("--profile base classify", new)
    assert (result.code, result.out) == (1, "")
    assert "encoders conse, efficientnet, and clip, dino are in use" in result.err
    assert hash_encoders.embedded() == before


def test_a_new_store_is_made_with_the_profile_base(cli: Cli, hash_encoders: Loading, colours: Path) -> None:
    assert cli("import", colours).code == 0
    assert cli("info --json").objects[0]["profile"] == "base"


def test_info_shows_the_speed_of_no_profile_for_encoders_in_python(cli: Cli) -> None:
    with zsvec.open(os.environ["ZSVEC_STORE"], encoders=[HashEncoder("clip"), HashEncoder("dino")]) as clf:
        assert "measured" in clf.info()  # the store is new
        clf.add_category("red", texts=["a red"])
        assert "measured" not in clf.info()
    (info,) = cli("info --json").objects
    assert "measured" not in info
    (info,) = cli("--profile base info --json").objects
    assert "clip by torch" in info["measured"]


@pytest.fixture(params=["own encoders", "another profile"])
def unusable(
    request: pytest.FixtureRequest, cli: Cli, hash_encoders: Loading, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """`cli` on a store whose encoders cannot be loaded here."""
    if request.param == "own encoders":
        with zsvec.open(os.environ["ZSVEC_STORE"], encoders=[HashEncoder("mine")]) as clf:
            for folder in sorted(colours.iterdir()):
                clf.add_category(folder.name, texts=[f"a {folder.name}"], images=sorted(folder.glob("*.png")))
            assert clf.keep(photo(1))
            assert clf.keep(photo(2))
    else:
        Path("definitions.json").write_text('{"blue": "a blue", "green": "a green", "red": "a red"}')
        assert cli("--profile offline import --definitions definitions.json", colours).code == 0
        with zsvec.open(os.environ["ZSVEC_STORE"]) as clf:
            assert clf.keep(photo(1))
            assert clf.keep(photo(2))
        monkeypatch.setenv("ZSVEC_PROFILE", "base")
    hash_encoders.made.clear()
    return cli


def test_commands_that_run_no_encoder_need_no_profile(
    unusable: Cli, hash_encoders: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    (red,) = [o["stored"] for o in unusable("show red --json").objects]
    first, second = [reference["hash"] for reference in red if reference["modality"] == "image"][:2]
    one, other = (o["hash"] for o in unusable("inbox --json").objects)
    commands = [
        "list",
        "info",
        "history",
        "gc",
        "inbox",
        "inbox groups",
        "calibrate",
        "audit",
        f"inbox label {one} red",
        f"inbox dismiss {other}",
        f"move red blue {first}",
        "rename blue azure",
        "merge green azure",
        'set azure --metadata {"a":1}',
        f"remove red {second}",
        "remove red --yes",
        "undo",
        f"forget {second} --yes",
    ]
    for command in commands:
        result = unusable(command.replace('{"a":1}', "'{\"a\":1}'"))
        assert result.code == 0, (command, result.err)
    assert [o["category"] for o in unusable("list --json").objects] == ["azure", "red"]
    assert not hash_encoders.made


def test_commands_that_run_an_encoder_are_refused_as_ever(unusable: Cli, hash_encoders: Loading, new: Path) -> None:
    before = unusable("list --json").out
    for command in (
        "set red --text crimson",
        "classify new",
        "add red --image new/red.png",
        "correct new/red.png blue",
    ):
        result = unusable(command)
        assert (result.code, result.out) == (1, ""), command
    assert unusable("list --json").out == before
    assert not hash_encoders.made


@pytest.mark.parametrize("given", ["option", "environment", "file"])
@pytest.mark.parametrize(("name", "code"), [("nonsense", 2), ("./gone", 1)])
def test_every_command_refuses_a_profile_that_does_not_exist(
    stocked: Cli,
    hash_encoders: Loading,
    new: Path,
    name: str,
    code: int,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    before = stocked("list --json").out
    with monkeypatch.context() as patch:
        if given == "environment":
            patch.setenv("ZSVEC_PROFILE", name)
        elif given == "file":
            trusted_settings(f'profile = "{name}"\n')
        option = f"--profile {name} " * (given == "option")
        every = {" ".join(words) for words in commands(typer.main.get_command(app))}
        groups = {"", "encoders", "images"}  # `zsvec inbox` is a command and a group
        without_settings = {"docs", "trust"}
        for command in sorted(every - groups - without_settings):
            if command == "demo" and given != "option":  # takes `offline`, whatever the environment says
                continue
            with subtests.test(command):
                result = stocked(f"{option}{command} {ARGUMENTS.get(command, '')}")
                assert result.code == (1 if command == "doctor" else code)
                assert name.removeprefix("./") in result.said + result.out
                assert not result.out or command == "doctor"
        for command in ("docs", "docs encoders", "--help", "list --help"):
            assert stocked(option + command).code == 0
        with pytest.raises((InvalidInputError, WeightsUnavailableError)):
            zsvec.open(":memory:", profile=name if given == "option" else None)
        zsvec.open(":memory:", encoders=[HashEncoder()]).close()  # takes precedence
    Path("zsvec.toml").unlink(missing_ok=True)
    assert stocked("list --json").out == before
    assert {path.name for path in Path().iterdir()} == {"colours", "new"}
    assert not hash_encoders.made


def test_settings_open_the_store_only_to_find_the_profile(
    cli: Cli, hash_encoders: Loading, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().of_store().profile == "base"
    assert cli("--profile offline import", colours).code == 0
    assert load_settings().of_store().profile == "offline"
    with zsvec.open(os.environ["ZSVEC_STORE"]):
        with pytest.raises(StoreLockedError):
            load_settings().of_store()
        assert load_settings(profile="plus").of_store().profile == "plus"


def rewrite(**fields: Any) -> None:
    """Writes into the record of the store, as a writer of a shared server may."""
    with open_store(os.environ["ZSVEC_STORE"], namespace="zsvec") as store:
        backend, catalog, place = store._backend, store.collection("catalog"), record_id("store")
        record = backend.retrieve(catalog, [place])[place]
        changed = {**record, "version": record["version"] + 1, **fields}
        backend.put(catalog, [Put(place, changed, {"version": record["version"]})])


@pytest.mark.parametrize("name", ["./evil", "evil", "package:evil", "http://127.0.0.1:9/x"])
def test_a_store_cannot_name_weights(name: str, cli: Cli, hash_encoders: Loading, colours: Path, new: Path) -> None:
    """Neither a folder beside the user, nor any other thing that the settings do not define as a profile."""
    assert cli("--profile offline import", colours).code == 0
    Path("evil").mkdir()
    os.mkfifo("evil/encoders.json")  # would block a reader
    rewrite(profile=name)
    hash_encoders.made.clear()
    for command in ("classify new", "add red --image new/red.png"):
        result = cli(command)
        assert (result.code, result.out) == (1, ""), command
    assert cli(f"undo {cli('history --json').objects[0]['id']}").code == 0
    assert not hash_encoders.made


def test_a_store_cannot_name_collections_of_others(cli: Cli, hash_encoders: Loading, colours: Path) -> None:
    """The collection of an encoder ``b__clip`` of the namespace ``a`` would be one of the namespace ``a__b``."""
    assert cli("import", colours).code == 0
    with zsvec.open(os.environ["ZSVEC_STORE"]) as clf:
        fingerprint = asdict(clf.encoders["clip"].fingerprint)
    rewrite(encoders={"b__clip": fingerprint})
    for command in ("undo", "remove red --yes"):
        result = cli(command)
        assert (result.code, result.out) == (2, ""), command
        assert "b__clip" in result.err


def test_a_change_without_the_profile_of_the_store_does_not_calibrate_it(
    cli: Cli, hash_encoders: Loading, colours: Path
) -> None:
    assert cli("--profile offline import", colours).code == 0
    assert cli("info --json").objects[0]["calibration"] == "current"
    rewrite(profile="theirs")  # its temperatures are unknown here
    assert cli("remove red --yes").code == 0
    assert cli("info --json").objects[0]["calibration"] == "stale"
