"""`zsvec demo`: the whole story in a minute, offline, in a temporary folder.

The photographs come with scikit-image and scikit-learn, which say whose they are and how they are licensed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from rich.markup import escape
from rich.table import Table

import zsvec
from zsvec.builder import CategoryInput
from zsvec.classifier import Classifier
from zsvec.cli.output import evidence, out
from zsvec.errors import MissingExtraError
from zsvec.images import load_image
from zsvec.types import Prediction

Half = Literal["left", "right"]


@dataclass(frozen=True)
class Photo:
    """A photograph of an installed package, or a half of it: one half can be a reference, the other a test."""

    package: str
    file: str
    half: Half | None = None

    def load(self) -> Image.Image:
        """The pixels, RGB."""
        with files(self.package).joinpath(self.file).open("rb") as stream:
            image = load_image(stream)
        middle = image.width // 2
        return image.crop({None: (0, 0, image.width, image.height), "left": (0, 0, middle, image.height), "right": (middle, 0, image.width, image.height)}[self.half])

    @property
    def name(self) -> str:
        """What to call it in the tables."""
        return f"{Path(self.file).stem}{f' ({self.half} half)' if self.half else ''}"


def skimage(file: str, half: Half | None = None) -> Photo:
    return Photo("skimage.data", file, half)


def sklearn(file: str, half: Half | None = None) -> Photo:
    return Photo("sklearn.datasets.images", file, half)


CATEGORIES: dict[str, tuple[list[str], list[Photo]]] = {
    "cat": (["a domestic cat"], []),
    "coffee": (["a cup of coffee"], []),
    "astronaut": (["an astronaut in a space suit"], []),
    "temple": (["a Chinese temple or palace with a curved roof"], []),
    "flower": (["a flower in bloom"], []),
    "motorcycle": ([], [skimage("motorcycle_left.png")]),
    "coins": ([], [skimage("coins.png", "left")]),
    "brick wall": ([], [skimage("brick.png", "left")]),
    "lawn": ([], [skimage("grass.png", "left")]),
    "gravel": ([], [skimage("gravel.png", "left")]),
}
TESTS = [skimage("chelsea.png"), skimage("coffee.png"), skimage("astronaut.png"), sklearn("china.jpg"), sklearn("flower.jpg"), skimage("motorcycle_right.png"), skimage("coins.png","right"), skimage("brick.png","right"), skimage("grass.png","right"), skimage("gravel.png","right"), skimage("rocket.jpg"), skimage("retina.jpg"), skimage("hubble_deep_field.jpg"), skimage("page.png"), skimage("clock_motion.png"), skimage("camera.png")]
