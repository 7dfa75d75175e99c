"""Renders pages, parts of pages, problems and phrases for predictions as HTML, and serves static files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from zsvec import __version__
from zsvec.service.auth.keys import FOR_WRITERS, Key
from zsvec.service.problems import Problem
from zsvec.types import Prediction, counted, is_attached

router = APIRouter()

_TABS = (
    ("/", "Classify"),
    ("/categories", "Categories"),
    ("/inbox", "Inbox"),
    ("/map", "Map"),
    ("/audit", "Audit"),
    ("/live", "Live"),
)
_FOR_PROGRAMS = ("/v1/", "/health/", "/metrics", "/static/")
_RELOAD = "Reload the page, then try again."
_SEE_LOG = "Ask the person who runs the service: its log has the reason."
# Heading and sentence by status of the response.
_MESSAGES = {
    400: ("The request could not be read.", _RELOAD),
    401: ("You are not signed in.", "Sign in with a key of this service."),
    403: ("This is not allowed.", "Ask the person who runs the service for the right address of the page."),
    404: ("Not found.", "It may have been removed. Reload the page."),
    405: ("This is not possible here.", _RELOAD),
    408: ("The upload stopped.", "Try again."),
    409: ("This is not possible.", _RELOAD),
    413: ("This is too much at once.", "Send fewer or smaller photos."),
    415: ("The request could not be read.", _RELOAD),
    422: ("This cannot be used.", _RELOAD),
    429: ("The service is busy.", "Try again in a moment."),
    500: ("The service has failed.", _SEE_LOG),
    503: ("The service is not available at the moment.", "Try again in a moment."),
}
# By code of the problem, because its message is for programs: it names commands, settings and ids.
_SENTENCES_BY_ERROR = {
    "conflict": "Another change came first. " + _RELOAD,
    "last_reference": "A category would lose its last photo or text. " + _RELOAD,
    "encoder_mismatch": "The categories need other encoders. Ask the person who runs the service for those.",
    "invalid_image": "This is not a photo, or it is damaged or too large. Save it as JPEG or PNG.",
    "missing_extra": "A part of zsvec is not installed. " + _SEE_LOG,
    "store_refuses": "The store does not allow this. " + _RELOAD,
    "store_locked": "Another program uses the store. End that program, then try again.",
    "store_unavailable": "The store does not answer. Try again in a moment.",
    "weights_unavailable": "The encoders cannot be loaded. " + _SEE_LOG,
}
_SURE = 0.8  # probability of "Very probably"
_CERTAINTY = ((0.95, "Almost certainly"), (_SURE, "Very probably"), (0.6, "Probably"), (0.0, "Perhaps"))
_ASKED_COVERAGE = 0.95
_NUMBERS = ("one", "two", "three", "four")
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
_FILES = {
    file.name: file.read_bytes()
    for file in sorted(files("zsvec.service").joinpath("static").iterdir(), key=lambda file: file.name)
    if file.name.rpartition(".")[2] in _TYPES
}
# One digest of all files, because scripts import each other.
_DIGEST = sha256(b"".join(sha256(content).digest() for content in _FILES.values())).hexdigest()[:12]


class _HTML(HTMLResponse):
    def render(self, content: Any) -> bytes:
        return str(content).encode(errors="backslashreplace")


def category_path(name: str) -> str:
    """Returns the path of a category's page."""
    return f"/categories/{quote(name, safe='')}"


def _static_path(name: str) -> str:
    """Returns the path of a static file, which browsers can cache because the path has the digest of all files."""
    if name not in _FILES:
        raise KeyError(name)
    return f"/static/{_DIGEST}/{name}"


def percent(share: float) -> str:
    """Formats a probability as a percentage, but never as 0 % or 100 %."""
    if share > 0.995:
        return "over 99 %"
    return "under 1 %" if share < 0.005 else f"{100 * share:.0f} %"


def certainty(probability: float) -> str:
    """Returns a probability in words, such as "Probably", to precede the name of a category."""
    return next(words for least, words in _CERTAINTY if probability >= least)


def verdict(prediction: Prediction) -> Literal["sure", "unsure", "unknown"]:
    """Returns how much a person should trust the prediction of a readable image.

    A prediction is unsure if its certainty in words is "Probably" or less, or if the library calls it uncertain
    (`Prediction.uncertainty`), as ``keep="uncertain"`` does. So no image that is kept as uncertain is called sure. Of
    several labels, the least probable one counts.
    """
    if prediction.unknown:
        return "unknown"
    return "unsure" if prediction.uncertainty or _least(prediction) < _SURE else "sure"


def _least(prediction: Prediction) -> float:
    return min((probability for _, probability in prediction.labels or ()), default=prediction.probability or 0.0)


