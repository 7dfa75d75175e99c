"""Routes of categories and their references."""

from __future__ import annotations

from contextlib import nullcontext

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from zsvec import Category, Classifier, ReferenceImage, SmallImage, StoredReference, checked_name
from zsvec.service import edits
from zsvec.service.api import schemas
from zsvec.service.api.common import By, Hash, Name, Runs, check_query, of_state, picture, whole_change
from zsvec.service.api.conditions import ETAG, If, described, etag
from zsvec.service.api.description import PICTURE, PROBLEM, body_of
from zsvec.service.api.paging import Page
from zsvec.service.problems import JSON, Problem
from zsvec.service.uploads import Material, sent_json, sent_material

_SOURCE_IN_CURSOR = 200  # characters

router = APIRouter(prefix="/v1", tags=["categories"], responses=PROBLEM, dependencies=[Depends(check_query)])


@router.get("/categories", response_model=schemas.CategoryPage)
async def list_categories(work: Runs, paging: Page) -> Response:
    """Returns the categories, sorted by name, with the number of references by expert."""

    def listed() -> Response:
        found, after = paging.page(work.classifier.categories(), lambda category: [category.name], "categories")
        return JSON({"items": [category.to_dict() for category in found], "next": after})

    return await work.run(listed)


@router.get(
    "/categories/{name}",
    response_model=schemas.WholeCategory,
    responses={200: ETAG, 304: {"description": "The `ETag` is current"}},
    openapi_extra=described("If-None-Match"),
)
async def show_category(name: Name, work: Runs, condition: If) -> Response:
    """Returns a category with metadata and references."""

    def show() -> Response:
        category = work.classifier.category(name)
        headers = etag(category.version)
        # The version does not count the points of attached collections.
        if condition.is_current(category.version) and not category.attached:
            return Response(status_code=304, headers=headers)
        stored = [reference.to_dict() for reference in work.classifier.references.of(category.name)]
        return JSON({**category.to_dict(), "metadata": category.metadata, "stored": stored}, headers=headers)

    return await work.run(show)


def _answer(category: Category, status: int = 200) -> Response:
    return JSON(category.to_dict(), status, headers=etag(category.version))


@router.put(
    "/categories/{name}",
    response_model=schemas.Category,
    responses={200: ETAG, 201: {"model": schemas.Category, "description": "Created", **ETAG}},
    openapi_extra={**body_of(schemas.CategoryGiven, form=True), **described("If-Match", "If-None-Match")},
)
async def put_category(request: Request, name: Name, work: Runs, by: By, condition: If) -> Response:
    """Creates a category, or replaces the texts, images, metadata and parent that the request contains.

    Parts that the request omits stay as they are. A new category without texts gets the name as
    definition text. A request that changes nothing leaves the version as it is.
    """
    sent = await sent_material(request, work.limits.images)

    def put() -> Response:
        new = checked_name(name) not in {category.name for category in work.classifier.categories() if category.own}
        with work.classifier.history.one_change("add" if new else "replace"), condition.of(work.classifier, name):
            return _answer(_added(work.classifier, name, sent, replace=True), 201 if new else 200)

    return await work.run(put, by=by)


@router.post(
    "/categories/{name}/references",
    response_model=schemas.Category,
    responses={200: ETAG},
    openapi_extra={**body_of(schemas.CategoryGiven, form=True), **described("If-Match")},
)
async def add_references(request: Request, name: Name, work: Runs, by: By, condition: If) -> Response:
    """Adds texts and images to a category, and creates the category if missing.

    Texts and images that the category already has are not added again, so a repeated request changes nothing.
    """
    sent = await sent_material(request, work.limits.images)

    def add() -> Response:
        with condition.of(work.classifier, name):
            return _answer(_added(work.classifier, name, sent, replace=False))

    return await work.run(add, by=by)


def _added(classifier: Classifier, name: str, sent: Material, *, replace: bool) -> Category:
    images = None
    if sent.images is not None:
        images = [ReferenceImage(image=image, source=image.name) for image in sent.images]
    # Without a text or an image, only a category that exists may keep its references.
    of_none = sent.texts is not None and not sent.texts and images is None
    checked = checked_name(name)
    with of_state() if of_none else nullcontext():
        return classifier.add_category(
            checked, texts=sent.texts, images=images, metadata=sent.metadata, parent=sent.parent, replace=replace
        )


@router.patch(
    "/categories/{name}",
    response_model=schemas.Category,
    responses={200: ETAG},
    openapi_extra={**body_of(schemas.CategoryChange), **described("If-Match")},
)
async def change_category(request: Request, name: Name, work: Runs, by: By, condition: If) -> Response:
    """Sets texts, metadata and parent, renames or merges a category.

    All parts of the request form one change in the history, so one undo reverts them.
    """
    given = await sent_json(request, schemas.CategoryChange)

    def change() -> Response:
        work.classifier.category(name)  # without a category, the status is 404 whatever the condition is
        with condition.of(work.classifier, name):
            return _answer(_changed(work.classifier, name, given))

    return await work.run(change, by=by)


