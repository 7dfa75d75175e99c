"""Offers to export the encoders of a profile, before a command first loads them with torch.

The question is asked once, at a terminal. The answer "no" is remembered by a file next to the user's ``config.toml``,
which needs the same trust. An export itself is remembered in the user's cache (`zsvec.encoders.runtimes`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.errors import WeightsUnavailableError, ZSVecError

if TYPE_CHECKING:
    from zsvec import Classifier, EncoderSpec, Settings
    from zsvec.encoders.runtimes import Record

_DECLINED = b"Commands of zsvec do not offer to export encoders. To be asked again, delete this file.\n"

ExportYes = Annotated[
    bool, typer.Option("--yes", help="Export the encoders first, if missing; see `zsvec docs encoders`.")
]


def prepare_encoders(classifier: Classifier, *, yes: bool, adds: bool = False) -> None:
    """Exports the encoders of the profile, if they would otherwise be loaded with torch and the user agrees.

    A failure is reported on stderr; torch then computes.

    Args:
        classifier: The classifier of the command. Nothing is exported for encoders in Python.
        yes: Whether the user agrees in advance, as by the setting `export_encoders`.
        adds: Whether the command adds references. If not, it runs no encoder on an empty store.
    """
    settings = classifier.settings
    if settings.encoders is not None:  # encoders in Python cannot be exported
        return
    wanted = "yes" if yes else settings.export_encoders
    if wanted == "no" or (wanted == "ask" and (not _is_interactive() or declined_file().exists())):
        return
    try:
        specs = settings.encoder_specs()
        if not _lacks_export(specs, settings) or not (adds or classifier.categories()):
            return
        question = _question(specs, settings)
    except (ZSVecError, OSError, ModuleNotFoundError):  # an export is impossible; loading reports what is wrong
        return
    if wanted == "yes" or _agrees(question):
        try:
            output.print_note(export_for_user(specs, settings))
        except WeightsUnavailableError:
            return  # loading reports the same
        except (ZSVecError, OSError) as exc:
            output.print_note(f"not exported, so torch computes: {exc}")


def export_for_user(specs: Mapping[str, EncoderSpec], settings: Settings) -> str:
    """Exports encoders to the user's cache with a line of progress. Returns the measured rates and the runtime in use.

    Raises as `zsvec.encoders.torch.export.export_to_cache` does.
    """
    from zsvec.encoders.torch.export import export_to_cache

    with output.steps(f"exporting the encoders of profile {settings.profile}") as on_step:
        record = export_to_cache(specs, on_step=on_step)
    return f"{record}: {_used(record, specs, settings)}"


def declined_file() -> Path:
    """Returns the path of the file that remembers the answer "no"."""
    from zsvec.settings.settings import Settings

    return Settings.toml_files[0].with_name("export-declined")


def _used(record: Record, specs: Mapping[str, EncoderSpec], settings: Settings) -> str:
    from zsvec.encoders.runtimes import chosen_specs

    device, dtype, runtime = settings.device, settings.dtype, settings.runtime
    if chosen_specs(specs, device=device, dtype=dtype, runtime=runtime, compiled=settings.compile) is not specs:
        return "onnxruntime from now on"
    if record.is_fast:
        return f"torch as before, by runtime={runtime!r}, device={device!r} and dtype={dtype!r} (zsvec docs encoders)"
    return "torch as before: onnxruntime is slower here"


def _lacks_export(specs: Mapping[str, EncoderSpec], settings: Settings) -> bool:
    from zsvec.encoders.runtimes import lacks_export

    return lacks_export(
        specs, device=settings.device, dtype=settings.dtype, runtime=settings.runtime, compiled=settings.compile
    )


def _question(specs: Mapping[str, EncoderSpec], settings: Settings) -> str:
    """Returns the question. Raises as `check_exportable` and `weights_size` do. Imports torch."""
    with output.err.status(output.escape(f"checking the encoders of profile {settings.profile} …")):
        from zsvec.encoders.loading import weights_size
        from zsvec.encoders.runtimes import place
        from zsvec.encoders.torch.export import check_exportable

        check_exportable(specs)
        size = weights_size(specs)
    space = "as much disk space as the weights" if size is None else f"{max(1, round(size / 1e6)):,} MB"
    return (
        f"Export the encoders of profile {settings.profile} once, so that commands start in about a second? "
        f"It takes about a minute and {space} in {place(specs).parent}"
    )


def _agrees(question: str) -> bool:
    """Asks the question, and remembers the answer "no". Prints nothing on stdout, which `typer.confirm` does."""
    from rich.prompt import Confirm

    try:
        if Confirm.ask(output.escape(question), console=output.err, default=True):
            return True
    except EOFError:
        output.print_note("")
        return False
    from zsvec.inputs.files import write_new

    with suppress(OSError):  # asked again, if the folder is read-only
        declined_file().parent.mkdir(parents=True, exist_ok=True)
        write_new(declined_file(), _DECLINED)
    output.print_note("not asked again; `zsvec encoders export` exports them at any time")
    return False


def _is_interactive() -> bool:
    """Returns whether stdin and stderr are terminals, and this process may read from the terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()  # a background job would be stopped by the question
    except (AttributeError, OSError):  # Windows, or not the terminal of this session
        return True
