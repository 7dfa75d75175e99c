#!/usr/bin/env python
"""Counts wrong search results of one store while servers are killed, lost and paused.

    python -m scripts.outages                       all cases, one after the other, from the root of the repository
    python -m scripts.outages --seconds 20 killed   one of the cases: quiet, killed, compacted, nodes, leader, paused
    python -m scripts.outages away                  how soon a reader answers after outages of 5 to 90 s

Three writers replace 20 categories while four readers search batches, each in a separate process. All references of a
category carry the mark of a commit. A category in a batch is:

- *stale* if a newer version was acknowledged before the batch began;
- *torn* if its references come from several commits, or some are absent;
- *missing* if it was committed, but is neither found nor reported as incomplete.

In the case `compacted`, the server removes replaced points from its files after almost every write, and is killed again
after each second of service. So the server replays its log over files that lack these points.

Needs a `qdrant` command on the PATH.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tests.qdrant import Node, running_cluster, running_server
from tests.search.support import REFERENCES, painted, queries
from tests.store.material import FINGERPRINTS
from zsvec.errors import ConflictError, StoreError
from zsvec.search.searcher import Searcher
from zsvec.store import Placement, Store, open_store

WRITERS, READERS, CATEGORIES = 3, 4, 20
NAMESPACE = "outages"
PAUSE = 45.0  # maximum seconds for which a node is paused
LENGTHS = [5.0, 15.0, 25.0, 35.0, 45.0, 50.0, 60.0, 70.0, 80.0, 90.0]  # seconds of the outages of `away`
FIRST_CONTACT = 60.0  # seconds; all workers must begin, also on a busy machine

COMPACTING = {
    "QDRANT__STORAGE__OPTIMIZERS__DELETED_THRESHOLD": "0.01",
    "QDRANT__STORAGE__OPTIMIZERS__VACUUM_MIN_VECTOR_NUMBER": "100",
    "QDRANT__STORAGE__OPTIMIZERS__FLUSH_INTERVAL_SEC": "2",
}

Outage = Callable[[Sequence[Node], float], int]
"""Takes the nodes and seconds. Returns the number of kills."""

_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Commits:
    """Result of a writer: category, mark, version and time of `acknowledged` commits; seconds of the `longest` try."""

    acknowledged: list[tuple[str, int, int, float]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0


@dataclass
class Batches:
    """Result of a reader: start, marks and incomplete categories of batches `seen`; seconds of the `longest` batch."""

    seen: list[tuple[float, dict[str, frozenset[int]], tuple[str, ...]]] = field(default_factory=list)
    torn: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0


def write(urls: str, number: int, seconds: float, begin: Barrier, results: Any) -> None:
    """Replaces categories one after the other, and puts the `Commits` into `results`."""
    done, rng = Commits(), np.random.default_rng(number)
    with open_store(urls, namespace=NAMESPACE, first_contact=FIRST_CONTACT) as store:
        mark = number
        begin.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            mark += WRITERS  # no two writers use the same mark
            name = f"category {rng.integers(CATEGORIES)}"
            begun = time.monotonic()
            try:
                (category,) = store.write([painted(name, mark)])
            except (StoreError, ConflictError) as exc:
                done.refused[str(exc)[:120]] += 1
            else:
                done.acknowledged.append((name, mark, category.version, time.monotonic()))
            done.longest = max(done.longest, time.monotonic() - begun)
    results.put(done)


def read(urls: str, seconds: float, begin: Barrier, results: Any) -> None:
    """Searches in batches, reads all references after each batch, and puts the `Batches` into `results`."""
    done, asked = Batches(), queries(1)
    with open_store(urls, namespace=NAMESPACE, first_contact=FIRST_CONTACT) as store:
        searching = Searcher(store, kind="memory", budget=0, neighbors=1, norms=False)
        begin.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.monotonic()
            try:
                incomplete = searching.search(asked, nearest=1).incomplete
                marks, torn = marks_of(searching)
                done.seen.append((begun, marks, incomplete))
                done.torn += torn
            except StoreError as exc:
                done.failed[str(exc)[:120]] += 1
            done.longest = max(done.longest, time.monotonic() - begun)
    results.put(done)


def marks_of(searching: Searcher) -> tuple[dict[str, frozenset[int]], int]:
    """Returns the marks of each category, and the number of torn categories."""
    marks: dict[str, list[int]] = {}
    for references in searching.references()[0].values():
        for name, first, last in zip(references.names, references.starts, references.starts[1:], strict=False):
            marks.setdefault(name, []).extend(int(source) for source in references.sources[first:last])
    whole = 2 * len(FINGERPRINTS) * REFERENCES
    torn = sum(len(set(found)) > 1 or len(found) != whole for found in marks.values())
    return {name: frozenset(found) for name, found in marks.items()}, torn


def judge(commits: list[Commits], batches: list[Batches], store: Store, kills: int) -> dict[str, Any]:
    """Returns a row of the table: values by column. Prints the most frequent errors on stderr."""
    acknowledged = sorted((one for done in commits for one in done.acknowledged), key=lambda one: one[3])
    versions = {(name, mark): version for name, mark, version, _ in acknowledged}
    stale = missing = 0
    for done in batches:
        newest: dict[str, int] = {}
        waiting = iter(acknowledged)
        following = next(waiting, None)
        for begun, marks, incomplete in done.seen:
            while following and following[3] <= begun:
                newest[following[0]] = max(newest.get(following[0], 0), following[2])
                following = next(waiting, None)
            for name in newest.keys() - set(incomplete):
                if name not in marks:
                    missing += 1
                elif any(versions.get((name, mark), newest[name]) < newest[name] for mark in marks[name]):
                    stale += 1
    last: dict[str, int] = {}
    for name, _, version, _ in acknowledged:
        last[name] = max(last.get(name, 0), version)
    now = {category.name: category.version for category in store.categories()}
    lost = sum(now.get(name, 0) < version for name, version in last.items())
    failures: Counter[str] = Counter()
    for counted in [*(done.refused for done in commits), *(done.failed for done in batches)]:
        failures.update(counted)
    for reason, times in failures.most_common(5):
        Console(stderr=True).print(f"{times} × {reason}")
    return {
        "kills": kills,
        "commits": len(acknowledged),
        "batches": sum(len(done.seen) for done in batches),
        "longest commit": f"{max(done.longest for done in commits):.1f} s",
        "longest batch": f"{max(done.longest for done in batches):.1f} s",
        "incomplete": sum(bool(incomplete) for done in batches for _, _, incomplete in done.seen),
        "refused": sum(done.refused.total() for done in commits),
        "failed": sum(done.failed.total() for done in batches),
        "torn": sum(done.torn for done in batches),
        "stale": stale,
        "missing": missing,
        "lost": lost,
    }


def run(nodes: Sequence[Node], replicas: int | None, seconds: float, outage: Outage) -> dict[str, Any]:
    """Runs writers and readers for some seconds, and causes the outage meanwhile. Returns a row of the table."""
    urls = ",".join(node.url for node in nodes)
    with open_store(urls, namespace=NAMESPACE, placement=Placement(replicas=replicas)) as store:
        store.bind(FINGERPRINTS)
        store.write([painted(f"category {i}", 0) for i in range(CATEGORIES)])
        results, begin = _SPAWN.Queue(), _SPAWN.Barrier(WRITERS + READERS + 1)
        workers = [
            *(_SPAWN.Process(target=write, args=(urls, number, seconds, begin, results)) for number in range(WRITERS)),
            *(_SPAWN.Process(target=read, args=(urls, seconds, begin, results)) for _ in range(READERS)),
        ]
        for worker in workers:
            worker.start()
        begin.wait()
        kills = outage(nodes, seconds)
        done = [results.get(timeout=seconds + 180) for _ in workers]
        for worker in workers:
            worker.join()
        commits = [one for one in done if isinstance(one, Commits)]
        return judge(commits, [one for one in done if isinstance(one, Batches)], store, kills)


# Outages


def quiet(nodes: Sequence[Node], seconds: float) -> int:
    """Causes no outage."""
    return 0


def killed(nodes: Sequence[Node], seconds: float, times: int = 5) -> int:
    """Kills and restarts the server several times."""
    for _ in range(times):
        time.sleep(seconds / (times + 1))
        nodes[0].restart()
    return times


def compacted(nodes: Sequence[Node], seconds: float) -> int:
    """Kills and restarts the server as often as possible."""
    until = time.monotonic() + seconds
    times = 0
    while time.monotonic() < until:
        time.sleep(1.0)
        nodes[0].restart()
        times += 1
    return times


def in_turn(nodes: Sequence[Node], seconds: float) -> int:
    """Kills each node for a while, one after the other."""
    for node in nodes:
        time.sleep(seconds / (3 * len(nodes)))
        node.kill()
        time.sleep(seconds / (3 * len(nodes)))
        node.restart()
    return len(nodes)


def leader_lost(nodes: Sequence[Node], seconds: float) -> int:
    """Kills the node with the highest peer id, which orders the writes, and does not restart it."""
    time.sleep(seconds / 4)
    max(nodes, key=lambda node: int(node.get("/cluster")["peer_id"])).kill()
    return 1


def paused(nodes: Sequence[Node], seconds: float) -> int:
    """Pauses one node, and then resumes it."""
    time.sleep(seconds / 12)
    nodes[1].pause()
    time.sleep(min(PAUSE, seconds * 3 / 4))
    nodes[1].resume()
    return 0


ALONE: Mapping[str, tuple[Outage, Mapping[str, str]]] = {
    "quiet": (quiet, {}),
    "killed": (killed, {}),
    "compacted": (compacted, COMPACTING),
}
"""Each case with the settings of its server."""

CLUSTERS: Mapping[str, Outage] = {"nodes": in_turn, "leader": leader_lost, "paused": paused}


# The first answer after an outage


def answer(urls: str, times: Any) -> None:
    """Searches without end, and puts the time of each answer into `times`."""
    asked = queries(1)
    with open_store(urls, namespace=NAMESPACE) as store:
        searching = Searcher(store, kind="qdrant", budget=0, neighbors=1, norms=False)
        while True:
            with suppress(StoreError):
                searching.search(asked, nearest=1)
                times.put(time.monotonic())
            time.sleep(0.01)


def away(node: Node, lengths: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """Yields the length of each outage, and the seconds to the first answers of the reader and of a new process."""
    with open_store(node.url, namespace=NAMESPACE) as store:
        store.bind(FINGERPRINTS)
        store.write([painted(f"category {i}", 0) for i in range(CATEGORIES)])
    with answering(node.url) as reader:
        for seconds in lengths:
            first_after(reader, time.monotonic())
            node.kill()
            killed = time.monotonic()
            time.sleep(seconds)
            node.restart()
            ready = time.monotonic()
            with answering(node.url) as new:
                yield seconds, first_after(reader, killed) - ready, first_after(new, killed) - ready


@contextmanager
def answering(urls: str) -> Iterator[Any]:
    """Yields the times of the answers of a new process, as a queue."""
    times = _SPAWN.Queue()
    process = _SPAWN.Process(target=answer, args=(urls, times), daemon=True)
    process.start()
    try:
        yield times
    finally:
        process.kill()
        process.join()


def first_after(times: Any, moment: float) -> float:
    """Returns the first of these times after a moment."""
    found = -math.inf
    while found <= moment:
        found = times.get(timeout=180)
    return found


def main(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Of quiet, killed, compacted, nodes, leader, paused, away.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of each case, except away.")] = 60.0,
    lengths: Annotated[list[float], typer.Option(help="Seconds of each outage of the case away.")] = LENGTHS,
    replicas: Annotated[list[int], typer.Option(help="Copies of the collections in a cluster.")] = [2, 3],  # noqa: B006
) -> None:
    """Run the cases and print a table, and another one of the case `away`."""
    chosen = cases or [*ALONE, *CLUSTERS, "away"]
    rows: dict[str, dict[str, Any]] = {}
    for case in [case for case in ALONE if case in chosen]:
        outage, settings = ALONE[case]
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), **settings) as node:
            rows[case] = run([node], None, seconds, outage)
    for case in [case for case in CLUSTERS if case in chosen]:
        for copies in replicas:
            with tempfile.TemporaryDirectory() as folder, running_cluster(Path(folder)) as nodes:
                rows[f"{case}, {copies} copies"] = run(nodes, copies, seconds, CLUSTERS[case])
    if rows:
        table = Table("", *next(iter(rows.values())))
        for case, row in rows.items():
            table.add_row(case, *map(str, row.values()))
        Console(width=200).print(table)
    if "away" in chosen:
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as node:
            found = list(away(node, lengths))
        table = Table("seconds away", "first answer of the reader", "of a new process")
        for seconds, *firsts in found:
            table.add_row(f"{seconds:g}", *(f"{first:.1f}" for first in firsts))
        table.add_row("median", *(f"{first:.1f}" for first in np.median(found, axis=0)[1:]))
        Console(width=200).print(table)


if __name__ == "__main__":
    typer.run(main)
