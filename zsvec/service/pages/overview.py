"""The page *Overview*: size and accuracy of the store, and proposals for the next photos."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec.service.api.common import Runs
from zsvec.service.pages.comparisons import audit_of, comparisons_of, is_automatic, without_gone
from zsvec.service.pages.rendering import render
from zsvec.types import ThresholdProgress

router = APIRouter(prefix="/overview")

_SHOWN = 10  # of each kind
_FINDINGS = "/overview/findings"


@router.get("")
async def show(request: Request, work: Runs) -> Response:
    """Shows the numbers of the store. What takes a comparison of all photos comes later."""

    def read() -> dict[str, Any]:
        classifier = work.classifier
        categories = classifier.categories()
        info = classifier.info()
        images = sum(category.images for category in categories)
        photos = sum(category.own_images for category in categories)
        return {
            "categories": len(categories),
            "images": images,
            "automatic": is_automatic(images),
            "photos": photos,
            "points": images - photos,
            "texts": sum(len(category.texts) for category in categories),
            "waiting": len(classifier.inbox),
            "progress": ThresholdProgress.from_dict(info["threshold_progress"]),
            "calibration": info["calibration"],
        }

    return render(request, "overview.html", tab="/categories", path=_FINDINGS, **await work.run(read))


@router.get("/findings")
async def findings(request: Request, work: Runs, of: Annotated[str, Query(max_length=16)] = "") -> Response:
    """Shows what comparing all photos has found, or that the comparison is still running."""
    comparison = await comparisons_of(request).find(of)
    audit = await audit_of(comparison)
    if audit is None:
        return render(request, "comparing.html", path=f"{_FINDINGS}?of={comparison.id}")

    def read() -> dict[str, Any]:
        classifier = work.classifier
        found, _ = classifier.references.split_kept(without_gone(audit, comparison.contents, classifier))
        return {
            "audit": found,
            "images": {category.name: category.images for category in classifier.categories()},
            "groups": classifier.inbox.groups(names=False),
            "most": _SHOWN,
        }

    return render(request, "overview_findings.html", **await work.run(read))
