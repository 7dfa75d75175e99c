"""Withdrawals: content hashes of references that were moved or removed from a category.

A repeated import leaves withdrawn references out, so that it does not revert corrections. The manifest of a category
has a *mark* for each withdrawn reference. The commit that moves or removes the reference adds the mark, and the commit
that adds the reference again deletes the mark. An undo restores the marks of the former state. Forgetting an image
deletes the marks of the image (`zsvec.store.erasure`).

A category that is removed, renamed or merged as a whole is *retired*, until it is added again. An import leaves out all
references of a retired category, also new ones.

Readers load manifests often. So marks are short, a manifest has all marks in one string, since Qdrant is slow with long
lists, and a category keeps a limited number of marks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from zsvec.types import Category

MARKS_KEPT = 10_000
"""Maximum number of marks of a category. If there are more, the oldest are dropped."""

_CHARACTERS = 16  # 64 bits: two of a million images share a mark with a probability of 3e-8


def mark(content_hash: str) -> str:
    """Returns the mark of a reference: the first 16 characters of its content hash."""
    return content_hash[:_CHARACTERS].ljust(_CHARACTERS)


def marks_from(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the marks in a manifest, oldest first; empty if invalid, since any writer may have forged them."""
    found = manifest.get("withdrawn")
    if not isinstance(found, str) or len(found) % _CHARACTERS:
        return ()
    return tuple(found[start : start + _CHARACTERS] for start in range(0, len(found), _CHARACTERS))


def marked(category: Category, hashes: Collection[str]) -> Category:
    """Returns a category with marks for these withdrawn references added."""
    marks = dict.fromkeys((*category.withdrawn, *map(mark, sorted(hashes))))
    return replace(category, withdrawn=tuple(marks)[-MARKS_KEPT:])


def unmarked(category: Category, hashes: Collection[str]) -> tuple[str, ...]:
    """Returns the marks of a category, except the marks of these references."""
    added = set(map(mark, hashes))
    return tuple(one for one in category.withdrawn if one not in added)
