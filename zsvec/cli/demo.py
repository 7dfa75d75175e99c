"""The command that shows what zsvec does."""

from __future__ import annotations

import typer

from zsvec.cli.app import app


@app.command()
def demo(context: typer.Context) -> None:
    """Show zsvec in a minute: classify photographs, add a category live, see the answer change.

    Works offline in a temporary folder, with the encoders of the profile offline, or of --profile.
    """
    from zsvec.cli.demo_story import tell

    tell(context.obj.profile or "offline")
