"""The script that kills servers, for a moment."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(shutil.which("qdrant") is None, reason="no Qdrant to start: there is no qdrant command")


def test_no_commit_is_lost_while_a_server_is_killed() -> None:
    command = [sys.executable, "-m", "scripts.outages", "--seconds", "5", "killed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = re.findall(r"│ killed +│(.*)│", done.stdout)
    commits, batches, *_ = row.split("│")
    assert int(commits) > 0
    assert int(batches) > 0
    assert [cell.strip() for cell in row.split("│")[-4:]] == ["0"] * 4  # torn, stale, missing, lost


def test_a_reader_and_a_new_process_answer_after_an_outage() -> None:
    command = [sys.executable, "-m", "scripts.outages", "--lengths", "1", "--lengths", "2", "away"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ (\S+) +│(.*)│", done.stdout))
    assert rows.keys() == {"1", "2", "median"}
    assert all(float(cell) > -1 for row in rows.values() for cell in row.split("│"))
