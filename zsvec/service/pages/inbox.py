"""The page *Inbox*: images that wait for a label, and groups of similar unknown images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec import Group, Unlabelled
from zsvec.errors import WeightsUnavailableError
from zsvec.service.api.common import Runs
from zsvec.service.edits import create_missing
from zsvec.service.pages.changes import changed, check_several, lines_in, names_in, quoted
from zsvec.service.pages.rendering import certainty, choices, doubt, may_change, one_of, percent, render, verdict
from zsvec.service.problems import refusal
from zsvec.service.uploads import sent_form
from zsvec.types import counted

router = APIRouter(prefix="/inbox")

_BATCH = 24  # images to load at once
_MAX_SHOWN = 16_000  # characters of the hashes of images on the page
_MAX_IN_GROUP = 60  # images to show of a group, the most typical first
_MAX_GROUPS = 20
_CHOICES = 5
_CLEARER = "It was unsure at first; photos or texts added since have made it clearer."


@router.get("")
async def show(request: Request, work: Runs) -> Response:
    """Shows the page without images, because ranking the images may take a moment."""
    inbox = work.classifier.inbox

    def read() -> dict[str, Any]:
        several = work.classifier.labels == "many"
        return {"waiting": len(inbox), "categories": work.classifier.categories(), "several": several}

    keep = work.classifier.settings.keep
    return render(request, "inbox.html", tab="/inbox", keep=keep, choices=_CHOICES, **await work.run(read))


@router.get("/next")
async def more(request: Request, work: Runs, shown: Annotated[str, Query(max_length=_MAX_SHOWN)] = "") -> Response:
    """Shows the next images in the current ranking. `shown` has the hashes of images to omit, separated by commas."""
    there = set(filter(None, shown.split(",")))

    def read() -> tuple[int, list[Unlabelled]]:
        inbox = work.classifier.inbox
        return len(inbox), [image for image in inbox.rank(_BATCH + len(there)) if image.hash not in there]

    waiting, found = await work.run(read)
    images = [_described(image) for image in found[:_BATCH]]
    return render(request, "inbox_images.html", waiting=waiting, images=images)


def _described(image: Unlabelled) -> dict[str, Any]:
    """Returns the template's variables for an image: verdict, short guess, headline, reason, likely categories."""
    described = {"image": image, "name": image.source.replace("\\", "/").rpartition("/")[2] or image.source}
    prediction = image.prediction
    if prediction is None:
        headline = "There are no categories yet"
        return described | {"verdict": "unknown", "guess": "", "headline": headline, "why": "", "choices": ()}
    nearest, probability = prediction.ranking[0]
    if prediction.unknown:
        guess, headline = "", "This looks like none of your categories"
    else:
        guess, headline = f"{nearest}, {percent(probability)}", f"{certainty(probability)} {nearest}"
    why = doubt(prediction) if image.uncertainty else _CLEARER
    shares = dict(prediction.ranking[:_CHOICES])
    if asked := choices(prediction):
        headline, why = f"{one_of(asked)} {', '.join(asked)}", ""
        shares = {label: shares.get(label, 0.0) for label in asked}
    buttons = [(label, "" if prediction.unknown else percent(share), share) for label, share in shares.items()]
    shown = {"verdict": verdict(prediction), "guess": guess, "headline": headline, "why": why, "choices": buttons}
    return described | shown


@router.get("/groups")
async def groups(request: Request, work: Runs) -> Response:
    """Shows groups of similar unknown images, without names, because naming groups may need the encoders."""
    found = await work.run(lambda: work.classifier.inbox.groups(names=False))
    return render(request, "inbox_groups.html", groups=found, most=_MAX_GROUPS, most_images=_MAX_IN_GROUP)


@router.get("/names")
async def names(request: Request, work: Runs) -> Response:
    """Shows proposed names of the groups, unless the encoders cannot be loaded or the key may only read."""

    def read() -> list[Group]:
        inbox = work.classifier.inbox
        try:
            return inbox.groups(names=may_change(request))
        except WeightsUnavailableError:
            return inbox.groups(names=False)

    return render(request, "inbox_names.html", groups=(await work.run(read))[:_MAX_GROUPS])


@router.post("/label")
async def label(request: Request, work: Runs) -> Response:
    """Adds images to a category as references; to several categories if the field has several lines.

    Missing categories are created.
    """
    hashes, fields = await _chosen(request)
    names = names_in(fields, "category")
    inbox = work.classifier.inbox

    def labelled() -> str:
        check_several(work.classifier, names)
        there = hashes.intersection(inbox.hashes())
        if not there:
            return _no_longer_there(hashes)
        create_missing(work.classifier, *names)
        inbox.label(there, names)
        left = f" {_no_longer_there(hashes - there)}" if hashes - there else ""
        return f"{counted(len(there), 'photo')} labelled {quoted(names)}.{left}"

    return await changed(request, "label", labelled)


@router.post("/dismiss")
async def dismiss(request: Request, work: Runs) -> Response:
    """Removes images from the inbox without labelling them."""
    hashes, _ = await _chosen(request)
    inbox, days = work.classifier.inbox, work.classifier.settings.inbox_days

    def dismissed() -> str:
        there = hashes.intersection(inbox.hashes())
        if not there:
            return _no_longer_there(hashes)
        inbox.dismiss(there)
        return f"{counted(len(there), 'photo')} dismissed. None like {_them(there)} comes here again for {days:g} days."

    return await changed(request, "dismiss", dismissed)


async def _chosen(request: Request) -> tuple[set[str], Mapping[str, Sequence[str]]]:
    _, fields = await sent_form(request, 0)
    hashes = set(lines_in(fields, "hash"))
    if not hashes:
        raise refusal(422, "No photo is chosen")
    return hashes, fields


def _no_longer_there(hashes: Collection[str]) -> str:
    return f"{counted(len(hashes), 'photo')} had been labelled or dismissed meanwhile."


def _them(hashes: Collection[str]) -> str:
    return "it" if len(hashes) == 1 else "them"
