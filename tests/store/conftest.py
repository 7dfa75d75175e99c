from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.store.support import Deployment, EdgeDeployment, LocalDeployment, MemoryDeployment, fast_folder
from zsvec.store import Store


@pytest.fixture(params=["edge", "memory", "local", "server"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A place for a store: in a folder, in memory, in the client's local mode for a server, on a real server."""
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
