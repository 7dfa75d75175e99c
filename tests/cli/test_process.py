"""What the command line changes in its own process, and that the library changes nothing in its host's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPINNING = "OPENBLAS_THREAD_TIMEOUT"

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than that of GNU")


def run(code: str, **environment: str) -> str:
    """What a new interpreter prints, whose environment has these variables and few others."""
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": python_path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- the command line

FREES_AND_TAKES = """
import resource
from zsvec.cli.process import prepare_process
prepare_process()

def take():
    import numpy
    arrays = [numpy.ones(2**20) for _ in range(4)]  # 8 MiB each: above the 128 KiB that come from the heap by default

take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@needs_glibc
def test_what_is_freed_is_taken_again_without_the_system() -> None:
    as_the_user_says = int(run(FREES_AND_TAKES, MALLOC_MMAP_THRESHOLD_="131072"))
    assert int(run(FREES_AND_TAKES)) < as_the_user_says / 10


MAIN = f"""
import os, sys
sys.argv = ["zsvec", "--version"]
from zsvec.cli import main, process
numpy_was_imported = []
prepare = process.prepare_process

def spy():
    numpy_was_imported.append("numpy" in sys.modules)
    prepare()

import zsvec.cli
zsvec.cli.prepare_process = spy
try:
    main()
except SystemExit:
    pass
print(numpy_was_imported, os.environ["{SPINNING}"])
"""


@pytest.mark.parametrize("chosen", [None, "26"])
def test_the_command_line_prepares_before_numpy_is_imported(chosen: str | None) -> None:
    printed = run(MAIN, **({SPINNING: chosen} if chosen else {}))
    assert printed.splitlines()[-1] == f"[False] {chosen or '18'}"


OPENMP = """
import os, sys
from zsvec.cli.process import prepare_process
prepare_process()
print(*(f"{name}={value}" for name, value in os.environ.items() if name.startswith(("GOMP_", "OMP_", "KMP_"))))
"""


@pytest.mark.parametrize(
    ("chosen", "then"),
    [
        ({}, "GOMP_SPINCOUNT=10000"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY=ACTIVE"),
        ({"KMP_BLOCKTIME": "200"}, "KMP_BLOCKTIME=200"),
    ],
)
def test_threads_of_openmp_spin_as_the_user_says_or_for_a_bounded_time(chosen: dict[str, str], then: str) -> None:
    assert run(OPENMP, **chosen) == then


SEEN_BY_LIBGOMP = """
import ctypes, os, sys
from importlib.util import find_spec
from pathlib import Path
from zsvec.cli.process import prepare_process

os.dup2(1, 2)  # where libgomp writes
prepare_process()
(home,) = find_spec("torch").submodule_search_locations
for library in sorted((Path(home) / "lib").glob("libgomp*")):
    ctypes.CDLL(str(library))
"""


def test_libgomp_is_told_before_torch_loads_it() -> None:
    said = run(SEEN_BY_LIBGOMP, OMP_DISPLAY_ENV="VERBOSE")
    if not said:
        pytest.skip("the threads of this torch are not those of libgomp")
    assert "GOMP_SPINCOUNT = '10000'" in said


ENDS = """
import sys
from zsvec.cli.process import prepare_process
prepare_process()

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("looked through")

kept = [Cycle()]
"""


def test_what_is_left_at_the_end_is_not_looked_through() -> None:
    assert run(ENDS) == ""
    assert run(f"{ENDS}\nsys.modules['torch'] = sys") == "looked through"  # it brings what would complain


# ---- the library

# An audit hook sees each function of a C library that is looked up by ctypes, as threadpoolctl does too.
LOOKED_UP = """
import sys
looked_up = set()
sys.addaudithook(lambda event, args: looked_up.add(str(args[1])) if event.startswith("ctypes.dlsym") else None)
"""

USES_ZSVEC = f"""
import os, tempfile
import numpy
from threadpoolctl import threadpool_info

def threads():
    return {{pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}}

environment, pools = dict(os.environ), threads()
{LOOKED_UP}
import zsvec
from PIL import Image
from zsvec.testing import HashEncoder

class Watching(HashEncoder):
    def embed(self, batch, modality):
        assert threads().items() >= pools.items()
        return super().embed(batch, modality)

with tempfile.TemporaryDirectory() as folder:
    with zsvec.open(folder + "/store", encoders=[Watching()]) as clf:
        images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "maroon", "blue", "navy")]
        clf.add_category("red", texts=["red"], images=images[:2])
        clf.add_category("blue", texts=["blue"], images=images[2:])
        clf.calibrate()
        assert [found.nearest for found in clf.classify(images)] == ["red", "red", "blue", "blue"]
        assert len(list(clf.classify_stream(images * 20))) == 80
assert dict(os.environ) == environment, set(os.environ.items()) ^ set(environment.items())
assert pools and threads().items() >= pools.items()
print(sorted(name for name in looked_up if "mallopt" in name or "set_num_threads" in name))
"""


def test_using_the_library_changes_nothing_of_the_process() -> None:
    assert run(USES_ZSVEC) == "[]"


LOOKS_UP = f"""
{LOOKED_UP}
import numpy
from threadpoolctl import threadpool_limits
from zsvec.cli.process import prepare_process
with threadpool_limits(1):
    prepare_process()
print(any("mallopt" in name for name in looked_up), any("set_num_threads" in name for name in looked_up))
"""


@needs_glibc
def test_a_change_would_be_seen() -> None:
    assert run(LOOKS_UP) == "True True"
