"""A store on a Qdrant server: the first batch of a process, later batches, and bare requests."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from qdrant_client import QdrantClient
from qdrant_client import grpc as protocol

import zsvec
from benchmarks.material import vector_category
from benchmarks.measure import Out, Row, interleaved, medians, report, seconds, unit_vectors
from zsvec.classifier import Classifier
from zsvec.testing import HashEncoder

_PER_CATEGORY = 10
_NAMESPACE = "zsvec_bench"
_NEIGHBORS = 256


def server(
    url: str,
    grpc_port: Annotated[int, typer.Option(help="Of the server.")] = 6334,
    references: int = 100_000,
    dim: int = 512,
    batch: int = 64,
    rounds: int = 7,
    out: Out = None,
) -> None:
    """Times of a store on a server, without a key, and in a folder. Its collections are dropped before and after."""
    random = np.random.default_rng(0)
    vectors, queries = unit_vectors(random, references, dim), {"bench": unit_vectors(random, batch, dim)}
    parts = np.split(vectors, range(_PER_CATEGORY, references, _PER_CATEGORY))
    encoder = HashEncoder("bench", dim=dim, modalities=("image",))
    client = QdrantClient(url=url, grpc_port=grpc_port, prefer_grpc=True, check_compatibility=False)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch

        def opened(where: str, **options: Any) -> Classifier:
            return zsvec.open(where, encoders=[encoder], namespace=_NAMESPACE, **{"index": "memory", **options})

        _drop(client)
        try:
            for where in (url, f"{scratch}/store"):
                with opened(where, index_cache=False) as filled:
                    filled.add_categories(map(vector_category, range(len(parts)), parts))
                    filled.calibrate()
            starts = [_starts(partial(opened, where), queries) for where in (url, f"{scratch}/store")]
            with (
                opened(url) as here,
                opened(f"{scratch}/store") as folder,
                opened(url, index="qdrant", neighbors=_NEIGHBORS) as asked,
                opened(url, calibration="off") as writer,
            ):
                ways: dict[str, Callable[[], object]] = {
                    "a batch, store on the server": lambda: here.classify_vectors(queries),
                    "a batch, store in a folder": lambda: folder.classify_vectors(queries),
                    "a batch, index='qdrant'": lambda: asked.classify_vectors(queries),
                    "its queries alone": lambda: asked.store.query("bench", "image", queries["bench"], _NEIGHBORS),
                    "the same bare gRPC request": partial(_bare, client, queries["bench"]),
                }
                took = medians(interleaved(ways, rounds))
                more = _after_commits(here, writer, queries, rounds)
        finally:
            _drop(client)
    rows: list[Row] = [
        {"what": name, "ms": 1000 * one, "÷ bare request": one / took["the same bare gRPC request"]}
        for name, one in took.items()
    ]
    report(
        "server",
        f"{references:,} references of {dim} dimensions in {len(parts):,} categories, batches of {batch}",
        {
            "the first batch of a process, s": [
                {"store": where, **one} for where, one in zip(("server", "folder"), starts, strict=True)
            ],
            f"medians of {rounds} interleaved rounds": rows,
            "a batch after another process has added a category": [more],
        },
        out=out,
        draw=lambda axes: axes.barh(list(took), [1000 * one for one in took.values()]),
        device="cpu",
    )


def _drop(client: QdrantClient) -> None:
    for collection in client.get_collections().collections:
        if collection.name.startswith(f"{_NAMESPACE}__"):
            client.delete_collection(collection.name)


def _starts(opened: Callable[..., Classifier], queries: Any) -> Row:
    """Seconds of the first batch, without what an earlier process kept, and with it."""
    found: dict[str, float] = {}
    for name, options in (("nothing kept", {"index_cache": False}), ("keeping", {}), ("kept", {})):
        took: list[float] = []
        for _ in range(3 if name != "keeping" else 1):
            with opened(**options) as classifier:
                took.append(seconds(partial(classifier.classify_vectors, queries)))
        found[name] = statistics.median(took)
    return {name: found[name] for name in ("nothing kept", "kept")}


def _bare(client: QdrantClient, queries: Any) -> None:
    wanted = protocol.PayloadIncludeSelector(fields=["category", "gen", "source"])
    condition = protocol.FieldCondition(key="modality", match=protocol.Match(keyword="image"))
    requests = [
        protocol.QueryPoints(
            collection_name=f"{_NAMESPACE}__bench",
            query=protocol.Query(nearest=protocol.VectorInput(dense=protocol.DenseVector(data=vector))),
            filter=protocol.Filter(must=[protocol.Condition(field=condition)]),
            limit=_NEIGHBORS,
            with_payload=protocol.WithPayloadSelector(include=wanted),
        )
        for vector in queries
    ]
    client.grpc_points.QueryBatch(
        protocol.QueryBatchPoints(collection_name=f"{_NAMESPACE}__bench", query_points=requests), timeout=60
    )


def _after_commits(reader: Classifier, writer: Classifier, queries: Any, rounds: int) -> Row:
    random = np.random.default_rng(1)
    usual, after = [], []
    for number in range(rounds):
        usual.append(seconds(lambda: reader.classify_vectors(queries)))
        writer.add_categories(
            [vector_category(10**6 + number, unit_vectors(random, _PER_CATEGORY, len(queries["bench"][0])))]
        )
        after.append(seconds(lambda: reader.classify_vectors(queries)))
    more = [1000 * (one - other) for one, other in zip(after, usual, strict=True)]
    return {"batch, ms": 1000 * statistics.median(usual), "more, ms": statistics.median(more)}
