"""Encoders that settings name by an import string: what is imported, from where, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import isolated, trusted_settings
from zsvec.errors import EncoderError, InvalidInputError, WeightsUnavailableError
from zsvec.settings.settings import Settings, load_settings

__all__ = ["isolated"]

ENCODERS = """
from zsvec.errors import WeightsUnavailableError
from zsvec.testing import HashEncoder

class Mine(HashEncoder):
    def __init__(self):
        super().__init__("mine")

class Callable(Mine):
    def __call__(self):
        raise AssertionError

class WithClassAttribute(Mine):
    fingerprint = None

class Namespace:
    one = Mine()

def function():
    return Mine()

def generator():
    yield Mine()
    yield HashEncoder("other")

def raising():
    raise KeyError("weights")

def raising_later():
    yield Mine()
    raise KeyError("weights")

def unavailable():
    raise WeightsUnavailableError("no weights")

def with_an_argument(device):
    return Mine()

def returning_a_function():
    return function

one, called = Mine(), Callable()
several, classes, number, text, table, nothing = [Mine(), HashEncoder("other")], [Mine], 7, "mine", {"mine": 1}, None
"""


@pytest.fixture(autouse=True)
def no_module_stays(tmp_path: Path) -> Iterator[None]:
    before = {*sys.modules}
    path = [*sys.path]
    yield
    assert sys.path == path
    for name in {*sys.modules} - before:
        if str(tmp_path) in repr(sys.modules[name]):
            del sys.modules[name]


@pytest.fixture
def mymodule() -> Path:
    file = Path("mymodule.py")
    file.write_text(ENCODERS)
    return file


def names(text: str) -> list[str]:
    return [encoder.name for encoder in load_settings(encoders=text).import_encoders()]


@pytest.mark.usefixtures("mymodule")
@pytest.mark.parametrize("name", ["one", "called", "Mine", "WithClassAttribute", "Namespace.one", "function"])
def test_one_encoder(name: str) -> None:
    assert names(f"./mymodule:{name}") == ["mine"]


@pytest.mark.usefixtures("mymodule")
@pytest.mark.parametrize("name", ["several", "generator"])
def test_several_encoders(name: str) -> None:
    assert names(f"./mymodule:{name}") == ["mine", "other"]


@pytest.mark.parametrize("init", [True, False])
def test_a_module_of_a_package(init: bool) -> None:
    package = Path("models", "mypackage")
    package.mkdir(parents=True)
    (package / "colours.py").write_text(f"from mypackage.base import one\n{ENCODERS}")
    (package / "base.py").write_text("one = 1")
    if init:
        (package / "__init__.py").touch()
    assert names("models/mypackage.colours:one") == names(f"{Path.cwd()}/models/mypackage.colours:one") == ["mine"]


def test_a_module_of_the_home_folder(tmp_path: Path, mymodule: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert names(f"~/{mymodule.parent.absolute().name}/mymodule:one") == ["mine"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mymodule",
        "mymodule:",
        ":one",
        "my module:one",
        "mymodule:one()",
        "a:b:c",
        "./:one",
        "1:one",
        "m:o\n",
        "m.py:o",
        7,
    ],
)
def test_malformed_values(text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match=r"encoders: "):
        load_settings(encoders=text)
    if isinstance(text, str):
        with monkeypatch.context() as patch:
            patch.setenv("ZSVEC_ENCODERS", text)
            with pytest.raises(InvalidInputError, match=r"encoders: "):
                load_settings()
    trusted_settings(f"encoders = {json.dumps(text)}")
    with pytest.raises(InvalidInputError, match=r"encoders: "):
        load_settings()


@pytest.mark.usefixtures("mymodule")
@pytest.mark.parametrize(
    "text",
    [
        *(
            "./gone:one",
            "gone:one",
            "gone/mymodule:one",
            "./mymodule.gone:one",
            "./mymodule:gone",
            "./mymodule:one.gone",
        ),
        *("~nobody-has-this-name/mymodule:one", "./mymodule\0:one"),
        *(f"./mymodule:{name}" for name in ("classes", "number", "text", "table", "nothing", "sys")),
        *("./mymodule:returning_a_function", "json:loads", "json:decoder", "__main__:one"),
    ],
)
def test_values_that_name_no_encoders(text: str) -> None:
    with pytest.raises((InvalidInputError, EncoderError)):
        names(text)


@pytest.mark.usefixtures("mymodule")
@pytest.mark.parametrize("name", ["raising", "raising_later"])
def test_a_callable_that_fails(name: str) -> None:
    with pytest.raises(EncoderError, match=r"KeyError: 'weights' \(.*mymodule\.py, line \d+\)"):
        names(f"./mymodule:{name}")


@pytest.mark.usefixtures("mymodule")
def test_a_callable_that_takes_arguments() -> None:
    with pytest.raises(EncoderError, match=r"TypeError: .*'device'") as raised:
        names("./mymodule:with_an_argument")
    assert "line" not in str(raised.value)


@pytest.mark.usefixtures("mymodule")
def test_an_error_of_zsvec_stays_as_it_is() -> None:
    with pytest.raises(WeightsUnavailableError, match=r"^no weights$"):
        names("./mymodule:unavailable")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("\n1 / 0", r"ZeroDivisionError: .*mymodule\.py, line 2"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("one = ", r"SyntaxError: .*mymodule\.py, line 1"),
        ("import gone", r"ModuleNotFoundError: .*gone.*mymodule\.py, line 1"),
        ("import beside", "ModuleNotFoundError: .*beside"),
    ],
)
def test_an_import_that_fails(code: str, says: str) -> None:
    Path("mymodule.py").write_text(code)
    Path("beside.py").touch()
    for _ in range(2):
        with pytest.raises(EncoderError, match=says):
            names("./mymodule:one")
        assert "mymodule" not in sys.modules


def test_a_file_beside_the_module_replaces_no_library() -> None:
    for name in ("json", "numpy", "torch", "antigravity", "sitecustomize"):
        Path(f"{name}.py").write_text("raise AssertionError")
    Path("mymodule.py").write_text(f"import json, numpy\n{ENCODERS}")
    assert names("./mymodule:one") == ["mine"]
    for name in ("json", "numpy", "antigravity"):  # the last is not imported yet
        with pytest.raises(InvalidInputError, match="has the name of another module"):
            names(f"./{name}:one")
    assert "antigravity" not in sys.modules


def test_a_module_of_the_same_name_in_another_folder_is_no_mistake(mymodule: Path) -> None:
    assert names("./mymodule:one") == names("./mymodule:one") == ["mine"]
    Path("other").mkdir()
    mymodule.rename(f"other/{mymodule}")
    with pytest.raises(InvalidInputError, match="has the name of another module"):
        names("other/mymodule:one")


@pytest.mark.parametrize("folder", [".", "other/.."])
def test_the_folder_of_a_module_may_be_on_the_python_path(
    folder: str, mymodule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("other").mkdir()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)  # as for a script in the folder
        assert names(f"{folder}/{mymodule.stem}:one") == names(f"./{mymodule.stem}:one") == ["mine"]


def test_the_python_path_comes_before_the_folder_of_a_trusted_file(
    mymodule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted_settings('encoders = "mymodule:one"')
    assert load_settings().encoders == f".{os.sep}mymodule:one"
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / mymodule).write_text(ENCODERS.replace('"mine"', '"installed"', 1))
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "installed")
        assert load_settings().encoders == "mymodule:one"
        assert [encoder.name for encoder in load_settings().import_encoders()] == ["installed"]


@pytest.mark.usefixtures("mymodule")
def test_only_the_user_names_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable and the file of the user stay where the working folder changes, and may come into a hostile one."""
    users, _ = Settings.toml_files
    users.parent.mkdir(parents=True)
    users.write_text('encoders = "mymodule:one"')
    with pytest.raises(InvalidInputError, match="no module 'mymodule' on the Python path"):
        load_settings().import_encoders()
    users.unlink()
    monkeypatch.setenv("ZSVEC_ENCODERS", "mymodule:one")
    with pytest.raises(InvalidInputError, match="no module 'mymodule' on the Python path"):
        load_settings().import_encoders()
    monkeypatch.setenv("ZSVEC_ENCODERS", "./mymodule:one")
    assert [encoder.name for encoder in load_settings().import_encoders()] == ["mine"]


