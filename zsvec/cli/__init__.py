"""The command line. Heavy packages are imported inside the commands that need them, so that help is instant."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line.

    Exit codes: 0 done, 1 failed, 2 wrong usage or an invalid value, 130 interrupted. A missing store, or a store of
    other encoders, is a failure.
    """
    try:  # all imports are in here, since a user may press Ctrl-C at once
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    from zsvec.cli.process import prepare_process
    from zsvec.errors import InvalidInputError, ZSVecError, harmless, without_password

    prepare_process()
    try:
        from zsvec.cli.commands import app

        app(prog_name="zsvec")  # typer handles a closed pipe and most interruptions
    except (ZSVecError, OSError) as exc:
        sys.stderr.write(f"zsvec: {harmless(without_password(str(exc)))}\n")
        sys.exit(2 if isinstance(exc, InvalidInputError) else 1)
