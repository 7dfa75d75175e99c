"""A service with slow encoders: `python -m tests.service.slow_service FOLDER` prints its port.

Further arguments: seconds for the head of a request, maximum number of connections, seconds for the last responses at
shutdown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import zsvec
from tests.support import COLOURS, coloured
from zsvec.inputs.categories import CategoryInput
from zsvec.service import create_app, server
from zsvec.service.admission import connections
from zsvec.service.server import JsonLines, listening, log_to_stderr, serve
from zsvec.testing import HashEncoder
from zsvec.types import Modality

SECONDS = 0.05  # of a batch


class Slow(HashEncoder):
    """Takes `SECONDS` for a batch, and blocks while a file exists."""

    stuck: Path

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[np.float64]:
        time.sleep(SECONDS)
        while self.stuck.exists():
            time.sleep(SECONDS)
        return super().embed(batch, modality)


def main(folder: str, head: str = "20", most: str = "4096", ending: str | None = None) -> None:
    log_to_stderr(JsonLines())
    connections.HEAD_TIMEOUT_S, connections.MAX_CONNECTIONS = float(head), int(most)
    if ending:
        server.LAST_RESPONSES_S = server.SHUTDOWN_TIMEOUT_S = float(ending)
    Slow.stuck = Path(f"{folder}.stuck")
    with zsvec.open(folder, encoders=[Slow()]) as classifier, listening("127.0.0.1", 0) as listener:
        classifier.add_categories(
            CategoryInput(name=colour, images=[coloured(colour, seed) for seed in range(3)]) for colour in COLOURS
        )
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        serve(create_app(classifier), listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
