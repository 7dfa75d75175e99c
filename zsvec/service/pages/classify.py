"""The page *Classify*: predictions with evidence, similar photos, and corrections.

The browser sends the photo with each request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from zsvec import Classifier, load_image
from zsvec.classifier.tracker import TOP_K
from zsvec.errors import CategoryNotFoundError, InvalidInputError, StoreUnavailableError
from zsvec.inputs.categories import as_words
from zsvec.service.api.common import Hash, Runs
from zsvec.service.api.schemas import Label
from zsvec.service.edits import create_missing
from zsvec.service.pages.changes import changed, check_several, names_in, quoted
from zsvec.service.pages.rendering import certainty, choices, doubt, is_part, percent, render, verdict
from zsvec.service.problems import refusal
from zsvec.service.uploads import sent_form, sent_images, sent_json
from zsvec.types import ExpertOutput, Modality, Neighbor, Prediction, encoder_and_modality, is_attached, kind_of

router = APIRouter()

_CHOICES = 5  # categories with a button
_SIMILAR = 12  # references, and waiting photos, to show
_SURE = 0.9  # probability of a group that is named instead of an unsure category
_LIMIT = 0.5  # novelty above which a photo is unknown by default
_MOST_OF_ONE = 64  # photos of one thing


class _Seen(BaseModel):
    """The part of a prediction that counts for several photos of one thing."""

    ranking: Annotated[list[Label], Field(max_length=TOP_K)]
    unknown: bool
    novelty: float | None


class _SeenPhotos(BaseModel):
    predictions: Annotated[list[_Seen], Field(min_length=2, max_length=_MOST_OF_ONE)]


@dataclass(frozen=True)
class _Expert:
    encoder: str
    modality: Modality
    output: ExpertOutput


@router.get("/")
async def show(request: Request, work: Runs) -> Response:
    """Shows the page, even if the store is unavailable, because predictions may still work."""

    def read() -> dict[str, Any]:
        categories = work.classifier.categories()
        return {"categories": categories, "empty": not categories, "several": work.classifier.labels == "many"}

    try:
        found = await work.run(read)
    except StoreUnavailableError:
        found = {"categories": [], "empty": False, "several": False}
    return render(request, "classify.html", tab="/", **found)


@router.post("/classify")
async def classify(request: Request, work: Runs) -> Response:
    """Classifies one image. Shows the answer and, in a template, the evidence. `data-prediction` is as in the API."""
    images = await sent_images(request, 1)
    (prediction,) = await work.classify(images, _CHOICES, request.receive)
    sent = replace(prediction, experts={}).to_dict()
    if prediction.error is not None:
        return render(request, "unread.html", sent=sent)
    experts = _experts(prediction)
    texts = [one for one in experts if one.modality == "text"]
    described = await work.run(lambda: _described(work.classifier, texts)) if texts else True
    limit = work.classifier.settings.unknown_above
    return render(
        request,
        "answer.html",
        prediction=prediction,
        sent=sent,
        verdict=verdict(prediction),
        certainty=certainty(prediction.probability or 0.0),
        doubt=doubt(prediction),
        choices=choices(prediction),
        some=_some(prediction),
        limit=_LIMIT if limit is None else limit,
        experts=experts if described else [one for one in experts if one.modality == "image"],
        weight_of_names=0.0 if described else sum(one.output.weight for one in texts),
    )


@router.post("/classify/combined")
async def combine(request: Request, work: Runs) -> Response:
    """Combines the answers to several photos of one thing. The browser sends the predictions, not the photos again."""
    predictions = (await sent_json(request, _SeenPhotos)).predictions
    answer = work.classifier.tracker().combine(
        Prediction(
            source="",
            ranking=tuple((one.label, one.probability) for one in seen.ranking),
            unknown=seen.unknown,
            novelty=seen.novelty,
        )
        for seen in predictions
    )
    combined = Prediction(
        source="",
        nearest=answer.nearest,
        probability=answer.probability,
        unknown=answer.unknown,
        novelty=answer.novelty,
        ranking=answer.ranking,
    )
    return render(
        request,
        "combined.html",
        prediction=combined,
        photos=answer.frames,
        verdict=verdict(combined),
        certainty=certainty(combined.probability or 0.0),
        doubt=doubt(combined),
    )


def _some(prediction: Prediction) -> str:
    """Returns the group that probably has the photo, such as “Some bird, 97 %”; empty if the label itself is sure.

    For an unknown photo, the probability only compares the groups, so the sentence leaves it out.
    """
    answer = prediction.at(_SURE)
    if answer is None or answer[0] == prediction.label:
        return ""
    if prediction.unknown:
        return f"Perhaps {kind_of(prediction, answer[0])}"
    return f"Some {answer[0]}, {percent(answer[1])}"


def _experts(prediction: Prediction) -> list[_Expert]:
    """Returns the experts, the most influential first."""
    named = sorted(prediction.experts.items(), key=lambda item: -item[1].weight)
    return [_Expert(*encoder_and_modality(name), output) for name, output in named]


def _described(classifier: Classifier, experts: Sequence[_Expert]) -> bool:
    """Returns whether one of the nearest texts is more than the name of a category, and so explains anything."""
    try:
        return any(_is_described(classifier, text) for expert in experts for text in expert.output.neighbors)
    except StoreUnavailableError:
        return True  # the prediction is from memory


def _is_described(classifier: Classifier, text: Neighbor) -> bool:
    if is_attached(text.hash):
        return True
    try:
        texts = classifier.category(text.category).texts
    except CategoryNotFoundError:
        return False  # removed since
    return text.source in texts and text.source != as_words(text.category)  # not in `texts`: a prompt with the name


@router.get("/similar/{hash}")
async def similar(
    request: Request,
    hash: Hash,  # noqa: A002 - as in the address
    work: Runs,
    category: Annotated[str, Query(max_length=500)] = "",
) -> Response:
    """Shows the references and the waiting photos that are similar to a photo, as a whole page or as a part.

    Of a photo that several categories have, `category` is the one to lead back to.
    """
    classifier = work.classifier

    def read() -> dict[str, Any]:
        try:
            found = classifier.similar(hash, number=_SIMILAR)
        except InvalidInputError as exc:
            raise refusal(404, "This photo is not known any more. Choose it again") from exc
        holders = classifier.references.holders([hash]).get(hash, ())
        waits = not holders and classifier.inbox.small(hash) is not None
        of = category if category in holders else next(iter(holders), None)
        return {"similar": found, "category": of, "waits": waits}

    part, found = is_part(request), await work.run(read)
    tab = "/categories" if found["category"] else "/inbox" if found["waits"] else "/"
    return render(request, "similar.html" if part else "similar_page.html", tab=tab, part=part, hash=hash, **found)


@router.post("/correct")
async def correct(request: Request, work: Runs) -> Response:
    """Adds an image to the right category as a reference; to several categories if the field has several lines.

    Several photos of one thing are one change: with ``change``, the id of the response before, the change goes on. With
    ``more``, other requests follow.
    """
    images, fields = await sent_form(request, 1)
    names = names_in(fields, "category")
    if len(images) != 1:
        raise refusal(422, "There is no photo. Choose it again.")

    def corrected() -> str:
        load_image(images[0], **work.classifier.settings.image_limits())  # before anything is written
        check_several(work.classifier, names)
        create_missing(work.classifier, *names)
        work.classifier.correct(images[0], names)
        return f"Learned that this is {quoted(names)}."

    continues = fields.get("change", [None])[0]
    return await changed(request, "correct", corrected, continues=continues, more="more" in fields)
