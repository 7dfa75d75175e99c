"""Audits that the pages *Audit* and *Overview* share, because comparing all photos takes a while."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeAlias

from fastapi import Request

from zsvec import Audit, Classifier
from zsvec.service.admission.queue import Work
from zsvec.types import is_attached

_REMEMBERED = 4  # comparisons
_MAX_AUTOMATIC = 5000  # photos to compare without a click; the time grows with the square of the number
_RESPONSE_WAIT_S = 0.8  # a page that has to wait for longer says so

_Contents: TypeAlias = Mapping[str, tuple[Any, ...]]  # revision and numbers of references, by category


@dataclass(frozen=True)
class Comparison:
    """An audit with its kept findings, finished or in progress.

    Attributes:
        id: Id of the compared references and of the state of the calibration.
        contents: The compared references.
        task: The audit.
    """

    id: str
    contents: _Contents
    task: asyncio.Task[Audit]


class Comparisons:
    """Remembers the latest audits of a service. Must be used in one event loop."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._found: dict[str, Comparison] = {}
        self._turn = asyncio.Lock()  # one audit at a time, since each uses all processors
        self._latest: asyncio.Task[Any] | None = None  # the latest task that has begun

    def remembered(self, identity: str) -> Comparison | None:
        """Returns a remembered comparison by its id, or ``None``."""
        return self._found.get(identity)

    async def find(self, identity: str = "", *, again: bool = False) -> Comparison:
        """Returns a remembered comparison by its id, or else the comparison of the present references.

        Args:
            identity: Id of the comparison.
            again: Whether to compare anew, although the references have not changed.
        """
        if not again and (there := self.remembered(identity)):
            return there
        identity, contents = await self._work.run(lambda: present(self._work.classifier))
        there = self._found.get(identity)
        if there is None or (again and there.task.done()):
            there = Comparison(identity, contents, asyncio.create_task(self._audit()))
            there.task.add_done_callback(lambda task: self._forget_failed(identity, task))
            self._found.pop(identity, None)
            self._found[identity] = there
            for oldest in list(self._found.values())[:-_REMEMBERED]:
                if oldest.task is not self._latest or oldest.task.done():  # pages wait for an audit in progress
                    oldest.task.cancel()
                    del self._found[oldest.id]
        return there

    async def _audit(self) -> Audit:
        async with self._turn:
            self._latest = asyncio.current_task()
            return await self._work.run(lambda: self._work.classifier.references.audit(kept=True))

    def _forget_failed(self, identity: str, task: asyncio.Task[Audit]) -> None:
        there = self._found.get(identity)
        if (task.cancelled() or task.exception()) and there and there.task is task:
            del self._found[identity]


def comparisons_of(request: Request) -> Comparisons:
    """Returns the comparisons of the service."""
    found: Comparisons = request.app.state.comparisons
    return found


def is_automatic(images: int) -> bool:
    """Returns whether a page compares this number of images without a click."""
    return images <= _MAX_AUTOMATIC


async def audit_of(comparison: Comparison) -> Audit | None:
    """Returns the audit, or ``None`` if it takes longer than a moment or was cancelled.

    Raises:
        ZSVecError: The audit failed.
    """
    await asyncio.wait({comparison.task}, timeout=_RESPONSE_WAIT_S)
    return comparison.task.result() if comparison.task.done() and not comparison.task.cancelled() else None


def present(classifier: Classifier) -> tuple[str, _Contents]:
    """Returns an id of the present references and of the state of the calibration, and the references."""
    contents = _contents(classifier)
    state = sorted(contents.items()), classifier.info()["calibration"]
    return sha256(repr(state).encode(errors="backslashreplace")).hexdigest()[:16], contents


def without_gone(found: Audit, contents: _Contents, classifier: Classifier) -> Audit:
    """Returns an audit without images that were moved or removed after `contents` were compared."""
    if contents == _contents(classifier):
        return found
    images: list[Any] = [*found.labels, *(one.image for one in found.outliers)]
    images += [image for one in found.duplicates for image in one.images]
    images += [image for one in found.confusions for image in one.images]
    there = classifier.references.holders({image.hash for image in images if not is_attached(image.hash)})

    def stays(image: Any) -> bool:
        return is_attached(image.hash) or image.category in there.get(image.hash, ())

    def left(findings: Any, least: int) -> Any:
        rest = [replace(one, images=[*filter(stays, one.images)]) for one in findings]
        return [one for one in rest if len(one.images) >= least]

    return replace(
        found,
        labels=[*filter(stays, found.labels)],
        duplicates=left(found.duplicates, 2),
        outliers=[one for one in found.outliers if stays(one.image)],
        confusions=left(found.confusions, 1),
    )


def _contents(classifier: Classifier) -> _Contents:
    return {one.name: (one.rev, *sorted(one.references.items())) for one in classifier.categories()}
