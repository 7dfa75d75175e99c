"""Who changes categories, which writes are one change together, and what follows a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from zsvec.errors import StoreUnavailableError
from zsvec.store.catalog.history import Cause


@dataclass(slots=True)
class _Block:
    """A block of writes that are one change, and what follows it: once, however many of its parts ask for it."""

    cause: Cause
    followed_by: dict[Callable[[], None], None] = field(default_factory=dict)

    def end(self) -> None:
        for follow in self.followed_by:
            follow()


_BLOCK: ContextVar[_Block | None] = ContextVar("block", default=None)
_BY: ContextVar[str | None] = ContextVar("by", default=None)


class Causes:
    """The causes of the writes of a store. What a block says holds for its thread, or its task, and for all stores.

    Args:
        by: Who changes categories where no block says so.

    Attributes:
        follow: Called at the end of each change of this store.
    """

    def __init__(self, by: str | None) -> None:
        self._by = by
        self.follow: Callable[[], None] = lambda: None

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
        if (outer := _BLOCK.get()) is not None:
            outer.followed_by[self.follow] = None
            yield outer.cause.id
            return
        block = _Block(self.cause(what), {self.follow: None})
        token = _BLOCK.set(block)
        try:
            yield block.cause.id
        except StoreUnavailableError:
            raise  # to ask it again would wait for the deadline once more
        except Exception:
            block.end()  # what was committed before the error stays
            raise
        else:
            block.end()
        finally:
            _BLOCK.reset(token)

    def cause(self, what: str) -> Cause:
        """Of a write that does this, in one word: that of the block which it is part of, or one of its own."""
        block = _BLOCK.get()
        return block.cause if block else Cause(what=what, by=self.by)
