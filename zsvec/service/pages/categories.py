"""The page *Categories*, the page of each category, and moving and removing references."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, NonNegativeInt, ValidationError
from starlette.responses import Response

from zsvec import CategoryInput, Classifier, ReferenceImage
from zsvec.errors import ImageError, InvalidInputError
from zsvec.service import edits
from zsvec.service.api.common import Hash, Name, Runs, picture, work_of
from zsvec.service.api.schemas import Hashes
from zsvec.service.pages.changes import changed, lines_in, name_in
from zsvec.service.pages.rendering import category_path, is_part, render
from zsvec.service.problems import JSON, refusal
from zsvec.service.uploads import Upload, sent_form, sent_json
from zsvec.types import Category, SmallImage, StoredReference, ThresholdProgress, counted

router = APIRouter()

_CARDS = 60  # shown at first; "Show more" adds twice as many
_PHOTOS = 6  # of a card
_MAX_CARDS = 100_000
_NAMED = 5  # unreadable photos


@dataclass(frozen=True)
class _Card:
    category: Category
    attached: int
    photos: Sequence[StoredReference]


class _SoFar(BaseModel):
    """Results of the earlier requests that belong to the same change. The browser keeps them in between.

    Attributes:
        name: Category of the last request that was not left out.
        categories: Number of categories.
        new: Number of these that are new.
        photos: Number of added photos.
        texts: Number of added texts.
        shared: Number of added photos that other categories have, too.
        sharing: One of these other categories.
        unread: Number of photos that could not be read.
        unread_names: Names of the first of these.
    """

    name: str = ""
    categories: NonNegativeInt = 0
    new: NonNegativeInt = 0
    photos: NonNegativeInt = 0
    texts: NonNegativeInt = 0
    shared: NonNegativeInt = 0
    sharing: str = ""
    unread: NonNegativeInt = 0
    unread_names: list[str] = []

    def left_out(self) -> str:
        """Returns a sentence about the photos that could not be read."""
        if not self.unread:
            return ""
        more = f" and {self.unread - _NAMED} more" if self.unread > _NAMED else ""
        return f"{counted(self.unread, 'photo')} could not be read: {', '.join(self.unread_names)}{more}."

    def message(self) -> str:
        """Returns a message about all requests of the change."""
        sentences = [self._added(), self.left_out()]
        if self.shared:
            verb = "is" if self.shared == 1 else "are"
            sentences.append(f"{counted(self.shared, 'photo')} {verb} in “{self.sharing}” or another category, too.")
        return " ".join(filter(None, sentences))

    def _added(self) -> str:
        photos = counted(self.photos, "photo")
        if self.categories > 1:
            if self.new == self.categories:
                return f"{self.new} new categories with {photos}."
            return f"{photos} added to {self.categories} categories, of which {self.new} are new."
        if self.new:
            return f"“{self.name}” is a new category{f' with {photos}' if self.photos else ''}."
        parts = [counted(n, kind) for n, kind in ((self.photos, "photo"), (self.texts, "text")) if n > 0]
        return f"{' and '.join(parts)} added to “{self.name}”." if parts else f"“{self.name}” has these already."


@router.get("/categories")
async def show(
    request: Request,
    work: Runs,
    filter: str = "",  # noqa: A002 - as in the address
    shown: Annotated[int, Query(ge=1, le=_MAX_CARDS)] = _CARDS,
) -> Response:
    """Shows the categories with `filter` in the name, as a whole page or as cards alone."""
    wanted = filter.strip().casefold()

    def read() -> tuple[list[Category], list[Category], list[_Card], dict[str, Any]]:
        categories = work.classifier.categories()
        info = {} if wanted else work.classifier.info()
        found = [category for category in categories if wanted in category.name.casefold()]
        photos = work.classifier.references.first_images(found[:shown], _PHOTOS)
        cards = [_Card(one, _attached(one), photos.get(one.name, ())) for one in found[:shown]]
        return categories, found, cards, info

    categories, found, cards, info = await work.run(read)
    more = urlencode({"filter": filter, "shown": shown + 2 * _CARDS}) if len(found) > shown else None
    return render(
        request,
        "cards.html" if is_part(request) else "categories.html",
        tab="/categories",
        categories=categories,
        found=len(found),
        cards=cards,
        progress=ThresholdProgress.from_dict(info.get("threshold_progress")),
        collections=info.get("attached", ()),
        calibrated=info.get("calibration") != "none",
        filter=filter,
        more=more,
        limits=work.limits,
    )


def _attached(category: Category) -> int:
    """Returns the number of points of attached collections. If it differs between experts, the largest number."""
    return max(category.attached.values(), default=0)


@router.post("/categories")
async def create(request: Request, work: Runs) -> Response:
    """Creates a category from a name, texts and photos. With the field `adds`, the category may exist."""
    images, fields = await sent_form(request, work.limits.images)
    name = name_in(fields, "name")

    def there() -> Category | None:
        found = {category.name: category for category in work.classifier.categories()}.get(name)
        if found and found.own and "adds" not in fields:
            raise refusal(409, f"There is a category “{name}” already: add to that category, or take another name")
        return found

    return await _add(request, name, there, images, fields)


@router.get("/categories/{name}")
async def show_category(request: Request, name: Name, work: Runs) -> Response:
    """Shows a category, as a whole page or as content alone."""

    def read() -> dict[str, Any]:
        category = work.classifier.category(name)
        stored = work.classifier.references.of(category.name)
        return {
            "name": category.name,
            "attached": _attached(category),
            "own": bool(category.own),
            "parent": category.parent,
            "categories": (every := work.classifier.categories()),
            "parents": sorted(
                {one.parent for one in every if one.parent} | {one.name for one in every} - {category.name}
            ),
            "texts": [reference for reference in stored if reference.modality == "text"],
            "photos": [reference for reference in stored if reference.modality == "image"],
        }

    found = await work.run(read)
    template = "category_content.html" if is_part(request) else "category.html"
    return render(request, template, tab="/categories", limits=work.limits, **found)


@router.get("/categories/{name}/photo")
async def show_photo_of(request: Request, name: Name, work: Runs) -> Response:
    """Returns a small copy of one photo of a category, a JPEG."""

    def small() -> SmallImage | None:
        category = work.classifier.category(name)
        photos = work.classifier.references.first_images([category], _PHOTOS).get(category.name, ())
        return work.classifier.references.small(photos[0].hash) if photos else None

    found = await work.run(small)
    return picture(request, found, found.hash if found else "")


@router.get("/photos/{hash}")
async def show_photo(request: Request, hash: Hash, work: Runs) -> Response:  # noqa: A002 - as in the address
    """Returns a small copy of a photo, a JPEG.

    A copy of a removed photo stays while *Recent changes* can show it and undo the change. `zsvec forget` deletes all
    copies at once.
    """
    return picture(request, await work.run(lambda: work.classifier.references.small(hash)), hash)


@router.post("/categories/{name}/references")
async def add(request: Request, name: Name, work: Runs) -> Response:
    """Adds texts and photos to a category."""
    images, fields = await sent_form(request, work.limits.images)
    if not images and not lines_in(fields, "texts"):
        raise refusal(422, "There is no text and no photo to add")
    # The category may have been removed meanwhile.
    return await _add(request, name, lambda: work.classifier.category(name), images, fields)


async def _add(
    request: Request,
    name: str,
    there: Callable[[], Category | None],
    images: Sequence[Upload],
    fields: Mapping[str, Sequence[str]],
) -> Response:
    """Adds to one category. The requests of one addition share a change and the results so far.

    Args:
        request: The request.
        name: Name of the category.
        there: Function that returns the category, or ``None`` to create the category. Runs in a thread.
        images: The photos.
        fields: ``texts``; and ``change`` and ``so_far`` of the response before. With ``more``, other requests follow,
            so that this one may have no readable photo.
    """
    work = await work_of(request)
    so_far = _SoFar()
    with suppress(ValidationError):
        so_far = _SoFar.model_validate_json(fields.get("so_far", [""])[0])

    def added() -> str:
        _write(work.classifier, name, there(), lines_in(fields, "texts"), images, so_far)
        if not so_far.categories and "more" not in fields:
            raise refusal(422, f"{so_far.left_out()} Choose others, or save them as JPEG or PNG.")
        return so_far.message() if so_far.categories else so_far.left_out()

    continues = fields.get("change", [None])[0]
    return await changed(request, "add", added, continues=continues, more="more" in fields, so_far=so_far)


@router.post("/categories/{name}/rename")
async def rename(request: Request, name: Name, work: Runs) -> Response:
    """Renames a category."""
    _, fields = await sent_form(request, 0)
    new = name_in(fields, "new")

    def renamed() -> str:
        edits.check_rename(work.classifier, name, new)
        work.classifier.references.rename(name, new)
        return f"“{name}” is now “{new}”."

    return await changed(request, "rename", renamed, goes=category_path(new))


@router.post("/categories/{name}/parent")
async def set_parent(request: Request, name: Name, work: Runs) -> Response:
    """Puts a category below a parent, or at the top of the tree."""
    _, fields = await sent_form(request, 0)

    def put() -> str:
        try:
            category = work.classifier.references.update(name, parent=fields.get("parent", [""])[0])
        except InvalidInputError as exc:
            raise refusal(
                422, f"“{name}” cannot be below itself, and a name must have letters. Choose another"
            ) from exc
        return f"“{name}” is now below “{category.parent}”." if category.parent else f"“{name}” is now at the top."

    return await changed(request, "set", put)


@router.post("/categories/{name}/merge")
async def merge(request: Request, name: Name, work: Runs) -> Response:
    """Merges a category into another."""
    _, fields = await sent_form(request, 0)
    target = name_in(fields, "category")

    def merged() -> str:
        edits.check_merge(work.classifier, name, target)
        work.classifier.references.merge(name, target)
        return f"“{name}” is now part of “{target}”."

    return await changed(request, "merge", merged, goes=category_path(target))


@router.post("/categories/{name}/remove")
async def remove(request: Request, name: Name, work: Runs) -> Response:
    """Removes a category with all references."""

    def removed() -> str:
        work.classifier.remove_category(name)
        return f"“{name}” is removed."

    return await changed(request, "remove", removed, goes="/categories")


@router.post("/references/holders")
async def find_holders(request: Request, work: Runs) -> Response:
    """Returns the categories that have each of these photos, as JSON by content hash, before the photos are sent."""
    given = await sent_json(request, Hashes)
    return JSON(await work.run(lambda: work.classifier.references.holders(given.hashes)))


@router.post("/references/move")
async def move_references(request: Request, work: Runs) -> Response:
    """Moves references to another category, which is created if missing."""
    chosen, fields = await _chosen(request)
    target = name_in(fields, "category")

    def moved() -> str:
        if target in chosen:
            raise refusal(409, f"A photo is in “{target}” already: choose another category")
        described = _checked(work.classifier, chosen)
        edits.move(work.classifier, chosen, target)
        return f"{described} moved to “{target}”."

    return await changed(request, "move", moved)


@router.post("/references/remove")
async def remove_references(request: Request, work: Runs) -> Response:
    """Removes references. The last reference of a category cannot be removed."""
    chosen, _ = await _chosen(request)

    def removed() -> str:
        described = _checked(work.classifier, chosen)
        edits.remove(work.classifier, chosen)
        return f"{described} removed."

    return await changed(request, "remove", removed)


def _write(
    classifier: Classifier,
    name: str,
    before: Category | None,
    texts: Sequence[str],
    images: Sequence[Upload],
    so_far: _SoFar,
) -> None:
    """Adds references to a category, which is created if `before` is ``None``, and counts them in `so_far`."""
    name = before.name if before else name

    def leave_out(source: str, error: ImageError) -> None:
        so_far.unread += 1
        so_far.unread_names = [*so_far.unread_names, source][:_NAMED]

    def share(reference: StoredReference, names: Sequence[str]) -> None:
        so_far.shared += 1
        so_far.sharing = so_far.sharing or names[0]

    unread = so_far.unread
    references = [ReferenceImage(image=image, source=image.name) for image in images]
    given = CategoryInput(name=name, texts=texts or None, images=references or None)
    added = classifier.add_categories([given], on_error=leave_out, on_shared=share)
    if not added or (images and not texts and so_far.unread - unread == len(images)):
        return  # no photo is readable
    (now,) = added
    if so_far.name != name:
        so_far.name = name
        so_far.categories += 1
        so_far.new += not (before and before.own)
    so_far.photos += now.own_images - (before.own_images if before else 0)
    so_far.texts += len(now.texts) - (len(before.texts) if before else 0)


async def _chosen(request: Request) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    _, fields = await sent_form(request, 0)
    chosen: dict[str, list[str]] = defaultdict(list)
    for reference in lines_in(fields, "reference"):
        content_hash, _, name = reference.partition(":")
        chosen[name].append(content_hash)
    if not chosen:
        raise refusal(422, "No photo is chosen")
    return chosen, fields


def _checked(classifier: Classifier, chosen: Mapping[str, Collection[str]]) -> str:
    """Checks all references, before any category is changed, and returns their number and categories in words.

    Raises a Problem if a reference is missing, or if a category would lose its last reference.
    """
    numbers: Counter[str] = Counter()
    for name, hashes in chosen.items():
        there = {reference.hash: reference.modality for reference in classifier.references.of(name)}
        if not there.keys() >= set(hashes):
            raise refusal(409, f"A photo is no longer in “{name}”: reload the page")
        if there.keys() <= set(hashes):
            raise refusal(409, f"“{name}” would be empty: remove the category, or merge two categories")
        numbers.update("photo" if there[one] == "image" else "text" for one in set(hashes))
    parts = " and ".join(counted(number, kind) for kind, number in sorted(numbers.items()))
    return f"{parts} of “{'”, “'.join(sorted(chosen))}”"
