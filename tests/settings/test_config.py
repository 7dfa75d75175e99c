"""Sources of settings, unknown names, and keys in messages."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from tests.support import isolated, trusted_settings
from zsvec.errors import InvalidInputError
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.settings.settings import OTHER_VARIABLES, Settings, load_settings

__all__ = ["isolated"]


def test_tables_of_both_files_are_joined(tmp_path: Path) -> None:
    user = tmp_path / "user" / "zsvec" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[generation]\nconcurrency = 3\nlanguage_model = "theirs"\n')
    trusted_settings('[generation]\nlanguage_model = "ours"\n')
    settings = load_settings().generation
    assert (settings.concurrency, settings.language_model) == (3, "ours")


def test_names_come_from_the_tables() -> None:
    tables: list[tuple[str, Any]] = [("fusion", STRATEGIES), ("aggregation", AGGREGATIONS)]
    for setting, table in tables:
        for name in table:
            assert getattr(load_settings(**{setting: name}), setting) == name
        with pytest.raises(InvalidInputError) as refused:
            load_settings(**{setting: "psychic"})
        assert all(name in str(refused.value) for name in (*table, "'psychic'"))
    assert load_settings().fusion == DEFAULT_STRATEGY
    assert load_settings().aggregation in AGGREGATIONS


def test_a_threshold_of_novelty_is_between_0_and_1() -> None:
    for value in (-0.1, 1.1):
        with pytest.raises(InvalidInputError, match="unknown_above"):
            load_settings(unknown_above=value)


def test_a_folder_that_is_called_like_a_server_is_opened_if_it_is_there() -> None:
    with pytest.raises(InvalidInputError, match=r"write http://localhost:6333"):
        load_settings(store="localhost:6333").open_store()
    Path("localhost:6333").mkdir()
    for store in ("localhost:6333", "./localhost:6334"):
        with load_settings(store=store).open_store() as opened:
            assert store.removeprefix("./") in opened.location


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_DEVCE", "cuda")
    with pytest.warns(UserWarning, match=r"ZSVEC_DEVCE is no setting.*did you mean 'ZSVEC_DEVICE'\?"):
        assert load_settings().device == "auto"


def test_a_variable_that_resembles_no_setting_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_QQQQQQ", "1")
    with pytest.warns(UserWarning, match=r"ZSVEC_QQQQQQ is no setting and has no effect$"):
        load_settings()


def test_known_variables_cause_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"ZSVEC_GENERATION__CONCURRENCY": "3", "ZSVEC_WEIGHTS__clip": "1", "zsvec_device": "cpu"}
    for variable, value in {**dict.fromkeys(OTHER_VARIABLES, "1"), **more, "ZSVECTOR_HOME": "1"}.items():
        monkeypatch.setenv(variable, value)
    load_settings()


def test_every_variable_of_the_code_is_a_setting_or_in_the_table() -> None:
    root = Path(__file__).parents[2]
    text = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("zsvec", "scripts", "docker")
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".yml", ".md")
    )
    named = set(re.findall(r"\bZSVEC_[A-Z][A-Z_]*[A-Z]\b", text))
    settings = {f"ZSVEC_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in named if name.partition("__")[0] not in settings} <= OTHER_VARIABLES.keys()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"generation": {"concurency": 7}},
            "there is no setting 'generation.concurency'; did you mean 'generation.concurrency'?",
        ),
        ({"apikey": "secret"}, "there is no setting 'apikey'; did you mean 'api_key'?"),
        ({"STORE": "secret"}, "there is no setting 'STORE'; did you mean 'store'?"),
        ({"generation": {"api_key": "secret"}}, "there is no setting 'generation.api_key'"),
        ({"generation": {"prices": {"mine": {"per_image": 1}}}}, "no setting 'generation.prices.mine.per_image'"),
    ],
    ids=["in a table", "argument", "letter case", "key in a table", "price"],
)
def test_an_error_names_the_setting_and_the_nearest(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        load_settings(**given)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"stor = 1", "no setting 'stor'; did you mean 'store'?"), (b"store = ", "Invalid value"), (b"\xff", "utf-8")],
)
def test_a_damaged_file_is_named(content: bytes, says: str) -> None:
    Path("zsvec.toml").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"zsvec\.toml") as refused:
        load_settings()
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"base_url": "ftp://x"}, "generation.base_url: String should match"),
        ({"concurrency": 0}, "generation.concurrency: Input should be greater than 0 (got 0)"),
        ({"timeout": "soon"}, "(got 'soon')"),
        ({"image_model": ""}, "generation.image_model: String should"),
        ({"prices": {"mine": {"image": -1}}}, "generation.prices.mine.image: Input should be greater than or equal to"),
    ],
    ids=["base_url", "concurrency", "timeout", "image_model", "prices"],
)
def test_a_wrong_value_of_generation(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        load_settings(generation=given)
    assert says in str(refused.value)
    for name, value in given.items():
        monkeypatch.setenv(f"ZSVEC_GENERATION__{name.upper()}", value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(InvalidInputError, match=says.partition(":")[0].strip("()")):
        load_settings()


PLANTED = "5318008"
LEAKY: dict[str, Any] = {
    "a number": {"api_key": int(PLANTED)},
    "a list": {"api_key": [PLANTED]},
    "a mistyped name": {"api_kye": PLANTED},
    "a key in the place of a table": {"generation": PLANTED},
    "a key in the wrong table": {"generation": {"api_key": PLANTED}},
    "a table in the place of a store": {"store": {"api_key": PLANTED}},
    "a password in an address": {"generation": {"base_url": f"ftp://me:{PLANTED}@localhost"}},
    "a password in the URL of a store": {"store": f"http://me:{PLANTED}@localhost:9"},
    "a password in one of several": {"store": f"http://localhost:9,http://me:{PLANTED}@localhost:8"},
    "a password in the URL of nothing": {"store": f"ftp://me:{PLANTED}@localhost:9"},
    "a password without a scheme": {"store": f"me:{PLANTED}@localhost:9"},
    "a key with a line in it": {"store": "http://localhost:9", "api_key": f"{PLANTED}\nx"},
    "a key that is not of ASCII": {"store": "http://localhost:9", "api_key": f"{PLANTED}é"},
}


@pytest.mark.parametrize("given", LEAKY.values(), ids=LEAKY)
def test_no_message_has_a_key_or_a_password_in_it(given: dict[str, Any]) -> None:
    tables = sorted(given.items(), key=lambda item: isinstance(item[1], dict))
    toml = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        if isinstance(table, dict)
        else f"{name} = {json.dumps(table)}\n"
        for name, table in tables
    )
    for by_file in (False, True):
        if by_file:
            Path("zsvec.toml").write_text(toml)
        with pytest.raises(InvalidInputError) as refused:
            load_settings(**({} if by_file else given)).open_store()
        assert PLANTED not in "".join(traceback.format_exception(refused.value))


def test_a_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ZSVEC_TEMPERATURES", "ZSVEC_GENERATION__PRICES"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "high")
            with pytest.raises(InvalidInputError, match=f"{variable} in the environment .* JSON"):
                load_settings()
