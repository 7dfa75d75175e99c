"""`StoredReferences`: what a classifier offers to look after its references."""

from __future__ import annotations

from zsvec.calibrator import Calibrator
from zsvec.method.suspects import Suspect


class StoredReferences:
    """The references of a store. It is ``clf.references`` of a classifier.

    Args:
        calibrator: Of the store.
    """

    def __init__(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator

    def suspects(self) -> list[Suspect]:
        """The reference images that are probably under a wrong category, most doubtful first; nothing is changed.

        Every reference image is compared with all others by the present calibration. As for a calibration, all vectors
        are read into the process; beyond them, memory is bounded. (The report of `Classifier.calibrate` names suspects
        only among the images that it left out.)

        Not judged are texts, an image that has no other of its category to be compared with, and, of a picture that is
        in several categories, all where one of these has no other image.

        Returns:
            Each with the probability that its category is wrong, above 0.5, and the category that the others say
            instead.

        Raises:
            StoreError: There is no calibration for the experts and the aggregation in use.
        """
        return self._calibrator.suspects()
