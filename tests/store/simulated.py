"""A server in simulation: several processes with different clocks take turns at calls, and anything may go wrong.

Each process is a thread that waits for a turn before every call of the backend, so histories are as random
as the seed. Of the store under test nothing is simulated.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zsvec.errors import StoreUnavailableError
from zsvec.store.backends.base import EXACT, Dims, Hit, InProcess, Memory, Points, Put, Where
from zsvec.store.backends.memory import MemoryBackend
from zsvec.types import SearchParams

HOURS = 3600.0


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Faults:
    """Rates of faults, for each call of a backend.

    Attributes:
        pause: The process sleeps, up to two hours.
        kill: The process ends.
        lost: A write is made, and the answer is lost.
        late: A write is given up, and lands later.
        dropped: A read leaves out a record that was made a moment ago, as a quorum of differing replicas does.
        replaced: Or one that was replaced a moment ago.
    """

    pause: float = 0.01
    kill: float = 0.0
    lost: float = 0.01
    late: float = 0.01
    dropped: float = 0.05
    replaced: bool = False


class World:
    """Time, collections of the server, and turns of processes.

    Args:
        seed: Of the history.
        faults: Rates of faults.
    """

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.server = MemoryBackend()
        self.now = 1.8e9  # seconds since 1970
        self.steps = 0
        self.processes: list[Process] = []
        self.late: list[tuple[int, Callable[[], None]]] = []
        self.fresh: dict[str, int] = {}  # step in which an unseen record was made
        self.removals: dict[str, int] = {}  # rev of the last removal of a category

    def start(self, name: str, work: Callable[[Process], None], skew: float = 0.0) -> Process:
        """Begin a process."""
        process = Process(self, name, work, skew)
        self.processes.append(process)
        return process

    def live(
        self, kinds: Sequence[Callable[[Process], None]], skews: Sequence[float], steps: int, over: Callable[[], bool]
    ) -> None:
        """Let processes of these kinds take turns, restarted when they end, and finish.

        Args:
            kinds: Work of each.
            skews: By how many seconds the clock of each is wrong.
            steps: Turns in all.
            over: Whether to stop before.
        """
        slots = [
            self.start(f"{work.__name__} {i}", work, skew)
            for i, (work, skew) in enumerate(zip(kinds, skews, strict=True))
        ]
        for round_ in range(steps // 100):
            self.run(100)
            if over():
                break
            for i, process in enumerate(slots):
                if not process.alive:
                    if process.error:
                        raise process.error
                    slots[i] = self.start(f"{kinds[i].__name__} {i}.{round_}", kinds[i], skews[i])
        self.finish()
        for process in self.processes:
            if process.error:
                raise process.error

    def run(self, steps: int) -> None:
        """Let the processes take turns."""
        for _ in range(steps):
            self.steps += 1
            self.now += self.random.uniform(0.0001, 0.04)
            for landing in [landing for landing in self.late if landing[0] <= self.steps]:
                self.late.remove(landing)
                landing[1]()
            awake = [p for p in self.processes if p.alive and p.asleep_until <= self.steps]
            if awake:
                self.random.choice(awake).step()

    def finish(self) -> None:
        """Kill all processes."""
        for process in self.processes:
            process.kill()
        for _, land in self.late:
            land()
        self.late = []


class Process:
    """A thread that waits for a turn before each call of the backend.

    Attributes:
        skew: Seconds by which the clock is ahead.
        asleep_until: First step of the next turn.
        error: Error that ended the process.
    """

    def __init__(self, world: World, name: str, work: Callable[[Process], None], skew: float) -> None:
        self.world, self.name, self.skew = world, name, skew
        self.asleep_until = 0
        self.alive = True
        self.error: BaseException | None = None
        self._killed = False
        self._go, self._done = threading.Lock(), threading.Lock()  # quicker than any other way to hand over
        self._go.acquire()
        self._done.acquire()
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"simulated {name}", daemon=True)
        _CLOCKS[self._thread.name] = self
        self._thread.start()

    def step(self) -> None:
        self._go.release()
        self._done.acquire()

    def kill(self) -> None:
        if self.alive:
            self._killed = True
            self.step()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def wait(self) -> None:
        self._done.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def _run(self, work: Callable[[Process], None]) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                work(self)
        except Killed:
            pass
        except BaseException as exc:  # noqa: BLE001 - raised by the world
            self.error = exc
        self.alive = False
        self._done.release()


_CLOCKS: dict[str, Process] = {}


@pytest.fixture
def simulated_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives simulated processes a time, in which they sleep by giving up turns."""
    real = time.time_ns, time.monotonic, time.sleep

    def time_ns() -> int:
        process = _CLOCKS.get(threading.current_thread().name)
        return int((process.world.now + process.skew) * 1e9) if process else real[0]()

    def monotonic() -> float:
        process = _CLOCKS.get(threading.current_thread().name)
        return process.world.now if process else real[1]()

    def sleep(seconds: float) -> None:
        process = _CLOCKS.get(threading.current_thread().name)
        if process:
            process.asleep_until = process.world.steps + min(int(seconds / 0.02), 50)
            process.wait()
        else:
            real[2](seconds)

    monkeypatch.setattr(time, "time_ns", time_ns)
    monkeypatch.setattr(time, "monotonic", monotonic)
    monkeypatch.setattr(time, "sleep", sleep)
    yield
    _CLOCKS.clear()


