#!/usr/bin/env python
"""Measures whether zsvec reports damaged embedded stores, and whether it reports healthy stores by mistake.

    python -m scripts.damage --stores 2000 --seed 1     from the root of the repository
    python -m scripts.damage --stores 1 --seed 417      one store, with the seed in the report of a fault

The changes of `tests.store.changer` make each store, which is then left in one of the `STATES`:

- *closed*: the writer closed the store;
- *flushed*: the writer flushed the store, and was killed;
- *killed*: the writer was killed between two changes;
- *killed reader*: the writer closed the store, and a later reader was killed.

In a closed or flushed store, up to three random files are damaged. A file of checksums is never drawn together with
other files. Then another process opens the store, reads, collects garbage and writes.

A store counts as *told* if zsvec raises an error or reports a category as incomplete, and as *unharmed* if there is
neither such a report nor a fault. The faults are:

- *ended*: the engine ended the process;
- *hung*: the process did not end within a minute;
- *other errors*: an exception that is not an error of zsvec;
- *unreported*: a category or a reference is missing, or comes from another commit, without a report;
- *collected*: `gc` deleted a reference of a live category, or deleted anything though the catalog cannot be read;
- *false alarm*: zsvec reports damage of an undamaged store.

Exits with 1 if there is any fault. Runs only on Linux, because the processes are forked.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tests.store import changer
from tests.store.material import FINGERPRINTS, add, sources
from tests.store.support import fast_folder
from zsvec.errors import ZSVecError
from zsvec.store import Cursor, Store
from zsvec.store.backends.base import Where
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.backends.edge.checksums import CHECKSUMS

T = TypeVar("T")

NAMESPACE, STORE = "zsvec", "store"
PAGE = 4096
LIMIT = 60.0  # seconds until a process counts as hung
MEMORY = 16 * 2**30  # bytes of address space, so that a damaged number cannot use up the memory of the machine
FAULTS = ("ended", "hung", "other errors", "unreported", "collected", "false alarm")
STATES = ("closed", "flushed", "killed", "killed reader")

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Stored:
    """A stored category: version, write ids, and the sources of the references by expert."""

    version: int
    write_ids: tuple[str, ...]
    sources: Mapping[str, Sequence[str]]


@dataclass
class Seen:
    """Whether zsvec reported damage, and a description of each fault by its name in `FAULTS`."""

    told: bool = False
    faults: dict[str, str] = field(default_factory=dict)


def make(folder: Path, seed: int, state: str, result: Connection) -> None:
    """Makes the store of a seed, sends the categories to `result`, and leaves the store in one of the `STATES`."""
    store = changer.opened(str(folder), NAMESPACE)
    for change in changer.changes(seed)[: 4 + seed % 17]:
        change.make(store)
        store = changer.opened(str(folder), NAMESPACE) if change.what == "close" else store
    result.send({c.name: Stored(c.version, c.write_ids, sources(store, c.name)) for c in store.categories()})
    if state in ("closed", "killed reader"):
        store.close()
    if state == "killed reader":
        Store(EdgeBackend(folder), NAMESPACE).incomplete()
    if state == "flushed":
        store.flush()
    if state != "closed":
        os.kill(os.getpid(), signal.SIGKILL)


# Damage


def drawn_file(folder: Path, draw: random.Random, *, checksums: bool) -> Path:
    """Returns a random file of a collection. Each part (log, ids, payloads, …) is equally likely, whatever its size."""
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent != folder and (checksums or path.name != CHECKSUMS):
            names = path.relative_to(folder).parts[1:]
            part = names[2] if names[0] == "segments" else names[0]
            parts.setdefault(part, []).append(path)
    return draw.choice(parts[draw.choice(sorted(parts))])


def used_pages(file: Path) -> list[int]:
    """Returns the offsets of the pages that are not all zeros. Most files consist mainly of holes."""
    content = file.read_bytes()
    return [first for first in range(0, len(content), PAGE) if any(content[first : first + PAGE])]


def flip_bits(file: Path, draw: random.Random) -> None:
    """Flips one, two or eight bits, none of them in the zeros at the end of a page."""
    with file.open("r+b") as opened:
        for page in draw.choices(used_pages(file), k=draw.choice([1, 1, 2, 8])):
            opened.seek(page)
            content = bytearray(opened.read(PAGE))
            content[draw.randrange(len(content.rstrip(b"\0")) or 1)] ^= 1 << draw.randrange(8)
            opened.seek(page)
            opened.write(content)


def zero_pages(file: Path, draw: random.Random) -> None:
    """Zeros one, two or eight pages that are not all zeros."""
    pages = used_pages(file)
    with file.open("r+b") as opened:
        for page in draw.sample(pages, min(len(pages), draw.choice([1, 1, 2, 8]))):
            opened.seek(page)
            opened.write(bytes(min(PAGE, file.stat().st_size - page)))


def truncate(file: Path, draw: random.Random) -> None:
    """Truncates the file before the end of the last page that is not all zeros."""
    os.truncate(file, draw.randint(0, min(file.stat().st_size, used_pages(file)[-1] + PAGE)))


def delete(file: Path, draw: random.Random) -> None:
    """Deletes the file."""
    file.unlink()


def delete_folder(file: Path, draw: random.Random) -> None:
    """Deletes a folder inside the store that contains the file, at any depth."""
    depth = draw.randint(1, max(1, len(file.parts) - 1 - _depth(file)))
    shutil.rmtree(Path(*file.parts[: _depth(file) + depth]))


def swap(file: Path, draw: random.Random) -> None:
    """Swaps the file with another file of the same name, or with any file if there is none."""
    store = Path(*file.parts[: _depth(file)])
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path != file and path.parent != store]
    other = draw.choice([path for path in files if path.name == file.name] or files)
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


def _depth(file: Path) -> int:
    return file.parts.index(STORE) + 1


DAMAGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "flipped bits": flip_bits,
    "zeroed pages": zero_pages,
    "truncated": truncate,
    "deleted": delete,
    "folder deleted": delete_folder,
    "swapped": swap,
}


def damage(folder: Path, draw: random.Random) -> list[str]:
    """Damages up to three random files, and returns descriptions. Never draws checksums together with other files."""
    done, times = [], draw.choice([1, 1, 1, 2, 3])
    for _ in range(times):
        kind = draw.choice(sorted(DAMAGES))
        file = drawn_file(folder, draw, checksums=times == 1)
        if file.stat().st_size and used_pages(file):
            done.append(f"{kind}: {file.relative_to(folder)}")
            DAMAGES[kind](file, draw)
    return done


# Faults


class Judge:
    """Opens a damaged store, and compares every result with the stored categories."""

    def __init__(self, folder: Path, stored: Mapping[str, Stored]) -> None:
        self.seen = Seen()
        self._stored = stored
        self._backend = EdgeBackend(folder)
        self._store = Store(self._backend, NAMESPACE)

    def judge(self) -> None:
        """Reads, queries, collects garbage and writes."""
        readable = self.read()
        for call in (self._store.info, self._store.calibration, lambda: list(self._store.check_up())):
            self._try(call)
        for encoder, fingerprint in FINGERPRINTS.items():
            query = np.ones((1, fingerprint.dim), np.float32)
            self._try(partial(self._store.query, encoder, "image", query, 9))
        self.collect(readable)
        self.write()

    def read(self) -> bool:
        """Compares the found with the stored categories. Returns whether the catalog can be read."""
        incomplete, categories = self._try(self._store.incomplete), self._try(self._store.categories)
        if incomplete is None or categories is None:
            return categories is not None
        self.seen.told |= bool(incomplete)
        found = {category.name: category.version for category in categories}
        look = self._try(partial(self._store.look, Cursor(), {}))
        if look is not None and {c.name: c.version for c in look.categories if c.write_ids} != found:
            self.seen.faults["unreported"] = "a look finds other categories than are listed"
        for name in sorted((self._stored.keys() | found.keys()) - set(incomplete)):
            if name not in self._stored or found.get(name) != self._stored[name].version:
                self.seen.faults["unreported"] = f"{name!r} has version {found.get(name)}: {self._stored.get(name)}"
                continue
            there = self._try(partial(sources, self._store, name))
            if there is not None and not are_alike(there, self._stored[name].sources):
                self.seen.faults["unreported"] = f"{name!r} has {there}: {self._stored[name]}"
        return True

    def collect(self, readable: bool) -> None:
        """Collects garbage. This must delete no live reference, and nothing if the catalog cannot be read."""
        before = live(self._backend, self._stored)
        deleted = self._try(partial(self._store.gc, grace=0))
        if lost := before - live(self._backend, self._stored):
            self.seen.faults["collected"] = f"{len(lost)} live references"
        if deleted and not readable:
            self.seen.faults["collected"] = f"{deleted} references, and the catalog cannot be read"

    def write(self) -> None:
        """Writes to the store, and closes the store."""
        self._try(partial(self._store.bind, FINGERPRINTS))
        self._try(partial(add, self._store, "new", ["new"], ["new"]))
        for name in list(self._stored)[:2]:
            self._try(partial(add, self._store, name, ["another"]))
            self._try(partial(self._store.remove, name))
        for call in (self._store.flush, self._store.gc, self._store.close):
            self._try(call)

    def _try(self, call: Callable[[], T]) -> T | None:
        """Returns the result of a call, or ``None`` after an error, which is recorded."""
        try:
            return call()
        except ZSVecError:
            self.seen.told = True
        except BaseException as exc:  # noqa: BLE001 - a panic of the engine is a BaseException
            self.seen.faults["other errors"] = repr(exc)
        return None


def judge(folder: Path, stored: Mapping[str, Stored], result: Connection) -> None:
    """Judges a store, sends the `Seen` to `result`, and ends the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # panics of the engine are printed on stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    opened = Judge(folder, stored)
    opened.judge()
    result.send(opened.seen)
    os._exit(0)  # some damaged stores cannot be closed


