"""The fenced blocks of a page, and whether an output is the one that a page states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\S*) *(\S*)$")
_NUMBER_OR_GAP = re.compile(r"(?<![$\d])(\d+\.\d+)|…")  # no money: prices are the same everywhere
_FRACTION, _PERCENT = 0.1, 10.0  # by which numbers may differ: other machines encode in other number formats


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: The line of the page on which its content starts, from 1 up.
        language: Of the content.
        needs: What it takes to run it, such as ``needs-server``; empty: nothing.
        code: The content.
        output: The lines that the page says it prints: those of a block of text right behind it.
    """

    line: int
    language: str
    needs: str
    code: str
    output: list[str] | None = None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found: list[Block] = []
    fence: tuple[int, str, str] | None = None
    content: list[str] = []
    adjacent = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if fence is None and match:
            fence, content = (number + 1, match[1], match[2]), []
        elif fence is not None and match:
            start, language, needs = fence
            if language == "text" and adjacent and found[-1].language == "python":
                before = found.pop()
                found.append(Block(before.line, before.language, before.needs, before.code, content))
            else:
                found.append(Block(start, language, needs, "\n".join(content)))
            fence, adjacent = None, True
        elif fence is not None:
            content.append(line)
        elif line.strip():
            adjacent = False
    assert fence is None, f"{page} ends within a block"
    return found


def agree(stated: str, printed: str) -> bool:
    """Whether a line is the one that a page states: ``…`` stands for anything; numbers, but not money, may differ."""
    pattern, position = "", 0
    for match in _NUMBER_OR_GAP.finditer(stated):
        pattern += re.escape(stated[position : match.start()]) + (r"(\d+\.\d+)" if match[1] else ".*?")
        position = match.end()
    found = re.fullmatch(pattern + re.escape(stated[position:]), printed.rstrip())
    if found is None:
        return False
    wanted = [match for match in _NUMBER_OR_GAP.finditer(stated) if match[1]]
    return all(
        abs(float(match[1]) - float(got)) <= (_PERCENT if stated[match.end() :].startswith("%") else _FRACTION)
        for match, got in zip(wanted, found.groups(), strict=True)
    )
