"""What a collection of a server accepts at once: sizes of requests, reduced to what its strict mode allows."""

from __future__ import annotations

from dataclasses import dataclass

from qdrant_client import models


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes of requests to one collection.

    Attributes:
        page: Points that one request reads.
        points: Points that one request writes; 500 are below the 32 MB that REST accepts, up to 2,000 dimensions.
        queries: Nearest-neighbour queries of one request.
        values: Values of one condition.
        conditions: Conditions of one filter; ``None``: as many as one likes.
        exact: Whether points may be counted, and vectors compared, without an index.
    """

    page: int = 1000
    points: int = 500
    queries: int = 64
    values: int = 256
    conditions: int | None = None
    exact: bool = True

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