class SimulatedBackend(InProcess):
    """A process's connection to the server of a world.

    Args:
        world: The world.
        process: The client; ``None`` for a backend without faults.
    """

    exclusive = False
    location = "simulated"
    place = ""

    def __init__(self, world: World, process: Process | None = None) -> None:
        super().__init__(self.location)
        self.world = world
        self.process = process

    def _turn(self) -> None:
        if self.process is None:
            return
        self.process.wait()
        chance, faults = self.world.random.random(), self.world.faults
        if chance < faults.kill:
            raise Killed
        if chance < faults.kill + faults.pause:
            self.process.asleep_until = self.world.steps + self.world.random.randint(20, 400)
            if self.world.random.random() < 0.2:
                self.world.now += self.world.random.uniform(0, 2 * HOURS)
            self.process.wait()

    def exists(self, collection: str) -> bool:
        self._turn()
        return self.world.server.exists(collection)

    def create(
        self,
        collection: str,
        dim: Dims,
        indexes: Mapping[str, str],
        *,
        ordered: bool = False,
        memory: Memory = "cached",
    ) -> None:
        self._turn()
        self.world.server.create(collection, dim, indexes)

    def remove(self, collection: str) -> None:
        raise NotImplementedError

    def rewrite(self, collection: str) -> None:
        """Do nothing: there are no files."""

    def upsert(self, collection: str, points: Points) -> None:
        self._write(lambda: self.world.server.upsert(collection, points))

    def set_payload(self, collection: str, where: Where, fields: Mapping[str, Any], key: str = "") -> None:
        self._write(lambda: self.world.server.set_payload(collection, where, fields, key))

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        for put in self.world.random.sample(list(puts), len(puts)):  # each lands alone
            self._write(lambda put=put: self._put(collection, put))  # type: ignore[misc]

    def _put(self, collection: str, put: Put) -> None:
        if self.world.faults.replaced or not self.world.server.retrieve(collection, [put.id]):
            self.world.fresh[put.id] = self.world.steps
        self.world.server.put(collection, [put])
        if put.payload.get("removed") and self.world.server.retrieve(collection, [put.id])[put.id] == put.payload:
            self.world.removals[put.payload["category"]] = put.payload["rev"]

    def delete(self, collection: str, where: Where) -> None:
        self._write(lambda: self.world.server.delete(collection, where))

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        self._write(lambda: self.world.server.drop(collection, ids))

    def _write(self, write: Callable[[], None]) -> None:
        self._turn()
        chance, faults = self.world.random.random() if self.process else 1.0, self.world.faults
        if chance < faults.late:
            self.world.late.append((self.world.steps + self.world.random.randint(1, 300), write))
            raise StoreUnavailableError("simulated: given up, and may land")
        write()
        if chance < faults.late + faults.lost:
            raise StoreUnavailableError("simulated: the answer is lost")

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        self._turn()
        found = self.world.server.retrieve(collection, ids)
        return {place: payload for place, payload in found.items() if self._shown(place)}

    def scroll(
        self,
        collection: str,
        where: Where,
        *,
        vectors: bool = False,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Points]:
        assert limit is None
        self._turn()
        [points] = list(self.world.server.scroll(collection, where, vectors=vectors, fields=fields)) or [_NOTHING]
        middle = len(points.ids) // 2
        for part in (slice(0, middle), slice(middle, None)):
            self._turn()  # changes meanwhile may be seen or not; a read page does not change
            there = {place for page in self.world.server.scroll(collection, where, fields=()) for place in page.ids}
            kept = [
                i for i, place in enumerate(points.ids[part], part.start or 0) if place in there and self._shown(place)
            ]
            now = self.world.server.retrieve(collection, [points.ids[i] for i in kept]) if fields is None else {}
            yield Points(
                [points.ids[i] for i in kept],
                points.vectors[kept] if len(kept) else points.vectors[:0],
                [now.get(points.ids[i], points.payloads[i]) for i in kept],
            )

    def _shown(self, place: str) -> bool:
        """A record that a reader has seen is on all replicas."""
        new = self.world.steps - self.world.fresh.get(place, -1000) < 4
        if self.process and new and self.world.random.random() < self.world.faults.dropped:
            return False
        self.world.fresh.pop(place, None)
        return True

    def newest(self, collection: str, where: Where) -> int:
        self._turn()
        return self.world.server.newest(collection, where)

    def query(
        self,
        collection: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
        params: SearchParams = EXACT,
    ) -> list[list[Hit]]:
        self._turn()
        return self.world.server.query(collection, vectors, where, limit, fields, params)

    def count(self, collection: str, where: Where) -> int:
        self._turn()
        return self.world.server.count(collection, where)

    def versions(self) -> Mapping[str, str]:
        return {}

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


_NOTHING = Points([], np.empty((0, 0), dtype=np.float32), [])