def doubt(prediction: Prediction) -> str:
    """Returns the reason why a prediction is unsure or the image unknown, as a sentence; empty if it is sure."""
    if verdict(prediction) == "sure":
        return ""
    (nearest, _), *others = prediction.ranking
    if prediction.unknown:
        return f"The nearest is “{nearest}”, but far from it, too."
    if prediction.uncertainty == "disputed":
        ranked = {expert.ranking[0][0] for expert in prediction.experts.values() if expert.ranking} - {nearest}
        return f"Disputed: one comparison says “{nearest}”, others say “{'”, “'.join(sorted(ranked))}”."
    if prediction.labels:
        doubted = [name for name, probability in prediction.labels if probability == _least(prediction)]
        return f"“{doubted[0]}” is not certain."
    if not others:
        return f"It is not much like “{nearest}”."
    close = prediction.uncertainty == "close"
    return f"A close call: “{nearest}” or “{others[0][0]}”." if close else f"It may also be “{others[0][0]}”."


def choices(prediction: Prediction) -> Sequence[str]:
    """Returns two to four candidates (`Prediction.candidates`) to ask for, if a single answer would be a guess.

    Returns none for an image that is sure or unknown, has several labels or more candidates, or if the references
    promise no set.
    """
    if prediction.labels:
        return ()
    found = prediction.candidates(_ASKED_COVERAGE) or ()
    few = 2 <= len(found) <= len(_NUMBERS)
    return found if few and verdict(prediction) == "unsure" and prediction.nearest in found else ()


def one_of(names: Sequence[str]) -> str:
    """Returns the beginning of a sentence that asks for one of two to four categories."""
    return f"One of these {_NUMBERS[len(names) - 1]}:"


def _influence(weight: float) -> str:
    if weight >= 0.5:
        return "decides most of the answer"
    return "has some influence" if weight >= 0.2 else "has little influence"


_templates = Environment(
    loader=PackageLoader("zsvec.service"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.policies["json.dumps_kwargs"] = {}  # keeps the order of keys
_templates.globals.update(static=_static_path, counted=counted, influence=_influence, one_of=one_of)
_templates.tests.update(attached=is_attached)
_templates.filters.update(category_path=category_path, percent=percent)


@router.get("/static/{digest}/{name}")
async def static(digest: str, name: str) -> Response:
    """Serves a static file. For an outdated digest, sends the current version, which must not be cached."""
    if name not in _FILES:
        raise Problem(404, f"there is no file {name!r}")
    caching = "public, max-age=31536000, immutable" if digest == _DIGEST else "no-store"
    return Response(_FILES[name], media_type=_TYPES[name.rpartition(".")[2]], headers={"Cache-Control": caching})


def may_change(request: Request) -> bool:
    """Returns whether the key of a request has the right ``write``, or the request needs no key."""
    key: Key | None = request.state.key
    return key is None or key.right == "write"


def is_part(request: Request) -> bool:
    """Returns whether htmx requests a part of a page. A boosted request is for a whole page."""
    return "hx-request" in request.headers and "hx-boosted" not in request.headers


def _photo_list(request: Request) -> str | None:
    """Returns the name of the list of photos that a browser keeps; ``None`` without the key that is needed.

    Each key has its own list, because several people may use one browser. Each store and version has its own list too,
    because the list has links to references, and HTML for the scripts of this version.
    """
    key: Key | None = request.state.key
    if key is None and request.app.state.keys:
        return None
    location = request.app.state.work.classifier.location
    user = (key.name, key.right) if key else None
    return sha256(repr((__version__, _DIGEST, location, user)).encode()).hexdigest()[:16]


def render(
    request: Request, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> Response:
    """Renders the template of a page or a part of a page. `values` are added to the variables of all templates."""
    key: Key | None = request.state.key
    tabs = [tab for tab in _TABS if may_change(request) or tab[0] not in FOR_WRITERS]
    common = {
        "may_change": may_change(request),
        "key_name": key.name if key else None,
        "keys": bool(request.app.state.keys),
        "tabs": tabs,
        "tab": None,
        "photo_list": _photo_list(request),
    }
    text = _templates.get_template(template).render({**common, **values})
    return _HTML(text, status, headers=headers)


def answered(request: Request, problem: Problem) -> Response | None:
    """Renders a problem as a page or a toast. Returns ``None`` if a program sent the request."""
    if request.url.path.startswith(_FOR_PROGRAMS):
        return None
    if not is_part(request) and "text/html" not in request.headers.get("accept", ""):
        return None
    heading, usual = _MESSAGES.get(problem.status, (f"{HTTPStatus(problem.status).phrase}.", _RELOAD))
    no_page = problem.status == 404 and "route" not in request.scope
    detail = "No page has this address." if no_page else problem.said or _SENTENCES_BY_ERROR.get(problem.error, usual)
    template = "problem_toast.html" if is_part(request) else "problem.html"
    return render(request, template, problem.status, problem.headers, heading=heading, detail=detail)
