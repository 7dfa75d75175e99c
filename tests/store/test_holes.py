"""A closed store has no holes at the end of its files, and is the same when it is opened again."""

from __future__ import annotations

import json
import os
import pkgutil
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.store.material import FINGERPRINTS, pictured, vectors
from tests.store.support import fast_folder
from zsvec.errors import StoreError, ZSVecError
from zsvec.store import Store
from zsvec.store.backends.edge import holes
from zsvec.store.backends.edge.backend import EdgeBackend

pytestmark = pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="the system does not tell where holes are")

MIB = 2**20


def opened(folder: Path) -> Store:
    return Store(EdgeBackend(folder), "zsvec")


def fill(folder: Path, *names: str) -> None:
    with opened(folder) as store:
        store.bind(FINGERPRINTS)
        store.write([pictured(name, [f"{name} {i}" for i in range(3)], [name]) for name in names])


def state(folder: Path) -> dict[str, Any]:
    with opened(folder) as store:
        assert store.incomplete() == []
        return {
            category.name: sorted((key, row.tolist()) for key, row in vectors(store.stored(category.name)).items())
            for category in store.categories()
        }


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with fast_folder() as parent:
        fill(parent / "store", "lynx", "owl")
        yield parent / "store"


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    with fast_folder() as parent:
        yield shutil.copytree(made, parent / "store")


def test_a_closed_store_is_small_in_an_archive(folder: Path, tmp_path: Path) -> None:
    assert size(folder) < 4 * MIB  # 590 MiB with holes
    with tarfile.open(tmp_path / "store.tar", "w") as archive:
        archive.add(folder, "store")
    assert (tmp_path / "store.tar").stat().st_size < 5 * MIB
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "store.tar", "-C", tmp_path / "elsewhere"], check=True)
    assert state(tmp_path / "elsewhere" / "store") == state(folder)


def test_a_store_that_is_used_again_and_again_stays_the_same_and_small(folder: Path) -> None:
    for number in range(4):
        fill(folder, f"category {number}")
        before = state(folder)
        assert len(before) == 3 + number
        assert state(folder) == before
        assert size(folder) < 4 * MIB + number * MIB
    with opened(folder) as store:
        store.remove("lynx")
        store.flush()
        assert size(folder) < 10 * MIB
        assert len(store.categories()) == 5
    assert "lynx" not in state(folder)


def test_a_store_that_only_flushed_can_be_copied_and_read(folder: Path) -> None:
    with opened(folder) as store:
        store.write([pictured("flushed", ["x"])])
        store.flush()
        copy = shutil.copytree(folder, folder.with_name("copy"), ignore=shutil.ignore_patterns(".lock-*"))
    assert state(copy) == state(folder)


@pytest.mark.parametrize("step", ["os.truncate", "write_whole", "sync"])
def test_a_failure_at_any_step_loses_nothing(folder: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are cut the failure is of no consequence; while sizes are restored it is an error."""
    place = f"zsvec.store.backends.edge.holes.{step}"
    does: Callable[..., None] = pkgutil.resolve_name(place)
    before = state(folder)
    for dies_at in (0, 1, 2, 5, 17, 40, 70):
        calls = 0

        def fail(*args: Any, dies_at: int = dies_at) -> None:
            nonlocal calls
            calls += 1
            if calls > dies_at:
                raise OSError("no more")
            does(*args)

        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            try:
                found = state(folder)
            except StoreError:
                assert step == "os.truncate"
            else:
                assert found == before
        assert state(folder) == before


def test_without_checksums_the_store_is_opened(folder: Path) -> None:
    before = state(folder)
    for path in folder.glob("*/checksums.json"):
        path.unlink()
    assert state(folder) == before


def test_without_sizes_a_file_is_named(folder: Path) -> None:
    for path in folder.glob("*/sizes.json"):
        path.unlink()
    with pytest.raises(StoreError, match="has changed since the collection was closed"):
        state(folder)


def test_lost_data_is_found(folder: Path) -> None:
    lost = 0
    for path in files(folder):
        content = path.read_bytes()
        is_record = path.name in ("sizes.json", "checksums.json")
        if is_record or "zsvec__catalog" not in path.parts or len(content) < 4096 or not any(content):
            continue
        os.truncate(path, len(content.rstrip(b"\0")) - 1)
        with pytest.raises(StoreError, match="has changed"):
            state(folder)
        path.write_bytes(content)
        lost += 1
    assert lost > 3
    assert state(folder)


def as_text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, {"wal/open-1": "x"}, {"wal/open-1": True}, {"wal/open-1": -1}],
    ids=lambda content: str(content)[:20],
)
def test_a_damaged_record_of_sizes_is_an_error_of_ours(folder: Path, content: Any) -> None:
    (folder / "zsvec__catalog" / "sizes.json").write_bytes(as_text(content))
    with pytest.raises(ZSVecError):
        state(folder)


@pytest.mark.parametrize(
    "forge",
    [
        lambda sizes: {**sizes, "../../victim": 2**20, "../zsvec__clip/checksums.json": 2**20, "edge_config.json/": 9},
        lambda sizes: {**sizes, "/etc/passwd": 2**20, "\x00": 5, "nothing": 2**20},
        lambda sizes: dict.fromkeys(sizes, 2**62),
        lambda sizes: dict.fromkeys(sizes, 2**39),
        lambda sizes: {**sizes, "edge_config.json": 2**20},
    ],
)
def test_a_forged_record_of_sizes_changes_no_file_elsewhere(
    folder: Path, forge: Callable[[dict[str, int]], dict[str, int]]
) -> None:
    victim = folder.with_name("victim")
    victim.write_text("of the user")
    before = state(folder)
    file = folder / "zsvec__catalog" / "sizes.json"
    file.write_text(json.dumps(forge(json.loads(file.read_text()))))
    with suppress(ZSVecError):
        assert state(folder) == before
    assert victim.read_text() == "of the user"
    assert not (folder / "nothing").exists()


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, Path.mkdir])
def test_a_record_of_sizes_that_is_no_file_is_an_error(folder: Path, make: Callable[[Path], None]) -> None:
    path = folder / "zsvec__catalog" / "sizes.json"
    path.unlink()
    make(path)
    with pytest.raises(ZSVecError):
        state(folder)


def test_files_of_any_content_are_cut_after_the_last_page_with_data(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(200):
        path = tmp_path / "file"
        path.unlink(missing_ok=True)
        path.touch()
        length = draw.choice([0, 1, 4096, 65_536, 65_537, 200_000, MIB, 3 * MIB + 5])
        os.truncate(path, length)
        with path.open("r+b") as file:
            for _ in range(draw.randint(0, 4)):
                position = draw.randrange(length) if length else 0
                file.seek(position)
                byte = b"\0" if draw.random() < 0.4 else b"x"
                file.write(byte * min(draw.choice([1, 100, 70_000, 140_000]), length - position))
        content = path.read_bytes()
        end = min(length, -(-len(content.rstrip(b"\0")) // 4096) * 4096)
        holes.cut(tmp_path, {"file": path})
        assert path.stat().st_size == (end if length - end >= 65_536 else length)
        holes.restore(tmp_path, {"file": path})
        assert path.read_bytes() == content
        (tmp_path / "sizes.json").unlink(missing_ok=True)
