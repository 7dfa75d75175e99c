"""The command that shows what zsvec does."""

from __future__ import annotations

import typer

from zsvec.cli.app import app


@app.command()
def demo(context: typer.Context) -> None:
    """Show the whole story in a minute: real photographs, a category added live, an answer that changes.

    Works offline, in a temporary folder that is removed afterwards. Its encoders are those of the profile offline, or
    of --profile.
    """
    from zsvec.cli.demo_story import tell

    tell(context.obj.profile or "offline")
