"""The command that calibrates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli.app import Json, app

if TYPE_CHECKING:
    from zsvec.method.calibrate.fit import CalibrationReport
    from zsvec.method.calibration import Calibration
    from zsvec.method.quality.suspects import Suspect
    from zsvec.types import Category

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
    from zsvec.cli import output
    from zsvec.method.calibration import Calibration
    from zsvec.method.predict.fusion import STRATEGIES

    with context.obj.open() as classifier:
        before = Calibration.from_dict(classifier.store.calibration())
        report = classifier.calibrate(false_unknown_rate=false_unknown_rate)
        categories, wanted = classifier.categories(), STRATEGIES[classifier.settings.fusion].classwise
    if json:
        output.print_json(report.to_dict())
        return
    _print_report(report)
    if wanted and report.calibration.classwise is None and (reason := _why_not_classwise(categories)):
        output.print_note(reason)
    if before is not None and before.scale != 1:
        output.print_note(
            f"labelled images had scaled the evidence by {before.scale:.2f}; it is as the references say again: "
            "clf.calibrate(labelled=…) learns from such images"
        )
    if before is not None and _learned_from(before) == _learned_from(report.calibration):
        output.print_note("the calibration was already current: nothing has changed")


def _why_not_classwise(categories: Sequence[Category]) -> str | None:
    """Which category keeps `log_linear_gda` from being used, if one does."""
    from zsvec.method.predict.background import FEWEST
    from zsvec.method.similarities import image_experts

    experts = set().union(*(image_experts(category.references) for category in categories))
    few = [c.name for c in categories if min((c.references.get(expert, 0) for expert in experts), default=0) < FEWEST]
    if not few:
        return None
    others = f" and {len(few) - 1} more" * (len(few) > 1)
    return (
        f"log_linear_views runs: log_linear_gda takes {FEWEST} images of each category, "
        f"{few[0]!r}{others} {'has' if len(few) == 1 else 'have'} fewer"
    )


def _learned_from(made: Calibration) -> tuple[object, ...]:
    """What decides a calibration; its numbers come back from a store with other last digits."""
    return (
        made.revision,
        made.false_unknown_rate,
        made.aggregation,
        made.top_m,
        made.scale == 1,
        sorted(made.experts),
        sorted(made.backgrounds),
    )


def _print_report(report: CalibrationReport) -> None:
    """Print what the calibration learned, and how it changed the fusion."""
    from zsvec.cli import output
    from zsvec.method.calibrate.thresholds import fewest

    made = report.calibration
    experts = output.new_table("expert", "temperature", "images", "accuracy")
    for name, expert in made.experts.items():
        accuracy = "– (one reference a category)" if expert.accuracy is None else f"{expert.accuracy:.1%}"
        experts.add_row(output.escape(name), f"{expert.temperature:.3f}", str(expert.images), accuracy)
    output.out.print(experts)
    fusion = output.new_table("fusion", "top-1", "cross-entropy", "calibration error")
    for when, quality in {"before": report.before, "after": report.after}.items():
        if quality is not None:
            fusion.add_row(when, f"{quality.top1:.1%}", f"{quality.cross_entropy:.3f} nats", f"{quality.ece:.1%}")
    if report.after is not None:
        output.out.print(fusion)
    output.out.print(
        f"learned from {output.counted(made.images, 'reference image')}; "
        + (
            f"an image is unknown if it is farther from every category than {1 - made.false_unknown_rate:.1%} of these "
            "images"
            if made.aggregations.thresholds
            else f"no threshold: that takes {fewest(made.false_unknown_rate):.0f} images that share their category "
            "with another"
        )
    )
    _print_suspects(report.suspects)


def _print_suspects(suspects: Sequence[Suspect]) -> None:
    """Print how many references are probably under a wrong category, and the most doubtful ones."""
    from zsvec.cli import output

    if not suspects:
        return
    output.out.print(f"{output.counted(len(suspects), 'reference image')} probably under a wrong category:")
    output.out.print(output.suspects_table(suspects[:_SHOWN]))
    if len(suspects) > _SHOWN:
        output.out.print(f"and {len(suspects) - _SHOWN} more: --json names all")
