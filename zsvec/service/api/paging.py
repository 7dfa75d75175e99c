"""Pages of lists: at most `limit` items, and an opaque cursor for the next page.

A cursor has the position of the last item of a page in the order of the list. So other items may be added and removed
between two pages, and no remaining item is skipped or repeated. Lists without such an order are kept in memory from the
first page on (`Lists`).
"""

from __future__ import annotations

import re
import secrets
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from zsvec.service.problems import Problem

Item = TypeVar("Item")

MAX_LIMIT = 1000
_DEFAULT_LIMIT = 100
_MAX_CURSOR = 8000  # characters: a name or a source of 500 characters, as base64
_CHECKSUM_BYTES = 8
_SEPARATOR = "\0"
_MAX_LISTS = 8


@dataclass(frozen=True, slots=True)
class Paging:
    """A requested page.

    Attributes:
        limit: Maximum number of items.
        cursor: Cursor of the previous page; ``None`` for the first page.
    """

    limit: int
    cursor: str | None

    def page(
        self, items: Sequence[Item], key: Callable[[Item], Sequence[str]], *named: str
    ) -> tuple[Sequence[Item], str | None]:
        """Returns the items of a page, and the cursor of the next page, or ``None`` at the end.

        Args:
            items: All items, in ascending order of `key`.
            key: Returns the position of an item in the order.
            named: Name of the list and of each filter. A cursor is valid for the same list only.
        """
        if self.cursor is not None:
            last = _position(self.cursor, named)
            items = [item for item in items if list(key(item)) > last]
        some = items[: self.limit]
        return some, _cursor(key(some[-1]), named) if len(items) > self.limit else None


class Lists:
    """Lists that are kept between requests for their pages. Thread-safe. Only the last few lists are kept.

    Lists may name images, so all lists are dropped when an image was erased.

    Args:
        erasures: Returns the ids of the changes that have erased images.
    """

    def __init__(self, erasures: Callable[[], Set[str]]) -> None:
        self._erasures = erasures
        self._lists: OrderedDict[str, tuple[Set[str], Sequence[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, paging: Paging, make: Callable[[], Sequence[Any]], name: str) -> tuple[Sequence[Any], str | None]:
        """Returns items and the next cursor as `Paging.page`. `make` returns the list, and is called for page one."""
        token, start, erased = secrets.token_hex(16), 0, self._erasures()
        if paging.cursor is None:
            found = make()
        else:
            token, *numbers = _position(paging.cursor, (name,))
            if not re.fullmatch("[0-9]{1,9}", "".join(numbers)):
                raise _forged()
            start, found = int(numbers[0]), self._find(token, erased)
        end = start + paging.limit
        if end >= len(found):
            return found[start:], None
        with self._lock:
            self._lists.setdefault(token, (erased, found))
            while len(self._lists) > _MAX_LISTS:
                self._lists.popitem(last=False)
        return found[start:end], _cursor((token, str(end)), (name,))

    def _find(self, token: str, erased: Set[str]) -> Sequence[Any]:
        with self._lock:
            if any(erased - before for before, _ in self._lists.values()):
                self._lists.clear()
            if token not in self._lists:
                raise Problem(410, "the service no longer has this list: ask for the first page, without `cursor`")
            self._lists.move_to_end(token)
            return self._lists[token][1]


def _cursor(position: Sequence[str], named: Sequence[str]) -> str:
    content = _SEPARATOR.join(part.replace(_SEPARATOR, "") for part in position).encode(errors="surrogatepass")
    return urlsafe_b64encode(_checksum(content, named) + content).decode().rstrip("=")


def _position(cursor: str, named: Sequence[str]) -> list[str]:
    """Returns the position in a cursor; raises a Problem for a cursor that the service has not made for this list."""
    try:
        given = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        content = given[_CHECKSUM_BYTES:]
        if secrets.compare_digest(given[:_CHECKSUM_BYTES], _checksum(content, named)):
            return content.decode(errors="surrogatepass").split(_SEPARATOR)
    except ValueError:
        pass
    raise _forged()


def _forged() -> Problem:
    return Problem(422, "cursor must be the `next` of the previous page of this list", error="invalid_cursor")


def _checksum(content: bytes, named: Sequence[str]) -> bytes:
    key = blake2b(_SEPARATOR.join(named).encode(errors="surrogatepass"), digest_size=32).digest()
    return blake2b(content, digest_size=_CHECKSUM_BYTES, key=key).digest()


async def _paging_of(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items.")] = _DEFAULT_LIMIT,
    cursor: Annotated[
        str | None,
        Query(max_length=_MAX_CURSOR, pattern="^[A-Za-z0-9_-]+$", description="`next` of the previous page."),
    ] = None,
) -> Paging:
    return Paging(limit, cursor)


Page = Annotated[Paging, Depends(_paging_of)]
