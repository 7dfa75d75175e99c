"""A program that embeds a store again, slowly, for `test_reembedding` to kill. Prints each committed category."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

import zsvec
from tests.forking import say
from zsvec.testing import HashEncoder
from zsvec.types import Modality


class Slow(HashEncoder):
    """Waits before each batch."""

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[Any]:
        time.sleep(0.1)
        return super().embed(batch, modality)


def main(store: str) -> None:
    zsvec.reembed(
        store,
        encoders=[Slow("new", dim=24)],
        batch_size=2,
        on_commit=lambda category: say(category.name),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
