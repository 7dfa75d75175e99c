"""Qdrant servers for tests: a given one, or new processes, alone or as a cluster."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from pytest_docker.plugin import get_docker_ip, get_docker_services

COMPOSE_FILE = Path(__file__).parents[1] / "docker" / "docker-compose.tests.yml"
DEADLINE = 120.0

_NAMED = os.environ.get("ZSVEC_TEST_QDRANT_URL")  # read now: tests hide the variables of zsvec from each other
_PORTS = range(20_000, 32_000, 4)  # below those that the system gives to connections, in fours
_ANYBODY = ssl._create_unverified_context()
_SETTINGS = {
    "QDRANT__SERVICE__HOST": "127.0.0.1",
    "QDRANT__TELEMETRY_DISABLED": "true",
}
# Becomes the server, which Linux then kills at the end of the thread that started this.
_BECOME = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the tests are gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def any_server(folder: Path) -> Iterator[str]:
    """URL of a server: of the one that the environment names, else of a process, else of a container; else skips."""
    if _NAMED:
        yield _NAMED
    elif shutil.which("qdrant"):
        with running_server(folder) as node:
            yield node.url
    else:
        with composed(COMPOSE_FILE) as url:
            yield url


# Processes


class Node:
    """A Qdrant in another process.

    Attributes:
        url: URL of REST; gRPC is on the next port.
        peer: URL for other nodes of the cluster.
        folder: Folder of data and log.
        process: The server; another one after `restart`.
    """

    def __init__(self, program: str, folder: Path, port: int, environment: Mapping[str, str]) -> None:
        self.url = f"{'https' if 'QDRANT__SERVICE__ENABLE_TLS' in environment else 'http'}://127.0.0.1:{port}"
        self.peer = f"http://127.0.0.1:{port + 2}"
        self.folder = folder
        self._program = program
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("QDRANT_")},
            **_SETTINGS,
            "QDRANT__SERVICE__HTTP_PORT": str(port),
            "QDRANT__SERVICE__GRPC_PORT": str(port + 1),
            "QDRANT__CLUSTER__P2P__PORT": str(port + 2),
            "QDRANT_URI": self.peer,
            **environment,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.process = self._start()

    def wait_until_ready(self) -> None:
        """Wait until the server answers."""
        wait_until(lambda: answers(self.url) or self.process.poll() is not None, self.log)
        assert self.process.poll() is None, f"Qdrant does not start:\n{self.log()}"

    def kill(self) -> None:
        """End the server at once, as a loss of power would."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stop the server: connections stay open, without answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill the server, if running, and start a new one on the same data and ports, tied to this thread."""
        self.kill()
        self.process = self._start()
        self.wait_until_ready()

    def get(self, path: str) -> Any:
        """The result of a request to the REST interface."""
        headers = {"api-key": self._environment.get("QDRANT__SERVICE__API_KEY", "")}
        with urlopen(Request(self.url + path, headers=headers), timeout=DEADLINE) as response:
            return json.load(response)["result"]

    def log(self) -> str:
        """The end of the output."""
        return self._log.read_text(errors="replace")[-5000:]

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), self._program],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def _log(self) -> Path:
        return self.folder / "qdrant.log"


@contextmanager
def running_server(folder: Path, **environment: str) -> Iterator[Node]:
    """A server in another process, from the `qdrant` on the PATH; skips without one.

    Args:
        folder: Folder of data and log.
        environment: Settings of Qdrant, such as ``QDRANT__SERVICE__API_KEY``.
    """
    program = shutil.which("qdrant")
    if program is None:
        pytest.skip("no Qdrant to start: there is no qdrant command")
    with _free_ports() as port:
        node = Node(program, folder, port, environment)
        try:
            node.wait_until_ready()
            yield node
        finally:
            node.kill()


@contextmanager
def running_cluster(folder: Path, nodes: int = 3, **environment: str) -> Iterator[list[Node]]:
    """Servers that are one cluster; the first was the first leader."""
    clustered = {"QDRANT__CLUSTER__ENABLED": "true", **environment}
    with ExitStack() as stack:
        started: list[Node] = []
        for number in range(nodes):
            joining = {"QDRANT_BOOTSTRAP": started[0].peer} if started else {}
            started.append(stack.enter_context(running_server(folder / str(number), **clustered, **joining)))
        wait_until(
            lambda: all(_is_member(node.get("/cluster"), nodes) for node in started),
            lambda: "\n".join(node.log() for node in started),
        )
        yield started


def _is_member(cluster: Mapping[str, Any], nodes: int) -> bool:
    """Whether a node knows so many nodes and a leader, and has a vote."""
    consensus = cluster["raft_info"]
    return len(cluster["peers"]) == nodes and consensus["leader"] is not None and consensus["is_voter"]


@contextmanager
def _free_ports() -> Iterator[int]:
    """The first of three free ports. The fourth is taken: a sign to other tests, also while a server is down."""
    for first in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as sign:
            try:
                sign.bind(("127.0.0.1", first + 3))
                for port in range(first, first + 3):
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield first
            return


# Containers


@contextmanager
def composed(file: Path, **environment: str) -> Iterator[str]:
    """URL of the server of a compose file, in a container as long as the block; skips where Docker cannot start one.

    Args:
        file: Compose file with a service ``qdrant`` at the ports ``ZSVEC_QDRANT_PORT`` and ``ZSVEC_QDRANT_GRPC_PORT``.
        environment: Other variables of the file.
    """
    command = _compose_command()
    with _free_ports() as port:
        variables = {"ZSVEC_QDRANT_PORT": str(port), "ZSVEC_QDRANT_GRPC_PORT": str(port + 1), **environment}
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        project = f"zsvec-test-{uuid.uuid4().hex[:12]}"
        begin, end = "up --detach --wait qdrant", "down --volumes"  # waits for the health check, if there is one
        with get_docker_services(f"{given} {command}", str(file), project, begin, end) as services:
            url = f"http://{get_docker_ip()}:{port}"
            services.wait_until_responsive(check=lambda: answers(url), timeout=DEADLINE, pause=0.2)
            yield url


def _compose_command() -> str:
    """Docker Compose as the plugin of Docker or as a program, whichever reaches a Docker engine."""
    reasons = []
    for command in ("docker compose", "docker-compose"):
        tried = f"COMPOSE_FILE={shlex.quote(str(COMPOSE_FILE))} {command} ps"
        done = subprocess.run(tried, shell=True, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return command
        said = (done.stderr + done.stdout).strip().splitlines()
        reasons.append(f"`{command} ps` fails: {said[0] if said else done.returncode}")
    pytest.skip(f"no Qdrant in a container: {'; '.join(reasons)}")


# Waiting


def answers(url: str) -> bool:
    """Whether a server is there and ready."""
    try:
        with urlopen(f"{url}/readyz", timeout=10, context=_ANYBODY if url.startswith("https:") else None):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], explain: Callable[[], str] = str) -> None:
    """Wait for a condition.

    Args:
        condition: Is asked again and again.
        explain: Returns an explanation for a condition that fails until the deadline.
    """
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s in vain:\n{explain()}"
        time.sleep(0.02)
