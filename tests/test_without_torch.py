"""The list of packages for machines without torch: whole, of versions that zsvec takes, and without torch."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LEFT_OUT = {
    "httpx2",
    "huggingface-hub",
    "openai",
    "scikit-learn",
    "sentence-transformers",
    "timm",
    "torch",
    "torchvision",
}
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "zsvec" / "without-torch.txt").read_text(), re.M)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["onnx"][:2], *EXTRAS["serve"]]]


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: str(needed.name))
def test_what_zsvec_needs_is_in_it(needed: Requirement) -> None:
    name = canonicalize_name(needed.name)
    assert (name in PINS) is (name not in LEFT_OUT)
    assert name in LEFT_OUT or needed.specifier.contains(PINS[name])


def test_nothing_of_torch_is_in_it() -> None:
    assert not PINS.keys() & {*LEFT_OUT, "transformers", "safetensors", "onnx", "onnxscript", "sympy", "triton"}


@pytest.mark.parametrize("package", PINS)
def test_it_is_whole(package: str) -> None:
    """What its packages need is in it, as far as they are installed here."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed here")
    for needed in map(Requirement, lines):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            name = canonicalize_name(needed.name)
            assert name in PINS or (package, name) == ("tokenizers", "huggingface-hub")


def test_it_is_found_before_anything_is_installed() -> None:
    code = "import zsvec; print(*zsvec.__path__)"
    isolated = [sys.executable, "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"]
    done = subprocess.run(isolated, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "without-torch.txt").is_file()
