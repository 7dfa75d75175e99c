"""The classifier: the façade, and predictions."""

from zsvec.classifier.facade import Classifier

__all__ = ["Classifier"]
