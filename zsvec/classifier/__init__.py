"""The classifier and its predictions."""

from zsvec.classifier.facade import Classifier
from zsvec.classifier.opening import CANNOT_ENCODE, open_classifier

__all__ = ["CANNOT_ENCODE", "Classifier", "open_classifier"]
