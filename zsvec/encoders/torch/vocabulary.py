"""Candidate names for groups of images: the categories of ImageNet (Russakovsky et al., arXiv:1409.0575)."""

from __future__ import annotations

from functools import cache


@cache
def common_words() -> tuple[str, ...]:
    """Returns the 1,000 category names, each with its synonyms after commas. Empty if timm is not installed."""
    try:
        from timm.data import ImageNetInfo  # slow to import
    except ImportError:
        return ()
    names = ImageNetInfo()
    return tuple(names.index_to_description(index) for index in range(names.num_classes()))
