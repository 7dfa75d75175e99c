"""Candidate names for groups of images: the categories of ImageNet (Russakovsky et al., arXiv:1409.0575)."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def common_words() -> tuple[str, ...]:
    """Returns the 1,000 category names, each with its synonyms after commas."""
    return tuple(Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines())
