"""The page *Inbox*: images that wait for a label, a few at a time, and groups of those that look alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec import Group, Unlabelled, checked_name
from zsvec.errors import WeightsUnavailableError
from zsvec.service.api.common import Runs
from zsvec.service.pages.changes import changed
from zsvec.service.pages.rendering import may_change, percent, render
from zsvec.service.pages.words import how_sure
from zsvec.service.problems import Problem
from zsvec.service.uploads import sent_form
from zsvec.types import Prediction, counted

router = APIRouter(prefix="/inbox")

_AT_ONCE = 24  # images that are loaded, and again when few are left
_LONGEST = 16_000  # characters that name what is shown
_IN_GROUP = 60  # images of a group that are shown, the most typical
_GROUPS = 20
_CHOICES = 5


@dataclass(frozen=True)
class _Waiting:
    """An image that waits, in words.

    Attributes:
        image: It.
        name: Last part of where it came from.
        guess: What it would be called now, in short.
        headline: The same in a sentence.
        why: Why it is here.
        choices: Categories that it may be of: name, probability in words, and the probability.
    """

    image: Unlabelled
    name: str
    guess: str
    headline: str
    why: str
    choices: Sequence[tuple[str, str, float]]


def _in_words(image: Unlabelled) -> _Waiting:
    name = image.source.replace("\\", "/").rpartition("/")[2] or image.source
    prediction = image.prediction
    if prediction is None:
        return _Waiting(image, name, "unknown", "There are no categories yet", "", ())
    nearest, probability = prediction.ranking[0]
    if prediction.unknown:
        guess, headline = "unknown", "This looks like none of your categories"
    else:
        guess, headline = f"{nearest}, {percent(probability)}", f"{how_sure(probability)} {nearest}"
    choices = [(label, percent(share), share) for label, share in prediction.ranking[:_CHOICES]]
    return _Waiting(image, name, guess, headline, _why(image, prediction), choices)


def _why(image: Unlabelled, prediction: Prediction) -> str:
    """Why an image waits, by what is known now."""
    nearest = prediction.ranking[0][0]
    if image.uncertainty == "unknown":
        return f"The nearest is “{nearest}”, but it is far from that, too."
    if image.uncertainty == "close" and len(prediction.ranking) > 1:
        return f"A close call: “{nearest}” or “{prediction.ranking[1][0]}”."
    if image.uncertainty == "disputed":
        others = {expert.ranking[0][0] for expert in prediction.experts.values() if expert.ranking} - {nearest}
        return f"Disputed: one comparison says “{nearest}”, others say “{'”, “'.join(sorted(others))}”."
    return "It was uncertain when it came; what was added since has made it clearer."


@router.get("")
async def show(request: Request, work: Runs) -> Response:
    """The page, without the images: to rank them may take a moment."""
    inbox = work.classifier.inbox

    def read() -> tuple[int, list[str]]:
        return len(inbox), [category.name for category in work.classifier.categories()]

    waiting, names = await work.run(read)
    keep = work.classifier.settings.keep
    return render(request, "inbox.html", tab="/inbox", waiting=waiting, names=names, keep=keep, choices=_CHOICES)


@router.get("/next")
async def more(request: Request, work: Runs, shown: Annotated[str, Query(max_length=_LONGEST)] = "") -> Response:
    """Some more images, by the categories of now: without those whose hashes are given, separated by commas."""
    there = set(filter(None, shown.split(",")))

    def read() -> tuple[int, list[Unlabelled]]:
        inbox = work.classifier.inbox
        return len(inbox), [image for image in inbox.rank(_AT_ONCE + len(there)) if image.hash not in there]

    waiting, found = await work.run(read)
    images = [_in_words(image) for image in found[:_AT_ONCE]]
    return render(request, "inbox_images.html", waiting=waiting, images=images)


@router.get("/groups")
async def groups(request: Request, work: Runs) -> Response:
    """Groups of images that look alike, without names: these may take the encoders."""
    found = await work.run(lambda: work.classifier.inbox.groups(names=False))
    return render(request, "inbox_groups.html", groups=found, most=_GROUPS, most_images=_IN_GROUP)


@router.get("/names")
async def names(request: Request, work: Runs) -> Response:
    """Names for the groups; none where the encoders cannot be loaded, as one can be typed."""

    def read() -> list[Group]:
        inbox = work.classifier.inbox
        try:
            return inbox.groups(names=may_change(request))
        except WeightsUnavailableError:
            return inbox.groups(names=False)

    return render(request, "inbox_names.html", groups=(await work.run(read))[:_GROUPS])


@router.post("/label")
async def label(request: Request, work: Runs) -> Response:
    """Make images references of a category, which is made if there is none."""
    hashes, category = await _chosen(request)
    name = checked_name(category)
    inbox = work.classifier.inbox

    def labelled() -> str:
        there = hashes.intersection(inbox.hashes())
        if not there:
            return _meanwhile(hashes)
        inbox.label(there, name)
        left = f" {_meanwhile(hashes - there)}" if hashes - there else ""
        done = f"{counted(len(there), 'image')} labelled “{name}”."
        return f"{done}{left} Undo takes {_them(there)} out of it, but does not put {_them(there)} back here."

    return await changed(request, "label", labelled)


@router.post("/dismiss")
async def dismiss(request: Request, work: Runs) -> Response:
    """Let images wait no more, without a label."""
    hashes, _ = await _chosen(request)
    inbox, days = work.classifier.inbox, work.classifier.settings.inbox_days

    def dismissed() -> str:
        there = hashes.intersection(inbox.hashes())
        if not there:
            return _meanwhile(hashes)
        inbox.dismiss(there)
        return f"{counted(len(there), 'image')} dismissed. Nothing like {_them(there)} is kept again for {days:g} days."

    return await changed(request, "dismiss", dismissed)


async def _chosen(request: Request) -> tuple[set[str], str]:
    """The hashes of a form, and the category."""
    _, fields = await sent_form(request, 0)
    hashes = set(fields.get("hash", ()))
    if not hashes:
        raise Problem(422, "No image is chosen")
    return hashes, fields.get("category", [""])[0]


def _meanwhile(hashes: Collection[str]) -> str:
    return f"{counted(len(hashes), 'image')} had been labelled or dismissed meanwhile."


def _them(hashes: Collection[str]) -> str:
    return "it" if len(hashes) == 1 else "them"
