"""Boxes of detectors as regions, and files of boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import encode, isolated, photo
from zsvec.errors import ImageError, InvalidInputError
from zsvec.inputs import box_files
from zsvec.inputs.box_files import regions_of_file
from zsvec.inputs.boxes import MAX_BOXES, regions_of
from zsvec.inputs.images import Region, load_image, source_of

__all__ = ["isolated"]

BOXES = [(10, 20, 40, 50), (0, 0, 8, 6)]
SIZE = (80, 60)


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES,
        np.array(BOXES, np.uint8),
        torch.tensor(BOXES, dtype=torch.float16),
        SimpleNamespace(xyxy=torch.tensor(BOXES), conf=[1, 1]),
    ],
)
def test_boxes_as_regions(boxes: Any) -> None:
    found = regions_of("a.png", boxes, 0.1)
    assert found == [Region("a.png", box, margin=0.1) for box in BOXES]


@pytest.mark.parametrize("boxes", [[], (), np.empty((0, 4)), torch.empty(0, 4), SimpleNamespace(xyxy=[])])
def test_no_boxes(boxes: Any) -> None:
    assert regions_of("a.png", boxes) == []


@pytest.mark.parametrize(
    "boxes",
    [
        None,
        3,
        "0123",
        [1, 2, 3, 4],
        [[1, 2, 3]],
        np.zeros((2, 5)),
        np.zeros((2, 2, 4)),
        [[1, 2, 3, "x"]],
        [[1j] * 4],
        [(1, 2, 3, 4), (1, 2)],
        [[10**400] * 4],
        np.zeros((MAX_BOXES + 1, 4)),
        np.empty((0, 5)),
        object(),
        {},
    ],
)
def test_what_is_no_boxes(boxes: Any) -> None:
    with pytest.raises(InvalidInputError):
        regions_of("a.png", boxes)
    with pytest.raises(InvalidInputError, match="one image"):
        regions_of(["a.png", "b.png"], BOXES)  # type: ignore[arg-type]


# ---- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one in a sub-folder."""
    (tmp_path / "data" / "val").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "val/c.png")):
        (tmp_path / "data" / name).write_bytes(encode(photo(seed, SIZE)))
    return tmp_path / "data"


def coco(*annotations: tuple[int, Any], **changes: Any) -> str:
    names = ("a.png", "b.png", "val/c.png")
    images = [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)]
    boxes = [{"image_id": image, "bbox": box, "category_id": 3, "score": 0.5} for image, box in annotations]
    return json.dumps({"images": images, "annotations": boxes, **changes})


def crops(regions: Iterator[Region]) -> list[tuple[str, list[Any]]]:
    return [(source_of(region), np.asarray(load_image(region)).tolist()) for region in regions]


def cut(folder: Path, *boxes: tuple[str, tuple[int, int, int, int]]) -> list[list[Any]]:
    return [np.asarray(load_image(folder / name).crop(box)).tolist() for name, box in boxes]


def test_the_same_boxes_in_three_formats(folder: Path, tmp_path: Path) -> None:
    boxes = ("a.png", (10, 20, 40, 50)), ("a.png", (0, 0, 8, 6)), ("val/c.png", (70, 30, 80, 60))
    files = {
        "found.json": coco((0, [10, 20, 30, 30]), (2, [70, 30, 10, 30]), (0, [0, 0, 8, 6])),
        "found.csv": "score;image;left;top;right;bottom\n1;a.png;10;20;40;50\n2;val\\c.png;70;30;80;60\n"
        "3;a.png;0;0;8;6\n",
    }
    (tmp_path / "labels" / "val").mkdir(parents=True)
    (tmp_path / "labels" / "a.txt").write_text("3 0.3125 0.583333 0.375 0.5 0.9\n\n0 0.05 0.05 0.1 0.1\n")
    (tmp_path / "labels" / "val" / "c.txt").write_text("1 .9375 .75 .125 .5")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        found = crops(regions_of_file(tmp_path / name, folder))
        assert [pixels for _, pixels in found] == cut(folder, *boxes)
        assert [source for source, _ in found] == [
            f"{folder}/{name}#xywh={left},{top},{right - left},{bottom - top}"
            for name, (left, top, right, bottom) in boxes
        ]
    found = crops(regions_of_file(tmp_path / "labels", folder))
    assert [pixels for _, pixels in found] == cut(folder, *boxes)
    assert found[1][0] == f"{folder}/a.png#xywh=percent:0,0,10,10"
    (alone, _) = crops(regions_of_file(tmp_path / "labels" / "a.txt", folder / "a.png"))
    assert alone[1] == cut(folder, boxes[0])[0]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt"])
