"""The routes of images that wait for a label, and the one that corrects an answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec import checked_name, load_image
from zsvec.errors import ImageError
from zsvec.service.api import schemas
from zsvec.service.api.common import OF_BODY, OF_PICTURE, By, Hash, Runs, body_of, of_state, picture, problems
from zsvec.service.problems import JSON
from zsvec.service.uploads import sent_images, sent_json

router = APIRouter(prefix="/v1", tags=["inbox"])


@router.get(
    "/inbox",
    summary="Show the images that wait for a label",
    response_model=list[schemas.Unlabelled],
    responses=problems(409, 422),
)
async def show_inbox(
    work: Runs, number: Annotated[int | None, Query(ge=1, description="How many, at most.")] = None
) -> Response:
    """Those first whose label would tell most and that differ most."""
    found = await work.run(lambda: work.classifier.inbox.rank(number))
    return JSON([image.to_dict() for image in found])


@router.post(
    "/inbox",
    summary="Keep images for a label",
    response_model=list[schemas.Kept],
    responses=problems(*OF_BODY, 409),
    openapi_extra=body_of(schemas.Images, form=True, raw=True),
)
async def keep(request: Request, work: Runs, by: By) -> Response:
    """One that equals a reference, or an image that waits or was dismissed, is not kept."""
    images = await sent_images(request, work.limits.images)

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


@router.get(
    "/inbox/groups",
    summary="Show unknown images that look alike",
    response_model=list[schemas.Group],
    responses=problems(409),
)
async def groups(work: Runs) -> Response:
    """Each may be a category that is missing."""
    return JSON([group.to_dict() for group in await work.run(work.classifier.inbox.groups)])


@router.get(
    "/inbox/{hash}/image",
    summary="The small copy of an image that waits",
    response_class=Response,
    responses=OF_PICTURE,
)
async def show_waiting_image(request: Request, hash: Hash, work: Runs) -> Response:  # noqa: A002 - as the path says
    """A JPEG with a short side of 256 pixels at most, if the store keeps copies."""
    return picture(request, await work.run(lambda: work.classifier.inbox.small(hash)), hash)


@router.post(
    "/inbox/label",
    summary="Make images that wait references of a category",
    response_model=schemas.Category,
    responses=problems(*OF_BODY, 409),
    openapi_extra=body_of(schemas.LabelGiven),
)
async def label(request: Request, work: Runs, by: By) -> Response:
    """The category, which is made if there is none. No encoder runs."""
    given = await sent_json(request, schemas.LabelGiven)

    def labelled() -> dict[str, Any]:
        category = checked_name(given.category)
        with of_state():
            return work.classifier.inbox.label(given.hashes, category).to_dict()

    return JSON(await work.run(labelled, by=by))


@router.post(
    "/inbox/dismiss",
    summary="Let images wait no more",
    status_code=204,
    responses=problems(*OF_BODY, 409),
    openapi_extra=body_of(schemas.Hashes),
)
async def dismiss(request: Request, work: Runs, by: By) -> Response:
    """Until they are too old, nothing like them is kept again."""
    given = await sent_json(request, schemas.Hashes)

    def dismissed() -> None:
        with of_state():
            work.classifier.inbox.dismiss(given.hashes)

    await work.run(dismissed, by=by)
    return Response(status_code=204)


@router.post(
    "/correct",
    summary="Make images references of the right category",
    response_model=schemas.Category,
    responses=problems(*OF_BODY, 409),
    openapi_extra=body_of(schemas.Images, form=True, raw=True),
)
async def correct(
    request: Request,
    work: Runs,
    by: By,
    category: Annotated[schemas.CategoryName, Query(description="Made if there is none.")],
) -> Response:
    """They count from the next image on. One that is a reference of another category is moved.

    If one of several cannot be read, none is used.
    """
    images = await sent_images(request, work.limits.images)

    def corrected() -> dict[str, Any]:
        name = checked_name(category)
        for image in images if len(images) > 1 else ():
            load_image(image, **work.classifier.settings.image_limits())
        with work.classifier.history.one_change("correct"), of_state():
            return [work.classifier.correct(image, name) for image in images][-1].to_dict()

    return JSON(await work.run(corrected, by=by))
