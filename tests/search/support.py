"""Stores to search, images to search with, and an oracle in plain numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.encoders.support import needs_gpu
from tests.store.material import FINGERPRINTS, commits, reference, references, unit_vector
from tests.store.support import Deployment, EdgeDeployment, LocalDeployment
from tests.support import fast_folder
from zsvec.method.predict.reference_aggregation import Similarities
from zsvec.method.similarities import Compared, References, SearchResult
from zsvec.search.base import IndexSpec
from zsvec.search.searcher import Searcher
from zsvec.search.torch_index import TorchSimilarities
from zsvec.store import Reference, Store, Write
from zsvec.store.backends.base import Backend
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.types import Fingerprint

Floats = NDArray[np.float32]
# The references of each category in a store.
State = Mapping[str, Sequence[Reference]]
# Similarities of the images, by expert and category.
Answer = dict[str, dict[str, Floats]]

EVERYTHING = 1000
TOP_M = 3
ROUNDING = 2e-6

STAND_IN = IndexSpec("torch", "stand-in")
"""A device that is the CPU, and treated as a GPU is: see the fixture `stand_in`."""
SPECS: Mapping[str, IndexSpec] = {
    "numpy": IndexSpec("numpy"),
    "torch": IndexSpec("torch"),
    "device": STAND_IN,
    "gpu": IndexSpec("torch", "auto"),
    "qdrant": IndexSpec("numpy"),
}


class _SharedBackend(EdgeBackend):
    exclusive = False


class SharedDeployment(EdgeDeployment):
    """A folder with as many handles as one likes, where commits may come late, as on a server; and fast."""

    shared = True

    def connect(self) -> Backend:
        return self._open[0] if self._open else _SharedBackend(self.folder)


def deployed(name: str, folder: Path) -> Deployment:
    return {"edge": EdgeDeployment, "shared": SharedDeployment}[name](folder) if name != "local" else LocalDeployment()


@contextmanager
def in_a_folder(name: str) -> Iterator[Deployment]:
    """One of `deployed`, gone afterwards."""
    with fast_folder() as folder:
        opened = deployed(name, folder / "store")
        yield opened
        opened.close()


def _places(*pairs: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("deployment", "way"), pairs, indirect=["deployment"])


# All pairs of a store and a kind of search with answers of their own.
every_way = _places(
    *((place, way) for place in ("edge", "local", "server") for way in ("numpy", "qdrant")),
    *(("edge", way) for way in ("torch", "device")),
    pytest.param("edge", "gpu", marks=needs_gpu),
)
# Both kinds of search, in all stores that change differently. `every_way` has the fifth pair with a folder.
memory_and_qdrant = _places(
    ("edge", "numpy"), *((place, way) for place in ("shared", "server") for way in ("numpy", "qdrant"))
)


class OneWay(Searcher):
    """A searcher that is asked for one kind of index."""

    spec: IndexSpec

    def search(
        self,
        queries: Mapping[str, Floats],
        nearest: int,
        spec: IndexSpec | None = None,
        fingerprints: Mapping[str, Fingerprint] | None = None,
    ) -> SearchResult:
        found = super().search(queries, nearest, spec or self.spec, fingerprints)
        self.close()  # the cache is written
        return found


def searcher(store: Store, way: str, *, limit: int = EVERYTHING, budget: int = 0, norms: bool = True) -> OneWay:
    kind: Any = way if way in ("qdrant", "auto") else "memory"
    made = OneWay(store, kind=kind, budget=budget, neighbors=limit, norms=norms)
    made.spec = SPECS.get(way, IndexSpec("numpy"))
    return made


def queries(n: int = 5) -> dict[str, Floats]:
    """The same images to each encoder."""
    dims = {encoder: fingerprint.dim for encoder, fingerprint in FINGERPRINTS.items()}
    asked = {encoder: [unit_vector(dim, f"{encoder} query {i}") for i in range(n)] for encoder, dim in dims.items()}
    return {encoder: np.array(rows, dtype=np.float32).reshape(n, dims[encoder]) for encoder, rows in asked.items()}


STATE: State = {
    "text only": references(texts=["one", "two", "three", "four", "five"]),
    "images only": references(images=["1", "2"]),
    "both": references(["six"], ["3", "4", "5", "6"]),
    "one encoder only": [reference("dino", "image", "7")],
    "a single reference": [reference("clip", "image", "8")],
    "duplicates": references(["seven", "seven"], ["9", "9", "1"]),
    "many": references(images=[f"many {i}" for i in range(70)]),
    "nothing": [],
    "Üñîçödé 🐼": references(["acht"], ["10"]),
}


def fill(store: Store, state: State) -> None:
    store.write([Write(name=name, references=stored, replace=True) for name, stored in state.items()])


def newest_rev(store: Store) -> int:
    return max(category.rev for category in commits(store))


# The oracle


def by_expert(state: State) -> dict[str, dict[str, list[Reference]]]:
    """References of each expert and category; the same content of a category once."""
    found: dict[str, dict[str, list[Reference]]] = {}
    for name, stored in state.items():
        for one in {r.key: r for r in stored}.values():
            found.setdefault(f"{one.encoder}:{one.modality}", {}).setdefault(name, []).append(one)
    return found


def most_references(state: State) -> int:
    """Of an expert."""
    return max(sum(map(len, categories.values())) for categories in by_expert(state).values())


def cosines(state: State, asked: Mapping[str, Floats]) -> dict[str, dict[str, Floats]]:
    """Of each expert and category, ``(n_images, n_references)``."""
    return {
        expert: {
            name: asked[expert.split(":")[0]] @ np.stack([r.vector for r in stored]).T
            for name, stored in categories.items()
        }
        for expert, categories in by_expert(state).items()
    }


def means(state: State) -> dict[str, dict[str, Floats]]:
    """The mean reference of each expert and category."""
    return {
        expert: {name: np.mean([r.vector for r in stored], axis=0) for name, stored in categories.items()}
        for expert, categories in by_expert(state).items()
    }


def truth(state: State, asked: Mapping[str, Floats], method: str) -> Answer:
    mean = means(state)

    def one(expert: str, name: str, values: Floats) -> Floats:
        if method == "max":
            return values.max(axis=1)
        if method == "top_mean":
            return np.sort(values, axis=1)[:, -TOP_M:].mean(axis=1)
        if method == "prototype":
            return values.mean(axis=1) / np.linalg.norm(mean[expert][name])
        return values.mean(axis=1)

    return {
        expert: {name: one(expert, name, values) for name, values in categories.items()}
        for expert, categories in cosines(state, asked).items()
    }


def answer(found: SearchResult, method: str) -> Answer:
    return {
        expert.name: dict(
            zip(
                [found.categories[position] for position in expert.coverage],
                expert.similarities.aggregate(method, TOP_M).T,
                strict=True,
            )
        )
        for expert in found.experts
    }


def norms_of(similarities: Compared) -> Floats:
    if isinstance(similarities, TorchSimilarities):
        return similarities.index.references.norms
    assert isinstance(similarities, Similarities)
    return similarities.norms


def present_of(similarities: Compared) -> NDArray[np.intp]:
    """References of each category that were compared."""
    return similarities.present if isinstance(similarities, Similarities) else similarities.counts


def assert_same(got: Answer, expected: Answer) -> None:
    assert {expert: sorted(names) for expert, names in got.items()} == {
        expert: sorted(names) for expert, names in expected.items()
    }
    for expert, categories in expected.items():
        for name, values in categories.items():
            np.testing.assert_allclose(got[expert][name], values, atol=2e-6, err_msg=f"{expert} {name}")


def assert_answers(searcher: Searcher, state: State) -> None:
    """The searcher sees exactly this."""
    asked = queries()
    found = searcher.search(asked, nearest=3)
    assert found.categories == tuple(sorted(state))
    assert_same(answer(found, "mean"), truth(state, asked, "mean"))
    assert_same(answer(found, "max"), truth(state, asked, "max"))


# Categories with visible versions

NAMES = ("lynx", "red panda", "wolf")
REFERENCES = 4  # of a category and expert


def painted(name: str, version: int) -> Write:
    """A category of equal references that show the version."""
    return Write(
        name=name,
        references=[
            Reference(encoder, modality, f"{version} {i}", str(version), paint(encoder, version))
            for encoder in FINGERPRINTS
            for modality in ("text", "image")
            for i in range(REFERENCES)
        ],
        replace=True,
    )


def paint(encoder: str, version: int) -> Floats:
    return unit_vector(FINGERPRINTS[encoder].dim, f"{encoder} version {version}")


# References without a store


def unit(rng: np.random.Generator, n: int, dim: int = 24) -> Floats:
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def references_of(parts: Mapping[str, Floats]) -> References:
    names = tuple(sorted(parts))
    rows = [f"{name} {i}" for name in names for i in range(len(parts[name]))]
    return References(
        names=names,
        vectors=np.concatenate([parts[name] for name in names]),
        starts=np.cumsum([0, *(len(parts[name]) for name in names)], dtype=np.intp),
        norms=np.array([np.linalg.norm(parts[name].mean(axis=0)) for name in names], dtype=np.float32),
        hashes=tuple(rows),
        sources=tuple(rows),
    )


def of_sizes(sizes: Sequence[int], seed: int = 0) -> References:
    rng = np.random.default_rng(seed)
    return references_of({f"{i:04}": unit(rng, size) for i, size in enumerate(sizes)})


def rows_in(sent: list[Floats]) -> list[int]:
    sizes = [len(rows) for rows in sent]
    sent.clear()
    return sizes
