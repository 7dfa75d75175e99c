"""Encoders turn images and texts into vectors.

`load_encoders` creates the encoders of a profile from specs. torch and the model libraries are imported on demand.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from zsvec.encoders.base import Backbone, BatchEncoder, Encoder, Vectors
    from zsvec.encoders.encoder_set import EncoderSet
    from zsvec.encoders.loading import describe_device, load_encoders, missing_weights

__all__ = [
    "Backbone",
    "BatchEncoder",
    "Encoder",
    "EncoderSet",
    "Vectors",
    "describe_device",
    "load_encoders",
    "missing_weights",
]

# numpy and Pillow are slow to import, and settings need only `zsvec.encoders.spec`.
_LATE = {
    **dict.fromkeys(("Backbone", "BatchEncoder", "Encoder", "Vectors"), "zsvec.encoders.base"),
    "EncoderSet": "zsvec.encoders.encoder_set",
    **dict.fromkeys(("describe_device", "load_encoders", "missing_weights"), "zsvec.encoders.loading"),
}


def __getattr__(name: str) -> _Any:
    if name in _LATE:
        return getattr(_import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