def test_settings_import_nothing_by_themselves() -> None:
    Path("mymodule.py").write_text("raise AssertionError")
    for text in ("./mymodule:one", "mymodule:one"):
        load_settings(encoders=text)
        trusted_settings(f'encoders = "{text}"')
        assert load_settings().encoders
    assert "mymodule" not in sys.modules


@pytest.mark.parametrize("name", ["profile", "encoders"])
def test_the_profile_or_the_encoders_of_the_first_source_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"profile": "offline", "encoders": "zsvec.testing:HashEncoder"}
    (other,) = values.keys() - {name}
    users, file = Settings.toml_files
    users.parent.mkdir(parents=True)

    def chosen(**arguments: Any) -> tuple[str | None, bool]:
        found = load_settings(**arguments)
        return found.encoders, "profile" in found.model_fields_set

    expected = (values[name], False) if name == "encoders" else (None, True)
    users.write_text(f'{other} = "{values[other]}"')
    trusted_settings(f'{name} = "{values[name]}"')
    assert chosen() == expected
    users.write_text(f'{name} = "{values[name]}"')
    trusted_settings(f'{other} = "{values[other]}"')
    with monkeypatch.context() as patch:
        patch.setenv(f"ZSVEC_{name.upper()}", values[name])
        assert chosen() == expected
        patch.delenv(f"ZSVEC_{name.upper()}")
        patch.setenv(f"ZSVEC_{other.upper()}", values[other])
        assert chosen(**{name: values[name]}) == expected
    file.write_text("")
    assert chosen() == expected


def test_one_source_cannot_have_both(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"profile": "offline", "encoders": "zsvec.testing:HashEncoder"}
    with pytest.raises(InvalidInputError, match=r"exclude each other, got 'offline' and 'zsvec\.testing:HashEncoder'"):
        load_settings(**both)
    trusted_settings("".join(f'{name} = "{value}"\n' for name, value in both.items()))
    with pytest.raises(InvalidInputError, match="exclude each other"):
        load_settings()
    for name, value in both.items():
        monkeypatch.setenv(f"ZSVEC_{name.upper()}", value)
    with pytest.raises(InvalidInputError, match="exclude each other"):
        load_settings()
    assert load_settings(profile="plus").profile == "plus"
