"""The images in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from zsvec.errors import InvalidInputError
from zsvec.inputs.encoded import SUFFIXES
from zsvec.inputs.folders import category_folders, find_images, read_categories


def test_recursive_sorted_by_suffix(tmp_path: Path) -> None:
    wanted = ["a.jpg", "b.PNG", "c d.JpEg", "deep/er/e.webp", "ünï.tif"]
    others = [".hidden.jpg", "._a.jpg", ".git/x.png", "notes.txt", "jpg", "a.jpg.txt", "deep/.x/y.png", "i.ico"]
    for name in wanted + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in wanted)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos, with links within it; a folder beside it has a photo, too."""
    photos = tmp_path / "photos"
    for name in ("photos/cat", "photos/deep/dog", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("photos/cat/a.jpg", "photos/deep/dog/b.jpg", "elsewhere/private.jpg", "elsewhere/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    try:
        (photos / "dog").symlink_to(photos / "deep" / "dog", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    (photos / "link.jpg").symlink_to("cat/a.jpg")
    (photos / "cat" / "up").symlink_to(photos, target_is_directory=True)
    return photos


def test_links_within_a_folder_are_followed_and_loops_end(photos: Path) -> None:
    assert find_images(photos) == [photos / "cat" / "a.jpg", photos / "deep" / "dog" / "b.jpg", photos / "link.jpg"]


def test_folders_in_folders_are_a_tree(tmp_path: Path) -> None:
    for name in ("animal/bird/robin/a.jpg", "animal/bird/b.jpg", "animal/dog/c.jpg", "car/d.jpg", "loose.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = {one.name: (one.parent, len(list(one.images))) for one in read_categories(tmp_path, tree=True)}
    assert found == {"robin": ("animal > bird", 1), "bird": ("animal", 1), "dog": ("animal", 1), "car": ("", 1)}
    flat = {one.name: (one.parent, len(list(one.images))) for one in read_categories(tmp_path)}
    assert flat == {"animal": (None, 3), "car": (None, 1)}
    (tmp_path / "toy" / "car").mkdir(parents=True)
    assert len(read_categories(tmp_path, tree=True)) == 4  # a folder without images is no category
    (tmp_path / "toy" / "car" / "e.jpg").write_bytes(b"")
    with pytest.raises(InvalidInputError):
        read_categories(tmp_path, tree=True)
    (tmp_path / "toy" / "car").rename(tmp_path / "toy" / "racer")
    (tmp_path / "toy").rename(tmp_path / "a > b")
    with pytest.raises(InvalidInputError):
        read_categories(tmp_path, tree=True)


def test_links_in_a_tree_end(photos: Path) -> None:
    assert [(one.name, one.parent) for one in read_categories(photos, tree=True)] == [("cat", ""), ("dog", "deep")]


def test_the_folder_itself_may_be_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to(photos, target_is_directory=True)
    assert len(find_images(tmp_path / "named")) == 3


LEADING_OUT = {
    "a file": lambda photos: (photos / "cat" / "0.jpg").symlink_to(photos.parent / "elsewhere" / "private.jpg"),
    "a relative file": lambda photos: (photos / "0.jpg").symlink_to("../elsewhere/private.jpg"),
    "a folder": lambda photos: (photos / "0").symlink_to("../elsewhere", target_is_directory=True),
    "a folder above": lambda photos: (photos / "cat" / "0").symlink_to("../..", target_is_directory=True),
    "nothing": lambda photos: (photos / "0.jpg").symlink_to("../missing.jpg"),
    "a link out": lambda photos: [
        (photos / ".hidden").symlink_to("../elsewhere", target_is_directory=True),
        (photos / "0.jpg").symlink_to(".hidden/private.jpg"),
    ],
    "itself": lambda photos: (photos / "0.jpg").symlink_to("0.jpg"),
}


@pytest.mark.parametrize("lead_out", LEADING_OUT.values(), ids=LEADING_OUT)
def test_a_link_that_leads_out_of_a_folder_is_left_out_and_told(
    photos: Path, lead_out: Callable[[Path], object]
) -> None:
    found = find_images(photos)
    lead_out(photos)
    told: list[InvalidInputError] = []
    assert find_images(photos, on_outside=told.append) == found
    (error,) = told
    assert re.search(r"/0(\.jpg)?' (leads out of|cannot be a path in) .*photos", str(error))
    with pytest.raises(InvalidInputError, match=r"leads out of|cannot be a path in"):
        find_images(photos)


def test_links_within_a_larger_folder_are_followed(photos: Path) -> None:
    (photos / "cat" / "c.jpg").symlink_to(photos / "deep" / "dog" / "b.jpg")
    (photos / "cat" / "up").unlink()
    told: list[InvalidInputError] = []
    assert [path.name for path in find_images(photos / "cat", root=photos)] == ["a.jpg", "c.jpg"]
    assert [path.name for path in find_images(photos / "cat", on_outside=told.append)] == ["a.jpg"]
    assert len(told) == 1


def test_an_error_names_links_that_are_the_only_sub_folders(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "refs"
    folder.mkdir()
    for name in ("fox", "owl"):
        (folder / name).symlink_to("../elsewhere", target_is_directory=True)
    skipped: list[InvalidInputError] = []
    with pytest.raises(InvalidInputError, match="fox, owl"):
        category_folders(folder, on_outside=skipped.append)
    assert len(skipped) == 2


def test_a_category_that_is_a_link_out_of_the_folder_is_left_out_and_told(photos: Path) -> None:
    (photos / "cat" / "up").unlink()
    (photos / "fox").symlink_to("../elsewhere", target_is_directory=True)
    (photos / "cat" / "private.jpg").symlink_to("../../elsewhere/private.jpg")
    told: list[InvalidInputError] = []
    found = {category.name: list(category.images) for category in read_categories(photos, on_outside=told.append)}
    assert "fox" not in found
    assert photos / "dog" / "b.jpg" in found["dog"]
    assert photos / "cat" / "private.jpg" not in found["cat"]
    assert [str(error).split("'")[1].rpartition("/")[2] for error in told] == ["fox", "private.jpg"]
    for folder in (photos, str(photos)):
        with pytest.raises(InvalidInputError, match="fox' leads out of"):
            read_categories(folder)


def test_nothing_found(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(b"")
    for name in ("missing", "file.jpg"):
        with pytest.raises(InvalidInputError, match="give an existing folder") as caught:
            find_images(tmp_path / name)
        assert name in str(caught.value)


def test_suffixes_are_lower_case_with_their_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"} <= SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in SUFFIXES)
