"""The command that trusts the settings file of the working directory."""

from __future__ import annotations

from typing import Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import app


@app.command()
def trust(
    revoke: Annotated[bool, typer.Option("--revoke", help="Withdraw the trust.")] = False,
) -> None:
    """Trust zsvec.toml of this folder with every setting: stores, keys, services, weights, memory, deletions.

    Read the file first: untrusted, it may set harmless settings alone (`zsvec docs settings`). A changed or moved file
    needs your trust again.
    """
    from zsvec.settings import trust as marks
    from zsvec.settings.settings import Settings

    file, folder = Settings.toml_files[1], Settings.marks()
    if revoke:
        marks.distrust(file, folder)
        output.print_note(f"{file.resolve()} is not trusted")
        return
    decided = marks.trust(file, folder)
    output.print_note(f"{file.resolve()} is trusted as it is now" + (", and sets:" if decided else ""))
    for name, value in marks.flattened(decided):
        secret = any(word in name.lower() for word in ("key", "token", "secret", "password"))  # no setting, but written
        output.print_note(f"{name} = {'***' if secret else repr(value)}")
