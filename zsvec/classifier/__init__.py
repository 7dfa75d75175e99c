"""The classifier: what users hold, and how it predicts."""

from zsvec.classifier.facade import Classifier

__all__ = ["Classifier"]
