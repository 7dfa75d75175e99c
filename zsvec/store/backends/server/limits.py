"""Sizes of requests to a collection of a server, within its strict mode.

Everything that grows with user input is cut into requests of at most `BYTES`. An answer has at most `ANSWER_BYTES`: a
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
"""Largest request, as JSON: half of the default limit of REST. gRPC allows more, and needs less."""

ANSWER_BYTES = 40_000_000
"""Largest answer with points.

REST takes points of at most 32 MiB by default. A page of 1,000 vectors of 4,096 numbers takes 17 MB by gRPC, and up to
100 MB by REST, read in parts.
"""

SMALL_ANSWER_BYTES = 4_000_000
"""Largest answer without points, such as the version of a server or the configuration of a collection."""

ID = 40
"""Bytes of an id in a list of ids."""

_NUMBER = 25  # bytes of a number of a vector, at most


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes of requests to one collection.

    Attributes:
        page: Points to read in one request.
        points: Points to write in one request.
        queries: Nearest-neighbour queries in one request.
        values: Values in one condition.
        conditions: Conditions in one filter; ``None``: unlimited.
        exact: Whether points may be counted, and vectors compared, without an index.
        records: Points to read by id in one request.
    """

    page: int = 1000
    points: int = 500
    queries: int = 64
    values: int = 256
    conditions: int | None = None
    exact: bool = True
    records: int = 10_000

    def halved(self, times: int = 1) -> Limits:
        """Returns limits by which a request reads half as much; `self` if a request reads one point already."""
        parts = 2**times
        page, queries, records = (max(1, size // parts) for size in (self.page, self.queries, self.records))
        return replace(self, page=page, queries=queries, records=records)

    @classmethod
    def of(cls, strict: models.StrictModeConfigOutput | None) -> Limits:
        """Returns the limits of a collection with this strict mode."""
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
    """Returns the largest size in bytes of an answer of REST, by the path of the request."""
    return ANSWER_BYTES if path.endswith(("/points", "/points/scroll", "/points/query/batch")) else SMALL_ANSWER_BYTES


def cut(items: Any, most: float = math.inf, size: Callable[[Any], int] = lambda _: 0) -> Iterator[Any]:
    """Yields parts of a sequence, or of an array of rows, of at most `most` items and `BYTES`; a larger item alone."""
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
    """Returns the largest size in bytes of a written point or a compared vector, as JSON.

    Raises:
        StoreError: The point is larger than any answer.
    """
    text = json.dumps(payload, ensure_ascii=False).encode(errors="surrogatepass")
    size = 3 * ID + _NUMBER * dim + len(text)
    if size > ANSWER_BYTES:
        raise StoreError(f"a point must have at most {ANSWER_BYTES:,} bytes, got {size:,}. Shorten its texts.")
    return size
