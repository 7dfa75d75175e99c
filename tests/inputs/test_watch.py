"""Folders that fill, with changing files and killed processes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import watchfiles

from tests.cli.support import Result, cli, colours, filled, finish, hash_encoders, start  # noqa: F401
from tests.streams.test_stream import eventually, threads
from tests.support import coloured, encode, fast_folder, isolated, open_classifier  # noqa: F401
from zsvec.errors import InvalidInputError
from zsvec.inputs import watch as watching
from zsvec.inputs.files import open_regular
from zsvec.inputs.folders import find_images
from zsvec.inputs.watch import Watch

DEADLINE = 60.0
STATE = ".zsvec-watch.jsonl"


@pytest.fixture
def incoming() -> Iterator[Path]:
    """A folder that fills."""
    with fast_folder() as folder:
        (folder / "incoming").mkdir()
        yield folder / "incoming"


def put(path: Path, content: bytes = b"a picture", *, changed: float | None = None) -> Path:
    """Write a file that appears, or is replaced, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / ".being-written"
    part.write_bytes(content)
    if changed is not None:
        os.utime(part, (changed, changed))
    part.replace(path)
    return path


def remembered(folder: Path) -> list[str]:
    """Names of the files that the state says are done; of whole lines."""
    lines = (folder / STATE).read_bytes().splitlines(keepends=True)
    return [json.loads(line)[0] for line in lines if line.endswith(b"\n")]


class Reader:
    """Iterates a watch in a thread, as a stream does."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.error: BaseException | None = None
        self._found: Queue[Path] = Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for path in self.watch:
                self._found.put(path)
        except BaseException as exc:  # noqa: BLE001 - for the test to see
            self.error = exc

    def next(self) -> str:
        """Name of the next file, in the folder."""
        return str(self._found.get(timeout=DEADLINE).relative_to(self.watch.folder))

    def several(self, n: int) -> list[str]:
        return [self.next() for _ in range(n)]

    def nothing(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for some time."""
        try:
            self._found.get(timeout=seconds)
        except Empty:
            return True
        return False

    def over(self) -> bool:
        """Whether the iteration ends, in time."""
        self._thread.join(DEADLINE)
        return not self._thread.is_alive()


class Looks:
    """A clock that stands still, and how often the folder was looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._looks = 0
        monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(watching, "find_images", self._find)

    def _find(self, folder: Path, **options: Any) -> list[Path]:
        self._looks += 1
        return find_images(folder, **options)

    def look(self, *, after: float = 0) -> None:
        """Let time pass, and wait until the folder has been looked at, from the beginning of a look to its end."""
        self.now += after
        enough = self._looks + 3  # one may be under way, the next is whole when that after it begins
        assert eventually(lambda: self._looks >= enough)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


@pytest.fixture
def watch(incoming: Path) -> Iterator[Callable[..., Reader]]:
    """Begins to watch the folder; closes open watches at the end."""
    opened: list[Watch] = []

    def begin(**options: Any) -> Reader:
        opened.append(Watch(incoming, **{"settle": 0, "poll": 0.001, **options}))
        return Reader(opened[-1])

    yield begin
    for one in opened:
        one.close()


# ---- which files, and when


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A look at the whole folder takes an hour of a core; the folders that were looked at."""
    looked: list[Path] = []
    spent = 0.0

    def find(folder: Path, **options: Any) -> list[Path]:
        nonlocal spent
        if folder == options["root"]:
            spent += 3600.0
            looked.append(folder)
        return find_images(folder, **options)

    monkeypatch.setattr(watching, "find_images", find)
    monkeypatch.setattr(watching, "thread_time", lambda: spent)
    return looked


