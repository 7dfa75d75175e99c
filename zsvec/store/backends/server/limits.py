"""Limits on the sizes of requests and answers, including the limits of the strict mode of a collection.

A request that grows with user input is split into requests of at most `BYTES`. An answer with points may have at most
`ANSWER_BYTES`. A larger page is read again in smaller parts (`Limits.halved`).
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
"""Maximum size of a request as JSON, in bytes: half the default limit of REST. gRPC allows more and needs less."""

ANSWER_BYTES = 40_000_000
"""Maximum size of an answer with points, in bytes.

By default, REST accepts points of at most 32 MiB. A page of 1,000 vectors of 4,096 dimensions takes 17 MB by gRPC. By
REST, such a page takes up to 100 MB and is read in parts.
"""

SMALL_ANSWER_BYTES = 4_000_000
"""Maximum size of an answer without points, such as a server version or a collection configuration, in bytes."""

ID = 40
"""Size of an id in a JSON list, in bytes."""

_NUMBER = 25  # maximum JSON bytes of a vector component


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on requests to one collection.

    Attributes:
        page: Maximum number of points to read in one request.
        points: Maximum number of points to write in one request.
        queries: Maximum number of nearest-neighbour queries in one request.
        values: Maximum number of values in one condition.
        conditions: Maximum number of conditions in one filter; ``None`` means unlimited.
        exact: Whether exact counts and exact searches, which use no index, are allowed.
        records: Maximum number of points to read by id in one request.
    """

    page: int = 1000
    points: int = 500
    queries: int = 64
    values: int = 256
    conditions: int | None = None
    exact: bool = True
    records: int = 10_000

    def halved(self, times: int = 1) -> Limits:
        """Returns limits with `page`, `queries` and `records` halved `times` times, but at least 1."""
        parts = 2**times
        page, queries, records = (max(1, size // parts) for size in (self.page, self.queries, self.records))
        return replace(self, page=page, queries=queries, records=records)

    @classmethod
    def of(cls, strict: models.StrictModeConfigOutput | None) -> Limits:
        """Returns the limits of a collection with the given strict mode."""
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
    """Returns the maximum size of a REST answer in bytes, from the path of the request."""
    return ANSWER_BYTES if path.endswith(("/points", "/points/scroll", "/points/query/batch")) else SMALL_ANSWER_BYTES


def cut(items: Any, most: float = math.inf, size: Callable[[Any], int] = lambda _: 0) -> Iterator[Any]:
    """Yields consecutive slices of a sequence or matrix, each of at most `most` items and `BYTES` bytes.

    A single item that exceeds `BYTES` is a slice by itself.
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
    """Returns an upper bound on the JSON size of a point to write or a vector to search, in bytes.

    Raises:
        StoreError: The size exceeds `ANSWER_BYTES`, so that no answer could contain the point.
    """
    text = json.dumps(payload, ensure_ascii=False).encode(errors="surrogatepass")
    size = 3 * ID + _NUMBER * dim + len(text)
    if size > ANSWER_BYTES:
        raise StoreError(f"a point must have at most {ANSWER_BYTES:,} bytes, got {size:,}. Shorten its texts.")
    return size
