"""The page *Map*: all reference photos and all photos in the inbox, near each other if they are similar."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.admission.queue import Work
from zsvec.service.api.common import Runs
from zsvec.service.pages.comparisons import present
from zsvec.service.pages.rendering import render
from zsvec.service.problems import JSON

router = APIRouter(prefix="/map")

_Positions = dict[str, tuple[float, float]]
_Drawn = tuple[object, _Positions]  # the state that was drawn, and the positions


class ImageMap:
    """The positions of all images of a service. One map is drawn at a time, on request, in the background.

    Positions do not change when an image moves to another category, so the map stays as it is after a change.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._drawing: asyncio.Task[_Drawn] | None = None
        self._drawn: _Drawn | None = None

    def draw(self) -> None:
        """Begins to draw, unless a map is being drawn. The map stays if nothing has changed since it was drawn."""
        if self._drawing is None:
            self._drawing = asyncio.create_task(self._work.run(self._draw))

    def _draw(self) -> _Drawn:
        classifier = self._work.classifier
        state = present(classifier)[0], frozenset(classifier.inbox.hashes())
        if self._drawn is not None and self._drawn[0] == state:
            return self._drawn
        return state, classifier.image_map()

    def positions(self) -> _Positions | None:
        """Returns the newest positions, by content hash; ``None`` while a map is being drawn. Draws the first map.

        Raises:
            ZSVecError: The map cannot be drawn. The next call draws again.
        """
        if self._drawn is None:
            self.draw()
        if self._drawing is not None:
            if not self._drawing.done():
                return None
            drawn, self._drawing = self._drawing, None
            self._drawn = drawn.result()
        return self._drawn[1] if self._drawn else None


@router.get("")
async def show(request: Request, work: Runs) -> Response:
    """Shows the page without points, because drawing takes a while."""

    def read() -> dict[str, Any]:
        return {"categories": work.classifier.categories(), "waiting": len(work.classifier.inbox)}

    return render(request, "map.html", tab="/map", **await work.run(read))


@router.get("/points")
async def points(request: Request, work: Runs, again: bool = False) -> Response:
    """Returns the points as JSON, or status 202 while they are being drawn.

    With `again`, draws a new map if the references, the calibration or the inbox have changed.

    A point is ``[x, y, category, hash]``; the category is a position in ``names``, or -1 for a photo in the inbox.
    """
    image_map: ImageMap = request.app.state.image_map
    if again:
        image_map.draw()
    if (positions := image_map.positions()) is None:
        return JSON({}, 202)

    def read() -> dict[str, Any]:
        classifier = work.classifier
        names = [category.name for category in classifier.categories()]
        number = {name: i for i, name in enumerate(names)}
        owners = classifier.references.holders(positions.keys())
        waiting = set(classifier.inbox.hashes())
        found = [
            [*positions[digest], number[name], digest]
            for digest, held in owners.items()
            for name in held
            if name in number
        ]
        found += [[*positions[digest], -1, digest] for digest in waiting & positions.keys()]
        return {"names": names, "points": found}

    return JSON(await work.run(read))
