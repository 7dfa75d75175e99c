"""The pages for people: HTML, made here and refreshed in parts. What they keep is in the store or in the browser."""

from fastapi import APIRouter

from zsvec.service.pages import audit, categories, category, changes, classify, inbox, live, login, static
from zsvec.service.pages.rendering import answered

router = APIRouter(include_in_schema=False)
for part in (static, login, classify, categories, category, changes, inbox, audit, live):
    router.include_router(part.router)

__all__ = ["answered", "router"]
