"""Kills exports and imports of archives at random calls of functions, repeats them, and compares the results.

python -m tests.curation.killed_archives 50     from the root of the repository
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import zsvec
from tests.store.support import fast_folder
from zsvec import CategoryInput
from zsvec.curation.archive import Archive
from zsvec.settings.settings import load_settings
from zsvec.testing import HashEncoder

_CATEGORIES = 20
_REFERENCES = 100
_LAST_CALLS = 1000  # of about a million
_LONGEST_S = 300.0
_RUN = """
import os
import signal
import sys
from zsvec.curation.archive import Archive
from zsvec.settings.settings import load_settings

act, store, file, last = sys.argv[1:]
calls = 0


def count(*_):
    global calls
    calls += 1
    if calls == int(last):
        os.kill(os.getpid(), signal.SIGKILL)


with load_settings(store=store).open_store() as opened:
    archive = Archive(opened)
    sys.setprofile(count)
    archive.export(file) if act == "export" else archive.import_(file)
    sys.setprofile(None)
print(calls)
"""


class Difference(Exception):  # noqa: N818 - raised by a check, and no error of zsvec
    """A repeated export or import differs from one that was not interrupted."""


def kill(folder: Path, act: str, *, instants: int, draw: random.Random) -> None:
    """Kills an export or an import, and repeats it, for each instant.

    Raises:
        Difference: The results differ, a former archive has changed, or a process was not killed.
    """
    _fill(folder / "store", seed=0)
    _export(folder / "store", folder / "whole.zsvec")
    _fill(folder / "former", seed=1)
    _export(folder / "former", folder / "former.zsvec")
    former = (folder / "former.zsvec").read_bytes()
    target = folder / "target.zsvec" if act == "export" else folder / "target"
    ends = [target, folder / "whole.zsvec"] if act == "import" else [folder / "store", target]
    calls = int(_run(act, *ends).stdout)
    for _ in range(instants):
        if act == "export":
            shutil.copyfile(folder / "former.zsvec", target)
        else:
            shutil.rmtree(target, ignore_errors=True)
        # Two runs may differ by some calls, so none of the last calls is drawn.
        if _run(act, *ends, last=draw.randint(1, calls - _LAST_CALLS)).returncode != -signal.SIGKILL:
            raise Difference("the process was not killed")
        if act == "export":
            if target.read_bytes() != former and entries(target) != entries(folder / "whole.zsvec"):
                raise Difference("the former archive has changed")
            _export(folder / "store", target)
            if entries(target) != entries(folder / "whole.zsvec"):
                raise Difference("the archive differs")
            for left in folder.glob(".zsvec-*.new"):
                left.unlink()  # later exports remove it after an hour
        else:
            _import(folder / "whole.zsvec", target)
            if content(target) != content(folder / "store"):
                raise Difference("the store differs")


def entries(file: Path) -> dict[str, bytes]:
    """Returns the entries of an archive, without the manifest, which has the time."""
    with zipfile.ZipFile(file) as zipped:
        return {name: zipped.read(name) for name in sorted(zipped.namelist()) if name != "manifest.json"}


def content(store: Path) -> dict[str, Any]:
    """Returns the categories of a store, with the rounded vector of each reference."""
    with load_settings(store=str(store)).open_store() as opened:
        if opened.incomplete():
            raise Difference("a category is incomplete")
        return {
            category.name: {
                (*one.key, one.source, *np.round(one.vector, 4).tolist()) for one in opened.stored(category.name)
            }
            for category in opened.categories()
        }


def _fill(store: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoders = [HashEncoder("clip", dim=32), HashEncoder("dino", dim=16, modalities=("image",))]
    with zsvec.open(store, encoders=encoders, calibration="off") as classifier:
        classifier.add_categories(
            CategoryInput(
                name=f"category {number:02}",
                texts=[f"text {number}"],
                vectors={
                    "clip:image": rng.normal(size=(_REFERENCES, 32)),
                    "dino:image": rng.normal(size=(_REFERENCES, 16)),
                },
            )
            for number in range(_CATEGORIES)
        )


def _export(store: Path, file: Path) -> None:
    with load_settings(store=str(store)).open_store() as opened:
        Archive(opened).export(file)


def _import(file: Path, store: Path) -> None:
    with load_settings(store=str(store)).open_store() as opened:
        Archive(opened).import_(file)


def _run(act: str, store: Path, file: Path, *, last: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs an export or an import, which prints the number of calls; kills the process at the call `last`, if any."""
    command = [sys.executable, "-c", _RUN, act, str(store), str(file), str(last)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_LONGEST_S, check=False)


if __name__ == "__main__":
    for act in ("export", "import"):
        with fast_folder() as folder:
            seed = random.SystemRandom().randrange(10**6)
            kill(folder, act, instants=int(sys.argv[1]), draw=random.Random(seed))
            print(f"{act}: {sys.argv[1]} instants, seed {seed}: equal")  # noqa: T201
