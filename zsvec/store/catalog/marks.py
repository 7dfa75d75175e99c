"""Marks: decisions of users about references, which the manifest of the category remembers by content hash.

- *Withdrawals*: references that were moved or removed from the category. A repeated import leaves them out, so that it
  does not revert corrections. The commit that moves or removes the reference adds the mark, and the commit that adds
  the reference again deletes the mark.
- *Kept findings*: findings of an audit about images that stay as they are. Later audits leave them out. A finding is
  kept if each of its images has the mark of its kind. The commit that moves, removes or replaces an image deletes these
  marks. A category that is renamed or merged passes them on.

An undo restores the marks of the former state. Forgetting an image deletes the marks of the image
(`zsvec.store.erasure`).

A category that is removed, renamed or merged as a whole is *retired*, until it is added again. An import leaves out all
references of a retired category, also new ones.

Readers load manifests often. So marks are short, a manifest has all marks of a field in one string, since Qdrant is
slow with long lists, and a category keeps a limited number of marks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from zsvec.types import Category

MARKS_KEPT = 10_000
"""Maximum number of marks of a category, of withdrawals and of kept findings. The oldest are dropped."""

_CHARACTERS = 16  # 64 bits: two of a million images share a mark with a probability of 3e-8
_WIDTHS: Mapping[str, int] = {"withdrawn": _CHARACTERS, "kept": 1 + _CHARACTERS}  # by field of a manifest


def mark(content_hash: str) -> str:
    """Returns the mark of a withdrawn reference: the first 16 characters of its content hash."""
    return content_hash[:_CHARACTERS].ljust(_CHARACTERS)


def kept_mark(finding: str, content_hash: str) -> str:
    """Returns the mark of an image in a kept finding: the first letter of the kind of the finding, and `mark`."""
    return finding[0] + mark(content_hash)


def marks_from(manifest: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Returns the marks in a field of a manifest, ``withdrawn`` or ``kept``, oldest first.

    Empty if invalid, since any writer may have forged them.
    """
    found, width = manifest.get(field), _WIDTHS[field]
    if not isinstance(found, str) or len(found) % width:
        return ()
    return tuple(found[start : start + width] for start in range(0, len(found), width))


def number_of_marks(manifest: Mapping[str, Any]) -> int:
    """Returns how many marks a manifest has, at the most, from the lengths of the fields alone."""
    found = [(manifest.get(field), width) for field, width in _WIDTHS.items()]
    return sum(len(marks) // width for marks, width in found if isinstance(marks, str))


def without_marks(manifest: Mapping[str, Any], hashes: Collection[str]) -> dict[str, Any]:
    """Returns a manifest without the marks of images, given by content hash."""
    left, gone = dict(manifest), set(map(mark, hashes))
    for field in _WIDTHS:
        marks = marks_from(manifest, field)
        others = [one for one in marks if one[-_CHARACTERS:] not in gone]
        if len(others) < len(marks):
            left[field] = "".join(others)
    return left


def marked(category: Category, hashes: Collection[str]) -> Category:
    """Returns a category with marks for these withdrawn references added, and without their kept findings."""
    gone = set(map(mark, hashes))
    kept = tuple(one for one in category.kept if one[1:] not in gone)
    return replace(category, withdrawn=newest((*category.withdrawn, *map(mark, sorted(hashes)))), kept=kept)


def unmarked(category: Category, hashes: Collection[str]) -> tuple[str, ...]:
    """Returns the withdrawals of a category, except the marks of these references."""
    added = set(map(mark, hashes))
    return tuple(one for one in category.withdrawn if one not in added)


def kept_of(category: Category, hashes: Collection[str]) -> tuple[str, ...]:
    """Returns the kept findings of a category about these references."""
    there = set(map(mark, hashes))
    return tuple(one for one in category.kept if one[1:] in there)


def with_kept(category: Category, marks: Iterable[str]) -> Category:
    """Returns a category with marks of kept findings added."""
    return replace(category, kept=newest((*category.kept, *marks)))


def without_kept(category: Category, marks: Collection[str]) -> Category:
    """Returns a category without these marks of kept findings."""
    return replace(category, kept=tuple(one for one in category.kept if one not in marks))


def newest(marks: Iterable[str]) -> tuple[str, ...]:
    """Returns the last `MARKS_KEPT` different marks, in order."""
    return tuple(dict.fromkeys(marks))[-MARKS_KEPT:]
