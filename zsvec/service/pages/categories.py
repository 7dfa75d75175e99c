"""The page *Categories*, the page of each category, and moving and removing references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from zsvec import CategoryInput, Classifier, ReferenceImage
from zsvec.errors import CategoryNotFoundError, ImageError
from zsvec.service.api.common import Name, Runs
from zsvec.service.pages.changes import changed, create_missing, name_in
from zsvec.service.pages.rendering import category_path, is_part, render
from zsvec.service.problems import refusal
from zsvec.service.uploads import Upload, sent_form
from zsvec.types import Category, StoredReference, counted

router = APIRouter()

_CARDS = 60  # shown at first; "Show more" adds twice as many
_PICTURES = 6  # of a card
_MAX_CARDS = 100_000
_NAMED = 5  # unreadable pictures


@dataclass(frozen=True)
class _Card:
    name: str
    texts: Sequence[str]
    images: int
    attached: int
    pictures: Sequence[StoredReference]


class _SoFar(BaseModel):
    """Results of the earlier requests that belong to the same change. The browser keeps them in between."""

    new: bool = False
    pictures: int = 0
    unread: list[str] = []


@router.get("/categories")
async def show(
    request: Request,
    work: Runs,
    filter: str = "",  # noqa: A002 - as in the address
    shown: Annotated[int, Query(ge=1, le=_MAX_CARDS)] = _CARDS,
) -> Response:
    """Shows the categories with `filter` in the name, as a whole page or as cards alone."""
    wanted = filter.strip().casefold()

    def read() -> tuple[list[str], list[str], list[_Card], dict[str, Any]]:
        categories = work.classifier.categories()
        info = {} if wanted else work.classifier.info()
        found = [category for category in categories if wanted in category.name.casefold()]
        names = [category.name for category in categories]
        cards = list(_cards(work.classifier, found[:shown]))
        return names, [category.name for category in found], cards, info

    names, found, cards, info = await work.run(read)
    more = urlencode({"filter": filter, "shown": shown + 2 * _CARDS}) if len(found) > shown else None
    return render(
        request,
        "cards.html" if is_part(request) else "categories.html",
        tab="/categories",
        names=names,
        found=len(found),
        cards=cards,
        progress=info.get("threshold_progress"),
        collections=info.get("attached", ()),
        calibrated=info.get("calibration") != "none",
        filter=filter,
        more=more,
        limits=work.limits,
    )


def _cards(classifier: Classifier, categories: Iterable[Category]) -> Iterable[_Card]:
    for category in categories:
        try:
            stored = classifier.references.of(category.name)
        except CategoryNotFoundError:
            continue  # removed since
        images = [reference for reference in stored if reference.modality == "image"]
        yield _Card(category.name, category.texts, len(images), _attached(category), images[:_PICTURES])


def _attached(category: Category) -> int:
    """Returns the number of points of attached collections. If it differs between experts, the largest number."""
    return max(category.attached.values(), default=0)


@router.post("/categories")
async def create(request: Request, work: Runs) -> Response:
    """Creates a category from a name, texts and images."""
    images, fields = await sent_form(request, work.limits.images)
    name = name_in(fields, "name")
    so_far = _SoFar(new=True)

    def created() -> str:
        if name in {category.name for category in work.classifier.categories() if category.own}:
            raise refusal(409, f"There is a category “{name}” already: add to that category, or take another name")
        return _added(work.classifier, name, _lines(fields), images, so_far)

    return await changed(request, "add", created, so_far=so_far)


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
            "names": [other.name for other in work.classifier.categories()],
            "texts": [reference for reference in stored if reference.modality == "text"],
            "pictures": [reference for reference in stored if reference.modality == "image"],
        }

    found = await work.run(read)
    template = "category_content.html" if is_part(request) else "category.html"
    return render(request, template, tab="/categories", limits=work.limits, **found)


@router.post("/categories/{name}/references")
async def add(request: Request, name: Name, work: Runs) -> Response:
    """Adds texts and images to a category."""
    images, fields = await sent_form(request, work.limits.images)
    texts = _lines(fields)
    if not images and not texts:
        raise refusal(422, "There is no text and no picture to add")
    continues = fields.get("change", [None])[0]
    so_far = _SoFar()
    if continues is not None:
        with suppress(ValidationError):
            so_far = _SoFar.model_validate_json(fields.get("so_far", [""])[0])

    def added() -> str:
        category = work.classifier.category(name)  # may have been removed meanwhile
        return _added(work.classifier, category.name, texts, images, so_far)

    return await changed(request, "add", added, continues=continues, so_far=so_far)


@router.post("/categories/{name}/rename")
async def rename(request: Request, name: Name, work: Runs) -> Response:
    """Renames a category."""
    _, fields = await sent_form(request, 0)
    new = name_in(fields, "new")

    def renamed() -> str:
        if new in {category.name for category in work.classifier.categories()}:
            raise refusal(409, f"There is a category “{new}” already: merge the two, or take another name")
        work.classifier.references.rename(name, new)
        return f"“{name}” is now “{new}”."

    return await changed(request, "rename", renamed, goes=category_path(new))


@router.post("/categories/{name}/merge")
async def merge(request: Request, name: Name, work: Runs) -> Response:
    """Merges a category into another."""
    _, fields = await sent_form(request, 0)
    target = name_in(fields, "category")

    def merged() -> str:
        if name == target:
            raise refusal(422, "A category cannot be merged into itself. Choose another category")
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


@router.post("/references/move")
async def move_references(request: Request, work: Runs) -> Response:
    """Moves references to another category, which is created if missing."""
    chosen, fields = await _chosen(request)
    target = name_in(fields, "category")

    def moved() -> str:
        if target in chosen:
            raise refusal(409, f"A reference is in “{target}” already: choose another category")
        _check(work.classifier, chosen)
        create_missing(work.classifier, target)
        for source, hashes in chosen.items():
            work.classifier.references.move(hashes, source=source, target=target)
        return f"{_described(chosen)} moved to “{target}”."

    return await changed(request, "move", moved)


@router.post("/references/remove")
async def remove_references(request: Request, work: Runs) -> Response:
    """Removes references. The last reference of a category cannot be removed."""
    chosen, _ = await _chosen(request)

    def removed() -> str:
        _check(work.classifier, chosen)
        for source, hashes in chosen.items():
            work.classifier.references.remove(source, hashes)
        return f"{_described(chosen)} removed."

    return await changed(request, "remove", removed)


def _lines(fields: Mapping[str, Sequence[str]]) -> list[str]:
    return [line.strip() for text in fields.get("texts", ()) for line in text.splitlines() if line.strip()]


def _added(classifier: Classifier, name: str, texts: Sequence[str], images: Sequence[Upload], so_far: _SoFar) -> str:
    """Adds references, counts them in `so_far`, and returns a message about all requests of the change."""
    before = {category.name: category for category in classifier.categories()}.get(name)
    read = len(images)

    def leave_out(source: str, error: ImageError) -> None:
        nonlocal read
        read -= 1
        so_far.unread.append(source)

    references = [ReferenceImage(image=image, source=image.name) for image in images]
    given = CategoryInput(name=name, texts=texts or None, images=references)
    added = classifier.add_categories([given], on_error=leave_out)
    unread = so_far.unread
    named = ", ".join(unread[:_NAMED]) + (f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else "")
    left_out = f" {counted(len(unread), 'picture')} could not be read: {named}." if unread else ""
    if images and not (read or texts or so_far.pictures):
        raise refusal(422, left_out.strip())  # undoes the change
    category = added[0] if added else classifier.category(name)
    so_far.pictures += category.images - (before.images if before else 0)
    if so_far.new:
        pictures = f" with {counted(so_far.pictures, 'picture')}" if so_far.pictures else ""
        return f"“{name}” is a new category{pictures}.{left_out}"
    new = ((so_far.pictures, "picture"), (len(category.texts) - (len(before.texts) if before else 0), "text"))
    parts = [counted(number, kind) for number, kind in new if number > 0]
    return f"{' and '.join(parts)} added to “{name}”.{left_out}" if parts else f"“{name}” has these already."


async def _chosen(request: Request) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    _, fields = await sent_form(request, 0)
    chosen: dict[str, list[str]] = defaultdict(list)
    for reference in fields.get("reference", ()):
        content_hash, _, name = reference.partition(":")
        chosen[name].append(content_hash)
    if not chosen:
        raise refusal(422, "No reference is chosen")
    return chosen, fields


def _check(classifier: Classifier, chosen: Mapping[str, Collection[str]]) -> None:
    """Checks all references, before any category is changed.

    Raises a Problem if a reference is missing, or if a category would lose its last reference.
    """
    for name, hashes in chosen.items():
        there = {reference.hash for reference in classifier.references.of(name)}
        if not there.issuperset(hashes):
            raise refusal(409, f"A reference is no longer in “{name}”: reload the page")
        if there.issubset(hashes):
            raise refusal(409, f"“{name}” would have no reference: remove the category, or merge two categories")


def _described(chosen: Mapping[str, Collection[str]]) -> str:
    references = counted(sum(map(len, chosen.values())), "reference")
    return f"{references} of “{'”, “'.join(sorted(chosen))}”"
