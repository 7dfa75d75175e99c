"""What this machine has for the tests."""

from __future__ import annotations

import pytest
import torch

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="torch sees no GPU here"
)
