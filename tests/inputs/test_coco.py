"""Categories from COCO annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import zsvec
from tests.support import encode, given_images, isolated, photo, two_encoders  # noqa: F401
from zsvec.errors import InvalidInputError
from zsvec.inputs.categories import ReferenceImage
from zsvec.inputs.coco import from_coco
from zsvec.inputs.decoding import decode
from zsvec.inputs.images import Region, content_hash
from zsvec.inputs.memory import ACCOUNT

SIZE = (80, 60)
CATEGORIES = [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures."""
    (tmp_path / "data" / "val").mkdir(parents=True)
    for seed in range(3):
        (tmp_path / "data" / "val" / f"{seed}.png").write_bytes(encode(photo(seed, SIZE)))
    return tmp_path / "data"


def images(number: int = 3) -> list[dict[str, Any]]:
    return [
        {"id": 100 + i, "file_name": f"val/{i}.png", "width": SIZE[0], "height": SIZE[1], "license": 3}
        for i in range(number)
    ]


def annotation(image: Any, category: Any, *bbox: Any, **more: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": image, "category_id": category, "segmentation": [[1, 2] * 9], "bbox": bbox, **more}


def written(folder: Path, annotations: list[Any], **changes: Any) -> Path:
    file = folder / "annotations.json"
    content = {"info": {}, "images": images(), "annotations": annotations, "categories": CATEGORIES, **changes}
    file.write_text(json.dumps(content))
    return file


def boxes_of(file: Path, **options: Any) -> dict[str, list[tuple[str, tuple[float, ...], str | None]]]:
    found: dict[str, list[tuple[str, tuple[float, ...], str | None]]] = {}
    for category in from_coco(file, boxes=True, **options):
        for reference in given_images(category):
            assert isinstance(reference, ReferenceImage)
            assert isinstance(reference.image, Region)
            assert reference.image.size == SIZE
            found.setdefault(category.name, []).append(
                (Path(str(reference.image.image)).name, reference.image.box, reference.group)
            )
    return found


def test_objects_in_their_boxes(folder: Path) -> None:
    file = written(
        folder,
        [
            annotation(100, 1, 10, 20, 30, 15),
            annotation(100, 1, 10.2, 20.7, 29.9, 14.4, iscrowd=0),  # outwards to whole pixels
            annotation(100, 7, -5, -0.5, 10, 10),  # cut at the border of the image
            annotation(101, 7, 70, 50, 1e308, 1e308),
            annotation(101, 7, 0, 0, 80, 60),
            annotation(102, 7, 0, 0, 80, 60, iscrowd=1),
            annotation(102, 1, 79.5, 59.5, 9, 9),
        ],
    )
    assert boxes_of(file) == {
        "cat": [
            ("0.png", (10, 20, 40, 35), "val/0.png"),
            ("0.png", (10, 20, 41, 36), "val/0.png"),
            ("2.png", (79, 59, 80, 60), "val/2.png"),
        ],
        "dog": [
            ("0.png", (0, 0, 5, 10), "val/0.png"),
            ("1.png", (70, 50, 80, 60), "val/1.png"),
            ("1.png", (0, 0, 80, 60), "val/1.png"),
        ],
    }
    said: list[str] = []
    boxes_of(file, on_error=lambda error: said.append(str(error)))
    assert said == [f"{file}, annotations[5]: it is a crowd, not one object"]


def test_boxes_are_added_and_recognised(folder: Path) -> None:
    file = written(folder, [annotation(100 + i, category, 5, 5, 30, 30) for i in range(3) for category in (1, 7)])
    encoders = two_encoders()
    with zsvec.open(":memory:", encoders=encoders) as clf:
        first = clf.add_categories(from_coco(file, boxes=True))
        assert [max(category.references.values()) for category in first] == [3, 3]
        embedded = [encoder.images_encoded for encoder in encoders]
        assert clf.add_categories(from_coco(file, boxes=True)) == first
        assert [encoder.images_encoded for encoder in encoders] == embedded
        assert clf.classify(photo(1, SIZE).crop((5, 5, 35, 35))).distance == pytest.approx(0, abs=1e-6)


def test_an_image_is_decoded_once_for_all_objects_of_a_category(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []

    def noted(*given: Any) -> Image.Image:
        decoded.append(given)
        return decode(*given)

    boxes = [(x, y, 20, 20) for x in range(0, 50, 10) for y in range(0, 30, 10)]
    file = written(folder, [annotation(100 + i, 1, *box) for box in boxes for i in range(3)])
    monkeypatch.setattr("zsvec.inputs.images.decode", noted)
    with zsvec.open(":memory:", encoders=two_encoders(), batch_size=4) as clf:
        found = from_coco(file, boxes=True)
        (category,) = clf.add_categories(found)
        assert category.images == 3 * len(boxes)
        assert len(decoded) == 3
        assert clf.add_categories(found) == [category]
        assert len(decoded) == 6
        cut = photo(1, SIZE).crop((10, 10, 30, 30))
        assert content_hash(cut) in {reference.hash for reference in clf.references.of("cat")}
    assert ACCOUNT.taken == 0


def test_an_image_that_is_not_of_the_annotated_size(folder: Path) -> None:
    (folder / "val" / "1.png").write_bytes(encode(photo(1, (40, 30))))
    file = written(folder, [annotation(100 + i, 1, 0, 0, 9, 9) for i in range(3)])
    unreadable: list[str] = []
    with zsvec.open(":memory:", encoders=two_encoders()) as clf:
        found = from_coco(file, boxes=True)
        (category,) = clf.add_categories(found, on_error=lambda _, error: unreadable.append(str(error)))
    assert max(category.references.values()) == 2
    (said,) = unreadable
    assert "1.png#xywh=0,0,9,9': it has 40 × 30 pixels upright, and the box was drawn in 80 × 60" in said


def test_whole_images(folder: Path) -> None:
    annotations = [
        {"image_id": 100, "category_id": 1},
        annotation(100, 1, "whatever"),
        annotation(101, 7, bbox=[]),
        annotation(102, 7, 1, 1, 1, 1, iscrowd=1),
    ]
    found = from_coco(written(folder, annotations))
    assert {category.name: [Path(str(image)).name for image in given_images(category)] for category in found} == {
        "cat": ["0.png"],
        "dog": ["1.png", "2.png"],
    }


def test_an_image_of_several_categories_is_of_none(folder: Path) -> None:
    file = written(folder, [{"image_id": 100, "category_id": 1}, {"image_id": 100, "category_id": 7}])
    file = written(folder, [*json.loads(file.read_text())["annotations"], {"image_id": 101, "category_id": 1}])
    with pytest.raises(
        InvalidInputError, match=r"image 100 \(val/0.png\): it shows 2 categories \(cat, dog\): take the"
    ):
        from_coco(file)
    said: list[str] = []
    (category,) = from_coco(file, on_error=lambda error: said.append(str(error)))
    assert given_images(category) == [str(folder / "val" / "1.png")]
    assert said[1] == f"{file}, image 102 (val/2.png): it has no annotation that can be used"
    both = from_coco(file, labels="many")
    assert {category.name: [Path(str(image)).name for image in given_images(category)] for category in both} == {
        "cat": ["0.png", "1.png"],
        "dog": ["0.png"],
    }


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (annotation(100, 1, 0, 0, 0, 10), r"annotations\[1\]: its box .* has no pixel in an image of 80 × 60"),
        (annotation(100, 1, 80, 0, 10, 10), "has no pixel"),
        (annotation(100, 1, 0, -20, 10, 20), "has no pixel"),
        (annotation(100, 1, 1e308, 0, 1e308, 10), "has no pixel"),
        (annotation(100, 1, float("nan"), 0, 10, 10), r"bbox: Input should be a finite number. Got nan"),
        (annotation(100, 1, 10**400, 0, 10, 10), "bbox: "),
        (annotation(100, 1, 0, 0, 10), "bbox: "),
        ({"image_id": 100, "category_id": 1}, "bbox: Field required"),
        (annotation(100, 99, 0, 0, 9, 9), "there is no category of the id 99"),
        (annotation(10**40, 1, 0, 0, 9, 9), "there is no image of the id 10{40} that can be used"),
        (annotation("100", 1, 0, 0, 9, 9), "there is no image of the id '100'"),
        (annotation([1], 1, 0, 0, 9, 9), "image_id: "),
        (annotation(100, 1, 0, 0, 9, 9, iscrowd="maybe"), "iscrowd: "),
        (5, "valid dictionary"),
    ],
    ids=range(14),
)
def test_an_annotation_that_cannot_be_used(folder: Path, changed: Any, reason: str) -> None:
    file = written(folder, [annotation(101, 7, 0, 0, 9, 9), changed])
    with pytest.raises(InvalidInputError, match=reason):
        from_coco(file, boxes=True)
    said: list[str] = []
    assert boxes_of(file, on_error=lambda error: said.append(str(error))) == {
        "dog": [("1.png", (0, 0, 9, 9), "val/1.png")]
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_name": "../secret.png"}, "leads out of"),
        ({"file_name": "/etc/passwd"}, "leads out of"),
        ({"file_name": "val/link.png"}, "leads out of"),
        ({"file_name": "val/none.png"}, "there is no"),
        ({"file_name": "val/0\0.png"}, "printable in one line"),
        ({"file_name": ""}, "must not be empty"),
        ({"file_name": "https://example.org/0.png"}, "URLs are not fetched"),
        ({"width": 0}, "width: "),
        ({"height": 10**40}, "height: "),
        ({"id": 101}, r"images\[1\]: the id 101 is taken by another image"),
        ({"id": "x" * 201}, "id: "),
    ],
    ids=range(11),
)
def test_an_image_that_cannot_be_used(folder: Path, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    (tmp_path / "secret.png").write_bytes(encode(photo(9, SIZE)))
    (folder / "val" / "link.png").symlink_to(tmp_path / "secret.png")
    changed = images()
    changed[0].update(change)
    file = written(folder, [annotation(102, 7, 0, 0, 9, 9)], images=changed)
    with pytest.raises(InvalidInputError, match=reason):
        from_coco(file, boxes=True)
    assert list(boxes_of(file, on_error=lambda error: None)) == ["dog"]


def test_a_category_that_cannot_be_used(folder: Path) -> None:
    annotations = [annotation(100, 1, 0, 0, 9, 9), annotation(100, 2, 0, 0, 9, 9), annotation(100, 3, 0, 0, 9, 9)]
    names = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "c\nat"}, {"id": 3}]
    said: list[str] = []
    file = written(folder, annotations, categories=names)
    assert list(boxes_of(file, on_error=lambda error: said.append(str(error).partition(", ")[2]))) == ["cat"]
    assert [reason[:40] for reason in said] == [
        "categories[1]: the id 1 is taken by 'cat",
        "categories[2]: a category name must be p",
        "categories[3]: name: Field required. Got",
        "annotations[1]: there is no category of ",
        "annotations[2]: there is no category of ",
    ]


