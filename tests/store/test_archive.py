"""Archives: the format read without zsvec, content, interruption, and archives from elsewhere."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.store.material import FINGERPRINTS, add, content_hash, jpeg, pictured, unit_vector, write_of
from tests.store.support import Crash, Deployment, Hooked
from tests.store.test_copying import (
    Shared,
    altered,
    assert_same,
    content,
    filled,
    new_target,
    opened,
    place_of_rex,
    revisions,
)
from zsvec.curation.archive import Archive, is_archive
from zsvec.errors import (
    CategoryNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    StoreError,
    StoreUnavailableError,
)
from zsvec.store import Store
from zsvec.store.archive import layout
from zsvec.store.archive.reader import ArchiveReader
from zsvec.store.archive.writer import write_archive
from zsvec.store.backends.memory import MemoryBackend
from zsvec.types import Copied, Fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

NAMES = ["cat", "dog", "text only", "without copies"]


@pytest.fixture
def source() -> Store:
    return filled(opened())


@pytest.fixture
def file(source: Store, tmp_path: Path) -> Path:
    path = tmp_path / "store.zsvec"
    assert Archive(source).export(path).complete
    return path


def imported(path: Path, target: Store | None = None, **options: Any) -> tuple[Store, Copied]:
    store = target or new_target()
    return store, Archive(store).import_(path, **options)


# The format


def lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def test_the_format_is_read_without_zsvec(file: Path, source: Store) -> None:
    with zipfile.ZipFile(file) as zipped:
        assert zipped.testzip() is None
        manifest = json.loads(zipped.read("manifest.json"))
        assert (manifest["format"], manifest["version"], manifest["categories"]) == ("zsvec archive", 1, 4)
        assert manifest["encoders"]["clip"] == {
            "model": "test/clip",
            "revision": "0123abc",
            "dim": 16,
            "preprocessing": "resize 224",
        }
        assert (manifest["profile"], manifest["labels"], manifest["images"]) == ("offline", "one", "small")
        checksums = dict(manifest["checksums"])
        listed = {one["category"]: one for one in lines(zipped.read("categories.jsonl"))}
        for one in listed.values():
            checksums |= {f"{one['folder']}/{name}": digest for name, digest in one.get("checksums", {}).items()}
        assert checksums.keys() | {"manifest.json"} == set(zipped.namelist())
        for name, digest in checksums.items():
            assert sha256(zipped.read(name)).hexdigest() == digest
            assert (zipped.getinfo(name).compress_type == zipfile.ZIP_STORED) == name.endswith(".safetensors")
        cat, old = listed["cat"], listed["old"]
        assert cat["texts"] == ["meows", "purrs"]
        assert cat["metadata"] == {"legs": 4, "deep": {"a": [1.5, None]}}
        assert cat["references"] == {"clip:text": 2, "clip:image": 2, "dino:image": 2}
        assert cat["withdrawn"] == content_hash("felix")[:16]
        assert old["retired"] is True
        assert "folder" not in old
        rows = lines(zipped.read(f"{cat['folder']}/dino-000001.jsonl"))
        vectors = safetensors.numpy.load(zipped.read(f"{cat['folder']}/dino-000001.safetensors"))["dino"]
        assert (vectors.dtype, vectors.shape) == (np.float32, (2, 8))
        found = {row["source"]: vector for row, vector in zip(rows, vectors, strict=True)}
        for name in ("tom", "late"):
            np.testing.assert_allclose(found[name], unit_vector(8, f"dino image {name}"), atol=1e-6)
        [tom] = [row for row in rows if row["source"] == "tom"]
        assert tom == {
            "modality": "image",
            "hash": content_hash("tom"),
            "source": "tom",
            "prompt": "a photo of it",
            "group": "burst",
            "added": "2026-05-04T03:02:01.000+00:00",
            "by": "Ann",
        }
        copies = safetensors.numpy.load(zipped.read(f"{cat['folder']}/images-000001.safetensors"))
        assert copies[content_hash("tom")].tobytes() == jpeg("tom")
        [small] = [row for row in lines(zipped.read(f"{cat['folder']}/images-000001.jsonl")) if row["source"] == "tom"]
        assert (small["hash"], small["width"], small["height"]) == (content_hash("tom"), 800, 600)
        waiting = {row["hash"]: row for row in lines(zipped.read("inbox/waiting-000001.jsonl"))}
        inbox = safetensors.numpy.load(zipped.read("inbox/waiting-000001.safetensors"))
        assert waiting[content_hash("waits")]["why"] == "uncertain"
        assert waiting[content_hash("no")]["dismissed"] is True
        assert (inbox["clip"].shape, inbox["dino"].shape) == ((2, 16), (2, 8))
        assert inbox[content_hash("waits")].tobytes() == jpeg("waits")
        assert json.loads(zipped.read("calibration.json"))["scale"] == 1.25


def test_names_of_categories_are_no_paths(tmp_path: Path) -> None:
    store = opened()
    names = ["a/b", "../x", "A B", "a b", "a\\b", "日本", "con", ".hidden", "x" * 500, "a-b"]
    for name in names:
        add(store, name, [name])
    Archive(store).export(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as zipped:
        folders = [one["folder"] for one in lines(zipped.read("categories.jsonl"))]
        zipped.extractall(tmp_path / "out")
    assert len(set(folders)) == len(names)
    assert all(len(folder) < 64 and folder.isascii() for folder in folders)
    assert sorted(path.name for path in (tmp_path / "out" / "categories").iterdir()) == sorted(
        folder.removeprefix("categories/") for folder in folders
    )
    target, copied = imported(tmp_path / "a")
    assert copied.complete
    assert [category.name for category in target.categories()] == sorted(names)


def test_large_categories_are_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened()
    source.write([pictured("a", [f"{i}" for i in range(50)], ["text"])])
    monkeypatch.setattr("zsvec.store.archive.writer.PART_BYTES", 320)
    Archive(source).export(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as zipped:
        tables = [name for name in zipped.namelist() if "/dino-" in name and name.endswith(".jsonl")]
        assert 10 < len(tables) <= 50
    target, copied = imported(tmp_path / "a")
    assert copied.complete
    assert_same(source, target)


# Content


def test_an_archive_has_all_but_the_history(deployment: Deployment, source: Store, file: Path) -> None:
    target = Store(deployment.backend(), deployment.namespace)
    _, copied = imported(file, target)
    assert_same(source, target)
    assert (copied.complete, copied.calibration, copied.inbox) == (True, True, 2)
    assert [category.name for category in copied.categories] == NAMES
    assert not target.gc(grace=0)
    Archive(target).export(file)  # replaces the archive
    back, copied = imported(file)
    assert copied.complete
    assert_same(source, back)


def test_the_result_of_an_export(source: Store, tmp_path: Path) -> None:
    written: list[str] = []
    copied = Archive(source).export(tmp_path / "a", on_commit=lambda category: written.append(category.name))
    assert written == [category.name for category in copied.categories] == NAMES
    assert (copied.complete, copied.calibration, copied.inbox, copied.unchanged) == (True, True, 2, ())
    assert copied.size == new_target().copy_from(source).size


def test_an_equal_store_gives_equal_entries(source: Store, file: Path, tmp_path: Path) -> None:
    Archive(source).export(tmp_path / "again")
    with zipfile.ZipFile(file) as one, zipfile.ZipFile(tmp_path / "again") as other:
        assert one.namelist() == other.namelist()
        for name in one.namelist():
            assert name == "manifest.json" or one.read(name) == other.read(name)


def test_a_repeated_import_changes_nothing(file: Path) -> None:
    target, _ = imported(file)
    before = revisions(target)
    _, copied = imported(file, target)
    assert (copied.categories, list(copied.unchanged), copied.inbox) == ((), NAMES, 0)
    assert copied.calibration
    assert revisions(target) == before


def test_a_category_that_differs_stays_unless_replaced(source: Store, file: Path) -> None:
    target, _ = imported(file)
    add(target, "dog", ["theirs"])
    _, copied = imported(file, target)
    assert (copied.different, copied.complete) == (("dog",), False)
    _, copied = imported(file, target, replace=True)
    assert copied.complete
    assert_same(source, target)


def test_some_categories(source: Store, file: Path, tmp_path: Path) -> None:
    target, copied = imported(file, categories=["dog", "text only"])
    assert [category.name for category in target.categories()] == ["dog", "text only"]
    assert (copied.complete, copied.calibration, copied.inbox) == (True, None, 0)
    assert not target.calibration()
    copied = Archive(source).export(tmp_path / "some", categories=["dog", "text only"])
    assert [category.name for category in copied.categories] == ["dog", "text only"]
    again, copied = imported(tmp_path / "some")
    assert copied.complete
    assert content(again) == content(target)
    _, copied = imported(file, target, categories=["dog"])
    assert (copied.unchanged, copied.only_target) == (("dog",), ())


def test_categories_that_are_not_there(source: Store, file: Path, tmp_path: Path) -> None:
    for act in (
        lambda: Archive(source).export(tmp_path / "no", categories=["dog", "bird"]),
        lambda: Archive(source).export(tmp_path / "no", categories=["old"]),
        lambda: imported(file, categories=["bird"]),
    ):
        with pytest.raises(CategoryNotFoundError):
            act()
    for wrong in ("dog", []):
        with pytest.raises(InvalidInputError):
            Archive(source).export(tmp_path / "no", categories=wrong)
        with pytest.raises(InvalidInputError):
            imported(file, categories=wrong)
    assert not (tmp_path / "no").exists()


def test_a_store_without_copies_of_images(tmp_path: Path) -> None:
    source = Store(MemoryBackend(), "zsvec")
    source.bind(FINGERPRINTS, images="none")
    add(source, "a", ["one"])
    Archive(source).export(tmp_path / "a")
    target, copied = imported(tmp_path / "a")
    assert copied.complete
    assert not target.keeps_images()


def test_other_encoders_are_refused_as_by_a_copy(file: Path) -> None:
    other = Fingerprint(model="other/clip", revision="9", dim=16, preprocessing="resize 224")
    with pytest.raises(EncoderMismatchError, match=r"(?s)test/clip.*other/clip"):
        imported(file, opened(clip=other))
    with pytest.raises(EncoderMismatchError):
        imported(file, opened(another=other))
    target = new_target()
    with pytest.raises(EncoderMismatchError):
        Archive(target, ["clip", "other"]).import_(file)
    assert target.encoders() == {}


def test_a_damaged_category_is_named_and_the_others_are_exported(source: Store, tmp_path: Path) -> None:
    altered(source, "zsvec__dino", place_of_rex(source), vector=np.full(8, np.nan, np.float32))
    copied = Archive(source).export(tmp_path / "a")
    assert (list(copied.damaged), copied.complete, copied.calibration) == (["dog"], False, False)
    target, copied = imported(tmp_path / "a")
    assert copied.complete
    assert [category.name for category in target.categories()] == ["cat", "text only", "without copies"]


def test_changes_during_the_export_are_named(tmp_path: Path) -> None:
    inner = Shared()
    other = filled(opened(inner))
    store = Store(Hooked(inner), "zsvec")

    def change(categories: Any) -> Iterator[Any]:
        add(other, "dog", ["new"])
        yield from categories

    copied = Archive(store).export(tmp_path / "a", track=change)
    assert (copied.changed, copied.damaged, copied.complete, copied.calibration) == (("dog",), {}, False, False)
    target, copied = imported(tmp_path / "a")
    assert copied.complete
    assert not target.calibration()


# Files


def test_what_is_no_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as zipped:
        zipped.writestr("manifest.json", '{"format": "other"}')
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as zipped:
        zipped.writestr("cat/1.jpg", "")
    (tmp_path / "text").write_text("PK")
    (tmp_path / "empty").touch()
    (tmp_path / "folder.zsvec").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("other.zip", "photos.zip", "text", "empty", "folder.zsvec", "pipe", "missing"):
        assert not is_archive(tmp_path / name)
        with pytest.raises(InvalidInputError):
            imported(tmp_path / name)


def test_an_archive_is_recognised_by_its_content(file: Path, tmp_path: Path) -> None:
    assert is_archive(file)
    assert is_archive(file.rename(tmp_path / "backup.json"))


def test_a_file_that_is_no_archive_is_not_overwritten(source: Store, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    with pytest.raises(InvalidInputError):
        Archive(source).export(tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == b"photo"
    with pytest.raises(InvalidInputError):
        Archive(source).export(tmp_path / "nowhere" / "a.zsvec")
    with pytest.raises(StoreError):
        Archive(new_target()).export(tmp_path / "a.zsvec")
    assert [path.name for path in tmp_path.glob("*.zsvec")] == []


@pytest.mark.parametrize("limit", ["LARGEST_DIRECTORY", "LARGEST_LIST", "LARGEST_RECORD"])
def test_an_archive_that_no_import_would_read_is_not_written(
    source: Store, tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"zsvec.store.archive.writer.{limit}", 400)
    with pytest.raises(InvalidInputError):
        Archive(source).export(tmp_path / "a.zsvec")
    assert not list(tmp_path.glob("*.zsvec"))
    assert not list(tmp_path.glob(".zsvec-*"))


def bounded(monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    """Sets a bound of the list of categories for exports and imports."""
    monkeypatch.setattr(f"zsvec.store.archive.writer.{bound}", value)
    monkeypatch.setattr(f"zsvec.store.archive.reader.{bound}", value)


@pytest.mark.parametrize(("bound", "number"), [("MOST_CATEGORIES", 5), ("MOST_MARKS", 3)])
def test_an_archive_has_a_bounded_number_of_categories_and_marks(
    source: Store, file: Path, tmp_path: Path, bound: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(file) as zipped:
        listed = lines(zipped.read("categories.jsonl"))
    marks = sum(len(one.get("withdrawn", "")) // 16 + len(one.get("kept", "")) // 17 for one in listed)
    assert number == {"MOST_CATEGORIES": len(listed), "MOST_MARKS": marks}[bound]
    bounded(monkeypatch, bound, number)
    assert Archive(source).export(tmp_path / "a.zsvec").complete
    target, copied = imported(tmp_path / "a.zsvec")
    assert copied.complete
    assert_same(source, target)
    bounded(monkeypatch, bound, number - 1)
    with pytest.raises(InvalidInputError, match=f"got .*{number} {bound.removeprefix('MOST_').lower()}"):
        Archive(source).export(tmp_path / "b.zsvec")
    assert not list(tmp_path.glob("*b.zsvec*"))
    assert Archive(source).export(tmp_path / "b.zsvec", categories=["dog"]).complete
    target = new_target()
    with pytest.raises(StoreError):
        imported(file, target)
    assert target.encoders() == {}


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StoreUnavailableError), (errno.EACCES, InvalidInputError)]
)
def test_a_disk_that_refuses_a_write(
    source: Store, file: Path, number: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    former = file.read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", refuse)
    with pytest.raises(error):
        Archive(source).export(file)
    assert file.read_bytes() == former


def test_a_later_version_is_refused(file: Path) -> None:
    forge(file, {"manifest.json": changed(version=2)})
    assert is_archive(file)
    with pytest.raises(StoreError, match="upgrade"):
        imported(file)


# Interruptions


@pytest.mark.parametrize("shared", [False, True], ids=["embedded", "shared"])
def test_an_import_goes_on_after_a_kill_at_any_call(
    shared: bool, source: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.copying._AT_ONCE", 4)
    kind = Shared if shared else MemoryBackend
    counting = Hooked(kind())
    imported(file, Store(counting, "zsvec"))
    whole = content(source)["categories"]
    for dies_at in random.Random(1).sample(range(counting.calls.total() - 5), 25):
        inner = kind()
        backend = Hooked(inner)
        backend.dies_at = dies_at
        with pytest.raises(Crash):
            imported(file, Store(backend, "zsvec"))
        target = Store(inner, "zsvec")
        for category in target.categories():
            assert content(target)["categories"][category.name] == whole[category.name]
        assert imported(file, target)[1].complete
        target.gc(grace=0)
        assert_same(source, target)


def test_an_interrupted_export_leaves_the_former_archive(source: Store, file: Path) -> None:
    former = file.read_bytes()
    add(source, "dog", ["more"])

    def interrupt(category: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Archive(source).export(file, on_commit=interrupt)
    assert file.read_bytes() == former
    assert [path.name for path in file.parent.glob("*.new")] == []


def test_what_a_killed_export_has_left_is_removed_later(source: Store, file: Path) -> None:
    old, fresh = file.with_name(".zsvec-0.new"), file.with_name(".zsvec-1.new")
    for path in (old, fresh):
        path.touch()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    Archive(source).export(file)
    assert (old.exists(), fresh.exists()) == (False, True)


# Archives from elsewhere


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    """Changes fields of a JSON object, or of each line; ``None`` removes a field."""

    def change(content: bytes) -> bytes:
        record = {**json.loads(content), **fields}
        return json.dumps({name: value for name, value in record.items() if value is not None}).encode()

    return change


def of_dog(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Changes the line of a category in the list."""

    def apply(content: bytes) -> bytes:
        found = []
        for record in lines(content):
            if record["category"] == "dog":
                change(record)
            found.append(json.dumps(record).encode() + b"\n")
        return b"".join(found)

    return apply


