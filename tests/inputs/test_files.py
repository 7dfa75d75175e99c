"""Files in untrusted folders: pipes are refused at once, links are never written through."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.streams.test_stream import within
from zsvec.inputs.files import (
    open_regular,
    open_to_append,
    read_named,
    read_regular,
    remove_leftovers,
    replacing,
    replacing_named,
    write_new,
    write_whole,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="named pipes and links of POSIX")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "elsewhere"
    file.write_bytes(b"of the user")
    return file


@pytest.fixture
def link(tmp_path: Path, victim: Path) -> Path:
    path = tmp_path / "link"
    path.symlink_to(victim)
    return path


@pytest.mark.parametrize("opens", [open_regular, open_to_append])
def test_a_pipe_and_a_folder_are_refused_at_once(opens: Callable[[Path], object], pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="regular"):
        within(lambda: opens(pipe))
    with pytest.raises(OSError, match=r"regular|directory"):
        opens(tmp_path)


def test_a_link_is_read_unless_it_must_not_be_followed(link: Path) -> None:
    assert read_regular(link) == b"of the user"
    with pytest.raises(OSError, match="link"):
        open_regular(link, follow_links=False)
    with pytest.raises(OSError, match=r"it is a symbolic link: '.*link'"):
        open_to_append(link)


def test_a_file_with_two_names_is_read_and_not_appended_to(tmp_path: Path, victim: Path) -> None:
    name = tmp_path / "name"
    os.link(victim, name)
    with pytest.raises(OSError, match="name") as raised:
        open_to_append(name)
    assert raised.value.errno == errno.EMLINK
    assert read_regular(name) == b"of the user"


def test_appending(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        with open_to_append(tmp_path / "state") as file:
            file.seek(0)
            file.write(line)
    assert (tmp_path / "state").read_bytes() == b"one\ntwo\n"


def test_a_link_is_replaced_and_not_written_through(link: Path, victim: Path) -> None:
    write_whole(link, b"ours")
    assert link.read_bytes() == b"ours"
    assert not link.is_symlink()
    assert victim.read_bytes() == b"of the user"


def test_a_failure_leaves_the_file_unchanged_and_no_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"before")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"before"}


def test_permissions_are_those_that_were_asked_for(tmp_path: Path) -> None:
    write_whole(tmp_path / "secret", b"", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_long_name_can_be_replaced(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


def test_a_file_is_whole_whether_or_not_it_is_durable(tmp_path: Path) -> None:
    for durable in (True, False):
        with replacing(tmp_path / "file", durable=durable) as file:
            file.write(b"content")
            assert not (tmp_path / "file").exists()
        assert (tmp_path / "file").read_bytes() == b"content"
        (tmp_path / "file").unlink()


def test_a_named_output_replaces_a_link_and_a_pipe_of_its_name(pipe: Path, link: Path, victim: Path) -> None:
    for path in (pipe, link):
        with replacing_named(path) as file:
            file.write(b"ours")
        assert (path.read_bytes(), path.is_symlink(), victim.read_bytes()) == (b"ours", False, b"of the user")


def test_a_named_input_is_no_pipe_of_a_folder(pipe: Path) -> None:
    with pytest.raises(OSError, match="regular"):
        read_named(pipe)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no open files by name here")  # noqa: PTH112
def test_pipes_of_the_shell_can_be_named() -> None:
    read, write = os.pipe()
    with replacing_named(Path(f"/dev/fd/{write}")) as file:
        file.write(b"through a pipe")
    os.close(write)
    assert read_named(Path(f"/dev/fd/{read}")) == b"through a pipe"
    os.close(read)


def test_one_of_many_writers_creates_a_file_and_no_reader_sees_a_part(tmp_path: Path) -> None:
    file, number = tmp_path / "key", 8
    together = threading.Barrier(number)
    contents = [bytes([65 + one]) * 100_000 for one in range(number)]

    def make(content: bytes) -> bytes | None:
        together.wait()
        made = write_new(file, content, mode=0o600)
        assert read_regular(file) in contents
        return content if made else None

    with ThreadPoolExecutor(number) as pool:
        [made] = [content for content in pool.map(make, contents) if content]
    assert file.read_bytes() == made
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "key", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"other")
    makes: list[Callable[[], object]] = [
        lambda: file.write_bytes(b"other"),
        lambda: file.symlink_to(elsewhere),
        lambda: file.symlink_to(tmp_path / "missing"),
        lambda: os.mkfifo(file),
        file.mkdir,
    ]
    for make in makes:
        make()
        assert not write_new(file, b"new")
        assert elsewhere.read_bytes() == b"other"
        assert not (tmp_path / "missing").exists()
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink()


def test_old_leftovers_are_deleted_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent, other = (tmp_path / name for name in (".zsvec-old.new", ".zsvec-recent.new", "other.new"))
    for file in (old, recent, other):
        file.write_bytes(b"x")
    folder, link, foreign = (tmp_path / f".zsvec-{name}.new" for name in ("folder", "link", "foreign"))
    folder.mkdir()
    link.symlink_to(other)
    foreign.write_bytes(b"x")
    unlink = Path.unlink

    def refuse(path: Path) -> None:
        if path == foreign:  # in a folder with the sticky bit
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    for path in (old, other, folder, link, foreign):
        os.utime(path, (1, 1), follow_symlinks=False)
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([recent, other, folder, link, foreign])
