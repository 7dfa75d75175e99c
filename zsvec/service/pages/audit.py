"""The page *Audit*: what is doubtful among the reference images, and what can be done about each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec import Audit, Classifier, checked_name
from zsvec.errors import CategoryNotFoundError
from zsvec.service.api.common import Runs
from zsvec.service.pages.changes import changed
from zsvec.service.pages.rendering import render
from zsvec.service.problems import Problem
from zsvec.service.uploads import sent_form
from zsvec.types import counted

router = APIRouter(prefix="/audit")

_SHOWN = 30  # findings of a kind
_EXAMPLES = 3  # pictures of a category, beside what may not belong to it
_AT_ONCE = 5000  # images that are compared without being asked to: the time grows with their square


@router.get("")
async def show(request: Request, work: Runs) -> Response:
    """The page, without the findings: to compare all images takes a while."""
    images = sum(category.images for category in await work.run(work.classifier.categories))
    return render(request, "audit.html", tab="/audit", images=images, at_once=images <= _AT_ONCE)


@router.get("/findings")
async def findings(request: Request, work: Runs) -> Response:
    """What is doubtful, of each kind the most doubtful first."""

    def read() -> dict[str, Any]:
        found = work.classifier.references.audit()
        names = {name for pair in _pairs(found) for name in pair}
        return {
            "audit": found,
            "examples": _examples(work.classifier, sorted(names), found),
            "names": [category.name for category in work.classifier.categories()],
        }

    return render(request, "audit_findings.html", most=_SHOWN, **await work.run(read))


def _pairs(found: Audit) -> list[tuple[str, str]]:
    """The categories that are to be shown side by side."""
    labels = [(suspect.category, suspect.instead) for suspect in found.labels[:_SHOWN]]
    return labels + [confusion.categories for confusion in found.confusions[:_SHOWN]]


def _examples(classifier: Classifier, names: Sequence[str], found: Audit) -> dict[str, list[str]]:
    """Hashes of a few pictures of each category, of those that nothing is said against."""
    doubtful = {(one.category, one.hash) for one in found.labels} | {
        (image.category, image.hash) for confusion in found.confusions for image in confusion.images
    }
    examples: dict[str, list[str]] = {}
    for name in names:
        try:
            stored = classifier.references.of(name)
        except CategoryNotFoundError:
            stored = []  # removed since
        hashes = [one.hash for one in stored if one.modality == "image" and (name, one.hash) not in doubtful]
        examples[name] = hashes[:_EXAMPLES]
    return examples


@router.post("/move")
async def move(request: Request, work: Runs) -> Response:
    """Move references to another category, which is made if there is none."""
    chosen, category = await _chosen(request)
    target = checked_name(category)

    def moved() -> str:
        if target in chosen:
            raise Problem(422, f"A picture of “{target}” is there already: choose another category for it")
        _check(work.classifier, chosen)
        for source, hashes in chosen.items():
            work.classifier.references.move(hashes, source=source, target=target)
        return f"{_said(chosen)} moved to “{target}”."

    return await changed(request, "move", moved)


@router.post("/remove")
async def remove(request: Request, work: Runs) -> Response:
    """Remove references; the last one of a category stays."""
    chosen, _ = await _chosen(request)

    def removed() -> str:
        _check(work.classifier, chosen)
        for source, hashes in chosen.items():
            work.classifier.references.remove(source, hashes)
        return f"{_said(chosen)} removed."

    return await changed(request, "remove", removed)


async def _chosen(request: Request) -> tuple[dict[str, list[str]], str]:
    """The references of a form, as hashes by category, and the category that they are to go to."""
    _, fields = await sent_form(request, 0)
    chosen: dict[str, list[str]] = defaultdict(list)
    for given in fields.get("reference", ()):
        content_hash, _, name = given.partition(":")
        chosen[name].append(content_hash)
    if not chosen:
        raise Problem(422, "No picture is chosen")
    return chosen, fields.get("category", [""])[0]


def _check(classifier: Classifier, chosen: Mapping[str, Collection[str]]) -> None:
    """Refuse what a category has not, or could not lose, before another one is changed.

    Raises:
        CategoryNotFoundError: There is no such category.
        Problem: It has no such reference, or would have none at all.
    """
    for name, hashes in chosen.items():
        there = {one.hash for one in classifier.references.of(name)}
        if not there.issuperset(hashes):
            raise Problem(422, f"A picture is in “{name}” no more: reload the page")
        if there.issubset(hashes):
            raise Problem(422, f"“{name}” would have no reference: remove it, or merge it into another category")


def _said(chosen: dict[str, list[str]]) -> str:
    pictures = counted(sum(map(len, chosen.values())), "picture")
    return f"{pictures} of “{'”, “'.join(sorted(chosen))}”"
