"""Filters of the store as Qdrant's, within what a collection allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qdrant_client import models

from zsvec.store.backends.base import Where
from zsvec.store.backends.server.limits import Limits, cut

_CHARACTER, _AROUND = 6, 3  # bytes of a character of a value, at most, and of what is around the value


def filter_of(where: Where, limits: Limits, without: Sequence[str] = ()) -> models.Filter:
    """All matching points but those of some ids."""
    must = _conditions(where.match, limits)
    if where.ranged:
        must.append(models.FieldCondition(key="rev", range=models.Range(gte=where.since, lte=where.until)))
    must_not: list[Any] = _conditions(where.without, limits)
    must_not += [models.HasIdCondition(has_id=list(ids)) for ids in cut(without, limits.values)]
    chosen = models.Filter(must=must, must_not=must_not)
    if where.or_match is None:
        return chosen
    return models.Filter(should=[chosen, models.Filter(must=_conditions(where.or_match, limits))])


def parts(where: Where, limits: Limits, without: int = 0) -> list[Where]:
    """Filters of no more conditions and bytes than are allowed, which match together what one does, each point once.

    Args:
        where: The filter.
        limits: What is allowed. Where less than one condition is left for the longest list of values, it gets one.
        without: How many ids `filter_of` will leave out.
    """
    lists = {name: value for name, value in where.match.items() if not isinstance(value, str | int)}
    if not lists or where.or_match is not None:
        return [where]
    name, longest = max(lists.items(), key=lambda item: len(item[1]))
    lengths = [len(lists.get(other, "1")) for other in where.match if other != name]
    others = sum(-(-length // limits.values) for length in (*lengths, without)) + where.ranged
    most = math.inf if limits.conditions is None else limits.values * max(1, limits.conditions - others)
    some = cut(longest, most, lambda value: _CHARACTER * len(value) + _AROUND)
    return [replace(where, match={**where.match, name: values}) for values in some] or [where]


def _conditions(match: Mapping[str, str | int | Sequence[str]], limits: Limits) -> list[Any]:
    return [_condition(name, value, limits) for name, value in match.items()]


def _condition(name: str, value: str | int | Sequence[str], limits: Limits) -> Any:
    if isinstance(value, str | int):
        return models.FieldCondition(key=name, match=models.MatchValue(value=value))
    if len(value) <= limits.values:
        return models.FieldCondition(key=name, match=models.MatchAny(any=list(value)))
    return models.Filter(should=[_condition(name, some, limits) for some in cut(value, limits.values)])
