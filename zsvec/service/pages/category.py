"""The page of one category."""

from fastapi import APIRouter

router = APIRouter()
