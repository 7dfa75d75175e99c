from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.store.support import (
    Deployment,
    EdgeDeployment,
    LocalDeployment,
    MemoryDeployment,
    ServerDeployment,
    fast_folder,
)
from zsvec.store import Store


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(Path(__file__).parents[2] / "docker" / "docker-compose.yml")


@pytest.fixture(scope="session")
def qdrant_url(request: pytest.FixtureRequest) -> str:
    """URL of a real server: the one that the environment names, else one in a container."""
    url = os.environ.get("ZSVEC_TEST_QDRANT_URL")
    if url:
        return url
    missing = _missing_for_docker()
    if missing:
        pytest.skip(f"no Qdrant server to test: ZSVEC_TEST_QDRANT_URL is not set, and {missing}")
    with pytest.MonkeyPatch.context() as environment:
        port = _free_port()
        environment.setenv("ZSVEC_QDRANT_PORT", str(port))
        environment.setenv("ZSVEC_QDRANT_GRPC_PORT", str(port + 1))
        services = request.getfixturevalue("docker_services")
        url = f"http://{request.getfixturevalue('docker_ip')}:{services.port_for('qdrant', 6333)}"
    services.wait_until_responsive(check=lambda: _is_ready(url), timeout=60, pause=0.2)
    return url


def _missing_for_docker() -> str | None:
    if not shutil.which("docker"):
        return "there is no docker command"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            return f"`{' '.join(command)}` fails: {(done.stderr or done.stdout).strip()[:200]}"
    return None


def _free_port() -> int:
    """One that nobody listens on, nor on the next: gRPC is looked for there, and each test process has a server."""
    while True:
        with socket.socket() as rest, socket.socket() as grpc, suppress(OSError, OverflowError):
            rest.bind(("127.0.0.1", 0))
            port: int = rest.getsockname()[1]
            grpc.bind(("127.0.0.1", port + 1))
            return port


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(params=["edge", "memory", "local", "server"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A place for a store: in a folder, in memory, in the client's local mode for a server, on a real server."""
    with fast_folder() as folder:
        opened: Deployment
        if request.param == "edge":
            opened = EdgeDeployment(folder / "store")
        elif request.param == "memory":
            opened = MemoryDeployment()
        elif request.param == "local":
            opened = LocalDeployment()
        else:
            opened = ServerDeployment(request.getfixturevalue("qdrant_url"))
        yield opened
        opened.close()


@pytest.fixture
def open_store(deployment: Deployment) -> Callable[..., Store]:
    """Opens a handle of the store under test, ready to be written."""
    return deployment.open