def _changed(classifier: Classifier, name: str, given: schemas.CategoryChange) -> Category:
    category = classifier.category(name)
    # Checked before the first write, so that a refused request changes nothing, even without a history.
    new = None if given.name is None else checked_name(given.name)
    if new is not None:
        if given.merge:
            edits.check_merge(classifier, category.name, new)
        else:
            edits.check_rename(classifier, category.name, new, given.parent)
    with whole_change(classifier, "merge" if given.merge else "set" if given.name is None else "rename"):
        if any(part is not None for part in (given.texts, given.metadata, given.parent)):
            category = classifier.references.update(
                name, texts=given.texts, metadata=given.metadata, parent=given.parent
            )
        if new is not None and given.merge:
            with of_state():
                category = classifier.references.merge(name, new)
        elif new is not None and new != category.name:
            category = classifier.references.rename(name, new)
    return category


@router.delete("/categories/{name}", status_code=204, openapi_extra=described("If-Match"))
async def remove_category(name: Name, work: Runs, by: By, condition: If) -> Response:
    """Removes a category and all its references. `POST /v1/undo` restores them."""

    def remove() -> None:
        work.classifier.category(name)
        with condition.of(work.classifier, name):
            work.classifier.remove_category(name)

    await work.run(remove, by=by)
    return Response(status_code=204)


@router.get("/categories/{name}/references", response_model=schemas.StoredReferencePage)
async def list_references(name: Name, work: Runs, paging: Page) -> Response:
    """Returns the references of a category: texts, then images, each from the oldest to the newest."""

    def listed() -> Response:
        stored = sorted(work.classifier.references.of(name), key=_place)
        found, after = paging.page(stored, _place, "references", name)
        return JSON({"items": [reference.to_dict() for reference in found], "next": after})

    return await work.run(listed)


def _place(reference: StoredReference) -> list[str]:
    source = reference.source[:_SOURCE_IN_CURSOR].replace("\0", "")
    is_image = str(int(reference.modality == "image"))
    return [is_image, str(reference.added or ""), source, reference.hash]


@router.get("/categories/{name}/references/{hash}", response_model=schemas.StoredReference)
async def show_reference(name: Name, hash: Hash, work: Runs) -> Response:  # noqa: A002 - as the path says
    """Returns a reference with source, time of addition and author."""
    return JSON((await work.run(lambda: _reference(work.classifier, name, hash))).to_dict())


def _reference(classifier: Classifier, name: str, content_hash: str) -> StoredReference:
    found = [one for one in classifier.references.of(name) if one.hash == content_hash]
    if not found:
        detail = f"{name!r} has no reference {content_hash!r}: GET …/references lists all"
        raise Problem(404, detail, error="reference_not_found")
    return found[0]


@router.get("/categories/{name}/references/{hash}/image", response_class=Response, responses=PICTURE)
async def show_reference_image(request: Request, name: Name, hash: Hash, work: Runs) -> Response:  # noqa: A002
    """Returns a small copy of an image, a JPEG with a shorter side of at most 256 pixels.

    The status is 404 if the store has no copy.
    """

    def small() -> SmallImage | None:
        _reference(work.classifier, name, hash)
        return work.classifier.references.small(hash)

    return picture(request, await work.run(small), hash)


@router.patch(
    "/categories/{name}/references/{hash}",
    response_model=schemas.Category,
    openapi_extra={**body_of(schemas.ReferenceChange), **described("If-Match")},
)
async def move_reference(
    request: Request,
    name: Name,
    hash: Hash,  # noqa: A002
    work: Runs,
    by: By,
    condition: If,
) -> Response:
    """Moves a reference to another category, and returns that category. The reference is not embedded again."""
    given = await sent_json(request, schemas.ReferenceChange)

    def move() -> Response:
        _reference(work.classifier, name, hash)
        target = checked_name(given.category)
        with whole_change(work.classifier, "move"), condition.of(work.classifier, name):
            return JSON(edits.move(work.classifier, {name: [hash]}, target).to_dict())

    return await work.run(move, by=by)


@router.delete("/categories/{name}/references/{hash}", status_code=204, openapi_extra=described("If-Match"))
async def remove_reference(name: Name, hash: Hash, work: Runs, by: By, condition: If) -> Response:  # noqa: A002
    """Removes a reference. The last reference of a category cannot be removed."""

    def remove() -> None:
        _reference(work.classifier, name, hash)
        with condition.of(work.classifier, name):
            edits.remove(work.classifier, {name: [hash]})

    await work.run(remove, by=by)
    return Response(status_code=204)