def test_a_file_of_another_kind(folder: Path) -> None:
    for content, reason in (
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"images": ' + "9" * 5000 + "}", "is no JSON"),
        ("[]", "has no COCO annotations: required are the lists images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "has no COCO annotations"),
        ('{"images": [], "annotations": [], "categories": []}', "has no image with a label"),
        ('{"red": ["like fire"]}', "has no COCO annotations"),
    ):
        (folder / "annotations.json").write_text(content)
        with pytest.raises(InvalidInputError, match=reason):
            from_coco(folder / "annotations.json", on_error=print)


def test_the_images_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path, [{"image_id": 100, "category_id": 1}])
    (category,) = from_coco(file, folder)
    assert given_images(category) == [str(folder / "val" / "0.png")]
    with pytest.raises(InvalidInputError, match="is no folder"):
        from_coco(file, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("above", "parent"),
    [("animal", "animal"), ("animal > pet", "animal > pet"), ("", None), ("none", None), ("cat", None), (7, None)],
)
@pytest.mark.parametrize("boxes", [False, True])
def test_a_supercategory_is_the_parent(folder: Path, above: object, parent: str | None, boxes: bool) -> None:
    categories = [{"id": 1, "name": "cat", "supercategory": above}]
    file = written(folder, [annotation(100, 1, 0, 0, 9, 9)], categories=categories)
    (found,) = from_coco(file, boxes=boxes)
    assert (found.name, found.parent) == ("cat", parent)


def test_an_unusable_supercategory_is_told_and_the_category_stays(folder: Path) -> None:
    said: list[object] = []
    categories = [{"id": 1, "name": "cat", "supercategory": "a > > b"}]
    file = written(folder, [annotation(100, 1, 0, 0, 9, 9)], categories=categories, images=images(1))
    (found,) = from_coco(file, on_error=said.append)
    assert (found.name, found.parent, len(said)) == ("cat", None, 1)