def test_unusable_boxes_are_errors_of_their_regions(folder: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"found{suffix}"
    bad: list[tuple[Any, ...]] = [
        (90, 0, 95, 5),
        (5, 5, 5, 9),
        (9, 5, 5, 9),
        ("nan", 0, 5, 5),
        (0, 0, "inf", 5),
        (0, 0, 1e300, 5),
    ]
    if suffix == ".json":
        numbers = [[float(at) for at in box] for box in bad]
        text = coco(*((0, [left, top, r - left, b - top]) for left, top, r, b in numbers), (0, [0, 0, 8, 6]))
    elif suffix == ".csv":
        text = "image,left,top,right,bottom\n" + "".join(f"a.png,{','.join(map(str, box))}\n" for box in bad)
        text += "a.png,0,0,8,6\n"
    else:
        text = "0 2 2 .1 .1\n0 .5 .5 0 .1\n0 .5 .5 -.1 .1\n0 nan .5 .1 .1\n0 inf .5 .1 .1\n0 1e300 .5 .1 .1\n"
        text += "0 .05 .05 .1 .1"
    file.write_text(text)
    *unusable, usable = regions_of_file(file, folder / "a.png" if suffix == ".txt" else folder)
    assert np.asarray(load_image(usable)).tolist() == cut(folder, ("a.png", (0, 0, 8, 6)))[0]
    assert len(unusable) == 6
    for region in unusable:
        with pytest.raises(ImageError, match="box"):
            load_image(region)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.json", coco((0, [1, 2, 3]), (0, ["a", 0, 1, 1]), (0, [1, 2, 3, 4]))),
        ("f.json", coco((0, None), (9, [1, 2, 3, 4]), (0, [1, 2, 3, 4]))),
        ("f.csv", "image,left,top,right,bottom\na.png,1,2\na.png,1,2,x,4\na.png,1,2,4,6"),
        ("f.csv", "image,left,top,right,bottom\n../f.csv,1,2,4,6\nmissing.png,1,2,4,6\na.png,1,2,4,6"),
        ("f.csv", "image,left,top,right,bottom\n/etc/hostname,1,2,4,6\nhttp://x/a.png,1,2,4,6\na.png,1,2,4,6"),
    ],
)
def test_unusable_rows_are_reported_and_skipped(folder: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    errors: list[Exception] = []
    (found,) = regions_of_file(tmp_path / name, folder, on_error=errors.append)
    assert (source_of(found), len(errors)) == (f"{folder}/a.png#xywh=1,2,3,4", 2)
    with pytest.raises(InvalidInputError):
        list(regions_of_file(tmp_path / name, folder))


def test_links_out_of_the_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "out.png").symlink_to("/etc/hostname")
    (tmp_path / "f.csv").write_text("image,left,top,right,bottom\nout.png,1,2,4,6\n")
    for file in ("labels", "f.csv"):
        with pytest.raises(InvalidInputError, match="leads out of"):
            list(regions_of_file(tmp_path / file, folder))
    errors: list[Exception] = []
    assert list(regions_of_file(tmp_path / "labels", folder, on_error=errors.append)) == []
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.json", "[]"),
        ("f.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4]}]'),
        ("f.json", "[" * 100_000),
        ("f.json", '{"images": {}, "annotations": []}'),
        ("f.csv", ""),
        ("f.csv", "image,left,top,right\n"),
        ("f.csv", 'image,left,top,right,bottom\n"a.png,1,2,3,4\n'),
        ("f.csv", "\xe9" * 2**21),
        ("f.xml", "<x/>"),
        ("missing.csv", None),
    ],
)
def test_what_is_no_file_of_boxes(folder: Path, tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInputError):
        list(regions_of_file(tmp_path / name, folder))


@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt"])
def test_too_many_boxes(folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"f{suffix}"
    number = MAX_BOXES + 1
    if suffix == ".json":
        file.write_text(coco(*[(0, [1, 2, 3, 4])] * number))
    elif suffix == ".csv":
        file.write_text("image,left,top,right,bottom\n" + "a.png,1,2,3,4\n" * number)
    else:
        file.write_text("0 .5 .5 .1 .1\n" * number)
    images = folder / "a.png" if suffix == ".txt" else folder
    with pytest.raises(InvalidInputError, match="at most 10,000 boxes"):
        regions_of_file(file, images)
    if suffix != ".txt":
        monkeypatch.setattr(box_files, "MAX_BOXES", number)
        monkeypatch.setattr(box_files, "MAX_ALL_BOXES", number - 1)
        with pytest.raises(InvalidInputError, match="at most 10,000 boxes"):
            regions_of_file(file, images)


def test_regions_of_tracks(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode(photo(1, SIZE)))
    rows = [
        "track,image,left,top,right,bottom",
        "7,b.png,0,0,8,6",
        ",b.png,0,0,8,6",
        " 8,a.png,0,0,8,6",
        "7,a.png,0,0,8,6",
    ]
    (tmp_path / "f.csv").write_text("\n".join([*rows, "7,b.png,1,1,8,6"]))
    found = list(regions_of_file(tmp_path / "f.csv", tmp_path))
    tracks = [(one.track, one.last) if isinstance(one, box_files.TrackedRegion) else None for one in found]
    assert tracks == [("7", False), None, ("7", False), ("8", True), ("7", True)]
    (tmp_path / "f.csv").write_text("track,track,image,left,top,right,bottom\n")
    with pytest.raises(InvalidInputError):
        regions_of_file(tmp_path / "f.csv", tmp_path)
