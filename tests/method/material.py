"""References as plain mappings, random stores, searches in random stores, and calibrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from zsvec.method.calibrate.fit import fit_calibration
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import Calibration, LogLinear
from zsvec.method.predict.background import Background
from zsvec.method.predict.logits import Logits
from zsvec.method.predict.reference_aggregation import AGGREGATIONS, Similarities
from zsvec.method.similarities import ExpertSimilarities, References, SearchResult
from zsvec.types import Neighbor

Vectors = Mapping[str, Mapping[str, Sequence[float]]]  # by category and hash

METHODS = sorted(AGGREGATIONS)


def references(vectors: Vectors, groups: Mapping[str, str] | None = None) -> References:
    """Groups by hash."""
    names = tuple(sorted(vectors))
    parts = [np.array(list(vectors[name].values()), dtype=np.float32) for name in names]
    hashes = tuple(digest for name in names for digest in vectors[name])
    return References(
        names=names,
        vectors=np.concatenate(parts),
        starts=np.cumsum([0, *map(len, parts)], dtype=np.intp),
        norms=np.array([np.linalg.norm(part.mean(axis=0, dtype=np.float64)) for part in parts], dtype=np.float32),
        hashes=hashes,
        sources=hashes,
        groups=tuple(map(groups.get, hashes)) if groups else (),
    )


def unit(rng: np.random.Generator, n: int, dim: int = 8) -> dict[str, Sequence[float]]:
    vectors = rng.normal(size=(n, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {f"{int(rng.integers(10**9)):09d}": list(vector) for vector in vectors}


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Vectors]:
    """A few references on a coarse grid, so that many are twins and none is nearly one."""
    direction = st.tuples(*[st.integers(0, 2)] * 3).filter(any).map(lambda v: tuple(np.array(v) / np.linalg.norm(v)))
    names = ["a", "b", "c", "d"][: draw(st.integers(2, 4))]

    def vectors(prefix: str, fewest: int) -> Vectors:
        keys = st.sampled_from([f"{prefix}{i}" for i in range(5)])
        kept = st.dictionaries(keys, direction, min_size=1, max_size=5)
        return draw(st.dictionaries(st.sampled_from(names), kept, min_size=fewest))

    experts = {"clip:image": vectors("", len(names))}
    for name, prefix in (("clip:text", "t"), ("dino:image", ""), ("dino:text", "t")):
        if draw(st.booleans()):
            experts[name] = vectors(prefix, 1)
    return experts


def calibrated(
    experts: Mapping[str, Vectors], aggregation: str = "top_mean", false_unknown_rate: float = 0.05, top_m: int = 5
) -> tuple[Calibration, LeftOut]:
    made = fit_calibration(
        {name: references(vectors) for name, vectors in experts.items()},
        dict.fromkeys(experts, 0.07),
        revision=3,
        aggregation=aggregation,
        top_m=top_m,
        false_unknown_rate=false_unknown_rate,
    )
    assert made is not None
    return made


def clusters(rng: np.random.Generator, sizes: Mapping[str, int], signal: float, dim: int = 16) -> Vectors:
    """Unit vectors about a random centre for each category; a signal of 0 is noise alone."""
    out: dict[str, Mapping[str, Sequence[float]]] = {}
    for name, n in sizes.items():
        vectors = signal * rng.normal(size=dim) + rng.normal(size=(n, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        out[name] = {f"{name}{i:03d}": list(vector) for i, vector in enumerate(vectors)}
    return out


def texts(rng: np.random.Generator, names: Sequence[str], dim: int = 16) -> Vectors:
    return {name: unit(rng, 1, dim) for name in names}


def background(dim: int = 4, *, of_roots: bool = False) -> Background:
    return Background(
        mean=np.full(dim, 0.1, np.float32),
        basis=np.eye(dim, dtype=np.float32)[:2],
        along=np.array([2, 3], np.float32),
        elsewhere=5.0,
        weight=0.1,
        within=2.0,
        between=1.0,
        references=9,
        of_roots=of_roots,
    )


def pools(made: Calibration) -> tuple[LogLinear, LogLinear]:
    return made.plain, made.aggregations


def searched(
    experts: Mapping[str, Vectors],
    queries: Mapping[str, np.ndarray],
    *,
    calibration: Calibration | None = None,
    bound: float | None = None,
) -> SearchResult:
    """Result of a search; with a bound, only of references above the bound for some image."""
    names = tuple(sorted({name for vectors in experts.values() for name in vectors}))
    vectors_of = {encoder: vectors.astype(np.float32) for encoder, vectors in queries.items()}
    found = []
    for expert, vectors in experts.items():
        stored = references(vectors)
        values = vectors_of[expert.rpartition(":")[0]] @ stored.vectors.T
        near = np.argsort(-values, axis=1, kind="stable")[:, :3]
        starts = stored.starts
        kept: np.ndarray = np.ones(values.shape[1], dtype=bool)
        if bound is not None:
            kept = np.any(values > bound, axis=0)
            starts = np.concatenate([[0], np.cumsum(kept)])[starts]
        found.append(
            ExpertSimilarities(
                name=expert,
                coverage=np.array([names.index(name) for name in stored.names], dtype=np.intp),
                similarities=Similarities(
                    values=values[:, kept],
                    starts=starts,
                    counts=np.diff(stored.starts),
                    norms=stored.norms,
                    bound=np.full(len(values), -1 if bound is None else bound, dtype=np.float32),
                ),
                class_means=stored.sum_up if bound is None else lambda _: None,
                nearest=[
                    tuple(Neighbor(stored.labels[j], float(row[j]), stored.sources[j], stored.hashes[j]) for j in order)
                    for row, order in zip(values, near.tolist(), strict=True)
                ],
            )
        )
    return SearchResult(names, tuple(found), vectors_of, calibration)


def logits(coverage: np.ndarray, **fields: object) -> Logits:
    """Logits with placeholders in the fields that do not matter."""
    shape = (len(coverage), 1, coverage.shape[1])
    anything = {
        "found": SearchResult((), ()),
        "probabilities": np.full(shape, np.nan),
        "evidence": np.full(shape, np.nan),
        "pooled": np.full(shape[1:], np.nan),
        "pool": LogLinear({}),
        "shares": np.full(len(coverage), np.nan),
        "weights": np.full(len(coverage), np.nan),
    }
    return Logits(coverage=coverage, **{**anything, **fields})  # type: ignore[arg-type]
