"""`scripts/compare_runtimes.py` with a tiny encoder."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.encoders.tiny_checkpoints import VIT, photo, save_vit
from zsvec.encoders.spec import EncoderSpec
from zsvec.settings.profiles import Profile

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_runtimes.py"


def test_each_runtime_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason='pip install "zsvec[onnx]"')
    found = importlib.util.spec_from_file_location("compare_runtimes", SCRIPT)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    vit = EncoderSpec(family="vision", model=VIT, weights=str(save_vit(tmp_path / "vit.pth")), modalities=("image",))
    monkeypatch.setattr(script, "PROFILES", {"offline": Profile(encoders={"vit": vit})})
    for part, first in {"references": 0, "photos": 20}.items():
        for seed in range(first, first + 9):
            file = tmp_path / "set" / part / f"category {seed % 2}" / f"{seed}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(seed, (240, 230)).save(file)
    script.compare([tmp_path / "set"])
    lines = capsys.readouterr().out.splitlines()
    names = ["torch eager, float32", "torch, float32", "torch, bfloat16", "onnxruntime, float32", "onnxruntime, int8"]
    assert [line.partition("set, vit, ")[2].partition(":")[0] for line in lines] == names
    least = {name: float(re.findall(r"at least ([\d.]+)", line)[0]) for name, line in zip(names, lines, strict=True)}
    assert min(cosine for name, cosine in least.items() if "float32" in name) > 0.9999
    assert least["torch, bfloat16"] < 1
