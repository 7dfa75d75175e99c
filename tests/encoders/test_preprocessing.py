"""From an image to pixels without torch: what timm's transform gives, and what cannot be declared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from timm.data.transforms_factory import create_transform

from zsvec.encoders.base import rgb_of_bounded_aspect
from zsvec.encoders.preprocessing import Preprocessing

SIZES = [(300, 200), (200, 300), (224, 247), (256, 256), (32, 32), (683, 512), (1000, 30), (7, 900), (1, 1)]


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Where every pixel differs from its neighbours, rounding shows most."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("side", "crop_pct", "interpolation"), [(224, 0.875, "bicubic"), (160, 0.95, "bilinear"), (96, 1.0, "lanczos")]
)
def test_pixels_are_those_of_timm(side: int, crop_pct: float, interpolation: Any, size: tuple[int, int]) -> None:
    image = noise(size)
    transform = create_transform(
        (3, side, side), crop_pct=crop_pct, interpolation=interpolation, crop_mode="center", use_prefetcher=True
    )
    expected = transform(rgb_of_bounded_aspect(image)).permute(1, 2, 0).numpy().astype(int)
    got = Preprocessing(size=side, scaled=int(side / crop_pct), interpolation=interpolation)(image)
    assert (got.shape, got.dtype, got.flags.writeable) == ((side, side, 3), np.uint8, True)
    difference = np.abs(got - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() <= (0.1 if interpolation == "bilinear" else 0.001)  # whose products are often ties


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = noise((50, 40)).convert(mode)
    preprocessing = Preprocessing(size=32, scaled=32, interpolation="bicubic")
    np.testing.assert_array_equal(preprocessing(image), preprocessing(image.convert("RGB")))


@pytest.mark.parametrize(
    "wrong", [{"size": 33}, {"size": 0}, {"scaled": 10**6}, {"interpolation": "random"}, {"crop_mode": "border"}]
)
def test_what_cannot_be_carried_out_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**{"size": 32, "scaled": 32, "interpolation": "bicubic", **wrong})
