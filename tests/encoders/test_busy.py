from __future__ import annotations

import subprocess
from typing import Any

import pytest

from zsvec.encoders.torch import busy


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    found: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(start(*args, **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


def test_a_share_is_measured_beside_as_many_processes_as_there_are_threads(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "_SECONDS", 0.05)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert busy.kept_beside_others() > 0
    assert [process.returncode for process in started] == [-9] * 3


def test_nobody_is_left_busy_by_an_error(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(KeyboardInterrupt), busy.busy_processes(2):
        assert [process.poll() for process in started] == [None, None]
        raise KeyboardInterrupt
    assert [process.returncode for process in started] == [-9, -9]
