"""The page *Classify*: predictions with evidence, and corrections. The browser sends the image with each request."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec import load_image
from zsvec.errors import StoreUnavailableError
from zsvec.service.api.common import Runs
from zsvec.service.pages.changes import changed, create_missing, name_in
from zsvec.service.pages.rendering import certainty, doubt, render, verdict
from zsvec.service.problems import refusal
from zsvec.service.uploads import sent_form, sent_images
from zsvec.types import ExpertOutput, Prediction, encoder_and_modality

router = APIRouter()

_CHOICES = 5  # categories with a button


@router.get("/")
async def show(request: Request, work: Runs) -> Response:
    """Shows the page, even if the store is unavailable, because predictions may still work."""
    try:
        names = [category.name for category in await work.run(work.classifier.categories)]
    except StoreUnavailableError:
        return render(request, "classify.html", tab="/", names=[], empty=False)
    return render(request, "classify.html", tab="/", names=names, empty=not names)


@router.post("/classify")
async def classify(request: Request, work: Runs) -> Response:
    """Classifies one image. Shows the answer and, in a template, the evidence. `data-prediction` is as in the API."""
    images = await sent_images(request, 1)
    (prediction,) = await work.classify(images, _CHOICES, request.receive)
    sent = replace(prediction, experts={}).to_dict()
    if prediction.error is not None:
        return render(request, "unread.html", sent=sent)
    return render(
        request,
        "answer.html",
        prediction=prediction,
        sent=sent,
        verdict=verdict(prediction),
        certainty=certainty(prediction.probability or 0.0),
        doubt=doubt(prediction),
        experts=_experts(prediction),
    )


def _experts(prediction: Prediction) -> list[tuple[str, str, ExpertOutput]]:
    found: list[tuple[str, str, ExpertOutput]] = []
    for name, expert in sorted(prediction.experts.items(), key=lambda item: -item[1].weight):
        encoder, modality = encoder_and_modality(name)
        title = "Compared with your photos" if modality == "image" else "Compared with your texts"
        found.append((f"{title} ({encoder})", modality, expert))
    return found


@router.post("/correct")
async def correct(request: Request, work: Runs) -> Response:
    """Adds an image to the right category as a reference."""
    images, fields = await sent_form(request, 1)
    name = name_in(fields, "category")
    if len(images) != 1:
        raise refusal(422, "There is no photo. Choose it again.")

    def corrected() -> str:
        load_image(images[0], **work.classifier.settings.image_limits())  # before anything is written
        create_missing(work.classifier, name)
        category = work.classifier.correct(images[0], name)
        return f"Learned that this is “{category.name}”."

    return await changed(request, "correct", corrected)
