"""Ray Data with two actors in other processes, of which one is killed.

One test starts one cluster, so that clusters do not compete where pytest runs several processes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import zsvec
from tests.integrations.on_ray import Job
from tests.qdrant import wait_until
from tests.store.support import ServerDeployment
from tests.support import COLOURS, coloured, encode, isolated  # noqa: F401
from zsvec.classifier import Classifier

ENCODERS = "zsvec.testing:HashEncoder"
ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0  # with the start of a server, far less than what pytest waits for a test


def fill(classifier: Classifier) -> None:
    for colour in COLOURS:
        classifier.add_category(colour, images=[coloured(colour, seed) for seed in range(8)])


@pytest.mark.skipif(find_spec("ray") is None, reason='pip install "ray[data]"')
def test_actors_answer_as_one_process(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """From a copy of a folder each, and from a server where there is one."""
    stores = [(str(tmp_path / "store"), "zsvec")]
    with suppress(pytest.skip.Exception):
        server: ServerDeployment = request.getfixturevalue("server")
        stores.append((server.url, server.namespace))
    photos = []
    for seed in range(24):
        path = tmp_path / f"{seed}.png"
        path.write_bytes(b"no image" if seed == 11 else encode(coloured(COLOURS[seed % 3], 100 + seed)))
        photos.append(str(path))
    expected = []
    for store, namespace in stores:
        with zsvec.open(store, namespace=namespace, encoders=ENCODERS) as classifier:
            fill(classifier)
            expected.append(classifier.classify(photos, errors="report"))
    with zsvec.open(tmp_path / "locked", encoders=ENCODERS) as classifier:
        fill(classifier)
        found = on_ray(Job(stores, ENCODERS, photos, str(tmp_path), str(tmp_path / "locked")))
    rows = sorted(found["rows"], key=itemgetter("id"))
    assert [row["id"] for row in rows] == list(range(24))  # nothing is missing or doubled
    assert [row["path"] for row in rows] == photos
    # One actor answers, and a new one repeats the batches of the killed one. Ray may restart more.
    assert len({row["process"] for row in rows}) >= 2
    for number, predictions in enumerate(expected):
        label, error, revision, probability = (
            [row[f"{name} {number}"] for row in rows] for name in ("label", "error", "revision", "probability")
        )
        assert label == [one.label or "" for one in predictions]
        assert error == [one.error or "" for one in predictions]
        assert [i for i, text in enumerate(error) if text] == [11]
        assert revision == [one.revision or 0 for one in predictions]
        known = [math.nan if one.probability is None else one.probability for one in predictions]
        assert probability == pytest.approx(known, abs=1e-6, nan_ok=True)
    assert "zsvec.errors.StoreLockedError" in found["locked"]


def on_ray(job: Job) -> dict[str, Any]:
    """Returns the answers of a Ray cluster of another process, which leaves no process behind."""
    log = Path(job.folder) / "ray.log"
    command = [sys.executable, "-m", "tests.integrations.on_ray", json.dumps(asdict(job))]
    # The path is short, because sockets have short paths.
    with TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as place, log.open("wb") as output:
        settings = {
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": place,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it kills actors for what other processes need
            # A busy machine may take longer than the 30 s by default.
            "RAY_gcs_server_port_wait_time_s": f"{DEADLINE_S:.0f}",
            "RAY_raylet_start_wait_time_s": f"{DEADLINE_S:.0f}",
        }
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(DEADLINE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            wait_until(lambda: not killed(place), lambda: f"these go on: {killed(place)}")
            process.wait()
    assert process.returncode == 0, (
        f"Ray has failed, or took more than {DEADLINE_S:g} s:\n{log.read_text(errors='replace')[-5000:]}"
    )
    found: dict[str, Any] = json.loads(Path(job.folder, "answers.json").read_text())
    return found


def killed(place: str) -> list[int]:
    """Kills the processes with a folder in their environment, also of other sessions, and returns them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            if f"RAY_TMPDIR={place}\0".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                found.append(int(process.name))
    return found
