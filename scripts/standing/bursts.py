"""Makes bursts: frames of a photo as a detector crops a moving object, under motion, blur and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console
from rich.progress import track

from zsvec.encoders import EncoderSet
from zsvec.inputs.images import load_image

progress = Console(stderr=True)
_SIDE = 224  # longer side of a frame in pixels
DIFFICULTIES = (0.2, 1.2)
"""Range of the difficulty of a burst, which is the first number of its generator."""
_REMEMBERED = 0.8  # correlation of the conditions of two frames in succession


def burst(image: Image.Image, frames: int, random: np.random.Generator) -> list[Image.Image]:
    """Returns frames of one photo. Conditions drift from frame to frame, and each burst is more or less difficult.

    A frame is a window of .65 to 1 of the sides, moved and turned, at half to all of the resolution, with blur by
    motion (up to 24 of 224 pixels), blur by focus, another exposure, and noise (standard deviation up to 40 of 255).
    """
    scale = _SIDE / max(image.size)
    whole = image.convert("RGB").resize([max(8, round(scale * side)) for side in image.size], Image.Resampling.BICUBIC)
    difficulty = random.uniform(*DIFFICULTIES)
    drift = random.standard_normal(8)
    made = []
    for _ in range(frames):
        drift = _REMEMBERED * drift + (1 - _REMEMBERED**2) ** 0.5 * random.standard_normal(8)
        made.append(_frame(whole, drift, difficulty, random))
    return made


def _frame(
    whole: Image.Image, drift: NDArray[np.float64], difficulty: float, random: np.random.Generator
) -> Image.Image:
    """Returns a window of an image under one condition; `drift` has eight standard normal numbers."""
    size, x, y, turn, direction, motion, exposure, grain = drift.tolist()
    share = 1 - 0.35 * min(1, abs(size) / 2) * min(1, difficulty)
    width, height = (round(share * side) for side in whole.size)
    left = int((whole.width - width) * (0.5 + 0.5 * np.tanh(x)))
    top = int((whole.height - height) * (0.5 + 0.5 * np.tanh(y)))
    window = whole.rotate(6 * difficulty * turn, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127))
    window = window.crop((left, top, left + width, top + height))
    smaller = 1 - 0.5 * min(1, difficulty * abs(turn) / 2)
    window = window.resize([max(8, round(smaller * side)) for side in window.size], Image.Resampling.BILINEAR)
    blurred = window.filter(ImageFilter.GaussianBlur(max(0.0, 0.8 * difficulty * exposure)))
    pixels = np.asarray(blurred, dtype=np.float32)
    pixels = _moved(pixels, min(24.0, 7 * difficulty * abs(motion)) * smaller, np.pi * direction)
    pixels = pixels * np.float32(2 ** (0.5 * difficulty * exposure))
    noise = random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(min(40.0, 14 * difficulty * abs(grain)))
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _moved(pixels: NDArray[np.float32], length: float, angle: float) -> NDArray[np.float32]:
    """Returns the mean of copies that are moved along a line, as a moving camera or object makes it."""
    steps = max(1, round(length))
    if steps == 1:
        return pixels
    total = np.zeros_like(pixels)
    half = steps // 2 + 1
    padded = np.pad(pixels, ((half, half), (half, half), (0, 0)), mode="edge")
    height, width, _ = pixels.shape
    for step in np.linspace(-length / 2, length / 2, steps):
        down, right = half + round(step * np.sin(angle)), half + round(step * np.cos(angle))
        total += padded[down : down + height, right : right + width]
    return total / np.float32(steps)


def embed_bursts(paths: Sequence[Path], frames: int, encoders: EncoderSet, seed: int) -> dict[str, NDArray[np.float16]]:
    """Embeds a burst of each image.

    Returns:
        By encoder, float16 ``(n_images, frames, dim)``.
    """
    found: dict[str, list[NDArray[np.float16]]] = {}
    for number, path in enumerate(track(paths, "embedding bursts", console=progress, transient=True)):
        images = burst(load_image(path), frames, np.random.default_rng([seed, number]))
        for name, vectors in encoders.encode_images([encoders.preprocess(one) for one in images]).items():
            found.setdefault(name, []).append(vectors.astype(np.float16))
    return {name: np.stack(bursts) for name, bursts in found.items()}
