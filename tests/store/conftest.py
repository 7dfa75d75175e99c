from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.store.support import Deployment, Disk, EdgeDeployment, LocalDeployment, MemoryDeployment, fast_folder
from zsvec.store import Store

DEPLOYMENTS = ("edge", "memory", "local", "server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test in each deployment, or in the `DEPLOYMENTS` of the module."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "deployment" in metafunc.fixturenames and not any("deployment" in mark.args[0] for mark in marks):
        metafunc.parametrize("deployment", getattr(metafunc.module, "DEPLOYMENTS", DEPLOYMENTS), indirect=True)


@pytest.fixture
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A folder, the memory of this process, the client's local mode in the place of a server, or a real server."""
    if request.param == "server":
        yield request.getfixturevalue("server")
        return
    with fast_folder() as folder:
        opened: Deployment
        if request.param == "edge":
            opened = EdgeDeployment(folder / "store")
        elif request.param == "memory":
            opened = MemoryDeployment()
        else:
            opened = LocalDeployment()
        yield opened
        opened.close()


@pytest.fixture
def open_store(deployment: Deployment) -> Callable[..., Store]:
    """Opens a handle of the store under test, ready to be written."""
    return deployment.open


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(shutil, "disk_usage", disk.usage)
    return disk
