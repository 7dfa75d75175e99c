"""What is done after the answer: encoders that torch computed are exported in the background, once.

Only where stdin, stdout and stderr are a terminal: pipes, services and scheduled jobs start no process that they do not
know of. A script that a person starts at a terminal counts as that person. The export takes about a minute of CPU time
at the lowest priority, and outlives the command. ``runtime = "torch"`` prevents it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess  # nosec B404 # starts this program itself
import sys

from zsvec.settings.settings import Settings


def export_later(settings: Settings) -> None:
    """Export the encoders of these settings when the program ends, if torch has computed them and that is worth it."""
    if all(map(os.isatty, (0, 1, 2))):
        atexit.register(_export, settings)


def _export(settings: Settings) -> subprocess.Popen[bytes] | None:
    """Start the export, unless torch was not needed.

    Returns:
        The process, which goes on when this one ends.
    """
    if "torch" not in sys.modules:
        return None
    from zsvec.cli.output import print_note
    from zsvec.encoders.cache import claim_export

    specs = settings.encoder_specs()
    if not claim_export(specs, device=settings.device, dtype=settings.dtype, runtime=settings.runtime):
        return None
    nice = shutil.which("nice") if os.name == "posix" else None  # Windows would look in the working directory first
    priority = [nice, "-n", "19"] if nice else []
    process = subprocess.Popen(  # noqa: S603 # nosec B603 # this program, and the profile that it was called with
        # -P: modules in the working directory are not the program's.
        [*priority, sys.executable, "-P", "-m", "zsvec", f"--profile={settings.profile}", "encoders", "export"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print_note("exporting the encoders in the background, so that the next start takes a second (zsvec docs encoders)")
    return process
