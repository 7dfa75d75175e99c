"""The page *Categories*: all of them as cards, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec import CategoryInput, Classifier, ReferenceImage, checked_name
from zsvec.errors import CategoryNotFoundError, ImageError
from zsvec.service.api.common import Runs
from zsvec.service.pages.changes import changed
from zsvec.service.pages.rendering import is_part, render
from zsvec.service.problems import Problem
from zsvec.service.uploads import Upload, sent_form
from zsvec.types import Category, StoredReference, counted

router = APIRouter()

_CARDS = 60  # at first, and more each time that more are asked for
_PICTURES = 6  # of a card
_MOST_CARDS = 100_000


@dataclass(frozen=True)
class _Card:
    """A category, with some of its pictures."""

    name: str
    texts: Sequence[str]
    images: int
    pictures: Sequence[StoredReference]


@router.get("/categories")
async def show(
    request: Request,
    work: Runs,
    filter: str = "",  # noqa: A002 - as the address has it
    shown: Annotated[int, Query(ge=1, le=_MOST_CARDS)] = _CARDS,
) -> Response:
    """The page, or the cards alone: those whose name has a text in it, by name, and so many at most."""
    wanted = filter.strip().casefold()

    def read() -> tuple[list[str], list[str], list[_Card]]:
        categories = work.classifier.categories()
        found = [category for category in categories if wanted in category.name.casefold()]
        names = [category.name for category in categories]
        return names, [category.name for category in found], list(_cards(work.classifier, found[:shown]))

    names, found, cards = await work.run(read)
    more = urlencode({"filter": filter, "shown": shown + 2 * _CARDS}) if len(found) > shown else None
    return render(
        request,
        "cards.html" if is_part(request) else "categories.html",
        tab="/categories",
        names=names,
        found=len(found),
        cards=cards,
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
        yield _Card(category.name, category.texts, len(images), images[:_PICTURES])


@router.post("/categories")
async def add(request: Request, work: Runs) -> Response:
    """Make a category of a name, texts and images."""
    images, fields = await sent_form(request, work.limits.images)
    name = checked_name(fields.get("name", [""])[0])

    def make() -> str:
        if name in {category.name for category in work.classifier.categories()}:
            raise Problem(409, f"There is a category “{name}” already: open it to add to it, or take another name")
        return added(work.classifier, name, lines(fields.get("texts", [])), images)

    return await changed(request, "add", make)


def lines(texts: Iterable[str]) -> list[str]:
    """Texts of fields that have one a line."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def added(classifier: Classifier, name: str, texts: Sequence[str], images: Sequence[Upload]) -> str:
    """Add texts and images to a category, which is made if there is none, and say what became of them.

    Images that cannot be read are left out, and named.

    Raises:
        Problem: There is nothing to add that can be read.
        ZSVecError: As `zsvec.classifier.Classifier.add_categories`.
    """
    before = {category.name: category for category in classifier.categories()}.get(name)
    unread: list[str] = []

    def leave_out(source: str, error: ImageError) -> None:
        unread.append(str(error))

    references = [ReferenceImage(image=image, source=image.name) for image in images]
    given = CategoryInput(name=name, texts=texts or None, images=references)
    (category,) = classifier.add_categories([given], on_error=leave_out)
    left_out = f" {counted(len(unread), 'picture')} could not be read: {'; '.join(unread)}." if unread else ""
    if images and len(unread) == len(images) and not texts:
        raise Problem(422, left_out.strip())  # and nothing stays
    if before is None:
        return f"“{name}” is a new category{_with(category)}.{left_out}"
    pictures = category.images - before.images
    new_texts = len(category.texts) - len(before.texts)
    parts = [counted(n, one) for n, one in ((pictures, "picture"), (new_texts, "text")) if n > 0]
    if parts:
        return f"{' and '.join(parts)} added to “{name}”.{left_out}"
    return f"“{name}” has all of that already."


def _with(category: Category) -> str:
    return f" with {counted(category.images, 'picture')}" if category.images else ", told by its words alone"
