"""Words that may name a group of images: ImageNet's categories (Russakovsky et al., arXiv:1409.0575)."""

from __future__ import annotations

from functools import cache


@cache
def common_words() -> tuple[str, ...]:
    """Returns names of 1,000 things, each with its synonyms after commas; none if timm is not installed."""
    try:
        from timm.data import ImageNetInfo  # slow to import
    except ImportError:
        return ()
    names = ImageNetInfo()
    return tuple(names.index_to_description(index) for index in range(names.num_classes()))
