"""A picture for the tests of reading and decoding."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="package")
def photo() -> Image.Image:
    """Noise of an odd size."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (37, 53, 3), dtype=np.uint8))
