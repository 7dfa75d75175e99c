"""The seam for evaluations: the parts of a classifier that measurements on its references need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zsvec.classifier.facade import Classifier
from zsvec.method.predict.scoring import Scoring
from zsvec.method.similarities import References


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a classifier compares images with, and how.

    Attributes:
        references: By expert in use, read from the store.
        scoring: From similarities to predictions.
        false_unknown_rate: Target rate of the next calibration, 0 to 1.
    """

    references: Mapping[str, References]
    scoring: Scoring
    false_unknown_rate: float


def basis_of(classifier: Classifier) -> Basis:
    """Returns the basis of a classifier's predictions; raises a StoreError if the references cannot be read."""
    calibrator = classifier._calibrator
    return Basis(
        references=dict(sorted(calibrator.references().items())),
        scoring=classifier._scoring,
        false_unknown_rate=calibrator.false_unknown_rate,
    )
