"""The files of the pages: styles, scripts, an icon. Their path has a digest of them all, so browsers keep them."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from zsvec.service.problems import Problem

router = APIRouter()

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
_FILES = {
    file.name: file.read_bytes()
    for file in sorted(files("zsvec.service").joinpath("static").iterdir(), key=lambda file: file.name)
    if file.name.rpartition(".")[2] in _TYPES
}
_DIGEST = sha256(b"".join(sha256(content).digest() for content in _FILES.values())).hexdigest()[:12]
_KEPT = "public, max-age=31536000, immutable"


def address(name: str) -> str:
    """Path of a file; another one when any of them has changed, since scripts name each other."""
    if name not in _FILES:
        raise KeyError(name)
    return f"/static/{_DIGEST}/{name}"


@router.get("/static/{digest}/{name}")
async def static(digest: str, name: str) -> Response:
    """A file. One of another version is answered as it is now, and not to be kept."""
    if name not in _FILES:
        raise Problem(404, f"there is no file {name!r}")
    kept = _KEPT if digest == _DIGEST else "no-store"
    return Response(_FILES[name], media_type=_TYPES[name.rpartition(".")[2]], headers={"Cache-Control": kept})
