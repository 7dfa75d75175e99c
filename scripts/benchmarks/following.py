"""The benchmark of folders that follow a server: time, bytes and memory of runs, and connections that are cut."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import typer

import zsvec
from benchmarks.large import Floats
from benchmarks.measure import Cell, report, unit_vectors
from zsvec.errors import StoreUnavailableError
from zsvec.store import Points, Reference, Store, Write, copying, following, open_store
from zsvec.store.backends.base import Where
from zsvec.testing import HashEncoder

_AT_ONCE = 250  # categories in one write
_CUT_CATEGORIES = 50
_PATIENCE_S = 1.0  # of a run whose connection is cut
# A process of its own, as on a device. Prints seconds without imports, committed categories, and the peak of memory.
_RUN = """
import json, re, sys, time
from pathlib import Path
import zsvec
from zsvec.store import following

following.WHOLE_EVERY_S = float(sys.argv[4])
begun = time.perf_counter()
synced = zsvec.sync(sys.argv[1], sys.argv[2], namespace=sys.argv[3])
seconds = time.perf_counter() - begun
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
print(json.dumps({"seconds": seconds, "committed": len(synced.categories), "peak": peak}))
"""


def follow(
    url: Annotated[str, typer.Argument(metavar="URL", help="Qdrant server. The collections are removed at the end.")],
    categories: Annotated[int, typer.Option(min=3, help="Number of categories.")] = 10_000,
    references: Annotated[int, typer.Option(min=1, help="Number of references of each category.")] = 4,
    dim: Annotated[int, typer.Option(min=2, help="Dimension of the vectors.")] = 512,
    cuts: Annotated[int, typer.Option(min=0, help="Number of cut connections.")] = 100,
) -> None:
    """Brings a folder in step with a server of random unit vectors, through a proxy that counts bytes.

    Then replaces categories without end, and cuts the connection of each run at a random instant. Fails if a category
    of the folder has not exactly the references of one version.
    """
    drawn = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch, _proxy(url) as proxy:
        with _new_store(url, dim) as store:
            _fill(store, (_write(f"{i:05}", unit_vectors(drawn, references, dim)) for i in range(categories)), dim)
            runs = _runs(proxy, Path(scratch) / "device", store, unit_vectors(drawn, 2, dim))
        with _new_store(url, dim) as store:
            found = _cut(proxy, Path(scratch) / "cut", store, references, dim, cuts)
    vectors = categories * references * dim * 4 / 1e6
    report(
        f"{categories:,} categories of {references} references of {dim} dimensions ({vectors:,.1f} MB of vectors)",
        {"runs": runs, "connections cut while categories are replaced": [found]},
    )
    if found["mixed categories"] or found["lost categories"]:
        raise typer.Exit(1)


def _runs(proxy: _Proxy, folder: Path, store: Store, more: Floats) -> list[dict[str, Cell]]:
    """Returns a row for each run: in a new process, or in a classifier that has the folder open."""
    rows: list[dict[str, Cell]] = []

    def add(what: str, act: Callable[[], Mapping[str, float]]) -> None:
        before = proxy.received
        measured = act()
        rows.append(
            {
                "run": what,
                "seconds": measured["seconds"],
                "kB received": (proxy.received - before) / 1e3,
                "committed": int(measured["committed"]),
                "peak MB": measured.get("peak", "") and round(measured["peak"]),
            }
        )

    def in_process(whole_every: float = following.WHOLE_EVERY_S) -> Mapping[str, float]:
        given = [proxy.url, str(folder), store.namespace, str(whole_every)]
        done = subprocess.run(  # noqa: S603 - this Python, and arguments of our own
            [sys.executable, "-c", _RUN, *given], stdout=subprocess.PIPE, check=True
        )
        measured: Mapping[str, float] = json.loads(done.stdout)
        return measured

    add("first", in_process)
    add("without news", in_process)
    store.write([_write("00000", more[:1])])
    add("one category with another image", in_process)
    add("without news, all names compared", lambda: in_process(0))
    with zsvec.open(folder, namespace=store.namespace, encoders=[_encoder(more.shape[1])]) as clf:

        def sync() -> Mapping[str, float]:
            begun = time.perf_counter()
            synced = clf.sync(proxy.url)
            return {"seconds": time.perf_counter() - begun, "committed": len(synced.categories)}

        add("clf.sync, first", sync)
        add("clf.sync, without news", sync)
        store.write([_write("00001", more[1:])])
        add("clf.sync, one category with another image", sync)
        store.remove("00002")
        add("clf.sync, one category removed", sync)
    return rows


def _cut(proxy: _Proxy, folder: Path, store: Store, references: int, dim: int, cuts: int) -> dict[str, Cell]:
    """Cuts the connection of runs while categories are replaced, and counts categories of several versions."""
    copying._AT_ONCE = 5 * references  # so that a run has many commits, as of a large store
    draw, drawn, done = np.random.default_rng(0), np.random.default_rng(1), threading.Event()
    version = 0

    def write(number: int) -> None:
        nonlocal version
        version += 1
        store.write([_write(f"c{number}", unit_vectors(drawn, references, dim), source=f"{version}", replace=True)])

    def replace_some() -> None:
        while not done.wait(0.001):
            write(int(draw.integers(_CUT_CATEGORIES)))

    for number in range(_CUT_CATEGORIES):
        write(number)
    with open_store(str(folder), namespace=store.namespace) as device, _source(proxy, store) as source:
        begun = time.perf_counter()
        device.sync_from(source.follower())
        longest = time.perf_counter() - begun
    counts = {"runs": 0, "cut": 0, "cut after some commits": 0, "mixed categories": 0, "lost categories": 0}
    before: dict[str, set[str]] = {}
    thread = threading.Thread(target=replace_some)
    thread.start()
    try:
        while counts["cut"] < cuts:
            counts["runs"] += 1
            timer = threading.Timer(draw.uniform(0, longest), proxy.cut)
            committed: list[object] = []
            timer.start()
            with open_store(str(folder), namespace=store.namespace) as device:
                try:
                    with _source(proxy, store) as source:
                        device.sync_from(source.follower(), on_commit=committed.append)
                except StoreUnavailableError:
                    counts["cut"] += 1
                    counts["cut after some commits"] += bool(committed)
                timer.join()
                proxy.restore()
                now = {category.name: _versions(device, category.name) for category in device.categories()}
            counts["lost categories"] += len(before.keys() - now.keys())
            counts["mixed categories"] += sum(len(some) != references or len(set(some)) != 1 for some in now.values())
            before = {name: set(some) for name, some in now.items()}
    finally:
        done.set()
        thread.join()
    return {"categories": _CUT_CATEGORIES, "versions": version, **counts}


def _versions(store: Store, name: str) -> list[str]:
    return [reference.source for reference in store.stored(name)]


@contextmanager
def _source(proxy: _Proxy, store: Store) -> Iterator[Store]:
    with open_store(proxy.url, namespace=store.namespace, timeout=_PATIENCE_S, first_contact=_PATIENCE_S) as source:
        yield source


@contextmanager
def _new_store(url: str, dim: int) -> Iterator[Store]:
    """Yields a new store, and removes its collections at the end."""
    with open_store(url, namespace=f"bench-{uuid.uuid4().hex[:8]}") as store:
        store.bind({"made": _encoder(dim).fingerprint}, images="none")
        try:
            yield store
        finally:
            for name in ("made", "catalog"):
                store._backend.remove(store.collection(name))


def _fill(store: Store, writes: Iterable[Write], dim: int) -> None:
    """Makes a store that of these writes, by all its points: 10,000 commits to a server take minutes."""
    with open_store(":memory:", namespace=store.namespace) as made:
        made.bind({"made": _encoder(dim).fingerprint}, images="none")
        every = iter(writes)
        while some := list(islice(every, _AT_ONCE)):
            made.write(some)
        for page in made._backend.scroll(made.collection("made"), Where(), vectors=True):
            store._backend.upsert(store.collection("made"), page)
        for page in made._backend.scroll(made.collection("catalog"), Where()):
            records = Points(page.ids, [[1.0]] * len(page.ids), page.payloads)
            store._backend.upsert(store.collection("catalog"), records)


def _encoder(dim: int) -> HashEncoder:
    return HashEncoder("made", dim=dim, modalities=("image",))


def _write(name: str, vectors: Floats, source: str = "", *, replace: bool = False) -> Write:
    hashes = [hashlib.sha256(vector.tobytes()).hexdigest() for vector in vectors]
    made = [Reference("made", "image", digest, source, row) for digest, row in zip(hashes, vectors, strict=True)]
    return Write(name=name, references=made, replace=replace)


class _Proxy:
    """Passes on both ports of a server, counts the bytes that come from there, and cuts connections.

    Attributes:
        url: URL of the REST interface.
        received: Number of bytes from the server.
    """

    def __init__(self, url: str) -> None:
        self.received = 0
        self._is_cut = threading.Event()
        self._sockets: set[socket.socket] = set()
        server = urlsplit(url)
        self._listening = _two_listening()
        self.url = f"http://127.0.0.1:{self._listening[0].getsockname()[1]}"
        for number, listening in enumerate(self._listening):
            there = (server.hostname or "", (server.port or 6333) + number)
            threading.Thread(target=self._accept, args=(listening, there), daemon=True).start()

    def cut(self) -> None:
        """Ends all connections, and refuses new ones until `restore`."""
        self._is_cut.set()
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Accepts connections again."""
        self._is_cut.clear()

    def close(self) -> None:
        """Ends all connections and the proxy."""
        self.cut()
        for listening in self._listening:
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def _accept(self, listening: socket.socket, there: tuple[str, int]) -> None:
        with suppress(OSError):  # until closed
            while True:
                near, _ = listening.accept()
                if self._is_cut.is_set():
                    near.close()
                    continue
                far = socket.create_connection(there)
                self._sockets |= {near, far}
                for pair in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while said := source.recv(65536):
                self.received += counts * len(said)
                target.sendall(said)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._sockets.discard(source)


@contextmanager
def _proxy(url: str) -> Iterator[_Proxy]:
    proxy = _Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()


def _two_listening() -> list[socket.socket]:
    """Returns sockets on two adjacent ports: clients expect gRPC next to REST."""
    for _ in range(100):
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            with suppress(OSError):  # the port is taken
                second = socket.create_server(("127.0.0.1", first.getsockname()[1] + 1))
                stack.pop_all()
                return [first, second]
    raise OSError("no two adjacent ports are free")
