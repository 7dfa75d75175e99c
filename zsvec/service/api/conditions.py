"""Conditional requests (RFC 9110, section 13). The ``ETag`` of a category is its version."""

from __future__ import annotations

import re
from collections.abc import Container
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from zsvec import Classifier
from zsvec.service.problems import Problem

_TAG = r'(?:W/)?"[!\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_EVERY = "*"
_TAGS_PATTERN = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'  # as a description can say it

ETAG: dict[str, Any] = {
    "headers": {"ETag": {"description": "The version of the category, for `If-Match`.", "schema": {"type": "string"}}}
}
"""Part of the description of a response with an ``ETag``."""


def described(*names: str) -> dict[str, Any]:
    """Returns the ``openapi_extra`` of a route that obeys these headers."""
    said = {
        "If-Match": "Changes the category only if this is its `ETag`, else 412. `*`: only if the category exists.",
        "If-None-Match": "`*`: only creates the category; 412 if it exists. With GET: 304 if this is the `ETag`.",
    }
    schema = {"type": "string", "pattern": _TAGS_PATTERN, "examples": ['"7"']}
    return {
        "parameters": [{"name": name, "in": "header", "description": said[name], "schema": schema} for name in names]
    }


def etag(version: int) -> dict[str, str]:
    """Returns the header with the version of a category. Points of attached collections alone have no version."""
    return {"ETag": f'"{version}"'} if version else {}


@dataclass(frozen=True, slots=True)
class Condition(Container[int]):
    """The versions of a category for which a request is to be done; 0 stands for a missing category.

    Attributes:
        match: Entity tags of ``If-Match``, without weak ones, which never match. ``None`` without the header.
        none_match: Entity tags of ``If-None-Match``.
    """

    match: frozenset[str] | None
    none_match: frozenset[str] | None

    def __contains__(self, version: object) -> bool:
        """Returns whether both headers hold for a version."""
        return (self.match is None or _has(self.match, version)) and not self.is_current(version)

    def is_current(self, version: object) -> bool:
        """Returns whether ``If-None-Match`` names a version."""
        return self.none_match is not None and _has(self.none_match, version)

    def of(self, classifier: Classifier, name: str) -> AbstractContextManager[None]:
        """Makes the first commit of a category in a block depend on the condition."""
        if self.match is None and self.none_match is None:
            return nullcontext()
        return classifier.expecting(name, self)


def _has(tags: frozenset[str], version: object) -> bool:
    return version != 0 and not tags.isdisjoint({_EVERY, f'"{version}"'})


async def condition_of(request: Request) -> Condition:
    """Returns the condition of a request; raises a Problem for a malformed header."""
    match, none_match = _tags(request, "If-Match"), _tags(request, "If-None-Match")
    strong = None if match is None else frozenset(tag for tag in match if not tag.startswith("W/"))
    return Condition(strong, none_match and frozenset(tag.removeprefix("W/") for tag in none_match))


def _tags(request: Request, name: str) -> frozenset[str] | None:
    given = request.headers.getlist(name)
    if not given:
        return None
    value = ",".join(given).strip(" \t")
    if value == _EVERY:
        return frozenset({_EVERY})
    if not _LIST.fullmatch(value):
        raise Problem(422, f'{name} must be * or entity tags in quotes, such as "7", got {value!r}')
    return frozenset(re.findall(_TAG, value))


If = Annotated[Condition, Depends(condition_of)]
