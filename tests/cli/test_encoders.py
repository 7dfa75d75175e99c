"""`zsvec encoders export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import zsvec
from tests.encoders import tiny_checkpoints as tiny
from zsvec.cli.commands import app
from zsvec.encoders import hardware, runtimes
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.runtimes import chosen_specs
from zsvec.encoders.torch import export
from zsvec.errors import InvalidInputError, MissingExtraError, StoreLockedError
from zsvec.settings.settings import Settings
from zsvec.testing import HashEncoder

CONFIG = """
[profiles.tiny.encoders.vit]
family = "vision"
model = "{model}"
weights = "{weights}"
modalities = ["image"]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A profile in the user configuration, with a cache of the test."""
    pytest.importorskip("onnxscript", reason='pip install "zsvec[export]"')
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of processes started by the test
    config = Settings.toml_files[0]
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG.format(model=tiny.VIT, weights=tiny.save_vit(tmp_path / "vit.pth")))
    monkeypatch.setattr(runtimes, "_GPUS", ())
    monkeypatch.setattr(
        hardware, "cache_folder", lambda: tmp_path / "cache" / "zsvec" / "encoders"
    )  # as in a child process
    return Settings(profile="tiny")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["--profile", "tiny", *arguments])


pytestmark = pytest.mark.usefixtures("settings")


def test_a_folder_is_a_profile() -> None:
    result = invoke("encoders", "export", "to")
    assert result.exit_code == 0, result.output
    assert "--profile" in result.stderr
    assert list(ExportedFolder(Path("to")).manifest.encoders) == ["vit"]
    assert list(Settings(profile="./to").encoder_specs()) == ["vit"]
    measured = {}
    for profile in ("tiny", "./to"):
        options = ("--profile", profile, "--store", "store")
        assert invoke(*options, "init").exit_code == 0
        measured[profile] = "speed" in invoke(*options, "info").stdout
    assert measured == {"tiny": True, "./to": False}  # exported encoders run on onnxruntime alone
    for folder in ((), ("again",)):
        again = invoke("--profile", "./to", "encoders", "export", *folder)
        assert isinstance(again.exception, InvalidInputError)
        assert str(again.exception).startswith("vit: ")
    assert not Path("again").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only torch knows of GPUs")
def test_the_runtime_of_the_next_start_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(rate: float) -> str:
        monkeypatch.setattr(export, "_rates", lambda *_: {"torch float32": 10.0, "onnx": rate})
        result = invoke("encoders", "export")
        assert result.exit_code == 0, result.output
        return " ".join(result.stderr.split()).partition("images/s: ")[2]

    def is_onnx(**options: Any) -> bool:
        specs = settings.encoder_specs()
        return chosen_specs(specs, **{"device": "auto", "dtype": "auto", "runtime": "auto"} | options) is not specs

    assert said(1.0) == "torch as before: onnxruntime is slower here"
    assert (is_onnx(), is_onnx(runtime="onnx")) == (False, True)
    assert said(20.0) == "onnxruntime from now on"
    assert (is_onnx(), is_onnx(runtime="torch"), is_onnx(dtype="bfloat16")) == (True, False, False)
    monkeypatch.setattr(runtimes, "_GPUS", ("/",))
    assert (is_onnx(), is_onnx(device="cpu")) == (False, True)
    monkeypatch.setenv("ZSVEC_DTYPE", "bfloat16")
    assert said(20.0).startswith("torch as before, by runtime='auto', device='auto' and dtype='bfloat16'")


def test_wrong_usage_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "win32":
        result = invoke("encoders", "export", "~no-such-user/x")
        assert isinstance(result.exception, InvalidInputError)
        assert "'~no-such-user/x' cannot be a path" in str(result.exception)
    monkeypatch.delitem(sys.modules, "zsvec.encoders.torch.export")
    monkeypatch.setitem(sys.modules, "torch", None)
    result = invoke("encoders", "export", "to")
    assert isinstance(result.exception, MissingExtraError)
    assert 'torch is needed for an export: pip install "zsvec[export]"' in str(result.exception)
    result = invoke("encoders", "export", "--int8", ".")
    assert isinstance(result.exception, InvalidInputError)  # before torch is loaded
    assert "--int8 takes a folder to export to" in str(result.exception)


def test_photographs_for_int8_are_reduced_and_unreadable_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos").mkdir()
    for seed in range(8):
        tiny.photo(seed, (1300, 900)).save(f"photos/{seed}.png")
    Path("photos/damaged.png").write_bytes(b"\x89PNG")
    sizes: list[tuple[int, int]] = []

    def exported(*_: object, photographs: list[Image.Image], **__: object) -> dict[str, float]:
        sizes.extend(image.size for image in photographs)
        return {"vit": 0.99}

    monkeypatch.setattr(export, "export_encoders", exported)
    result = invoke("encoders", "export", "to", "--int8", "photos")
    assert result.exit_code == 0, result.output
    assert sizes == [(640, 443)] * 8
    assert "in int8: vit (mean cosine 0.9900)" in result.stderr
    assert "left out: " in result.stderr
    assert "damaged.png" in "".join(result.stderr.split())
    monkeypatch.setenv("ZSVEC_MAX_PIXELS", "1000")
    assert invoke("encoders", "export", "to", "--int8", "photos").stderr.count("left out: ") == 9


def test_the_profile_of_a_store_that_is_open_elsewhere_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_rates", lambda *_: {"torch float32": 10.0, "onnx": 20.0})
    with zsvec.open("./zsvec-store", encoders=[HashEncoder()]) as clf:
        clf.add_category("red", texts=["a red"])
        result = CliRunner().invoke(app, ["encoders", "export"])
        assert isinstance(result.exception, StoreLockedError)
        assert "--profile NAME" in str(result.exception)
        assert invoke("encoders", "export").exit_code == 0
