"""A rectangle of an image file, as an image of its own: an object in its box."""

from __future__ import annotations

import os
from dataclasses import dataclass

from PIL import Image

from zsvec.errors import ImageError, InvalidInputError, shown


@dataclass(frozen=True, slots=True)
class Region:
    """The pixels of an image file within a rectangle; an image wherever zsvec takes one.

    The whole image is decoded, at its full size and turned upright, whenever the region is read.

    Attributes:
        path: Of the image file.
        box: Left, top, right and bottom in pixels, as of `PIL.Image.Image.crop`; it has a pixel and lies in the image.
        size: Width and height in pixels of the image that the box was drawn in, where they are known. A file of another
            size cannot be read: it was scaled or turned since.
    """

    path: str | os.PathLike[str]
    box: tuple[int, int, int, int]
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.box, tuple) and len(self.box) == 4 and all(isinstance(at, int) for at in self.box)):
            got = shown(self.box)
            raise InvalidInputError(f"a box must be a tuple of four int: left, top, right, bottom. Got {got} instead")

    @property
    def fragment(self) -> str:
        """The rectangle as a fragment of a URL; source: W3C, Media Fragments URI 1.0 (2012), section 4.2.2."""
        left, top, right, bottom = self.box
        return f"xywh={left},{top},{right - left},{bottom - top}"

    def cut_from(self, image: Image.Image) -> Image.Image:
        """The region of the decoded image.

        Raises:
            ImageError: The image has another size, or the region is not in it.
        """
        width, height = image.size
        if self.size is not None and image.size != tuple(self.size):
            raise ImageError(
                f"it has {width} × {height} pixels upright, and the box was drawn in {self.size[0]} × {self.size[1]}; "
                "give the file that was annotated, or annotate this one"
            )
        left, top, right, bottom = self.box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ImageError(f"the box {self.box} does not lie in its {width} × {height} pixels; give one that does")
        return image.crop(self.box)
