"""One PIL image that Pillow has opened and not decoded, many times in a list."""

from __future__ import annotations

import io
from threading import Lock
from time import sleep
from typing import Any

import pytest
from PIL import Image, ImageFile

import zsvec
from tests.support import encode, isolated, photo, two_encoders

__all__ = ["isolated"]


class TestOneLazyImage:
    """A PIL image of a file is decoded on first use, by one thread at a time."""

    @pytest.fixture
    def lazy(self, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
        """An image with an error of Pillow as soon as two threads decode at once."""
        inside = Lock()
        load = ImageFile.ImageFile.load

        def one_at_a_time(image: ImageFile.ImageFile) -> Any:
            if not image.tile:
                return load(image)
            if not inside.acquire(blocking=False):
                raise OSError("image file is truncated (0 bytes not processed)")
            try:
                sleep(0.05)  # for the other threads
                return load(image)
            finally:
                inside.release()

        monkeypatch.setattr(ImageFile.ImageFile, "load", one_at_a_time)
        return Image.open(io.BytesIO(encode(photo(5, (40, 30)))))

    @pytest.mark.usefixtures("patient")
    def test_classified(self, lazy: Image.Image) -> None:
        with zsvec.open(":memory:", encoders=two_encoders()) as clf:
            clf.add_category("a", images=[encode(photo(1))])
            assert [one.error for one in clf.classify_stream([lazy] * 16)] == [None] * 16
            assert len({one.distance for one in clf.classify([lazy] * 16)}) == 1

    def test_added(self, lazy: Image.Image) -> None:
        with zsvec.open(":memory:", encoders=two_encoders()) as clf:
            assert clf.add_category("a", images=[lazy] * 16).references["clip:image"] == 1
