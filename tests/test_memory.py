"""What encoders on a CPU do to the C library's memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FREES_AND_TAKES = """
import resource
from zsvec.encoders import load_encoders
load_encoders({})

def take():
    import numpy
    arrays = [numpy.ones(2**20) for _ in range(4)]  # 8 MiB each: above the 128 KiB that come from the heap by default

take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FREES_AND_TAKES], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than that of GNU")
def test_what_is_freed_is_taken_again_without_the_system(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    as_the_user_says = faults({**environment, "MALLOC_MMAP_THRESHOLD_": "131072"})
    assert faults(environment) < as_the_user_says / 10
