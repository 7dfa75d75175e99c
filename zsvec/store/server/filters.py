"""Filters of the store as Qdrant's, within what a collection allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdrant_client import models

from zsvec.store.base import Where
from zsvec.store.server.limits import Limits


def filter_of(where: Where, limits: Limits, without: Sequence[str] = ()) -> models.Filter:
    """All matching points but those of some ids."""
    must = _conditions(where.match, limits)
    if where.since is not None:
        must.append(models.FieldCondition(key="rev", range=models.Range(gte=where.since)))
    must_not = _conditions(where.exclude, limits)
    must_not += [models.HasIdCondition(has_id=list(ids)) for ids in chunks(without, limits.values)]
    chosen = models.Filter(must=must, must_not=must_not)
    if where.or_match is None:
        return chosen
    return models.Filter(should=[chosen, models.Filter(must=_conditions(where.or_match, limits))])


def _conditions(match: Mapping[str, str | int | Sequence[str]], limits: Limits) -> list[Any]:
    return [_condition(name, value, limits) for name, value in match.items()]


def _condition(name: str, value: str | int | Sequence[str], limits: Limits) -> Any:
    if isinstance(value, str | int):
        return models.FieldCondition(key=name, match=models.MatchValue(value=value))
    if len(value) <= limits.values:
        return models.FieldCondition(key=name, match=models.MatchAny(any=list(value)))
    return models.Filter(should=[_condition(name, some, limits) for some in chunks(value, limits.values)])


def chunks(rows: Any, size: int) -> Iterator[Any]:
    """Parts of at most this size, in order."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
