"""`clf.archive`: predictions after an export and an import, also on a server, and killed processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import zsvec
from tests.curation.killed_archives import Difference, kill
from tests.curation.test_copying import assert_predicts_the_same, fill, open_at
from tests.store.support import ServerDeployment
from tests.support import coloured, fast_folder
from tests.support import isolated as isolated
from zsvec.errors import EncoderMismatchError
from zsvec.testing import HashEncoder


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


def test_an_archive_predicts_the_same(folder: Path) -> None:
    fill(folder / "store")
    with open_at(folder / "store") as ours, open_at(folder / "copy") as theirs:
        assert ours.archive is ours.archive
        exported = ours.archive.export(folder / "a.zsvec")
        copied = theirs.archive.import_(folder / "a.zsvec")
        assert (exported.complete, exported.calibration, exported.inbox) == (True, True, 1)
        assert (copied.complete, copied.calibration, copied.inbox) == (True, True, 1)
        assert_predicts_the_same(ours, theirs)
        assert theirs.inbox.hashes() == ours.inbox.hashes() != []


def test_from_a_folder_to_a_server_and_back(folder: Path, server: ServerDeployment) -> None:
    fill(folder / "store")
    with (
        open_at(folder / "store") as ours,
        open_at(server.url, namespace=server.namespace) as theirs,
        open_at(folder / "back") as back,
    ):
        ours.archive.export(folder / "a.zsvec")
        assert theirs.archive.import_(folder / "a.zsvec").complete
        assert_predicts_the_same(ours, theirs)
        assert theirs.archive.export(folder / "b.zsvec").complete
        assert back.archive.import_(folder / "b.zsvec").complete
        assert_predicts_the_same(ours, back)


def test_some_categories_are_calibrated_again(folder: Path) -> None:
    fill(folder / "store")
    with open_at(folder / "store") as ours, open_at(folder / "some") as theirs:
        ours.archive.export(folder / "a.zsvec")
        assert theirs.archive.import_(folder / "a.zsvec", categories=["red", "blue"]).complete
        prediction = theirs.classify(coloured("red", 100))
        assert (prediction.label, prediction.calibration) == ("red", "current")


@pytest.mark.parametrize(
    "encoders",
    [
        [HashEncoder()],
        [HashEncoder("clip", dim=8), HashEncoder("dino", dim=8, modalities=("image",))],
    ],
    ids=["other names", "same names"],
)
def test_a_classifier_with_other_encoders_imports_nothing(folder: Path, encoders: list[HashEncoder]) -> None:
    fill(folder / "store", images=1)
    with open_at(folder / "store") as ours:
        ours.archive.export(folder / "a.zsvec")
    with zsvec.open(folder / "other", encoders=encoders) as other, pytest.raises(EncoderMismatchError):
        other.archive.import_(folder / "a.zsvec")
    assert not (folder / "other").exists()


@pytest.mark.parametrize("act", ["export", "import"])
def test_a_killed_process_is_repeated(folder: Path, act: str) -> None:
    kill(folder, act, instants=3, draw=random.Random(0))


def test_the_script_that_kills_finds_a_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.curation.killed_archives.content", lambda store: object())
    with pytest.raises(Difference, match="the store differs"):
        kill(folder, "import", instants=1, draw=random.Random(0))
