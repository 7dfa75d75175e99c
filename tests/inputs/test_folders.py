"""The images in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from zsvec.errors import InvalidInputError
from zsvec.inputs.decoding import SUFFIXES
from zsvec.inputs.folders import find_images


def test_recursive_sorted_by_suffix(tmp_path: Path) -> None:
    wanted = ["a.jpg", "b.PNG", "c d.JpEg", "deep/er/e.webp", "ünï.tif"]
    others = [".hidden.jpg", "._a.jpg", ".git/x.png", "notes.txt", "jpg", "a.jpg.txt", "deep/.x/y.png", "i.ico"]
    for name in wanted + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in wanted)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    (photos / "cat").mkdir(parents=True)
    elsewhere.mkdir()
    (photos / "cat" / "a.jpg").write_bytes(b"")
    (elsewhere / "b.jpg").write_bytes(b"")
    try:
        (photos / "dog").symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    (photos / "cat" / "up").symlink_to(photos, target_is_directory=True)
    (elsewhere / "itself").symlink_to(elsewhere, target_is_directory=True)
    (photos / "link.jpg").symlink_to(elsewhere / "b.jpg")
    assert find_images(photos) == [photos / "cat" / "a.jpg", photos / "dog" / "b.jpg", photos / "link.jpg"]


def test_nothing_found(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []


@pytest.mark.parametrize("name", ["missing", "file.jpg"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.jpg").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="give an existing folder") as caught:
        find_images(tmp_path / name)
    assert name in str(caught.value)


def test_suffixes_are_lower_case_with_their_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"} <= SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in SUFFIXES)
