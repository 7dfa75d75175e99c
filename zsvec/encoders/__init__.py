"""Encoders: images and texts to vectors.

`load_encoders` makes those of a profile from their specs. torch and the libraries of the models are imported when
the first one is loaded, not with this package.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from zsvec.encoders.base import Backbone, BatchEncoder, Encoder, Vectors
    from zsvec.encoders.encoder_set import EncoderSet
    from zsvec.encoders.loading import describe_device, load_encoder, load_encoders, missing_weights

__all__ = [
    "Backbone",
    "BatchEncoder",
    "Encoder",
    "EncoderSet",
    "Vectors",
    "describe_device",
    "load_encoder",
    "load_encoders",
    "missing_weights",
]

# numpy and Pillow are slow to import, and not needed for `zsvec.encoders.spec`, which settings are made of.
_LATE = {
    **dict.fromkeys(("Backbone", "BatchEncoder", "Encoder", "Vectors"), "zsvec.encoders.base"),
    "EncoderSet": "zsvec.encoders.encoder_set",
    **dict.fromkeys(("describe_device", "load_encoder", "load_encoders", "missing_weights"), "zsvec.encoders.loading"),
}


def __getattr__(name: str) -> _Any:
    if name in _LATE:
        return getattr(_import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
