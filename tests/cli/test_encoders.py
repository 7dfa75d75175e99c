"""`zsvec encoders export`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.encoders import tiny_checkpoints as tiny
from zsvec.cli.commands import app
from zsvec.encoders import cache
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.torch import export
from zsvec.errors import InvalidInputError, MissingExtraError
from zsvec.settings.settings import Settings


@pytest.mark.usefixtures("settings")
def test_a_folder_is_written_and_named_as_a_profile(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to"])
    assert result.exit_code == 0, result.output
    assert "--profile" in result.stderr
    assert list(ExportedFolder(Path("to")).manifest.encoders) == ["vit"]
    assert list(Settings(profile="./to").encoder_specs()) == ["vit"]
    measured = {}
    for profile in ("tiny", "./to"):
        command = ["--profile", profile, "--store", str(tmp_path / "store")]
        assert CliRunner().invoke(app, [*command, "init"]).exit_code == 0
        measured[profile] = "measured" in CliRunner().invoke(app, [*command, "info"]).stdout
    assert measured == {"tiny": True, "./to": False}  # what was exported runs on onnxruntime alone


@pytest.mark.usefixtures("settings")
def test_what_is_exported_is_not_exported_again(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to"])
    for folder in ([], ["again"]):
        again = CliRunner().invoke(app, ["--profile", "./to", "encoders", "export", *folder])
        assert isinstance(again.exception, InvalidInputError)
        assert str(again.exception).startswith("vit: exported encoders already; copy their folder")
    assert not (tmp_path / "again").exists()


SLOW, FAST = {"torch float32": 10.0, "onnx": 1.0}, {"torch float32": 10.0, "onnx": 20.0}


@pytest.mark.parametrize(
    ("rates", "gpus", "variables", "said"),
    [
        (FAST, (), {}, "onnxruntime from the next start on"),
        (SLOW, (), {}, "torch as before: onnxruntime is slower here"),
        (SLOW, (), {"RUNTIME": "onnx"}, "onnxruntime from the next start on"),
        (FAST, (), {"RUNTIME": "torch"}, "torch as before, by runtime='torch', device='auto' and dtype='auto'"),
        (FAST, (), {"DTYPE": "bfloat16"}, "torch as before, by runtime='auto', device='auto' and dtype='bfloat16'"),
        (FAST, ("/",), {}, "torch as before, by runtime='auto', device='auto' and dtype='auto'"),
        (FAST, ("/",), {"DEVICE": "cpu"}, "onnxruntime from the next start on"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only torch knows of GPUs")
@pytest.mark.usefixtures("settings")
def test_what_the_next_start_uses_is_said(
    rates: dict[str, float],
    gpus: tuple[str, ...],
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "_rates", lambda *_: rates)
    monkeypatch.setattr(cache, "_GPUS", gpus)
    for name, value in variables.items():
        monkeypatch.setenv(f"ZSVEC_{name}", value)
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export"])
    assert result.exit_code == 0, result.output
    assert f"images/s: {said}" in " ".join(result.stderr.split())


@pytest.mark.usefixtures("settings")
def test_what_exports_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "zsvec.encoders.torch.export")
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to"])
    assert isinstance(result.exception, MissingExtraError)
    assert "torch is not installed" in str(result.exception)


@pytest.mark.skipif(sys.platform == "win32", reason="there every user may be one")
@pytest.mark.usefixtures("settings")
def test_the_home_of_nobody() -> None:
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "~no-such-user/x"])
    assert isinstance(result.exception, InvalidInputError)
    assert "'~no-such-user/x' cannot be a path" in str(result.exception)


def test_photographs_for_int8(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(9):
        tiny.photo(seed, (200, 180)).save(tmp_path / "photos" / f"{seed}.png")
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to", "--int8", "photos"])
    assert result.exit_code == 0, result.output
    assert "in int8: " in result.stderr
    assert ExportedFolder(tmp_path / "to").manifest.encoders.keys() == settings.encoder_specs().keys()


def test_photographs_for_int8_are_reduced_and_those_that_cannot_be_read_left_out(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(8):
        tiny.photo(seed, (1300, 900)).save(tmp_path / "photos" / f"{seed}.png")
    (tmp_path / "photos" / "damaged.png").write_bytes(b"\x89PNG")
    sizes: list[tuple[int, int]] = []

    def exported(*_: object, photographs: list[Image.Image]) -> dict[str, float]:
        sizes.extend(image.size for image in photographs)
        return {}

    monkeypatch.setattr(export, "export_encoders", exported)
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "to", "--int8", "photos"])
    assert result.exit_code == 0, result.output
    assert sizes == [(640, 443)] * 8
    assert "left out: " in result.stderr
    assert "damaged.png" in "".join(result.stderr.split())
    monkeypatch.setenv("ZSVEC_MAX_PIXELS", "1000")
    sizes.clear()
    assert CliRunner().invoke(app, ["encoders", "export", "to", "--int8", "photos"]).stderr.count("left out: ") == 9


@pytest.mark.usefixtures("settings")
def test_int8_is_not_kept_for_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # it is refused before seconds have gone by
    monkeypatch.delitem(sys.modules, "zsvec.encoders.torch.export")
    result = CliRunner().invoke(app, ["--profile", "tiny", "encoders", "export", "--int8", str(tmp_path)])
    assert isinstance(result.exception, InvalidInputError)
    assert "--int8 takes a folder to export to" in str(result.exception)
