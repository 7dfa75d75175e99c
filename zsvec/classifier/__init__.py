"""The classifier and its predictions."""

from zsvec.classifier.facade import Classifier
from zsvec.classifier.opening import open_classifier

__all__ = ["Classifier", "open_classifier"]
