"""Dynamic batching: leaders, order, failures, interruptions and windows."""

from __future__ import annotations

import dis
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.test_stream import DEADLINE, eventually
from zsvec.encoders import dynamic_batching
from zsvec.encoders.dynamic_batching import DynamicBatcher

ROOT = Path(__file__).parents[2]


class Doubling:
    """Doubles numbers and records batches. A batch with 0 waits for `gate`; -1 fails, and -2 interrupts the leader."""

    def __init__(self, size: int, *, max_wait: float = 0.0) -> None:
        self.max_wait = max_wait
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.overlapped = 0
        self._working = threading.Lock()
        self.shared: DynamicBatcher[int, int] = DynamicBatcher(size)

    def call(self, item: int, kind: str = "") -> int:
        with self.shared.turn(item, kind, max_wait=self.max_wait) as turn:
            if turn.items:
                turn.results = self(turn.items)
        return turn.result

    def __call__(self, batch: Sequence[int]) -> list[int]:
        alone = self._working.acquire(blocking=False)
        self.overlapped += not alone
        try:
            self.batches.append(list(batch))
            if 0 in batch:
                assert self.gate.wait(DEADLINE)
            if -1 in batch:
                raise ValueError(f"-1 in {batch}")
            if -2 in batch:
                raise KeyboardInterrupt
            return [2 * item for item in batch]
        finally:
            if alone:
                self._working.release()

    def waiting(self) -> int:
        """Returns the number of items in the waiting batch."""
        last = self.shared._last
        return len(last._items) if last is not None else 0


def called(doubling: Doubling, item: int, *, kind: str = "", interrupted_at: int = 0) -> Future[int]:
    """Calls in a new thread, interrupted at the n-th point in the module where Python checks for signals, if any."""
    done: Future[int] = Future()

    def call() -> None:
        sys.settrace(Interrupting(interrupted_at) if interrupted_at else None)
        try:
            done.set_result(doubling.call(item, kind))
        except BaseException as exc:  # noqa: BLE001
            done.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return done


