"""The classifier and its predictions."""

from zsvec.classifier.facade import Classifier

__all__ = ["Classifier"]
