"""Changes that are made on pages, with a message and an undo button, and the page *Recent changes*."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby, islice
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from zsvec import Classifier, checked_name
from zsvec.errors import InvalidInputError
from zsvec.service.api.common import By, Runs, author_of, undo_change, whole_change, work_of
from zsvec.service.api.schemas import MAX_ALSO, NAME
from zsvec.service.pages.rendering import category_path, is_part, render
from zsvec.service.problems import Problem, refusal
from zsvec.service.uploads import sent_form
from zsvec.types import SWITCH, Change

router = APIRouter()

_NAMED = 3  # categories to list for a change
_LISTED = 50  # changes to list on the page
_LOCKS = [Lock() for _ in range(64)]


async def changed(
    request: Request,
    kind: str,
    change: Callable[[], str],
    *,
    goes: str | None = None,
    continues: str | None = None,
    more: bool = False,
    so_far: BaseModel | None = None,
) -> Response:
    """Makes one change, and returns a message. The message has an undo button if anything was changed.

    If `change` fails, its writes are undone (`whole_change`).

    Args:
        request: The request.
        kind: Kind of the change in the history.
        change: Function that makes the change and returns the message. Runs in a thread.
        goes: Path of another page to show afterwards.
        continues: Id of an earlier change that this change belongs to.
        more: Whether other requests will continue the change.
        so_far: Results for the next request of the same change, filled in by `change`.
    """
    work = await work_of(request)

    def run() -> tuple[str, str | None]:
        with _alone(continues), whole_change(work.classifier, kind, continues, more=more) as identifier:
            message = change()
        return message, _offered(work.classifier, identifier)

    message, identifier = await work.run(run, by=await author_of(request))
    return _toast(request, message, identifier, goes=goes, so_far=so_far)


def name_in(fields: Mapping[str, Sequence[str]], field: str) -> str:
    """Returns the name of a category in a form; raises a Problem if no category can have the name."""
    try:
        return checked_name(fields.get(field, [""])[0])
    except InvalidInputError as exc:
        sentence = f"A name has 1 to {NAME['maxLength']} characters in one line, but not “.” or “..”. Choose another."
        raise refusal(422, sentence) from exc


def names_in(fields: Mapping[str, Sequence[str]], field: str) -> list[str]:
    """Returns the names of categories in a form, one per line and each once.

    Raises a Problem for no name, for too many, and for one that no category can have.
    """
    lines = lines_in(fields, field) or [""]
    if len(lines) > MAX_ALSO + 1:
        raise refusal(422, f"A photo may get {MAX_ALSO + 1} categories at once. Choose fewer.")
    return list(dict.fromkeys(name_in({field: [line]}, field) for line in lines))


def check_several(classifier: Classifier, names: Sequence[str]) -> None:
    """Raises a Problem for several names, if an image of the store belongs to one category."""
    if len(names) > 1 and classifier.labels == "one":
        raise refusal(422, "A photo belongs to one category here. Choose one.")


def quoted(names: Sequence[str]) -> str:
    """Returns names of categories for a message."""
    return " and ".join(f"“{name}”" for name in names)


def lines_in(fields: Mapping[str, Sequence[str]], field: str) -> list[str]:
    """Returns the lines of all fields of a name in a form, without empty lines."""
    return [line.strip() for text in fields.get(field, ()) for line in text.splitlines() if line.strip()]


def _alone(change: str | None) -> Lock | nullcontext[None]:
    """Returns a lock of a change, so that no part is added while the change is undone. Some changes share a lock."""
    return nullcontext() if change is None else _LOCKS[hash(change) % len(_LOCKS)]


def _offered(classifier: Classifier, identifier: str) -> str | None:
    """Returns the id of a change if the change can be undone now, otherwise ``None``."""
    undoable = classifier.history.undoable(change for change in classifier.history if change.id == identifier)
    return identifier if undoable else None


def _toast(
    request: Request,
    message: str,
    identifier: str | None,
    *,
    button: str = "Undo",
    undone: str | None = None,
    goes: str | None = None,
    so_far: BaseModel | None = None,
) -> Response:
    went = {} if goes is None else {"zsvec:went": {"path": goes}}
    headers = {"HX-Trigger": json.dumps({**went, "zsvec:changed": {"undone": undone}})}
    values: dict[str, Any] = {"message": message, "change": identifier, "button": button, "so_far": so_far}
    return render(request, "toast.html", headers=headers, **values)


@router.get("/changes")
async def show(request: Request, work: Runs, by: By) -> Response:
    """Shows the newest changes first, as a whole page or as a list alone.

    Consecutive changes of the same kind and author are grouped. A switch to other encoders has no undo button: this
    service could not write to the former store. The undo button of a change that needs its id asks first.
    """

    def read() -> dict[str, Any]:
        history = work.classifier.history
        found = list(islice(history, _LISTED))
        groups = [list(group) for _, group in groupby(found, key=lambda change: (change.what, change.by))]
        asks = {one.id for one in found if history.needs_id(one)}
        return {"groups": groups, "undoable": history.undoable(found), "asks": asks}

    template = "changes_list.html" if is_part(request) else "changes.html"
    return render(request, template, tab="/categories", named=_NAMED, switch=SWITCH, **await work.run(read, by=by))


@router.post("/undo")
async def undo(request: Request, work: Runs, by: By) -> Response:
    """Undoes a change. If the change is an undo, the original change is made again."""
    _, fields = await sent_form(request, 0)
    given = fields.get("change", [])
    if len(given) != 1:
        raise Problem(422, f"change must be the id of one change, got {len(given)}")

    def run() -> tuple[Change, str | None, set[str]]:
        try:
            with _alone(given[0]), work.classifier.history.one_change("undo") as identifier:
                undone = undo_change(work.classifier, change=given[0])
        except InvalidInputError as exc:
            raise refusal(409, _why_not(work.classifier, given[0])) from exc
        return (
            undone,
            _offered(work.classifier, identifier),
            {category.name for category in work.classifier.categories()},
        )

    undone, identifier, there = await work.run(run, by=by)
    names = ", ".join(f"“{name}”" for name in undone.categories[:_NAMED]) or "the inbox"
    redo = "again" in fields
    message = f"Redone: {names}." if redo else f"Undone: {undone.what} {names}."
    if undone.left_out:
        message += f" Changed since, and left as they are: {quoted(undone.left_out[:_NAMED])}."
    goes = _elsewhere(request, undone, there)
    return _toast(request, message, identifier, button="Undo" if redo else "Redo", undone=undone.id, goes=goes)


def _why_not(classifier: Classifier, identifier: str) -> str:
    found = next((change for change in classifier.history if change.id == identifier), None)
    if found is None:
        return "This change is too old to be undone."
    if found.what == SWITCH:
        return "A switch to other encoders is undone on the command line."
    if found.undone:
        return "This change has been undone already."
    if found.final:
        return "This change erased a photo for good."
    return "A category has been changed since. Undo the later change first: Recent changes lists all."


def _elsewhere(request: Request, undone: Change, there: set[str]) -> str | None:
    """If the category on the current page no longer exists, returns the path of another page, otherwise ``None``."""
    try:
        path = urlsplit(request.headers.get("hx-current-url", "")).path
    except ValueError:  # the header may have any text
        return None
    _, _, shown = path.partition("/categories/")
    if not shown or unquote(shown) in there:
        return None
    return next((category_path(name) for name in undone.categories if name in there), "/categories")
