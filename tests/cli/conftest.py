"""A profile of a tiny encoder, in the user's own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders import tiny_checkpoints as tiny
from zsvec.encoders import cache, hardware
from zsvec.settings.settings import Settings

ROOT = Path(__file__).parents[2]
CONFIG = """
[profiles.tiny.encoders.vit]
family = "vision"
model = "{model}"
weights = "{weights}"
modalities = ["image"]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a profile in the user's own configuration, with a cache of its own."""
    pytest.importorskip("onnxscript", reason='pip install "zsvec[onnx]"')
    for variable, folder in {"XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}.items():
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = tmp_path / "config" / "zsvec" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG.format(model=tiny.VIT, weights=tiny.save_vit(tmp_path / "vit.pth")))
    monkeypatch.setattr(Settings, "toml_files", (config, Path("zsvec.toml")))
    monkeypatch.setattr(cache, "_GPUS", ())
    monkeypatch.setattr(
        hardware, "cache_folder", lambda: tmp_path / "cache" / "zsvec" / "encoders"
    )  # as a child has it
    monkeypatch.chdir(tmp_path)
    return Settings(profile="tiny")
