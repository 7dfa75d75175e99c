"""Encoders: images and texts to vectors.

`load_encoders` makes those of a profile from their specs. torch and the libraries of the models are imported when
the first one is loaded, not with this package.
"""

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
