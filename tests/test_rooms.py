"""The counter of rooms, on a house of four rooms that is made here; then the house itself."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

from tests.support import isolated  # noqa: F401
from zsvec.method.predict.fusion import STRATEGIES

SCRIPT = Path(__file__).parents[1] / "scripts" / "rooms.py"
HOUSE = {
    "__init__": "",
    "hall": """
        from contextlib import nullcontext
        from functools import partial
        from threading import Thread
        from house import attic, errors, kitchen
        from house.cellar import wine

        def walk():
            kitchen.cook()
            kitchen.cook()
            for _ in range(2):
                wine.fetch()
            return [attic.Box(n).size for n in range(2)]

        def back_and_forth():
            kitchen.cook()
            attic.climb()
            kitchen.cook()

        def complain():
            errors.shout()

        def through_others():
            list(map(partial(max, key=attic.weigh), [[1, 2]]))

        def in_a_thread():
            thread = Thread(target=attic.climb)
            thread.start()
            thread.join()

        def fail():
            kitchen.burn()
    """,
    "kitchen": """
        def cook():
            return [taste() for _ in range(3)]

        def taste():
            return "good"

        def burn():
            raise ValueError("burnt")
    """,
    "cellar/__init__": "",
    "cellar/wine": """
        from house.cellar import light

        def fetch():
            light.on()
    """,
    "cellar/light": "def on(): pass",
    "attic": """
        from dataclasses import dataclass

        @dataclass
        class Box:
            n: int

            @property
            def size(self):
                return self.n

        def climb(): pass

        def weigh(n): return n
    """,
    "errors": """
        from house import kitchen

        def shout():
            kitchen.cook()
    """,
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rooms", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name, source in HOUSE.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = source.splitlines()
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("house.hall")
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]


def rooms(script: ModuleType, action: Callable[[], object]) -> list[str]:
    calls, _ = script.moves("house", action, ("house.errors",))
    found: list[str] = script.entered(calls)
    return found


def test_rooms_in_order_and_repetitions_folded(script: ModuleType, hall: ModuleType) -> None:
    """A property is a call; the constructor of a dataclass is not."""
    assert rooms(script, hall.walk) == ["hall", "kitchen", "cellar", "attic"]
    assert script.entered_again(rooms(script, hall.walk)) == []
    assert rooms(script, lambda: hall.attic.Box(1)) == []


def test_a_room_that_is_entered_again(script: ModuleType, hall: ModuleType) -> None:
    found = rooms(script, hall.back_and_forth)
    assert found == ["hall", "kitchen", "attic", "kitchen"]
    assert script.entered_again(found) == ["kitchen"]


def test_what_is_looked_through(script: ModuleType, hall: ModuleType) -> None:
    assert rooms(script, hall.complain) == ["hall", "kitchen"]
    assert rooms(script, hall.through_others) == ["hall", "attic"]


def test_threads_are_observed(script: ModuleType, hall: ModuleType) -> None:
    assert rooms(script, hall.in_a_thread) == ["hall", "attic"]


def test_returns_by_module(script: ModuleType, hall: ModuleType) -> None:
    _, returns = script.moves("house", hall.walk)
    assert [move.origin for move in returns if move.target == "house.hall"] == [
        *["house.kitchen"] * 2,
        *["house.cellar.wine"] * 2,
        *["house.attic"] * 2,
    ]
    assert [move.origin for move in returns if move.target == "house.cellar.wine"] == ["house.cellar.light"] * 2
    assert returns[-1] == ("house.hall", None)


def test_an_error_passes_and_nothing_is_observed_afterwards(script: ModuleType, hall: ModuleType) -> None:
    before = sys.getprofile()
    with pytest.raises(ValueError, match="burnt"):
        script.moves("house", hall.fail)
    assert sys.getprofile() is before


# ---- the house


def test_an_image_enters_each_room_once_and_scoring_is_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(as_json=True)  # a missed goal raises
    measured = json.loads(capsys.readouterr().out)
    assert measured["passed"] is True
    rooms = measured["image"]["rooms"]
    assert rooms[0] == "classifier"
    assert {"inputs", "encoders", "search", "store", "method"} <= set(rooms)
    assert len(set(rooms)) == len(rooms) <= 8
    assert measured["returns_into_scoring"].keys() == STRATEGIES.keys()
    assert all(0 < returns <= 8 for returns in measured["returns_into_scoring"].values())


def test_a_missed_goal_is_said(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MOST_ROOMS", 2)
    with pytest.raises(typer.Exit) as stopped:
        script.main()
    assert stopped.value.exit_code == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "at most 2" in shown
