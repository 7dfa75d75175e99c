"""The command that shows what zsvec does."""

from __future__ import annotations

from zsvec.cli.app import app


@app.command()
def demo() -> None:
    """Show the whole story in a minute: real photographs, a category added live, an answer that changes.

    Works offline, in a temporary folder that is removed afterwards.
    """
    from zsvec.cli.demo_story import tell

    tell()
