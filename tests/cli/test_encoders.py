"""`zsvec encoders export`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from zsvec.cli.commands import app
from zsvec.config import Settings
from zsvec.encoders.exported import ExportedFolder
from zsvec.errors import InvalidInputError


@pytest.mark.usefixtures("settings")
def test_a_folder_is_written_and_named_as_a_profile() -> None:
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to"])
    assert result.exit_code == 0, result.output
    assert "--profile" in result.stderr
    assert list(ExportedFolder(Path("to")).manifest.encoders) == ["vit"]
    assert list(Settings(profile="./to").encoder_specs()) == ["vit"]


@pytest.mark.usefixtures("settings")
def test_what_is_exported_is_not_exported_again() -> None:
    CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to"])
    again = CliRunner().invoke(app, ["--profile", "./to", "encoders", "export"])
    assert isinstance(again.exception, InvalidInputError)