def are_alike(found: Mapping[str, Sequence[str]], stored: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether references have the same sources for each expert, in any order."""
    return {expert: sorted(found[expert]) for expert in found} == {e: sorted(stored[e]) for e in stored}


def live(backend: EdgeBackend, stored: Mapping[str, Stored]) -> set[tuple[str, str]]:
    """Returns encoder and id of the readable references of the stored categories."""
    write_ids, found = {w for category in stored.values() for w in category.write_ids}, set()
    for encoder in FINGERPRINTS:
        with suppress(ZSVecError):
            for page in backend.scroll(f"{NAMESPACE}__{encoder}", Where()):
                found |= {
                    (encoder, i) for i, p in zip(page.ids, page.payloads, strict=True) if p.get("gen") in write_ids
                }
    return found


# Stores


def in_a_process(work: Callable[..., None], *args: Any) -> tuple[Any, int | None]:
    """Runs `work` in a process. Returns the object sent, if any, and the exit code (``None`` at the time limit)."""
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=work, args=(*args, sender))
    process.start()
    sender.close()
    sent = None
    with suppress(EOFError):
        sent = receiver.recv() if receiver.poll(LIMIT) else None
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return None, None
    return sent, process.exitcode


def attack(seed: int) -> tuple[str, list[str], Seen]:
    """Makes, damages and judges the store of a seed. Returns the state, the damages, and the `Seen`."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    state = draw.choice(STATES)
    with fast_folder() as parent:
        folder = parent / STORE
        stored, code = in_a_process(make, folder, seed, state)
        if code != (0 if state == "closed" else -signal.SIGKILL):
            raise RuntimeError(f"the store of seed {seed} could not be made: {code}")
        damages = [] if state.startswith("killed") else damage(folder, draw)
        seen, code = in_a_process(judge, folder, stored)
    if code is None:
        seen = Seen(faults={"hung": f"more than {LIMIT:.0f} s"})
    elif seen is None:
        seen = Seen(faults={"ended": f"exit code {code}"})
    elif seen.told and not damages:
        seen.faults["false alarm"] = "nothing was damaged"
    return state, damages, seen


def main(
    stores: Annotated[int, typer.Option(help="How many.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first; each has the next.")] = 1,
) -> None:
    """Damage stores and print a table."""
    rows: dict[str, Counter[str]] = {}
    for number in range(seed, seed + stores):
        state, damages, seen = attack(number)
        kind = damages[0].partition(":")[0] if len(damages) == 1 else "several" if damages else "undamaged"
        row = rows.setdefault(f"{state}, {kind}", Counter())
        row.update(["stores", *(["told"] if seen.told else [] if seen.faults else ["unharmed"]), *seen.faults])
        for fault, words in seen.faults.items():
            typer.echo(f"seed {number}, {state}, {'; '.join(damages)}: {fault}: {words}", err=True)
    columns = ("stores", "told", "unharmed", *FAULTS)
    table = Table("", *columns)
    for name, row in sorted(rows.items()):
        table.add_row(name, *(str(row[column]) for column in columns))
    table.add_section()
    table.add_row("all", *(str(sum(row[column] for row in rows.values())) for column in columns))
    Console(width=120).print(table)
    raise typer.Exit(any(row[fault] for row in rows.values() for fault in FAULTS))


if __name__ == "__main__":
    typer.run(main)
