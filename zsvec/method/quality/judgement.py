"""What all other references say of the category of every reference image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zsvec.method.calibrate.fit import largest_sample, learn_backgrounds
from zsvec.method.calibrate.leave_one_out import each_left_out
from zsvec.method.calibration import Calibration, other_aggregation
from zsvec.method.quality.suspects import Verdict, verdicts
from zsvec.method.similarities import References, category_names


def judge(references: Mapping[str, References], calibration: Calibration) -> list[Verdict]:
    """Leave every reference image out, in blocks; memory is linear in their number.

    Args:
        references: By expert, all of them.
        calibration: Of these experts; what was learned with fewer references may be used.
    """
    backgrounds = learn_backgrounds(references) if calibration.classwise else {}
    if not backgrounds:
        calibration = replace(calibration, classwise=None)  # a category has too few images by now
    blocks = each_left_out(
        references,
        (calibration.aggregation, other_aggregation(calibration.aggregation)),
        calibration.top_m,
        largest_sample(len(category_names(references))),
        backgrounds,
    )
    return [found for block in blocks for found in verdicts(references, calibration, block)]
