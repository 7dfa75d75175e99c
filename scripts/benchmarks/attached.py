"""The benchmark of attached collections: points of another program, compared with a copy of them in the store."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from qdrant_client import QdrantClient, models

import zsvec
from benchmarks.large import Floats, embedded, made
from benchmarks.measure import report, seconds
from zsvec.testing import HashEncoder

_HELD_OUT = 2_000  # vectors to classify
_BLOCK = 1_000  # points in one write


def attached(
    url: Annotated[str, typer.Argument(metavar="URL", help="Qdrant server. The collections are removed at the end.")],
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder with images of each category.")],
    profile: Annotated[str, typer.Option(help="Profile of the encoder of the images.")] = "offline",
    points: Annotated[int, typer.Option(min=200, help="Number of points.")] = 100_000,
    dim: Annotated[int, typer.Option(min=2, help="Dimension of the vectors.")] = 512,
    api_key: Annotated[str | None, typer.Option(envvar="QDRANT_API_KEY", help="Key to create with.")] = None,
    reader_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_READER_KEY", help="Key that may only read. [default: --api-key]")
    ] = None,
) -> None:
    """Attaches a collection of a plain client, classifies, and compares the answers with those of a copied store.

    The vectors are those of `bench.py large`. Fails if a point or the configuration of the collection has changed.
    """
    vectors, owners = made(*embedded(photos, profile), points + _HELD_OUT, dim)
    asked, truth = {"made": vectors[points:]}, [f"{owner:05}" for owner in owners[points:]]
    encoders = [HashEncoder("made", dim=dim, modalities=("image",))]
    shop = f"bench-shop-{uuid.uuid4().hex[:8]}"
    place: dict[str, Any] = {"encoders": encoders, "namespace": f"bench-{uuid.uuid4().hex[:8]}", "index_cache": False}
    client = QdrantClient(url, api_key=api_key, timeout=600)
    written = seconds(lambda: _write(client, shop, vectors[:points], owners[:points]))
    try:
        before = _state(client, shop)
        with zsvec.open(url, api_key=api_key, **place) as writer:
            attach = seconds(lambda: writer.attach(shop, label="owner", expert="made:image", refresh=1))
        with zsvec.open(url, api_key=reader_key or api_key, **place) as reader:
            first = seconds(lambda: reader.classify_vectors({"made": asked["made"][:64]}))
            next_ = seconds(lambda: reader.classify_vectors({"made": asked["made"][:64]}))
            answers = reader.classify_vectors(asked)
            unchanged = _state(client, shop) == before
            client.set_payload(shop, {"owner": "relabelled"}, points=[0], wait=True)
            relabelled = seconds(lambda: reader.attached())
            seen = "relabelled" in {category.name for category in reader.categories()}
        with zsvec.open(url, api_key=api_key, **place) as writer:
            client.set_payload(shop, {"owner": f"{owners[0]:05}"}, points=[0], wait=True)
            writer.detach(shop)
            copy = seconds(lambda: writer.copy_collection(shop, label="owner", expert="made:image"))
            copied = writer.classify_vectors(asked)
            for name in ("made", "images", "catalog"):
                writer._store._backend.remove(writer._store.collection(name))
    finally:
        client.delete_collection(shop)
        client.close()
    right = [sum(one.nearest == name for one, name in zip(some, truth, strict=True)) for some in (answers, copied)]
    difference = max(
        abs((one.probability or 0) - (other.probability or 0)) for one, other in zip(answers, copied, strict=True)
    )
    report(
        f"{points:,} points of {dim} dimensions, {url}",
        {
            "seconds": [
                {
                    "written by the client": written,
                    "attach": attach,
                    "first 64 images": first,
                    "next 64": next_,
                    "labels again": relabelled,
                    "copy": copy,
                }
            ],
            "answers": [
                {
                    "accuracy attached": f"{right[0] / len(truth):.2%}",
                    "copied": f"{right[1] / len(truth):.2%}",
                    "largest difference of a probability": f"{difference:.1e}",
                    "relabelled point seen": str(seen),
                    "collection unchanged": str(unchanged),
                }
            ],
        },
    )
    if not (seen and unchanged):
        raise typer.Exit(1)


def _write(client: QdrantClient, name: str, vectors: Floats, owners: Any) -> None:
    space = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
    client.create_collection(name, vectors_config=space)
    for first in range(0, len(vectors), _BLOCK):
        rows = slice(first, first + _BLOCK)
        ids = list(range(len(vectors)))[rows]
        payloads: list[models.Payload] = [{"owner": f"{owner:05}"} for owner in owners[rows]]
        client.upsert(name, models.Batch(ids=list(ids), vectors=vectors[rows].tolist(), payloads=payloads), wait=True)


def _state(client: QdrantClient, name: str) -> tuple[Any, Any, str]:
    """Returns the configuration of a collection, its payload indexes, and a digest of its points."""
    info, digest, offset = client.get_collection(name), hashlib.sha256(), None
    while True:
        points, offset = client.scroll(name, limit=_BLOCK, offset=offset, with_payload=True, with_vectors=True)
        for point in points:
            digest.update(f"{point.id} {point.payload} ".encode() + np.asarray(point.vector, np.float32).tobytes())
        if offset is None:
            return info.config.model_dump(), info.payload_schema, digest.hexdigest()
