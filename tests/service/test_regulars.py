"""Clients that ask again at once are expected, and no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zsvec.service.admission import regulars
from zsvec.service.admission.regulars import Regulars


class Asked:
    """Notes who is expected, and for how long; a clock that stands unless it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.expected: dict[Any, float] = {}
        self.now = 100.0
        monkeypatch.setattr(regulars, "monotonic", lambda: self.now)
        classifier: Any = SimpleNamespace(encoders=SimpleNamespace(shared=self))
        self._regulars = Regulars(classifier)

    def expect(self, who: object, seconds: float) -> None:
        self.expected[who] = seconds

    def came(self, who: object) -> None:
        self.expected.pop(who, None)

    def ask(self, client: object, *, after: float, takes: float = 1.0) -> None:
        self.now += after
        with self._regulars.asking(client):
            assert client not in self.expected
            self.now += takes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_who_comes_again_at_once_is_expected_for_twice_as_long(asked: Asked) -> None:
    asked.ask("a", after=0)
    assert asked.expected == {}
    asked.ask("a", after=0.01)
    assert asked.expected == {"a": pytest.approx(0.02)}
    asked.ask("b", after=0)
    assert asked.expected.keys() == {"a"}


def test_who_takes_his_time_is_not_expected(asked: Asked) -> None:
    for after in (0.01, 0.06, 1.0):
        asked.ask("a", after=after)
        assert asked.expected == {}


def test_who_fails_is_not_expected(asked: Asked) -> None:
    asked.ask("a", after=0)
    with pytest.raises(ValueError, match="no store"), asked._regulars.asking("a"):
        raise ValueError("no store")
    assert asked.expected == {}


def test_few_clients_are_remembered(asked: Asked) -> None:
    for client in range(3 * regulars._MOST):
        asked.ask(client, after=0)
    assert len(asked._regulars._answered) == regulars._MOST
