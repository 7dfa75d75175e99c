"""HTML pages for people, rendered on the server and refreshed in parts. State is in the store or in the browser."""

from fastapi import APIRouter

from zsvec.service.pages import (
    audit,
    categories,
    changes,
    classify,
    docs,
    image_map,
    inbox,
    live,
    login,
    overview,
    rendering,
)
from zsvec.service.pages.rendering import answered

router = APIRouter(include_in_schema=False)
for part in (rendering, login, classify, categories, changes, inbox, image_map, audit, overview, live, docs):
    router.include_router(part.router)

__all__ = ["answered", "router"]
