"""``python -m tests.generation.fast_cli``: the command line with encoders that need no weights."""

from __future__ import annotations

import zsvec.encoders
from tests.test_cli import Loading
from zsvec.cli import main

if __name__ == "__main__":
    zsvec.encoders.load_encoders = Loading()  # type: ignore[assignment]
    main()
