"""Fixtures of all tests. No test, and no process of a test, reaches a service that costs money."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest
import typer.main
from hypothesis import HealthCheck, settings

from tests.qdrant import DEADLINE, Node, any_server, running_cluster

if TYPE_CHECKING:
    from tests.store.support import ServerDeployment
    from zsvec.encoders import EncoderSet

os.environ["ZSVEC_ALLOW_REQUESTS"] = "0"  # before anything of zsvec is imported
# Teams of threads gain nothing on small arrays, and compete where several tests run at once.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")
for name in [name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")]:
    del os.environ[name]
# Files of tests need not survive the machine.
if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")
# No test fails because the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


gc.disable()  # while tests are collected: nearly all that is made is modules, which stay


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, a line for each reason. Pytest itself has one for each place."""
    reports = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(str(report.longrepr[2]) for report in reports).most_common():
        terminalreporter.write_line(f"skipped {count}: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collections() -> None:
    """Hide objects that outlive a module, above all imports, from the garbage collector."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_command_line() -> Iterator[None]:
    """Build the command line once, not for each command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def vectors_read_when_needed() -> Iterator[None]:
    """The engine fills 32 MiB of memory for each open collection; collections of tests hold a handful of vectors."""
    import qdrant_edge

    with pytest.MonkeyPatch.context() as patch:
        lazy = partial(qdrant_edge.EdgeVectorParams, memory=qdrant_edge.Memory.Cold)
        patch.setattr(qdrant_edge, "EdgeVectorParams", lazy)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_is_remembered_for_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports and rates of models are cached for these tests, not for the user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("user") / "encoders"
        patch.setattr("zsvec.encoders.hardware.cache_folder", lambda: folder)
        yield


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait until full, so that a busy machine does not make smaller ones."""
    monkeypatch.setattr("zsvec.streams.stream.MAX_WAIT", DEADLINE)


@pytest.fixture(scope="session")
def load_once() -> Callable[..., EncoderSet]:
    """Stands for `load_encoders` where the encoders may be those of a test before: real ones take seconds to load."""
    from zsvec.encoders import load_encoders

    loaded: dict[tuple[str, str, int], EncoderSet] = {}

    def load(
        specs: Mapping[str, Any],
        *,
        device: Any = "auto",
        dtype: Any = "auto",
        runtime: Any = "auto",
        compiled: bool = False,
        batch_size: int = 32,
    ) -> EncoderSet:
        key = repr(dict(specs)), f"{device} {dtype} {runtime} {compiled}", batch_size
        if key not in loaded:
            if runtime == "auto" and any(spec.family != "onnx" for spec in specs.values()):
                runtime = "torch"  # no exports of the user
            options = {"device": device, "dtype": dtype, "runtime": runtime, "compiled": compiled}
            loaded[key] = load_encoders(specs, batch_size=batch_size, **options)
        return loaded[key]

    return load


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short ``SSL_CERT_FILE``: each client reads all certificates, and the loopback needs none."""
    end = "-----END CERTIFICATE-----\n"
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    file.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def qdrant_url() -> Iterator[str]:
    """URL of a real server of this process, unless the environment names one."""
    from tests.store.support import fast_folder

    with fast_folder() as folder, any_server(folder) as url:
        yield url


@pytest.fixture(scope="session")
def qdrant_cluster() -> Iterator[list[Node]]:
    """Three running nodes of one cluster; a test that stops one starts the node again."""
    from tests.store.support import fast_folder

    with fast_folder() as folder, running_cluster(folder) as nodes:
        yield nodes


@pytest.fixture
def server(qdrant_url: str, one_certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerDeployment]:
    """A namespace of the test's own on a real server, deleted afterwards."""
    from tests.store.support import ServerDeployment

    monkeypatch.setenv("SSL_CERT_FILE", str(one_certificate))
    deployment = ServerDeployment(qdrant_url)
    yield deployment
    deployment.close()
