"""A run that is killed at any instant loses no purchase, and resumes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.generation.fake_openai import CHAT, IMAGES, KEY, Entry, FakeOpenAI, noise
from tests.generation.material import plan_of, settings_of
from tests.generation.runner import CONCURRENCY, FEW, NAMES, STORED
from tests.support import fast_folder, isolated, open_classifier  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.generation.access import KEY_VARIABLE, SWITCH_VARIABLE
from zsvec.generation.facet import SOURCE
from zsvec.generation.manifest import AnswerRecord, ImageRecord, images, read_manifest
from zsvec.generation.run import carry_out

ROOT = Path(__file__).parents[2]
LATENCY = 0.02

Instant = tuple[str, int, float]
"""Seconds after the nth occurrence of a word in the output."""

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as made:
        yield made


class Runner:
    """Runs each program of `runner` in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def run(self, program: str, folder: Path, server: FakeOpenAI, instant: Instant = ("", 0, 0.0)) -> bool:
        """Runs a program, kills it at an instant, and returns whether the kill interrupted the program."""
        print(program, folder, server.url, file=self._in, flush=True)
        word, times, delay = instant
        pid = 0
        for line in self._out:
            said, *number = line.split()
            if said == "ready":
                pid = int(number[0])
            if said == "ended":
                assert number in (["0"], [str(-signal.SIGKILL)])
                return number != ["0"]
            if said == word:
                times -= 1
                if times == 0:
                    time.sleep(delay)  # the instant is the point
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        raise AssertionError("the runner has ended")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One process for the module, which forks for each program."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZSVEC_")}
    user = str(tmp_path_factory.mktemp("user"))
    environment = {**kept, SWITCH_VARIABLE: "0", KEY_VARIABLE: KEY, "XDG_CONFIG_HOME": user}
    command = [sys.executable, "-m", "tests.generation.runner"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Runner(process)
        process.kill()


def bought(folder: Path) -> list[ImageRecord]:
    records = read_manifest(folder)
    return list(images(records, folder).values())


def sales(server: FakeOpenAI) -> list[Entry]:
    return [entry for entry in server.entries if entry.path == IMAGES and entry.sold]


def assert_complete(folder: Path, names: Sequence[str], server: FakeOpenAI) -> None:
    """Checks that the folder has each sold image, whole and in its place, and nothing else."""
    records = bought(folder)
    assert {(record.category, record.index) for record in records} == {(name, i) for name in names for i in range(2)}
    assert {path for path in folder.glob("*/**/*") if path.is_file()} == {folder / record.file for record in records}
    pictures = {noise(repr((entry.subject, entry.key, 0))) for entry in sales(server)}
    assert {(folder / record.file).read_bytes() for record in records} == pictures
    assert len([record for record in read_manifest(folder) if isinstance(record, ImageRecord)]) == len(records)


def while_drawing(seed: int) -> list[Instant]:
    """Returns instants during questions, then during purchases of images."""
    draw = random.Random(seed)
    asking = [("ready", 1, draw.uniform(0.05, 0.25)) for _ in range(3)]
    return [*asking, *(("bought", draw.randint(1, 5), draw.uniform(0, LATENCY)) for _ in range(7))]


def test_every_image_is_sold_once_by_services_that_honour_the_keys(folder: Path, runner: Runner) -> None:
    with FakeOpenAI(latency=LATENCY) as server:
        kills = sum(runner.run("draw", folder, server, instant) for instant in while_drawing(1859))
        assert not runner.run("draw", folder, server)
    assert kills >= 5
    assert set(server.sold(IMAGES).values()) == {1}
    assert len(sales(server)) == 2 * len(NAMES)
    assert_complete(folder, NAMES, server)


def test_images_on_disk_are_not_bought_again_without_idempotency(folder: Path, runner: Runner) -> None:
    with FakeOpenAI(latency=LATENCY, honours_idempotency=False) as server:
        kills, there = 0, []
        for instant in while_drawing(20240711):
            kills += runner.run("draw", folder, server, instant)
            there.append((time.monotonic(), {record.prompt for record in bought(folder)}))
        assert not runner.run("draw", folder, server)
    assert kills >= 5
    assert len(sales(server)) <= 2 * len(NAMES) + kills * CONCURRENCY  # requests on their way
    for then, prompts in there:
        assert not [entry for entry in sales(server) if entry.started > then and entry.subject in prompts]
    assert_complete(folder, NAMES, server)


def while_drawing_and_storing() -> list[Instant]:
    draw = random.Random(31)
    asking = [("ready", 1, draw.uniform(0.05, 0.3)) for _ in range(2)]
    arriving = [("bought", draw.randint(1, 8), draw.uniform(0, LATENCY)) for _ in range(2)]
    storing = [("stored", draw.randint(1, 6), draw.uniform(0, 0.01)) for _ in range(6)]
    return [*asking, *arriving, *storing]


def test_nothing_is_stored_by_halves(folder: Path, runner: Runner) -> None:
    with FakeOpenAI(latency=LATENCY) as server:
        kills = 0
        for instant in while_drawing_and_storing():
            kills += runner.run("store", folder, server, instant)
            known = {record.sha256 for record in bought(folder / "generated")}
            with open_classifier(folder) as classifier:
                assert classifier._store.incomplete() == []
                assert stored(classifier) <= {(name, digest) for name in STORED for digest in known}
        assert not runner.run("store", folder, server)
    assert kills >= 5
    assert set(server.sold(IMAGES).values()) == {1}
    assert_complete(folder / "generated", STORED, server)
    with open_classifier(folder) as classifier:
        assert classifier._store.incomplete() == []
        assert stored(classifier) == {(record.category, record.sha256) for record in bought(folder / "generated")}
        wanted = {"clip:text": 2, "clip:image": 2, "dino:image": 2}
        assert {category.name: category.references for category in classifier.categories()} == dict.fromkeys(
            STORED, wanted
        )


def stored(classifier: Classifier) -> set[tuple[str, str]]:
    """Returns category and hash of each generated image in the store."""
    return {
        (category.name, reference.hash)
        for category in classifier.categories()
        for reference in classifier._store.stored(category.name)
        if reference.source == SOURCE
    }


def test_killed_before_each_step_to_disk(folder: Path, runner: Runner) -> None:
    with FakeOpenAI(honours_idempotency=False) as server:
        assert not runner.run("crash", folder, server)
        last = max(int(path.name) for path in folder.iterdir())
        settings = settings_of(server.url)
        found = []
        for number in range(1, last + 1):
            step = folder / str(number)  # may not exist
            there, requests = {record.prompt for record in bought(step)}, len(server.entries)
            answers = sum(isinstance(record, AnswerRecord) for record in read_manifest(step))
            plan = plan_of(step, FEW, settings)
            assert len(plan.places) == 4 - len(there)
            drawn = carry_out(plan, settings)
            asked = server.entries[requests:]
            assert [entry.path for entry in asked].count(CHAT) == 3 - answers
            assert [entry.path for entry in asked].count(IMAGES) == 4 - len(there)
            assert there.isdisjoint(entry.subject for entry in asked)
            assert {(record.category, record.index) for record in drawn.images} == {
                (name, i) for name in FEW for i in range(2)
            }
            records = [record for record in read_manifest(step) if isinstance(record, ImageRecord)]
            assert len(records) == len(list(step.glob("images/*/*"))) == 4
            found.append((answers, len(there)))
    assert found == sorted(found)
    assert set(found) == {(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)}
