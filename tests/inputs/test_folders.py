"""The images in a folder."""

from __future__ import annotations

import inspect
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.streams.test_stream import within
from tests.support import given_images
from zsvec import content_hash
from zsvec.errors import ImageError, InvalidInputError
from zsvec.evaluation import labelled_images
from zsvec.inputs.encoded import SUFFIXES
from zsvec.inputs.folders import category_folders, find_images, links_out_of, read_categories


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
    found = {one.name: (one.parent, len(given_images(one))) for one in read_categories(tmp_path, tree=True)}
    assert found == {"robin": ("animal > bird", 1), "bird": ("animal", 1), "dog": ("animal", 1), "car": ("", 1)}
    flat = {one.name: (one.parent, len(given_images(one))) for one in read_categories(tmp_path)}
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
    found = {category.name: given_images(category) for category in read_categories(photos, on_outside=told.append)}
    assert "fox" not in found
    assert photos / "dog" / "b.jpg" in found["dog"]
    assert photos / "cat" / "private.jpg" not in found["cat"]
    assert [str(error).split("'")[1].rpartition("/")[2] for error in told] == ["fox", "private.jpg"]
    for folder in (photos, str(photos)):
        with pytest.raises(InvalidInputError, match="fox' leads out of"):
            read_categories(folder)


@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
def test_a_folder_deeper_than_the_recursion_limit_is_read(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 250)
    deep.mkdir(parents=True)
    (deep / "a.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)  # a tree deeper than the usual limit is hard to delete
    try:
        found = find_images(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert found == [deep / "a.png"]


@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
def test_a_folder_whose_path_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(25):  # a step at a time, because the whole path is too long to be given
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    monkeypatch.undo()
    with pytest.raises(InvalidInputError, match="cannot list"):
        find_images(tmp_path)


# ---- follow_links


@pytest.fixture
def subset(photos: Path, tmp_path: Path) -> Path:
    """A folder of links to a folder of photos and to a photo."""
    subset = tmp_path / "subset"
    (subset / "dog").mkdir(parents=True)
    (subset / "cat").symlink_to(photos / "cat", target_is_directory=True)
    (subset / "dog" / "private.jpg").symlink_to("../../elsewhere/private.jpg")
    (photos / "cat" / "up").unlink()
    return subset


def images_of(folder: Path, **options: Any) -> dict[str, list[str]]:
    """The images of each category, relative to the folder."""
    return {
        one.name: [str(cast("Path", path).relative_to(folder)) for path in given_images(one)]
        for one in read_categories(folder, follow_links=True, **options)
    }


def test_links_are_followed_if_asked_and_paths_lead_through_them(subset: Path) -> None:
    wanted = {"cat": ["cat/a.jpg"], "dog": ["dog/private.jpg"]}
    assert images_of(subset) == images_of(subset, tree=True) == wanted
    with pytest.raises(InvalidInputError, match="follow_links"):
        read_categories(subset)
    found = [subset / name for names in wanted.values() for name in names]
    assert find_images(subset, follow_links=True) == found
    assert labelled_images(subset, follow_links=True) == list(zip(found, wanted, strict=True))
    assert links_out_of(subset, found) == {subset / "cat", subset / "dog" / "private.jpg"}


def test_links_within_a_folder_and_links_beyond_a_link_do_not_count_as_leading_out(subset: Path, photos: Path) -> None:
    (photos / "cat" / "b.jpg").symlink_to("../../elsewhere/private.jpg")
    (subset / "dog" / "0.jpg").symlink_to("private.jpg")
    (subset / "dog" / "1.jpg").symlink_to("2.jpg")
    (subset / "dog" / "2.jpg").write_bytes(b"")
    found = find_images(subset, follow_links=True)
    assert len(found) == 6
    leading_out = {subset / "cat", subset / "dog" / "0.jpg", subset / "dog" / "private.jpg"}
    assert links_out_of(subset, found) == leading_out


def close_by_two_links(folder: Path) -> None:
    away = folder.parent / "away"
    away.mkdir()
    (folder / "cat" / "0").symlink_to(away, target_is_directory=True)
    (away / "0").symlink_to(folder / "cat", target_is_directory=True)


CYCLES: dict[str, Callable[[Path], object]] = {
    "to itself": lambda folder: (folder / "cat" / "up").symlink_to(".", target_is_directory=True),
    "to the folder": lambda folder: (folder / "cat" / "up").symlink_to(folder, target_is_directory=True),
    "to a folder above": lambda folder: (folder / "cat" / "up").symlink_to("../..", target_is_directory=True),
    "of two": close_by_two_links,
}


@pytest.mark.parametrize("close", CYCLES.values(), ids=CYCLES)
def test_cycles_of_links_end(tmp_path: Path, close: Callable[[Path], object]) -> None:
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.jpg").write_bytes(b"")
    close(folder)
    assert images_of(folder) == {"cat": ["cat/a.jpg"], "dog": ["dog/a.jpg"]}
    assert images_of(folder, tree=True) == {"cat": ["cat/a.jpg"], "dog": ["dog/a.jpg"]}
    assert find_images(folder, follow_links=True) == [folder / "cat" / "a.jpg", folder / "dog" / "a.jpg"]


def test_two_links_to_one_folder(subset: Path, photos: Path) -> None:
    (subset / "feline").symlink_to(photos / "cat", target_is_directory=True)
    (subset / "dog" / "more").symlink_to(photos / "cat", target_is_directory=True)
    (subset / "dog" / "other").symlink_to(photos / "cat", target_is_directory=True)
    assert images_of(subset) == {
        "cat": ["cat/a.jpg"],
        "dog": ["dog/more/a.jpg", "dog/private.jpg"],  # once in a category
        "feline": ["feline/a.jpg"],
    }
    assert len(labelled_images(subset, follow_links=True)) == 4


def test_many_links_to_each_other_do_not_multiply(tmp_path: Path) -> None:
    for level in range(30):  # 2 ** 30 paths
        (tmp_path / f"{level}").mkdir()
        (tmp_path / f"{level}" / "a.jpg").write_bytes(b"")
        for name in ("left", "right"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}", target_is_directory=True)
    assert len(find_images(tmp_path / "0", follow_links=True, on_outside=lambda _: None)) == 30


def chain(folder: Path, length: int) -> None:
    (folder / "link0.jpg").symlink_to("../../elsewhere/private.jpg")
    for number in range(length):
        (folder / f"link{number + 1}.jpg").symlink_to(f"link{number}.jpg")


def link_to_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "0.jpg").symlink_to("pipe")


def link_to_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "socket"))  # the path of a socket must be short
    (folder / "0.jpg").symlink_to("socket")


