"""The HTTP API below ``/v1``. Responses are the objects that the commands print with ``--json``."""

from fastapi import APIRouter

from zsvec.service.api import categories, images, store

router = APIRouter()
for part in (categories, images, store):
    router.include_router(part.router)

__all__ = ["router"]
