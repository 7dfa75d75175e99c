"""A store folder from elsewhere: neither other files are written, nor does a call hang."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.forking import say
from tests.store.material import FINGERPRINTS, add, sources
from tests.store.support import fast_folder
from zsvec.errors import ZSVecError
from zsvec.store import Store
from zsvec.store.backends.edge.backend import EdgeBackend

pytestmark = pytest.mark.skipif(os.name != "posix", reason="named pipes and links of POSIX")

ROOT = Path(__file__).parents[2]
SECRET = "of the user\n"
COLLECTIONS = ("zsvec__catalog", "zsvec__clip")
HIDDEN = [f".{name}-{collection}" for name in ("lock", "collection", "next") for collection in COLLECTIONS]
CHECKSUMS = [f"{collection}/checksums.json" for collection in COLLECTIONS]
OTHERS = [
    "zsvec__catalog/edge_config.json",
    "zsvec__catalog/pipe",
    "zsvec__catalog/segments/pipe",
    "zsvec__catalog/wal/open-7",
    "zsvec__clip/segments/*/segment.json",
    "zsvec__clip/segments/*/vector_storage/vectors/chunk_0.mmap",
]


def use(folder: Path) -> str:
    """Uses a store in all ways, and returns the errors."""
    store, errors = Store(EdgeBackend(folder), "zsvec"), []
    calls: list[Callable[[], object]] = [
        lambda: [sources(store, category.name) for category in store.categories()],
        lambda: add(store, "desk", ["9"], ["text"]),
        store.flush,
        store.gc,
        lambda: store.remove("lynx"),
        lambda: cast("EdgeBackend", store._backend).rewrite("zsvec__clip"),
        store.close,
    ]
    for call in calls:
        try:
            call()
        except ZSVecError as error:
            errors.append(str(error))
    return "\n".join(errors)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with fast_folder() as parent:
        with Store(EdgeBackend(parent / "store"), "zsvec") as store:
            store.bind(FINGERPRINTS)
            add(store, "lynx", ["1", "2"], ["text"])
        yield parent / "store"


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    """A store of one category, closed."""
    with fast_folder() as parent:
        yield shutil.copytree(made, parent / "store")


@pytest.fixture
def victim(folder: Path) -> Path:
    file = folder.with_name("victim")
    file.write_text(SECRET)
    return file


def copies(folder: Path, *ways: Any) -> Iterator[tuple[Path, Any]]:
    """A copy of a store for each way to attack it."""
    for number, way in enumerate(ways):
        yield shutil.copytree(folder, folder.with_name(f"copy {number}")), way


def put(path: Path, make: Callable[[Path], object]) -> None:
    """Replace a file."""
    path.unlink(missing_ok=True)
    make(path)


@pytest.mark.parametrize("name", [*HIDDEN, *CHECKSUMS])
def test_no_file_elsewhere_is_written(folder: Path, victim: Path, name: str) -> None:
    """A hidden file is a link to a file of the user, or to one that could be made."""
    ways = [(suffix, target) for suffix in ("", ".new") for target in ("victim", "nothing")]
    for copy, (suffix, target) in copies(folder, *ways):
        put(copy / f"{name}{suffix}", lambda path, target=target: path.symlink_to(victim.with_name(target)))  # type: ignore[misc]
        use(copy)
        assert victim.read_text() == SECRET
        assert not victim.with_name("nothing").exists()


@pytest.mark.parametrize("name", [*HIDDEN, *CHECKSUMS, *OTHERS])
def test_no_file_with_another_name_is_written(folder: Path, victim: Path, name: str) -> None:
    """A file is a hard link to a file of the user. Those that the engine writes are refused."""
    for copy, checked in copies(folder, True, False):
        if not checked:
            for checksums in copy.glob("*/checksums.json"):
                checksums.unlink()
        parent, _, last = name.rpartition("/")
        [place] = copy.glob(parent) if parent else [copy]
        put(place / last, lambda path: os.link(victim, path))
        errors = use(copy)
        assert victim.read_text() == SECRET
        assert name in HIDDEN or str(place / last) in errors


def test_a_copy_of_a_store_with_hard_links_can_be_used(folder: Path) -> None:
    linked, copy = folder.with_name("linked"), folder.with_name("copy")
    shutil.copytree(folder, linked, copy_function=os.link)
    assert str(linked) in use(linked)
    shutil.copytree(linked, copy)
    assert use(copy) == ""


def use_with_pipes(folder: Path) -> None:
    """Use a store with a pipe in the place of one file after the other, and print the errors of each."""
    aside = folder.with_name("aside")
    for name in [*HIDDEN, *CHECKSUMS, *OTHERS]:
        parent, _, last = name.rpartition("/")
        [place] = folder.glob(parent) if parent else [folder]
        path = place / last
        if there := path.exists():
            path.rename(aside)
        os.mkfifo(path)
        say(f"{name}\t{json.dumps([str(path), use(folder)])}")
        path.unlink()
        if there:
            aside.rename(path)


@pytest.mark.parametrize("checked", [True, False])
def test_a_pipe_is_never_waited_for(folder: Path, checked: bool) -> None:
    """In another process, which can be killed."""
    if not checked:
        for checksums in folder.glob("*/checksums.json"):
            checksums.unlink()
    user = "import sys; from tests.store.test_hostile_folder import *; use_with_pipes(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", user, folder], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = {name: json.loads(said) for name, said in (line.split("\t") for line in done.stdout.splitlines())}
    assert found.keys() == {*HIDDEN, *CHECKSUMS, *OTHERS}
    assert [name for name, (path, errors) in found.items() if path not in errors and not name.startswith(".")] == []


def test_a_link_to_a_folder_is_refused(folder: Path) -> None:
    """The engine would wait for a pipe in the folder."""
    pool = folder / "pool"
    pool.mkdir()
    os.mkfifo(pool / "segment.json")
    (folder / "zsvec__catalog" / "segments" / "other").symlink_to(pool)
    assert str(folder / "zsvec__catalog" / "segments" / "other") in use(folder)


HOSTILE: dict[str, bytes] = {
    "no JSON": b"\0\1\2",
    "cut off": b'{"edge',
    "a number": b"7",
    "a text": b'"edge_config.json"',
    "a list": b"[[1, 2], [3, 4]]",
    "nothing known": b"{}",
    "of wrong types": json.dumps({"edge_config.json": "x", "segments": None, "wal": [{}, {}], "": {"": []}}).encode(),
    "huge numbers": b'{"edge_config.json": [' + b"9" * 4000 + b", -1e999]}",
    "a number without end": b'{"edge_config.json": [' + b"9" * 100_000 + b", 1]}",
    "deep": b"[" * 200_000,
    "deep and whole": b'{"edge_config.json": ' + b"[" * 900 + b"]" * 900 + b"}",
    "paths that lead out": json.dumps({"../../../../etc/passwd": [1, 2], "/etc/passwd": [1, 2]}).encode(),
    "a path of a terminal": json.dumps({"\x1b[2J\n": [1, 2]}).encode(),
    "10^6 entries": json.dumps({str(i): [i, i] for i in range(10**6)}).encode(),
    "UTF-16": '{"edge_config.json": [1, 2]}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_checksums_are_an_error(folder: Path, content: bytes) -> None:
    file = folder / "zsvec__catalog" / "checksums.json"
    file.write_bytes(content)
    errors = use(folder)
    assert str(folder / "zsvec__catalog") in errors
    assert "\x1b" not in errors
    assert file.read_bytes() == content


def test_checksums_larger_than_any_are_not_read(folder: Path) -> None:
    """A file of a terabyte that takes no room."""
    os.truncate(folder / "zsvec__catalog" / "checksums.json", 2**40)
    assert str(folder / "zsvec__catalog" / "checksums.json") in use(folder)


def test_no_file_beyond_the_folder_is_read(folder: Path, victim: Path) -> None:
    """The error names no checksum of such a file."""
    file = folder / "zsvec__catalog" / "checksums.json"
    recorded = json.loads(file.read_bytes())
    file.write_text(json.dumps({"../../victim": [len(SECRET), 0], **recorded}))
    assert f"'{folder}/zsvec__catalog/../../victim' is missing" in use(folder)
