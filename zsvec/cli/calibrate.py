"""The command that calibrates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, app

if TYPE_CHECKING:
    from zsvec import CalibrationReport

_SHOWN = 10  # references in a table for people


@app.command()
def calibrate(
    context: typer.Context,
    false_unknown_rate: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Images of known categories that may be called unknown.  [default: the setting, the present "
            "calibration's rate, or 0.05]",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Learn the weights of the experts and the rejection threshold from the stored references.

    Needs no images and no encoders. Small stores calibrate themselves after each change; `zsvec info` shows whether
    the calibration is stale. Names references that are probably under a wrong category, and changes none. Forgets the
    confidence learned from labelled images.
    """
    with context.obj.open() as classifier:
        report = classifier.calibrate(false_unknown_rate=false_unknown_rate)
    if json:
        output.print_json(report.to_dict())
        return
    _print_report(report)
    for note in report.notes:
        output.print_note(note)


def _print_report(report: CalibrationReport) -> None:
    """Print what the calibration learned, how it changed the fusion, and which references are the most doubtful."""
    output.out.print(
        output.new_table(
            *("expert", "temperature", "images", "accuracy"),
            rows=(
                (
                    name,
                    f"{expert.temperature:.3f}",
                    str(expert.images),
                    "– (one reference a category)" if expert.accuracy is None else f"{expert.accuracy:.1%}",
                )
                for name, expert in report.calibration.experts.items()
            ),
        )
    )
    fusion = output.new_table(
        *("fusion", "top-1", "cross-entropy", "calibration error"),
        rows=(
            (when, f"{quality.top1:.1%}", f"{quality.cross_entropy:.3f} nats", f"{quality.ece:.1%}")
            for when, quality in {"before": report.before, "after": report.after}.items()
            if quality is not None
        ),
    )
    if fusion.row_count:
        output.out.print(fusion)
    output.out.print(str(report))
    if suspects := report.suspects:
        output.out.print(f"{output.counted(len(suspects), 'reference image')} probably under a wrong category:")
        output.out.print(output.suspects_table(suspects[:_SHOWN]))
        if len(suspects) > _SHOWN:
            output.out.print(f"and {len(suspects) - _SHOWN} more: --json names all")