class Interrupting:
    """A trace function that raises KeyboardInterrupt where Python checks for signals: in and after calls."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._called: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != dynamic_batching.__file__:
            return None
        frame.f_trace_opcodes = True
        looks = event == "call" or (event == "opcode" and frame in self._called)
        self._called.discard(frame)
        if event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("CALL"):
            self._called.add(frame)
        self._left -= looks
        if looks and self._left == 0:
            raise KeyboardInterrupt
        return self


def queued(doubling: Doubling, items: Sequence[int]) -> list[Future[int]]:
    """Calls with the items in order, each when the one before waits, while a first batch of 0 runs."""
    calls = [called(doubling, 0)]
    assert eventually(lambda: doubling.batches == [[0]])
    size = doubling.shared._size
    for number, item in enumerate(items):
        calls.append(called(doubling, item))
        assert eventually(lambda expected=number % size + 1: doubling.waiting() == expected)  # type: ignore[misc]
    return calls


def test_a_single_caller_runs_at_once_in_the_same_thread() -> None:
    doubling, before = Doubling(8), set(threading.enumerate())
    for item in (3, 1, 2):
        with doubling.shared.turn(item) as turn:
            assert turn.items == [item]
            turn.results = ["here"]  # type: ignore[list-item]
        assert turn.result == "here"  # type: ignore[comparison-overlap]
    assert set(threading.enumerate()) <= before  # threads of other tests may end


def test_items_of_different_kinds_are_in_different_batches() -> None:
    doubling = Doubling(4)
    first = called(doubling, 0)
    assert eventually(lambda: doubling.batches == [[0]])
    calls = [called(doubling, 1, kind="a")]
    assert eventually(lambda: doubling.waiting() == 1)
    calls.append(called(doubling, 2, kind="a"))
    assert eventually(lambda: doubling.waiting() == 2)
    calls.append(called(doubling, 3, kind="b"))
    assert eventually(lambda: doubling.waiting() == 1)
    doubling.gate.set()
    assert [call.result(DEADLINE) for call in (first, *calls)] == [0, 2, 4, 6]
    assert doubling.batches == [[0], [1, 2], [3]]


def test_callers_during_a_batch_share_the_next_batches_in_order_of_arrival() -> None:
    doubling = Doubling(3)
    calls = queued(doubling, [5, 3, 4, 1, 9, 7, 8])
    doubling.gate.set()
    assert [call.result(DEADLINE) for call in calls] == [0, 10, 6, 8, 2, 18, 14, 16]
    assert doubling.batches == [[0], [5, 3, 4], [1, 9, 7], [8]]
    assert doubling.shared._last is None  # nothing is kept for the next call


def test_a_failure_reaches_every_item_of_its_batch_and_no_other() -> None:
    doubling = Doubling(2)
    first, *calls = queued(doubling, [1, 2, -1, 4, 5])
    doubling.gate.set()
    assert first.result(DEADLINE) == 0
    failures = [call.exception(DEADLINE) for call in calls]
    assert [None if failure is None else str(failure) for failure in failures] == [
        *(None, None),
        *("-1 in [-1, 4]", "-1 in [-1, 4]"),
        None,
    ]
    assert doubling.call(6) == 12


def test_an_interrupted_leader_leaves_its_batch_to_the_others() -> None:
    doubling = Doubling(3)
    first, leader, *calls = queued(doubling, [-2, 1, 2])
    doubling.gate.set()
    assert first.result(DEADLINE) == 0
    assert isinstance(leader.exception(DEADLINE), KeyboardInterrupt)
    assert [call.result(DEADLINE) for call in calls] == [2, 4]
    assert sorted(item for batch in doubling.batches[2:] for item in batch) == [1, 2]


@pytest.mark.parametrize("before", [None, [0], [0, 1]], ids=["alone", "leads", "joins"])
def test_an_interruption_anywhere_blocks_no_other_thread(before: list[int] | None) -> None:
    point = 1
    while _interrupted(point, before):
        point += 1
    assert point > 10


def _interrupted(point: int, before: list[int] | None) -> bool:
    doubling = Doubling(4)
    others = [] if before is None else queued(doubling, before[1:])
    call = called(doubling, 5, interrupted_at=point)
    if before is not None:
        assert eventually(lambda: call.done() or doubling.waiting() == len(before))
        others += [called(doubling, item) for item in (2, 3)]
    doubling.gate.set()
    assert not wait([call, *others], DEADLINE).not_done, point
    assert [other.result() for other in others] == ([] if before is None else [2 * item for item in (*before, 2, 3)])
    assert doubling.call(7) == 14
    if (failure := call.exception()) is None:
        assert call.result() == 10
    return isinstance(failure, KeyboardInterrupt)


# The main thread leads a batch that waits for its turn, and another thread joins that batch.
CTRL_C = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
from zsvec.encoders.dynamic_batching import DynamicBatcher

gate, at_work = threading.Event(), threading.Event()

def function(batch):
    if 0 in batch:
        at_work.set()
        assert gate.wait(60)
    return batch

batches = DynamicBatcher(8)
results = []

def shared(item):
    with batches.turn(item) as turn:
        if turn.items:
            turn.results = function(turn.items)
    return turn.result

def until(condition):
    while not condition():
        time.sleep(0.002)

def others():
    until(lambda: batches._last._items == [1])  # of the main thread
    joined = threading.Thread(target=lambda: results.append(shared(2)))
    joined.start()
    until(lambda: batches._last._items == [1, 2])
    os.kill(os.getpid(), signal.SIGINT)
    until(interrupted.is_set)
    gate.set()

interrupted = threading.Event()
first = threading.Thread(target=lambda: results.append(shared(0)))
first.start()
at_work.wait(60)
threading.Thread(target=others).start()
try:
    shared(1)
except KeyboardInterrupt:
    interrupted.set()
first.join()
until(lambda: len(results) == 2)
print(interrupted.is_set(), sorted(results), shared(3))
"""


