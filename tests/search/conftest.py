from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.search.support import STAND_IN, in_a_folder
from tests.store.support import Deployment, Hooked
from zsvec.method.arrays import Floats
from zsvec.method.similarities import References
from zsvec.search import torch_index
from zsvec.search.base import Index, IndexSpec
from zsvec.search.torch_index import TorchIndex
from zsvec.store import Store


@pytest.fixture
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    name = getattr(request, "param", "edge")
    if name == "server":
        yield request.getfixturevalue("server")
        return
    with in_a_folder(name) as opened:
        yield opened


@pytest.fixture
def backend(deployment: Deployment) -> Hooked:
    return deployment.backend()


@pytest.fixture
def store(deployment: Deployment, backend: Hooked) -> Store:
    return deployment.open(backend)


@pytest.fixture
def writer(deployment: Deployment, store: Store) -> Store:
    """Another handle where there can be one."""
    return deployment.another(store)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device where there is a CPU only."""
    build = torch_index.build

    def build_anywhere(references: References, spec: IndexSpec) -> Index:
        if spec.device != STAND_IN.device:
            return build(references, spec)
        dtype: Any = getattr(torch, spec.dtype)
        return TorchIndex.of(references, device=torch.device("cpu"), dtype=dtype)

    monkeypatch.setattr(torch_index, "build", build_anywhere)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """Rows sent to a device."""
    seen: list[Floats] = []
    send = torch_index._sent

    def watched(rows: Floats, *args: Any) -> torch.Tensor:
        seen.append(rows)
        return send(rows, *args)

    monkeypatch.setattr(torch_index, "_sent", watched)
    return seen