def test_a_large_folder_is_not_looked_at_for_each_file(
    incoming: Path, watch: Callable[..., Reader], costly: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    telling = threading.Event()

    def told(*folders: Path, **options: Any) -> Iterator[Any]:
        for changed in watchfiles.watch(*folders, **options):
            telling.set()
            yield changed

    monkeypatch.setattr(watching, "watch", told)
    put(incoming / "before.png")
    reader = watch(poll=0.02)
    assert reader.next() == "before.png"
    looked = len(costly)
    assert telling.wait(DEADLINE)  # the system is asked to tell after the first look
    for number in range(3):
        put(incoming / f"{number}.png")
        put(incoming / f".hidden-{number}.png")
        put(incoming / f"{number}.txt")
        assert reader.next() == f"{number}.png"
    put(incoming.parent / "elsewhere" / "a.png")
    (incoming.parent / "elsewhere").rename(incoming / "moved in")
    assert reader.next() == "moved in/a.png"
    put(incoming / "0.png", b"another")
    assert reader.next() == "0.png"
    assert reader.nothing()
    assert len(costly) == looked


def test_an_unsettled_file_is_looked_at_again(incoming: Path, watch: Callable[..., Reader], costly: list[Path]) -> None:
    path = put(incoming / "slow.png")
    reader = watch(poll=0.02, settle=3)
    begun = time.monotonic()
    while time.monotonic() < begun + 4:
        with path.open("ab") as file:
            file.write(b"part")
        time.sleep(0.1)
        assert reader.nothing(0.01)
    assert reader.next() == "slow.png"
    assert len(costly) == 2  # to begin with, and the first of the iteration


def test_where_changes_are_not_told_the_folder_is_looked_at(
    incoming: Path, watch: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch, costly: list[Path]
) -> None:
    def untold(*folders: Path, **options: Any) -> Iterator[None]:
        raise OSError(errno.ENOSPC, "OS file watch limit reached")
        yield

    monkeypatch.setattr("zsvec.inputs.watch.watch", untold)
    reader = watch()
    for number in range(3):
        put(incoming / f"{number}.png")
        assert reader.next() == f"{number}.png"


def test_files_are_given_when_they_have_settled(incoming: Path, watch: Callable[..., Reader], looks: Looks) -> None:
    put(incoming / "before.png")
    reader = watch(settle=2.0)
    looks.look(after=1)
    put(incoming / "later.png")  # is seen at once, or at the next look: one second after the other, or more
    looks.look(after=0.9)
    assert reader.nothing()
    looks.look(after=0.2)
    assert reader.next() == "before.png"
    assert reader.nothing()
    looks.look(after=2.0)
    assert reader.next() == "later.png"
    looks.look(after=10)
    assert reader.nothing()


def test_a_file_that_is_still_being_written(incoming: Path, watch: Callable[..., Reader], looks: Looks) -> None:
    path = put(incoming / "slow.png", changed=1000)
    reader = watch(settle=2.0)
    for part in range(5):
        with path.open("ab") as file:
            file.write(b"part")
        os.utime(path, (1000, 1000))  # its size alone says so
        looks.look()
        looks.look(after=1.9)
        assert reader.nothing(0.02), part
    for moment in range(3):
        os.utime(path, (2000 + moment, 2000 + moment))  # the time of its change alone says so
        looks.look()
        looks.look(after=1.9)
        assert reader.nothing(0.02), moment
    looks.look(after=0.2)
    assert reader.next() == "slow.png"
    looks.look(after=10)
    assert reader.nothing()


def test_a_file_that_is_removed_before_it_has_settled(
    incoming: Path, watch: Callable[..., Reader], looks: Looks
) -> None:
    path = put(incoming / "gone.png")
    reader = watch(settle=2.0)
    looks.look(after=1.5)
    path.unlink()
    looks.look(after=1.5)
    assert reader.nothing()
    put(path)
    looks.look()
    looks.look(after=1.5)  # it begins anew
    assert reader.nothing()
    looks.look(after=1.0)
    assert reader.next() == "gone.png"


def test_sub_folders_and_hidden_files(incoming: Path, watch: Callable[..., Reader]) -> None:
    reader = watch()
    names = ["a.png", "späť/d e.jpeg", "sub/b.JPG", "sub/deeper/c.webp"]
    for name in [".hidden.png", ".folder/e.png", "sub/.part/f.png", "notes.txt", "g.png.part", "no-suffix", *names]:
        put(incoming / name)
    assert sorted(reader.several(4)) == names
    assert reader.nothing()


def test_they_come_in_the_order_of_their_change(incoming: Path, watch: Callable[..., Reader]) -> None:
    order = [3, 1, 4, 0, 2]
    for name, changed in enumerate(order):
        put(incoming / f"{name}.png", changed=1000 + changed)
    assert watch().several(5) == [f"{order.index(changed)}.png" for changed in range(5)]


def test_a_file_that_is_replaced_is_a_new_one(incoming: Path, watch: Callable[..., Reader]) -> None:
    put(incoming / "a.png", b"one", changed=1000)
    put(incoming / "b.png", b"one", changed=1001)
    reader = watch()
    assert reader.several(2) == ["a.png", "b.png"]
    reader.watch.done(str(incoming / "a.png"))
    put(incoming / "a.png", b"another", changed=1000)
    assert reader.next() == "a.png"
    os.utime(incoming / "a.png", (1002, 1002))
    assert reader.next() == "a.png"
    assert reader.nothing()


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EACCES])
def test_a_folder_in_it_that_cannot_be_listed_for_a_while(
    incoming: Path, watch: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    put(incoming / "a.png")
    put(incoming / "sub" / "b.png")
    scandir, failed = os.scandir, 0

    def scan(path: Any) -> Any:
        nonlocal failed
        if str(path).endswith("sub") and failed < 4:
            failed += 1
            raise OSError(error, os.strerror(error), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    reader = watch()
    assert reader.several(2) == ["a.png", "sub/b.png"]
    assert failed == 4
    assert reader.error is None


def test_a_file_that_cannot_be_opened_for_a_while(
    incoming: Path, watch: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(incoming / "a.png", changed=1000)
    put(incoming / "b.png", changed=1001)
    locked, tried = {"a.png"}, 0

    def opens(path: Path) -> BinaryIO:
        nonlocal tried
        tried += path.name == "a.png"
        if path.name in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_regular(path)

    monkeypatch.setattr(watching, "open_regular", opens)
    reader = watch()
    assert reader.next() == "b.png"
    assert eventually(lambda: tried > 3)
    locked.clear()
    assert reader.next() == "a.png"
    locked.add("a.png")
    reader.watch.done(str(incoming / "a.png"))  # answered as unreadable
    reader.watch.done(str(incoming / "b.png"))
    reader.watch.close()
    locked.clear()
    assert watch().next() == "a.png"
    assert [record.getMessage() for record in caplog.records] == [
        f"{str(incoming / 'a.png')!r} cannot be read: Permission denied; it is looked at again"
    ]


def test_the_folder_itself_is_taken_away(incoming: Path, watch: Callable[..., Reader], tmp_path: Path) -> None:
    reader = watch(state=tmp_path / "state.jsonl")
    incoming.rmdir()
    assert reader.over()
    assert isinstance(reader.error, InvalidInputError)
    assert "No such file or directory" in str(reader.error)


def test_closing_ends_the_iteration(incoming: Path) -> None:
    put(incoming / "a.png")
    with Watch(incoming, settle=0, poll=3600) as watched:
        reader = Reader(watched)
        assert reader.next() == "a.png"
    assert reader.over()
    watched.close()
    assert list(watched) == []


def test_closing_while_there_is_more(incoming: Path) -> None:
    for name in range(5):
        put(incoming / f"{name}.png", changed=1000 + name)
    with Watch(incoming, settle=0, poll=0.001) as watched:
        for path in watched:
            if path.name == "1.png":
                watched.close()
    assert path.name == "1.png"


def test_any_thread_may_close_it(incoming: Path) -> None:
    watched = Watch(incoming)
    closing = threading.Thread(target=watched.close)
    closing.start()
    closing.join()
    Watch(incoming).close()


def test_a_second_iteration_yields_the_files_that_are_not_done(incoming: Path) -> None:
    for number in range(4):
        put(incoming / f"{number}.png", changed=1000 + number)
    with Watch(incoming, settle=0, poll=0.001) as watched:
        some = iter(watched)
        assert [next(some).name for _ in range(3)] == ["0.png", "1.png", "2.png"]
        watched.done(str(incoming / "0.png"))
        others = iter(watched)
        assert [next(others).name for _ in range(3)] == ["1.png", "2.png", "3.png"]
        for number in range(1, 4):
            watched.done(str(incoming / f"{number}.png"))
    assert remembered(incoming) == [f"{number}.png" for number in range(4)]


# ---- each once, across restarts


def test_a_later_watch_yields_the_files_that_are_not_done(incoming: Path, watch: Callable[..., Reader]) -> None:
    names = [f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        put(incoming / name, changed=1000 + i)
    reader = watch()
    assert reader.several(6) == names
    for i in (0, 3, 4):
        reader.watch.done(str(incoming / names[i]))
    assert reader.nothing()  # not to the one that has it
    reader.watch.close()
    reader = watch()
    assert reader.several(3) == ["1.png", "2.png", "5.png"]
    assert reader.nothing()


def test_a_later_watch_goes_on_after_a_last_line_without_an_end(incoming: Path, watch: Callable[..., Reader]) -> None:
    state, whole = incoming / STATE, b""
    for run in range(3):
        put(incoming / f"{run}.png")
        reader = watch()
        assert state.read_bytes() == whole
        assert reader.next() == f"{run}.png"
        assert reader.nothing()
        reader.watch.done(str(incoming / f"{run}.png"))
        reader.watch.close()
        whole = state.read_bytes()
        state.write_bytes(whole.removesuffix(b"\n"))
    assert watch().nothing()
    assert remembered(incoming) == ["0.png", "1.png", "2.png"]


def test_an_unknown_path_is_not_recorded(incoming: Path, watch: Callable[..., Reader]) -> None:
    put(incoming / "a.png")
    reader = watch()
    reader.watch.done("elsewhere.png")
    assert reader.next() == "a.png"
    for _ in range(3):
        reader.watch.done(str(incoming / "a.png"))
    assert remembered(incoming) == ["a.png"]


def test_done_records_the_version_that_was_yielded_first(incoming: Path, watch: Callable[..., Reader]) -> None:
    path = put(incoming / "a.png", b"one")
    reader = watch()
    assert reader.next() == "a.png"
    put(path, b"another")  # before the first is done
    assert reader.next() == "a.png"
    reader.watch.done(str(path))
    reader.watch.close()
    reader = watch()
    assert reader.next() == "a.png"  # the second was not done
    reader.watch.done(str(path))
    reader.watch.close()
    assert remembered(incoming) == ["a.png", "a.png"]
    assert watch().nothing()


def test_any_name_is_remembered(incoming: Path, watch: Callable[..., Reader]) -> None:
    names = ["a b.png", "a\nb.png", 'q"\\.png', "小熊猫.png", os.fsdecode(b"\xff.png"), "a\r.png"]
    for number, name in enumerate(names):
        put(incoming / name, changed=1000 + number)
    reader = watch()
    assert reader.several(len(names)) == names
    for name in names:
        reader.watch.done(str(incoming / name))
    reader.watch.close()
    assert remembered(incoming) == names
    assert watch().nothing()


def test_a_folder_by_its_relative_name(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(incoming.parent)
    put(incoming / "sub" / "a.png")
    for folder in ("incoming/", "./incoming", incoming):
        with Watch(folder, settle=0, poll=0.001) as watched:
            if folder == "incoming/":
                path = next(iter(watched))
                assert path == Path("incoming/sub/a.png")
                watched.done(str(path))
            else:
                assert Reader(watched).nothing()


def test_a_torn_last_line_is_as_if_it_had_not_been_written(incoming: Path) -> None:
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        put(incoming / name, changed=1000 + i)
    with Watch(incoming, settle=0, poll=0.001) as watched:
        for path in watched:
            watched.done(str(path))
            if path.name == names[-1]:
                break
    state = incoming / STATE
    whole = state.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(1, len(lines[-1]) + 1):
        state.write_bytes(whole[:-cut])
        with Watch(incoming, settle=0, poll=0.001) as watched:
            if cut == 1:  # nothing but the end of the line
                assert state.read_bytes() == whole
                assert Reader(watched).nothing()
                continue
            assert state.read_bytes() == b"".join(lines[:-1])
            path = next(iter(watched))
            assert path.name == names[-1]
            watched.done(str(path))
        assert state.read_bytes() == whole


def test_the_first_line_is_written_whole_or_not_at_all(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(incoming / "a.png")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Watch(incoming, settle=0, poll=0.001) as watched:
        path = str(next(iter(watched)))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                watched.done(path)
        assert (incoming / STATE).read_bytes() == b""
    assert [path.name for path in incoming.iterdir() if path.suffix == ".new"] == []
    with Watch(incoming, settle=0, poll=0.001) as watched:
        watched.done(str(next(iter(watched))))
    assert remembered(incoming) == ["a.png"]


@pytest.mark.parametrize("told", [True, False], ids=["told", "looked at"])
def test_a_link_that_leads_out_of_the_folder_is_named_once_and_never_given(
    incoming: Path,
    watch: Callable[..., Reader],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    told: bool,
) -> None:
    private = incoming.parent / "private"
    put(private / "a.png")
    links = (incoming / "a.png", incoming / "folder")

    def plant() -> None:
        links[0].symlink_to(private / "a.png")
        links[1].symlink_to(private, target_is_directory=True)

    if told:
        monkeypatch.setattr(watching, "perf_counter", lambda: 0.0)  # only the first look is at the whole folder
    else:
        plant()
    reader = watch()
    if told:
        assert reader.nothing()
        plant()
    put(incoming / "b.png")
    assert reader.next() == "b.png"
    (incoming / "c.png").symlink_to("b.png")
    assert reader.next() == "c.png"
    monkeypatch.setattr(watching, "perf_counter", time.perf_counter)
    assert reader.nothing()
    for link in links:
        assert caplog.text.count(f"{str(link)!r} leads out of") == 1


def test_a_file_that_becomes_a_link_out_of_the_folder_is_not_given(
    incoming: Path, watch: Callable[..., Reader], looks: Looks
) -> None:
    put(incoming.parent / "private.png")
    put(incoming / "a.png")
    reader = watch(settle=10)
    looks.look()
    (incoming / "a.png").unlink()
    (incoming / "a.png").symlink_to("../private.png")
    looks.look(after=11)
    looks.look(after=11)
    assert reader.nothing()


@pytest.mark.parametrize("name", [STATE, f"{STATE}.lock"])
def test_a_link_in_the_folder_is_not_written_through(incoming: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"of": "others"}')
    (incoming / name).symlink_to(victim)
    with pytest.raises(InvalidInputError, match="leads out of"):
        Watch(incoming)
    assert victim.read_text() == '{"of": "others"}'


@pytest.mark.skipif(os.name != "posix", reason="hard links of POSIX")
def test_a_state_with_another_name_stays_as_it_is(incoming: Path, tmp_path: Path) -> None:
    content = b'["a.png", 1, 2]\n["b.p'
    os.link(put(tmp_path / "victim", content), incoming / STATE)
    with pytest.raises(InvalidInputError, match=STATE):
        Watch(incoming)
    assert (tmp_path / "victim").read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b'{"of": "others"}',
        b'["a", "b"]',
        b'["a.png", 1, 2]\n{"x": 1}',
        b"text",
        b'["a.png",1,2]',
        b"\0",
        b"[",
        b'["a.p',
        b"[1, 2, 3]\n[",
        b'"123"\n["a',
        b'{"a": 1, "2": 2, "3": 3}\n[',
        b'["a.png", "1", 2]\n["a',
        b'["a.png", 1.5, 2]\n["a',
        b'["a.png", 1, 2]\r\n["a',
        *(
            b'["a.png", 1, 2]\n' + line + b"\n"
            for line in (
                *(b"{", b"[]", b'["a.png", 1]', b'["a.png", "x", 2]', b"\xff", b""),
                *(b'["a.png", Infinity, 2]', b"[" * 10**6),
            )
        ),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_file_that_is_no_state_stays_as_it_is(incoming: Path, content: bytes) -> None:
    state = put(incoming / "settings.json", content)
    with pytest.raises(InvalidInputError, match=r"settings\.json cannot be used as the state of a watch") as error:
        Watch(incoming, state=state)
    assert state.read_bytes() == content
    state.unlink()
    Watch(incoming, state=state).close()  # not open, and not locked
    del error  # not even while the error is held


def test_a_state_that_cannot_be_written(incoming: Path, tmp_path: Path) -> None:
    for path in (tmp_path, put(tmp_path / "file") / "state.jsonl"):
        with pytest.raises(InvalidInputError, match="cannot be used as the state of a watch"):
            Watch(incoming, state=path)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", put(tmp_path / "a file")):
        with pytest.raises(InvalidInputError, match="cannot list the folder"):
            Watch(folder)
    assert not list(tmp_path.glob(f"**/{STATE}*"))


# ---- several at once


def test_two_with_one_state(incoming: Path, tmp_path: Path) -> None:
    with Watch(incoming):
        for _ in range(2):
            with pytest.raises(InvalidInputError, match=r"another process watches with .*: give each its own state"):
                Watch(incoming)
        with Watch(incoming, state=tmp_path / "other.jsonl"):
            pass
    Watch(incoming).close()


WATCHER = """
import os, sys, time
from pathlib import Path
from zsvec.inputs.watch import Watch

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, b"begun\\n")
with Watch(sys.argv[1], settle=0, poll=0.002) as watch:
    for path in watch:
        os.write(log, f"given {path.name}\\n".encode())
        time.sleep(0.001)
        watch.done(str(path))
        os.write(log, f"done {path.name}\\n".encode())
"""


def log_of(path: Path) -> list[list[str]]:
    """Events in the log, whole lines only."""
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def test_two_processes_with_one_state(incoming: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    put(incoming / "a.png")
    process = subprocess.Popen([sys.executable, "-c", WATCHER, str(incoming), str(log)])
    try:
        assert eventually(lambda: ["done", "a.png"] in log_of(log))
        with pytest.raises(InvalidInputError, match="another process watches with"):
            Watch(incoming)
    finally:
        process.kill()
        process.wait(DEADLINE)
    Watch(incoming).close()  # a killed process holds no lock


def test_kills_at_any_instant_lose_nothing_and_repeat_nothing_that_was_done(incoming: Path, tmp_path: Path) -> None:
    rng, log, kills = random.Random(0), tmp_path / "log", 6
    names: list[str] = []

    def more(n: int) -> None:
        for i in range(len(names), len(names) + n):
            names.append(f"{i}.png")
            put(incoming / names[-1], changed=1000 + i)

    for kill in range(kills):
        more(20)
        so_far = len(log_of(log))
        process = subprocess.Popen([sys.executable, "-c", WATCHER, str(incoming), str(log)])
        try:
            wanted = so_far + rng.randrange(2, 30)
            assert eventually(lambda wanted=wanted: len(log_of(log)) >= wanted)  # type: ignore[misc]
            more(3)  # they come while it runs
            if kill == kills - 1:
                assert eventually(lambda: set(remembered(incoming)) == set(names))
            time.sleep(rng.random() * 0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
    events = [event for event in log_of(log) if event[0] != "begun"]
    done: set[str] = set()
    for what, name in events:
        assert what != "given" or name not in done
        if what == "done":
            done.add(name)
    given = Counter(name for what, name in events if what == "given")
    assert set(given) == set(names)
    assert len(remembered(incoming)) == len(names)
    assert sum(given.values()) - len(names) <= kills - 1  # what was being dealt with at a kill may come again


# ---- through a classifier


def test_a_stream_of_new_files(incoming: Path) -> None:
    with fast_folder() as folder, open_classifier(folder) as clf:
        for colour in ("red", "blue"):
            clf.add_category(colour, images=[coloured(colour, seed) for seed in range(3)])
        with Watch(incoming, settle=0, poll=0.001) as watched:
            stream: Any = clf.classify_stream(watched)
            for i, colour in enumerate(["red", "blue", "red"]):
                put(incoming / f"{i}.png", encode(coloured(colour, 100)))
                prediction = next(stream)
                assert (prediction.source, prediction.label) == (str(incoming / f"{i}.png"), colour)
                watched.done(prediction.source)
            put(incoming / "broken.png", b"no picture")
            prediction = next(stream)
            assert "cannot read" in (prediction.error or "")
            watched.done(prediction.source)
        assert list(stream) == []  # the end of the watch is the end of the stream
    assert remembered(incoming) == ["0.png", "1.png", "2.png", "broken.png"]
    assert eventually(lambda: not threads())


@pytest.mark.usefixtures("hash_encoders")
def test_a_watch_that_is_killed(filled: Callable[..., Result], incoming: Path) -> None:  # noqa: F811
    rng = random.Random(1)
    names: list[str] = []
    printed: list[str] = []

    def more() -> None:
        for i in range(len(names), len(names) + 20):
            names.append(f"{i}.png")
            put(incoming / names[-1], encode(coloured("red", i)), changed=1000 + i)

    for _ in range(3):
        more()
        done = set(remembered(incoming)) if printed else set()
        process = start("watch", incoming, "--settle", "0", "--json")
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 15))]
        time.sleep(rng.random() * 0.01)
        process.kill()
        lines += process.stdout.readlines()
        assert finish(process) == (-signal.SIGKILL, "", "")
        found = [Path(json.loads(line)["source"]).name for line in lines if line.endswith(b"\n")]
        assert not done & set(found)
        assert set(remembered(incoming)) <= done | set(found)  # nothing is done before it is answered
        printed += found
    more()
    answers = Path("answers")
    with answers.open("wb") as file:  # a pipe without a reader is full after some answers
        process = start("watch", incoming, "--settle", "0", "--json", stdout=file)
        assert eventually(lambda: set(remembered(incoming)) == set(names))
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert (code, err) == (130, "")
    printed += [Path(json.loads(line)["source"]).name for line in answers.read_text().splitlines()]
    assert set(printed) == set(names)
    assert len(printed) <= len(names) + 3
    assert len(filled("list --json").objects) == 3


@pytest.mark.usefixtures("hash_encoders")
def test_a_watch_of_a_missing_and_of_a_watched_folder(filled: Callable[..., Result], incoming: Path) -> None:  # noqa: F811
    result = filled("watch missing")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("zsvec: cannot list the folder 'missing'")
    with Watch(incoming):
        result = filled("watch", incoming)
    assert (result.code, result.out) == (2, "")
    assert "another process watches with" in result.err
    assert filled("watch", incoming, "--settle", "-1").code == 2


@pytest.mark.usefixtures("hash_encoders")
def test_a_state_file_of_ones_own(filled: Callable[..., Result], incoming: Path) -> None:  # noqa: F811
    put(incoming / "a.png", encode(coloured("red", 100)))
    process = start("watch", incoming, "--state", "done.jsonl", "--settle", "0")
    assert process.stdout
    assert b"red" in process.stdout.readline()
    assert eventually(lambda: b"a.png" in Path("done.jsonl").read_bytes())
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "")
    assert sorted(path.name for path in incoming.iterdir()) == ["a.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.usefixtures("hash_encoders")
def test_an_answer_that_cannot_be_written_is_not_done(filled: Callable[..., Result], incoming: Path) -> None:  # noqa: F811
    put(incoming / "a.png", encode(coloured("red", 100)))
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(start("watch", incoming, "--settle", "0", "--json", stdout=full))
    assert (code, err) == (1, "zsvec: [Errno 28] No space left on device\n")
    assert remembered(incoming) == []
