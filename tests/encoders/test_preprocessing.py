"""From an image to pixels without torch: the pixels of timm, and configurations that are read exactly or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from timm.data.transforms_factory import create_transform

from zsvec.encoders.base import rgb_of_bounded_aspect
from zsvec.encoders.preprocessing import of_timm, of_transformers, preprocess
from zsvec.encoders.spec import Preprocessing

SIZES = [(300, 200), (200, 300), (224, 247), (256, 256), (32, 32), (683, 512), (1000, 30), (7, 900), (1, 1)]
HOSTILE: tuple[Any, ...] = (99, -1, 8.5, 10**30, "a", [], [1], {"a": 1})
SQUASHED: dict[str, Any] = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CROPPED: dict[str, Any] = {
    **SQUASHED,
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
}
OF_TIMM: dict[str, Any] = {"input_size": [3, 32, 32], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3}


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Returns an image of random pixels, which show rounding most."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("side", "crop_pct", "interpolation"), [(224, 0.875, "bicubic"), (160, 0.95, "bilinear"), (96, 1.0, "lanczos")]
)
def test_pixels_agree_with_timm(side: int, crop_pct: float, interpolation: Any) -> None:
    transform = create_transform(
        (3, side, side), crop_pct=crop_pct, interpolation=interpolation, crop_mode="center", use_prefetcher=True
    )
    how = Preprocessing(size=side, scaled=int(side / crop_pct), interpolation=interpolation)
    for size in SIZES:
        image = noise(size)
        expected = transform(rgb_of_bounded_aspect(image)).permute(1, 2, 0).numpy().astype(int)
        got = preprocess(image, how)
        assert (got.shape, got.dtype, got.flags.writeable) == ((side, side, 3), np.uint8, True)
        difference = np.abs(got - expected)
        assert difference.max() <= 2, size
        # products of bilinear are often ties
        assert (difference > 0).mean() <= (0.1 if interpolation == "bilinear" else 0.001), size


def test_other_modes_become_rgb() -> None:
    how = Preprocessing(size=32, scaled=32)
    for mode in ("L", "RGBA", "P"):
        image = noise((50, 40)).convert(mode)
        np.testing.assert_array_equal(preprocess(image, how), preprocess(image.convert("RGB"), how))


def test_impossible_preprocessing_is_refused() -> None:
    wrongs: list[dict[str, Any]] = [
        {"size": 33},
        {"size": 0},
        {"scaled": 10**6},
        {"interpolation": "random"},
        {"crop_mode": "border"},
    ]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            Preprocessing(**{"size": 32, "scaled": 32, **wrong})


# ---- configurations


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SQUASHED, "32×32 squashed, bicubic down"),
        ({**SQUASHED, "do_center_crop": None, "resample": 2}, "32×32 squashed, bilinear"),
        (CROPPED, "32×32 of 40, bicubic down"),
        ({"image_processor": CROPPED}, "32×32 of 40, bicubic down"),
        ({**CROPPED, "size": 40, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor"}, "32×32 of 40"),
    ],
    ids=str,
)
def test_processors_of_transformers(config: dict[str, Any], words: str) -> None:
    assert str(of_transformers(config)).startswith(words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pretrained_cfg": OF_TIMM}, "32×32 of 35, bicubic even"),
        ({**OF_TIMM, "crop_pct": None, "interpolation": "bilinear"}, "32×32 of 36, bilinear even"),
        ({**OF_TIMM, "test_input_size": [3, 64, 64], "test_crop_pct": 1.0}, "32×32 of 35"),
        ({**OF_TIMM, "test_input_size": None, "crop_mode": "squash", "crop_pct": 1}, "32×32 squashed"),
    ],
    ids=str,
)
def test_configurations_of_timm(config: dict[str, Any], words: str) -> None:
    assert str(of_timm(config)).startswith(words)


def test_configurations_of_other_models_are_left_out() -> None:
    assert of_transformers({"vocab_size": 5}) is None
    assert of_timm({"hidden_size": 5}) is None


def assert_refused(read: Any, configs: list[dict[str, Any]]) -> None:
    for config in configs:
        with pytest.raises(ValueError, match=r"."):
            pytest.fail(f"{config} became {read(config)}")


@pytest.mark.parametrize(
    "key", ["size", "crop_size", "resample", "image_mean", "image_std", "do_resize", "do_center_crop"]
)
def test_hostile_values_in_processors_are_refused(key: str) -> None:
    values = [value for value in (*HOSTILE, None) if (key, value) != ("do_center_crop", 1)]
    assert_refused(of_transformers, [{**CROPPED, key: value} for value in values])


def test_processors_that_cannot_be_reproduced_are_refused() -> None:
    assert_refused(
        of_transformers,
        [
            *({"image_processor": value} for value in (*HOSTILE[:-1], None)),
            {**CROPPED, "rescale_factor": 1 / 127.5},
            {**CROPPED, "rescale_factor": None},
            {**CROPPED, "size": {"height": 40, "width": 40}},  # DeiT
            {**CROPPED, "size": 40, "crop_size": 32, "feature_extractor_type": "DeiTFeatureExtractor"},
            {**CROPPED, "crop_pct": 0.9},
            {**CROPPED, "do_rescale": False},
            {**CROPPED, "size": {"shortest_edge": 40, "longest_edge": 60}},
            {**SQUASHED, "size": 32},
            {**SQUASHED, "size": {"height": 32, "width": 24}},
            {**SQUASHED, "size": {"height": 5000, "width": 5000}},
            {**SQUASHED, "resample": 0},
            {**SQUASHED, "do_center_crop": True},
            {**SQUASHED, "image_mean": [float("nan")] * 3},
            {**SQUASHED, "image_mean": [1e39] * 3},
            {**SQUASHED, "image_std": [1e-60] * 3},
        ],
    )


@pytest.mark.parametrize("key", ["input_size", "interpolation", "mean", "std"])
def test_hostile_values_in_configurations_of_timm_are_refused(key: str) -> None:
    assert_refused(of_timm, [{**OF_TIMM, key: value} for value in HOSTILE])


def test_configurations_of_timm_that_cannot_be_reproduced_are_refused() -> None:
    assert_refused(
        of_timm,
        [
            *({**OF_TIMM, "crop_pct": value} for value in (0, -1, "a", [], float("nan"), 5e-324, 1e-9, 2.0, 1e999)),
            *({"pretrained_cfg": value} for value in HOSTILE[:-1]),
            {**OF_TIMM, "input_size": [1, 32, 32]},
            {**OF_TIMM, "input_size": [3, 32, 24]},
            {**OF_TIMM, "crop_mode": "border"},
            {**OF_TIMM, "crop_mode": "squash"},  # to more than is cropped
            {**OF_TIMM, "interpolation": "random"},
        ],
    )
