"""The page *Classify*: what images show, and why, and what it is instead. The browser keeps the images."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec import checked_name
from zsvec.errors import StoreUnavailableError
from zsvec.service.api.common import Runs
from zsvec.service.pages import words
from zsvec.service.pages.changes import changed
from zsvec.service.pages.rendering import percent, render
from zsvec.service.problems import Problem
from zsvec.service.uploads import sent_form, sent_images

router = APIRouter()

_CHOICES = 5  # categories to choose from by one click


@router.get("/")
async def show(request: Request, work: Runs) -> Response:
    """The page. It is there while the store is away, too: answers may be."""
    try:
        names = [category.name for category in await work.run(work.classifier.categories)]
    except StoreUnavailableError:
        return render(request, "classify.html", tab="/", names=[], empty=False)
    return render(request, "classify.html", tab="/", names=names, empty=not names)


@router.post("/classify")
async def classify(request: Request, work: Runs) -> Response:
    """What one image shows, with its evidence."""
    images = await sent_images(request, 1)
    (prediction,) = await work.classify(images, _CHOICES, request.receive)
    if prediction.error is not None:
        return render(request, "unread.html", error=prediction.error)
    probability = prediction.probability or 0.0
    return render(
        request,
        "answer.html",
        prediction=prediction,
        sure=words.how_sure(probability),
        headline=words.headline(prediction, percent(probability)),
        experts=words.experts(prediction),
    )


@router.post("/correct")
async def correct(request: Request, work: Runs) -> Response:
    """Make an image a reference of the category that it shows."""
    images, fields = await sent_form(request, 1)
    name = fields.get("category", [""])[0]
    if len(images) != 1 or not name.strip():
        raise Problem(422, "one image and the name of its category are needed")

    def teach() -> str:
        category = work.classifier.correct(images[0], checked_name(name))
        return f"It has learned that this is “{category.name}”."

    return await changed(request, "correct", teach)
