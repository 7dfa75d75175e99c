"""The page *Audit*: label errors, near-duplicates and other findings among the reference images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec import Audit, Classifier
from zsvec.errors import CategoryNotFoundError
from zsvec.service.api.common import Runs
from zsvec.service.pages.rendering import render

router = APIRouter(prefix="/audit")

_SHOWN = 30  # findings of each kind
_EXAMPLES = 3  # pictures of a category to show with a finding
_MAX_AUTOMATIC = 5000  # images to compare without a click; the time grows with the square of the number


@router.get("")
async def show(request: Request, work: Runs) -> Response:
    """Shows the page without findings, because finding them takes a while."""
    images = sum(category.images for category in await work.run(work.classifier.categories))
    return render(request, "audit.html", tab="/audit", images=images, automatic=images <= _MAX_AUTOMATIC)


@router.get("/findings")
async def findings(request: Request, work: Runs, kept: bool = False) -> Response:
    """Shows the findings of each kind, most doubtful first; with `kept`, also those that were kept."""

    def read() -> dict[str, Any]:
        found = work.classifier.references.audit(kept=kept)
        pairs = [(suspect.category, suspect.instead) for suspect in found.labels[:_SHOWN]]
        pairs += [confusion.categories for confusion in found.confusions[:_SHOWN]]
        names = sorted({name for pair in pairs for name in pair})
        return {"audit": found, "examples": _examples(work.classifier, names, found)}

    return render(request, "audit_findings.html", most=_SHOWN, **await work.run(read))


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
