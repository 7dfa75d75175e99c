"""A rectangle of an image file, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.inputs.pictures import read_image
from tests.support import encode, isolated, photo, two_encoders, write_photos  # noqa: F401
from zsvec.errors import ImageError, InvalidInputError
from zsvec.inputs.images import Region, content_hash, load_image, source_of

BOX = (10, 20, 40, 50)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo(1, (80, 60))))
    return path


def test_a_region_has_the_pixels_in_its_box(file: Path) -> None:
    found = load_image(Region(file, BOX))
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(photo(1, (80, 60)))[20:50, 10:40])
    assert source_of(Region(file, BOX)) == f"{file}#xywh=10,20,30,30"


def test_the_hash_of_a_region_is_of_its_pixels(file: Path, tmp_path: Path) -> None:
    found = content_hash(Region(file, BOX))
    assert found == read_image(Region(str(file), BOX, (80, 60))).content_hash
    assert found == content_hash(photo(1, (80, 60)).crop(BOX))
    (tmp_path / "b.tif").write_bytes(encode(photo(1, (80, 60)), "TIFF"))
    assert found == content_hash(Region(tmp_path / "b.tif", BOX))
    assert found != content_hash(Region(file, (11, 20, 41, 50)))
    assert content_hash(Region(file, (0, 0, 80, 60))) != content_hash(file)  # a hash of encoded bytes


def test_a_large_jpeg_is_not_decoded_at_a_fraction(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    picture = Image.new("RGB", (800, 600), "white")
    picture.paste("red", (400, 0, 800, 600))
    path.write_bytes(encode(picture, "JPEG"))
    found = load_image(Region(path, (500, 100, 700, 300)), side=16)
    assert found.size == (200, 200)
    assert np.asarray(found)[100, 100].tolist() == pytest.approx([255, 0, 0], abs=5)


def test_the_box_is_of_the_upright_image(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    path = tmp_path / "phone.jpg"
    path.write_bytes(encode(photo(2, (80, 60)), "JPEG", exif=turned))
    assert load_image(Region(path, (0, 0, 60, 80), (60, 80))).size == (60, 80)
    with pytest.raises(ImageError, match=r"phone.jpg#xywh=0,0,30,30'.* 60 × 80 pixels upright, .* drawn in 80 × 60"):
        load_image(Region(path, (0, 0, 30, 30), (80, 60)))


def test_a_box_outside_of_the_image_or_of_another_form(file: Path) -> None:
    for box in ((-1, 0, 5, 5), (0, 0, 81, 5), (0, 0, 5, 61), (5, 5, 5, 9), (9, 5, 5, 9), (0, 0, 10**30, 5)):
        for read in (load_image, content_hash):
            with pytest.raises(ImageError, match="does not lie in its 80 × 60 pixels"):
                read(Region(file, box))
    for other in (None, (1, 2, 3), [1, 2, 3, 4], (1.0, 2, 3, 4), "0123"):
        with pytest.raises(InvalidInputError, match="a box must be a tuple of four int"):
            Region(file, cast("Any", other))


def test_the_whole_image_is_within_the_limits(file: Path) -> None:
    with pytest.raises(ImageError, match="max_pixels"):
        load_image(Region(file, (0, 0, 2, 2)), max_pixels=80 * 60 - 1)
    with pytest.raises(ImageError, match="image_memory"):
        content_hash(Region(file, (0, 0, 2, 2)), image_memory=1000)
    with pytest.raises(ImageError, match=r"missing\.png#xywh=0,0,2,2': No such file"):
        load_image(Region(file.parent / "missing.png", (0, 0, 2, 2)))


def test_a_region_is_added_and_classified_like_an_image(file: Path) -> None:
    encoders = two_encoders()
    regions = [Region(file, (left, 0, left + 20, 60)) for left in (0, 20, 40)]
    with zsvec.open(":memory:", encoders=encoders) as clf:
        category = clf.add_category("cat", images=regions)
        embedded = [encoder.images_encoded for encoder in encoders]
        assert clf.add_category("cat", images=regions) == category
        assert [encoder.images_encoded for encoder in encoders] == embedded
        assert max(category.references.values()) == 3
        prediction = clf.classify(regions[1])
        assert prediction.source == f"{file}#xywh=20,0,20,60"
        assert prediction.distance == pytest.approx(0, abs=1e-6)
        assert [found.error is None for found in clf.classify_stream([*regions, Region(file, (0, 0, 99, 99))])] == [
            *(True, True, True, False)
        ]
