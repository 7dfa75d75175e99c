"""Measures the export and the import of archives, compared with a copy of the same vectors by safetensors.

The engine of an embedded store bounds both: all points are also read and written by the engine alone.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import qdrant_edge as qe
from safetensors.numpy import load_file, save_file

import zsvec
from benchmarks.measure import Cell, Times, interleaved, ratio, report, unit_vectors
from zsvec import CategoryInput
from zsvec.curation.archive import Archive
from zsvec.inputs.files import sync
from zsvec.settings.settings import load_settings
from zsvec.store.archive.reader import ArchiveReader
from zsvec.store.archive.writer import write_archive
from zsvec.store.backends.base import Points, Where
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.catalog.schema import REFERENCE_INDEXES
from zsvec.testing import HashEncoder

_PER_CATEGORY = 100
_PAGE = 500  # points
_EXPERTS = ("clip:text", "clip:image", "dino:image")


def archive(references: int = 100_000, dim: int = 512, rounds: int = 5) -> None:
    """Measure export and import of references of three experts, and copies by zsvec and by safetensors alone."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vectors = {expert: unit_vectors(rng, references, dim) for expert in _EXPERTS}
        save_file(vectors, folder / "vectors.safetensors")
        _fill(folder / "store", vectors, dim)
        del vectors
        new = (folder / str(number) for number in count())
        _export(folder / "store", folder / "store.zsvec")
        points = _points(folder / "store")
        _write_points(folder / "points", points, dim)
        actions: dict[str, Callable[[], object]] = {
            "safetensors": lambda: _copy(folder / "vectors.safetensors", folder / "again.safetensors"),
            "engine alone, reading": lambda: _read_points(folder / "points"),
            "engine alone, writing": lambda: _write_points(next(new), points, dim),
            "zsvec.copy": lambda: zsvec.copy(folder / "store", next(new)),
            "export": lambda: _export(folder / "store", folder / "again.zsvec"),
            "import": lambda: _import(folder / "store.zsvec", next(new)),
            "archive to archive": lambda: _rewrite(folder / "store.zsvec", folder / "again.zsvec"),
        }
        times = interleaved(actions, rounds)
        size = 4 * dim * references * len(_EXPERTS)
        peaks = {
            "export": _peak(partial(_export, folder / "store", folder / "again.zsvec")),
            "import": _peak(partial(_import, folder / "store.zsvec", next(new))),
        }
        unpacked = (folder / "store.zsvec").stat().st_size
    report(
        f"{references:,} references of {len(_EXPERTS)} experts, {dim} dimensions, {_PER_CATEGORY} a category; vectors "
        f"{size / 1e6:.0f} MB, archive {unpacked / 1e6:.0f} MB; {rounds} rounds",
        {
            "speed": _rates(times, size),
            "memory": [{"way": way, "MB allocated at the most": peak} for way, peak in peaks.items()],
        },
    )


def _rates(times: Times, size: int) -> list[dict[str, Cell]]:
    return [
        {
            "way": way,
            "MB/s": size / 1e6 / float(np.median(taken)),
            "of the rate of safetensors": ratio(times["safetensors"], taken),
            "of the rate of zsvec.copy": ratio(times["zsvec.copy"], taken),
        }
        for way, taken in times.items()
    ]


def _fill(store: Path, vectors: dict[str, np.ndarray], dim: int) -> None:
    encoders = [HashEncoder("clip", dim=dim), HashEncoder("dino", dim=dim, modalities=("image",))]
    with zsvec.open(store, encoders=encoders, calibration="off", keep_images="none") as classifier:
        classifier.add_categories(
            CategoryInput(
                name=f"category {first // _PER_CATEGORY:06}",
                vectors={expert: rows[first : first + _PER_CATEGORY] for expert, rows in vectors.items()},
                sources=[f"folder/of/photos/{number:08}.jpg" for number in range(first, first + _PER_CATEGORY)],
            )
            for first in range(0, len(vectors["clip:text"]), _PER_CATEGORY)
        )


def _points(store: Path) -> dict[str, list[Points]]:
    """Returns the points of the references of a store, by encoder."""
    backend = EdgeBackend(store)
    found = {name: list(backend.scroll(f"zsvec__{name}", Where(), vectors=True)) for name in ("clip", "dino")}
    backend.close()
    return found


def _write_points(folder: Path, points: dict[str, list[Points]], dim: int) -> None:
    """Writes points to new collections, with the settings and indexes of an embedded store."""
    params = qe.EdgeVectorParams(size=dim, distance=qe.Distance.Cosine, memory=qe.Memory.Cold)
    config = qe.EdgeConfig(
        vectors=params, hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
    )
    for name, pages in points.items():
        shard = qe.EdgeShard.create(str(folder / name), config)
        for field in REFERENCE_INDEXES:
            shard.update(qe.UpdateOperation.create_field_index(field, qe.PayloadSchemaType.Keyword))
        for page in pages:
            rows = zip(page.ids, page.plain, page.payloads, strict=True)
            shard.update(qe.UpdateOperation.upsert_points([qe.Point(i, row, dict(rest)) for i, row, rest in rows]))
        shard.flush()
        shard.close()


def _read_points(folder: Path) -> None:
    """Reads the id, the vector and the payload of all points in pages."""
    for name in folder.iterdir():
        shard, offset = qe.EdgeShard.load(str(name)), None
        while True:
            request = qe.ScrollRequest(offset=offset, limit=_PAGE, with_payload=True, with_vector=True)
            page, offset = shard.scroll(request)
            for point in page:
                _ = point.id, point.vector, point.payload
            if offset is None:
                break
        shard.close()


def _copy(source: Path, target: Path) -> None:
    save_file(load_file(source), target)
    sync(target)


def _export(store: Path, file: Path) -> None:
    with load_settings(store=str(store)).open_store() as opened:
        Archive(opened).export(file)


def _import(file: Path, store: Path) -> None:
    with load_settings(store=str(store)).open_store() as opened:
        Archive(opened).import_(file)


def _rewrite(file: Path, again: Path) -> None:
    """Reads, verifies and writes all parts, without the engine of a store."""
    with ArchiveReader(file) as source:
        write_archive(source, again, names=None, on_commit=lambda category: None, track=iter)


def _peak(action: Callable[[], object]) -> float:
    """Returns the largest memory that an action allocates in a process of its own, in MB.

    The mapped files of an embedded store are left out, because their pages belong to the page cache.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_measured, args=(action, theirs))
    process.start()
    peak: int = ours.recv()
    process.join()
    return peak / 1000


def _measured(action: Callable[[], object], told: Connection) -> None:
    begun = peak = _allocated()  # by the imports of this module
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, _allocated())

    sampler = threading.Thread(target=sample)
    sampler.start()
    action()
    ended.set()
    sampler.join()
    told.send(peak - begun)


def _allocated() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0])
