"""The environments of `scripts/demo` and `scripts/test`, and the list of versions that they install."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from typing import cast

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
PLATFORMS = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    found = map(Requirement, (*project["dependencies"], *extras))
    return [one for one in found if one.name != project["name"]]  # an extra may name others


def constraints() -> list[Requirement]:
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_list_has_one_fitting_version_of_each_package(version: str, platform: str) -> None:
    environment = {
        **cast("dict[str, str]", default_environment()),
        "python_version": version,
        "python_full_version": f"{version}.0",
        "sys_platform": platform,
        "platform_system": PLATFORMS[platform],
    }
    fitting = [one for one in constraints() if one.marker is None or one.marker.evaluate(environment)]
    names = [one.name for one in fitting]
    assert len(set(names)) == len(names)
    versions = {one.name: next(iter(one.specifier)) for one in fitting}
    for wanted in requirements():
        assert versions[wanted.name].operator == "=="
        assert wanted.specifier.contains(versions[wanted.name].version), wanted


STUB = """#!/bin/sh
# An interpreter that makes environments of itself, and writes what is installed into a file.
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*) echo "$0 $*" >> installed ;;
    "-c "*) echo 3.13 ;;
esac
"""


class Checkout:
    """A copy of the scripts, with a stub in the place of Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=lambda *_: ["benchmarks", "standing"])
        shutil.copy(ROOT / "pyproject.toml", folder)
        stub = folder / "bin" / "python3"
        stub.parent.mkdir()
        stub.write_text(STUB)
        stub.chmod(0o755)
        shutil.copy(stub, stub.with_name("python3.13"))

    def installed(self, newest: str = "", **variables: str) -> list[str]:
        """Returns environment and options of each installation that sourcing the script makes."""
        environment = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **variables}
        script = f"set -euo pipefail; newest={newest}; extras=dev; source scripts/environment"
        subprocess.run(["bash", "-c", script], cwd=self.folder, env=environment, check=True, capture_output=True)
        log = self.folder / "installed"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("file", ["pyproject.toml", "scripts/constraints.txt"])
def test_versions_of_the_list_are_installed_until_it_changes(checkout: Checkout, file: str) -> None:
    (line,) = checkout.installed()
    assert line.startswith(".venv/bin/python ")
    assert "--constraint scripts/constraints.txt" in line
    assert checkout.installed() == []
    with (checkout.folder / file).open("a") as changed:
        changed.write("# another\n")
    assert len(checkout.installed()) == 1
    assert checkout.installed() == []


def test_each_interpreter_and_the_newest_versions_have_their_own_environment(checkout: Checkout) -> None:
    (line,) = checkout.installed(PYTHON="python3.13")
    assert line.startswith(".venv-3.13/bin/python ")
    assert "--constraint" in line
    for _ in range(2):  # there may be newer versions every time
        (line,) = checkout.installed(newest="yes")
        assert line.startswith(".venv-newest/bin/python ")
        assert "--upgrade" in line
        assert "--constraint" not in line
    (line,) = checkout.installed(newest="yes", PYTHON="python3.13")
    assert line.startswith(".venv-3.13-newest/bin/python ")
