"""The command line: parse, call, show.

Nothing heavy is imported before a command needs it, so that help comes at once.
"""

from __future__ import annotations

import io
import sys
import warnings

from zsvec.cli.process import prepare_process
from zsvec.errors import InvalidInputError, ZSVecError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, values given included, 130 interrupted."""
    prepare_process()
    # File names may be any bytes, and a terminal of another encoding must not stop an answer.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    warnings.formatwarning = lambda message, *_, **__: f"zsvec: {message}\n"
    try:
        from zsvec.cli.commands import app

        app(prog_name="zsvec")  # an interruption or a closed pipe ends it quietly
    except (ZSVecError, OSError) as exc:
        sys.stderr.write(f"zsvec: {exc}\n")
        sys.exit(2 if isinstance(exc, InvalidInputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