def folder_of(file: Path, category: str) -> str:
    with zipfile.ZipFile(file) as zipped:
        return next(one["folder"] for one in lines(zipped.read("categories.jsonl")) if one["category"] == category)


def forge(
    file: Path,
    changes: Mapping[str, Callable[[bytes], bytes | None]],
    *,
    honest: bool = True,
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Changes entries. With `honest`, the checksums become right again: an attacker can compute them, too."""
    with zipfile.ZipFile(file) as zipped:
        entries = {entry.filename: zipped.read(entry) for entry in zipped.infolist()}
    entries |= more or {}
    changed = {name: change(entries[name]) for name, change in changes.items() if name in entries}
    entries = {name: content for name, content in {**entries, **changed}.items() if content is not None}
    if honest:
        listed = lines(entries["categories.jsonl"])
        for one in listed:
            for name in one.get("checksums", {}):
                if (content := entries.get(f"{one['folder']}/{name}")) is not None:
                    one["checksums"][name] = sha256(content).hexdigest()
        entries["categories.jsonl"] = b"".join(json.dumps(one).encode() + b"\n" for one in listed)
        manifest = json.loads(entries["manifest.json"])
        if isinstance(manifest.get("checksums"), dict):
            for name in manifest["checksums"]:
                manifest["checksums"][name] = sha256(entries.get(name, b"")).hexdigest()
        entries["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in entries.items():
            stored = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            zipped.writestr(name, content, stored)


def assert_only_dog_is_damaged(file: Path) -> None:
    target, copied = imported(file)
    assert list(copied.damaged) == ["dog"]
    assert "zsvec doctor" not in copied.damaged["dog"]  # which looks at stores alone
    assert copied.calibration is False
    assert [category.name for category in target.categories()] == ["cat", "text only", "without copies"]
    assert target.incomplete() == []
    target.gc(grace=0)
    assert target.incomplete() == []


def first_line(**fields: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        first, *others = content.splitlines(keepends=True)
        return changed(**fields)(first) + b"\n" + b"".join(others)

    return change


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        found = {name: np.array(array) for name, array in safetensors.numpy.load(content).items()}
        change(found)
        return safetensors.numpy.save(found)

    return apply


def with_vectors(array: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    return tensors(lambda found: found.update(dino=np.ascontiguousarray(array(found["dino"]))))


def with_bfloat16(content: bytes) -> bytes:
    header = json.dumps({"dino": {"dtype": "BF16", "shape": [2, 8], "data_offsets": [0, 32]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(32)


def test_a_forgery_is_made_as_intended(file: Path, source: Store) -> None:
    forge(file, {})
    target, copied = imported(file)
    assert copied.complete
    assert_same(source, target)


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("dino-000001.safetensors", with_vectors(lambda v: v * np.nan)),
        ("dino-000001.safetensors", with_vectors(lambda v: v * np.inf)),
        ("dino-000001.safetensors", with_vectors(lambda v: v * 0)),
        ("dino-000001.safetensors", with_vectors(lambda v: v * 100)),
        ("dino-000001.safetensors", with_vectors(lambda v: v[:, :4])),
        ("dino-000001.safetensors", with_vectors(lambda v: v[:1])),
        ("dino-000001.safetensors", with_vectors(lambda v: v.ravel())),
        ("dino-000001.safetensors", with_vectors(lambda v: v.astype(np.float64))),
        ("dino-000001.safetensors", with_vectors(lambda v: v.astype(np.int32))),
        ("dino-000001.safetensors", tensors(lambda found: found.pop("dino"))),
        ("dino-000001.safetensors", with_bfloat16),
        ("dino-000001.safetensors", lambda content: content[:-1]),
        ("dino-000001.safetensors", lambda content: b"\xff" * 8 + content[8:]),
        ("dino-000001.safetensors", lambda content: b""),
        ("dino-000001.safetensors", lambda content: None),
        ("dino-000001.jsonl", first_line(hash="../../etc/passwd")),
        ("dino-000001.jsonl", first_line(hash="A" * 64)),
        ("dino-000001.jsonl", first_line(hash=5)),
        ("dino-000001.jsonl", first_line(hash=None)),
        ("dino-000001.jsonl", first_line(modality="sound")),
        ("dino-000001.jsonl", first_line(modality="text")),
        ("dino-000001.jsonl", first_line(source=None)),
        ("dino-000001.jsonl", first_line(source="x" * (2**20 + 1))),
        ("dino-000001.jsonl", first_line(source="\ud800")),
        ("dino-000001.jsonl", first_line(more=float("nan"))),
        ("dino-000001.jsonl", lambda content: b"[" * 100_000 + b"\n" + content),
        ("dino-000001.jsonl", lambda content: b"5\n" * 2),
        ("dino-000001.jsonl", lambda content: content + content),
        ("dino-000001.jsonl", lambda content: content.splitlines()[0]),
        ("dino-000001.jsonl", lambda content: content.splitlines(keepends=True)[0] * 2),
        ("dino-000001.jsonl", lambda content: b"\xff" + content),
        ("dino-000001.jsonl", lambda content: None),
        ("images-000001.jsonl", lambda content: b"{"),
    ],
)
def test_a_forged_part_stops_only_its_category(file: Path, entry: str, change: Callable[[bytes], bytes | None]) -> None:
    forge(file, {f"{folder_of(file, 'dog')}/{entry}": change})
    assert_only_dog_is_damaged(file)


@pytest.mark.parametrize("entry", ["dino-000001.safetensors", "clip-000001.jsonl", "images-000001.safetensors"])
def test_a_wrong_checksum_stops_only_its_category(file: Path, entry: str) -> None:
    with zipfile.ZipFile(file) as zipped:
        other = zipped.read(f"{folder_of(file, 'cat')}/{entry}")
    forge(file, {f"{folder_of(file, 'dog')}/{entry}": lambda content: other}, honest=False)
    assert_only_dog_is_damaged(file)


def test_a_flipped_bit_stops_only_its_category(file: Path) -> None:
    with zipfile.ZipFile(file) as zipped:
        entry = zipped.getinfo(f"{folder_of(file, 'dog')}/dino-000001.safetensors")
    content = bytearray(file.read_bytes())
    content[entry.header_offset + 30 + len(entry.filename) + entry.file_size - 1] ^= 1
    file.write_bytes(content)
    assert_only_dog_is_damaged(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(texts=["x" * 20_001]),
        lambda record: record.update(texts="barks"),
        lambda record: record.update(metadata={"a": "x" * 100_001}),
        lambda record: record.update(metadata=[1]),
        lambda record: record.update(references={"clip:image": 2**52}),
        lambda record: record.update(references={"../../x:image": 1}),
        lambda record: record.update(references={"dino:image": -1}),
        lambda record: record.update(references={}),
        lambda record: record.update(references={}, checksums={}),
        lambda record: record.update(changed="now"),
        lambda record: record.update(folder=5),
        lambda record: record.update(folder="categories/000001-cat"),
        lambda record: record.update(folder="../../etc"),
        lambda record: record.update(checksums=5),
        lambda record: record.update(checksums={}),
        lambda record: record.pop("checksums"),
        lambda record: record.pop("version"),
    ],
)
def test_a_forged_category_stops_only_itself(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    assert folder_of(file, "cat") == "categories/000001-cat"
    forge_head(file, "categories.jsonl", of_dog(change))
    assert_only_dog_is_damaged(file)


def test_a_forged_parent_is_left_out(file: Path) -> None:
    forge_head(file, "categories.jsonl", of_dog(lambda record: record.update(parent="dog")))
    target, copied = imported(file)
    assert copied.complete
    assert target.category("dog").parent == ""


@pytest.mark.parametrize("name", ["", " x", "..", "a\x1b[2J", "x" * 501, "a\u202eb", "cafe\u0301"])
def test_a_name_that_no_category_may_have_is_refused(file: Path, name: str) -> None:
    forge(file, {"categories.jsonl": of_dog(lambda record: record.update(category=name))})
    target, copied = imported(file)
    assert list(copied.damaged) == [name]
    assert [category.name for category in target.categories()] == ["cat", "text only", "without copies"]


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("categories.jsonl", of_dog(lambda record: record.update(category="cat"))),
        ("categories.jsonl", of_dog(lambda record: record.update(category=5))),
        ("categories.jsonl", of_dog(lambda record: record.update(category="\ud800"))),
        ("categories.jsonl", of_dog(lambda record: record.update(metadata={"a": 2**70}))),
        ("categories.jsonl", lambda content: content + b"[]\n"),
        ("categories.jsonl", lambda content: content + b"{" * 100_000 + b"\n"),
        ("manifest.json", changed(checksums=None)),
        ("manifest.json", changed(checksums=[])),
        ("manifest.json", changed(encoders={})),
        ("manifest.json", changed(encoders=5)),
        ("manifest.json", changed(encoders={"clip": {"dim": 10**9}})),
        ("manifest.json", changed(version="1")),
        ("manifest.json", changed(labels="several")),
        ("manifest.json", changed(labels=["one"])),
        ("manifest.json", changed(labels=None)),
        ("manifest.json", changed(images="large")),
        ("manifest.json", changed(profile="../../x")),
        ("manifest.json", changed(profile=5)),
    ],
)
def test_a_forged_head_stops_the_import(file: Path, entry: str, change: Callable[[bytes], bytes]) -> None:
    forge_head(file, entry, change)
    backend = MemoryBackend()
    with pytest.raises(StoreError):
        imported(file, Store(backend, "zsvec"))
    assert backend._collections == {}


@pytest.mark.parametrize("folder", ["../x", "inbox", "categories/000001-" + "x" * 10**6, "categories/1\n", {}])
def test_a_forged_folder_stops_only_its_category(file: Path, folder: Any) -> None:
    forge_head(file, "categories.jsonl", of_dog(lambda record: record.update(folder=folder)))
    _, copied = imported(file)
    assert list(copied.damaged) == ["dog"]
    assert len(copied.damaged["dog"]) < 200


def test_long_forged_names_are_shortened_in_messages(file: Path) -> None:
    one = {"model": "m" * 10**6, "revision": None, "dim": 16, "preprocessing": "p" * 10**6}
    forge(file, {"manifest.json": changed(encoders={"n" * 10**6: one})})
    for target in (new_target(), opened()):
        with pytest.raises((EncoderMismatchError, InvalidInputError)) as caught:
            imported(file, target)
        assert len(str(caught.value)) < 1000
    with pytest.raises(EncoderMismatchError) as caught:
        Archive(new_target(), ["clip"]).import_(file)
    assert len(str(caught.value)) < 1000
    forge(file, {"manifest.json": changed(encoders={"clip": one, "dino": one})})
    ours = FINGERPRINTS
    with pytest.raises(EncoderMismatchError) as caught:
        Archive(new_target(), ours, None, lambda: ours).import_(file)
    assert len(str(caught.value)) < 2000


def forge_head(file: Path, entry: str, change: Callable[[bytes], bytes]) -> None:
    """As `forge`, for entries that may be no JSON any more."""
    with zipfile.ZipFile(file) as zipped:
        entries = {one.filename: zipped.read(one) for one in zipped.infolist()}
    entries[entry] = change(entries[entry])
    if entry != "manifest.json":
        manifest = json.loads(entries["manifest.json"])
        manifest["checksums"][entry] = sha256(entries[entry]).hexdigest()
        entries["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in entries.items():
            zipped.writestr(name, content)


_IMPORT = """
import re, sys
from pathlib import Path
from zsvec.curation.archive import Archive
from zsvec.errors import StoreError
from zsvec.store import open_store

# not ru_maxrss, which begins with the value of the parent
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
with open_store(sys.argv[2], namespace="zsvec") as store:
    before = peak()
    try:
        Archive(store).import_(sys.argv[1])
    except StoreError:
        pass
    print(peak() - before, len(store.categories()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is measured in other units elsewhere")
@pytest.mark.parametrize(
    ("number", "categories", "most"),
    [(layout.MOST_CATEGORIES - 5, 4, 350), (2 * layout.MOST_CATEGORIES, 0, 100)],
    ids=["at the bound", "beyond"],
)
def test_an_archive_of_marks_alone_takes_bounded_memory(
    file: Path, tmp_path: Path, number: int, categories: int, most: int
) -> None:
    """A small file names many removed categories, which are committed in batches. `most` is in MiB."""
    marks = "".join(
        f'{{"category":"removed {i}","version":1,"changed":1,"retired":true,"withdrawn":"{i:016x}"}}\n'
        for i in range(number)
    )
    forge(file, {"categories.jsonl": lambda content: content + marks.encode()})
    assert file.stat().st_size < 10**6
    command = [sys.executable, "-c", _IMPORT, str(file), str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, found = map(int, done.stdout.split())
    assert found == categories
    assert growth < most


def test_a_wrong_checksum_of_the_list_stops_the_import(file: Path) -> None:
    forge(file, {"categories.jsonl": lambda content: content + b" "}, honest=False)
    with pytest.raises(StoreError):
        imported(file)


@pytest.mark.parametrize("name", ["../../x", "catalog", "a__b", "images"])
def test_a_forged_name_of_an_encoder_makes_no_collection(file: Path, name: str) -> None:
    one = {"model": "m", "revision": None, "dim": 16, "preprocessing": "p"}
    forge(file, {"manifest.json": changed(encoders={name: one})})
    backend = MemoryBackend()
    with pytest.raises(InvalidInputError):
        imported(file, Store(backend, "zsvec"))
    assert backend._collections == {}


def test_a_forged_small_copy_is_left_out(file: Path) -> None:
    rex = content_hash("rex")
    forge(
        file,
        {
            f"{folder_of(file, 'dog')}/images-000001.safetensors": tensors(
                lambda found: found.update({rex: np.frombuffer(b"not a JPEG", np.uint8)})
            )
        },
    )
    target, copied = imported(file)
    assert copied.complete
    assert target.image(rex) is None
    assert target.image(content_hash("felix")) is not None


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b'{"a": 1e999}', b'{"a": NaN}', b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", b'{"a": "\\ud800"}'],
)
def test_a_damaged_calibration_is_left_out(file: Path, content: bytes) -> None:
    forge_head(file, "calibration.json", lambda _: content)
    target, copied = imported(file)
    assert (copied.complete, copied.calibration, copied.inbox) == (True, None, 2)
    assert [category.name for category in target.categories()] == NAMES
    assert not target.calibration()


def test_a_calibration_with_a_wrong_checksum_is_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    forge(file, {"calibration.json": lambda content: content + b" "}, honest=False)
    target, copied = imported(file)
    assert (copied.complete, copied.calibration) == (True, None)
    assert not target.calibration()
    assert "calibration.json" in caplog.text


def test_a_forged_calibration_is_not_taken_for_one(file: Path) -> None:
    forge(file, {"calibration.json": lambda content: b'{"format": "x", "scale": 1}'})
    target, copied = imported(file)
    assert (copied.complete, copied.calibration) == (True, None)
    assert not target.calibration()


def test_forged_images_of_the_inbox_are_left_out(file: Path) -> None:
    forge(
        file,
        {
            "inbox/waiting-000001.jsonl": lambda content: b"".join(
                changed(hash="../x", added="yesterday")(line) + b"\n" for line in content.splitlines()
            )
        },
    )
    target, copied = imported(file)
    assert (copied.complete, copied.inbox) == (True, 0)
    assert target.inbox.read() == []


def test_a_damaged_inbox_stops_the_import_after_the_categories(file: Path) -> None:
    forge(file, {"inbox/waiting-000001.jsonl": lambda content: content + b" "}, honest=False)
    target = new_target()
    with pytest.raises(StoreError):
        imported(file, target)
    assert [category.name for category in target.categories()] == NAMES


def test_a_category_that_cannot_be_read_is_named_and_the_others_are_exported(file: Path, tmp_path: Path) -> None:
    forge(file, {f"{folder_of(file, 'dog')}/dino-000001.jsonl": lambda content: b"{"})
    with ArchiveReader(file) as source:
        copied = write_archive(source, tmp_path / "b", names=None, on_commit=lambda category: None, track=iter)
    assert list(copied.damaged) == ["dog"]
    assert [category.name for category in copied.categories] == ["cat", "text only", "without copies"]
    _, copied = imported(tmp_path / "b")
    assert copied.complete


# The directory of the zip


def rewritten(file: Path, change: Callable[[zipfile.ZipFile], None]) -> None:
    with zipfile.ZipFile(file, "a") as zipped:
        change(zipped)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "categories/../../x.jsonl", "x.exe", "categories/a/b/c.jsonl", "x\0y"]
)
def test_an_entry_of_another_name_stops_the_import(file: Path, name: str) -> None:
    rewritten(file, lambda zipped: zipped.writestr(name, b"x"))
    with pytest.raises(StoreError):
        imported(file)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_stops_the_import(file: Path) -> None:
    rewritten(file, lambda zipped: zipped.writestr("categories.jsonl", b"{}"))
    with pytest.raises(StoreError):
        imported(file)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_stops_the_import(file: Path, method: int) -> None:
    rewritten(file, lambda zipped: zipped.writestr("inbox/x.jsonl", b"x" * 100, method))
    with pytest.raises(StoreError):
        imported(file)


def test_a_bomb_is_refused_before_it_unpacks(file: Path) -> None:
    bomb = bytes(80 * 2**20)
    rewritten(file, lambda zipped: zipped.writestr("inbox/x.jsonl", bomb, zipfile.ZIP_DEFLATED))
    assert file.stat().st_size < 10**6
    with pytest.raises(StoreError):
        imported(file)


@pytest.mark.parametrize(
    "bomb",
    [b"{}\n" * 2_000_000, b"{}\r" * 2_000_000, b'{"": [' + b"[]," * 2_000_000 + b"[]]}\n"],
    ids=["lines", "carriage returns", "lists"],
)
def test_a_table_that_would_take_much_memory_is_not_parsed(file: Path, bomb: bytes) -> None:
    """Such lines have no hash: a table of images that was parsed would be no damage, only without images."""
    forge(file, {f"{folder_of(file, 'dog')}/images-000001.jsonl": lambda content: bomb})
    assert_only_dog_is_damaged(file)


@pytest.mark.parametrize("text", [",[{\n" * 250_000, '"{' * 400_000], ids=["of JSON", "of quotation marks"])
def test_a_path_may_have_any_number_of_commas_and_brackets(tmp_path: Path, text: str) -> None:
    source = opened()
    source.write([write_of("red", images=[text])])
    assert layout.MOST_IN_TABLE < 4 * 250_000
    assert Archive(source).export(tmp_path / "a.zsvec").complete
    target, copied = imported(tmp_path / "a.zsvec")
    assert copied.complete
    assert_same(source, target)


def test_the_densest_tables_keep_the_bound() -> None:
    """Tables of the shortest lines with all fields."""
    digest, time_of_day = "0" * 64, "2026-05-04T03:02:01.000+00:00"
    reference = {"modality": "text", "hash": digest, "source": ""}
    for line in (
        {**reference, "prompt": "", "group": "", "by": "", "added": time_of_day},
        {**reference, "prompt": "", "group": "", "by": ""},
        {"hash": digest, "width": 1, "height": 1, "source": ""},
        {"hash": digest, "source": "", "added": time_of_day, "width": 0, "height": 0, "why": "all", "dismissed": True},
    ):
        values = len(line) - 1 + 2  # commas, a brace and the end of the line
        assert layout.PART_BYTES / len(json.dumps(line) + "\n") * values < layout.MOST_IN_TABLE


def test_an_entry_that_is_larger_than_declared_is_not_unpacked_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory says 100 bytes, and the compressed stream has 60 MB."""
    name = f"{folder_of(file, 'dog')}/dino-000001.jsonl"
    forge(file, {name: lambda content: bytes(60 * 2**20)})
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as zipped:
        entry = zipped.getinfo(name)
    for sizes in (entry.header_offset + 22, content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode())) + 24):
        assert int.from_bytes(content[sizes : sizes + 4], "little") == entry.file_size
        content[sizes : sizes + 4] = (100).to_bytes(4, "little")
    file.write_bytes(content)
    largest = 0
    inflate = zlib.decompressobj

    class Measured:
        def __init__(self, *args: Any) -> None:
            self._inner = inflate(*args)

        def decompress(self, data: bytes, most: int = 0) -> bytes:
            nonlocal largest
            found = self._inner.decompress(data, most)
            largest = max(largest, len(found))
            return found

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._inner, attribute)

    monkeypatch.setattr("zipfile.zlib.decompressobj", Measured)
    assert_only_dog_is_damaged(file)
    assert 0 < largest <= layout.LARGEST_PART


def test_a_large_directory_is_refused_before_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(file.read_bytes())
    content[-10:-6] = (2**31).to_bytes(4, "little")
    file.write_bytes(content)
    monkeypatch.setattr("zsvec.store.archive.reader.ZipFile", None)
    with pytest.raises(InvalidInputError):
        imported(file)


@pytest.mark.parametrize("cut", [1, 22, 98, 1000])
def test_a_cut_archive_is_refused(file: Path, cut: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    assert is_archive(file)  # by its name
    with pytest.raises(InvalidInputError):
        imported(file)
    file.write_bytes(content + b"more")
    with pytest.raises(InvalidInputError):
        imported(file)
