"""The page *Audit*: label errors, near-duplicates and other findings among the reference photos, and what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from zsvec import Audit, Classifier
from zsvec.errors import CategoryNotFoundError
from zsvec.service.api.common import Runs
from zsvec.service.api.schemas import NAME
from zsvec.service.edits import create_missing
from zsvec.service.pages.changes import changed, lines_in, name_in
from zsvec.service.pages.comparisons import Comparison, audit_of, comparisons_of, is_automatic, without_gone
from zsvec.service.pages.rendering import render
from zsvec.service.problems import refusal
from zsvec.service.uploads import sent_form
from zsvec.types import counted

router = APIRouter(prefix="/audit")

_SHOWN = 30  # findings of each kind at first; "Show more" adds as many
_EXAMPLES = 3  # photos of a category to show with a finding
_MAX_PAGE = 1_000_000
_FINDINGS = "/audit/findings"

_Kind: TypeAlias = Literal["labels", "duplicates", "confusions", "outliers", "thin"]

# Returns the categories that a finding concerns.
_CONCERNED: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "labels": lambda one: (one.category, one.instead),
    "duplicates": lambda one: [image.category for image in one.images],
    "confusions": lambda one: one.categories,
    "outliers": lambda one: (one.image.category,),
    "thin": lambda one: (one.category,),
}
_DONE = {
    "move": "moved.",
    "remove": "removed.",
    "keep": "ignored: the audit does not show this again.",
    "unkeep": "shown again.",
}


@dataclass(frozen=True)
class _View:
    """The findings to show.

    Attributes:
        of: Id of the comparison that the page shows; empty for the present references.
        kind: Kind of the findings; empty for all.
        category: Name of a category that the findings concern; empty for all.
        sort: Whether the most doubtful findings are first, or the findings are in the order of their categories.
        kept: Whether to show the findings that were kept, instead of the findings that wait for a decision.
    """

    of: str
    kind: _Kind | Literal[""]
    category: str
    sort: Literal["doubt", "category"]
    kept: bool


async def _view_of(
    of: Annotated[str, Query(max_length=16)] = "",
    kind: _Kind | Literal[""] = "",
    category: Annotated[str, Query(max_length=NAME["maxLength"])] = "",
    sort: Literal["doubt", "category"] = "doubt",
    kept: bool = False,
) -> _View:
    return _View(of, kind, category.strip(), sort, kept)


_Shown = Annotated[_View, Depends(_view_of)]


class _SoFar(BaseModel):
    """Number of photos in the earlier requests of the same change. The browser keeps the number in between."""

    photos: int = Field(default=0, ge=0, le=10**9)


@router.get("")
async def show(request: Request, work: Runs, view: _Shown) -> Response:
    """Shows the page without findings, because finding them takes a while."""
    categories = await work.run(work.classifier.categories)
    images = sum(category.images for category in categories)
    return render(
        request,
        "audit.html",
        tab="/audit",
        images=images,
        categories=categories,
        automatic=is_automatic(images),
        view=view,
        path=_FINDINGS,
    )


@router.get("/findings")
async def findings(request: Request, work: Runs, view: _Shown, again: bool = False) -> Response:
    """Shows the first findings of each kind, or that the comparison is still running."""
    comparison = await comparisons_of(request).find(view.of, again=again)
    audit = await audit_of(comparison)
    if audit is None:
        return render(request, "comparing.html", path=f"{_FINDINGS}?of={comparison.id}")
    read = partial(_read, work.classifier, comparison, audit, view)
    return render(request, "audit_findings.html", **await work.run(read))


@router.get("/more")
async def more(
    request: Request,
    work: Runs,
    view: _Shown,
    more: _Kind,
    after: Annotated[int, Query(ge=0, le=_MAX_PAGE)],
) -> Response:
    """Shows the next findings of one kind, after the ones that the page has."""
    comparison = comparisons_of(request).remembered(view.of)
    if comparison is None or (audit := await audit_of(comparison)) is None:
        raise refusal(409, "The photos have been compared again: reload the page")
    read = partial(_read, work.classifier, comparison, audit, replace(view, kind=more), after)
    return render(request, "audit_more.html", kind=more, **await work.run(read))


def _read(classifier: Classifier, comparison: Comparison, audit: Audit, view: _View, after: int = 0) -> dict[str, Any]:
    """Returns the variables of the templates: for each kind, the number of findings, and those to show."""
    waiting, kept = classifier.references.split_kept(without_gone(audit, comparison.contents, classifier))
    chosen = kept if view.kept else waiting
    found = {
        kind: _in_view(getattr(chosen, kind), concerned, view)
        for kind, concerned in _CONCERNED.items()
        if view.kind in ("", kind)
    }
    shown = {kind: of_kind[after : after + _SHOWN] for kind, of_kind in found.items()}
    pairs = [(one.category, one.instead) for one in shown.get("labels", ())]
    pairs += [one.categories for one in shown.get("confusions", ())]
    return {
        "audit": waiting,
        "comparison": comparison.id,
        "view": view,
        "found": found,
        "shown": shown,
        "examples": _examples(classifier, sorted({name for pair in pairs for name in pair}), audit),
    }


def _in_view(findings: Sequence[Any], concerned: Callable[[Any], Sequence[str]], view: _View) -> list[Any]:
    chosen = [one for one in findings if not view.category or view.category in concerned(one)]
    return sorted(chosen, key=lambda one: [*concerned(one)]) if view.sort == "category" else chosen


def _examples(classifier: Classifier, names: Sequence[str], found: Audit) -> dict[str, list[str]]:
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


@router.post("/{act}")
async def decide(request: Request, act: Literal["move", "remove", "keep", "unkeep"], work: Runs) -> Response:
    """Moves or removes photos, or keeps or doubts findings. A change may take several requests."""
    chosen, fields = await _chosen(request, act)
    so_far = _SoFar()
    continues = fields.get("change", [None])[0]
    if continues is not None:
        with suppress(ValidationError):
            so_far = _SoFar.model_validate_json(fields.get("so_far", [""])[0])
    references = work.classifier.references
    targets = {target for _, target in chosen} if act == "move" else set()

    def decided() -> str:
        _check(work.classifier, chosen, act)
        for target in targets:
            create_missing(work.classifier, target)
        if act == "move":
            references.move_many(chosen)
        value: Any  # a kind of finding is checked by `keep`
        for (name, value), hashes in chosen.items():
            if act == "remove":
                references.remove(name, hashes)
            elif act == "keep":
                references.keep(name, hashes, finding=value)
            elif act == "unkeep":
                references.unkeep(name, hashes, finding=value)
        so_far.photos += len({(name, one) for (name, _), hashes in chosen.items() for one in hashes})
        photos = counted(so_far.photos, "photo")
        if act == "move" and continues is None and len(targets) == 1:
            return f"{photos} moved to “{min(targets)}”."
        return f"{photos} {_DONE[act]}"

    return await changed(request, act, decided, continues=continues, so_far=so_far)


async def _chosen(request: Request, act: str) -> tuple[dict[tuple[str, str], list[str]], Mapping[str, Sequence[str]]]:
    """Returns the hashes in a form by category and value: a target to move to, or the kind of a finding to keep."""
    _, fields = await sent_form(request, 0)
    references, values = lines_in(fields, "reference"), lines_in(fields, "value")
    if not references:
        raise refusal(422, "No photo is chosen")
    if act == "remove":
        values = [""] * len(references)
    if len(values) != len(references):
        raise refusal(422, "Each photo needs a category to move to, or a kind of finding")
    names = {value: name_in({"value": [value]}, "value") if act == "move" else value for value in set(values)}
    chosen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for reference, value in zip(references, values, strict=True):
        content_hash, _, name = reference.partition(":")
        chosen[name, names[value]].append(content_hash)
    return chosen, fields


def _check(classifier: Classifier, chosen: Mapping[tuple[str, str], Collection[str]], act: str) -> None:
    """Raises a Problem before any category is changed.

    A photo may be missing, may be where it is moved to, or may be the last reference of its category.
    """
    there = classifier.references.holders({content_hash for hashes in chosen.values() for content_hash in hashes})
    leaving: dict[str, set[str]] = defaultdict(set)
    for (name, value), hashes in chosen.items():
        if not all(name in there.get(content_hash, ()) for content_hash in hashes):
            raise refusal(409, f"A photo is no longer in “{name}”: compare again")
        if act == "move" and name == value:
            raise refusal(409, f"A photo is in “{name}” already: choose another category")
        leaving[name].update(hashes)
    if act not in ("move", "remove"):
        return
    for name, hashes in leaving.items():
        category = classifier.category(name)
        if not category.texts and len(hashes) >= category.own_images:
            raise refusal(409, f"“{name}” would have no reference: remove the category, or merge two categories")
