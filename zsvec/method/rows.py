"""A tall matrix in blocks of rows, so that one in which a few rows differ is made without a copy of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_FEW = 4096  # rows that are sooner copied to their neighbours than multiplied alone


class Rows:
    """Blocks of rows, one below the other. The rows never change; safe in any thread.

    Args:
        blocks: float32 ``(n, dim)`` each; at least one.
    """

    def __init__(self, blocks: Iterable[Floats]) -> None:
        self.blocks = tuple(blocks)

    @classmethod
    def of_pieces(cls, pieces: Iterable[Floats]) -> Rows:
        """Pieces of other matrices: long ones are taken as they are, short ones are copied together.

        Of a matrix that is used by less than half, long ones are copied too, so that it need not be kept.

        Args:
            pieces: float32 ``(n, dim)`` each; at least one that is not empty.
        """
        every = [piece for piece in pieces if len(piece)]
        used: Counter[int] = Counter()
        for piece in every:
            used[id(_owner(piece))] += len(piece)
        blocks: list[Floats] = []
        short: list[Floats] = []
        rows = 0  # of these
        for piece in every:
            if len(piece) < _FEW:
                short.append(piece)
                rows += len(piece)
            if short and (len(piece) >= _FEW or rows >= _FEW):
                blocks.append(np.concatenate(short))
                short, rows = [], 0
            if len(piece) >= _FEW:
                owner = _owner(piece)
                blocks.append(piece if 2 * used[id(owner)] >= len(owner) else piece.copy())
        return cls([*blocks, np.concatenate(short)] if short else blocks)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def dim(self) -> int:
        """Number of columns."""
        return int(self.blocks[0].shape[1])

    def joined(self) -> Floats:
        """All rows, float32 ``(n, dim)``. They are this block from then on, so that nothing is kept twice."""
        if len(self.blocks) > 1:
            self.blocks = (np.concatenate(self.blocks),)
        return self.blocks[0]

    def between(self, start: int, end: int) -> Iterator[Floats]:
        """The rows from one to before another, in pieces that are not copied."""
        for block in self.blocks:
            if start < len(block) and end > 0:
                yield block[max(start, 0) : end]
            start, end = start - len(block), end - len(block)

    def take(self, start: int, end: int) -> Floats:
        """The same in one piece, float32 ``(end - start, dim)``; copied where it is of several blocks."""
        pieces = list(self.between(start, end))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.blocks[0][:0]])

    def pick(self, rows: NDArray[np.intp]) -> Floats:
        """Some rows, float32 ``(..., dim)``.

        Args:
            rows: int ``(...)``.
        """
        found = np.empty((*rows.shape, self.dim), dtype=np.float32)
        first = 0
        for block in self.blocks:
            inside = (rows >= first) & (rows < first + len(block))
            found[inside] = block[rows[inside] - first]
            first += len(block)
        return found


def _owner(piece: Floats) -> NDArray[Any]:
    """The matrix whose memory a piece keeps."""
    return piece.base if isinstance(piece.base, np.ndarray) else piece
