"""Pickles of numbers, texts, lists, dicts and arrays of whole numbers, read without `pickle`.

A pickle is a program. Even one that may call nothing but numpy's own constructors can make an array whose elements are
addresses out of the file. So this follows only the instructions that plain values consist of, and makes an array by
itself, of its kind, shape and bytes. Protocols 0 to 4 are read, with the texts of Python 2 as Latin-1.
"""

from __future__ import annotations

import pickletools  # nosec B403 # lists the steps of a pickle, and takes none
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError  # nosec B403 # the error alone
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}  # of numpy 1 and 2
_NAMES = {"numpy.ndarray", "numpy.dtype", *_RECONSTRUCT}
_KIND = re.compile(r"[biu][1248]")


@dataclass(frozen=True, slots=True)
class _Name:
    """What a pickle would call."""

    name: str


@dataclass(slots=True)
class _Kind:
    """A dtype: whole numbers or truth values of so many bytes, in this order."""

    kind: str
    order: str = "|"


@dataclass(slots=True)
class _Array:
    value: NDArray[Any] | None = None


def plain_dict(data: bytes) -> dict[Any, Any]:
    """The dict that a pickle holds, with numbers, texts, bytes, flat lists of these, dicts and arrays as values.

    Raises:
        UnpicklingError: It holds something else.
        Exception: Whatever Python raises where the instructions do not fit together.
    """
    machine = _Machine()
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _STEPS:
            raise UnpicklingError(f"it has the instruction {instruction.name}, and only numpy arrays may be in it")
        _STEPS[instruction.name](machine, argument)
    found = _of(dict, machine.pop())
    return {key: item.value if isinstance(item, _Array) else item for key, item in found.items()}


class _Machine:
    """What the instructions of a pickle work on: a stack with marks in it, and what is remembered of it by number."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """What is above the last mark, which goes with it."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def remember(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def recall(self, number: int) -> None:
        self.push(self._memo[number])

    def extend(self, items: list[Any]) -> None:
        # Flat, so that no list is in itself, or branches into more values than anybody could count.
        _of(list, self._stack[-1]).extend(_of((int, str, bytes, bool, type(None)), item) for item in items)

    def update(self, items: list[Any]) -> None:
        keys = [_of((int, str, bytes), key) for key in items[::2]]
        _of(dict, self._stack[-1]).update(zip(keys, items[1::2], strict=True))

    def call(self) -> None:
        called, arguments = self.last(2)
        self.push(_called(called, arguments))

    def build(self) -> None:
        state = self.pop()
        _build(self._stack[-1], state)

    def made(self, make: Callable[[], Any], fill: Callable[[_Machine, list[Any]], None]) -> None:
        items = self.marked()
        self.push(make())
        fill(self, items)


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "LIST": lambda machine, _: machine.made(list, _Machine.extend),
    "DICT": lambda machine, _: machine.made(dict, _Machine.update),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("GLOBAL", "INST"), lambda machine, names: machine.push(_named(names.split(" ", 1)))),
    "STACK_GLOBAL": lambda machine, _: machine.push(_named(machine.last(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
"""Instructions of a pickle, by their names in `pickletools`."""


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    """A value of this very type: nothing else of a pickle is asked anything."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        raise UnpicklingError(f"it has {type(value).__name__} where {' or '.join(k.__name__ for k in kinds)} belongs")
    return value


def _named(parts: list[Any]) -> _Name:
    name = ".".join(_of(str, part) for part in parts)
    if name not in _NAMES:
        raise UnpicklingError(f"it wants to call {name}, and only numpy arrays may be in it")
    return _Name(name)


def _called(called: Any, arguments: Any) -> _Kind | _Array:
    if _of(_Name, called).name in _RECONSTRUCT:
        return _Array()
    kind = _of(str, _of(tuple, arguments)[0])
    if called.name != "numpy.dtype" or not _KIND.fullmatch(kind):
        raise UnpicklingError(
            f"it wants to make a {called.name} of {kind!r}, and only arrays of whole numbers are read"
        )
    return _Kind(kind)


def _build(value: Any, state: Any) -> None:
    _of((_Kind, _Array), value)
    if isinstance(value, _Kind):
        _, value.order, *_ = _of(tuple, state)
        if value.order not in ("<", ">", "|", "="):
            raise UnpicklingError("it has an array whose bytes are in no order")
        return
    _, shape, kind, columns_first, content = _of(tuple, state)
    sizes = [_of(int, size) for size in _of(tuple, shape)]
    raw = content.encode("latin-1") if isinstance(content, str) else _of(bytes, content)
    dtype = np.dtype(f"{_of(_Kind, kind).order}{kind.kind}")
    value.value = np.frombuffer(raw, dtype).reshape(sizes, order="F" if columns_first else "C")
