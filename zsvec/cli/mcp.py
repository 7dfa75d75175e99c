"""The command that serves a classifier to an assistant."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import app
from zsvec.errors import needs_extra


@app.command()
def mcp(
    context: typer.Context,
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder with images that the assistant may read; may be repeated.  [default: none]",
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Let the assistant add, correct and undo.")] = False,
) -> None:
    """Serve an assistant by the Model Context Protocol, on stdin and stdout.

    An assistant starts this command itself: see `zsvec docs integrations`.
    """
    with needs_extra("mcp", "an assistant"):
        from zsvec.integrations.mcp import Tools, serve
    with ExitStack() as stack:
        with _stdout_to_stderr():
            classifier = stack.enter_context(context.obj.open())
            if not classifier.categories():
                output.print_note(f"{classifier.location} has no category yet: check --store, or add one")
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a thread waits for stdin, and would wait on after an exception
        serve(Tools(classifier, folder or (), write=write))


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirects stdout in the block. Encoders in Python may print when they are imported."""
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
