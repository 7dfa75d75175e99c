"""The list of packages for machines without torch: complete, of versions that zsvec accepts, and without torch."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
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


def test_requirements_of_zsvec_are_listed_in_accepted_versions() -> None:
    for needed in NEEDED:
        name = canonicalize_name(needed.name)
        assert (name in PINS) is (name not in LEFT_OUT), name
        assert name in LEFT_OUT or needed.specifier.contains(PINS[name]), name


def test_torch_and_its_companions_are_not_listed() -> None:
    assert not PINS.keys() & {*LEFT_OUT, "transformers", "onnx", "onnxscript", "sympy", "triton"}


def test_requirements_of_listed_packages_are_listed() -> None:
    for package in PINS:
        try:
            lines = requires(package) or []
        except PackageNotFoundError:  # not installed here
            continue
        for needed in map(Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                name = canonicalize_name(needed.name)
                assert name in PINS or (package, name) == ("tokenizers", "huggingface-hub"), package


def test_the_list_is_found_before_its_packages_are_installed() -> None:
    code = "import zsvec; print(*zsvec.__path__)"
    isolated = [sys.executable, "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"]
    done = subprocess.run(isolated, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "without-torch.txt").is_file()
