"""The pages that are made from the code are those that the code makes now."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from zsvec.cli.docs import page
from zsvec.settings.settings import GenerationSettings, Settings

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def write_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import write_pages

    return write_pages


@pytest.mark.parametrize("topic", ["commands", "problems", "settings"])
def test_the_page_is_current(topic: str, write_pages: ModuleType) -> None:
    assert page(topic) == write_pages.PAGES[topic](), "run scripts/write_pages.py"


def test_the_description_of_the_api_is_current(write_pages: ModuleType) -> None:
    assert (write_pages.FOLDER / "openapi.json").read_text() == write_pages.description(), "run scripts/write_pages.py"


@pytest.mark.parametrize("topic", ["commands", "settings"])
@pytest.mark.parametrize("variable", ["COLUMNS=40", "FORCE_COLOR=1", "HOME=/nowhere"])
def test_the_machine_makes_no_difference(
    topic: str, variable: str, write_pages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("="))
    assert page(topic) == write_pages.PAGES[topic]()
    assert "\x1b" not in page(topic)


def test_settings_has_every_field_and_says_how_variables_are_named() -> None:
    text = page("settings")
    for name in (*Settings.model_fields, *GenerationSettings.model_fields):
        assert f"- `{name}` (" in text
    assert "`max_staleness` is `ZSVEC_MAX_STALENESS`" in text
    assert "`ZSVEC_GENERATION__`" in text


def test_commands_has_what_a_command_takes() -> None:
    text = page("commands")
    assert "## zsvec import" in text
    assert "`zsvec import [OPTIONS] DIR|FILE`" in text
    assert "- `--definitions FILE`: " in text
