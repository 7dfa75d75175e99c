"""Deployments to keep a store in, and a backend that can be interfered with."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import httpx
import pytest
import qdrant_edge as qe
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.store.material import FINGERPRINTS
from zsvec.store import Store
from zsvec.store.backends.base import Backend, Where
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.checksums import Checksums
from zsvec.store.backends.memory import MemoryBackend
from zsvec.store.backends.server.backend import ServerBackend, connect
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.endpoint import Node

_SHM = Path("/dev/shm")
_BLOCK = 4096


# Backends that can be interfered with


class Hooked:
    """A backend with hooks before its calls.

    Attributes:
        inner: The backend that does the work.
        hooks: Functions to call once, before the next call of a method, with the same arguments; under ``commit``,
            before the next put of a manifest or a calibration; under a number, before the call after so many.
        dies_at: Number of calls from which on every one raises `Crash`, as if the process had died.
        calls: How often each method was called.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.hooks: dict[str | int, Callable[..., None]] = {}
        self.dies_at: int | None = None
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            so_far = self.calls.total()
            if so_far == self.dies_at:
                raise Crash
            self.calls[name] += 1
            commits = name == "put" and args[1][0].payload["kind"] in ("manifest", "calibration")
            names: list[str | int] = [so_far, name, "commit"] if commits else [so_far, name]
            for hook in [self.hooks.pop(which, None) for which in names]:
                if hook is not None:
                    hook(*args, **kwargs)
            return attribute(*args, **kwargs)

        return call


class Crash(Exception):  # noqa: N818 - thrown in by a test
    """The writer dies here."""


# Deployments

LASTING = pytest.mark.parametrize("deployment", ["edge", "local", "server"], indirect=True)
"""For tests of collections before or after a handle: foreign or reopened ones."""


class Deployment:
    """A place for collections: opened as a store, and read past the store.

    Attributes:
        namespace: Of the store under test.
        shared: Whether several handles can be open at once.
        exact: Whether vectors come back bit by bit.
    """

    namespace = "zsvec"
    shared: ClassVar[bool]
    exact: ClassVar[bool]

    def __init__(self) -> None:
        self._open: list[Backend] = []

    def backend(self) -> Hooked:
        inner = self.connect()
        self._open.append(inner)
        return Hooked(inner)

    def open(self, backend: Hooked | None = None, *, history: float = 0.0, by: str | None = None) -> Store:
        """A store ready to be written."""
        store = Store(backend or self.backend(), self.namespace, history=history, by=by)
        store.bind(FINGERPRINTS)
        return store

    def another(self, store: Store) -> Store:
        """Returns the store of a second writer: another handle, if the deployment is shared."""
        return self.open() if self.shared else store

    def clear(self, store: Store) -> None:
        """Remove every category and all garbage."""
        for category in store.categories():
            store.remove(category.name)
        store.gc(grace=0)

    def drop(self, store: Store) -> None:
        """Delete the collections of a store: those of one server need 60 MB and more each."""
        for collection in self.collections():
            if collection.startswith(f"{store.namespace}__"):
                self._open[-1].remove(collection)

    def close(self) -> None:
        while self._open:
            self._open.pop().close()

    def points(self, collection: str) -> dict[str, Mapping[str, Any]]:
        """Payload of every point of one of the store's collections, by id, whether committed or not."""
        full = f"{self.namespace}__{collection}"
        pages = self._open[-1].scroll(full, Where())
        return {
            identifier: payload for page in pages for identifier, payload in zip(page.ids, page.payloads, strict=True)
        }

    def sizes(self, after: Store | None = None) -> dict[str, int]:
        """Returns the number of points of each encoder, after garbage collection by `after` if shared."""
        if after is not None and self.shared:
            after.gc(grace=0)
        return {encoder: len(self.points(encoder)) for encoder in FINGERPRINTS}

    def connect(self) -> Backend:
        raise NotImplementedError

    def collections(self) -> set[str]:
        """Names of all collections, foreign ones included."""
        raise NotImplementedError

    def make_foreign(self, collection: str) -> None:
        """Creates a collection of another program, with points."""
        raise NotImplementedError

    def state(self, collection: str) -> Any:
        """All that can be read of a closed collection, to compare."""
        raise NotImplementedError

    def content(self, collection: str) -> Any:
        """Configuration and points of a collection that is not open."""
        return self.state(collection)


