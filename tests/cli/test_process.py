"""Process-wide choices of the command line; the library makes none."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREPARE = "from zsvec.cli.process import prepare_process\nprepare_process()\n"

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")


def run(code: str, **environment: str) -> str:
    """The output of a new interpreter with these variables and few others."""
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


FREES_AND_TAKES = f"""
import resource
{PREPARE}

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
def test_freed_memory_is_kept_unless_the_user_decides() -> None:
    decided = int(run(FREES_AND_TAKES, MALLOC_MMAP_THRESHOLD_="131072"))
    assert int(run(FREES_AND_TAKES)) < decided / 10


MAIN = """
import os, sys
sys.argv = ["zsvec", "--version"]
import zsvec.cli.process
prepare = zsvec.cli.process.prepare_process
numpy_was_imported = []

def spy():
    numpy_was_imported.append("numpy" in sys.modules)
    prepare()

zsvec.cli.process.prepare_process = spy
try:
    zsvec.cli.main()
except SystemExit:
    pass
print(numpy_was_imported, os.environ["OPENBLAS_THREAD_TIMEOUT"])
"""


def test_openblas_spins_for_a_bounded_time_unless_the_user_decides() -> None:
    assert run(MAIN).splitlines()[-1] == "[False] 18"
    assert run(MAIN, OPENBLAS_THREAD_TIMEOUT="26").splitlines()[-1] == "[False] 26"


OPENMP = f"""
import os
{PREPARE}
print(*(f"{{name}}={{value}}" for name, value in os.environ.items() if name.startswith(("GOMP_", "OMP_", "KMP_"))))
"""


def test_openmp_spins_for_a_bounded_time_unless_the_user_decides() -> None:
    assert run(OPENMP) == "GOMP_SPINCOUNT=10000"
    for name, value in {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "200"}.items():
        assert run(OPENMP, **{name: value}) == f"{name}={value}"


SEEN_BY_LIBGOMP = f"""
import ctypes, os
from importlib.util import find_spec
from pathlib import Path

os.dup2(1, 2)  # where libgomp writes
{PREPARE}
(home,) = find_spec("torch").submodule_search_locations
for library in sorted((Path(home) / "lib").glob("libgomp*")):
    ctypes.CDLL(str(library))
"""


def test_libgomp_reads_the_choice() -> None:
    said = run(SEEN_BY_LIBGOMP, OMP_DISPLAY_ENV="VERBOSE")
    if not said:
        pytest.skip("this torch does not use libgomp")
    assert "GOMP_SPINCOUNT = '10000'" in said


# An audit hook sees the functions of C libraries that ctypes looks up, as threadpoolctl does.
USES_ZSVEC = """
import ctypes, os, sys, tempfile
import numpy
from threadpoolctl import threadpool_info, threadpool_limits

def threads():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

def changes():
    return sorted(name for name in looked_up if "mallopt" in name or "set_num_threads" in name)

environment, pools, looked_up = dict(os.environ), threads(), set()
sys.addaudithook(lambda event, args: looked_up.add(str(args[1])) if event.startswith("ctypes.dlsym") else None)
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
assert not changes(), changes()
with threadpool_limits(1):
    getattr(ctypes.CDLL(None), "mallopt", None)
assert changes()  # the hook would have seen some
"""


def test_the_library_changes_nothing_of_the_process() -> None:
    assert run(USES_ZSVEC) == ""
