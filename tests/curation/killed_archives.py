"""Kills exports and imports of archives at random instants, repeats them, and compares the results.

python -m tests.curation.killed_archives 50     from the root of the repository
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
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
_RUN = """
import sys
from pathlib import Path
from zsvec.curation.archive import Archive
from zsvec.settings.settings import load_settings

act, store, file = sys.argv[1:]
with load_settings(store=store).open_store() as opened:
    archive = Archive(opened)
    print("ready", flush=True)
    archive.export(file) if act == "export" else archive.import_(file)
print("done", flush=True)
"""


class Difference(Exception):  # noqa: N818 - raised by a check, and no error of zsvec
    """A repeated export or import differs from one that was not interrupted."""


def kill(folder: Path, act: str, *, instants: int, draw: random.Random) -> int:
    """Kills an export or an import, and repeats it, for each instant. Returns how many were killed before the end.

    Raises:
        Difference: The results differ, or a former archive has changed.
    """
    _fill(folder / "store", seed=0)
    _export(folder / "store", folder / "whole.zsvec")
    _fill(folder / "former", seed=1)
    _export(folder / "former", folder / "former.zsvec")
    former = (folder / "former.zsvec").read_bytes()
    target = folder / "target.zsvec" if act == "export" else folder / "target"
    ends = [target, folder / "whole.zsvec"] if act == "import" else [folder / "store", target]
    lasts = _seconds(act, *ends)
    killed = 0
    for _ in range(instants):
        if act == "export":
            shutil.copyfile(folder / "former.zsvec", target)
        else:
            shutil.rmtree(target, ignore_errors=True)
        killed += _killed(act, *ends, after=draw.uniform(0, lasts))
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
    return killed


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


def _started(act: str, store: Path, file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _RUN, act, str(store), str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise Difference("the process did not start")
    return process


def _seconds(act: str, store: Path, file: Path) -> float:
    """Returns how long an export or an import takes that is not interrupted."""
    with _started(act, store, file) as process:
        begun = time.perf_counter()
        process.communicate()
        return time.perf_counter() - begun


def _killed(act: str, store: Path, file: Path, *, after: float) -> bool:
    """Kills a process so many seconds after its start; returns whether the process had not ended before."""
    with _started(act, store, file) as process:
        time.sleep(after)  # the instant is the point
        process.send_signal(signal.SIGKILL)
        return "done" not in process.communicate()[0]


if __name__ == "__main__":
    for act in ("export", "import"):
        with fast_folder() as folder:
            seed = random.SystemRandom().randrange(10**6)
            killed = kill(folder, act, instants=int(sys.argv[1]), draw=random.Random(seed))
            print(f"{act}: {sys.argv[1]} instants, {killed} before the end, seed {seed}: equal")  # noqa: T201