class EdgeDeployment(Deployment):
    shared = False
    exact = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def connect(self) -> Backend:
        return EdgeBackend(self.folder)

    def collections(self) -> set[str]:
        return {path.name for path in self.folder.glob("[!.]*")}

    def make_foreign(self, collection: str) -> None:
        folder = self.folder / collection
        folder.mkdir(parents=True)
        shard = qe.EdgeShard.create(
            str(folder), qe.EdgeConfig(vectors=qe.EdgeVectorParams(size=4, distance=qe.Distance.Dot))
        )
        points = [qe.Point(i, [float(i), 2, 3, 4], payload) for i, payload in enumerate(_FOREIGN_PAYLOADS)]
        shard.update(qe.UpdateOperation.upsert_points(points))
        shard.close()

    def state(self, collection: str) -> Any:
        files = sorted(path for path in (self.folder / collection).rglob("*") if path.is_file())
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns, _digest(path)) for path in files]

    def content(self, collection: str) -> Any:
        shard = self._load(collection)
        points, _ = shard.scroll(qe.ScrollRequest(limit=100, with_vector=True, with_payload=True))
        shard.close()
        config = (self.folder / collection / "edge_config.json").read_text()
        return config, [(point.id, point.vector, point.payload) for point in points]

    def _load(self, collection: str) -> qe.EdgeShard:
        Checksums(self.folder, self.folder / collection).check()  # restores the sizes of files
        return qe.EdgeShard.load(str(self.folder / collection))

    def indexes(self, collection: str) -> dict[str, str]:
        """Kind of each payload index of a collection that is not open."""
        shard = self._load(collection)
        schema = shard.info().payload_schema
        shard.close()
        return {field: str(info.data_type).rpartition(".")[2].lower() for field, info in schema.items()}


def _digest(path: Path) -> bytes:
    """Hash of the blocks of a file without zeros. The files of the engine are mostly holes, which are slow to read, and
    which a system may fill or make.
    """
    digest, end = hashlib.sha256(), 0
    with path.open("rb") as file, suppress(OSError):  # there is no data after the last hole
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for offset in range(start - start % _BLOCK, end, _BLOCK):
                if block := os.pread(file.fileno(), _BLOCK, offset).rstrip(b"\0"):
                    digest.update(offset.to_bytes(8, "little") + block)
    return digest.digest()


class ClientDeployment(Deployment):
    """Collections reached through the official client."""

    shared = True

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = client

    def collections(self) -> set[str]:
        return {collection.name for collection in self.client.get_collections().collections}

    def make_foreign(self, collection: str) -> None:
        self.client.create_collection(
            collection, vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT)
        )
        points = [
            models.PointStruct(id=i, vector=[float(i), 2, 3, 4], payload=payload)
            for i, payload in enumerate(_FOREIGN_PAYLOADS)
        ]
        self.client.upsert(collection, points, wait=True)

    def state(self, collection: str) -> Any:
        info = self.client.get_collection(collection)
        points, _ = self.client.scroll(collection, limit=100, with_payload=True, with_vectors=True)
        return info.config.model_dump(), info.payload_schema, [point.model_dump() for point in points]

    def indexes(self, collection: str) -> dict[str, str]:
        """Kind of each payload index of a collection."""
        schema = self.client.get_collection(collection).payload_schema
        return {field: info.data_type.value for field, info in schema.items()}


class MemoryDeployment(Deployment):
    """The deployment of ``open_store(":memory:")``, which ends with its handle and has no foreign collections."""

    shared = False
    exact = True

    def connect(self) -> Backend:
        return MemoryBackend()

    def collections(self) -> set[str]:
        return {name for backend in cast("list[MemoryBackend]", self._open) for name in backend._collections}


