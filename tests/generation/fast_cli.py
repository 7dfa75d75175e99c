"""``python -m tests.generation.fast_cli``: the command line with encoders that need no weights."""

from __future__ import annotations

import signal
from typing import Any

import zsvec.encoders
from tests.generation.colour_encoder import coloured_encoders
from zsvec.cli import main
from zsvec.encoders import EncoderSet


def load_encoders(specs: Any, **options: Any) -> EncoderSet:
    return EncoderSet(coloured_encoders())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    zsvec.encoders.load_encoders = load_encoders
    main()
