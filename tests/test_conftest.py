"""The summary of skipped tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_a(number): pytest.skip("no server")
def test_b(): pytest.skip("no server")
@pytest.mark.skip(reason="no GPU: none")
def test_c(): pass
def test_d(): pass
"""


def test_a_reason_for_skipping_is_one_line_however_many_tests_have_it(tmp_path: Path) -> None:
    (tmp_path / "test_skips.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest", str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "skipped " in line][:-1] == [
        "skipped 4: no server",
        "skipped 1: no GPU: none",
    ]
    assert "1 passed, 5 skipped" in done.stdout
