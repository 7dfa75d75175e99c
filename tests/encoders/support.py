"""Helpers for tests that load encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zsvec.encoders import load_encoders
from zsvec.encoders.spec import EncoderSpec

Specs = dict[str, EncoderSpec]

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="torch sees no GPU here"
)


def load_one(spec: EncoderSpec, name: str = "it", **options: Any) -> Any:
    """Loads one encoder, by default on the CPU and in float32."""
    return load_encoders({name: spec}, **{"device": "cpu", "dtype": "float32", **options})[name]
