"""The command that trusts the settings file of the working directory."""

from __future__ import annotations

from typing import Annotated

import typer

from zsvec.cli.app import app


@app.command()
def trust(
    revoke: Annotated[bool, typer.Option("--revoke", help="Trust the file no more.")] = False,
) -> None:
    """Let zsvec.toml of this folder decide where the store is, who gets the keys, and which weights are loaded.

    Without that, it may only set what does no harm. A file that is changed or moved is to be trusted again.
    """
    from zsvec import trust as marks
    from zsvec.cli import output
    from zsvec.config import Settings

    file, folder = Settings.toml_files[1], Settings.marks()
    if revoke:
        marks.distrust(file, folder)
        output.print_note(f"{file.resolve()} is not trusted")
        return
    decided = marks.trust(file, folder)
    output.print_note(f"{file.resolve()} is trusted as it is now" + (", and decides:" if decided else ""))
    for name, value in marks.flattened(decided):
        secret = any(word in name.lower() for word in ("key", "token", "secret", "password"))  # no setting, but written
        output.print_note(f"{name} = {'***' if secret else repr(value)}")
