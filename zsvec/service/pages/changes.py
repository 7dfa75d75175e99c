"""What every change on a page is followed by: a line that says what was done, and a button that takes it back.

And the page of the last changes, from which each can be taken back when that line is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.api.common import By, Runs, by, whole_change, work_of
from zsvec.service.pages.rendering import category_path, events, is_part, render
from zsvec.service.problems import Problem
from zsvec.service.uploads import sent_form
from zsvec.types import Change

router = APIRouter()

_NAMED = 3  # categories of a change that are named
_LISTED = 50  # changes on their page
_TITLES = {
    "add": "Added to",
    "correct": "Taught",
    "generate": "Drew images of",
    "import": "Imported",
    "label": "Labelled",
    "merge": "Merged",
    "move": "Moved between",
    "remove": "Removed, or from",
    "rename": "Renamed",
    "replace": "Replaced",
    "set": "Described",
    "undo": "Took back a change of",
}
_WORDS = {
    "add": "what was added",
    "correct": "what was taught",
    "generate": "the drawn images",
    "import": "the import",
    "label": "the label",
    "merge": "the merging",
    "move": "the moving",
    "remove": "the removal",
    "rename": "the renaming",
    "replace": "the replacement",
    "set": "the description",
    "undo": "what was done again",
}
_STAY = ("correct", "label")  # in part: the images wait no more, so that to take it back would lose them


async def changed(request: Request, what: str, change: Callable[[], str], *, goes: str | None = None) -> Response:
    """Change something as one change, whole or not at all, and say so; without a button, if nothing had to be changed.

    Args:
        request: Who asks.
        what: The change, in one word, as the history has it.
        change: Does it in a thread, and says in a sentence what was done.
        goes: Path of the page that is to be shown then, if it is another one.
    """
    work = work_of(request)

    def run() -> tuple[str, str | None]:
        one = work.classifier.history.one_change(what) if what in _STAY else whole_change(work.classifier, what)
        with one as identifier:
            said = change()
        there = any(one.id == identifier for one in work.classifier.history)
        return said, identifier if there else None

    said, identifier = await work.run(run, by=by(request))
    return _toast(request, said, identifier, goes=goes)


def _toast(
    request: Request,
    said: str,
    identifier: str | None,
    *,
    takes_back: str = "Undo",
    undone: str | None = None,
    goes: str | None = None,
) -> Response:
    gone = {} if goes is None else {"went": {"path": goes}}
    headers = events(**gone, changed={"undone": undone})
    return render(request, "toast.html", headers=headers, said=said, change=identifier, takes_back=takes_back)


@dataclass(frozen=True)
class _Listed:
    """A change as the page lists it; `again`: it took one back, so to take it back is to do that again."""

    id: str
    what: str
    categories: Sequence[str]
    more: int
    at: datetime
    by: str | None
    undone: bool
    again: bool


@router.get("/changes")
async def show(request: Request, work: Runs) -> Response:
    """The last changes, newest first."""
    found = await work.run(lambda: list(islice(work.classifier.history, _LISTED)))
    listed = [
        _Listed(
            id=one.id,
            what=_TITLES.get(one.what, one.what.capitalize()),
            categories=one.categories[:_NAMED],
            more=max(len(one.categories) - _NAMED, 0),
            at=one.at,
            by=one.by,
            undone=one.undone,
            again=one.what == "undo",
        )
        for one in found
    ]
    return render(request, "changes_list.html" if is_part(request) else "changes.html", changes=listed)


@router.post("/undo")
async def undo(request: Request, work: Runs, by: By) -> Response:
    """Take a change back, by its id; what takes it back is a change, too."""
    _, fields = await sent_form(request, 0)
    given = fields.get("change", [])
    if len(given) != 1:
        raise Problem(422, "the change that is to be taken back is not said: reload the page")

    def run() -> tuple[Change, str, set[str]]:
        with work.classifier.history.one_change("undo") as identifier:
            undone = work.classifier.history.undo(change=given[0])
        return undone, identifier, {category.name for category in work.classifier.categories()}

    undone, identifier, there = await work.run(run, by=by)
    again = "again" in fields  # an undo that is taken back: what was taken back is done again
    names = ", ".join(f"“{name}”" for name in undone.categories[:_NAMED])
    said = f"Done again, for {names}." if again else f"Taken back: {_WORDS.get(undone.what, undone.what)}, for {names}."
    goes = _elsewhere(request, undone, there)
    takes_back = "Undo" if again else "Redo"
    return _toast(request, said, identifier, takes_back=takes_back, undone=undone.id, goes=goes)


def _elsewhere(request: Request, undone: Change, there: set[str]) -> str | None:
    """Where to go if the category that is shown is gone: to another one of the change, or to all."""
    try:
        path = urlsplit(request.headers.get("hx-current-url", "")).path
    except ValueError:  # whoever asks may send anything
        return None
    _, _, shown = path.partition("/categories/")
    if not shown or unquote(shown) in there:
        return None
    return next((category_path(name) for name in undone.categories if name in there), "/categories")
