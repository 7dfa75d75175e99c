"""The command line: parse, call, show.

Nothing heavy is imported before a command needs it, so that help comes at once.
"""

from __future__ import annotations

import os
import sys

from zsvec.errors import InvalidInputError, ZSVecError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, values given included."""
    from zsvec.cli.commands import app

    try:
        app(prog_name="zsvec")
    except ZSVecError as exc:
        sys.stderr.write(f"zsvec: {exc}\n")
        sys.exit(2 if isinstance(exc, InvalidInputError) else 1)
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
