"""The API for programs, below ``/v1``: what the command line does, with the objects of its ``--json``."""

from fastapi import APIRouter

from zsvec.service.api import categories, classify, inbox, store

router = APIRouter()
for part in (classify, categories, inbox, store):
    router.include_router(part.router)

__all__ = ["router"]
