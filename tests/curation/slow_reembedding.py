"""A program that embeds a store again up to the first commit, for `test_reembedding` to kill. Prints the category."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

import zsvec
from tests.forking import say
from zsvec.testing import HashEncoder
from zsvec.types import Category, Modality


class Stuck(HashEncoder):
    """Waits for the end of the input once a category is committed."""

    committed = False

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[Any]:
        if self.committed:
            sys.stdin.read()
        return super().embed(batch, modality)


def main(store: str) -> None:
    encoder = Stuck("new", dim=24)

    def on_commit(category: Category) -> None:
        encoder.committed = True
        say(category.name)

    zsvec.reembed(store, encoders=[encoder], batch_size=2, on_commit=on_commit)


if __name__ == "__main__":
    main(*sys.argv[1:])
