"""A rectangle of an image, as an image."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.inputs.pictures import read_image
from tests.support import REUSING, Reusing, encode, isolated, photo, two_encoders, write_photos  # noqa: F401
from zsvec.errors import ImageError, InvalidInputError
from zsvec.inputs import images as module
from zsvec.inputs.decoding import decode
from zsvec.inputs.images import Region, content_hash, load_image, source_of
from zsvec.inputs.memory import ACCOUNT

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


def test_a_box_is_rounded_outwards_and_cut_at_the_border(file: Path) -> None:
    whole = np.asarray(photo(1, (80, 60)))
    for box, margin, (left, top, right, bottom) in (
        ((10.6, 20.0, 39.2, 50.0), 0.0, (10, 20, 40, 50)),
        ((-1, -2.5, 5, 5), 0.0, (0, 0, 5, 5)),
        ((70, 50, 81, 60.5), 0.0, (70, 50, 80, 60)),
        ((10, 20, 30, 30), 0.25, (5, 17, 35, 33)),
        ((10, 20, 30, 30), 10, (0, 0, 80, 60)),
        (tuple(np.array([10.5, 20, 12, 22], np.float32)), 0.0, (10, 20, 12, 22)),
        ((79.9, 59.9, 79.95, 59.95), 0.0, (79, 59, 80, 60)),
    ):
        found = load_image(Region(file, box, margin=margin))
        assert np.array_equal(np.asarray(found), whole[top:bottom, left:right]), box


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((80, 0, 90, 5), "does not lie in its 80 × 60 pixels"),
        ((-9, 0, 0, 5), "does not lie in its 80 × 60 pixels"),
        ((0, 60, 5, 61), "does not lie in its 80 × 60 pixels"),
        ((5, 5, 5, 9), "is empty"),
        ((9, 5, 5, 9), "swapped"),
        ((5, 9, 9, 5), "swapped"),
        ((0, 0, float("nan"), 5), "finite"),
        ((0, float("-inf"), 5, 5), "finite"),
        ((0, 0, 1e300, 5), "finite"),
        ((0, 0, 10**5000, 5), "finite"),
    ],
)
def test_an_unusable_box(file: Path, box: Any, reason: str) -> None:
    for image in (file, file.read_bytes(), photo(1, (80, 60)), np.asarray(photo(1, (80, 60)))):
        for read in (load_image, content_hash):
            with pytest.raises(ImageError, match=reason):
                read(Region(image, box))
        assert len(source_of(Region(image, box))) < 400


def test_a_box_of_another_form(file: Path) -> None:
    for box in (None, (1, 2, 3), [1, 2, 3, 4], (1, 2, 3, "4"), (1, 2, 3, None), "0123"):
        with pytest.raises(InvalidInputError, match="a box must be a tuple of four numbers"):
            Region(file, cast("Any", box))
    for margin in (-0.1, float("nan"), float("inf"), 10**400, "1", None):
        with pytest.raises(InvalidInputError, match="margin must be a number from 0 to 10"):
            Region(file, BOX, margin=cast("Any", margin))


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
        assert [found.error is None for found in clf.classify_stream([*regions, Region(file, (90, 0, 99, 9))])] == [
            *(True, True, True, False)
        ]


@pytest.mark.parametrize("box", [(80, 0, 90, 5), (-9, 0, 0, 5), (90, 70, 99, 99), (5, 5, 5, 9), (9, 5, 5, 9)])
def test_a_region_beyond_its_image_is_refused_and_changes_nothing(file: Path, box: Any) -> None:
    region = Region(file, box, margin=5)  # which would reach the image
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        clf.add_category("cat", images=[file])
        before = clf.categories()
        for refused in (
            lambda: clf.add_category("new", images=[region]),
            lambda: clf.add_category("cat", images=[Region(file, BOX), region]),
            lambda: clf.add_category("cat", images=[region], replace=True),
            lambda: clf.classify(region),
            lambda: clf.correct(region, "new"),
            lambda: clf.keep(region),
        ):
            with pytest.raises(ImageError):
                refused()
        assert clf.categories() == before
        assert len(clf.inbox) == 0
        partly, cut = (Region(file, (70, 50, right, 99)) for right in (81, 80))
        assert clf.add_category("part", images=[partly]).version == clf.add_category("part", images=[cut]).version


# ---- regions of one image in a stream


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for each image that is decoded."""
    found: list[int] = []

    def counted(*given: Any) -> Image.Image:
        found.append(1)
        return decode(*given)

    monkeypatch.setattr(module, "decode", counted)
    return found


@pytest.fixture
def clf() -> Iterator[zsvec.Classifier]:
    with zsvec.open(":memory:", encoders=two_encoders(), batch_size=4) as opened:
        opened.add_category("cat", images=[photo(2)])
        yield opened


def boxes(number: int) -> list[tuple[int, int, int, int]]:
    return [(left, left, left + 9, left + 9) for left in range(number)]


