"""What all other references say of the category of every reference image, and what an image counts by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zsvec.method.calibrate.fit import largest_sample, learn_backgrounds
from zsvec.method.calibrate.leave_one_out import LeftOut, each_left_out
from zsvec.method.calibration import Calibration, other_aggregation
from zsvec.method.predict.background import Background
from zsvec.method.quality.suspects import Verdict, verdicts
from zsvec.method.similarities import References, category_names

_SURE = 0.05  # probability of a wrong label up to which an image counts like any other
_LEAST = 0.001  # what an image counts at least, so that a category whose images are all doubtful has a mean


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


def weighed_down(references: Mapping[str, References], calibration: Calibration, sample: LeftOut) -> Calibration:
    """A calibration by which doubtful images count less in the mean of their category: by the odds of their label.

    Args:
        references: By expert, all of them.
        calibration: Of these experts, learned from the sample, its backgrounds too.
        sample: The images that were left out; others count like any.
    """
    weights: dict[str, dict[str, float]] = {}
    for said in verdicts(references, calibration, sample):
        if said.wrong > _SURE:
            name, digest = said.key
            weights.setdefault(name, {})[digest] = max(_LEAST, round(1 - said.wrong, 3))
    backgrounds = calibration.backgrounds
    # As read from the store: the same object for equal values.
    weighed = {
        expert: Background.from_dict(replace(known, weights=weights).to_dict()) for expert, known in backgrounds.items()
    }
    return replace(calibration, backgrounds=weighed)
