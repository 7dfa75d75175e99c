"""The page of one category: all that it has, and what can be changed of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec import Classifier, checked_name
from zsvec.service.api.common import Name, Runs
from zsvec.service.pages.categories import added, lines
from zsvec.service.pages.changes import changed
from zsvec.service.pages.rendering import category_path, is_part, render
from zsvec.service.problems import Problem
from zsvec.service.uploads import sent_form
from zsvec.types import counted

router = APIRouter(prefix="/categories/{name}")


@router.get("")
async def show(request: Request, name: Name, work: Runs) -> Response:
    """The page, or what is in it."""
    found = await work.run(lambda: _all_of(work.classifier, name))
    template = "category_content.html" if is_part(request) else "category.html"
    return render(request, template, tab="/categories", limits=work.limits, **found)


def _all_of(classifier: Classifier, name: str) -> dict[str, Any]:
    category = classifier.category(name)
    stored = classifier.references.of(category.name)
    return {
        "name": category.name,
        "names": [other.name for other in classifier.categories()],
        "texts": [reference for reference in stored if reference.modality == "text"],
        "pictures": [reference for reference in stored if reference.modality == "image"],
    }


@router.post("/references")
async def add(request: Request, name: Name, work: Runs) -> Response:
    """Add texts and images."""
    images, fields = await sent_form(request, work.limits.images)
    texts = lines(fields.get("texts", []))
    if not images and not texts:
        raise Problem(422, "There is no text and no picture to add")

    def add_to() -> str:
        category = work.classifier.category(checked_name(name))  # a page may be older than its removal
        return added(work.classifier, category.name, texts, images)

    return await changed(request, "add", add_to)


@router.post("/move")
async def move(request: Request, name: Name, work: Runs) -> Response:
    """Move references to another category."""
    _, fields = await sent_form(request, 0)
    target = checked_name(_field(fields, "category"))
    hashes = fields.get("hash", [])

    def moved() -> str:
        work.classifier.references.move(hashes, source=name, target=target)
        return f"{counted(len(hashes), 'reference')} moved from “{name}” to “{target}”."

    return await changed(request, "move", moved)


@router.post("/references/remove")
async def remove_references(request: Request, name: Name, work: Runs) -> Response:
    """Remove some references; the last one of a category stays."""
    _, fields = await sent_form(request, 0)
    hashes = fields.get("hash", [])

    def removed() -> str:
        work.classifier.references.remove(name, hashes)
        return f"{counted(len(hashes), 'reference')} removed from “{name}”."

    return await changed(request, "remove", removed)


@router.post("/rename")
async def rename(request: Request, name: Name, work: Runs) -> Response:
    """Give it another name."""
    _, fields = await sent_form(request, 0)
    new = checked_name(_field(fields, "new"))

    def renamed() -> str:
        if new in {category.name for category in work.classifier.categories()}:
            raise Problem(409, f"There is a category “{new}” already: merge the two, or take another name")
        work.classifier.references.rename(name, new)
        return f"“{name}” is called “{new}” now."

    return await changed(request, "rename", renamed, goes=category_path(new))


@router.post("/merge")
async def merge(request: Request, name: Name, work: Runs) -> Response:
    """Move all of it to another one, which is there."""
    _, fields = await sent_form(request, 0)
    target = checked_name(_field(fields, "category"))

    def merged() -> str:
        work.classifier.references.merge(name, target)
        return f"“{name}” is part of “{target}” now."

    return await changed(request, "merge", merged, goes=category_path(target))


@router.post("/remove")
async def remove(request: Request, name: Name, work: Runs) -> Response:
    """Remove it with all of its references."""

    def removed() -> str:
        work.classifier.remove_category(name)
        return f"“{name}” is removed."

    return await changed(request, "remove", removed, goes="/categories")


def _field(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[0]