class LocalDeployment(ClientDeployment):
    """The client's local mode in the place of a server, shared by several handles."""

    exact = False  # for cosine, unit vectors are normalised again

    def __init__(self) -> None:
        super().__init__(_SharedLocalClient())

    def connect(self) -> Backend:
        # As by gRPC, where no thread has to keep a deadline.
        return ServerBackend(Connection(":memory:", 5, [Node(":memory:", lambda *_: (self.client, True), 5)]))

    def clear(self, store: Store) -> None:
        """Drop the collections: the client's filters look at every point that ever was."""
        for collection in self.collections():
            self.client.delete_collection(collection)
        store.bind(FINGERPRINTS)

    def close(self) -> None:
        super().close()
        self.client.local.close()


class ServerDeployment(ClientDeployment):
    exact = True

    def __init__(self, url: str) -> None:
        super().__init__(QdrantClient(url=url, check_compatibility=False, timeout=60))
        self.url = url
        self.namespace = f"zsvec-test-{uuid.uuid4().hex[:12]}"

    def connect(self) -> Backend:
        return connect([self.url], timeout=60)

    def close(self) -> None:
        super().close()
        for collection in self.collections():
            if self.namespace in collection:  # a random name
                self.client.delete_collection(collection)
        self.client.close()


class _SharedLocalClient:
    """A client in local mode that several handles and threads use, and that none closes."""

    def __init__(self) -> None:
        self.local = QdrantClient(":memory:")
        self.init_options = self.local.init_options
        self._lock = threading.RLock()

    def close(self) -> None:
        pass

    def cluster_status(self) -> models.ClusterStatusOneOf:
        return models.ClusterStatusOneOf(status="disabled")

    def collection_cluster_info(self, collection: str) -> models.CollectionClusterInfo:
        """As a server says that is alone."""
        shard = models.LocalShardInfo(shard_id=0, points_count=0, state=models.ReplicaState.ACTIVE)
        return models.CollectionClusterInfo(
            peer_id=1, shard_count=1, local_shards=[shard], remote_shards=[], shard_transfers=[]
        )

    def query_batch_points(self, collection: str, requests: Sequence[models.QueryRequest], **options: Any) -> Any:
        """As a server without an index. The local mode compares every point, and warns of parameters."""
        plain = [request.model_copy(update={"params": None}) for request in requests]
        return self.__getattr__("query_batch_points")(collection, plain, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.local, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Local mode performs exact")
                try:
                    return method(*args, **kwargs)
                except ValueError as exc:  # as a server says this
                    codes = {"not found": (404, "Not Found"), "already exists": (409, "Conflict")}
                    code = next((codes[words] for words in codes if words in str(exc)), None)
                    if code is None:
                        raise
                    raise UnexpectedResponse(*code, str(exc).encode(), httpx.Headers()) from exc

        return call


_FOREIGN_PAYLOADS: list[dict[str, Any]] = [
    {"category": "red panda", "modality": "image", "gen": "00000000000001-aaaaaaaaaaaa"},
    {"kind": "category", "category": "red panda", "version": 1, "rev": 1, "gen": [], "deleted": True},
    {"another": "program"},
]


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A new folder, in memory if there is room, since the engine syncs every file."""
    in_memory = _SHM.is_dir() and shutil.disk_usage(_SHM).free > 2**30
    with TemporaryDirectory(prefix="zsvec-test-", dir=_SHM if in_memory else None) as folder:
        yield Path(folder)


class Disk:
    """A fake of `shutil.disk_usage`.

    Attributes:
        total: Bytes.
        free: Bytes.
        looks: Number of calls.
        full_at: The look from which on nothing is free.
    """

    def __init__(self) -> None:
        self.total, self.free, self.looks, self.full_at = 2**41, 2**40, 0, -1

    def usage(self, _: Path) -> SimpleNamespace:
        self.looks += 1
        return SimpleNamespace(total=self.total, free=0 if 0 <= self.full_at < self.looks else self.free)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MiB; skips where none can be mounted."""
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted: {mount.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def left_behind() -> list[threading.Thread]:
    """Threads of late requests, as soon as there are none, or else after a while."""
    until = time.monotonic() + 60
    while (found := [thread for thread in threading.enumerate() if thread.name == "zsvec-in-time"]) and (
        time.monotonic() < until
    ):
        time.sleep(0.01)
    return found