def test_ctrl_c_while_waiting_for_a_turn_blocks_no_other_thread() -> None:
    done = subprocess.run([sys.executable, "-c", CTRL_C], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.stdout, done.returncode) == ("True [0, 2] 3\n", 0), done.stderr


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 5),
    threads=st.integers(1, 6),
    items=st.lists(st.integers(1, 50) | st.just(-1), max_size=40),
)
def test_each_call_gets_its_own_result_from_one_batch(size: int, threads: int, items: list[int]) -> None:
    doubling = Doubling(size)
    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(doubling.call, item) for item in items]
    batches = doubling.batches
    assert sorted(item for batch in batches for item in batch) == sorted(items)
    assert all(1 <= len(batch) <= min(size, threads) for batch in batches)
    assert doubling.overlapped == 0
    failed = sum(len(batch) for batch in batches if -1 in batch)
    assert sum(call.exception() is not None for call in calls) == failed
    for item, call in zip(items, calls, strict=True):
        assert call.exception() is not None or call.result() == 2 * item


def announced(doubling: Doubling, item: int) -> tuple[threading.Event, Future[int]]:
    """Announces an item in a new thread, which calls with the item when the event is set."""
    made, announcing, done = threading.Event(), threading.Event(), Future[int]()

    def call() -> None:
        try:
            with doubling.shared.coming():
                announcing.set()
                assert made.wait(DEADLINE)
                assert item > 0, "no item"
        except AssertionError as exc:
            done.set_exception(exc)
        else:
            done.set_result(doubling.call(item))

    threading.Thread(target=call, daemon=True).start()
    assert announcing.wait(DEADLINE)
    return made, done


def test_a_batch_waits_for_announced_items() -> None:
    doubling = Doubling(8, max_wait=DEADLINE)
    made, coming = announced(doubling, 2)
    first = called(doubling, 1)
    assert eventually(lambda: doubling.waiting() == 1)
    time.sleep(0.05)
    assert not first.done()
    made.set()
    assert (first.result(DEADLINE), coming.result(DEADLINE)) == (2, 4)
    assert doubling.batches in ([[1, 2]], [[1], [2]])  # the second may come when the first has just given up waiting


def test_a_batch_stops_waiting_for_withdrawn_items() -> None:
    doubling = Doubling(8, max_wait=DEADLINE)
    made, coming = announced(doubling, -1)
    first = called(doubling, 1)
    assert eventually(lambda: doubling.waiting() == 1)
    made.set()
    assert first.result(DEADLINE / 2) == 2
    with pytest.raises(AssertionError, match="no item"):
        coming.result(DEADLINE)
    assert not doubling.shared._coming


@pytest.mark.parametrize(("size", "max_wait"), [(8, 0.05), (1, DEADLINE)], ids=["window is over", "batch is full"])
def test_a_batch_stops_waiting(size: int, max_wait: float) -> None:
    doubling = Doubling(size, max_wait=max_wait)
    made, coming = announced(doubling, 2)
    begun = time.monotonic()
    assert called(doubling, 1).result(DEADLINE / 2) == 2
    assert size == 1 or time.monotonic() - begun >= max_wait
    made.set()
    assert coming.result(DEADLINE) == 4


def test_a_single_thread_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    doubling = Doubling(8, max_wait=DEADLINE)
    monkeypatch.setattr(doubling.shared._arrival, "wait", lambda left: pytest.fail(f"waited for {left} s"))
    assert [doubling.call(item) for item in (1, 2, 3)] == [2, 4, 6]


def test_a_batch_waits_for_as_many_items_as_the_latest_had() -> None:
    doubling = Doubling(8, max_wait=DEADLINE)
    first, second = queued(doubling, [1])
    doubling.gate.set()
    assert first.result(DEADLINE) == 0
    time.sleep(0.05)
    assert not second.done()
    again = called(doubling, 2)
    assert (second.result(DEADLINE / 2), again.result(DEADLINE / 2)) == (2, 4)
    assert doubling.batches == [[0], [1, 2]]


def test_a_caller_that_stays_away_is_awaited_once() -> None:
    doubling = Doubling(8, max_wait=0.05)
    doubling.shared._lately = 2
    begun = time.monotonic()
    assert doubling.call(1) == 2
    assert time.monotonic() - begun >= 0.05
    doubling.max_wait = DEADLINE
    assert doubling.call(2) == 4
