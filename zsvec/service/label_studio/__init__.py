"""A machine learning backend of Label Studio: predictions for its tasks, and corrections by its annotations."""

from zsvec.service.label_studio.images import LabelStudio
from zsvec.service.label_studio.routes import router

__all__ = ["LabelStudio", "router"]
