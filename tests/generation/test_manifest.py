"""The folder of a run keeps each purchase once, also after kills and from elsewhere."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.generation.material import PNG, buy, purchase, tree
from tests.support import given_images
from zsvec.errors import InvalidInputError
from zsvec.generation.manifest import (
    AnswerRecord,
    DeclinedRecord,
    FolderRecord,
    ImageRecord,
    Manifest,
    folder_name,
    images,
    read_manifest,
    spent,
)
from zsvec.inputs.categories import checked_name
from zsvec.inputs.folders import read_categories

ANSWER = AnswerRecord(
    step="descriptions",
    version=1,
    about=["red panda", "desk"],
    answer={"categories": [{"name": "desk", "appearance": "four\u2028legs", "scenes": []}]},
    model="writer",
    response="chatcmpl-1",
    cost=0.001,
)
COMPARED = AnswerRecord(
    step="features", version=1, about=[["desk", "table"]], answer=None, declined="refusal: no", model="writer",
    response="", cost=None,
)  # fmt: skip
DECLINED = DeclinedRecord(
    category="desk", index=1, prompt="a desk", model="painter", code="policy", reason="We don't draw „desks“.", cost=0.0
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "where"


def bought(folder: Path) -> list[ImageRecord]:
    return [record for record in read_manifest(folder) if isinstance(record, ImageRecord)]


# Records


def test_records_come_back(folder: Path) -> None:
    with Manifest(folder) as manifest:
        manifest.append(ANSWER)
        image = buy(manifest, revised_prompt="a red panda, smiling", quality=None, cost=None)
        manifest.append(COMPARED)
        manifest.append(DECLINED)
        identity, records = manifest.id, manifest.records
    assert records[1:] == [ANSWER, image, COMPARED, DECLINED]
    assert read_manifest(folder) == records
    with Manifest(folder) as manifest:
        assert (manifest.id, manifest.records) == (identity, records)
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["kind"] for line in lines[:-1]] == ["folder", "answer", "image", "answer", "declined"]
    assert lines[-1] == ""


def test_a_folder_that_is_not_there_has_no_records_and_is_not_made(folder: Path) -> None:
    assert read_manifest(folder) == []
    assert not folder.parent.exists()


def test_an_image_is_filed_as_it_came(folder: Path) -> None:
    with Manifest(folder) as manifest:
        record = buy(manifest, "red panda", 12, PNG)
    assert record.file == "images/red panda/0012.png"
    assert (folder / record.file).read_bytes() == PNG
    assert record.sha256 == hashlib.sha256(PNG).hexdigest()
    assert purchase("red panda", 12).items() <= record.model_dump().items()


def test_suffixes_follow_the_content(folder: Path) -> None:
    kinds = {PNG: ".png", b"\xff\xd8\xff\xe0": ".jpg", b"RIFF....WEBP": ".webp", b"GIF89a": ".gif", b"text": ".bin"}
    with Manifest(folder) as manifest:
        assert [Path(buy(manifest, data=data).file).suffix for data in kinds] == list(kinds.values())


def test_images_may_come_at_once(folder: Path) -> None:
    places = [(name, index) for name in ("cat", "dog", "red panda") for index in range(20)]
    with Manifest(folder) as manifest, ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda place: buy(manifest, place[0], place[1], PNG + repr(place).encode()), places))
    assert sorted(bought(folder), key=repr) == sorted(records, key=repr)
    assert {(folder / record.file).read_bytes() for record in records} == {PNG + repr(p).encode() for p in places}


def test_a_deleted_image_is_not_there_until_it_is_bought_again(folder: Path) -> None:
    with Manifest(folder) as manifest:
        first, other = buy(manifest, "cat", 0), buy(manifest, "cat", 1)
        (folder / first.file).unlink()
        assert images(manifest.records, folder) == {("cat", 1): other}
        again = buy(manifest, "cat", 0, PNG + b", another")
        assert images(manifest.records, folder) == {("cat", 0): again, ("cat", 1): other}
        assert again.file == "images/cat/0000-1.png"  # a kill before its record leaves no file of the first record
        assert manifest.purchases("cat", 0) == 2


def test_spent_counts_purchases_of_the_categories(folder: Path) -> None:
    with Manifest(folder) as manifest:
        manifest.append(ANSWER)  # 0.001, of "red panda" and "desk"
        manifest.append(COMPARED.model_copy(update={"cost": 0.02}))  # of "desk" and "table"
        manifest.append(DECLINED.model_copy(update={"cost": 0.3}))  # of "desk"
        buy(manifest, "red panda", 0, cost=4.0)
        deleted = buy(manifest, "table", 0, cost=50.0)
        buy(manifest, "table", 1, cost=None)
    (folder / deleted.file).unlink()  # paid all the same
    records = read_manifest(folder)
    assert spent(records, ["red panda"]) == pytest.approx(4.001)
    assert spent(records, ["desk"]) == pytest.approx(0.321)
    assert spent(records, ["table"]) == pytest.approx(50.02)
    assert spent(records, ["desk", "table", "red panda"]) == pytest.approx(54.321)
    assert spent(records, ["cat"]) == spent(records, []) == 0


# Kills


def test_a_torn_line_is_cut_and_the_rest_is_kept(folder: Path) -> None:
    with Manifest(folder) as manifest:
        manifest.append(ANSWER)
        kept = list(manifest.records)
        manifest.append(DECLINED)
    file = folder / "manifest.jsonl"
    content = file.read_bytes()
    last = content.index(b"\n", content.index(b"\n") + 1) + 1
    for end in range(last, len(content)):
        file.write_bytes(content[:end])
        assert read_manifest(folder) == kept
        assert file.read_bytes() == content[:end]
        with Manifest(folder) as manifest:
            assert manifest.records == kept
            manifest.append(COMPARED)
        assert read_manifest(folder) == [*kept, COMPARED]


def test_a_first_line_that_is_torn_is_written_again(folder: Path) -> None:
    with Manifest(folder):
        pass
    file = folder / "manifest.jsonl"
    content = file.read_bytes()
    for end in range(len(content)):
        file.write_bytes(content[:end])
        with Manifest(folder) as manifest:
            assert isinstance(manifest.records[0], FolderRecord)
        assert len(read_manifest(folder)) == 1


def test_a_file_without_a_record_is_replaced_by_the_next_purchase(folder: Path) -> None:
    with Manifest(folder) as manifest:
        buy(manifest, "cat", 0)
        before = (folder / "manifest.jsonl").read_bytes()
        record = buy(manifest, "cat", 1)
    (folder / "manifest.jsonl").write_bytes(before)  # as if a kill had come before the record
    assert list(images(read_manifest(folder), folder)) == [("cat", 0)]
    with Manifest(folder) as manifest:
        again = buy(manifest, "cat", 1, PNG + b", another")
    assert again.file == record.file
    assert (folder / record.file).read_bytes() == PNG + b", another"
    assert list(images(read_manifest(folder), folder)) == [("cat", 0), ("cat", 1)]


def test_files_cut_short_by_a_kill_are_removed(folder: Path) -> None:
    with Manifest(folder) as manifest:
        buy(manifest, "cat", 0)
    partial = folder / "images" / "cat" / ".zsvec-5678.new"
    partial.write_bytes(PNG[:4])
    with Manifest(folder):
        pass
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files - {".lock"} == {"manifest.jsonl", "0000.png"}


def test_reading_changes_nothing(folder: Path) -> None:
    with Manifest(folder) as manifest:
        buy(manifest)
    with (folder / "manifest.jsonl").open("ab") as file:
        file.write(b'{"at":"2026-')
    (folder / "images" / ".zsvec-1234.new").write_bytes(b"{")
    before = tree(folder)
    assert len(bought(folder)) == 1
    assert tree(folder) == before


# Folders from elsewhere


def linked(folder: Path, victim: Path, name: str) -> None:
    with Manifest(folder):
        pass
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to({"images": victim.parent.parent, "images/cat": victim.parent}.get(name, victim))


@pytest.mark.parametrize("name", ["images", "images/cat", "images/cat/0000.png", "manifest.jsonl", ".lock"])
def test_a_folder_never_leads_out_of_itself(folder: Path, name: str) -> None:
    victim = folder.parent / "cat" / "0000.png"
    victim.parent.mkdir(parents=True)
    victim.touch()
    linked(folder, victim, name)
    before = tree(victim.parent)
    with pytest.raises(InvalidInputError, match=r"leads out of .*: remove it"), Manifest(folder) as manifest:
        buy(manifest, "cat", 0)
    assert tree(victim.parent) == before


def test_a_purchase_replaces_a_link_of_its_name(folder: Path) -> None:
    with Manifest(folder) as manifest:
        elsewhere = folder / "elsewhere.png"
        elsewhere.touch()
        (folder / "images" / "cat").mkdir(parents=True)
        (folder / "images" / "cat" / "0000.png").symlink_to(elsewhere)
        image = buy(manifest, "cat", 0)
    assert (folder / image.file).read_bytes() == PNG
    assert elsewhere.read_bytes() == b""


def test_images_from_out_of_the_folder_are_not_read(folder: Path) -> None:
    with Manifest(folder) as manifest:
        record = buy(manifest, "cat", 0)
    (folder.parent / "private.png").write_bytes(PNG)
    for file in ("/private.png", "../private.png", "images/cat/../../../private.png", "a\0.png"):
        with pytest.raises(InvalidInputError, match=r"leads out of|cannot be a path"):
            images([record.model_copy(update={"file": file})], folder)


# Folders that cannot be used


def test_a_folder_is_of_one_run_at_a_time(folder: Path) -> None:
    with Manifest(folder) as manifest:
        with pytest.raises(InvalidInputError, match="in use by another run"):
            Manifest(folder)
        manifest.append(ANSWER)  # the first run goes on
        assert read_manifest(folder) == manifest.records
    with Manifest(folder):
        pass


FOREIGN = (
    b"something else\n",
    b"a line without an end",
    b"{}\n{}\n",
    b'{"epoch": 1, "loss": 0.5}',
    b'{"at":"2026-01-01","kind":"weather","id":"1"}\n',
    b'{"at":"2026-01-01","kind":"folder","id":"1","extra":1}\n',
    b'{"at":"2026-01-01","kind":"answer","step":"groups","version":1,"about":[{}],"answer":null,"model":"m",'
    b'"response":"","cost":0}\n',
    b'{"at":"2026-01-01","kind":"declined","category":"a","index":0,"prompt":"","model":"m","code":"c","reason":"",'
    b'"cost":-1}\n',
    b"\x00\xff\n",
    b"\n",
)


use_it = pytest.mark.parametrize("use", [Manifest, read_manifest])


@use_it
def test_a_file_with_another_content(folder: Path, use: Callable[[Path], object]) -> None:
    folder.mkdir(parents=True)
    file = folder / "manifest.jsonl"
    for content in FOREIGN:
        file.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"manifest\.jsonl has a line that .* did not write"):
            use(folder)
        assert file.read_bytes() == content
    file.unlink()
    with Manifest(folder):  # the lock is free
        pass


@use_it
def test_a_file_in_the_place_of_the_folder(folder: Path, use: Callable[[Path], object]) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    with pytest.raises(InvalidInputError, match=str(folder)):
        use(folder)
    assert folder.read_text() == "a file"
    folder.unlink()
    (folder / "manifest.jsonl").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="cannot be used: Is a directory"):
        use(folder)


def test_a_file_in_the_place_of_a_sub_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "images").write_text("a file")
    with pytest.raises(InvalidInputError, match=str(folder)), Manifest(folder) as manifest:
        buy(manifest)


def test_a_full_disk(folder: Path) -> None:
    with Manifest(folder) as manifest:
        kept = [manifest.records[0], buy(manifest)]
    full = Manifest(folder)
    with no_file_larger_than((folder / "manifest.jsonl").stat().st_size + 10):
        for use in (
            lambda: buy(full, "cat", 1, PNG * 100),
            lambda: full.append(ANSWER),
            lambda: full.__exit__(None, None, None),  # closing writes once more
        ):
            with pytest.raises(InvalidInputError, match="File too large"):
                use()
    with Manifest(folder) as manifest:
        assert manifest.records == kept


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Simulates a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Names of folders

PLAIN = ["red panda", "Löwe", "猫", "T-shirt & jeans", "a, b (c) d's +1", "giant_panda", "con", "NUL", "3.5 inch", "-"]
STRANGE = ["a/b", "a\\b", "..", ".", ".hidden", "dot.", 'so "named"', "a:b", "a*?", "😀", "~", "a\u00a0/", "n" * 500]


def test_plain_names_are_kept_and_can_be_imported(folder: Path) -> None:
    with Manifest(folder) as manifest:
        for name in PLAIN:
            buy(manifest, name)
            buy(manifest, name, 1)
    found = {category.name: given_images(category) for category in read_categories(folder / "images")}
    assert found == {name: [folder / "images" / name / f"{i:04}.png" for i in range(2)] for name in PLAIN}


def test_strange_names_can_be_imported_too(folder: Path) -> None:
    long = ["猫" * 300, "𝒳" * 120, "y" * 256]  # of characters of several bytes each
    with Manifest(folder) as manifest:
        files = [folder / buy(manifest, name).file for name in (*STRANGE, *long)]
        assert len(list(images(manifest.records, folder))) == len(files)
    assert {path.parent.parent for path in files} == {folder / "images"}
    found = read_categories(folder / "images")
    assert sorted(cast("Path", path) for category in found for path in given_images(category)) == sorted(files)


def is_name(text: str) -> bool:
    try:
        checked_name(text)
    except InvalidInputError:
        return False
    return True


NAMES = st.one_of(
    st.text(st.sampled_from("ab_/\\. ~-'😀猫é"), min_size=1, max_size=6),
    st.text(min_size=1, max_size=8),
    st.text(st.sampled_from("ab猫"), min_size=100, max_size=500),
    st.sampled_from([*PLAIN, *STRANGE]),
).filter(is_name)


@given(st.lists(NAMES.map(checked_name), min_size=2, unique=True))
def test_categories_never_share_a_folder(names: list[str]) -> None:
    names = list(dict.fromkeys([*names, *map(folder_name, names)]))  # also names equal to the folder of another
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for name in folders:
        assert len(name.encode()) <= 255
        assert not {"/", "\\", "\0"} & set(name)
        assert not name.startswith(".")
        assert not name.endswith((".", " "))
