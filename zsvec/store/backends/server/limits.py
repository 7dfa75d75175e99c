"""What a collection of a server accepts at once: sizes of requests, reduced to what its strict mode allows.

Whatever grows with what users give is cut into requests of at most `BYTES`. An answer has at most `ANSWER_BYTES`: a
page that would have more is read in parts (`Limits.halved`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qdrant_client import models

from zsvec.errors import StoreError

BYTES = 16_000_000
"""Of one request, as JSON: half of what REST takes by default. gRPC takes more, and needs less."""

ANSWER_BYTES = 40_000_000
"""Of one answer with points.

REST takes points of at most 32 MiB by default. A page of 1,000 vectors of 4,096 numbers takes 17 MB by gRPC, and up to
100 MB by REST: then it is read in parts.
"""

SMALL_ANSWER_BYTES = 4_000_000
"""Of one answer without points, such as the version of a server or the configuration of a collection."""

ID = 40
"""Bytes of the id of a point in a list of them."""

_NUMBER = 25  # bytes of a number of a vector, at most


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes of requests to one collection.

    Attributes:
        page: Points that one request reads.
        points: Points that one request writes.
        queries: Nearest-neighbour queries of one request.
        values: Values of one condition.
        conditions: Conditions of one filter; ``None``: as many as one likes.
        exact: Whether points may be counted, and vectors compared, without an index.
        records: Points that one request reads by their ids.
    """

    page: int = 1000
    points: int = 500
    queries: int = 64
    values: int = 256
    conditions: int | None = None
    exact: bool = True
    records: int = 10_000

    def halved(self, times: int = 1) -> Limits:
        """Returns sizes of which a request reads half as much; `self` where a request reads one point already."""
        parts = 2**times
        page, queries, records = (max(1, size // parts) for size in (self.page, self.queries, self.records))
        return replace(self, page=page, queries=queries, records=records)

    @classmethod
    def of(cls, strict: models.StrictModeConfigOutput | None) -> Limits:
        """What a collection allows.

        Args:
            strict: Its strict mode, if it has one.
        """
        usual = cls()
        if strict is None or not strict.enabled:
            return usual
        return cls(
            page=min(usual.page, strict.max_query_limit or usual.page),
            points=min(usual.points, strict.upsert_max_batchsize or usual.points),
            queries=min(usual.queries, strict.search_max_batchsize or usual.queries),
            values=min(usual.values, strict.condition_max_size or usual.values),
            conditions=strict.filter_max_conditions,
            exact=strict.search_allow_exact is not False,
        )


def answer_bytes(path: str) -> int:
    """Returns how many bytes an answer of REST may have, by the path of its request."""
    return ANSWER_BYTES if path.endswith(("/points", "/points/scroll", "/points/query/batch")) else SMALL_ANSWER_BYTES


def cut(items: Any, most: float = math.inf, size: Callable[[Any], int] = lambda _: 0) -> Iterator[Any]:
    """Parts in order, each of at most so many items and `BYTES`; an item of more is a part of its own.

    Args:
        items: A sequence, or an array of rows.
        most: Items of a part.
        size: Bytes of an item, at most.
    """
    first = total = 0
    for number, item in enumerate(items):
        added = size(item)
        if number > first and (number - first >= most or total + added > BYTES):
            yield items[first:number]
            first, total = number, 0
        total += added
    if len(items):
        yield items[first:]


def size_of_point(dim: int, payload: Mapping[str, Any] | None = None) -> int:
    """Bytes of a point that is written, or of a vector that is compared, as JSON, at most.

    Raises:
        StoreError: No answer could have the point.
    """
    text = json.dumps(payload, ensure_ascii=False).encode(errors="surrogatepass")
    size = 3 * ID + _NUMBER * dim + len(text)
    if size > ANSWER_BYTES:
        raise StoreError(f"a point must have at most {ANSWER_BYTES:,} bytes, got {size:,}. Shorten its texts.")
    return size