UNFOLLOWED: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: (folder / "0.jpg").symlink_to("missing.jpg"),
    "nothing, without a suffix": lambda folder: (folder / "0").symlink_to("missing"),
    "itself": lambda folder: (folder / "0.jpg").symlink_to("0.jpg"),
    "a device": lambda folder: (folder / "0.jpg").symlink_to("/dev/zero"),
    "a pipe": link_to_pipe,
    "a socket": link_to_socket,
    "a name that is too long": lambda folder: (folder / "0.jpg").symlink_to("n" * 300),
}


@pytest.mark.skipif(os.name != "posix", reason="named pipes and devices of POSIX")
@pytest.mark.parametrize("make", UNFOLLOWED.values(), ids=UNFOLLOWED)
def test_links_to_anything_but_files_and_folders_are_left_out_and_told(
    subset: Path, make: Callable[[Path], object]
) -> None:
    found = find_images(subset, follow_links=True)
    make(subset / "dog")
    told: list[InvalidInputError] = []
    assert within(lambda: find_images(subset, follow_links=True, on_outside=told.append)) == found
    (error,) = told
    assert str(subset / "dog" / "0") in str(error)
    told.clear()
    assert len(read_categories(subset, follow_links=True, on_outside=told.append)) == 2
    assert len(told) == 1
    with pytest.raises(InvalidInputError):
        read_categories(subset, follow_links=True)


def test_a_long_chain_of_links_is_left_out_and_told(subset: Path) -> None:
    chain(subset / "dog", 3000)
    told: list[InvalidInputError] = []
    found = find_images(subset / "dog", follow_links=True, on_outside=told.append)
    assert 1 < len(found) < 100
    assert len(found) + len(told) == 3002
    assert len(links_out_of(subset / "dog", found)) == len(found)


def test_a_category_that_is_a_link_to_nothing_is_left_out_and_told(subset: Path) -> None:
    (subset / "fox").symlink_to("../missing", target_is_directory=True)
    (subset / "owl").symlink_to("owl", target_is_directory=True)
    told: list[InvalidInputError] = []
    found = read_categories(subset, follow_links=True, on_outside=told.append)
    assert [one.name for one in found] == ["cat", "dog"]
    assert [name for error in told for name in ("fox", "owl") if str(subset / name) in str(error)] == ["fox", "owl"]
    only = subset / "only"
    only.mkdir()
    (only / "fox").symlink_to("../missing", target_is_directory=True)
    with pytest.raises(InvalidInputError, match="fox"):
        read_categories(only, follow_links=True, on_outside=told.append)


@pytest.mark.skipif(not os.path.isdir("/dev"), reason="devices of POSIX")  # noqa: PTH112
def test_a_file_that_becomes_a_link_to_a_device_after_the_listing_is_not_read(subset: Path) -> None:
    (path,) = find_images(subset / "dog", follow_links=True)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ImageError):
        within(lambda: content_hash(path))


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