def test_consecutive_regions_of_a_file_share_one_decoded_image(
    clf: zsvec.Classifier, tmp_path: Path, decoded: list[int]
) -> None:
    paths = write_photos(tmp_path / "many", range(5))
    for seed, path in enumerate(paths):
        path.write_bytes(encode(photo(seed, (80, 60))))
    expected = [clf.classify(photo(seed, (80, 60)).crop(box)).distance for seed in range(5) for box in boxes(30)]
    decoded.clear()
    for images in (paths, [path.read_bytes() for path in paths]):
        stream = clf.classify_stream(Region(image, box) for image in images for box in boxes(30))
        found = [answer.distance for answer in stream]
        assert found == pytest.approx(expected, abs=1e-6)
        assert len(decoded) == 5
        decoded.clear()
    assert ACCOUNT.taken == 0


def test_a_file_that_changes_between_two_regions_is_read_again(clf: zsvec.Classifier, file: Path) -> None:
    def frames() -> Iterator[Region]:
        for seed in (1, 2, 3):
            while len(answered) < seed - 1:
                time.sleep(0.001)
            file.write_bytes(encode(photo(seed, (80, 60)), "BMP"))
            os.utime(file, ns=(seed, seed))
            yield Region(file, BOX)

    answered: list[str | None] = []
    expected = [content_hash(photo(seed, (80, 60)).crop(BOX)) for seed in (1, 2, 3)]
    with clf.classify_stream(frames(), max_wait_ms=0) as stream:
        answered.extend(answer.hash for answer in stream)
    assert answered == expected


@pytest.mark.parametrize("way", REUSING)
def test_a_source_of_regions_may_reuse_its_buffer(clf: zsvec.Classifier, way: str) -> None:
    images = [photo(seed, (80, 60)) for seed in range(3)]
    given = getattr(Reusing(images), way)()
    found = clf.classify_stream(Region(image, box) for image in given for box in (BOX, (0, 0, 5, 5)))
    expected = [content_hash(image.crop(box)) for image in images for box in (BOX, (0, 0, 5, 5))]
    assert [answer.hash for answer in found] == expected


def test_an_unreadable_image_is_read_once_for_all_of_its_regions(
    clf: zsvec.Classifier, file: Path, decoded: list[int]
) -> None:
    broken = encode(photo(1, (80, 60)))[:-4000]
    regions = [Region(image, box) for image in (broken, file, "missing.png") for box in boxes(20)]
    answers = list(clf.classify_stream(regions))
    assert [answer.error is None for answer in answers] == [False] * 20 + [True] * 20 + [False] * 20
    assert len(decoded) == 2
    assert all("bytes#xywh=" in str(answer.error) for answer in answers[:20])
    assert ACCOUNT.taken == 0


def test_a_closed_stream_gives_the_memory_of_its_image_back(clf: zsvec.Classifier, file: Path) -> None:
    with clf.classify_stream(Region(file, BOX) for _ in range(1000)) as stream:
        next(stream)
    gc.collect()
    assert returned()


def test_a_closed_stream_does_not_keep_memory_while_its_source_waits(clf: zsvec.Classifier, file: Path) -> None:
    go_on = threading.Event()

    def slow() -> Iterator[Region]:
        for _ in range(40):
            yield Region(file, BOX)
        go_on.wait(60)

    with clf.classify_stream(slow(), max_wait_ms=0) as stream:
        next(stream)
    needed = 3 * 80 * 60 * 4 + 2**20
    load_image(file, image_memory=max(ACCOUNT.taken, needed))
    go_on.set()
    assert returned()


def returned() -> bool:
    """Whether all memory is given back, soon: the thread of the source ends by itself."""
    end = time.monotonic() + 60
    while ACCOUNT.taken and time.monotonic() < end:
        time.sleep(0.01)
    return ACCOUNT.taken == 0


def test_an_image_that_waits_for_regions_gives_way_to_another(file: Path, clf: zsvec.Classifier) -> None:
    """A stream whose source waits holds a decoded image, and another thread needs the memory."""
    go_on = threading.Event()

    def slow() -> Iterator[Region]:
        yield Region(file, BOX)
        assert go_on.wait(60)
        yield Region(file, (0, 0, 5, 5))

    needed = 3 * 80 * 60 * 4 + 2**20
    with clf.classify_stream(slow(), max_wait_ms=0) as stream:
        first = next(stream)
        held = ACCOUNT.taken
        assert held > 0
        load_image(file, image_memory=max(held, needed))
        go_on.set()
        assert [first.hash, next(stream).hash] == [content_hash(Region(file, box)) for box in (BOX, (0, 0, 5, 5))]
    assert returned()


def test_many_streams_of_regions_share_a_small_memory(tmp_path: Path) -> None:
    """Each image takes most of the memory: the streams take turns, and none waits for ever."""
    paths = write_photos(tmp_path / "many", range(6))
    for seed, path in enumerate(paths):
        path.write_bytes(encode(photo(seed, (600, 500))))
    needed = 2 * 600 * 500 * 4 + 2**21
    regions = [Region(path, box) for path in paths for box in boxes(12)]
    with zsvec.open(":memory:", encoders=two_encoders(), batch_size=4, image_memory=needed) as opened:
        opened.add_category("cat", images=[photo(2)])
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: [answer.error for answer in opened.classify_stream(regions)], range(4)))
    assert found == [[None] * len(regions)] * 4
    assert returned()
