"""Who changes categories, and which writes are one change together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from zsvec.store.catalog.history import Cause

_CAUSE: ContextVar[Cause | None] = ContextVar("cause", default=None)
_BY: ContextVar[str | None] = ContextVar("by", default=None)


class Causes:
    """The causes of the writes of a store. What a block says holds for its thread, or its task, and for all stores.

    Args:
        by: Who changes categories where no block says so.
    """

    def __init__(self, by: str | None) -> None:
        self._by = by

    @property
    def by(self) -> str | None:
        """Who changes categories now."""
        return _BY.get() or self._by

    @contextmanager
    def acting(self, by: str | None) -> Iterator[None]:
        """As `zsvec.store.store.Store.acting`."""
        token = _BY.set(by)
        try:
            yield
        finally:
            _BY.reset(token)

    @contextmanager
    def one_change(self, what: str) -> Iterator[str]:
        """As `zsvec.store.store.Store.one_change`."""
        if (outer := _CAUSE.get()) is not None:
            yield outer.id
            return
        cause = self.cause(what)
        token = _CAUSE.set(cause)
        try:
            yield cause.id
        finally:
            _CAUSE.reset(token)

    def cause(self, what: str) -> Cause:
        """Of a write that does this, in one word: that of the block which it is part of, or one of its own."""
        return _CAUSE.get() or Cause(what=what, by=self.by)
