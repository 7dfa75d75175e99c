"""Ray Data with two actors in other processes, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from filelock import FileLock

import zsvec
from tests.integrations.on_ray import Job
from tests.qdrant import wait_until
from tests.store.support import ServerDeployment
from tests.support import COLOURS, coloured, encode, isolated  # noqa: F401
from zsvec.classifier import Classifier

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason='pip install "ray[data]"'),
    pytest.mark.usefixtures("one_cluster_at_a_time"),
]

ENCODERS = "zsvec.testing:HashEncoder"
ROOT = Path(__file__).parents[2]
DEADLINE_S = 240.0  # two of them are less than what pytest waits for a test


@pytest.fixture
def one_cluster_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Also where pytest runs several processes."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


def fill(classifier: Classifier) -> None:
    for colour in COLOURS:
        classifier.add_category(colour, images=[coloured(colour, seed) for seed in range(8)])


def test_actors_answer_as_one_process_from_a_copy_of_a_folder_each(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with zsvec.open(store, encoders=ENCODERS) as classifier:
        fill(classifier)
    check_actors(store, "zsvec", tmp_path)


def test_actors_answer_as_one_process_from_a_server(server: ServerDeployment, tmp_path: Path) -> None:
    with zsvec.open(server.url, namespace=server.namespace, encoders=ENCODERS) as classifier:
        fill(classifier)
    check_actors(server.url, server.namespace, tmp_path)


def check_actors(store: str, namespace: str, folder: Path) -> None:
    photos = []
    for seed in range(24):
        path = folder / f"{seed}.png"
        path.write_bytes(b"no image" if seed == 11 else encode(coloured(COLOURS[seed % 3], 100 + seed)))
        photos.append(str(path))
    with zsvec.open(store, namespace=namespace, encoders=ENCODERS) as classifier:
        expected = classifier.classify(photos, errors="report")
    with zsvec.open(folder / "locked", encoders=ENCODERS) as classifier:
        fill(classifier)
        found = on_ray(Job(store, namespace, ENCODERS, photos, str(folder), str(folder / "locked")))
    assert len({row["process"] for row in found["all"]}) == 2
    for rows in (found["all"], found["killed"]):
        assert sorted(row["id"] for row in rows) == list(range(24))  # nothing is missing or doubled
        for row in rows:
            one = expected[row["id"]]
            assert row["path"] == one.source
            assert (row["label"] or None, row["error"] or None, row["revision"]) == (
                one.label,
                one.error,
                one.revision or 0,
            )
            assert one.error or row["probability"] == pytest.approx(one.probability, abs=1e-6)
    assert [row["id"] for row in found["all"] if row["error"]] == [11]
    assert "zsvec.errors.StoreLockedError" in found["locked"]


def on_ray(job: Job) -> dict[str, Any]:
    """Returns the answers of a Ray cluster of another process, which leaves no process behind."""
    log = Path(job.folder) / "ray.log"
    command = [sys.executable, "-m", "tests.integrations.on_ray", json.dumps(asdict(job))]
    # The path is short, because sockets have short paths.
    with TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as place, log.open("wb") as output:
        settings = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": place, "RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            process.wait(DEADLINE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            wait_until(lambda: not processes_of(place), lambda: f"these go on: {processes_of(place)}")
    assert process.returncode == 0, f"Ray has failed:\n{log.read_text(errors='replace')[-5000:]}"
    found: dict[str, Any] = json.loads(Path(job.folder, "answers.json").read_text())
    return found


def processes_of(place: str) -> list[str]:
    """Returns the processes with a folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            if f"RAY_TMPDIR={place}\0".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found
