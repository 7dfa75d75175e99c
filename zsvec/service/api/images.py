"""Routes of images: classification, correction, and the inbox of images that wait for a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from zsvec import Prediction, checked_name, load_image
from zsvec.classifier.tracker import TOP_K
from zsvec.errors import ImageError
from zsvec.service.api import schemas
from zsvec.service.api.common import By, Hash, Runs, check_query, of_state, picture
from zsvec.service.api.description import PICTURE, PROBLEM, body_of
from zsvec.service.api.paging import Page
from zsvec.service.problems import JSON
from zsvec.service.uploads import sent_boxes, sent_images, sent_json

MAX_TOP_K = 1000
TopK = Annotated[int, Query(ge=1, le=MAX_TOP_K, description="Categories in the rankings.")]
Explain = Annotated[bool, Query(description="Whether to return the evidence of each expert.")]
_IMAGES = body_of(schemas.Images, form=True, raw=True)

router = APIRouter(prefix="/v1", tags=["images"], responses=PROBLEM, dependencies=[Depends(check_query)])


def _dicts(predictions: Sequence[Prediction], *, explain: bool) -> list[dict[str, Any]]:
    return [(one if explain else replace(one, experts={})).to_dict() for one in predictions]


@router.post("/classify", response_model=list[schemas.Prediction], openapi_extra=_IMAGES)
async def classify(
    request: Request,
    work: Runs,
    top_k: TopK = 5,
    explain: Explain = False,
    together: Annotated[bool, Query(description="Whether similar images of the request help each other.")] = False,
) -> Response:
    """Classifies images. Returns one prediction per image, in order, with an `error` for an unreadable image.

    Send images as form files named `images`, a single image as the body, or base64 or data URIs in JSON. URLs are not
    fetched. With `together`, `label`, `probability`, `ranking` and `path` also count the similar images of the request.
    """
    work.check_room(1)  # before the body is read
    images = await sent_images(request, work.limits.images, each=True)
    classify_all = work.classify_together if together else work.classify
    found = await classify_all(images, top_k, request.receive)
    return JSON(_dicts(found, explain=explain))


@router.post("/classify/track", response_model=schemas.TrackPrediction, openapi_extra=_IMAGES)
async def classify_track(
    request: Request,
    work: Runs,
    error_rate: Annotated[
        float, Query(gt=0, le=0.5, description="Fraction of the answers with a `label` that may be wrong.")
    ] = 0.01,
) -> Response:
    """Classifies several images of one object. Returns one answer from all of them, and the prediction of each.

    Send images as to `/v1/classify`, in any order. The answer has a `label` if it is certain enough, and from two
    readable images at least. `nearest` and `ranking` have the evidence in any case. An unreadable image is no evidence,
    and has an `error` in `predictions`.
    """
    work.check_room(1)  # before the body is read
    images = await sent_images(request, work.limits.images, each=True)
    found = await work.classify(images, TOP_K, request.receive)
    answer = work.classifier.tracker(error_rate=error_rate).combine(found)
    return JSON({**answer.to_dict(), "predictions": _dicts(found, explain=False)})


@router.post(
    "/classify/regions", response_model=list[schemas.Prediction], openapi_extra=body_of(schemas.Regions, form=True)
)
async def classify_regions(
    request: Request,
    work: Runs,
    top_k: TopK = 5,
    explain: Explain = False,
) -> Response:
    """Classifies boxes in an image. Returns one prediction per box, in order, with an `error` for an unusable box.

    Send the image as a form file named `image` with the boxes as JSON in a field, or base64 or a data URI in JSON. Each
    box counts as an image in the limits. Fractions of pixels are rounded outwards, and boxes are cut at the border of
    the image.
    """
    work.check_room(1)  # before the body is read
    image, boxes, margin = await sent_boxes(request, work.limits.images)
    found = await work.classify_regions(image, boxes, margin, top_k, request.receive)
    return JSON(_dicts(found, explain=explain))


@router.post("/correct", response_model=schemas.Category, openapi_extra=_IMAGES)
async def correct(
    request: Request,
    work: Runs,
    by: By,
    category: Annotated[schemas.CategoryName, Query(description="The right category; created if missing.")],
    also: Annotated[
        list[schemas.CategoryName],
        Query(max_length=schemas.MAX_ALSO, description="Further categories, where an image may belong to several."),
    ] = [],  # noqa: B006 - never changed
) -> Response:
    """Adds images to the right category as references, for all following predictions, and returns the category.

    An image that is a reference of another category is moved. If an image cannot be read, nothing is changed.
    """
    images = await sent_images(request, work.limits.images)

    def corrected() -> dict[str, Any]:
        names = list(map(checked_name, [category, *also]))
        for image in images if len(images) > 1 else ():
            load_image(image, **work.classifier.settings.image_limits())
        with work.classifier.history.one_change("correct"), of_state():
            return [work.classifier.correct(image, names) for image in images][-1].to_dict()

    return JSON(await work.run(corrected, by=by))


@router.get("/inbox", response_model=schemas.UnlabelledPage)
async def show_inbox(request: Request, work: Runs, paging: Page) -> Response:
    """Returns the images that wait for a label. The first images are informative, and differ from each other.

    The order is that of the first page.
    """

    def listed() -> Response:
        found, after = request.app.state.lists.page(paging, work.classifier.inbox.rank, "inbox")
        return JSON({"items": [image.to_dict() for image in found], "next": after})

    return await work.run(listed)


@router.post("/inbox", response_model=list[schemas.Kept], openapi_extra=_IMAGES)
async def keep_images(request: Request, work: Runs, by: By) -> Response:
    """Keeps images in the inbox.

    Near-duplicates of references, of dismissed images and of images from earlier requests are not kept.
    """
    images = await sent_images(request, work.limits.images, each=True)

    def kept() -> list[dict[str, Any]]:
        found = []
        for image in images:
            content_hash, error = None, None
            try:
                content_hash = work.classifier.keep(image)
            except ImageError as exc:
                error = str(exc)
            found.append({"source": image.name, "hash": content_hash, "error": error})
        return found

    return JSON(await work.run(kept, by=by))


@router.get("/inbox/groups", response_model=list[schemas.Group])
async def list_groups(work: Runs) -> Response:
    """Returns groups of similar unknown images. Each group may be a missing category."""
    return JSON([group.to_dict() for group in await work.run(work.classifier.inbox.groups)])


@router.get("/inbox/{hash}/image", response_class=Response, responses=PICTURE)
async def show_waiting_image(request: Request, hash: Hash, work: Runs) -> Response:  # noqa: A002 - as the path says
    """Returns a small copy of an image, a JPEG with a shorter side of at most 256 pixels.

    The status is 404 if the store has no copy.
    """
    return picture(request, await work.run(lambda: work.classifier.inbox.small(hash)), hash)


@router.post("/inbox/label", response_model=schemas.Category, openapi_extra=body_of(schemas.LabelGiven))
async def label_images(request: Request, work: Runs, by: By) -> Response:
    """Moves images from the inbox to a category, as references, and returns the category. Nothing is embedded again."""
    given = await sent_json(request, schemas.LabelGiven)

    def labelled() -> dict[str, Any]:
        categories = list(map(checked_name, [given.category, *given.also]))
        with of_state():
            return work.classifier.inbox.label(given.hashes, categories).to_dict()

    return JSON(await work.run(labelled, by=by))


@router.post("/inbox/dismiss", status_code=204, openapi_extra=body_of(schemas.Hashes))
async def dismiss_images(request: Request, work: Runs, by: By) -> Response:
    """Removes images from the inbox without a label.

    Until the dismissed images expire (setting `inbox_days`), these images and near-duplicates are not kept again.
    """
    given = await sent_json(request, schemas.Hashes)

    def dismissed() -> None:
        with of_state():
            work.classifier.inbox.dismiss(given.hashes)

    await work.run(dismissed, by=by)
    return Response(status_code=204)
